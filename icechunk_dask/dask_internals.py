"""Everything used of Dask that is not public: a new release may change it.

- `dask._task_spec`: tasks as objects. Dask turns every graph into them, and there is no public
  way to fuse two tasks, or to give a task another function. Graphs that are built here are
  tuples, which are public.
- `ArraySliceDep`, with which `map_blocks` tells a function which block it gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dask._task_spec import Task, convert_legacy_graph
from dask.layers import ArraySliceDep
from dask.utils import ensure_dict

__all__ = ["ArraySliceDep", "Task", "as_tasks", "fused", "with_function"]


def as_tasks(graph: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a graph with tasks as objects, in place of tuples."""
    tasks: dict[Any, Any] = convert_legacy_graph(ensure_dict(graph))
    return tasks


def fused(tasks: Iterable[Any], key: Any) -> Any:
    """Return one task, with a key, that does what several do one after another."""
    return Task.fuse(*tasks, key=key)


def with_function(task: Any, function: Callable[..., Any]) -> Any:
    """Return a task with another function and the same arguments."""
    return Task(task.key, function, *task.args, _data_producer=task.data_producer, **task.kwargs)
