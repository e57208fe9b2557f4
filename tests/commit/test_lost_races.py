"""Others are faster: what is done again then, what is left behind, and who is told what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    BasicConflictSolver,
    ConflictDetector,
    ConflictError,
    CountingStorage,
    ErrorKind,
    FaultyStorage,
    MemoryStorage,
    OutcomeUnknownError,
    PreconditionFailedError,
    Repository,
    RepositoryConfig,
    RepoUpdateRetryConfig,
    Session,
    SessionStateError,
    StorageError,
    StorageRetriesSettings,
)
from icechunk.storage import LocalStorage, Storage, WrapperStorage
from tests import histories

ARRAYS = [f"a{i}" for i in range(5)]
pytestmark = pytest.mark.usefixtures("no_pauses")


class Faster(WrapperStorage):
    """A storage where somebody does something right before some of the puts of the repo info."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.acts: list[Callable[[], Any]] = []

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        if operation == "put" and keys == ("repo",) and self.acts:
            self.acts.pop(0)()


def arrays(storage: Storage, names: list[str]) -> Repository:
    repository = Repository.create(storage)
    session = repository.writable_session("main")
    group = zarr.create_group(session.store)
    for name in names:
        group.create_array(name, shape=(20,), chunks=(1,), dtype="i4")
    session.commit("arrays")
    return repository


def put(session: Session, name: str, index: int, value: int) -> None:
    zarr.open_array(session.store, path=name, mode="r+")[index] = value


def commit(repository: Repository, name: str, index: int, value: int) -> None:
    session = repository.writable_session("main")
    put(session, name, index, value)
    session.commit(f"{name}[{index}]")


def values(storage: Storage, name: str) -> list[int]:
    store = Repository.open(storage).readonly_session("main").store
    found: list[int] = zarr.open_array(store, path=name, mode="r")[:5].tolist()
    return found


def count(storage: Storage, folder: str) -> int:
    return len(list(storage.list(folder)))


def counts(storage: Storage) -> dict[str, int]:
    folders = ("manifests/", "snapshots/", "transactions/", "overwritten/")
    return {folder: count(storage, folder) for folder in folders}


def messages(storage: Storage) -> list[str]:
    return [entry.message for entry in Repository.open(storage).ancestry(branch="main")][:-2]


# -- what is done again ----------------------------------------------------------------------
@pytest.mark.parametrize("on_ours", [0, 1])
def test_only_what_changed_is_built_again(on_ours: int) -> None:
    """Five arrays, three lost rounds: five manifests, and one for each change of theirs."""
    storage = Faster(MemoryStorage())
    repository = arrays(storage.inner, [*ARRAYS, "other"])
    session = Repository.open(storage).writable_session("main")
    for name in ARRAYS:
        put(session, name, 0, 7)
    theirs = ARRAYS[0] if on_ours else "other"
    storage.acts = [lambda n=n: commit(repository, theirs, n, n) for n in (1, 2, 3)]  # type: ignore[misc]
    before = counts(storage)
    session.commit("ours", rebase_with=ConflictDetector())
    after = counts(storage)
    written = {folder: after[folder] - before[folder] for folder in after}
    assert written == {
        "manifests/": 3 + 5 + 3 * on_ours,
        "snapshots/": 4,
        "transactions/": 4,
        "overwritten/": 4,
    }
    assert session.committed is not None
    assert (session.committed.rebases, session.committed.attempts) == (3, 4)
    assert session.committed.snapshot_id == session.snapshot_id
    assert messages(storage) == ["ours", *(f"{theirs}[{n}]" for n in (3, 2, 1))]
    assert values(storage, theirs)[1:4] == [1, 2, 3]
    assert [values(storage, name)[0] for name in ARRAYS] == [7] * 5
    (entry, *_) = Repository.open(storage).ancestry(branch="main")
    assert entry.metadata == {"__icechunk": {"rebase_attempts": 3}}


def test_metadata_of_others_is_kept() -> None:
    """A manifest is kept, what they said of its array is not lost."""
    storage = Faster(MemoryStorage())
    repository = arrays(storage.inner, ["a"])
    session = Repository.open(storage).writable_session("main")
    put(session, "a", 0, 7)

    def theirs() -> None:
        other = repository.writable_session("main")
        zarr.open_array(other.store, path="a", mode="r+").attrs["x"] = 1
        zarr.open_group(other.store, mode="r+").create_array("b", shape=(1,), dtype="i4")
        other.commit("attributes")

    storage.acts = [theirs]
    # their document makes it a conflict, which is told
    with pytest.raises(ConflictError, match="ChunksUpdatedInUpdatedArray"):
        session.commit("ours", rebase_with=BasicConflictSolver())
    commit(repository, "a", 1, 8)
    assert values(storage, "a")[:2] == [0, 8]


def test_a_resized_array_is_built_again() -> None:
    """The same manifests and edits, and another grid."""
    storage = Faster(MemoryStorage())
    repository = arrays(storage.inner, ["a", "b"])
    commit(repository, "a", 19, 5)
    session = Repository.open(storage).writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+").resize((10,))
    storage.acts = [lambda: commit(repository, "b", 0, 1)]
    session.commit("ours", rebase_with=ConflictDetector())
    store = Repository.open(storage).readonly_session("main").store
    array = zarr.open_array(store, path="a", mode="r")
    assert array.shape == (10,)
    assert not np.any(array[:])


@pytest.mark.parametrize("spec_version", [1, 2])
def test_the_tip_is_looked_at_first(spec_version: int) -> None:
    """Nothing is written for a commit that cannot be made."""
    storage = CountingStorage(MemoryStorage())
    histories.create(storage, spec_version)
    session = Repository.open(storage).writable_session("main")
    histories.write(session, {0: b"1"})
    histories.commit(Repository.open(storage.inner), {1: b"2"})
    storage.reset()
    with pytest.raises(ConflictError) as caught:
        session.commit("late")
    assert caught.value.actual_parent == Repository.open(storage.inner).lookup_branch("main")
    assert storage.counts["put"].requests == storage.counts["copy"].requests == 0


def test_each_lost_put_takes_its_copy_with_it() -> None:
    storage = Faster(MemoryStorage())
    repository = arrays(storage.inner, ["a"])
    tip = repository.lookup_branch("main")
    storage.acts = [lambda n=n: repository.create_tag(f"t{n}", tip) for n in range(4)]  # type: ignore[misc]
    commit(Repository.open(storage), "a", 0, 1)
    # the log has one entry for each copy, and one for the newest state
    assert count(storage, "overwritten/") == len(list(repository.ops_log())) - 1


def test_manifests_that_were_replaced_leave_the_cache() -> None:
    storage = MemoryStorage()
    repository = arrays(storage, ["a"])
    for n in range(10):
        commit(repository, "a", n, n)
    assert len(repository.context.assets._manifests._values) == 1
    assert len(repository._context.assets._manifests._values) == 1


# -- nobody was faster ------------------------------------------------------------------------
@pytest.mark.parametrize("spec_version", [1, 2])
def test_a_server_that_refuses_for_ever(spec_version: int) -> None:
    """It is not taken for a race, and not tried for ever."""
    inner = MemoryStorage()
    histories.create(inner, spec_version)
    storage = FaultyStorage(inner)
    session = Repository.open(storage).writable_session("main")
    histories.write(session, {0: b"1"})
    copies = count(inner, "overwritten/")
    key = "repo" if spec_version == 2 else "refs/"
    fault = storage.fail("put", key=key, times=1000, error=PreconditionFailedError("409"))
    with pytest.raises(StorageError, match=r"gave up after 8 attempts.* nobody else has written"):
        session.commit("refused")
    assert fault.raised == 8
    assert count(inner, "overwritten/") <= copies + 1
    storage.clear()
    session.commit("later")
    assert messages(inner) == ["later"]


def test_what_is_refused_for_good_is_not_sent_again() -> None:
    inner = MemoryStorage()
    arrays(inner, ["a"])
    storage = FaultyStorage(inner)
    error = StorageError("403: check the credentials")
    error.transient = False
    fault = storage.fail("put", key="repo", times=10, error=error)
    with pytest.raises(StorageError, match=r"^403: check the credentials$"):
        commit(Repository.open(storage), "a", 0, 1)
    assert fault.raised == 1


# -- nobody knows ------------------------------------------------------------------------------
class Blind(FaultyStorage):
    """A storage that can be kept from showing the refs."""

    def blind(self, times: int = 6) -> None:
        for operation in ("get", "get_if_changed"):
            for key in ("repo", "refs/"):
                self.fail(operation, key=key, times=times, error=StorageError("403"))


@pytest.fixture(params=[1, 2])
def unknown(request: pytest.FixtureRequest) -> tuple[Blind, Session, OutcomeUnknownError]:
    """A session whose commit was made, without an answer."""
    storage = Blind(MemoryStorage())
    histories.create(storage, request.param)
    session = Repository.open(storage, histories.CONFIG).writable_session("main")
    histories.write(session, {0: b"1", 1: b"2222"})
    key = "repo" if request.param == 2 else "refs/"
    fault = storage.fail("put", key=key, when="after", error=StorageError("500"))
    act = storage.inner.put

    def put_and_go_blind(*arguments: Any, **more: Any) -> Any:
        done = act(*arguments, **more)
        if arguments[0].startswith(("repo", "refs/")):
            storage.blind()
        return done

    storage.inner.put = put_and_go_blind  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknownError) as caught:
        session.commit("mine", rebase_with=BasicConflictSolver())
    storage.inner.put = act  # type: ignore[method-assign]
    storage.clear()
    assert fault.raised == 1
    return storage, session, caught.value


Unknown = tuple[Blind, Session, OutcomeUnknownError]


def test_the_error_says_what_may_have_been_made(unknown: Unknown) -> None:
    storage, session, error = unknown
    tip = Repository.open(storage).lookup_branch("main")
    assert (error.branch, error.snapshot) == ("main", tip)
    assert f"snapshot {tip} was committed to branch 'main'" in str(error)
    assert error.kind is ErrorKind.OUTCOME_UNKNOWN
    assert storage.url in str(error)
    assert session.has_uncommitted_changes


@pytest.mark.parametrize("solver", [None, ConflictDetector(), BasicConflictSolver()])
def test_the_next_commit_finds_it(unknown: Unknown, solver: Any) -> None:
    storage, session, error = unknown
    if solver is not None:
        session.rebase(solver)
    assert session.commit("again", rebase_with=solver) == error.snapshot
    assert messages(storage) == ["mine"]
    assert session.read_only
    assert histories.newest(storage) == {0: b"1", 1: b"2222"}


def test_others_went_on_from_it(unknown: Unknown) -> None:
    storage, session, error = unknown
    histories.commit(Repository.open(storage), {2: b"3"})
    assert session.commit("again", rebase_with=BasicConflictSolver()) == error.snapshot
    assert messages(storage) == ["{2: b'3'}", "mine"]
    assert histories.read(session) == {0: b"1", 1: b"2222"}


def test_what_was_written_since_is_not_in_it(unknown: Unknown) -> None:
    storage, session, error = unknown
    histories.write(session, {3: b"4"})
    for call in (
        lambda: session.commit("more"),
        lambda: session.commit("more", rebase_with=BasicConflictSolver()),
        lambda: session.rebase(BasicConflictSolver()),
    ):
        with pytest.raises(SessionStateError, match=f"snapshot {error.snapshot} .* not in it"):
            call()
    session.discard_changes()
    assert session.commit("nothing") == error.snapshot
    assert messages(storage) == ["mine"]


def test_it_was_not_made_after_all() -> None:
    storage = Blind(MemoryStorage())
    histories.create(storage)
    session = Repository.open(storage, histories.CONFIG).writable_session("main")
    histories.write(session, {0: b"1"})
    storage.fail("put", key="repo", error=StorageError("500"))
    look = session._context.state.look()
    storage.fail("get_if_changed", key="repo", nth=2, times=6, error=StorageError("403"))
    with pytest.raises(OutcomeUnknownError):
        session.commit("mine")
    assert session._context.state.look() == look
    histories.write(session, {1: b"2"})
    session.commit("mine")
    assert messages(storage) == ["mine"]
    assert histories.newest(storage) == {0: b"1", 1: b"2"}


class Late(WrapperStorage):
    """A storage where the first put of the repo info arrives long after it was given up."""

    waiting: Callable[[], Any] | None = None
    is_armed = False

    def put(self, key: str, data: Any, **conditions: Any) -> str | None:
        if key == "repo" and self.is_armed:
            self.is_armed = False
            self.waiting = lambda: self.inner.put(key, bytes(data), **conditions)
            error = StorageError("no answer")
            error.transient = False
            raise error
        return super().put(key, data, **conditions)


@pytest.mark.parametrize("solver", [None, BasicConflictSolver()])
def test_it_arrives_while_the_next_one_is_made(solver: Any) -> None:
    """Between the look and the put: the condition of one of both cannot hold."""
    late = Late(MemoryStorage())
    histories.create(late)
    storage = Faster(late)
    session = Repository.open(storage, histories.CONFIG).writable_session("main")
    histories.write(session, {0: b"1"})
    late.is_armed = True
    with pytest.raises(StorageError, match="no answer"):
        session.commit("mine")
    assert late.waiting is not None
    storage.acts = [late.waiting]
    snapshot = session.commit("mine", rebase_with=solver)
    assert messages(storage) == ["mine"]
    assert snapshot == Repository.open(late).lookup_branch("main")
    assert histories.newest(late) == {0: b"1"}


@pytest.mark.parametrize("others", [1, 3, 8])
def test_the_log_has_gone_on(others: int) -> None:
    """Others have pushed the entry of a lost put out of the newest file."""
    inner = MemoryStorage()
    config = RepositoryConfig(num_updates_per_repo_info_file=2)
    repository = Repository.create(inner, config)
    tip = repository.lookup_branch("main")
    storage = Faster(inner)
    slow = Repository.open(storage)

    class Answer(WrapperStorage):
        def after(self, operation: str, keys: tuple[str, ...], read: int) -> None:
            if operation == "put" and keys == ("repo",):
                for n in range(others):
                    repository.create_tag(f"t{n}", tip)
                raise StorageError("lost")

    slow = Repository.open(Answer(inner), config)
    slow.set_metadata({"a": 1})
    assert sum("Metadata" in str(update) for update in repository.ops_log()) == 1
    assert repository.metadata == {"a": 1}


def test_a_distributed_commit_is_found_again() -> None:
    storage = Blind(MemoryStorage())
    histories.create(storage)
    session = Repository.open(storage, histories.CONFIG).writable_session("main")
    fork = session.fork()
    histories.write(fork, {0: b"1"})
    work = [fork.change_set_bytes()]
    storage.fail("put", key="repo", when="after", error=StorageError("500"))
    storage.fail("get_if_changed", key="repo", nth=2, times=6, error=StorageError("403"))
    with pytest.raises(OutcomeUnknownError) as caught:
        session.distributed_commit("mine", work)
    assert session.distributed_commit("mine", work) == caught.value.snapshot
    assert messages(storage) == ["mine"]


# -- a crowd -----------------------------------------------------------------------------------
def test_who_has_lost_stands_in_the_queue(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does so from the beginning as long as others publish."""
    turns: list[str] = []
    real = LocalStorage.turn
    monkeypatch.setattr(
        LocalStorage, "turn", lambda self, key: (turns.append(key), real(self, key))[1]
    )
    storage = Faster(LocalStorage(tmp_path))
    repository = arrays(storage.inner, ["a", "b"])
    ours = Repository.open(storage)
    commit(ours, "a", 0, 1)
    assert turns == []
    storage.acts = [lambda: commit(repository, "b", 0, 1)]
    session = ours.writable_session("main")
    put(session, "a", 1, 2)
    session.commit("second", rebase_with=ConflictDetector())
    assert turns == ["repo"]
    commit(ours, "a", 2, 3)
    assert turns == ["repo"] * 2
    # nobody was there
    commit(ours, "a", 3, 4)
    assert turns == ["repo"] * 2
    assert values(storage, "a")[:4] == [1, 2, 3, 4]


def test_retries_are_bounded_by_the_config() -> None:
    storage = Faster(MemoryStorage())
    repository = arrays(storage.inner, ["a"])
    tip = repository.lookup_branch("main")
    tries = StorageRetriesSettings(max_tries=3)
    config = RepositoryConfig(repo_update_retries=RepoUpdateRetryConfig(default=tries))
    storage.acts = [lambda n=n: repository.create_tag(f"t{n}", tip) for n in range(4)]  # type: ignore[misc]
    with pytest.raises(ConflictError, match="after 3 attempts"):
        commit(Repository.open(storage, config), "a", 0, 1)
    assert len(storage.acts) == 1
