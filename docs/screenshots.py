"""Pictures of every card, light and dark, taken by a real browser: `make screenshots`.

The pages and pictures are in build/screenshots afterwards.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from icechunk import Repository
from icechunk_dask import virtualize
from icechunk_xarray import to_icechunk

FOLDER = Path(__file__).parents[1] / "build" / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: Of a page without a program around it, as notebooks in both themes have it.
PAGE = """<!doctype html><meta charset="utf-8"><html data-jp-theme-light="{light}">
<body style="background:{ground};color:{ink};margin:16px">{body}</body></html>
"""
THEMES = {"light": ("true", "#fff", "#111"), "dark": ("false", "#111", "#ddd")}


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
    try:
        job.run(write, keys=[2003])
    except Exception as error:
        print("as it should:", error)
    yield "job", job.status()
    yield "verification", repository.verify()
    next(place.glob("manifests/*")).unlink()
    yield "damage", Repository.open(place).verify()
    files = [folder / f"{i}.nc" for i in range(3)]
    for i, path in enumerate(files):
        month(path, 4 * i)
    files[2].write_text("not finished")
    yield "virtualize", virtualize(files, folder / "archive", progress=False)


def drawn(thing: Any) -> str:
    """Return what a notebook shows of a thing."""
    html: str = thing._repr_svg_() if hasattr(thing, "_repr_svg_") else thing._repr_html_()
    return html


def main() -> None:
    """Make the pages, and take the pictures."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"a browser is needed, one of: {', '.join(BROWSERS)}")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        shown = [(name, drawn(thing)) for name, thing in cards(Path(temporary))]
    for theme, (light, ground, ink) in THEMES.items():
        for name, body in shown:
            page = FOLDER / f"{name}-{theme}.html"
            # what is folded is seen in the pictures, too
            body = body.replace("<details>", "<details open>")
            page.write_text(PAGE.format(light=light, ground=ground, ink=ink, body=body))
            with tempfile.TemporaryDirectory() as profile:
                subprocess.run(
                    [
                        browser,
                        "--headless",
                        "--no-sandbox",
                        "--disable-gpu",
                        "--no-first-run",
                        "--disable-background-networking",
                        f"--user-data-dir={profile}",
                        "--window-size=900,1100",
                        f"--screenshot={page.with_suffix('.png')}",
                        page.as_uri(),
                    ],
                    check=True,
                    stderr=subprocess.DEVNULL,
                    timeout=120,
                )
            print(page.with_suffix(".png"))


if __name__ == "__main__":
    main()
