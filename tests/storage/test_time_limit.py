"""One limit for all that a call waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from icechunk import (
    IcechunkError,
    LocalStorage,
    MemoryStorage,
    OutcomeUnknownError,
    PreconditionFailedError,
    Repository,
    StorageError,
    http_storage,
    time_limit,
)
from icechunk.base import deadline
from icechunk.base.threads import Threads, map_in_threads
from icechunk.commit import retrying
from icechunk.storage import FaultyStorage
from icechunk.storage.locks import exclusive, open_lock
from tests import histories
from tests.servers import ObjectServer
from tests.storage.test_waiting import CALLS


@pytest.mark.parametrize("name", CALLS)
def test_a_silent_server(object_server: ObjectServer, name: str) -> None:
    object_server.release.clear()
    storage = object_server.gcs()
    with time_limit(0.3):
        with pytest.raises(StorageError, match=r"folder.*the time limit of 0\.3 s has passed"):
            CALLS[name](storage)
        sent = len(object_server.requests)
        for call in CALLS.values():
            with pytest.raises(StorageError, match="time limit"):
                call(storage)
    # after that nothing is sent
    assert len(object_server.requests) == sent
    assert object_server.answered == 0


async def test_a_silent_server_in_an_event_loop(object_server: ObjectServer) -> None:
    object_server.release.clear()
    storage = object_server.gcs()
    with time_limit(0.3):
        for _ in range(2):
            with pytest.raises(StorageError, match=r"time limit of 0\.3 s"):
                await storage.get_async("folder/key")
            with pytest.raises(StorageError, match=r"time limit of 0\.3 s"):
                await storage.put_async("folder/key", b"x")
    assert len(object_server.requests) == 1


def test_a_silent_web_server(object_server: ObjectServer) -> None:
    object_server.release.clear()
    storage = http_storage(f"{object_server.url}/folder")
    with time_limit(0.3):
        for _ in range(2):
            with pytest.raises(StorageError, match=r"time limit of 0\.3 s"):
                storage.get("key")
    assert len(object_server.requests) == 1


def test_operations_on_a_silent_server(object_server: ObjectServer) -> None:
    """However many requests an operation would make, it ends with the first that waits."""
    operations: list[Callable[[], Any]] = [
        lambda: Repository.open(object_server.gcs()),
        lambda: Repository.create(object_server.gcs()),
        lambda: Repository.exists(object_server.gcs()),
    ]
    object_server.release.clear()
    for operation in operations:
        before = len(object_server.requests)
        with time_limit(0.3), pytest.raises(IcechunkError, match=r"time limit of 0\.3 s"):
            operation()
        assert len(object_server.requests) - before <= 2


# -- by a clock of the test ------------------------------------------------------------------
class Clock:
    """A clock that moves on while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(deadline, "clock", clock)
    monkeypatch.setattr(retrying, "clock", clock)
    monkeypatch.setattr(retrying, "sleep", clock.sleep)
    yield clock


class Slow(FaultyStorage):
    """Each request takes a second."""

    clock: Clock

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        self.clock.now += 1
        super().before(operation, keys, written)


def slow(clock: Clock) -> tuple[Slow, Any]:
    inner = MemoryStorage()
    histories.create(inner)
    storage = Slow(inner)
    storage.clock = clock
    session = Repository.open(storage, histories.CONFIG).writable_session("main")
    histories.write(session, {0: b"a native chunk"})
    return storage, session


@pytest.mark.parametrize("error", [PreconditionFailedError("409"), StorageError("503")])
def test_a_server_that_never_takes_it(clock: Clock, error: StorageError) -> None:
    storage, session = slow(clock)
    storage.fail("put", key="repo", times=10_000, error=error)
    began = clock.now
    with time_limit(20), pytest.raises(IcechunkError):
        session.commit("mine")
    # and no more than what was under way
    assert clock.now - began <= 22
    storage.clear()
    session.commit("mine")
    assert histories.newest(storage.inner) == {0: b"a native chunk"}
    assert [e.message for e in Repository.open(storage.inner).ancestry(branch="main")][:2] == [
        "mine",
        "array",
    ]


def test_an_answer_that_is_missing_is_not_taken_for_no(clock: Clock) -> None:
    storage, session = slow(clock)
    put = storage.inner.put

    def late(key: str, *args: Any, **kwargs: Any) -> Any:
        done = put(key, *args, **kwargs)
        if key == "repo":
            clock.now += 100
            storage.fail("get", key="repo", times=1000, error=StorageError("too late"))
            storage.fail("get_if_changed", key="repo", times=1000, error=StorageError("too late"))
            raise StorageError("no answer")
        return done

    storage.inner.put = late  # type: ignore[method-assign]
    with time_limit(20), pytest.raises(OutcomeUnknownError):
        session.commit("mine")
    storage.inner.put = put  # type: ignore[method-assign]
    storage.clear()
    session.commit("mine")
    history = [e.message for e in Repository.open(storage.inner).ancestry(branch="main")]
    assert history[:2] == ["mine", "array"]


# -- locks, threads, limits in limits ----------------------------------------------------------
def test_a_lock_that_somebody_holds(tmp_path: Path) -> None:
    repository = histories.create(LocalStorage(tmp_path))
    session = repository.writable_session("main")
    histories.write(session, {0: b"a native chunk"})
    with exclusive(open_lock(str(tmp_path / "repo#0"))), time_limit(0.2):
        with pytest.raises(StorageError, match=r"another process has the lock; the time limit of"):
            session.commit("mine")
        with pytest.raises(StorageError, match="time limit"):
            repository.create_tag("t", repository.lookup_branch("main"))
    with time_limit(60):
        session.commit("mine")
    assert histories.newest(LocalStorage(tmp_path)) == {0: b"a native chunk"}


def test_a_turn_that_somebody_has(tmp_path: Path) -> None:
    repository = histories.create(LocalStorage(tmp_path))
    state = repository._maintenance._state
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with state.turn():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    try:
        with (
            time_limit(0.2),
            pytest.raises(StorageError, match=r"time limit of 0\.2"),
            state.turn(),
        ):
            raise AssertionError
    finally:
        done.set()
        thread.join()
    with state.turn():
        pass


def test_threads_have_the_limit_of_who_starts_them(clock: Clock) -> None:
    with time_limit(30):
        assert map_in_threads(lambda _: deadline.seconds_left(), [1, 2, 3], 3) == [30] * 3
        with Threads(1) as pool:
            assert pool.submit(deadline.seconds_left).result() == 30
        with time_limit(50):
            assert deadline.seconds_left() == 30
        with time_limit(10):
            clock.now += 4
            assert deadline.seconds_left() == 6
        assert deadline.seconds_left() == 26
    assert deadline.seconds_left() == float("inf")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "60", None, True])
def test_what_is_no_limit(seconds: Any) -> None:
    with pytest.raises(ValueError, match="expected a positive number"), time_limit(seconds):
        pass
