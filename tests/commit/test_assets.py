"""The cache of metadata objects."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Unpack

import numpy as np
import pytest
import zarr

from icechunk import (
    FaultyStorage,
    ManifestConfig,
    ManifestSplitCondition,
    ManifestSplitDimCondition,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    SnapshotNotFoundError,
    StorageError,
)
from icechunk.commit.assets import Assets, Batch, _Cache
from icechunk.config import ManifestSplittingConfig
from icechunk.format.ids import decode_id
from icechunk.storage import WrapperStorage
from icechunk.storage.base import BytesLike, GetOptions, GetResult, Storage


def assets_on(storage: Storage) -> Assets:
    return Assets(
        storage,
        max_snapshot_nodes=100,
        max_chunk_refs=100,
        compression_level=1,
        location_compression=None,
    )


def test_nothing_is_kept_of_what_could_not_be_loaded() -> None:
    cache: _Cache[bytes] = _Cache(100, len)

    def fail() -> bytes:
        raise ValueError("no")

    for number in range(50):
        with pytest.raises(ValueError, match="no"):
            cache.get(str(number).encode(), fail)
    assert not cache._making
    assert cache.get(b"0", lambda: b"value") == b"value"
    assert not cache._making


def test_a_value_is_loaded_once_for_many_threads() -> None:
    cache: _Cache[bytes] = _Cache(100, len)
    started, loads = threading.Event(), []

    def load() -> bytes:
        loads.append(1)
        started.wait(10)
        return b"value"

    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(cache.get, b"key", load) for _ in range(8)]
        started.set()
        assert {each.result() for each in found} == {b"value"}
    assert len(loads) == 1
    assert not cache._making


def test_who_waits_for_a_load_that_fails_tries_again() -> None:
    cache: _Cache[bytes] = _Cache(100, len)
    waiting, outcomes = threading.Event(), iter([False, True])

    def load() -> bytes:
        waiting.wait(10)
        if next(outcomes):
            return b"value"
        raise ValueError("no")

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(cache.get, b"key", load) for _ in range(2)]
        waiting.set()
        errors = [each.exception() for each in both]
    assert sorted(type(error) for error in errors if error is not None) == [ValueError]
    assert cache.peek(b"key") == b"value"
    assert not cache._making


def test_the_least_recently_used_goes_first() -> None:
    cache: _Cache[bytes] = _Cache(10, len)
    for key in (b"a", b"b"):
        cache.put(key, b"12345")
    assert cache.peek(b"a") is not None
    cache.put(b"c", b"12345")
    assert cache.peek(b"b") is None
    cache.put(b"large", b"x" * 11)
    assert cache.peek(b"large") is None
    assert cache.peek(b"a") == cache.peek(b"c") == b"12345"
    cache.forget(b"a")
    cache.forget(b"unknown")
    cache.put(b"d", b"12345")
    assert cache.peek(b"c") == cache.peek(b"d") == b"12345"


def test_a_snapshot_that_could_not_be_fetched_is_fetched_later() -> None:
    storage = FaultyStorage(MemoryStorage())
    (first,) = Repository.create(storage).ancestry(branch="main")
    assets = assets_on(storage)
    storage.fail("get", key="snapshots/")
    with pytest.raises(StorageError):
        assets.snapshot(decode_id(first.id))
    assert assets.snapshot(decode_id(first.id)).message == "Repository initialized"
    with pytest.raises(SnapshotNotFoundError, match="there is no snapshot"):
        assets.snapshot(b"x" * 12)
    assert not assets._snapshots._making


# -- what a commit stores at the same time ---------------------------------------------------
class Remote(WrapperStorage):
    """A storage whose puts and gets wait until so many are on their way."""

    def __init__(self, inner: Storage, together: int) -> None:
        super().__init__(inner)
        self.is_remote = True
        self.barrier = threading.Barrier(together)
        self.waits = False
        self.rounds: list[str] = []
        self.fetched: list[str] = []
        self.failing = ""

    def get(self, key: str, **options: Unpack[GetOptions]) -> GetResult:
        if self.waits and key.startswith("manifests/"):
            self.barrier.wait(30)
        self.fetched.append(key)
        return super().get(key, **options)

    def put(
        self, key: str, data: BytesLike, *, if_absent: bool = False, if_match: str | None = None
    ) -> str | None:
        folder = key.partition("/")[0]
        if self.waits and folder in ("manifests", "transactions", "snapshots"):
            self.barrier.wait(30)
        self.rounds.append(folder)
        if folder == self.failing:
            raise StorageError("no")
        return super().put(key, data, if_absent=if_absent, if_match=if_match)


def one_chunk(repository: Repository, value: int, *names: str) -> None:
    session = repository.writable_session("main")
    for name in names or ("a",):
        zarr.open_array(session.store, path=name, mode="r+")[0] = value
    session.commit("a value")


def with_arrays(storage: Storage, *names: str) -> Repository:
    repository = Repository.create(storage)
    session = repository.writable_session("main")
    for name in names:
        zarr.create_array(session.store, name=name, shape=(4,), chunks=(1,), dtype="i4")
    session.commit("arrays")
    return repository


def test_a_commit_stores_its_objects_at_the_same_time() -> None:
    storage = Remote(MemoryStorage(), 4)
    repository = with_arrays(storage, "a", "b")
    storage.rounds.clear()
    storage.waits = True
    one_chunk(repository, 1, "a", "b")
    assert Counter(storage.rounds[:4]) == {"manifests": 2, "transactions": 1, "snapshots": 1}
    # what makes them visible comes when all are there
    assert storage.rounds[4:] == ["repo"]
    storage.waits = False
    assert repository.verify(deep=True).ok


def test_manifests_of_an_array_are_fetched_at_the_same_time() -> None:
    storage = Remote(MemoryStorage(), 4)
    session = Repository.create(storage, one_manifest_for_each_chunk()).writable_session("main")
    zarr.create_array(session.store, name="a", shape=(4,), chunks=(1,), dtype="i4")[:] = [
        1,
        2,
        3,
        4,
    ]
    session.commit("chunks")
    session = Repository.open(storage).readonly_session("main")
    storage.waits = True
    assert session.chunk_refs("/a").coords[:, 0].tolist() == [0, 1, 2, 3]
    storage.fetched.clear()
    # they are cached
    assert len(session.chunk_refs("/a")) == 4 and not storage.fetched


def one_manifest_for_each_chunk() -> RepositoryConfig:
    condition, dimension = ManifestSplitCondition, ManifestSplitDimCondition
    splitting = ManifestSplittingConfig.from_dict({condition.AnyArray(): {dimension.Any(): 1}})
    return RepositoryConfig(manifest=ManifestConfig(splitting=splitting))


def test_a_commit_to_a_folder_takes_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    repository = with_arrays(MemoryStorage(), "a")
    session = repository.writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+")[0] = 1
    started: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", lambda self: started.append(self.name))
    session.commit("a value")
    assert not started


@pytest.mark.parametrize("folder", ["manifests", "transactions", "snapshots"])
def test_nothing_is_published_where_one_of_them_fails(folder: str) -> None:
    storage = Remote(MemoryStorage(), 1)
    repository = with_arrays(storage, "a")
    session = repository.writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+")[0] = 1
    storage.failing, storage.rounds = folder, []
    with pytest.raises(StorageError, match="no"):
        session.commit("a value")
    assert "repo" not in storage.rounds
    storage.failing = ""
    session.commit("a value")
    found = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")
    assert found[0] == 1
    assert repository.verify(deep=True).ok


def test_what_is_large_does_not_wait() -> None:
    """A batch holds no more than so many bytes."""
    storage = Remote(MemoryStorage(), 1)
    batch = Batch(storage, 8)
    data = np.random.default_rng(0).bytes(3 << 20)
    for number in range(4):
        batch.put(f"manifests/{number}", data)
    assert storage.rounds == ["manifests"] * 2
    batch.send()
    assert storage.rounds == ["manifests"] * 4
    batch.send()
    assert storage.rounds == ["manifests"] * 4
