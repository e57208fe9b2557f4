"""The error for what cannot be stored as given."""

from __future__ import annotations

from icechunk import InvalidInputError
from icechunk.errors import ErrorKind

__all__ = ["refused"]


def refused(message: str) -> InvalidInputError:
    """Return the error for values, names or arrays that a group cannot take."""
    return InvalidInputError(message, ErrorKind.INVALID_ARRAY_METADATA)
