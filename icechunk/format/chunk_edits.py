"""Uncommitted edits of the chunk references of one array."""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence
from typing import Final

from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.chunk_refs import ChunkRef, ChunkRefs

__all__ = ["ChunkEdits"]

#: Single edits that stay objects before they become columns.
_TAIL_LIMIT: Final = 4096
_DELETED: Final = ChunkRef.deleted()


class ChunkEdits:
    """Chunks set and deleted since the base, the last edit of each.

    Single edits gather in a small dictionary. When it is full they become a sorted
    `ChunkRefs`, a run, and runs are merged so that each is at least twice as long as the
    next newer one. An edit is therefore copied O(log n) times, a look-up searches
    O(log n) runs, and a million edits are a few arrays. Safe to use from many threads.

    Parameters
    ----------
    ndim : int
        Number of dimensions of the array.
    """

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim
        self._lock = threading.Lock()
        self._tail: dict[tuple[int, ...], ChunkRef] = {}
        # oldest first; replaced, never changed, so that readers need no lock to search
        self._runs: tuple[ChunkRefs, ...] = ()

    @classmethod
    def from_refs(cls, refs: ChunkRefs) -> ChunkEdits:
        """Start with these edits; a row of kind DELETED is a deletion."""
        edits = cls(refs.ndim)
        edits.set_many(refs)
        return edits

    def set(self, coord: Sequence[int], ref: ChunkRef) -> None:
        """Set one chunk.

        Raises
        ------
        InvalidInputError
            If `coord` is not `ndim` numbers of 32 bits.
        """
        key = tuple(map(operator.index, coord))
        if len(key) != self.ndim or not 0 <= min(key, default=0) <= max(key, default=0) < 2**32:
            raise InvalidInputError(
                f"{list(key)} is not a chunk of an array of {self.ndim} dimensions",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
        with self._lock:
            self._tail[key] = ref
            if len(self._tail) >= _TAIL_LIMIT:
                self._flush()

    def delete(self, coord: Sequence[int]) -> None:
        """Delete one chunk, whether or not the base has it."""
        self.set(coord, _DELETED)

    def set_many(self, refs: ChunkRefs) -> None:
        """Set the chunks of `refs`, and delete those whose kind is DELETED."""
        if refs.ndim != self.ndim:
            raise InvalidInputError(
                f"chunk references of {refs.ndim} dimensions for an array of {self.ndim}",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
        with self._lock:
            self._flush()
            self._push(refs)

    def get(self, coord: Sequence[int]) -> ChunkRef | None:
        """Return the last edit of a chunk: kind DELETED if deleted, None if not edited."""
        key = tuple(coord)
        with self._lock:
            found = self._tail.get(key)
            runs = self._runs
        if found is not None:
            return found
        for run in reversed(runs):
            row = run.find(key)
            if row >= 0:
                return run.row(row)
        return None

    def refs(self) -> ChunkRefs:
        """Return all edits, one row a chunk, including deletions."""
        with self._lock:
            return self._compacted()

    def __len__(self) -> int:
        return len(self.refs())

    def __bool__(self) -> bool:
        with self._lock:
            return bool(self._tail or self._runs)

    def __repr__(self) -> str:
        return f"ChunkEdits({self.refs()!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return ChunkEdits.from_refs, (self.refs(),)

    # the methods below are called with the lock held

    def _flush(self) -> None:
        if self._tail:
            tail = self._tail
            run = ChunkRefs.from_rows(list(tail), list(tail.values()), self.ndim)
            self._push(run)
            self._tail = {}

    def _push(self, run: ChunkRefs) -> None:
        if not len(run):
            return
        runs = [*self._runs, run]
        first = len(runs) - 1
        size = len(run)
        while first > 0 and len(runs[first - 1]) < 2 * size:
            first -= 1
            size += len(runs[first])
        self._runs = (*runs[:first], ChunkRefs.concatenate(self.ndim, runs[first:]))

    def _compacted(self) -> ChunkRefs:
        self._flush()
        refs = ChunkRefs.concatenate(self.ndim, self._runs)
        self._runs = (refs,) if len(refs) else ()
        return refs
