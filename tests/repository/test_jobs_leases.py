"""Parts that hang, die and are tried again: who looks dead is named, and taken up by others."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    IcechunkStore,
    InvalidInputError,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    SessionStateError,
    TaskError,
)
from icechunk.base.time_limits import Heartbeat, call_within
from icechunk.storage import WrapperStorage
from icechunk.storage.base import Storage
from tests.killing import Dying, Killed

#: Seconds after which anything looks dead.
SHORT = 1e-3


@pytest.fixture
def repository() -> Repository:
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(MemoryStorage(), config)
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(4,), chunks=(1,), dtype="i4")
    repository.jobs.create("rows", keys=range(4), message="rows")
    return repository


def write(store: IcechunkStore, key: Any) -> None:
    zarr.open_array(store, path="a", mode="r+")[key] = key + 1


def values(repository: Repository) -> list[int]:
    found: Any = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")
    listed: list[int] = found[:].tolist()
    return listed


# a thread of a process that is gone, which goes on here
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_looks_dead_is_named_and_taken_up(repository: Repository) -> None:
    job = repository.jobs.open("rows")
    job.run(write, 0)
    for lease, key in ((SHORT, 1), (1e6, 2)):
        # after the record that the part has begun
        dying = Repository.open(Dying(repository.storage, 2)).jobs.open("rows")
        with pytest.raises(Killed):
            dying.run(write, keys=[key], lease=lease)
    status = job.status()
    assert {p.key: p.looks_dead for p in status.running} == {1: True, 2: False}
    assert status.left == [3, 1]
    (dead,) = (part for part in status.running if part.looks_dead)
    assert f"1 at {dead.host}, pid {dead.pid}, last seen {dead.seen[:19]}Z" in repr(status)
    assert "looks dead" in status._repr_html_()
    with pytest.raises(
        SessionStateError, match=r"No sign of life of 1 at .*\.left\) takes them up"
    ):
        job.finish()
    job.run(write, keys=status.left)
    assert job.status().left == []
    # the lease of the other one has not ended, and it may still be done
    assert [part.key for part in job.status().running] == [2]
    job.run(write, keys=[2])
    job.finish()
    assert values(repository) == [1, 2, 3, 4]
    assert [m.key for m in repository.storage.list("jobs/") if "/attempts/" in m.key] == []


class Seeing(WrapperStorage):
    """Tells when a part gives a sign of life."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.alive = threading.Event()

    def after(self, operation: str, keys: tuple[str, ...], read: int) -> None:
        if operation == "put" and keys[0].endswith(".alive"):
            self.alive.set()

    def with_settings(self, settings: Any) -> Storage:
        return self


def test_a_part_gives_signs_of_life(repository: Repository) -> None:
    """And what it wrote before is no garbage."""
    seeing = Seeing(repository.storage)
    job = Repository.open(seeing).jobs.open("rows")

    def long(store: IcechunkStore, key: Any) -> None:
        write(store, key)
        assert seeing.alive.wait(60)
        (part,) = job.status().running
        assert part.seen > part.since
        repository.garbage_collect(datetime.now(UTC))

    job.run(long, 0, lease=0.03)
    job.run(write, keys=[1, 2, 3])
    job.finish()
    assert values(repository) == [1, 2, 3, 4]


def test_a_part_that_hangs_fails(repository: Repository) -> None:
    job = repository.jobs.open("rows")
    go_on, ended = threading.Event(), threading.Event()
    fork: list[Any] = []

    def hang(store: IcechunkStore, key: Any) -> None:
        fork.append(store)
        assert go_on.wait(60)
        zarr.open_array(store, path="a", mode="r+")[key] = 99
        ended.set()

    with pytest.raises(
        TaskError, match="part 0 of the job 'rows' failed: TimeoutError: it did"
    ) as e:
        job.run(hang, 0, timeout=0.01)
    assert isinstance(e.value.__cause__, TimeoutError)
    (failed,) = job.status().failed
    assert failed.error == "TimeoutError: it did not end within 0.01 seconds"
    job.run(write, keys=job.status().left)
    # it ends late, and is in no version
    go_on.set()
    assert ended.wait(60)
    job.finish()
    assert values(repository) == [1, 2, 3, 4]
    repository.garbage_collect(datetime.now(UTC))
    assert len(list(repository.storage.list("chunks/"))) == 4


def test_a_part_is_tried_again(repository: Repository) -> None:
    job = repository.jobs.open("rows")
    tries: list[int] = []

    def fails_twice(store: IcechunkStore, key: int) -> None:
        tries.append(key)
        write(store, key)
        if tries.count(key) < 3:
            raise OSError(f"no {key}")

    with pytest.raises(TaskError, match="OSError: no 0"):
        job.run(fails_twice, 0, retries=1)
    results = job.run(fails_twice, keys=[0, 1], retries=2)
    assert [result.attempt for result in results] == [3, 3]
    assert tries == [0, 0, 0, 1, 1, 1]


def test_wrong_arguments(repository: Repository) -> None:
    job = repository.jobs.open("rows")
    for wrong, words in (
        ({"timeout": 0}, "timeout must be a number of seconds, not 0"),
        ({"lease": -1}, "lease must be a number of seconds, not -1"),
        ({"retries": -1}, "retries is -1"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            job.run(write, 0, **wrong)  # type: ignore[arg-type]


def test_limits_of_time() -> None:
    here = threading.get_ident()
    assert call_within(None, threading.get_ident) == here
    assert call_within(60, threading.get_ident) != here
    with pytest.raises(ZeroDivisionError):
        call_within(60, lambda: 1 // 0)
    called = threading.Event()

    def beat() -> None:
        if not called.is_set():
            called.set()
            raise OSError

    with Heartbeat(0.001, beat):
        assert called.wait(60)


@pytest.mark.parametrize("lease", [300, 300.0, np.float32(300), np.int64(300)])
def test_records_of_parts_that_run_can_be_read(repository: Repository, lease: Any) -> None:
    """Whole numbers, too: what looks at the job meanwhile reads the record."""
    job = repository.jobs.open("rows")
    seen: list[Any] = []

    def look(store: IcechunkStore, key: Any) -> None:
        seen.append(job.status().running)
        repository.garbage_collect(datetime.now(UTC))
        write(store, key)

    job.run(look, 0, lease=lease)
    assert [part.key for part in seen[0]] == [0]
    job.publish()
    assert values(repository)[0] == 1


@pytest.mark.parametrize("value", ["a minute", 0, -1, float("inf"), float("nan"), [1]])
@pytest.mark.parametrize("name", ["lease", "timeout"])
def test_what_is_no_time(repository: Repository, name: str, value: Any) -> None:
    job = repository.jobs.open("rows")
    with pytest.raises(InvalidInputError, match=f"{name} must be a number of seconds, not "):
        job.run(write, 0, **{name: value})
    assert job.status().missing == [0, 1, 2, 3]
