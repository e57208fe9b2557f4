"""Virtual chunks beside each other in one file: read together, and each for itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import zarr

from icechunk import (
    Repository,
    RepositoryConfig,
    VirtualChunkContainer,
    containers_credentials,
    s3_credentials,
    s3_store,
)
from icechunk.storage import LatencyStorage, MemoryStorage, ObjectStorage
from icechunk.virtual import coalescing
from tests.servers import S3Server

CHUNKS, LENGTH = 1000, 20_000


@contextmanager
def answering_after(milliseconds: int) -> Iterator[None]:
    """Delay every asynchronous read of an object store, as a distance would."""
    original = ObjectStorage.get_async

    async def slow(self, *arguments, **options):  # type: ignore[no-untyped-def]
        await far.before_async("get", (), 0)
        return await original(self, *arguments, **options)

    far = LatencyStorage(MemoryStorage(), read_latency_ms=milliseconds)
    ObjectStorage.get_async = slow  # type: ignore[method-assign]
    try:
        yield
    finally:
        ObjectStorage.get_async = original  # type: ignore[method-assign]


def test_coalesced_reads(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).integers(0, 256, CHUNKS * LENGTH, "u1")
    s3_server.storage("files").put("f", data.tobytes())
    prefix = f"s3://{s3_server.bucket}/files/"
    config = RepositoryConfig()
    store = s3_store(region=s3_server.region, endpoint_url=s3_server.endpoint_url, allow_http=True)
    config.set_virtual_chunk_container(VirtualChunkContainer(prefix, store))
    keys = s3_credentials(
        access_key_id=s3_server.access_key_id, secret_access_key=s3_server.secret_access_key
    )
    repository = Repository.create(MemoryStorage(), config, containers_credentials({prefix: keys}))
    with repository.transaction("main", message="references") as target:
        zarr.create_array(
            target, name="a", shape=len(data), chunks=LENGTH, dtype="u1", compressors=None
        )
        for i in range(CHUNKS):
            target.set_virtual_ref(f"a/c/{i}", prefix + "f", offset=i * LENGTH, length=LENGTH)
    array = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")
    array[0]
    for latency, concurrency in ((0, 10), (20, 10), (20, 100)):
        seconds = []
        for gap in (coalescing.MAX_GAP, -1):
            monkeypatch.setattr(coalescing, "MAX_GAP", gap)
            with answering_after(latency), zarr.config.set({"async.concurrency": concurrency}):
                begin = time.perf_counter()
                np.testing.assert_array_equal(array[:], data)
                seconds.append(time.perf_counter() - begin)
            monkeypatch.undo()
        together, apart = seconds
        print(
            f"\n{CHUNKS} virtual chunks of {LENGTH} bytes, {latency} ms away, "
            f"{concurrency} at a time: "
            f"{together:.2f} s together, {apart:.2f} s each for itself, "
            f"{apart / together:.1f} times as fast"
        )
