"""Files that are read by ranges: elsewhere in blocks that are kept, or by several threads."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, BinaryIO, Final

from icechunk.errors import StorageError
from icechunk.storage.base import Storage
from icechunk_dask.archives.signs import step

__all__ = ["AHEAD", "FileRanges", "RangeFile", "open_ranges"]

#: How much more than requested is read: the next request is mostly for bytes nearby.
AHEAD: Final = 5 << 20
_BLOCK: Final = 1 << 18
#: How much of a file is kept: the parts used last.
_KEPT: Final = 32 << 20


class RangeFile(io.RawIOBase):
    """A file for reading, fetched as far as it is asked for and a little more.

    All of it is of one version. However long an answer is, no more of it is read than the
    requested range.

    Parameters
    ----------
    storage : Storage
    key : str
    size : int
        In bytes.
    etag : str or None
        The version that is read; None if the server has no names for versions.
    ahead : int
        How many bytes more are read at a time.
    start : bytes, optional
        The bytes with which the file begins, if they are known.
    """

    def __init__(
        self,
        storage: Storage,
        key: str,
        size: int,
        etag: str | None,
        *,
        ahead: int = AHEAD,
        start: bytes = b"",
    ) -> None:
        super().__init__()
        self._storage, self._key, self._size, self._etag = storage, key, size, etag
        self._ahead = ahead
        self._position = 0
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._most = max(_KEPT, 2 * (ahead + _BLOCK)) // _BLOCK
        self._whole = start if len(start) == size else None
        if self._whole is None:
            self._keep(0, start)

    def readable(self) -> bool:
        """Whether it can be read: always true."""
        return True

    def seekable(self) -> bool:
        """Whether it has positions: always true."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a position; behind the end there is nothing to read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"there is no byte {base + offset} in a file")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return this many bytes, or as many as there are.

        Raises
        ------
        StorageError
            If the bytes cannot be read, are not as many as the server said, or are of a newer
            version.
        """
        end = self._size if size is None or size < 0 else min(self._position + size, self._size)
        data = self._range(self._position, end) if end > self._position else b""
        self._position += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer, as far as there are bytes."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def _range(self, start: int, end: int) -> bytes:
        if self._whole is not None:
            return self._whole[start:end]
        if end - start > self._most * _BLOCK // 2:
            # large ranges are read once
            return self._fetched(start, end)
        wanted = range(start // _BLOCK, -(-end // _BLOCK))
        missing = [number for number in wanted if number not in self._kept]
        held = {number: self._kept[number] for number in wanted if number in self._kept}
        if missing:
            first = missing[0] * _BLOCK
            last = min(-(-(end + self._ahead) // _BLOCK) * _BLOCK, self._size)
            held.update(self._keep(first, self._fetched(first, last)))
        for number in wanted:
            if number in self._kept:
                self._kept.move_to_end(number)
        whole = b"".join(held[number] for number in wanted)
        return whole[start - wanted[0] * _BLOCK : end - wanted[0] * _BLOCK]

    def _keep(self, start: int, data: bytes) -> dict[int, bytes]:
        """Keep the whole blocks of what was read, and return them."""
        blocks = {
            (start + at) // _BLOCK: data[at : at + _BLOCK]
            for at in range(0, len(data), _BLOCK)
            if at + _BLOCK <= len(data) or start + len(data) == self._size
        }
        for number, block in blocks.items():
            self._kept[number] = block
            self._kept.move_to_end(number)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return blocks

    def _fetched(self, start: int, end: int) -> bytes:
        step()
        found = self._storage.get(self._key, byte_range=(start, end), if_match=self._etag)
        if len(found.data) != end - start:
            raise StorageError(
                f"cannot read {self._key} in {self._storage.url}: the server said that it has "
                f"{self._size} bytes, and of {start} to {end} it sent {len(found.data)}"
            )
        return bytes(found.data)


class FileRanges:
    """Reads ranges of a file, one after another.

    Parameters
    ----------
    file : binary file
        It needs only ``seek`` and ``read``.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._lock = threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly this many bytes.

        Raises
        ------
        OSError
            If the file ends earlier: it has changed since its header was read.
        """
        with self._lock:
            self.file.seek(offset)
            data = self.file.read(count)
        if len(data) != count:
            raise OSError(f"the file ends before byte {offset + count}: it has changed")
        return data


@contextmanager
def open_ranges(file: str | os.PathLike[str] | BinaryIO) -> Iterator[FileRanges]:
    """Open a file, or take an open one, which stays open."""
    with open(file, "rb") if isinstance(file, str | os.PathLike) else nullcontext(file) as opened:
        yield FileRanges(opened)
