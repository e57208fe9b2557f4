"""An executor that runs slow tasks a second time while some of its workers are idle.

A machine that is slow, or hangs, delays everything that needs its last task. What tasks write
may be written twice, and only the first answer counts. So a second attempt costs
only time that nobody else needs.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Final

__all__ = ["RunningTwice"]

_log = logging.getLogger(__name__)

#: What is usual is unknown until this many tasks have ended.
_ENOUGH: Final = 3
#: How many of the newest tasks say what is usual.
_RECENT: Final = 101
#: A task that takes fewer seconds than this is never slow.
_QUICK: Final = 1.0
clock: Callable[[], float] = time.monotonic


class _Task:
    """One task with its attempts.

    Parameters
    ----------
    call : callable
        Submits an attempt.
    """

    def __init__(self, call: Callable[[], Future[Any]]) -> None:
        self.call = call
        self.result: Future[Any] = Future()
        self.began = clock()
        self.attempts: list[Future[Any]] = []


class RunningTwice(Executor):
    """Passes tasks on to an executor, and slow ones a second time.

    Parameters
    ----------
    inner : Executor
    workers : int
        How many tasks the executor runs at the same time.
    factor : float
        A task is slow if it takes this many times as long as the median of those that ended.

    Attributes
    ----------
    inner : Executor
    max_workers : int
    """

    def __init__(self, inner: Executor, workers: int, factor: float) -> None:
        self.inner = inner
        self.max_workers = workers
        self._factor = factor
        self._seconds: list[float] = []
        self._tasks: set[_Task] = set()
        self._running = 0
        self._changed = threading.Condition()
        self._watcher: threading.Thread | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a task, and return the future of the attempt that ends first."""
        task = _Task(lambda: self.inner.submit(fn, *args, **kwargs))
        with self._changed:
            self._tasks.add(task)
            if self._watcher is None:
                self._watcher = threading.Thread(
                    target=self._watch, daemon=True, name="icechunk-stragglers"
                )
                self._watcher.start()
        try:
            self._attempt(task)
        except BaseException:
            self._end(task)
            raise
        return task.result

    def _attempt(self, task: _Task) -> None:
        attempt = task.call()
        with self._changed:
            self._running += 1
            task.attempts.append(attempt)
            self._changed.notify()
        attempt.add_done_callback(lambda done: self._ended(task, done))

    def _ended(self, task: _Task, attempt: Future[Any]) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify()
            is_open = task in self._tasks
            others = any(not each.done() for each in task.attempts)
        if not is_open or attempt.cancelled():
            return
        error = attempt.exception()
        if error is not None and others:
            # the other attempt may still succeed
            return
        self._end(task, clock() - task.began if error is None else None)
        for each in task.attempts:
            # an attempt that is still waiting for a worker is of no use any more
            each.cancel()
        if error is None:
            task.result.set_result(attempt.result())
        else:
            task.result.set_exception(error)

    def _end(self, task: _Task, seconds: float | None = None) -> None:
        with self._changed:
            self._tasks.discard(task)
            if seconds is not None:
                self._seconds = [*self._seconds, seconds][-_RECENT:]
            self._changed.notify()

    def _watch(self) -> None:
        """Start second attempts until no tasks are left."""
        while True:
            with self._changed:
                if not self._tasks:
                    self._watcher = None
                    return
                slow, rest = self._slowest()
                if slow is None:
                    self._changed.wait(rest)
                    continue
            _log.info("a task takes long, and is run a second time: %.1f s", clock() - slow.began)
            try:
                self._attempt(slow)
            except RuntimeError:
                # the pool was shut down or is broken: whoever waits for it will say so
                return

    def _slowest(self) -> tuple[_Task | None, float | None]:
        """Return the task to run again now, or the seconds until there may be one."""
        if len(self._seconds) < _ENOUGH or self._running >= self.max_workers:
            return None, None
        single = [task for task in self._tasks if len(task.attempts) == 1]
        if not single:
            return None, None
        task = min(single, key=lambda each: each.began)
        limit = max(self._factor * statistics.median(self._seconds), _QUICK)
        rest = task.began + limit - clock()
        return (task, None) if rest <= 0 else (None, rest)
