"""xarray on both sides: `to_icechunk` of either writes, either reads."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import xarray as xr
import zarr

import icechunk


def _writer() -> Any:
    try:
        from icechunk.xarray import to_icechunk  # type: ignore[import-not-found]
    except ImportError:
        from icechunk_xarray import to_icechunk
    return to_icechunk


def _open(folder: str) -> Any:
    return icechunk.Repository.open(icechunk.local_filesystem_storage(folder))


def _read(folder: str, group: str | None, chunks: Any = None) -> xr.Dataset:
    store: Any = _open(folder).readonly_session("main").store
    # the environment of the official client has no cftime: calendars of models stay numbers
    times = group == "ocean"
    return xr.open_zarr(store, group=group, consolidated=False, chunks=chunks, decode_times=times)


def describe(dataset: xr.Dataset) -> dict[str, Any]:
    """Return all that a reader sees, values as a digest."""
    found: dict[str, Any] = {"": sorted((key, str(value)) for key, value in dataset.attrs.items())}
    for name, variable in dataset.variables.items():
        values = variable.values
        if values.dtype.kind in "OUT":
            content = "\0".join(str(value) for value in values.ravel()).encode()
        else:
            content = np.ascontiguousarray(values).tobytes()
        found[str(name)] = [
            [str(dim) for dim in variable.dims],
            list(variable.shape),
            values.dtype.str if values.dtype.kind != "T" else "T",
            hashlib.sha256(content).hexdigest(),
            sorted((key, str(value)) for key, value in variable.attrs.items()),
            [str(variable.encoding.get(key)) for key in ("units", "calendar", "scale_factor")],
        ]
    return found


def read(folder: str, group: str | None) -> dict[str, Any]:
    """Return what a group of a repository holds."""
    return describe(_read(folder, group).load())


def copy(source: str, folder: str, group: str, dim: str) -> None:
    """Write a group again with `to_icechunk`, by Dask: a part, an append, and a region."""
    to_icechunk = _writer()
    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(folder))
    dataset = _read(source, group, chunks={})
    half = dataset.sizes[dim] // 2
    session = repo.writable_session("main")
    to_icechunk(dataset.isel({dim: slice(half)}), session, group=group)
    session.commit("a part")
    session = repo.writable_session("main")
    rest = dataset.isel({dim: slice(half, None)})
    zeroed = rest.map(lambda v: xr.zeros_like(v) if v.dtype.kind == "f" else v, keep_attrs=True)
    to_icechunk(zeroed, session, group=group, append_dim=dim, align_chunks=True)
    along = rest.drop_vars([name for name, v in rest.variables.items() if dim not in v.dims])
    to_icechunk(along, session, group=group, region="auto", mode="a", align_chunks=True)
    session.commit("the rest")


def append(folder: str, group: str, dim: str, step: int) -> None:
    """Append the group to itself, further along."""
    to_icechunk = _writer()
    dataset = _read(folder, group).load()
    later = dataset.assign_coords({dim: dataset[dim].values + np.array(step, "m8[D]")})
    session = _open(folder).writable_session("main")
    to_icechunk(later, session, group=group, append_dim=dim)
    session.commit("later")


def change(folder: str) -> list[str]:
    """Set an attribute of each node, commit, and return their paths."""
    session = _open(folder).writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    root.attrs["touched"] = "yes"
    changed = [""]
    for path, node in root.members(max_depth=None):
        node.attrs["touched"] = "yes"
        changed.append(path)
    session.commit("touched")
    return sorted(changed)
