"""Archives of GRIB files of many kinds: each field is where its times and level say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import eccodes
import numpy as np
import pytest
import xarray as xr

from icechunk import InvalidInputError
from icechunk_dask import VirtualizeReport, ingest, virtualize
from tests.archives.day_files import archived
from tests.archives.grib_files import Truth, handle_of, in_order, message, several_fields, truths
from tests.archives.test_grib_scanner import PROJECTED

#: Messages of a file, with keys in their order.
_File = Sequence[bytes]

_numbers = np.random.default_rng(3)


def _field(sample: str = "regular_ll_sfc_grib{edition}", **keys: Any) -> bytes:
    """A message with values that no other has."""
    small = sample.startswith("regular_ll_sfc") and keys.pop("small", True)
    if "values" not in keys:
        handle = handle_of(sample, edition=keys.get("edition", 2), small=small)
        count = eccodes.codes_get_size(handle, "values")
        eccodes.codes_release(handle)
        keys["values"] = np.round(_numbers.normal(280, 20, count), 1)
    return message(sample, small=small, **keys)


_level = partial(_field, typeOfLevel="isobaricInhPa")
_member = partial(_field, productDefinitionTemplateNumber=1, shortName="2t")
_rain = partial(_field, shortName="tp", stepType="accum")


def _projected(grid: str, **keys: Any) -> bytes:
    handle = handle_of()
    for key, value in {"gridType": grid, **PROJECTED[grid], "jScansPositively": 1, **keys}.items():
        if eccodes.codes_is_defined(handle, key):
            eccodes.codes_set(handle, key, value)
    for key, size in (("Nx", 5), ("Ny", 3)):
        eccodes.codes_set(handle, key, size)
    eccodes.codes_set_values(handle, np.round(_numbers.normal(280, 20, 15), 1))
    data: bytes = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    return data


def _days(make: Callable[..., bytes], **keys: Any) -> list[list[bytes]]:
    """Two files of one message each."""
    return [[make(**keys, dataTime=time)] for time in (0, 600)]


#: Files, and the dimensions to expand.
KINDS: dict[str, Callable[[], tuple[Sequence[_File], list[str]]]] = {
    "times and steps, with holes": lambda: (
        [
            [_field(shortName="2t", dataTime=t, step=s) for s in ((0, 6, 12) if t else (0, 6))]
            for t in (0, 1200)
        ],
        ["time", "step"],
    ),
    "a variable on some levels": lambda: (
        [
            [
                *(_level(shortName="t", level=level, dataTime=t) for level in (500, 1000, 850)),
                *(_level(shortName="u", level=level, dataTime=t) for level in (850, 500)),
            ]
            for t in (0, 600)
        ],
        ["time", "isobaricInhPa"],
    ),
    "rain from the second step on": lambda: (
        [
            [
                *(_field(typeOfLevel="surface", step=s, dataTime=t) for s in (0, 3, 6)),
                *(_rain(dataTime=t, stepRange=f"0-{s}") for s in ((3, 6) if t else (3,))),
            ]
            for t in (0, 600)
        ],
        ["time", "step"],
    ),
    "a variable that the first place lacks": lambda: (
        [[_level(shortName="u", level=850), *(_level(level=level) for level in (500, 850))]],
        ["isobaricInhPa"],
    ),
    "members": lambda: (
        [[_member(number=n, step=s) for n in (0, 1, 2) for s in (0, 6)]],
        ["number", "step"],
    ),
    "a file a member": lambda: ([[_member(number=n)] for n in (2, 0, 1)], ["number"]),
    "a forecast after the other": lambda: (
        [[_field(shortName="2t", dataTime=t, step=s)] for t in (0, 1200) for s in (0, 6)],
        ["valid_time"],
    ),
    "steps in minutes, hours and days": lambda: (
        [
            [_field(shortName="2t", indicatorOfUnitOfTimeRange=unit, forecastTime=count)]
            for unit, count in ((0, 45), (1, 1), (2, 1))
        ],
        ["step"],
    ),
    "accumulations": lambda: ([[_rain(stepRange=f"0-{s}")] for s in (6, 12, 18)], ["step"]),
    "layers of soil": lambda: (
        [
            [
                _field(typeOfLevel="depthBelowLandLayer", topLevel=top, bottomLevel=bottom)
                for top, bottom in ((7, 28), (0, 7), (28, 100))
            ]
        ],
        ["depthBelowLandLayer"],
    ),
    "fields of one message": lambda: (
        [
            [
                several_fields(
                    [
                        _level(shortName=name, level=level, dataTime=t)
                        for name in "uv"
                        for level in (500, 850)
                    ]
                )
            ]
            for t in (0, 600)
        ],
        ["time", "isobaricInhPa"],
    ),
    "packings that change": lambda: (
        [
            [_field(small=False, packingType=packing, dataTime=t)]
            for t, packing in enumerate(("grid_simple", "grid_ccsds", "grid_jpeg", "grid_ieee"))
        ],
        ["time"],
    ),
    "all missing at first": lambda: (
        [
            [_field(values=values, bitmapPresent=1, missingValue=-5, dataTime=t)]
            for t, values in ((0, np.full(15, -5.0)), (600, np.arange(15.0) - 5))
        ],
        ["time"],
    ),
    "over the meridian of Greenwich": lambda: (
        _days(_field, longitudeOfFirstGridPointInDegrees=358, longitudeOfLastGridPointInDegrees=2),
        ["time"],
    ),
    "local tables of edition 1": lambda: (
        [
            [
                _field(edition=1, table2Version=228, indicatorOfParameter=n, dataTime=t)
                for n in (1, 130, 246)
            ]
            for t in (0, 600)
        ],
        ["time"],
    ),
    "spherical harmonics beside a grid": lambda: (
        [
            [
                message("sh_pl_grib2", small=False, dataTime=t),
                _field("regular_gg_pl_grib2", dataTime=t, shortName="q"),
            ]
            for t in (0, 600)
        ],
        ["time"],
    ),
    "reduced grids": lambda: (_days(partial(_field, "reduced_gg_pl_32_grib2")), ["time"]),
    **{
        f"{grid} {keys}": lambda grid=grid, keys=keys: (  # type: ignore[misc]
            _days(partial(_projected, grid), **keys),
            ["time"],
        )
        for grid in ("lambert", "mercator", "polar_stereographic")
        for keys in ({}, {"alternativeRowScanning": 1}, {"jPointsAreConsecutive": 1})
    },
}


def _write(folder: Path, files: Sequence[_File]) -> list[Path]:
    paths = []
    for number, messages in enumerate(files):
        paths.append(folder / f"{number}.grib2")
        paths[-1].write_bytes(b"".join(messages))
    return paths


def _named(dataset: xr.Dataset, truth: Truth) -> xr.DataArray:
    """Return the variable of a field."""
    (name,) = (
        name
        for name, variable in dataset.data_vars.items()
        if variable.attrs.get("GRIB_shortName") == truth.name
    )
    return dataset[name]


def _is(found: xr.DataArray, value: float) -> Any:
    """Whether numbers are a number, but for what rounding makes of a step in hours."""
    return np.isclose(found.values.astype(float), value, rtol=0, atol=1e-6)


def _check(dataset: xr.Dataset, paths: Sequence[Path], expanded: Sequence[str]) -> None:
    """Each field is in a place of its own, with all of its points, and there is no other."""
    empty = 0
    fields = [truth for path in paths for truth in truths(path)]
    for truth in fields:
        where = {
            "time": truth.start,
            "step": (truth.end - truth.start) / 3600,
            "valid_time": truth.end,
            "number": truth.number,
            truth.kind: truth.level,
        }
        rows = {}
        for dim in expanded:
            (rows[dim],) = np.flatnonzero(_is(dataset[dim], where[dim]))
        for name in ("time", "step", "valid_time"):
            assert _is(dataset[name].isel(rows, missing_dims="ignore"), where[name])
        found = _named(dataset, truth).isel(rows)
        if not len(truth.points):
            assert np.array_equal(found.values.ravel(), truth.values)
            continue
        columns = xr.broadcast(dataset["latitude"], dataset["longitude"], found)
        table = np.column_stack([c.transpose(*found.dims).values.ravel() for c in columns])
        assert np.array_equal(in_order(table), in_order(truth.points), equal_nan=True)
        empty += bool(np.isnan(truth.values).all())
    data = [v for v in dataset.data_vars.values() if "GRIB_shortName" in v.attrs]
    there = [v.notnull().any([d for d in v.dims if d not in expanded]) for v in data]
    assert sum(map(int, map(xr.DataArray.sum, there))) == len(fields) - empty


def _opened(target: Path, report: VirtualizeReport) -> xr.Dataset:
    return archived(target, report, decode_cf=False)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str, tmp_path: Path) -> None:
    files, expanded = KINDS[kind]()
    paths = _write(tmp_path, files)
    report = virtualize(paths, tmp_path / "repo", expand_dims=expanded, scheduler="sync")
    _check(_opened(tmp_path / "repo", report), paths, expanded)


def test_holes_of_files_that_come_later(tmp_path: Path) -> None:
    """A file may lack a variable at some places, but not at all of them."""
    files = [
        [
            *(_level(shortName="t", level=level, dataTime=time) for level in (500, 850)),
            *(_level(shortName="u", level=level, dataTime=time) for level in levels),
        ]
        for time, levels in ((0, (850,)), (600, (500,)), (1200, (500, 850)), (1800, ()))
    ]
    paths = _write(tmp_path, files)
    expanded = ["time", "isobaricInhPa"]
    options: dict[str, Any] = {"expand_dims": expanded, "concat_dims": ["time"]}
    for call in (virtualize, ingest):
        target = tmp_path / call.__name__
        for last in (1, 3):
            report = call(paths[:last], target, executor="sync", **options)
        _check(_opened(target, report), paths[:3], expanded)
        with pytest.raises(InvalidInputError, match=r"u: is in the others only|no variable 'u'"):
            call(paths, target, executor="sync", **options)


@pytest.mark.parametrize(
    ("files", "expanded"),
    [
        ([[_field(shortName="2t", step=step)] for step in (0, 3)], ["step"]),
        ([[_level(level=level)] for level in (500, 850)], ["isobaricInhPa"]),
        (
            [[_field(shortName="2t", dataTime=t, step=t // 100)] for t in (0, 600)],
            ["time", "step"],
        ),
    ],
)
def test_scalars_that_differ(files: Sequence[_File], expanded: list[str], tmp_path: Path) -> None:
    """The error says which of them to make dimensions of, and that works."""
    paths = _write(tmp_path, files)
    options: dict[str, Any] = {"scheduler": "sync", "concat_dims": expanded[:1]}
    tried: list[str] = []
    while tried != expanded:
        with pytest.raises(InvalidInputError) as caught:
            virtualize(paths, tmp_path / "repo", expand_dims=tried, **options)
        advised = re.search(r"expand_dims=(\[.*?\])", str(caught.value))
        assert advised and eval(advised[1]) != tried
        tried = eval(advised[1])
    report = virtualize(paths, tmp_path / "repo", expand_dims=tried, **options)
    _check(_opened(tmp_path / "repo", report), paths, expanded)


@pytest.mark.parametrize("call", [virtualize, ingest])
def test_files_of_the_same_times(call: Callable[..., VirtualizeReport], tmp_path: Path) -> None:
    paths = _write(tmp_path, [[_field(shortName="2t")], [_field(shortName="2t")]])
    options: dict[str, Any] = {"executor": "sync", "expand_dims": ["time"]}
    with pytest.raises(InvalidInputError, match=r"have the same 'time'.*order='url'"):
        call(paths, tmp_path / "repo", **options)
    if call is virtualize:
        report = call(paths, tmp_path / "repo", order="url", **options)
        assert len(set(_opened(tmp_path / "repo", report)["time"].values)) == 1


#: What tells two messages apart that have the same name, time, step and level.
_TELLING: dict[str, list[dict[str, Any]]] = {
    "bottomLevel": [
        {"typeOfLevel": "depthBelowLandLayer", "topLevel": 0, "bottomLevel": bottom}
        for bottom in (7, 28)
    ],
    "percentileValue": [
        {"productDefinitionTemplateNumber": 6, "percentileValue": value} for value in (10, 90)
    ],
    "typeOfEnsembleForecast": [
        {"productDefinitionTemplateNumber": 1, "number": 0, "typeOfEnsembleForecast": kind}
        for kind in (0, 1)
    ],
    "experimentVersionNumber": [
        {"setLocalDefinition": 1, "experimentVersionNumber": name} for name in ("0001", "0005")
    ],
    "longitudeOfFirstGridPoint": [
        {"longitudeOfFirstGridPointInDegrees": i, "longitudeOfLastGridPointInDegrees": i + 4}
        for i in (4, 14)
    ],
}


@pytest.mark.parametrize("key", _TELLING)
def test_what_tells_messages_apart(key: str, tmp_path: Path) -> None:
    (path,) = _write(tmp_path, [[_field(**keys) for keys in _TELLING[key]]])
    options: dict[str, Any] = {"expand_dims": ["time"], "scheduler": "sync"}
    with pytest.raises(InvalidInputError, match="several of its messages") as caught:
        virtualize([path], tmp_path / "repo", **options)
    chosen = [eval(found) for found in re.findall(r"(\{.*?\})", str(caught.value))]
    assert [list(each) for each in chosen] == [[key], [key]]
    for number, (keys, truth) in enumerate(zip(chosen, truths(path), strict=True)):
        report = virtualize(
            [path], tmp_path / "repo", group=f"g{number}", filter_by_keys=keys, **options
        )
        found = archived(tmp_path / "repo", report, f"g{number}")["t"]
        assert np.array_equal(found.values.ravel(), truth.values)


@pytest.mark.parametrize(
    ("messages", "expanded", "reason"),
    [
        (
            lambda: [_field(shortName="2t"), _member(number=1)],
            ["number"],
            r"no coordinate 'number'|some messages [^$]* filter_by_keys to take",
        ),
        (
            lambda: [
                _field(typeOfLevel="isobaricInhPa", level=500, shortName="t"),
                _field("regular_gg_pl_grib2", shortName="q", level=850),
            ],
            ["isobaricInhPa"],
            "some messages [^$]* filter_by_keys to take",
        ),
    ],
)
def test_messages_that_do_not_fit(
    messages: Callable[[], _File], expanded: list[str], reason: str, tmp_path: Path
) -> None:
    (path,) = _write(tmp_path, [messages()])
    with pytest.raises(InvalidInputError, match=reason):
        virtualize([path], tmp_path / "repo", expand_dims=expanded, scheduler="sync")
