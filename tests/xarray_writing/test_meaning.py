"""Kinds of values, names, attributes and coordinates: they stay what they are, or are refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

import icechunk
from icechunk import InvalidInputError, Repository, Session
from icechunk_xarray import to_icechunk

pytestmark = [
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
    pytest.mark.filterwarnings("ignore::xarray.SerializationWarning"),
]


def create() -> Repository:
    return Repository.create(icechunk.in_memory_storage())


def begin(dataset: xr.Dataset | xr.DataTree, **options: Any) -> Session:
    session = create().writable_session("main")
    to_icechunk(dataset, session, **options)
    return session


def read(session: Session, **options: Any) -> xr.Dataset:
    opened: Any = session
    return xr.open_dataset(opened, engine="icechunk", chunks=None, **options).load()


def refuse(session: Session, obj: Any, *words: str, **options: Any) -> None:
    """The write is refused, the message has the words, and the session is as it was."""
    before = session.change_set_bytes()
    with pytest.raises(InvalidInputError) as caught:
        to_icechunk(obj, session, **options)
    for word in words:
        assert word in str(caught.value)
    assert session.change_set_bytes() == before


# -- kinds of values --------------------------------------------------------------------------
TIMES = pd.date_range("2000-01-01", periods=4).values
KINDS: dict[str, Any] = {
    "numbers": np.arange(4),
    "times": TIMES,
    "durations": TIMES - TIMES[0],
    "texts": np.array(list("abcd")),
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    "how", [{"append_dim": "x"}, {"region": {"x": slice(0, 4)}}, {"mode": "a"}]
)
@pytest.mark.parametrize("stored", KINDS)
@pytest.mark.parametrize("given", KINDS)
def test_kinds_of_values(given: str, stored: str, how: dict[str, Any], lazy: bool) -> None:
    first = xr.Dataset({"v": ("x", KINDS[stored])})
    second = xr.Dataset({"v": ("x", KINDS[given])})
    session = begin(first)
    if lazy:
        second = second.chunk()
    if given != stored:
        refuse(session, second, f"'v' has {given}", f"{stored} are on disk", **how)
        return
    to_icechunk(second, session, **how)
    expected = xr.concat([first, first], "x") if "append_dim" in how else first
    assert read(session)["v"].equals(expected["v"])


def test_numbers_that_say_what_they_are() -> None:
    """Raw numbers go where the same numbers are."""
    for values in (TIMES, TIMES - TIMES[0]):
        session = begin(xr.Dataset({"v": ("x", values)}))
        raw = read(session, decode_times=False, decode_timedelta=False)
        assert raw["v"].dtype.kind == "i"
        to_icechunk(raw, session, append_dim="x")
        assert np.array_equal(read(session)["v"].values, np.concatenate([values, values]))


def test_labels_of_another_kind_find_no_place() -> None:
    whole = xr.Dataset({"v": ("t", np.zeros(4))}, {"t": TIMES})
    session = begin(whole)
    part = xr.Dataset({"v": ("t", np.ones(2))}, {"t": [1, 2]})
    for safe in (True, False):
        refuse(session, part, "'t' has numbers", region="auto", safe_encoding=safe)


@pytest.mark.parametrize("calendar", ["360_day", "noleap", "standard", "julian"])
def test_calendars(calendar: str) -> None:
    session = begin(xr.Dataset({"v": ("t", np.zeros(4))}, {"t": TIMES}))
    times = xr.date_range("2000-02-01", periods=4, calendar=calendar, use_cftime=True)
    later = xr.Dataset({"v": ("t", np.ones(4))}, {"t": times})
    refuse(session, later, "variable 't'", repr(calendar), "dim='t'", append_dim="t")
    # as the message says
    how: dict[str, Any] = {"align_on": "date"} if calendar == "360_day" else {}
    converted = later.convert_calendar("proleptic_gregorian", dim="t", **how)
    to_icechunk(converted, session, append_dim="t")
    assert read(session).sizes["t"] == 4 + converted.sizes["t"]


@pytest.mark.parametrize("raw", [True, False])
def test_numbers_of_another_calendar(raw: bool) -> None:
    times = xr.date_range("2000-02-01", periods=4, calendar="360_day", use_cftime=True)
    session = begin(xr.Dataset({"v": ("x", times)}))
    numbers = read(session, decode_times=False)
    if not raw:
        numbers["v"].attrs["calendar"] = "noleap"
        refuse(session, numbers, "'noleap'", "'360_day'", append_dim="x")
    else:
        to_icechunk(numbers, session, append_dim="x")
        assert read(session)["v"].values.tolist() == [*times, *times]


def test_strings_of_fixed_length_go_to_those_of_any() -> None:
    session = begin(xr.Dataset({"v": ("x", np.array(["a", "bb"], object))}))
    for values in (np.array(["longer", ""]), np.array(["c", "d"], np.dtypes.StringDType())):
        to_icechunk(xr.Dataset({"v": ("x", values)}), session, append_dim="x")
    assert read(session)["v"].values.tolist() == ["a", "bb", "longer", "", "c", "d"]


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (pd.Categorical(["a", None]), ".astype(str)"),
        (pd.array([1, None], dtype="Int64"), ".to_numpy(dtype)"),
        (pd.array([True, None], dtype="boolean"), ".to_numpy(dtype)"),
        (pd.date_range("2000", periods=2, tz="UTC"), "tz_localize(None)"),
        (pd.period_range("2000", periods=2, freq="M"), ".to_timestamp()"),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_values_of_pandas(values: Any, advice: str) -> None:
    session = create().writable_session("main")
    refuse(session, xr.Dataset({"v": ("x", values)}), "'v'", str(values.dtype), advice)
    refuse(session, xr.Dataset({"v": 1}, {"x": pd.Index(values)}), "'x'", advice)


class Elsewhere:
    """An array that is in another memory, as that of a graphics card."""

    shape, dtype, ndim, size = (2,), np.dtype("f8"), 1, 2

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion is not allowed")

    def __array_function__(self, *_: Any) -> Any:
        return self

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        return self

    def __getitem__(self, _: Any) -> Elsewhere:
        return self

    def astype(self, *_: Any, **__: Any) -> Elsewhere:
        return self


@pytest.mark.parametrize("safe", [True, False])
def test_arrays_that_numpy_cannot_have(safe: bool) -> None:
    session = create().writable_session("main")
    dataset = xr.Dataset({"v": ("x", Elsewhere())})
    refuse(session, dataset, "variable 'v'", "convert it first", safe_encoding=safe)


@pytest.mark.parametrize("units", ["months since 2000-01-01", "years since 2000-01-01"])
def test_units_that_xarray_does_not_know(units: str) -> None:
    session = create().writable_session("main")
    dataset = xr.Dataset({"v": ("x", TIMES)})
    refuse(session, dataset, "variable 'v'", units.split()[0], encoding={"v": {"units": units}})


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("first", [0.0, 730000.0])
@pytest.mark.parametrize(
    ("units", "calendar"),
    [
        *[(word, "standard") for word in ("h", "hrs", "min", "s", "sec", "msec", "Days", "d")],
        ("days", "proleptic_gregorian"),
        ("hr", "noleap"),
        ("months", "360_day"),
        ("common_years", "365_day"),
    ],
)
def test_units_that_xarray_only_reads(
    units: str, calendar: str, first: float, stored: bool
) -> None:
    """Times are encoded by other words for them, also since the year 1."""
    origin = "2000-01-01" if first == 0 else "1-1-1"
    attrs = {"units": f"{units} since {origin}", "calendar": calendar}
    raw = xr.Dataset({"v": ("t", np.arange(6))}, {"t": ("t", np.arange(6.0) + first, attrs)})
    if units in ("months", "common_years"):
        raw["t"] = raw["t"] % 1000
        raw["t"].attrs = attrs
    dataset = xr.decode_cf(raw)
    assert dataset["t"].dtype.kind != "f"
    before = raw if stored else dataset
    session = begin(before.isel(t=slice(0, 4)))
    later = dataset.isel(t=slice(4, 6))
    if stored and units in ("months", "common_years"):
        # no days among months
        return refuse(session, later, "variable 't'", units, append_dim="t")
    to_icechunk(later, session, append_dim="t")
    xr.testing.assert_equal(read(session), dataset)


# -- names and attributes ---------------------------------------------------------------------
@pytest.mark.parametrize("name", [".", "..", "zarr.json", "a\\b"])
def test_names_that_zarr_takes_for_something_else(name: str) -> None:
    session = create().writable_session("main")
    refuse(session, xr.Dataset({name: 1}), repr(name), "rename it")
    if name != "zarr.json":
        refuse(session, xr.Dataset({"v": 1}), "no name of a group", group=f"a/{name}")


@pytest.mark.parametrize("dim", [5, 1.5, ("x", 1)])
def test_dimensions_that_are_no_texts(dim: Any) -> None:
    dataset = xr.Dataset({"v": ((dim,), [1, 2])})
    session = create().writable_session("main")
    refuse(session, dataset, "variable 'v'", repr(dim), "rename")
    # as the message says
    to_icechunk(dataset.rename({dim: str(dim)}), session)
    assert read(session).sizes == {str(dim): 2}


def test_groups_and_arrays_of_one_name() -> None:
    session = begin(xr.Dataset({"v": 1}))
    for group in ("v", "v/w"):
        for mode in ("w", "w-", "a"):
            refuse(session, xr.Dataset({"x": 1}), "'/v' is an array", group=group, mode=mode)
    to_icechunk(xr.Dataset({"x": 1}), session, group="g")
    refuse(session, xr.Dataset({"g": 1}), "there is a group '/g'", mode="a")
    # all is written anew
    to_icechunk(xr.Dataset({"g": 1}), session, mode="w")
    assert list(read(session)) == ["g"]


@pytest.mark.parametrize(
    "value",
    [
        b"text",
        datetime(2000, 1, 1),
        1j,
        {1, 2},
        {"a": [1, np.int64(3)]},
        np.array(["2000"], "M8[D]"),
    ],
    ids=repr,
)
def test_attributes_that_json_has_no_form_for(value: Any) -> None:
    session = create().writable_session("main")
    refuse(session, xr.Dataset({"v": ((), 1, {"k": value})}), "variable 'v'", "attribute 'k'")
    refuse(session, xr.Dataset(attrs={"k": value}), "the dataset", "attribute 'k'")


def test_a_dimension_that_is_there_twice() -> None:
    square = xr.Dataset({"v": (("x", "x"), np.ones((2, 2)))})
    session = begin(square)
    refuse(session, square, "variable 'v'", "more than once", append_dim="x")


def test_arrays_without_dimension_names() -> None:
    session = create().writable_session("main")
    zarr.create_array(session.store, name="raw", shape=(2,), dtype="f8")
    refuse(session, xr.Dataset({"raw": ("x", [1.0, 2.0])}), "'raw'", "dimension_names", mode="a")
    # it is nobody's business otherwise
    to_icechunk(xr.Dataset({"v": ("x", [1.0])}), session, mode="a")
    refuse(session, xr.Dataset({"v": ("x", [2.0])}), "'raw'", append_dim="x")


# -- attributes and coordinates of what exists --------------------------------------------------
WHOLE = xr.Dataset(
    {"v": ("t", np.arange(4.0), {"long_name": "first", "comment": "c"})},
    {"t": np.arange(4), "h": ("t", np.ones(4)), "alone": ("z", [1, 2])},
    {"title": "first"},
)


def test_what_replaces_values_replaces_attributes() -> None:
    session = begin(WHOLE, encoding={"v": {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -9}})
    again = WHOLE.assign(v=("t", np.arange(4.0) * 2, {"long_name": "second", "n": np.int64(2)}))
    to_icechunk(again, session, mode="a")
    found = read(session)
    xr.testing.assert_identical(found.astype("f8"), again.astype("f8"))
    assert found["v"].encoding["scale_factor"] == 0.5
    assert found["v"].encoding["_FillValue"] == -9
    # who has none leaves those that are there; values alone change none
    to_icechunk(again.drop_attrs(), session, mode="a")
    assert read(session)["v"].attrs == again["v"].attrs
    to_icechunk(WHOLE, session, mode="r+")
    assert read(session)["v"].attrs == again["v"].attrs


def test_attributes_of_times_stay_those_of_the_numbers() -> None:
    dataset = xr.Dataset({"v": ("t", np.zeros(4))}, {"t": ("t", TIMES, {"axis": "T"})})
    session = begin(dataset, encoding={"t": {"units": "hours since 1990-01-01", "dtype": "i4"}})
    again = dataset.assign_coords(t=("t", TIMES, {"axis": "T", "note": "new"}))
    to_icechunk(again, session, mode="a")
    assert read(session)["t"].identical(again["t"].astype("M8[ns]"))
    assert read(session)["t"].encoding["units"] == "hours since 1990-01-01"


@pytest.mark.parametrize(
    "change",
    [
        lambda ds: ds.assign_coords(new=("t", np.zeros(4))),
        lambda ds: ds.reset_coords("h"),
        lambda ds: ds.assign(w=("t", np.zeros(4))),
        lambda ds: ds.drop_vars("h"),
        lambda ds: ds.rename(v="w"),
    ],
    ids=["new", "no more", "another variable", "left out", "only another variable"],
)
def test_coordinates_are_coordinates(change: Callable[[xr.Dataset], xr.Dataset]) -> None:
    session = begin(WHOLE)
    changed = change(WHOLE)
    to_icechunk(changed, session, mode="a")
    found = read(session)
    expected = set(changed.coords) | {n for n in WHOLE.coords if n not in changed.variables}
    assert set(found.coords) == expected


@pytest.mark.parametrize("attrs", [{}, {"title": "later"}])
def test_an_append_leaves_coordinates_and_attributes(attrs: dict[str, Any]) -> None:
    session = begin(WHOLE)
    later = WHOLE.drop_vars("alone").assign_coords(t=np.arange(4, 8))
    later.attrs = attrs
    to_icechunk(later, session, append_dim="t")
    found = read(session)
    assert set(found.coords) == {"t", "h", "alone"}
    assert found.attrs == (attrs or WHOLE.attrs)


# -- places -----------------------------------------------------------------------------------
def test_labels_that_were_rounded() -> None:
    whole = xr.Dataset({"v": ("x", np.zeros(8))}, {"x": np.arange(8) * 0.1})
    session = begin(whole)
    for dtype in ("f8", "f4"):
        labels = (np.arange(2, 6) / 10).astype(dtype)
        part = xr.Dataset({"v": ("x", np.arange(4.0))}, {"x": labels})
        to_icechunk(part, session, region="auto")
        assert read(session)["v"].values.tolist() == [0, 0, 0, 1, 2, 3, 0, 0]
        assert read(session)["x"].equals(whole["x"])
    for labels in ([0.25], [0.2, np.nan], [0.2001]):
        part = xr.Dataset({"v": ("x", np.ones(len(labels)))}, {"x": labels})
        refuse(session, part, "not on disk", region="auto")
    # two that are as near as that are told from each other
    dense = xr.Dataset({"v": ("x", np.zeros(3))}, {"x": [1.0, 1.0 + 1e-8, 2.0]})
    close = begin(dense)
    part = xr.Dataset({"v": ("x", [1.0])}, {"x": [1.0 + 2e-8]})
    refuse(close, part, "not on disk", region="auto")
    to_icechunk(part.assign_coords(x=[1.0 + 1e-8]), close, region="auto")
    assert read(close)["v"].values.tolist() == [0, 1, 0]


# -- what is read while it is replaced ----------------------------------------------------------
@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize("mode", ["w", "a", "r+"])
def test_values_of_the_group_that_is_written_later(mode: Any, group: str | None) -> None:
    whole = xr.Dataset({"v": ("t", np.arange(4.0))}, {"t": np.arange(4)})
    session = begin(whole, group=group, encoding={"v": {"chunks": (2,)}})
    opened: Any = session
    source = xr.open_dataset(opened, engine="icechunk", group=group, chunks={})
    turned = source.assign(v=("t", (source["v"] * 2).data[::-1]))
    if mode == "w":
        refuse(session, turned, "'v'", "same session", mode=mode, group=group, compute=False)
        # elsewhere, or of a version, it is no trouble
        to_icechunk(turned, session, group="other", compute=False).compute()
        assert read(session, group="other")["v"].values.tolist() == [6, 4, 2, 0]
        return
    to_icechunk(turned, session, mode=mode, group=group, compute=False).compute()
    assert read(session, group=group)["v"].values.tolist() == [6, 4, 2, 0]


def test_values_of_a_version_that_is_replaced_later() -> None:
    repo = create()
    whole = xr.Dataset({"v": ("t", np.arange(4.0))})
    to_icechunk(whole, repo)
    version: Any = repo.readonly_session("main")
    source = xr.open_dataset(version, engine="icechunk", chunks={"t": 2})
    session = repo.writable_session("main")
    to_icechunk(source * 2, session, mode="w", compute=False).compute()
    assert read(session)["v"].values.tolist() == [0, 2, 4, 6]


# -- groups in each other -----------------------------------------------------------------------
def series(length: int, start: int = 0) -> xr.Dataset:
    steps = np.arange(start, start + length)
    return xr.Dataset({"v": ("t", steps * 1.0)}, {"t": steps})


FITTING = [series(4), series(4).drop_vars("t"), xr.Dataset({"v": ("u", [1.0])})]
CLASHING = [series(6), series(6).drop_vars("t"), series(4, 2)]


@pytest.mark.parametrize("outer", [series(4), series(4).drop_vars("t")], ids=["labels", "none"])
@pytest.mark.parametrize("inner", range(6))
@pytest.mark.parametrize("first", ["outer", "inner"])
@pytest.mark.parametrize("group", ["g", "g/h/i"])
def test_groups_that_no_tree_can_have(
    outer: xr.Dataset, inner: int, first: str, group: str
) -> None:
    """Whether xarray opens a tree decides."""
    child = [*FITTING, *CLASHING][inner]
    session = create().writable_session("main")
    parts: list[tuple[xr.Dataset, str | None]] = [(outer, None), (child, group)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for part, where in parts if first == "outer" else parts[::-1]:
            to_icechunk(part, session, group=where, mode="a")
    told = [each for each in caught if "open_datatree" in str(each.message)]
    source: Any = session
    if told:
        assert told[0].filename == __file__
        with pytest.raises(ValueError, match="not aligned"):
            xr.open_datatree(source, engine="icechunk")
    else:
        xr.open_datatree(source, engine="icechunk")


def test_a_tree_that_does_not_fit_its_place() -> None:
    session = begin(series(4))
    refuse(session, xr.DataTree.from_dict({"/": xr.Dataset(), "/a": series(6)}), "'/a'", mode="a")
    tree = xr.DataTree.from_dict({"/": series(6), "/a": series(6)})
    refuse(session, tree, "'/k", "rename the dimension", group="k")
    to_icechunk(xr.DataTree.from_dict({"/": series(4), "/a": series(4)}), session, group="k")
    opened: Any = session
    assert xr.open_datatree(opened, engine="icechunk").groups == ("/", "/k", "/k/a")


# -- bounds without units -----------------------------------------------------------------------
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("how", ["append", "region", "a"])
def test_bounds_have_the_units_of_what_they_bound(how: str, lazy: bool) -> None:
    """As CF has it, and most files that an archive refers to."""

    def month(start: str) -> xr.Dataset:
        times = pd.date_range(start, periods=4).values
        bounds = np.stack([times, times + np.timedelta64(1, "D")], 1)
        return xr.Dataset({"bnds": (("t", "b"), bounds)}, {"t": ("t", times, {"bounds": "bnds"})})

    first, second = month("2000-01-01"), month("2000-02-01")
    encoding = {"units": "days since 1990-01-01", "dtype": "i4", "calendar": "standard"}
    session = begin(first, encoding={"t": encoding, "bnds": encoding})
    array = zarr.open_array(session.store, path="bnds", mode="r+")
    array.attrs.put({})
    if lazy:
        second = second.chunk(t=4)
    if how == "append":
        to_icechunk(second, session, append_dim="t")
        wanted = np.concatenate([first["bnds"].values, second["bnds"].values])
    elif how == "a":
        to_icechunk(second, session, mode="a")
        wanted = second["bnds"].values
    else:
        part = first.assign(bnds=first["bnds"] + np.timedelta64(1, "D")).isel(t=slice(1, 3))
        to_icechunk(part.chunk(t=2) if lazy else part, session, region="auto", mode="a")
        wanted = first["bnds"].values.copy()
        wanted[1:3] += np.timedelta64(1, "D")
    assert np.array_equal(read(session)["bnds"].values, wanted)
    assert zarr.open_array(session.store, path="bnds", mode="r").dtype == np.int32
