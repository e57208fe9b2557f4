"""Change sets as bytes: what a worker sends back.

Layout: the magic ``ICHKCS``, one version byte, and a zstd frame with checksum. Inside: a u32
length, a JSON header of that length, then the raw columns one after another. The header
lists nodes as rows and columns by name, dtype and shape. Nothing in it can run code, and
a reader can check every size before it looks at a column. Node metadata and array columns
are all byte ranges of the part after the header.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.changes.change_set import ChangeSet, DeletedNode, MovedNode, NewNode
from icechunk.errors import ErrorKind, FormatError
from icechunk.format.chunk_edits import ChunkEdits
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import NODE_ID_SIZE, OBJECT_ID_SIZE, normalize_path

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC: Final = b"ICHKCS"
VERSION: Final = 2
#: A change set of a hundred million references is about this large.
MAX_PAYLOAD: Final = 1 << 33
_STEP: Final = 1 << 20
#: Columns shrink by a factor of ten or so. A small change set that grows a thousandfold is a
#: bomb, and is refused before it fills the memory.
_MAX_RATIO: Final = 1024
_FREE_SIZE: Final = 1 << 26
_COLUMN_DTYPES: Final = {"|u1", "<u4", "<u8", "<i4", "<i8"}


class _Heap:
    """Byte strings and columns one after another."""

    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self.size = 0

    def add(self, data: bytes | memoryview) -> list[int]:
        start, self.size = self.size, self.size + len(data)
        self.parts.append(data)
        return [start, len(data)]


def encode_change_set(changes: ChangeSet) -> bytes:
    """Return the bytes of a change set."""
    heap = _Heap()
    arrays = []
    for node_id, edits in changes.chunks.items():
        if not edits:
            continue
        refs = edits.refs()
        columns = {}
        for name, column in refs.to_columns().items():
            flat = np.ascontiguousarray(column)
            flat = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
            raw: Any = flat.reshape(-1).view(np.uint8)
            columns[name] = [flat.dtype.str, list(column.shape), *heap.add(memoryview(raw))]
        arrays.append([node_id.hex(), changes.node_paths.get(node_id, ""), refs.ndim, columns])
    header = {
        "base": changes.base.hex(),
        "lineage": changes.lineage.hex(),
        "new": [
            [n.id.hex(), n.path, n.is_array, heap.add(n.user_data)]
            for n in changes.new_nodes.values()
        ],
        "updated": [
            [k.hex(), changes.node_paths.get(k, ""), heap.add(v)]
            for k, v in changes.updated.items()
        ],
        "deleted": [[k.hex(), n.path, n.is_array, n.is_undone] for k, n in changes.deleted.items()],
        "moved": [[k.hex(), m.from_path, m.to_path, m.is_array] for k, m in changes.moved.items()],
        "chunks": arrays,
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: 3,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    payload = b"".join([struct.pack("<I", len(text)), text, *heap.parts])
    return MAGIC + bytes([VERSION]) + zstd.compress(payload, options=options)


def decode_change_set(data: bytes, name: str = "change set") -> ChangeSet:
    """Read a change set.

    Raises
    ------
    FormatError
        If the bytes are cut or damaged, or are not a change set at all.
    """
    payload = _unwrap(data, name)
    try:
        (size,) = struct.unpack_from("<I", payload)
        header = json.loads(payload[4 : 4 + size])
        return _build(header, memoryview(payload)[4 + size :], name)
    except FormatError:
        raise
    # a header that is JSON but not ours can fail in as many ways as it has fields
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
        struct.error,
    ) as error:
        raise _damaged(name, f"the header does not fit: {error!r}") from None


def _damaged(name: str, reason: str) -> FormatError:
    return FormatError(
        f"{name}: {reason}; expected the result of change_set_bytes()",
        ErrorKind.DESERIALIZATION,
    )


def _unwrap(data: bytes, name: str) -> bytearray:
    if not isinstance(data, bytes | bytearray | memoryview):
        raise _damaged(name, f"a {type(data).__name__} instead of bytes")
    data = bytes(data)
    start = len(MAGIC) + 1
    if data[: len(MAGIC)] != MAGIC:
        raise _damaged(name, "these bytes are not a change set")
    if len(data) < start or data[len(MAGIC)] != VERSION:
        raise _damaged(name, f"version {data[len(MAGIC) : start].hex() or 'missing'} is not known")
    limit = min(MAX_PAYLOAD, max(_FREE_SIZE, _MAX_RATIO * len(data)))
    decompressor = zstd.ZstdDecompressor()
    rest, payload = memoryview(data)[start:], bytearray()
    try:
        # in steps: no data exist twice, and a bomb is noticed before it has grown
        while not decompressor.eof and (rest or not decompressor.needs_input):
            step, rest = (rest[:_STEP], rest[_STEP:]) if decompressor.needs_input else (b"", rest)
            payload += decompressor.decompress(step, max_length=_STEP)
            if len(payload) > limit:
                raise _damaged(name, f"more than {limit} bytes when decompressed")
    except zstd.ZstdError as error:
        raise _damaged(name, f"damaged ({error})") from None
    if not decompressor.eof:
        raise _damaged(name, "cut short")
    if decompressor.unused_data or rest:
        raise _damaged(name, "followed by other bytes")
    return payload


def _build(header: dict[str, Any], heap: memoryview, name: str) -> ChangeSet:
    def span(start: int, length: int) -> memoryview:
        if not (isinstance(start, int) and isinstance(length, int)):
            raise _damaged(name, "a position is not a number")
        if start < 0 or length < 0 or start + length > len(heap):
            raise _damaged(name, "a position lies outside")
        return heap[start : start + length]

    def node_id(text: str) -> bytes:
        raw = bytes.fromhex(text)
        if len(raw) != NODE_ID_SIZE:
            raise _damaged(name, f"{text!r} is not a node id")
        return raw

    def path(text: str) -> str:
        if not isinstance(text, str) or normalize_path(text) != text:
            raise _damaged(name, f"{text!r} is not a path")
        return text

    base = bytes.fromhex(header["base"])
    if len(base) != OBJECT_ID_SIZE:
        raise _damaged(name, "the base is not a snapshot id")
    changes = ChangeSet(base, bytes.fromhex(header["lineage"]))
    for raw, where, is_array, at in header["new"]:
        node = NewNode(node_id(raw), path(where), bytes(span(*at)), bool(is_array))
        changes.new_nodes[node.path] = node
    for raw, where, at in header["updated"]:
        changes.updated[node_id(raw)] = bytes(span(*at))
        changes.node_paths[node_id(raw)] = path(where)
    for raw, where, is_array, is_undone in header["deleted"]:
        changes.deleted[node_id(raw)] = DeletedNode(path(where), bool(is_array), bool(is_undone))
    for raw, start, end, is_array in header["moved"]:
        changes.moved[node_id(raw)] = MovedNode(path(start), path(end), bool(is_array))
    for raw, where, ndim, described in header["chunks"]:
        if not isinstance(ndim, int) or not 0 <= ndim <= 64:
            raise _damaged(name, f"an array of {ndim!r} dimensions")
        columns: dict[str, npt.NDArray[Any]] = {}
        for column, (dtype, shape, start, length) in described.items():
            if dtype not in _COLUMN_DTYPES:
                raise _damaged(name, f"column {column!r} of dtype {dtype!r}")
            columns[column] = np.frombuffer(span(start, length), dtype).reshape(shape)
        refs = ChunkRefs.from_stored_columns(ndim, columns, name)
        changes.chunks[node_id(raw)] = ChunkEdits.from_refs(refs)
        changes.node_paths[node_id(raw)] = path(where)
    return changes
