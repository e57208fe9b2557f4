"""The early Icechunk API: one stateful store with its configuration classes.

Each class, method, argument, default and documented behaviour of it, in the order of its
reference. Where zarr-python's Store interface has moved on, both ways of calling work.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import threading
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, cpu, default_buffer_prototype

import icechunk
from icechunk import (
    AlreadyExistsError,
    ChunkType,
    ConflictError,
    IcechunkStore,
    InvalidInputError,
    NodeNotFoundError,
    ReadOnlyError,
    RefNotFoundError,
    Repository,
    RepositoryNotFoundError,
    S3Credentials,
    S3StaticCredentials,
    SessionStateError,
    SnapshotMetadata,
    SnapshotNotFoundError,
    StorageConfig,
    StoreConfig,
    VirtualRefConfig,
)
from icechunk.storage import GetResult, LocalStorage, WrapperStorage
from tests.servers import S3Server

B = cpu.Buffer.from_bytes
PROTOTYPE = default_buffer_prototype()
FIRST = "1CECHNKREP0F1RSTCMT0"
GROUP = B(b'{"zarr_format":3,"node_type":"group"}')


@pytest.fixture
def place(tmp_path: Path) -> StorageConfig:
    return StorageConfig.filesystem(str(tmp_path / "repository"))


@pytest.fixture
def store(place: StorageConfig) -> IcechunkStore:
    return IcechunkStore.create(place)


@pytest.fixture
def array(store: IcechunkStore) -> zarr.Array[Any]:
    """An uncommitted array of four chunks of which two have values."""
    group = zarr.create_group(store)
    array = group.create_array("a", shape=(4,), chunks=(1,), dtype="u1", compressors=None)
    array[:2] = [10, 11]
    return array


def values(store: IcechunkStore) -> list[int]:
    found: list[int] = zarr.open_array(store, path="a", mode="r")[:].tolist()
    return found


def write(store: IcechunkStore, value: int, index: int = 0) -> None:
    zarr.open_array(store, path="a", mode="r+")[index] = value


async def listed(keys: AsyncGenerator[str, None]) -> list[str]:
    return sorted([key async for key in keys])


# == IcechunkStore: opening ==============================================================
def test_names_are_exported() -> None:
    for name in (
        "IcechunkStore",
        "StorageConfig",
        "StoreConfig",
        "VirtualRefConfig",
        "S3Credentials",
        "SnapshotMetadata",
    ):
        assert name in icechunk.__all__
    assert issubclass(IcechunkStore, Store)


async def test_open(place: StorageConfig) -> None:
    """`await IcechunkStore.open(...)` does what `open_or_create` does; Zarr calls it."""
    store = await IcechunkStore.open(storage=place, mode="w")
    assert not store.read_only
    assert store._is_open
    with pytest.raises(ValueError, match="already"):
        await IcechunkStore.open(storage=place, mode="w-")


@pytest.mark.parametrize("arguments", [{}, {"mode": "a"}, {"mode": "w", "config": StoreConfig()}])
def test_open_or_create_without_storage(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="storage is required"):
        IcechunkStore.open_or_create(**arguments)


def test_open_or_create_defaults_to_mode_r(place: StorageConfig) -> None:
    with pytest.raises(ValueError, match="no Icechunk repository"):
        IcechunkStore.open_or_create(storage=place)
    IcechunkStore.create(place)
    store = IcechunkStore.open_or_create(storage=place)
    assert store.read_only
    assert store._is_open


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_open_or_create_in_modes_that_only_open(place: StorageConfig, mode: Any) -> None:
    with pytest.raises(RepositoryNotFoundError):
        IcechunkStore.open_or_create(storage=place, mode=mode)
    IcechunkStore.create(place)
    store = IcechunkStore.open_or_create(storage=place, mode=mode)
    assert store.read_only == (mode == "r")


def test_open_or_create_in_mode_a(place: StorageConfig) -> None:
    """Creates what is not there, and keeps what is."""
    store = IcechunkStore.open_or_create(storage=place, mode="a")
    zarr.create_group(store)
    store.commit("group")
    again = IcechunkStore.open_or_create(storage=place, mode="a")
    assert not again.read_only
    assert again.snapshot_id == store.snapshot_id
    assert again._is_open


async def test_open_or_create_in_mode_w(place: StorageConfig) -> None:
    """Creates what is not there; what is there begins empty, and its history stays."""
    store = IcechunkStore.open_or_create(storage=place, mode="w")
    zarr.create_group(store)
    commit = store.commit("group")
    again = IcechunkStore.open_or_create(storage=place, mode="w")
    assert await again.empty()
    assert again.has_uncommitted_changes
    assert again.snapshot_id == commit
    other = IcechunkStore.open_or_create(storage=place, mode="r")
    assert not await other.empty()


def test_open_or_create_in_mode_w_minus(place: StorageConfig) -> None:
    """Creates, and refuses what is there."""
    store = IcechunkStore.open_or_create(storage=place, mode="w-")
    assert not store.read_only
    with pytest.raises(ValueError, match="already") as refused:
        IcechunkStore.open_or_create(storage=place, mode="w-")
    assert isinstance(refused.value, AlreadyExistsError)


def test_open_or_create_passes_the_config_on(place: StorageConfig) -> None:
    for mode in ("w-", "a", "w", "r+", "r"):
        config = StoreConfig(inline_chunk_threshold_bytes=7)
        store = IcechunkStore.open_or_create(storage=place, mode=mode, config=config)
        assert store.session.config.inline_chunk_threshold_bytes == 7


def test_the_constructor_is_not_for_users() -> None:
    nothing: Any = None
    with pytest.raises(ValueError, match="open_existing"):
        IcechunkStore(nothing)


def test_open_existing_defaults(place: StorageConfig, store: IcechunkStore) -> None:
    """mode="r", config=None; only "r" is read-only."""
    parameters = inspect.signature(IcechunkStore.open_existing).parameters
    assert list(parameters)[:3] == ["storage", "mode", "config"]
    assert parameters["mode"].default == "r"
    assert parameters["config"].default is None
    assert IcechunkStore.open_existing(place).read_only
    for mode in ("r+", "a", "w", "w-"):
        assert not IcechunkStore.open_existing(place, mode).read_only


def test_open_existing_where_there_is_nothing(place: StorageConfig) -> None:
    for mode in ("r", "a"):
        with pytest.raises(ValueError, match=r"no Icechunk repository at .*create") as refused:
            IcechunkStore.open_existing(place, mode)
        assert isinstance(refused.value, FileNotFoundError)


def test_open_existing_that_is_damaged_says_so(place: StorageConfig, store: IcechunkStore) -> None:
    """Only a missing repository is reported as missing."""
    storage = place.storage()
    storage.put("repo", b"nonsense")
    with pytest.raises(icechunk.FormatError, match="repo"):
        IcechunkStore.open_existing(place)


def test_create_defaults(place: StorageConfig) -> None:
    """mode="w", config=None; on the branch main, at the first snapshot."""
    parameters = inspect.signature(IcechunkStore.create).parameters
    assert list(parameters)[:3] == ["storage", "mode", "config"]
    assert parameters["mode"].default == "w"
    assert parameters["config"].default is None
    store = IcechunkStore.create(place)
    assert not store.read_only
    assert store.branch == "main"
    assert store.snapshot_id == FIRST


def test_create_over_a_repository(place: StorageConfig, store: IcechunkStore) -> None:
    with pytest.raises(AlreadyExistsError, match="already"):
        IcechunkStore.create(place)


def test_create_takes_mode_and_config(place: StorageConfig) -> None:
    store = IcechunkStore.create(place, "r", StoreConfig(get_partial_values_concurrency=3))
    assert store.read_only
    assert Repository.open(place.storage()).config.get_partial_values_concurrency == 3


def sent(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


# == with_mode, equality, pickling =======================================================
def test_with_mode(store: IcechunkStore, array: zarr.Array[Any]) -> None:
    """A new store of the same type at the same place, not opened."""
    reader = store.with_mode("r")
    assert type(reader) is type(store)
    assert reader is not store
    assert not reader._is_open
    assert reader.read_only
    assert not store.read_only
    assert values(reader) == values(store) == [10, 11, 0, 0]
    with pytest.raises(ReadOnlyError):
        reader.sync_clear()
    writer = reader.with_mode("r+")
    assert not writer.read_only
    write(writer, 5)
    assert values(store)[0] == 5


def test_with_mode_of_a_store_that_was_opened_to_read(
    place: StorageConfig, store: IcechunkStore
) -> None:
    reader = IcechunkStore.open_existing(place)
    for mode in ("r+", "a", "w", "w-"):
        writer = reader.with_mode(mode)
        assert not writer.read_only
        assert writer.branch == "main"
        assert writer.snapshot_id == reader.snapshot_id
    assert reader.read_only


def test_equality(place: StorageConfig, store: IcechunkStore, tmp_path: Path) -> None:
    same = IcechunkStore.open_existing(place, "r+")
    assert store == same
    assert store != IcechunkStore.open_existing(place, "r")
    assert store != IcechunkStore.create(StorageConfig.filesystem(str(tmp_path / "other")))
    assert store != "a store"
    zarr.create_group(store)
    assert store != same
    zarr.create_group(same)
    assert store == same


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_pickling_keeps_mode_and_place(
    place: StorageConfig, store: IcechunkStore, array: zarr.Array[Any], mode: Any
) -> None:
    store.commit("array")
    original = IcechunkStore.open_existing(place, mode)
    copy = pickle.loads(pickle.dumps(original))
    assert copy == original
    assert copy.read_only == original.read_only == (mode == "r")
    assert copy.snapshot_id == original.snapshot_id
    assert copy.branch == original.branch == "main"
    assert values(copy) == values(original)


def test_pickling_takes_uncommitted_changes_along(
    store: IcechunkStore, array: zarr.Array[Any]
) -> None:
    """The copy works for the original: its changes come back as bytes."""
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.has_uncommitted_changes
    assert values(copy) == [10, 11, 0, 0]
    write(copy, 12, 2)
    assert copy.has_uncommitted_changes
    assert values(store) == [10, 11, 0, 0]
    with pytest.raises(SessionStateError, match="commits are not allowed"):
        copy.commit("not from here")
    store.distributed_commit("together", [copy.change_set_bytes()])
    assert values(store) == [10, 11, 12, 0]


def test_a_copy_without_changes(store: IcechunkStore, array: zarr.Array[Any]) -> None:
    """It has none after a commit, and drops those that it came with by `reset`."""
    changed = sent(store)
    changed.reset()
    assert not changed.has_uncommitted_changes
    assert changed.change_set_bytes() == sent(changed).change_set_bytes()
    with pytest.raises(FileNotFoundError):
        zarr.open_array(changed, path="a", mode="r")
    assert store.has_uncommitted_changes
    store.commit("array")
    unchanged = sent(store)
    assert not unchanged.has_uncommitted_changes
    unchanged.reset()
    assert values(unchanged) == values(store)


def test_pickling_a_store_in_memory() -> None:
    store = IcechunkStore.create(StorageConfig.memory("pickled"))
    assert pickle.loads(pickle.dumps(store)) == store


# == where the store is ==================================================================
def test_snapshot_id(store: IcechunkStore) -> None:
    assert store.snapshot_id == FIRST
    zarr.create_group(store)
    assert store.snapshot_id == FIRST
    commit = store.commit("group")
    assert store.snapshot_id == commit


def test_branch(store: IcechunkStore) -> None:
    """None where a tag or a snapshot is checked out."""
    assert store.branch == "main"
    store.tag("v0", FIRST)
    store.checkout(tag="v0")
    assert store.branch is None
    store.checkout(branch="main")
    assert store.branch == "main"
    store.checkout(snapshot_id=FIRST)
    assert store.branch is None


@pytest.fixture
def history(store: IcechunkStore, array: zarr.Array[Any]) -> list[str]:
    """Two commits, the first of them tagged, and a branch at it."""
    one = store.commit("one")
    store.tag("v1", one)
    store.new_branch("dev")
    store.checkout(branch="main")
    write(store, 20)
    return [one, store.commit("two")]


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_checkout(store: IcechunkStore, history: list[str], how: str) -> None:
    """`checkout` and `async_checkout`: a snapshot, a branch, or a tag."""

    async def go(*args: Any, **kwargs: Any) -> None:
        if how == "sync":
            store.checkout(*args, **kwargs)
        else:
            await store.async_checkout(*args, **kwargs)

    for arguments, expected in (
        ({"snapshot_id": history[0]}, 10),
        ({"branch": "main"}, 20),
        ({"tag": "v1"}, 10),
        ({"branch": "dev"}, 10),
    ):
        await go(**arguments)
        observed = await store.get("a/c/0")
        assert observed is not None
        assert observed.to_bytes() == bytes([expected])
    # in the order of the reference
    await go(history[1])
    assert store.snapshot_id == history[1]
    await go(None, "dev")
    assert store.branch == "dev"
    await go(None, None, "v1")
    assert store.snapshot_id == history[0]

    for wrong in (
        {"snapshot_id": history[0], "branch": "main"},
        {"snapshot_id": history[0], "tag": "v1"},
        {"branch": "main", "tag": "v1"},
        {"snapshot_id": history[0], "branch": "main", "tag": "v1"},
    ):
        with pytest.raises(ValueError, match="only one of snapshot_id, branch"):
            await go(**wrong)
    with pytest.raises(ValueError, match="one must be"):
        await go()
    with pytest.raises(RefNotFoundError):
        await go(branch="nothing")
    with pytest.raises(RefNotFoundError):
        await go(tag="nothing")
    with pytest.raises(SnapshotNotFoundError):
        await go(snapshot_id="0" * 20)
    with pytest.raises(InvalidInputError):
        await go(snapshot_id="nonsense")
    # none of these moved the store
    assert store.snapshot_id == history[0]


def test_checkout_of_a_branch_leads_to_its_newest_snapshot(
    place: StorageConfig, store: IcechunkStore, history: list[str]
) -> None:
    other = IcechunkStore.open_existing(place, "r+")
    write(other, 30)
    newest = other.commit("three")
    assert values(store)[0] == 20
    store.checkout(branch="main")
    assert store.snapshot_id == newest
    assert values(store)[0] == 30


def test_commits_follow_the_branch_that_is_checked_out(
    store: IcechunkStore, history: list[str]
) -> None:
    store.checkout(branch="dev")
    write(store, 40)
    commit = store.commit("on dev")
    write(store, 41)
    assert [entry.id for entry in store.ancestry()][:2] == [commit, history[0]]
    newest = store.commit("on dev again")
    store.checkout(branch="main")
    assert store.snapshot_id == history[1]
    store.checkout(branch="dev")
    assert store.snapshot_id == newest


@pytest.mark.parametrize("arguments", [{"tag": "v1"}, {"snapshot_id": FIRST}])
def test_no_commits_on_a_tag_or_snapshot(
    store: IcechunkStore, history: list[str], arguments: dict[str, Any]
) -> None:
    store.checkout(**arguments)
    assert store.read_only
    with pytest.raises(ReadOnlyError):
        store.sync_clear()
    with pytest.raises(SessionStateError, match="no branch is checked out"):
        store.commit("nowhere")
    with pytest.raises(SessionStateError, match="no branch is checked out"):
        store.distributed_commit("nowhere", [])
    # which holds until a branch is
    store.checkout(branch="main")
    assert not store.read_only


def test_checkout_does_not_make_a_reader_a_writer(
    place: StorageConfig, store: IcechunkStore, history: list[str]
) -> None:
    reader = IcechunkStore.open_existing(place, "r")
    for arguments in ({"branch": "dev"}, {"tag": "v1"}, {"branch": "main"}):
        reader.checkout(**arguments)
        assert reader.read_only
        with pytest.raises(ReadOnlyError):
            reader.sync_clear()


def test_checkout_with_uncommitted_changes(store: IcechunkStore, history: list[str]) -> None:
    write(store, 50)
    with pytest.raises(SessionStateError, match="uncommitted changes"):
        store.checkout(branch="dev")
    assert values(store)[0] == 50


# == commit and distributed_commit =======================================================
@pytest.mark.parametrize("how", ["sync", "async"])
async def test_commit(
    place: StorageConfig, store: IcechunkStore, array: zarr.Array[Any], how: str
) -> None:
    """`commit` and `async_commit` return the new snapshot, and the store goes on from it."""
    one = store.commit("one") if how == "sync" else await store.async_commit("one")
    assert isinstance(one, str)
    assert one == store.snapshot_id
    assert not store.has_uncommitted_changes
    write(store, 60)
    assert store.has_uncommitted_changes
    two = store.commit("two") if how == "sync" else await store.async_commit(message="two")
    assert [entry.message for entry in store.ancestry()][:2] == ["two", "one"]
    assert IcechunkStore.open_existing(place).snapshot_id == two


def test_commit_after_somebody_else(place: StorageConfig, store: IcechunkStore) -> None:
    other = IcechunkStore.open_existing(place, "r+")
    zarr.create_group(other, path="other")
    newest = other.commit("first")
    zarr.create_group(store)
    with pytest.raises(ConflictError) as refused:
        store.commit("second")
    assert refused.value.expected_parent == FIRST
    assert refused.value.actual_parent == newest
    assert store.has_uncommitted_changes


def test_commit_of_nothing(store: IcechunkStore) -> None:
    with pytest.raises(SessionStateError, match="no changes made to the session"):
        store.commit("nothing")


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_distributed_commit(
    place: StorageConfig, store: IcechunkStore, array: zarr.Array[Any], how: str
) -> None:
    """`change_set_bytes` of stores that were opened on their own, in one commit."""
    store.commit("array")
    workers = [IcechunkStore.open_existing(place, "r+") for _ in range(3)]
    for i, worker in enumerate(workers):
        write(worker, 70 + i, i)
    write(store, 73, 3)
    sent = [worker.change_set_bytes() for worker in workers]
    assert all(isinstance(data, bytes) for data in sent)
    if how == "sync":
        commit = store.distributed_commit("together", sent)
    else:
        commit = await store.async_distributed_commit(
            message="together", other_change_set_bytes=sent
        )
    assert commit == store.snapshot_id
    assert not store.has_uncommitted_changes
    assert values(IcechunkStore.open_existing(place)) == [70, 71, 72, 73]
    assert [entry.message for entry in store.ancestry()][:2] == ["together", "array"]


def test_distributed_commit_after_somebody_else(
    place: StorageConfig, store: IcechunkStore, array: zarr.Array[Any]
) -> None:
    store.commit("array")
    worker, other = (IcechunkStore.open_existing(place, "r+") for _ in range(2))
    write(worker, 80)
    write(other, 81)
    other.commit("first")
    with pytest.raises(ConflictError):
        store.distributed_commit("second", [worker.change_set_bytes()])
    assert not store.has_uncommitted_changes


def test_distributed_commit_of_conflicting_changes(
    place: StorageConfig, store: IcechunkStore, array: zarr.Array[Any]
) -> None:
    """Undefined in the reference; here an error, or the last one on request."""
    base = store.commit("array")
    sent = []
    for value in (90, 91):
        worker = IcechunkStore.open_existing(place, "r+")
        write(worker, value)
        sent.append(worker.change_set_bytes())
    with pytest.raises(ConflictError, match="'/a'"):
        store.distributed_commit("together", sent)
    assert store.snapshot_id == base
    assert values(store)[0] == 10
    store.distributed_commit("together", sent, on_conflict="last")
    assert values(store)[0] == 91


# == uncommitted changes, branches, tags, history ========================================
@pytest.mark.parametrize("how", ["sync", "async"])
async def test_reset(store: IcechunkStore, history: list[str], how: str) -> None:
    """`has_uncommitted_changes`, `reset` and `async_reset`."""
    assert store.has_uncommitted_changes is False
    write(store, 1)
    assert store.has_uncommitted_changes is True
    assert (store.reset() if how == "sync" else await store.async_reset()) is None
    assert store.has_uncommitted_changes is False
    assert store.snapshot_id == history[1]
    observed = await store.get("a/c/0")
    assert observed is not None
    assert observed.to_bytes() == bytes([20])
    # and it can be written again
    await store.set("a/c/0", B(b"\x02"))
    assert store.has_uncommitted_changes is True


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_new_branch(store: IcechunkStore, history: list[str], how: str) -> None:
    """`new_branch` and `async_new_branch`: at the snapshot that is checked out."""

    async def new_branch(name: str) -> str:
        if how == "sync":
            return store.new_branch(name)
        return await store.async_new_branch(branch_name=name)

    store.checkout(snapshot_id=history[0])
    assert await new_branch("fix") == history[0]
    assert store.branch == "fix"
    await store.set("a/c/0", B(b"\x07"))
    with pytest.raises(SessionStateError, match="uncommitted changes"):
        await new_branch("more")
    commit = await store.async_commit("on the branch")
    store.checkout(branch="main")
    assert store.snapshot_id == history[1]
    store.checkout(branch="fix")
    assert store.snapshot_id == commit
    with pytest.raises(AlreadyExistsError):
        await new_branch("main")


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_tag(store: IcechunkStore, history: list[str], how: str) -> None:
    """`tag` and `async_tag`: of any snapshot, once."""

    async def tag(name: str, snapshot_id: str) -> None:
        if how == "sync":
            store.tag(name, snapshot_id)
        else:
            await store.async_tag(tag_name=name, snapshot_id=snapshot_id)

    assert await tag("v2", history[1]) is None
    await tag("v0", FIRST)
    store.checkout(tag="v2")
    assert store.snapshot_id == history[1]
    store.checkout(tag="v0")
    assert store.snapshot_id == FIRST
    with pytest.raises(AlreadyExistsError):
        await tag("v2", history[0])
    with pytest.raises(SnapshotNotFoundError):
        await tag("v3", "0" * 20)


async def test_ancestry(store: IcechunkStore, history: list[str]) -> None:
    """`ancestry` is a list, `async_ancestry` an async generator, of `SnapshotMetadata`."""
    entries = store.ancestry()
    assert isinstance(entries, list)
    assert all(isinstance(entry, SnapshotMetadata) for entry in entries)
    assert [entry.id for entry in entries] == [history[1], history[0], FIRST]
    assert [entry.message for entry in entries[:2]] == ["two", "one"]
    now = datetime.now(UTC)
    assert all(now - timedelta(minutes=5) < entry.written_at <= now for entry in entries)
    generator = store.async_ancestry()
    assert isinstance(generator, AsyncGenerator)
    assert [entry async for entry in generator] == entries
    # of the version that is checked out
    store.checkout(tag="v1")
    assert [entry.id for entry in store.ancestry()] == [history[0], FIRST]


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_empty_and_clear(store: IcechunkStore, history: list[str], how: str) -> None:
    """`clear` and `sync_clear` empty the session; history stays."""
    assert await store.empty() is False
    assert (store.sync_clear() if how == "sync" else await store.clear()) is None
    assert await store.empty() is True
    assert await listed(store.list()) == []
    assert store.has_uncommitted_changes
    await store.async_commit("cleared")
    assert await store.empty() is True
    store.checkout(snapshot_id=history[1])
    assert await store.empty() is False
    store.checkout(branch="main")
    # and new things can be put there
    await store.set("zarr.json", GROUP)
    assert await store.empty() is False


# == Zarr's store interface ==============================================================
async def test_get(store: IcechunkStore, history: list[str]) -> None:
    observed = await store.get("a/c/0", PROTOTYPE)
    assert isinstance(observed, Buffer)
    assert observed.to_bytes() == bytes([20])
    assert await store.get("a/c/0", prototype=PROTOTYPE, byte_range=None) == observed
    assert await store.get("a/c/3", PROTOTYPE) is None
    assert await store.get("nothing/zarr.json", PROTOTYPE) is None
    whole = await store.get("a/zarr.json", PROTOTYPE)
    assert whole is not None
    part = await store.get("a/zarr.json", PROTOTYPE, RangeByteRequest(1, 9))
    assert part is not None
    assert part.to_bytes() == whole.to_bytes()[1:9]


@pytest.mark.parametrize("key", ["a/zarr.json", "a/c/0"])
async def test_get_partial_values(store: IcechunkStore, key: str) -> None:
    """Ranges may be tuples, as in the reference, or Zarr's byte requests."""
    data = bytes(range(256)) * 4
    group = zarr.create_group(store, attributes={"text": "long" * 500})
    group.create_array("a", shape=(1,), chunks=(1,), dtype="u1", attributes={"text": "x" * 2000})
    await store.set("a/c/0", B(data))
    whole = await store.get(key, PROTOTYPE)
    assert whole is not None
    data = whole.to_bytes()
    asked: list[tuple[str, Any]] = [
        (key, (3, 8)),
        (key, (None, 5)),
        (key, (None, 0)),
        (key, (None, 10**6)),
        (key, (1000, None)),
        (key, None),
        (key, (None, None)),
        ("nothing/c/0", (0, 1)),
        (key, RangeByteRequest(3, 8)),
        (key, SuffixByteRequest(5)),
        (key, OffsetByteRequest(1000)),
        (key, (3, 8)),
    ]
    expected = [
        data[3:8],
        data[:5],
        b"",
        data,
        data[1000:],
        data,
        data,
        None,
        data[3:8],
        data[-5:],
        data[1000:],
        data[3:8],
    ]
    for ranges in (asked, iter(asked)):
        found = await store.get_partial_values(PROTOTYPE, ranges)
        assert [None if one is None else one.to_bytes() for one in found] == expected


async def test_exists(store: IcechunkStore, history: list[str]) -> None:
    assert await store.exists("a/zarr.json") is True
    assert await store.exists("a/c/1") is True
    assert await store.exists("a/c/2") is False
    assert await store.exists("b/zarr.json") is False


def test_what_the_store_supports(place: StorageConfig, store: IcechunkStore) -> None:
    """`supports_writes`, `supports_deletes`, `supports_listing`, `supports_partial_writes`."""
    assert store.supports_writes is True
    assert store.supports_deletes is True
    assert store.supports_listing is True
    # zarr-python has no partial writes any more, and its own tests want this
    assert store.supports_partial_writes is False
    reader = IcechunkStore.open_existing(place)
    assert reader.supports_writes is False
    assert reader.supports_deletes is False
    assert reader.supports_listing is True


async def test_set_and_delete(store: IcechunkStore, array: zarr.Array[Any]) -> None:
    assert await store.set("a/c/2", B(b"\x0c")) is None
    assert array[2] == 12
    assert await store.delete("a/c/2") is None
    assert array[2] == 0
    assert await store.exists("a/c/2") is False
    await store.delete("a/c/2")


async def test_set_if_not_exists(store: IcechunkStore, array: zarr.Array[Any]) -> None:
    assert await store.set_if_not_exists("a/c/0", B(b"\x01")) is None
    assert await store.set_if_not_exists("a/c/3", B(b"\x0d")) is None
    assert array[:].tolist() == [10, 11, 0, 13]
    document = await store.get("a/zarr.json", PROTOTYPE)
    await store.set_if_not_exists("a/zarr.json", GROUP)
    assert await store.get("a/zarr.json", PROTOTYPE) == document


async def test_set_partial_values(store: IcechunkStore, array: zarr.Array[Any]) -> None:
    """Values at positions; a key may occur many times."""
    await store.set("a/c/0", B(b"0123456789"))
    assert (
        await store.set_partial_values(
            iter(
                [("a/c/0", 2, b"ab"), ("a/c/1", 0, b"xy"), ("a/c/0", 9, b"cd"), ("a/c/3", 0, b"z")]
            )
        )
        is None
    )
    for key, expected in (("0", b"01ab45678cd"), ("1", b"xy"), ("3", b"z")):
        observed = await store.get(f"a/c/{key}", PROTOTYPE)
        assert observed is not None
        assert observed.to_bytes() == expected
    for start in (-1, 12):
        with pytest.raises(InvalidInputError, match="has 11 bytes"):
            await store.set_partial_values([("a/c/1", 0, b"AB"), ("a/c/0", start, b"x")])
    observed = await store.get("a/c/1", PROTOTYPE)
    assert observed is not None
    assert observed.to_bytes() == b"xy"
    with pytest.raises(ReadOnlyError):
        await store.with_mode("r").set_partial_values([("a/c/0", 0, b"x")])


async def test_listing(store: IcechunkStore, array: zarr.Array[Any]) -> None:
    """`list`, `list_prefix` and `list_dir` are async generators, not coroutines."""
    zarr.create_group(store, path="b/d")
    everything = ["a/c/0", "a/c/1", "a/zarr.json", "b/d/zarr.json", "b/zarr.json", "zarr.json"]
    for keys in (store.list(), store.list_prefix(""), store.list_dir("")):
        assert isinstance(keys, AsyncGenerator)
    assert await listed(store.list()) == everything
    assert await listed(store.list_prefix("")) == everything
    assert await listed(store.list_prefix("a/")) == everything[:3]
    assert await listed(store.list_prefix("b/d")) == ["b/d/zarr.json"]
    assert await listed(store.list_prefix("nothing")) == []
    assert await listed(store.list_dir("")) == ["a", "b", "zarr.json"]
    assert await listed(store.list_dir("a")) == ["c", "zarr.json"]
    assert await listed(store.list_dir("a/c/")) == ["0", "1"]
    assert await listed(store.list_dir("nothing")) == []


# == virtual references ==================================================================
@pytest.mark.parametrize("how", ["sync", "async"])
async def test_set_virtual_ref(s3_server: S3Server, how: str) -> None:
    """`set_virtual_ref` and `async_set_virtual_ref`, read with a `VirtualRefConfig`."""
    files = s3_server.storage()
    files.put("data.bin", b"....\x01\x02\x03\x04....")
    url = files.url
    assert url.startswith("s3://")
    config = StoreConfig(
        virtual_ref_config=VirtualRefConfig.s3_from_config(
            S3StaticCredentials(s3_server.access_key_id, s3_server.secret_access_key),
            endpoint_url=s3_server.endpoint_url,
            allow_http=True,
            region=s3_server.region,
        )
    )
    place = StorageConfig.memory(f"virtual-{how}")
    store = IcechunkStore.create(place, config=config)
    zarr.create_array(store, name="a", shape=(4,), chunks=(2,), dtype="u1", compressors=None)
    for key, offset in (("a/c/0", 4), ("a/c/1", 6)):
        if how == "sync":
            store.set_virtual_ref(key, f"{url}/data.bin", offset=offset, length=2)
        else:
            await store.async_set_virtual_ref(key, f"{url}/data.bin", offset=offset, length=2)
    await store.async_commit("virtual")
    reader = IcechunkStore.open_existing(place, config=config)
    for read in (reader, pickle.loads(pickle.dumps(reader))):
        assert read.session.chunk_type("a", [0]) == ChunkType.virtual
        found = await read.get_partial_values(PROTOTYPE, [("a/c/0", None), ("a/c/1", (1, None))])
        assert [one.to_bytes() for one in found if one is not None] == [b"\x01\x02", b"\x04"]
    # the credentials are nowhere in the repository
    without = IcechunkStore.open_existing(place)
    with pytest.raises(InvalidInputError, match="virtual chunk container"):
        await without.get("a/c/0", PROTOTYPE)
    for entry in (storage := place.storage()).list():
        assert s3_server.secret_access_key.encode() not in bytes(storage.get(entry.key).data)


async def test_set_virtual_ref_takes_the_rest_by_name(
    store: IcechunkStore, array: zarr.Array[Any]
) -> None:
    for method in (IcechunkStore.set_virtual_ref, IcechunkStore.async_set_virtual_ref):
        parameters = inspect.signature(method).parameters
        assert list(parameters)[:5] == ["self", "key", "location", "offset", "length"]
        for name in ("offset", "length"):
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
            assert parameters[name].default is inspect.Parameter.empty
    with pytest.raises(NodeNotFoundError):
        store.set_virtual_ref("nothing/c/0", "s3://bucket/file", offset=0, length=1)
    with pytest.raises(InvalidInputError, match="not the key of a chunk"):
        store.set_virtual_ref("a/zarr.json", "s3://bucket/file", offset=0, length=1)


def test_a_virtual_ref_config_beside_other_containers(place: StorageConfig, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"\x01\x02\x03\x04")
    prefix = tmp_path.as_uri() + "/"
    repository_config = icechunk.RepositoryConfig()
    repository_config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(prefix, icechunk.local_filesystem_store(str(tmp_path)))
    )
    Repository.create(place.storage(), repository_config)
    store = IcechunkStore.open_existing(
        place,
        "r+",
        StoreConfig(virtual_ref_config=VirtualRefConfig.s3_anonymous()),
        authorize_virtual_chunk_access={prefix: None},
    )
    array = zarr.create_array(
        store, name="a", shape=(4,), chunks=(4,), dtype="u1", compressors=None
    )
    store.set_virtual_ref("a/c/0", f"{prefix}file.bin", offset=0, length=4)
    assert array[:].tolist() == [1, 2, 3, 4]


# == StorageConfig =======================================================================
async def test_storage_config_memory() -> None:
    """Each is a memory of its own, which its copies in this process share."""
    config = StorageConfig.memory("prefix")
    assert isinstance(config.config, StorageConfig.Memory)
    assert config.config.prefix == "prefix"
    store = IcechunkStore.create(config)
    zarr.create_group(store)
    store.commit("group")
    for same in (config, copy.copy(config), copy.deepcopy(config), sent(config)):
        assert same == config
        assert hash(same) == hash(config)
        assert not await IcechunkStore.open_existing(same).empty()
    for other in (
        StorageConfig.memory(prefix="prefix"),
        StorageConfig(StorageConfig.Memory(prefix="prefix")),
        StorageConfig(config.config),
    ):
        assert other != config
        with pytest.raises(RepositoryNotFoundError):
            IcechunkStore.open_existing(other)


def test_storage_config_filesystem(tmp_path: Path) -> None:
    config = StorageConfig.filesystem(root=str(tmp_path / "root"))
    assert isinstance(config.config, StorageConfig.Filesystem)
    assert config.config.root == str(tmp_path / "root")
    IcechunkStore.create(config)
    assert (tmp_path / "root" / "repo").is_file()
    again = StorageConfig(StorageConfig.Filesystem(str(tmp_path / "root")))
    assert again == config
    IcechunkStore.open_existing(again)


def s3_fields(config: Any) -> list[Any]:
    return [
        config.credentials,
        config.endpoint_url,
        config.allow_http,
        config.region,
    ]


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", s3_server.region)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_access_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)


def round_trip(config: StorageConfig) -> None:
    store = IcechunkStore.create(config)
    zarr.create_group(store)
    commit = store.commit("group")
    assert IcechunkStore.open_existing(config).snapshot_id == commit


def test_storage_config_s3_from_env(
    s3_server: S3Server, s3_environment: None, tmp_path: Path
) -> None:
    """The variables of the reference, and no arguments but bucket and prefix."""
    config = StorageConfig.s3_from_env(s3_server.bucket, f"from-env-{tmp_path.name}")
    assert isinstance(config.config, StorageConfig.S3)
    assert config.config.bucket == s3_server.bucket
    assert config.config.prefix == f"from-env-{tmp_path.name}"
    assert s3_fields(config.config) == [None] * 4
    round_trip(config)


def test_storage_config_s3_from_config(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is given is used; the environment is not looked at."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody else")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "who may do nothing")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "none")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_REGION", "nowhere")
    credentials = S3StaticCredentials(s3_server.access_key_id, s3_server.secret_access_key)
    for number, given in enumerate((credentials, S3Credentials.Static(credentials))):
        config = StorageConfig.s3_from_config(
            s3_server.bucket,
            f"from-config-{tmp_path.name}-{number}",
            given,
            s3_server.endpoint_url,
            allow_http=True,
            region=s3_server.region,
        )
        assert s3_fields(config.config)[1:] == [s3_server.endpoint_url, True, s3_server.region]
        assert s3_server.secret_access_key not in repr(config)
        round_trip(config)
    parameters = inspect.signature(StorageConfig.s3_from_config).parameters
    assert list(parameters) == [
        "bucket",
        "prefix",
        "credentials",
        "endpoint_url",
        "allow_http",
        "region",
    ]
    assert parameters["allow_http"].default is None
    assert parameters["region"].default is None


def test_storage_config_s3_anonymous(s3_server: S3Server, tmp_path: Path) -> None:
    prefix = f"anonymous-{tmp_path.name}"
    Repository.create(s3_server.storage(prefix, bucket=s3_server.public_bucket))
    config = StorageConfig.s3_anonymous(
        s3_server.public_bucket, prefix, s3_server.endpoint_url, True, s3_server.region
    )
    assert IcechunkStore.open_existing(config).snapshot_id == FIRST
    private = StorageConfig.s3_anonymous(
        s3_server.bucket, prefix, endpoint_url=s3_server.endpoint_url, allow_http=True
    )
    with pytest.raises(icechunk.StorageError):
        IcechunkStore.open_existing(private)


def test_storage_config_s3_as_a_class(s3_server: S3Server, tmp_path: Path) -> None:
    """`StorageConfig(StorageConfig.S3(...))`, with the attributes of the reference."""
    inner = StorageConfig.S3(
        bucket=s3_server.bucket,
        prefix=f"class-{tmp_path.name}",
        credentials=S3StaticCredentials(s3_server.access_key_id, s3_server.secret_access_key),
        endpoint_url=s3_server.endpoint_url,
        allow_http=True,
        region=s3_server.region,
    )
    assert inner.bucket == s3_server.bucket
    round_trip(StorageConfig(inner))


def test_storage_config_of_something_else() -> None:
    wrong: Any = "memory"
    with pytest.raises(InvalidInputError, match=r"StorageConfig\.Memory"):
        StorageConfig(wrong)


def test_storage_config_pickles(place: StorageConfig) -> None:
    assert pickle.loads(pickle.dumps(place)) == place


# == StoreConfig =========================================================================
def test_store_config_defaults() -> None:
    """Four options, all None, by position and by name."""
    config = StoreConfig()
    assert config.get_partial_values_concurrency is None
    assert config.inline_chunk_threshold_bytes is None
    assert config.unsafe_overwrite_refs is None
    assert config.virtual_ref_config is None
    access = VirtualRefConfig.s3_anonymous()
    by_name = StoreConfig(
        get_partial_values_concurrency=1,
        inline_chunk_threshold_bytes=2,
        unsafe_overwrite_refs=True,
        virtual_ref_config=access,
    )
    assert StoreConfig(1, 2, True, access) == by_name
    assert by_name.virtual_ref_config is access
    by_name.inline_chunk_threshold_bytes = 9
    assert by_name.inline_chunk_threshold_bytes == 9


@pytest.mark.parametrize(("threshold", "limit"), [(None, 512), (1, 1), (100, 100)])
async def test_store_config_inline_chunk_threshold_bytes(
    place: StorageConfig, threshold: int | None, limit: int
) -> None:
    """512 where not specified."""
    config = StoreConfig(inline_chunk_threshold_bytes=threshold)
    store = IcechunkStore.create(place, config=config)
    zarr.create_array(store, name="a", shape=(2,), chunks=(1,), dtype="u1")
    await store.set("a/c/0", B(bytes(limit)))
    await store.set("a/c/1", B(bytes(limit + 1)))
    assert store.session.chunk_type("a", [0]) == ChunkType.inline
    assert store.session.chunk_type("a", [1]) == ChunkType.native


class Crowd(WrapperStorage):
    """A storage that knows how many reads went on at the same time."""

    def __init__(self, inner: LocalStorage) -> None:
        super().__init__(inner)
        self.lock = threading.Lock()
        self.now = 0
        self.most = 0

    async def get_async(self, key: str, **conditions: Any) -> GetResult:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        result = await super().get_async(key, **conditions)
        self.now -= 1
        return result


async def test_store_config_get_partial_values_concurrency(tmp_path: Path) -> None:
    storage = Crowd(LocalStorage(tmp_path))
    config = StoreConfig(get_partial_values_concurrency=3, inline_chunk_threshold_bytes=0)
    store = IcechunkStore.create(storage, config=config)
    zarr.create_array(store, name="a", shape=(12,), chunks=(1,), dtype="u1", fill_value=255)[:] = 1
    found = await store.get_partial_values(PROTOTYPE, [(f"a/c/{i}", None) for i in range(12)])
    assert None not in found
    assert storage.most == 3


@pytest.mark.parametrize("how", ["created", "opened", "sent", "with another mode"])
def test_store_config_unsafe_overwrite_refs(place: StorageConfig, how: str) -> None:
    """Tagging again moves the tag; without the option it is refused."""
    config = StoreConfig(unsafe_overwrite_refs=True)
    store = IcechunkStore.create(place, config=config)
    zarr.create_group(store)
    commit = store.commit("group")
    if how == "opened":
        store = IcechunkStore.open_existing(place, "r+", config)
    elif how == "sent":
        store = sent(store)
    elif how == "with another mode":
        store = store.with_mode("r").with_mode("r+")
    for target in (FIRST, commit, commit, FIRST):
        store.tag("v1", target)
        reader = IcechunkStore.open_existing(place)
        reader.checkout(tag="v1")
        assert reader.snapshot_id == target
    with pytest.raises(SnapshotNotFoundError):
        store.tag("v1", "0" * 20)
    for other in (None, StoreConfig(), StoreConfig(unsafe_overwrite_refs=False)):
        with pytest.raises(AlreadyExistsError, match="tags are immutable"):
            IcechunkStore.open_existing(place, "r+", other).tag("v1", commit)


# == VirtualRefConfig ====================================================================
def test_virtual_ref_config_s3_from_env(
    s3_server: S3Server, s3_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The variables of the reference; AWS_DEFAULT_REGION serves too."""
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_DEFAULT_REGION", s3_server.region)
    config = VirtualRefConfig.s3_from_env()
    assert isinstance(config.config, VirtualRefConfig.S3)
    assert s3_fields(config.config) == [None] * 4
    assert read_virtual(s3_server.storage(), config, tmp_path) == [1, 2]


def test_virtual_ref_config_s3_from_config(s3_server: S3Server, tmp_path: Path) -> None:
    credentials = S3StaticCredentials(s3_server.access_key_id, s3_server.secret_access_key)
    config = VirtualRefConfig.s3_from_config(
        credentials,
        endpoint_url=s3_server.endpoint_url,
        allow_http=True,
        region=s3_server.region,
    )
    assert s3_fields(config.config)[1:] == [s3_server.endpoint_url, True, s3_server.region]
    assert s3_server.secret_access_key not in repr(config)
    assert read_virtual(s3_server.storage(), config, tmp_path) == [1, 2]
    parameters = inspect.signature(VirtualRefConfig.s3_from_config).parameters
    assert list(parameters) == ["credentials", "endpoint_url", "allow_http", "region"]
    for name in ("endpoint_url", "allow_http", "region"):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default is None


def test_virtual_ref_config_s3_anonymous(s3_server: S3Server, tmp_path: Path) -> None:
    files = s3_server.storage(bucket=s3_server.public_bucket)
    config = VirtualRefConfig.s3_anonymous(
        endpoint_url=s3_server.endpoint_url, allow_http=True, region=s3_server.region
    )
    assert read_virtual(files, config, tmp_path) == [1, 2]
    assert s3_fields(VirtualRefConfig.s3_anonymous().config)[1:] == [None] * 3


def read_virtual(files: Any, config: VirtualRefConfig, folder: Path) -> list[int]:
    """Read an array of one chunk whose bytes are a file."""
    files.put("file.bin", b"\x01\x02")
    store = IcechunkStore.create(
        StorageConfig.filesystem(str(folder / "virtual")),
        config=StoreConfig(virtual_ref_config=config),
    )
    array = zarr.create_array(
        store, name="a", shape=(2,), chunks=(2,), dtype="u1", compressors=None
    )
    store.set_virtual_ref("a/c/0", f"{files.url}/file.bin", offset=0, length=2)
    found: list[int] = np.asarray(array[:]).tolist()
    return found
