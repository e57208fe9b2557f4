"""Values stored beside the objects of the format, as JSON in a zstd frame.

Whoever wrote the repository wrote these, too. So their size is limited, and their form is
checked before use.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["compressed", "decompressed", "first_unpacked", "packed", "unpacked"]

#: Of the decompressed text. A value takes up to a hundred times the memory of its text.
_FREE_SIZE: Final = 1 << 23
_MAX_RATIO: Final = 100
_LEVEL: Final = 3


def packed(value: Any) -> bytes:
    """Return a value as stored bytes."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return compressed(text.encode())


def compressed(data: bytes) -> bytes:
    """Return bytes as one zstd frame, with a checksum."""
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: _LEVEL,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    return zstd.compress(data, options=options)


def unpacked(data: bytes) -> Any:
    """Return the value of stored bytes.

    Raises
    ------
    ValueError
        If they are damaged, or too large when decompressed.
    """
    value, rest = first_unpacked(data)
    if rest:
        raise ValueError("followed by other bytes")
    return value


def first_unpacked(data: bytes) -> tuple[Any, bytes]:
    """Return the value that bytes begin with, and the rest; raises as `unpacked` does."""
    text, rest = decompressed(data)
    try:
        return json.loads(text), rest
    except RecursionError as error:
        raise ValueError(str(error)) from None


def decompressed(data: bytes) -> tuple[bytes, bytes]:
    """Return the content of the first frame of bytes, and the rest; raises as `unpacked` does."""
    limit = max(_FREE_SIZE, _MAX_RATIO * len(data))
    decompressor = zstd.ZstdDecompressor()
    try:
        text = decompressor.decompress(data, max_length=limit + 1)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from None
    if len(text) > limit:
        raise ValueError(f"more than {limit} bytes when decompressed")
    if not decompressor.eof:
        raise ValueError("cut short")
    return text, decompressor.unused_data
