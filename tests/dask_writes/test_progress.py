"""Progress on a scheduler and workers in processes of their own."""

from __future__ import annotations

import json
import logging
import os
import platform
import pty
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zarr

from icechunk import LocalStorage, MemoryStorage, Repository, RepositoryConfig
from icechunk_dask import Status, distributed_write
from icechunk_dask.progress import LogLines, Progress
from tests.dask_writes.cluster_processes import TIMEOUT, Cluster, start
from tests.dask_writes.watched import ROWS

SCRIPT = "from tests.dask_writes.watched import main; main()"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path_factory.mktemp("cluster") / "scheduler.json", stack)
        cluster.have(2)
        yield cluster


@pytest.fixture
def url(tmp_path: Path) -> str:
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(LocalStorage(tmp_path / "repository"), config)
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(ROWS,), chunks=(1,), dtype="i4")
    return str(tmp_path / "repository")


def filled(url: str) -> bool:
    store = Repository.open(url).readonly_session("main").store
    return zarr.open_array(store, path="a", mode="r")[:].tolist() == list(range(1, ROWS + 1))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_a_callback_raises_elsewhere_comes_to_the_caller(error: type[BaseException]) -> None:
    """A thread of a client or a timer would end, and say it on stderr."""

    def tell(status: Status) -> None:
        if status.tasks == 1 and status.phase != "committing":
            raise error("stop")

    progress = Progress(tell)
    progress.set(total=2)
    progress._told = 0.0
    thread = threading.Thread(target=progress.add, args=({"tasks": 1},))
    thread.start()
    thread.join()
    with pytest.raises(error, match="stop"):
        progress.set(phase="committing")
    # once
    progress.add({"tasks": 1})
    progress.set(phase="done")


def test_a_callback_sees_the_whole_course(cluster: Cluster, url: str) -> None:
    """Two tasks end when it has seen that all others did."""
    command = ("-c", SCRIPT, cluster.address, url, "callback")
    with start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=TIMEOUT)
    assert err == b""
    seen = [tuple(status) for status in json.loads(out)]
    course = [
        ("writing", 0, ROWS, 0),
        ("writing", 2, ROWS, 2),
        ("merging", 3, ROWS, 3),
        ("committing", 3, ROWS, 3),
        ("writing", 3, ROWS, 3),
        ("writing", 5, ROWS, 5),
        ("merging", 6, ROWS, 6),
        ("committing", 6, ROWS, 6),
        ("done", 6, ROWS, 6),
    ]
    rest = iter([status[:4] for status in seen])
    assert all(step in rest for step in course), seen
    assert seen[-1][4] == 2
    assert [tasks for _, tasks, *_ in seen] == sorted(tasks for _, tasks, *_ in seen)
    assert filled(url)


def test_nothing_but_the_bar_is_on_the_terminal(cluster: Cluster, url: str) -> None:
    terminal, ours = pty.openpty()
    with start("-c", SCRIPT, cluster.address, url, "bar", stderr=ours) as process:
        os.close(ours)
        shown = b""
        try:
            while data := os.read(terminal, 1 << 16):
                shown += data
        except OSError:  # how Linux says that nobody is there any more
            pass
        assert process.wait(TIMEOUT) == 0
    os.close(terminal)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    bar = re.compile(r"(writing|merging|committing|done)\b.*\b\d/(6|\?)")
    assert [line for line in lines if not bar.match(line)] == []
    assert lines[-1].startswith("done")
    assert f" {ROWS}/{ROWS} " in lines[-1]
    assert filled(url)


def test_rates_and_lines_of_a_log(caplog: pytest.LogCaptureFixture) -> None:
    status = Status(tasks=30, total=90, skipped=10, nbytes=4_000_000, seconds=40)
    assert (status.rate, status.bytes_per_second, status.remaining) == (0.5, 100_000, 120)
    assert str(status) == (
        "writing: 30 of 90 tasks, 0 chunks, 4 MB, 0 merged, 100 kB/s, about 2 min left"
    )
    assert Status().remaining is None
    lines = LogLines()
    with caplog.at_level(logging.INFO, "icechunk_dask"):
        for seconds in (0, 30, 59, 61, 62, 120, 122):
            lines(Status(seconds=seconds))
        lines(Status("done", seconds=123))
    assert len(caplog.records) == 3


def test_a_log_where_there_is_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    repository = Repository.create(MemoryStorage())

    def write(store: Any, item: int) -> None:
        zarr.create_array(store, name=str(item), shape=(1,), dtype="i4")[:] = item

    with caplog.at_level(logging.INFO, "icechunk_dask"):
        distributed_write(write, range(3), repository, message="m", executor="sync")
        distributed_write(
            lambda store, item: None, [0], repository, message="m", executor="sync", progress=False
        )
    said = [r.message for r in caplog.records if r.name == "icechunk_dask"]
    assert len(said) == 1
    assert said[0].startswith("done: 3 of 3 tasks, ")


def slow_item(store: Any, item: int) -> None:
    zarr.open_array(store, path="a", mode="r+")[item] = item
    if item == 3:
        threading.Event().wait(0.2)


@pytest.mark.parametrize("how", [{}, {"commit_every": 4}])
def test_which_tasks_took_longest(anywhere: str, tmp_path: Path, how: dict[str, Any]) -> None:
    """Five of them are kept, however many there are; and the memory of the largest process."""
    repository = Repository.create(LocalStorage(tmp_path))
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(12,), chunks=(1,), dtype="i4")
    began = time.time()
    written = distributed_write(slow_item, range(12), repository, message="x", **how)
    assert len(written.slowest) == 5
    seconds = [run.seconds for run in written.slowest]
    assert seconds == sorted(seconds, reverse=True)
    (slow,) = [run for run in written.slowest if run.what == "item 3"]
    assert slow.seconds >= 0.2
    assert began - 1 < slow.began < time.time() + 1
    assert slow.host == platform.node()
    assert (slow.pid == os.getpid()) == (anywhere in ("sync", "threads"))
    assert written.peak_memory >= max(run.peak_memory for run in written.slowest) > 10_000_000
