"""What `test_partitions` runs as root of namespaces of its own: Dask, in four networks.

Scheduler, two workers and the coordinator have a line each. One is cut, for a while or for good,
while blocks are written to a folder that all of them see.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from distributed import Client

from icechunk import IcechunkError, LocalStorage, Repository
from icechunk_dask import store_dask

ROOT = Path(__file__).parents[2]
BLOCKS, SIZE = 8, 4
PORT = 8786
#: Seconds that a loaded machine may take for anything that ends by itself.
MOST_SECONDS = 120
SCHEDULER, ONE, OTHER = 1, 2, 3
#: Dask notices within seconds that nobody answers.
SETTINGS = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "8s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "60s",
    "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "20s",
    "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "1h",
}


def run(*command: str) -> None:
    subprocess.run(command, check=True)


@contextmanager
def machine(number: int, *command: str) -> Iterator[None]:
    """Run a module of Python in a network of its own, with a line to this one."""
    arguments = ["sh", "-c", 'read go; exec "$@"', "sh", sys.executable, "-m", *command]
    with subprocess.Popen(
        ["unshare", "-n", *arguments], stdin=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        near, far = f"10.78.{number}.1", f"10.78.{number}.2"
        there = ("nsenter", "-t", str(process.pid), "-n", "ip")
        # it has left this network before it reads
        while os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            time.sleep(0.01)
        run("ip", "link", "add", f"near{number}", "type", "veth", "peer", "name", f"far{number}")
        run("ip", "link", "set", f"far{number}", "netns", str(process.pid))
        run("ip", "address", "add", f"{near}/24", "dev", f"near{number}")
        run("ip", "link", "set", f"near{number}", "up")
        run(*there, "address", "add", f"{far}/24", "dev", f"far{number}")
        run(*there, "link", "set", f"far{number}", "up")
        run(*there, "link", "set", "lo", "up")
        run(*there, "route", "add", "default", "via", near)
        process.stdin.write(b"go\n")
        process.stdin.flush()
        try:
            yield
        finally:
            process.kill()


def line(number: int, *, works: bool) -> None:
    """Let what a machine sends vanish, or arrive again."""
    run("ip", "rule", "del" if works else "add", "iif", f"near{number}", "blackhole")


def slowly(block: Any) -> Any:
    time.sleep(0.3)
    return block


def attempt(repository: Repository, value: int, during: Callable[[], None]) -> Exception | None:
    """Write all blocks, and return why not all were written; something happens meanwhile."""
    numbers = np.arange(BLOCKS * SIZE) + value
    source = da.from_array(numbers, chunks=SIZE).map_blocks(slowly, dtype="i8")
    meanwhile = threading.Timer(0.7, during)
    meanwhile.start()
    began = time.monotonic()
    before = repository.lookup_branch("main")
    try:
        store_dask(
            sources=[source], targets=["/a"], repository=repository, message=f"{value}", timeout=40
        )
        error = None
    except (IcechunkError, OSError, TimeoutError) as found:
        error = found
        assert str(found)
    finally:
        meanwhile.join()
    assert time.monotonic() - began < MOST_SECONDS
    history = [entry.message for entry in repository.ancestry(branch="main")]
    stored = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")[:]
    if error is None:
        # once, and all of it
        assert history.count(f"{value}") == 1
        assert np.asarray(stored).tolist() == numbers.tolist()
    else:
        # not at all
        assert repository.lookup_branch("main") == before, error
    repository.verify(deep=True).raise_if_damaged()
    print(value, round(time.monotonic() - began, 1), repr(error), flush=True)
    return error


def main(folder: Path) -> None:
    os.environ.update(SETTINGS)
    run("ip", "link", "set", "lo", "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    repository = Repository.create(LocalStorage(folder / "r"))
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(BLOCKS * SIZE,), chunks=(SIZE,), dtype="i8")
    session.commit("array")
    address = f"tcp://10.78.{SCHEDULER}.2:{PORT}"
    with ExitStack() as stack:

        def start(number: int, *command: str) -> None:
            where = f"--host=10.78.{number}.2"
            stack.enter_context(machine(number, "dask", *command, where))

        start(SCHEDULER, "scheduler", f"--port={PORT}", "--no-dashboard")
        for number in (ONE, OTHER):
            options = ("--nthreads=1", "--no-dashboard")
            start(number, "worker", address, *options, f"--local-directory={folder}/{number}")
        with Client(address, timeout=MOST_SECONDS) as client:
            client.wait_for_workers(2, timeout=MOST_SECONDS)
            assert attempt(repository, 100, lambda: None) is None

            def for_a_while(number: int) -> Callable[[], None]:
                def act() -> None:
                    line(number, works=False)
                    time.sleep(1.5)
                    line(number, works=True)

                return act

            attempt(repository, 200, for_a_while(ONE))
            attempt(repository, 300, for_a_while(SCHEDULER))
            if os.environ.get("ICECHUNK_EVERY_CALL"):
                # the other one writes its blocks
                assert attempt(repository, 400, lambda: line(OTHER, works=False)) is None
                cut = attempt(repository, 500, lambda: line(SCHEDULER, works=False))
                assert cut is not None
                line(SCHEDULER, works=True)
        # who comes later finds nothing half done
        assert attempt(repository, 600, lambda: None) is None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
