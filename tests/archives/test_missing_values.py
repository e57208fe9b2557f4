"""Missing values that JSON cannot express, in files: masked as xarray masks them in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from icechunk import InvalidInputError, Repository
from icechunk_dask import ingest, virtualize
from tests.archives.classic_files import Var, classic
from tests.archives.day_files import archived

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


@pytest.mark.parametrize("other", [None, "NA", "x"])
def test_texts_of_any_length(other: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(3.0)).make_scale("x")
        file.create_dataset("v", data=["a", "NA", ""], dtype=h5py.string_dtype())
        file["v"].dims[0].attach_scale(file["x"])
        file["v"].attrs["_FillValue"] = "NA"
        if other is not None:
            file["v"].attrs["missing_value"] = other
    target = str(tmp_path / "repository")
    if other == "x":
        with pytest.raises(
            InvalidInputError, match=r"'v'.*'_FillValue' differs from missing_value"
        ):
            virtualize([path], target, concat_dims=["x"], scheduler="sync")
        return
    virtualize([path], target, concat_dims=["x"], scheduler="sync")
    found = xr.open_dataset(target, engine="icechunk")["v"].values.tolist()
    expected = xr.open_dataset(path)["v"].values.tolist()
    assert [text != text for text in expected] == [False, True, False]
    assert str(found) == str(expected) == "['a', nan, '']"


@pytest.mark.parametrize("fill", [b"b", b"z"])
@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
def test_characters(engine: Any, fill: bytes, tmp_path: Path) -> None:
    """xarray opens no bytes with ``_FillValue`` from Zarr: what it would mask is refused."""
    path = tmp_path / "a.nc"
    variable = xr.Variable("x", np.array([b"a", b"b", b"c"]), None, {"_FillValue": fill})
    xr.Dataset({"v": variable}, {"x": np.arange(3.0)}).to_netcdf(path, engine=engine)
    target = str(tmp_path / "repository")
    if fill == b"b":
        with pytest.raises(InvalidInputError, match=r"'v'.*'_FillValue' equals some of its texts"):
            virtualize([path], target, concat_dims=["x"], scheduler="sync")
        return
    virtualize([path], target, concat_dims=["x"], scheduler="sync")
    found = xr.open_dataset(target, engine="icechunk")["v"].values.tolist()
    assert found == xr.open_dataset(path, engine=engine)["v"].values.tolist() == [b"a", b"b", b"c"]


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
@pytest.mark.parametrize("value", [np.nan, [1.0, -np.inf]])
@pytest.mark.parametrize("place", ["variable", "coordinate", "group"])
def test_other_attributes_are_refused_by_name(
    engine: Any, value: Any, place: str, tmp_path: Path
) -> None:
    dataset = xr.Dataset({"v": ("x", VALUES)}, {"x": np.arange(6.0)})
    name = {"variable": "v", "coordinate": "x"}.get(place)
    named = "group '/'" if name is None else f"variable {name!r}"
    (dataset if name is None else dataset[name]).attrs["odd"] = value
    path = tmp_path / "a.nc"
    dataset.to_netcdf(path, engine=engine)
    whose = rf"a\.nc: .*{named}.*'odd' is -?(NaN|Infinity)"
    with pytest.raises(InvalidInputError, match=whose):
        virtualize([path], str(tmp_path / "repo"), concat_dims=["x"], scheduler="sync")


#: Types, and attributes that stand for missing values: 3, 4 and 1e20 are stored.
_SEVERAL: list[tuple[str, dict[str, Any]]] = [
    ("i2", {"missing_value": np.array([3, 4], "i2")}),
    ("f4", {"missing_value": np.array([3, 4], "f4")}),
    ("f4", {"missing_value": np.array([3, 4], "f4"), "_FillValue": np.float32(3)}),
    ("f4", {"missing_value": np.array([3, 1e20], "f8")}),
    # a float that stores it as another number
    ("f4", {"missing_value": np.float64(1e20)}),
    ("f4", {"missing_value": np.float64(1e20), "_FillValue": np.float32(3)}),
    ("f4", {"missing_value": np.float64("nan"), "_FillValue": np.float32(3)}),
    ("i2", {"missing_value": np.float64(1e36)}),
    ("i2", {"missing_value": np.float64(3.5)}),
    ("i2", {"missing_value": np.float64(3), "scale_factor": np.float32(0.5)}),
    ("i2", {"missing_value": "3"}),
    ("i2", {"_FillValue": "3"}),
]


@pytest.mark.parametrize(("kind", "attributes"), _SEVERAL, ids=repr)
def test_values_are_copied_where_several_are_missing(
    kind: str, attributes: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.nc"
    values = np.array([1, 3, 4, 5, 1e20 if kind == "f4" else 6], kind)
    variables = {"time": Var(("time",), np.arange(5.0)), "v": Var(("time",), values, attributes)}
    path.write_bytes(classic({"time": 5}, variables))
    with xr.open_dataset(path, engine="scipy") as opened:
        expected = opened["v"].values
    report = ingest([path], tmp_path / "repo", executor="sync")
    found = archived(tmp_path / "repo", report)["v"].values
    np.testing.assert_array_equal(found, expected)
