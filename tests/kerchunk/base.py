"""What the tests of kerchunk references share."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import iris_sample_data
import xarray as xr
from kerchunk.hdf import SingleHdf5ToZarr
from kerchunk.netCDF3 import NetCDF3ToZarr

from icechunk import (
    LocalStorage,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    Session,
    Storage,
    VirtualChunkContainer,
    local_filesystem_store,
)

ARCHIVE = Path(iris_sample_data.path)
NETCDF = sorted(str(path.relative_to(ARCHIVE)) for path in ARCHIVE.rglob("*.nc"))
NEMO = [name for name in NETCDF if "nemo" in name]


def repository(*folders: Path, storage: Storage | None = None, **config: Any) -> Repository:
    """A repository that may read virtual chunks in some folders."""
    settings = RepositoryConfig(**config)
    for folder in folders:
        settings.set_virtual_chunk_container(
            VirtualChunkContainer(f"{folder.as_uri()}/", local_filesystem_store(str(folder)))
        )
    access = {f"{folder.as_uri()}/": None for folder in folders}
    return Repository.create(storage or MemoryStorage(), settings, access)


def local(folder: Path) -> LocalStorage:
    return LocalStorage(folder)


def scan(path: str | Path, inline: int = 100, **options: Any) -> dict[str, Any]:
    """What kerchunk makes of a NetCDF file."""
    with open(path, "rb") as file:
        classic = file.read(3) == b"CDF"
    scanner = NetCDF3ToZarr if classic else SingleHdf5ToZarr
    # kerchunk holds the lock of h5py while it waits for zarr's thread, which would wait for
    # that lock if handles of HDF5 were among the garbage that it collects
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: dict[str, Any] = scanner(
                str(path), inline_threshold=inline, **options
            ).translate()
    finally:
        gc.enable()
    return found


def through_fsspec(references: Any, zarr_format: int | None = 2, **options: Any) -> xr.Dataset:
    """What xarray reads through fsspec's reference filesystem."""
    kwargs = {
        "consolidated": False,
        "storage_options": {"fo": references, **options},
        "zarr_format": zarr_format,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xr.open_dataset("reference://", engine="zarr", backend_kwargs=kwargs).load()


def through_session(session: Session, group: str | None = None) -> xr.Dataset:
    """What xarray reads from a session."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xr.open_zarr(
            session.store, group=group, consolidated=False, zarr_format=3, chunks=None
        ).load()


def array_refs(
    chunks: Mapping[str, Any],
    shape: tuple[int, ...],
    chunk_shape: tuple[int, ...],
    name: str = "a",
    attributes: Mapping[str, Any] | None = None,
    **zarray: Any,
) -> dict[str, Any]:
    """References of version 0 with one array."""
    document = {
        "zarr_format": 2,
        "shape": list(shape),
        "chunks": list(chunk_shape),
        "dtype": "<i4",
        "fill_value": -1,
        "order": "C",
        "filters": None,
        "compressor": None,
        **zarray,
    }
    return {
        ".zgroup": json.dumps({"zarr_format": 2}),
        f"{name}/.zarray": json.dumps(document),
        f"{name}/.zattrs": json.dumps(dict(attributes or {})),
        **{f"{name}/{key}": value for key, value in chunks.items()},
    }


def rows(session: Session, path: str) -> dict[tuple[int, ...], Any]:
    """The references of an array by coordinates."""
    refs = session.chunk_refs(path)
    return {tuple(c): refs.row(i) for i, c in enumerate(refs.coords.tolist())}
