"""Helpers for writes from many processes: get sessions from arrays, and merge them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from icechunk.changes import change_set
from icechunk.changes.change_set import ChangeSet
from icechunk.changes.codec import decode_change_set, encode_change_set
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.ids import decode_id
from icechunk.session.session import ForkSession, Session
from icechunk.storage.base import Storage

__all__ = ["Changes", "extract_session", "merge_sessions"]


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


class Changes:
    """What a session did. It pickles as a compact change set, and merges without a session.

    Made by `of`; other processes get it by pickle.
    """

    def __init__(
        self,
        decoded: ChangeSet | None,
        encoded: bytes | None,
        storages: Iterable[Storage] = (),
    ) -> None:
        self._decoded = decoded
        self._encoded = encoded
        # those of this process that may not have forced all chunks to disk yet
        self._storages = {id(storage): storage for storage in storages}

    @classmethod
    def of(cls, session: Session) -> Changes:
        """Return what `Session.change_set_bytes` stands for. Do not write to it any more."""
        return cls(session.changes(), None, [session.storage])

    @classmethod
    def merged(cls, parts: Iterable[Changes]) -> Changes:
        """Combine several that were made side by side.

        No repository is needed: workers combine what they did before it travels on.

        Parameters
        ----------
        parts : iterable of Changes
            At least one, in any order. One that comes twice counts once.

        Raises
        ------
        FormatError
            If one was damaged on its way.
        SessionStateError
            If they were made on different snapshots.
        ConflictError
            If two disagree about a chunk or a node.
        """
        parts = list(parts)
        storages = [storage for part in parts for storage in part._storages.values()]
        return cls(change_set.merge(part._open() for part in parts), None, storages)

    def on(self, snapshot_id: str) -> Changes:
        """Return them as if made on another snapshot, which has everything they were made on.

        Only for changes of a fork of an uncommitted session, once that session is committed.
        with it.
        """
        changes = self._open().copy()
        changes.base = decode_id(snapshot_id)
        return Changes(changes, None, self._storages.values())

    def to_bytes(self) -> bytes:
        """Return them for `Session.merge_change_sets`."""
        for storage in self._storages.values():
            storage.sync()
        if self._encoded is None:
            self._encoded = encode_change_set(self._open())
        return self._encoded

    def _open(self) -> ChangeSet:
        if self._decoded is None:
            self._decoded = decode_change_set(self._encoded or b"")
        return self._decoded

    def __reduce__(self) -> tuple[Any, ...]:
        return Changes, (None, self.to_bytes())

    def __sizeof__(self) -> int:
        # Dask asks for this to plan its memory: the columns, or the bytes that were sent
        if self._decoded is None:
            return len(self._encoded or b"")
        return 500 + sum(edits.refs().nbytes for edits in self._decoded.chunks.values())


def merge_sessions(*sessions: Any) -> ForkSession:
    """Merge forks of one session into the first of them, and return it.

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
    first.merge_parts(*rest)
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
