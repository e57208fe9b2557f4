"""Dask arrays into sessions: on threads, in processes and on clusters."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client, get_worker

from icechunk import (
    InvalidInputError,
    LocalStorage,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    Session,
    TaskError,
)
from icechunk.storage import Storage
from icechunk_dask import store_dask
from icechunk_dask.recipe import Recipe
from tests.dask_writes.clusters import running

VALUES = np.arange(24 * 30, dtype="f8").reshape(24, 30)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "repository")


def prepared(storage: Storage, **options: Any) -> Repository:
    """Return a repository with two arrays, whose chunks are objects of their own."""
    repository = Repository.create(storage, RepositoryConfig(inline_chunk_threshold_bytes=0))
    with repository.transaction("main", message="arrays") as store:
        group = zarr.create_group(store)
        group.create_array("a", shape=VALUES.shape, chunks=(4, 5), dtype="f8", **options)
        group.create_array("g/b", shape=(7,), chunks=(3,), dtype="i4")
    return repository


def arrays(session: Session) -> tuple[Any, Any]:
    group = zarr.open_group(session.store, mode="r" if session.read_only else "r+")
    return group["a"], group["g/b"]


def source(chunks: Any = (8, 10)) -> da.Array:
    return da.from_array(VALUES, chunks=chunks)


def test_into_a_session(anywhere: str, storage: LocalStorage) -> None:
    repository = prepared(storage)
    session = repository.writable_session("main")
    a, b = arrays(session)
    stored = store_dask(sources=[source() + 1, da.arange(7, chunks=3)], targets=[a, b])
    assert stored is session
    np.testing.assert_array_equal(a[:], VALUES + 1)
    session.commit("stored")
    a, b = arrays(repository.readonly_session("main"))
    np.testing.assert_array_equal(a[:], VALUES + 1)
    assert b[:].tolist() == list(range(7))


def test_into_a_fork(anywhere: str, storage: LocalStorage) -> None:
    """The result is merged by the caller, with the nodes that the fork made before."""
    repository = prepared(storage)
    session = repository.writable_session("main")
    fork = session.fork()
    new = zarr.create_array(fork.store, name="new", shape=(24, 30), chunks=(4, 5), dtype="f8")
    merged = store_dask(sources=[source()], targets=[new])
    assert merged is fork
    assert not session.has_uncommitted_changes
    session.merge(merged)
    session.commit("stored")
    read = zarr.open_array(repository.readonly_session("main").store, path="new", mode="r")
    np.testing.assert_array_equal(read[:], VALUES)


def test_a_failing_task(anywhere: str, storage: LocalStorage) -> None:
    session = prepared(storage).writable_session("main")
    a, _ = arrays(session)
    for broken in (
        # in the source
        source().map_blocks(_fail_at_80, dtype="f8"),
        # while it is written
        source().map_blocks(_words_at_80, dtype="f8", meta=np.empty((0, 0))),
    ):
        with pytest.raises(TaskError, match=r"region \[0:8, 20:30\] of array '/a'") as error:
            store_dask(sources=[broken], targets=[a])
        assert isinstance(error.value.__cause__, ValueError | ZeroDivisionError)
        assert not session.has_uncommitted_changes


def _fail_at_80(block: Any) -> Any:
    return 1 // 0 if block[0, 0] == 20 else block


def _words_at_80(block: Any) -> Any:
    return np.array("words") if block[0, 0] == 20 else block


def test_a_repository_in_memory(anywhere: str) -> None:
    session = prepared(MemoryStorage()).writable_session("main")
    a, _ = arrays(session)
    if anywhere in ("sync", "threads"):
        store_dask(sources=[source()], targets=[a])
        np.testing.assert_array_equal(a[:], VALUES)
        return
    with pytest.raises(InvalidInputError, match="in the memory of this process"):
        store_dask(sources=[source()], targets=[a])
    # of a graph that is computed later, nobody knows where
    later = store_dask(sources=[source()], targets=[a], compute=False)
    if anywhere == "inproc":
        later.compute()
        return
    with pytest.raises(TaskError, match=r"of array '/a' failed: .* cannot be shared between proc"):
        later.compute()


def test_a_cluster_in_this_process() -> None:
    session = prepared(MemoryStorage()).writable_session("main")
    a, _ = arrays(session)
    with running("inproc"):
        store_dask(sources=[source()], targets=[a])
    np.testing.assert_array_equal(a[:], VALUES)


def test_a_value_to_be_computed(storage: LocalStorage, here: None) -> None:
    """Client.compute, retries and annotations work as for other graphs."""
    session = prepared(storage).writable_session("main")
    a, b = arrays(session)
    delayed = store_dask(sources=[source()], targets=[a], compute=False)
    session.merge_change_sets([delayed.compute(scheduler="threads")])
    np.testing.assert_array_equal(a[:], VALUES)
    with running("inproc") as client:
        assert isinstance(client, Client)
        with dask.annotate(retries=2, priority=5):
            delayed = store_dask(
                sources=[da.arange(7, chunks=3).map_blocks(Fails(client, 2))],
                targets=[b],
                compute=False,
            )
        session.merge_change_sets([client.compute(delayed).result()])
    assert b[:].tolist() == list(range(7))


class Fails:
    """Fails some times, wherever it runs."""

    def __init__(self, client: Client, times: int) -> None:
        client.set_metadata("failures", times)

    def __call__(self, block: Any) -> Any:
        from distributed import get_client

        client = get_client()
        left = client.get_metadata("failures")
        if left and block.size and block[0] == 3:
            client.set_metadata("failures", left - 1)
            raise OSError("try again")
        return block


SEEN: list[tuple[Any, ...]] = []


def note_task(block: Any) -> Any:
    """Note what this task is annotated with."""
    worker = get_worker()
    task = worker.state.tasks[worker.get_current_task()]
    SEEN.append((task.resource_restrictions, task.priority[0]))
    return block


@pytest.mark.parametrize("compute", [True, False])
def test_annotations(storage: LocalStorage, compute: bool) -> None:
    """They reach the tasks, whether they are around the call or among its options."""
    session = prepared(storage).writable_session("main")
    _, b = arrays(session)
    rows = da.arange(7, chunks=3)
    with running("inproc", resources={"disk": 1}) as client:
        assert isinstance(client, Client)
        for around in (True, False):
            SEEN.clear()
            options: dict[str, Any] = {"resources": {"disk": 1}, "priority": 5}
            with dask.annotate(**options if around else {}):
                noted = rows.map_blocks(note_task, dtype=rows.dtype, meta=np.empty(0, int))
                if compute:
                    kept = {} if around else options
                    store_dask(sources=[noted], targets=[b], **kept)
                else:
                    later = store_dask(sources=[noted], targets=[b], compute=False)
            if not compute:
                client.compute(later, **{} if around else options).result()
            # Dask counts down from what is most urgent
            assert SEEN == [({"disk": 1}, -5)] * 3


def test_regions_and_forks_of_their_own(storage: LocalStorage, here: None) -> None:
    session = prepared(storage).writable_session("main")
    a, b = (arrays(session.fork())[i] for i in range(2))
    top, bottom = source()[:8], source()[8:]
    with dask.config.set(scheduler="threads"):
        merged = store_dask(
            sources=[top, bottom, da.ones(7, chunks=3)],
            targets=[a, a, b],
            regions=[(slice(0, 8), slice(None)), (slice(8, 24),), None],
            split_every=2,
        )
        session.merge(merged)
        a, b = arrays(session)
        np.testing.assert_array_equal(a[:], VALUES)
        assert b[:].tolist() == [1] * 7
        # within chunks, beside what is there
        store_dask(
            sources=[da.full((3, 30), -1.0, chunks=(3, 10))], targets=[a], regions=[(slice(5, 8),)]
        )
    expected = VALUES.copy()
    expected[5:8] = -1
    np.testing.assert_array_equal(a[:], expected)


def test_blocks_that_share_a_chunk(storage: LocalStorage, here: None) -> None:
    session = prepared(storage, shards=(12, 10)).writable_session("main")
    a, _ = arrays(session)
    with pytest.raises(InvalidInputError, match=r"axis 0: Dask chunks .* one of the shards"):
        store_dask(sources=[source((8, 10))], targets=[a])
    assert not session.has_uncommitted_changes
    store_dask(sources=[source((7, 4))], targets=[a], align_chunks=True, scheduler="sync")
    np.testing.assert_array_equal(a[:], VALUES)
    with pytest.raises(InvalidInputError, match="share shards"):
        store_dask(
            sources=[source()[:8], source()[8:].rechunk(((4, 12), (10, 10, 10)))],
            targets=[a, a],
            regions=[(slice(0, 8),), (slice(8, 24),)],
        )


def test_what_cannot_be_asked_for(storage: LocalStorage, here: None) -> None:
    repository = prepared(storage)
    session = repository.writable_session("main")
    a, b = arrays(session)
    wrong: Any = VALUES
    with pytest.raises(TypeError, match=r"argument 'retires'.*; did you mean 'retries'"):
        store_dask(sources=[source()], targets=[a], retires=3)
    with pytest.raises(InvalidInputError, match="1 source, 2 targets"):
        store_dask(sources=[source()], targets=[a, b])
    with pytest.raises(InvalidInputError, match="a source is of type ndarray"):
        store_dask(sources=[wrong], targets=[a])
    with pytest.raises(InvalidInputError, match="not a Zarr array of an Icechunk store"):
        other = zarr.create_array({}, name="x", shape=(24, 30), chunks=(4, 5), dtype="f8")
        store_dask(sources=[source()], targets=[other])
    with pytest.raises(InvalidInputError, match="different sessions"):
        store_dask(
            sources=[source(), da.ones(7, chunks=3)],
            targets=[a, arrays(repository.writable_session("main"))[1]],
        )
    with pytest.raises(InvalidInputError, match="split_every is 1"):
        store_dask(sources=[source()], targets=[a], split_every=1)


def test_how_large_tasks_are(storage: LocalStorage, here: None) -> None:
    """They grow neither with their number nor with what the coordinator has done."""
    session = prepared(storage).writable_session("main")
    rng = np.random.default_rng(0)
    sizes = {}
    for chunks, refs, together in ((100, 0, 1), (512, 0, 2), (1024, 0, 4), (512, 20_000, 2)):
        group = zarr.open_group(session.store, mode="r+")
        array = group.create_array("n", shape=(chunks,), chunks=(1,), dtype="i8", overwrite=True)
        if refs:
            from icechunk.format.chunk_refs import ChunkRefs

            done = group.create_array("done", shape=(refs,), chunks=(1,), dtype="f8")
            ids = rng.integers(0, 256, (refs, 12), np.uint8)
            rows = ChunkRefs.native(np.arange(refs)[:, None], ids, 100)
            session.set_refs("/" + done.path, rows)
        delayed = store_dask(sources=[da.arange(chunks, chunks=1)], targets=[array], compute=False)
        graph = delayed.__dask_optimize__(delayed.dask, delayed.__dask_keys__())
        # many small blocks share a few tasks
        tasks = [v for k, v in graph.items() if isinstance(k, tuple) and "merge" not in k[0]]
        assert len(tasks) == -(-chunks // together)
        recipes = [v for k, v in graph.items() if str(k).startswith("icechunk-recipe")]
        assert len(recipes) == 1
        assert len(cloudpickle.dumps(recipes[0])) > 12 * refs
        sizes[chunks, refs] = max(len(pickle.dumps(task)) for task in tasks[:50])
    assert abs(sizes[512, 0] - sizes[512, 20_000]) < 20
    assert sizes[100, 0] < 1500
    # what blocks share is there once
    assert sizes[1024, 0] < 4 * sizes[100, 0]


def test_a_recipe_is_opened_once_in_a_process(storage: LocalStorage, here: None) -> None:
    """And forks of it know nothing of each other."""
    session = prepared(storage).writable_session("main")
    a, _ = arrays(session)
    a[:4] = 1
    data = pickle.dumps(Recipe(session, [a]))
    copies = [pickle.loads(data) for _ in range(2)]
    forks = [copy.fork() for copy in (*copies, copies[0])]
    assert len({id(copy._open()) for copy in copies}) == 1
    for row, fork in enumerate(forks):
        array = copies[0].array(fork, "a")
        array[4 * row : 4 * row + 4] = row + 2
        assert fork.array_changes()[0].stored == 6
        assert array[0, 0] == (2 if row == 0 else 1)
    session.merge_change_sets([fork.change_set_bytes() for fork in forks])
    assert a[:12:4, 0].tolist() == [2, 3, 4]
