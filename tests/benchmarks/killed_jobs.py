"""A job whose processes are killed at random until it is done: without coordinator, and with Dask.

``python tests/benchmarks/killed_jobs.py --parts 1000 --processes 8 --every 2``

Prints seconds, requests, the most memory of a process, and how often a part ran.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from icechunk import (  # noqa: E402
    CountingStorage,
    IcechunkStore,
    LocalStorage,
    Repository,
    RepositoryConfig,
    TaskError,
)
from icechunk_dask import distributed_write  # noqa: E402

CHUNKS, SIZE = 4, 12_500


def write(store: IcechunkStore, item: Any) -> None:
    """Write some chunks of 100 kB."""
    key, folder = item
    with open(f"{folder}/ran", "a") as log:
        log.write(f"{key}\n")
    array: Any = zarr.open_array(store, path="a", mode="r+")
    array[key] = np.full((CHUNKS, SIZE), key + 1.0)


def create(folder: Path, parts: int) -> Repository:
    """Create a repository with an array of a row for each part."""
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(LocalStorage(folder / "repository"), config)
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(
            store,
            name="a",
            shape=(parts, CHUNKS, SIZE),
            chunks=(1, 1, SIZE),
            dtype="f8",
            compressors=None,
        )
    return repository


def work(folder: Path, number: int, processes: int) -> None:
    """Do parts of the job in this process: its own ones first, then all that are left."""
    storage = CountingStorage(LocalStorage(folder / "repository"))
    job = Repository.open(storage).jobs.open("rows")
    keys = [[key, str(folder)] for key in range(len(job.keys or ()))]
    mine = keys[number::processes]
    notes = folder / f"notes-{os.getpid()}"
    while mine:
        for start in range(0, len(mine), 20):
            job.run(write, keys=mine[start : start + 20], lease=30)
            requests = sum(count.requests for count in storage.counts.values())
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            notes.write_text(json.dumps({"requests": requests, "peak": peak}))
        status = job.status()
        running = {json.dumps(part.key) for part in status.running}
        # those of others that may be dead are done as well, at the end
        left = [key for key in keys if json.dumps(key) in running] + status.left
        mine = random.sample(left, len(left))
    job.finish()


@contextmanager
def killing(pids: Any, every: float) -> Iterator[list[int]]:
    """Kill one of some processes now and then."""
    end, killed = threading.Event(), []

    def kill() -> None:
        while not end.wait(random.uniform(every / 2, every * 1.5)):
            alive = pids()
            if alive:
                chosen = random.choice(alive)
                with suppress(ProcessLookupError):
                    os.kill(chosen, 9)
                    killed.append(chosen)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        end.set()
        thread.join()


def without_coordinator(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the job by processes that are started again when they are killed."""
    repository = create(folder, options.parts)
    keys = [[key, str(folder)] for key in range(options.parts)]
    repository.jobs.create("rows", keys=keys, message="rows")
    running: dict[int, subprocess.Popen[bytes]] = {}

    def start(number: int) -> None:
        words = [sys.executable, __file__, "--work", str(folder), str(number)]
        words += ["--processes", str(options.processes)]
        running[number] = subprocess.Popen(words)

    for number in range(options.processes):
        start(number)
    with killing(lambda: [p.pid for p in running.values() if p.poll() is None], options.every) as k:
        while running:
            for number, process in list(running.items()):
                if process.poll() == 0:
                    del running[number]
                elif process.poll() is not None:
                    start(number)
            time.sleep(0.05)
    notes = [json.loads(path.read_text()) for path in folder.glob("notes-*")]
    return {
        "killed": len(k),
        "requests (known)": sum(note["requests"] for note in notes),
        "MB a process, most": max(note["peak"] for note in notes) / 1024,
    }


def with_dask(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the same on a cluster, by calls that go on where the last one has failed."""
    import dask
    from distributed import Client, LocalCluster

    repository = create(folder, options.parts)
    items = [[key, str(folder)] for key in range(options.parts)]
    calls = 0
    dask.config.set({"distributed.scheduler.allowed-failures": 10})
    with (
        LocalCluster(
            n_workers=options.processes,
            threads_per_worker=1,
            dashboard_address=":0",
            memory_limit=0,
        ) as cluster,
        Client(cluster),
    ):

        def pids() -> list[int]:
            found = [nanny.pid for nanny in cluster.workers.values()]
            return [pid for pid in found if pid is not None]

        with killing(pids, options.every) as killed:
            while True:
                calls += 1
                try:
                    written = distributed_write(
                        write,
                        items,
                        repository,
                        job="rows",
                        message="rows",
                        commit_every=100,
                        progress=False,
                    )
                    break
                except TaskError as error:
                    print(error)
    return {
        "killed": len(killed),
        "calls": calls,
        "MB a process, most": written.peak_memory / 2**20,
    }


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")
    parser.add_argument("--work", nargs=2)
    options = parser.parse_args()
    if options.work:
        folder, number = options.work
        work(Path(folder), int(number), options.processes)
        return
    random.seed(1)
    for way in (without_coordinator, with_dask):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            began = time.perf_counter()
            found = way(folder, options)
            seconds = time.perf_counter() - began
            ran = Counter(map(int, (folder / "ran").read_text().split()))
            repository = Repository.open(folder / "repository")
            array: Any = zarr.open_array(
                repository.readonly_session("main").store, path="a", mode="r"
            )
            rows = (array[:] == np.arange(1, options.parts + 1)[:, None, None]).all(axis=(1, 2))
            chunks = sum(1 for _ in repository.storage.list("chunks/"))
            right = int(rows.sum())
            print(
                f"{way.__name__}: {seconds:.1f} s, {right} of {options.parts} rows right, "
                f"{ran.total()} runs of parts, {chunks} objects of chunks; {found}",
                flush=True,
            )


if __name__ == "__main__":
    main()
