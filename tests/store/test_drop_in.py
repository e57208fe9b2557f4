"""What other programs expect of a store: its private flags, its folders, what it keeps."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from icechunk import (
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    Repository,
    SessionStateError,
    in_memory_storage,
    local_filesystem_storage,
)
from icechunk.store import IcechunkStore

PROTOTYPE = default_buffer_prototype()


def buffer(data: bytes) -> Any:
    return PROTOTYPE.buffer.from_bytes(data)


async def _all(items: AsyncIterator[str]) -> list[str]:
    return sorted([item async for item in items])


def below(store: IcechunkStore, prefix: str) -> list[str]:
    return sync(_all(store.list_prefix(prefix)))


def names(store: IcechunkStore, prefix: str) -> list[str]:
    return sync(_all(store.list_dir(prefix)))


@pytest.fixture
def repository() -> Repository:
    repo = Repository.create(in_memory_storage())
    session = repo.writable_session("main")
    group = zarr.create_group(session.store)
    for path, value in (("foo/x", 1), ("foobar", 2)):
        group.create_array(path, shape=(4,), chunks=(2,), dtype="i4")[:] = value
    session.commit("arrays")
    return repo


def flags(store: IcechunkStore) -> tuple[bool, bool, bool]:
    return store._read_only, store.read_only, store._is_open


def test_flags_from_the_beginning(repository: Repository) -> None:
    reader = repository.readonly_session("main").store
    session = repository.writable_session("main")
    writer = session.store
    assert flags(reader) == (True, True, True)
    assert flags(writer) == (False, False, True)
    # Zarr opens these
    assert flags(writer.with_read_only(True)) == (True, True, False)
    assert flags(reader.with_read_only(False)) == (True, True, False)
    zarr.open_group(writer).attrs["a"] = 1
    session.commit("attribute")
    assert flags(writer) == (True, True, True)
    fork = repository.writable_session("main").fork().store
    for store in (reader, fork, fork.with_read_only(True)):
        copied = pickle.loads(pickle.dumps(store))
        assert flags(copied) == flags(store)
        assert copied == store


@pytest.mark.parametrize(
    ("prefix", "keys"),
    [
        ("foo", ["foo/x/c/0", "foo/x/c/1", "foo/x/zarr.json", "foo/zarr.json"]),
        ("foo/", ["foo/x/c/0", "foo/x/c/1", "foo/x/zarr.json", "foo/zarr.json"]),
        ("fo", []),
        ("foo/x", ["foo/x/c/0", "foo/x/c/1", "foo/x/zarr.json"]),
        ("foo/x/c", ["foo/x/c/0", "foo/x/c/1"]),
        ("foo/x/c/1", ["foo/x/c/1"]),
        ("foo/x/zarr.json", ["foo/x/zarr.json"]),
        ("foobar", ["foobar/c/0", "foobar/c/1", "foobar/zarr.json"]),
        ("nothing/zarr.json", []),
    ],
)
def test_a_prefix_is_a_folder(repository: Repository, prefix: str, keys: list[str]) -> None:
    assert below(repository.readonly_session("main").store, prefix) == keys


def test_chunks_without_bytes_are_refused(repository: Repository) -> None:
    store = repository.writable_session("main").store
    calls: list[Callable[[], Any]] = [
        lambda: sync(store.set("foo/x/c/0", buffer(b""))),
        lambda: store.set_sync("foo/x/c/0", buffer(b"")),
        lambda: sync(store.set_partial_values([("foobar/c/9", 0, b"")])),
    ]
    for call in calls[:2]:
        with pytest.raises(InvalidInputError, match="delete the chunk instead") as info:
            call()
        assert info.value.kind == ErrorKind.ZERO_LENGTH_CHUNK
    with pytest.raises(IcechunkError):
        calls[2]()
    assert zarr.open_array(store, path="foo/x")[:].tolist() == [1] * 4


def test_nodes_below_an_array_are_kept(tmp_path: Any) -> None:
    repository = Repository.create(local_filesystem_storage(str(tmp_path)))
    session = repository.writable_session("main")
    store = session.store
    group = zarr.create_group(store)
    group.create_array("a/b/c", shape=(3,), chunks=(3,), dtype="i4")[:] = [1, 2, 3]
    document = sync(store.get("a/b/c/zarr.json", PROTOTYPE))
    # a group with members becomes an array, and an array gets a member
    sync(store.set("a/b/zarr.json", document))
    sync(store.set("a/b/c/d/zarr.json", document))
    sync(store.set("a/b/c/d/c/0", sync(store.get("a/b/c/c/0", PROTOTYPE))))
    expected = ["a/b/c/c/0", "a/b/c/d/c/0", "a/b/c/d/zarr.json", "a/b/c/zarr.json"]
    expected += ["a/b/zarr.json", "a/zarr.json", "zarr.json"]

    def check(store: IcechunkStore) -> None:
        assert below(store, "") == expected
        assert names(store, "a/b") == ["c", "zarr.json"]
        assert names(store, "a/b/c") == ["c", "d", "zarr.json"]
        for path in ("a/b/c", "a/b/c/d"):
            assert np.array_equal(zarr.open_array(store, path=path, mode="r")[:], [1, 2, 3])
        assert zarr.open_array(store, path="a/b", mode="r")[:].tolist() == [0, 0, 0]

    check(store)
    session.commit("below arrays")
    check(repository.readonly_session("main").store)
    fork_of = repository.writable_session("main")
    fork = fork_of.fork()
    sync(fork.store.set("a/b/c/e/zarr.json", document))
    fork_of.merge(pickle.loads(pickle.dumps(fork)), fork_of)
    fork_of.commit("merged")
    assert "a/b/c/e/zarr.json" in below(repository.readonly_session("main").store, "a/b/c")
    # an array goes alone, as in the official client; a folder goes whole
    session = repository.writable_session("main")
    sync(session.store.delete("a/b/c/zarr.json"))
    left = ["a/b/c/d/c/0", "a/b/c/d/zarr.json", "a/b/c/e/zarr.json"]
    assert below(session.store, "a/b/c") == left
    session.commit("one of them")
    session = repository.writable_session("main")
    assert below(session.store, "a/b/c") == left
    assert zarr.open_array(session.store, path="a/b/c/d", mode="r")[:].tolist() == [1, 2, 3]
    sync(session.store.delete_dir("a/b"))
    assert below(session.store, "") == ["a/zarr.json", "zarr.json"]


def test_a_session_that_cannot_be_pickled_raises_a_value_error(repository: Repository) -> None:
    session = repository.writable_session("main")
    for it in (session, session.store):
        with pytest.raises(ValueError, match="cannot be pickled") as info:
            pickle.dumps(it)
        assert isinstance(info.value, SessionStateError)
        assert info.value.kind == ErrorKind.PICKLE


def test_total_chunks_storage_is_deprecated(repository: Repository) -> None:
    with pytest.warns(DeprecationWarning, match="chunk_storage_stats") as caught:
        total = repository.total_chunks_storage()
    assert total == repository.chunk_storage_stats().native_bytes
    assert caught[0].filename == __file__


def test_default_settings_are_filled_in(tmp_path: Any) -> None:
    for storage in (in_memory_storage(), local_filesystem_storage(str(tmp_path))):
        settings = storage.default_settings()
        assert settings.concurrency is not None
        assert settings.concurrency.max_concurrent_requests_for_object == 5
        assert settings.retries is not None
        assert settings.retries.max_tries == 1
