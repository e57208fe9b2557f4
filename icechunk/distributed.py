"""Helpers for writes from many processes: sessions out of arrays, and merging them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from icechunk import change_set
from icechunk.change_set_codec import decode_change_set, encode_change_set
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.session import ForkSession, Session

__all__ = ["extract_session", "merge_change_sets", "merge_sessions"]


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


def merge_change_sets(change_sets: Iterable[bytes]) -> bytes:
    """Make one change set of several that were made side by side.

    No repository is needed: workers reduce what they did before it travels on.

    Parameters
    ----------
    change_sets : iterable of bytes
        At least one result of `Session.change_set_bytes`, in any order; one that comes
        twice counts once.

    Raises
    ------
    FormatError
        If some bytes are damaged or no change set.
    SessionStateError
        If they were made on different snapshots.
    ConflictError
        If two disagree about a chunk or a node.
    """
    given = list(change_sets)
    if not given:
        raise InvalidInputError("there is no change set to merge", ErrorKind.MERGE_NOT_ALLOWED)
    parts = [decode_change_set(data, f"change set {i}") for i, data in enumerate(given)]
    return encode_change_set(change_set.merge(parts))


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
