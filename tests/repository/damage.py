"""Kinds of damage to a stored object."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: What `damaged` can do.
KINDS = ("remove", "cut", "empty", "flip", "swap", "id")
_HEADER = 39


def damaged(path: Path, kind: str) -> bool:
    """Damage a file; return False if the kind of damage means nothing for it.

    ``id`` puts another id into the payload and compresses it again, so that no checksum tells.
    """
    is_chunk = path.parent.name == "chunks"
    data = path.read_bytes()
    if kind == "remove":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[:-3])
    elif kind == "empty":
        path.write_bytes(b"")
    elif is_chunk:
        # chunks have no checksum of their own, and no id inside
        return False
    elif kind == "flip":
        middle = (len(data) + _HEADER) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :])
    elif kind == "swap":
        others = [p for p in sorted(path.parent.iterdir()) if p != path and p.is_file()]
        if not others:
            return False
        shutil.copyfile(others[0], path)
    else:
        # the first field of all: an id of 12 bytes, which is that of the name
        from icechunk.format.ids import decode_id

        payload = payload_of(data)
        id = decode_id(path.name)
        assert payload.count(id) >= 1
        write_payload(path, payload.replace(id, bytes([id[0] ^ 1]) + id[1:], 1))
    return True


def payload_of(data: bytes) -> bytes:
    """Return the payload of a stored object."""
    return zstd.ZstdDecompressor().decompress(data[_HEADER:])


def write_payload(path: Path, payload: bytes) -> None:
    """Put another payload into a stored object, with its checksum."""
    path.write_bytes(path.read_bytes()[:_HEADER] + zstd.compress(payload))
