"""What holds for any dataset: written is read, an append is a concat, a region an assignment."""

from __future__ import annotations

from typing import Any

import cftime
import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, assume, given, settings
from xarray.testing import assert_identical

import icechunk
from icechunk_xarray import to_icechunk

SIZES = {"time": 3, "y": 2, "x": 0}
NAMES = st.sampled_from(["a", "b", "Wärme", "with space", "x", "y"])
DTYPES = ["i1", "i8", "u8", "f2", "f4", "f8", "c16", "?", "<U3", "S2", "M8[ns]", "M8[s]", "m8[ns]"]
ATTRS = st.dictionaries(
    st.sampled_from(["long_name", "note", "n"]), st.text(max_size=5) | st.integers(0, 9)
)


@st.composite
def variables(draw: st.DrawFn, dims: tuple[str, ...], lengths: dict[str, int]) -> xr.Variable:
    """One variable of any dtype; times and text keep to what exists."""
    dtype = draw(st.sampled_from([*DTYPES, "object", "cftime"]))
    shape = tuple(lengths[dim] for dim in dims)
    elements: Any = None
    if dtype == "object":
        elements = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)
    elif dtype == "cftime":
        days = st.integers(0, 10_000)
        elements = days.map(lambda n: cftime.num2date(n, "days since 1900-01-01", "360_day"))
    elif dtype in ("<U3", "S2"):
        elements = npst.from_dtype(np.dtype(dtype), alphabet="abcé" if dtype == "<U3" else "abc")
    elif dtype[0] in "Mm":
        unit = 86_400_000_000_000 if "ns" in dtype else 86_400
        elements = st.integers(0, 10_000).map(lambda n: np.array(n * unit, "i8").view(dtype)[()])
    kind = np.dtype("object" if dtype == "cftime" else dtype)
    values = draw(npst.arrays(kind, shape, elements=elements, fill=st.nothing()))
    return xr.Variable(dims, values, draw(ATTRS))


@st.composite
def datasets(draw: st.DrawFn, *, along: str | None = None) -> xr.Dataset:
    """A few variables over shared dimensions; with `along`, each has that one."""
    lengths = {dim: draw(st.integers(0 if dim == "x" else 1, 4)) for dim in SIZES}
    found = {}
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        if name in lengths:
            dims: tuple[str, ...] = (name,)
            if along not in (None, name):
                continue
        else:
            dims = tuple(draw(st.lists(st.sampled_from(sorted(SIZES)), max_size=3, unique=True)))
            if along is not None and along not in dims:
                dims = (along, *dims)
        found[name] = draw(variables(dims, lengths))
    return xr.Dataset(found, attrs=draw(ATTRS))


def maybe_lazy(dataset: xr.Dataset, lazy: bool) -> xr.Dataset:
    """As Dask arrays of small blocks, or as it is."""
    return dataset.chunk(dict.fromkeys(dataset.dims, 2)) if lazy else dataset


def create() -> icechunk.Repository:
    return icechunk.Repository.create(icechunk.in_memory_storage())


def read(session: icechunk.Session, group: str | None = None) -> xr.Dataset:
    return xr.open_zarr(session.store, group=group, consolidated=False, chunks=None).load()


pytestmark = pytest.mark.filterwarnings("ignore")

few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@few
@given(datasets(), st.booleans(), st.sampled_from([None, "deep/down"]))
def test_what_is_written_is_read(dataset: xr.Dataset, lazy: bool, group: str | None) -> None:
    repo = create()
    snapshot = to_icechunk(maybe_lazy(dataset, lazy), repo, group=group)
    assert_identical(read(repo.readonly_session(snapshot_id=snapshot), group), dataset)


@few
@given(datasets(along="time"), st.booleans(), st.data())
def test_append_is_concat(dataset: xr.Dataset, lazy: bool, data: st.DataObject) -> None:
    assume("time" in dataset.dims)
    size = dataset.sizes["time"]
    cut = data.draw(st.integers(1, size))
    first, second = dataset.isel(time=slice(None, cut)), dataset.isel(time=slice(cut, None))
    session = create().writable_session("main")
    to_icechunk(first, session)
    # what the first part alone would choose may not hold the second
    second = maybe_lazy(second, lazy)
    before = session.change_set_bytes()
    try:
        to_icechunk(second, session, append_dim="time", safe_append=False, align_chunks=True)
    except icechunk.InvalidInputError as error:
        assert "would be read back as" in str(error)
        assert session.change_set_bytes() == before
        assert_identical(read(session), first)
    else:
        assert_identical(read(session), dataset)


@few
@given(datasets(along="time"), st.booleans(), st.data())
def test_region_is_assignment(dataset: xr.Dataset, lazy: bool, data: st.DataObject) -> None:
    assume("time" in dataset.dims)
    size = dataset.sizes["time"]
    start = data.draw(st.integers(0, size - 1))
    part = slice(start, data.draw(st.integers(start + 1, size)))
    session = create().writable_session("main")
    to_icechunk(dataset, session)
    flipped = dataset.isel(time=slice(None, None, -1)).drop_vars(list(dataset.indexes))
    expected = dataset.copy(deep=True)
    for name in flipped.variables:
        expected[name][{"time": part}] = flipped[name].isel(time=part).values
    values = maybe_lazy(flipped.isel(time=part), lazy)
    to_icechunk(values, session, region={"time": part}, mode="a", align_chunks=True)
    assert_identical(read(session), expected)
