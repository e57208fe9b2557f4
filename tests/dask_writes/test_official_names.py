"""Writes that are put together from the steps that the official client has names for."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from icechunk import Repository, in_memory_storage
from icechunk.dask import computing_meta, merge_sessions_array_kwargs, session_merge_reduction
from icechunk.xarray import LazyArrayWriter, is_dask_collection


@pytest.mark.parametrize("as_list", [False, True])
def test_store_and_reduce(as_list: bool) -> None:
    session = Repository.create(in_memory_storage()).writable_session("main")
    zarr.create_array(session.store, name="a", shape=(6, 4), chunks=(2, 2), dtype="i8")
    values = np.arange(24).reshape(6, 4)
    fork = session.fork()
    stored = da.store(
        [da.from_array(values, chunks=(2, 2))],
        [zarr.open_array(fork.store, path="a")],
        compute=False,
        return_stored=True,
        load_stored=False,
        lock=False,
    )
    session.merge(session_merge_reduction([stored] if as_list else stored, split_every=2))
    session.commit("stored")
    assert (zarr.open_array(session.store, path="a", mode="r")[:] == values).all()


def test_what_is_no_dask_array_is_refused() -> None:
    with pytest.raises(TypeError, match="arrays must be Dask arrays, not ndarray"):
        session_merge_reduction(np.zeros(3), split_every=None)


def test_answers_to_dask() -> None:
    assert computing_meta(len)([1, 2]) == 2
    assert computing_meta(merge_sessions_array_kwargs)(computing_meta=True).dtype == object


def test_a_writer_that_waits() -> None:
    target = np.zeros(4)
    writer = LazyArrayWriter()
    lazy = da.ones(4, chunks=2)
    writer.add(np.arange(2.0), target, (slice(0, 2),))
    writer.add(lazy, target, None)
    assert target.tolist() == [0, 0, 0, 0]
    writer.write_eager()
    writer.write_eager()
    assert target.tolist() == [0, 1, 0, 0]
    assert writer.sources == [lazy]
    assert is_dask_collection(xr.DataArray(lazy))
    assert not is_dask_collection(xr.DataArray(target))
