"""Blocks against chunks: what is refused, and what fits."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, strategies as st

from icechunk import InvalidInputError
from icechunk_dask.alignment import Target, block_is_covered, check_disjoint


def array_of(shape: tuple[int, ...], chunks: tuple[int, ...], **options: Any) -> Any:
    return zarr.create_array(
        zarr.storage.MemoryStore(), name="a", shape=shape, chunks=chunks, dtype="i1", **options
    )


@st.composite
def parts(draw: st.DrawFn, length: int) -> tuple[int, ...]:
    """Cut a length into pieces."""
    cuts = draw(st.sets(st.integers(1, max(length - 1, 1)), max_size=4)) if length > 1 else set()
    return tuple(np.diff([0, *sorted(cuts), length]).tolist())


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, tuple[slice, ...], Any]:
    """Draw a Zarr array, a region of it, and a Dask array of the region's shape."""
    ndim = draw(st.integers(0, 2))
    shape = tuple(draw(st.integers(0, 12)) for _ in range(ndim))
    chunks = tuple(draw(st.integers(1, 5)) for _ in range(ndim))
    sharded = draw(st.booleans()) and ndim > 0
    shards = tuple(c * draw(st.integers(1, 2)) for c in chunks) if sharded else None
    region = []
    for n in shape:
        start = draw(st.integers(0, n))
        region.append(slice(start, draw(st.integers(start, n))))
    lengths = [part.stop - part.start for part in region]
    source = da.zeros(lengths, chunks=tuple(draw(parts(n)) for n in lengths), dtype="i1")
    return array_of(shape, chunks, shards=shards), tuple(region), source


def times_touched(array: Any, target: Target, chunks: Any) -> Any:
    """Count by brute force how many blocks touch each chunk, per chunk."""
    unit = array.shards or array.chunks
    count = np.zeros([-(-n // c) for n, c in zip(array.shape, unit, strict=True)], int)
    starts = [np.cumsum([0, *sizes[:-1]]) for sizes in chunks]
    for block in np.ndindex(*map(len, chunks)):
        touched = []
        for axis, i in enumerate(block):
            first = target.offset[axis] + int(starts[axis][i])
            elements = np.arange(first, first + chunks[axis][i])
            touched.append(np.unique(elements // unit[axis]))
        count[np.ix_(*touched)] += 1
    return count


@given(cases())
def test_what_is_refused_is_what_shares_a_chunk(case: tuple[Any, Any, Any]) -> None:
    array, region, source = case
    target = Target.of(array, region)
    shared = times_touched(array, target, source.chunks) > 1
    if shared.any():
        with pytest.raises(InvalidInputError, match=f"within one of the {target.unit}"):
            target.check(source)
    fitting = target.fitting_chunks(source.chunks)
    assert tuple(map(sum, fitting)) == source.shape
    assert (times_touched(array, target, fitting) <= 1).all()
    target.check(source.rechunk(fitting))
    if not shared.any() and not any(0 in sizes for sizes in source.chunks):
        target.check(source)


@given(cases(), st.data())
def test_which_blocks_are_there(case: tuple[Any, Any, Any], data: st.DataObject) -> None:
    array, region, source = case
    target = Target.of(array, region)
    grid = tuple(len(edges) - 1 for edges in target.edges)
    flat = data.draw(
        st.lists(st.booleans(), min_size=int(np.prod(grid)), max_size=int(np.prod(grid)))
    )
    mask = np.array(flat, bool).reshape(grid)
    covered = block_is_covered(mask, target.chunk_ranges(source.chunks))
    assert covered.shape == source.numblocks
    for block, (low_high) in zip(
        np.ndindex(*source.numblocks),
        _boxes(target, source.chunks),
        strict=True,
    ):
        assert covered[block] == mask[tuple(slice(*pair) for pair in low_high)].all()


def _boxes(target: Target, chunks: Any) -> Any:
    ranges = target.chunk_ranges(chunks)
    for block in np.ndindex(*map(len, chunks)):
        yield [ranges[axis][i].tolist() for axis, i in enumerate(block)]


@given(cases(), st.data())
def test_regions_that_share_a_chunk(case: tuple[Any, Any, Any], data: st.DataObject) -> None:
    array, region, _ = case
    starts = [data.draw(st.integers(0, n)) for n in array.shape]
    stops = [data.draw(st.integers(a, n)) for a, n in zip(starts, array.shape, strict=True)]
    one = Target.of(array, region)
    other = Target.of(array, tuple(map(slice, starts, stops)))
    touched = [times_touched(array, t, [(n,) for n in t.shape]) for t in (one, other)]
    if (np.minimum(*touched) > 0).any():
        with pytest.raises(InvalidInputError, match=f"share {one.unit}"):
            check_disjoint([one, other])
    else:
        check_disjoint([one, other])


def test_the_message_says_what_would_fit() -> None:
    array = array_of((100, 8), (10, 4), dimension_names=("time", None))
    with pytest.raises(InvalidInputError) as error:
        Target.of(array, None).check(da.zeros((100, 8), chunks=(25, 8)))
    assert str(error.value) == (
        "array '/a', dimension 'time' (axis 0): Dask chunks (25, 25, 25, 25) end at 25, within "
        "one of the chunks of size (10, 10, 10, 10, 10, ... 10 in all) that are stored as a "
        "whole, so two tasks would write it at once and one would be lost. Chunks that would "
        "fit: (20, 30, 20, 30); pass align_chunks=True, or rechunk with "
        ".rechunk({0: (20, 30, 20, 30)})"
    )


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ((slice(0, 4, 2), slice(None)), "not a slice of step 1"),
        ((0,), "not a slice of step 1"),
        ((slice(0, 9),), "axis 0: the region ends at 9, the array at 4; resize"),
        ((slice(None),) * 3, "3 slices for 2 dimensions"),
    ],
)
def test_regions_that_cannot_be(region: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        Target.of(array_of((4, 4), (2, 2)), region)


def test_sources_that_cannot_be() -> None:
    target = Target.of(array_of((4,), (2,)), None)
    with pytest.raises(InvalidInputError, match=r"shape \(5,\) does not fit"):
        target.check(da.zeros(5))
    unknown = da.from_array(np.arange(4), chunks=2)
    with pytest.raises(InvalidInputError, match="compute_chunk_sizes"):
        target.check(unknown[unknown > 1])
