"""The envelope around every metadata object: a 39-byte header, then zstd frames.

Icechunk spec, "File headers": magic, name of the writer, spec version, file type,
compression; all fixed width. Chunks, ``ref.json`` and ``config.yaml`` have no envelope.

Official writers before 2.3.0 leave the content size out of the zstd frame, and a file
may consist of several frames, or contain skippable ones. So frames are walked one at a
time here. One frame with its content size and a checksum is written: the form that
every reader accepts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from queue import LifoQueue
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from icechunk._version import RELEASE
from icechunk.errors import ErrorKind, FormatError, InternalError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = [
    "HEADER_SIZE",
    "MAX_PAYLOAD",
    "BytesLike",
    "FileType",
    "Header",
    "Scratch",
    "read_header",
    "unwrap",
    "wrap",
]

BytesLike: TypeAlias = bytes | bytearray | memoryview

MAGIC: Final = b"ICE\xf0\x9f\xa7\x8aCHUNK"
HEADER_SIZE: Final = 39

#: FlatBuffers positions are 32-bit, so no valid payload is larger.
MAX_PAYLOAD: Final = 1 << 32

# Metadata are full of random ids and shrink by a factor of tens. A small object that grows
# a thousandfold is a bomb, and is refused before it fills the memory.
_MAX_RATIO: Final = 1024
_FREE_SIZE: Final = 1 << 26

_STEP: Final = 1 << 20
#: Smaller than what the system maps anew, and clears, for each allocation.
_PIECE: Final = 1 << 16

_NAME: Final = slice(12, 36)
# other readers expect names that begin with "ic-"
_WRITER: Final = f"ic-py-{RELEASE}".encode()[:24].ljust(24)
_SPEC_VERSIONS: Final = (1, 2)
_ZSTD: Final = 1


class FileType(IntEnum):
    """What an object holds; byte 37 of the header."""

    SNAPSHOT = 1
    MANIFEST = 2
    ATTRIBUTES = 3
    TRANSACTION_LOG = 4
    CHUNK = 5
    REPO = 6


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a stored object says.

    Attributes
    ----------
    writer : str
        Whatever its writer called itself.
    spec_version : int
        1 or 2.
    file_type : FileType
    """

    writer: str
    spec_version: int
    file_type: FileType


_FILE_TYPES: Final = frozenset(FileType)


@cache
def _options(level: int) -> dict[int, int]:
    lowest, highest = zstd.CompressionParameter.compression_level.bounds()
    return {
        zstd.CompressionParameter.compression_level: min(max(level, lowest), highest),
        zstd.CompressionParameter.checksum_flag: 1,
    }


def wrap(
    payload: BytesLike, file_type: FileType, *, level: int = 3, spec_version: int = 2
) -> bytearray:
    """Return a stored object: header, then `payload` as one zstd frame.

    Parameters
    ----------
    payload : bytes-like
        At most `MAX_PAYLOAD` bytes.
    file_type : FileType
    level : int
        Of zstd. As in zstd itself, a level outside its range means the nearest one.
    spec_version : int
        1 or 2.
    """
    view = memoryview(payload).cast("B")
    size = len(view)
    if size > MAX_PAYLOAD:
        raise InternalError(f"a {file_type.name} of {size} bytes: no reader would accept it")
    compressor = zstd.ZstdCompressor(options=_options(level))
    compressor.set_pledged_input_size(size)
    data = bytearray(MAGIC + _WRITER + bytes((spec_version, file_type, _ZSTD)))
    # in steps: the module keeps everything that one call returns in pieces, and then joins them
    last = max(size - 1, 0) // _STEP * _STEP
    for start in range(0, last, _STEP):
        data += compressor.compress(view[start : start + _STEP])
    data += compressor.compress(view[last:], compressor.FLUSH_FRAME)
    return data


def unwrap(
    data: BytesLike, file_type: FileType, name: str, *, max_size: int = MAX_PAYLOAD
) -> tuple[bytes, int]:
    """Check the header of a stored object and decompress the rest.

    Parameters
    ----------
    data : bytes-like
        The whole object.
    file_type : FileType
        What it should be.
    name : str
        The object's key, for messages.
    max_size : int
        Upper bound of the payload in bytes. Another bound is 1024 times the size of the
        object, beyond 64 MiB. Memory grows with what the frames really contain, never with what
        they declare.

    Returns
    -------
    payload : bytes
    spec_version : int
        1 or 2. It describes this file alone: a repository mixes both.

    Raises
    ------
    FormatError
        If the object is cut, damaged, foreign, of another type, or too large.
    """
    frames, spec_version, limit = _frames(data, file_type, name, max_size)
    return _decompress(frames, name, limit), spec_version


def read_header(data: BytesLike, name: str) -> Header:
    """Return what the header of a stored object says; `name` is its key, for messages.

    Raises
    ------
    FormatError
        If there is no header, or an unknown one.
    """
    view = memoryview(data)
    if len(view) < HEADER_SIZE or bytes(view[: len(MAGIC)]) != MAGIC:
        raise FormatError(
            f"{name}: not an Icechunk file: it does not start with the 39-byte header",
            ErrorKind.INVALID_FILE_FORMAT,
        )
    spec_version, found, compression = view[_NAME.stop : HEADER_SIZE]
    if spec_version not in _SPEC_VERSIONS:
        raise FormatError(
            f"{name}: format version {spec_version} is unknown to this library (it reads 1 and 2), "
            "a newer one may read it",
            ErrorKind.UNSUPPORTED_SPEC_VERSION,
        )
    if found not in _FILE_TYPES:
        raise FormatError(
            f"{name}: file type {found} in the header is unknown", ErrorKind.INVALID_FILE_FORMAT
        )
    if compression != _ZSTD:
        raise FormatError(
            f"{name}: compression {compression} in the header, only 1 (zstd) is known",
            ErrorKind.INVALID_FILE_FORMAT,
        )
    writer = bytes(view[_NAME]).rstrip(b" ").decode("utf-8", "replace")
    return Header(writer, spec_version, FileType(found))


class Scratch:
    """Memory into which the payloads of many large objects are decompressed, one after another.

    For whoever reads each of them once, and little of it: the system clears new memory for each
    payload, which takes longer than decompressing it.

    Parameters
    ----------
    count : int
        Payloads at a time; who wants one more waits.
    """

    def __init__(self, count: int) -> None:
        self._free: LifoQueue[NDArray[np.uint8]] = LifoQueue()
        for _ in range(count):
            self._free.put(np.empty(0, np.uint8))

    @contextmanager
    def unwrap(
        self, data: BytesLike, file_type: FileType, name: str
    ) -> Iterator[tuple[memoryview, int]]:
        """Do what `unwrap` does; the payload is valid in the block only."""
        memory = self._free.get()
        try:
            frames, version, limit = _frames(data, file_type, name, MAX_PAYLOAD)
            size = 0
            for piece in _pieces(frames, name, limit, _PIECE):
                needed = size + len(piece)
                if needed > len(memory):
                    # what is declared is not touched before it is there
                    declared = min(_declared(frames), limit)
                    more = declared if declared >= needed else needed + needed // 2
                    grown = np.empty(more, np.uint8)
                    grown[:size] = memory[:size]
                    memory = grown
                memory[size : size + len(piece)] = np.frombuffer(piece, np.uint8)
                size += len(piece)
            yield memory[:size].data, version
        finally:
            self._free.put(memory)


def _declared(frames: memoryview) -> int:
    """Return what the first frame says of its size when decompressed; 0 if it says nothing."""
    try:
        return zstd.get_frame_info(frames).decompressed_size or 0
    except zstd.ZstdError:
        return 0


def _frames(
    data: BytesLike, file_type: FileType, name: str, max_size: int
) -> tuple[memoryview, int, int]:
    """Check the header; return the compressed part, the spec version, and the payload's limit."""
    header = read_header(data, name)
    if header.file_type != file_type:
        raise FormatError(
            f"{name}: file type {int(header.file_type)} in the header, expected {int(file_type)} "
            f"({file_type.name.lower()})",
            ErrorKind.INVALID_FILE_FORMAT,
        )
    view = memoryview(data)
    limit = min(max_size, max(_FREE_SIZE, _MAX_RATIO * len(view)))
    return view[HEADER_SIZE:], header.spec_version, limit


def _decompress(data: memoryview, name: str, limit: int) -> bytes:
    pieces = list(_pieces(data, name, limit))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _pieces(data: memoryview, name: str, limit: int, step: int | None = None) -> Iterator[bytes]:
    """Yield what frames contain: each whole, or in pieces of at most `step` bytes."""
    room = limit
    too_large = f"{name}: more than {limit} bytes when decompressed"
    try:
        while len(data):
            # the size of the frame first: a decompressor that is given everything keeps
            # a copy of what it did not use, which is quadratic in the number of frames
            end = zstd.get_frame_size(data)
            frame, data = data[:end], data[end:]
            if (zstd.get_frame_info(frame).decompressed_size or 0) > room:
                raise FormatError(too_large)
            decompressor = zstd.ZstdDecompressor()
            rest: BytesLike = frame
            while not decompressor.eof:
                most = room + 1 if step is None else min(step, room + 1)
                piece = decompressor.decompress(rest, max_length=most)
                if not piece and not decompressor.eof:
                    raise FormatError(f"{name}: the compressed data are cut")
                room -= len(piece)
                if room < 0:
                    raise FormatError(too_large)
                yield piece
                rest = b""
    except zstd.ZstdError as error:
        raise FormatError(f"{name}: the compressed data are damaged: {error}") from error
