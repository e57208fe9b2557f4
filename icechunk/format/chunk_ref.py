"""One chunk reference as an object."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from icechunk.errors import InvalidInputError
from icechunk.format.ids import OBJECT_ID_SIZE

__all__ = ["ChunkRef", "RefKind"]

_MAX_U32: Final = 2**32 - 1
_MAX_U64: Final = 2**64 - 1


class RefKind(IntEnum):
    """Where the bytes of a chunk are."""

    DELETED = 0  #: nowhere: an uncommitted deletion, never stored in a manifest
    NATIVE = 1
    VIRTUAL = 2
    INLINE = 3


# whether a reference has a chunk id, a location, data
_HAS: Final = {
    RefKind.DELETED: (False, False, False),
    RefKind.NATIVE: (True, False, False),
    RefKind.VIRTUAL: (False, True, False),
    RefKind.INLINE: (False, False, True),
}


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """One reference. Use `native`, `virtual`, `inline` or `deleted` to make one.

    Parameters
    ----------
    kind : RefKind
    chunk_id : bytes, optional
        12 bytes; of a native reference.
    offset, length : int
        Byte range in the chunk object or foreign file. Of an inline reference `offset`
        is 0 and `length` the size of `data`.
    location : str, optional
        URL of the foreign file; of a virtual reference.
    etag : str, optional
        The ETag that the foreign file must have.
    last_modified : int
        Seconds since the epoch: the foreign file must not be newer. 0: not checked.
    data : bytes, optional
        The chunk; of an inline reference.

    Raises
    ------
    InvalidInputError
        If a value is out of range, or the kind lacks what it needs.
    """

    kind: RefKind
    chunk_id: bytes | None = None
    offset: int = 0
    length: int = 0
    location: str | None = None
    etag: str | None = None
    last_modified: int = 0
    data: bytes | None = None

    def __post_init__(self) -> None:
        given = (self.chunk_id is not None, self.location is not None, self.data is not None)
        checksum = self.etag is not None or self.last_modified != 0
        if given != _HAS[self.kind] or (checksum and self.kind != RefKind.VIRTUAL):
            raise InvalidInputError(
                "a chunk reference has a chunk id, a location or data, and only one with "
                "a location has a checksum"
            )
        if not (0 <= self.offset <= _MAX_U64 and 0 <= self.length <= _MAX_U64):
            raise InvalidInputError(
                f"offset {self.offset} and length {self.length} of a chunk must fit in 64 bits"
            )
        if not 0 <= self.last_modified <= _MAX_U32:
            raise InvalidInputError(
                f"last_modified {self.last_modified} must be seconds that fit in 32 bits"
            )
        if self.chunk_id is not None and len(self.chunk_id) != OBJECT_ID_SIZE:
            raise InvalidInputError(f"a chunk id has {OBJECT_ID_SIZE} bytes, not {self.chunk_id!r}")
        size = None
        if self.data is not None or self.kind == RefKind.DELETED:
            size = len(self.data or b"")
        if size is not None and (self.offset, self.length) != (0, size):
            raise InvalidInputError("without a file to read there is no byte range")
        for text in (self.location, self.etag):
            if text is not None and not _is_utf8(text):
                raise InvalidInputError(f"{text!r} cannot be stored as UTF-8")

    @classmethod
    def native(cls, chunk_id: bytes, length: int, offset: int = 0) -> ChunkRef:
        """Refer to bytes of a chunk object of the repository."""
        return cls(RefKind.NATIVE, chunk_id, offset, length)

    @classmethod
    def virtual(
        cls,
        location: str,
        offset: int,
        length: int,
        etag: str | None = None,
        last_modified: int = 0,
    ) -> ChunkRef:
        """Refer to bytes of a foreign file."""
        return cls(RefKind.VIRTUAL, None, offset, length, location, etag, last_modified)

    @classmethod
    def inline(cls, data: bytes) -> ChunkRef:
        """Hold the chunk itself."""
        return cls(RefKind.INLINE, length=len(data), data=data)

    @classmethod
    def deleted(cls) -> ChunkRef:
        """Say that the chunk is deleted."""
        return cls(RefKind.DELETED)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
