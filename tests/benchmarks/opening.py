"""Opening a version with xarray, as users of each client do it. Runs under either of them.

Usage: ``python opening.py WHERE`` with ``local`` or ``latency``. Prints one JSON object: seconds
per step, each the best of several calls that begin with a new repository object.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import icechunk

CALLS = 7
LATENCY_MS = 50
GROUPS, ARRAYS = 50, 99
OURS = hasattr(icechunk, "CountingStorage")


def write(folder: str) -> None:
    """A group of 200 arrays, and 5,000 other nodes in 50 groups."""
    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(folder))
    store = repo.writable_session("main").store
    dims = ("time", "lat", "lon")
    attrs = {"units": "K", "long_name": "air temperature", "cell_methods": "time: mean"}
    values = np.random.default_rng(0).random((4, 8, 8), dtype="f4")
    arrays = {f"v{i:03d}": (dims, values, attrs) for i in range(200)}
    coords = {"time": np.arange(4.0), "lat": np.arange(8.0), "lon": np.arange(8.0)}
    xr.Dataset(arrays, coords).to_zarr(store, group="flat", consolidated=False)
    root = zarr.open_group(store, mode="r+")
    root.create_group("many")
    array, group = (
        sync(store.get(f"{path}/zarr.json", default_buffer_prototype()))
        for path in ("flat/v000", "many")
    )

    async def fill() -> None:
        for i in range(GROUPS):
            await store.set(f"many/g{i:03d}/zarr.json", group)
            for j in range(ARRAYS):
                await store.set(f"many/g{i:03d}/v{j:03d}/zarr.json", array)

    sync(fill())
    store.session.commit("5,000 nodes")


def storage(folder: str, where: str) -> Any:
    local = icechunk.local_filesystem_storage(folder)
    if where == "local":
        return local
    if OURS:
        return icechunk.LatencyStorage(local, read_latency_ms=LATENCY_MS)
    from icechunk.testing import LatencyStorage

    return LatencyStorage(local, read_latency_ms=LATENCY_MS)


def main(where: str) -> dict[str, float]:
    steps = {}
    with tempfile.TemporaryDirectory() as parent:
        folder = f"{parent}/repository"
        write(folder)

        def by_store(group: str) -> xr.Dataset:
            repo = icechunk.Repository.open(storage(folder, where))
            store = repo.readonly_session("main").store
            return xr.open_dataset(store, engine="zarr", consolidated=False, group=group)

        def by_engine(group: str) -> xr.Dataset:
            return xr.open_dataset(storage(folder, where), engine="icechunk", group=group)

        ways: dict[str, Callable[[str], xr.Dataset]] = {
            "engine zarr": by_store,
            "own engine": by_engine if OURS else by_store,
        }
        for label, group in (
            ("200 arrays", "flat"),
            ("99 of 5,000 nodes", "many/g025"),
            ("top of 5,000 nodes", "/"),
        ):
            for way, call in ways.items():
                seconds = []
                for _ in range(CALLS):
                    start = time.perf_counter()
                    call(group)
                    seconds.append(time.perf_counter() - start)
                steps[f"{label}, {way}"] = min(seconds)
    return steps


if __name__ == "__main__":
    logging.disable()
    print(json.dumps(main(sys.argv[1])))
