"""Archives of many files, beside VirtualiZarr's parser writing the same, in one run.

Usage: ``python archives.py [COUNT]`` with the number of files, 300 by default: hard links of one.
VirtualiZarr writes through an accessor that needs the official client, so its manifests go into
a session here; what it takes to open and concatenate is all its own.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from obspec_utils.registry import ObjectStoreRegistry
from obstore.store import LocalStore
from virtualizarr import open_virtual_dataset
from virtualizarr.parsers import HDFParser

from icechunk_dask import virtualize

APPENDS = 3


def make(folder: Path, count: int) -> list[str]:
    """One small file under many names."""
    base = folder / "base.nc"
    with h5py.File(base, "w") as file:
        scales = {"time": np.arange(1), "lat": np.arange(20.0), "lon": np.arange(40.0)}
        for name, values in scales.items():
            file.create_dataset(name, data=values).make_scale(name)
        file["time"].attrs["units"] = "days since 2000-01-01"
        values = np.random.default_rng(0).random((1, 20, 40)).astype("f4")
        for name in ("t", "p"):
            options: dict[str, Any] = {"chunks": (1, 20, 40), "compression": "gzip"}
            data = file.create_dataset(name, data=values, shuffle=True, **options)
            for i, scale in enumerate(scales):
                data.dims[i].attach_scale(file[scale])
    files = [folder / f"{i:06}.nc" for i in range(count)]
    for path in files:
        os.link(base, path)
    return list(map(str, files))


def peak() -> int:
    """Most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def theirs(files: list[str]) -> float:
    """Seconds of CPU to open and concatenate files with VirtualiZarr."""
    registry = ObjectStoreRegistry({"file://": LocalStore()})
    began = time.process_time()
    opened = [
        open_virtual_dataset(f"file://{path}", registry=registry, parser=HDFParser())
        for path in files
    ]
    xr.concat(opened, "time", coords="minimal", compat="override", combine_attrs="override")
    return time.process_time() - began


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        files = make(folder, count + APPENDS)
        options: dict[str, Any] = {"executor": "sync", "progress": False}
        # imports, and what is made once
        virtualize(files[:3], folder / "first", order="url", **options)
        before, began = peak(), time.process_time()
        virtualize(files[:count], folder / "repo", order="url", **options)
        ours, memory = time.process_time() - began, peak() - before
        appends = []
        for path in files[count:]:
            began = time.process_time()
            virtualize([path], folder / "repo", **options)
            appends.append(time.process_time() - began)
        other = theirs(files[: min(count, 300)]) / min(count, 300)
    print(f"{count} files: {count / ours:.0f} a second and core, {ours / count * 1e3:.1f} ms each")
    print(f"VirtualiZarr, without writing: {1 / other:.0f} a second, {other * 1e3:.1f} ms each")
    print(f"ratio: {other / (ours / count):.2f}")
    print(f"memory: {memory / count:.0f} bytes a file; one appended: {min(appends) * 1e3:.0f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
