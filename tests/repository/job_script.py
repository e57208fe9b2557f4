"""A process that does parts of a job, and is told by a table what happens to it."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import zarr

from icechunk import IcechunkStore, Repository, TaskError


def what_happens(key: int, attempt: int) -> str:
    """Return what becomes of an attempt."""
    table = {
        (0, 1): "raise",
        (0, 2): "kill",
        (2, 1): "kill after",
        (5, 1): "kill",
        (3, 1): "raise",
        (3, 2): "raise",
    }
    return table.get((key, attempt), "")


def main() -> None:
    """Do the parts of a job that are left, of every second key, and then finish it."""
    url, first = sys.argv[1], int(sys.argv[2])
    job = Repository.open(url).jobs.open("rows")

    def write(store: IcechunkStore, key: Any) -> None:
        running = {part.key: part.attempt for part in job.status().running}
        fate = what_happens(key, running[key])
        if fate == "raise":
            raise OSError(f"no row {key}")
        array: Any = zarr.open_array(store, path="a", mode="r+")
        array[key] = key + 1
        if fate.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)

    keys = job.keys or []
    try:
        job.run(write, keys=[*keys[first:], *keys[:first]])
    except TaskError as error:
        print(error)
        sys.exit(1)
    job.finish()


if __name__ == "__main__":
    main()
