"""Where Dask tasks run in the tests: each way under one name."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import dask.config
from distributed import Client, LocalCluster

#: Names for `running`; "inproc" is a cluster whose workers are threads of this process.
WAYS = ("sync", "threads", "processes", "cluster")


@contextmanager
def running(way: str, **options: Any) -> Iterator[Client | None]:
    """Make a way to run tasks the default; workers of a cluster take options."""
    if way in ("sync", "threads"):
        with dask.config.set(scheduler=way):
            yield None
    elif way == "processes":
        # a pool of its own, because Dask would start new processes for every call
        context = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(2, mp_context=context) as pool,
            dask.config.set(scheduler=way, pool=pool),
        ):
            yield None
    else:
        processes = way == "cluster"
        with (
            LocalCluster(
                n_workers=2,
                processes=processes,
                dashboard_address=":0",
                protocol="tcp" if processes else "inproc",
                **{"threads_per_worker": 1, **options},
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
