"""Runs under both clients: the variables of an archive, read by Zarr."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import zarr

import icechunk


def open_archive(place: str | dict[str, Any], prefixes: list[str]) -> Any:
    """Open a repository in a folder or on S3, with leave to read local files below prefixes."""
    if isinstance(place, str):
        storage = icechunk.local_filesystem_storage(place)
    else:
        storage = icechunk.s3_storage(**place)
    access = {prefix: icechunk.credentials.LocalFileSystemAccess for prefix in prefixes}
    return icechunk.Repository.open(storage, authorize_virtual_chunk_access=access)


def read_archive(place: str | dict[str, Any], prefixes: list[str]) -> Any:
    """Return of each array its shape, its type, and a hash of what it holds."""
    if zarr.config.get("array.rectilinear_chunks", None) is not None:
        zarr.config.set({"array.rectilinear_chunks": True})
    store = open_archive(place, prefixes).readonly_session("main").store
    found = {}
    for path, array in zarr.open_group(store, mode="r").members(max_depth=None):
        if isinstance(array, zarr.Array):
            values = np.asarray(array[...])
            data = repr(values.tolist()).encode()
            found[path] = [list(array.shape), str(array.dtype), hashlib.sha256(data).hexdigest()]
    return found


def note(place: str, prefixes: list[str], path: str) -> None:
    """Write an attribute of an array."""
    session = open_archive(place, prefixes).writable_session("main")
    zarr.open_array(session.store, path=path, mode="r+").attrs["noted"] = True
    session.commit("noted")
