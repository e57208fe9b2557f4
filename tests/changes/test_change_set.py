"""Change sets: combining them, and their bytes."""

from __future__ import annotations

import json
import struct
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from icechunk.changes.change_set import (
    ChangeSet,
    DeletedNode,
    MovedNode,
    NewNode,
    merge,
    overlay,
)
from icechunk.changes.codec import MAGIC, decode_change_set, encode_change_set
from icechunk.changes.tree import Tree, node_from_metadata
from icechunk.errors import (
    ConflictError,
    ErrorKind,
    FormatError,
    InternalError,
    SessionStateError,
)
from icechunk.format.chunk_edits import ChunkEdits
from icechunk.format.chunk_refs import ChunkRef, ChunkRefs
from icechunk.format.snapshot import Node, Snapshot

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BASE = b"base-of-all."
GROUP = b'{"zarr_format":3,"node_type":"group"}'


def array_document(shape: tuple[int, ...], note: int = 0) -> bytes:
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1] * len(shape)}},
        "note": note,
    }
    return json.dumps(document).encode()


# -- what parallel workers do --------------------------------------------------------
# A base of two arrays and a group. Few paths, few chunks and few values, so that workers
# meet each other often: sometimes they agree and sometimes they do not.
ARRAYS = {"/a": b"array--a", "/g/b": b"array--b"}
GROUPS = {"/g": b"group--g"}
GRID = 3

chunk_refs = st.sampled_from(
    [
        ChunkRef.deleted(),
        ChunkRef.inline(b""),
        ChunkRef.inline(b"one"),
        ChunkRef.native(b"chunk-object", 5),
        ChunkRef.native(b"chunk-object", 5, offset=5),
        ChunkRef.virtual("s3://b/f", 1, 2, "etag"),
        ChunkRef.virtual("s3://b/f", 1, 2, None, 77),
    ]
)


def base_tree(layers: list[ChangeSet]) -> Tree:
    nodes = [Node(b"group--/", "/", GROUP, None)]
    nodes += [Node(node_id, path, GROUP, None) for path, node_id in GROUPS.items()]
    nodes += [
        node_from_metadata(node_id, path, array_document((GRID,)))
        for path, node_id in ARRAYS.items()
    ]
    snapshot = Snapshot.build(id=BASE, nodes=nodes, flushed_at=1, message="")
    return Tree(snapshot, layers)


paths = st.sampled_from(["/a", "/g", "/g/b", "/g/new", "/new", "/new/deep"])
documents = st.sampled_from([GROUP, array_document((GRID,)), array_document((GRID,), 1)])
edits = st.one_of(
    st.tuples(st.just("put"), paths, documents),
    st.tuples(st.just("delete"), paths, st.none()),
    st.tuples(st.just("chunk"), paths, st.tuples(st.integers(0, GRID - 1), chunk_refs)),
)


def apply(tree: Tree, what: str, path: str, value: Any) -> None:
    """Do one edit as a session does, or nothing where a session would refuse it."""
    node = tree.get(path)
    if what == "put":
        above = path.rsplit("/", 1)[0]
        holder = tree.get(above or "/")
        if holder is None or holder.is_array:
            return
        tree.put(path, value)
    elif what == "delete":
        tree.delete(path)
    elif node is not None and node.is_array:
        index, ref = value
        tree.layers[-1].edits(node.id, path, 1).set((index,), ref)


@st.composite
def worked(draw: st.DrawFn) -> ChangeSet:
    """Draw what one worker did on the base."""
    changes = ChangeSet(BASE)
    tree = base_tree([changes])
    for edit in draw(st.lists(edits, max_size=4)):
        apply(tree, *edit)
    return changes


def content(changes: ChangeSet) -> dict[str, Any]:
    """Everything that a change set says, in a form that compares."""
    return {
        "base": changes.base,
        "lineage": changes.lineage,
        "new": changes.new_nodes,
        "updated": changes.updated,
        "deleted": changes.deleted,
        "moved": changes.moved,
        "chunks": {
            node_id: {
                tuple(coordinate): refs.row(i) for i, coordinate in enumerate(refs.coords.tolist())
            }
            for node_id, edits in changes.chunks.items()
            if len(refs := edits.refs())
        },
    }


def outcome(*parts: ChangeSet) -> dict[str, Any] | None:
    """What merging gives, None for a conflict."""
    try:
        return content(merge(parts))
    except ConflictError:
        return None


# -- merging ---------------------------------------------------------------------------
@given(worked(), worked())
def test_merge_is_commutative(a: ChangeSet, b: ChangeSet) -> None:
    assert outcome(a, b) == outcome(b, a)


@given(worked(), worked(), worked())
def test_merge_is_associative(a: ChangeSet, b: ChangeSet, c: ChangeSet) -> None:
    def nested(*order: Any) -> dict[str, Any] | None:
        try:
            (x, y), z = order
            left = merge([merge([x, y]), z])
        except ConflictError:
            return None
        return content(left)

    together = outcome(a, b, c)
    assert nested((a, b), c) == together
    assert nested((b, c), a) == together


@given(worked(), worked())
def test_merge_is_idempotent(a: ChangeSet, b: ChangeSet) -> None:
    """A task that ran twice counts once, also when it comes again after other merges."""
    assert outcome(a, a) == content(a)
    assert outcome(a, b, a) == outcome(a, b)


@given(worked())
def test_merge_with_nothing(a: ChangeSet) -> None:
    assert outcome(a, ChangeSet(BASE)) == outcome(ChangeSet(BASE), a) == content(a)


@given(worked(), worked())
def test_merge_leaves_its_arguments_alone(a: ChangeSet, b: ChangeSet) -> None:
    before = content(a), content(b)
    outcome(a, b)
    assert (content(a), content(b)) == before


@given(worked(), worked())
def test_a_merge_puts_nothing_below_arrays(a: ChangeSet, b: ChangeSet) -> None:
    """But what was there on one of the sides."""
    if outcome(a, b) is None:
        return
    there = below_arrays([a]) | below_arrays([b])
    assert below_arrays([merge([a, b])]) <= there


def below_arrays(layers: list[ChangeSet]) -> set[tuple[str, str]]:
    """Return pairs of an array and a node below it."""
    nodes = base_tree(layers).nodes()
    arrays = [node.path for node in nodes if node.is_array]
    return {
        (array, node.path)
        for node in nodes
        for array in arrays
        if node.path.startswith(array.rstrip("/") + "/") and node.path != array
    }


@given(worked(), worked())
def test_last_wins_never_raises(a: ChangeSet, b: ChangeSet) -> None:
    merged = merge([a, b], on_conflict="last")
    assert content(merged) == content(overlay(a, b))
    if outcome(a, b) is not None:
        assert outcome(a, b) == content(merged)


def chunk_change(path: str, index: int, ref: ChunkRef) -> ChangeSet:
    changes = ChangeSet(BASE)
    changes.edits(ARRAYS[path], path, 1).set((index,), ref)
    return changes


def test_conflict_names_array_and_chunks() -> None:
    a = chunk_change("/g/b", 2, ChunkRef.inline(b"1"))
    b = chunk_change("/g/b", 2, ChunkRef.inline(b"2"))
    with pytest.raises(ConflictError, match=r"ChunkDoubleUpdate, '/g/b', chunks \(2,\)") as info:
        merge([a, b])
    assert info.value.kind == ErrorKind.MERGE_FAILED
    assert "let each task write chunks of its own" in str(info.value)


def test_conflicts_are_all_named() -> None:
    a, b = ChangeSet(BASE), ChangeSet(BASE)
    for changes, note in ((a, 1), (b, 2)):
        changes.update(ARRAYS["/a"], "/a", array_document((GRID,), note))
        changes.create("/new", array_document((note,)), is_array=True, taken=0)
        changes.edits(ARRAYS["/g/b"], "/g/b", 1).set((note,), ChunkRef.inline(b""))
        changes.edits(ARRAYS["/g/b"], "/g/b", 1).set((0,), ChunkRef.inline(bytes(note)))
    with pytest.raises(ConflictError) as info:
        merge([a, b])
    for said in (
        "ZarrMetadataDoubleUpdate, '/a'",
        "NewNodeConflictsWithExistingNode, '/new'",
        "ChunkDoubleUpdate, '/g/b', chunks (0,)",
    ):
        assert said in str(info.value)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (("put", "/a", array_document((GRID,), 1)), "ZarrMetadataUpdateOfDeletedArray, '/a'"),
        (("chunk", "/a", (0, ChunkRef.inline(b""))), "ChunksUpdatedInDeletedArray, '/a'"),
        (("put", "/g/new", GROUP), "NewNodeInInvalidGroup, '/g/new'"),
        (("put", "/g", GROUP + b" "), "ZarrMetadataUpdateOfDeletedGroup, '/g'"),
    ],
)
def test_conflict_with_a_deletion(edit: Any, named: str) -> None:
    a, b = ChangeSet(BASE), ChangeSet(BASE)
    apply(base_tree([a]), *edit)
    tree = base_tree([b])
    tree.delete("/g")
    tree.delete("/a")
    for order in ([a, b], [b, a]):
        with pytest.raises(ConflictError, match=named):
            merge(order)


def test_conflict_of_an_array_with_nodes_below_it() -> None:
    """One worker makes an array where another has a group with members."""
    a, b = ChangeSet(BASE), ChangeSet(BASE)
    a.create("/new/deep", GROUP, is_array=False, taken=0)
    b.create("/new", array_document((1,)), is_array=True, taken=0)
    for order in ([a, b], [b, a]):
        with pytest.raises(ConflictError, match="NewNodeInInvalidGroup, '/new/deep'"):
            merge(order)


def test_who_deleted_a_group_too_may_make_a_new_one() -> None:
    a, b = ChangeSet(BASE), ChangeSet(BASE)
    tree = base_tree([a])
    tree.delete("/g")
    tree.put("/g", GROUP)
    tree.put("/g/new", GROUP)
    base_tree([b]).delete("/g")
    assert outcome(a, a) == outcome(a, b) == outcome(b, a) == content(a)


def test_a_group_and_an_array_are_never_the_same_node() -> None:
    """Not even where both were deleted again, and only their ids are left."""
    a, b = ChangeSet(BASE), ChangeSet(BASE)
    for changes, document in ((a, GROUP), (b, array_document((1,)))):
        tree = base_tree([changes])
        tree.put("/new", document)
        tree.delete("/new")
    assert not a.deleted.keys() & b.deleted.keys()
    assert outcome(a, b) == outcome(b, a)


def test_conflict_of_a_move() -> None:
    a, b = ChangeSet(BASE), ChangeSet(BASE)
    a.moved[ARRAYS["/a"]] = MovedNode("/a", "/b", True)
    b.moved[ARRAYS["/a"]] = MovedNode("/a", "/c", True)
    with pytest.raises(ConflictError, match="MoveOperationCannotBeRebased, '/a'"):
        merge([a, b])


def test_merge_of_different_bases_is_refused() -> None:
    with pytest.raises(SessionStateError, match="made on different snapshots"):
        merge([ChangeSet(BASE), ChangeSet(b"another-base")])


def test_merge_of_nothing_is_a_bug() -> None:
    with pytest.raises(InternalError):
        merge([])


def test_lineage_survives_only_where_all_agree() -> None:
    one, two = b"1" * 16, b"2" * 16
    assert merge([ChangeSet(BASE, one), ChangeSet(BASE, one)]).lineage == one
    assert merge([ChangeSet(BASE, one), ChangeSet(BASE, two)]).lineage == b""


# -- overlay ---------------------------------------------------------------------------
@given(st.lists(st.lists(edits, max_size=4), min_size=3, max_size=3))
def test_layers_are_as_good_as_one_change_set(steps: list[list[Any]]) -> None:
    """Edits in one change set, in three layers, and in those joined, mean the same."""
    single = ChangeSet(BASE)
    tree = base_tree([single])
    layers: list[ChangeSet] = []
    stacked = base_tree([ChangeSet(BASE)])
    for step in steps:
        layers.append(ChangeSet(BASE))
        stacked = base_tree(list(layers))
        for edit in step:
            apply(tree, *edit)
            apply(stacked, *edit)
    first, second, third = layers
    joined = overlay(overlay(first, second), third)
    assert content(joined) == content(overlay(first, overlay(second, third)))
    expected = tree.nodes()
    assert stacked.nodes() == expected
    assert base_tree([joined]).nodes() == expected
    assert base_tree(list(layers)).nodes() == expected
    assert content(joined)["chunks"] == content(single)["chunks"]
    # the copy of a change set is independent of it
    copy = joined.copy()
    before = content(joined)
    copy.delete(b"whatever", "/whatever", is_array=False)
    assert content(joined) == before


def test_overlay_of_moves_keeps_the_first_place() -> None:
    a, b = ChangeSet(BASE), ChangeSet(BASE)
    a.moved[ARRAYS["/a"]] = MovedNode("/a", "/b", True)
    b.moved[ARRAYS["/a"]] = MovedNode("/b", "/c", True)
    assert overlay(a, b).moved == {ARRAYS["/a"]: MovedNode("/a", "/c", True)}


# -- bytes -------------------------------------------------------------------------------
texts = st.sampled_from(["/", "/a", "/ä/\x00 b", "/g/b"])
ids = st.binary(min_size=8, max_size=8)


@st.composite
def any_change_set(draw: st.DrawFn) -> ChangeSet:
    """Draw change sets of every kind, also such as no session makes."""
    changes = ChangeSet(draw(st.binary(min_size=12, max_size=12)), draw(st.binary(max_size=16)))
    for path, node_id in draw(st.dictionaries(texts, ids, max_size=3)).items():
        changes.new_nodes[path] = NewNode(node_id, path, draw(st.binary(max_size=9)), draw(flags))
    for node_id, path in draw(st.dictionaries(ids, texts, max_size=3)).items():
        changes.update(node_id, path, draw(st.binary(max_size=9)))
    for node_id, path in draw(st.dictionaries(ids, texts, max_size=3)).items():
        changes.deleted[node_id] = DeletedNode(path, draw(flags), draw(flags))
    for node_id, path in draw(st.dictionaries(ids, texts, max_size=3)).items():
        changes.moved[node_id] = MovedNode(path, draw(texts), draw(flags))
    for node_id, path in draw(st.dictionaries(ids, texts, max_size=3)).items():
        ndim = draw(st.integers(0, 3))
        cells = st.tuples(*[st.sampled_from([0, 1, 2**32 - 1])] * ndim)
        rows = draw(st.dictionaries(cells, chunk_refs, max_size=4))
        for coordinate, ref in rows.items():
            changes.edits(node_id, path, ndim).set(coordinate, ref)
    return changes


flags = st.booleans()


@given(any_change_set())
def test_bytes_and_back(changes: ChangeSet) -> None:
    data = encode_change_set(changes)
    back = decode_change_set(data)
    assert content(back) == content(changes)
    assert encode_change_set(back) == data
    for node_id in [*back.updated, *(k for k, edits in back.chunks.items() if edits)]:
        assert back.node_paths[node_id] == changes.node_paths[node_id]


def test_a_million_references_are_a_few_arrays() -> None:
    """16 bytes a reference at most: coordinates and ids; everything else is constant."""
    count = 1_000_000
    coords = np.stack(np.divmod(np.arange(count, dtype=np.uint32), 1000), axis=1)
    ids = np.random.default_rng(0).integers(0, 256, (count, 12), np.uint8)
    changes = ChangeSet(BASE)
    changes.edits(ARRAYS["/a"], "/a", 2).set_many(ChunkRefs.native(coords, ids, 1_000_000))
    data = encode_change_set(changes)
    assert len(data) < 16 * count
    assert (
        decode_change_set(data).chunks[ARRAYS["/a"]].refs() == changes.chunks[ARRAYS["/a"]].refs()
    )


# -- bytes that are none ---------------------------------------------------------------
def sample() -> ChangeSet:
    changes = ChangeSet(BASE, b"l" * 16)
    changes.create("/n", GROUP, is_array=False, taken=0)
    changes.update(ARRAYS["/a"], "/a", array_document((4,)))
    changes.deleted[GROUPS["/g"]] = DeletedNode("/g", False)
    changes.moved[b"moved---"] = MovedNode("/x", "/y", True)
    edits = changes.edits(ARRAYS["/a"], "/a", 1)
    edits.set_many(
        ChunkRefs.from_rows(
            [(i,) for i in range(4)],
            [
                ChunkRef.inline(b"data"),
                ChunkRef.native(b"chunk-object", 5),
                ChunkRef.virtual("s3://b/f", 1, 2, "etag"),
                ChunkRef.deleted(),
            ],
            1,
        )
    )
    return changes


SAMPLE = encode_change_set(sample())
PAYLOAD = zstd.decompress(SAMPLE[len(MAGIC) + 1 :])
HEADER_SIZE = struct.unpack_from("<I", PAYLOAD)[0]
HEADER = json.loads(PAYLOAD[4 : 4 + HEADER_SIZE])


def repacked(payload: bytes) -> bytes:
    return SAMPLE[: len(MAGIC) + 1] + zstd.compress(payload)


def refused(data: Any) -> str:
    with pytest.raises(FormatError) as info:
        decode_change_set(data, "from worker 7")
    assert "from worker 7" in str(info.value)
    return str(info.value)


@pytest.mark.parametrize("size", [0, 3, 6, 7, 8, 30, len(SAMPLE) - 1])
def test_cut_bytes(size: int) -> None:
    refused(SAMPLE[:size])


@given(st.binary(max_size=40))
@example(b"PK\x03\x04")
def test_foreign_bytes(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("value", ["text", None, 5, object(), [1, 2]])
def test_no_bytes_at_all(value: Any) -> None:
    refused(value)


@given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255))
def test_flipped_bits(position: int, mask: int) -> None:
    data = bytearray(SAMPLE)
    data[position] ^= mask
    try:
        changes = decode_change_set(bytes(data), "from worker 7")
    except FormatError:
        return
    # some bits of a compressed frame mean nothing
    assert content(changes) == content(sample())


def test_bytes_of_a_later_version() -> None:
    data = SAMPLE[: len(MAGIC)] + b"\x03" + SAMPLE[len(MAGIC) + 1 :]
    assert "version 03 is not known" in refused(data)


def test_bytes_after_the_end() -> None:
    assert "followed by other bytes" in refused(SAMPLE + b"\0")


def survives(data: bytes) -> None:
    """Bytes with a valid checksum give a change set or a FormatError, nothing else."""
    try:
        changes = decode_change_set(data, "from worker 7")
    except FormatError as error:
        assert "from worker 7" in str(error)
        return
    # whatever was accepted can be worked with
    assert content(decode_change_set(encode_change_set(changes))) == content(changes)


@given(st.integers(0, len(PAYLOAD) - 1), st.integers(1, 255))
def test_payload_with_flipped_bits(position: int, mask: int) -> None:
    data = bytearray(PAYLOAD)
    data[position] ^= mask
    survives(repacked(bytes(data)))


@given(st.integers(0, len(PAYLOAD) - 1))
def test_payload_cut(size: int) -> None:
    survives(repacked(PAYLOAD[:size]))


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the places of all values within a JSON document."""
    inner: list[tuple[Any, ...]] = [path]
    if isinstance(value, dict):
        for key in value:
            inner += spots(value[key], (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            inner += spots(item, (*path, i))
    return inner


junk = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, 1, -1, 3, 2**31, 2**63, 2**64, 10**30, 0.5, float("nan")]),
        st.sampled_from(["", "/", "/a", "00" * 8, "00" * 12, "zz", "|u1", "<u4", "O", "coords"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["coords", "x"]), inner)
    ),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.sampled_from(spots(HEADER)), junk)
@example(("chunks", 0, 3, "length", 1), [2**62, 2**62])
@example(("chunks", 0, 2), 10**6)
@example(("new", 0, 1), "/a/../b")
def test_header_with_other_values(spot: tuple[Any, ...], value: Any) -> None:
    document: Any = {"": json.loads(json.dumps(HEADER))}
    *outer, last = ("", *spot)
    holder = document
    for step in outer:
        holder = holder[step]
    holder[last] = value
    text = json.dumps(document[""]).encode()
    survives(repacked(struct.pack("<I", len(text)) + text + PAYLOAD[4 + HEADER_SIZE :]))


@pytest.mark.parametrize(
    ("spot", "value"),
    [
        (("new", 0, 1), "/a/../b"),
        (("new", 0, 1), "a"),
        (("deleted", 0, 1), "/a//b"),
        (("updated", 0, 2), [0, 10**6]),
        (("updated", 0, 2), [-1, 1]),
        (("new", 0, 3), [10**6, 1]),
        (("new", 0, 0), "00"),
        (("base",), "00"),
        (("chunks", 0, 2), 2),
        (("chunks", 0, 3, "kind", 0), "|O"),
        (("chunks", 0, 3, "kind", 1), [3]),
    ],
)
def test_headers_that_are_refused(spot: tuple[Any, ...], value: Any) -> None:
    """Paths that no node has, and places outside of the bytes."""
    document = json.loads(json.dumps(HEADER))
    *outer, last = spot
    holder = document
    for step in outer:
        holder = holder[step]
    holder[last] = value
    text = json.dumps(document).encode()
    refused(repacked(struct.pack("<I", len(text)) + text + PAYLOAD[4 + HEADER_SIZE :]))


def test_deeply_nested_header() -> None:
    text = b"[" * 100_000
    survives(repacked(struct.pack("<I", len(text)) + text))


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icechunk.changes.codec.MAX_PAYLOAD", 1 << 20)
    assert "when decompressed" in refused(repacked(bytes(64 << 20)))


def test_empty_or_not() -> None:
    changes = ChangeSet(BASE)
    assert changes.is_empty
    changes.chunks[ARRAYS["/a"]] = ChunkEdits(1)
    assert changes.is_empty
    for edit in (
        lambda c: c.create("/n", GROUP, is_array=False, taken=0),
        lambda c: c.update(ARRAYS["/a"], "/a", GROUP),
        lambda c: c.delete(ARRAYS["/a"], "/a", is_array=True),
        lambda c: c.edits(ARRAYS["/a"], "/a", 1).delete((0,)),
        lambda c: c.moved.update({ARRAYS["/a"]: MovedNode("/a", "/b", True)}),
    ):
        changes = ChangeSet(BASE)
        edit(changes)
        assert not changes.is_empty
        assert not changes.is_void


@pytest.mark.parametrize("written", [False, True])
def test_a_node_that_was_created_and_deleted(written: bool) -> None:
    changes, other = ChangeSet(BASE), ChangeSet(BASE)
    for each, chunks in ((changes, written), (other, not written)):
        node = each.create("/n", array_document((1,)), is_array=True, taken=0)
        if chunks:
            each.edits(node.id, "/n", 1).delete((0,))
        each.delete(node.id, "/n", is_array=True)
    assert not changes.is_empty
    assert changes.is_void is not written
    assert decode_change_set(encode_change_set(changes)).is_void is not written
    # one of them has something to say, in either order
    assert not merge([changes, other]).is_void
    assert not merge([other, changes]).is_void
