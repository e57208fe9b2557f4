"""A write that failed in part: no commit of the rest unless somebody says so."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    ErrorKind,
    FaultyStorage,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    Session,
    SessionStateError,
    StorageError,
)
from icechunk.format.chunk_refs import ChunkRef, ChunkRefs
from icechunk.storage import WrapperStorage


@pytest.fixture
def storage() -> FaultyStorage:
    return FaultyStorage(MemoryStorage())


@pytest.fixture
def session(storage: FaultyStorage) -> Session:
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(storage, config)
    session = repository.writable_session("main")
    zarr.create_group(session.store).create_array(
        "a", shape=(20,), chunks=(1,), dtype="i4", compressors=None
    )
    session.commit("array")
    return repository.writable_session("main")


def array(session: Session) -> Any:
    return zarr.open_array(session.store, path="a", mode="r+")


def fail(storage: FaultyStorage, session: Session) -> None:
    """Write all chunks, of which two fail."""
    storage.fail("put", key="chunks/", nth=5, times=2)
    failed = 0
    for index in range(20):
        # one after the other: zarr goes on with the others after it has raised
        try:
            session.chunks.set("/a", (index,), np.int32(index + 1).tobytes())
        except StorageError:
            failed += 1
    assert failed == 2
    storage.clear()


def newest(session: Session) -> list[int]:
    store = Repository.open(session.storage).readonly_session("main").store
    found: list[int] = zarr.open_array(store, path="a", mode="r")[:].tolist()
    return found


def test_no_commit_of_a_part(storage: FaultyStorage, session: Session) -> None:
    fail(storage, session)
    for call in (
        lambda: session.commit("part"),
        lambda: session.flush("part"),
        lambda: session.amend("part"),
        lambda: session.change_set_bytes(),
        lambda: session.commit("part", allow_empty=True),
    ):
        with pytest.raises(SessionStateError, match=r"chunk \(\d+,\) of '/a' and of \d+ more") as e:
            call()
        assert e.value.kind is ErrorKind.NOT_ALLOWED
        assert "discard_changes()" in str(e.value)
    assert newest(session) == [0] * 20


def again(session: Session) -> list[int]:
    array(session)[:] = np.arange(1, 21)
    return list(range(1, 21))


def fill(session: Session) -> list[int]:
    array(session)[:] = 0
    return [0] * 20


def discard(session: Session) -> list[int]:
    session.discard_changes()
    array(session)[0] = 7
    return [7, *[0] * 19]


def merge(session: Session) -> list[int]:
    fork = session.fork()
    array(fork)[:] = 5
    session.merge(fork)
    return [5] * 20


def references(session: Session) -> list[int]:
    rows = [ChunkRef.inline(np.int32(9).tobytes())] * 20
    session.set_refs("/a", ChunkRefs.from_rows([(i,) for i in range(20)], rows, 1))
    return [9] * 20


@pytest.mark.parametrize("settle", [again, fill, discard, merge, references])
def test_ways_out(
    storage: FaultyStorage, session: Session, settle: Callable[[Session], list[int]]
) -> None:
    fail(storage, session)
    expected = settle(session)
    session.commit("whole")
    assert newest(session) == expected


def test_an_array_that_is_gone_misses_nothing(storage: FaultyStorage, session: Session) -> None:
    fail(storage, session)
    del zarr.open_group(session.store, mode="r+")["a"]
    session.commit("gone")


def test_a_fork_of_which_a_part_failed(storage: FaultyStorage, session: Session) -> None:
    fork = session.fork()
    fail(storage, fork)
    with pytest.raises(SessionStateError, match=r"of '/a' and of \d+ more failed"):
        pickle.dumps(fork)
    with pytest.raises(SessionStateError, match=r"of '/a' and of \d+ more failed"):
        session.merge(fork)
    assert not session.has_uncommitted_changes
    again(fork)
    session.merge(fork)
    session.commit("whole")
    assert newest(session) == list(range(1, 21))


def test_an_interrupted_write_counts(storage: FaultyStorage, session: Session) -> None:
    storage.fail("put", key="chunks/", error=KeyboardInterrupt())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        session.chunks.set("/a", (3,), b"1234")
    with pytest.raises(SessionStateError, match=r"writing chunk \(3,\) of '/a' failed"):
        session.commit("part")
    session.chunks.delete("/a", (3,))
    session.commit("without", allow_empty=True)


class _Gate(WrapperStorage):
    """A storage in which puts of chunks wait."""

    def __init__(self, inner: MemoryStorage) -> None:
        super().__init__(inner)
        self.gates: dict[bytes, asyncio.Event] = {}

    async def before_async(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        pass

    async def put_async(self, key: str, data: Any, **conditions: Any) -> str | None:
        gate = self.gates.get(bytes(data))
        if gate is not None:
            await gate.wait()
        if bytes(data) == b"fail":
            raise StorageError("failed")
        return self.inner.put(key, data, **conditions)


async def test_what_arrives_later_is_not_taken() -> None:
    """Neither after the write was made again with other values, nor after it was discarded."""
    storage = _Gate(MemoryStorage())
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = await asyncio.to_thread(Repository.create, storage, config)
    session = await asyncio.to_thread(repository.writable_session, "main")
    await asyncio.to_thread(zarr_arrays, session)
    node = session.tree.require("/a")
    for settle in ("write", "discard"):
        storage.gates = {b"slow": asyncio.Event(), b"fail": asyncio.Event()}
        slow = asyncio.create_task(session.chunks.set_async("/a", (1,), b"slow"))
        other = asyncio.create_task(session.chunks.set_async("/b", (1,), b"slow"))
        failing = asyncio.create_task(session.chunks.set_async("/a", (0,), b"fail"))
        await asyncio.sleep(0)
        storage.gates[b"fail"].set()
        with pytest.raises(StorageError, match="failed"):
            await failing
        if settle == "write":
            for index in (0, 1):
                await session.chunks.set_async("/a", (index,), b"good")
        else:
            session.discard_changes()
        storage.gates[b"slow"].set()
        with pytest.raises(SessionStateError, match=r"chunk \(1,\) of '/a' was given up"):
            await slow
        if settle == "write":
            await other  # nobody knows of a failure there
            assert bytes(await session.chunks.get_async(node, (1,)) or b"") == b"good"
            await session.commit_async("whole")
            session = await asyncio.to_thread(repository.writable_session, "main")
        else:
            with pytest.raises(SessionStateError, match="given up"):
                await other
            assert not session.has_uncommitted_changes


def zarr_arrays(session: Session) -> None:
    group = zarr.create_group(session.store)
    for name in "ab":
        group.create_array(name, shape=(2,), chunks=(1,), dtype="i4", compressors=None)
