from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from icechunk.errors import FormatError, InvalidInputError
from icechunk.format import chunk_refs
from icechunk.format.chunk_refs import ChunkRef, ChunkRefs, RefKind
from icechunk.format.encoding.string_heap import StringHeap

Model = dict[tuple[int, ...], ChunkRef]

MAX = 2**32 - 1
u64 = st.sampled_from([0, 1, 7, 2**63, 2**64 - 1])
# near and far: boxes that fit in a 64-bit key and boxes that do not; 128 and more for
# keys of bytes, where a signed comparison would show
axis = st.one_of(st.integers(0, 3), st.sampled_from([127, 128, 255, 256, 2**31, MAX - 1, MAX]))
refs = st.one_of(
    st.just(ChunkRef.deleted()),
    st.builds(ChunkRef.native, st.sampled_from([b"\0" * 12, b"a" * 12, b"b" * 12]), u64, u64),
    st.builds(
        ChunkRef.virtual,
        st.sampled_from(["", "s3://a/1", "s3://a/2", "s3://b/é"]),
        u64,
        u64,
        st.sampled_from([None, "", '"e1"']),
        st.sampled_from([0, 5, MAX]),
    ),
    st.builds(ChunkRef.inline, st.binary(max_size=9)),
)


def models(ndim: int, near: bool = False) -> st.SearchStrategy[Model]:
    grid = st.tuples(*[st.integers(0, 2) if near else axis for _ in range(ndim)])
    return st.dictionaries(grid, refs, max_size=12)


def build(model: Model, ndim: int) -> ChunkRefs:
    return ChunkRefs.from_rows(list(model), list(model.values()), ndim)


def rows(columns: ChunkRefs) -> Model:
    coords = [tuple(c) for c in columns.coords.tolist()]
    return dict(zip(coords, map(columns.row, range(len(columns))), strict=True))


def check(columns: ChunkRefs, model: Model, ndim: int) -> None:
    """Columns hold the model, and what the class promises about them."""
    assert rows(columns) == model
    assert [tuple(c) for c in columns.coords.tolist()] == sorted(model)
    assert columns.ndim == ndim
    assert columns.coords.shape == (len(model), ndim)
    kinds = {ref.kind for ref in model.values()}
    assert (columns.chunk_id is not None) == (RefKind.NATIVE in kinds)
    assert (columns.location is not None) == (RefKind.VIRTUAL in kinds)
    assert (columns.inline_data is not None) == (RefKind.INLINE in kinds)
    assert (columns.etag is not None) == any(r.etag is not None for r in model.values())
    assert (columns.last_modified is not None) == any(r.last_modified for r in model.values())
    assert columns.count_virtual == sum(r.kind == RefKind.VIRTUAL for r in model.values())
    if columns.locations is not None:
        assert sorted(columns.locations) == sorted(
            {r.location for r in model.values() if r.location is not None}
        )
    if columns.inline_data is not None:
        assert len(columns.inline_data) == sum(len(r.data or b"") for r in model.values())
    for column in columns.to_columns().values():
        assert not column.flags.writeable


sizes = pytest.mark.parametrize("ndim", range(5))


@sizes
@settings(max_examples=40)
@given(data=st.data())
def test_a_set_of_rows(ndim: int, data: st.DataObject) -> None:
    model = data.draw(models(ndim))
    columns = build(model, ndim)
    check(columns, model, ndim)
    spots = list(model) + data.draw(st.lists(st.tuples(*[axis] * ndim), max_size=5))
    found = columns.find_many(np.array(spots, np.int64).reshape(len(spots), ndim))
    order = sorted(model)
    wanted = [order.index(spot) if spot in model else -1 for spot in spots]
    assert found.tolist() == wanted
    assert [columns.find(spot) for spot in spots] == wanted
    if model and ndim:
        low, high = np.min(order, axis=0).tolist(), np.max(order, axis=0).tolist()
        assert columns.extents() == tuple((a, b + 1) for a, b in zip(low, high, strict=True))
    else:
        assert columns.extents() == ((0, 0),) * ndim


@sizes
@settings(max_examples=40)
@given(data=st.data())
def test_both_ways_of_storing(ndim: int, data: st.DataObject) -> None:
    model = data.draw(models(ndim))
    columns = build(model, ndim)
    stored = {name: column.copy() for name, column in columns.to_columns().items()}
    for again in (
        ChunkRefs.from_stored_columns(ndim, stored, "x"),
        pickle.loads(pickle.dumps(columns)),
    ):
        check(again, model, ndim)
        assert again == columns


@sizes
@settings(max_examples=40)
@given(data=st.data())
def test_overlay_and_take(ndim: int, data: st.DataObject) -> None:
    near = data.draw(st.booleans())
    first, second = data.draw(models(ndim, near)), data.draw(models(ndim, near))
    columns = build(first, ndim).overlay(build(second, ndim))
    model = {**first, **second}
    check(columns, model, ndim)
    alive = {spot: ref for spot, ref in model.items() if ref.kind != RefKind.DELETED}
    check(columns.without_deleted(), alive, ndim)
    picked = data.draw(st.lists(st.integers(0, len(model) - 1))) if model else []
    order = sorted(model)
    subset = {order[i]: model[order[i]] for i in picked}
    check(columns.take(np.array(picked, np.int64)), subset, ndim)


@sizes
@settings(max_examples=40)
@given(data=st.data())
def test_merging_many_names_the_clashes(ndim: int, data: st.DataObject) -> None:
    parts = data.draw(st.lists(models(ndim, near=True), min_size=1, max_size=5))
    merged, clashes = ChunkRefs.merge_all([build(part, ndim) for part in parts])
    model: Model = {}
    for part in parts:
        model |= part
    check(merged, model, ndim)
    values: dict[tuple[int, ...], set[ChunkRef]] = {}
    for part in parts:
        for spot, ref in part.items():
            values.setdefault(spot, set()).add(ref)
    wanted = sorted(spot for spot, seen in values.items() if len(seen) > 1)
    assert [tuple(c) for c in clashes.tolist()] == wanted
    assert clashes.shape == (len(wanted), ndim)


@sizes
@settings(max_examples=40)
@given(data=st.data())
def test_conflicts_and_equality(ndim: int, data: st.DataObject) -> None:
    first, second = data.draw(models(ndim, near=True)), data.draw(models(ndim, near=True))
    # some shared rows, which chance makes too rarely
    for spot in data.draw(st.lists(st.sampled_from(sorted(first)))) if first else []:
        second[spot] = first[spot]
    ours, theirs = build(first, ndim), build(second, ndim)
    wanted = sorted(s for s in first.keys() & second.keys() if first[s] != second[s])
    assert [tuple(c) for c in ours.conflicts(theirs).tolist()] == wanted
    assert [tuple(c) for c in theirs.conflicts(ours).tolist()] == wanted
    assert ours.conflicts(ours).shape == (0, ndim)
    assert (ours == theirs) == (first == second)
    # the same rows over other heaps
    assert theirs.overlay(ours).take(theirs.overlay(ours).find_many(ours.coords)) == ours


@given(models(2), st.randoms(use_true_random=False))
def test_from_columns_sorts(model: Model, random: Any) -> None:
    columns = build(model, 2)
    order = list(range(len(columns)))
    random.shuffle(order)
    shuffled = {
        name: value[order] if name not in ("locations", "etags", "inline_data") else value
        for name, value in columns.columns().items()
        if value is not None
    }
    check(ChunkRefs.from_columns(**shuffled), model, 2)


@given(st.lists(st.tuples(st.tuples(st.integers(0, 1)), refs), max_size=8))
def test_duplicates_are_refused_or_the_last_wins(pairs: list[tuple[tuple[int], ChunkRef]]) -> None:
    single = [build({spot: ref}, 1) for spot, ref in pairs]
    kinds = np.array([s.kind[0] for s in single], np.uint8)
    arguments: dict[str, Any] = {
        "coords": np.array([spot for spot, _ in pairs], np.int64).reshape(-1, 1),
        "kind": np.where(kinds == RefKind.DELETED, kinds, np.uint8(RefKind.NATIVE)),
        "offset": np.arange(len(pairs)),
        "length": 1,
        "chunk_id": np.zeros((len(pairs), 12), np.uint8),
    }
    columns = ChunkRefs.from_columns(**arguments, last_wins=True)
    last = {spot: row for row, (spot, _) in enumerate(pairs)}
    for row, spot in enumerate(columns.coords.tolist()):
        if columns.kind[row] == RefKind.NATIVE:
            assert columns.offset[row] == last[tuple(spot)]
    assert len(columns) == len(last)
    if len(last) < len(pairs):
        with pytest.raises(InvalidInputError, match="more than once"):
            ChunkRefs.from_columns(**arguments)


def test_sorted_columns_are_taken_without_a_copy() -> None:
    coords = np.array([[0, 1], [2, 0]], np.uint32)
    ids = np.zeros((2, 12), np.uint8)
    columns = ChunkRefs.native(coords, ids, np.array([1, 2], np.uint64))
    assert np.shares_memory(columns.coords, coords)
    assert np.shares_memory(columns.chunk_id, ids)
    # freezing our view must not freeze the caller's array
    assert coords.flags.writeable


def test_constructors() -> None:
    native = ChunkRefs.native([[1], [0]], [b"a" * 12, b"b" * 12], [3, 4], offsets=5)
    assert native.row(0) == ChunkRef.native(b"b" * 12, 4, 5)
    # coordinate, id, length and search key of both; one kind and one offset
    assert native.nbytes == 2 * (4 + 12 + 8 + 8) + 1 + 8
    virtual = ChunkRefs.virtual([[1], [0]], ["s3://x"] * 2, [0, 9], 9, [None, "e"], 7)
    assert rows(virtual) == {
        (0,): ChunkRef.virtual("s3://x", 9, 9, "e", 7),
        (1,): ChunkRef.virtual("s3://x", 0, 9, None, 7),
    }
    assert virtual.locations is not None
    assert len(virtual.locations) == 1
    inline = ChunkRefs.inline(np.empty((1, 0), np.uint32), [b"scalar"])
    assert rows(inline) == {(): ChunkRef.inline(b"scalar")}
    assert rows(ChunkRefs.deleted([[4, 4]])) == {(4, 4): ChunkRef.deleted()}
    assert len(ChunkRefs.empty(3)) == 0
    assert ChunkRefs.concatenate(3, []) == ChunkRefs.empty(3)
    assert ChunkRefs.empty(3) != ChunkRefs.empty(2)
    assert ChunkRefs.empty(1) != "refs"
    assert (
        repr(native.overlay(ChunkRefs.deleted([[9]]))) == "ChunkRefs(ndim=1, 1 deleted, 2 native)"
    )


HEAP = StringHeap.from_strings(["s3://a"])[0]
GOOD: dict[RefKind, dict[str, Any]] = {
    RefKind.NATIVE: {"chunk_id": np.zeros((2, 12), np.uint8)},
    RefKind.VIRTUAL: {"location": [0, 0], "locations": HEAP, "etag": [0, -1], "etags": HEAP},
    RefKind.INLINE: {"inline_data": np.zeros(4, np.uint8)},
}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (RefKind.NATIVE, {"kind": 4}),
        (RefKind.NATIVE, {"kind": -1}),
        (RefKind.NATIVE, {"kind": [1.0, 1.0]}),
        (RefKind.NATIVE, {"kind": [1]}),
        (RefKind.NATIVE, {"coords": [0, 1]}),
        (RefKind.NATIVE, {"coords": [[0], [2**32]]}),
        (RefKind.NATIVE, {"coords": [[0], [-1]]}),
        (RefKind.NATIVE, {"coords": [[0], [0]]}),
        (RefKind.NATIVE, {"offset": [0, -1]}),
        (RefKind.NATIVE, {"length": [0, 2**64]}),
        (RefKind.NATIVE, {"length": [[0, 1]]}),
        (RefKind.NATIVE, {"chunk_id": None}),
        (RefKind.NATIVE, {"chunk_id": np.zeros((2, 8), np.uint8)}),
        (RefKind.VIRTUAL, {"location": None}),
        (RefKind.VIRTUAL, {"locations": None}),
        (RefKind.VIRTUAL, {"location": [0, 1]}),
        (RefKind.VIRTUAL, {"location": [0, -1]}),
        (RefKind.VIRTUAL, {"etag": [0, 1]}),
        (RefKind.VIRTUAL, {"etag": [0, -2]}),
        (RefKind.VIRTUAL, {"etags": None}),
        (RefKind.VIRTUAL, {"last_modified": [0, 2**32]}),
        (RefKind.INLINE, {"inline_data": None}),
        (RefKind.INLINE, {"inline_data": np.zeros(4, np.int8)}),
        (RefKind.INLINE, {"inline_data": np.zeros((2, 2), np.uint8)}),
        (RefKind.INLINE, {"offset": [0, 3]}),
        (RefKind.INLINE, {"offset": [0, 5], "length": 0}),
        # sums that wrap
        (RefKind.INLINE, {"offset": np.array([0, 2**64 - 1], np.uint64)}),
        (RefKind.INLINE, {"length": np.array([0, 2**64 - 1], np.uint64)}),
    ],
)
def test_columns_that_do_not_fit_are_refused(kind: RefKind, change: dict[str, Any]) -> None:
    good = {"coords": [[0], [1]], "kind": kind, "offset": [0, 2], "length": [2, 2], **GOOD[kind]}
    ChunkRefs.from_columns(**good)
    with pytest.raises(InvalidInputError):
        ChunkRefs.from_columns(**{**good, **change})


@given(models(2), st.data())
def test_damaged_stored_columns_are_refused_or_read(model: Model, data: st.DataObject) -> None:
    stored = {n: c.copy() for n, c in build(model, 2).to_columns().items()}
    name = data.draw(st.sampled_from(sorted(stored)))
    action = data.draw(st.sampled_from(["drop", "rename", "cut", "type", "byte"]))
    if action == "drop":
        del stored[name]
    elif action == "rename":
        stored[data.draw(st.sampled_from(["other", "locations", "ndim"]))] = stored.pop(name)
    elif action == "cut":
        stored[name] = np.atleast_1d(stored[name])[:-1]
    elif action == "type":
        stored[name] = stored[name].astype(np.float64)
    elif stored[name].nbytes:
        flat = stored[name].reshape(-1).view(np.uint8)
        flat[data.draw(st.integers(0, len(flat) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        columns = ChunkRefs.from_stored_columns(2, stored, "the file")
    except FormatError as error:
        assert "the file" in str(error)
    else:
        assert action in ("byte", "cut", "drop", "type")
        assert len(rows(columns)) == len(columns)


def test_stored_columns_of_another_rank_are_refused() -> None:
    with pytest.raises(FormatError, match="3 dimensions"):
        ChunkRefs.from_stored_columns(2, ChunkRefs.empty(3).to_columns(), "x")


def test_misuse() -> None:
    columns = ChunkRefs.deleted([[1, 2], [3, 4]])
    other = ChunkRefs.empty(1)
    for call in (
        lambda: columns.find((1,)),
        lambda: columns.find_many([[1]]),
        lambda: columns.overlay(other),
        lambda: columns.conflicts(other),
        lambda: columns.take(np.array([2])),
        lambda: columns.take(np.array([-1])),
        lambda: columns.take(np.array([True])),
        lambda: ChunkRefs.native([[0]], [b"short"], [1]),
    ):
        with pytest.raises(InvalidInputError):
            call()
    assert columns.find((-1, 2)) == columns.find((1, 2**40)) == -1


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": RefKind.NATIVE},
        {"kind": RefKind.NATIVE, "chunk_id": b"short"},
        {"kind": RefKind.NATIVE, "chunk_id": b"a" * 12, "location": "s3://a"},
        {"kind": RefKind.NATIVE, "chunk_id": b"a" * 12, "etag": "e"},
        {"kind": RefKind.NATIVE, "chunk_id": b"a" * 12, "offset": -1},
        {"kind": RefKind.NATIVE, "chunk_id": b"a" * 12, "length": 2**64},
        {"kind": RefKind.VIRTUAL},
        {"kind": RefKind.VIRTUAL, "location": "s3://\ud800"},
        {"kind": RefKind.VIRTUAL, "location": "s3://a", "last_modified": 2**32},
        {"kind": RefKind.INLINE},
        {"kind": RefKind.INLINE, "data": b"ab", "length": 1},
        {"kind": RefKind.DELETED, "length": 1},
        {"kind": RefKind.DELETED, "data": b""},
    ],
)
def test_impossible_references_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        ChunkRef(**arguments)


@settings(max_examples=30)
@given(st.lists(st.tuples(axis, axis, axis, axis), unique=True))
def test_wide_keys_sort_like_coordinates(spots: list[tuple[int, ...]]) -> None:
    coords = np.array(spots, np.uint32).reshape(-1, 4)
    everything = ((0, 2**32),) * 4
    order = np.argsort(chunk_refs._keys(coords, everything), kind="stable")
    assert [tuple(c) for c in coords[order].tolist()] == sorted(spots)
