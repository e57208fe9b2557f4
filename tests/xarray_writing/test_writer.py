"""Where `to_icechunk` writes: sessions, repositories, URLs; and what a failure leaves."""

from __future__ import annotations

import _thread
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from dask.callbacks import Callback

import icechunk
from icechunk import (
    AlreadyExistsError,
    ConflictError,
    CountingStorage,
    FaultyStorage,
    InvalidInputError,
    MemoryStorage,
    ReadOnlyError,
    RefNotFoundError,
    Repository,
    RepositoryNotFoundError,
    Session,
    SessionStateError,
    TaskError,
)
from icechunk_xarray import to_icechunk

SMALL = xr.Dataset(
    {"a": (("time", "x"), np.arange(12.0).reshape(4, 3)), "static": ("x", [1, 2, 3])},
    {"time": np.arange(4)},
    {"title": "small"},
)
MORE = SMALL.drop_vars("static").assign_coords(time=np.arange(4, 8))


def create() -> Repository:
    return Repository.create(icechunk.in_memory_storage())


def read(source: Repository | Session, group: str | None = None) -> xr.Dataset:
    session = source.readonly_session("main") if isinstance(source, Repository) else source
    return xr.open_zarr(session.store, group=group, consolidated=False, chunks=None).load()


# -- sessions ---------------------------------------------------------------------------------
def test_calls_in_a_session_are_one_transaction() -> None:
    repo = create()
    session = repo.writable_session("main")
    assert to_icechunk(SMALL, session) is None
    # by the name that the official function has for it
    to_icechunk(MORE.chunk(time=2), session=session, append_dim="time", align_chunks=True)
    to_icechunk(SMALL, session.store, group="g/h")
    session.commit("three calls")
    assert len(list(repo.ancestry(branch="main"))) == 2
    assert read(repo).sizes["time"] == 8
    xr.testing.assert_identical(read(repo, "g/h"), SMALL)


def test_fork_is_a_target() -> None:
    session = create().writable_session("main")
    to_icechunk(xr.Dataset({"a": ("x", np.zeros(8))}), session, encoding={"a": {"chunks": (2,)}})

    def work(start: int) -> icechunk.ForkSession:
        fork = session.fork()
        part = xr.Dataset({"a": ("x", np.ones(4))})
        to_icechunk(part.chunk(x=2), fork, region={"x": slice(start, start + 4)})
        return fork

    with ThreadPoolExecutor(2) as pool:
        session.merge(*pool.map(work, [0, 4]))
    np.testing.assert_array_equal(read(session)["a"], np.ones(8))


def test_sessions_and_stores_that_do_not_write() -> None:
    repo = create()
    to_icechunk(SMALL, repo)
    readonly = repo.readonly_session("main")
    with pytest.raises(ReadOnlyError, match="writable_session"):
        to_icechunk(SMALL, readonly, mode="w")
    with pytest.raises(ReadOnlyError, match="writable_session"):
        to_icechunk(SMALL, readonly.store, mode="w")
    with pytest.raises(SessionStateError, match="writable_session"):
        to_icechunk(SMALL, repo.rearrange_session("main"), mode="w")
    with pytest.raises(InvalidInputError, match="branch, message"):
        to_icechunk(SMALL, repo.writable_session("main"), message="m", branch="b")


# -- repositories -----------------------------------------------------------------------------
def test_commits_to_a_repository() -> None:
    repo = create()
    first = to_icechunk(SMALL, repo)
    repo.create_branch("dev", first)
    second = to_icechunk(
        MORE, repo, branch="dev", append_dim="time", message="More", metadata={"source": "test"}
    )
    info = repo.lookup_snapshot(second)
    assert (info.message, info.metadata) == ("More", {"source": "test"})
    assert info.parent_id == first
    assert repo.lookup_branch("main") == first
    assert repo.lookup_branch("dev") == second
    third = to_icechunk(MORE, repo, append_dim="time")
    assert repo.lookup_snapshot(third).message == "Append along time: a"
    assert repo.lookup_snapshot(first).message == "Write a, static"


@pytest.mark.parametrize("mode", [None, "w-", "w", "a"])
def test_creates_the_repository_of_a_path(tmp_path: Path, mode: Any) -> None:
    place = tmp_path / "new"
    snapshot = to_icechunk(SMALL, place, mode=mode)
    repo = Repository.open(str(place))
    assert repo.lookup_branch("main") == snapshot
    xr.testing.assert_identical(read(repo), SMALL)
    # and opens it
    to_icechunk(MORE, f"file://{place}", append_dim="time")
    assert read(Repository.open(str(place))).sizes["time"] == 8
    with pytest.raises(AlreadyExistsError, match="group '/'"):
        to_icechunk(SMALL, place)


@pytest.mark.parametrize(
    "options",
    [{"append_dim": "time"}, {"region": "auto"}, {"mode": "r+"}, {"branch": "dev"}],
)
def test_creates_no_repository_to_add_to(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(RepositoryNotFoundError):
        to_icechunk(SMALL, tmp_path / "typo", **options)
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_do_not_go_together() -> None:
    repo = create()
    with pytest.raises(InvalidInputError, match="one target"):
        to_icechunk(SMALL)
    with pytest.raises(InvalidInputError, match="one target"):
        to_icechunk(SMALL, repo, session=repo.writable_session("main"))
    with pytest.raises(InvalidInputError, match="compute=False"):
        to_icechunk(SMALL, repo, compute=False)
    with pytest.raises(InvalidInputError, match="not a list"):
        to_icechunk([1], repo)  # type: ignore[arg-type]
    with pytest.raises(RefNotFoundError):
        to_icechunk(SMALL, repo, branch="dev")
    assert len(list(repo.ancestry(branch="main"))) == 1


def test_commit_after_somebody_else() -> None:
    repo = create()
    to_icechunk(SMALL, repo)

    def meanwhile(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if len(list(repo.ancestry(branch="main"))) == 2:
            to_icechunk(SMALL, repo, group="other")
        return block

    slow = da.map_blocks(meanwhile, da.zeros((4, 3)), dtype="f8", meta=np.zeros((0, 0)))
    with pytest.raises(ConflictError):
        to_icechunk(MORE.assign(a=(("time", "x"), slow)), repo, append_dim="time")
    assert [s.message for s in repo.ancestry(branch="main")][:2] == [
        "Write a, static in /other",
        "Write a, static",
    ]


# -- kinds of objects -------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a", None, "time"])
def test_data_array(name: str | None) -> None:
    repo = create()
    array = SMALL["a"].rename(name)
    to_icechunk(array, repo)
    store = repo.readonly_session("main").store
    got = xr.open_dataarray(store, engine="zarr", consolidated=False)  # type: ignore[arg-type]
    xr.testing.assert_identical(got.load(), array)


@pytest.mark.parametrize("lazy", [False, True])
def test_data_tree(lazy: bool) -> None:
    def grow(dataset: xr.Dataset) -> xr.DataTree:
        nodes = {"/": dataset[["time"]], "/low": dataset[["a"]].drop_vars("time")}
        tree = xr.DataTree.from_dict({**nodes, "/low/deep": xr.Dataset({"s": 1.5}, attrs={"k": 1})})
        return tree.chunk(time=2) if lazy else tree

    repo = create()
    tree = grow(SMALL)
    to_icechunk(tree, repo, group="top", encoding={"/low": {"a": {"chunks": (2, 3)}}})
    store = repo.readonly_session("main").store
    got = xr.open_datatree(store, engine="zarr", group="top", consolidated=False)  # type: ignore[arg-type]
    xr.testing.assert_identical(got.load(), tree.compute())
    low = zarr.open_group(store, path="top/low", mode="r")
    assert list(low.array_keys()) == ["a"]
    assert low["a"].chunks == (2, 3)  # type: ignore[union-attr]

    to_icechunk(grow(MORE), repo, group="top", append_dim="time")
    part = MORE.isel(time=slice(2))
    nodes = {"/": part[["time"]], "/low": part[["a"]].drop_vars("time") * 10, "/low/deep": None}
    to_icechunk(xr.DataTree.from_dict(nodes), repo, group="top", region={"time": slice(4, 6)})
    got = xr.open_datatree(
        repo.readonly_session("main").store,  # type: ignore[arg-type]
        engine="zarr",
        group="top",
        consolidated=False,
    )
    np.testing.assert_array_equal(got["time"], np.arange(8))
    np.testing.assert_array_equal(got["low/a"][:, 0], [0, 3, 6, 9, 0, 30, 6, 9])
    to_icechunk(tree, repo, group="copy", write_inherited_coords=True)
    np.testing.assert_array_equal(read(repo, "copy/low")["time"], np.arange(4))
    with pytest.raises(InvalidInputError, match="'/nowhere'"):
        to_icechunk(tree, repo, group="x", encoding={"/nowhere": {}})


def test_accessor() -> None:
    session = create().writable_session("main")
    SMALL.icechunk.to_icechunk(session)
    SMALL["a"].icechunk.to_icechunk(session, group="array")
    xr.DataTree(SMALL).icechunk.to_icechunk(session, group="tree")
    for group in (None, "tree"):
        xr.testing.assert_identical(read(session, group), SMALL)
    assert next(iter(inspect.signature(SMALL.icechunk.to_icechunk).parameters)) == "target"
    assert SMALL.icechunk.to_icechunk.__doc__ == to_icechunk.__doc__
    assert "Dataset" in repr(SMALL.icechunk)


# -- modes and what they leave ----------------------------------------------------------------
def test_modes() -> None:
    session = create().writable_session("main")
    to_icechunk(SMALL, session)
    other = xr.Dataset({"new": ("x", [4, 5, 6])}, attrs={"title": "other"})
    to_icechunk(other, session, mode="a")
    assert set(read(session)) == {"a", "static", "new"}
    to_icechunk(SMALL * 2, session, mode="r+")
    np.testing.assert_array_equal(read(session)["static"], [2, 4, 6])
    # "a-" leaves alone what has not the dimension
    changed = MORE.assign(static=("x", [7, 8, 9]))
    to_icechunk(changed, session, mode="a-", append_dim="time")
    np.testing.assert_array_equal(read(session)["static"], [2, 4, 6])
    to_icechunk(other, session, mode="w")
    xr.testing.assert_identical(read(session), other)


def test_encoding_is_kept() -> None:
    session = create().writable_session("main")
    compressor = zarr.codecs.ZstdCodec(level=9)
    wanted = {
        "a": {"chunks": (1, 3), "shards": (2, 3), "compressors": [compressor], "dtype": "f4"},
        "time": {"units": "hours since 2000-01-01", "dtype": "i4"},
    }
    times = np.arange("2000-01-01", "2000-01-05", dtype="M8[D]").astype("M8[ns]")
    to_icechunk(SMALL.assign_coords(time=times).chunk(time=2), session, encoding=wanted)
    array = zarr.open_array(session.store, path="a")
    assert (array.chunks, array.shards, array.dtype) == ((1, 3), (2, 3), np.dtype("f4"))
    assert array.compressors == (compressor,)
    got = read(session)
    assert got["time"].encoding["units"] == "hours since 2000-01-01"
    np.testing.assert_array_equal(got["time"], times)


def test_all_dask_variables_are_one_computation() -> None:
    runs: list[Any] = []
    lazy = xr.Dataset({"a": ("x", da.zeros(8, chunks=2)), "b": ("x", da.ones(8, chunks=4))})
    repo = create()
    with Callback(start=runs.append):
        to_icechunk(lazy, repo)
    assert len(runs) == 1
    xr.testing.assert_equal(read(repo), lazy.compute())


@pytest.mark.parametrize("chunks", [None, {}])
def test_from_one_repository_to_another_and_back(chunks: Any) -> None:
    """What the engine notes about the source is none of the data."""
    one, other = create(), create()
    to_icechunk(SMALL.chunk(time=2), one)
    opened = xr.open_dataset(one, engine="icechunk", chunks=chunks)  # type: ignore[arg-type]
    to_icechunk(opened, other)
    xr.testing.assert_identical(read(other), SMALL)
    # lazily from a version into the next one, over itself
    to_icechunk(opened.isel(time=slice(2)), one, mode="w")
    xr.testing.assert_identical(read(one), SMALL.isel(time=slice(2)))
    session = one.writable_session("main")
    itself = xr.open_zarr(session.store, consolidated=False, chunks=chunks)  # type: ignore[arg-type]
    to_icechunk(itself + 1, session, mode="w")
    np.testing.assert_array_equal(read(session)["static"], [2, 3, 4])


def test_a_large_append_reads_no_chunk_of_the_data() -> None:
    storage = CountingStorage(MemoryStorage())
    repo = Repository.create(storage)
    big = xr.Dataset(
        {"a": (("time", "x"), np.random.default_rng(0).normal(size=(64, 1000)))},
        {"time": np.arange(64)},
    )
    to_icechunk(big, repo, encoding={"a": {"chunks": (1, 1000)}})
    storage.reset()
    session = Repository.open(storage).writable_session("main")
    to_icechunk(big.assign_coords(time=np.arange(64, 128)), session, append_dim="time")
    # repo info, snapshot, and the manifest and chunk of the coordinate
    assert storage.counts["get"].requests <= 5


# -- later ------------------------------------------------------------------------------------
def test_compute_later() -> None:
    session = create().writable_session("main")
    lazy = SMALL.chunk(time=2)
    waiting = to_icechunk(lazy, session, compute=False)
    shape = read(session)
    assert np.isnan(shape["a"]).all()
    xr.testing.assert_identical(shape["time"], SMALL["time"])
    waiting.compute()
    xr.testing.assert_identical(read(session), SMALL)


def test_two_writes_of_one_array_at_a_time() -> None:
    session = create().writable_session("main")
    zeros = xr.Dataset({"a": ("x", np.zeros(8))})
    to_icechunk(zeros, session, encoding={"a": {"chunks": (4,)}})
    gate = threading.Barrier(2, timeout=60)

    def together(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        gate.wait()
        return block

    def part(value: float) -> xr.Dataset:
        data = da.map_blocks(together, da.full(4, value, chunks=4), dtype="f8", meta=np.zeros(0))
        return xr.Dataset({"a": ("x", data)})

    # half a chunk each, which the caller has sworn that nobody else writes
    first, second = (
        to_icechunk(part(i), session, region={"x": where}, mode="a", compute=False)
        for i, where in ((1, slice(2, 6)), (2, slice(0, 4)))
    )
    with pytest.raises(ConflictError, match="/a"):
        dask.compute(first, second, scheduler="threads", num_workers=2)
    got = read(session)["a"].values.tolist()
    assert got in ([0, 0, 1, 1, 1, 1, 0, 0], [2, 2, 2, 2, 0, 0, 0, 0])


# -- failures ---------------------------------------------------------------------------------
def broken(block: np.ndarray[Any, Any], block_info: Any = None) -> np.ndarray[Any, Any]:
    """Fail in the last block."""
    if block_info[0]["chunk-location"][0] == 1:
        raise RuntimeError("the disk of the cluster is full")
    return block


def test_a_failed_computation_changes_nothing() -> None:
    repo = create()
    session = repo.writable_session("main")
    to_icechunk(SMALL, session)
    before = session.change_set_bytes()
    data = da.map_blocks(broken, da.zeros((4, 3), chunks=(2, 3)), dtype="f8", meta=np.zeros((0, 0)))
    failing = MORE.assign(a=(("time", "x"), data), static=("x", [7, 8, 9]))
    with pytest.raises(TaskError, match=r"'/a' failed.* full") as caught:
        to_icechunk(failing, session, append_dim="time", align_chunks=True)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(TaskError, match=r"\[2:4, 0:3\] of array '/a' failed.* full") as caught:
        to_icechunk(failing, session, mode="w")
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(TaskError, match="full"):
        to_icechunk(failing, repo)
    assert session.change_set_bytes() == before
    xr.testing.assert_identical(read(session), SMALL)
    assert len(list(repo.ancestry(branch="main"))) == 1
    session.commit("still possible")
    xr.testing.assert_identical(read(repo), SMALL)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_changes_nothing() -> None:
    session = create().writable_session("main")
    to_icechunk(SMALL, session)
    before = session.change_set_bytes()
    interrupted = threading.Event()

    def interrupt(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not interrupted.is_set():
            interrupted.set()
            _thread.interrupt_main()
        return block

    data = da.map_blocks(
        interrupt, da.zeros((4, 300), chunks=(1, 3)), dtype="f8", meta=np.zeros((0, 0))
    )
    with pytest.raises(KeyboardInterrupt):
        to_icechunk(xr.Dataset({"b": (("time", "y"), data)}), session, mode="a")
    assert session.change_set_bytes() == before
    xr.testing.assert_identical(read(session), SMALL)


@pytest.mark.parametrize("nth", range(1, 6))
def test_a_storage_that_fails_changes_nothing(nth: int) -> None:
    inner = MemoryStorage()
    config = icechunk.RepositoryConfig(inline_chunk_threshold_bytes=0)
    tip = to_icechunk(SMALL, inner, config=config)
    storage = FaultyStorage(inner)
    # an object of both chunks, two manifests, transaction log, snapshot; the repo info is put again
    storage.fail("put", nth=nth)
    with pytest.raises(icechunk.StorageError):
        to_icechunk(MORE, storage, append_dim="time", config=config)
    repo = Repository.open(inner)
    assert repo.lookup_branch("main") == tip
    xr.testing.assert_identical(read(repo), SMALL)


CLIMATE = xr.Dataset(
    {"t": (("time", "x"), np.ones((3, 4)))},
    {
        "time": np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "M8[ns]"),
        "x": [1.0, -0.0, np.nan, 4],
        "height": 2.0,
        "place": ("x", np.array(list("abcd"), object)),
    },
)


@pytest.mark.parametrize("mode", ["a", "r+"])
def test_equal_coordinates_stay_as_they_are(mode: Any) -> None:
    repo = create()
    first = to_icechunk(CLIMATE, repo)

    def written(dataset: xr.Dataset) -> set[str]:
        session = repo.writable_session("main")
        to_icechunk(dataset, session, mode=mode)
        return set(session.status().updated_chunks)

    assert written(CLIMATE * 2) == {"/t"}
    assert written(CLIMATE.assign_coords(x=[1.0, -0.0, np.nan, 5])) == {"/t", "/x"}
    # a zero of another sign is another value
    assert written(CLIMATE.assign_coords(x=[1.0, 0.0, np.nan, 4])) == {"/t", "/x"}
    assert written(CLIMATE.assign_coords(height=3.0)) == {"/t", "/height"}
    assert "/place" in written(CLIMATE.assign_coords(place=("x", list("abce"))))
    assert "/time" in written(CLIMATE.assign_coords(time=CLIMATE.time + np.timedelta64(1, "D")))
    if mode == "a":
        # a variable of the same values is what the caller wants to write
        assert written(CLIMATE[["t"]].rename(t="u")) == {"/u"}
    to_icechunk(CLIMATE * 2, repo, mode=mode)
    diff = repo.diff(from_snapshot_id=first, to_branch="main")
    assert set(diff.updated_chunks) == {"/t"} and not diff.updated_arrays
    xr.testing.assert_identical(read(repo), CLIMATE * 2)


def test_an_append_of_the_same_coordinates_is_one() -> None:
    repo = create()
    to_icechunk(CLIMATE, repo)
    to_icechunk(CLIMATE, repo, append_dim="time", safe_append=False)
    times = read(repo).time.values
    np.testing.assert_array_equal(times, np.tile(CLIMATE.time.values, 2))


@pytest.mark.parametrize("job", [None, "steps"])
def test_nothing_to_write_makes_no_commit(job: str | None) -> None:
    """An update that brings no new steps is no error: the newest version has all there is."""
    dataset = xr.Dataset({"v": ("t", [1.0, 2.0])}, {"t": [0, 1]})
    repository = Repository.create(icechunk.in_memory_storage())
    first = to_icechunk(dataset, repository)
    none = dataset.isel(t=slice(0, 0))
    for how in ({"append_dim": "t"}, {"region": {"t": slice(1, 1)}}):
        name = None if job is None else f"{job}-{next(iter(how))}"
        written = to_icechunk(none, repository, job=name, **how)
        assert written == repository.lookup_branch("main")
        assert job is not None or written == first
    assert xr.open_dataset(repository.readonly_session("main"), engine="icechunk").equals(dataset)
