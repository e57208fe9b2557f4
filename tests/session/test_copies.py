"""Copies of sessions in other processes: what they fetch, and what merging knows of them."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import dask.array as da
import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype

from icechunk import (
    ErrorKind,
    ForkSession,
    FormatError,
    IcechunkError,
    IcechunkStore,
    LocalStorage,
    MemoryStorage,
    Repository,
    Session,
    SessionStateError,
    s3_storage,
)
from icechunk.distributed import merge_sessions
from icechunk.storage import WrapperStorage
from icechunk.storage.base import Storage
from icechunk.storage.places import S3Place
from tests.dask_writes.clusters import running, shared

SIZE = 6


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return one with an array of six zeros, a chunk each."""
    repository = Repository.create(LocalStorage(tmp_path / "repo"))
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(SIZE,), chunks=(1,), dtype="i4")[:] = 0
    session.commit("array")
    return repository


def write(session: Session, index: int, value: int) -> None:
    zarr.open_array(session.store, path="a", mode="r+")[index] = value


def read(session: Session) -> list[int]:
    found: list[int] = np.asarray(zarr.open_array(session.store, path="a", mode="r")[:]).tolist()
    return found


def sent(fork: ForkSession) -> ForkSession:
    """Return what another process gets."""
    copied: ForkSession = pickle.loads(pickle.dumps(fork))
    return copied


# -- what arrives --------------------------------------------------------------------------
def kinds(storage: Storage) -> list[Any]:
    """Return one of everything that pickles, with the changes that it can have."""
    repository = Repository.open(storage)
    session = repository.writable_session("main")
    write(session, 0, 1)
    fork = session.fork()
    write(fork, 1, 2)
    reader = repository.readonly_session("main")
    early = IcechunkStore.open_existing(storage, "r+")
    write(early.session, 2, 3)
    return [reader, reader.store, fork, fork.store, repository, early]


def pickled_kinds(storage: Storage) -> list[tuple[bytes, list[int]]]:
    """Return what is sent, and what it reads; this process forgets what it has cached."""
    found = [(pickle.dumps(thing), use(thing)) for thing in kinds(storage)]
    gc.collect()
    return found


def use(thing: Any) -> list[int]:
    if isinstance(thing, Repository):
        thing = thing.readonly_session("main")
    return read(getattr(thing, "session", thing))


class Watched(WrapperStorage):
    """Notes the thread of each request."""

    threads: ClassVar[list[threading.Thread]] = []

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        self.threads.append(threading.current_thread())


def test_a_copy_makes_no_request_before_it_is_used(repository: Repository) -> None:
    for pickled, expected in pickled_kinds(Watched(repository.storage)):
        Watched.threads.clear()
        arrived = pickle.loads(pickled)
        assert repr(arrived)
        again = pickle.loads(pickle.dumps(arrived))
        assert not Watched.threads
        assert use(arrived) == use(again) == expected
        assert Watched.threads
        del arrived, again
        gc.collect()


def test_what_cannot_be_read_fails_when_it_is_used(repository: Repository) -> None:
    sent_ones = pickled_kinds(repository.storage)
    folder = Path(repository.storage.url.removeprefix("file://"))
    folder.rename(folder.with_name("gone"))
    for pickled, _ in sent_ones:
        arrived = pickle.loads(pickled)
        assert repr(arrived)
        for _ in range(2):
            with pytest.raises(IcechunkError, match="there is no") as error:
                use(arrived)
            assert folder.as_uri() in str(error.value)
    folder.with_name("gone").rename(folder)
    # what was not found is looked for again
    assert use(arrived) == sent_ones[-1][1]


def test_damaged_changes_fail_when_they_are_used(repository: Repository) -> None:
    fork = repository.writable_session("main").fork()
    write(fork, 0, 1)
    state = fork.__getstate__()
    state["edits"]["layers"] = [layer[:-1] for layer in state["edits"]["layers"]]
    arrived = ForkSession.__new__(ForkSession)
    arrived.__setstate__(state)
    assert repr(arrived)
    with pytest.raises(FormatError, match="change set"):
        arrived.has_uncommitted_changes  # noqa: B018


def test_the_objects_of_another_process_are_found_when_it_is_home_again() -> None:
    repository = Repository.create(MemoryStorage())
    reader = repository.readonly_session("main")
    assert pickle.loads(pickle.dumps(reader)).tree.nodes() == []


async def get(store: IcechunkStore) -> None:
    assert await store.get("zarr.json") is not None


async def exists(store: IcechunkStore) -> None:
    assert await store.exists("a/c/0")


async def getsize(store: IcechunkStore) -> None:
    assert await store.getsize("a/zarr.json")


async def set_chunk(store: IcechunkStore) -> None:
    await store.set("a/c/0", default_buffer_prototype().buffer.from_bytes(b"0000"))


async def set_document(store: IcechunkStore) -> None:
    document = json.dumps({"zarr_format": 3, "node_type": "group"}).encode()
    await store.set("g/zarr.json", default_buffer_prototype().buffer.from_bytes(document))


@pytest.mark.parametrize("use_it", [get, exists, getsize, set_chunk, set_document])
async def test_a_copy_fetches_outside_of_the_event_loop(
    repository: Repository, use_it: Callable[[IcechunkStore], Awaitable[None]]
) -> None:
    """The first use of a store is often in the event loop of zarr."""
    pickled = pickled_kinds(Watched(repository.storage))[3][0]
    store = pickle.loads(pickled)
    Watched.threads.clear()
    await use_it(store)
    assert Watched.threads
    assert threading.current_thread() not in Watched.threads[:1]


def test_a_storage_that_cannot_be_set_up_fails_when_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    credentials = {"access_key_id": "a", "secret_access_key": "b"}
    pickled = pickle.dumps(s3_storage(bucket="b", prefix="p", region="r", **credentials))

    def fail(*_: Any) -> None:
        raise ValueError("a file is missing")

    monkeypatch.setattr(S3Place, "_open", fail)
    storage = pickle.loads(pickled)
    assert repr(storage)
    for use_it in (lambda: storage.get("a"), lambda: storage.put("a", b"")):
        with pytest.raises(IcechunkError, match="cannot set up access to s3://b/p"):
            use_it()


# -- merging -------------------------------------------------------------------------------
def by_pickle(fork: ForkSession) -> None:
    write(sent(fork), 0, 1)


def by_copy(fork: ForkSession) -> None:
    write(copy.copy(fork), 0, 1)


def by_store(fork: ForkSession) -> None:
    zarr.open_array(pickle.loads(pickle.dumps(fork.store)), path="a", mode="r+")[0] = 1


def by_processes(fork: ForkSession) -> None:
    with shared("processes"):
        target = zarr.open_array(fork.store, path="a", mode="r+")
        da.store(da.ones(SIZE, chunks=1, dtype="i4"), target, lock=False)


def by_cluster(fork: ForkSession) -> None:
    with running("inproc"):
        target = zarr.open_array(fork.store, path="a", mode="r+")
        da.store(da.ones(SIZE, chunks=1, dtype="i4"), target, lock=False)


def and_then_here(fork: ForkSession) -> None:
    """Not all went elsewhere, and what was done here comes last."""
    by_pickle(fork)
    write(fork, 1, 1)


@pytest.mark.parametrize(
    "travel", [by_pickle, by_copy, by_store, by_processes, by_cluster, and_then_here]
)
def test_a_fork_whose_copies_are_out_is_not_merged(
    repository: Repository, travel: Callable[[ForkSession], None]
) -> None:
    session = repository.writable_session("main")
    fork = session.fork()
    travel(fork)
    merges: list[Callable[[], object]] = [
        lambda: session.merge(fork),
        lambda: session.merge(session.fork(), fork),
        lambda: session.merge(merge_sessions(session.fork(), fork)),
        lambda: session.merge(merge_sessions(fork)),
        lambda: session.fork().merge(fork),
    ]
    for merge in merges:
        with pytest.raises(SessionStateError, match="to_icechunk") as error:
            merge()
        assert error.value.kind is ErrorKind.MERGE_NOT_ALLOWED
        assert "store_dask" in str(error.value)
        assert not session.has_uncommitted_changes
    # the way that the message names, for copies that were only read
    session.merge_change_sets([fork.change_set_bytes()])


def test_what_comes_back_is_merged(repository: Repository) -> None:
    """In any combination with the originals, also by way of other processes."""
    session = repository.writable_session("main")
    forks = [session.fork() for _ in range(3)]
    back = [sent(sent(fork)) for fork in forks]
    for row, fork in enumerate(back):
        write(fork, row, row + 1)
    session.merge(forks[0], *map(sent, back[:2]), forks[1])
    with pytest.raises(SessionStateError, match="copies of 1 of 2 forks") as error:
        session.merge(forks[2], forks[1])
    assert "the fork were" not in str(error.value)
    # went out once more: what was done on that way is not here
    with pytest.raises(SessionStateError, match="copies of the fork"):
        again = sent(back[2])
        write(again, 5, 5)
        session.merge(back[2])
    session.merge(again)
    # now the originals have nothing that is not here
    session.merge(*forks, *back)
    assert read(session) == [1, 2, 3, 0, 0, 5]
    session.commit("merged")
    assert read(repository.readonly_session("main")) == [1, 2, 3, 0, 0, 5]


def test_one_fork_for_many_tasks(repository: Repository) -> None:
    session = repository.writable_session("main")
    fork = session.fork()
    back = [sent(fork) for _ in range(SIZE)]
    for row, each in enumerate(back):
        write(each, row, row + 1)
    session.merge(merge_sessions(back[:3], back[3:]))
    session.merge(fork)
    assert read(session) == [1, 2, 3, 4, 5, 6]


def test_forks_of_forks_come_back_with_their_parent(repository: Repository) -> None:
    session = repository.writable_session("main")
    parent = sent(session.fork())
    child = parent.fork()
    write(sent(child), 0, 1)
    with pytest.raises(SessionStateError, match="copies of the fork"):
        parent.merge(child)
    done = sent(child)
    write(done, 1, 2)
    parent.merge(done)
    session.merge(sent(parent))
    assert read(session)[:3] == [0, 2, 0]


def test_reductions_may_send_results_around(repository: Repository) -> None:
    """A worker sent a result to another one, which died, and merges it itself."""
    session = repository.writable_session("main")
    one, two = (sent(session.fork()) for _ in range(2))
    write(one, 0, 1)
    write(two, 1, 2)
    sent(one)
    session.merge(sent(merge_sessions(one, two)))
    assert read(session)[:3] == [1, 2, 0]


@pytest.mark.parametrize("way", ["sync", "threads"])
def test_threads_write_to_the_fork_itself(repository: Repository, way: str) -> None:
    session = repository.writable_session("main")
    fork = session.fork()
    with running(way):
        target = zarr.open_array(fork.store, path="a", mode="r+")
        da.store(da.arange(SIZE, chunks=1, dtype="i4"), target, lock=False)
    with ThreadPoolExecutor(2) as pool:
        other = session.fork()
        list(pool.map(lambda row: write(other, row, 9), [0]))
    session.merge(fork)
    assert read(session) == list(range(SIZE))


def test_the_error_of_a_writable_session_says_how_to_go_on(repository: Repository) -> None:
    session = repository.writable_session("main")
    for thing in (session, session.store):
        with pytest.raises(SessionStateError, match=r"fork\(\)") as error:
            pickle.dumps(thing)
        assert "to_icechunk" in str(error.value)
        assert "store_dask" in str(error.value)
