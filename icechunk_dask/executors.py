"""What runs tasks: Dask's schedulers, and any pool of the standard library's interface.

Everything is one graph. A cluster takes it as it is. Dask's local scheduler feeds the tasks to
anything else, one by one as they get ready, so an executor needs `submit` and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeAlias

import cloudpickle
import dask.local
from dask.local import reraise
from dask.multiprocessing import pack_exception
from dask.system import CPU_COUNT

from icechunk import InvalidInputError

__all__ = ["ExecutorOption", "with_executor"]

#: Names of Dask's own.
_NAMES: Final = ("threads", "processes", "sync")

ExecutorOption: TypeAlias = str | Executor | Any | None


def with_executor(executor: ExecutorOption, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options for Dask that make it use an executor.

    Parameters
    ----------
    executor : {"threads", "processes", "sync"}, Executor, Client or None
        None leaves the choice to Dask.
    options : mapping
        Other options.

    Raises
    ------
    InvalidInputError
        If it is none of these, or `options` name another one.
    """
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
        return _through(executor)
    if hasattr(executor, "scheduler_info") and hasattr(executor, "get"):
        return executor
    raise InvalidInputError(
        f"executor is {executor!r}; it must be {', '.join(map(repr, _NAMES))}, a "
        "concurrent.futures.Executor such as a pool, or a distributed.Client"
    )


def _through(executor: Executor) -> Callable[..., Any]:
    """Return a scheduler that has tasks run by a pool of other processes or machines."""
    # how many tasks are handed out at a time; pools say it by different names
    workers = getattr(executor, "_max_workers", None) or getattr(executor, "max_workers", None)
    return partial(
        dask.local.get_async,
        executor.submit,
        workers or 2 * CPU_COUNT,
        # by value, as Dask sends functions that nobody can import
        dumps=cloudpickle.dumps,
        loads=cloudpickle.loads,
        pack_exception=pack_exception,
        raise_exception=reraise,
    )
