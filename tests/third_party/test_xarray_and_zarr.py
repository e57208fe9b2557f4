"""xarray's `to_zarr` and zarr's hierarchy functions on the store of a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import iris_sample_data
import numpy as np
import pytest
import xarray as xr
import zarr

import icechunk


@pytest.fixture
def repository() -> icechunk.Repository:
    return icechunk.Repository.create(icechunk.in_memory_storage())


@pytest.fixture
def scenario() -> xr.Dataset:
    """Return 240 years of temperatures over North America."""
    return xr.load_dataset(f"{iris_sample_data.path}/A1B_north_america.nc", engine="h5netcdf")


def committed(
    repository: icechunk.Repository, write: Callable[[icechunk.IcechunkStore], Any]
) -> str:
    session = repository.writable_session("main")
    write(session.store)
    return session.commit("written")


def opened(repository: icechunk.Repository, **which: Any) -> xr.Dataset:
    which = which or {"branch": "main"}
    return xr.open_zarr(repository.readonly_session(**which).store, chunks=None)


def test_appends(repository: icechunk.Repository, scenario: xr.Dataset) -> None:
    first = committed(
        repository, lambda store: scenario.isel(time=slice(100)).to_zarr(store, zarr_format=3)
    )
    committed(
        repository,
        lambda store: scenario.isel(time=slice(100, None)).to_zarr(store, append_dim="time"),
    )
    xr.testing.assert_identical(opened(repository).load(), scenario)
    xr.testing.assert_identical(
        opened(repository, snapshot_id=first).load(), scenario.isel(time=slice(100))
    )


@pytest.mark.parametrize("region", ["auto", {"time": slice(40, 80)}])
def test_regions(repository: icechunk.Repository, scenario: xr.Dataset, region: Any) -> None:
    encoding = {"air_temperature": {"chunks": (40, 37, 49)}}
    committed(repository, lambda store: scenario.to_zarr(store, encoding=encoding))
    warmer = scenario[["air_temperature"]].isel(time=slice(40, 80)) + 1
    warmer = warmer.drop_vars(set(warmer.coords) - ({"time"} if region == "auto" else set()))
    committed(repository, lambda store: warmer.to_zarr(store, region=region, mode="r+"))
    expected = scenario.copy(deep=True)
    expected["air_temperature"][40:80] += 1
    xr.testing.assert_equal(opened(repository).load(), expected)
    diff = repository.diff(
        from_snapshot_id=list(repository.ancestry(branch="main"))[1].id, to_branch="main"
    )
    assert diff.updated_chunks["/air_temperature"] == [[1, 0, 0]]


def test_chunks_of_dask(repository: icechunk.Repository, scenario: xr.Dataset) -> None:
    lazy = scenario.chunk(time=40)
    committed(repository, lambda store: lazy.to_zarr(store))
    xr.testing.assert_equal(opened(repository).load(), scenario)


def test_a_tree(repository: icechunk.Repository, scenario: xr.Dataset) -> None:
    tree = xr.DataTree.from_dict({"/": scenario.isel(time=0), "/later": scenario.isel(time=1)})
    committed(repository, lambda store: tree.to_zarr(store, consolidated=False))
    found = xr.open_datatree(
        repository.readonly_session("main").store,  # type: ignore[arg-type]
        engine="zarr",
        consolidated=False,
    )
    xr.testing.assert_equal(found.load(), tree)


def test_groups_and_moves(repository: icechunk.Repository) -> None:
    def write(store: icechunk.IcechunkStore) -> None:
        root = zarr.create_hierarchy  # the whole tree at once
        nodes = {
            "": zarr.core.group.GroupMetadata(attributes={"level": 0}),
            "a/b": zarr.core.group.GroupMetadata(attributes={"level": 2}),
        }
        assert dict(root(store=store, nodes=nodes))
        zarr.create_array(store, name="a/b/x", data=np.arange(6), chunks=(2,))

    committed(repository, write)
    session = repository.rearrange_session("main")
    session.move("/a/b", "/c")
    session.commit("moved")
    root = zarr.open_group(repository.readonly_session("main").store, mode="r")
    assert sorted(path for path, _ in root.members(max_depth=None)) == ["a", "c", "c/x"]
    assert root["c"].attrs["level"] == 2
    np.testing.assert_array_equal(root["c/x"], np.arange(6))
    committed(repository, lambda store: zarr.open_group(store, mode="r+").__delitem__("c"))
    assert list(zarr.open_group(repository.readonly_session("main").store, mode="r")) == ["a"]


def test_metadata_are_not_consolidated(repository: icechunk.Repository) -> None:
    """A snapshot is that already; who asks for it is told, and xarray does not need it."""
    store = repository.writable_session("main").store
    zarr.create_group(store)
    assert not store.supports_consolidated_metadata
    with pytest.raises(TypeError, match="doesn't support consolidated metadata"):
        zarr.consolidate_metadata(store)
    with pytest.raises(ValueError, match="doesn't support consolidated metadata"):
        zarr.open_consolidated(store)
    dataset = xr.Dataset({"x": ("t", np.arange(3))})
    dataset.to_zarr(store, group="d", consolidated=True)
    xr.testing.assert_identical(xr.open_zarr(store, group="d", consolidated=True).load(), dataset)
