"""What is measured, on the API that both clients have. Runs under either of them.

Usage: ``python workloads.py NAME [SCALE [FOLDER]]``. Prints one JSON object: seconds per step,
on the wall and of the processor; the peak memory of the process in MiB; the objects in the
repository and their bytes. With ``ICECHUNK_BENCH_COUNT=1``, under this project only, also the
requests. ``ICECHUNK_BENCH_CLIENT=zarr`` stands for zarr's own stores, where they can do the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from files import served
from measuring import CLIENT, COUNTING, Steps, plain_store, resident, scaled, storage_in

if CLIENT == "icechunk":
    IMPORTS = Steps()
    with IMPORTS.timed("import icechunk"):
        import icechunk
    with IMPORTS.timed("icechunk.Repository"):
        icechunk.Repository  # noqa: B018 (loads what a program needs)


# -- references -----------------------------------------------------------------------------
def _container(folder: Path) -> Any:
    """Return a config with a container for the folder `source`, and who may read it."""
    source = folder / "source"
    source.mkdir(exist_ok=True)
    prefix = f"file://{source}/"
    config = icechunk.RepositoryConfig.default()
    store = icechunk.local_filesystem_store(str(source))
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(prefix, store))
    access = icechunk.containers_credentials({prefix: icechunk.Credentials.LocalFileSystemAccess()})
    return prefix, config, access


def _bucket(folder: Path) -> Any:
    config = icechunk.RepositoryConfig.default()
    store = icechunk.s3_store(region="us-east-1")
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer("s3://bucket/", store))
    return icechunk.Repository.create(storage_in(folder), config)


def _array(session: Any, name: str, shape: tuple[int, ...]) -> None:
    zarr.create_array(
        session.store,
        name=name,
        shape=shape,
        chunks=(1,) * len(shape),
        dtype="f4",
        compressors=None,
    )


def virtual_references(folder: Path, steps: Steps) -> None:
    """A million references into one hundred files, in three dimensions."""
    edge, files = max(int(100 * (scaled(1_000_000) / 1_000_000) ** (1 / 3)), 2), 100
    count = edge**3
    prefix, config, access = _container(folder)
    for i in range(files):
        (folder / f"source/file-{i:04d}.bin").write_bytes(bytes(4) * (count // files + 1))
    session = icechunk.Repository.create(storage_in(folder), config, access).writable_session(
        "main"
    )
    _array(session, "v", (edge,) * 3)
    rows = np.arange(count, dtype="u8")
    locations = [f"{prefix}file-{i * files // count:04d}.bin" for i in range(count)]
    offsets, lengths = rows % (count // files) * 4, np.full(count, 4, "u8")
    with steps.timed("set"):
        session.store.set_virtual_refs_arr("v", (edge,) * 3, locations, offsets, lengths)
    with steps.timed("commit"):
        session.commit("a million references")
    steps.fresh(folder, "virtual_references_cold")
    steps.fresh(folder, "virtual_references_columns")


def virtual_references_cold(folder: Path, steps: Steps) -> None:
    access = _container(folder)[2]
    with steps.timed("open and read one chunk"):
        repository = icechunk.Repository.open(storage_in(folder), None, access)
        array = zarr.open_array(repository.readonly_session("main").store, path="v", mode="r")
        assert array[(array.shape[0] // 2,) * 3] == 0


def virtual_references_columns(folder: Path, steps: Steps) -> None:
    async def rows(store: Any) -> int:
        return sum([len(batch[0]) async for batch in store.array_chunk_iterator("/v")])

    with steps.timed("all as columns"):
        repository = icechunk.Repository.open(storage_in(folder))
        assert asyncio.run(rows(repository.readonly_session("main").store)) > 0


def _distinct(session: Any, name: str, count: int, filler: str = "") -> tuple[Any, ...]:
    _array(session, name, (count,))
    locations = [f"s3://bucket/{filler}{name}/file-{i * 7919:012d}.nc" for i in range(count)]
    return name, (count,), locations, np.zeros(count, "u8"), np.full(count, 4, "u8")


def _distinct_references(folder: Path, steps: Steps, count: int, filler: str) -> None:
    session = _bucket(folder).writable_session("main")
    references = _distinct(session, "v", count, filler)
    with steps.timed("set"):
        session.store.set_virtual_refs_arr(*references)
    with steps.timed("commit"):
        session.commit("references")
    steps.fresh(folder, "distinct_references_cold")
    steps.fresh(folder, "distinct_references_garbage")


def distinct_references(folder: Path, steps: Steps) -> None:
    """A million references, each into a file of its own."""
    _distinct_references(folder, steps, scaled(1_000_000), "archive/")


def long_locations(folder: Path, steps: Steps) -> None:
    """Three million references, each into a file of its own with a name of 152 characters."""
    _distinct_references(folder, steps, scaled(3_000_000), "x" * 116 + "/")


def distinct_references_cold(folder: Path, steps: Steps) -> None:
    with steps.timed("first chunk, cold"):
        session = icechunk.Repository.open(storage_in(folder)).readonly_session("main")
        assert "virtual" in str(session.chunk_type("/v", [0])).lower()


def distinct_references_garbage(folder: Path, steps: Steps) -> None:
    with steps.timed("collect garbage, dry run"):
        repository = icechunk.Repository.open(storage_in(folder))
        repository.garbage_collect(datetime.now(UTC), dry_run=True)


def many_arrays(folder: Path, steps: Steps) -> None:
    """60 arrays of 20,000 references, of which one of each is changed."""
    session = _bucket(folder).writable_session("main")
    for i in range(60):
        session.store.set_virtual_refs_arr(*_distinct(session, f"a{i}", scaled(20_000)))
    session.commit("references")
    steps.fresh(folder, "many_arrays_cold")


def many_arrays_cold(folder: Path, steps: Steps) -> None:
    session = icechunk.Repository.open(storage_in(folder)).writable_session("main")
    for i in range(60):
        session.store.set_virtual_ref(f"a{i}/c/0", "s3://bucket/new", offset=0, length=4)
    with steps.timed("commit, cold"):
        session.commit("one of each")


def point_query(folder: Path, steps: Steps) -> None:
    """One point of 3,000 virtual chunks of 400 bytes, which lie in 100 files on a web server."""
    source, files, each = folder / "source", 100, max(scaled(3000) // 100, 1)
    source.mkdir()
    values = np.random.default_rng(0).random((files, each, 2, 2, 10, 10), "f4")
    for i in range(files):
        (source / f"file-{i:04d}.bin").write_bytes(values[i].tobytes())
    with served(source) as (url, count):
        config = icechunk.RepositoryConfig.default()
        store = icechunk.http_store({"allow_http": "true"})
        config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(url, store))
        access = icechunk.containers_credentials({url: icechunk.Credentials.HttpAccess()})
        storage = storage_in(folder)
        session = icechunk.Repository.create(storage, config, access).writable_session("main")
        shape = files * each, 20, 20
        zarr.create_array(
            session.store, name="v", shape=shape, chunks=(1, 10, 10), dtype="f4", compressors=None
        )
        rows = np.arange(shape[0] * 4, dtype="u8")
        locations = [f"{url}file-{i // (each * 4):04d}.bin" for i in range(len(rows))]
        session.store.set_virtual_refs_arr(
            "v", (shape[0], 2, 2), locations, rows % (each * 4) * 400, np.full(len(rows), 400, "u8")
        )
        session.commit("references")
        array = zarr.open_array(
            icechunk.Repository.open(storage, None, access).readonly_session("main").store,
            path="v",
            mode="r",
        )
        before = count()
        with steps.timed("read a point"):
            found = array[:, 3, 17]
        steps.numbers["GETs"] = count() - before
    assert np.array_equal(found, values[:, :, 0, 1, 3, 7].ravel())


def append(folder: Path, steps: Steps) -> None:
    """Ten chunks more for an array of a million."""
    session = _bucket(folder).writable_session("main")
    count = scaled(1_000_000)
    _array(session, "v", (count,))
    locations = ["s3://bucket/file"] * count
    offsets, lengths = np.arange(count, dtype="u8") * 4, np.full(count, 4, "u8")
    session.store.set_virtual_refs_arr("v", (count,), locations, offsets, lengths)
    session.commit("references")
    steps.fresh(folder, "append_cold")


def append_cold(folder: Path, steps: Steps) -> None:
    session = icechunk.Repository.open(storage_in(folder)).writable_session("main")
    with steps.timed("append ten, commit"):
        array = zarr.open_array(session.store, path="v", mode="r+")
        count = array.shape[0]
        array.resize((count + 10,))
        offsets, lengths = np.zeros(10, "u8"), np.full(10, 4, "u8")
        session.store.set_virtual_refs_arr(
            "v", (10,), ["s3://bucket/new"] * 10, offsets, lengths, arr_offset=(count,)
        )
        session.commit("ten more")


def forks(folder: Path, steps: Steps) -> None:
    """64 forks of 20,000 references each come back."""
    each = scaled(20_000)
    session = _bucket(folder).writable_session("main")
    _array(session, "v", (64 * each,))
    session.commit("an array")
    session = icechunk.Repository.open(storage_in(folder)).writable_session("main")
    offsets, lengths = np.arange(each, dtype="u8"), np.full(each, 4, "u8")
    sent = []
    for i in range(64):
        fork = pickle.loads(pickle.dumps(session.fork()))
        locations = [f"s3://bucket/file-{i}"] * each
        fork.store.set_virtual_refs_arr(
            "v", (each,), locations, offsets, lengths, arr_offset=(i * each,)
        )
        sent.append(pickle.dumps(fork))
    steps.numbers["bytes sent"] = sum(map(len, sent))
    with steps.timed("unpickle, merge, commit"):
        session.merge(*map(pickle.loads, sent))
        session.commit("64 forks")


def _millions(folder: Path, steps: Steps, count: int) -> None:
    session = _bucket(folder).writable_session("main")
    _array(session, "v", (count,))
    names = [f"s3://bucket/file-{i:04d}" for i in range(1000)]
    locations = [name for name in names for _ in range(-(-count // 1000))][:count]
    offsets, lengths = np.arange(count, dtype="u8") * 4, np.full(count, 4, "u8")
    with steps.timed("set"):
        session.store.set_virtual_refs_arr("v", (count,), locations, offsets, lengths)
    with steps.timed("commit"):
        session.commit("references")
    steps.fresh(folder, "distinct_references_cold")


def ten_million(folder: Path, steps: Steps) -> None:
    """Ten million references into a thousand files."""
    _millions(folder, steps, scaled(10_000_000))


def thirty_million(folder: Path, steps: Steps) -> None:
    """Thirty million references into a thousand files."""
    _millions(folder, steps, scaled(30_000_000))


# -- commits --------------------------------------------------------------------------------
def long_history(folder: Path, steps: Steps) -> None:
    """2,000 commits: the last 20 of them, and all as a list."""
    count = scaled(2000)
    repository = icechunk.Repository.create(storage_in(folder))
    session = repository.writable_session("main")
    zarr.create_group(session.store)
    session.commit("a group")
    with without_sync():
        for i in range(count - 20):
            session = repository.writable_session("main")
            zarr.open_group(session.store).attrs["i"] = i
            session.commit(f"commit {i}", metadata={"run": i})
    for i in range(20):
        session = repository.writable_session("main")
        zarr.open_group(session.store).attrs["i"] = -i
        with steps.timed("last 20 commits"):
            session.commit(f"commit {i}", metadata={"run": i})
    steps.fresh(folder, "long_history_cold")


@contextmanager
def without_sync() -> Iterator[None]:
    """Do not wait for the disk while a workload is prepared."""
    fsync, os.fsync = os.fsync, lambda fd: None
    try:
        yield
    finally:
        os.fsync = fsync


def long_history_cold(folder: Path, steps: Steps) -> None:
    with steps.timed("open and ancestry"):
        repository = icechunk.Repository.open(storage_in(folder))
        assert sum(1 for _ in repository.ancestry(branch="main")) == max(scaled(2000), 20) + 2


def all_day(folder: Path, steps: Steps) -> None:
    """300 commits of one chunk each by one process."""
    count = scaled(300)
    repository = icechunk.Repository.create(storage_in(folder))
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(count,), chunks=(1,), dtype="i4")
    session.commit("an array")
    for i in range(count):
        if i == count // 3:
            before = resident()
        session = repository.writable_session("main")
        zarr.open_array(session.store, path="a", mode="r+")[i] = i
        with steps.timed("commits"):
            session.commit(f"commit {i}")
    steps.numbers["grown by MiB"] = resident() - before


# -- chunks ---------------------------------------------------------------------------------
def _chunks(folder: Path, steps: Steps, count: int, items: int, *, pack: bool = False) -> None:
    if CLIENT == "zarr":
        store: Any = plain_store(folder)
    else:
        session = icechunk.Repository.create(storage_in(folder)).writable_session(
            "main", **({"pack": True} if pack else {})
        )
        store = session.store
    values = np.random.default_rng(0).random(count * items, dtype="f4")
    array = zarr.create_array(
        store, name="a", shape=(count * items,), chunks=(items,), dtype="f4", compressors=None
    )
    with steps.timed("write, commit"):
        array[:] = values
        if CLIENT == "icechunk":
            session.commit("chunks")
    read = _opened(folder)
    with steps.timed("read"):
        found = read[:]
    assert np.array_equal(found, values)
    if items > 1 << 16:
        return
    some = np.random.default_rng(1).integers(0, count, 200)
    read = _opened(folder)
    assert read[0] == values[0]
    with steps.timed("200 at random"):
        for i in some:
            read[i * items]


def _opened(folder: Path) -> Any:
    if CLIENT == "zarr":
        return zarr.open_array(plain_store(folder), path="a", mode="r")
    repository = icechunk.Repository.open(storage_in(folder))
    return zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")


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
        with steps.timed(f"read {size}"):
            store = repository.readonly_session("main").store
            read = zarr.open_array(store, path=size, mode="r")[:]
        assert np.array_equal(read, values)
        repository = icechunk.Repository.open(storage)
        session = repository.writable_session("main")
        with steps.timed(f"write {size}"):
            zarr.open_array(session.store, path=size, mode="r+")[:] = values + 1
        with steps.timed(f"commit {size}"):
            session.commit("other chunks")


def small_chunks(folder: Path, steps: Steps) -> None:
    """20,000 chunks of 4 KiB."""
    _chunks(folder, steps, scaled(20_000), 1024)


def packed_chunks(folder: Path, steps: Steps) -> None:
    """The same, packed by this project."""
    ours = CLIENT == "icechunk" and hasattr(icechunk.Repository, "repack")
    _chunks(folder, steps, scaled(20_000), 1024, pack=ours)


def large_chunks(folder: Path, steps: Steps) -> None:
    """256 chunks of 4 MiB."""
    _chunks(folder, steps, scaled(256), 1 << 20)


def chunks_of_800_kb(folder: Path, steps: Steps) -> None:
    """256 chunks of 0.8 MB."""
    _chunks(folder, steps, scaled(256), 200_000)


def chunks_of_12_mb(folder: Path, steps: Steps) -> None:
    """32 chunks of 12.5 MB."""
    _chunks(folder, steps, scaled(32), 3_125_000)


def chunks_of_50_mb(folder: Path, steps: Steps) -> None:
    """8 chunks of 50 MB."""
    _chunks(folder, steps, scaled(8), 12_500_000)


def importing(folder: Path, steps: Steps) -> None:
    """What the import takes, with zarr loaded already, and then what the first name does."""
    steps.seconds.update(IMPORTS.seconds)
    steps.cpu.update(IMPORTS.cpu)


def _load() -> None:
    """Load what a program has loaded by its second repository."""
    session = icechunk.Repository.create(icechunk.in_memory_storage()).writable_session("main")
    zarr.create_array(session.store, name="a", shape=(1,), dtype="i1")[:] = 1
    session.commit("loaded")


if __name__ == "__main__":
    logging.disable()
    if CLIENT == "icechunk":
        _load()
    workload: Callable[[Path, Steps], None] = globals()[sys.argv[1]]
    measured = Steps()
    if len(sys.argv) > 3:
        workload(Path(sys.argv[3]), measured)
    else:
        with tempfile.TemporaryDirectory() as place:
            workload(Path(place), measured)
            files = [path for path in (Path(place) / "repository").rglob("*") if path.is_file()]
            if files:
                measured.numbers["objects"] = len(files)
                measured.numbers["stored bytes"] = sum(path.stat().st_size for path in files)
    if COUNTING:
        requests = sum(storage.requests for storage in COUNTING)
        measured.numbers["requests"] = measured.numbers.get("requests", 0) + requests
    print(json.dumps(measured.result()))
