"""Files of other lengths: chunks without compression are cut so that they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
