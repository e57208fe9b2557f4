"""`ingest`: files by value equal what xarray reads, wherever it is killed and goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner

from icechunk import InvalidInputError, MemoryStorage, Repository, local_filesystem_storage
from icechunk.cli.app import main
from icechunk.repository.archive_tables import FIELD
from icechunk_dask import ingest
from icechunk_xarray import to_icechunk
from tests.killing import Dying, Killed

PACKED = {"dtype": "i2", "scale_factor": 0.25, "_FillValue": -9}
ENCODING: Any = {"p": PACKED, "t": {"zlib": True, "chunksizes": (5, 4, 5)}}


@pytest.fixture(autouse=True)
def _sync() -> Any:
    with dask.config.set(scheduler="sync"):
        yield


def write_month(
    folder: Path, month: int, area: float = 1, more: bool = False, **attrs: str
) -> Path:
    path = folder / f"{month:02}.nc"
    dataset = xr.Dataset(
        {
            "t": (
                ("time", "y", "x"),
                np.arange(200, dtype="f4").reshape(10, 4, 5) + month,
                {"units": "K", **attrs},
            ),
            "p": (("time", "x"), np.where(np.arange(50) % 7, np.arange(50) / 4, np.nan)
                  .reshape(10, 5)),
            "area": (("y", "x"), np.full((4, 5), float(area))),
            **({"more": ("time", np.ones(10))} if more else {}),
        },
        {"time": pd.date_range(f"2023-{month:02}-01", periods=10), "y": np.arange(4)},
        {"title": "months"},
    )  # fmt: skip
    dataset.to_netcdf(path, engine="h5netcdf", encoding=ENCODING)
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_month(tmp_path, month) for month in range(1, 5)]


def check(target: Any, files: list[Path], group: str | None = None) -> xr.Dataset:
    found = xr.open_dataset(target, engine="icechunk", group=group).load()
    opened = [xr.open_dataset(file, engine="h5netcdf").load() for file in files]
    kwargs: Any = {"data_vars": "minimal", "coords": "minimal", "compat": "override"}
    xr.testing.assert_identical(found, xr.concat(opened, "time", **kwargs))
    return found


def test_files_then_more_files(tmp_path: Path, files: list[Path]) -> None:
    target = tmp_path / "repo"
    first = ingest(files[:2], target, chunks={"time": 10}, message="Two")
    assert first.added == tuple(map(str, files[:2]))
    check(target, files[:2])
    second = ingest(str(tmp_path / "*.nc"), target, commit_every=1)
    assert (second.added, second.already) == (
        tuple(map(str, files[2:])), tuple(map(str, files[:2]))
    )  # fmt: skip
    assert second.sizes == {"time": 40, "y": 4, "x": 5}
    check(target, files)
    repository = Repository.open(local_filesystem_storage(str(target)))
    tip = repository.lookup_branch("main")
    third = ingest(files, target)
    assert (third.snapshot_id, third.added, len(third.already)) == (None, (), 4)
    assert repository.lookup_branch("main") == tip
    assert repository.jobs.list() == []
    assert repository.list_branches() == {"main"}
    arrays = dict(zarr.open_group(repository.readonly_session("main").store, mode="r").arrays())
    assert arrays["t"].chunks == (10, 4, 5)
    assert arrays["p"].dtype == np.int16
    # nothing refers to the files
    for file in files:
        file.rename(file.with_suffix(".gone"))
    repository.garbage_collect(pd.Timestamp.now(tz="UTC").to_pydatetime())
    assert xr.open_dataset(target, engine="icechunk").load().sizes["time"] == 40


@pytest.mark.parametrize(("engine", "before"), [(None, 2), ("h5netcdf", 0)])
def test_killed_anywhere(files: list[Path], before: int, engine: str | None) -> None:
    how: Any = {"engine": engine, "commit_every": 1, "verify": "none", "progress": False}
    nth = 1
    while True:
        storage = MemoryStorage()
        if before:
            ingest(files[:before], storage, **how)
        dying = Dying(storage, nth)
        try:
            ingest(files[:3], dying, **how)
        except Exception as error:
            assert dying.dead, error
        except Killed:
            pass
        # and with another list
        ingest(files, storage, **how)
        check(Repository.open(storage), files)
        repository = Repository.open(storage)
        assert repository.jobs.list() == []
        assert repository.list_branches() == {"main"}
        if not dying.dead:
            break
        nth += 29


def test_misspelt_arguments_begin_nothing(tmp_path: Path, files: list[Path]) -> None:
    """An empty repository would be in the way of `virtualize`, which makes its containers."""
    for urls, arguments, words in (
        ([tmp_path / "none.nc"], {}, "none of 1 file could be read:\n.*there is no such file"),
        (files, {"group": "a//b"}, "'a//b' is not the path of a group"),
        (files, {"on_mismatch": "skp"}, "on_mismatch is 'skp'"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            ingest(urls, tmp_path / "nothing", progress=False, **arguments)
        assert not (tmp_path / "nothing").exists()


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, files: list[Path]) -> None:
    storage = MemoryStorage()
    ingest(files[1:3], storage)
    tip = Repository.open(storage).lookup_branch("main")
    other = tmp_path / "other"
    other.mkdir()
    damaged = tmp_path / "damaged.nc"
    damaged.write_bytes(b"no file")
    for urls, words in (
        ([write_month(other, 5, units="C")], "variable 't' has the units 'C'"),
        ([write_month(other, 6, area=2)], r"'area' has other values .*drop_variables=\['area'\]"),
        ([write_month(other, 7, more=True)], r"no variable 'more': .*drop_variables=\['more'\]"),
        ([damaged], "none of 1 file could be read"),
        ([tmp_path / "none.nc"], "none of 1 file could be read"),
    ):
        for _ in range(2):
            with pytest.raises(InvalidInputError, match=words):
                ingest(urls, storage)
    # what the messages say
    for number, (month, name) in enumerate([(6, "area"), (7, "more")]):
        added = ingest([other / f"{month:02}.nc"], storage, drop_variables=[name], progress=False)
        assert added.sizes["time"] == 30 + number * 10
    tip = Repository.open(storage).lookup_branch("main")
    write_month(tmp_path, 2, units="C")
    with pytest.raises(InvalidInputError, match=r"1 file changed(.|\n)*02.nc"):
        ingest(files, storage)
    kept = ingest(files[1:3], storage, on_changed="keep")
    assert kept.changed == (str(files[1]),)
    with pytest.raises(InvalidInputError, match="on_changed is 'replace'"):
        ingest(files, storage, on_changed="replace")
    repository = Repository.open(storage)
    assert repository.lookup_branch("main") == tip
    assert (repository.jobs.list(), repository.list_branches()) == ([], {"main"})


@pytest.mark.parametrize("record", ["is there", "is lost"])
def test_values_that_something_else_has_written(files: list[Path], record: str) -> None:
    """The files that have them are named; without them the call goes on."""
    storage = MemoryStorage()
    how: Any = {"verify": "none", "progress": False}
    ingest(files[:2], storage, **how)
    repository = Repository.open(storage)
    written = [3]
    to_icechunk(xr.open_dataset(files[2], engine="h5netcdf"), repository, append_dim="time")
    if record == "is lost":
        written = [1, 2, 3]
        with repository.transaction("main", message="without the record") as store:
            session = store.session
            for node in list(session.tree.within("/")):
                document = json.loads(node.user_data)
                if document.pop(FIELD, None) is not None:
                    session.set_metadata_document(node.path, json.dumps(document).encode())
    tip = repository.lookup_branch("main")
    with pytest.raises(InvalidInputError) as caught:
        ingest(files, storage, **how)
    said = str(caught.value)
    assert [int(n) for n in re.findall(r"/(\d\d)\.nc$", said, re.MULTILINE)] == written
    assert "Leave them out" in said
    assert "safe_append" not in said
    assert repository.lookup_branch("main") == tip
    assert (repository.jobs.list(), repository.list_branches()) == ([], {"main"})
    # what the message says
    for _ in range(2):
        ingest(files[3:], storage, **how)
        check(repository, files)
    ingest(files, storage, group="other", **how)
    check(repository, files, "other")


def test_groups_and_branches(tmp_path: Path, files: list[Path]) -> None:
    repository = Repository.create(MemoryStorage())
    repository.create_branch("side", repository.lookup_branch("main"))
    ingest(files[:1], repository, group="a/b", branch="side", chunks={"x": -1, "time": 3})
    ingest(files[1:2], repository, group="a/b", branch="side")
    found = xr.open_dataset(repository, engine="icechunk", branch="side", group="a/b").load()
    assert found.sizes["time"] == 20
    assert "a" not in zarr.open_group(repository.readonly_session("main").store, mode="r") \
        if repository.readonly_session("main").tree.get("/a") else True  # fmt: skip


def test_command(tmp_path: Path, files: list[Path]) -> None:
    target = tmp_path / "repo"
    said = CliRunner().invoke(main, ["ingest", str(target), *map(str, files), "-c", "time=5"])
    assert said.exit_code == 0, said.output
    assert "4 added" in said.stdout
    check(target, files)
    wrong = CliRunner().invoke(main, ["ingest", str(target), str(files[0]), "-c", "time"])
    assert wrong.exit_code == 2
    assert "DIM=SIZE" in wrong.output
