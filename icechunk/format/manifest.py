"""Manifests: the chunk references of arrays, as stored objects.

Icechunk spec, "Manifest file". Slots of the root: 0 id, 1 arrays, 2 location_dictionary,
3 compression_algorithm. Of an array: 0 node_id, 1 refs. Of a reference: 0 index,
1 inline, 2 offset, 3 length, 4 chunk_id, 5 location, 6 checksum_etag,
7 checksum_last_modified, 8 compressed_location.

References are sorted by index and arrays by node id. What a reference is follows from
its fields, in this order: chunk_id makes it native, compressed_location or location
virtual, inline inline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from icechunk.errors import FormatError, InternalError, InvalidInputError
from icechunk.format import location_compression as locations
from icechunk.format.chunk_columns import range_ends
from icechunk.format.chunk_refs import ChunkRefs, RefKind
from icechunk.format.encoding import spans
from icechunk.format.encoding.envelope import BytesLike, FileType, Scratch, unwrap, wrap
from icechunk.format.encoding.flatbuf import (
    Batch,
    Tables,
    distinct as distinct_values,
    encode,
    read_root,
)
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.format.ids import NODE_ID_SIZE, OBJECT_ID_SIZE, encode_id
from icechunk.format.location_compression import LocationCompression

__all__ = [
    "LocationCompression",
    "Manifest",
    "NativeChunks",
    "StoredLocations",
    "decode_chunk_ids",
    "decode_manifest",
    "decode_native_chunks",
    "encode_manifest",
    "read_location_compression",
]

Ints = NDArray[np.int64]

_NO_COMPRESSION: Final = 0
_ZSTD: Final = 1  # the default of its field, which is why 0 is stored
# its offset, its table with the offset of an index, and the index's length
_SMALLEST_REF: Final = 16
_DEFAULT_COMPRESSION: Final = LocationCompression()


@dataclass(frozen=True)
class Manifest:
    """The references of some arrays.

    Parameters
    ----------
    id : bytes
        12 bytes.
    arrays : dict of bytes to ChunkRefs
        By node id, 8 bytes.
    """

    id: bytes
    arrays: dict[bytes, ChunkRefs]

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(refs.nbytes for refs in self.arrays.values())


@dataclass(frozen=True, slots=True)
class StoredLocations:
    """How a stored manifest holds the locations of virtual chunks.

    Attributes
    ----------
    is_used : bool
        Whether the manifest says that they are compressed; all of spec 1 do.
    dictionary_size : int
        In bytes, 0 for none.
    num_refs : int
        References whose location is compressed.
    payload_size : int
        Of the whole manifest in bytes, decompressed.
    """

    is_used: bool
    dictionary_size: int
    num_refs: int
    payload_size: int


# ---------------------------------------------------------------------------- writing


def encode_manifest(
    id: bytes,
    arrays: Mapping[bytes, ChunkRefs],
    *,
    level: int = 3,
    compress_locations: LocationCompression | None = _DEFAULT_COMPRESSION,
    spec_version: int = 2,
) -> bytearray:
    """Return a manifest as a stored object.

    Parameters
    ----------
    id : bytes
        12 bytes.
    arrays : mapping of bytes to ChunkRefs
        By node id, 8 bytes. No deleted references.
    level : int
        Of zstd.
    compress_locations : LocationCompression or None
        None: never. Spec 1 has no compression.
    spec_version : int

    Raises
    ------
    InvalidInputError
        If the references do not fit in one file.
    """
    nodes = sorted(arrays)
    parts = [arrays[node] for node in nodes]
    compressed = None
    if compress_locations is not None and spec_version > 1:
        count = sum(refs.count_virtual for refs in parts)
        if count >= compress_locations.min_num_chunks:
            heaps = [refs.locations for refs in parts if refs.locations is not None]
            compressed = locations.compress(heaps, compress_locations)

    tables = Batch(len(nodes))
    tables.struct(0, _bytes_rows(nodes, NODE_ID_SIZE))
    frames = iter(compressed.frames if compressed is not None else ())
    tables.children(
        1,
        [_refs_batch(r, next(frames, None) if r.locations is not None else None) for r in parts],
        [0, *accumulate(map(len, parts))],
    )
    root = Batch(1)
    root.struct(0, _bytes_rows([id], OBJECT_ID_SIZE))
    root.children(1, tables, [0, len(nodes)])
    if compressed is not None:
        root.blob(2, [compressed.dictionary])
    if spec_version > 1:
        root.scalar(3, _NO_COMPRESSION if compressed is None else _ZSTD, np.uint8, default=_ZSTD)
    payload = encode(
        root, too_large="split the references over several manifests (`manifest.splitting`)"
    )
    return wrap(payload, FileType.MANIFEST, level=level, spec_version=spec_version)


def _refs_batch(refs: ChunkRefs, frames: tuple[bytes, ...] | None) -> Batch:
    """Describe the references of one array; `frames` are its compressed locations."""
    kind, n = refs.kind, len(refs)
    kinds = refs.kinds
    if RefKind.DELETED in kinds:
        raise InternalError("a deleted chunk reached a manifest")
    # nearly always all are of one kind, which needs no masks
    inline = None if len(kinds) < 2 else kind == RefKind.INLINE
    native = None if len(kinds) < 2 else kind == RefKind.NATIVE
    batch = Batch(n)
    batch.matrix(0, refs.coords)
    if kinds != {RefKind.INLINE}:
        elsewhere = None if inline is None else ~inline
        batch.scalar(2, refs.offset, np.uint64, default=0, present=elsewhere)
        batch.scalar(3, refs.length, np.uint64, default=0, present=elsewhere)
    if refs.inline_data is not None:
        start = refs.offset if inline is None else np.where(inline, refs.offset, 0)
        length = refs.length if inline is None else np.where(inline, refs.length, 0)
        batch.spans(1, refs.inline_data, start, length, present=inline)
    if refs.chunk_id is not None:
        batch.struct(4, refs.chunk_id, present=native)
    if refs.location is not None and refs.locations is not None:
        if frames is None:
            heap = refs.locations
            batch.heap(5, heap.data, heap.offsets, refs.location, text=True)
        else:
            data = np.frombuffer(b"".join(frames), np.uint8)
            offsets = np.cumsum([0, *map(len, frames)])
            batch.heap(8, data, offsets, refs.location, text=False)
    if refs.etag is not None and refs.etags is not None:
        batch.heap(6, refs.etags.data, refs.etags.offsets, refs.etag, text=True)
    if refs.last_modified is not None:
        batch.scalar(7, refs.last_modified, np.uint32, default=0)
    return batch


def _bytes_rows(ids: list[bytes], size: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), size)


# ---------------------------------------------------------------------------- reading


def decode_manifest(data: BytesLike, name: str) -> Manifest:
    """Read a manifest.

    Parameters
    ----------
    data : bytes-like
        The stored object.
    name : str
        Its key, for errors.

    Raises
    ------
    FormatError
        If it is not a manifest, or a damaged one.
    """
    payload, _ = unwrap(data, FileType.MANIFEST, name)
    return decode_payload(payload, name)


def decode_payload(payload: bytes, name: str) -> Manifest:
    """Decode the content of an envelope, as `decode_manifest` does."""
    return decode_root(read_root(payload, name), name)


def decode_root(root: Tables, name: str) -> Manifest:
    """Decode the root of an envelope's content, as `decode_manifest` does."""
    manifest_id, _ = root.struct(0, OBJECT_ID_SIZE, "id")
    tables, _ = root.children(1, "arrays", required=True)
    ids, _ = tables.struct(0, NODE_ID_SIZE, "node_id")
    refs, ends = tables.children(1, "refs", required=True, smallest=_SMALLEST_REF)
    index, index_ends = refs.vector(0, "<u4", "index", required=True)
    columns, heaps = read_columns(root, refs, name)

    arrays: dict[bytes, ChunkRefs] = {}
    for row, (start, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        node = ids[row].tobytes()
        where = f"{name}: array {encode_id(node)}"
        if node in arrays:
            raise FormatError(f"{where}: occurs twice; the file is damaged")
        cuts = index_ends[start : end + 1]
        ndim = int(cuts[1] - cuts[0]) if end > start else 0
        if (np.diff(cuts) != ndim).any():
            raise FormatError(f"{where}: coordinates of different ranks; the file is damaged")
        coords = index[cuts[0] : cuts[-1]].reshape(end - start, ndim)
        own: dict[str, Any] = {key: column[start:end] for key, column in columns.items()}
        try:
            arrays[node] = ChunkRefs.from_columns(coords, **own, **heaps)
        except InvalidInputError as e:
            raise FormatError(f"{where}: {e}; the file is damaged") from e
    return Manifest(manifest_id.tobytes(), arrays)


def decode_chunk_ids(
    data: BytesLike, name: str, scratch: Scratch
) -> tuple[bytes, NDArray[np.uint8]]:
    """Read the id of a manifest, and those of its native chunks: uint8[n, 12].

    Nothing else of it is read: coordinates and locations would take many times as long.

    Parameters
    ----------
    data : bytes-like
        The whole object.
    name : str
        Its key, for messages.
    scratch : Scratch
        For what is needed in the meantime.

    Raises
    ------
    FormatError
        If it is not a manifest, or a damaged one.
    """
    with scratch.unwrap(data, FileType.MANIFEST, name) as (payload, _):
        manifest_id, _, refs = _native_refs(payload, name)
        return manifest_id, refs.struct(4, OBJECT_ID_SIZE, "chunk_id")[0]


@dataclass(frozen=True)
class NativeChunks:
    """The native chunks of a manifest, in its order.

    Attributes
    ----------
    manifest_id : bytes
    begins_at : tuple
        The array and the coordinate of the first: a manifest that takes the place of another
        begins where that did.
    ids : uint8[n, 12]
    ends : uint64[n]
        How many bytes each object has at least.
    """

    manifest_id: bytes
    begins_at: tuple[bytes, bytes]
    ids: NDArray[np.uint8]
    ends: NDArray[np.uint64]


def decode_native_chunks(data: BytesLike, name: str) -> NativeChunks:
    """Read what `decode_chunk_ids` does, and how large the chunks are.

    Raises
    ------
    FormatError
        If it is not a manifest, or a damaged one.
    """
    with Scratch(1).unwrap(data, FileType.MANIFEST, name) as (payload, _):
        manifest_id, arrays, refs = _native_refs(payload, name)
        first, _ = refs.take(slice(1)).vector(0, "<u4", "index", required=True)
        nodes, _ = arrays.take(slice(1)).struct(0, NODE_ID_SIZE, "node_id")
        offset, length = (
            refs.scalar(2, "<u8", field="offset"),
            refs.scalar(3, "<u8", field="length"),
        )
        ids, _ = refs.struct(4, OBJECT_ID_SIZE, "chunk_id")
        return NativeChunks(
            manifest_id,
            (nodes.tobytes(), first.tobytes()),
            ids,
            range_ends(offset, length).astype(np.uint64),
        )


def _native_refs(payload: BytesLike, name: str) -> tuple[bytes, Tables, Tables]:
    """Return the id of a manifest, its arrays, and its references to native chunks."""
    root = read_root(payload, name)
    manifest_id, _ = root.struct(0, OBJECT_ID_SIZE, "id")
    arrays, _ = root.children(1, "arrays", required=True)
    refs, _ = arrays.children(1, "refs", required=True, smallest=_SMALLEST_REF)
    native = refs.present(4)
    return manifest_id.tobytes(), arrays, refs if native.all() else refs.take(native)


def read_location_compression(data: BytesLike, name: str) -> StoredLocations:
    """Say how a stored manifest, whose key is `name`, holds the locations of virtual chunks.

    Raises
    ------
    FormatError
        If it is not a manifest, or a damaged one.
    """
    payload, _ = unwrap(data, FileType.MANIFEST, name)
    root = read_root(payload, name)
    tables, _ = root.children(1, "arrays", required=True)
    refs, _ = tables.children(1, "refs", required=True, smallest=_SMALLEST_REF)
    algorithm = root.scalar(3, np.uint8, _ZSTD, field="compression_algorithm")[0]
    dictionary = root.blobs(2, "location_dictionary")[0]
    return StoredLocations(
        is_used=bool(algorithm != _NO_COMPRESSION),
        dictionary_size=len(dictionary or b""),
        num_refs=int(refs.present(8).sum()),
        payload_size=len(payload),
    )


def read_columns(
    root: Tables, refs: Tables, name: str
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return columns without the coordinates, and heaps, as `ChunkRefs` names them."""
    native = refs.present(4)
    compressed = refs.present(8) & ~native
    plain = refs.present(5) & ~native & ~compressed
    virtual = compressed | plain
    inline = refs.present(1) & ~native & ~virtual
    kind = np.zeros(len(refs), np.uint8)
    kind[native], kind[virtual], kind[inline] = RefKind.NATIVE, RefKind.VIRTUAL, RefKind.INLINE
    if not kind.all():
        raise FormatError(f"{name}: refs: a reference to nothing; the file is damaged")
    offset = refs.scalar(2, "<u8", field="offset")
    length = refs.scalar(3, "<u8", field="length")
    columns: dict[str, NDArray[Any]] = {"kind": kind, "offset": offset, "length": length}
    heaps: dict[str, Any] = {}
    if native.any():
        columns["chunk_id"], _ = refs.struct(4, OBJECT_ID_SIZE, "chunk_id", required=False)
    if inline.any():
        heaps["inline_data"], ends = refs.take(inline).vector(1, np.uint8, "inline")
        offset[inline], length[inline] = ends[:-1], np.diff(ends)
    if virtual.any():
        heaps["locations"], columns["location"] = _read_locations(
            root, refs, plain, compressed, name
        )
        tagged = refs.present(6) & virtual
        if tagged.any():
            etag = columns["etag"] = np.full(len(refs), -1, np.int32)
            heaps["etags"], etag[tagged] = _read_strings(
                refs.take(tagged), 6, f"{name}: checksum_etag"
            )
        modified = refs.scalar(7, "<u4", field="checksum_last_modified")
        columns["last_modified"] = np.where(virtual, modified, 0)
    return columns, heaps


def _read_locations(
    root: Tables, refs: Tables, plain: Any, compressed: Any, name: str
) -> tuple[StringHeap, NDArray[np.int32]]:
    """Return distinct locations, and which one each reference has; -1 where none."""
    location = np.full(len(refs), -1, np.int32)
    heaps: list[StringHeap] = []
    if plain.any():
        heap, location[plain] = _read_strings(refs.take(plain), 5, f"{name}: location")
        heaps.append(heap)
    if compressed.any():
        where = f"{name}: compressed_location"
        if root.scalar(3, np.uint8, _ZSTD, field="compression_algorithm")[0] != _ZSTD:
            raise FormatError(f"{where}: compressed in an unknown way")
        start, length, which = _distinct_spans(refs.take(compressed), 8, where)
        # official writers store a frame for every reference, even if they are equal
        first, group = spans.unique(refs.buffer, start, length)
        frames, ends = spans.gather(refs.buffer, start[first], length[first])
        dictionary = root.blobs(2, "location_dictionary")[0]
        heap = locations.CompressedHeap(frames, ends, dictionary, where)
        location[compressed] = group[which]
        heaps.append(heap)
    if len(heaps) == 1:
        return heaps[0], location
    merged, maps = StringHeap.merge(heaps)
    for rows, mapped in zip((plain, compressed), maps, strict=True):
        location[rows] = mapped[location[rows]]
    return merged, location


def _read_strings(tables: Tables, slot: int, name: str) -> tuple[StringHeap, NDArray[np.int32]]:
    """Return the distinct strings of a field that all tables have, and each one's index."""
    start, length, which = _distinct_spans(tables, slot, name)
    try:
        heap, index = StringHeap.from_spans(tables.buffer, start, length)
    except InvalidInputError as e:
        raise FormatError(f"{name}: {e}; the file is damaged") from e
    return heap, index[which]


def _distinct_spans(tables: Tables, slot: int, name: str) -> tuple[Ints, Ints, Ints]:
    """Return start and length of the distinct spans of a field, and which one each row has."""
    start, length, _ = tables.spans(slot)
    first, which = distinct_values(start)
    if int(length[first].sum()) > len(tables.buffer):
        raise FormatError(f"{name}: strings lie inside of one another; the file is damaged")
    return start[first], length[first], which
