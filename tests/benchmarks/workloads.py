"""What is measured, on the API that both clients have. Runs under either of them.

Usage: ``python workloads.py NAME``. Prints one JSON object: seconds per step, and the peak
memory of the process in MiB.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zarr

import icechunk

Steps = dict[str, float]


@contextmanager
def timed(steps: Steps, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    steps[name] = steps.get(name, 0.0) + time.perf_counter() - start


def virtual_references(folder: Path, steps: Steps) -> None:
    """A million references into one hundred files, of which one is read."""
    count, files = 1_000_000, 100
    source = folder / "source"
    source.mkdir()
    for i in range(files):
        (source / f"file-{i:04d}.bin").write_bytes(bytes(16) * 10_000)
    prefix = f"file://{source}/"
    config = icechunk.RepositoryConfig.default()
    store = icechunk.local_filesystem_store(str(source))
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(prefix, store))
    access = icechunk.containers_credentials({prefix: icechunk.Credentials.LocalFileSystemAccess()})
    storage = icechunk.local_filesystem_storage(str(folder / "repository"))
    repository = icechunk.Repository.create(storage, config, access)
    session = repository.writable_session("main")
    zarr.create_array(
        session.store,
        name="v",
        shape=(100, 100, 100, 4),
        chunks=(1, 1, 1, 4),
        dtype="f4",
        compressors=None,
    )
    locations = [f"{prefix}file-{i // 10_000:04d}.bin" for i in range(count)]
    offsets = np.arange(count, dtype="u8") % 10_000 * 16
    lengths = np.full(count, 16, "u8")
    with timed(steps, "set"):
        session.store.set_virtual_refs_arr("v", (100, 100, 100, 1), locations, offsets, lengths)
    with timed(steps, "commit"):
        session.commit("a million references")
    with timed(steps, "reopen and read one"):
        storage = icechunk.local_filesystem_storage(str(folder / "repository"))
        repository = icechunk.Repository.open(storage, None, access)
        array = zarr.open_array(repository.readonly_session("main").store, path="v", mode="r")
        assert array[50, 50, 50].sum() == 0


def _chunks(folder: Path, steps: Steps, count: int, items: int) -> None:
    storage = icechunk.local_filesystem_storage(str(folder / "repository"))
    repository = icechunk.Repository.create(storage)
    session = repository.writable_session("main")
    array = zarr.create_array(
        session.store,
        name="a",
        shape=(count * items,),
        chunks=(items,),
        dtype="f4",
        compressors=None,
    )
    values = np.random.default_rng(0).random(count * items, dtype="f4")
    with timed(steps, "write"):
        array[:] = values
    with timed(steps, "commit"):
        session.commit("chunks")
    with timed(steps, "read"):
        store = repository.readonly_session("main").store
        read = zarr.open_array(store, path="a", mode="r")[:]
    assert np.array_equal(read, values)


def small_chunks(folder: Path, steps: Steps) -> None:
    """20,000 chunks of 4 KiB."""
    _chunks(folder, steps, 20_000, 1024)


def large_chunks(folder: Path, steps: Steps) -> None:
    """256 chunks of 4 MiB."""
    _chunks(folder, steps, 256, 1 << 20)


def commits(folder: Path, steps: Steps) -> None:
    """200 commits of one chunk each, in a row."""
    storage = icechunk.local_filesystem_storage(str(folder / "repository"))
    repository = icechunk.Repository.create(storage)
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(200,), chunks=(1,), dtype="i4")
    session.commit("an array")
    with timed(steps, "commit 200 times"):
        for i in range(200):
            session = repository.writable_session("main")
            zarr.open_array(session.store, path="a", mode="r+")[i] = i
            session.commit(f"commit {i}")


WORKLOADS: dict[str, Callable[[Path, Steps], None]] = {
    f.__name__: f for f in (virtual_references, small_chunks, large_chunks, commits)
}

if __name__ == "__main__":
    logging.disable()
    measured: Steps = {}
    with tempfile.TemporaryDirectory() as place:
        WORKLOADS[sys.argv[1]](Path(place), measured)
    measured["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(measured))
