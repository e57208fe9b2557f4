"""Scheduler, workers and coordinator as processes of their own, S3, and `kill -9`.

Every chunk is a new object, and nothing is deleted: objects count the put requests.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zarr
from distributed import Client

from icechunk import Repository, RepositoryConfig
from tests.dask_writes.ingest import BATCH, ROWS, STOPS
from tests.servers import S3Server

ROOT = Path(__file__).parents[2]
#: A loaded machine needs a while.
TIMEOUT = 120
#: The coordinator. Its credentials are of a class that workers cannot import.
SCRIPT = """
from tests.dask_writes.ingest import Keys, main
class MyKeys(Keys): pass
main(MyKeys)
"""


def start(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Cluster:
    """A scheduler, and workers of one thread each."""

    def __init__(self, file: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._file = file
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self._start("scheduler", "--host=127.0.0.1", "--port=0", "--dashboard-address=:0")
        self.client = stack.enter_context(Client(scheduler_file=str(file), timeout=TIMEOUT))

    @property
    def address(self) -> str:
        return str(self.client.scheduler.address)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        process = start("-m", "dask", *arguments, f"--scheduler-file={self._file}")
        self._stack.callback(kill, process)
        return process

    def have(self, count: int) -> None:
        """Start as many workers as are missing."""
        for _ in range(count - len(self.workers)):
            worker = self._start(
                "worker",
                "--no-nanny",
                "--nthreads=1",
                "--no-dashboard",
                "--host=127.0.0.1",
                f"--local-directory={self._file.parent}",
            )
            self.workers[worker.pid] = worker
        self.client.wait_for_workers(count, timeout=TIMEOUT)

    def kill(self, pid: int) -> None:
        kill(self.workers.pop(pid))

    def is_idle(self) -> bool:
        """Whether nobody knows of any task."""
        scheduled = self.client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        held = self.client.run(lambda dask_worker: len(dask_worker.state.tasks))
        return not scheduled and not any(held.values())

    def is_forgotten(self) -> bool:
        """Whether the scheduler has heard that nobody wants results any more."""
        wanted = self.client.run_on_scheduler(
            lambda dask_scheduler: sum(len(c.wants_what) for c in dask_scheduler.clients.values())
        )
        return not wanted


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path_factory.mktemp("cluster") / "scheduler.json", stack)


@pytest.fixture
def arrivals() -> Iterator[socket.socket]:
    """Where workers say that they are at the gate."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        yield listener


def next_at_gate(arrivals: socket.socket) -> tuple[int, int, socket.socket]:
    """Wait for a worker, and return its row, its process and what lets it go on."""
    connection, _ = arrivals.accept()
    row, pid = connection.makefile().readline().split()
    return int(row), int(pid), connection


def values(repository: Repository, **version: str) -> list[int]:
    store = repository.readonly_session(**version).store
    found: list[int] = zarr.open_array(store, path="a", mode="r")[:].tolist()
    return found


def first(count: int) -> list[int]:
    return [*range(1, count + 1), *[0] * (ROWS - count)]


@pytest.mark.parametrize(("write", "publish"), [("write_items", "batch"), ("write_blocks", "end")])
def test_everybody_is_killed(
    cluster: Cluster,
    s3_server: S3Server,
    arrivals: socket.socket,
    tmp_path: Path,
    write: str,
    publish: str,
) -> None:
    storage = s3_server.storage(f"killed-{publish}")
    repository = Repository.create(storage, RepositoryConfig(inline_chunk_threshold_bytes=0))
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(ROWS,), chunks=(1,), dtype="i4")
    keys = tmp_path / "keys"
    keys.write_text(json.dumps([s3_server.access_key_id, s3_server.secret_access_key]))
    settings: dict[str, Any] = {
        "scheduler": cluster.address,
        "storage": {
            "bucket": s3_server.bucket,
            "prefix": f"killed-{publish}",
            "region": s3_server.region,
            "endpoint_url": s3_server.endpoint_url,
            "allow_http": True,
            "force_path_style": True,
        },
        "keys": str(keys),
        "port": arrivals.getsockname()[1],
        "write": write,
        "publish": publish,
    }
    run = ("-c", SCRIPT, json.dumps(settings))
    branch = "main" if publish == "batch" else "main.job-rows"

    def puts() -> int:
        return sum(1 for _ in storage.list("chunks/"))

    cluster.have(3)
    killed = []
    with ExitStack() as stack:
        coordinator = start(*run)
        stack.callback(kill, coordinator)
        for number, stop in enumerate(STOPS[:2]):
            row, pid, _ = next_at_gate(arrivals)
            assert row == stop
            assert values(repository, branch=branch) == first(number * BATCH)
            cluster.kill(pid)
            killed.append(pid)
            # somebody else does it again
            row, pid, go_on = next_at_gate(arrivals)
            assert row == stop
            assert pid not in killed
            go_on.close()
        row, pid, go_on = next_at_gate(arrivals)
        assert row == STOPS[2]
        kill(coordinator)
        # what has not begun never runs, and nobody waits for what has
        eventually(cluster.is_forgotten)
        go_on.close()
        eventually(cluster.is_idle)

    done = 2 * BATCH
    assert values(repository, branch=branch) == first(done)
    assert values(repository, branch="main") == first(done if publish == "batch" else 0)
    before = puts()
    # some more than once, and some of the batch that was lost
    assert before >= done
    asked_before = Counter(Path(f"{keys}.asked").read_text().split())

    again = start(*run)
    try:
        row, pid, go_on = next_at_gate(arrivals)
        assert row == STOPS[2]
        go_on.close()
        assert again.wait(TIMEOUT) == 0
    finally:
        kill(again)
    assert puts() - before == ROWS - done
    assert values(repository, branch="main") == first(ROWS)
    assert repository.list_branches() == {"main"}
    # oldest first, after the empty repository
    ids = [snapshot.id for snapshot in repository.ancestry(branch="main")][-2::-1]
    assert [values(repository, snapshot_id=i) for i in ids] == [
        first(count) for count in range(0, ROWS + 1, BATCH)
    ]
    # credentials that expire at once are refreshed where they are used: for every chunk
    asked = Counter(Path(f"{keys}.asked").read_text().split()) - asked_before
    assert asked[str(pid)] >= ROWS - done
