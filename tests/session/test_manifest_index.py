"""Finding manifests by their extents: equal to a look at each, with far fewer looks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, strategies as st

from icechunk import (
    BasicConflictSolver,
    LocalStorage,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    Session,
)
from icechunk.config import (
    ManifestConfig,
    ManifestSplitCondition,
    ManifestSplitDimCondition,
    ManifestSplittingConfig,
)
from icechunk.format.snapshot import ManifestRef
from icechunk.format.snapshot_read import StoredNodes
from icechunk.session import chunks as chunks_module
from icechunk.session.manifest_index import ManifestIndex
from icechunk.storage.base import Storage

CHUNKS = 60


def one_by_one(manifests: list[ManifestRef], coordinate: tuple[int, ...]) -> ManifestRef | None:
    for ref in manifests:
        if not ref.extents or (
            len(ref.extents) == len(coordinate)
            and all(lo <= i < hi for (lo, hi), i in zip(ref.extents, coordinate, strict=True))
        ):
            return ref
    return None


@st.composite
def boxes(draw: st.DrawFn) -> tuple[int, list[ManifestRef]]:
    """Any boxes, also such as overlap, and such as hold everything."""
    ndim = draw(st.integers(1, 3))
    edges = st.tuples(st.integers(0, 6), st.integers(0, 4)).map(lambda e: (e[0], e[0] + e[1]))
    extents = st.tuples(*[edges] * ndim) | st.just(())
    found = draw(st.lists(extents, max_size=12))
    return ndim, [ManifestRef(bytes([i]) * 12, box) for i, box in enumerate(found)]


@given(boxes(), st.data())
def test_an_index_finds_what_a_look_at_each_finds(
    made: tuple[int, list[ManifestRef]], data: st.DataObject
) -> None:
    ndim, manifests = made
    index = ManifestIndex(manifests, ndim)
    for _ in range(5):
        coordinate = data.draw(st.tuples(*[st.integers(0, 11)] * ndim))
        assert index.find(coordinate) is one_by_one(manifests, coordinate)


@pytest.mark.parametrize("extents", [(), ((0, 2**32 - 1),)])
def test_the_ends_of_an_index(extents: tuple[Any, ...]) -> None:
    manifests = [ManifestRef(b"m" * 12, extents)]
    index = ManifestIndex(manifests, 1)
    assert index.find((0,)) is index.find((2**32 - 2,)) is manifests[0]
    # keys of another rank may be asked for
    assert index.find(()) is index.find((0, 0)) is None
    scalar = ManifestIndex([ManifestRef(b"m" * 12, ())], 0)
    assert scalar.find(()) is not None
    assert ManifestIndex([], 2).find((0, 0)) is None


# -- how much is done for a chunk ------------------------------------------------------------
class Counted:
    """How often nodes of a file were made, and indexes of manifests."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.nodes: list[str] = []
        self.indexes = 0
        make_node, make_index = StoredNodes.node, ManifestIndex

        def node(stored: StoredNodes, row: int) -> Any:
            self.nodes.append(stored.paths[row])
            return make_node(stored, row)

        def index(*arguments: Any) -> ManifestIndex:
            self.indexes += 1
            return make_index(*arguments)

        patch.setattr(StoredNodes, "node", node)
        patch.setattr(chunks_module, "ManifestIndex", index)


def filled(storage: Storage) -> Repository:
    """Return one whose array has a manifest for every chunk, and which has cached nothing."""
    splitting = ManifestSplittingConfig.from_dict(
        {ManifestSplitCondition.AnyArray(): {ManifestSplitDimCondition.Any(): 1}}
    )
    config = RepositoryConfig(manifest=ManifestConfig(splitting=splitting))
    session = Repository.create(storage, config).writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(CHUNKS,), chunks=(1,), dtype="i4")
    array[:] = np.arange(1, CHUNKS + 1)
    session.commit("array")
    return Repository.open(storage)


@pytest.fixture
def repository() -> Repository:
    return filled(MemoryStorage())


def read_all(session: Session) -> None:
    store = session.store
    for row in range(CHUNKS):
        assert store.get_sync(f"a/c/{row}") is not None


def write_all(session: Session) -> None:
    for row in range(CHUNKS):
        session.chunks.set("/a", (row,), b"abcd")


def delete_all(session: Session) -> None:
    for row in range(CHUNKS):
        session.chunks.delete("/a", (row,))


def edit_between(session: Session) -> None:
    read_all(session)
    zarr.create_group(session.store, path="g")
    session.delete_nodes("/g")
    read_all(session)
    write_all(session)


@pytest.mark.parametrize("work", [read_all, write_all, delete_all, edit_between])
def test_a_node_is_made_once_for_all_chunks(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, work: Callable[[Session], None]
) -> None:
    session = repository.writable_session("main")
    assert len(session.tree.snapshot.manifest_files) == CHUNKS
    counted = Counted(monkeypatch)
    work(session)
    assert counted.nodes.count("/a") == 1
    assert counted.indexes <= 1


def states(session: Session) -> Iterator[tuple[str, ...]]:
    """Change a node in each way, and yield what reading must find of it."""
    array = zarr.open_array(session.store, path="a", mode="r+")
    yield ("shape", str((CHUNKS,)))
    array.attrs["x"] = 1
    yield ("attribute", "1")
    array.resize((7,))
    yield ("shape", "(7,)")
    session.delete_nodes("/a")
    yield ("gone",)
    zarr.create_array(session.store, name="a", shape=(3,), chunks=(3,), dtype="i4")
    yield ("shape", "(3,)")
    session.discard_changes()
    yield ("shape", str((CHUNKS,)))


def test_edits_are_seen(repository: Repository) -> None:
    session = repository.writable_session("main")
    for what, *expected in states(session):
        node = session.tree.get("/a")
        if what == "gone":
            assert node is None
            continue
        assert node is not None
        array = zarr.open_array(session.store, path="a", mode="r")
        found = array.shape if what == "shape" else array.attrs["x"]
        assert str(found) == expected[0]


def test_a_rebase_and_a_commit_are_seen(repository: Repository) -> None:
    """The session goes on from another snapshot, with other manifests."""
    session = repository.writable_session("main")
    read_all(session)
    other = repository.writable_session("main")
    zarr.open_array(other.store, path="a", mode="r+")[3] = 33
    other.commit("other")
    zarr.open_array(session.store, path="a", mode="r+")[4] = 44
    session.rebase(BasicConflictSolver())
    for _ in range(2):
        values = zarr.open_array(session.store, path="a", mode="r")[:]
        assert np.asarray(values)[:6].tolist() == [1, 2, 3, 33, 44, 6]
        if not session.read_only:
            session.commit("ours")


async def test_small_manifests_of_a_folder_take_no_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    store = filled(storage).readonly_session("main").store
    assert await store.exists("a/zarr.json")
    monkeypatch.setattr(asyncio, "to_thread", None)
    for i in range(CHUNKS):
        # whatever the machine is doing
        storage._reads._mean = 0.0
        assert await store.get(f"a/c/{i}") is not None
