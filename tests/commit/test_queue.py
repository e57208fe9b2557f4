"""A crowd that stands in a queue: each builds once, nobody starves, and the dead do not block."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zarr

from icechunk import (
    ConflictDetector,
    CountingStorage,
    FaultyStorage,
    InvalidInputError,
    MemoryStorage,
    PreconditionFailedError,
    RebaseFailedError,
    Repository,
    Session,
    StorageError,
)
from icechunk.commit import retrying
from icechunk.commit.tickets import LEASE, QUEUE, Place
from icechunk.storage import LocalStorage, ObjectMeta, Storage, WrapperStorage

ARRAYS = [f"a{i}" for i in range(5)]


def arrays(storage: Storage, spec_version: int = 2) -> Repository:
    repository = Repository.create(storage, spec_version=spec_version)
    session = repository.writable_session("main")
    group = zarr.create_group(session.store)
    for name in ARRAYS:
        group.create_array(name, shape=(100,), chunks=(1,), dtype="i4")
    session.commit("arrays")
    return repository


def changed(repository: Repository, index: int, names: list[str] = ARRAYS) -> Session:
    session = repository.writable_session("main")
    for name in names:
        zarr.open_array(session.store, path=name, mode="r+")[index] = index + 1
    return session


def commit(session: Session, fair: bool = True) -> Session:
    session.commit("ours", rebase_with=ConflictDetector(), fair=fair)
    return session


def count(storage: Storage, folder: str) -> int:
    return len(list(storage.list(folder)))


def ticket_of_another(storage: Storage, arrays: set[bytes] | None = None) -> Place:
    place = Place(storage, "main", arrays)
    place.take()
    return place


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], Any]]]:
    """What happens in the pauses, one after another; there must be as many."""
    acts: list[Callable[[], Any]] = []
    monkeypatch.setattr(retrying, "sleep", lambda seconds: acts.pop(0)())
    yield acts
    assert not acts


# -- a crowd -----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["memory", "folder", "s3"])
def test_each_commit_of_a_crowd_is_built_once(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Five arrays that all change: five manifests a commit, and one attempt."""
    if kind == "s3":
        storage: Storage = request.getfixturevalue("s3_server").storage()
    else:
        storage = MemoryStorage() if kind == "memory" else LocalStorage(tmp_path)
    arrays(storage)
    before = count(storage, "manifests/")

    def work(number: int) -> list[Session]:
        mine = Repository.open(storage)
        return [commit(changed(mine, 4 * number + n)) for n in range(4)]

    with ThreadPoolExecutor(6) as pool:
        sessions = [session for done in pool.map(work, range(6)) for session in done]
    taken = [session.committed for session in sessions if session.committed is not None]
    assert len(taken) == 24
    assert max(each.attempts for each in taken) <= 2
    assert sum(each.attempts for each in taken) <= 26
    assert max(each.rebases for each in taken) <= 2
    # a log, a snapshot, the state and its copy, and the ticket
    assert sum(each.objects for each in taken) <= 24 * 10 * 1.1
    assert count(storage, "manifests/") - before <= 24 * 5 * 1.1
    assert count(storage, QUEUE) == 0
    store = Repository.open(storage).readonly_session("main").store
    for name in ARRAYS:
        found = zarr.open_array(store, path=name, mode="r")[:24]
        assert found.tolist() == list(range(1, 25))
    assert Repository.open(storage).verify().ok


@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("fair", [False, True])
def test_a_commit_knows_how_many_objects_it_wrote(spec_version: int, fair: bool) -> None:
    inner = MemoryStorage()
    repository = arrays(inner, spec_version)
    commit(changed(repository, 0))
    storage = CountingStorage(inner)
    session = changed(Repository.open(storage), 1)
    commit(changed(repository, 2))
    storage.reset()
    commit(session, fair)
    assert session.committed is not None
    done = storage.counts["put"].requests + storage.counts["copy"].requests
    # whether conditions hold is tried once
    probes = spec_version == 2
    assert session.committed.objects in (done, done - probes)
    assert session.committed.rebases == session.committed.attempts == 1


def test_it_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    session = changed(arrays(MemoryStorage()), 0)
    with caplog.at_level(logging.DEBUG, "icechunk"):
        commit(session)
    assert "in 1 attempts, with 0 rebases and 10 objects" in caplog.text


# -- waiting -----------------------------------------------------------------------------------
def test_who_came_later_waits(pauses: list[Callable[[], Any]]) -> None:
    """And writes nothing before its turn, as the other one changes the same arrays."""
    storage = MemoryStorage()
    repository = arrays(storage)
    session = changed(repository, 1)
    theirs = changed(repository, 2)
    other = ticket_of_another(storage)
    before = count(storage, "manifests/")
    seen: list[int] = []
    pauses += [lambda: seen.append(count(storage, "manifests/"))] * 3
    pauses.append(lambda: commit(theirs, fair=False))
    pauses.append(other.give_back)
    commit(session)
    assert seen == [before] * 3
    assert count(storage, "manifests/") == before + 10
    assert session.committed is not None
    assert (session.committed.attempts, session.committed.rebases) == (1, 1)
    assert count(storage, QUEUE) == 0


def test_what_others_leave_alone_is_written_meanwhile(pauses: list[Callable[[], Any]]) -> None:
    storage = MemoryStorage()
    repository = arrays(storage)
    session = changed(repository, 1)
    nodes = repository.readonly_session("main").tree.nodes()
    theirs = {node.id for node in nodes if node.path == "/a0"}
    other = ticket_of_another(storage, theirs)
    before = count(storage, "manifests/")
    seen: list[int] = []
    pauses.append(lambda: seen.append(count(storage, "manifests/")))
    pauses.append(lambda: commit(changed(repository, 2, ["a0"]), fair=False))
    pauses.append(other.give_back)
    commit(session)
    assert seen == [before + 4]
    assert count(storage, "manifests/") == before + 6
    store = repository.readonly_session("main").store
    assert zarr.open_array(store, path="a0", mode="r")[:3].tolist() == [0, 2, 3]
    assert zarr.open_array(store, path="a1", mode="r")[:3].tolist() == [0, 2, 0]


def test_a_conflict_lets_the_next_one_go_on(pauses: list[Callable[[], Any]]) -> None:
    storage = MemoryStorage()
    repository = arrays(storage)
    session = changed(repository, 1)
    other = ticket_of_another(storage)
    pauses.append(lambda: commit(changed(repository, 1, ["a0"]), fair=False))
    pauses.append(other.give_back)
    with pytest.raises(RebaseFailedError):
        commit(session)
    assert count(storage, QUEUE) == 0
    assert session.has_uncommitted_changes


def test_an_interrupt_gives_the_ticket_back(pauses: list[Callable[[], Any]]) -> None:
    storage = MemoryStorage()
    session = changed(arrays(storage), 1)
    other = ticket_of_another(storage)

    def interrupt() -> None:
        raise KeyboardInterrupt

    pauses.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        commit(session)
    assert count(storage, QUEUE) == 1
    other.give_back()
    commit(session)


def test_branches_have_queues_of_their_own() -> None:
    storage = MemoryStorage()
    repository = arrays(storage)
    repository.create_branch("é/x y", repository.lookup_branch("main"))
    ticket_of_another(storage)
    session = repository.writable_session("é/x y")
    zarr.open_array(session.store, path="a0", mode="r+")[0] = 1
    commit(session)


# -- the dead, and what goes wrong -----------------------------------------------------------------
class Aged(WrapperStorage):
    """A storage where some tickets were put some time ago."""

    ages: dict[str, float]

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        for meta in super().list(prefix):
            age = timedelta(seconds=self.ages.get(meta.key, 0.0))
            yield replace(meta, last_modified=meta.last_modified - age)


@pytest.mark.parametrize(("age", "waits"), [(LEASE - 1, True), (LEASE + 1, False)])
def test_who_is_dead_blocks_nobody(
    age: float, waits: bool, pauses: list[Callable[[], Any]]
) -> None:
    storage = Aged(MemoryStorage())
    storage.ages = {}
    repository = arrays(storage)
    place = ticket_of_another(storage)
    (ticket,) = storage.list(QUEUE)
    storage.ages = {ticket.key: age}
    if waits:
        pauses.append(place.give_back)
    commit(changed(repository, 1))
    assert count(storage, QUEUE) == 0


@pytest.mark.parametrize("age", [-1e9, 0])
def test_a_ticket_that_nobody_holds_blocks_nobody(
    age: float, pauses: list[Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its time says: anybody may have written it."""
    storage = Aged(MemoryStorage())
    storage.ages = {}
    repository = arrays(storage)
    ticket_of_another(storage)
    (ticket,) = storage.list(QUEUE)
    storage.ages = {ticket.key: age}
    began = retrying.clock()
    monkeypatch.setattr(retrying, "clock", lambda: began)
    pauses.append(lambda: monkeypatch.setattr(retrying, "clock", lambda: began + LEASE))
    pauses.append(lambda: monkeypatch.setattr(retrying, "clock", lambda: began + 2 * LEASE + 1))
    commit(changed(repository, 1))
    assert count(storage, QUEUE) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"arrays":' * 100_000,
        b'{"arrays": ["00"]}' + b" " * (8 << 20),
        b'{"arrays": {"a": 1}}',
        b'{"arrays": [1]}',
        b'{"arrays": 1e999}',
        b"\xff",
        b"",
    ],
    ids=["deep", "deep, named", "large", "a dictionary", "numbers", "infinite", "no text", "empty"],
)
def test_tickets_of_strangers(data: bytes, pauses: list[Callable[[], Any]]) -> None:
    storage = CountingStorage(MemoryStorage())
    repository = arrays(storage)
    other = ticket_of_another(storage)
    (ticket,) = storage.list(QUEUE)
    storage.put(ticket.key, data)
    pauses.append(other.give_back)
    session = changed(repository, 1)
    before = storage.bytes_read
    commit(session)
    assert storage.bytes_read - before < 4 << 20


def test_a_queue_without_an_end(pauses: list[Callable[[], Any]]) -> None:
    storage = CountingStorage(MemoryStorage())
    repository = arrays(storage)
    ticket_of_another(storage)
    (ticket,) = storage.list(QUEUE)
    data = bytes(storage.get(ticket.key).data)
    keys = [f"{ticket.key[:-10]}{number:010d}" for number in range(2, 3000)]
    for key in keys:
        storage.put(key, data)
    pauses.append(lambda: storage.delete([ticket.key, *keys]))
    session = changed(repository, 1)
    before = storage.requests
    commit(session)
    assert storage.requests - before < 1200


def test_who_looked_dead_and_is_not_takes_its_place_again(
    pauses: list[Callable[[], Any]],
) -> None:
    storage = MemoryStorage()
    repository = arrays(storage)
    other = ticket_of_another(storage)

    def look_dead() -> None:
        storage.delete([meta.key for meta in storage.list(QUEUE)][1:])

    pauses += [look_dead, lambda: None, other.give_back]
    session = commit(changed(repository, 1))
    assert session.committed is not None
    assert session.committed.objects == 11
    assert count(storage, QUEUE) == 0


class LostAnswer(WrapperStorage):
    """A storage that puts a ticket, and says that there was one when it is asked again."""

    lost = 0

    def put(self, key: str, data: Any, **conditions: Any) -> str | None:
        etag = super().put(key, data, **conditions)
        if key.startswith(QUEUE) and conditions.get("if_absent") and not self.lost:
            self.lost += 1
            raise PreconditionFailedError("it exists")
        return etag


def test_the_answer_to_a_ticket_is_lost() -> None:
    storage = LostAnswer(MemoryStorage())
    session = commit(changed(arrays(storage), 1))
    assert storage.lost == 1
    assert session.committed is not None
    assert session.committed.objects == 10
    assert count(storage, QUEUE) == 0


@pytest.mark.parametrize("operation", ["list", "put", "delete"])
def test_a_queue_that_fails_keeps_nobody_from_committing(
    operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = FaultyStorage(MemoryStorage())
    session = changed(arrays(storage), 1)
    fault = storage.fail(operation, key=QUEUE, times=1000, error=StorageError("403"))
    commit(session)
    assert fault.raised > 0
    assert session.committed is not None
    if operation != "delete":
        assert "does not wait for others: 403" in caplog.text


def test_it_needs_a_solver() -> None:
    session = changed(arrays(MemoryStorage()), 1)
    with pytest.raises(InvalidInputError, match=r"^fair=True needs rebase_with=, such as"):
        session.commit("ours", fair=True)


def test_in_a_transaction() -> None:
    storage = MemoryStorage()
    repository = arrays(storage)
    puts: list[str] = []
    real = MemoryStorage.put

    def put(self: MemoryStorage, key: str, *arguments: Any, **more: Any) -> Any:
        puts.append(key)
        return real(self, key, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryStorage, "put", put)
        with repository.transaction(
            "main", message="m", rebase_with=ConflictDetector(), fair=True
        ) as store:
            zarr.open_array(store, path="a0", mode="r+")[0] = 1
    assert any(key.startswith(QUEUE) for key in puts)


# -- others ------------------------------------------------------------------------------------
def test_upkeep_knows_tickets() -> None:
    """Those of processes that died are collected with other garbage, and are no damage."""
    storage = Aged(MemoryStorage())
    storage.ages = {}
    repository = arrays(storage)
    for _ in range(2):
        ticket_of_another(storage)
    first, second = [meta.key for meta in storage.list(QUEUE)]
    storage.ages = {first: 7200.0}
    assert repository.verify().ok
    repository.garbage_collect(datetime.now(UTC) - timedelta(hours=1))
    assert [meta.key for meta in storage.list(QUEUE)] == [second]
