"""Small chunks that share objects: what is stored, what is read, and what is lost with what."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings, strategies as st

import icechunk
from icechunk import CountingStorage, MemoryStorage, Repository, Session
from icechunk.errors import InvalidInputError, SessionStateError, StorageError
from icechunk.format.chunk_refs import RefKind
from icechunk.session import packing
from icechunk.session.chunks import ChunkStore
from icechunk.session.packing import MAX_PACKED, PACK_HEADER

CHUNKS = 64


@pytest.fixture
def storage() -> CountingStorage:
    return CountingStorage(MemoryStorage())


@pytest.fixture
def repository(storage: CountingStorage) -> Repository:
    return made(storage)


@pytest.fixture
def small_packs(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Packs of a few chunks."""
    size = 1000
    monkeypatch.setattr(packing, "PACK_SIZE", size)
    yield size


def made(storage: Any, items: int = 256) -> Repository:
    """Return a repository with an array `a` of 64 chunks of 1 KiB."""
    config = icechunk.RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(storage, config)
    session = repository.writable_session("main")
    array(session, items)
    session.commit("an array")
    return repository


def array(session: Session, items: int = 256) -> Any:
    return zarr.create_array(
        session.store,
        name="a",
        shape=(CHUNKS * items,),
        chunks=(items,),
        dtype="f4",
        compressors=None,
        fill_value=0,
    )


def opened(session: Session) -> Any:
    return zarr.open_array(session.store, path="a")


def values(seed: int = 0, items: int = 256) -> Any:
    return np.random.default_rng(seed).random(CHUNKS * items, dtype="f4")


def objects(storage: Any) -> dict[str, int]:
    return {meta.key: meta.size for meta in storage.list("chunks/")}


# -- what is stored, and how it is read ---------------------------------------------------------
def test_objects_and_requests(repository: Repository, storage: CountingStorage) -> None:
    session = repository.writable_session("main", pack=True)
    storage.reset()
    opened(session)[:] = values()
    assert storage.counts["put"].requests == 0 and objects(storage) == {}
    # before they are anywhere else
    np.testing.assert_array_equal(opened(session)[:], values())
    session.commit("packed")
    assert list(objects(storage).values()) == [len(PACK_HEADER) + values().nbytes]

    fresh = repository.reopen().readonly_session("main")
    read = zarr.open_array(fresh.store, path="a", mode="r")
    read[0]  # the manifest is known from here on
    storage.reset()
    with zarr.config.set({"async.concurrency": CHUNKS}):
        np.testing.assert_array_equal(read[:], values())
    assert storage.requests == 1
    assert storage.bytes_read == values().nbytes
    storage.reset()
    assert read[300] == values()[300]
    assert (storage.requests, storage.bytes_read) == (1, 1024)


def test_a_pack_is_put_when_it_is_full(
    repository: Repository, storage: CountingStorage, small_packs: int
) -> None:
    session = repository.writable_session("main", pack=True)
    opened(session)[:] = values()
    assert len(objects(storage)) == CHUNKS  # each of 1 KiB is more than a pack
    np.testing.assert_array_equal(opened(session)[:], values())


@pytest.mark.parametrize("pack", [False, True])
def test_an_object_for_each_without_packing(
    repository: Repository, storage: CountingStorage, pack: bool
) -> None:
    session = repository.writable_session("main", pack=pack)
    opened(session)[:] = values()
    session.commit("written")
    assert len(objects(storage)) == (1 if pack else CHUNKS)


def test_large_chunks_stay_alone(storage: CountingStorage) -> None:
    assert MAX_PACKED < 256 * 1024
    repository = made(storage, items=64 * 1024)
    session = repository.writable_session("main", pack=True)
    opened(session)[: 2 * 64 * 1024] = 1
    assert list(objects(storage).values()) == [256 * 1024] * 2


def test_inline_chunks_stay_inline(storage: CountingStorage) -> None:
    repository = Repository.create(storage)
    session = repository.writable_session("main", pack=True)
    array(session, items=4)[:] = values(items=4)
    session.commit("inline")
    assert objects(storage) == {}


# -- the same as a session that does not pack -----------------------------------------------------
STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, CHUNKS - 1), st.integers(1, 9)),
    st.tuples(st.just("erase"), st.integers(0, CHUNKS - 1)),
    st.sampled_from(
        [("commit",), ("amend",), ("discard",), ("fork",), ("pickle",), ("resize",), ("shift",)]
    ),
)


@settings(max_examples=25)
@given(st.lists(STEPS, max_size=20))
def test_behaves_as_a_session_that_does_not_pack(steps: list[tuple[Any, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "PACK_SIZE", 200)
        sides = []
        for pack in (False, True):
            repository = made(MemoryStorage(), items=8)
            found = [_step_by_step(repository, pack, steps)]
            found += [
                list(
                    zarr.open_array(
                        repository.readonly_session(snapshot_id=entry.id).store, path="a", mode="r"
                    )[:]
                )
                for entry in repository.ancestry(branch="main")
                if entry.parent_id and "a" in entry.message
            ]
            sides.append(found)
            assert repository.verify().ok
        assert sides[0] == sides[1]


def _step_by_step(repository: Repository, pack: bool, steps: list[tuple[Any, ...]]) -> list[Any]:
    """Take some steps, and return what is read after each of them."""
    seen: list[Any] = []
    session = repository.writable_session("main", pack=pack)
    for kind, *details in steps:
        if kind == "write":
            chunk, value = details
            opened(session)[8 * chunk : 8 * chunk + 8] = value
        elif kind == "erase":
            asyncio.run(session.store.delete(f"a/c/{details[0]}"))
        elif kind in ("commit", "amend"):
            if session.has_uncommitted_changes:
                getattr(session, kind)("a commit")
                session = repository.writable_session("main", pack=pack)
        elif kind == "discard":
            session.discard_changes()
        elif kind == "resize":
            opened(session).resize((CHUNKS * 4,))
            opened(session).resize((CHUNKS * 8,))
        elif kind == "shift":
            session.shift_array("/a", (1,))
        else:
            fork = session.fork()
            if kind == "pickle":
                fork = pickle.loads(pickle.dumps(fork))
            opened(fork)[40:56] = 7
            session.merge(fork)
        seen.append(opened(session)[:].tolist())
    if session.has_uncommitted_changes:
        session.commit("a last commit")
    seen.append(opened(repository.readonly_session("main"))[:].tolist())
    return seen


def test_forks_put_what_they_have_before_they_leave(
    repository: Repository, storage: CountingStorage
) -> None:
    session = repository.writable_session("main", pack=True)
    opened(session)[:256] = 1
    fork = session.fork()
    assert len(objects(storage)) == 1
    assert opened(fork)[0] == 1
    opened(fork)[256:512] = 2
    away = pickle.loads(pickle.dumps(fork))
    assert len(objects(storage)) == 2
    assert opened(away)[256] == 2
    opened(away)[512:768] = 3
    session.merge_change_sets([away.change_set_bytes()])
    assert len(objects(storage)) == 3
    plain = session.fork(pack=False)
    opened(plain)[768:1280] = 4
    assert len(objects(storage)) == 5
    session.merge(plain)
    session.commit("forks")
    read = opened(repository.readonly_session("main"))[:1280]
    assert read.reshape(5, 256)[:, 0].tolist() == [1, 2, 3, 4, 4]


# -- what goes wrong --------------------------------------------------------------------------
class Failing(icechunk.storage.MemoryStorage):
    """Puts of chunks fail while that is asked for."""

    fails = False

    def put(self, key: str, data: Any, **how: Any) -> Any:
        if self.fails and key.startswith("chunks/"):
            raise StorageError("out of order")
        return super().put(key, data, **how)


def test_a_put_that_fails_is_done_again() -> None:
    storage = Failing()
    repository = made(storage)
    session = repository.writable_session("main", pack=True)
    opened(session)[:] = values()
    storage.fails = True
    for leave in (session.fork, session.change_set_bytes, lambda: session.commit("packed")):
        with pytest.raises(StorageError, match="out of order"):
            leave()
    np.testing.assert_array_equal(opened(session)[:], values())
    storage.fails = False
    session.commit("packed")
    assert len(objects(storage)) == 1
    np.testing.assert_array_equal(opened(repository.readonly_session("main"))[:], values())


def test_a_full_pack_that_is_not_put_loses_no_other_chunk(small_packs: int) -> None:
    storage = Failing()
    repository = made(storage, items=64)
    session = repository.writable_session("main", pack=True)
    written = opened(session)
    for chunk in range(3):
        written[64 * chunk : 64 * chunk + 64] = chunk + 1
    storage.fails = True
    with pytest.raises(StorageError, match="out of order"):
        written[64 * 3 : 64 * 4] = 4
    storage.fails = False
    with pytest.raises(SessionStateError, match="a"):
        session.commit("not whole")
    written[64 * 3 : 64 * 4] = 4
    session.commit("whole")
    read = opened(repository.readonly_session("main"))[: 64 * 4].reshape(4, 64)
    assert (read == np.array([[1], [2], [3], [4]])).all()


def test_discarded_chunks_are_not_put(repository: Repository, storage: CountingStorage) -> None:
    session = repository.writable_session("main", pack=True)
    opened(session)[:] = values()
    session.discard_changes()
    opened(session)[:256] = 1
    session.commit("one chunk")
    assert list(objects(storage).values()) == [len(PACK_HEADER) + 1024]


def test_a_chunk_that_is_written_while_changes_are_discarded(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are gone, so nothing may refer to them."""
    session = repository.writable_session("main", pack=True)
    set_ref = ChunkStore._set_ref

    def interrupted(self: ChunkStore, *arguments: Any) -> None:
        session.discard_changes()
        set_ref(self, *arguments)

    monkeypatch.setattr(ChunkStore, "_set_ref", interrupted)
    with pytest.raises(SessionStateError, match="discarded while chunk"):
        session.chunks.set("/a", (0,), bytes(1024))
    assert session.chunks.get(session.tree.require("/a"), (0,)) is None


# -- maintenance ----------------------------------------------------------------------------------
def test_statistics_count_what_is_referred_to_once(
    repository: Repository, storage: CountingStorage
) -> None:
    session = repository.writable_session("main", pack=True)
    opened(session)[:] = values()
    session.commit("packed")
    session = repository.writable_session("main")
    opened(session).attrs["x"] = 1
    session.commit("the same chunks again")
    assert repository.chunk_storage_stats().native_bytes == values().nbytes


def test_garbage_collection_takes_a_pack_with_its_last_chunk(
    repository: Repository, storage: CountingStorage
) -> None:
    session = repository.writable_session("main", pack=True)
    opened(session)[:] = values()
    session.commit("packed")
    for kept in (1, 0):
        session = repository.writable_session("main")
        opened(session).resize((256 * kept,))
        session.commit("fewer")
        now = datetime.now(UTC) + timedelta(seconds=1)
        repository.expire_snapshots(now)
        repository.garbage_collect(now)
        assert len(objects(storage)) == kept
        assert repository.verify().ok


def test_repack(repository: Repository, storage: CountingStorage) -> None:
    session = repository.writable_session("main")
    opened(session)[: 256 * 8] = values()[: 256 * 8]
    session.commit("alone")
    session = repository.writable_session("main", pack=True)
    written = opened(session)
    for seed in range(3):
        written[256 * 8 :] = values(seed)[256 * 8 :]
    session.commit("three times")
    expected = np.concatenate([values()[: 256 * 8], values(2)[256 * 8 :]])
    size = 56 * 1024
    assert len(objects(storage)) == 9
    looked = repository.repack("main", dry_run=True)
    assert looked == icechunk.RepackSummary(None, 1, 16 + 3 * size, 2 * size, CHUNKS)
    assert repository.lookup_branch("main") == session.snapshot_id
    left = repository.repack("main", max_waste=0.7, dry_run=True)
    assert left.chunks == 8

    done = repository.repack("main", message="tidy")
    assert done.snapshot_id == repository.lookup_branch("main")
    assert done.chunks == CHUNKS
    assert next(iter(repository.ancestry(branch="main"))).message == "tidy"
    again = repository.repack("main")
    assert again == icechunk.RepackSummary(None, 1, 16 + CHUNKS * 1024, 0, 0)
    now = datetime.now(UTC) + timedelta(seconds=1)
    repository.expire_snapshots(now)
    repository.garbage_collect(now)
    assert list(objects(storage).values()) == [16 + CHUNKS * 1024]
    read = repository.reopen().readonly_session("main")
    np.testing.assert_array_equal(opened(read)[:], expected)
    refs = read.chunk_refs("/a")
    assert (refs.kind == RefKind.NATIVE).all() and len(refs) == CHUNKS


def test_repack_of_nothing(storage: CountingStorage) -> None:
    repository = Repository.create(storage)
    assert repository.repack("main") == icechunk.RepackSummary(None, 0, 0, 0, 0)
    with pytest.raises(InvalidInputError, match="max_waste is 2"):
        repository.repack("main", max_waste=2)
