"""One of each thing that notebooks draw, with enough in it to be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from icechunk import CachingConfig, Repository, RepositoryConfig, TaskError
from icechunk_dask import virtualize
from icechunk_xarray import to_icechunk


def month(path: Path, start: int) -> None:
    """Write a NetCDF file with four steps."""
    values = np.full((4, 3), float(start), np.float32)
    data = xr.Dataset({"t": (("time", "x"), values)}, {"time": np.arange(start, start + 4)})
    data.to_netcdf(path, engine="h5netcdf", encoding={"t": {"chunksizes": (4, 3)}})


def cards(folder: Path) -> Iterator[tuple[str, object]]:
    """Yield things to show, each with a name."""
    place = folder / "weather"
    data = xr.Dataset(
        {"temperature": (("time", "lat", "lon"), da.ones((48, 60, 120), chunks=(12, 6, 12)))},
        attrs={"title": "Temperatures"},
    )
    to_icechunk(data, place, message="The first four years", progress=False)
    to_icechunk(data * 2, place, group="twice", message="The same, twice", progress=False)
    repository = Repository.open(place)
    repository.create_tag("v1", repository.resolve("main~1"))
    repository.create_branch("trial", repository.resolve("main"))
    yield "repository", repository
    session = repository.writable_session("main")
    array = zarr.open_array(session.store, path="temperature")
    array[:12, :30, 24:90] = 7
    array[12:24, 30:42, :36] = 8
    zarr.create_group(session.store, path="extra")
    yield "session", session
    yield "store", session.store
    part = zarr.create_array(
        session.store,
        name="soil",
        shape=(48, 60, 120),
        chunks=(12, 2, 3),
        dtype="f4",
        dimension_names=("time", "lat", "lon"),
    )
    part[:36, :40, 30:] = 1
    part[36:, 10:20] = 1
    yield "written_chunks", session.written_chunks("/soil")
    session.commit("Warmer in the west", metadata={"author": "A. Nonymous", "ticket": 12})
    yield "snapshot", next(repository.ancestry(branch="main"))
    yield "ancestry", repository.ancestry(branch="main")
    yield "annotation", repository.annotate("/temperature")
    yield "graph", repository.ancestry_graph()
    yield "diff", repository.diff(from_tag="v1", to_branch="main")
    job = repository.jobs.create("backfill", keys=[2001, 2002, 2003, 2004], message="Years")

    def write(store: object, year: int) -> None:
        if year == 2003:
            raise OSError("no such file: 2003.nc")

    job.run(write, keys=[2001, 2002])
    with suppress(TaskError):  # a part that failed is to be seen
        job.run(write, keys=[2003])
    yield "job", job.status()
    yield "progress", job.progress()
    yield "verification", repository.verify()
    next(place.glob("manifests/*")).unlink()
    yield "damage", Repository.open(place).verify()
    yield "repair", Repository.repair(place, branch="main", drop_unreadable=True)
    yield "config", RepositoryConfig(caching=CachingConfig(num_bytes_chunks=100_000_000))
    files = [folder / f"{i}.nc" for i in range(3)]
    for i, path in enumerate(files):
        month(path, 4 * i)
    files[2].write_text("not finished")
    yield "virtualize", virtualize(files, folder / "archive", progress=False)


def drawn(thing: Any) -> str:
    """Return what a notebook shows of a thing."""
    html: str = thing._repr_svg_() if hasattr(thing, "_repr_svg_") else thing._repr_html_()
    return html
