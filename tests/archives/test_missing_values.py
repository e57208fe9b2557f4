"""Missing values that JSON cannot express, in files: masked as xarray masks them in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from icechunk import InvalidInputError, Repository
from icechunk_dask import virtualize

VALUES = np.array([1, np.nan, np.inf, -np.inf, -1, 2], "f4")


def write(path: Path, engine: Any, **attributes: Any) -> xr.Dataset:
    """Write a file with raw values, and return what xarray reads from it."""
    variable = xr.Variable("x", VALUES, attributes, {"_FillValue": None})
    if "_FillValue" in attributes:
        variable.encoding = {}
    xr.Dataset({"v": variable}, {"x": np.arange(6.0)}).to_netcdf(path, engine=engine)
    return xr.open_dataset(path, engine=engine).load()


def no_constant(token: str) -> None:
    raise AssertionError(token)


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fill", [None, -1.0])
def test_they_mean_the_same(engine: str, missing: float, fill: Any, tmp_path: Path) -> None:
    attributes = {"missing_value": np.float32(missing)}
    if fill is not None:
        attributes["_FillValue"] = np.float32(fill)
    expected = write(tmp_path / "a.nc", engine, **attributes)
    target = str(tmp_path / "repository")
    files = [str(tmp_path / "a.nc")]
    if fill is not None and not np.isnan(missing):
        with pytest.raises(InvalidInputError, match=r"'missing_value' is -?Infinity"):
            virtualize(files, target, concat_dims=["x"], scheduler="sync")
        return
    virtualize(files, target, concat_dims=["x"], scheduler="sync")
    session = Repository.open(target).readonly_session("main")
    json.loads(session.tree.require("/v").user_data, parse_constant=no_constant)
    found = xr.open_dataset(
        target, engine="icechunk", authorize_virtual_chunk_access={f"file://{tmp_path}/": None}
    )
    np.testing.assert_array_equal(found["v"], expected["v"])
