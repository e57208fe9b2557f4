"""Messages of several kinds of levels, steps and types in one GRIB file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import eccodes
import numpy as np
import pytest
import xarray as xr
from scipy.io import netcdf_file

from icechunk import InvalidInputError
from icechunk.kerchunk.grib_sections import grib_fields
from icechunk_dask import virtualize
from icechunk_dask.archives.grib_header import grib_matches
from icechunk_dask.archives.selection import keys_of
from tests.archives.day_files import archived
from tests.archives.grib_files import SHAPE, handle_of, message

_VALUES = np.arange(float(np.prod(SHAPE))).reshape(SHAPE)


def _file(path: Path, edition: int, messages: Sequence[Mapping[str, Any]]) -> Path:
    """Write messages, of which each has values of its own."""
    path.write_bytes(
        b"".join(
            message(edition=edition, values=_VALUES + 100 * i, **keys)
            for i, keys in enumerate(messages)
        )
    )
    return path


#: Messages that clash, and the keys that an error names to tell them apart.
_CLASHES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "kinds of levels": (
        [
            {"shortName": "t", "typeOfLevel": "isobaricInhPa", "level": 500},
            {"shortName": "t", "typeOfLevel": "surface"},
        ],
        "typeOfLevel",
    ),
    "heights": (
        [
            {"shortName": "t", "typeOfLevel": "heightAboveGround", "level": 2},
            {"shortName": "u", "typeOfLevel": "heightAboveGround", "level": 10},
        ],
        "level",
    ),
    "kinds of steps": (
        [
            {"shortName": "tp", "stepType": "accum", "stepRange": "0-12"},
            {"shortName": "tp", "stepType": "accum", "stepRange": "6-12"},
        ],
        "stepRange",
    ),
}


@pytest.mark.parametrize("edition", [1, 2])
@pytest.mark.parametrize("kind", _CLASHES)
def test_messages_that_clash(kind: str, edition: int, tmp_path: Path) -> None:
    messages, key = _CLASHES[kind]
    path = _file(tmp_path / "a.grib", edition, messages)
    options: dict[str, Any] = {"expand_dims": ["time"], "scheduler": "sync"}
    with pytest.raises(InvalidInputError, match="several of its messages have the var") as caught:
        virtualize([path], tmp_path / "repo", **options)
    text = str(caught.value)
    first = re.search(r"filter_by_keys=(\{.*?\})", text)
    second = re.search(r"and (\{.*?\}) for another group", text)
    assert first and second
    for number, found in enumerate((first, second)):
        keys = eval(found[1])
        assert list(keys) == [key]
        # alone, and one after the other into groups
        report = virtualize(
            [path], tmp_path / "repo", group=f"g{number}", filter_by_keys=keys, **options
        )
        ours = archived(tmp_path / "repo", report, f"g{number}")
        (name,) = (n for n in ours.data_vars if "GRIB_paramId" in ours[n].attrs)
        np.testing.assert_allclose(ours[name].values[0], _VALUES + 100 * number, atol=1e-3)


@pytest.mark.parametrize("edition", [1, 2])
def test_advice_to_expand(edition: int, tmp_path: Path) -> None:
    levels = [
        {"shortName": "t", "typeOfLevel": "isobaricInhPa", "level": level} for level in (500, 850)
    ]
    path = _file(tmp_path / "a.grib", edition, levels)
    options: dict[str, Any] = {"concat_dims": ["time"], "scheduler": "sync"}
    with pytest.raises(InvalidInputError, match="expand_dims") as caught:
        virtualize([path], tmp_path / "repo", expand_dims=["time"], **options)
    found = re.search(r"expand_dims=(\[.*?\])", str(caught.value))
    assert found
    expand = eval(found[1])
    assert expand == ["time", "isobaricInhPa"]
    report = virtualize([path], tmp_path / "repo", expand_dims=expand, **options)
    ours = archived(tmp_path / "repo", report)
    assert ours["isobaricInhPa"].values.tolist() == [500, 850]
    np.testing.assert_allclose(ours["t"].values[0, 1], _VALUES + 100, atol=1e-3)


def test_advice_to_expand_times(tmp_path: Path) -> None:
    """Of one file with all of them, as archives hand them out."""
    messages = [
        {"shortName": "t", "typeOfLevel": "isobaricInhPa", "level": level, "dataTime": time}
        for time in (0, 600)
        for level in (500, 850)
    ]
    path = _file(tmp_path / "a.grib", 2, messages)
    expand: list[str] = []
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="expand_dims") as caught:
            virtualize(path, tmp_path / "repo", expand_dims=expand, scheduler="sync")
        advised = re.search(r"expand_dims=(\[.*?\])", str(caught.value))
        assert advised
        expand = eval(advised[1])
    assert sorted(expand) == ["isobaricInhPa", "time"]
    report = virtualize(path, tmp_path / "repo", expand_dims=expand, scheduler="sync")
    ours = archived(tmp_path / "repo", report)["t"].transpose("time", "isobaricInhPa", ...)
    truth = xr.open_dataset(path, engine="cfgrib", backend_kwargs={"indexpath": ""})["t"]
    wanted = truth.sortby("isobaricInhPa").transpose(*ours.dims).values
    np.testing.assert_allclose(ours.values, wanted, atol=1e-3)


_CHEMICAL = {"discipline": 0, "parameterCategory": 20, "parameterNumber": 2}
_RAIN = {"discipline": 0, "parameterCategory": 1, "parameterNumber": 8}


@pytest.mark.parametrize(
    ("template", "fields", "key", "kinds"),
    [
        (40, _CHEMICAL, "constituentType", (1000, 1001)),
        (6, _RAIN, "percentileValue", (10, 90)),
        (2, _RAIN, "derivedForecast", (0, 4)),
    ],
)
def test_kinds_of_one_name(
    template: int, fields: dict[str, int], key: str, kinds: tuple[int, int], tmp_path: Path
) -> None:
    """Of which substance a share is, or which statistic, the name does not say."""
    messages = [
        {"productDefinitionTemplateNumber": template, **fields, key: kind, "dataTime": 600 * number}
        for number, kind in enumerate(kinds)
    ]
    paths = [_file(tmp_path / f"{i}.grib", 2, [one]) for i, one in enumerate(messages)]
    options: dict[str, Any] = {"expand_dims": ["time"], "scheduler": "sync"}
    with pytest.raises(InvalidInputError, match=f"GRIB_{key}"):
        virtualize(paths, tmp_path / "repo", **options)
    both = _file(tmp_path / "both.grib", 2, [{**one, "dataTime": 0} for one in messages])
    with pytest.raises(InvalidInputError, match=f"filter_by_keys={{'{key}': {kinds[0]}}}"):
        virtualize(both, tmp_path / "repo", **options)
    for number, kind in enumerate(kinds):
        chosen: dict[str, Any] = {"filter_by_keys": {key: kind}, "group": f"g{number}"}
        report = virtualize(both, tmp_path / "repo", **options, **chosen)
        ours = archived(tmp_path / "repo", report, f"g{number}")
        (name,) = (n for n in ours.data_vars if "GRIB_paramId" in ours[n].attrs)
        assert ours[name].attrs[f"GRIB_{key}"] == kind
        np.testing.assert_allclose(ours[name].values[0], _VALUES + 100 * number, atol=1e-3)


def test_as_cfgrib_takes_them(tmp_path: Path) -> None:
    messages: list[dict[str, Any]] = [
        {"shortName": name, "typeOfLevel": kind, "level": level, "step": step}
        for name in ("t", "u")
        for kind, level in (("isobaricInhPa", 500), ("isobaricInhPa", 850), ("hybrid", 1))
        for step in (0, 6)
    ]
    path = _file(tmp_path / "a.grib", 2, messages)
    for number, keys in enumerate(
        (
            {"typeOfLevel": "isobaricInhPa"},
            {"typeOfLevel": "isobaricInhPa", "level": [850]},
            {"typeOfLevel": ["hybrid"], "shortName": "u"},
            {"typeOfLevel": "hybrid", "step": 6},
        )
    ):
        level = "hybrid" if "hybrid" in keys["typeOfLevel"] else "isobaricInhPa"
        report = virtualize(
            [path],
            tmp_path / "repo",
            group=f"g{number}",
            expand_dims=["step", level],
            concat_dims=["step"],
            filter_by_keys=keys,
            scheduler="sync",
        )
        ours = archived(tmp_path / "repo", report, f"g{number}")
        truth = xr.open_dataset(
            path,
            engine="cfgrib",
            decode_timedelta=True,
            backend_kwargs={"indexpath": "", "filter_by_keys": _plain(keys)},
        )
        data = [name for name in ours.data_vars if "GRIB_paramId" in ours[name].attrs]
        assert set(data) == set(truth.data_vars)
        for name in data:
            wanted = truth[name].expand_dims([d for d in ("step", level) if d not in truth.dims])
            wanted = wanted.transpose("step", level, "latitude", "longitude")
            wanted = wanted.sortby(["step", level])
            np.testing.assert_allclose(ours[name].values, wanted.values, rtol=1e-5)


def _plain(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: v[0] if isinstance(v, list) else v for key, v in keys.items()}


def test_nothing_matches(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.grib", 2, [{"shortName": "2t"}])
    own = r"no message of .*'surface'.*its first one has {'typeOfLevel': 'heightAboveGround'}"
    with pytest.raises(InvalidInputError, match=own):
        virtualize([path], tmp_path / "repo", filter_by_keys={"typeOfLevel": "surface"})
    with pytest.raises(InvalidInputError, match=r"its first one has {'levl': None}"):
        virtualize([path], tmp_path / "repo", filter_by_keys={"levl": 2})
    wrong: Any
    for wrong in (["typeOfLevel"], "surface", {1: 2}):
        with pytest.raises(InvalidInputError, match="filter_by_keys is a mapping"):
            virtualize([path], tmp_path / "repo", filter_by_keys=wrong)
    (found,) = grib_fields(BytesIO(path.read_bytes()), "a")
    for value in (np.array([2, 10]), np.int64(2), (2,), {2}, 2.0, "2"):
        assert grib_matches(found, keys_of({"level": value}))
        assert not grib_matches(found, keys_of({"level": value, "step": 1}))
    with netcdf_file(tmp_path / "a.nc", "w") as file:
        file.createDimension("time", None)
    with pytest.raises(InvalidInputError, match="filter_by_keys is for GRIB"):
        virtualize([tmp_path / "a.nc"], tmp_path / "repo", filter_by_keys={"level": 1})


def test_values_without_known_places(tmp_path: Path) -> None:
    """ecCodes does not place the points of such a grid; their values can be had without."""
    handle = handle_of()
    for key, value in {
        "gridType": "lambert",
        "Nx": SHAPE[1],
        "Ny": SHAPE[0],
        "LaDInDegrees": 50,
        "Latin1InDegrees": 50,
        "Latin2InDegrees": 50,
        "iScansNegatively": 1,
        "jScansPositively": 0,
    }.items():
        eccodes.codes_set(handle, key, value)
    eccodes.codes_set_values(handle, _VALUES.ravel())
    path = tmp_path / "a.grib"
    path.write_bytes(eccodes.codes_get_message(handle))
    eccodes.codes_release(handle)
    options: dict[str, Any] = {"expand_dims": ["time"], "scheduler": "sync"}
    with pytest.raises(InvalidInputError, match="where points lie in a grid 'lambert'") as caught:
        virtualize([path], tmp_path / "repo", **options)
    found = re.search(r"drop_variables=(\[.*?\])", str(caught.value))
    assert found
    dropped = eval(found[1])
    assert dropped == ["latitude", "longitude"]
    report = virtualize([path], tmp_path / "repo", drop_variables=dropped, **options)
    ours = archived(tmp_path / "repo", report)["t"]
    assert ours.dims == ("time", "y", "x")
    np.testing.assert_allclose(ours.values[0], _VALUES, atol=1e-3)


@pytest.mark.parametrize("columns", [0, 1])
@pytest.mark.parametrize("grid", ["mercator", "reduced_ll"])
def test_fields_without_rows_get_a_dimension(grid: str, columns: int, tmp_path: Path) -> None:
    handle = handle_of()
    for key, value in {
        "gridType": grid,
        "Nx": SHAPE[1],
        "Ny": SHAPE[0],
        "jScansPositively": 1,
        "jPointsAreConsecutive": columns,
    }.items():
        if eccodes.codes_is_defined(handle, key):
            eccodes.codes_set(handle, key, value)
    eccodes.codes_set_values(handle, _VALUES.ravel())
    path = tmp_path / "a.grib"
    path.write_bytes(eccodes.codes_get_message(handle))
    eccodes.codes_release(handle)
    report = virtualize(
        [path],
        tmp_path / "repo",
        expand_dims=["time", "step"],
        drop_variables=["latitude", "longitude"],
        scheduler="sync",
    )
    ours = archived(tmp_path / "repo", report)["t"]
    assert ours.dims == ("time", "step", "values")
    np.testing.assert_allclose(ours.values.ravel(), _VALUES.ravel(), atol=1e-3)
