"""Helpers for writes from many processes: sessions out of arrays, and merging them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.session import ForkSession, Session

__all__ = ["extract_session", "merge_sessions"]


def extract_session(zarray: Any, axis: Any = None, keepdims: Any = None) -> Session:
    """Return the session behind a Zarr array.

    `axis` and `keepdims` are ignored; Dask passes them to functions of a reduction.

    Raises
    ------
    InvalidInputError
        If the array is not stored in an Icechunk store.
    """
    session = getattr(getattr(zarray, "store", None), "session", None)
    if not isinstance(session, Session):
        raise InvalidInputError(
            f"{zarray!r} is not a Zarr array of an Icechunk store", ErrorKind.NOT_AN_ARRAY
        )
    return session


def merge_sessions(*sessions: Any) -> ForkSession:
    """Merge forks of one session into the first of them, and return that.

    Parameters
    ----------
    *sessions : ForkSession or nested sequences of ForkSession

    Raises
    ------
    TypeError
        If something else is among them.
    ConflictError
        If two disagree about a chunk or a node.
    """
    first, *rest = list(_flat(sessions))
    first.merge(*rest)
    return first


def _flat(sessions: Sequence[Any]) -> Iterator[ForkSession]:
    for item in sessions:
        if isinstance(item, ForkSession):
            yield item
        elif isinstance(item, Sequence) and not isinstance(item, str):
            yield from _flat(item)
        else:
            raise TypeError(
                f"merge_sessions takes forks, not a {type(item).__name__}; "
                "Session.merge(*forks) merges forks into the session they came from"
            )
