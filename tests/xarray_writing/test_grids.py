"""Writes to arrays whose chunks have several lengths, compared with the same write in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr

import icechunk
from icechunk import InvalidInputError, Repository
from icechunk.base.rectilinear import are_known, rectilinear_chunks
from icechunk_dask import store_dask
from icechunk_xarray import to_icechunk

pytestmark = [
    pytest.mark.skipif(not are_known(), reason="this Zarr has no rectilinear chunk grids"),
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),
]


@pytest.fixture(autouse=True)
def in_this_thread() -> Iterator[None]:
    """Compute without threads: there are many small writes."""
    with dask.config.set(scheduler="sync"):
        yield


SIZES = (3, 4, 3)
LENGTH = sum(SIZES)


def values(start: int, stop: int) -> xr.Dataset:
    """Return steps that differ from the stored ones."""
    v = -1.0 - np.arange(start * 4, stop * 4).reshape(-1, 4)
    return xr.Dataset({"v": (("t", "x"), v)}, {"t": np.arange(start, stop)})


STORED = -values(0, LENGTH)


def create() -> Repository:
    repository = Repository.create(icechunk.in_memory_storage())
    session = repository.writable_session("main")
    with rectilinear_chunks():
        group: Any = zarr.open_group(session.store, mode="a")
        for name, chunks in {"v": (SIZES, (4,)), "t": (LENGTH,)}.items():
            source = STORED[name]
            array = group.create_array(
                name,
                shape=source.shape,
                chunks=chunks,
                dtype=source.dtype,
                dimension_names=source.dims,
            )
            array[...] = source.values
    session.commit("arrays")
    return repository


def read(repository: Repository) -> xr.Dataset:
    session: Any = repository.readonly_session("main")
    return xr.open_dataset(session, engine="icechunk", chunks=None).load()


def ends(sizes: Any) -> set[int]:
    return set(itertools.accumulate(sizes, initial=0))


def check(kept: xr.Dataset, given: xr.Dataset, sizes: Any, blocks: Any, how: Any) -> None:
    """Write, and compare with the truth: refused where two tasks would write one chunk."""
    repository = create()
    before = repository.lookup_branch("main")
    lazy = given if blocks is None else given.chunk({"t": blocks})
    start = int(given.t[0])
    cuts = ends(lazy.chunks.get("t", (given.sizes["t"],)))
    meets = any(start + cut not in ends(sizes) for cut in cuts - {0, given.sizes["t"]})
    cut = not {start, start + given.sizes["t"]} <= ends(sizes)
    lenient = "align_chunks" in how or "safe_chunks" in how or "append_dim" in how
    if blocks is not None and ((meets and "align_chunks" not in how) or (cut and not lenient)):
        with pytest.raises(InvalidInputError, match="variable 'v', dimension 't'"):
            to_icechunk(lazy, repository, **how)
        assert repository.lookup_branch("main") == before
        return
    to_icechunk(lazy, repository, **how)
    xr.testing.assert_equal(read(repository), kept)
    assert repository.verify(deep=True).ok


BLOCKS: tuple[Any, ...] = None, -1, 1, 2, (1, -1)
HOW: tuple[Mapping[str, Any], ...] = {}, {"align_chunks": True}, {"safe_chunks": False}


def blocks_of(blocks: Any, length: int) -> Any:
    return (1, length - 1) if isinstance(blocks, tuple) else blocks


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (3, 7), (2, 6)])
def test_regions(start: int, stop: int) -> None:
    given = values(start, stop)
    kept = STORED.copy(deep=True)
    kept["v"][start:stop] = given.v.values
    for blocks, how in itertools.product(BLOCKS, HOW):
        check(kept, given, SIZES, blocks_of(blocks, stop - start), {"region": "auto", **how})


@pytest.mark.parametrize("added", [1, 3, 5])
def test_appends(added: int) -> None:
    given = values(LENGTH, LENGTH + added)
    kept = xr.concat([STORED, given], "t")
    for blocks, how in itertools.product(BLOCKS[: 4 if added == 1 else None], HOW):
        # Zarr makes one chunk of all that is new
        sizes = (*SIZES, added)
        check(kept, given, sizes, blocks_of(blocks, added), {"append_dim": "t", **how})


@pytest.mark.parametrize("how", [{"region": "auto"}, {"append_dim": "t"}])
def test_jobs(how: dict[str, Any]) -> None:
    start = 2 if "region" in how else LENGTH
    given = values(start, start + 6)
    kept = xr.concat(
        [STORED.isel(t=slice(0, start)), given, STORED.isel(t=slice(start + 6, None))], "t"
    )
    repository = create()
    to_icechunk(given, repository, job="steps", align_chunks=True, commit_every=1, **how)
    xr.testing.assert_equal(read(repository), kept)


def test_arrays_that_are_named() -> None:
    repository = create()
    given = values(0, LENGTH)
    source = given.v.chunk({"t": SIZES}).data
    store_dask(sources=[source], targets=["v"], repository=repository, message="values")
    xr.testing.assert_equal(read(repository).v, given.v)
