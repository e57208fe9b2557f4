"""Files of other lengths: chunks without compression are cut and joined so that they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from icechunk import InvalidInputError
from icechunk_dask import virtualize
from tests.archives.day_files import archived, content, together, write_days

MONTHS = [31, 28, 31, 30]


def months(folder: Path, lengths: list[int], **options: Any) -> list[Path]:
    found, first = [], 0
    for i, days in enumerate(lengths):
        path = folder / f"{i}.nc"
        values = (first + np.arange(days * 3, dtype="f4")).reshape(days, 3)
        dataset = xr.Dataset(
            {"t": (("time", "lat"), values)},
            {"time": ("time", np.arange(first, first + days), {"units": "days since 2000-01-01"})},
        )
        dataset.to_netcdf(path, **options)
        found.append(path)
        first += days
    return found


def read(path: Path) -> xr.Dataset:
    with xr.open_dataset(path) as dataset:
        return dataset.load()


@pytest.mark.parametrize(
    ("lengths", "rows"), [(MONTHS, 1), ([30, 30, 12], 6), ([4, 6, 8], 2), ([28], 28)]
)
@pytest.mark.parametrize(
    "options", [{"engine": "h5netcdf"}, {"format": "NETCDF3_CLASSIC", "engine": "scipy"}]
)
def test_months(lengths: list[int], rows: int, options: dict[str, Any], tmp_path: Path) -> None:
    files = months(tmp_path, lengths, **options)
    report = virtualize(files, tmp_path / "repo", scheduler="sync")
    expected = together([read(path) for path in files])
    ours = archived(tmp_path / "repo", report)
    xr.testing.assert_identical(ours, expected)
    assert not report.variables["t"].bytes_by_value
    assert ours["t"].encoding["chunks"] == (rows, 3)


def test_more_months(tmp_path: Path) -> None:
    files = months(tmp_path, MONTHS, engine="h5netcdf")
    virtualize(files[:2], tmp_path / "repo", scheduler="sync")
    report = virtualize(files, tmp_path / "repo", scheduler="sync")
    expected = together([read(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)
    # one may come late, too
    virtualize([files[0], files[1], files[3]], tmp_path / "late", scheduler="sync")
    report = virtualize(files, tmp_path / "late", scheduler="sync")
    xr.testing.assert_identical(archived(tmp_path / "late", report), expected)


def test_chunks_that_are_compressed_are_not_cut(tmp_path: Path) -> None:
    files = [
        write_days(tmp_path / f"{i}.nc", 4 * i, days, options={"chunks": (days, 3)})
        for i, days in enumerate((4, 3))
    ]
    with pytest.raises(InvalidInputError, match=r"1\.nc: t: its chunk_grid"):
        virtualize(files, tmp_path / "repo", scheduler="sync", chunk_grid="regular")


def test_chunks_that_end_beyond_the_file(tmp_path: Path) -> None:
    """What they have there does not get in the way of the next file."""
    options = {"chunks": (4, 3), "compression": None, "shuffle": None}
    files = [
        write_days(tmp_path / f"{i}.nc", 8 * i, days, options=options)
        for i, days in enumerate((6, 2, 7))
    ]
    report = virtualize(files, tmp_path / "repo", scheduler="sync")
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


def write_rows(path: Path, first: int, days: int, rows: int, **changes: Any) -> Path:
    """A file whose chunks have no compression."""
    options = {"chunks": (rows, 3), "compression": None, "shuffle": None, **changes}
    return write_days(path, first, days, options=options)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 12, 24])
@pytest.mark.parametrize("there", [4, 12])
def test_chunks_are_joined_and_cut(there: int, rows: int, tmp_path: Path) -> None:
    """Those of the archive stay as they are."""
    files = [
        write_rows(tmp_path / "a.nc", 0, 12, there),
        write_rows(tmp_path / "b.nc", 12, 24, rows),
    ]
    repo = tmp_path / "repo"
    virtualize(files[:1], repo, scheduler="sync")
    report = virtualize(files, repo, scheduler="sync")
    ours = archived(repo, report)
    xr.testing.assert_identical(ours, together([content(path) for path in files]))
    assert ours["t"].encoding["chunks"] == (there, 3)
    assert report.variables["t"].virtual == 24 // there
    assert not report.variables["t"].bytes_by_value


def _shuffled(path: Path) -> None:
    """Write the chunks of a file in another order."""
    with h5py.File(path, "r+") as file:
        t = file["t"]
        values = t[...]
        shape, chunks, maxshape = t.shape, t.chunks, t.maxshape
        del file["t"]
        new = file.create_dataset("t", shape, "f4", chunks=chunks, maxshape=maxshape)
        for row in reversed(range(0, len(values), 2)):
            new[row : row + 2] = values[row : row + 2]
            file.flush()
        for i, name in enumerate(("time", "lat")):
            new.dims[i].attach_scale(file[name])


def _holed(path: Path) -> None:
    """Leave a chunk of a file unwritten."""
    with h5py.File(path, "r+") as file:
        values, chunks, maxshape = file["t"][...], file["t"].chunks, file["t"].maxshape
        del file["t"]
        new = file.create_dataset("t", values.shape, "f4", chunks=chunks, maxshape=maxshape)
        new[: chunks[0]] = values[: chunks[0]]
        for i, name in enumerate(("time", "lat")):
            new.dims[i].attach_scale(file[name])


def _short(path: Path) -> None:
    write_rows(path, 12, 10, 2)


@pytest.mark.parametrize("change", [_shuffled, _holed, _short])
def test_chunks_that_cannot_be_joined(change: Any, tmp_path: Path) -> None:
    files = [write_rows(tmp_path / "a.nc", 0, 12, 4), write_rows(tmp_path / "b.nc", 12, 12, 2)]
    change(files[1])
    repo = tmp_path / "repo"
    virtualize(files[:1], repo, scheduler="sync")
    with pytest.raises(InvalidInputError, match=r"b\.nc: t: has chunks of 2 .* cannot be joined"):
        virtualize(files, repo, scheduler="sync")
    report = virtualize(files, repo, scheduler="sync", on_mismatch="materialize")
    xr.testing.assert_identical(archived(repo, report), together([content(path) for path in files]))
    assert list(report.materialized) == [str(files[1])]
