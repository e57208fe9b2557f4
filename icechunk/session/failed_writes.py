"""Chunks that a session should hold and does not, because writing them failed.

zarr writes many chunks at a time. If one fails, the others go on. A commit of what is there
would then contain a part of what was meant, and nobody would notice.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from icechunk.changes.tree import Tree
from icechunk.errors import ErrorKind, SessionStateError
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.snapshot import Node

__all__ = ["FailedWrites"]


#: The id of an array, and the coordinate of a chunk.
Chunk: TypeAlias = tuple[bytes, tuple[int, ...]]


class FailedWrites:
    """The chunks whose newest write failed, and the writes in progress."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: set[Chunk] = set()
        self._under_way: dict[object, Chunk] = {}
        self._given_up: set[object] = set()

    def __bool__(self) -> bool:
        return bool(self._chunks)

    @contextmanager
    def noted(self, node: Node, coordinate: Collection[int]) -> Iterator[None]:
        """Record a chunk if the block, which uploads it, raises or is interrupted.

        Other chunks of the array that are being uploaded at that moment may belong to the same
        write, whose caller is told that it failed. They are given up: if they arrive later, they
        must not replace what has been written since.

        Raises
        ------
        SessionStateError
            If the chunk was given up in the meantime.
        """
        mark, chunk = object(), (node.id, tuple(coordinate))
        with self._lock:
            self._under_way[mark] = chunk
        try:
            yield
        except BaseException:
            with self._lock:
                self._chunks.add(chunk)
                for other, (id, at) in self._under_way.items():
                    if id == node.id and other is not mark:
                        self._chunks.add((id, at))
                        self._given_up.add(other)
            raise
        finally:
            with self._lock:
                del self._under_way[mark]
                is_late = mark in self._given_up
                self._given_up.discard(mark)
        if is_late:
            raise SessionStateError(
                f"chunk {chunk[1]} of {node.path!r} was given up while it was written, because "
                "another write failed or the changes were discarded; write it again"
            )

    def forget(self, node_id: bytes, coordinate: Collection[int]) -> None:
        """Record that a chunk has another value now."""
        if self._chunks:
            with self._lock:
                self._chunks.discard((node_id, tuple(coordinate)))

    def forget_many(self, node_id: bytes, refs: ChunkRefs) -> None:
        """Record that some chunks of an array have other values now."""
        with self._lock:
            self._chunks -= {
                (id, at) for id, at in self._chunks if id == node_id and refs.find(at) >= 0
            }

    def clear(self) -> None:
        """Forget everything, together with the edits; writes in progress are given up."""
        with self._lock:
            self._chunks.clear()
            self._given_up.update(self._under_way)

    def check(self, tree: Tree) -> None:
        """Refuse to go on with a part of what was written.

        Raises
        ------
        SessionStateError
        """
        nodes = tree.by_id({id for id, _ in self._chunks})
        found = sorted((nodes[id].path, at) for id, at in self._chunks if id in nodes)
        if found:
            path, at = found[0]
            more = f" and of {len(found) - 1} more" if len(found) > 1 else ""
            raise SessionStateError(
                f"writing chunk {at} of {path!r}{more} failed, and others of the same write may "
                "be there: write them again, delete them, or discard_changes()",
                ErrorKind.NOT_ALLOWED,
            )
