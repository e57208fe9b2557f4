"""Tasks that hang: named after a time, tried again, and nothing of them is merged."""

from __future__ import annotations

import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from icechunk import IcechunkStore, InvalidInputError, Repository, TaskError
from icechunk_dask import distributed_write, store_dask
from icechunk_xarray import to_icechunk

EXECUTORS: dict[str, Any] = {
    "sync": lambda: "sync",
    "threads": lambda: "threads",
    "processes": lambda: "processes",
    "thread pool": lambda: ThreadPoolExecutor(2),
    "process pool": lambda: ProcessPoolExecutor(2),
}


def prepared(folder: Path) -> Repository:
    repository = Repository.create(str(folder / "repository"))
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(4,), chunks=(1,), dtype="f8")
    return repository


def hang_once(store: IcechunkStore, item: tuple[int, str]) -> None:
    """Hang in the first attempt at the third row."""
    row, folder = item
    mark = Path(folder) / f"row {row}"
    first = not mark.exists()
    mark.touch()
    zarr.open_array(store, path="a", mode="r+")[row] = row + 1
    if row == 2 and first:
        threading.Event().wait(600)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("retries", [0, 1])
def test_a_task_hangs(executor: str, retries: int, tmp_path: Path) -> None:
    repository = prepared(tmp_path)
    items = [(row, str(tmp_path)) for row in range(4)]
    how: dict[str, Any] = {"message": "m", "job": "rows", "timeout": 1.5, "retries": retries}
    with_executor: Any = EXECUTORS[executor]()

    def call() -> Any:
        return distributed_write(
            hang_once, items, repository, executor=with_executor, progress=False, **how
        )

    if not retries:
        words = r"writing item \(2, .* failed: TimeoutError: it did not end within 1.5 seconds"
        with pytest.raises(TaskError, match=words):
            call()
    call()
    if not isinstance(with_executor, str):
        with_executor.shutdown()
    store = repository.readonly_session("main").store
    assert zarr.open_array(store, path="a", mode="r")[:].tolist() == [1, 2, 3, 4]  # type: ignore[index,union-attr]


def hung() -> da.Array:
    def wait(block: Any) -> Any:
        threading.Event().wait(600)

    return da.ones(4, chunks=1).map_blocks(wait, dtype="f8", meta=np.ones(0))


def test_blocks_hang(tmp_path: Path) -> None:
    repository = prepared(tmp_path)
    how: dict[str, Any] = {"repository": repository, "message": "m", "scheduler": "sync"}
    with pytest.raises(TaskError, match=r"region \[.:.\] of array '/a' failed: TimeoutError"):
        store_dask(sources=[hung()], targets=["a"], timeout=0.2, progress=False, **how)
    with pytest.raises(TaskError, match="TimeoutError"):
        to_icechunk(
            xr.Dataset({"b": ("x", hung())}),
            repository,
            group="g",
            progress=False,
            chunkmanager_store_kwargs={"timeout": 0.2, "scheduler": "sync"},
        )
    with pytest.raises(InvalidInputError, match="timeout must be a number of seconds, not -1"):
        store_dask(sources=[hung()], targets=["a"], timeout=-1, **how)
