"""Dask variables of `to_icechunk`: in processes, on a cluster, later; and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import icechunk
from icechunk import ConflictError, InvalidInputError, Repository, Session, TaskError
from icechunk_dask import Status
from icechunk_xarray import to_icechunk
from tests.dask_writes.clusters import shared

TIMES = np.arange("2000-01-01", "2000-01-09", dtype="M8[D]").astype("M8[ns]")
WHOLE = xr.Dataset(
    {
        "a": (("time", "x"), np.arange(48.0).reshape(8, 6)),
        "packed": (("time", "x"), np.arange(48).reshape(8, 6) / 4),
        "number": ("x", np.arange(6)),
    },
    {"time": TIMES},
)
PACKED = {"dtype": "i2", "scale_factor": 0.25, "_FillValue": -1, "chunks": (2, 3)}


@pytest.fixture(scope="module", params=["processes", "cluster"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """Tasks run in other processes by default."""
    with shared(request.param):
        yield request.param


def create(folder: Path) -> Repository:
    return Repository.create(str(folder / "repository"))


def read(source: Repository | Session, group: str | None = None) -> xr.Dataset:
    session = source.readonly_session("main") if isinstance(source, Repository) else source
    return xr.open_zarr(session.store, group=group, consolidated=False, chunks=None).load()


def lazy(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.chunk(time=2, x=3)


def pid(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.full(block.shape, os.getpid())


def broken(block: np.ndarray[Any, Any], block_info: Any = None) -> np.ndarray[Any, Any]:
    if block_info[0]["chunk-location"] == (1, 1):
        raise RuntimeError("the disk of the cluster is full")
    return block


def failing() -> xr.Dataset:
    data = da.map_blocks(broken, lazy(WHOLE)["a"].data, dtype="f8", meta=np.zeros((0, 0)))
    return WHOLE.assign(a=(("time", "x"), data))


# -- processes and clusters -------------------------------------------------------------------
def test_sessions_and_repositories(elsewhere: str, tmp_path: Path) -> None:
    session = create(tmp_path).writable_session("main")
    first, rest = WHOLE.isel(time=slice(4)), WHOLE.isel(time=slice(4, None))
    to_icechunk(lazy(first), session, encoding={"packed": PACKED})
    # tasks see what the session has not committed
    to_icechunk(lazy(rest).drop_vars("number"), session, append_dim="time")
    to_icechunk(lazy(first)[["a"]] * 2, session, region="auto")
    session.commit("written elsewhere")
    repo = Repository.open(str(tmp_path / "repository"))
    got = read(repo)
    factor = np.where(np.arange(8) < 4, 2.0, 1.0)[:, None]
    xr.testing.assert_equal(got, WHOLE.assign(a=WHOLE["a"] * factor))
    assert got["packed"].encoding["dtype"] == np.dtype("i2")

    # later
    session = repo.writable_session("main")
    waiting = to_icechunk(lazy(WHOLE) * 2, session, group="later", compute=False)
    assert np.isnan(read(session, "later")["a"]).all()
    assert waiting.compute() is None
    xr.testing.assert_equal(read(session, "later"), WHOLE * 2)

    # with a commit; from the version before, over itself
    url = f"file://{tmp_path}/repository"
    opened = xr.open_dataset(url, engine="icechunk", chunks={"time": 2, "x": 3})
    opened["pid"] = (("time", "x"), da.map_blocks(pid, opened["a"].data, dtype=np.int64))
    tree = xr.DataTree.from_dict({"/": opened, "/deep": lazy(WHOLE)})
    snapshot = to_icechunk(tree, url, mode="w", write_inherited_coords=True)
    assert repo.lookup_branch("main") == snapshot
    again = read(repo)
    xr.testing.assert_equal(again.drop_vars("pid"), got)
    assert os.getpid() not in again["pid"]
    xr.testing.assert_equal(read(repo, "deep"), WHOLE)


def test_failures_elsewhere_change_nothing(elsewhere: str, tmp_path: Path) -> None:
    repo = create(tmp_path)
    session = repo.writable_session("main")
    to_icechunk(lazy(WHOLE), session, encoding={"packed": PACKED})
    before = session.change_set_bytes()
    where = r"region \[2:4, 3:6\] of array '/a' failed: RuntimeError: the disk"
    for target in (session, repo):
        with pytest.raises(TaskError, match=where) as caught:
            to_icechunk(failing(), target, mode="w")
        assert isinstance(caught.value.__cause__, RuntimeError)
    # a value that does not fit says so itself
    odd = lazy(WHOLE)[["packed"]] + 0.3
    message = "variable 'packed': the value .* would be read back as"
    with pytest.raises(InvalidInputError, match=message) as refused:
        to_icechunk(odd * 1e6, session, region="auto")
    assert "of array '/packed'" in str(refused.value.__cause__)
    with pytest.raises(InvalidInputError, match="memory of this process"):
        to_icechunk(lazy(WHOLE), icechunk.in_memory_storage())
    waiting = to_icechunk(lazy(failing())[["a"]], session, region="auto", compute=False)
    with pytest.raises(TaskError, match=where):
        waiting.compute()
    assert session.change_set_bytes() == before
    assert len(list(repo.ancestry(branch="main"))) == 1


# -- options ----------------------------------------------------------------------------------
def test_options_reach_the_tasks(tmp_path: Path) -> None:
    session = create(tmp_path).writable_session("main")
    told: list[Status] = []
    ran: set[threading.Thread] = set()

    def note(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        ran.add(threading.current_thread())
        return block

    here = {"scheduler": "synchronous"}
    options: dict[str, Any] = {"progress": told.append, "chunkmanager_store_kwargs": here}
    noting = da.map_blocks(note, lazy(WHOLE)["a"].data, dtype="f8", meta=np.zeros((0, 0)))
    to_icechunk(xr.Dataset({"a": (("time", "x"), noting)}), session, **options)
    assert ran == {threading.main_thread()}
    assert (told[-1].phase, told[-1].tasks) == ("done", 8)
    merged = told[-1].merged
    to_icechunk(lazy(WHOLE)[["a"]], session, mode="w", split_every=2, **options)
    # before the last merge there are 8 and 4 parts to merge in pairs
    assert told[-1].merged == merged + 8 + 4
    # all variables in one run
    told.clear()
    to_icechunk(lazy(WHOLE), session, mode="w", **options)
    assert {status.total for status in told} == {8 + 8 + 2}


def test_options_that_are_refused(tmp_path: Path) -> None:
    session = create(tmp_path).writable_session("main")
    data = lazy(WHOLE)
    before = session.change_set_bytes()
    for name in ("compute", "regions", "resume", "repository", "progress"):
        with pytest.raises(InvalidInputError, match=name):
            to_icechunk(data, session, chunkmanager_store_kwargs={name: None})
    with pytest.raises(TypeError, match="'lokc'"):
        to_icechunk(data, session, chunkmanager_store_kwargs={"lokc": True})
    with pytest.raises(InvalidInputError, match=r"pass scheduler to compute\(\)"):
        options = {"scheduler": "threads"}
        to_icechunk(data, session, compute=False, chunkmanager_store_kwargs=options)
    with pytest.raises(InvalidInputError, match="split_every"):
        to_icechunk(data, session, split_every=1)
    assert session.change_set_bytes() == before


def test_blocks_of_one_chunk_are_refused_whoever_swears(tmp_path: Path) -> None:
    """Tasks write to forks of their own, so that one of two parts of a chunk would be lost."""
    session = create(tmp_path).writable_session("main")
    to_icechunk(WHOLE, session, encoding={"a": {"chunks": (4, 6)}})
    before = session.change_set_bytes()
    part = WHOLE[["a"]].isel(time=slice(2, 6)).chunk(time=1) * 2
    with pytest.raises(InvalidInputError, match=r"'a', dimension 'time'.*align_chunks=True"):
        to_icechunk(part, session, region="auto", safe_chunks=False)
    with pytest.raises(InvalidInputError, match=r"'a', dimension 'time'.*whole stored chunks"):
        to_icechunk(part.chunk(time=(2, 2)), session, region="auto")
    assert session.change_set_bytes() == before
    to_icechunk(part.chunk(time=(2, 2)), session, region="auto", safe_chunks=False)
    np.testing.assert_array_equal(read(session)["a"][2:6], WHOLE["a"][2:6] * 2)
    shifted = WHOLE[["a"]].isel(time=slice(1, 7)).chunk(time=1)
    to_icechunk(shifted, session, region="auto", mode="a", align_chunks=True)
    xr.testing.assert_equal(read(session), WHOLE)


# -- later ------------------------------------------------------------------------------------
KINDS = {
    "times": TIMES[:4],
    "durations": TIMES[:4] - TIMES[0],
    "objects": np.array(list("abcd"), object),
    "numbers": np.arange(4.0),
    "nothing": np.zeros(0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(3, 3), (1, 1), (3, 1)])
@pytest.mark.parametrize("how", [{}, {"append_dim": "x"}, {"region": {"x": slice(0, 4)}}], ids=str)
def test_blocks_of_another_shape_than_declared(
    kind: str, sizes: tuple[int, int], how: dict[str, Any], tmp_path: Path
) -> None:
    """Also where they are loaded first, and would be joined to an array of another length."""
    stored = KINDS[kind]
    session = create(tmp_path).writable_session("main")
    if how:
        chunks = {"v": {"chunks": (2,)}}
        to_icechunk(xr.Dataset({"v": ("x", np.resize(stored, 4))}), session, encoding=chunks)
    chunks = ((2, 2),) if stored.size else ((0, 0),)
    if not stored.size and how.get("region"):
        how = {"region": {"x": slice(0, 0)}}

    def made(block: Any, block_info: Any = None) -> Any:
        return np.resize(stored, 4)[: sizes[block_info[0]["chunk-location"][0]]]

    source = da.zeros(chunks=chunks, shape=(len(stored),)).map_blocks(
        made, dtype=stored.dtype, meta=np.empty(0, stored.dtype)
    )
    before = session.change_set_bytes()
    with pytest.raises((InvalidInputError, TaskError), match="the block has the shape"):
        to_icechunk(xr.Dataset({"v": ("x", source)}), session, **how)
    assert session.change_set_bytes() == before


def test_later_computations_together(tmp_path: Path) -> None:
    session = create(tmp_path).writable_session("main")
    one = to_icechunk(lazy(WHOLE), session, compute=False, encoding={"packed": PACKED})
    other = to_icechunk(lazy(WHOLE), session, group="g", compute=False)
    nothing = to_icechunk(xr.Dataset({"n": 1}), session, group="n", compute=False)
    assert dask.compute(one, other, nothing, scheduler="threads") == (None, None, None)
    xr.testing.assert_equal(read(session), WHOLE)


def test_a_later_failure_changes_nothing(tmp_path: Path) -> None:
    session = create(tmp_path).writable_session("main")
    waiting = to_icechunk(failing(), session, compute=False)
    before = session.change_set_bytes()
    with pytest.raises(TaskError, match=r"\[2:4, 3:6\] of array '/a'") as caught:
        waiting.compute(scheduler="threads")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert session.change_set_bytes() == before


def test_what_was_written_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    session = create(tmp_path).writable_session("main")
    to_icechunk(WHOLE, session)
    waiting = to_icechunk(lazy(WHOLE)[["a"]], session, mode="a", compute=False, align_chunks=True)
    to_icechunk(WHOLE[["a"]] * 3, session, mode="a")
    before = session.change_set_bytes()
    with pytest.raises(ConflictError, match="/a"):
        waiting.compute(scheduler="threads")
    assert session.change_set_bytes() == before


# -- what is installed ------------------------------------------------------------------------
def test_neither_distributed_nor_rich_is_needed(tmp_path: Path) -> None:
    script = """
import sys
sys.modules.update({"distributed": None, "rich": None})
import numpy as np, xarray as xr
from icechunk_xarray import to_icechunk
to_icechunk(xr.Dataset({"a": ("x", np.arange(6))}).chunk(x=2), sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "r")], check=True)
    got = xr.open_dataset(tmp_path / "r", engine="icechunk")
    assert got["a"].values.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = create(tmp_path).writable_session("main")
    monkeypatch.setitem(sys.modules, "icechunk_dask", None)
    to_icechunk(WHOLE, session)
    with pytest.raises(ImportError, match=r"pip install 'icechunk\[dask\]'"):
        to_icechunk(lazy(WHOLE), session, mode="w")
    xr.testing.assert_equal(read(session), WHOLE)
