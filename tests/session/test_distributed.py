"""Work that is done in other processes, and comes back as change sets or forks."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    ConflictError,
    ErrorKind,
    ForkSession,
    FormatError,
    IcechunkStore,
    InvalidInputError,
    LocalStorage,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    Session,
    SessionStateError,
)
from icechunk.distributed import Changes, extract_session, merge_sessions
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.storage.base import Storage

# half of the chunks inline, half of them objects of their own
CONFIG = RepositoryConfig(inline_chunk_threshold_bytes=30)
WORKERS = 3


# -- what runs in other processes --------------------------------------------------------
def fill(store: IcechunkStore, part: int) -> None:
    """Write every third row of an array, an array of its own, and a group that all make."""
    group = zarr.open_group(store, mode="r+")
    array = group["shared"]
    assert isinstance(array, zarr.Array)
    for row in range(part, array.shape[0], WORKERS):
        array[row] = np.arange(array.shape[1]) + 100 * row
    zarr.create_group(store, path="common")
    own = zarr.create_array(store, name=f"common/part{part}", shape=(4,), chunks=(2,), dtype="i8")
    own[:] = part + 1


def work_on_a_fork(pickled: bytes, part: int) -> ForkSession:
    fork: ForkSession = pickle.loads(pickled)
    fill(fork.store, part)
    return fork


def work_on_a_store(folder: str, part: int) -> bytes:
    store = IcechunkStore.open_existing(LocalStorage(folder), "r+")
    fill(store, part)
    return store.change_set_bytes()


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        yield pool


# -- here --------------------------------------------------------------------------------
@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def prepared(storage: Storage) -> Repository:
    repository = Repository.create(storage, CONFIG)
    session = repository.writable_session("main")
    group = zarr.create_group(session.store)
    group.create_array("shared", shape=(9, 8), chunks=(1, 4), dtype="i4", compressors=None)
    group["shared"][:, 4:] = -1
    session.commit("array")
    return repository


@pytest.fixture
def repository() -> Repository:
    return prepared(MemoryStorage())


def write(session: Session, row: int, value: int) -> None:
    zarr.open_array(session.store, path="shared", mode="r+")[row] = value


def rows(session: Session) -> list[int]:
    found: list[int] = zarr.open_array(session.store, path="shared", mode="r")[:, 0].tolist()
    return found


def check_result(repository: Repository) -> None:
    group = zarr.open_group(repository.readonly_session("main").store, mode="r")
    assert sorted(group) == ["common", "shared"]
    expected = np.arange(8) + 100 * np.arange(9)[:, None]
    np.testing.assert_array_equal(group["shared"][:], expected)
    assert sorted(group["common"]) == ["part0", "part1", "part2"]
    for part in range(WORKERS):
        assert group[f"common/part{part}"][:].tolist() == [part + 1] * 4


def test_forks_in_other_processes(workers: ProcessPoolExecutor, storage: LocalStorage) -> None:
    repository = prepared(storage)
    session = repository.writable_session("main")
    pickled = pickle.dumps(session.fork())
    forks = list(workers.map(work_on_a_fork, [pickled] * WORKERS, range(WORKERS)))
    assert all(isinstance(fork, ForkSession) for fork in forks)
    session.merge(*forks)
    session.commit("three processes")
    check_result(repository)


def test_stores_of_their_own_in_other_processes(
    workers: ProcessPoolExecutor, storage: LocalStorage
) -> None:
    """One commit holds all of it; bytes that come twice change nothing."""
    repository = prepared(storage)
    store = IcechunkStore.open_existing(storage, "r+")
    sent = list(workers.map(work_on_a_store, [str(storage.path)] * WORKERS, range(WORKERS)))
    commit = store.distributed_commit("three processes", [*sent, sent[1], *sent])
    check_result(repository)
    ancestry = [entry.id for entry in repository.ancestry(branch="main")]
    assert ancestry[0] == commit
    assert len(ancestry) == 3


def test_two_disagree_and_nothing_is_committed(
    workers: ProcessPoolExecutor, storage: LocalStorage
) -> None:
    """A retried task has written other chunk objects: the same coordinates, other ids."""
    repository = prepared(storage)
    store = IcechunkStore.open_existing(storage, "r+")
    sent = list(workers.map(work_on_a_store, [str(storage.path)] * 2, [0, 0]))
    other = IcechunkStore.open_existing(storage, "r+")
    zarr.open_array(other, path="shared", mode="r+")[3] = 42
    with pytest.raises(ConflictError, match=r"'/shared', chunks \(3, 0\), \(3, 1\)") as error:
        store.distributed_commit("never", [sent[0], other.change_set_bytes()])
    assert error.value.kind == ErrorKind.MERGE_FAILED
    assert len(list(repository.ancestry(branch="main"))) == 2
    assert not store.has_uncommitted_changes
    store.distributed_commit("the last", [sent[0], other.change_set_bytes()], on_conflict="last")
    assert rows(store.session)[3] == 42


def send_changes(fork: ForkSession) -> bytes:
    return pickle.dumps(Changes.merged([Changes.of(fork)]))


@pytest.mark.parametrize("send", [pickle.dumps, ForkSession.change_set_bytes, send_changes])
def test_what_a_worker_sends_is_on_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, send: Callable[[ForkSession], bytes]
) -> None:
    """Who commits it elsewhere cannot see to that."""
    prepared(LocalStorage(tmp_path))
    fork = Repository.open(LocalStorage(tmp_path)).writable_session("main").fork()
    zarr.open_array(fork.store, path="shared", mode="r+")[0] = 1
    synced: list[str] = []
    monkeypatch.setattr(LocalStorage, "sync", lambda self: synced.append(self.path))
    send(fork)
    assert synced == [str(tmp_path)]


# -- the rules of merging ----------------------------------------------------------------
def test_a_task_that_ran_twice(repository: Repository) -> None:
    """Its small chunks are equal. Large ones are different objects, and that is told."""
    session = repository.writable_session("main")
    forks = [session.fork() for _ in range(2)]
    for fork in forks:
        write(fork, 0, 7)
    session.merge(*forks)
    session.merge(forks[0])
    session.merge_change_sets([fork.change_set_bytes() for fork in forks])
    session.commit("once")
    assert rows(repository.readonly_session("main"))[0] == 7


def test_change_sets_of_another_base(repository: Repository) -> None:
    stale = repository.writable_session("main")
    write(stale, 0, 7)
    session = repository.writable_session("main")
    write(session, 1, 8)
    session.commit("moved on")
    session = repository.writable_session("main")
    write(session, 2, 9)
    with pytest.raises(SessionStateError, match="different snapshots") as error:
        session.merge_change_sets([stale.change_set_bytes()])
    assert error.value.kind == ErrorKind.MERGE_FAILED
    with pytest.raises(SessionStateError, match="different snapshots"):
        session.distributed_commit("no", [stale.change_set_bytes()])
    with pytest.raises(SessionStateError, match="different snapshots"):
        session.merge(repository.writable_session("main").fork(), _fork_at(repository, 1))
    assert rows(session)[:3] == [0, 8, 9]


def _fork_at(repository: Repository, age: int) -> ForkSession:
    older = list(repository.ancestry(branch="main"))[age].id
    repository.create_branch("older", older)
    fork = repository.writable_session("older").fork()
    write(fork, 5, 5)
    return fork


def test_change_sets_of_another_repository(repository: Repository) -> None:
    """Its arrays have other ids, even if they look the same."""
    other = prepared(MemoryStorage()).writable_session("main")
    write(other, 0, 7)
    session = repository.writable_session("main")
    with pytest.raises(SessionStateError, match="different snapshots"):
        session.merge_change_sets([other.change_set_bytes()])


@pytest.mark.parametrize("wrong", [b"", b"nonsense", b"ICHKCS\x01", 5, "text"])
def test_bytes_that_are_no_change_set(repository: Repository, wrong: Any) -> None:
    session = repository.writable_session("main")
    write(session, 0, 7)
    fork = session.fork()
    write(fork, 1, 8)
    good = fork.change_set_bytes()
    for call in (session.merge_change_sets, lambda sets: session.distributed_commit("no", sets)):
        with pytest.raises(FormatError, match="change set 1"):
            call([good, wrong])
    # nothing of it was taken over, not even the good one
    assert rows(session)[:2] == [7, 0]
    assert len(list(repository.ancestry(branch="main"))) == 2


def test_a_fork_knows_what_its_parent_did(repository: Repository) -> None:
    """And overrides it; what the parent does later contradicts it."""
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="new", shape=(2,), chunks=(1,), dtype="i4")[:] = 1
    write(session, 0, 1)
    fork = pickle.loads(pickle.dumps(session.fork()))
    assert rows(fork)[0] == 1
    assert not fork.has_uncommitted_changes
    write(fork, 0, 2)
    zarr.open_array(fork.store, path="new", mode="r+")[0] = 3
    assert fork.has_uncommitted_changes
    late = session.fork()
    write(late, 1, 1)
    write(session, 1, 2)
    session.merge(fork)
    assert rows(session)[:2] == [2, 2]
    with pytest.raises(ConflictError, match=r"'/shared', chunks \(1, 0\), \(1, 1\)"):
        session.merge(late)
    assert rows(session)[:2] == [2, 2]
    session.commit("merged")
    assert zarr.open_array(session.store, path="new", mode="r")[:].tolist() == [3, 1]


def test_forks_of_later_rounds(repository: Repository) -> None:
    """Each round begins with what the last one did, and may write it again."""
    session = repository.writable_session("main")
    for value in range(1, 4):
        forks = [session.fork() for _ in range(2)]
        for row, fork in enumerate(forks):
            assert rows(fork)[:2] == [value - 1] * 2
            write(fork, row, value)
        session.merge(*forks)
        assert rows(session)[:2] == [value] * 2
    session.commit("three rounds")
    assert rows(repository.readonly_session("main"))[:2] == [3, 3]


def test_forks_after_many_merges(repository: Repository) -> None:
    """What a fork began with is one change set, however many were merged before."""
    session = repository.writable_session("main")
    early = session.fork()
    for value in range(1, 10):
        fork = session.fork()
        write(fork, value % 3, value)
        session.merge(fork)
        write(session, 3, value)
    late = session.fork()
    assert rows(late) == rows(session) == [9, 7, 8, 9, 0, 0, 0, 0, 0]
    assert late.__getstate__()["edits"]["inherited"] == 1
    write(early, 0, 77)
    with pytest.raises(ConflictError):
        session.merge(early)
    write(late, 0, 10)
    session.merge(pickle.loads(pickle.dumps(late)))
    assert rows(session)[:4] == [10, 7, 8, 9]


def test_an_array_that_two_deleted_counts_once(repository: Repository) -> None:
    """Ids of nodes depend on how many were at a path before, for a fork as for its parent."""

    def create(session: Session) -> str:
        zarr.create_array(session.store, name="shared", shape=(9, 8), chunks=(1, 4), dtype="i4")
        return session.get_node_id("/shared")

    session = repository.writable_session("main")
    first = session.fork()
    session.delete_nodes("/shared")
    session.fork()
    first.delete_nodes("/shared")
    session.merge(first)
    later = session.fork()
    assert create(session) == create(later)
    session.merge(later)


def test_a_fork_of_an_earlier_round_comes_late(repository: Repository) -> None:
    session = repository.writable_session("main")
    first, late = session.fork(), session.fork()
    write(first, 0, 1)
    write(late, 1, 1)
    session.merge(first)
    second = session.fork()
    write(second, 0, 2)
    # beside the second round, and does not contradict it
    session.merge(late)
    session.merge(second)
    assert rows(session)[:3] == [2, 1, 0]
    # what was overridden meanwhile is not put back in silence
    with pytest.raises(ConflictError):
        session.merge(first)
    assert rows(session)[:3] == [2, 1, 0]


def test_forks_of_forks(repository: Repository) -> None:
    session = repository.writable_session("main")
    child = session.fork()
    write(child, 0, 1)
    grandchildren = [child.fork() for _ in range(2)]
    for row, grandchild in enumerate(grandchildren):
        write(grandchild, row, 2)
    with pytest.raises(SessionStateError, match="commits are not allowed"):
        child.commit("no")
    child.merge(*grandchildren)
    assert rows(child)[:2] == [2, 2]
    session.merge(pickle.loads(pickle.dumps(child)))
    assert rows(session)[:2] == [2, 2]


def test_a_fork_that_travels_knows_its_forks(repository: Repository) -> None:
    child = repository.writable_session("main").fork()
    write(child, 0, 1)
    grandchild = child.fork()
    write(grandchild, 0, 2)  # it saw the 1, and may override it
    write(child, 1, 1)
    later = child.fork()
    write(later, 1, 2)
    child = pickle.loads(pickle.dumps(child))
    with pytest.raises(ConflictError):
        # the one in between did not see what the child wrote after it
        stale = pickle.loads(pickle.dumps(grandchild))
        write(stale, 1, 3)
        child.merge(stale)
    child = pickle.loads(pickle.dumps(child))
    child.merge(pickle.loads(pickle.dumps(grandchild)), later)
    assert rows(child)[:2] == [2, 2]
    child.discard_changes()
    assert not child.has_uncommitted_changes


def test_merge_sessions(repository: Repository) -> None:
    """Forks are merged into the first of them, as a reduction does, however nested."""
    session = repository.writable_session("main")
    forks = [pickle.loads(pickle.dumps(session.fork())) for _ in range(4)]
    for row, fork in enumerate(forks):
        write(fork, row, row + 1)
    merged = merge_sessions(forks[0], [forks[1], (forks[2],)], [[forks[3]]])
    assert merged is forks[0]
    assert rows(merged)[:5] == [1, 2, 3, 4, 0]
    session.merge(merged)
    assert rows(session)[:5] == [1, 2, 3, 4, 0]
    wrong: Any = session
    with pytest.raises(TypeError, match="takes forks, not a Session"):
        merge_sessions(forks[0], wrong)
    with pytest.raises(InvalidInputError, match="takes forks of this session, not a Session"):
        repository.writable_session("main").merge(wrong)
    session.merge(wrong)  # itself: there is nothing to do
    merged.merge(merged)
    assert rows(session)[:5] == rows(merged)[:5] == [1, 2, 3, 4, 0]


def test_merging_forks_that_disagree(repository: Repository) -> None:
    session = repository.writable_session("main")
    one, two = session.fork(), session.fork()
    write(one, 0, 1)
    write(one, 1, 1)
    write(two, 0, 2)
    for merge in (lambda: session.merge(one, two), lambda: merge_sessions([one, two])):
        with pytest.raises(ConflictError, match=r"'/shared', chunks \(0, 0\)"):
            merge()
    assert not session.has_uncommitted_changes
    assert rows(one)[:2] == [1, 1]
    session.merge_change_sets([one.change_set_bytes(), two.change_set_bytes()], on_conflict="last")
    assert rows(session)[:2] == [2, 1]


def test_an_array_that_was_deleted_meanwhile(repository: Repository) -> None:
    session = repository.writable_session("main")
    fork = session.fork()
    write(fork, 0, 1)
    del zarr.open_group(session.store, mode="r+")["shared"]
    with pytest.raises(ConflictError, match="ChunksUpdatedInDeletedArray, '/shared'"):
        session.merge(fork)
    # the last one was the deletion, whichever order
    session.merge_change_sets([fork.change_set_bytes()], on_conflict="last")
    session.commit("deleted")
    diff = repository.diff(
        from_snapshot_id=list(repository.ancestry(branch="main"))[1].id, to_branch="main"
    )
    assert diff.deleted_arrays == {"/shared"}
    assert diff.updated_chunks == {}


def test_an_array_that_was_shrunk_meanwhile(repository: Repository) -> None:
    """Chunks outside of the grid are dropped, and are not there when it grows again.

    Zarr deletes them, which a fork that wrote them contradicts; other writers may not.
    """
    session = repository.writable_session("main")
    fork = session.fork()
    write(fork, 0, 1)
    write(fork, 8, 1)
    document = json.loads(session.tree.require("/shared").user_data)
    document["shape"] = [5, 8]
    session.set_metadata_document("/shared", json.dumps(document).encode())
    session.merge(fork)
    session.commit("shrunk")
    with repository.transaction("main", message="grown") as store:
        zarr.open_array(store, path="shared", mode="r+").resize((9, 8))
    assert rows(repository.readonly_session("main")) == [1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_an_array_that_was_never_committed(repository: Repository) -> None:
    """A fork outlives changes that its parent discards."""
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="new", shape=(2,), chunks=(1,), dtype="i4")
    fork = session.fork()
    zarr.open_array(fork.store, path="new", mode="r+")[:] = 1
    session.discard_changes()
    with pytest.raises(SessionStateError, match="'/new', but not as this session has it"):
        session.merge(fork)
    assert not session.has_uncommitted_changes
    assert session.tree.get("/new") is None


def test_discarding_the_changes_of_a_fork(repository: Repository) -> None:
    session = repository.writable_session("main")
    write(session, 0, 1)
    fork = session.fork()
    write(fork, 0, 2)
    write(fork, 1, 2)
    fork.discard_changes()
    assert not fork.has_uncommitted_changes
    assert rows(fork)[:2] == [1, 0]
    write(fork, 2, 3)
    session.merge(fork)
    assert rows(session)[:3] == [1, 0, 3]


def test_discarding_the_changes_that_a_fork_of_a_fork_saw(repository: Repository) -> None:
    child = repository.writable_session("main").fork()
    write(child, 0, 1)
    grandchild = child.fork()
    write(grandchild, 0, 2)
    child.discard_changes()
    write(child, 0, 3)
    with pytest.raises(ConflictError, match=r"'/shared', chunks \(0, 0\)"):
        child.merge(grandchild)
    child.discard_changes()
    child.merge(grandchild)
    assert rows(child)[0] == 2


def test_a_fork_cannot_commit(repository: Repository) -> None:
    fork = repository.writable_session("main").fork()
    write(fork, 0, 1)
    assert fork.is_fork
    assert fork.branch is None
    for call in (fork.commit, fork.amend, fork.flush):
        with pytest.raises(SessionStateError) as error:
            call("no")
        assert error.value.kind == ErrorKind.COMMIT_NOT_ALLOWED
    with pytest.raises(SessionStateError) as error:
        repository.readonly_session("main").fork()
    assert error.value.kind == ErrorKind.CANNOT_FORK_READ_ONLY_SESSION


def test_a_failed_distributed_commit_leaves_no_trace(repository: Repository) -> None:
    """The session is as it was: what it did itself is there, what was sent is not."""
    session = repository.writable_session("main")
    write(session, 0, 1)
    fork = session.fork()
    write(fork, 1, 2)
    racer = repository.writable_session("main")
    write(racer, 5, 5)
    racer.commit("first")
    with pytest.raises(ConflictError) as error:
        session.distributed_commit("second", [fork.change_set_bytes()])
    assert error.value.kind == ErrorKind.COMMIT_CONFLICT
    assert rows(session)[:2] == [1, 0]


def test_distributed_commit_with_metadata(repository: Repository) -> None:
    session = repository.writable_session("main")
    fork = session.fork()
    write(fork, 1, 2)
    commit = session.distributed_commit("sent", iter([fork.change_set_bytes()]), {"n": 1})
    assert repository.lookup_snapshot(commit).metadata == {"n": 1}
    assert session.read_only
    assert rows(session)[1] == 2


@pytest.mark.parametrize("tasks", [1, 8])
def test_memory_of_a_coordinator(tmp_path: Path, tasks: int) -> None:
    """Merging and committing native references takes less than 100 bytes for each."""
    shape = (400, 1000)
    repository = Repository.create(LocalStorage(tmp_path))
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=shape, chunks=(1, 1), dtype="f4")
    session.commit("an array")
    session = repository.writable_session("main")
    coords = np.indices(shape, np.uint32).reshape(2, -1).T
    ids = np.random.default_rng(0).integers(0, 256, (len(coords), 12), np.uint8)
    sent = []
    for part in np.array_split(np.arange(len(coords)), tasks):
        fork = session.fork()
        fork.set_refs("/a", ChunkRefs.native(coords[part], ids[part], 4096))
        sent.append(fork.change_set_bytes())
    del fork
    merged = repository.writable_session("main")
    tracemalloc.start()
    merged.merge_change_sets(sent)
    held, merging = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    merged.commit("all")
    committing = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 24 * len(coords)
    assert merging < 70 * len(coords)
    assert committing < 100 * len(coords)
    assert merged.chunk_refs("/a") == ChunkRefs.native(coords, ids, 4096)


def test_extract_session(repository: Repository) -> None:
    session = repository.writable_session("main")
    array = zarr.open_array(session.store, path="shared", mode="r+")
    assert extract_session(array) is session
    assert extract_session(array, axis=0, keepdims=True) is session
    for wrong in (zarr.zeros((2,)), 5):
        with pytest.raises(InvalidInputError, match="not a Zarr array of an Icechunk store"):
            extract_session(wrong)
