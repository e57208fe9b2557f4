"""Files that hold references, read and inflated no further than makes sense."""

from __future__ import annotations

import gzip
import io
import sys
from typing import Any, Final

from icechunk.errors import ErrorKind, InvalidInputError, StorageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["inflated", "read_file"]

#: Of a file with references, in bytes, and of what is in it.
MAX_FILE: Final = 1 << 30
#: Text about offsets shrinks by a factor of ten. A small file that grows more than this is a
#: bomb, and is refused before it has eaten the memory.
MAX_RATIO: Final = 256
FREE_SIZE: Final = 1 << 26
_PIECE: Final = 1 << 20


def read_file(fs: Any, path: str) -> bytes:
    """Return the bytes of a file.

    Parameters
    ----------
    fs : fsspec filesystem
    path : str

    Raises
    ------
    StorageError
        If it is no file, or too large.
    OSError
        If it cannot be read.
    """
    if "http" in fs.protocol:
        # servers may say one size and send another; a stream is read as far as is wanted
        with fs.open(path, "rb", block_size=0) as file:
            return _pieces(file, MAX_FILE, path)
    info = fs.info(path)
    if info.get("type") not in (None, "file"):
        raise StorageError(f"{path} is not a file but a {info['type']}", ErrorKind.IO)
    size = info.get("size")
    if size is not None and size > MAX_FILE:
        raise _too_large(path, MAX_FILE)
    data: bytes = fs.cat_file(path)
    return data


def _too_large(path: str, limit: int) -> StorageError:
    return StorageError(f"{path}: references of more than {limit} bytes", ErrorKind.IO)


def _pieces(file: Any, limit: int, path: str) -> bytes:
    pieces: list[bytes] = []
    left = limit
    while piece := file.read(_PIECE):
        left -= len(piece)
        if left < 0:
            raise _too_large(path, limit)
        pieces.append(piece)
    return b"".join(pieces)


def inflated(data: bytes, path: str) -> bytes:
    """Return what is in a file that may be compressed with zstd or gzip.

    Raises
    ------
    InvalidInputError
        If it is damaged, or grows too much.
    """
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        file: Any = zstd.ZstdFile(io.BytesIO(data))
    elif data.startswith(b"\x1f\x8b"):
        file = gzip.GzipFile(fileobj=io.BytesIO(data))
    else:
        return data
    limit = min(MAX_FILE, max(FREE_SIZE, MAX_RATIO * len(data)))
    try:
        return _pieces(file, limit, path)
    except StorageError as error:
        raise InvalidInputError(
            f"{error} when inflated from {len(data)}", ErrorKind.INVALID_VIRTUAL_REF
        ) from None
