"""Every executor, and everything that happens to a task: the next call does the rest, once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zarr

from icechunk import IcechunkStore, Repository, RepositoryConfig, TaskError
from icechunk.storage.base import Storage
from icechunk_dask import distributed_write
from tests.storages import new_storage

ROWS, BATCH = 6, 2
#: The row that something happens to in the first attempt.
VICTIM = 3
EXECUTORS: dict[str, Callable[[], Any]] = {
    "sync": lambda: "sync",
    "threads": lambda: "threads",
    "processes": lambda: "processes",
    "thread pool": lambda: ThreadPoolExecutor(2),
    "process pool": lambda: ProcessPoolExecutor(2),
    "spawned pool": lambda: ProcessPoolExecutor(2, multiprocessing.get_context("spawn")),
}
#: What happens, and what is said of it.
FATES = {
    "raise": r"writing item \(3, .* failed: OSError: no row 3",
    "raise late": r"writing item \(3, .* failed: OSError: no row 3",
    "hang": r"writing item \(3, .* failed: TimeoutError: it did not end within 2 seconds",
    "kill": r"a process of the pool died while it was writing .*item \(3, .*make a new one",
}


def write_row(store: IcechunkStore, item: tuple[int, str, str]) -> None:
    row, folder, fate = item
    with open(f"{folder}/ran", "a") as log:
        log.write(f"{row}\n")
    mark = Path(folder) / "begun"
    happens = row == VICTIM and not mark.exists()
    array: Any = zarr.open_array(store, path="a", mode="r+")
    if happens:
        mark.touch()
        if fate == "raise":
            raise OSError(f"no row {row}")
        if fate == "hang":
            threading.Event().wait(600)
    array[row] = row + 1
    if happens and fate == "raise late":
        raise OSError(f"no row {row}")
    if happens and fate == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def run(storage: Storage, folder: Path, executor: str, fate: str) -> None:
    repository = Repository.create(storage, RepositoryConfig(inline_chunk_threshold_bytes=0))
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(ROWS,), chunks=(1,), dtype="i4")
    items = [(row, str(folder), fate) for row in range(ROWS)]
    how: dict[str, Any] = {"message": "rows", "job": "rows", "commit_every": BATCH}
    if fate == "hang":
        how["timeout"] = 2

    def call() -> Any:
        pool = EXECUTORS[executor]()
        try:
            return distributed_write(
                write_row, items, repository, executor=pool, progress=False, **how
            )
        finally:
            if not isinstance(pool, str):
                pool.shutdown(wait=fate != "hang", cancel_futures=True)

    with pytest.raises(TaskError, match=FATES[fate]) as failed:
        call()
    assert failed.value.__notes__ == [
        "2 of 6 are committed by the job 'rows'; the same call goes on with the rest"
    ]
    written = call()
    assert (written.tasks, written.skipped) == (ROWS - BATCH, BATCH)
    found: Any = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")
    assert found[:].tolist() == list(range(1, ROWS + 1))
    ran = Counter(map(int, (folder / "ran").read_text().split()))
    # what was committed ran once, and what was not at most once more
    assert all(ran[row] == (1 if row < BATCH else ran[row]) <= 2 for row in range(ROWS))
    chunks = len(list(storage.list("chunks/")))
    wrote = ran.total() - (fate in ("raise", "hang"))
    # small chunks are put when the task ends, and this one did not
    assert wrote - (fate in ("kill", "raise late")) <= chunks <= wrote
    again = call()
    assert (again.tasks, again.skipped) == (0, ROWS)


CASES = [
    (executor, fate)
    for executor in EXECUTORS
    if executor != "spawned pool"
    for fate in FATES
    # of what runs here, it would be the test; Dask's own pool is made like the other one, slowly
    if (fate != "kill" or "process" in executor) and (fate == "kill" or executor != "processes")
]


@pytest.mark.parametrize(("executor", "fate"), CASES)
def test_the_next_call_does_the_rest(
    executor: str, fate: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run(new_storage("local", request), tmp_path, executor, fate)


def test_on_s3(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run(new_storage("s3", request), tmp_path, "spawned pool", "kill")
