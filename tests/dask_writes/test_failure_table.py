"""Every engine, and everything that happens to a part: the next call does the rest, once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from icechunk import (
    ConflictError,
    IcechunkError,
    Repository,
    TaskError,
)
from tests.dask_writes import fates
from tests.dask_writes.clusters import running
from tests.dask_writes.fates import BATCH, FATES, ROWS, VICTIM, Folder
from tests.dask_writes.rows import repository_with_rows, rows
from tests.storages import new_storage

ENGINES = ("sync", "threads", "thread pool", "process pool", "cluster", "no coordinator")
#: What is said of it: of the item or the key, by whoever ran it.
WORDS = {
    "raise": "failed: OSError: no row 3",
    "raise late": "failed: OSError: no row 3",
    "hang": r"failed: TimeoutError: it did not end within 1 seconds",
    "late": r"failed: TimeoutError: it did not end within 1 seconds",
    "kill": "a process of the pool died while it was writing .*make a new one|terminated abruptly",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    # a task that hangs leaves room for others
    with running("cluster", threads_per_worker=2) as client:
        yield client


def _cells() -> list[tuple[str, str, str]]:
    """Return each engine with each fate, on a folder or on S3; ICECHUNK_EVERY_CALL=1: on both."""
    every = bool(os.environ.get("ICECHUNK_EVERY_CALL"))
    return [
        (name, fate, place)
        for at, name in enumerate(ENGINES)
        for more, fate in enumerate(FATES)
        for both, place in enumerate(("local", "s3"))
        if every or (at + more + both) % 2 == 0
    ]


@pytest.mark.parametrize(("name", "fate", "place"), _cells())
def test_the_next_call_does_the_rest(
    name: str, fate: str, place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = new_storage(place, request)
    repository = repository_with_rows(storage, ROWS)
    client = request.getfixturevalue("cluster") if name == "cluster" else None
    folder = Folder(tmp_path).prepare()
    with ExitStack() as stack:
        stack.callback(folder.release)
        call = fates.engine(name, stack, client)

        def again() -> Any:
            # a pool that has lost a process is of no use any more
            return fates.engine(name, stack, client)(storage, folder, fate)

        if fate == "kill" and name in ("sync", "threads", "thread pool"):
            # what runs the part is what called it
            process = fates.in_a_process(name, storage, folder, fate)
            process.join()
            assert process.exitcode == -signal.SIGKILL
        elif fate == "kill" and name == "cluster":
            # it sees to it itself
            call(storage, folder, fate)
        elif fate in ("twice", "late"):
            failures: list[IcechunkError] = []

            def begin() -> None:
                try:
                    call(storage, folder, fate)
                except IcechunkError as error:
                    failures.append(error)

            thread = threading.Thread(target=begin)
            thread.start()
            folder.hear("waiting")
            if fate == "late":
                thread.join()
            done = rows(repository)
            again()
            folder.say("go")
            if fate == "late":
                folder.hear("through")
            thread.join()
            if fate == "twice" and name == "no coordinator":
                # it does not count, which is no failure
                assert failures == []
            else:
                (failure,) = failures
                check_failure(name, fate, failure, done)
        else:
            with pytest.raises(Exception) as caught:
                call(storage, folder, fate)
            check_failure(name, fate, caught.value, rows(repository))
        before = folder.ran
        done = rows(repository)
        assert all(value in (0, row + 1) for row, value in enumerate(done))
        again()
        check_end(repository, folder, fate, before, done)


def check_failure(name: str, fate: str, error: BaseException, done: list[int]) -> None:
    """It says which part, what happened, and what is done."""
    if fate == "twice":
        assert isinstance(error, ConflictError)
        assert "another process runs the job 'rows', too, and was faster" in str(error)
        return
    with pytest.raises(Exception, match=WORDS[fate]):
        raise error
    if name == "no coordinator":
        assert isinstance(error, TaskError) or fate == "kill"
        assert done == [0] * ROWS
        return
    assert isinstance(error, TaskError)
    assert f"item [{VICTIM}, " in str(error)
    assert error.__notes__[0] == (
        "2 of 6 are committed by the job 'rows'; the same call goes on with the rest"
    )
    assert done == [1, 2, 0, 0, 0, 0]


def check_end(
    repository: Repository, folder: Folder, fate: str, before: Any, done: list[int]
) -> None:
    assert rows(repository) == list(range(1, ROWS + 1))
    ran = folder.ran
    # what was committed did not run again
    assert all(ran[row] == before[row] for row in range(ROWS) if done[row])
    assert all(ran[row] <= 3 for row in range(ROWS))
    if fate not in ("twice", "kill"):
        assert all(ran[row] == 1 for row in range(BATCH))
    status = repository.jobs.open("rows").status()
    assert status.committed == len(status.done) == ROWS
    # a chunk of each attempt that came so far, at most
    chunks = len(list(repository.storage.list("chunks/")))
    assert ROWS <= chunks <= ran.total()
    assert repository.verify().ok
    assert sum(len(commit.message) > 0 for commit in repository.ancestry(branch="main")) >= 3
