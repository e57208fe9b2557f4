"""Archives of many files: what a file takes, what the client keeps of it, what one more takes.

Usage: ``python archives.py [compare | scale | memory] [COUNT ...]``. The files are hard links of
a small one of NetCDF4, and really scanned.

- ``compare`` (default, 300 files): files a second and core, beside VirtualiZarr's HDFParser,
  which opens, combines and writes the same files into a repository of this client, in one run.
- ``scale`` (100, 3,000 and 30,000): CPU and growth of the resident memory for each file, and the
  CPU of one file more. Each count has a process of its own.
- ``memory`` (3,000): where Python's own allocations are when there are most of them.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from icechunk import LocalStorage, Repository
from icechunk_dask import virtualize

APPENDS = 3
OPTIONS: dict[str, Any] = {"executor": "sync", "progress": False}
COUNTS = {"compare": [300], "scale": [100, 3_000, 30_000], "memory": [3_000]}


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


def resident() -> int:
    """Most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu() -> float:
    """Seconds of CPU of this process and of all below it, which scan files."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = time.process_time() + ended.ru_utime + ended.ru_stime
    tick = os.sysconf("SC_CLK_TCK")
    parents: dict[int, int] = {}
    times: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            number = int(stat.parent.name)
            parents[number], times[number] = int(fields[1]), sum(map(int, fields[11:15])) / tick
    for number in times:
        above = parents.get(number)
        # those that scan may be started by a server of theirs
        while above is not None and above != os.getpid():
            above = parents.get(above)
        found += times[number] if above is not None else 0
    return found


# -- beside VirtualiZarr ---------------------------------------------------------------------
def theirs(files: list[str], repo: Path, to: Path) -> float:
    """Seconds of CPU to open, combine and write files with VirtualiZarr."""
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore
    from virtualizarr import open_virtual_dataset
    from virtualizarr.parsers import HDFParser

    config = Repository.open(LocalStorage(repo)).config
    began = cpu()
    registry = ObjectStoreRegistry({"file://": LocalStore()})
    parser = HDFParser()
    loadable = ["time", "lat", "lon"]
    opened = [
        open_virtual_dataset(
            f"file://{path}", registry=registry, parser=parser, loadable_variables=loadable
        )
        for path in files
    ]
    whole: Any = xr.concat(
        opened, "time", coords="minimal", compat="override", combine_attrs="override"
    )
    target = Repository.create(LocalStorage(to), config)
    session = target.writable_session("main")
    whole.vz.to_icechunk(session.store)
    session.commit("files")
    return cpu() - began


def compare(count: int) -> None:
    """Print files a second and core, of both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        files = make(folder, count)
        # imports, and what is made once
        virtualize(files[:3], folder / "first", order="url", **OPTIONS)
        theirs(files[:3], folder / "first", folder / "their_first")
        began = cpu()
        virtualize(files, folder / "repo", order="url", **OPTIONS)
        ours = (cpu() - began) / count
        other = theirs(files, folder / "repo", folder / "theirs") / count
        sizes = [
            Repository.open(LocalStorage(folder / each)).readonly_session("main")
            for each in ("repo", "theirs")
        ]
        assert len({len(session.chunk_refs("/t")) for session in sizes}) == 1
    print(f"{count} files, of both in a repository:")
    print(f"  here         {1 / ours:.0f} a second and core, {ours * 1e3:.1f} ms each")
    print(f"  VirtualiZarr {1 / other:.0f} a second and core, {other * 1e3:.1f} ms each")
    print(f"  ratio {other / ours:.2f}")


# -- many ------------------------------------------------------------------------------------
def one_scale(count: int) -> None:
    """Print what so many files take, in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        files = make(folder, count + APPENDS)
        virtualize(files[:100], folder / "first", order="url", **OPTIONS)
        before, began = resident(), cpu()
        virtualize(files[:count], folder / "repo", order="url", **OPTIONS)
        took, memory = cpu() - began, resident() - before
        appends = []
        for path in files[count:]:
            began = cpu()
            virtualize([path], folder / "repo", **OPTIONS)
            appends.append(cpu() - began)
    print(
        f"{count} files: {took / count * 1e3:.2f} ms each, {memory / count:.0f} bytes of memory "
        f"each; one more: {min(appends) * 1e3:.0f} ms",
        flush=True,
    )


def scale(counts: Sequence[int]) -> None:
    """Print the same of several counts, each in a process of its own."""
    for count in counts:
        subprocess.run([sys.executable, __file__, "one", str(count)], check=True)


def memory(count: int) -> None:
    """Print where Python's allocations are."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        files = make(folder, count)
        virtualize(files[:100], folder / "first", order="url", **OPTIONS)
        tracemalloc.start(12)
        before = tracemalloc.get_traced_memory()[0]
        virtualize(files, folder / "repo", order="url", **OPTIONS)
        after, peak = tracemalloc.get_traced_memory()
    print(f"{count} files: {(peak - before) / count:.0f} bytes each at most, {after - before} left")


def main(mode: str, counts: Sequence[int]) -> None:
    """Run one of the modes."""
    if mode == "scale":
        scale(counts)
    for count in () if mode == "scale" else counts:
        {"compare": compare, "memory": memory, "one": one_scale}[mode](count)


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "compare"
    main(chosen, [int(each) for each in sys.argv[2:]] or COUNTS[chosen])
