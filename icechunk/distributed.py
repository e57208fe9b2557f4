"""Writes from many processes, under the name that the official client has for them."""

from icechunk.session.distributed import (
    Changes,
    extract_session,
    merge_sessions,
)

__all__ = [
    "Changes",
    "extract_session",
    "merge_sessions",
]
