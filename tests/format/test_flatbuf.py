from __future__ import annotations

import struct
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from icechunk.errors import FormatError, InvalidInputError
from icechunk.format.encoding import flatbuf_write
from icechunk.format.encoding.flatbuf import (
    Batch,
    Tables,
    _Payload,
    distinct,
    encode,
    read_root,
)
from tests.format.hostile import damaged
from tests.format.strict_walk import Struct, Table, Union, Vector, walk

# One schema with every kind of field; LEAF has scalars of all widths, so that presence
# patterns with and without u64 occur next to one another.
SMALL = Table({0: ("number", "H")})
LEAF = Table(
    {
        0: ("flag*", "?"),
        1: ("wide", "Q"),
        2: ("narrow", "H"),
        3: ("id", "id12"),
        4: ("index*", Vector("I")),
        5: ("text", "string"),
        6: ("blob", "bytes"),
        7: ("data", "bytes"),
        8: ("boxes", Vector(Struct("I", 2))),
        9: ("longs", Vector("Q")),
        10: ("shared", "string"),
        11: ("signed", "i"),
        12: ("choice", Union({1: SMALL, 2: Table()})),
        14: ("only", SMALL),
    }
)
NODE = Table({0: ("id*", "id8"), 1: ("leaves*", Vector(LEAF)), 2: ("names*", Vector("string"))})
ROOT = Table({0: ("nodes*", Vector(NODE)), 3: ("ids*", Vector("id8")), 4: ("single*", NODE)})

small = st.fixed_dictionaries({}, optional={"number": st.integers(1, 2**16 - 1)})
u32 = st.integers(0, 2**32 - 1)
leaves = st.fixed_dictionaries(
    {"flag": st.booleans(), "index": st.lists(u32, max_size=3)},
    optional={
        "wide": st.integers(1, 2**64 - 1),
        "narrow": st.integers(0, 2**16 - 1),
        "id": st.binary(min_size=12, max_size=12),
        "text": st.text(max_size=5),
        "blob": st.binary(max_size=5),
        "data": st.binary(max_size=5),
        "boxes": st.lists(st.tuples(u32, u32), max_size=3),
        "longs": st.lists(st.integers(0, 2**64 - 1), max_size=3),
        "shared": st.sampled_from(["", "é", "abc"]),
        "signed": st.integers(-(2**31), -1),
        "choice": st.tuples(st.just(1), small) | st.just((2, {})),
        "only": small,
    },
)
nodes = st.fixed_dictionaries(
    {
        "id": st.binary(min_size=8, max_size=8),
        "leaves": st.lists(leaves, max_size=3),
        "names": st.lists(st.sampled_from(["x", "yy", ""]), max_size=3),
    }
)
roots = st.fixed_dictionaries(
    {
        "nodes": st.lists(nodes, max_size=2),
        "ids": st.lists(st.binary(min_size=8, max_size=8), max_size=3),
        "single": nodes,
    }
)


def has(rows: list[dict[str, Any]], name: str) -> list[bool]:
    return [name in row for row in rows]


def ends(lists: list[Any]) -> list[int]:
    return [0, *np.cumsum([len(x) for x in lists], dtype=int).tolist()]


def raw(ids: list[bytes], size: int) -> np.ndarray[Any, Any]:
    return np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), size)


def small_batch(rows: list[dict[str, Any]]) -> Batch:
    batch = Batch(len(rows))
    batch.scalar(0, [r.get("number", 0) for r in rows], "<u2", default=0)
    return batch


def leaf_batch(rows: list[dict[str, Any]]) -> Batch:
    batch = Batch(len(rows))
    batch.scalar(0, [r["flag"] for r in rows], np.bool_)
    batch.scalar(1, np.array([r.get("wide", 0) for r in rows], np.uint64), "<u8", default=0)
    narrow = [r.get("narrow", 0) for r in rows]
    batch.scalar(2, narrow, "<u2", present=has(rows, "narrow"))
    ids = [r.get("id", bytes(12)) for r in rows]
    batch.struct(3, raw(ids, 12), present=has(rows, "id"))
    for slot, name, dtype, shape in (
        (4, "index", np.uint32, (-1,)),
        (8, "boxes", np.uint32, (-1, 2)),
        (9, "longs", np.uint64, (-1,)),
    ):
        lists = [r.get(name, []) for r in rows]
        flat = np.array([x for v in lists for x in v], dtype).reshape(shape)
        batch.vector(slot, flat, ends(lists), present=has(rows, name))
    batch.text(5, [r.get("text") for r in rows])
    batch.blob(6, [r.get("blob") for r in rows])
    data = [r.get("data", b"") for r in rows]
    bounds = np.array(ends(data))
    joined = np.frombuffer(b"".join(data), np.uint8)
    batch.spans(7, joined, bounds[:-1], np.diff(bounds), present=has(rows, "data"))
    heap = np.frombuffer("éabc".encode(), np.uint8)
    which = [["", "é", "abc"].index(r["shared"]) if "shared" in r else -1 for r in rows]
    batch.heap(10, heap, [0, 0, 2, 5], which, text=True)
    batch.scalar(11, [r.get("signed", 0) for r in rows], "<i4", default=0)
    tags = [r.get("choice", (0, {}))[0] for r in rows]
    chosen = [r["choice"][1] for r in rows if r.get("choice", (0,))[0] == 1]
    batch.union(12, tags, {1: small_batch(chosen), 2: Batch(tags.count(2))})
    only = small_batch([r["only"] for r in rows if "only" in r])
    batch.child(14, only, present=has(rows, "only"))
    return batch


def node_batch(rows: list[dict[str, Any]], *, apart: bool) -> Batch:
    batch = Batch(len(rows))
    batch.struct(0, raw([r["id"] for r in rows], 8))
    lists = [r["leaves"] for r in rows]
    below: Batch | list[Batch] = leaf_batch([x for v in lists for x in v])
    if apart:
        below = [leaf_batch(v) for v in lists]
    batch.children(1, below, ends(lists))
    batch.texts(2, [r["names"] for r in rows])
    return batch


def build(value: dict[str, Any], *, apart: bool = False) -> bytes:
    root = Batch(1)
    root.children(0, node_batch(value["nodes"], apart=apart), [0, len(value["nodes"])])
    root.vector(3, raw(value["ids"], 8), [0, len(value["ids"])])
    root.child(4, node_batch([value["single"]], apart=apart))
    return bytes(encode(root))


def small_rows(tables: Tables) -> list[dict[str, Any]]:
    return [{"number": n} if n else {} for n in tables.scalar(0, "<u2").tolist()]


def leaf_rows(tables: Tables) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{} for _ in range(len(tables))]

    def put(name: str, slot: int, values: list[Any]) -> None:
        for row, value, given in zip(rows, values, tables.present(slot), strict=True):
            if given:
                row[name] = value

    def cut(flat: np.ndarray[Any, Any], bounds: np.ndarray[Any, Any]) -> list[Any]:
        parts = [flat[a:b].tolist() for a, b in pairwise(bounds)]
        return [[tuple(x) for x in part] for part in parts] if flat.ndim == 2 else parts

    put("flag", 0, tables.scalar(0, np.bool_).tolist())
    put("wide", 1, tables.scalar(1, "<u8").tolist())
    put("narrow", 2, tables.scalar(2, "<u2").tolist())
    ids, given = tables.struct(3, 12, required=False)
    assert np.array_equal(given, tables.present(3))
    put("id", 3, [row.tobytes() for row in ids])
    put("index", 4, cut(*tables.vector(4, "<u4", required=True)))
    put("text", 5, tables.text(5))
    put("blob", 6, tables.blobs(6))
    start, length, _ = tables.spans(7)
    spans = zip(start.tolist(), length.tolist(), strict=True)
    put("data", 7, [tables.buffer[s : s + n].tobytes() for s, n in spans])
    put("boxes", 8, cut(*tables.vector(8, "<u4", columns=2)))
    put("longs", 9, cut(*tables.vector(9, "<u8")))
    put("shared", 10, tables.text(10))
    put("signed", 11, tables.scalar(11, "<i4").tolist())
    tags, targets = tables.union(12)
    members = {1: iter(small_rows(targets.take(tags == 1))), 2: iter([{}] * len(tables))}
    put("choice", 12, [(t, next(members[t])) if t in members else None for t in tags.tolist()])
    only, given = tables.child(14)
    numbers = iter(small_rows(only))
    put("only", 14, [next(numbers) if g else None for g in given])
    return rows


def node_rows(tables: Tables) -> list[dict[str, Any]]:
    ids, _ = tables.struct(0, 8)
    below, at = tables.children(1, "leaves", required=True)
    rows = leaf_rows(below)
    names = tables.texts(2, "names", required=True)
    return [
        {"id": id.tobytes(), "leaves": rows[at[i] : at[i + 1]], "names": names[i]}
        for i, id in enumerate(ids)
    ]


def read(payload: bytes) -> dict[str, Any]:
    root = read_root(payload, "some/file")
    below, _ = root.children(0, "nodes", required=True)
    ids, _ = root.vector(3, np.uint8, "ids", required=True, columns=8)
    single, _ = root.child(4, "single", required=True)
    return {
        "nodes": node_rows(below),
        "ids": [row.tobytes() for row in ids],
        "single": node_rows(single)[0],
    }


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(roots, st.booleans())
def test_what_is_written_is_read(value: dict[str, Any], apart: bool) -> None:
    assert read(build(value, apart=apart)) == value


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(roots, st.booleans())
def test_a_strict_reader_agrees(value: dict[str, Any], apart: bool) -> None:
    assert walk(build(value, apart=apart), ROOT) == value


EXAMPLE = {
    "nodes": [
        {
            "id": b"12345678",
            "leaves": [
                {"flag": True, "index": [1, 2, 3], "text": "abc", "choice": (1, {"number": 7})},
                {"flag": False, "index": [4, 5, 6], "wide": 2**63, "boxes": [(1, 2)]},
                {"flag": True, "index": [7], "blob": b"xyz", "data": b"123", "only": {}},
            ],
            "names": ["x", "yy"],
        }
    ],
    "ids": [b"abcdefgh"],
    "single": {"id": b"87654321", "leaves": [], "names": ["yy"]},
}
PAYLOAD = build(EXAMPLE)


@settings(max_examples=400)
@given(damaged(PAYLOAD))
def test_damage_is_an_error_or_a_value(payload: bytes) -> None:
    try:
        read(payload)
    except FormatError as error:
        assert str(error).startswith("some/file: ")


@given(st.binary(max_size=64))
def test_made_up_bytes_are_an_error_or_a_value(payload: bytes) -> None:
    try:
        read(payload)
    except FormatError as error:
        assert str(error).startswith("some/file: ")


@pytest.mark.parametrize("size", range(0, len(PAYLOAD) - 8, 4))
def test_a_cut_payload_is_an_error(size: int) -> None:
    with pytest.raises(FormatError, match="some/file"):
        read(PAYLOAD[:size])


@pytest.mark.parametrize("length", [0, 2, 7, 2**16 - 2])
def test_a_vtable_of_impossible_length(length: int) -> None:
    root = Batch(1)
    root.scalar(0, [1], np.uint8)
    payload = bytearray(encode(root))
    table = int.from_bytes(payload[:4], "little")
    vtable = table - int.from_bytes(payload[table : table + 4], "little")
    struct.pack_into("<H", payload, vtable, length)
    with pytest.raises(FormatError, match="vtable"):
        read_root(bytes(payload), "f").scalar(5, np.uint8)


def test_a_missing_required_field_is_named() -> None:
    root = Batch(1)
    root.scalar(0, [1], np.uint8)
    with pytest.raises(FormatError, match="f: arrays: required field is missing"):
        read_root(encode(root), "f").children(1, "arrays", required=True)


def test_text_must_be_utf8() -> None:
    root = Batch(1)
    root.blob(0, [b"\xff"])
    with pytest.raises(FormatError, match="f: message: is not UTF-8"):
        read_root(encode(root), "f").text(0, "message")


def test_half_a_character_cannot_be_stored() -> None:
    with pytest.raises(InvalidInputError, match="half of a character"):
        Batch(1).text(0, ["a\ud800"])
    with pytest.raises(InvalidInputError, match="half of a character"):
        Batch(1).texts(0, [["a\ud800"]])


def test_large_numbers_are_exact() -> None:
    batch = Batch(2)
    batch.scalar(0, [2**63 + 1, 0], "<u8")
    root = Batch(1)
    root.children(0, batch, [0, 2])
    tables, _ = read_root(encode(root), "f").children(0)
    assert tables.scalar(0, "<u8").tolist() == [2**63 + 1, 0]


@pytest.mark.parametrize("tag,value", [(1, False), (0, True)])
def test_a_union_needs_both_halves(tag: int, value: bool) -> None:
    root = Batch(1)
    root.scalar(0, [tag], np.uint8)
    root.child(1, Batch(int(value)), present=[value])
    with pytest.raises(FormatError, match="f: kind"):
        read_root(encode(root), "f").union(0, "kind")


def test_equal_strings_are_stored_once() -> None:
    def size(texts: list[str | None]) -> int:
        batch = Batch(len(texts))
        batch.text(0, texts)
        root = Batch(1)
        root.children(0, batch, [0, len(texts)])
        root.texts(1, [[t for t in texts if t]])
        return len(encode(root))

    assert size(["a" * 500] * 50) < 500 + 50 * 16 + 100
    assert size(["a" * 500, None]) < size(["a" * 500, "b" * 500]) - 500


def test_rows_with_the_same_fields_share_a_vtable_and_a_stride() -> None:
    n = 100
    batch = Batch(n)
    batch.vector(0, np.zeros(3 * n, np.uint32), np.arange(n + 1) * 3)
    batch.struct(4, np.zeros((n, 12), np.uint8))
    batch.scalar(3, np.ones(n), "<u8")
    root = Batch(1)
    root.children(0, batch, [0, n])
    # an offset in the vector; then soffset, u64, offset, id, and four words of the vector
    assert len(encode(root)) <= 100 * (4 + 4 + 8 + 4 + 12 + 16 + 4) + 100


def shared_vector(tables: int, count: int, size: int) -> bytes:
    """Return a root with so many children, all with one vector of count * size bytes."""
    vtable = struct.pack("<HHH", 6, 8, 4)
    out = struct.pack("<I4s", 16, b"Ichk") + vtable + bytes(2)
    out += struct.pack("<iII", 8, 4, tables)  # root: its vector of children follows
    first = len(out) + 4 * tables
    out += b"".join(struct.pack("<I", first + 8 * i - (len(out) + 4 * i)) for i in range(tables))
    vector = first + 8 * tables
    for i in range(tables):
        at = first + 8 * i
        out += struct.pack("<iI", at - 8, vector - at - 4)
    return out + struct.pack("<I", count) + bytes(count * size)


def test_some_sharing_is_fine() -> None:
    tables, _ = read_root(shared_vector(1000, 10, 4), "f").children(0)
    flat, bounds = tables.vector(0, "<u4")
    assert len(flat) == 10_000 and bounds[-1] == 10_000
    assert tables.distinct_blobs(0)[0] == [bytes(10)]


@pytest.mark.parametrize("count", [20_000, 65_536])
def test_sharing_without_end_is_refused(count: int) -> None:
    # a quarter of a megabyte that says it is more than a gigabyte
    tables, _ = read_root(shared_vector(20_000, count, 4), "f").children(0)
    with pytest.raises(FormatError, match="too many times"):
        tables.vector(0, "<u4", "index")
    with pytest.raises(FormatError, match="too many times"):
        tables.vector(0, np.uint8, "data", columns=4)
    with pytest.raises(FormatError, match="too many times"):
        tables.children(0, "children")
    with pytest.raises(FormatError, match="too many times"):
        tables.texts(0, "names")


def test_strings_inside_of_one_another_are_refused() -> None:
    # every string begins four bytes after the one before, and reaches to the end
    n = 4000
    heap = b"".join(struct.pack("<I", 4 * (n - i - 1)) for i in range(n))
    out = bytearray(shared_vector(n, 0, 1)[:-4])
    first = len(out) - 8 * n
    vector = len(out)
    for i in range(n):
        struct.pack_into("<I", out, first + 8 * i + 4, vector + 4 * i - (first + 8 * i + 4))
    tables, _ = read_root(bytes(out) + heap, "f").children(0)
    with pytest.raises(FormatError, match="too many times"):
        tables.blobs(0, "names")


def test_a_payload_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatbuf_write, "MAX_PAYLOAD", len(PAYLOAD))
    assert build(EXAMPLE) == PAYLOAD
    monkeypatch.setattr(flatbuf_write, "MAX_PAYLOAD", len(PAYLOAD) - 1)
    with pytest.raises(InvalidInputError, match=f"of {len(PAYLOAD)} bytes"):
        build(EXAMPLE)


def test_the_size_is_checked_before_anything_is_allocated() -> None:
    root = Batch(1)
    word = np.zeros(1, np.uint8)
    root.spans(0, word, [0], [2**31])
    with pytest.raises(InvalidInputError, match="2147483647; split it"):
        encode(root, too_large="split it")


@given(
    st.integers(0, 40).map(lambda size: bytes(range(7, 7 + size))),
    st.sampled_from(["<u1", "<u2", "<u4", "<i4", "<u8", "V3", "V12"]),
    st.integers(1, 200),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_numbers_at_any_positions(
    data: bytes, dtype: str, count: int, step: int, random: Random
) -> None:
    """Aligned ones are read in another way, and only up to the last whole number."""
    kind = np.dtype(dtype)
    payload = _Payload(data, "a file")
    allowed = range(0, len(data) - kind.itemsize + 1, step)
    if not allowed:
        with pytest.raises(FormatError, match="points outside"):
            payload.gather(np.zeros(count, np.int64), kind, "field")
        return
    at = [random.choice(allowed) for _ in range(count)]
    found = payload.gather(np.array(at, np.int64), kind, "field")
    assert found.tobytes() == b"".join(data[i : i + kind.itemsize] for i in at)
    with pytest.raises(FormatError, match="points outside"):
        payload.gather(np.array([*at, len(data) - kind.itemsize + 1], np.int64), kind, "field")


@given(
    st.lists(st.integers(0, 300), max_size=200),
    st.sampled_from([1, 50, 1 << 40]),
    st.sampled_from([0, 1 << 50]),
    st.integers(1, 3),
)
def test_distinct_numbers(numbers: list[int], factor: int, first: int, times: int) -> None:
    """They may be close together, or far from each other, and each may come several times."""
    values = np.repeat(np.array(numbers, np.int64) * factor + first, times)
    rows, which = distinct(values)
    assert len(set(values[rows].tolist())) == len(rows) == len(set(numbers))
    assert (values[rows][which] == values).all()
