"""A Kubernetes Job in indexed mode: one pod for each part.

kubernetes_job.yaml starts it. Kubernetes runs a pod again that failed, or whose node is gone.
"""

import os
import sys

import numpy as np
import zarr

from icechunk import IcechunkStore, Repository

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


def main() -> None:
    """Do what the command line says."""
    repository = Repository.open_or_create(os.environ["REPOSITORY"])
    match sys.argv[1:]:
        case ["create"]:
            create(repository)
        case ["run"]:
            job = repository.jobs.open("january")
            job.run(write_day, int(os.environ["JOB_COMPLETION_INDEX"]))
        case ["finish"]:
            job = repository.jobs.open("january")
            job.finish()
            print(job.status())
        case _:
            sys.exit("usage: kubernetes_job.py create|run|finish")


if __name__ == "__main__":
    main()
