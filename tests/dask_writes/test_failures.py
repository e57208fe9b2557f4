"""What is said when tasks fail, wherever they ran."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import dask.config
import pytest
import zarr

from icechunk import (
    IcechunkStore,
    InvalidInputError,
    LocalStorage,
    Repository,
    RepositoryConfig,
    TaskError,
)
from icechunk_dask import distributed_write, store_dask
from tests.dask_writes.clusters import running


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(LocalStorage(tmp_path / "repository"), config)
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(8,), chunks=(1,), dtype="i4")
    return repository


@pytest.fixture(scope="module", params=["processes", "cluster"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[str]:
    # or else a worker that dies takes minutes to be given up
    settings = {"distributed.scheduler.allowed-failures": 0}
    with dask.config.set(settings), running(request.param):
        yield request.param


class OddError(Exception):
    """Cannot be made again of its message."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def open_what_is_not_there(store: IcechunkStore, item: int) -> None:
    if item == 5:
        zarr.open_array(store, path="missing", mode="r+")


def fail_oddly(store: IcechunkStore, item: int) -> None:
    if item == 5:
        raise OddError("this", "that")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (open_what_is_not_there, "ArrayNotFoundError: No array found"),
        (fail_oddly, "OddError: this and that"),
    ],
)
def test_errors_that_do_not_travel(
    elsewhere: str, repository: Repository, function: Any, words: str
) -> None:
    with pytest.raises(TaskError) as error:
        distributed_write(function, range(6), repository, message="x")
    assert str(error.value).startswith(f"writing item 5 failed: {words}")
    cause = error.value.__cause__
    assert cause is not None
    if not isinstance(cause, OddError):
        assert str(cause).startswith(words)
        assert function.__name__ in cause.__notes__[0]


def kill_the_worker(store: IcechunkStore, item: int) -> None:
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def killing_block(block: Any) -> Any:
    if block[0] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return block


def test_what_a_worker_died_of(repository: Repository) -> None:
    settings = {"distributed.scheduler.allowed-failures": 0}
    with dask.config.set(settings), running("cluster"):
        # one each: a worker that dies takes along what waits for it
        words = r"died each time it was writing item 5 .number 0.: it"
        with pytest.raises(TaskError, match=words) as killed:
            distributed_write(kill_the_worker, [5], repository, message="x")
        # the parents of workers know more
        notes = killed.value.__notes__
        assert any("killed by signal 9" in note for note in notes), notes
        source = da.full(1, 5, chunks=1, dtype="i4").map_blocks(killing_block, dtype="i4")
        with pytest.raises(TaskError, match=r"writing region \[3:4\] of array '/a': it had too"):
            store_dask(
                sources=[source],
                targets=["a"],
                regions=[(slice(3, 4),)],
                repository=repository,
                message="x",
            )


def test_a_function_that_does_not_pickle(
    elsewhere: str, repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    lock = threading.Lock()

    def use_the_lock(store: IcechunkStore, item: int) -> None:
        with lock:
            pass

    session = repository.writable_session("main")

    def use_the_session(store: IcechunkStore, item: int) -> None:
        zarr.open_array(session.store, path="a")

    for function, words in (
        (use_the_lock, "use_the_lock cannot be sent to workers: cannot pickle '_thread.lock'"),
        (use_the_session, r"cannot be sent to workers: .*a writable session .*session.fork\(\)"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            distributed_write(function, range(3), repository, message="x")
    assert capfd.readouterr().err == ""


def test_a_source_that_does_not_pickle(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    session = repository.writable_session("main")
    source = da.from_zarr(zarr.open_array(session.store, path="a")) + 1
    with running("cluster"):
        capfd.readouterr()
        with pytest.raises(TaskError, match=r"the blocks for '/a' cannot be sent .*session.fork"):
            store_dask(sources=[source], targets=["a"], repository=repository, message="x")
        assert "Traceback" not in capfd.readouterr().err


def test_how_to_go_on(repository: Repository, caplog: pytest.LogCaptureFixture) -> None:
    def work(store: IcechunkStore, item: int) -> None:
        zarr.open_array(store, path="a", mode="r+")[item] = 1
        if item == 5:
            raise KeyboardInterrupt

    how: dict[str, Any] = {"message": "x", "commit_every": 2, "scheduler": "sync"}
    for job, words in (
        (None, "4 of 8 are committed to the branch 'main'; with job='a name' the same call"),
        ("j", "4 of 8 are committed by the job 'j'; the same call goes on with the rest"),
    ):
        with pytest.raises(KeyboardInterrupt) as error:
            distributed_write(work, range(8), repository, job=job, **how)
        assert error.value.__notes__[0].startswith(words)
    with caplog.at_level(logging.INFO, "icechunk_dask"):
        written = distributed_write(lambda store, item: None, range(8), repository, job="j", **how)
    assert "4 of 8 are done, 4 left" in caplog.text
    assert repr(written) == "<icechunk_dask.Written 4 tasks, 4 skipped, 0 chunks, 0 bytes>"
