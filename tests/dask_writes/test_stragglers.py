"""Slow tasks are run a second time on a pool that has nothing else to do."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask.array as da
import pytest

from icechunk import (
    InvalidInputError,
    MemoryStorage,
    TaskError,
)
from icechunk_dask import distributed_write, store_dask, stragglers
from icechunk_dask.stragglers import RunningTwice
from tests.dask_writes import fates
from tests.dask_writes.rows import repository_with_rows, rows

ROWS = 6


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_task_that_hangs_holds_up_nobody(kind: str, tmp_path: Path) -> None:
    """Its second attempt is what counts; the first one ends later, and is in no version."""
    repository = repository_with_rows(str(tmp_path / "repository"), ROWS)
    folder = fates.Folder(tmp_path).prepare()
    with ExitStack() as stack:
        pool: Any = fates.pool_of_processes(2) if kind == "processes" else ThreadPoolExecutor(2)
        stack.callback(pool.shutdown)
        stack.callback(folder.release)
        written = distributed_write(
            fates.write_row,
            fates.items(folder, "hang"),
            repository,
            executor=pool,
            stragglers=2,
            message="rows",
        )
    assert (written.tasks, written.chunks) == (ROWS, ROWS)
    assert folder.ran == Counter({row: 1 + (row == fates.VICTIM) for row in range(ROWS)})
    assert rows(repository) == [1, 2, 3, 4, 5, 6]


def test_in_memory() -> None:
    """Threads of this process see it, whatever is around the pool."""
    repository = repository_with_rows(MemoryStorage(), ROWS)
    with ThreadPoolExecutor(2) as pool:
        store_dask(
            sources=[da.arange(1, ROWS + 1, chunks=1, dtype="i4")],
            targets=["a"],
            repository=repository,
            message="x",
            executor=pool,
            stragglers=3,
        )
    assert rows(repository) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stragglers": 2}, r"stragglers= needs a pool as executor=, such as concurrent\.fut"),
        ({"stragglers": 2, "executor": "threads"}, "stragglers= needs a pool"),
        ({"stragglers": 1, "executor": None}, "stragglers is 1; it must be a number above 1"),
        ({"stragglers": "a", "executor": None}, "stragglers is 'a'; it must be a number"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    repository = repository_with_rows(MemoryStorage(), ROWS)
    with pytest.raises(InvalidInputError, match=words):
        distributed_write(print, [1], repository, message="x", **options)


# -- the executor by itself ----------------------------------------------------------------------
class ByHand(Executor):
    """An executor whose tasks end when the test says so."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []
        self.submitted = threading.Condition()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self.submitted:
            self.futures.append(future)
            self.submitted.notify_all()
        return future

    def expect(self, count: int) -> None:
        """Wait until so many attempts were submitted."""
        with self.submitted:
            assert self.submitted.wait_for(lambda: len(self.futures) >= count, 60)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [0.0]
    monkeypatch.setattr(stragglers, "clock", lambda: now[0])
    yield now


def with_slow_one(time: list[float], workers: int = 2) -> tuple[ByHand, RunningTwice, Future[Any]]:
    """Return an executor where three tasks took a second, and one goes on."""
    inner = ByHand()
    pool = RunningTwice(inner, workers, 3.0)
    slow = pool.submit(os.getpid)
    for number in range(1, 4):
        time[0] = number - 1
        done = pool.submit(os.getpid)
        time[0] = number
        inner.futures[number].set_result(number)
        assert done.result(60) == number
    return inner, pool, slow


@pytest.mark.parametrize("first", [0, 4])
def test_the_answer_that_comes_first_counts(time: list[float], first: int) -> None:
    inner, pool, slow = with_slow_one(time)
    time[0] = 3.5
    more = pool.submit(os.getpid)
    time[0] = 4.5
    # at 3.0 it was not slow yet, and now two are at work
    inner.futures[4].set_result("more")
    assert more.result(60) == "more"
    inner.expect(6)
    attempts = [0, 5]
    winner = attempts[first > 0]
    inner.futures[winner].set_result(winner)
    assert slow.result(60) == winner
    (loser,) = set(attempts) - {winner}
    # nobody wants it any more; one that runs goes on
    assert inner.futures[loser].cancelled()
    assert len(inner.futures) == 6


def test_an_attempt_that_fails_leaves_the_other_one(time: list[float]) -> None:
    inner, pool, slow = with_slow_one(time)
    time[0] = 10.0
    more = pool.submit(os.getpid)
    inner.futures[4].set_result(None)
    more.result(60)
    inner.expect(6)
    inner.futures[0].set_exception(OSError("first"))
    assert not slow.done()
    inner.futures[5].set_exception(OSError("second"))
    with pytest.raises(OSError, match="second"):
        slow.result(60)


def test_a_pool_that_is_busy_runs_nothing_twice(time: list[float]) -> None:
    inner, pool, slow = with_slow_one(time)
    busy = pool.submit(os.getpid)
    time[0] = 100.0
    other = pool.submit(os.getpid)
    inner.futures[5].set_result(None)
    other.result(60)
    # two of two are at work
    assert len(inner.futures) == 6
    for future in inner.futures[:5]:
        if not future.done():
            future.set_result(None)
    slow.result(60), busy.result(60)


def test_a_broken_pool(tmp_path: Path) -> None:
    """What is said is what the pool says."""
    repository = repository_with_rows(str(tmp_path / "repository"), ROWS)
    folder = fates.Folder(tmp_path).prepare()
    with fates.pool_of_processes(2) as pool, pytest.raises(TaskError, match="died while it was"):
        distributed_write(
            fates.write_row,
            fates.items(folder, "kill"),
            repository,
            executor=pool,
            stragglers=2,
            message="rows",
        )
