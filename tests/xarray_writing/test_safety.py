"""What would lose data is refused before it does, by name, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import icechunk
from icechunk import AlreadyExistsError, InvalidInputError, NodeNotFoundError, Session
from icechunk_xarray import to_icechunk

DAYS = pd.date_range("2000-01-01", periods=8, freq="D")
LATER = DAYS + pd.Timedelta("100D")


def series(values: Any = None, times: Any = DAYS, **more: Any) -> xr.Dataset:
    values = np.arange(len(times), dtype="f4") if values is None else np.asarray(values)
    return xr.Dataset({"a": ("time", values), **more}, {"time": times})


def begin(dataset: xr.Dataset, **options: Any) -> Session:
    """A session with a first write in it, uncommitted."""
    repo = icechunk.Repository.create(icechunk.in_memory_storage())
    session = repo.writable_session("main")
    to_icechunk(dataset, session, **options)
    return session


def read(session: Session) -> xr.Dataset:
    return xr.open_zarr(session.store, consolidated=False, chunks=None).load()


def refuse(session: Session, dataset: xr.Dataset, *words: str, **options: Any) -> None:
    """The write is refused, the message has the words, and the session is as it was."""
    before = session.change_set_bytes()
    with pytest.raises(icechunk.IcechunkError) as caught:
        to_icechunk(dataset, session, **options)
    assert isinstance(caught.value, InvalidInputError)
    for word in words:
        assert word in str(caught.value)
    assert session.change_set_bytes() == before


# -- values that would not be read back -------------------------------------------------------
PACKED = {"dtype": "i2", "scale_factor": 0.1, "add_offset": 5.0, "_FillValue": -1}
PHYSICAL = np.arange(8, dtype="f8")
UNFIT: dict[str, tuple[Any, dict[str, Any] | None, Any, str]] = {
    # the first values, their encoding, values to append, a word of the message
    "hours where days are stored": (
        DAYS,
        {"units": "days since 2000-01-01", "dtype": "i8"},
        pd.date_range("2001-01-01", periods=8, freq="6h"),
        "units='days since 2000-01-01'",
    ),
    "hours where days are stored, durations": (
        DAYS - DAYS[0],
        None,
        (DAYS - DAYS[0]) / 6,
        "units='days'",
    ),
    "times in float32": (
        DAYS,
        {"units": "seconds since 1970-01-01", "dtype": "f4"},
        LATER + pd.Timedelta("7s"),
        "float32",
    ),
    "another calendar": (
        xr.date_range("2000-01-01", periods=8, calendar="360_day", use_cftime=True),
        None,
        xr.date_range("2001-01-01", periods=8, calendar="noleap", use_cftime=True),
        "calendar='360_day'",
    ),
    "standard times in a model's calendar": (
        xr.date_range("2000-01-01", periods=8, calendar="360_day", use_cftime=True),
        None,
        LATER,
        "calendar='360_day'",
    ),
    "overflow of packed integers": (PHYSICAL, PACKED, PHYSICAL * 1e6, "int16"),
    "infinite values in packed integers": (PHYSICAL, PACKED, PHYSICAL * -np.inf, "inf"),
    "a value that is the fill value": (PHYSICAL, PACKED, PHYSICAL * 0 + 4.9, "4.9"),
    "missing values in packed integers without fill value": (
        PHYSICAL,
        {"dtype": "i2", "scale_factor": 0.1},
        PHYSICAL * np.nan,
        "nan",
    ),
    "missing values in integers": (np.arange(8), None, PHYSICAL * np.nan, "int64"),
    "fractions in integers": (np.arange(8), None, PHYSICAL / 3, "int64"),
    "wide integers in narrow ones": (np.arange(8, dtype="i4"), None, np.full(8, 2**40), "int32"),
    "wide integers in floats": (PHYSICAL, None, np.full(8, 2**60 + 1), "float64"),
    "float64 in float32": (PHYSICAL.astype("f4"), None, PHYSICAL / 3, "float32"),
    "numbers in booleans": (PHYSICAL > 3, None, np.arange(8), "True"),
    "longer strings": (np.array(["ab"] * 8), None, np.array(["abcd"] * 8), "'abcd'"),
    "longer bytes": (np.array([b"ab"] * 8), None, np.array([b"abcd"] * 8), "b'abcd'"),
    "a float that is the fill value": (
        PHYSICAL,
        {"_FillValue": -999.0},
        PHYSICAL * 0 - 999,
        "_FillValue=-999.0",
    ),
}
#: xarray warns of some of them, and writes
pytestmark = [
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
    pytest.mark.filterwarnings("ignore::xarray.SerializationWarning"),
    pytest.mark.filterwarnings("ignore:.*serialized faithfully:UserWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning"),
]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("case", UNFIT)
def test_values_that_would_not_be_read_back(case: str, lazy: bool) -> None:
    first, encoding, more, word = UNFIT[case]
    session = begin(
        xr.Dataset({"v": ("x", first)}), encoding={"v": {**(encoding or {}), "chunks": (4,)}}
    )
    dataset = xr.Dataset({"v": ("x", more)})
    if lazy:
        dataset = dataset.chunk(x=4)
    refuse(session, dataset, "variable 'v'", word, "safe_encoding=False", append_dim="x")
    if case not in ("another calendar", "standard times in a model's calendar"):
        to_icechunk(dataset, session, append_dim="x", safe_encoding=False)
        assert read(session).sizes["x"] == 16


FIT: dict[str, tuple[Any, dict[str, Any] | None, Any]] = {
    "rounded to the packing": (PHYSICAL, PACKED, PHYSICAL / 3),
    "missing values with a fill value": (PHYSICAL, PACKED, np.where(PHYSICAL > 3, np.nan, 1.0)),
    "floats that are integers": (np.arange(8), None, PHYSICAL),
    "float64 of float32": (PHYSICAL.astype("f4"), None, (PHYSICAL / 3).astype("f4").astype("f8")),
    "shorter strings": (np.array(["abc"] * 8), None, np.array(["a"] * 8)),
    "strings of any length": (
        np.array(["a"] * 8, object),
        None,
        np.array(["a", "longer", "", "é", "b", "c", "d", "e"], object),
    ),
    "days in days": (DAYS, {"units": "days since 2000-01-01", "dtype": "i8"}, LATER),
    "missing times": (DAYS, None, LATER.where(LATER.day > 15)),
    "hours in float64 days": (
        DAYS,
        {"units": "days since 1850-01-01", "dtype": "f8"},
        pd.date_range("2001-01-01", periods=8, freq="7h"),
    ),
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("case", FIT)
def test_values_that_fit_are_taken(case: str, lazy: bool) -> None:
    first, encoding, more = FIT[case]
    session = begin(
        xr.Dataset({"v": ("x", first)}), encoding={"v": {**(encoding or {}), "chunks": (4,)}}
    )
    dataset = xr.Dataset({"v": ("x", more)})
    to_icechunk(dataset.chunk(x=4) if lazy else dataset, session, append_dim="x")
    got = read(session)["v"].values[8:]
    if np.asarray(more).dtype.kind == "f":
        np.testing.assert_allclose(got, more, atol=0.05 if encoding else 0)
    elif np.asarray(more).dtype.kind == "M":
        # days in float64 are exact to a microsecond
        assert (abs(got - more)[~pd.isnull(more)] < np.timedelta64(1, "ms")).all()
        assert (pd.isnull(got) == pd.isnull(more)).all()
    else:
        assert (got == more).all()


@pytest.mark.parametrize("lazy", [False, True])
def test_encoding_of_a_new_array_must_hold_its_values_too(lazy: bool) -> None:
    session = begin(xr.Dataset({"other": 1}))
    # as a packed file that was opened, scaled and is written again
    dataset = xr.Dataset({"v": ("x", PHYSICAL * 1e6)})
    dataset["v"].encoding = dict(PACKED)
    refuse(session, dataset.chunk(x=4) if lazy else dataset, "variable 'v'", "int16", mode="a")
    # to round to what was asked for is no loss
    to_icechunk(xr.Dataset({"r": ("x", PHYSICAL / 3)}), session, mode="a", encoding={"r": PACKED})
    to_icechunk(
        xr.Dataset({"f": ("x", PHYSICAL / 3)}), session, mode="a", encoding={"f": {"dtype": "f4"}}
    )


def test_values_as_they_are_stored_are_taken() -> None:
    packed = xr.Dataset({"v": ("x", PHYSICAL)})
    session = begin(packed, encoding={"v": PACKED})
    raw = xr.open_zarr(session.store, consolidated=False, mask_and_scale=False, chunks=None).load()
    assert raw["v"].dtype == np.dtype("i2")
    copy = begin(raw)
    xr.testing.assert_identical(read(copy), read(session))


# -- appends ----------------------------------------------------------------------------------
def test_repeated_coordinates() -> None:
    session = begin(series())
    overlap = series(times=DAYS + pd.Timedelta("6D"))
    refuse(session, overlap, "coordinate 'time'", "2 of 8", "2000-01-07", append_dim="time")
    to_icechunk(overlap, session, append_dim="time", safe_append=False)
    assert read(session).sizes["time"] == 16


def test_missing_variable() -> None:
    session = begin(series(b=("time", np.arange(8.0))))
    refuse(session, series(times=LATER), "'b'", "'time'", "safe_append=False", append_dim="time")
    to_icechunk(series(times=LATER), session, append_dim="time", safe_append=False)
    rest = xr.Dataset({"b": ("time", np.arange(8.0))})
    to_icechunk(rest, session, append_dim="time", safe_append=False)
    assert read(session)["b"].shape == (16,)


def test_variable_that_is_not_on_disk() -> None:
    session = begin(series())
    refuse(
        session,
        series(times=LATER, b=("time", np.arange(8.0))),
        "variable 'b'",
        "'time'",
        append_dim="time",
    )
    refuse(session, xr.Dataset({"b": ("time", np.arange(8.0))}), "variable 'b'", mode="r+")
    refuse(
        session,
        xr.Dataset({"b": ("time", np.arange(4.0))}),
        "variable 'b'",
        mode="a",
        region={"time": slice(0, 4)},
    )


@pytest.mark.parametrize("mode", ["a", "a-"])
def test_other_coordinates(mode: str) -> None:
    def at(latitudes: list[float], times: Any) -> xr.Dataset:
        values = ("time", "lat"), np.ones((8, len(latitudes)))
        return xr.Dataset({"a": values}, {"time": times, "lat": latitudes})

    session = begin(at([1.0, 2.0], DAYS))
    refuse(
        session,
        at([1.0, 2.5], LATER),
        "coordinate 'lat'",
        "2.5 instead of 2.0 at index 1",
        append_dim="time",
        mode=mode,
    )
    refuse(
        session,
        at([1.0, 2.0, 3.0], LATER),
        "dimension 'lat'",
        "3 long, but 2 on disk",
        append_dim="time",
        mode=mode,
    )
    to_icechunk(at([1.0, 2.0], LATER), session, append_dim="time", mode=mode)  # type: ignore[arg-type]
    assert read(session).sizes == {"time": 16, "lat": 2}


def test_append_dim_that_is_nowhere() -> None:
    session = begin(series())
    refuse(session, series(times=LATER), "'day'", "'time'", append_dim="day")
    refuse(session, xr.Dataset({"a": 1.0}), "'time'", "expand_dims", append_dim="time")


def test_units_of_values() -> None:
    kelvin, celsius = series(), series(times=LATER)
    kelvin["a"].attrs["units"] = "K"
    celsius["a"].attrs["units"] = "degC"
    session = begin(kelvin)
    refuse(session, celsius, "variable 'a'", "'degC'", "'K'", append_dim="time")


# -- sizes ------------------------------------------------------------------------------------
def test_sizes_and_dimensions_that_disagree() -> None:
    session = begin(series())
    refuse(session, series().isel(time=slice(3)), "'time'", "3 long, but 8 on disk", mode="a")
    refuse(session, xr.Dataset({"a": ("t", np.arange(8.0))}), "('t',)", "('time',)", mode="a")
    # a new array beside those that are there: xarray writes it, and then nothing opens
    new = xr.Dataset({"b": ("time", np.arange(3.0))})
    refuse(session, new, "variable 'b'", "dimension 'time'", "3 long, but 8 on disk", mode="a")


# -- regions ----------------------------------------------------------------------------------
def test_region_elsewhere_than_its_coordinates() -> None:
    session = begin(series())
    part = series().isel(time=slice(2, 4)) * 10
    refuse(session, part, "coordinate 'time'", "region='auto'", region={"time": slice(0, 2)})
    to_icechunk(part, session, region="auto")
    to_icechunk(part / 2, session, region={"time": slice(2, 4)})
    np.testing.assert_array_equal(read(session)["a"], [0, 1, 10, 15, 4, 5, 6, 7])
    # without the coordinate it goes where it is told to
    to_icechunk(part.drop_vars("time"), session, region={"time": slice(-2, None)})
    np.testing.assert_array_equal(read(session)["a"], [0, 1, 10, 15, 4, 5, 20, 30])


def test_region_writes_no_coordinates() -> None:
    repo = icechunk.Repository.create(icechunk.in_memory_storage())
    to_icechunk(series(), repo)
    session = repo.writable_session("main")
    to_icechunk(series().isel(time=slice(2, 4)) * 10, session, region="auto")
    assert set(session.status().updated_chunks) == {"/a"}


def test_region_that_cannot_be() -> None:
    session = begin(series())
    part = series().isel(time=slice(2, 4))
    refuse(session, part, "'time'", "holds 3 values", region={"time": slice(0, 3)})
    refuse(session, part, "'day'", region={"day": slice(0, 2)})
    refuse(session, part, "without step", region={"time": slice(0, 4, 2)})
    refuse(session, part, "expected 'auto'", region="time")
    refuse(session, series(times=LATER), "2000-04-10", "append_dim", region="auto")
    refuse(session, series().isel(time=[3, 2]), "next to each other", region="auto")
    refuse(session, part.assign(s=1.0), "'s'", "drop_vars", region="auto")
    refuse(session, part.drop_vars("time"), "could be anywhere", region="auto")
    with pytest.raises(InvalidInputError, match="mode"):
        to_icechunk(part, session, region="auto", mode="w")


@pytest.mark.parametrize("stored", [{"chunks": (4,)}, {"chunks": (2,), "shards": (4,)}])
def test_region_of_partial_chunks_in_parallel(stored: dict[str, Any]) -> None:
    session = begin(xr.Dataset({"a": ("x", np.zeros(10))}), encoding={"a": stored})
    part = xr.Dataset({"a": ("x", np.ones(4))})
    lazy = part.chunk(x=4)
    refuse(
        session,
        lazy,
        "variable 'a', dimension 'x'",
        "2:6",
        "whole stored chunks (of 4)",
        "Write 0:8",
        region={"x": slice(2, 6)},
    )
    fine = part.chunk(x=2)
    refuse(session, fine, "meet at index 6", "Rechunk to 4", region={"x": slice(4, 8)})
    # in mode "a" the border is the caller's, what is within is not
    refuse(session, part.chunk(x=1), "index 3", "(2, 4, ...)", region={"x": slice(2, 6)}, mode="a")
    to_icechunk(lazy, session, region={"x": slice(4, 8)})
    to_icechunk(lazy.isel(x=slice(2)), session, region={"x": slice(8, 10)})
    to_icechunk(fine, session, region={"x": slice(2, 6)}, mode="a")
    to_icechunk(part.chunk(x=1), session, region={"x": slice(1, 5)}, align_chunks=True)
    to_icechunk(part, session, region={"x": slice(0, 4)})
    np.testing.assert_array_equal(read(session)["a"], np.ones(10))


def test_append_in_parallel_within_a_chunk() -> None:
    session = begin(xr.Dataset({"a": ("x", np.zeros(6))}), encoding={"a": {"chunks": (4,)}})
    more = xr.Dataset({"a": ("x", np.ones(8))})
    refuse(session, more.chunk(x=4), "index 10", "(2, 4, ...)", append_dim="x")
    to_icechunk(more.chunk(x=(2, 4, 2)), session, append_dim="x")
    to_icechunk(more.chunk(x=3), session, append_dim="x", align_chunks=True)
    np.testing.assert_array_equal(read(session)["a"], [0] * 6 + [1] * 16)


# -- modes ------------------------------------------------------------------------------------
def test_modes_that_do_not_go_together() -> None:
    session = begin(series())
    before = session.change_set_bytes()
    for mode in ("w", "w-", "r+"):
        with pytest.raises(InvalidInputError, match="append_dim"):
            to_icechunk(series(times=LATER), session, append_dim="time", mode=mode)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="'r'"):
        to_icechunk(series(), session, mode="r")  # type: ignore[arg-type]
    with pytest.raises(AlreadyExistsError, match="group '/'"):
        to_icechunk(series(), session)
    with pytest.raises(NodeNotFoundError, match="group '/g'"):
        to_icechunk(series(), session, group="g", mode="r+")
    assert session.change_set_bytes() == before


def test_encoding_that_is_not_used() -> None:
    session = begin(series())
    refuse(
        session,
        series(times=LATER),
        "variable 'a'",
        append_dim="time",
        encoding={"a": {"dtype": "f8"}},
    )
    refuse(session, series(), "'nothing'", mode="w", encoding={"nothing": {}})
    refuse(session, series(), "'f4'", mode="w", encoding={"a": "f4"})
    misspelt = {"a": {"chunk": (2,)}}
    refuse(session, series(), "variable 'a'", "did you mean 'chunks'?", mode="w", encoding=misspelt)
    unknown: dict[str, Any] = {"a": {"zlib": True}}
    refuse(session, series(), "'zlib'", "it may have chunks, shards,", mode="w", encoding=unknown)


def test_names_that_an_array_cannot_have() -> None:
    session = begin(series())
    for name in ("", "a/b", 3):
        refuse(session, xr.Dataset({name: 1}), repr(name), mode="a")


# -- attributes that JSON cannot express ------------------------------------------------------
NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("valid_min", -INF, "-Infinity"),
        ("valid_max", np.float32(INF), "Infinity"),
        ("actual_range", np.array([0, NAN]), "NaN"),
        ("missing_value", np.array([NAN, 1.0]), "NaN"),
        ("note", {"inner": [NAN]}, "NaN"),
    ],
)
def test_attributes_that_are_no_json(name: str, value: Any, shown: str) -> None:
    session = begin(series())
    dataset = xr.Dataset({"v": ("x", np.arange(3.0), {name: value})})
    refuse(session, dataset, "node '/g/v'", f"attribute '{name}", f"is {shown}", group="g")
    dataset = xr.Dataset({"v": ("x", np.arange(3.0))}, attrs={name: value})
    refuse(session, dataset, "node '/g'", f"attribute '{name}", f"is {shown}", group="g")


@pytest.mark.parametrize("where", ["encoding", "attrs"])
@pytest.mark.parametrize("missing", [NAN, np.float32(NAN), np.array([NAN]), INF, -INF])
@pytest.mark.parametrize("fill", [None, NAN, INF, -999.0])
@pytest.mark.parametrize("lazy", [False, True])
def test_missing_values_mean_the_same(where: str, missing: Any, fill: Any, lazy: bool) -> None:
    """Compared with what xarray makes of the same dataset in a NetCDF file."""
    number = float(np.ravel(missing)[0])
    marks = {"missing_value": missing} | ({} if fill is None else {"_FillValue": fill})
    raw = np.array([1, NAN, INF, -INF, -999, 2], "f4")
    variable = xr.Variable("x", raw, marks if where == "attrs" else {})
    variable.encoding = dict(marks) if where == "encoding" else {}
    dataset = xr.Dataset({"v": variable})
    fits = np.isnan(number) or fill in (None, number)
    unfit = where == "encoding" and not np.isnan(number if fill is None else fill)
    session = begin(series())
    how = {"group": "g", "safe_encoding": not unfit}
    written = dataset.chunk(x=2) if lazy else dataset
    if not fits:
        refuse(session, written, "'v'" if where == "encoding" else "'/g/v'", **how)
        return
    to_icechunk(written, session, **how)
    found = xr.open_zarr(session.store, group="g", consolidated=False, chunks=None).load()
    kept = {number, *([] if fill is None else [fill])} - {-999.0 if fill is None else NAN}
    expected = raw.copy()
    for value in kept:
        expected[raw == value] = NAN
    np.testing.assert_array_equal(found["v"], expected)
    assert not {"missing_value", "_FillValue"} & found["v"].attrs.keys()


@pytest.mark.parametrize("mode", ["a", "r+"])
def test_labels_of_what_stays(mode: Any) -> None:
    """A coordinate that says what other variables are about is not replaced beside some of them."""
    stored = xr.Dataset(
        {"a": (("x", "y"), np.ones((2, 2))), "b": ("x", [1.0, 2.0])},
        {"x": [10, 20], "lat": (("x", "y"), np.zeros((2, 2))), "height": 2.0},
    )
    session = begin(stored)
    for dataset, words in (
        (stored[["b"]].assign_coords(x=[20, 10]), ("'x'", "20 instead of 10", "'a'")),
        (stored[["a"]].assign_coords(x=[20, 10]).chunk(), ("'x'", "'b'")),
        (stored[["b"]].assign_coords(height=10.0), ("'height'", "10.0 instead of 2.0", "'a'")),
    ):
        refuse(session, dataset, *words, mode=mode)
    # all that it is about, or it alone
    to_icechunk(stored.assign_coords(x=[20, 10]), session, mode=mode)
    to_icechunk(
        stored[["x"]].assign_coords(x=[30, 40]).reset_coords("height", drop=True),
        session,
        mode=mode,
    )
    to_icechunk(stored[["a"]].assign_coords(x=[30, 40], lat=stored.lat + 1), session, mode=mode)
    assert read(session).x.values.tolist() == [30, 40]
    assert read(session).lat.values.tolist() == [[1, 1], [1, 1]]


def test_a_lazy_coordinate_that_an_append_would_replace() -> None:
    def at(times: Any, lat: float) -> xr.Dataset:
        values = ("time", "y"), np.ones((8, 2))
        return xr.Dataset({"a": values}, {"time": times, "lat": ("y", [0.0, lat])})

    session = begin(at(DAYS, 1.0))
    refuse(session, at(LATER, 2.0).chunk(y=1), "'lat'", "2.0 instead of 1.0", append_dim="time")
    to_icechunk(at(LATER, 1.0).chunk(time=8), session, append_dim="time")


# -- values that only some arrays can hold ----------------------------------------------------
@pytest.mark.parametrize("lazy", [False, True])
def test_missing_strings_do_not_become_text(lazy: bool) -> None:
    texts = np.array(["a", np.nan, "b"], np.dtypes.StringDType(na_object=np.nan))
    dataset = xr.Dataset({"s": ("x", texts)})
    session = begin(series())
    written = dataset.chunk(x=1) if lazy else dataset
    refuse(session, written, "variable 's'", "nan", group="g")
    full = xr.Dataset({"s": ("x", texts[[0, 2]])})
    to_icechunk(full, session, group="g")
    found = xr.open_zarr(session.store, group="g", consolidated=False)
    assert found["s"].values.tolist() == ["a", "b"]


STRINGS = {
    "objects": np.array(["a", "bbbbb"], object),
    "U": np.array(["a", "bbbbb"]),
    "StringDType": np.array(["a", "bbbbb"], np.dtypes.StringDType()),
    "S": np.array([b"a", b"bbbbb"]),
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=str)
@pytest.mark.parametrize("stored", STRINGS)
@pytest.mark.parametrize(
    "how", [{"append_dim": "x"}, {"region": {"x": slice(0, 2)}}, {"mode": "a"}]
)
def test_missing_strings_are_empty_ones(
    stored: str, missing: Any, how: dict[str, Any], lazy: bool
) -> None:
    """In an array that exists as in a new one; NumPy makes the text 'nan' of them, or 'None'."""
    session = begin(xr.Dataset({"s": ("x", STRINGS[stored])}))
    text: Any = b"x" if stored == "S" else "x"
    dataset = xr.Dataset({"s": ("x", np.array([text, missing], object))})
    to_icechunk(dataset.chunk(x=2) if lazy else dataset, session, **how)
    found = xr.open_zarr(session.store, consolidated=False).s.values[-2:]
    assert found.tolist() == [text, type(text)()]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_records(lazy: bool, order: str) -> None:
    dtype = [("flux", f"{order}f4"), ("mask", f"{order}i4"), ("at", [("x", f"{order}i2")])]
    values = np.array([(1.5, 2, (3,)), (np.nan, -5, (256,))], dtype)
    dataset = xr.Dataset({"r": ("x", values)})
    session = begin(series())
    to_icechunk(dataset.chunk(x=1) if lazy else dataset, session, group="g")
    found = xr.open_zarr(session.store, group="g", consolidated=False)["r"].values
    for name in ("flux", "mask"):
        np.testing.assert_array_equal(found[name], values[name])
    np.testing.assert_array_equal(found["at"]["x"], values["at"]["x"])


# -- order, repeats, and other groups ---------------------------------------------------------
@pytest.mark.parametrize(
    ("stored", "order", "words"),
    [
        ([0, 1, 2], [3, 3], "to append repeat"),
        ([0, 1, 2], [5, 4], "rising"),
        ([0, 2, 4], [3], "rising"),
        ([4, 2, 0], [-1, 3], "falling"),
        ([2, 0, 4], [3, 3], "to append repeat"),
    ],
)
@pytest.mark.parametrize("kind", ["times", "numbers", "model times"])
def test_what_an_append_does_to_the_order(
    kind: str, stored: list[int], order: list[int], words: str
) -> None:
    def at(days: list[int]) -> Any:
        if kind == "numbers":
            return np.array(days) / 4
        if kind == "times":
            return np.datetime64("2000-01-10", "ns") + np.array(days) * np.timedelta64(1, "D")
        start = xr.date_range("2000-01-01", periods=30, calendar="360_day", use_cftime=True)
        return start[np.array(days) + 10]

    session = begin(series(times=at(stored)))
    refuse(session, series(times=at(order)), "coordinate 'time'", words, append_dim="time")
    to_icechunk(series(times=at(order)), session, append_dim="time", safe_append=False)
    assert read(session).sizes["time"] == len(stored) + len(order)


def test_coordinates_without_order_take_any_values() -> None:
    session = begin(series(times=np.array([2, 0, 4])))
    to_icechunk(series(times=np.array([3, 1])), session, append_dim="time")
    names = begin(series(times=np.array(["a", "b"], object)))
    to_icechunk(series(times=np.array(["A", "0"], object)), names, append_dim="time")
    assert read(names)["time"].values.tolist() == ["a", "b", "A", "0"]


def test_an_append_that_the_rest_of_a_tree_would_not_fit() -> None:
    tree = xr.DataTree.from_dict(
        {"/": series()[["time"]], "/a": series().drop_vars("time"), "/b": xr.Dataset()}
    )
    later = series(times=LATER)
    session = begin(tree)  # type: ignore[arg-type]
    refuse(session, later.drop_vars("time"), "'/' share", "'/a'", group="a", append_dim="time")
    refuse(session, later[["time"]], "'/a' share", "'/'", append_dim="time")
    both = xr.DataTree.from_dict({"/": later[["time"]], "/a": later.drop_vars("time")})
    to_icechunk(both, session, append_dim="time")
    # as the message says
    last = series(times=LATER + pd.Timedelta("100D"))
    to_icechunk(last[["time"]], session, append_dim="time", safe_append=False)
    to_icechunk(last.drop_vars("time"), session, group="a", append_dim="time")
    opened = xr.open_datatree(session.store, engine="icechunk")  # type: ignore[arg-type]
    assert opened["/a/a"].shape == (24,)


@pytest.mark.parametrize("group", ["fine", "coarse/fine"])
@pytest.mark.parametrize("labels", [True, False])
def test_a_group_that_inherits_nothing_is_appended_to_by_itself(group: str, labels: bool) -> None:
    first, later = series(), series(times=LATER)
    if not labels:
        first, later = first.drop_vars("time"), later.drop_vars("time")
    session = begin(first, group="coarse")
    to_icechunk(first, session, group=group)
    to_icechunk(later, session, group=group, append_dim="time")


def test_append_to_a_group_that_is_not_there() -> None:
    session = begin(series(), group="ocean/surface")
    with pytest.raises(NodeNotFoundError, match="no group '/ocean/surfce' to append to; there is"):
        to_icechunk(series(times=LATER), session, group="ocean/surfce", append_dim="time")


# -- coordinates that others see --------------------------------------------------------------
GRID = xr.Dataset(
    {"v": (("t", "y", "x"), np.arange(24.0).reshape(2, 3, 4))},
    {
        "t": [0, 1],
        "x": [10.0, 20.0, 30.0, np.nan],
        "lat": (("y", "x"), np.arange(12.0).reshape(3, 4)),
        "name": ("y", np.array(["a", "b", "c"], object)),
        "h": 2.0,
    },
)


def test_an_append_leaves_equal_coordinates_alone() -> None:
    repo = icechunk.Repository.create(icechunk.in_memory_storage())
    to_icechunk(GRID, repo)
    session = repo.writable_session("main")
    to_icechunk(GRID.assign_coords(t=[2, 3]), session, append_dim="t")
    assert set(session.status().updated_chunks) == {"/v", "/t"}
    session = repo.writable_session("main")
    other = GRID.assign_coords(t=[2, 3], h=3.0)
    to_icechunk(other, session, append_dim="t", safe_append=False)
    assert set(session.status().updated_chunks) == {"/v", "/t", "/h"}
    assert read(session)["h"] == 3.0


def test_a_region_leaves_equal_coordinates_alone() -> None:
    repo = icechunk.Repository.create(icechunk.in_memory_storage())
    to_icechunk(GRID, repo, encoding={"v": {"chunks": (2, 1, 4)}})
    for lazy in (False, True):
        session = repo.writable_session("main")
        part = GRID.isel(y=slice(1, 2)) * 10
        to_icechunk(part.chunk() if lazy else part, session, region={"y": slice(1, 2)})
        assert set(session.status().updated_chunks) == {"/v"}
        expected = GRID["v"].values.copy()
        expected[:, 1] *= 10
        np.testing.assert_array_equal(read(session)["v"], expected)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_region_with_other_coordinates(lazy: bool) -> None:
    session = begin(GRID)
    part = GRID.isel(y=slice(1, 2))
    where = {"y": slice(1, 2)}
    cases = {
        "x": part.isel(x=[1, 0, 2, 3]),
        "t": part.isel(t=[1, 0]),
        "lat": part.assign_coords(lat=part["lat"] + 1),
        "name": part.assign_coords(name=("y", np.array(["z"], object))),
        "h": part.assign_coords(h=5.0),
    }
    for name, wrong in cases.items():
        written = wrong.chunk() if lazy else wrong
        refuse(session, written, f"coordinate '{name}' differs", "(", region=where)
    # as the messages say
    to_icechunk(cases["lat"].reset_coords("lat"), session, region=where)
    to_icechunk(xr.Dataset(coords={"h": 5.0}), session, mode="a")
    to_icechunk(
        cases["x"].sel(x=GRID["x"].values[:3]).drop_vars("lat"),
        begin(GRID.isel(x=slice(3))),
        region=where,
    )
    found = read(session)
    assert found["h"] == 5.0
    np.testing.assert_array_equal(found["lat"].values[1], GRID["lat"].values[1] + 1)
    np.testing.assert_array_equal(found["lat"].values[::2], GRID["lat"].values[::2])


def test_a_region_fills_coordinates_of_a_template() -> None:
    repo = icechunk.Repository.create(icechunk.in_memory_storage())
    session = repo.writable_session("main")
    grid = GRID.drop_vars("name").assign_coords(
        station=(("y", "x"), np.arange(1, 13).reshape(3, 4))
    )
    to_icechunk(grid.chunk(y=1), session, compute=False)
    for y in range(3):
        part = slice(y, y + 1)
        to_icechunk(grid.isel(y=part), session, region={"y": part})
    xr.testing.assert_identical(read(session), grid.load())
    # now that they are there they stay
    wrong = grid.isel(y=part).assign_coords(station=grid["station"].isel(y=part) + 1)
    refuse(session, wrong, "coordinate 'station' differs", region={"y": part})


# -- errors that name the variable ------------------------------------------------------------
def test_unknown_chunks() -> None:
    numbers = xr.Dataset({"a": ("x", np.arange(6))}).chunk(x=2)["a"].data
    dataset = xr.Dataset({"b": ("y", numbers[numbers > 2])})
    refuse(begin(series()), dataset, "variable 'b'", "'y'", "compute_chunk_sizes", group="g")


@pytest.mark.parametrize(
    ("values", "encoding", "word"),
    [
        ([1, 2], {"chunk": (2,)}, "chunk"),
        ([1, 2], {"dtype": "no such"}, "no such"),
        (np.array([1, "a"], object), {}, "mixed native types"),
        (np.array([1.0]), {"_FillValue": -1.0, "missing_value": -2.0}, "conflicting"),
        (np.array([[1], [1, 2]], object), {}, "type list"),
        (np.array(["a", "\ud800"], object), {}, "surrogates"),
        (np.array([b"a", b"b"]), {"_FillValue": b"a"}, "could not be read back"),
        (np.array([1, 2]), {"dtype": "U3"}, ".astype(str)"),
    ],
)
def test_what_cannot_be_encoded(values: Any, encoding: dict[str, Any], word: str) -> None:
    dataset = xr.Dataset({"good": ("x", [1.0]), "bad": ("y", values), "fine": ("x", [2.0])})
    chosen = {"bad": encoding} if encoding else None
    refuse(begin(series()), dataset, "variable 'bad'", word, group="g", encoding=chosen)


def test_times_that_a_calendar_does_not_have() -> None:
    model = xr.date_range("2000-01-01", periods=8, calendar="360_day", use_cftime=True)
    session = begin(series(times=model))
    days = pd.date_range("2000-01-31", periods=1)
    refuse(session, series(times=days), "'time'", "convert_calendar", append_dim="time")
    refuse(session, series(times=days), "'time'", append_dim="time", safe_append=False)


# -- arguments of another kind -----------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": 1}, "group is 1: expected a path such as 'ocean/surface'"),
        ({"group": Path("a")}, r"group is .*Path\('a'\): expected a path"),
        ({"append_dim": ["t"]}, r"append_dim is \['t'\]: expected the name of a dimension"),
        ({"branch": 1}, "there is no branch 1"),
        *(
            ({"encoding": {"v": {key: sizes}}}, f"encoding of 'v' has {key}=.*dimensions .'x',")
            for key in ("chunks", "shards")
            for sizes in ("x", (2, 2), (), {"x": 2})
        ),
    ],
)
def test_arguments_of_another_kind(arguments: dict[str, Any], message: str) -> None:
    dataset = xr.Dataset({"v": ("x", [1.0, 2.0])})
    with pytest.raises(icechunk.IcechunkError, match=message):
        to_icechunk(dataset, icechunk.Repository.create(icechunk.in_memory_storage()), **arguments)


@pytest.mark.parametrize("chunks", [(1,), [1], 1, "auto", None])
def test_sizes_that_are_one_for_each_dimension(chunks: Any) -> None:
    dataset = xr.Dataset({"v": ("x", [1.0, 2.0])})
    storage = icechunk.in_memory_storage()
    to_icechunk(dataset, storage, encoding={"v": {"chunks": chunks}})
    repo: Any = icechunk.Repository.open(storage)
    xr.testing.assert_identical(xr.open_dataset(repo, engine="icechunk", chunks=None), dataset)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("given", ["i1", "i2", "i4", "i8", "u8"])
@pytest.mark.parametrize("stored", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_the_ends_of_integers_are_stored_or_refused(stored: str, given: str, lazy: bool) -> None:
    """The difference of two integers may wrap around, and its magnitude be negative."""
    limits = np.iinfo(given)
    fits = np.iinfo(stored)
    for value in (limits.min, limits.max):
        session = begin(series(np.zeros(1, stored), DAYS[:1]))
        more = series(np.array([value], given), LATER[:1])
        more = more.chunk(time=1) if lazy else more
        if fits.min <= value <= fits.max:
            to_icechunk(more, session, append_dim="time")
            assert int(read(session).a[1]) == value
        else:
            with pytest.raises(InvalidInputError, match=r"would be (read back|stored)"):
                to_icechunk(more, session, append_dim="time")
