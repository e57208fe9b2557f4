"""What runs tasks: Dask's schedulers, and any pool of the standard library's interface.

Everything is one graph. A cluster takes it as it is. For anything else, Dask's local scheduler
hands out the tasks one by one as they get ready, so an executor needs only `submit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import cloudpickle
import dask.local
from dask.local import reraise
from dask.multiprocessing import pack_exception
from dask.system import CPU_COUNT

from icechunk import InvalidInputError
from icechunk_dask.stragglers import RunningTwice

__all__ = ["ExecutorOption", "Pool", "with_executor"]

#: Names of Dask's own.
_NAMES: Final = ("threads", "processes", "sync")

ExecutorOption: TypeAlias = str | Executor | Any | None


def with_executor(
    executor: ExecutorOption, options: Mapping[str, Any], stragglers: float | None = None
) -> dict[str, Any]:
    """Return options for Dask that make it use an executor.

    Parameters
    ----------
    executor : {"threads", "processes", "sync"}, Executor, Client or None
        None leaves the choice to Dask.
    options : mapping
        Other options.
    stragglers : float, optional
        A task that takes this many times as long as most is run a second time.

    Raises
    ------
    InvalidInputError
        If it is none of these, `options` name another one, or `stragglers` is given without a
        pool.
    """
    if stragglers is not None:
        executor = _running_twice(executor, stragglers)
    if executor is None:
        return dict(options)
    if options.get("scheduler") is not None:
        raise InvalidInputError("executor= and scheduler= say the same; pass one of them")
    return {**options, "scheduler": _scheduler(executor)}


def _scheduler(executor: ExecutorOption) -> Any:
    if isinstance(executor, str) and executor in _NAMES:
        return executor
    if isinstance(executor, ThreadPoolExecutor):
        return executor
    if isinstance(executor, Executor):
        return Pool(executor)
    if hasattr(executor, "scheduler_info") and hasattr(executor, "get"):
        return executor
    raise InvalidInputError(
        f"executor is {executor!r}; it must be {', '.join(map(repr, _NAMES))}, a "
        "concurrent.futures.Executor such as a pool, or a distributed.Client"
    )


def _running_twice(executor: ExecutorOption, factor: float) -> Executor:
    if not (isinstance(factor, int | float) and factor > 1):
        raise InvalidInputError(
            f"stragglers is {factor!r}; it must be a number above 1, such as 3: a task that takes "
            "so many times as long as most is run a second time"
        )
    if not isinstance(executor, Executor):
        raise InvalidInputError(
            "stragglers= needs a pool as executor=, such as "
            "concurrent.futures.ProcessPoolExecutor(); that of a cluster is client.get_executor()"
        )
    return RunningTwice(executor, Pool(executor).workers, factor)


class Pool:
    """A Dask scheduler whose tasks run on an executor.

    Parameters
    ----------
    executor : Executor
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    @property
    def workers(self) -> int:
        """How many tasks are handed out at a time. Pools have different names for it."""
        pool = self._executor
        workers = getattr(pool, "_max_workers", None) or getattr(pool, "max_workers", None)
        return int(workers or 2 * CPU_COUNT)

    @property
    def in_process(self) -> bool:
        """Whether the tasks run in this process."""
        return isinstance(getattr(self._executor, "inner", self._executor), ThreadPoolExecutor)

    def __call__(self, graph: Any, keys: Any, **options: Any) -> Any:
        """Run a graph."""
        return dask.local.get_async(
            self._executor.submit,
            self.workers,
            graph,
            keys,
            # by value, as Dask sends functions that nobody can import
            dumps=cloudpickle.dumps,
            loads=cloudpickle.loads,
            pack_exception=pack_exception,
            raise_exception=reraise,
            **options,
        )
