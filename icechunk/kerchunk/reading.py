"""Files that hold references, read and inflated only as far as makes sense."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import fsspec

from icechunk.errors import ErrorKind, InvalidInputError, StorageError
from icechunk.virtual.outside import OutsideFiles, is_outside

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["ReferenceFiles", "inflated", "reference_files"]

#: Of a file with references, in bytes, and of what is in it.
MAX_FILE: Final = 1 << 30
#: Text about offsets shrinks by a factor of ten. A small file that grows more than this is a
#: bomb, and is refused before it has eaten the memory.
MAX_RATIO: Final = 256
FREE_SIZE: Final = 1 << 26
_PIECE: Final = 1 << 20
#: Of files in a folder with references.
MAX_NAMES: Final = 10_000_000


class ReferenceFiles(Protocol):
    """Where files with references are."""

    def read(self, path: str) -> bytes:
        """Return the bytes of a file.

        Raises
        ------
        StorageError
            If it is no file, or too large.
        OSError
            If there is none, or it cannot be read.
        """

    def names(self, folder: str) -> list[str] | None:
        """Return the names of what is in a folder; None where there are no listings."""


def reference_files(url: str, options: Mapping[str, Any]) -> tuple[ReferenceFiles, str]:
    """Return what reads files at a URL, and its path there.

    Web servers and object stores are read through our own storage, what else fsspec knows
    through that.
    """
    if is_outside(url):
        return _Outside(OutsideFiles(options)), url
    fs, path = fsspec.core.url_to_fs(url, **options)
    return _OfFsspec(fs), path


@dataclass(frozen=True)
class _Outside:
    files: OutsideFiles

    def read(self, path: str) -> bytes:
        try:
            return self.files.read(path, MAX_FILE)
        except FileNotFoundError:
            raise
        except StorageError as error:
            if error.transient:
                raise
            # without the right to list, a service does not say what is not there
            raise FileNotFoundError(str(error)) from None

    def names(self, folder: str) -> list[str] | None:
        listed = self.files.listed(folder, MAX_NAMES)
        return None if listed is None else [url.rpartition("/")[2] for url, _ in listed]


@dataclass(frozen=True)
class _OfFsspec:
    fs: Any

    def read(self, path: str) -> bytes:
        info = self.fs.info(path)
        if info.get("type") not in (None, "file"):
            raise StorageError(f"{path} is not a file but a {info['type']}", ErrorKind.IO)
        size = info.get("size")
        if size is not None and size > MAX_FILE:
            raise _too_large(path, MAX_FILE)
        # what a service says is one thing, and what it sends is another
        with self.fs.open(path, "rb", block_size=_PIECE, cache_type="readahead") as file:
            return _pieces(file, MAX_FILE, path)

    def names(self, folder: str) -> list[str] | None:
        listed = self.fs.ls(folder.rstrip("/"), detail=False)
        return [str(name).rpartition("/")[2] for name in listed]


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
