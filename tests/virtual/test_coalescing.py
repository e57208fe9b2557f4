"""Neighbouring ranges are read together, and nobody can tell by what comes back."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, strategies as st

from icechunk import (
    Repository,
    RepositoryConfig,
    VirtualChunkContainer,
    http_store,
    local_filesystem_store,
)
from icechunk.credentials import HttpAccess, LocalFileSystemAccess
from icechunk.errors import ObjectNotFoundError, PreconditionFailedError, StorageError
from icechunk.storage import CountingStorage, MemoryStorage, Storage
from icechunk.storage.base import GetResult
from icechunk.virtual.coalescing import MAX_GAP, MAX_REQUEST, Coalescer, Source
from tests.web_server import serving

SIZE = 4 * MAX_GAP
DATA = np.random.default_rng(0).integers(0, 256, SIZE, "u1").tobytes()


def storage(**objects: bytes) -> CountingStorage:
    inner = MemoryStorage()
    for key, data in objects.items():
        inner.put(key, data)
    return CountingStorage(inner)


async def fetch(source: Storage, *ranges: tuple[int, int], key: str = "f") -> list[bytes]:
    coalescer = Coalescer()
    got = await asyncio.gather(*(coalescer.get(Source(source, key), *r) for r in ranges))
    return [bytes(result.data) for result in got]


POSITIONS = st.integers(0, SIZE + 1000)
RANGES = st.lists(
    st.tuples(POSITIONS, st.integers(1, 5000)).map(lambda r: (r[0], r[0] + r[1])), min_size=1
)


def runs(ranges: list[tuple[int, int]]) -> int:
    """Return in how many pieces ranges fall apart where gaps are too wide."""
    count, reach = 0, -MAX_GAP - 1
    for start, end in sorted(ranges):
        count += start - reach > MAX_GAP
        reach = max(reach, end)
    return count


@given(RANGES)
def test_each_gets_its_bytes_with_no_more_requests_than_needed(
    ranges: list[tuple[int, int]],
) -> None:
    source = storage(f=DATA)
    got = asyncio.run(fetch(source, *ranges))
    assert got == [DATA[start:end] for start, end in ranges]
    assert source.requests == runs(ranges)
    wanted = sum(end - start for start, end in ranges)
    assert source.bytes_read <= wanted + MAX_GAP * len(ranges)


async def test_requests_are_bounded_in_size() -> None:
    half = MAX_REQUEST // 2
    data = bytes(3 * MAX_REQUEST)
    source = storage(f=data)
    got = await fetch(source, *[(i * half, (i + 1) * half) for i in range(5)])
    assert [len(x) for x in got] == [half] * 5
    assert source.requests == 3
    # one chunk is never cut
    await fetch(source, (0, MAX_REQUEST + 5), (MAX_REQUEST + 5, MAX_REQUEST + 9))
    assert source.requests == 5


async def test_files_and_versions_are_kept_apart() -> None:
    source = storage(f=DATA, g=DATA[::-1])
    etag = source.get("f").etag
    source.reset()
    coalescer = Coalescer()

    async def get(key: str, if_match: str | None) -> Any:
        return await coalescer.get(Source(source, key, if_match), 0, 10)

    results = await asyncio.gather(
        *(get("f", None), get("g", None), get("f", etag), get("f", '"old"'), get("h", None)),
        get("f", etag),
        return_exceptions=True,
    )
    datas = [bytes(r.data) if isinstance(r, GetResult) else type(r) for r in results]
    assert datas == [
        DATA[:10],
        DATA[::-1][:10],
        DATA[:10],
        PreconditionFailedError,
        ObjectNotFoundError,
        DATA[:10],
    ]
    assert source.requests == 5


async def test_one_that_no_longer_waits_does_not_disturb_the_others() -> None:
    source = storage(f=DATA)
    coalescer = Coalescer()
    tasks = [asyncio.create_task(coalescer.get(Source(source, "f"), i, i + 1)) for i in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [bytes(r.data) for r in results[1:] if isinstance(r, GetResult)] == [
        DATA[1:2],
        DATA[2:3],
    ]
    assert source.requests == 1


# -- through arrays ----------------------------------------------------------------------
CHUNKS, LENGTH = 40, 1000


def references(prefix: str, location: str, store: Any, lengths: int = LENGTH) -> Repository:
    """Return a repository with an array whose chunks follow each other in a file."""
    config = RepositoryConfig()
    config.set_virtual_chunk_container(VirtualChunkContainer(prefix, store))
    access = HttpAccess if prefix.startswith("http") else LocalFileSystemAccess
    repository = Repository.create(MemoryStorage(), config, {prefix: access})
    with repository.transaction("main", message="references") as target:
        zarr.create_array(
            target, name="a", shape=CHUNKS * LENGTH, chunks=LENGTH, dtype="u1", compressors=None
        )
        for i in range(CHUNKS):
            target.set_virtual_ref(f"a/c/{i}", location, offset=i * LENGTH, length=lengths)
    return repository


def test_an_array_takes_few_requests() -> None:
    values = np.frombuffer(DATA[: CHUNKS * LENGTH], "u1")
    with serving() as server, zarr.config.set({"async.concurrency": 10}):
        server.files["/d/f"] = values.tobytes()
        repository = references(server.url + "d/", server.url + "d/f", http_store())
        array = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")
        array[:LENGTH]  # the manifest is known now
        server.requests.clear()
        np.testing.assert_array_equal(array[:], values)
        asked = [headers["range"] for _, headers in server.requests]
        assert asked == [f"bytes={i * 10000}-{(i + 1) * 10000 - 1}" for i in range(4)]


async def test_each_chunk_has_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA[: 2 * LENGTH + 1])
    repository = references(
        tmp_path.as_uri() + "/", (tmp_path / "f").as_uri(), local_filesystem_store(str(tmp_path))
    )
    store = repository.readonly_session("main").store
    got = await asyncio.gather(*(store.get(f"a/c/{i}") for i in range(4)), return_exceptions=True)
    assert [b.to_bytes() for b in got[:2] if not isinstance(b, BaseException) and b] == [
        DATA[:LENGTH],
        DATA[LENGTH : 2 * LENGTH],
    ]
    for i, error in enumerate(got[2:], 2):
        assert isinstance(error, StorageError)
        assert f"chunk ({i},) of '/a'" in str(error)
        assert (tmp_path / "f").as_uri() in str(error)
        assert f"has only {1 if i == 2 else 0} of these {LENGTH} bytes" in str(error)


def test_missing_and_changed_files_name_file_and_chunk(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(DATA)
    os.utime(path, (10**9, 10**9))
    repository = references(
        tmp_path.as_uri() + "/", path.as_uri(), local_filesystem_store(str(tmp_path))
    )
    session = repository.writable_session("main")
    status = path.stat()
    etag = f"{status.st_ino:x}-{status.st_mtime_ns // 1000:x}-{status.st_size:x}"

    for i, checksum in enumerate((etag, datetime.fromtimestamp(10**9, UTC), None)):
        session.store.set_virtual_ref(
            f"a/c/{i}", path.as_uri(), offset=0, length=LENGTH, checksum=checksum
        )
    array = zarr.open_array(session.store, path="a", mode="r")
    assert array[: 3 * LENGTH].tobytes() == DATA[:LENGTH] * 3
    path.write_bytes(DATA[::-1])
    for i in range(2):
        with pytest.raises(StorageError, match="has changed") as caught:
            array[i * LENGTH]
        assert f"chunk ({i},) of '/a'" in str(caught.value)
        assert path.as_uri() in str(caught.value)
    assert array[2 * LENGTH : 3 * LENGTH].tobytes() == DATA[::-1][:LENGTH]
    path.unlink()
    with pytest.raises(StorageError, match=r"chunk \(2,\) of '/a'.*no such file"):
        array[2 * LENGTH]


def test_a_point_in_many_files_takes_few_requests() -> None:
    """A series at one point: thirty small chunks beside each other in each of a hundred files.

    As many of them are one request as zarr asks for at the same time.
    """
    files, each, size = 100, 30, 4
    values = np.arange(files * each, dtype="i4")
    with serving() as server, zarr.config.set({"async.concurrency": 10}):
        prefix = server.url + "d/"
        config = RepositoryConfig()
        config.set_virtual_chunk_container(VirtualChunkContainer(prefix, http_store()))
        repository = Repository.create(MemoryStorage(), config, {prefix: HttpAccess})
        session = repository.writable_session("main")
        zarr.create_array(
            session.store, name="v", shape=values.shape, chunks=(1,), dtype="i4", compressors=None
        )
        for i in range(files):
            server.files[f"/d/{i}"] = values[i * each : (i + 1) * each].tobytes()
        session.store.set_virtual_refs_arr(
            "v",
            values.shape,
            [f"{prefix}{i // each}" for i in range(files * each)],
            np.arange(files * each, dtype="u8") % each * size,
            np.full(files * each, size, "u8"),
        )
        session.commit("a hundred files")
        array = zarr.open_array(repository.readonly_session("main").store, path="v", mode="r")
        array[0]  # the manifest is known now
        server.requests.clear()
        np.testing.assert_array_equal(array[:], values)
        assert len(server.requests) == files * each // 10
