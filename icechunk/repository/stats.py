"""How much space the chunks of a repository take."""

from __future__ import annotations

from dataclasses import dataclass

from icechunk.base.texts import Labelled

__all__ = ["ChunkStorageStats"]


@dataclass(frozen=True, repr=False)
class ChunkStorageStats(Labelled):
    """Bytes that chunks take, each chunk counted once.

    Attributes
    ----------
    native_bytes : int
        In objects of the repository.
    virtual_bytes : int
        In files elsewhere: every distinct range of a file.
    inlined_bytes : int
        In manifests: a chunk counts once for each manifest that holds it.
    """

    _label = "icechunk.stats.ChunkStorageStats"

    native_bytes: int = 0
    virtual_bytes: int = 0
    inlined_bytes: int = 0

    def non_virtual_bytes(self) -> int:
        """Return the bytes stored in the repository itself."""
        return self.native_bytes + self.inlined_bytes

    def total_bytes(self) -> int:
        """Return the sum of all."""
        return self.non_virtual_bytes() + self.virtual_bytes

    def __add__(self, other: ChunkStorageStats) -> ChunkStorageStats:
        if not isinstance(other, ChunkStorageStats):
            return NotImplemented
        return ChunkStorageStats(
            self.native_bytes + other.native_bytes,
            self.virtual_bytes + other.virtual_bytes,
            self.inlined_bytes + other.inlined_bytes,
        )
