"""One failure table over everything that runs tasks."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import dask.array as da
import pytest
import xarray as xr
import zarr

from icechunk import (
    IcechunkStore,
    InvalidInputError,
    LocalStorage,
    Repository,
    TaskError,
)
from icechunk_dask import distributed_write, store_dask
from icechunk_xarray import to_icechunk
from tests.dask_writes.rows import repository_with_rows, rows

ROWS = 6


class TwiceExecutor(Executor):
    """Sends everything by value, runs it twice, and gives the later answer."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        sent = cloudpickle.dumps((fn, args, kwargs))
        try:
            for _ in range(2):
                function, arguments, named = cloudpickle.loads(sent)
                result = cloudpickle.dumps(function(*arguments, **named))
            future.set_result(cloudpickle.loads(result))
        except BaseException as error:
            future.set_exception(error)
        return future


def pool_of_processes() -> Executor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


EXECUTORS: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "sync": lambda: "sync",
    "threads": lambda: "threads",
    "a pool of threads": lambda: ThreadPoolExecutor(2),
    "a pool of processes": pool_of_processes,
    "one that runs all twice": TwiceExecutor,
}


@pytest.fixture(scope="module", params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = EXECUTORS[request.param]()
    yield made
    if isinstance(made, Executor):
        made.shutdown()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return repository_with_rows(LocalStorage(tmp_path / "repository"), ROWS)


@pytest.mark.parametrize("fates", [{}, {2: 1}, {0: 2, 5: 1}, {3: 3}], ids=str)
def test_items_that_fail_at_first(
    executor: Any, repository: Repository, tmp_path: Path, fates: dict[int, int]
) -> None:
    """As often as `fates` says. Two times are allowed, and twice as many where all runs twice."""
    factor = 2 if isinstance(executor, TwiceExecutor) else 1
    folder = tmp_path / "attempts"
    folder.mkdir()

    def add_one(store: IcechunkStore, row: int) -> int:
        attempts = len(list(folder.glob(f"{row}-*")))
        (folder / f"{row}-{attempts}").touch()
        array: Any = zarr.open_array(store, path="a", mode="r+")
        array[row] += 1
        if attempts < fates.get(row, 0) * factor:
            raise OSError(f"no row {row}")
        return 10 * row

    how: dict[str, Any] = {"message": "x", "executor": executor, "job": "add", "commit_every": 4}
    if 3 in fates.values():
        with pytest.raises(TaskError, match="writing item 3 failed: OSError: no row 3"):
            distributed_write(add_one, range(ROWS), repository, retries=2, **how)
        assert rows(repository) == [0] * ROWS
        # the cause is gone by now
    written = distributed_write(
        add_one, range(ROWS), repository, retries=2, return_results=True, **how
    )
    assert rows(repository) == [1] * ROWS
    assert written.results == [10 * row for row in range(ROWS)]
    assert (written.tasks, written.chunks) == (ROWS, ROWS)
    assert distributed_write(add_one, range(ROWS), repository, **how).tasks == 0


def test_blocks(executor: Any, repository: Repository) -> None:
    source = da.arange(ROWS, chunks=1, dtype="i4") + 1
    written = store_dask(
        sources=[source], targets=["a"], repository=repository, message="x", executor=executor
    )
    assert written.chunks == ROWS
    assert rows(repository) == [1, 2, 3, 4, 5, 6]


def test_datasets(executor: Any, repository: Repository) -> None:
    source = xr.Dataset({"b": ("x", da.arange(ROWS, chunks=1, dtype="i4") + 1)})
    to_icechunk(
        source,
        repository,
        group="new",
        message="x",
        chunkmanager_store_kwargs={"executor": executor} if executor is not None else None,
    )
    stored = xr.open_zarr(repository.readonly_session("main").store, group="new")
    xr.testing.assert_identical(stored.load(), source.load())


def test_what_is_no_executor(repository: Repository) -> None:
    def work(store: IcechunkStore, item: int) -> None:
        """Do nothing."""

    how: dict[str, Any] = {"message": "x"}
    with pytest.raises(InvalidInputError, match="executor is 'ray'; it must be 'threads', "):
        distributed_write(work, [1], repository, executor="ray", **how)
    with pytest.raises(InvalidInputError, match="say the same"):
        distributed_write(work, [1], repository, executor="sync", scheduler="sync", **how)
