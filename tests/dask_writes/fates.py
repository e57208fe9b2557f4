"""What happens to the parts of a job, and the engines that run them; see `test_failure_table`."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import zarr

from icechunk import IcechunkStore, Repository, Storage
from icechunk_dask import distributed_write

ROWS, BATCH = 6, 2
#: The row that something happens to in the first attempt: where others run it meanwhile, one of
#: the first batch, so that nothing is on its way.
VICTIM, FIRST_VICTIM = 3, 1
#: Seconds after which a part that hangs, or answers late, is given up.
TIMEOUT = 1.0
FATES = ("raise", "raise late", "hang", "late", "kill", "twice")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


class Folder:
    """Where parts note that they ran, and wait.

    Parameters
    ----------
    path : path
        An empty folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def prepare(self) -> Folder:
        for name in ("waiting", "go", "through"):
            os.mkfifo(self.path / name)
        return self

    def note(self, row: int) -> None:
        with (self.path / "ran").open("a") as log:
            log.write(f"{row}\n")

    @property
    def ran(self) -> Counter[int]:
        """How often each row was begun."""
        return Counter(map(int, (self.path / "ran").read_text().split()))

    def is_first(self) -> bool:
        try:
            (self.path / "begun").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def say(self, name: str) -> None:
        """Return once somebody hears it."""
        (self.path / name).open("w").close()

    def hear(self, name: str) -> None:
        """Return once somebody says it."""
        (self.path / name).open().close()

    def release(self) -> None:
        """Let go on whatever waits: threads that nothing else can end."""
        for name in ("go", "waiting", "through"):
            for flags in (os.O_WRONLY, os.O_RDONLY):
                with suppress(OSError):
                    os.close(os.open(self.path / name, flags | os.O_NONBLOCK))


def write_row(store: IcechunkStore, item: list[Any]) -> None:
    """Write a row; something happens to the first attempt at one of them."""
    row, path, fate = item
    folder = Folder(path)
    folder.note(row)
    victim = FIRST_VICTIM if fate == "twice" else VICTIM
    happens = row == victim and folder.is_first()
    value = row + 1
    if happens and fate == "raise":
        raise OSError(f"no row {row}")
    if happens and fate == "hang":
        folder.hear("go")
    if happens and fate in ("late", "twice"):
        folder.say("waiting")
        folder.hear("go")
        # so that it is seen if it counts
        value = -1
    array: Any = zarr.open_array(store, path="a", mode="r+")
    array[row] = value
    if happens and fate == "raise late":
        raise OSError(f"no row {row}")
    if happens and fate == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if happens and fate == "late":
        folder.say("through")


def items(folder: Folder, fate: str) -> list[list[Any]]:
    """Return the items, or keys."""
    return [[row, str(folder.path), fate] for row in range(ROWS)]


Call = Callable[[Storage, Folder, str], Any]


def through(executor: Any) -> Call:
    """Return a call of `distributed_write` with an executor."""

    def call(storage: Storage, folder: Folder, fate: str) -> Any:
        return distributed_write(
            write_row,
            items(folder, fate),
            Repository.open(storage),
            executor=executor,
            progress=False,
            message="rows",
            job="rows",
            commit_every=BATCH,
            timeout=TIMEOUT if fate in ("hang", "late") else None,
        )

    return call


def run_parts(storage: Storage, folder: Folder, fate: str, first: int, last: int) -> int:
    """Do some parts in this process, and return how many were done before."""
    job = Repository.open(storage).jobs.open("rows")
    timeout = TIMEOUT if fate in ("hang", "late") else None
    keys = items(folder, fate)[first:last]
    return sum(not result.ran for result in job.run(write_row, keys=keys, timeout=timeout))


def without_coordinator(machines: Executor) -> Call:
    """Return a call that runs the parts in processes that know of the job only."""

    def call(storage: Storage, folder: Folder, fate: str) -> Any:
        repository = Repository.open(storage)
        jobs = repository.jobs
        if "rows" not in jobs.list():
            jobs.create("rows", keys=items(folder, fate), message="rows")
        parts = [(0, VICTIM), (VICTIM, ROWS)]
        futures = [machines.submit(run_parts, storage, folder, fate, *part) for part in parts]
        before = sum([future.result() for future in futures])
        job = jobs.open("rows")
        job.finish()
        return before

    return call


def pool_of_processes(count: int) -> ProcessPoolExecutor:
    """Return a pool whose processes start quickly."""
    return ProcessPoolExecutor(count, _CONTEXT)


def engine(name: str, stack: ExitStack, cluster: Any = None) -> Call:
    """Return how to run a job.

    Parameters
    ----------
    name : str
    stack : ExitStack
        Ends what is begun here.
    cluster : distributed.Client, optional
    """
    if name in ("sync", "threads"):
        return through(name)
    if name == "cluster":
        return through(cluster)
    if name == "thread pool":
        pool: Executor = ThreadPoolExecutor(2)
    else:
        pool = pool_of_processes(2)
    stack.callback(pool.shutdown, wait=False, cancel_futures=True)
    return without_coordinator(pool) if name == "no coordinator" else through(pool)


def in_a_process(name: str, storage: Storage, folder: Folder, fate: str) -> Any:
    """Return a process that calls an engine of its own."""
    process = _CONTEXT.Process(target=_call, args=(name, storage, folder, fate))
    process.start()
    return process


def _call(name: str, storage: Storage, folder: Folder, fate: str) -> None:
    with ExitStack() as stack:
        try:
            engine(name, stack)(storage, folder, fate)
        except Exception as error:
            text = json.dumps([type(error).__name__, str(error)])
            (folder.path / "error").write_text(text)
            sys.exit(1)
