"""One write on pools of other libraries: loky, MPI, Parsl, Lithops, Ray, or the standard library.

python pools.py processes|loky|parsl|lithops|ray, and for MPI:
mpiexec -n 5 python -m mpi4py.futures pools.py mpi

Anything goes that has `submit` as `concurrent.futures.Executor` has it. With job= the same
command goes on after a failure.
"""

import os
import sys
import tempfile
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

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
    if name == "parsl":
        from parsl.concurrent import ParslPoolExecutor
        from parsl.config import Config
        from parsl.executors import HighThroughputExecutor

        here = HighThroughputExecutor(address="127.0.0.1", max_workers_per_node=2)
        return ParslPoolExecutor(Config([here], run_dir=tempfile.mkdtemp()))
    if name == "lithops":
        return LithopsPool()
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


class LithopsPool(Executor):
    """The tasks of a pool as calls of Lithops, where its configuration says."""

    def __init__(self) -> None:
        import lithops

        self._functions = lithops.FunctionExecutor()
        self.max_workers = 4
        # a thread for each call that is waited for
        self._waiting = ThreadPoolExecutor(self.max_workers)

    def submit(self, fn, /, *args, **kwargs):
        """Run a function by Lithops."""
        return self._waiting.submit(self._call, (fn, args, kwargs))

    def _call(self, call):
        return self._functions.call_async(called, (call,)).result()

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Wait for the calls, and delete what Lithops stored."""
        self._waiting.shutdown(wait, cancel_futures=cancel_futures)
        self._functions.clean()


def called(call):
    """Call a function."""
    function, args, kwargs = call
    return function(*args, **kwargs)


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
