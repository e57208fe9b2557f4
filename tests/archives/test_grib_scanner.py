"""GRIB files of both editions: fields equal to what ecCodes and cfgrib read, or refused."""

from __future__ import annotations

import io
import itertools
import struct
import warnings
from pathlib import Path
from typing import Any

import eccodes
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr
from hypothesis import given, strategies as st
from kerchunk.grib2 import scan_grib

from icechunk import InvalidInputError
from icechunk.kerchunk import import_references
from icechunk.kerchunk.grib import GribCodec
from icechunk.kerchunk.grib_sections import field_message, grib_fields
from icechunk_dask.archives.described import Dataset, FileVariable
from icechunk_dask.archives.grib import open_grib
from tests.archives.grib_files import (
    SHAPE,
    Truth,
    handle_of,
    in_order,
    message,
    sections_of,
    several_fields,
    truths,
    whole_message,
)
from tests.archives.reading_classic import LOCATION, as_xarray, read_values, zarr_values
from tests.kerchunk.base import repository

GEOGRAPHY = ("latitude", "longitude")


def field_name(dataset: Dataset) -> str:
    """Return the name of the only variable with values of the file."""
    (name,) = [n for n, v in dataset.variables.items() if not v.by_value]
    return name


def check_field(dataset: Dataset, path: Path, name: str, truth: Truth) -> None:
    """Coordinates and values, by references and by `read`, are those of ecCodes."""
    found = dataset.variables[name]
    for values in (read_values(found), zarr_values(dataset, path)[name]):
        assert values.dtype == np.dtype("f8")
        if not len(truth.points):
            assert not set(GEOGRAPHY) & set(dataset.variables)
            assert np.array_equal(values.ravel(), truth.values, equal_nan=True)
            continue
        coordinates = {n: dataset.variables[n] for n in GEOGRAPHY}
        table = xr.Dataset(
            {
                "v": (found.dimensions, values),
                **{n: (v.dimensions, read_values(v)) for n, v in coordinates.items()},
            }
        )
        columns = xr.broadcast(table["latitude"], table["longitude"], table["v"])
        columns = [column.transpose(*found.dimensions).values.ravel() for column in columns]
        points = np.column_stack(columns)
        assert np.array_equal(in_order(points), in_order(truth.points), equal_nan=True)


def only(path: Path) -> tuple[xr.Dataset, xr.Dataset]:
    """Return what we, and cfgrib, say of a file with one dataset, decoded."""
    with open_grib(path, LOCATION) as (dataset,):
        ours = as_xarray(dataset, path, decode=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = xr.open_dataset(path, engine="cfgrib", backend_kwargs={"indexpath": ""}).load()
    return ours, theirs


def check_cfgrib(path: Path, *, geography: bool = True) -> None:
    """Every variable, coordinate and attribute is that of cfgrib."""
    ours, theirs = only(path)
    assert set(ours.variables) == set(theirs.variables)
    for name, expected in theirs.variables.items():
        found = ours[name]
        assert found.dims == expected.dims, name
        if name in theirs.data_vars:
            # cfgrib rounds values
            found = found.astype("f4")
        if geography or name not in (*GEOGRAPHY, *theirs.data_vars):
            assert found.dtype == expected.dtype, name
            assert np.array_equal(found.values, expected.values, equal_nan=True), name
        attributes = plain(found.attrs)
        # a number that only cfgrib uses
        expected_ones = {k: v for k, v in plain(expected.attrs).items() if k != "GRIB_missingValue"}
        assert attributes == expected_ones, name
    expected_ones = {k: v for k, v in theirs.attrs.items() if k != "history"}
    assert ours.attrs == expected_ones
    assert set(ours.coords) == set(theirs.coords)


def plain(attributes: dict[Any, Any]) -> dict[str, Any]:
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in attributes.items()}


# -- grids -----------------------------------------------------------------------------
MODES = [
    (edition, modes)
    for edition in (1, 2)
    for modes in itertools.product((0, 1), repeat=4)
    # edition 1 has no rows in turn
    if edition == 2 or not modes[3]
]
KEYS = ("iScansNegatively", "jScansPositively", "jPointsAreConsecutive", "alternativeRowScanning")


def in_rows(truth: Truth, modes: tuple[int, ...], *, turns: bool = True) -> Truth:
    """Return a field in rows; ecCodes overlooks that every other one may run backwards."""
    placed = len(truth.points) > 0
    values = truth.points[:, 2] if placed else truth.values
    lines = values.reshape(SHAPE[::-1] if modes[2] else SHAPE)
    if modes[3] and turns:
        lines[1::2] = lines[1::2, ::-1].copy()
    if not placed and modes[2]:
        truth.values = lines.T.ravel()
    return truth


@pytest.mark.parametrize("bitmap", [False, True])
@pytest.mark.parametrize(("edition", "modes"), MODES)
def test_scanning_modes(tmp_path: Path, edition: int, modes: tuple[int, ...], bitmap: bool) -> None:
    path = tmp_path / "file"
    keys = dict(zip(KEYS[: edition + 2], modes, strict=False))
    values = np.arange(15.0) + 100
    if bitmap:
        keys |= {"bitmapPresent": 1, "missingValue": -5}
        values[[0, 7]] = -5
    path.write_bytes(message(edition=edition, values=values, **keys))
    (truth,) = truths(path)
    assert len(truth.points) == 15 and np.isnan(truth.values).sum() == 2 * bitmap
    with open_grib(path, LOCATION) as (dataset,):
        name = field_name(dataset)
        assert dataset.variables[name].shape == SHAPE
        check_field(dataset, path, name, in_rows(truth, modes))
    if modes in ((0, 0, 0, 0), (0, 0, 0, 1)):
        check_cfgrib(path)


SAMPLES = [
    "regular_ll_sfc_grib{edition}",
    "regular_ll_pl_grib{edition}",
    "regular_gg_sfc_grib{edition}",
    "regular_gg_pl_grib{edition}",
    "reduced_gg_pl_32_grib{edition}",
    "rotated_ll_sfc_grib{edition}",
    "rotated_gg_sfc_grib{edition}",
    "reduced_rotated_gg_pl_32_grib{edition}",
    "polar_stereographic_sfc_grib{edition}",
    "sh_ml_grib{edition}",
    "sh_sfc_grib{edition}",
    "reduced_gg_ml_grib{edition}",
]


@pytest.mark.parametrize("edition", [1, 2])
@pytest.mark.parametrize("sample", SAMPLES)
def test_every_kind_of_grid(tmp_path: Path, sample: str, edition: int) -> None:
    path = tmp_path / "file"
    count = eccodes.codes_get_size(handle_of(sample, edition=edition, small=False), "values")
    values = None if sample.startswith("sh_") else np.arange(float(count))
    keys = {"jScansPositively": 1} if sample.startswith("polar") else {}
    path.write_bytes(message(sample, edition=edition, small=False, values=values, **keys))
    (truth,) = truths(path)
    with open_grib(path, LOCATION) as (dataset,):
        check_field(dataset, path, field_name(dataset), truth)
    check_cfgrib(path)


@pytest.mark.parametrize("edition", [1, 2])
@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize("upwards", [0, 1])
@pytest.mark.parametrize("kind", ["regular_gg_sfc", "reduced_gg_pl_32"])
def test_gaussian_grids_the_other_way(
    tmp_path: Path, kind: str, upwards: int, backwards: int, edition: int
) -> None:
    """ecCodes goes along reduced ones eastwards and southwards, and beyond the last parallel."""
    path = tmp_path / "file"
    handle = handle_of(f"{kind}_grib{edition}", small=False)
    flags = {
        "latitude": ("jScansPositively", upwards),
        "longitude": ("iScansNegatively", backwards),
    }
    for axis, (key, value) in flags.items():
        eccodes.codes_set(handle, key, value)
        ends = [f"{axis}Of{end}GridPointInDegrees" for end in ("First", "Last")]
        swapped = [eccodes.codes_get(handle, end) for end in ends][:: -1 if value else 1]
        for end, degrees in zip(ends, swapped, strict=True):
            eccodes.codes_set(handle, end, degrees)
    count = eccodes.codes_get_size(handle, "values")
    eccodes.codes_set_values(handle, np.arange(float(count)))
    path.write_bytes(eccodes.codes_get_message(handle))
    (truth,) = truths(path)
    parallels = list(eccodes.codes_get_gaussian_latitudes(32))
    with open_grib(path, LOCATION) as (dataset,):
        refused = dataset.variables["latitude"].refused
        if refused:
            assert kind.startswith("reduced") and (upwards or backwards)
            assert "none of its grid" in refused
        else:
            check_field(dataset, path, field_name(dataset), truth)
            found = np.unique(read_values(dataset.variables["latitude"]))
            assert np.allclose(found, sorted(parallels))
            assert not (kind.startswith("reduced") and upwards)


PLANE = {"LaDInDegrees": 50, "LoVInDegrees": 10, "DxInMetres": 9000, "DyInMetres": 7000}
PROJECTED = {
    "lambert": {**PLANE, "Latin1InDegrees": 40, "Latin2InDegrees": 60},
    "albers": {**PLANE, "Latin1InDegrees": 40, "Latin2InDegrees": 60},
    "polar_stereographic": {**PLANE, "orientationOfTheGridInDegrees": 10},
    "lambert_azimuthal_equal_area": {
        **PLANE,
        "standardParallelInDegrees": 50,
        "centralLongitudeInDegrees": 10,
    },
    "mercator": {
        "LaDInDegrees": 20,
        "DiInMetres": 9000,
        "DjInMetres": 7000,
        "latitudeOfFirstGridPointInDegrees": 10,
        "latitudeOfLastGridPointInDegrees": 30,
    },
}


#: The first row goes to larger i, the first column to larger j.
_NORTHEAST = [(0, 1, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1)]


@pytest.mark.parametrize("modes", list(itertools.product((0, 1), repeat=4)))
@pytest.mark.parametrize("grid", PROJECTED)
def test_projections(tmp_path: Path, grid: str, modes: tuple[int, ...]) -> None:
    path = tmp_path / "file"
    handle = handle_of()
    eccodes.codes_set(handle, "gridType", grid)
    for key, value in PROJECTED[grid].items():
        if eccodes.codes_is_defined(handle, key):
            eccodes.codes_set(handle, key, value)
    for key, value in zip(KEYS, modes, strict=True):
        eccodes.codes_set(handle, key, value)
    eccodes.codes_set(handle, "Nx", 5)
    eccodes.codes_set(handle, "Ny", 3)
    eccodes.codes_set_values(handle, np.arange(15.0))
    path.write_bytes(eccodes.codes_get_message(handle))
    (truth,) = truths(path)
    agrees = np.array_equal(truth.points[:, 2], truth.values)
    with open_grib(path, LOCATION) as (dataset,):
        if len(truth.points) and not agrees and modes not in _NORTHEAST:
            # ecCodes takes the first point for that of the south west, unlike the standard, or
            # turns the rows of what lies in columns
            for name in ("latitude", "longitude"):
                assert f"grid {grid!r}" in dataset.variables[name].refused
            assert not dataset.variables["t"].refused
            return
        turns = grid in ("albers", "lambert_azimuthal_equal_area")
        check_field(dataset, path, field_name(dataset), in_rows(truth, modes, turns=turns))
        if grid in ("lambert", "polar_stereographic") and modes in _NORTHEAST:
            # in rows, whatever the order of the message
            for number, name in enumerate([*GEOGRAPHY, field_name(dataset)]):
                found = read_values(dataset.variables[name])
                assert np.array_equal(found, truth.points[:, number].reshape(SHAPE))
    if modes == (0, 1, 0, 0):
        check_cfgrib(path)


def test_what_is_no_forecast(tmp_path: Path) -> None:
    """An image of a satellite has a time, and neither a step nor a level."""
    path = tmp_path / "file"
    keys = {"productDefinitionTemplateNumber": 31, "NB": 0}
    path.write_bytes(message(values=np.arange(15.0), **keys))
    check_cfgrib(path)
    with open_grib(path, LOCATION) as (dataset,):
        assert not {"step", "valid_time"} & set(dataset.variables)
        assert not dataset.variables[field_name(dataset)].refused


# -- values ----------------------------------------------------------------------------
PACKINGS = {
    1: ["grid_simple", "grid_second_order", "grid_ieee"],
    2: [
        "grid_simple",
        "grid_ccsds",
        "grid_complex",
        "grid_jpeg",
        "grid_png",
        "grid_second_order",
        "grid_ieee",
        "grid_simple_log_preprocessing",
    ],
}
VALUES = {
    "constant": np.full(15, 9999.0),
    "around": np.arange(15.0) + 9992,
    "small": np.linspace(0, 1, 15),
    "negative": np.linspace(-5, 5, 15),
}


@pytest.mark.parametrize("bitmap", [False, True])
@pytest.mark.parametrize(
    ("edition", "packing"), [(e, packing) for e, all_ in PACKINGS.items() for packing in all_]
)
def test_missing_is_what_the_bitmap_says(
    tmp_path: Path, edition: int, packing: str, bitmap: bool
) -> None:
    """A value may equal ``missingValue``, which is 9999 by default."""
    path = tmp_path / "file"
    for kind, values in VALUES.items():
        # ecCodes cannot write a constant field of these
        if kind == "constant" and packing in ("grid_complex", "grid_png"):
            continue
        # or so small an image
        size = 496 if packing == "grid_png" else 15
        given = np.resize(values, size)
        given[3] = -5000 if bitmap else given[3]
        keys = {"packingType": packing, "bitmapPresent": int(bitmap), "missingValue": -5000}
        data = message(edition=edition, small=size == 15, values=given, **keys)
        path.write_bytes(data)
        (truth,) = truths(path)
        assert np.flatnonzero(np.isnan(truth.values)).tolist() == [3] * bitmap
        with open_grib(path, LOCATION) as (dataset,):
            check_field(dataset, path, field_name(dataset), truth)


def test_selections(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(message())
    with open_grib(path, LOCATION) as (dataset,):
        variable = dataset.variables[field_name(dataset)]
        whole = read_values(variable)
        for selection in [(slice(1, 2),), (slice(None, None, -1), slice(1, None, 2))]:
            assert np.array_equal(variable.read(selection), whole[selection])
        latitude = dataset.variables["latitude"]
        assert latitude.read((slice(1, None),)).tolist() == [15.0, 10.0]


# -- names, times, levels --------------------------------------------------------------
STEPS = {
    # units of code table 4.4, and their seconds
    "minutes": (0, 60),
    "hours": (1, 3600),
    "days": (2, 86400),
    "3 hours": (10, 10800),
    "6 hours": (11, 21600),
    "12 hours": (12, 43200),
    "seconds": (13, 1),
    # of 30 days, for ecCodes
    "months": (3, 30 * 86400),
}


@pytest.mark.parametrize("count", [0, 1, 15, 90])
@pytest.mark.parametrize("unit", STEPS)
def test_steps(tmp_path: Path, unit: str, count: int) -> None:
    path = tmp_path / "file"
    code, seconds = STEPS[unit]
    keys = {"indicatorOfUnitOfTimeRange": code, "forecastTime": count}
    path.write_bytes(message(dataDate=20240228, dataTime=1830, **keys))
    with open_grib(path, LOCATION) as (dataset,):
        ours = as_xarray(dataset, path, decode=True)
    start = np.datetime64("2024-02-28T18:30")
    assert ours["time"].values == start
    assert ours["valid_time"].values == start + np.timedelta64(count * seconds, "s")
    # not all versions of xarray decode it without being asked
    step = xr.decode_cf(ours[["step"]], decode_timedelta=True)["step"]
    assert step.values / np.timedelta64(1, "s") == pytest.approx(count * seconds, rel=1e-12)
    if count == 15:
        check_cfgrib(path)


@pytest.mark.parametrize("edition", [1, 2])
def test_accumulations_end_at_their_step(tmp_path: Path, edition: int) -> None:
    path = tmp_path / "file"
    for steps, hours in {"0-6": 6, "6-12": 12, "0-24": 24}.items():
        path.write_bytes(message(edition=edition, stepType="accum", stepRange=steps))
        with open_grib(path, LOCATION) as (dataset,):
            assert dataset.variables["step"].read(()) == hours
        check_cfgrib(path)


def test_seconds_of_the_time_count(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(message(dataDate=20240228, dataTime=1830, second=7))
    with open_grib(path, LOCATION) as (dataset,):
        ours = as_xarray(dataset, path, decode=True)
    assert ours["time"].values == np.datetime64("2024-02-28T18:30:07")


@pytest.mark.parametrize("years", [1850, 1969, 2100])
@pytest.mark.parametrize("edition", [1, 2])
def test_other_centuries(tmp_path: Path, edition: int, years: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(message(edition=edition, dataDate=years * 10000 + 615, dataTime=1200))
    check_cfgrib(path)


def test_what_has_no_time_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(message(month=13) + message(shortName="2t"))
    with open_grib(path, LOCATION) as (first, second):
        (refused,) = first.variables.values()
        assert "calendar" in refused.refused
        with pytest.raises(InvalidInputError, match="refused"):
            refused.read(())
        check_field(second, path, "t2m", truths(path)[1])


def test_steps_of_centuries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    keys = {"indicatorOfUnitOfTimeRange": 2, "forecastTime": 106752}
    path.write_bytes(message(**keys) + message(shortName="2t", forecastTime=106751 * 24))
    with open_grib(path, LOCATION) as (first, second):
        (refused,) = first.variables.values()
        assert "292 years" in refused.refused
        decoded = as_xarray(second, path, decode=True)
    xr.decode_cf(decoded[["step"]].reset_coords(drop=True), decode_timedelta=True).load()


LEVELS: list[dict[str, Any]] = [
    {"shortName": "2t"},
    {"shortName": "10u"},
    {"typeOfLevel": "surface", "level": 0},
    {"typeOfLevel": "heightAboveGround", "level": 100},
    {"typeOfLevel": "isobaricInhPa", "level": 850},
    {"typeOfLevel": "hybrid", "level": 60},
    {"typeOfLevel": "depthBelowLandLayer", "topLevel": 7, "bottomLevel": 28},
    {"typeOfLevel": "meanSea"},
]


@pytest.mark.parametrize("edition", [1, 2])
@pytest.mark.parametrize("keys", LEVELS, ids=str)
def test_levels(tmp_path: Path, keys: dict[str, Any], edition: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(message(edition=edition, **keys))
    check_cfgrib(path)


def test_members(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for edition, keys in ((1, {}), (2, {"productDefinitionTemplateNumber": 1})):
        path.write_bytes(message(edition=edition, **keys, number=7))
        with open_grib(path, LOCATION) as (dataset,):
            assert dataset.variables["number"].read(()) == 7
        check_cfgrib(path)


def test_fields_of_a_place_are_one_dataset(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fields = []
    for time, level, name in itertools.product((0, 1200), (500, 850), ("t", "u", "v")):
        keys = {"typeOfLevel": "isobaricInhPa", "shortName": name, "level": level}
        number = len(fields)
        fields.append(message(dataTime=time, **keys, values=np.arange(15.0) + 100 * number))
    path.write_bytes(b"".join(fields))
    with open_grib(path, LOCATION) as datasets:
        assert len(datasets) == 4
        for number, truth in enumerate(truths(path)):
            dataset = datasets[number // 3]
            assert [n for n, v in dataset.variables.items() if not v.by_value] == ["t", "u", "v"]
            assert dataset.variables["isobaricInhPa"].read(()) == truth.level
            seconds = int(dataset.variables["time"].read(())) % 86400
            assert seconds == truth.time // 100 * 3600
            check_field(dataset, path, truth.name, truth)


def test_a_second_field_of_a_name_is_another_dataset(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first, second = message(), message(values=np.arange(15.0))
    path.write_bytes(first + second)
    with open_grib(path, LOCATION) as datasets:
        assert len(datasets) == 2
        for dataset, truth in zip(datasets, truths(path), strict=True):
            check_field(dataset, path, field_name(dataset), truth)


def test_scanning_modes_in_one_file_are_apart(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(message() + message(jScansPositively=1, shortName="u"))
    with open_grib(path, LOCATION) as datasets:
        assert [read_values(d.variables["latitude"])[0] for d in datasets] == [20, 10]
        for dataset, truth in zip(datasets, truths(path), strict=True):
            check_field(dataset, path, field_name(dataset), truth)


def test_names_that_no_table_has(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(message(parameterNumber=201) + message(parameterNumber=202))
    with open_grib(path, LOCATION) as (dataset,):
        names = [n for n, v in dataset.variables.items() if not v.by_value]
        assert names == ["unknown_0_0_201", "unknown_0_0_202"]


def test_a_field_called_like_a_coordinate(tmp_path: Path) -> None:
    path = tmp_path / "file"
    keys = {"discipline": 0, "parameterCategory": 191, "parameterNumber": 1}
    path.write_bytes(message(**keys))
    with open_grib(path, LOCATION) as (dataset,):
        name = field_name(dataset)
        assert name not in GEOGRAPHY
        check_field(dataset, path, name, truths(path)[0])


# -- messages --------------------------------------------------------------------------
JUNK = [
    b"",
    b"\r\r\n",
    b"7777",
    b"GRI",
    b"x" * 70_000 + b"GR",
    b"\0" * 3,
    b"TTAA00 EDZW 010000\r\r\n",
]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: f"{junk[:8]!r}")
def test_junk_between_messages(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "file"
    parts = [message(), message(edition=1, shortName="2t"), message(shortName="u")]
    path.write_bytes(junk + junk.join(parts) + junk)
    found = truths(path)
    assert len(found) == 3
    with open_grib(path, LOCATION) as datasets:
        fields = [
            (dataset, name)
            for dataset in datasets
            for name, variable in dataset.variables.items()
            if not variable.by_value
        ]
        assert len(fields) == 3
        for (dataset, name), truth in zip(
            sorted(fields, key=lambda item: offset(item[0].variables[item[1]])), found, strict=True
        ):
            check_field(dataset, path, name, truth)


@pytest.mark.parametrize("before", range(1, 5))
def test_messages_that_begin_between_two_blocks(before: int) -> None:
    data = bytes((1 << 16) - before) + message()
    with open_grib(io.BytesIO(data), LOCATION) as (dataset,):
        assert offset(dataset.variables["t"]) == (1 << 16) - before


def offset(variable: FileVariable) -> int:
    assert variable.table is not None
    return int(variable.table.offset[0])


@pytest.mark.parametrize("section", [2, 3, 4])
@pytest.mark.parametrize("bitmap", [False, True])
def test_fields_of_one_message(tmp_path: Path, section: int, bitmap: bool) -> None:
    path = tmp_path / "file"
    messages = []
    for number, name in enumerate(["10u", "10v", "2t", "10u", "10v"]):
        keys: dict[str, Any] = {"shortName": name, "dataTime": 600}
        values = np.arange(15.0) + 100 * number
        if number > 2:
            keys |= {"typeOfLevel": "heightAboveGround", "level": 100, "shortName": name[-1]}
        if bitmap:
            keys |= {"bitmapPresent": 1, "missingValue": -5}
            values[number] = -5
        messages.append(message(values=values, **keys))
    one = several_fields(messages, section)
    path.write_bytes(message() + one + message(shortName="v"))
    found = truths(path)
    assert len(found) == 7
    with open_grib(path, LOCATION) as datasets:
        seen = {}
        for dataset in datasets:
            for name, variable in dataset.variables.items():
                if not variable.by_value:
                    seen[offset(variable), variable.table.length[0]] = dataset, name
        assert len(seen) == 7
        for (_, (dataset, name)), truth in zip(sorted(seen.items()), found, strict=True):
            check_field(dataset, path, name, truth)


def test_a_bitmap_for_several_fields(tmp_path: Path) -> None:
    """Section 6 may say: the bitmap of before."""
    path = tmp_path / "file"
    messages = []
    for name in ("10u", "10v"):
        values = np.arange(15.0)
        values[4] = -5
        messages.append(message(shortName=name, values=values, bitmapPresent=1, missingValue=-5))
    bitmap = sections_of(messages[1])[6]
    before = struct.pack(">IBB", 6, 6, 254)
    data = several_fields(messages)
    first, _, last = data[16:-4].rpartition(bitmap)
    path.write_bytes(whole_message(data, first + before + last))
    with open_grib(path, LOCATION) as (dataset,):
        values = read_values(dataset.variables["v10"])
        assert np.flatnonzero(np.isnan(values)).tolist() == [4]
        assert np.array_equal(values, read_values(dataset.variables["u10"]), equal_nan=True)
        for name, truth in zip(("u10", "v10"), truths(path), strict=True):
            check_field(dataset, path, name, truth)
    path.write_bytes(whole_message(data, data[16:-4].replace(bitmap, before)))
    with pytest.raises(InvalidInputError, match="an earlier bitmap"), open_grib(path, LOCATION):
        pass


def test_long_messages_of_edition_1(tmp_path: Path) -> None:
    path = tmp_path / "file"
    shape = (2450, 2403)
    handle = handle_of(edition=1, small=False)
    for key, value in {
        "Ni": shape[1],
        "Nj": shape[0],
        "bitsPerValue": 24,
        "iDirectionIncrement": 65535,
        "latitudeOfFirstGridPointInDegrees": 60,
        "latitudeOfLastGridPointInDegrees": 10,
        "longitudeOfFirstGridPointInDegrees": 0,
        "longitudeOfLastGridPointInDegrees": 50,
    }.items():
        eccodes.codes_set(handle, key, value)
    values = np.random.default_rng(0).uniform(size=shape)
    eccodes.codes_set_values(handle, values.ravel())
    data = eccodes.codes_get_message(handle)
    assert len(data) > 1 << 24 and int.from_bytes(data[4:7], "big") != len(data)
    small = message(edition=1, shortName="2d")
    path.write_bytes(data + small)
    with open_grib(path, LOCATION) as datasets:
        assert len(datasets) == 2
        variable = datasets[0].variables[field_name(datasets[0])]
        assert variable.table is not None and variable.table.length.tolist() == [len(data)]
        assert np.abs(read_values(variable) - values).max() < 1e-6
        (name,) = set(datasets[1].variables) & {"d2m"}
        assert datasets[1].variables[name].table.offset.tolist() == [len(data)]


@pytest.mark.parametrize("edition", [1, 2])
@pytest.mark.parametrize("bitmap", [0, 1])
def test_every_truncation_is_refused(edition: int, bitmap: int) -> None:
    whole = message(edition=edition, bitmapPresent=bitmap)
    for size in range(1, len(whole)):
        with (
            pytest.raises(InvalidInputError, match=f"^{LOCATION}"),
            open_grib(io.BytesIO(whole[:size]), LOCATION),
        ):
            pass
        if size > 4 and size % 7 == 0:
            named = f"message 2, at byte {len(whole)}, is "
            with (
                pytest.raises(InvalidInputError, match=named),
                open_grib(io.BytesIO(whole + whole[:size]), LOCATION),
            ):
                pass
        with pytest.raises(InvalidInputError):
            # of edition 2 this is the beginning of a message, up to the end of its field
            if edition == 1 or size != len(whole) - 4:
                field_message(whole[:size])
            else:
                raise InvalidInputError("not tried")


@pytest.mark.parametrize("data", [b"", b"not a GRIB file, or GRI", b"GRIB\0\0\0\x03" + bytes(99)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match=LOCATION), open_grib(io.BytesIO(data), LOCATION):
        pass


MESSAGES = [
    *(message(edition=edition, bitmapPresent=1) for edition in (1, 2)),
    several_fields([message(bitmapPresent=1), message(shortName="v"), message(shortName="u")]),
]


@given(st.data())
def test_damaged_sections_are_refused_or_within_the_file(data: st.DataObject) -> None:
    """No other error than ours. What is in the sections is left to ecCodes."""
    content = bytearray(data.draw(st.sampled_from(MESSAGES)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 255])))
    try:
        for found in grib_fields(io.BytesIO(bytes(content)), LOCATION):
            part = bytes(content[found.offset : found.offset + found.length])
            assert len(part) == found.length
            one = field_message(part)
            assert (
                (one[:4], one[-4:]) == (b"GRIB", b"7777") == (found.header[:4], found.header[-4:])
            )
            assert len(list(grib_fields(io.BytesIO(one), LOCATION))) == 1
            assert len(list(grib_fields(io.BytesIO(found.header), LOCATION))) == 1
    except InvalidInputError:
        pass


def test_values_are_not_read(tmp_path: Path) -> None:
    """Of a long message only the sections that describe it."""
    shape = (500, 500)
    keys = {"Ni": shape[1], "Nj": shape[0], "bitsPerValue": 24}
    handle = handle_of(small=False)
    for key, value in keys.items():
        eccodes.codes_set(handle, key, value)
    eccodes.codes_set_values(handle, np.random.default_rng(0).uniform(size=shape).ravel())
    data = eccodes.codes_get_message(handle)

    class Counted(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.count += len(found)
            return found

    file = Counted(data * 3)
    with open_grib(file, LOCATION) as datasets:
        assert len(datasets) == 3 and len(data) > 700_000
        assert file.count < 4 * 70_000
    assert not file.closed


# -- the codec, with references of kerchunk --------------------------------------------
def decoded(data: bytes, shape: tuple[int, ...], var: str = "t") -> npt.NDArray[Any]:
    return GribCodec(var, "<f8").decode_field(data, shape)


@pytest.mark.parametrize("edition", [1, 2])
def test_the_codec_takes_what_follows_a_message(edition: int) -> None:
    """kerchunk takes the length of a message of edition 1 from where it stands in edition 2."""
    whole = message(edition=edition)
    expected = np.arange(15.0).reshape(SHAPE) + 100
    for rest in (b"", b"\r\r\n", message(values=np.zeros(15)), b"7777"):
        assert np.array_equal(decoded(whole + rest, SHAPE), expected)


def test_the_codec_takes_the_first_field_of_a_whole_message() -> None:
    values = np.arange(15.0)
    data = several_fields([message(values=values + 7), message(shortName="v", values=values)])
    assert np.array_equal(decoded(data, SHAPE), np.arange(15.0).reshape(SHAPE) + 7)
    assert np.array_equal(decoded(data[:-4], SHAPE), np.arange(15.0).reshape(SHAPE))


def test_the_codec_says_what_is_wrong() -> None:
    whole = message()
    for data, shape, words in [
        (b"nothing", SHAPE, "truncated"),
        (b"nothing at all", SHAPE, "not with b'GRIB'"),
        (whole, (4, 4), "15 values, but its chunk has the shape"),
        (whole[:-9], SHAPE, "damaged|truncated"),
        (message(jPointsAreConsecutive=1), (5, 3), "3, 5"),
    ]:
        with pytest.raises(InvalidInputError, match=words):
            decoded(data, shape)


@pytest.mark.parametrize("var", GEOGRAPHY)
def test_the_codec_puts_coordinates_where_values_are(var: str) -> None:
    for modes in itertools.product((0, 1), repeat=4):
        whole = message(**dict(zip(KEYS, modes, strict=True)))
        found = decoded(whole, SHAPE, var)
        rows = found if var == "latitude" else found.T
        assert (rows == rows[:, :1]).all()


@pytest.mark.parametrize("edition", [1, 2])
def test_references_of_kerchunk(tmp_path: Path, edition: int) -> None:
    """A value is missing by the bitmap; what kerchunk says of the length may be too much."""
    path = tmp_path / "file"
    values = np.arange(9992.0, 10007)
    values[3] = -5
    keys = {"shortName": "t", "bitmapPresent": 1, "missingValue": -5}
    masked = message(edition=edition, values=values, **keys)
    path.write_bytes(masked + message(edition=edition, values=np.full(15, 9999.0)))
    truth = truths(path)[0]
    refs = scan_grib(str(path), inline_threshold=0)[0]["refs"]
    (key,) = [k for k, v in refs.items() if k.startswith("t/") and isinstance(v, list)]
    # of edition 1 it takes the length from where it stands in edition 2
    assert (refs[key][2] == len(masked)) == (edition == 2)
    refs[key] = [str(path), 0, path.stat().st_size]
    refs = {k: v for k, v in refs.items() if k.startswith("t/") or k == ".zgroup"}
    session = repository(tmp_path).writable_session("main")
    import_references(refs, session)
    found = zarr.open_array(session.store, path="t", mode="r")[...]
    assert np.array_equal(found.ravel(), truth.values, equal_nan=True)
    assert np.isnan(found).sum() == 1
