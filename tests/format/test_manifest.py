from __future__ import annotations

import struct
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings, strategies as st

from icechunk.errors import FormatError, InternalError, InvalidInputError
from icechunk.format.chunk_refs import ChunkRef, ChunkRefs, RefKind
from icechunk.format.encoding import flatbuf_write
from icechunk.format.encoding.envelope import FileType, unwrap, wrap
from icechunk.format.encoding.flatbuf import Batch, encode
from icechunk.format.location_compression import CompressedHeap
from icechunk.format.manifest import (
    LocationCompression,
    Manifest,
    decode_manifest,
    encode_manifest,
)
from tests.format.hostile import damaged
from tests.format.strict_walk import Table, Vector, walk
from tests.python_calls import python_calls

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

REF = Table(
    {
        0: ("index*", Vector("I")),
        1: ("inline", "bytes"),
        2: ("offset", "Q"),
        3: ("length", "Q"),
        4: ("chunk_id", "id12"),
        5: ("location", "string"),
        6: ("checksum_etag", "string"),
        7: ("checksum_last_modified", "I"),
        8: ("compressed_location", "bytes"),
    }
)
SCHEMA = Table(
    {
        0: ("id*", "id12"),
        1: ("arrays*", Vector(Table({0: ("node_id*", "id8"), 1: ("refs*", Vector(REF))}))),
        2: ("location_dictionary", "bytes"),
        3: ("compression_algorithm", "B"),
    }
)

# Written by the official client 2.3.0: chunk 0 inline, 1 native, 2 virtual.
GOLDEN = bytes.fromhex(
    "140000004963686b0c00180008001400000007000c0000000000000021edab91"
    "d4d4c44e0a0cfa4704000000010000000c0000000800100004000c0008000000"
    "eefae7a1cfd76aac0400000003000000a8000000780000001800000000001200"
    "24000400000010001800000008000c0012000000400000002800000018000000"
    "1000000000000000080000000000000000000000050000006574616731000000"
    "0e00000073333a2f2f626b742f6b2e62696e0000010000000200000000000e00"
    "1c00040000000000140008000e0000001800000017b2d2225d3cbeb610f40ce1"
    "0800000000000000010000000100000008000c00040008000800000014000000"
    "040000000800000001000000020000000100000000000000"
)
# The Icechunk spec's dictionary, and frames for file-0000.nc and file-0005.nc.
DICTIONARY = bytes.fromhex(
    "37a430ecc2e93a012610405c0750aaff2494ea3f09a5fa4f42a9fe896118866118bef88261188bee7dcb037880"
    "ed079390904824f29224499224a594f20184000102020202020202020202020202020202020202020202020202"
    "024221028141201008044110044110042184101f346a6161616161616161616161b1582c168bc562b1582c16cb"
    "b22ccbb2d65a0f010000000400000008000000782f66696c652d303030342e6e6373333a2f2f6275636b65742f"
    "736f6d652f7072656669782f66696c652d303030352e6e63782f66696c652d303030322e6e6373333a2f2f6275"
    "636b65742f736f6d652f7072656669782f66696c652d303030332e6e63782f"
)
FRAMES = [
    bytes.fromhex("28b52ffd23c2e93a012455000020302e6e6301001b1e80"),
    bytes.fromhex("28b52ffd23c2e93a01243d000000010037320001"),
]
ID, NODE = b"manifest ID.", b"node ID."

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
positive = st.integers(1, 2**64 - 1)
rows = st.one_of(
    st.builds(ChunkRef.native, st.binary(min_size=12, max_size=12), positive, u64),
    st.builds(ChunkRef.inline, st.binary(max_size=9)),
    st.builds(
        ChunkRef.virtual,
        st.sampled_from(["s3://a/b", "s3://a/c.nc", "file:///é"]),
        u64,
        positive,
        st.sampled_from([None, '"tag"', "é"]),
        st.sampled_from([0, 1, 2**32 - 1]),
    ),
)


@st.composite
def references(draw: st.DrawFn) -> ChunkRefs:
    ndim = draw(st.integers(0, 3))
    coords = st.lists(st.tuples(*[st.integers(0, 3) | u32] * ndim), unique=True, max_size=6)
    where = draw(coords)
    return ChunkRefs.from_rows(where, [draw(rows) for _ in where], ndim)


manifests = st.dictionaries(
    st.binary(min_size=8, max_size=8), references().filter(len), min_size=1, max_size=3
)


def payload_of(stored: bytes) -> bytes:
    return unwrap(stored, FileType.MANIFEST, "test")[0]


def decode_payload(payload: bytes) -> Manifest:
    return decode_manifest(wrap(payload, FileType.MANIFEST), "manifests/X")


def test_the_official_manifest() -> None:
    manifest = decode_payload(GOLDEN)
    assert manifest.id.hex() == "21edab91d4d4c44e0a0cfa47"
    (node,) = manifest.arrays
    assert node.hex() == "eefae7a1cfd76aac"
    refs = manifest.arrays[node]
    assert refs.coords.tolist() == [[0], [1], [2]]
    assert [refs.row(i) for i in range(3)] == [
        ChunkRef.inline(bytes.fromhex("0100000002000000")),
        ChunkRef.native(bytes.fromhex("17b2d2225d3cbeb610f40ce1"), 8),
        ChunkRef.virtual("s3://bkt/k.bin", 16, 8, etag="etag1"),
    ]
    again = payload_of(encode_manifest(manifest.id, manifest.arrays))
    assert walk(again, SCHEMA) == walk(GOLDEN, SCHEMA)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(manifests)
def test_what_is_written_is_read(arrays: dict[bytes, ChunkRefs]) -> None:
    manifest = decode_manifest(encode_manifest(ID, arrays), "x")
    assert manifest == Manifest(ID, arrays)
    assert manifest.nbytes >= sum(refs.coords.nbytes for refs in arrays.values())


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(manifests)
def test_a_strict_reader_agrees(arrays: dict[bytes, ChunkRefs]) -> None:
    found = walk(payload_of(encode_manifest(ID, arrays)), SCHEMA)
    assert found["id"] == ID
    assert found["compression_algorithm"] == 0
    assert [array["node_id"] for array in found["arrays"]] == sorted(arrays)
    for array in found["arrays"]:
        refs = arrays[array["node_id"]]
        assert array["refs"] == [as_fields(refs, i) for i in range(len(refs))]


def as_fields(refs: ChunkRefs, row: int) -> dict[str, Any]:
    """Return the fields that a reference should have."""
    ref = refs.row(row)
    inline = ref.kind == RefKind.INLINE
    fields = {
        "inline": ref.data,
        "offset": None if inline else ref.offset or None,
        "length": None if inline else ref.length or None,
        "chunk_id": ref.chunk_id,
        "location": ref.location,
        "checksum_etag": ref.etag,
        "checksum_last_modified": ref.last_modified or None,
    }
    present = {name: value for name, value in fields.items() if value is not None}
    return {"index": refs.coords[row].tolist(), **present}


# ------------------------------------------------------------------- locations


ALWAYS = LocationCompression(only_where_smaller=False)


def urls(n: int) -> list[str]:
    return [f"s3://a-bucket/a/long/prefix/of/all/files/year=2024/{i:05d}/data.nc" for i in range(n)]


def virtual(locations: list[str], **kwargs: Any) -> ChunkRefs:
    coords = np.arange(len(locations), dtype=np.uint32)[:, None]
    return ChunkRefs.virtual(coords, locations, 0, 7, **kwargs)


def test_the_dictionary_of_the_spec() -> None:
    batch = Batch(3)
    batch.vector(0, np.arange(3, dtype=np.uint32), np.arange(4))
    batch.scalar(3, [1, 1, 1], "<u8")
    batch.blob(8, [FRAMES[0], FRAMES[1], None])
    batch.text(5, [None, None, "s3://plain"])
    refs = decode_payload(as_manifest(batch, dictionary=DICTIONARY)).arrays[NODE]
    assert [refs.row(i).location for i in range(3)] == [
        "s3://bucket/some/prefix/file-0000.nc",
        "s3://bucket/some/prefix/file-0005.nc",
        "s3://plain",
    ]


def as_manifest(
    refs: Batch, *, dictionary: bytes | None = None, algorithm: int = 1, ends: Any = None
) -> bytes:
    ends = [0, refs.n] if ends is None else ends
    n = len(ends) - 1
    arrays = Batch(n)
    ids = b"".join(NODE[:-1] + bytes([NODE[-1] + i]) for i in range(n))
    arrays.struct(0, np.frombuffer(ids, np.uint8).reshape(n, 8))
    arrays.children(1, refs, ends)
    root = Batch(1)
    root.struct(0, np.frombuffer(ID, np.uint8).reshape(1, 12))
    root.children(1, arrays, [0, n])
    root.blob(2, [dictionary])
    root.scalar(3, [algorithm], np.uint8, default=1)
    return encode(root)


@pytest.mark.parametrize("arrays", [1, 2])
def test_many_locations_are_compressed(arrays: int) -> None:
    refs = virtual(urls(1000), etags=['"e"'] * 1000)
    inline = ChunkRefs.inline([[5000]], [b"abc"])
    parts = {bytes([i]) * 8: refs.overlay(inline) for i in range(arrays)} | {b"z" * 8: inline}
    stored = encode_manifest(ID, parts, compress_locations=ALWAYS)
    found = walk(payload_of(stored), SCHEMA)
    assert found["location_dictionary"][:4].hex() == "37a430ec"
    assert len(found["location_dictionary"]) <= 2048
    assert "compression_algorithm" not in found  # the default says zstd
    for array in found["arrays"][:arrays]:
        assert all(
            "compressed_location" in ref and "location" not in ref for ref in array["refs"][:1000]
        )
    assert decode_manifest(stored, "x") == Manifest(ID, parts)


@pytest.mark.parametrize(
    "refs,options",
    [
        (virtual(urls(999)), ALWAYS),
        (virtual([*urls(1000), "s3://" + "x" * 1020]), ALWAYS),
        (virtual([str(i) for i in range(1000)]), ALWAYS),
        (virtual(urls(1000)), replace(ALWAYS, max_dictionary_size=1)),
        (virtual(urls(2) * 1000), ALWAYS),
        (virtual([""] * 1000), ALWAYS),
        (virtual(urls(1000)), None),
        (virtual(urls(1000)), LocationCompression()),
    ],
    ids=["few", "long", "short", "no dictionary", "few distinct", "empty", "off", "no gain"],
)
def test_when_locations_stay_plain(refs: ChunkRefs, options: LocationCompression | None) -> None:
    stored = encode_manifest(ID, {NODE: refs}, compress_locations=options)
    found = walk(payload_of(stored), SCHEMA)
    assert "location_dictionary" not in found
    assert found["compression_algorithm"] == 0
    assert all("location" in ref for ref in found["arrays"][0]["refs"])
    assert decode_manifest(stored, "x").arrays[NODE] == refs


def test_the_threshold_counts_virtual_references_only() -> None:
    refs = virtual(urls(999)).overlay(ChunkRefs.inline([[5000]], [b"abc"]))
    assert "location_dictionary" not in walk(payload_of(encode_manifest(ID, {NODE: refs})), SCHEMA)


def test_a_long_location_comes_back() -> None:
    # the official reader has a limit of 1024 bytes for compressed ones, this one has not
    options = replace(ALWAYS, min_num_chunks=1)
    refs = virtual([u + "?" + "x" * 900 for u in urls(50)])
    stored = encode_manifest(ID, {NODE: refs}, compress_locations=options)
    assert "location_dictionary" in walk(payload_of(stored), SCHEMA)
    assert decode_manifest(stored, "x").arrays[NODE] == refs


@pytest.mark.parametrize(
    "frame,dictionary,algorithm",
    [
        (FRAMES[0], None, 1),
        (FRAMES[0], DICTIONARY, 0),
        (FRAMES[0], b"not a dictionary", 1),
        (FRAMES[0], DICTIONARY[:100], 1),
        (FRAMES[0][:-1], DICTIONARY, 1),
        (FRAMES[0] + b"x", DICTIONARY, 1),
        (b"", DICTIONARY, 1),
        (b"s3://b/x", DICTIONARY, 1),
    ],
)
def test_damaged_compressed_locations(
    frame: bytes, dictionary: bytes | None, algorithm: int
) -> None:
    batch = Batch(1)
    batch.vector(0, np.zeros(1, np.uint32), [0, 1])
    batch.blob(8, [frame])
    with pytest.raises(FormatError, match="manifests/X: compressed_location"):
        payload = as_manifest(batch, dictionary=dictionary, algorithm=algorithm)
        decode_payload(payload).arrays[NODE].row(0)


def test_a_location_bomb_is_refused() -> None:
    frame = zstd.compress(bytes(1 << 26), zstd_dict=zstd.ZstdDict(DICTIONARY))
    batch = Batch(1)
    batch.vector(0, np.zeros(1, np.uint32), [0, 1])
    batch.blob(8, [frame])
    refs = decode_payload(as_manifest(batch, dictionary=DICTIONARY)).arrays[NODE]
    for ask in (lambda: refs.row(0), lambda: refs.to_columns()):
        with pytest.raises(FormatError, match="compressed_location"):
            ask()


def test_locations_are_decompressed_when_they_are_asked_for(monkeypatch: Any) -> None:
    asked: list[int] = []
    whole = CompressedHeap._bytes

    def counted(heap: CompressedHeap, index: int) -> bytes:
        asked.append(index)
        return whole(heap, index)

    monkeypatch.setattr(CompressedHeap, "_bytes", counted)
    refs = virtual(urls(2000))
    stored = encode_manifest(ID, {NODE: refs}, compress_locations=ALWAYS)
    found = decode_manifest(stored, "x").arrays[NODE]
    assert found.row(7).location == urls(2000)[7]
    assert found.take(np.array([5, 9])).row(1).location == urls(2000)[9]
    assert len(asked) == 2
    assert found == refs
    assert len(asked) == 2002


# ---------------------------------------------------------- what others may write


def test_the_order_of_precedence() -> None:
    batch = Batch(4)
    batch.vector(0, np.arange(4, dtype=np.uint32), np.arange(5))
    ids = np.frombuffer(b"chunk id....", np.uint8).reshape(1, 12).repeat(4, axis=0)
    batch.struct(4, ids, present=[True, False, False, False])
    batch.blob(8, [FRAMES[0], FRAMES[0], None, None])
    batch.text(5, ["s3://x"] * 3 + [None])
    batch.blob(1, [b"inline"] * 4)
    batch.text(6, ["etag"] * 4)
    batch.scalar(7, [5] * 4, "<u4")
    batch.scalar(3, [9] * 4, "<u8")
    refs = decode_payload(as_manifest(batch, dictionary=DICTIONARY)).arrays[NODE]
    assert [refs.row(i) for i in range(4)] == [
        ChunkRef.native(b"chunk id....", 9),
        ChunkRef.virtual("s3://bucket/some/prefix/file-0000.nc", 0, 9, "etag", 5),
        ChunkRef.virtual("s3://x", 0, 9, "etag", 5),
        ChunkRef.inline(b"inline"),
    ]


def index_only(coords: list[list[int]]) -> Batch:
    batch = Batch(len(coords))
    flat = np.array([c for row in coords for c in row], np.uint32)
    batch.vector(0, flat, np.cumsum([0, *map(len, coords)]))
    batch.blob(1, [bytes(row) for row in coords])
    return batch


def test_references_out_of_order_are_sorted() -> None:
    refs = decode_payload(as_manifest(index_only([[2, 0], [0, 3], [0, 1]]))).arrays[NODE]
    assert refs.coords.tolist() == [[0, 1], [0, 3], [2, 0]]
    assert [refs.row(i).data for i in range(3)] == [b"\0\1", b"\0\3", b"\2\0"]


def test_a_reference_to_nothing() -> None:
    batch = Batch(1)
    batch.vector(0, np.zeros(1, np.uint32), [0, 1])
    with pytest.raises(FormatError, match="a reference to nothing"):
        decode_payload(as_manifest(batch))


@pytest.mark.parametrize("coords", [[[1], [1]], [[], []], [[1], [1, 2]], [[1, 2], [1], [1, 2, 3]]])
def test_contradictory_coordinates(coords: list[list[int]]) -> None:
    with pytest.raises(FormatError, match="manifests/X: array DSQP8S909522W: "):
        decode_payload(as_manifest(index_only(coords)))


def test_arrays_of_different_ranks_and_none() -> None:
    batch = index_only([[1, 2], [5], [6], []])
    manifest = decode_payload(as_manifest(batch, ends=[0, 1, 3, 3, 4]))
    coords = [refs.coords.tolist() for refs in manifest.arrays.values()]
    assert coords == [[[1, 2]], [[5], [6]], [], [[]]]


def test_an_array_twice() -> None:
    arrays = Batch(2)
    arrays.struct(0, np.zeros((2, 8), np.uint8))
    arrays.children(1, index_only([[1], [2]]), [0, 1, 2])
    root = Batch(1)
    root.struct(0, np.zeros((1, 12), np.uint8))
    root.children(1, arrays, [0, 2])
    with pytest.raises(FormatError, match="occurs twice"):
        decode_payload(encode(root))


def repeated(arrays: int, refs: int) -> bytes:
    """Return a manifest where all arrays have one list, which repeats one reference."""
    out = struct.pack("<I4s4H", 16, b"Ichk", 8, 20, 4, 16)
    out += struct.pack("<i12sI", 8, ID, 4)
    tables = len(out) + 4 + 4 * arrays + 8
    out += struct.pack("<I", arrays)
    out += b"".join(struct.pack("<I", tables + 16 * i - len(out) - 4 * i) for i in range(arrays))
    out += struct.pack("<4H", 8, 16, 4, 12)
    target = tables + 16 * arrays
    for i in range(arrays):
        at = tables + 16 * i
        out += struct.pack("<i8sI", at - tables + 8, i.to_bytes(8, "little"), target - at - 12)
    ref = target + 4 + 4 * refs + 8
    out += struct.pack("<I", refs)
    out += b"".join(struct.pack("<I", ref - target - 4 - 4 * i) for i in range(refs))
    # one table: index [], inline b""
    return out + struct.pack("<4HiIIII", 8, 12, 4, 8, 8, 8, 8, 0, 0)


def test_arrays_may_share_references() -> None:
    manifest = decode_payload(repeated(10, 1))
    assert [refs.coords.shape for refs in manifest.arrays.values()] == [(1, 0)] * 10


@pytest.mark.parametrize("arrays,refs", [(1, 2_000_000), (3000, 3000)])
def test_references_repeated_without_end_are_refused(arrays: int, refs: int) -> None:
    with pytest.raises(FormatError, match="manifests/X: refs: shares the same bytes too many"):
        decode_payload(repeated(arrays, refs))


# ---------------------------------------------------------------------- hostile bytes

EXAMPLE = payload_of(
    encode_manifest(
        ID,
        {
            NODE: ChunkRefs.from_rows(
                [(i, i) for i in range(9)],
                [
                    *[ChunkRef.native(b"chunk id....", 5, i) for i in range(3)],
                    *[ChunkRef.virtual(f"s3://a/{i}", i, 5, "tag", i) for i in range(3)],
                    *[ChunkRef.inline(bytes(i)) for i in range(3)],
                ],
                2,
            )
        },
    )
)
PACKED = payload_of(
    encode_manifest(
        ID, {NODE: virtual(urls(60))}, compress_locations=replace(ALWAYS, min_num_chunks=1)
    )
)


@settings(max_examples=300)
@given(st.sampled_from([EXAMPLE, PACKED, GOLDEN]).flatmap(damaged))
def test_damage_is_an_error_or_a_value(payload: bytes) -> None:
    try:
        decode_payload(payload)
    except FormatError as error:
        assert str(error).startswith("manifests/X: ")


@given(st.binary(max_size=100))
def test_made_up_bytes_are_an_error(payload: bytes) -> None:
    with pytest.raises(FormatError, match=r"^manifests/X: "):
        decode_payload(payload)


def test_another_file_type_is_refused() -> None:
    with pytest.raises(FormatError, match="manifests/X"):
        decode_manifest(wrap(GOLDEN, FileType.SNAPSHOT), "manifests/X")


# -------------------------------------------------------------------- writing: limits


def test_too_many_references_for_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatbuf_write, "MAX_PAYLOAD", 10_000)
    coords = np.arange(1000, dtype=np.uint32)[:, None]
    refs = ChunkRefs.native(coords, np.zeros((1000, 12), np.uint8), 1)
    with pytest.raises(InvalidInputError, match="split the references over several manifests"):
        encode_manifest(ID, {NODE: refs})


def test_a_deletion_is_not_written() -> None:
    with pytest.raises(InternalError, match="deleted"):
        encode_manifest(ID, {NODE: ChunkRefs.deleted([[1]])})


def test_native_references_take_few_bytes() -> None:
    n = 1000
    coords = np.stack(np.unravel_index(np.arange(n), (10, 10, 10)), axis=1)
    refs = ChunkRefs.native(coords, np.zeros((n, 12), np.uint8), 1)
    assert len(payload_of(encode_manifest(ID, {NODE: refs}))) <= 52 * n + 200


@pytest.mark.parametrize(
    ("form", "distinct", "trained"),
    [
        ("s3://bucket/archive/file_3_{:010d}.nc", 5000, 0),
        ("s3://bucket/{0:x}{1:040x}", 5000, 1),
        # all of them take less than a dictionary
        ("s3://bucket/{0:x}{1:040x}", 50, 0),
    ],
)
def test_no_dictionary_is_trained_where_plain_locations_cost_nothing(
    form: str, distinct: int, trained: int, monkeypatch: Any
) -> None:
    calls = []
    train = zstandard.train_dictionary
    monkeypatch.setattr(
        zstandard, "train_dictionary", lambda *args: calls.append(args) or train(*args)
    )
    urls = [form.format(i, pow(7, i, 2**160 - 47)) for i in range(distinct)]
    refs = virtual(urls * (5000 // distinct))
    stored = encode_manifest(ID, {NODE: refs}, compress_locations=LocationCompression())
    assert len(calls) == trained
    assert decode_manifest(stored, "manifests/X").arrays[NODE] == refs


@pytest.mark.parametrize(
    "ref", [ChunkRef(RefKind.NATIVE, bytes(12), 0, 9), ChunkRef.inline(b"abcd")], ids=str
)
def test_a_small_manifest_costs_few_calls(ref: ChunkRef) -> None:
    refs = ChunkRefs.from_rows([(i,) for i in range(12)], [ref] * 12, 1)
    count = python_calls(lambda: encode_manifest(bytes(12), {bytes(8): refs}))
    # an array that is cut in many has hundreds of such manifests
    assert count < 480
