"""Files whose values are in other files: below what was authorised, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from icechunk import InvalidInputError, StorageError, credentials
from icechunk_dask import virtualize
from tests.archives.day_files import archived, write_days


def with_raw(path: Path, raw: Path, first: int) -> Path:
    """Write a file whose variable ``r`` is in another one."""
    raw.write_bytes((np.arange(4, dtype="<f4") + first).tobytes())
    write_days(path, first)
    with h5py.File(path, "a") as file:
        r = file.create_dataset("r", (4,), "<f4", external=[(str(raw), 0, 16)])
        r.dims[0].attach_scale(file["time"])
    return path


def test_values_in_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    files = [with_raw(folder / f"{i}.nc", folder / f"{i}.raw", 4 * i) for i in range(2)]
    report = virtualize(files[:1], tmp_path / "repo", scheduler="sync")
    assert archived(tmp_path / "repo", report)["r"].values.tolist() == [0, 1, 2, 3]
    # what is in the repository is for those only who may read it
    with pytest.raises(InvalidInputError, match=r"'r' cannot be stored.*among the authorised"):
        report = virtualize(files[1:], tmp_path / "repo", scheduler="sync")
    access: dict[str, Any] = dict.fromkeys(report.access, credentials.LocalFileSystemAccess)
    report = virtualize(
        files, tmp_path / "repo", scheduler="sync", authorize_virtual_chunk_access=access
    )
    assert report.variables["r"].virtual == 1
    assert archived(tmp_path / "repo", report)["r"].values.tolist() == list(range(8))
    # a change of the other file is noticed, too
    later = (folder / "1.raw").stat().st_mtime + 10
    os.utime(folder / "1.raw", (later, later))
    with pytest.raises(StorageError, match=r"1\.raw.*changed"):
        archived(tmp_path / "repo", report)


def test_values_outside(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = with_raw(folder / "a.nc", tmp_path / "secret.raw", 0)
    with pytest.raises(InvalidInputError, match=r"'r' cannot be stored.*secret\.raw"):
        virtualize([path], tmp_path / "repo", scheduler="sync")
    report = virtualize([path], tmp_path / "repo", scheduler="sync", drop_variables=["r"])
    assert "r" not in report.variables
