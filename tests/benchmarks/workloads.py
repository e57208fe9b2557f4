"""What is measured, on the API that both clients have. Runs under either of them.

Usage: ``python workloads.py NAME [SCALE]``. Prints one JSON object: seconds per step, the peak
memory of the process in MiB, and the objects in the repository. With ``ICECHUNK_BENCH_COUNT=1``,
under this project only, also the requests.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import icechunk

Steps = dict[str, float]

#: Of the sizes of the workloads; 1 is what the goals are for.
SCALE = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
COUNTING: list[Any] = []


def storage_in(folder: Path) -> Any:
    """Return the storage of a workload's repository, which counts if that is asked for."""
    storage = icechunk.local_filesystem_storage(str(folder / "repository"))
    if os.environ.get("ICECHUNK_BENCH_COUNT"):
        storage = icechunk.CountingStorage(storage)
        COUNTING.append(storage)
    return storage


def scaled(count: int) -> int:
    return max(int(count * SCALE), 1)


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
    storage = storage_in(folder)
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
        storage = storage_in(folder)
        repository = icechunk.Repository.open(storage, None, access)
        array = zarr.open_array(repository.readonly_session("main").store, path="v", mode="r")
        assert array[50, 50, 50].sum() == 0


def _chunks(folder: Path, steps: Steps, count: int, items: int) -> None:
    storage = storage_in(folder)
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


def many_manifests(folder: Path, steps: Steps) -> None:
    """20,000 chunks in 500 manifests, read and written again in sessions that find them there."""
    count, manifests = scaled(20_000), 500
    condition, dimension = icechunk.ManifestSplitCondition, icechunk.ManifestSplitDimCondition
    sizes = {condition.AnyArray(): {dimension.Any(): max(count // manifests, 1)}}
    splitting = icechunk.ManifestSplittingConfig.from_dict(sizes)
    config = icechunk.RepositoryConfig(manifest=icechunk.ManifestConfig(splitting=splitting))
    storage = storage_in(folder)
    icechunk.Repository.create(storage, config)
    for size, items in (("4 KiB", 1024), ("4 bytes", 1)):
        repository = icechunk.Repository.open(storage)
        session = repository.writable_session("main")
        options: Any = {"shape": (count * items,), "chunks": (items,), "dtype": "f4"}
        array = zarr.create_array(session.store, name=size, compressors=None, **options)
        values = np.random.default_rng(0).random(count * items, dtype="f4")
        array[:] = values
        session.commit("chunks")
        repository = icechunk.Repository.open(storage)
        with timed(steps, f"read {size}"):
            store = repository.readonly_session("main").store
            read = zarr.open_array(store, path=size, mode="r")[:]
        assert np.array_equal(read, values)
        repository = icechunk.Repository.open(storage)
        session = repository.writable_session("main")
        with timed(steps, f"write {size}"):
            zarr.open_array(session.store, path=size, mode="r+")[:] = values + 1
        with timed(steps, f"commit {size}"):
            session.commit("other chunks")


def small_chunks(folder: Path, steps: Steps) -> None:
    """20,000 chunks of 4 KiB."""
    _chunks(folder, steps, scaled(20_000), 1024)


def large_chunks(folder: Path, steps: Steps) -> None:
    """256 chunks of 4 MiB."""
    _chunks(folder, steps, scaled(256), 1 << 20)


def commits(folder: Path, steps: Steps) -> None:
    """200 commits of one chunk each, in a row."""
    storage = storage_in(folder)
    repository = icechunk.Repository.create(storage)
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(200,), chunks=(1,), dtype="i4")
    session.commit("an array")
    with timed(steps, "commit 200 times"):
        for i in range(200):
            session = repository.writable_session("main")
            zarr.open_array(session.store, path="a", mode="r+")[i] = i
            session.commit(f"commit {i}")


def _bucket(folder: Path) -> Any:
    config = icechunk.RepositoryConfig.default()
    store = icechunk.s3_store(region="us-east-1")
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer("s3://bucket/", store))
    return icechunk.Repository.create(storage_in(folder), config)


def _distinct(session: Any, name: str, count: int) -> tuple[Any, ...]:
    zarr.create_array(session.store, name=name, shape=(count,), chunks=(1,), dtype="i4")
    locations = [f"s3://bucket/archive/{name}/file-{i * 7919:012d}.nc" for i in range(count)]
    return name, (count,), locations, np.zeros(count, "u8"), np.full(count, 4, "u8")


def distinct_references(folder: Path, steps: Steps) -> None:
    """A million references, each into a file of its own."""
    count = scaled(1_000_000)
    session = _bucket(folder).writable_session("main")
    references = _distinct(session, "v", count)
    with timed(steps, "set"):
        session.store.set_virtual_refs_arr(*references)
    with timed(steps, "commit"):
        session.commit("references")
    with timed(steps, "first chunk, cold"):
        session = icechunk.Repository.open(storage_in(folder)).readonly_session("main")
        assert "virtual" in str(session.chunk_type("/v", [count - 1])).lower()
    with timed(steps, "collect garbage, dry run"):
        repository = icechunk.Repository.open(storage_in(folder))
        repository.garbage_collect(datetime.now(UTC), dry_run=True)


def many_arrays(folder: Path, steps: Steps) -> None:
    """60 arrays of 20,000 references, of which one of each is changed."""
    arrays = [f"a{i}" for i in range(60)]
    session = _bucket(folder).writable_session("main")
    for name in arrays:
        session.store.set_virtual_refs_arr(*_distinct(session, name, scaled(20_000)))
    session.commit("references")
    session = icechunk.Repository.open(storage_in(folder)).writable_session("main")
    for name in arrays:
        session.store.set_virtual_ref(f"{name}/c/0", "s3://bucket/new", offset=0, length=4)
    with timed(steps, "cold commit"):
        session.commit("one of each")


def long_history(folder: Path, steps: Steps) -> None:
    """2,000 commits: the last 20 of them, and all as a list."""
    repository = icechunk.Repository.create(storage_in(folder))
    session = repository.writable_session("main")
    zarr.create_group(session.store)
    session.commit("a group")
    for i in range(scaled(2000)):
        session = repository.writable_session("main")
        zarr.open_group(session.store).attrs["i"] = i
        if i < scaled(2000) - 20:
            session.commit(f"commit {i}", metadata={"run": i})
        else:
            with timed(steps, "last 20 commits"):
                session.commit(f"commit {i}", metadata={"run": i})
    with timed(steps, "open and ancestry"):
        repository = icechunk.Repository.open(storage_in(folder))
        assert sum(1 for _ in repository.ancestry(branch="main")) == scaled(2000) + 2


WORKLOADS: dict[str, Callable[[Path, Steps], None]] = {
    function.__name__: function
    for function in (
        virtual_references,
        distinct_references,
        many_arrays,
        long_history,
        small_chunks,
        many_manifests,
        large_chunks,
        commits,
    )
}

if __name__ == "__main__":
    logging.disable()
    measured: Steps = {}
    with tempfile.TemporaryDirectory() as place:
        WORKLOADS[sys.argv[1]](Path(place), measured)
        objects = (Path(place) / "repository").rglob("*")
        measured["objects"] = sum(path.is_file() for path in objects)
    if COUNTING:
        measured["requests"] = sum(storage.requests for storage in COUNTING)
    measured["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(measured))
