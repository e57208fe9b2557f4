from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from icechunk.errors import FormatError, InternalError, InvalidInputError
from icechunk.format.encoding.envelope import FileType, unwrap, wrap
from icechunk.format.encoding.flatbuf import Batch, encode
from icechunk.format.ids import (
    INITIAL_SNAPSHOT_ID,
    is_within,
    normalize_path,
    parent_path,
    wrong_path,
)
from icechunk.format.snapshot import (
    ArrayInfo,
    ManifestFile,
    ManifestRef,
    Node,
    Snapshot,
    decode_snapshot,
    encode_snapshot,
)
from tests.format import golden, json_values
from tests.format.hostile import damaged, value_or_format_error
from tests.format.strict_walk import Struct, Table, Union, Vector, walk

ID = bytes(range(12))

METADATA = Table({0: ("name*", "string"), 1: ("value*", "bytes")})
ARRAY = Table(
    {
        0: ("shape*", Vector(Struct("Q", 2))),
        1: ("dimension_names", Vector(Table({0: ("name", "string")}))),
        2: (
            "manifests*",
            Vector(Table({0: ("object_id*", "id12"), 1: ("extents*", Vector(Struct("I", 2)))})),
        ),
        3: ("shape_v2", Vector(Table({0: ("array_length", "Q"), 1: ("num_chunks", "I")}))),
    }
)
NODE = Table(
    {
        0: ("id*", "id8"),
        1: ("path*", "string"),
        2: ("user_data*", "bytes"),
        3: ("node_data*", Union({1: ARRAY, 2: Table()})),
    }
)
SNAPSHOT = Table(
    {
        0: ("id*", "id12"),
        2: ("nodes*", Vector(NODE)),
        3: ("flushed_at", "Q"),
        4: ("message*", "string"),
        5: ("metadata*", Vector(METADATA)),
        6: ("manifest_files*", Vector(Struct("Q", 4))),
        7: (
            "manifest_files_v2",
            Vector(Table({0: ("id", "id12"), 1: ("size_bytes", "Q"), 2: ("num_chunk_refs", "I")})),
        ),
    }
)


def walked(snapshot: Snapshot) -> dict[str, Any]:
    return walk(unwrap(encode_snapshot(snapshot), FileType.SNAPSHOT, "x")[0], SNAPSHOT)


def built(*nodes: Node) -> Snapshot:
    refs = [ref for node in nodes if node.array for ref in node.array.manifests]
    files = {ref.id: ManifestFile(ref.id, 100, 3) for ref in refs}
    return Snapshot.build(ID, nodes, flushed_at=5, message="m", manifest_files=files)


def group(path: str, user_data: bytes = b"{}") -> Node:
    return Node(path.encode()[-8:].rjust(8, b"."), path, user_data, None)


# -- what official clients wrote -------------------------------------------------


def test_official_initial_snapshot() -> None:
    snapshot = decode_snapshot(wrap(golden.SNAPSHOT_INITIAL, FileType.SNAPSHOT), "x")
    assert snapshot.id == INITIAL_SNAPSHOT_ID
    assert snapshot.parent_id is None
    assert snapshot.flushed_at == 1795350386942064
    assert snapshot.message == "Repository initialized"
    assert snapshot.metadata == {"__icechunk": {"is_root": True}}
    assert len(snapshot) == 0
    assert snapshot.manifest_files == {}


def test_official_snapshot() -> None:
    snapshot = decode_snapshot(wrap(golden.SNAPSHOT, FileType.SNAPSHOT), "x")
    assert snapshot.id == bytes.fromhex("f83e088b3625b7be40045917")
    assert (snapshot.flushed_at, snapshot.message) == (1795351363218010, "second")
    assert snapshot.metadata == {}
    manifest = bytes.fromhex("21edab91d4d4c44e0a0cfa47")
    assert snapshot.manifest_files == {manifest: ManifestFile(manifest, 244, 3)}
    root, array = snapshot.nodes()
    assert (root.id.hex(), root.path, root.array) == ("d0675893b32a9084", "/", None)
    assert not root.is_array
    assert (array.id.hex(), array.path) == ("eefae7a1cfd76aac", "/a")
    assert array.is_array
    assert array.user_data.startswith(b'{\n  "shape": [\n    6\n  ],')
    assert array.array == ArrayInfo((6,), (3,), ("x",), (ManifestRef(manifest, ((0, 3),)),))


def test_official_initial_snapshot_of_spec_1() -> None:
    data = wrap(golden.SNAPSHOT_V1_INITIAL, FileType.SNAPSHOT, spec_version=1)
    snapshot = decode_snapshot(data, "x")
    assert snapshot.id == INITIAL_SNAPSHOT_ID
    assert snapshot.parent_id is None
    assert snapshot.message == "Repository initialized"
    assert snapshot.metadata == {"__root": True}
    assert len(snapshot) == 0
    assert snapshot.manifest_files == {}


def test_official_snapshot_of_spec_1() -> None:
    snapshot = decode_snapshot(golden.SNAPSHOT_V1_OBJECT, "x")
    assert snapshot.parent_id == INITIAL_SNAPSHOT_ID
    assert snapshot.metadata == {
        "d": {"k": 2**40},
        "l": [1, -2, 0.5, None, True, "x"],
        "n": 1,
    }
    first, second = snapshot.manifest_files.values()
    assert (first.size_bytes, first.num_chunk_refs) == (351, 8)
    assert (second.size_bytes, second.num_chunk_refs) == (153, 1)
    assert {node.path: node.array for node in snapshot.nodes()} == {
        "/": None,
        "/a": ArrayInfo((7, 5), (4, 2), ("y", None), (ManifestRef(first.id, ((0, 4), (0, 2))),)),
        "/b": None,
        "/b/c": None,
        "/e": ArrayInfo((0, 4), (0, 2), None, ()),
        "/s": ArrayInfo((), (), None, (ManifestRef(second.id, ()),)),
    }


@pytest.mark.parametrize(
    "data",
    [
        wrap(golden.SNAPSHOT_INITIAL, FileType.SNAPSHOT),
        wrap(golden.SNAPSHOT, FileType.SNAPSHOT),
        wrap(golden.SNAPSHOT_V1_INITIAL, FileType.SNAPSHOT, spec_version=1),
        golden.SNAPSHOT_V1_OBJECT,
    ],
)
def test_official_snapshots_written_again(data: bytes) -> None:
    snapshot = decode_snapshot(data, "x")
    again = decode_snapshot(encode_snapshot(snapshot), "x")
    assert list(again.nodes()) == list(snapshot.nodes())
    assert again.metadata == snapshot.metadata
    assert again.manifest_files == snapshot.manifest_files
    assert (again.id, again.message, again.flushed_at, again.parent_id) == (
        snapshot.id,
        snapshot.message,
        snapshot.flushed_at,
        None,
    )


# -- any snapshot ------------------------------------------------------------------

# characters around "/" in byte order, where a naive search for descendants goes wrong
segments = st.text(st.sampled_from("ab-.0!~é\U0001f9ca"), min_size=1, max_size=2).filter(
    lambda text: text not in (".", "..")
)
paths = st.lists(segments, max_size=4).map(lambda parts: "/" + "/".join(parts))
object_ids = st.binary(min_size=12, max_size=12)
u32 = st.integers(0, 2**32 - 1)


@st.composite
def array_infos(draw: st.DrawFn) -> ArrayInfo:
    ndim = draw(st.integers(0, 3))

    def per_dimension(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
        return st.tuples(*[values] * ndim)

    ref = st.builds(
        ManifestRef, object_ids, st.one_of(st.just(()), per_dimension(st.tuples(u32, u32)))
    )
    names = st.one_of(st.none(), st.text(max_size=5))
    return ArrayInfo(
        draw(per_dimension(st.integers(0, 2**64 - 1))),
        draw(per_dimension(u32)),
        draw(st.one_of(st.none(), per_dimension(names))),
        tuple(draw(st.lists(ref, max_size=3))),
    )


nodes = st.lists(
    st.builds(
        Node,
        st.binary(min_size=8, max_size=8),
        paths,
        st.binary(max_size=40),
        st.one_of(st.none(), array_infos()),
    ),
    max_size=8,
    unique_by=(lambda node: node.path, lambda node: node.id),
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    members = draw(nodes)
    refs = [ref for node in members if node.array for ref in node.array.manifests]
    sizes = st.integers(0, 2**64 - 1)
    return Snapshot.build(
        draw(object_ids),
        members,
        flushed_at=draw(sizes),
        message=draw(st.text(max_size=20)),
        metadata=draw(json_values.objects),
        manifest_files={ref.id: ManifestFile(ref.id, draw(sizes), draw(u32)) for ref in refs},
    )


@settings(max_examples=60)
@given(snapshots())
def test_round_trip(snapshot: Snapshot) -> None:
    again = decode_snapshot(encode_snapshot(snapshot), "x")
    assert list(again.nodes()) == list(snapshot.nodes())
    assert again.metadata == snapshot.metadata
    assert list(again.metadata) == sorted(snapshot.metadata)
    assert again.manifest_files == snapshot.manifest_files
    assert (again.id, again.message, again.flushed_at) == (
        snapshot.id,
        snapshot.message,
        snapshot.flushed_at,
    )


@settings(max_examples=60)
@given(snapshots())
def test_what_is_written_satisfies_a_strict_reader(snapshot: Snapshot) -> None:
    found = walked(snapshot)
    assert [node["path"].encode() for node in found["nodes"]] == sorted(
        node.path.encode() for node in snapshot.nodes()
    )
    assert found["manifest_files"] == []
    files = [file["id"] for file in found["manifest_files_v2"]]
    assert files == sorted(snapshot.manifest_files)
    names = [item["name"].encode() for item in found["metadata"]]
    assert names == sorted(names)
    for node, stored in zip(snapshot.nodes(), found["nodes"], strict=True):
        tag, data = stored["node_data"]
        assert tag == (1 if node.is_array else 2)
        if node.array is None:
            continue
        assert data["shape"] == []
        assert len(data["shape_v2"]) == len(node.array.shape)
        assert ("dimension_names" in data) == (node.array.dimension_names is not None)


@given(nodes, paths)
def test_lookup_is_that_of_a_list(members: list[Node], path: str) -> None:
    for snapshot in (built(*members), decode_snapshot(encode_snapshot(built(*members)), "x")):
        by_bytes = sorted(members, key=lambda node: node.path.encode())
        assert list(snapshot.paths()) == [node.path for node in by_bytes]
        assert list(snapshot.nodes()) == by_bytes
        assert len(snapshot) == len(members)
        for at in (path, *snapshot.paths()):
            same = [node for node in members if node.path == at]
            assert snapshot.get(at) == (same[0] if same else None)
            below = [node for node in by_bytes if is_within(node.path, at)]
            # itself comes first even where siblings sort in between
            assert list(snapshot.within(at)) == below
            assert snapshot.paths_below(at) == [node.path for node in below if node.path != at]
            assert list(snapshot.children(at)) == [
                node for node in by_bytes if parent_path(node.path) == at
            ]
        for node in members:
            assert snapshot.get_by_id(node.id) == node
        assert snapshot.get_by_id(b"not there") is None


def test_equal_documents_are_stored_once() -> None:
    document = bytes(random.Random(0).randbytes(1000))
    many = encode_snapshot(built(*(group(f"/{i}", document) for i in range(50))))
    assert len(many) < 4000


# -- damage and oddities -------------------------------------------------------------


def stored(nodes: Batch, count: int, *, version: int = 2) -> bytes:
    """A stored snapshot, with a parent, around a batch of nodes."""
    root = Batch(1)
    root.struct(0, np.frombuffer(ID, np.uint8).reshape(1, 12))
    root.struct(1, np.frombuffer(ID, np.uint8).reshape(1, 12))
    root.children(2, nodes, [0, count])
    root.scalar(3, 1, "<u8")
    root.text(4, ["m"])
    root.children(5, Batch(0), [0, 0])
    root.vector(6, np.empty(0, "<u8"), [0, 0])
    return wrap(encode(root), FileType.SNAPSHOT, spec_version=version)


def groups_batch(paths: list[str], tag: int = 2) -> Batch:
    n = len(paths)
    nodes = Batch(n)
    nodes.struct(0, np.arange(n * 8, dtype=np.uint8).reshape(n, 8))
    nodes.text(1, paths)
    nodes.blob(2, [b"%d" % i for i in range(n)])
    nodes.union(3, [tag] * n, {tag: Batch(n)})
    return nodes


def test_only_files_of_spec_1_know_their_parent() -> None:
    for version, parent in ((1, ID), (2, None)):
        data = stored(groups_batch(["/"]), 1, version=version)
        assert decode_snapshot(data, "x").parent_id == parent


def test_of_two_nodes_with_one_path_the_first_counts() -> None:
    paths = ["/", "/a", "/a", "/a/b", "/a/b"]
    snapshot = decode_snapshot(stored(groups_batch(paths), 5), "x")
    assert snapshot.paths() == ["/", "/a", "/a/b"]
    assert [node.user_data for node in snapshot.nodes()] == [b"0", b"1", b"3"]
    node = snapshot.get("/a")
    assert node is not None and node.user_data == b"1"
    assert len(encode_snapshot(snapshot)) > 0


def test_unsorted_nodes_are_found() -> None:
    snapshot = decode_snapshot(stored(groups_batch(["/b", "/", "/a"]), 3), "x")
    assert snapshot.paths() == ["/", "/a", "/b"]
    assert [node.user_data for node in snapshot.nodes()] == [b"1", b"2", b"0"]


def test_unknown_node_type() -> None:
    snapshot = decode_snapshot(stored(groups_batch(["/", "/new"], tag=3), 2), "the/name")
    with pytest.raises(FormatError, match="the/name: /: unknown node type 3"):
        snapshot.get("/new")


@pytest.mark.parametrize("path", ["", "a", "a/b"])
def test_relative_paths(path: str) -> None:
    with pytest.raises(FormatError, match="the/name: path"):
        decode_snapshot(stored(groups_batch([path]), 1), "the/name")


def array_node(names: int | None, extents: int) -> bytes:
    """A node of two dimensions with some dimension names and extents."""
    dimensions = Batch(2)
    dimensions.scalar(0, [4, 5], "<u8")
    dimensions.scalar(1, [2, 3], "<u4")
    manifest = Batch(1)
    manifest.struct(0, np.zeros((1, 12), np.uint8))
    manifest.vector(1, np.ones((extents, 2), "<u4"), [0, extents])
    array = Batch(1)
    array.vector(0, np.empty(0, "<u8"), [0, 0])
    if names is not None:
        named = Batch(names)
        named.text(0, [f"d{i}" for i in range(names)])
        array.children(1, named, [0, names])
    array.children(2, manifest, [0, 1])
    array.children(3, dimensions, [0, 2])
    node = Batch(1)
    node.struct(0, np.zeros((1, 8), np.uint8))
    node.text(1, ["/a"])
    node.blob(2, [b""])
    node.union(3, [1], {1: array})
    return stored(node, 1)


@pytest.mark.parametrize(
    ("names", "expected"), [(None, None), (0, None), (1, None), (2, ("d0", "d1")), (3, None)]
)
def test_dimension_names_of_another_number(
    names: int | None, expected: tuple[str, ...] | None
) -> None:
    node = decode_snapshot(array_node(names, 2), "x").get("/a")
    assert node is not None and node.array is not None
    assert node.array.dimension_names == expected
    assert node.array.manifests == (ManifestRef(bytes(12), ((1, 1), (1, 1))),)


def test_extents_of_another_number() -> None:
    with pytest.raises(FormatError, match="x: /a: extents: 1 dimensions for an array of 2"):
        decode_snapshot(array_node(None, 1), "x").get("/a")


def read_all(data: bytes) -> Any:
    snapshot = decode_snapshot(data, "x")
    assert snapshot.get("/nowhere") is None
    everything = (dict(snapshot.metadata), snapshot.manifest_files, list(snapshot.nodes()))
    return everything, list(snapshot.children("/")), snapshot.get_by_id(bytes(8))


@settings(max_examples=300)
@given(st.data())
def test_damage_gives_a_format_error(data: st.DataObject) -> None:
    payload, version = data.draw(
        st.sampled_from(
            [
                (golden.SNAPSHOT, 2),
                (unwrap(golden.SNAPSHOT_V1_OBJECT, FileType.SNAPSHOT, "x")[0], 1),
            ]
        )
    )
    wrong = wrap(data.draw(damaged(payload)), FileType.SNAPSHOT, spec_version=version)
    value_or_format_error(lambda: read_all(wrong))


@given(st.binary(max_size=200))
def test_made_up_payload(payload: bytes) -> None:
    value_or_format_error(lambda: read_all(wrap(payload, FileType.SNAPSHOT)))


def test_message_that_is_not_text() -> None:
    wrong = golden.SNAPSHOT.replace(b"second", b"sec\xff\xfed")
    with pytest.raises(FormatError, match="the/name: message"):
        decode_snapshot(wrap(wrong, FileType.SNAPSHOT), "the/name")


# -- what cannot be written ------------------------------------------------------------


def test_duplicate_paths_are_not_built() -> None:
    with pytest.raises(InternalError, match="/a"):
        built(group("/a"), group("/b"), group("/a", b"other"))


def test_manifests_must_be_listed_and_unused_files_go() -> None:
    array = ArrayInfo((1,), (1,), None, (ManifestRef(ID, ((0, 1),)),))
    node = replace(group("/a"), array=array)
    with pytest.raises(InternalError, match="1 manifests"):
        Snapshot.build(ID, [node], flushed_at=1, message="")
    known = {id: ManifestFile(id, 1, 1) for id in (ID, bytes(12))}
    snapshot = Snapshot.build(ID, [node], flushed_at=1, message="", manifest_files=known)
    assert snapshot.manifest_files == {ID: known[ID]}


def test_metadata_is_checked_when_it_is_given() -> None:
    for metadata, place in (({"a": {"b": float("nan")}}, r"\['a'\]\['b'\]"), ({1: 2}, "key 1")):
        with pytest.raises(InvalidInputError, match=place):
            Snapshot.build(ID, [], flushed_at=1, message="", metadata=metadata)  # type: ignore[arg-type]


def test_metadata_does_not_follow_later_changes() -> None:
    value = {"a": [1]}
    snapshot = Snapshot.build(ID, [], flushed_at=1, message="", metadata=value)
    value["a"].append(2)
    snapshot.metadata["a"].append(3)
    assert snapshot.metadata == {"a": [1]}
    assert repr(snapshot.metadata) == "Metadata({'a': [1]})"


def test_too_many_chunks() -> None:
    node = replace(group("/big"), array=ArrayInfo((2**40,), (2**32,), None, ()))
    with pytest.raises(InvalidInputError, match="/big: a dimension has 4294967296 chunks"):
        encode_snapshot(built(node))


@pytest.mark.parametrize(
    "array", [ArrayInfo((1, 2), (1,), None, ()), ArrayInfo((1,), (1,), ("x", "y"), ())]
)
def test_ranks_that_differ(array: ArrayInfo) -> None:
    with pytest.raises(InternalError, match="/a: shape, chunk counts and names"):
        encode_snapshot(built(replace(group("/a"), array=array)))


def test_message_with_half_a_character() -> None:
    snapshot = Snapshot.build(ID, [], flushed_at=1, message="a\ud800b")
    with pytest.raises(InvalidInputError):
        encode_snapshot(snapshot)


def test_paths_are_those_that_are_normal() -> None:
    segments = ["", "a", ".", "..", "a.", "...", "\n", "b\n"]
    for count in range(4):
        for parts in itertools.product(segments, repeat=count):
            for path in ("/".join(parts), "/" + "/".join(parts)):
                try:
                    normal = normalize_path(path) == path
                except InvalidInputError:
                    normal = False
                for paths in ([path], ["/", path], [path, "/z"], ["/", "/a", path, "/c"]):
                    assert (wrong_path(paths) is None) == normal, path
