"""What an object still has from where it was read, and what its blocks are like."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from xarray.coders import CFDatetimeCoder, CFTimedeltaCoder
from zarr.codecs import GzipCodec

import icechunk
from icechunk import IcechunkError, InvalidInputError, Repository
from icechunk_xarray import to_icechunk

pytestmark = [
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
    pytest.mark.filterwarnings("ignore::xarray.SerializationWarning"),
    pytest.mark.filterwarnings("ignore:.*serialized faithfully:UserWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning"),
]
PACKING = {"dtype": "i2", "scale_factor": 0.1, "add_offset": 5.0, "_FillValue": -1}
#: A write into a session, and one by a job.
WAYS: list[dict[str, Any]] = [{}, {"job": "part"}]


def create() -> Repository:
    return Repository.create(icechunk.in_memory_storage())


def read(repository: Repository, **options: Any) -> xr.Dataset:
    session: Any = repository.readonly_session("main")
    return xr.open_dataset(session, engine="icechunk", chunks=None, **options).load()


# -- times ------------------------------------------------------------------------------------
FIRST = pd.date_range("2000-01-01", periods=3)
STEPS = {
    "days": pd.Timedelta("1D"),
    "hours": pd.Timedelta("1h"),
    "seconds": pd.Timedelta("1s"),
}


@pytest.mark.parametrize("kind", ["times", "durations"])
@pytest.mark.parametrize(
    ("units", "dtype"),
    [("days", "i8"), ("days", "u2"), ("hours", "i4"), ("hours", "f8"), ("microseconds", "i8")],
)
def test_times_are_what_they_were_or_refused(units: str, dtype: str, kind: str) -> None:
    """xarray encodes times that the stored units cannot express in units of its own."""
    durations = kind == "durations"
    since = "" if durations else " since 2000-01-01"
    first = xr.Dataset({"v": ("x", (FIRST - FIRST[0] if durations else FIRST).values)})
    begun = create().writable_session("main")
    to_icechunk(first, begun, encoding={"v": {"units": units + since, "dtype": dtype}})
    starts = ["1750-01-05", "2000-01-05", "2100-01-05 03:00"]
    written = 0
    units_of_numpy: tuple[Literal["us", "ns"], ...] = ("us", "ns")
    for start, step, unit in itertools.product(starts, STEPS.values(), units_of_numpy):
        times = np.datetime64(start, "ns") + np.arange(3) * step.to_timedelta64()
        more: Any = times.astype(f"M8[{unit}]")
        if durations:
            more = more - FIRST[0].to_datetime64().astype(more.dtype)
        session = begun.fork()
        try:
            to_icechunk(xr.Dataset({"v": ("x", more)}), session, append_dim="x")
        except InvalidInputError as error:
            assert "variable 'v'" in str(error)
            continue
        written += 1
        opened: Any = session.store
        # as in another process
        how: dict[str, Any] = {
            "decode_times": CFDatetimeCoder(time_unit=unit),
            "decode_timedelta": CFTimedeltaCoder(time_unit=unit),
        }
        got = xr.open_zarr(opened, consolidated=False, chunks=None, **how)["v"]
        assert got.dtype.kind == more.dtype.kind
        gap = abs(got.values[3:] - more).astype("m8[us]").astype(int)
        assert (gap <= (1000 if dtype == "f8" else 0)).all(), (start, step, unit)
    assert written


def test_an_appended_time_that_is_missing() -> None:
    repository = create()
    to_icechunk(xr.Dataset({"v": ("t", np.zeros(3))}, {"t": FIRST}), repository)
    later = pd.DatetimeIndex(["2000-01-04", pd.NaT, "2000-01-06"])
    more = xr.Dataset({"v": ("t", np.ones(3))}, {"t": later})
    with pytest.raises(InvalidInputError, match=r"'t': the value to append at index 1 is missing"):
        to_icechunk(more, repository, append_dim="t")
    to_icechunk(more.dropna("t").sel(t=more.t.notnull()), repository, append_dim="t")
    assert read(repository)["v"].values.tolist() == [0, 0, 0, 1, 1]


# -- numbers ----------------------------------------------------------------------------------
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_fractions_do_not_become_integers_unasked(way: dict[str, Any], lazy: bool) -> None:
    counts = xr.Dataset({"v": ("x", np.arange(8) * 1.5)})
    # as the mean of integers that were read from a file
    counts["v"].encoding = {"dtype": np.dtype("i2")}
    given = counts.chunk(x=4) if lazy else counts
    with pytest.raises(InvalidInputError, match=r"'v': the value .\.5 would be read back as [28]"):
        to_icechunk(given, create(), **way)
    for encoding, wanted in (({}, counts["v"].values), ({"dtype": "i2"}, np.rint(counts["v"]))):
        repository = create()
        to_icechunk(given, repository, encoding={"v": encoding}, **way)
        assert np.array_equal(read(repository)["v"], wanted)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_values_as_they_are_stored(way: dict[str, Any], lazy: bool) -> None:
    """They may be appended, written into a region, and written by a job."""
    source = create()
    numbers = np.array([1.0, 2.5, np.nan, 7.3, 5.0, 5.1])
    whole = xr.Dataset({"v": ("x", numbers), "f": ("x", numbers)}, {"x": np.arange(6.0)})
    to_icechunk(whole, source, encoding={"v": PACKING, "f": {"_FillValue": -9.0}})
    raw = read(source, mask_and_scale=False).drop_encoding()
    assert raw["v"].dtype == np.dtype("i2")
    given = raw.chunk(x=3) if lazy else raw
    target = create()
    to_icechunk(given, target, **way)
    xr.testing.assert_identical(read(target), read(source))
    more = given.assign_coords(x=raw["x"] + 6)
    to_icechunk(more, target, append_dim="x", job="later" if way else None)
    assert np.array_equal(read(target)["v"][6:], read(source)["v"], equal_nan=True)
    part = given.isel(x=[2, 1, 0]).drop_vars("x")
    region = {"x": slice(0, 3)}
    to_icechunk(part.compute(), target, region=region, job="replaced" if way else None)
    for name in ("v", "f"):
        got = read(target)[name].values[:3]
        assert np.array_equal(got, read(source)[name].values[2::-1], equal_nan=True)
    assert read(target, mask_and_scale=False)["v"].attrs == raw["v"].attrs


def test_values_that_are_packed_in_another_way() -> None:
    repository = create()
    to_icechunk(xr.Dataset({"v": ("x", np.arange(4.0))}), repository, encoding={"v": PACKING})
    other = read(repository, mask_and_scale=False)
    other["v"].attrs["scale_factor"] = 0.2
    ways: list[dict[str, Any]] = [
        {"append_dim": "x"},
        {"region": {"x": slice(0, 4)}},
        {"mode": "a"},
    ]
    for how in ways:
        with pytest.raises(InvalidInputError, match=r"'v' has scale_factor=0\.2"):
            to_icechunk(other, repository, **how)


# -- blocks -----------------------------------------------------------------------------------
UNEVEN: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "halves": lambda ds: ds.coarsen(t=2).mean(),
    "moving mean": lambda ds: ds.rolling(t=3).mean(),
    "margins": lambda ds: ds.pad(y=1),
    "differences": lambda ds: ds.diff("t"),
    "joined": lambda ds: xr.concat([ds.isel(t=slice(0, 3)), ds], "t"),
}


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("case", UNEVEN)
def test_blocks_of_several_sizes(case: str, way: dict[str, Any]) -> None:
    ds = xr.Dataset({"v": (("t", "y"), np.random.default_rng(3).random((12, 7)))})
    uneven = UNEVEN[case](ds.chunk(t=5, y=3))
    if not way:
        with pytest.raises(IcechunkError, match=r"'v' cannot be encoded.*pass align_chunks=True"):
            to_icechunk(uneven, create())
    for encoding in ({}, {"v": {"dtype": "f8"}}, {"v": {"chunks": (4, 2)}})[: 1 if way else 3]:
        repository = create()
        to_icechunk(uneven, repository, align_chunks=True, encoding=encoding, **way)
        xr.testing.assert_equal(read(repository), uneven.compute())


def test_blocks_of_another_dtype_than_dask_says() -> None:
    """What the message says helps; `.astype` of the declared dtype does nothing."""
    v: Any = xr.DataArray(np.arange(4, dtype="f4"), dims="x").chunk(x=2)
    v = v.copy(data=v.data.map_blocks(lambda block: block / np.float64(3), dtype="f4"))
    advice = r"\.astype\('float64'\) tells Dask, and \.astype\('float64'\)\.astype\('float32'\)"
    for source in (v, v.astype("f4")):
        with pytest.raises(IcechunkError, match=advice):
            to_icechunk(source.to_dataset(name="v"), create())
    for dtype in ("f8", "f4"):
        repository = create()
        to_icechunk(v.astype("f8").astype(dtype).to_dataset(name="v"), repository)
        assert np.array_equal(read(repository)["v"], (np.arange(4) / np.float64(3)).astype(dtype))


def test_an_empty_part_of_another_store_of_zarr(tmp_path: Path) -> None:
    xr.Dataset({"v": ("x", np.arange(4))}).to_zarr(tmp_path / "zarr", zarr_format=2)
    blocks: list[Any] = [None, {}]
    for chunks in blocks:
        part = xr.open_zarr(tmp_path / "zarr", chunks=chunks).isel(x=slice(0))
        repository = create()
        to_icechunk(part, repository)
        assert read(repository).sizes["x"] == 0


# -- what is refused, and how -----------------------------------------------------------------
def one(values: Any = (1.0, 2.0), attrs: Any = None, encoding: Any = None) -> xr.Dataset:
    return xr.Dataset({"v": ("x", np.asarray(values), attrs or {}, encoding or {})})


REFUSED: dict[str, tuple[xr.Dataset, dict[str, Any], str]] = {
    # what is written, how, what the message says
    "a number as attribute": (one(attrs={1: 2}), {}, "'v' has an attribute of the name 1"),
    "an attribute of the group": (
        one().assign_attrs({None: 2}),
        {},
        "the dataset has an attribute",
    ),
    "NaN for integers": (
        one(encoding={"dtype": "i4", "_FillValue": np.nan}),
        {},
        r"'v' with the encoding dtype='i4', _FillValue=nan cannot be encoded",
    ),
    "a fill value out of range": (
        one(),
        {"encoding": {"v": {"dtype": "u1", "_FillValue": -1}}},
        r"'v' with the encoding dtype='u1', _FillValue=-1 cannot be encoded",
    ),
    "a scale that is text": (
        one(encoding={"scale_factor": "2"}),
        {},
        r"'v' with the encoding scale_factor='2' cannot be encoded",
    ),
    "years that no calendar has": (
        one(np.array(["30000-01-01"], "M8[s]")),
        {},
        "'v' cannot be encoded",
    ),
    "a region of floats": (one(), {"region": {"x": slice(0.0, 2.0)}}, "slice of whole numbers"),
    "a region of one number": (one(), {"region": {"x": 1}}, "slice of whole numbers"),
    "a region with steps": (one(), {"region": {"x": slice(0, 2, 2)}}, "slice of whole numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_names_what_is_wrong(case: str) -> None:
    dataset, how, words = REFUSED[case]
    session = create().writable_session("main")
    to_icechunk(one(), session, group=None if "region" in how else "other")
    before = session.change_set_bytes()
    with pytest.raises(InvalidInputError, match=words):
        to_icechunk(dataset, session, mode="a", **how)
    assert session.change_set_bytes() == before


@pytest.mark.parametrize("form", [lambda codec: codec, lambda codec: (codec,)])
def test_a_codec_by_itself_is_one(form: Callable[[Any], Any]) -> None:
    for codec in (numcodecs.Zlib(), GzipCodec()):
        repository = create()
        to_icechunk(one(encoding={"compressors": form(codec)}), repository)
        assert read(repository)["v"].values.tolist() == [1, 2]
