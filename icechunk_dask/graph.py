"""Graphs of tasks that each return a `Part`, reduced to one on the workers; and how they run."""

from __future__ import annotations

import inspect
import logging
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

import dask.base
import dask.config
import dask.local
import dask.threaded
from dask.array.optimization import optimize as optimize_array
from dask.blockwise import Blockwise, optimize_blockwise
from dask.callbacks import Callback
from dask.core import flatten
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.multiprocessing import RemoteException
from dask.system import CPU_COUNT

from icechunk import (
    ErrorKind,
    IcechunkError,
    InternalError,
    InvalidInputError,
    Storage,
    TaskError,
)
from icechunk.base.near import meant
from icechunk.base.time_limits import call_within
from icechunk_dask.dask_internals import Task, as_tasks, fused, with_function
from icechunk_dask.executors import Pool
from icechunk_dask.part import Part, failing_as, merge_parts, timed
from icechunk_dask.progress import Progress, count, counts_of
from icechunk_dask.recipe import Recipe

__all__ = ["Named", "Runner", "Write", "check_options", "reduced"]

#: How many parts are merged at a time. Many, because a merge costs little compared with a task.
SPLIT_EVERY: Final = 16

#: What the parent of a worker logs of its death.
_DEATH: Final = re.compile(r"memory budget|killed by signal|exit code|Restarting worker")
#: Seconds to wait for these logs, and lines to show of each.
_LOGS_WITHIN: Final = 10.0
_MOST_DEATHS: Final = 3

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


class Trying(NamedTuple):
    """How persistently a task is tried.

    Attributes
    ----------
    retries : int
        How often to try again, where the scheduler does not.
    timeout : float or None
        Seconds after which an attempt fails.
    """

    retries: int = 0
    timeout: float | None = None


class Named:
    """The function of a task: it counts, and says what the task was to write when it fails.

    Parameters
    ----------
    function : callable
        Returns a `Part`.
    what : str
    topic : str or None
        Where to count on a cluster.
    trying : Trying
    """

    __slots__ = ("function", "topic", "trying", "what")

    def __init__(
        self,
        function: Callable[..., Any],
        what: str,
        topic: str | None,
        trying: Trying | None = None,
    ) -> None:
        self.function = function
        self.what = what
        self.topic = topic
        self.trying = trying or Trying()

    def __call__(self, *args: Any, **kwargs: Any) -> Part:
        """Call the function."""
        for left in range(self.trying.retries, -1, -1):
            try:
                with failing_as(self.what), timed(self.what) as runs:
                    call = partial(self.function, *args, **kwargs)
                    part: Part = call_within(self.trying.timeout, call)
            except TaskError:
                # if it fails for good, nobody will read it
                count(self.topic, {"retries": 1})
                if not left:
                    raise
            else:
                count(self.topic, counts_of(part))
                return replace(part, slowest=tuple(runs), peak_memory=runs[0].peak_memory)
        raise InternalError(f"retries is {self.trying.retries}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Named, (self.function, self.what, self.topic, self.trying)


def _merge_group(parts: Sequence[Part]) -> Part:
    """Merge parts that one task may make; nobody needs to know."""
    return merge_parts(parts)


def _merge(parts: Sequence[Part], topic: str | None) -> Part:
    merged = merge_parts(parts)
    count(topic, {"merged": len(parts)})
    return merged


#: What the tasks of a layer write: from the position of a block to words.
Names = Mapping[str, Callable[[tuple[int, ...]], str]]


class Write(Delayed):
    """A delayed value whose graph is optimised like that of an array.

    So one task makes and writes a block, and an error in making it names the region,
    too.
    """

    __slots__ = ("_names", "_steps", "recipe", "topic", "trying")

    def __init__(self, key: Any, graph: Any, names: Names, topic: str | None) -> None:
        super().__init__(key, graph)  # type: ignore[no-untyped-call]
        #: The graph of a function that is to travel.
        self.recipe: Recipe | None = None
        #: How persistently a task is tried.
        self.trying = Trying()
        self._names = dict(names)
        self._steps: tuple[Write, Callable[[Any], Any]] | None = None
        self.topic = topic

    @property
    def __dask_optimize__(self) -> Callable[..., Any]:
        return partial(_optimize, names=self._names, topic=self.topic, trying=self.trying)

    def written_by(self, key: Any) -> list[str]:
        """Return what the task with a key was to write, in words; nothing for other tasks."""
        if not isinstance(key, tuple):
            return []
        if key[0] in self._names:
            return [self._names[key[0]](key[1:])]
        graph: HighLevelGraph = self.dask
        node = graph.get(key)
        if isinstance(node, tuple) and isinstance(node[0], Named):
            return [node[0].what]
        if isinstance(node, tuple) and node[0] is _merge_group:
            return [what for leaf in node[1] for what in self.written_by(leaf)]
        return []

    def then(self, function: Callable[[Any], Any]) -> Write:
        """Return what a function makes of the value once it is computed.

        Its `compute` calls the function in this process, wherever the tasks run. In a larger
        computation, as in ``dask.compute(first, second)``, the function is a task.
        """
        key = f"icechunk-then-{uuid.uuid4().hex}"
        last = MaterializedLayer({key: (function, self.key)})
        graph: HighLevelGraph = self.dask
        layers = {**graph.layers, key: last}
        dependencies = {**graph.dependencies, key: {self.key}}
        result = Write(key, HighLevelGraph(layers, dependencies), self._names, self.topic)
        result._steps = (self, function)
        return result

    def compute(self, **options: Any) -> Any:
        """Compute the value; the options are those of `dask.compute`."""
        if self._steps is None:
            return super().compute(**options)  # type: ignore[no-untyped-call]
        before, function = self._steps
        return function(before.compute(**options))


def _optimize(
    graph: Any, keys: Any, names: Names, topic: str | None, trying: Trying, **options: Any
) -> Any:
    blockwise = optimize_blockwise(graph, keys=keys)
    annotated = any(layer.annotations for layer in graph.layers.values())
    # leave out the recipe and the merges
    single = [name for name, layer in blockwise.layers.items() if not isinstance(layer, Blockwise)]
    if not annotated and any(not name.startswith("icechunk-") for name in single):
        # single tasks are worth fusing too
        tasks = as_tasks(optimize_array(graph, keys, **options))
        return _together(_named(_with_sources(tasks, names), names, topic, trying))
    # all that can be fused is fused; the rest of Dask's optimisation of arrays takes longer than
    # anything else here, and drops annotations
    culled = blockwise.cull(set(flatten(keys)))
    layers = dict(culled.layers)
    for name, layer in layers.items():
        if isinstance(layer, Blockwise) and layer.output in names:
            tasks = _named(layer, names, topic, trying)
            layers[name] = MaterializedLayer(tasks, annotations=layer.annotations)
        elif trying != Trying() and name.startswith("icechunk-item-"):
            for function, *_ in layer.values():
                function.trying = trying
    result = HighLevelGraph(layers, culled.dependencies)
    return result if annotated else _together(as_tasks(result))


def _with_sources(tasks: dict[Any, Any], names: Names) -> dict[Any, Any]:
    """Let the task that writes a block also do what only that block needs.

    Dask's optimisation of arrays does not, because these tasks need the recipe too.
    """
    uses = Counter(dep for node in tasks.values() for dep in node.dependencies)
    result = dict(tasks)
    for key, node in tasks.items():
        if not (isinstance(key, tuple) and key[0] in names and isinstance(node, Task)):
            continue
        chain, end = [node], node
        while True:
            needed = [dep for dep in end.dependencies if not _is_recipe(dep)]
            if len(needed) != 1 or uses[needed[0]] != 1:
                break
            end = tasks[needed[0]]
            if not isinstance(end, Task):
                break
            chain.insert(0, end)
            del result[end.key]
        if len(chain) > 1:
            result[key] = fused(chain, key)
    return result


def _is_recipe(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("icechunk-recipe-")


def _together(tasks: dict[Any, Any]) -> dict[Any, Any]:
    """Let one task do what `_merge_group` merges, if that needs only the recipe."""
    result = dict(tasks)
    for key, node in tasks.items():
        if not (isinstance(node, Task) and node.func is _merge_group):
            continue
        parts = [tasks[part] for part in node.dependencies]
        if all(_is_recipe(dep) for part in parts for dep in part.dependencies):
            result[key] = fused([*parts, node], key)
            for part in parts:
                del result[part.key]
    return result


def _named(
    tasks: Mapping[Any, Any], names: Names, topic: str | None, trying: Trying
) -> dict[Any, Any]:
    result = dict(tasks)
    for key, node in result.items():
        if isinstance(key, tuple) and isinstance(node, Task) and key[0] in names:
            function = Named(node.func, names[key[0]](key[1:]), topic, trying)
            result[key] = with_function(node, function)
    return result


def reduced(
    leaves: Sequence[Any],
    graph: HighLevelGraph,
    names: Names,
    split_every: int | None,
    topic: str | None = None,
    finish: Callable[[Part], Any] | None = None,
    together: int = 1,
) -> Write:
    """Return a value that merges the parts with the given keys.

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
    topic : str, optional
        Where tasks on a cluster count.
    finish : function of Part, optional
        What to make of the last part.
    together : int
        How many of the leaves one task may do, because each is small.
    """
    width = SPLIT_EVERY if split_every is None else split_every
    if width < 2:
        raise InvalidInputError(f"split_every is {split_every}, it must be at least 2")
    token = uuid.uuid4().hex
    name = f"icechunk-merge-{token}"
    tree: dict[Any, Any] = {}
    keys, level = leaves, 0
    if together > 1:
        groups = [leaves[i : i + together] for i in range(0, len(leaves), together)]
        keys = [(f"icechunk-group-{token}", i) for i in range(len(groups))]
        tree.update(
            (key, (_merge_group, list(group))) for key, group in zip(keys, groups, strict=True)
        )
    while len(keys) > 1 or level == 0:
        groups = [keys[i : i + width] for i in range(0, len(keys), width)]
        keys = [(name, level, i) for i in range(len(groups))]
        for key, group in zip(keys, groups, strict=True):
            tree[key] = (_merge, list(group), topic)
        level += 1
    # a layer that others depend on too is not fused
    written = {key[0] for key in leaves}
    final = f"icechunk-changes-{token}"
    tree[final] = (finish, keys[0]) if finish is not None else keys[0]
    layers = {**graph.layers, final: MaterializedLayer(tree)}
    merged = HighLevelGraph(layers, {**graph.dependencies, final: written})
    return Write(final, merged, names, topic)


def check_options(function: Callable[..., Any], options: Iterable[str]) -> None:
    """Refuse options that Dask would ignore in silence.

    Parameters
    ----------
    function : callable
        Takes the options as keyword arguments, besides its own.
    options : iterable of str

    Raises
    ------
    TypeError
    """
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        near = meant(unknown[0], {*inspect.signature(function).parameters, *_OPTIONS})
        raise TypeError(
            f"{function.__name__}() got an unexpected keyword argument {unknown[0]!r}"
            f"; what is passed on to Dask is {', '.join(sorted(_OPTIONS))}{near}"
        )


@dataclass(frozen=True)
class Runner:
    """Runs tasks where the user wants them.

    Parameters
    ----------
    progress : Progress
    options : mapping
        For Dask.
    timeout : float, optional
        Seconds after which a task fails.

    Raises
    ------
    InvalidInputError
        If `timeout` is no number of seconds.
    """

    progress: Progress
    options: Mapping[str, Any]
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise InvalidInputError(f"timeout must be a number of seconds, not {self.timeout!r}")

    @property
    def client(self) -> Any:
        """The client of the cluster that runs the tasks; None without one."""
        # a method of the client
        owner = getattr(self._get, "__self__", None)
        return owner if hasattr(owner, "scheduler_info") else None

    @property
    def _scheduler(self) -> Any:
        return self.options.get("scheduler", dask.config.get("scheduler", None))

    @property
    def _get(self) -> Any:
        return dask.base.get_scheduler(scheduler=self._scheduler, cls=Delayed)

    def new_topic(self) -> str | None:
        """Return where the next tasks count; None if Dask says here which have ended."""
        wanted = self.progress.wanted and self.client is not None
        return f"icechunk-{uuid.uuid4().hex}" if wanted else None

    @property
    def slots(self) -> int:
        """How many tasks run at once."""
        if self.client is not None:
            return max(int(sum(self.client.nthreads().values())), 1)
        if isinstance(self._scheduler, Pool):
            return self._scheduler.workers
        number = self.options.get("num_workers") or dask.config.get("num_workers", CPU_COUNT)
        return int(number)

    def check_reach(self, storage: Storage) -> None:
        """Refuse a storage in memory if tasks run in other processes.

        Raises
        ------
        InvalidInputError
        """
        if storage.url.startswith("memory:") and not self._in_process():
            raise InvalidInputError(
                f"{storage.url} is in the memory of this process, and the tasks would run in "
                "others, which do not see it; use a folder or an object store, or the threaded "
                "scheduler",
                ErrorKind.STORAGE_CONFIG,
            )

    def _in_process(self) -> bool:
        if isinstance(self._scheduler, ThreadPoolExecutor):
            return True
        if isinstance(self._scheduler, Pool):
            return self._scheduler.in_process
        if self.client is not None:
            # the transport of clusters that live in this process
            return str(self.client.scheduler.address).startswith("inproc://")
        return self._get in (dask.threaded.get, dask.local.get_sync)

    def run(self, *writes: Write, of: str) -> list[Part]:
        """Run the tasks of values with one topic, and return a part for each.

        Parameters
        ----------
        *writes : Write
        of : str
            What to call the whole, if something fails that belongs to no single region or item.

        Raises
        ------
        TaskError
            If one failed; the others are cancelled.
        """
        before = self.progress.status
        retries = 0 if self.client is not None else int(self.options.get("retries") or 0)
        for write in writes:
            write.trying = Trying(retries, self.timeout)
        if not self._in_process():
            for write in writes:
                if write.recipe is not None:
                    write.recipe.check_travels()
        running = _Running()
        try:
            with self.progress.watching(self.client, writes[0].topic), _quiet(), running:
                parts = list(dask.base.compute(*writes, **self.options))
        except IcechunkError:
            raise
        except RemoteException as error:
            # the scheduler of processes wraps errors that it cannot raise again
            raise error.exception from error.exception.__cause__
        except Exception as error:
            failure = _failure(error, writes, of, running.keys)
            if type(error).__name__ == "KilledWorker":
                for line in _deaths(self.client):
                    failure.add_note(line)
            raise failure from error
        # the last messages of workers may still be on their way, and tasks may have run twice
        exact = {
            name: getattr(before, name) + sum(getattr(part, name) for part in parts)
            for name in ("tasks", "chunks", "nbytes")
        }
        self.progress.set(phase="merging", **exact)
        return parts


class _Running(Callback):
    """The tasks that have begun but not ended, where Dask's local scheduler hands them out."""

    def __init__(self) -> None:
        self.keys: dict[Any, None] = {}
        super().__init__(pretask=self._begins, posttask=self._ends)  # type: ignore[no-untyped-call]

    def _begins(self, key: Any, *_: Any) -> None:
        self.keys[key] = None

    def _ends(self, key: Any, *_: Any) -> None:
        self.keys.pop(key, None)


def _failure(
    error: Exception, writes: Sequence[Write], of: str, running: Iterable[Any]
) -> TaskError:
    """Return the error for what none of our tasks raised."""
    if isinstance(error, BrokenExecutor):
        found = [what for key in running for write in writes for what in write.written_by(key)]
        more = f" or one of {len(found) - 5} more" if len(found) > 5 else ""
        which = " or ".join(found[:5]) + more or of
        return TaskError(
            f"a process of the pool died while it was writing {which}: it had too little memory, "
            "or it was killed. Call again; a pool of yours is of no use any more, make a new one"
        )
    if type(error).__name__ == "KilledWorker":
        key = getattr(error, "task", None)
        written = [what for write in writes for what in write.written_by(key)]
        which = " or ".join(written) or f"the task {key!r}"
        return TaskError(
            f"a worker died each time it was writing {which}: it had too little memory, or the "
            "process was killed, by this task or by another one that ran there; its log may say "
            f"more: {error}"
        )
    reason: BaseException = error
    if str(error).startswith("Could not serialize"):
        # the reason is at the end of the chain
        chain = list(_chain(error))
        ours = [each for each in chain if isinstance(each, IcechunkError)]
        reason = (ours or chain)[-1]
        return TaskError(f"{of} cannot be sent to workers: {type(reason).__name__}: {reason}")
    return TaskError(f"computing {of} failed: {type(reason).__name__}: {reason}")


def _deaths(client: Any) -> list[str]:
    """Return what the parents of workers have logged of the newest deaths, if they answer."""
    with suppress(Exception):
        logs = call_within(_LOGS_WITHIN, partial(client.get_worker_logs, n=100, nanny=True))
        return [
            f"The log at {address}: {line}"
            for address, lines in sorted(logs.items())
            for line in [text for _, text in lines if _DEATH.search(text)][:_MOST_DEATHS]
        ]
    return []


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Dask logs of objects that do not pickle: pages for an error of one line."""
    logger = logging.getLogger("distributed.protocol.pickle")

    def keeps(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Failed to serialize")

    logger.addFilter(keeps)
    try:
        yield
    finally:
        logger.removeFilter(keeps)
