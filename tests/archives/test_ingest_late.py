"""Files that belong between or before those that were copied: they go where their labels say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from icechunk import MemoryStorage, Repository
from icechunk_dask import ingest
from tests.killing import Dying, Killed

QUIET: Any = {"progress": False, "verify": "none", "isolate": False}


@pytest.fixture(autouse=True)
def _sync() -> Any:
    with dask.config.set(scheduler="sync"):
        yield


def part(number: int, steps: int, falling: bool = False) -> xr.Dataset:
    times = pd.date_range("2000-01-01", periods=steps) + pd.Timedelta(days=4 * number)
    random = np.random.default_rng(number)
    dataset = xr.Dataset(
        {
            "v": (("time", "x"), random.random((steps, 3))),
            "w": (("x", "time"), random.random((3, steps))),
            "packed": ("time", np.arange(steps) / 4 + number),
            "text": ("time", np.array([f"{number}.{i}" for i in range(steps)], object)),
            "fixed": ("x", np.arange(3.0)),
        },
        {"time": times[::-1] if falling else times},
    )
    dataset["packed"].encoding.update(dtype="i2", scale_factor=0.25, _FillValue=-9)
    dataset["time"].encoding["units"] = "days since 2000-01-01"
    return dataset


def write(folder: Path, lengths: tuple[int, ...], falling: bool = False) -> list[Path]:
    files = []
    for number, steps in enumerate(lengths):
        files.append(folder / f"{number}.nc")
        part(number, steps, falling).to_netcdf(files[-1], engine="h5netcdf")
    return files


def found(storage: Any) -> xr.Dataset:
    repository: Any = Repository.open(storage)
    return xr.open_dataset(repository, engine="icechunk", chunks=None).load()


def check(storage: Any, lengths: tuple[int, ...], numbers: Any, falling: bool = False) -> None:
    parts = [part(number, lengths[number], falling) for number in numbers]
    whole = xr.concat(parts, "time", data_vars="minimal").sortby("time", ascending=not falling)
    xr.testing.assert_equal(found(storage), whole)
    repository = Repository.open(storage)
    assert repository.jobs.list() == []
    assert repository.list_branches() == {"main"}


#: Which files come first, and which then.
ORDERS: list[tuple[list[int], list[int]]] = [
    ([0, 2], [1]),
    ([1, 2], [0]),
    ([1, 3], [0, 2, 4]),
    ([4], [0]),
]


EVEN, UNEVEN = (4, 4, 4, 4, 4), (4, 3, 4, 1, 4)


@pytest.mark.parametrize(
    ("lengths", "engine", "falling"),
    [
        (EVEN, None, False),
        (UNEVEN, "h5netcdf", False),
        (UNEVEN, None, True),
        (EVEN, "h5netcdf", True),
    ],
)
def test_late_files(
    tmp_path: Path, lengths: tuple[int, ...], engine: str | None, falling: bool
) -> None:
    files = write(tmp_path, lengths, falling)
    for (first, then), size in zip(ORDERS, (4, 3, 100, 4), strict=True):
        storage = MemoryStorage()
        how: Any = {"engine": engine, **QUIET}
        ingest([files[i] for i in first], storage, chunks={"time": size}, **how)
        report = ingest([files[i] for i in then], storage, **how)
        assert set(report.added) == {str(files[i]) for i in then}
        check(storage, lengths, first + then, falling)
    # and all that is left
    report = ingest(files, storage, **how)
    assert len(report.already) == 2
    check(storage, lengths, range(5), falling)


def test_chunks_change_places_without_being_read(tmp_path: Path) -> None:
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.nc")
        # too large to lie within a manifest
        values = np.random.default_rng(number).random((4, 500))
        times = part(number, 4).time
        xr.Dataset({"v": (("time", "x"), values)}, {"time": times}).to_netcdf(
            files[-1], engine="h5netcdf"
        )
    storage = MemoryStorage()
    ingest([files[0], files[2]], storage, chunks={"time": 4, "x": 500}, **QUIET)
    before = objects_of(storage)
    ingest(files, storage, **QUIET)
    after = objects_of(storage)
    assert (len(before), len(after)) == (2, 3)
    assert [after[0], after[2]] == before


def objects_of(storage: Any) -> list[tuple[bytes, int]]:
    """Return which objects have the chunks of an array, in their order."""
    session = Repository.open(storage).readonly_session("main")
    refs = session.chunk_refs("/v")
    assert refs.chunk_id is not None
    return [(bytes(refs.chunk_id[i]), int(refs.offset[i])) for i in range(len(refs))]


def test_late_files_killed_anywhere(tmp_path: Path) -> None:
    lengths = (4, 3, 4, 1)
    files = write(tmp_path, lengths)
    nth = 1
    while True:
        storage = MemoryStorage()
        ingest([files[0], files[2]], storage, **QUIET)
        dying = Dying(storage, nth)
        try:
            ingest(files, dying, **QUIET)
        except Exception as error:
            assert dying.dead, error
        except Killed:
            pass
        # old or new, and nothing in between
        assert found(storage).sizes["time"] in (8, 12)
        ingest(files, storage, **QUIET)
        check(storage, lengths, range(4))
        if not dying.dead:
            break
        nth += 17
