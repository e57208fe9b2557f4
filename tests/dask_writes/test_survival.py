"""Tasks that run twice, and jobs that are stopped."""

from __future__ import annotations

import os
import signal
import threading
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import dask.array as da
import pytest
import zarr
from dask._task_spec import convert_legacy_graph
from dask.core import flatten

from icechunk import IcechunkStore, LocalStorage, Repository
from icechunk_dask import distributed_write, store_dask
from tests.dask_writes.clusters import running
from tests.dask_writes.rows import repository_with_rows, rows

ROWS = 40


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return repository_with_rows(LocalStorage(tmp_path / "repository"), ROWS)


def every_task_twice(graph: Any, keys: Any, **_: Any) -> Any:
    """Run a graph as a scheduler that loses each result once, after others have used it."""
    tasks = convert_legacy_graph(dict(graph.__dask_graph__()))
    order = list(TopologicalSorter({k: t.dependencies for k, t in tasks.items()}).static_order())
    values: dict[Any, Any] = {}
    for _ in range(2):
        for key in order:
            values[key] = tasks[key]({dep: values[dep] for dep in tasks[key].dependencies})
    found = [values[key] for key in flatten(keys)]
    return [found] if isinstance(keys, list) and isinstance(keys[0], list) else found


@pytest.mark.parametrize("times", [1, 2])
def test_every_task_runs_twice(repository: Repository, times: int) -> None:
    for _ in range(times):
        written = store_dask(
            sources=[da.arange(1, ROWS + 1, chunks=1, dtype="i4")],
            targets=["a"],
            repository=repository,
            message="x",
            scheduler=every_task_twice,
            split_every=3,
        )
        assert (written.tasks, written.chunks) == (ROWS, ROWS)
    assert rows(repository) == list(range(1, ROWS + 1))
    reader = repository.readonly_session("main")
    refs = reader.chunk_refs("/a")
    assert len(refs) == ROWS
    # what was written in vain is litter, no data
    stored = len(list(repository.storage.list("chunks/")))
    assert stored >= 2 * ROWS


SEEN: list[int] = []
GO = threading.Event()


def work_until_interrupted(store: IcechunkStore, row: int) -> None:
    SEEN.append(row)
    if len(SEEN) == 21:
        os.kill(os.getpid(), signal.SIGINT)
    elif len(SEEN) > 21:
        GO.wait(10)
    zarr.open_array(store, path="a", mode="r+")[row] = row + 1


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("way", ["sync", "threads", "inproc"])
def test_an_interrupt(repository: Repository, way: str) -> None:
    """Ctrl-C in the second batch: the first is there, and what has not begun never runs."""
    SEEN.clear()
    GO.clear()
    options = {"num_workers": 2} if way == "threads" else {}
    with running(way):
        with pytest.raises(KeyboardInterrupt):
            distributed_write(
                work_until_interrupted,
                range(ROWS),
                repository,
                message="x",
                commit_every=20,
                **options,  # type: ignore[arg-type]
            )
        GO.set()
    assert rows(repository) == [*range(1, 21), *[0] * 20]
    assert len(SEEN) <= 20 + 2 + 2
