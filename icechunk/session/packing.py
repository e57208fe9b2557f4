"""Small chunks of one session, combined into objects of a few megabytes.

A reference says where in its object a chunk lies, so every client of the format can read
packed chunks. Data that are not stored yet are read from here. They are stored before anybody
know of it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRef
from icechunk.format.ids import new_object_id
from icechunk.session.context import RequestLimit
from icechunk.storage.base import BytesLike, Storage

__all__ = ["MAX_PACKED", "PACK_HEADER", "Packer"]

#: Larger chunks have an object each: a request for one costs little compared to its bytes.
MAX_PACKED: Final = 256 * 1024 - 1
#: An object is stored when it has this many bytes.
PACK_SIZE: Final = 4 * 1024 * 1024
#: With these, every packed chunk has an offset, which tells it from one that is alone.
PACK_HEADER: Final = b"icechunk pack 1\n"


@dataclass(eq=False)
class _Pack:
    """An object that is not stored yet."""

    id: bytes
    data: bytearray
    is_open: bool = True

    @property
    def key(self) -> str:
        return layout.chunk_key(self.id)


class Packer:
    """The packs of one session that are not stored yet. Any number of threads may use it.

    A pack stays here until it is stored. After a failure the next `flush` tries again, under
    the same name. Places are not reused: a chunk that is written twice leaves its first bytes
    behind as waste, because somebody may be reading them.

    Parameters
    ----------
    storage : Storage
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._packs: dict[bytes, _Pack] = {}
        self._dropped: set[bytes] = set()

    def add(self, data: BytesLike) -> ChunkRef:
        """Add a chunk, and store its pack if that is full now.

        Parameters
        ----------
        data : bytes-like
            At most `MAX_PACKED` bytes.

        Raises
        ------
        StorageError
            If the put fails.
        """
        ref, full = self._take(data)
        if full is not None:
            self._storage.put(full.key, full.data)
            self._done(full)
        return ref

    async def add_async(self, data: BytesLike, limit: RequestLimit) -> ChunkRef:
        """Do what `add` does, without blocking the event loop."""
        ref, full = self._take(data)
        if full is not None:
            async with limit.slot():
                await self._storage.put_async(full.key, full.data)
            self._done(full)
        return ref

    def flush(self) -> None:
        """Put all packs.

        Raises
        ------
        StorageError
            If one cannot be stored. It stays here then, with those that were not tried.
        """
        with self._lock:
            for pack in self._packs.values():
                pack.is_open = False
        for pack in list(self._packs.values()):
            # including what another thread is storing at this moment, and may fail to
            self._storage.put(pack.key, pack.data)
            self._done(pack)

    def clear(self) -> None:
        """Drop everything that is not stored."""
        with self._lock:
            self._dropped |= self._packs.keys()
            self._packs.clear()

    def has_dropped(self, chunk_id: bytes | None) -> bool:
        """Whether an object was dropped before it was stored."""
        return chunk_id in self._dropped

    def get(self, chunk_id: bytes, start: int, end: int) -> bytes | None:
        """Return bytes of an object that is not stored yet, or None if it is not one of these."""
        with self._lock:
            pack = self._packs.get(chunk_id)
            return None if pack is None else bytes(pack.data[start:end])

    def _take(self, data: BytesLike) -> tuple[ChunkRef, _Pack | None]:
        """Return where a chunk is now, and its pack if that is full."""
        view = memoryview(data).cast("B")
        with self._lock:
            pack = next((pack for pack in self._packs.values() if pack.is_open), None)
            if pack is None:
                pack = _Pack(new_object_id(), bytearray(PACK_HEADER))
                self._packs[pack.id] = pack
            ref = ChunkRef.native(pack.id, len(view), len(pack.data))
            pack.data += view
            if len(pack.data) < PACK_SIZE:
                return ref, None
            pack.is_open = False
            return ref, pack

    def _done(self, pack: _Pack) -> None:
        with self._lock:
            self._packs.pop(pack.id, None)
