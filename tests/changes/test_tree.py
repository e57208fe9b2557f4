"""The hierarchy that a session sees, against a dict of paths."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from icechunk import AlreadyExistsError, InvalidInputError, NodeNotFoundError, SessionStateError
from icechunk.changes.change_set import ChangeSet
from icechunk.changes.tree import Tree, node_from_metadata
from icechunk.format.snapshot import Snapshot

PATHS = [
    "/",
    *(f"/{one}" for one in "ab"),
    *(f"/{one}/{two}" for one in "ab" for two in "ab"),
    # sorts between a group and what is in it
    "/a-b",
    "/a/b/c",
]


def group(number: int) -> bytes:
    return json.dumps(
        {"zarr_format": 3, "node_type": "group", "attributes": {"x": number}}
    ).encode()


def array(number: int, ndim: int = 1) -> bytes:
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [number] * ndim,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1] * ndim}},
        "data_type": "int8",
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "chunk_key_encoding": {"name": "default"},
        "attributes": {},
    }
    return json.dumps(document).encode()


def is_array(document: bytes) -> bool:
    return b'"array"' in document


def above(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[:n]) for n in range(len(parts))] if path != "/" else []


def inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class AgainstADict(RuleBasedStateMachine):
    """Edits in some layers, on a snapshot that has nodes already."""

    nodes: dict[str, bytes]
    tree: Tree

    @initialize(paths=st.sets(st.sampled_from(PATHS)))
    def begin(self, paths: set[str]) -> None:
        self.nodes = {}
        for number, path in enumerate(sorted(paths)):
            self.nodes[path] = group(number)
        snapshot = Snapshot.build(
            b"s" * 12,
            [
                node_from_metadata(bytes([n]) * 8, path, document)
                for n, (path, document) in enumerate(self.nodes.items())
            ],
            flushed_at=0,
            message="",
        )
        self.tree = Tree(snapshot, [ChangeSet(snapshot.id)])

    @rule(
        path=st.sampled_from(PATHS),
        document=st.builds(group, st.integers(0, 3))
        | st.builds(array, st.integers(0, 3), st.integers(1, 2)),
    )
    def put(self, path: str, document: bytes) -> None:
        # what lies below stays, whatever the node becomes
        node = self.tree.put(path, document)
        assert (node.path, node.user_data) == (path, document)
        self.nodes[path] = document

    @rule(path=st.sampled_from(PATHS))
    def delete(self, path: str) -> None:
        self.tree.delete(path)
        self.nodes = {p: d for p, d in self.nodes.items() if not inside(p, path)}

    @rule()
    def new_layer(self) -> None:
        top = self.tree.layers[-1]
        self.tree.layers.append(ChangeSet(top.base, top.lineage))

    @rule()
    def rebuild(self) -> None:
        """What is computed edit by edit is what all edits give."""
        self.tree.rebuild()

    @precondition(lambda self: self.nodes)
    @rule(source=st.sampled_from(PATHS), place=st.sampled_from(PATHS))
    def move(self, source: str, place: str) -> None:
        parent = above(place)[-1] if above(place) else "/"
        if source not in self.nodes:
            expected: Any = NodeNotFoundError
        elif inside(place, source):
            expected = SessionStateError
        elif place in self.nodes:
            expected = AlreadyExistsError
        elif parent not in self.nodes or is_array(self.nodes[parent]):
            expected = SessionStateError
        else:
            # moves are made in sessions that do nothing else
            return
        with pytest.raises(expected):
            self.tree.move(source, place)

    @invariant()
    def sees_the_same(self) -> None:
        if not hasattr(self, "tree"):
            return
        tree, nodes = self.tree, self.nodes
        assert {n.path: n.user_data for n in tree.nodes()} == nodes
        assert [n.path for n in tree.nodes()] == sorted(nodes, key=str.encode)
        for path in PATHS:
            found = tree.get(path)
            assert (None if found is None else found.user_data) == nodes.get(path)
            within = [n.path for n in tree.within(path)]
            assert within == sorted((p for p in nodes if inside(p, path)), key=str.encode)
            assert tree.paths_below(path) == [p for p in within if p != path]
            children = {n.path for n in tree.children(path)}
            assert children == {p for p in nodes if above(p)[-1:] == [path]}
            if found is not None:
                assert tree.by_id([found.id])[found.id].path == path
        ids = [n.id for n in tree.nodes()]
        assert len(set(ids)) == len(ids)


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(
    max_examples=60, stateful_step_count=15, suppress_health_check=list(HealthCheck), deadline=None
)


def small_tree() -> Tree:
    documents = {"/": group(0), "/a": group(1), "/a/x": array(2), "/a/g": group(3), "/b": group(4)}
    nodes = [
        node_from_metadata(bytes([n]) * 8, path, document)
        for n, (path, document) in enumerate(documents.items())
    ]
    snapshot = Snapshot.build(b"s" * 12, nodes, flushed_at=0, message="")
    return Tree(snapshot, [ChangeSet(snapshot.id)])


def test_a_move_takes_all_along_and_keeps_ids() -> None:
    tree = small_tree()
    ids = {node.path: node.id for node in tree.nodes()}
    tree.move("/a", "/b/a")
    tree.move("/b/a/g", "/b/g")
    assert [node.path for node in tree.nodes()] == ["/", "/b", "/b/a", "/b/a/x", "/b/g"]
    found = {node.path: node.id for node in tree.nodes()}
    assert found["/b/a/x"] == ids["/a/x"]
    assert found["/b/g"] == ids["/a/g"]
    moved = tree.layers[-1].moved
    # hops in between are not kept
    assert (moved[ids["/a/g"]].from_path, moved[ids["/a/g"]].to_path) == ("/a/g", "/b/g")
    tree.move("/b/g", "/a")
    assert tree.get("/a") is not None
    assert tree.get("/a/x") is None


def test_a_node_of_the_snapshot_is_the_same_object_each_time() -> None:
    tree = small_tree()
    first = tree.get("/a/x")
    assert first is tree.get("/a/x")
    tree.put("/a/x", array(3))
    changed = tree.get("/a/x")
    assert changed is not first
    assert changed is tree.get("/a/x")
    assert changed is not None and first is not None
    assert changed.id == first.id


def test_requiring_what_is_not_there() -> None:
    tree = small_tree()
    with pytest.raises(NodeNotFoundError, match="'/c'"):
        tree.require("/c")
    with pytest.raises(InvalidInputError, match="'/a' is a group"):
        tree.require_array("/a")
