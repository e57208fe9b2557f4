"""A real NetCDF file in a versioned repository: `make demo`.

Monthly sea surface temperatures of the tropics (OSTIA, from the package iris-sample-data)
go into a repository in a temporary folder, the last six months as a
second commit. Then a tag, a branch with a commit of its own, a diff, three ways back in
time, and a comparison with the file. No server and no network is needed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import iris_sample_data
import numpy as np
import xarray as xr

import icechunk
from icechunk_xarray import to_icechunk

NETCDF = Path(iris_sample_data.path) / "ostia_monthly.nc"
VARIABLE = "surface_temperature"
FIRST_MONTHS = 48  # the months that the first commit holds
CHUNKS = (12, 18, 432)  # a year of maps
NEXT = """
What to try next:
  make notebooks                    versions, a Dask ingest that breaks, an archive without a copy
  docs/pages/index.md               start in five minutes; `make docs` builds the site
  docs/pages/howto/credentials.md   the same in a bucket
  .venv/bin/icechunk --help         look at any repository without Python
  make test                         the tests"""


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print a heading, and how long the lines under it took."""
    print(f"\n{title}")
    start = time.perf_counter()
    yield
    print(f"  [{(time.perf_counter() - start) * 1000:.0f} ms]")


def say(label: str, value: object) -> None:
    """Print one aligned line of what was done or found."""
    print(f"  {label:<22}{value}")


def read(session: icechunk.Session) -> xr.Dataset:
    """Load everything that a session sees into memory."""
    return xr.open_dataset(session, engine="icechunk").load()


def write_two_commits(repo: icechunk.Repository, ocean: xr.Dataset) -> tuple[str, str]:
    """Commit the first months, then append the others; return both snapshot ids."""
    early = ocean.isel(time=slice(None, FIRST_MONTHS))
    late = ocean.isel(time=slice(FIRST_MONTHS, None))

    with step(f"Commit {early.sizes['time']} months to the branch 'main'"):
        session = repo.writable_session("main")
        to_icechunk(early, session, encoding={VARIABLE: {"chunks": CHUNKS}})
        first = session.commit("The first four years", metadata={"source": NETCDF.name})
        say("snapshot", first)

    with step(f"Append the other {late.sizes['time']} months in a second commit"):
        session = repo.writable_session("main")
        # coordinates without a time axis are there already, and compared
        to_icechunk(late, session, append_dim="time")
        second = session.commit("The last six months")
        say("snapshot", second)
    return first, second


def branch_off(repo: icechunk.Repository, start: str) -> str:
    """Add a variable on a branch of its own, out of sight of 'main'."""
    with step("Try something on the branch 'anomalies'"):
        repo.create_branch("anomalies", start)
        session = repo.writable_session("anomalies")
        sst = read(session)[VARIABLE]
        anomaly = (sst - sst.mean("time")).rename("anomaly")
        to_icechunk(anomaly.drop_vars(list(anomaly.coords)), session, mode="a")
        tip = session.commit("Anomalies against the mean of all months")
        say("snapshot", tip)
        say("arrays on anomalies", len(read(session).variables))
        say("arrays on main", len(read(repo.readonly_session("main")).variables))
    return tip


def show_diff(repo: icechunk.Repository, from_id: str, to_id: str) -> None:
    """Print what changed between two snapshots."""
    diff = repo.diff(from_snapshot_id=from_id, to_snapshot_id=to_id)
    say("new arrays", ", ".join(sorted(diff.new_arrays)) or "none")
    say("resized or renamed", ", ".join(sorted(diff.updated_arrays)) or "none")
    for path, chunks in sorted(diff.updated_chunks.items()):
        say("chunks written", f"{path}: {len(chunks)}")


def main() -> None:
    """Run all of it in a folder that is removed at the end."""
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="icechunk-demo-") as folder,
        xr.open_dataset(NETCDF, engine="h5netcdf") as ocean,
    ):
        print(f"icechunk {icechunk.__version__}: {NETCDF.name} into a repository in a folder")
        say("months, lat, lon", ocean[VARIABLE].shape)

        with step("Create a repository"):
            storage = icechunk.local_filesystem_storage(folder)
            repo = icechunk.Repository.create(storage)
            say("folder", folder)

        first, second = write_two_commits(repo, ocean)
        with step("Tag the first commit"):
            repo.create_tag("four-years", first)
            say("tags", ", ".join(sorted(repo.list_tags())))
        tip = branch_off(repo, second)

        with step("What the second commit changed"):
            show_diff(repo, first, second)
        with step("What the branch added"):
            show_diff(repo, second, tip)

        with step("Open the folder afresh, and list the history of 'main' (times in UTC)"):
            repo = icechunk.Repository.open(icechunk.local_filesystem_storage(folder))
            history = list(repo.ancestry(branch="main"))
            for snapshot in history:
                say(snapshot.id, f"{snapshot.written_at:%Y-%m-%d %H:%M:%S} {snapshot.message}")
            say("branches", ", ".join(sorted(repo.list_branches())))

        with step("Travel in time"):
            written_first = next(s.written_at for s in history if s.id == first)
            for way, session in {
                "the newest": repo.readonly_session("main"),
                "by tag": repo.readonly_session(tag="four-years"),
                "by snapshot": repo.readonly_session(snapshot_id=first),
                "by date": repo.readonly_session("main", as_of=written_first),
            }.items():
                say(way, f"{read(session).sizes['time']} months")

        with step("Compare with the file"):
            original = ocean.load()
            xr.testing.assert_equal(read(repo.readonly_session("main")), original)
            xr.testing.assert_equal(
                read(repo.readonly_session(tag="four-years")),
                original.isel(time=slice(None, FIRST_MONTHS)),
            )
            say("every value", "equal to the file's, in both versions")
            anomaly = read(repo.readonly_session("anomalies"))["anomaly"]
            monthly = anomaly.mean(["latitude", "longitude"])
            warmest = original["time"].values[int(np.argmax(monthly.values))]
            say("warmest month", np.datetime_as_string(warmest, unit="M"))

    print(f"\nDone in {time.perf_counter() - start:.1f} s; the folder is gone again.")
    print(NEXT)


if __name__ == "__main__":
    main()
