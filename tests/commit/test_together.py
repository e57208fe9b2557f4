"""Commits of one process that share one put of the repo info."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import zarr

from icechunk import (
    BasicConflictSolver,
    ConflictDetector,
    ConflictError,
    MemoryStorage,
    OutcomeUnknownError,
    RebaseFailedError,
    Repository,
    Session,
    StorageError,
)
from icechunk.commit import turns
from icechunk.commit.turns import Fate, Guest, Turns
from icechunk.session.committer import Committer
from icechunk.storage import Storage, WrapperStorage
from tests.histories import commit_at_once

pytestmark = pytest.mark.usefixtures("no_pauses")
COUNT = 5


class Watched(WrapperStorage):
    """Counts puts of the repo info, and does something before and after some of them."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.puts = 0
        self.before_put: list[Callable[[], Any]] = []
        self.after_put: list[Callable[[], Any]] = []
        self.is_blind = self.is_late = False

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        if operation == "put" and keys == ("repo",):
            self.puts += 1
            if self.before_put:
                self.before_put.pop(0)()
        if self.is_blind and operation in ("get", "get_if_changed") and keys == ("repo",):
            raise StorageError("403")

    def put(self, key: str, *arguments: Any, **more: Any) -> Any:
        if key == "repo" and self.is_late:
            # the next put comes right after this one
            self.is_late = False
            self.before_put = [lambda: self.inner.put(key, *arguments, **more)]
            raise KeyboardInterrupt
        done = super().put(key, *arguments, **more)
        if key == "repo" and self.after_put:
            self.after_put.pop(0)()
        return done


def opened(spec_version: int = 2) -> tuple[Watched, Repository]:
    storage = Watched(MemoryStorage())
    repository = Repository.create(storage, spec_version=spec_version)
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(COUNT,), chunks=(1,), dtype="i4")
    storage.puts = 0
    return storage, repository


def changed(repository: Repository, index: int) -> Session:
    session = repository.writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+")[index] = index + 1
    return session


def check(repository: Repository, committed: list[int], others: int = 0) -> None:
    """Each commit is there once, on top of the others, and the log is one of single commits."""
    history = list(Repository.open(repository.storage).ancestry(branch="main"))[:-2]
    messages = sorted(entry.message for entry in history if entry.message != "other")
    assert messages == [f"number {number}" for number in committed]
    assert len(history) == len(committed) + others
    for entry in history:
        log = repository.diff(from_snapshot_id=entry.parent_id, to_snapshot_id=entry.id)
        assert [len(chunks) for chunks in log.updated_chunks.values()] == [1]
    values = zarr.open_array(repository.readonly_session("main").store, path="a")[:]
    assert [index for index in range(COUNT) if values[index] == index + 1] == sorted(
        {*committed, *range(COUNT - others, COUNT)}
    )
    report = repository.verify(deep=True)
    assert report.ok, report


def test_one_put_publishes_all_who_wait() -> None:
    storage, repository = opened()
    sessions = [changed(repository, index) for index in range(COUNT)]
    results = commit_at_once(repository, sessions)
    assert storage.puts == 1
    assert [session.snapshot_id for session in sessions] == results
    assert all(session.read_only for session in sessions)
    taken = [session.committed for session in sessions if session.committed]
    assert [each.attempts for each in taken] == [1] * COUNT
    assert sorted(each.rebases for each in taken) == [0] + [1] * (COUNT - 1)
    check(repository, list(range(COUNT)))


@pytest.mark.parametrize("way", ["spec version 1", "functions of the caller", "fair", "no rebase"])
def test_who_commits_alone(way: str) -> None:
    storage, repository = opened(1 if way == "spec version 1" else 2)
    sessions = [changed(repository, index) for index in range(COUNT)]
    seen: list[int] = []
    more: dict[str, Any] = {
        "functions of the caller": {"before_rebase": seen.append},
        "no rebase": {"rebase_with": None},
    }.get(way, {})
    if way == "fair":
        repository.context.state.is_contended = True
        for number, session in enumerate(sessions):
            session.commit(f"number {number}", rebase_with=ConflictDetector(), fair=True)
        results = [session.snapshot_id for session in sessions]
    else:
        results = commit_at_once(repository, sessions, **more)
    if way == "no rebase":
        assert sum(isinstance(result, ConflictError) for result in results) == COUNT - 1
        return
    assert storage.puts == (0 if way == "spec version 1" else COUNT)
    assert len(seen) == (COUNT - 1 if "functions" in way else 0)
    check(repository, list(range(COUNT)))


def test_other_branches_wait() -> None:
    storage, repository = opened()
    repository.create_branch("side", repository.lookup_branch("main"))
    side = repository.writable_session("side")
    zarr.open_array(side.store, path="a", mode="r+")[0] = 9
    storage.puts = 0
    sessions = [changed(repository, 0), side, changed(repository, 2)]
    results = commit_at_once(repository, sessions)
    assert storage.puts == 2
    check(repository, [0, 2])
    assert repository.lookup_branch("side") == results[1]


def test_a_conflict_is_of_who_has_it() -> None:
    storage, repository = opened()
    sessions = [changed(repository, index) for index in (0, 1, 0, 3)]
    base, before = sessions[2].snapshot_id, sessions[2].status()
    results = commit_at_once(repository, sessions)
    assert isinstance(results[2], RebaseFailedError)
    assert storage.puts == 1
    assert (sessions[2].snapshot_id, sessions[2].status()) == (base, before)
    check(repository, [0, 1, 3])
    sessions[2].commit("number 2", rebase_with=BasicConflictSolver())
    assert len(list(repository.ancestry(branch="main"))) == 6


def test_a_guest_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_PATIENCE", 0.0)
    storage, repository = opened()
    commit_at_once(repository, [changed(repository, index) for index in range(COUNT)])
    assert storage.puts == COUNT
    check(repository, list(range(COUNT)))


def test_a_guest_that_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it builds: nothing of it is there, and it can be committed later."""
    storage, repository = opened()
    sessions = [changed(repository, index) for index in range(COUNT)]
    real = Committer._catch_up

    def catch_up(self: Committer, info: Any, course: Any) -> None:
        real(self, info, course)
        if course.message == "number 2" and course.rebases:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Committer, "_catch_up", catch_up)
        results = commit_at_once(repository, sessions)
    assert isinstance(results[2], KeyboardInterrupt)
    assert storage.puts == 1
    check(repository, [0, 1, 3, 4])
    sessions[2].commit("number 2", rebase_with=ConflictDetector())
    check(repository, list(range(COUNT)))


def test_a_guest_whose_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the host publishes: it asks, and finds its commit later."""
    storage, repository = opened()
    sessions = [changed(repository, index) for index in range(2)]

    def late(self: Turns, guest: Guest, change: Any) -> Fate:
        hand_over(self, guest, change)
        return Fate.UNKNOWN

    hand_over = Turns.hand_over
    with monkeypatch.context() as patch:
        patch.setattr(Turns, "hand_over", late)
        results = commit_at_once(repository, sessions)
    assert storage.puts == 1
    assert results == [session.snapshot_id for session in sessions]
    check(repository, [0, 1])


def refused() -> StorageError:
    error = StorageError("403: check the credentials")
    error.transient = False
    return error


#: What happens before and after the put, who is told what, and puts until all is done.
FAULTS: dict[str, tuple[BaseException | str | None, BaseException | str | None, Any]] = {
    "the branch moves": ("commit", None, None),
    "another branch moves": ("branch", None, None),
    "the put fails": (StorageError("500"), None, None),
    "the answer is lost": (None, StorageError("500"), None),
    "the put is refused": (refused(), None, StorageError),
    "an interrupt before": (KeyboardInterrupt(), None, KeyboardInterrupt),
    "an interrupt after": (None, KeyboardInterrupt(), KeyboardInterrupt),
    "nobody knows": (None, "blind", OutcomeUnknownError),
    "it arrives after an interrupt": ("late", None, KeyboardInterrupt),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_something_goes_wrong_at_the_put(fault: str) -> None:
    before, after, told = FAULTS[fault]
    storage, repository = opened()

    def act(what: BaseException | str | None) -> list[Callable[[], Any]]:
        def do() -> None:
            if what == "commit":
                other = Repository.open(storage.inner).writable_session("main")
                zarr.open_array(other.store, path="a", mode="r+")[COUNT - 1] = COUNT
                other.commit("other")
            elif what == "branch":
                tip = repository.lookup_branch("main")
                Repository.open(storage.inner).create_branch("side", tip)
            elif what == "blind":
                storage.is_blind = True
                raise StorageError("500")
            else:
                raise what  # type: ignore[misc]

        return [do] if what is not None else []

    sessions = [changed(repository, index) for index in range(COUNT - 1)]
    storage.is_late = before == "late"
    storage.before_put, storage.after_put = [] if storage.is_late else act(before), act(after)
    results = commit_at_once(repository, sessions)
    storage.is_blind = False
    failed = [n for n, result in enumerate(results) if isinstance(result, BaseException)]
    # the others do not fail with their host, unless nobody knows anything
    assert failed == ([] if told is None else [0] if fault != "nobody knows" else [0, 1, 2, 3])
    if fault == "the put is refused":
        # the next one was never built upon what is not there
        taken = [session.committed for session in sessions[1:] if session.committed]
        assert sorted(each.rebases for each in taken) == [0, 1, 1]
    for number in failed:
        error = results[number]
        assert type(error) is told
        if isinstance(error, OutcomeUnknownError):
            assert error.branch == "main"
            assert str(error.snapshot) in str(error)
        id = sessions[number].commit(f"number {number}", rebase_with=ConflictDetector())
        if isinstance(error, OutcomeUnknownError):
            assert id == error.snapshot
    check(repository, list(range(COUNT - 1)), others=int(before == "commit"))


def test_much_at_a_time() -> None:
    """Two processes, as far as locks know, with four threads each."""
    storage, repository = opened()
    count = 40
    with repository.transaction("main", message="more") as store:
        zarr.create_array(store, name="b", shape=(count,), chunks=(1,), dtype="i4")
    both = [repository, Repository.open(storage)]

    def work(number: int) -> None:
        for index in range(number, count, 8):
            session = both[number % 2].writable_session("main")
            zarr.open_array(session.store, path="b", mode="r+")[index] = index + 1
            session.commit(f"{index}", rebase_with=ConflictDetector())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    values: Any = zarr.open_array(repository.readonly_session("main").store, path="b")[:]
    assert values.tolist() == list(range(1, count + 1))
    entries = [entry.message for entry in repository.ancestry(branch="main")][:-3]
    assert sorted(map(int, entries)) == list(range(count))
    assert repository.verify().ok
