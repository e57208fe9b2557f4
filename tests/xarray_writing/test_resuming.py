"""`to_icechunk(job=...)`: it ends anywhere, and the same call goes on; templates and regions."""

from __future__ import annotations

import itertools
import math
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings, strategies as st

from icechunk import (
    ConflictDetector,
    ConflictError,
    InvalidInputError,
    LocalStorage,
    MemoryStorage,
    NodeNotFoundError,
    Repository,
    RepositoryConfig,
    SessionStateError,
    TaskError,
)
from icechunk.repository.update_types import UpdateType
from icechunk_xarray import initialize, plan_regions, to_icechunk
from tests.killing import Dying, Killed

ROOT = Path(__file__).parents[2]
DAYS = np.arange("2000-01-01", "2000-01-09", dtype="M8[D]").astype("M8[ns]")
WHOLE = xr.Dataset(
    {
        "v": (("time", "x"), np.arange(1, 33.0).reshape(8, 4), {"units": "K"}),
        "packed": (("time", "x"), np.arange(1, 33).reshape(8, 4) / 4),
        "when": ("time", DAYS + np.timedelta64(1, "h")),
        "name": ("x", np.array(["a", "bb", "c", "d"], object)),
        "number": ((), 7),
    },
    {"time": DAYS, "x": np.arange(4)},
    {"title": "all"},
)
LATER = WHOLE.isel(time=slice(4, 8)).drop_vars(["name", "number"])
FIRST = WHOLE.isel(time=slice(0, 4))
ENCODING = {
    "v": {"chunks": (2, 4)},
    "packed": {"dtype": "i2", "scale_factor": 0.25, "_FillValue": -1, "chunks": (2, 4)},
    "when": {"chunks": (2,)},
}
DETECT = ConflictDetector()
CONFIG = RepositoryConfig(inline_chunk_threshold_bytes=0)


@pytest.fixture(autouse=True)
def _sync() -> Any:
    with dask.config.set(scheduler="sync"):
        yield


def read(repository: Repository, group: str | None = None) -> xr.Dataset:
    store = repository.readonly_session("main").store
    return xr.open_zarr(store, group=group, consolidated=False, chunks=None).load()


# -- killed anywhere -------------------------------------------------------------------------


def new(repository: Repository, dataset: xr.Dataset) -> None:
    to_icechunk(dataset, repository, encoding=ENCODING, job="j", commit_every=2, progress=False)


def again(repository: Repository, dataset: xr.Dataset) -> None:
    to_icechunk(
        dataset, repository, mode="w", encoding=ENCODING, job="j", commit_every=2, progress=False
    )


def append(repository: Repository, dataset: xr.Dataset) -> None:
    to_icechunk(
        dataset, repository, append_dim="time", job="j", commit_every="100B", progress=False
    )


def region(repository: Repository, dataset: xr.Dataset) -> None:
    to_icechunk(dataset, repository, region="auto", job="j", commit_every=1, progress=False)


#: What is there before, what is written, how, and what is there then.
COURSES: dict[str, tuple[xr.Dataset | None, xr.Dataset, Callable[..., None], xr.Dataset]] = {
    "new": (None, WHOLE, new, WHOLE),
    "again": (WHOLE, WHOLE.isel(x=slice(0, 3)), again, WHOLE.isel(x=slice(0, 3))),
    "append": (FIRST, LATER, append, WHOLE),
    "region": (
        WHOLE,
        LATER[["v", "packed"]] * 2,
        region,
        WHOLE.assign({n: xr.concat([FIRST[n], LATER[n] * 2], "time") for n in ("v", "packed")}),
    ),
}


def chunks_of(key: str) -> int:
    """Return how many chunks a block has, from what the job knows it by."""
    name = key.split("/")[1].split("'")[0]
    sizes = ENCODING.get(name, {}).get("chunks", (100, 100))
    cuts = [tuple(map(int, cut)) for cut in re.findall(r"(\d+):(\d+)", key)]
    assert isinstance(sizes, tuple)
    pairs = zip(cuts, sizes, strict=False)
    return math.prod(math.ceil((stop - start) / size) for (start, stop), size in pairs)


# threads of a process that is gone, which go on here
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kind", ["dask", "numpy"])
@pytest.mark.parametrize("course", COURSES)
def test_a_process_dies_at_any_request(course: str, kind: str) -> None:
    before, given_, write, after = COURSES[course]
    dataset = given_.chunk(time=2) if kind == "dask" else given_
    # other requests for each kind
    numbers = random.Random(course + kind)
    nth = 1
    while True:
        storage = MemoryStorage()
        repository = Repository.create(storage, CONFIG)
        if before is not None:
            to_icechunk(before, repository, encoding=ENCODING)
        dying = Dying(storage, nth)
        try:
            write(Repository.open(dying), dataset)
        except (Killed, TaskError):
            assert dying.dead
        else:
            assert dying.dead is False
        done: set[str] = set()
        if "j" in repository.jobs:
            done = repository.jobs.open("j").done()
        counting = Dying(storage)
        write(Repository.open(counting), dataset)
        xr.testing.assert_identical(read(repository), after)
        job = repository.jobs.open("j")
        if '"arrays"' in done:
            # the chunks of what was not done, and not one more; small ones may share an object
            left = job.committed() - done
            assert len(left) <= counting.chunks <= sum(map(chunks_of, left))
        once = Dying(storage)
        write(Repository.open(once), dataset)
        assert once.chunks == 0
        commits = [u for u in repository.ops_log() if isinstance(u.kind, UpdateType.NewCommit)]
        assert len(commits) == len(job.status().commits) + (before is not None)
        if not dying.dead:
            break
        nth += numbers.randint(6, 16)


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    repository = Repository.create(LocalStorage(tmp_path))
    seen: list[int] = []

    def interrupt(block: Any, block_info: Any = None) -> Any:
        seen.append(block_info[0]["chunk-location"][0])
        if seen == [0, 1, 2]:
            raise KeyboardInterrupt
        return block

    dataset = WHOLE[["v"]].chunk(time=2)
    source = dataset.assign(v=dataset.v.copy(data=dataset.v.data.map_blocks(interrupt, dtype="f8")))
    how: dict[str, Any] = {"job": "days", "commit_every": 1, "progress": False}
    with pytest.raises(KeyboardInterrupt) as stopped:
        to_icechunk(source, repository, **how)
    assert stopped.value.__notes__ == [
        "2 of 4 are committed by the job 'days'; the same call goes on with the rest"
    ]
    to_icechunk(source, repository, **how)
    assert seen == [0, 1, 2, 2, 3]
    assert read(repository).v.identical(WHOLE[["v"]].v)


SCRIPT = """
import os, signal, sys
import numpy as np
import xarray as xr
from icechunk_xarray import to_icechunk

def block(values, block_info=None):
    with open(sys.argv[2], "a") as log:
        log.write(f"{block_info[0]['chunk-location'][0]}\\n")
    if block_info[0]["chunk-location"][0] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return values

if __name__ == "__main__":
    ds = xr.Dataset({"v": ("t", np.arange(1.0, 13.0))}, {"t": np.arange(12)}).chunk(t=2)
    ds = ds.assign(v=("t", ds.v.data.map_blocks(block, dtype="f8")))
    how = {"scheduler": "threads", "num_workers": 1}
    to_icechunk(ds, sys.argv[1], job="j", commit_every=1, chunkmanager_store_kwargs=how)
"""


def test_a_process_is_killed(tmp_path: Path) -> None:
    log, script = tmp_path / "log", tmp_path / "script.py"
    script.write_text(SCRIPT)
    for victim, ends in (("3", -signal.SIGKILL), ("-1", 0)):
        command = [sys.executable, str(script), str(tmp_path / "repository"), str(log), victim]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        assert subprocess.run(command, env=environment, check=False).returncode == ends
    found = read(Repository.open(tmp_path / "repository"))
    assert found.v.values.tolist() == list(range(1, 13))
    ran = [int(line) for line in log.read_text().split()]
    # the one that was killed, and one that was done and perhaps not committed yet
    assert set(ran) == set(range(6))
    assert all(ran.count(block) == 1 for block in (0, 1, 4, 5))
    assert ran.count(3) == 2


# -- the same call ---------------------------------------------------------------------------
LAZY = WHOLE.chunk(time=2)


@pytest.mark.parametrize(
    ("words", "other", "how"),
    [
        ("the shape of '/packed'", LAZY.isel(time=slice(0, 6)), {}),
        ("the values of '/x'", LAZY.assign_coords(x=[0, 1, 2, 9]), {}),
        ("the dtype of '/v'", LAZY.assign(v=LAZY.v.astype("f4")), {}),
        ("the attributes of '/v'", LAZY.assign(v=LAZY.v.assign_attrs(units="C")), {}),
        ("the attributes of '/'", LAZY.assign_attrs(title="none"), {}),
        ("the dimensions of '/v'", LAZY.assign(v=LAZY.v.T), {}),
        ("the Dask chunks of '/v'", LAZY.assign(v=LAZY.v.chunk(time=4)), {}),
        ("the dimensions of '/v'", LAZY.drop_vars("v"), {}),
        ("the encoding of '/'", LAZY, {"encoding": {**ENCODING, "v": {"chunks": (4, 4)}}}),
        ("the mode", LAZY, {"mode": "a"}),
        ("the groups", LAZY, {"group": "g"}),
        ("the branch", LAZY, {"branch": "side"}),
    ],
)
def test_another_input_is_refused(words: str, other: xr.Dataset, how: dict[str, Any]) -> None:
    repository = Repository.create(MemoryStorage())
    how = {"encoding": ENCODING, "job": "j", "progress": False, **how}
    tip = to_icechunk(LAZY, repository, encoding=ENCODING, job="j", progress=False)
    repository.create_branch("side", tip)
    with pytest.raises(InvalidInputError, match="began with other input: .*" + words):
        to_icechunk(other, repository, **how)
    assert repository.lookup_branch("main") == tip


def test_numpy_values_are_compared() -> None:
    repository = Repository.create(MemoryStorage())
    tip = to_icechunk(WHOLE, repository, job="j")
    assert to_icechunk(WHOLE, repository, job="j") == tip
    with pytest.raises(InvalidInputError, match="the values of '/v'"):
        to_icechunk(WHOLE.assign(v=WHOLE.v + 1), repository, job="j")


def test_a_file_is_read_in_blocks(tmp_path: Path) -> None:
    """What xarray reads lazily, without Dask."""
    WHOLE.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    repository = Repository.create(MemoryStorage())
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as opened:
        to_icechunk(opened, repository, job="j", encoding=ENCODING)
        xr.testing.assert_equal(read(repository), WHOLE)


def test_trees() -> None:
    tree = xr.DataTree.from_dict({"/": WHOLE[["number"]].drop_vars(["time", "x"], errors="ignore"),
                                  "/a": LAZY[["v"]], "/a/b": WHOLE[["packed"]]})  # fmt: skip
    repository = Repository.create(MemoryStorage())
    tips = {to_icechunk(tree, repository, job="j", commit_every=1, progress=False) for _ in "ab"}
    assert len(tips) == 1
    found = xr.open_datatree(
        repository.readonly_session("main").store,
        engine="zarr",
        consolidated=False,  # type: ignore[arg-type]
    )
    xr.testing.assert_identical(found.load(), tree.load())


def test_values_that_cannot_be_stored_are_refused() -> None:
    repository = Repository.create(MemoryStorage())
    large = LAZY.assign(packed=LAZY.packed * 10_000)
    with pytest.raises(InvalidInputError, match="packed") as refused:
        to_icechunk(large, repository, encoding=ENCODING, job="j", progress=False)
    assert any("the same call goes on" in note for note in refused.value.__notes__)


@pytest.mark.parametrize("lazy", [True, False])
def test_existing_arrays_hold_values_exactly(lazy: bool) -> None:
    """As without a job; arrays that the job makes take what was asked for."""
    repository = Repository.create(MemoryStorage())
    to_icechunk(xr.Dataset({"n": ("x", np.arange(4, dtype="i4"))}), repository)
    given_ = xr.Dataset({"n": ("x", np.arange(4) + 0.5), "new": ("x", np.arange(4) / 3)})
    dataset = given_.chunk(x=2) if lazy else given_
    how: dict[str, Any] = {"mode": "a", "encoding": {"new": {"dtype": "f4"}}, "progress": False}
    for job in (None, "j"):
        with pytest.raises(InvalidInputError, match="'n'"):
            to_icechunk(dataset, repository, job=job, **how)
    to_icechunk(dataset.drop_vars("n"), repository, job="k", **how)
    assert read(repository).new.dtype == np.float32


def test_others_commit_meanwhile() -> None:
    repository = Repository.create(MemoryStorage(), CONFIG)
    to_icechunk(FIRST, repository, encoding=ENCODING)
    seen: list[int] = []

    def theirs(block: Any) -> Any:
        seen.append(1)
        if len(seen) == 3:
            with repository.transaction("main", message="theirs", rebase_with=DETECT) as store:
                to_icechunk(WHOLE[["v"]], store, group="theirs")
        return block

    source = LATER.chunk(time=2)
    source["v"] = source.v.copy(data=source.v.data.map_blocks(theirs, dtype="f8"))
    to_icechunk(source, repository, append_dim="time", job="j", commit_every=1, progress=False)
    xr.testing.assert_identical(read(repository), WHOLE)
    xr.testing.assert_identical(read(repository, "theirs"), WHOLE[["v"]])


def test_others_append_before_the_job_has_begun() -> None:
    repository = Repository.create(MemoryStorage(), CONFIG)
    to_icechunk(FIRST, repository)
    dying = Dying(repository.storage, 2)
    with pytest.raises((Killed, TaskError)):
        append(Repository.open(dying), LATER)
    to_icechunk(LATER, repository, append_dim="time")
    with pytest.raises(SessionStateError, match="others have changed the length of 'time'"):
        append(repository, LATER)
    xr.testing.assert_identical(read(repository), WHOLE)


@pytest.mark.parametrize(
    "how", [{"commit_every": 1}, {"job": "j", "compute": False}], ids=["no job", "lazy"]
)
def test_arguments_that_do_not_go_together(how: dict[str, Any]) -> None:
    repository = Repository.create(MemoryStorage())
    with pytest.raises(InvalidInputError, match=r"job=|compute=False"):
        to_icechunk(LAZY, repository, **how)
    with pytest.raises(InvalidInputError, match="job cannot be given with a session"):
        to_icechunk(LAZY, repository.writable_session("main"), job="j")


# -- templates and regions -------------------------------------------------------------------
def computed(block: Any) -> Any:
    raise AssertionError("a template computes nothing")


@pytest.mark.parametrize("to", ["repository", "session", "path"])
def test_a_template_has_all_but_data(to: str, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "repository")
    lazy = LAZY.drop_vars("name")
    for name in ("v", "packed"):
        lazy[name] = lazy[name].copy(data=lazy[name].data.map_blocks(computed, dtype="f8"))
    how: dict[str, Any] = {
        "encoding": {"packed": ENCODING["packed"]},
        "chunks": {"time": 3, "x": -1},
    }
    if to == "session":
        session = Repository.create(storage, CONFIG).writable_session("main")
        assert initialize(lazy, session, **how) is None
        session.commit("template")
    else:
        target: Any = tmp_path / "repository" if to == "path" else Repository.create(storage)
        assert initialize(lazy, target, **how) is not None
    repository = Repository.open(storage)
    session = repository.readonly_session("main")
    found = read(repository)
    assert found.attrs == WHOLE.attrs
    assert found.v.attrs == WHOLE.v.attrs
    xr.testing.assert_identical(found.coords.to_dataset(), WHOLE.coords.to_dataset())
    assert found.sizes == WHOLE.sizes
    for name in ("v", "packed", "when", "number"):
        assert not session.written_chunks(name).any(), name
    chunks = {n: a.chunks for n, a in zarr.open_group(session.store, mode="r").arrays()}
    assert (chunks["v"], chunks["packed"], chunks["when"]) == ((3, 4), (2, 4), (3,))
    for part in plan_regions(repository, 100, variables=["v", "packed"]):
        to_icechunk(WHOLE[["v", "packed"]].isel(part), repository, region=part)
    xr.testing.assert_identical(read(repository)[["v", "packed"]], WHOLE[["v", "packed"]])


@pytest.mark.parametrize("chunks", [{"z": 1}, {"time": 0}, {"time": -2}, {"time": 1.5}])
def test_wrong_chunks(chunks: Mapping[Any, Any]) -> None:
    with pytest.raises(InvalidInputError, match="chunks "):
        initialize(WHOLE, Repository.create(MemoryStorage()), chunks=chunks)


def planned(
    shape: tuple[int, ...], arrays: Mapping[str, tuple[tuple[int, ...], tuple[int, ...] | None]]
) -> Repository:
    repository = Repository.create(MemoryStorage())
    with repository.transaction("main", message="arrays") as store:
        for name, (chunks, shards) in arrays.items():
            zarr.create_array(
                store,
                name=name,
                shape=shape,
                chunks=chunks,
                shards=shards,
                dtype="f8",
                dimension_names=[f"d{axis}" for axis in range(len(shape))],
            )
    return repository


@st.composite
def layouts(draw: st.DrawFn) -> Any:
    shape = draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))
    arrays = {}
    for name in draw(st.sampled_from(["a", "ab"])):
        chunks = tuple(draw(st.integers(1, size)) for size in shape)
        shards = None
        if draw(st.booleans()):
            shards = tuple(chunk * draw(st.integers(1, 3)) for chunk in chunks)
        arrays[name] = chunks, shards
    return tuple(shape), arrays


@settings(max_examples=40, deadline=None)
@given(layouts(), st.integers(1, 2000))
def test_regions_cover_all_and_share_nothing(layout: Any, nbytes: int) -> None:
    shape, arrays = layout
    regions = plan_regions(planned(shape, arrays), nbytes)
    seen = np.zeros(shape, int)
    for part in regions:
        cuts = tuple(part.get(f"d{axis}", slice(None)) for axis in range(len(shape)))
        seen[cuts] += 1
    assert (seen == 1).all()
    for name, (chunks, shards) in arrays.items():
        unit = shards or chunks
        for part, axis in itertools.product(regions, range(len(shape))):
            cut = part[f"d{axis}"]
            assert cut.start % unit[axis] == 0, name
            assert cut.stop % unit[axis] == 0 or cut.stop == shape[axis]
    for part in regions:
        size = 8 * len(arrays) * math.prod(cut.stop - cut.start for cut in part.values())
        cells = [
            math.prod(
                math.ceil((part[f"d{axis}"].stop - part[f"d{axis}"].start) / unit[axis])
                for axis in range(len(shape))
            )
            for unit in (shards or chunks for chunks, shards in arrays.values())
        ]
        # too large only where nothing smaller is aligned
        assert size <= nbytes or len(arrays) > 1 or cells == [1]


def test_regions_of_variables_without_a_common_dimension() -> None:
    repository = Repository.create(MemoryStorage())
    initialize(WHOLE, repository)
    with pytest.raises(InvalidInputError, match=r"no dimension in common: .*variables=\[\.\.\.\]"):
        plan_regions(repository)
    assert plan_regions(repository, variables=["when"]) == [{"time": slice(0, 8)}]
    with pytest.raises(NodeNotFoundError, match="no variable 'none'"):
        plan_regions(repository, variables=["none"])
    with pytest.raises(NodeNotFoundError, match="no group '/g'; make it with"):
        plan_regions(repository, group="g")
    for wrong in (0, "much", "5 XB", True):
        with pytest.raises(InvalidInputError, match="nbytes is"):
            plan_regions(repository, wrong)


def test_conflict_of_two_regions_is_found() -> None:
    """The regions of a plan are disjoint; others are not."""
    repository = Repository.create(MemoryStorage())
    initialize(WHOLE[["v"]], repository, chunks={"time": 2})
    sessions = [repository.writable_session("main") for _ in range(2)]
    part = {"time": slice(0, 2)}
    for session in sessions:
        to_icechunk(WHOLE[["v"]].isel(part), session, region=part)
    sessions[0].commit("one")
    with pytest.raises(ConflictError):
        sessions[1].commit("two")


def test_uneven_chunks() -> None:
    """Where Zarr has them."""
    rectilinear = [[2, 3, 3], [4]]
    repository = Repository.create(MemoryStorage(), CONFIG)
    with repository.transaction("main", message="arrays") as store:
        try:
            with zarr.config.set({"array.rectilinear_chunks": True}):
                zarr.create_array(
                    store, name="v", shape=(8, 4), chunks=rectilinear, dtype="f8",
                    dimension_names=["time", "x"],
                )  # fmt: skip
        except (TypeError, ValueError, KeyError):
            pytest.skip("this Zarr has no rectilinear grids")
    with zarr.config.set({"array.rectilinear_chunks": True}):
        cuts = [part["time"] for part in plan_regions(repository, 100)]
        assert cuts == [slice(0, 2), slice(2, 5), slice(5, 8)]
        assert da.ones(1).compute() == 1


@pytest.mark.parametrize("how", [{"mode": "a"}, {}], ids=str)
def test_a_region_within_chunks(how: dict[str, Any]) -> None:
    """As without a job: values in memory share no chunk with another task."""
    whole = xr.Dataset({"v": ("t", np.arange(8.0))}, {"t": np.arange(8)})
    repository = Repository.create(MemoryStorage())
    to_icechunk(whole, repository, encoding={"v": {"chunks": (3,)}})
    part = (whole * 10).isel(t=slice(1, 7))
    to_icechunk(part, repository, region="auto", job="part", **how)
    assert read(repository)["v"].values.tolist() == [0, 10, 20, 30, 40, 50, 60, 7]


@pytest.mark.parametrize("adds", [{"append_dim": "t"}, {"region": {"t": slice(2, 2)}}], ids=str)
def test_nothing_to_write(adds: dict[str, Any]) -> None:
    whole = xr.Dataset({"v": ("t", np.arange(4.0))}, {"t": np.arange(4)})
    repository = Repository.create(MemoryStorage())
    tip = to_icechunk(whole, repository)
    assert to_icechunk(whole.isel(t=slice(2, 2)), repository, job="none", **adds) == tip


def test_what_is_refused_leaves_no_arrays() -> None:
    """And what is corrected is no other input of the same job."""
    texts = da.from_array(np.array([1, 2, 3, 4], object), chunks=2)
    repository = Repository.create(MemoryStorage())
    tip = repository.lookup_branch("main")
    with pytest.raises(InvalidInputError, match="two Dask blocks meet"):
        to_icechunk(xr.Dataset({"v": ("x", texts)}), repository, job="texts")
    assert repository.lookup_branch("main") == tip
    corrected = xr.Dataset({"v": ("x", texts.astype("i8"))})
    to_icechunk(corrected, repository, job="texts")
    assert read(repository)["v"].values.tolist() == [1, 2, 3, 4]
