"""Sessions: one transaction, from its begin to its commit."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    AlreadyExistsError,
    ChunkType,
    ConflictError,
    CountingStorage,
    ErrorKind,
    FaultyStorage,
    InvalidInputError,
    MemoryStorage,
    NodeNotFoundError,
    PreconditionFailedError,
    ReadOnlyError,
    RefNotFoundError,
    RepoAvailability,
    Repository,
    RepositoryConfig,
    RepoStatus,
    RepoUpdateRetryConfig,
    Session,
    SessionMode,
    SessionStateError,
    SnapshotNotFoundError,
    StorageError,
    StorageRetriesSettings,
)
from icechunk.format.ids import decode_id
from icechunk.storage import WrapperStorage
from icechunk.storage.base import Storage
from tests.storages import KINDS, new_storage

FIRST = "1CECHNKREP0F1RSTCMT0"
# every chunk an object of its own
NATIVE = RepositoryConfig(inline_chunk_threshold_bytes=0)


@pytest.fixture
def storage() -> Storage:
    return MemoryStorage()


@pytest.fixture
def repository(storage: Storage) -> Repository:
    return with_array(Repository.create(storage, NATIVE))


def with_array(repository: Repository) -> Repository:
    """Commit an array of ten chunks, two of which have values."""
    session = repository.writable_session("main")
    group = zarr.create_group(session.store)
    array = group.create_array("a", shape=(10,), chunks=(1,), dtype="i4", compressors=None)
    array[:2] = [1, 2]
    session.commit("array")
    return repository


def values(session: Session) -> list[int]:
    found: list[int] = zarr.open_array(session.store, path="a", mode="r")[:].tolist()
    return found


def newest(repository: Repository, branch: str = "main") -> list[int]:
    return values(repository.readonly_session(branch))


def write(session: Session, index: int, value: int) -> None:
    zarr.open_array(session.store, path="a", mode="r+")[index] = value


def messages(repository: Repository, branch: str = "main") -> list[str]:
    return [entry.message for entry in repository.ancestry(branch=branch)]


# -- commits -----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_commit(kind: str, request: pytest.FixtureRequest) -> None:
    repository = with_array(Repository.create(new_storage(kind, request)))
    session = repository.writable_session("main")
    base = session.snapshot_id
    assert (session.read_only, session.mode, session.branch) == (
        False,
        SessionMode.writable,
        "main",
    )
    write(session, 5, 50)
    assert session.has_uncommitted_changes
    assert newest(repository)[5] == 0
    commit = session.commit("fifty", {"by": "somebody", "n": [1, 2.5, None]})
    assert newest(repository)[5] == 50
    entry = repository.lookup_snapshot(commit)
    assert (entry.id, entry.parent_id, entry.message) == (commit, base, "fifty")
    assert entry.metadata == {"by": "somebody", "n": [1, 2.5, None]}
    assert Repository.open(repository.storage).lookup_branch("main") == commit


def test_a_committed_session_reads_on(repository: Repository) -> None:
    """It is at the new snapshot, and refuses everything that writes."""
    session = repository.writable_session("main")
    write(session, 0, 7)
    commit = session.commit("seven")
    assert (session.snapshot_id, session.branch, session.mode) == (
        commit,
        None,
        SessionMode.readonly,
    )
    assert not session.has_uncommitted_changes
    assert values(session)[0] == 7
    store = session.store
    assert store.read_only
    chunk: Any = zarr.core.buffer.cpu.Buffer.from_bytes(b"1234")
    for refused in (
        lambda: store.set_sync("a/c/0", chunk),
        lambda: store.delete_sync("a/c/0"),
        lambda: store.sync_clear(),
        lambda: session.chunks.set("/a", (0,), b"1234"),
        lambda: session.discard_changes(),
        lambda: session.move("/a", "/b"),
        lambda: session.merge_change_sets([]),
    ):
        with pytest.raises(ReadOnlyError):
            refused()
    for call in (session.commit, session.amend, session.flush):
        with pytest.raises(SessionStateError) as error:
            call("again")
        assert error.value.kind == ErrorKind.COMMIT_NOT_ALLOWED


def test_commit_of_nothing(repository: Repository) -> None:
    session = repository.writable_session("main")
    root = zarr.open_group(session.store, mode="a")
    root.create_group("one/two")
    root.create_array("one/three", shape=(4,), chunks=(2,), dtype="i4")
    del root["one"]
    assert not session.has_uncommitted_changes
    for call in (session.commit, session.amend):
        with pytest.raises(SessionStateError) as error:
            call("nothing")
        assert error.value.kind == ErrorKind.NO_CHANGES_TO_COMMIT
    before = session.snapshot_id
    assert session.commit("nothing", allow_empty=True) != before
    assert messages(repository)[0] == "nothing"


def test_default_commit_metadata(repository: Repository) -> None:
    repository.set_default_commit_metadata({"by": "default", "job": 1})
    assert repository.default_commit_metadata() == {"by": "default", "job": 1}
    session = repository.writable_session("main")
    write(session, 0, 7)
    commit = session.commit("seven", {"by": "me"})
    assert repository.lookup_snapshot(commit).metadata == {"by": "me", "job": 1}


def test_commit_metadata_that_cannot_be_stored(repository: Repository) -> None:
    session = repository.writable_session("main")
    write(session, 0, 7)
    with pytest.raises(InvalidInputError, match="metadata"):
        session.commit("seven", {"when": object()})
    session.commit("seven")


def test_the_branch_moved(repository: Repository) -> None:
    """The second of two sessions fails, keeps its changes, and says where the branch is."""
    first, second = (repository.writable_session("main") for _ in range(2))
    base = first.snapshot_id
    write(first, 0, 10)
    write(second, 1, 20)
    tip = first.commit("first")
    for call in (second.commit, second.amend):
        with pytest.raises(ConflictError) as error:
            call("second")
        assert error.value.kind == ErrorKind.COMMIT_CONFLICT
        assert error.value.expected_parent == base
        assert error.value.actual_parent == tip
    assert second.has_uncommitted_changes
    assert values(second)[:2] == [1, 20]
    assert newest(repository)[:2] == [10, 2]
    assert messages(repository)[0] == "first"


def test_the_branch_is_gone(repository: Repository) -> None:
    repository.create_branch("dev", repository.lookup_branch("main"))
    session = repository.writable_session("dev")
    write(session, 0, 7)
    repository.delete_branch("dev")
    with pytest.raises(RefNotFoundError):
        session.commit("nowhere")


def test_timestamps_rise(repository: Repository) -> None:
    """Each snapshot is younger than its parent, however fast commits follow each other."""
    for i in range(5):
        session = repository.writable_session("main")
        write(session, 0, 100 + i)
        session.commit(str(i))
    times = [entry.written_at for entry in repository.ancestry(branch="main")]
    assert times == sorted(set(times), reverse=True)


# -- amend, flush, discard, transactions -----------------------------------------------
def test_amend(repository: Repository) -> None:
    before = repository.lookup_branch("main")
    session = repository.writable_session("main")
    write(session, 5, 50)
    zarr.create_group(session.store, path="g")
    amended = session.amend("array and more", metadata={"n": 2})
    entries = list(repository.ancestry(branch="main"))
    assert [entry.id for entry in entries] == [amended, FIRST]
    assert entries[0].metadata == {"n": 2}
    assert newest(repository)[:6] == [1, 2, 0, 0, 0, 50]
    # what the amended commit changed is a change of the new one
    diff = repository.diff(from_snapshot_id=FIRST, to_branch="main")
    assert diff.new_arrays == {"/a"}
    assert diff.new_groups == {"/", "/g"}
    assert diff.updated_chunks == {"/a": [[0], [1], [5]]}
    # the old one is there until it is collected
    assert values(repository.readonly_session(snapshot_id=before))[:2] == [1, 2]


def test_amend_of_the_first_snapshot() -> None:
    session = Repository.create(MemoryStorage()).writable_session("main")
    zarr.create_group(session.store)
    with pytest.raises(SessionStateError) as error:
        session.amend("no")
    assert error.value.kind == ErrorKind.NO_AMEND_FOR_INITIAL_COMMIT
    session.commit("yes")


def test_flush(repository: Repository) -> None:
    tip = repository.lookup_branch("main")
    session = repository.writable_session("main")
    write(session, 5, 50)
    detached = session.flush("on no branch", metadata={"n": 1})
    assert session.read_only
    assert values(session)[5] == 50
    assert repository.lookup_branch("main") == tip
    assert values(repository.readonly_session(snapshot_id=detached))[5] == 50
    entry = repository.lookup_snapshot(detached)
    assert (entry.parent_id, entry.message, entry.metadata) == (tip, "on no branch", {"n": 1})
    repository.create_branch("dev", detached)
    assert newest(repository, "dev")[5] == 50


def test_flush_of_nothing(repository: Repository) -> None:
    session = repository.writable_session("main")
    before = session.snapshot_id
    detached = session.flush("nothing new")
    assert repository.lookup_snapshot(detached).parent_id == before
    assert repository.lookup_branch("main") == before
    assert session.read_only


def test_an_array_that_was_written_and_deleted_is_a_change(repository: Repository) -> None:
    session = repository.writable_session("main")
    root = zarr.open_group(session.store, mode="a")
    root.create_array("new", shape=(4,), chunks=(2,), dtype="i4")[:] = 1
    del root["new"]
    assert session.has_uncommitted_changes
    assert session.status().is_empty()
    session.commit("as the official client does")


def test_status_and_discard(repository: Repository) -> None:
    session = repository.writable_session("main")
    assert session.status().is_empty()
    array = zarr.open_array(session.store, path="a", mode="r+")
    array[3] = 30
    array[0] = 0  # the fill value: the chunk goes
    array.attrs["unit"] = "m"
    group = zarr.open_group(session.store, mode="r+")
    group.attrs["title"] = "t"
    group.create_group("g")
    group.create_array("b", shape=(2,), chunks=(1,), dtype="i4")[:] = 1
    group.create_group("gone")
    del group["gone"]
    status = session.status()
    assert status.new_groups == {"/g"}
    assert status.new_arrays == {"/b"}
    assert status.updated_arrays == {"/a"}
    assert status.updated_groups == {"/"}
    assert status.updated_chunks == {"/a": [[0], [3]], "/b": [[0], [1]]}
    assert not status.deleted_groups
    assert not status.deleted_arrays
    for said in ("Groups created", "/g", "Chunks updated", "    /a:\n        [0]\n        [3]\n"):
        assert said in repr(status)
    session.discard_changes()
    assert session.status().is_empty()
    assert repr(session.status()) == ""
    assert not session.has_uncommitted_changes
    assert values(session)[:4] == [1, 2, 0, 0]


def test_a_deleted_array_loses_its_chunks(repository: Repository) -> None:
    """One of the same name is another array, before the commit and after it."""
    session = repository.writable_session("main")
    group = zarr.open_group(session.store, mode="r+")
    old = session.get_node_id("/a")
    del group["a"]
    with pytest.raises(NodeNotFoundError):
        session.get_node_id("/a")
    group.create_array("a", shape=(10,), chunks=(1,), dtype="i4", compressors=None)[4] = 4
    assert session.get_node_id("/a") != old
    assert values(session) == [0, 0, 0, 0, 4, 0, 0, 0, 0, 0]
    status = session.status()
    assert (status.new_arrays, status.deleted_arrays) == ({"/a"}, {"/a"})
    session.commit("again")
    assert newest(repository) == [0, 0, 0, 0, 4, 0, 0, 0, 0, 0]


def test_an_array_becomes_a_group_and_back(repository: Repository) -> None:
    session = repository.writable_session("main")
    zarr.create_group(session.store, path="a", overwrite=True)
    zarr.create_group(session.store, path="a/b")
    session.commit("group")
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(3,), dtype="i4", overwrite=True)
    session.commit("array")
    group = zarr.open_group(repository.readonly_session("main").store, mode="r")
    assert sorted(group) == ["a"]
    assert (group["a"][:] == 0).all()


def test_shrinking_drops_chunks_for_good(repository: Repository) -> None:
    session = repository.writable_session("main")
    write(session, 9, 90)
    session.commit("ninety")
    for shape in (5, 10):
        session = repository.writable_session("main")
        zarr.open_array(session.store, path="a", mode="r+").resize((shape,))
        session.commit(f"{shape}")
    assert newest(repository) == [1, 2, 0, 0, 0, 0, 0, 0, 0, 0]


def test_the_one_chunk_of_an_empty_array(repository: Repository) -> None:
    """Writers may set it, as in official clients; there is nothing that it could hold."""
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="empty", shape=(0, 3), chunks=(1, 1), dtype="i4")
    session.chunks.set("/empty", (0, 2), b"1234")
    with pytest.raises(InvalidInputError, match="outside the chunk grid"):
        session.chunks.set("/empty", (1, 0), b"1234")
    session.commit("empty")
    assert len(session.chunk_refs("/empty")) == 0
    with repository.transaction("main", message="grown") as store:
        zarr.open_array(store, path="empty", mode="r+").resize((1, 3))
    reader = repository.readonly_session("main")
    assert not zarr.open_array(reader.store, path="empty", mode="r")[:].any()


def test_transaction(repository: Repository) -> None:
    with repository.transaction("main", message="five", metadata={"n": 5}) as store:
        zarr.open_array(store, path="a", mode="r+")[5] = 5
    assert newest(repository)[5] == 5
    entry = repository.lookup_snapshot(repository.lookup_branch("main"))
    assert (entry.message, entry.metadata) == ("five", {"n": 5})


def test_transaction_that_raises(repository: Repository) -> None:
    before = repository.lookup_branch("main")
    with (
        pytest.raises(ZeroDivisionError),
        repository.transaction("main", message="never") as store,
    ):
        zarr.open_array(store, path="a", mode="r+")[5] = 5
        raise ZeroDivisionError
    assert repository.lookup_branch("main") == before
    assert newest(repository)[5] == 0


# -- which version --------------------------------------------------------------------
def test_versions(repository: Repository) -> None:
    commits = [repository.lookup_branch("main")]
    for i in range(3):
        session = repository.writable_session("main")
        write(session, 5, i + 1)
        commits.append(session.commit(str(i)))
    repository.create_tag("v1", commits[1])
    for arguments, expected in (
        ({"branch": "main"}, 3),
        ({"tag": "v1"}, 1),
        ({"snapshot_id": commits[2]}, 2),
    ):
        session = repository.readonly_session(**arguments)
        assert values(session)[5] == expected
        assert (session.read_only, session.mode, session.branch) == (
            True,
            SessionMode.readonly,
            None,
        )
    for commit in commits:
        written = repository.lookup_snapshot(commit).written_at
        assert repository.readonly_session("main", as_of=written).snapshot_id == commit
        just_before = written - timedelta(microseconds=1)
        parent = repository.lookup_snapshot(commit).parent_id
        assert repository.readonly_session("main", as_of=just_before).snapshot_id == parent
    later = datetime.now(UTC) + timedelta(days=1)
    assert repository.readonly_session("main", as_of=later).snapshot_id == commits[-1]
    with pytest.raises(SnapshotNotFoundError, match="2000-01-01") as error:
        repository.readonly_session("main", as_of=datetime(2000, 1, 1, tzinfo=UTC))
    assert error.value.kind == ErrorKind.NO_SNAPSHOT_AT_TIME
    with pytest.raises(InvalidInputError, match="as_of argument must be provided"):
        repository.readonly_session(tag="v1", as_of=later)


def test_a_readonly_session_stays_where_it_is(repository: Repository) -> None:
    reader = repository.readonly_session("main")
    session = repository.writable_session("main")
    write(session, 0, 7)
    session.commit("seven")
    assert values(reader)[0] == 1


def test_diff(repository: Repository) -> None:
    one = repository.lookup_branch("main")
    repository.create_tag("v1", one)
    session = repository.writable_session("main")
    write(session, 5, 5)
    zarr.create_group(session.store, path="gone")
    two = session.commit("two")
    session = repository.writable_session("main")
    write(session, 6, 6)
    zarr.open_array(session.store, path="a", mode="r+").attrs["unit"] = "m"
    del zarr.open_group(session.store, mode="r+")["gone"]
    zarr.create_group(session.store, path="g")
    session.commit("three")
    diff = repository.diff(from_tag="v1", to_branch="main")
    assert diff.updated_chunks == {"/a": [[5], [6]]}
    assert diff.updated_arrays == {"/a"}
    # operations, not only their outcome
    diff = repository.diff(from_snapshot_id=FIRST, to_branch="main")
    assert diff.new_arrays == {"/a"}
    assert diff.updated_arrays == {"/a"}
    diff = repository.diff(from_tag="v1", to_branch="main")
    # a node that came and went is not mentioned
    assert diff.new_groups == {"/g"}
    assert not diff.deleted_groups
    assert repository.diff(from_snapshot_id=two, to_branch="main").deleted_groups == {"/gone"}
    assert repository.diff(from_branch="main", to_branch="main").is_empty()
    with pytest.raises(InvalidInputError, match="not an ancestor") as error:
        repository.diff(from_branch="main", to_tag="v1")
    assert error.value.kind == ErrorKind.BAD_SNAPSHOT_CHAIN_FOR_DIFF


# -- rearranging ------------------------------------------------------------------------
def test_rearrange(repository: Repository) -> None:
    session = repository.rearrange_session("main")
    assert session.mode is SessionMode.rearrange
    before = session.get_node_id("/a")
    session.move("/a", "/b")
    session.move("/b", "c")
    assert session.get_node_id("c") == before
    assert session.status().moved_nodes == [("/a", "/c")]
    session.commit("moved")
    array = zarr.open_array(repository.readonly_session("main").store, path="c", mode="r")
    assert array[:2].tolist() == [1, 2]
    diff = repository.diff(from_snapshot_id=FIRST, to_branch="main")
    assert diff.new_arrays == {"/c"}
    # the commit that moved is amended by more moves only
    session = repository.writable_session("main")
    zarr.create_group(session.store, path="g")
    with pytest.raises(SessionStateError, match="moved nodes"):
        session.amend("no")
    session = repository.rearrange_session("main")
    session.move("/c", "/d")
    session.amend("moved further")
    assert repository.diff(
        from_snapshot_id=list(repository.ancestry(branch="main"))[1].id, to_branch="main"
    ).moved_nodes == [("/a", "/d")]


def test_moving_there_and_back(repository: Repository) -> None:
    """Something was done, though there is nothing to show for it."""
    session = repository.rearrange_session("main")
    session.move("/a", "/b")
    session.move("/b", "/a")
    assert session.has_uncommitted_changes
    assert session.status().is_empty()
    session.commit("nothing moved")
    assert newest(repository)[:2] == [1, 2]
    assert repository.diff(from_snapshot_id=FIRST, to_branch="main").new_arrays == {"/a"}


def test_the_log_of_moves(repository: Repository) -> None:
    """From where a node was to where it is; what is between is not told."""
    session = repository.writable_session("main")
    zarr.create_group(session.store, path="g/h")
    session.commit("groups")
    session = repository.rearrange_session("main")
    session.move("/g", "/x")
    session.move("/x", "/y")
    commit = session.commit("moved")
    log = repository._context.assets.transaction_log(decode_id(commit))
    assert [(move.from_path, move.to_path, move.is_array) for move in log.moved_nodes] == [
        ("/g", "/y", False),
        ("/g/h", "/y/h", False),
    ]


def test_swapping_two_nodes(repository: Repository) -> None:
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="b", shape=(2,), chunks=(1,), dtype="i4")[:] = 9
    session.commit("b")
    session = repository.rearrange_session("main")
    for source, target in (("/a", "/x"), ("/b", "/a"), ("/x", "/b")):
        session.move(source, target)
    session.commit("swapped")
    group = zarr.open_group(repository.readonly_session("main").store, mode="r")
    assert group["a"][:].tolist() == [9, 9]
    assert group["b"][:2].tolist() == [1, 2]


def test_editing_and_rearranging_do_not_mix(repository: Repository) -> None:
    session = repository.writable_session("main")
    with pytest.raises(SessionStateError) as error:
        session.move("/a", "/b")
    assert error.value.kind == ErrorKind.NON_REARRANGE_SESSION
    rearranging = repository.rearrange_session("main")
    for refused in (
        lambda: zarr.create_group(rearranging.store, path="g"),
        lambda: write(rearranging, 0, 1),
        lambda: rearranging.store.delete_sync("a/zarr.json"),
        lambda: rearranging.store.delete_sync("a/c/0"),
    ):
        with pytest.raises(SessionStateError) as error:
            refused()
        assert error.value.kind == ErrorKind.REARRANGE_SESSION_ONLY
    with pytest.raises(SessionStateError):
        rearranging.fork()
    rearranging.move("/a", "/b")
    with pytest.raises(SessionStateError, match="moves nodes"):
        session.merge_change_sets([rearranging.change_set_bytes()])
    rearranging.discard_changes()
    assert not rearranging.has_uncommitted_changes


# -- sessions as values -------------------------------------------------------------------
def test_pickling(repository: Repository) -> None:
    reader = repository.readonly_session("main")
    copy = pickle.loads(pickle.dumps(reader))
    assert copy == reader
    assert values(copy) == values(reader)
    for session in (repository.writable_session("main"), repository.rearrange_session("main")):
        with pytest.raises(SessionStateError, match=r"fork\(\)") as error:
            pickle.dumps(session)
        assert error.value.kind == ErrorKind.PICKLE
        with pytest.raises(SessionStateError, match=r"fork\(\)"):
            pickle.dumps(session.store)


def test_equality(repository: Repository) -> None:
    one, two = (repository.writable_session("main") for _ in range(2))
    assert one == two
    zarr.create_group(one.store, path="g")
    assert one != two
    zarr.create_group(two.store, path="g")
    assert one == two
    reader = repository.readonly_session("main")
    assert reader == repository.readonly_session("main")
    assert reader != one
    assert reader != repository.readonly_session(snapshot_id=FIRST)
    assert reader != "a session"
    with pytest.raises(TypeError):
        hash(reader)


def test_repr(repository: Repository, storage: Storage) -> None:
    session = repository.writable_session("main")
    assert repr(session).splitlines() == [
        "<icechunk.session.Session>",
        "read_only: False",
        f"snapshot_id: {session.snapshot_id}",
        "branch: main",
        "has_uncommitted_changes: False",
    ]
    assert "uncommitted" not in repr(repository.readonly_session("main"))


def test_chunk_types(repository: Repository) -> None:
    session = repository.writable_session("main")
    assert session.chunk_type("/a", [0]) is ChunkType.native
    assert session.chunk_type("a", (7,)) is ChunkType.uninitialized
    write(session, 0, 0)
    assert session.chunk_type("/a", [0]) is ChunkType.uninitialized
    # what the grid does not have was never written
    assert session.chunk_type("/a", [10]) is ChunkType.uninitialized
    assert session.chunk_type("/a", [0, 0]) is ChunkType.uninitialized
    with pytest.raises(InvalidInputError, match="cannot be negative"):
        session.chunk_type("/a", [-1])
    with pytest.raises(InvalidInputError, match="is a group"):
        session.chunk_type("/", [0])
    with pytest.raises(NodeNotFoundError):
        session.chunk_type("/nothing", [0])
    assert session.all_virtual_chunk_locations() == []


async def test_async_twins(repository: Repository) -> None:
    session = await repository.writable_session_async("main")
    await session.store.set("g/zarr.json", zarr.core.buffer.cpu.Buffer.from_bytes(GROUP))
    commit = await session.commit_async("group", {"n": 1})
    assert await repository.lookup_branch_async("main") == commit
    reader = await repository.readonly_session_async("main")
    assert await reader.get_node_id_async("/g") == reader.get_node_id("/g")
    assert await reader.chunk_type_async("/a", [0]) is ChunkType.native
    mover = await repository.rearrange_session_async("main")
    await mover.move_async("/g", "/h")
    with pytest.raises(AlreadyExistsError):
        await mover.move_async("/h", "/a")
    await mover.commit_async("moved")
    assert session.commit_async.__name__ == "commit_async"
    assert session.commit_async.__doc__ is not None


GROUP = b'{"zarr_format":3,"node_type":"group"}'


# -- many at once ---------------------------------------------------------------------
def test_many_threads_in_one_session(repository: Repository) -> None:
    session = repository.writable_session("main")
    group = zarr.open_group(session.store, mode="r+")
    group.create_array("wide", shape=(64, 8), chunks=(1, 1), dtype="i4", compressors=None)

    def work(row: int) -> None:
        for column in range(8):
            data = np.array([row * 8 + column], "i4").tobytes()
            session.chunks.set("/wide", (row, column), data)
        session.set_metadata_document(f"/g{row}", GROUP)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(64)))
    session.commit("wide")
    group = zarr.open_group(repository.readonly_session("main").store, mode="r")
    assert (group["wide"][:] == np.arange(512).reshape(64, 8)).all()
    assert sum(name.startswith("g") for name in group) == 64


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_threads_commit_to_branches_of_their_own(kind: str, request: pytest.FixtureRequest) -> None:
    """Nobody loses: what is lost is a race, and it is run again."""
    repository = with_array(Repository.create(new_storage(kind, request), NATIVE))
    for name in ("one", "two"):
        repository.create_branch(name, repository.lookup_branch("main"))

    def work(name: str) -> None:
        own = Repository.open(repository.storage)
        for i in range(10):
            session = own.writable_session(name)
            write(session, i, i + 1)
            session.commit(f"{name} {i}")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ("one", "two")))
    for name in ("one", "two"):
        assert newest(repository, name) == list(range(1, 11))
        assert messages(repository, name)[:10] == [f"{name} {i}" for i in reversed(range(10))]
    # what is in the operations log is what happened
    assert len(list(repository.ops_log())) == 2 + 2 + 20


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_threads_commit_to_one_branch(kind: str, request: pytest.FixtureRequest) -> None:
    """One of them wins each time, and nothing that was reported as done is lost."""
    repository = with_array(Repository.create(new_storage(kind, request), NATIVE))
    start = threading.Barrier(2)

    def work(name: str) -> list[str]:
        own = Repository.open(repository.storage)
        done = []
        for i in range(8):
            session = own.writable_session("main")
            write(session, 0, i + 10)
            start.wait()
            try:
                done.append(session.commit(f"{name} {i}", allow_empty=True))
            except ConflictError as error:
                assert error.kind == ErrorKind.COMMIT_CONFLICT
            start.wait()
        return done

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(work, ("one", "two"))
    assert len(one) + len(two) >= 8
    ancestry = {entry.id for entry in repository.ancestry(branch="main")}
    assert ancestry >= {*one, *two}
    assert len(ancestry) == 2 + len(one) + len(two)


class Intruder(WrapperStorage):
    """A storage that does something just before the repo info is replaced."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.plans: list[Callable[[], object]] = []

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        if operation == "put" and keys == ("repo",) and self.plans:
            self.plans.pop()()


def test_a_commit_survives_other_updates(repository: Repository, storage: Storage) -> None:
    """Another branch, tags, the config: whatever else moved, the commit is put on top."""
    tip = repository.lookup_branch("main")
    repository.create_branch("dev", tip)
    intruder = Intruder(storage)
    session = Repository.open(intruder).writable_session("main")
    write(session, 0, 7)

    def commit_on_dev() -> None:
        other = repository.writable_session("dev")
        write(other, 1, 8)
        other.commit("on dev")

    intruder.plans = [
        commit_on_dev,
        lambda: repository.create_tag("v1", tip),
        lambda: repository.create_branch("more", tip),
        lambda: repository.save_config(),
    ]
    commit = session.commit("on main")
    assert not intruder.plans
    assert repository.lookup_branch("main") == commit
    assert repository.list_tags() == {"v1"}
    assert repository.list_branches() == {"main", "dev", "more"}
    assert newest(repository)[:2] == [7, 2]
    assert newest(repository, "dev")[:2] == [1, 8]
    assert messages(repository) == ["on main", "array", "Repository initialized"]


def test_a_commit_notices_a_race_for_its_own_branch(
    repository: Repository, storage: Storage
) -> None:
    intruder = Intruder(storage)
    session = Repository.open(intruder).writable_session("main")
    write(session, 0, 7)

    def commit_first() -> None:
        other = repository.writable_session("main")
        write(other, 0, 8)
        other.commit("first")

    intruder.plans = [commit_first]
    with pytest.raises(ConflictError) as error:
        session.commit("second")
    assert error.value.actual_parent == repository.lookup_branch("main")
    assert newest(repository)[0] == 8


def test_a_commit_gives_up_in_the_end(repository: Repository, storage: Storage) -> None:
    intruder = Intruder(storage)
    retries = StorageRetriesSettings(max_tries=3, initial_backoff_ms=1, max_backoff_ms=1)
    config = RepositoryConfig(repo_update_retries=RepoUpdateRetryConfig(default=retries))
    session = Repository.open(intruder, config).writable_session("main")
    write(session, 0, 7)
    tip = repository.lookup_branch("main")
    intruder.plans = [
        lambda name=f"t{i}": repository.create_tag(name, tip)  # type: ignore[misc]
        for i in range(5)
    ]
    with pytest.raises(ConflictError, match="gave up after 3 attempts") as error:
        session.commit("never")
    assert error.value.kind == ErrorKind.UPDATE_ATTEMPTS_EXHAUSTED
    assert len(intruder.plans) == 2
    intruder.plans.clear()
    session.commit("later")
    assert newest(repository)[0] == 7


# -- storage that fails -----------------------------------------------------------------
LOST = [StorageError("connection reset"), PreconditionFailedError("repo: retried, and changed")]


@pytest.mark.parametrize("error", LOST, ids=["lost", "retried"])
def test_the_answer_to_a_commit_is_lost(
    repository: Repository, storage: Storage, error: Exception
) -> None:
    """The put was done, its reply did not arrive; or the client tried again and was refused."""
    faulty = FaultyStorage(storage)
    session = Repository.open(faulty).writable_session("main")
    write(session, 0, 7)
    fault = faulty.fail("put", key="repo", when="after", error=error)
    commit = session.commit("once")
    assert fault.raised == 1
    assert repository.lookup_branch("main") == commit
    assert messages(repository) == ["once", "array", "Repository initialized"]
    # and the repository goes on from there
    session = Repository.open(faulty).writable_session("main")
    write(session, 1, 8)
    session.commit("twice")
    assert newest(repository)[:2] == [7, 8]


@pytest.mark.usefixtures("no_pauses")
def test_puts_of_the_repo_info_fail(repository: Repository, storage: Storage) -> None:
    faulty = FaultyStorage(storage)
    session = Repository.open(faulty).writable_session("main")
    write(session, 0, 7)
    faulty.fail("put", key="repo", times=8)
    with pytest.raises(StorageError, match=r"injected.*gave up after 8 attempts"):
        session.commit("first try")
    assert newest(repository)[0] == 1
    assert session.has_uncommitted_changes
    session.commit("second try")
    assert messages(repository)[:2] == ["second try", "array"]
    assert newest(repository)[0] == 7


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_step_of_a_commit(
    repository: Repository, storage: Storage, when: Any
) -> None:
    """The repository is in the state before or after it, and takes the next commit."""

    def attempt(nth: int | None, value: int) -> int:
        faulty = FaultyStorage(storage)
        session = Repository.open(faulty).writable_session("main")
        write(session, 0, value)
        zarr.create_group(session.store, path=f"g{value}")
        fault = faulty.fail(nth=nth or 1000, when=when, error=KeyboardInterrupt())  # type: ignore[arg-type]
        # a killed process does nothing more
        with contextlib.suppress(KeyboardInterrupt):
            session.commit(f"attempt {value}")
        return fault.seen

    steps = attempt(None, 100)
    assert steps >= 6
    for nth in range(1, steps + 1):
        before = newest(repository)[0]
        attempt(nth, nth)
        assert newest(repository)[0] in (before, nth)
        landed = newest(repository)[0] == nth
        assert (messages(repository)[0] == f"attempt {nth}") == landed
        group = zarr.open_group(repository.readonly_session("main").store, mode="r")
        assert (f"g{nth}" in group) == landed
    attempt(None, 200)
    assert newest(repository)[0] == 200


def test_killed_after_chunks_were_written(repository: Repository, storage: Storage) -> None:
    """Chunk objects without a commit are litter, never data."""
    before = {meta.key for meta in storage.list()}
    session = repository.writable_session("main")
    write(session, 0, 7)
    litter = {meta.key for meta in storage.list()} - before
    assert [key.partition("/")[0] for key in litter] == ["chunks"]
    del session
    assert newest(repository)[0] == 1
    again = repository.writable_session("main")
    write(again, 1, 8)
    again.commit("eight")
    assert newest(repository)[:2] == [1, 8]


def test_a_chunk_cannot_be_written(repository: Repository, storage: Storage) -> None:
    """The write raises and leaves the old value; the session can go on."""
    faulty = FaultyStorage(storage)
    session = Repository.open(faulty).writable_session("main")
    faulty.fail("put", key="chunks/")
    with pytest.raises(StorageError):
        write(session, 0, 7)
    assert values(session)[0] == 1
    write(session, 0, 8)
    session.commit("eight")
    assert newest(repository)[0] == 8


@pytest.mark.parametrize(
    ("folder", "error"),
    [("chunks", StorageError), ("manifests", StorageError), ("snapshots", SnapshotNotFoundError)],
)
def test_objects_that_are_missing(
    repository: Repository, storage: Storage, folder: str, error: type[Exception]
) -> None:
    """Never fill values for data that is lost."""
    storage.delete([meta.key for meta in storage.list(f"{folder}/")])
    with pytest.raises(error):
        newest(Repository.open(storage))


def test_chunk_objects_that_were_cut(repository: Repository, storage: Storage) -> None:
    for meta in list(storage.list("chunks/")):
        storage.put(meta.key, bytes(storage.get(meta.key).data)[:-1])
    with pytest.raises(StorageError, match="was cut"):
        newest(repository)


def test_objects_under_a_wrong_name(repository: Repository, storage: Storage) -> None:
    one, two = sorted(meta.key for meta in storage.list("snapshots/"))[:2]
    storage.put(one, storage.get(two).data)
    with pytest.raises(Exception, match="replaced or misnamed") as error:
        newest(Repository.open(storage))
        Repository.open(storage).readonly_session(snapshot_id=FIRST)
    assert error.value.kind == ErrorKind.INVALID_FILE_FORMAT


class Deleter(WrapperStorage):
    """A storage that does something while a chunk is on its way."""

    meanwhile: Callable[[], object] | None = None

    def after(self, operation: str, keys: tuple[str, ...], read: int) -> None:
        if operation == "put" and keys[0].startswith("chunks/") and self.meanwhile is not None:
            self.meanwhile()


def test_what_happens_while_a_chunk_is_written(repository: Repository, storage: Storage) -> None:
    """The array goes, or another one takes its place, or the session is committed."""
    slow = Deleter(storage)
    opened = Repository.open(slow)

    def replace(session: Session) -> None:
        group = zarr.open_group(session.store, mode="r+")
        del group["a"]
        group.create_array("a", shape=(10,), chunks=(1,), dtype="i4")

    meanwhiles: list[tuple[Callable[[Session], object], type[Exception]]] = [
        (lambda session: session.delete_nodes("/a"), NodeNotFoundError),
        (replace, NodeNotFoundError),
        (lambda session: session.commit("now", allow_empty=True), ReadOnlyError),
    ]
    for meanwhile, error in meanwhiles:
        session = opened.writable_session("main")
        slow.meanwhile = lambda m=meanwhile, s=session: m(s)  # type: ignore[misc]
        with pytest.raises(error):
            session.chunks.set("/a", (0,), b"\7\0\0\0")
        slow.meanwhile = None
        assert newest(repository)[:2] == [1, 2]
        assert not any(len(edits) for edits in session._edits.layers[-1].chunks.values())


# -- how many requests ----------------------------------------------------------------
def test_requests_to_open_and_find_a_chunk(repository: Repository, storage: Storage) -> None:
    """Repo info, snapshot, manifest; more chunks take no more, and neither does a session."""
    counting = CountingStorage(storage)
    opened = Repository.open(counting)
    assert counting.requests == 1
    session = opened.readonly_session("main")
    node = session.tree.require("/a")
    assert session.chunks.find(node, (0,)) is not None
    counts = counting.counts
    # the repo info is asked for again, and is unchanged
    assert (counts["get_if_changed"].requests, counts["get"].requests) == (2, 2)
    assert counting.requests == 4
    sizes = {meta.key: meta.size for meta in storage.list()}
    (manifest,) = (key for key in sizes if key.startswith("manifests/"))
    assert counting.bytes_read == (
        sizes["repo"] + sizes[f"snapshots/{session.snapshot_id}"] + sizes[manifest]
    )
    counting.reset()
    assert session.chunks.find(node, (1,)) is not None
    assert session.chunks.find(node, (7,)) is None
    assert counting.requests == 0
    # a session on an open repository
    again = opened.readonly_session("main")
    assert again.chunks.find(again.tree.require("/a"), (0,)) is not None
    assert counting.requests == 1
    counting.reset()
    assert again.chunks.get(node, (0,)) is not None
    assert counting.requests == 1


def test_requests_of_a_session_on_a_fresh_repository(
    repository: Repository, storage: Storage
) -> None:
    counting = CountingStorage(storage)
    opened = Repository.open(counting)
    counting.reset()
    session = opened.readonly_session("main")
    session.chunks.find(session.tree.require("/a"), (0,))
    assert counting.requests == 3


def test_requests_of_a_commit(repository: Repository, storage: Storage) -> None:
    """Manifest, log, snapshot, repo info: four puts and a copy, whatever the size."""
    counting = CountingStorage(storage)
    opened = Repository.open(counting)
    for chunks in (1, 8):
        session = opened.writable_session("main")
        for index in range(chunks):
            write(session, index, 1000 * chunks + index)
        counting.reset()
        session.commit(f"{chunks} chunks")
        assert session.tree.get("/a") is not None
        counts = counting.counts
        counting.reset()
        opened.writable_session("main")
        assert counting.requests == 1
        assert counts["put"].requests == 4
        assert counts["copy"].requests == 1
        assert counts["get_if_changed"].requests == 1
        # the old manifest, where it is not in the cache
        assert counts["get"].requests == (1 if chunks == 1 else 0)
        assert counts["list"].requests == counts["delete"].requests == 0


def test_requests_of_a_commit_of_metadata(repository: Repository, storage: Storage) -> None:
    counting = CountingStorage(storage)
    session = Repository.open(counting).writable_session("main")
    zarr.create_group(session.store, path="g")
    counting.reset()
    session.commit("group")
    assert counting.counts["put"].requests == 3


def test_requests_to_write_a_chunk(repository: Repository, storage: Storage) -> None:
    counting = CountingStorage(storage)
    session = Repository.open(counting).writable_session("main")
    counting.reset()
    session.chunks.set("/a", (0,), b"1234")
    assert counting.requests == counting.counts["put"].requests == 1
    counting.reset()
    # an uncommitted edit is found without a request
    node = session.tree.require("/a")
    assert session.chunks.find(node, (0,)) is not None
    assert counting.requests == 0


def test_a_branch_that_does_not_exist(repository: Repository) -> None:
    for open_session in (
        repository.writable_session,
        repository.rearrange_session,
        repository.readonly_session,
    ):
        with pytest.raises(RefNotFoundError, match="no branch 'nothing'"):
            open_session("nothing")
    repository.create_tag("v1", FIRST)
    with pytest.raises(RefNotFoundError, match="there is a tag of this name"):
        repository.writable_session("v1")
    with pytest.raises(RefNotFoundError, match="there is a branch of this name"):
        repository.readonly_session(tag="main")


def test_the_time_of_a_status(repository: Repository) -> None:
    when = datetime(2020, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    repository.set_status(RepoStatus(RepoAvailability.online, when))
    assert repository.status.set_at == when
    before = datetime.now(UTC)
    repository.set_status(RepoStatus(RepoAvailability.online))
    found = repository.status.set_at
    assert found is not None
    assert found >= before.replace(microsecond=0)
