"""What tasks return, and how it is reduced to one change set on the way to the coordinator."""

from __future__ import annotations

import heapq
import os
import pickle
import platform
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from icechunk import ConflictError, ForkSession, TaskError
from icechunk.base.texts import counted
from icechunk.session.distributed import Changes

__all__ = [
    "Boxes",
    "Part",
    "TaskRun",
    "failing_as",
    "finished",
    "merge_parts",
    "overlap",
    "slowest_of",
    "timed",
]


#: How many runs are kept.
_SLOWEST: Final = 5

#: What one task did to one array: the name of the task, and the box of chunks that it touched.
Boxes = dict[str, list[tuple[str, tuple[tuple[int, int], ...]]]]


@dataclass(frozen=True, slots=True, order=True)
class TaskRun:
    """One run of a task.

    Attributes
    ----------
    seconds : float
        How long it took.
    what : str
        The item or region.
    began : float
        Seconds since the epoch, by the clock of that machine.
    peak_memory : int
        Peak memory of the process until the task ended, in bytes; 0 if the
        system does not tell.
    host : str
    pid : int
        The process.
    """

    seconds: float
    what: str
    began: float
    peak_memory: int
    host: str
    pid: int


@contextmanager
def timed(what: str) -> Iterator[list[TaskRun]]:
    """Note how the block ran, in a list that is empty until it has ended."""
    runs: list[TaskRun] = []
    began, start = time.time(), time.perf_counter()
    yield runs
    seconds = time.perf_counter() - start
    runs.append(TaskRun(seconds, what, began, _peak_memory(), platform.node(), os.getpid()))


def _peak_memory() -> int:
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """What one task did, or several tasks together.

    Attributes
    ----------
    changes : Changes
    tasks : int
    chunks : int
        Chunks that were stored.
    nbytes : int
        Size of these chunks in storage.
    empty : int
        Chunks that hold fill values only and were not stored.
    fan_in : int
        How many parts the last merge put together; 1 before any.
    boxes : dict
        By path of an array, where each task wrote, if the tasks have names: this tells which
        two wrote one chunk.
    results : tuple of (int, object)
        What tasks returned besides, by their numbers.
    slowest : tuple of TaskRun
        Those that took longest, the longest first.
    peak_memory : int
        The peak memory of a process, in bytes.
    """

    changes: Changes
    tasks: int
    chunks: int
    nbytes: int
    empty: int
    fan_in: int = 1
    boxes: Boxes = field(default_factory=dict)
    results: tuple[tuple[int, Any], ...] = ()
    slowest: tuple[TaskRun, ...] = ()
    peak_memory: int = 0


def slowest_of(parts: Iterable[Part]) -> tuple[TaskRun, ...]:
    """Return the runs of several parts that took longest."""
    return tuple(heapq.nlargest(_SLOWEST, (run for part in parts for run in part.slowest)))


def finished(
    fork: ForkSession, name: str | None = None, results: tuple[tuple[int, Any], ...] = ()
) -> Part:
    """Return what a task did with its fork.

    Parameters
    ----------
    name : str, optional
        What a conflict calls the task.
    """
    changes = fork.array_changes()
    return Part(
        Changes.of(fork),
        1,
        sum(change.stored for change in changes),
        sum(change.nbytes for change in changes),
        sum(change.deleted for change in changes),
        boxes={} if name is None else {c.path: [(name, c.extents)] for c in changes},
        results=results,
    )


def merge_parts(parts: Sequence[Part]) -> Part:
    """Combine several parts into one.

    Raises
    ------
    ConflictError
        If two of them wrote the same chunk or node.
    """
    if len(parts) == 1:
        return parts[0]
    try:
        merged = Changes.merged(part.changes for part in parts)
    except ConflictError as error:
        raise _naming(error, parts) from error
    boxes: Boxes = {}
    for part in parts:
        for path, more in part.boxes.items():
            boxes.setdefault(path, []).extend(more)
    return Part(
        merged,
        sum(part.tasks for part in parts),
        sum(part.chunks for part in parts),
        sum(part.nbytes for part in parts),
        sum(part.empty for part in parts),
        len(parts),
        boxes,
        tuple(result for part in parts for result in part.results),
        slowest_of(parts),
        max(part.peak_memory for part in parts),
    )


def _naming(error: ConflictError, parts: Sequence[Part]) -> ConflictError:
    """Return the error with the names of tasks that wrote to one place, if they have any."""
    pairs = []
    for number, part in enumerate(parts):
        for earlier in parts[:number]:
            found = [
                f"{one} and {other} ({path!r})"
                for path, mine in part.boxes.items()
                for one, box in earlier.boxes.get(path, [])
                for other, wanted in mine
                if overlap(box, wanted)
            ]
            # boxes also overlap if tasks write every other chunk
            if found and _contradict(earlier, part):
                pairs += found
    if not pairs:
        return error
    more = f" or {counted(len(pairs) - 5, 'other pair')}" if len(pairs) > 5 else ""
    return ConflictError(
        message=f"two items wrote the same chunk: {', or '.join(pairs[:5])}{more}: {error}",
        kind=error.kind,
    )


def _contradict(one: Part, other: Part) -> bool:
    try:
        Changes.merged([one.changes, other.changes])
    except ConflictError:
        return True
    return False


def overlap(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> bool:
    """Whether two boxes share a place."""
    return len(one) == len(other) and all(
        a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True)
    )


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Say what failed, whatever was raised.

    Raises
    ------
    TaskError
        With the original error as its cause; if that cannot travel, with one that has its text
        and its traceback.
    """
    try:
        yield
    except TaskError:
        raise
    except Exception as error:
        failure = TaskError(f"writing {what} failed: {type(error).__name__}: {error}")
        try:
            raise failure from _travelling(error)
        finally:
            # Dask takes along the causes of an error, and with them what does not travel
            failure.__context__ = None


def _travelling(error: Exception) -> Exception:
    try:
        if "distributed" in sys.modules:
            # this is how Dask sends errors: some that pickle otherwise do not travel
            from tblib import pickling_support  # type: ignore[import-untyped]

            pickling_support.install(error)
        pickle.loads(pickle.dumps(error))
    except Exception:
        text = "".join(traceback.format_exception(error))
        error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(f"It was raised elsewhere:\n\n{text}")
    return error
