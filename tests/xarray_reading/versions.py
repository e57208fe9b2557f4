"""A small repository whose versions are told apart by their values. Runs under both clients."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

import icechunk

#: How many commits `write_versions` makes.
VERSIONS = 3


def version(number: int) -> xr.Dataset:
    """Return a dataset with CF encodings, whose temperature is `number` everywhere."""
    temperature = xr.Variable(
        ("time", "x"),
        np.full((4, 3), number, "f8"),
        {"units": "K"},
        {"scale_factor": 0.5, "add_offset": 1.0, "dtype": "i2", "_FillValue": -9, "chunks": (2, 3)},
    )
    temperature[1, 1] = np.nan
    times = np.array(["2000-01-01", "2000-01-02", "2000-01-03", "2000-01-04"], "M8[ns]")
    return xr.Dataset(
        {
            "temperature": temperature,
            "lag": ("x", np.array([1, 2, 3], "m8[s]").astype("m8[ns]")),
            "name": ("x", np.array(["a", "b", "c"], "S1")),
        },
        {"time": ("time", times), "height": ((), 2.0)},
        {"title": f"version {number}"},
    )


def write(session: Any, dataset: xr.Dataset, group: str | None = None) -> None:
    """Replace a group."""
    dataset.to_zarr(session.store, group=group, mode="w", consolidated=False)


def write_versions(storage: icechunk.Storage) -> icechunk.Repository:
    """Create a repository: commits 0, 1 and 2, the tag ``v0``, and a branch at 1."""
    repo = icechunk.Repository.create(storage)
    ids = []
    for number in range(VERSIONS):
        session = repo.writable_session("main")
        write(session, version(number))
        write(session, version(10 + number), "deep/er")
        ids.append(session.commit(f"version {number}"))
    repo.create_tag("v0", ids[0])
    repo.create_branch("old", ids[1])
    return repo
