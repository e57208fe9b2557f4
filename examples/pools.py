"""One write on pools of other libraries: loky, MPI, Ray, or those of the standard library.

python pools.py processes|loky|ray, and for MPI: mpiexec -n 5 python -m mpi4py.futures pools.py mpi

Anything goes that has `submit` as `concurrent.futures.Executor` has it. With job= the same
command goes on after a failure.
"""

import os
import sys
from concurrent.futures import Executor, ProcessPoolExecutor

import numpy as np
import zarr

from icechunk import IcechunkStore, Repository
from icechunk_dask import distributed_write

DAYS = 8


def write_day(store: IcechunkStore, day: int) -> None:
    """Write one row; here one would open the file of that day."""
    array = zarr.open_array(store, path="temperature", mode="r+")
    array[day] = np.full(array.shape[1], float(day + 1))


def pool(name: str) -> Executor:
    """Return a pool of a library."""
    if name == "loky":
        from loky import ProcessPoolExecutor as LokyPool

        return LokyPool(max_workers=2)
    if name == "mpi":
        from mpi4py.futures import MPIPoolExecutor

        return MPIPoolExecutor()
    if name == "ray":
        return RayPool()
    return ProcessPoolExecutor(2)


class RayPool(Executor):
    """The tasks of a pool on a Ray cluster, each as a remote function."""

    def __init__(self) -> None:
        import ray

        if not ray.is_initialized():
            ray.init()
        self._call = ray.remote(lambda function, args, kwargs: function(*args, **kwargs))
        self.max_workers = int(ray.cluster_resources()["CPU"])

    def submit(self, fn, /, *args, **kwargs):
        """Run a function on the cluster."""
        return self._call.remote(fn, args, kwargs).future()


def main() -> None:
    """Write all days."""
    repository = Repository.open_or_create(os.environ["REPOSITORY"])
    session = repository.writable_session("main")
    if "temperature" not in zarr.open_group(session.store):
        zarr.create_array(
            session.store, name="temperature", shape=(DAYS, 10), chunks=(1, 10), dtype="f4"
        )
        session.commit("An empty array")
    with pool(sys.argv[1]) as executor:
        written = distributed_write(
            write_day,
            range(DAYS),
            repository,
            executor=executor,
            job="days",
            message="Temperatures",
            commit_every=4,
        )
    print(f"{written.tasks} days written, {written.skipped} were there")


if __name__ == "__main__":
    main()
