"""A scheduler and workers in processes of their own, to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distributed import Client

ROOT = Path(__file__).parents[2]
#: A loaded machine needs a while.
TIMEOUT = 120


def start(*command: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a Python process."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and wait for its end."""
    process.kill()
    process.wait()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
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
