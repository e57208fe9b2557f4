"""Groups of one file, and dimensions of one name that have lengths of their own."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from icechunk import InvalidInputError
from icechunk_dask import virtualize
from tests.archives.day_files import archived, content, together, write_days


@pytest.mark.parametrize("own", [1, 2, 3])
def test_a_dimension_of_a_group_has_a_length_of_its_own(own: int, tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i, group="inner/deep", own=own) for i in range(3)]
    for some in (files[:1], files[:2], files):
        report = virtualize(some, tmp_path / "repo", scheduler="sync")
        for group in (None, "inner/deep"):
            expected = together([content(path, group) for path in some])
            xr.testing.assert_identical(archived(tmp_path / "repo", report, group), expected)
    assert report.sizes["time"] == 12


def test_a_group_without_a_coordinate_follows_the_root(tmp_path: Path) -> None:
    # by URL the files would lie the other way round
    files = [write_days(tmp_path / name, first) for name, first in (("b.nc", 0), ("a.nc", 4))]
    for i, path in enumerate(files):
        with h5py.File(path, "a") as file:
            group = file.create_group("inner")
            # a dimension, and no coordinate: netCDF4 writes such a scale
            scale = group.create_dataset("time", shape=(2,), dtype=">f4")
            scale.make_scale("This is a netCDF dimension but not a netCDF variable         2")
            values = group.create_dataset("q", data=np.arange(2.0) + 10 * i, chunks=(2,))
            values.dims[0].attach_scale(scale)
    report = virtualize(files, tmp_path / "repo", scheduler="sync")
    ours = archived(tmp_path / "repo", report, "inner")
    assert ours["q"].values.tolist() == [0, 1, 10, 11]
    assert archived(tmp_path / "repo", report)["time"].size == 8


def test_one_group_that_overlaps_is_named(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i, group="own", own=2) for i in range(2)]
    with h5py.File(files[1], "a") as file:
        file["own/time"][...] -= 2
    with pytest.raises(InvalidInputError, match=r"1\.nc: its 'time' in the group 'own'.*overlaps"):
        virtualize(files, tmp_path / "repo", scheduler="sync")


@pytest.mark.parametrize("empty", [0, 1, 2])
@pytest.mark.parametrize("appended", [False, True])
def test_files_without_steps(empty: int, appended: bool, tmp_path: Path) -> None:
    days = [4, 4, 4]
    days[empty] = 0
    files = [write_days(tmp_path / f"{i}.nc", 4 * i, n) for i, n in enumerate(days)]
    if appended:
        for i in range(3):
            report = virtualize(files[: i + 1], tmp_path / "repo", scheduler="sync")
            assert report.added == (str(files[i]),)
    else:
        report = virtualize(files, tmp_path / "repo", scheduler="sync")
        assert len(report.added) == 3
    expected = together([content(path) for i, path in enumerate(files) if i != empty])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)
    again = virtualize(files, tmp_path / "repo", scheduler="sync")
    assert len(again.already) == 3 and again.snapshot_id is None


def test_nothing_but_files_without_steps(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i, 0) for i in range(2)]
    report = virtualize(files, tmp_path / "repo", scheduler="sync")
    assert archived(tmp_path / "repo", report).sizes["time"] == 0
    files.append(write_days(tmp_path / "2.nc", 8))
    report = virtualize(files, tmp_path / "repo", scheduler="sync")
    xr.testing.assert_identical(archived(tmp_path / "repo", report), content(files[2]))
