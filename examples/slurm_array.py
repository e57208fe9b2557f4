"""A Slurm array: each task does every n-th part, so that there are fewer tasks than parts.

slurm_array.sh starts it. If tasks fail, or run out of time, submit it again: it goes on with the
parts that are left.
"""

import os
import sys

import numpy as np
import zarr

from icechunk import IcechunkStore, Repository, SessionStateError

DAYS = ["2001-01-01", "2001-01-02", "2001-01-03", "2001-01-04"]


def write_day(store: IcechunkStore, day: str) -> None:
    """Write one row; here one would open the file of that day."""
    row = DAYS.index(day)
    array = zarr.open_array(store, path="temperature", mode="r+")
    array[row] = np.full(array.shape[1], float(row + 1))


def create(repository: Repository) -> None:
    """Make the array and the job; a second call changes nothing."""
    session = repository.writable_session("main")
    if "temperature" not in zarr.open_group(session.store):
        zarr.create_array(
            session.store, name="temperature", shape=(len(DAYS), 10), chunks=(1, 10), dtype="f4"
        )
        session.commit("An empty array")
    repository.jobs.create("january", keys=DAYS, message="Temperatures of January", exist_ok=True)


def run(repository: Repository) -> None:
    """Do the parts of this task, and commit if all others are done, too."""
    job = repository.jobs.open("january")
    task, tasks = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "COUNT"))
    job.run(write_day, keys=DAYS[task::tasks])
    try:
        job.finish()
    except SessionStateError as error:
        print(error)


def main() -> None:
    """Do what the command line says."""
    repository = Repository.open_or_create(os.environ["REPOSITORY"])
    match sys.argv[1:]:
        case ["create"]:
            create(repository)
        case ["run"]:
            run(repository)
        case ["status"]:
            print(repository.jobs.open("january").status())
        case _:
            sys.exit("usage: slurm_array.py create|run|status")


if __name__ == "__main__":
    main()
