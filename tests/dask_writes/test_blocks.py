"""Blocks that are not what Dask declared, or not what the array holds: refused, or unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis.extra import numpy as numpy_st
from numpy.dtypes import StringDType

from icechunk import IcechunkError, InvalidInputError, MemoryStorage, Repository, Session, TaskError
from icechunk_dask import store_dask
from icechunk_dask.casting import BlockRefusedError, fitted
from icechunk_xarray import to_icechunk

#: Numbers at and beside the limits of what numeric dtypes hold.
EDGES = [0, 1, 2, 255, 256, 2**24 + 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"]
TEXTS = ["U1", "U2", "U5", "S1", "S4"]


def session() -> Session:
    return Repository.create(MemoryStorage()).writable_session("main")


def store(source: da.Array, dtype: Any, chunks: Any = None, **how: Any) -> Any:
    """Store in an array and return what it holds; None if it is refused by name."""
    target = session()
    kept = chunks or source.chunksize
    array = zarr.create_array(
        target.store, name="a", shape=source.shape, dtype=dtype, chunks=kept, fill_value=None
    )
    with dask.config.set(scheduler="sync"):
        try:
            store_dask(sources=[source], targets=[array], **how)
        except TaskError as error:
            assert isinstance(error.__cause__, InvalidInputError)
            assert "of array '/a'" in str(error) and "region [" in str(error)
            assert not target.changed_chunks("a").any()
            return None
    return array[...]


def same(one: Any, other: Any) -> bool:
    """Whether two numbers or texts of Python are equal, and mean the same."""
    if isinstance(one, str | bytes) or isinstance(other, str | bytes):
        return type(one) is type(other) and one == other
    if isinstance(one, complex) or isinstance(other, complex):
        # integers have both parts, too, and stay exact
        return same(one.real, other.real) and same(one.imag, other.imag)
    return one == other or (one != one and other != other)


@pytest.mark.filterwarnings("ignore:Casting complex values")
@given(data=st.data(), given_dtype=st.sampled_from(NUMBERS), stored=st.sampled_from(NUMBERS))
def test_numbers_are_stored_exactly_or_refused(
    data: st.DataObject, given_dtype: str, stored: str
) -> None:
    """Compared as numbers of Python, which are exact; a block that nobody declared so."""
    check_exact(data.draw(numbers(np.dtype(given_dtype))), stored)


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("stored", NUMBERS)
@pytest.mark.parametrize("given_dtype", NUMBERS)
def test_edges_are_stored_exactly_or_refused(given_dtype: str, stored: str) -> None:
    for edge in edges(np.dtype(given_dtype)):
        check_exact(np.array([edge]), stored)


def check_exact(values: np.ndarray[Any, Any], stored: str) -> None:
    try:
        result = fitted(values, values.shape, np.dtype("V1"), np.dtype(stored))
    except BlockRefusedError as error:
        assert values.dtype != np.dtype(stored)
        with np.errstate(all="ignore"):
            cast = values.astype(stored)
        assert not all(map(same, values.tolist(), cast.tolist())), error
    else:
        assert result.dtype == np.dtype(stored) or not result.size
        assert all(map(same, values.tolist(), result.tolist()))


def edges(dtype: np.dtype[Any]) -> list[Any]:
    found = []
    with np.errstate(all="ignore"):
        for value in (*EDGES, *(-edge for edge in EDGES), 0.5, np.nan, np.inf, -np.inf, 1e300):
            try:
                found.append(np.array(value).astype(dtype)[()])
            except OverflowError:
                continue
    return found


def numbers(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    near = st.sampled_from(edges(dtype))
    return numpy_st.arrays(dtype, st.integers(1, 4), elements=near | numpy_st.from_dtype(dtype))


@given(words=st.lists(st.text("abé", max_size=3), min_size=1), stored=st.sampled_from(TEXTS))
def test_texts_are_stored_whole_or_refused(words: list[str], stored: str) -> None:
    values = np.array(words)
    fits = all(len(w.encode() if stored[0] == "S" else w) <= int(stored[1]) for w in words)
    plain = stored[0] == "U" or all(word.isascii() for word in words)
    if fits and plain:
        result = fitted(values, values.shape, values.dtype, np.dtype(stored))
        assert result.astype("U").tolist() == words
    else:
        with pytest.raises(BlockRefusedError):
            fitted(values, values.shape, values.dtype, np.dtype(stored))


#: What a task returns, what Dask declared, and the words of the refusal.
LIES: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "longer strings": (lambda b: np.array(["ab"] * len(b)), "U1", "'ab'.*stored as 'a'"),
    "larger integers": (lambda b: np.full(len(b), 100000), "i2", "100000 .*stored as -31072"),
    "missing": (lambda b: np.full(len(b), np.nan), "i4", "nan .*stored as -2147483648"),
    "rounded": (lambda b: np.full(len(b), 0.1), "f4", "0.1 .*where Dask declared float32"),
    "complex": (lambda b: np.full(len(b), 1j), "f8", "1j"),
    "shorter": (lambda b: np.arange(1.0), "f8", r"\(1,\).*declared \(2,\)"),
    "longer": (lambda b: np.arange(3.0), "f8", r"\(3,\).*declared \(2,\)"),
    "a number": (lambda b: 1.0, "f8", r"\(\).*declared \(2,\)"),
    "masked": (lambda b: np.ma.masked_equal(np.zeros(len(b)), 0), "f8", "masked values"),
    "text": (lambda b: np.array(["1"] * len(b)), "f8", "<U1.*cannot be stored as float64"),
    "text objects": (lambda b: np.array(["1"] * len(b), object), "f8", "'1' of object"),
}


@pytest.mark.parametrize("case", LIES)
@pytest.mark.parametrize("align_chunks", [False, True])
def test_blocks_that_are_not_what_dask_declared(case: str, align_chunks: bool) -> None:
    function, dtype, words = LIES[case]
    source = da.zeros(4, chunks=2).map_blocks(function, dtype=dtype)
    target = session()
    array = zarr.create_array(target.store, name="a", shape=(4,), dtype=dtype, chunks=(2,))
    with dask.config.set(scheduler="sync"):
        with pytest.raises(TaskError, match=rf"^writing region \[.:.\] of array '/a' .*{words}"):
            store_dask(sources=[source], targets=[array], align_chunks=align_chunks)
        if case in ("masked", "text objects"):
            return  # xarray has its own way with these
        with pytest.raises(InvalidInputError, match=words):
            to_icechunk(
                xr.Dataset({"v": ("x", source)}), target, align_chunks=align_chunks, group="g"
            )
    assert not target.changed_chunks("a").any()
    assert target.tree.get("/g") is None


def test_blocks_of_another_shape_are_not_cut_into_others() -> None:
    """Rechunking slices what there is, so the shape is looked at before."""
    source = da.zeros(6, chunks=3).map_blocks(lambda block: np.arange(4.0), dtype="f8")
    target = session()
    array = zarr.create_array(target.store, name="a", shape=(6,), dtype="f8", chunks=(2,))
    words = r"block \[.:.\] of the source of array '/a': .*\(4,\), and Dask declared \(3,\)"
    with dask.config.set(scheduler="sync"), pytest.raises(IcechunkError, match=words):
        store_dask(sources=[source], targets=[array], align_chunks=True)
    right = da.arange(6, chunks=3)
    assert store(right, "i8", chunks=(2,), align_chunks=True).tolist() == list(range(6))


#: Sources as they were declared, the dtype of the array, and whether that is refused.
DECLARED: list[tuple[Any, Any, bool]] = [
    (np.array([1, 2]), "i1", False),
    (np.array([1, 300]), "u1", True),
    (np.array([-1]), "u8", True),
    (np.array([2.0]), "i4", False),
    (np.array([2.5]), "i4", True),
    (np.array([0, 1]), "?", False),
    (np.array([2]), "?", True),
    (np.array([1 + 0j]), "f8", False),
    (np.array([1 + 2j]), "f8", True),
    # precision is what an array of that dtype is chosen for
    (np.array([0.1]), "f4", False),
    (np.array([1e300]), "f4", True),
    (np.array([2**53 + 1]), "f8", True),
    (np.array(["2000-01-01"], "M8[D]"), "M8[ns]", False),
    (np.array(["NaT"], "M8[D]"), "M8[s]", False),
    (np.array(["2000-01-01T01"], "M8[h]"), "M8[D]", True),
    (np.array(["2000-01-01"], "M8[D]"), "i8", True),
    (np.array(["a", "bcd"]), "U3", False),
    (np.array(["a", "bcd"]), StringDType(), False),
    (np.array(["a", "bcd"], object), StringDType(), False),
    (np.array(["a", None], object), StringDType(), True),
    (np.array(["a", np.nan], StringDType(na_object=np.nan)), StringDType(), True),
    (np.array(["a", None], StringDType(na_object=None)), StringDType(), True),
    (np.array([(1, 2)], [("a", "i4"), ("b", "f8")]), [("a", "i4"), ("b", "f8")], False),
    (np.array([(1, 2)], [("a", "i8"), ("b", "f8")]), [("a", "i4"), ("b", "f8")], False),
    (np.array([(2**40, 2)], [("a", "i8"), ("b", "f8")]), [("a", "i4"), ("b", "f8")], True),
    (np.array([(1, 2)], [("a", "i4"), ("b", "f8")]), [("a", "i4"), ("c", "f8")], True),
]


@pytest.mark.parametrize(("values", "dtype", "refused"), DECLARED)
@pytest.mark.filterwarnings("ignore:.*does not have a Zarr V3 specification")
def test_values_of_another_dtype_than_the_array(values: Any, dtype: Any, refused: bool) -> None:
    stored = store(da.from_array(values, chunks=1), dtype)
    assert (stored is None) == refused
    if stored is not None:
        expected = values.real if stored.dtype.kind == "f" else values
        np.testing.assert_array_equal(stored, expected.astype(stored.dtype))


def test_masked_arrays_without_masked_values() -> None:
    source = da.ma.masked_equal(da.arange(4, chunks=2), 9)
    assert store(source, "i8").tolist() == [0, 1, 2, 3]


def test_targets_that_are_paths_need_a_repository() -> None:
    with pytest.raises(InvalidInputError, match=r"target 'a' is not a zarr\.Array.*repository="):
        store_dask(sources=[da.zeros(4)], targets=["a"])
