"""VirtualiZarr as it is on PyPI, on real NetCDF files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import iris_sample_data
import numpy as np
import pytest
import xarray as xr
from obspec_utils.registry import ObjectStoreRegistry
from obstore.store import LocalStore
from virtualizarr import open_virtual_dataset, open_virtual_mfdataset
from virtualizarr.parsers import HDFParser

import icechunk

SAMPLES = Path(iris_sample_data.path)
MONTHS = sorted((SAMPLES / "NEMO").glob("*.nc"))
PREFIX = SAMPLES.as_uri() + "/"
REGISTRY = ObjectStoreRegistry({"file://": LocalStore()})


@pytest.fixture
def repository(tmp_path: Path) -> icechunk.Repository:
    config = icechunk.RepositoryConfig.default()
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(PREFIX, icechunk.local_filesystem_store(str(SAMPLES)))
    )
    return icechunk.Repository.create(
        icechunk.local_filesystem_storage(str(tmp_path / "repository")),
        config,
        authorize_virtual_chunk_access={PREFIX: icechunk.credentials.LocalFileSystemAccess},
    )


def virtual(path: Path, **options: object) -> xr.Dataset:
    found = open_virtual_dataset(path.as_uri(), registry=REGISTRY, parser=HDFParser(), **options)
    assert isinstance(found, xr.Dataset)
    return found


def written(repository: icechunk.Repository, group: str | None = None) -> xr.Dataset:
    store = repository.readonly_session("main").store
    return xr.open_zarr(store, group=group, consolidated=False, chunks=None)


@pytest.fixture
def months() -> Iterator[list[xr.Dataset]]:
    opened = [xr.open_dataset(path, engine="h5netcdf") for path in MONTHS]
    yield opened
    for dataset in opened:
        dataset.close()


@pytest.mark.parametrize("name", ["ostia_monthly.nc", "A1B_north_america.nc", "orca2_votemper.nc"])
def test_a_file(repository: icechunk.Repository, name: str) -> None:
    session = repository.writable_session("main")
    virtual(SAMPLES / name).vz.to_icechunk(session.store, group="g")
    session.commit("written by VirtualiZarr")
    assert session.all_virtual_chunk_locations()
    with xr.open_dataset(SAMPLES / name, engine="h5netcdf") as expected:
        xr.testing.assert_identical(
            written(repository, "g").drop_attrs().load(), expected.drop_attrs().load()
        )


def test_months_that_are_appended(
    repository: icechunk.Repository, months: list[xr.Dataset]
) -> None:
    for path in MONTHS:
        session = repository.writable_session("main")
        first = path == MONTHS[0]
        # the time is written as values: its encoding differs from file to file
        opened = virtual(path, loadable_variables=["time_counter"])
        opened.vz.to_icechunk(session.store, append_dim=None if first else "time_counter")
        session.commit(path.name)
    found = written(repository)
    expected = xr.concat(
        months,
        "time_counter",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="override",
    )
    assert found.sizes == expected.sizes
    for name, variable in expected.variables.items():
        np.testing.assert_array_equal(found[name], variable)
    assert [s.message for s in repository.ancestry(branch="main")][:-1] == [
        path.name for path in reversed(MONTHS)
    ]


def test_a_month_in_a_region(repository: icechunk.Repository, months: list[xr.Dataset]) -> None:
    session = repository.writable_session("main")
    whole = open_virtual_mfdataset(
        [path.as_uri() for path in MONTHS],
        registry=REGISTRY,
        parser=HDFParser(),
        concat_dim="time_counter",
        combine="nested",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        loadable_variables=["time_counter"],
    )
    whole.vz.to_icechunk(session.store)
    session.commit("all months")
    session = repository.writable_session("main")
    last = virtual(MONTHS[2], loadable_variables=[])[["tos"]].reset_coords(drop=True)
    last.vz.to_icechunk(session.store, region={"time_counter": slice(0, 1)})
    session.commit("the last one first")
    found = written(repository)["tos"]
    for i, month in enumerate([2, 1, 2]):
        np.testing.assert_array_equal(found[i], months[month]["tos"][0])


def test_a_file_that_was_changed(tmp_path: Path) -> None:
    """What VirtualiZarr notes of the time is checked."""
    copy = tmp_path / "ostia.nc"
    copy.write_bytes((SAMPLES / "ostia_monthly.nc").read_bytes())
    prefix = tmp_path.as_uri() + "/"
    config = icechunk.RepositoryConfig.default()
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(prefix, icechunk.local_filesystem_store(str(tmp_path)))
    )
    repository = icechunk.Repository.create(
        icechunk.in_memory_storage(),
        config,
        authorize_virtual_chunk_access={prefix: icechunk.credentials.LocalFileSystemAccess},
    )
    session = repository.writable_session("main")
    virtual(copy).vz.to_icechunk(session.store)
    session.commit("a file")
    with xr.open_dataset(SAMPLES / "ostia_monthly.nc", engine="h5netcdf") as expected:
        np.testing.assert_array_equal(
            written(repository)["surface_temperature"], expected["surface_temperature"]
        )
    later = os.stat(copy).st_mtime + 3600
    os.utime(copy, (later, later))
    with pytest.raises(icechunk.IcechunkError, match=r"ostia\.nc"):
        written(repository)["surface_temperature"].load()
