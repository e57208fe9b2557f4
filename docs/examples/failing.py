"""Errors as values: one base class, and a code that does not change."""

# --8<-- [start:kinds]
import icechunk

try:
    icechunk.Repository.open("nothing-here")
except icechunk.IcechunkError as error:
    print(type(error).__name__, error.kind)  # RepositoryNotFoundError repository-not-found
    print(error)
# --8<-- [end:kinds]

# --8<-- [start:logs]
icechunk.set_logs_filter("debug")  # as ICECHUNK_LOG=debug does; the library says what it requests
# --8<-- [end:logs]
