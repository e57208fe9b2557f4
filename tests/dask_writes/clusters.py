"""Where Dask tasks run in the tests: each way under one name."""

from __future__ import annotations

import functools
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
        with _pool() as pool, dask.config.set(scheduler=way, pool=pool):
            yield None
    else:
        with _cluster(way, **options) as cluster, Client(cluster) as client:
            yield client


@contextmanager
def shared(way: str) -> Iterator[Client | None]:
    """Do as `running`, with processes that start once for all tests, which may not end them."""
    if way == "processes":
        with dask.config.set(scheduler=way, pool=_kept_pool()):
            yield None
    elif way == "cluster":
        # what other tests compute would run there, if the client stayed
        with Client(_kept_cluster()) as client:
            yield client
    else:
        with running(way):
            yield None


def _pool() -> ProcessPoolExecutor:
    """Return a pool, because Dask would start new processes for every call."""
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def _cluster(way: str, **options: Any) -> LocalCluster:
    processes = way == "cluster"
    return LocalCluster(
        n_workers=2,
        processes=processes,
        dashboard_address=":0",
        protocol="tcp" if processes else "inproc",
        **{"threads_per_worker": 1, **options},
    )


# both end with the interpreter
_kept_pool = functools.cache(_pool)


@functools.cache
def _kept_cluster() -> LocalCluster:
    return _cluster("cluster")
