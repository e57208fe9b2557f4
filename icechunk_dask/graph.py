"""Graphs of tasks that each return a `Part`, reduced to one on the workers; and their run."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import dask.base
import dask.config
import dask.local
import dask.threaded
from dask._task_spec import Task
from dask.array.optimization import optimize as optimize_array
from dask.blockwise import Blockwise, optimize_blockwise
from dask.core import flatten
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.multiprocessing import RemoteException
from dask.utils import ensure_dict

from icechunk import ErrorKind, IcechunkError, InvalidInputError, Session, TaskError
from icechunk_dask.part import Part, failing_as, merge_parts

__all__ = ["SPLIT_EVERY", "Write", "check_options", "check_reach", "client_of", "reduced", "run"]

#: How many parts are merged at a time. Wide, because a merge costs little beside a task.
SPLIT_EVERY: Final = 16

#: What `dask.compute` and `Client.compute` understand.
_OPTIONS: Final = frozenset(
    {
        "actors",
        "allow_other_workers",
        "chunksize",
        "fifo_timeout",
        "num_workers",
        "optimize_graph",
        "pool",
        "priority",
        "resources",
        "retries",
        "scheduler",
        "workers",
    }
)


class Named:
    """A function that says what it was to write when it fails.

    Parameters
    ----------
    function : callable
    what : str
    """

    __slots__ = ("function", "what")

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        self.function = function
        self.what = what

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with failing_as(self.what):
            return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Named, (self.function, self.what)


#: What the tasks of a layer write: from the position of a block to words.
Names = Mapping[str, Callable[[tuple[int, ...]], str]]


class Write(Delayed):
    """A delayed value whose graph is optimised as that of an array.

    So a block is made and written by one task, and an error in making it names the region,
    too.
    """

    __slots__ = ("_names",)

    def __init__(self, key: Any, graph: Any, names: Names) -> None:
        super().__init__(key, graph)  # type: ignore[no-untyped-call]
        self._names = dict(names)

    @property
    def __dask_optimize__(self) -> Callable[..., Any]:
        return partial(_optimize, names=self._names)


def _optimize(graph: Any, keys: Any, names: Names, **options: Any) -> Any:
    if not any(layer.annotations for layer in graph.layers.values()):
        return _named(ensure_dict(optimize_array(graph, keys, **options)), names)
    # the other steps of optimising an array forget annotations
    fused = optimize_blockwise(graph, keys=keys).cull(set(flatten(keys)))
    layers = dict(fused.layers)
    for name, layer in layers.items():
        if isinstance(layer, Blockwise) and layer.output in names:
            layers[name] = MaterializedLayer(_named(layer, names), annotations=layer.annotations)
    return HighLevelGraph(layers, fused.dependencies)


def _named(tasks: Mapping[Any, Any], names: Names) -> dict[Any, Any]:
    result = dict(tasks)
    for key, node in result.items():
        if isinstance(key, tuple) and isinstance(node, Task) and key[0] in names:
            function = Named(node.func, names[key[0]](key[1:]))
            result[key] = Task(
                key, function, *node.args, _data_producer=node.data_producer, **node.kwargs
            )
    return result


def reduced(
    leaves: Sequence[Any],
    graph: HighLevelGraph,
    names: Names,
    split_every: int | None,
    finish: Callable[[Part], Any] | None = None,
) -> Write:
    """Return the value that merges the parts which some keys stand for.

    Parameters
    ----------
    leaves : sequence of Dask keys
        At least one; neighbours are merged first.
    graph : HighLevelGraph
        Has these keys.
    names : mapping of str to function
        What the tasks of a layer write: from the position of a block to words.
    split_every : int or None
        How many parts are merged at a time.
    finish : function of Part, optional
        What to make of the last one.
    """
    width = SPLIT_EVERY if split_every is None else split_every
    if width < 2:
        raise InvalidInputError(f"split_every is {split_every}, it must be 2 at least")
    token = uuid.uuid4().hex
    name = f"icechunk-merge-{token}"
    tree: dict[Any, Any] = {}
    keys, level = leaves, 0
    while len(keys) > 1 or level == 0:
        groups = [keys[i : i + width] for i in range(0, len(keys), width)]
        keys = [(name, level, i) for i in range(len(groups))]
        for key, group in zip(keys, groups, strict=True):
            tree[key] = (merge_parts, list(group))
        level += 1
    # only these: a layer that others depend on, too, is not fused
    written = {key[0] for key in leaves}
    final = f"icechunk-changes-{token}"
    tree[final] = (finish, keys[0]) if finish is not None else keys[0]
    layers = {**graph.layers, final: MaterializedLayer(tree)}
    merged = HighLevelGraph(layers, {**graph.dependencies, final: written})
    return Write(final, merged, names)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that Dask would ignore in silence.

    Raises
    ------
    TypeError
    """
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise TypeError(
            f"unknown option {unknown[0]!r}; what is passed on to Dask is one of "
            f"{', '.join(sorted(_OPTIONS))}"
        )


def check_reach(sessions: Iterable[Session], options: Mapping[str, Any]) -> None:
    """Refuse a repository in memory where tasks run in other processes.

    Raises
    ------
    InvalidInputError
    """
    for url in (session.storage.url for session in sessions):
        if url.startswith("memory:") and not _in_process(options):
            raise InvalidInputError(
                f"{url} is in the memory of this process, and the tasks would run in others, "
                "which do not see it; use a folder or an object store, or the threaded scheduler",
                ErrorKind.STORAGE_CONFIG,
            )


def _in_process(options: Mapping[str, Any]) -> bool:
    scheduler = options.get("scheduler", dask.config.get("scheduler", None))
    if isinstance(scheduler, ThreadPoolExecutor):
        return True
    get = dask.base.get_scheduler(scheduler=scheduler, cls=Delayed)
    client = client_of(get)
    if client is not None:
        # the transport of clusters that live in this process
        return str(client.scheduler.address).startswith("inproc://")
    return get in (dask.threaded.get, dask.local.get_sync)


def client_of(get: Any) -> Any:
    """Return the distributed client whose method a scheduler function is, or None."""
    owner = getattr(get, "__self__", None)
    return owner if hasattr(owner, "scheduler_info") else None


def run(writes: Sequence[Write], options: Mapping[str, Any]) -> list[Part]:
    """Run the tasks and return what they did, one part for each value.

    Raises
    ------
    TaskError
        If one failed; the rest is cancelled.
    """
    try:
        return list(dask.base.compute(*writes, **options))
    except IcechunkError:
        raise
    except RemoteException as error:
        # the scheduler of processes wraps what it cannot raise again
        raise error.exception from error.exception.__cause__
    except Exception as error:
        raise TaskError(f"computing the sources failed: {type(error).__name__}: {error}") from error
