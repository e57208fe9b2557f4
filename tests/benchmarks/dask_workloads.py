"""What is measured of writes with Dask, on the API that both clients have.

Runs under either of them: ``python dask_workloads.py NAME SCALE``. A scale of 1 is the full
size. Prints one JSON object; the unit of a value is in its name, seconds if there is none.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.array as da
import distributed
import numpy as np
import xarray as xr
import zarr
from distributed.deploy.subprocess import SubprocessCluster

import icechunk

Steps = dict[str, float]
WORKERS = 2


@contextmanager
def timed(steps: Steps, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    steps[name] = steps.get(name, 0.0) + time.perf_counter() - start


def peak() -> float:
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def cluster(steps: Steps) -> Iterator[Any]:
    """Run scheduler and workers in processes of their own; note what they needed."""
    with (
        SubprocessCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            dashboard_address=":0",
            worker_kwargs={"dashboard": False},
        ) as processes,
        distributed.Client(processes) as client,
    ):
        client.wait_for_workers(WORKERS)
        # what they import is not measured
        client.run(lambda: __import__("icechunk.dask"))
        before = client.run_on_scheduler(time.process_time), peak()
        yield client
        steps["scheduler CPU"] = client.run_on_scheduler(time.process_time) - before[0]
        steps["coordinator grew by MiB"] = peak() - before[1]
        steps["worker peak MiB"] = max(client.run(peak).values())


@contextmanager
def submission(steps: Steps, tasks: int) -> Iterator[None]:
    """Note when and how large a graph is sent to the scheduler."""
    send = distributed.Client._send_to_scheduler
    start = time.perf_counter()

    def note(self: Any, message: dict[str, Any]) -> None:
        if message["op"] == "update-graph":
            steps["until the graph is sent"] = time.perf_counter() - start
            sent = message["expr_ser"]
            size = len(sent.header.get("x", b"")) + sum(memoryview(f).nbytes for f in sent.frames)
            steps["bytes sent per task"] = size / tasks
        send(self, message)

    distributed.Client._send_to_scheduler = note
    try:
        yield
    finally:
        distributed.Client._send_to_scheduler = send


def random_block(*, block_id: tuple[int, ...], block: tuple[int, ...]) -> Any:
    return np.random.default_rng(block_id).random(block, dtype="f4")


def random_array(blocks: int, *block: int) -> da.Array:
    """Return blocks of random numbers, one after another."""
    return da.map_blocks(
        random_block,
        block=(1, *block),
        chunks=((1,) * blocks, *((n,) for n in block)),
        dtype="f4",
        meta=np.empty((0,) * (len(block) + 1), "f4"),
    )


def repository_in(folder: Path) -> Any:
    storage = icechunk.local_filesystem_storage(str(folder / "repository"))
    return icechunk.Repository.create(storage)


def store(folder: Path, steps: Steps, source: da.Array) -> None:
    """Store an array whose blocks are chunks through a fork, and commit."""
    from icechunk.dask import store_dask

    repository = repository_in(folder)
    session = repository.writable_session("main")
    chunks = source.chunksize
    zarr.create_array(session.store, name="a", shape=source.shape, chunks=chunks, dtype="f4")
    session.commit("an array")
    count = source.npartitions
    with cluster(steps):
        with timed(steps, "write and commit"):
            session = repository.writable_session("main")
            fork = session.fork()
            target = zarr.open_array(fork.store, path="a", mode="r+")
            with timed(steps, "write"), submission(steps, count):
                done = store_dask(sources=[source], targets=[target])
            with timed(steps, "merge"):
                session.merge(done)
            with timed(steps, "commit"):
                session.commit("stored")
        steps["bytes per chunk returned"] = len(pickle.dumps(done)) / count
    last = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")[-1]
    assert np.array_equal(last, source[-1].compute(scheduler="sync"))


def large_source(scale: float) -> da.Array:
    """Return 2 GB in 4,000 chunks."""
    return random_array(max(int(4000 * scale), 8), 250, 500)


def ingest_store_dask(folder: Path, steps: Steps, scale: float) -> None:
    """2 GB of float32 in 4,000 chunks."""
    store(folder, steps, large_source(scale))


def ingest_in_batches(folder: Path, steps: Steps, scale: float) -> None:
    """The same in ten commits, each of which is made while the next tasks run."""
    from icechunk_dask import store_dask

    source = large_source(scale)
    repository = repository_in(folder)
    session = repository.writable_session("main")
    chunks = source.chunksize
    zarr.create_array(session.store, name="a", shape=source.shape, chunks=chunks, dtype="f4")
    session.commit("an array")
    with cluster(steps), timed(steps, "write and commit"):
        store_dask(
            sources=[source],
            targets=["a"],
            repository=repository,
            message="stored",
            commit_every=max(source.npartitions // 10, 1),
            progress=False,
        )
    last = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")[-1]
    assert np.array_equal(last, source[-1].compute(scheduler="sync"))


def dataset(scale: float) -> xr.Dataset:
    return xr.Dataset({"a": (("t", "y", "x"), large_source(scale))})


def ingest_to_icechunk(folder: Path, steps: Steps, scale: float) -> None:
    """The same as a dataset."""
    from icechunk.xarray import to_icechunk

    repository = repository_in(folder)
    with cluster(steps), timed(steps, "write and commit"):
        session = repository.writable_session("main")
        fork = session.fork()
        with submission(steps, dataset(scale)["a"].data.npartitions):
            to_icechunk(dataset(scale), fork)
        session.merge(fork)
        session.commit("stored")


def ingest_to_zarr(folder: Path, steps: Steps, scale: float) -> None:
    """The same into a plain folder, with xarray."""
    with cluster(steps), timed(steps, "write and commit"):
        dataset(scale).to_zarr(folder / "plain.zarr", zarr_format=3, consolidated=False)


def tiny_tasks(folder: Path, steps: Steps, scale: float) -> None:
    """100,000 tasks that write a chunk of 1 KiB each."""
    store(folder, steps, random_array(max(int(100_000 * scale), 100), 256))


def tiny_tasks_to_zarr(folder: Path, steps: Steps, scale: float) -> None:
    """The same into a plain folder, with xarray."""
    source = random_array(max(int(100_000 * scale), 100), 256)
    with cluster(steps), timed(steps, "write and commit"):
        tiny = xr.Dataset({"a": (("t", "x"), source)})
        tiny.to_zarr(folder / "plain.zarr", zarr_format=3, consolidated=False)


def progress(folder: Path, steps: Steps, scale: float) -> None:
    """What watching costs: 20,000 tiny tasks with and without, in turn. Ours only."""
    from icechunk_dask import Status, store_dask

    source = random_array(max(int(20_000 * scale), 100), 256)
    repository = repository_in(folder)
    session = repository.writable_session("main")
    zarr.create_array(
        session.store, name="a", shape=source.shape, chunks=source.chunksize, dtype="f4"
    )
    session.commit("an array")
    told: list[Status] = []
    with cluster(steps) as client:
        for turn in range(4):
            for name, how in (("with progress", told.append), ("without", False)):
                fork = repository.writable_session("main").fork()
                target = zarr.open_array(fork.store, path="a", mode="r+")
                start = cpu_seconds(client)
                store_dask(sources=[source], targets=[target], progress=how)
                if turn:
                    step = f"CPU {name}"
                    steps[step] = steps.get(step, 0.0) + cpu_seconds(client) - start
    # time on the wall says more about what else the machine does
    steps["CPU with/without"] = steps["CPU with progress"] / steps["CPU without"]
    steps["times told"] = len(told)


def cpu_seconds(client: Any) -> float:
    """Return what coordinator, scheduler and workers have used so far."""
    workers: dict[str, float] = client.run(time.process_time)
    scheduler: float = client.run_on_scheduler(time.process_time)
    return time.process_time() + scheduler + sum(workers.values())


def references(folder: Path, steps: Steps, scale: float) -> None:
    """Ten million references of 10,000 simulated tasks, merged and committed. Ours only."""
    from icechunk.distributed import Changes
    from icechunk.format.chunk_refs import ChunkRefs
    from icechunk_dask.graph import SPLIT_EVERY

    tasks, each = max(int(10_000 * scale), 100), 1000
    repository = repository_in(folder)
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(tasks, each), chunks=(1, 1), dtype="f4")
    session.commit("an array")
    session = repository.writable_session("main")
    parent = session.fork()
    rng = np.random.default_rng(0)
    coords = np.stack([np.zeros(each, np.int64), np.arange(each)], axis=1)
    encoded: list[bytes] = []
    with timed(steps, "simulate"):
        for task in range(tasks):
            fork = parent.fork()
            coords[:, 0] = task
            ids = rng.integers(0, 256, (each, 12), np.uint8)
            fork.set_refs("/a", ChunkRefs.native(coords, ids, np.full(each, 4096, np.uint64)))
            encoded.append(fork.change_set_bytes())
    steps["bytes per chunk of a task"] = sum(map(len, encoded)) / (tasks * each)
    with timed(steps, "merge on workers"):
        # each level arrives as bytes, as it does on a cluster
        while len(encoded) > 1:
            groups = [encoded[i : i + SPLIT_EVERY] for i in range(0, len(encoded), SPLIT_EVERY)]
            encoded = [
                Changes.merged([Changes(None, one) for one in group]).to_bytes() for group in groups
            ]
    steps["bytes per chunk returned"] = len(encoded[0]) / (tasks * each)
    before = current()
    with timed(steps, "merge into the session"):
        session.merge_change_sets(encoded)
    del encoded
    steps["session bytes per chunk"] = (current() - before) * 2**20 / (tasks * each)
    with timed(steps, "commit"):
        session.commit("ten million")
    sizes = [f.stat().st_size for f in (folder / "repository" / "manifests").iterdir()]
    steps["manifests"] = len(sizes)
    steps["manifests MiB"] = sum(sizes) / 2**20
    steps["manifest bytes per chunk"] = sum(sizes) / (tasks * each)
    with timed(steps, "written_chunks"):
        grid = repository.readonly_session("main").written_chunks("/a")
    assert grid.all()
    steps["peak MiB"] = peak()


def current() -> float:
    """Return the memory that this process has now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


WORKLOADS: dict[str, Callable[[Path, Steps, float], None]] = {
    f.__name__: f
    for f in (
        ingest_store_dask,
        ingest_in_batches,
        ingest_to_icechunk,
        ingest_to_zarr,
        tiny_tasks,
        tiny_tasks_to_zarr,
        progress,
        references,
    )
}

if __name__ == "__main__":
    logging.disable()
    measured: Steps = {}
    with tempfile.TemporaryDirectory() as place:
        WORKLOADS[sys.argv[1]](Path(place), measured, float(sys.argv[2]))
    print(json.dumps(measured))
