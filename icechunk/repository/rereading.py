"""Whether something is damaged, or could only not be read just now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from icechunk.errors import ErrorKind, FormatError, IcechunkError

__all__ = ["READS", "check_damage", "read_again"]

#: How often something is read before it counts as damaged.
READS: Final = 4

T = TypeVar("T")


def check_damage(error: IcechunkError) -> None:
    """Raise an error again unless it says that something is damaged or missing.

    Another request may succeed later. Whoever goes on without what it asked for gives away
    what is there.
    """
    missing = (ErrorKind.OBJECT_NOT_FOUND, ErrorKind.SNAPSHOT_NOT_FOUND)
    if not isinstance(error, FormatError) and error.kind not in missing:
        raise error


def read_again(read: Callable[[], T]) -> T:
    """Return what is read. Damage counts if several reads meet it: servers send odd things, too."""
    for _ in range(READS - 1):
        try:
            return read()
        except IcechunkError as error:
            check_damage(error)
    return read()
