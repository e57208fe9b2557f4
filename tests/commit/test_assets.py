"""The cache of metadata objects."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from icechunk import (
    FaultyStorage,
    MemoryStorage,
    Repository,
    SnapshotNotFoundError,
    StorageError,
)
from icechunk.commit.assets import Assets, _Cache
from icechunk.format.ids import decode_id
from icechunk.storage.base import Storage


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
