"""Jobs: every part once, whoever dies where, and whatever becomes of the history."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zarr

from icechunk import (
    AlreadyExistsError,
    BasicConflictSolver,
    ConflictError,
    FormatError,
    IcechunkStore,
    InvalidInputError,
    Job,
    LocalStorage,
    MemoryStorage,
    NotFoundError,
    Repository,
    RepositoryConfig,
    SessionStateError,
    TaskError,
    VersionSelection,
)
from icechunk.repository.update_types import UpdateType
from icechunk.storage.base import Storage
from tests.killing import Dying, Killed
from tests.storages import new_storage

ROOT = Path(__file__).parents[2]
#: Keys of parts: each adds one to the chunk with its position.
KEYS: list[Any] = [7, "seven/ü", [7, {"b": None, "a": True}]]
#: A chunk that others write.
THEIRS = len(KEYS)


def prepared(storage: Storage, spec_version: int = 2) -> Repository:
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(storage, config, spec_version=spec_version)
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(len(KEYS) + 1, 2), chunks=(1, 2), dtype="i4")
    return repository


@pytest.fixture
def repository() -> Repository:
    return prepared(MemoryStorage())


def add_one(store: IcechunkStore, key: Any) -> int:
    row = KEYS.index(key)
    array: Any = zarr.open_array(store, path="a", mode="r+")
    array[row] += 1
    return row


def values(storage: Storage) -> list[int]:
    store = Repository.open(storage).readonly_session("main").store
    found: Any = zarr.open_array(store, path="a", mode="r")[:]
    assert (found[:, 0] == found[:, 1]).all()
    listed: list[int] = found[:, 0].tolist()
    return listed


def write_theirs(repository: Repository, value: int = 9) -> None:
    with repository.transaction("main", message="theirs") as store:
        zarr.open_array(store, path="a")[THEIRS] = value


def landed(repository: Repository) -> int:
    """Count the commits that ever were on a branch, apart from the first."""
    return sum(isinstance(u.kind, UpdateType.NewCommit) for u in repository.ops_log()) - 1


def objects(storage: Storage, folder: str) -> list[str]:
    return [meta.key for meta in storage.list(folder)]


def leftovers(storage: Storage) -> list[str]:
    """Return what a job that is finished does not need."""
    return [key for key in objects(storage, "jobs/") if "/parts/" in key or "/attempts/" in key]


# -- whoever dies where ----------------------------------------------------------------------


def run_all(job: Job, course: str) -> None:
    if course == "at the end":
        job.run(add_one, keys=KEYS)
    else:
        for key in KEYS:
            job.run(add_one, keys=[key])
            job.publish()
    job.finish()


def nothing(repository: Repository) -> None:
    """Change nothing."""


def expire_and_collect(repository: Repository) -> None:
    write_theirs(repository)
    repository.expire_snapshots(datetime.now(UTC))
    repository.garbage_collect(datetime.now(UTC))


def amend_and_collect(repository: Repository) -> None:
    session = repository.writable_session("main")
    zarr.open_array(session.store, path="a")[THEIRS] = 9
    session.amend("amended")
    repository.garbage_collect(datetime.now(UTC))


#: What happens to the history before others go on.
HISTORIES = (nothing, expire_and_collect, amend_and_collect)
COURSES = ("at the end", "one by one", "no list of keys")


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("kind", ["memory", "local"])
def test_a_process_dies_at_any_request(
    kind: str, course: str, request: pytest.FixtureRequest
) -> None:
    for nth in range(1, 100, 1 if kind == "memory" else 9):
        history = HISTORIES[(nth + COURSES.index(course)) % len(HISTORIES)]
        storage = new_storage(kind, request)
        alive = prepared(storage)
        keys = None if course == "no list of keys" else KEYS
        alive.jobs.create("add", keys=keys, message="ours")
        dying = Dying(storage, nth)
        try:
            run_all(Repository.open(dying).jobs.open("add"), course)
        except (Killed, TaskError):
            assert dying.dead
        history(alive)
        chunks = len(objects(storage, "chunks/"))
        done = len(alive.jobs.open("add").done())
        run_all(Repository.open(storage).jobs.open("add"), course)

        assert values(storage) == [1] * len(KEYS) + [0 if history is nothing else 9]
        # nothing that was done was written once more
        assert len(objects(storage, "chunks/")) - chunks == len(KEYS) - done
        others = int(history is expire_and_collect)
        ours = [1] if course == "at the end" else range(1, len(KEYS) + 1)
        assert landed(alive) - others in ours
        status = alive.jobs.open("add").status()
        assert (status.state, status.committed, status.missing) == ("finished", len(KEYS), [])
        assert leftovers(storage) == []
        # what the dead one left goes, what is needed stays
        alive.garbage_collect(datetime.now(UTC))
        assert len(objects(storage, "chunks/")) == len(KEYS) + (history is not nothing)
        assert values(storage)[: len(KEYS)] == [1] * len(KEYS)
        if not dying.dead:
            return
    assert kind == "local", "it never came through"


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_many_finish_at_once(kind: str, request: pytest.FixtureRequest) -> None:
    storage = new_storage(kind, request)
    repository = prepared(storage)
    repository.jobs.create("add", keys=KEYS, message="ours").run(add_one, keys=KEYS)
    barrier = threading.Barrier(6)

    def finish(_: int) -> str | None:
        job = Repository.open(storage).jobs.open("add")
        barrier.wait()
        return job.finish()

    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(finish, range(6)))
    assert found == {repository.lookup_branch("main")}
    assert landed(repository) == 1
    assert values(storage) == [1] * len(KEYS) + [0]


def test_a_part_runs_twice_and_one_is_late(repository: Repository) -> None:
    job = repository.jobs.create("add", keys=KEYS, message="ours")
    other = Repository.open(repository.storage).jobs.open("add")

    def while_another_does_it(store: IcechunkStore, key: Any) -> None:
        add_one(store, key)
        assert other.run(add_one, keys=[key])[0].counts

    def while_others_finish(store: IcechunkStore, key: Any) -> None:
        add_one(store, key)
        assert other.run(add_one, keys=KEYS)[1].ran
        other.finish()

    (first,) = job.run(while_another_does_it, 0)
    assert (first.ran, first.counts, first.attempt) == (True, False, 1)
    (second,) = job.run(while_others_finish, 1)
    assert not second.counts
    assert landed(repository) == 1
    repository.garbage_collect(datetime.now(UTC))
    assert len(objects(repository.storage, "chunks/")) == len(KEYS)
    assert values(repository.storage) == [1] * len(KEYS) + [0]
    assert leftovers(repository.storage) == []
    assert [result.ran for result in job.run(add_one, keys=KEYS)] == [False] * len(KEYS)
    assert job.finish() == repository.lookup_branch("main")


def test_parts_that_were_done_elsewhere(repository: Repository) -> None:
    """Several keys in one part; what is left of a commit, or comes late, counts no more."""
    job = repository.jobs.create("add", message="ours")
    base = repository.lookup_branch("main")
    session = repository.session_after_commit("main", base)
    add_one(session.store, KEYS[0])
    add_one(session.store, KEYS[1])
    changes = session.change_set_bytes()
    assert job.add_part(KEYS[:2], changes, base)
    assert not job.add_part(KEYS[1:], changes, base)
    kept = {key: repository.storage.get(key).data for key in objects(repository.storage, "jobs/")}
    assert len(job.publish()) == 1
    for key, data in kept.items():
        repository.storage.put(key, data)
    again = Repository.open(repository.storage).jobs.open("add")
    assert again.publish() == []
    assert leftovers(repository.storage) == []
    assert len(again.status().done) == again.status().committed == 2
    assert values(repository.storage) == [1, 1, 0, 0]


def test_garbage_is_collected_while_a_part_runs(repository: Repository) -> None:
    """And the snapshot that the job was made on has expired."""
    job = repository.jobs.create("add", keys=KEYS, message="ours")

    def collecting(store: IcechunkStore, key: Any) -> None:
        add_one(store, key)
        expire_and_collect(repository)

    job.run(collecting, keys=KEYS)
    expire_and_collect(repository)
    job.finish()
    assert values(repository.storage) == [1] * len(KEYS) + [9]
    repository.garbage_collect(datetime.now(UTC))
    assert len(objects(repository.storage, "chunks/")) == len(KEYS) + 1


def test_the_repository_is_of_version_1() -> None:
    repository = prepared(MemoryStorage(), 1)
    job = repository.jobs.create("add", keys=KEYS, message="ours")
    job.run(add_one, keys=KEYS)
    write_theirs(repository)
    assert job.finish() == job.finish() == repository.lookup_branch("main")
    assert values(repository.storage) == [1] * len(KEYS) + [9]


# -- what contradicts ------------------------------------------------------------------------
def test_two_parts_write_the_same_chunk(repository: Repository) -> None:
    job = repository.jobs.create("same", keys=[1, 2, "x"], message="ours")

    def write(store: IcechunkStore, key: Any) -> None:
        zarr.open_array(store, path="a")[key if key == 1 else 0] = 5

    job.run(write, keys=[1, 2, "x"])
    with pytest.raises(ConflictError, match=r'the key "x" and the key 2|the key 2 and the key "x"'):
        job.finish()
    assert landed(repository) == 0
    assert len(job.status().done) == 3
    job.cancel()
    assert job.status().state == "cancelled"
    repository.garbage_collect(datetime.now(UTC))
    assert objects(repository.storage, "chunks/") == []
    with pytest.raises(SessionStateError, match="was cancelled; create another one"):
        job.run(write, 0)
    with pytest.raises(SessionStateError, match="was cancelled"):
        job.finish()


def write_as_theirs(store: IcechunkStore, key: Any) -> None:
    zarr.open_array(store, path="a")[THEIRS] = 5


def test_others_write_the_same_chunk(repository: Repository) -> None:
    job = repository.jobs.create("same", keys=[1], message="ours", metadata={"by": "me"})
    job.run(write_as_theirs, 0)
    write_theirs(repository)
    with pytest.raises(ConflictError, match="chunks \\(3, 0\\)"):
        job.finish()
    assert values(repository.storage)[THEIRS] == 9
    solver = BasicConflictSolver(on_chunk_conflict=VersionSelection.UseOurs)
    assert job.finish(rebase_with=solver) == repository.lookup_branch("main")
    assert values(repository.storage)[THEIRS] == 5
    newest = next(iter(repository.ancestry(branch="main")))
    assert (newest.message, newest.metadata["by"]) == ("ours", "me")


def test_a_commit_that_cannot_be_is_given_up(repository: Repository) -> None:
    job = repository.jobs.create("same", message="ours")
    job.run(write_as_theirs, keys=[1])
    write_theirs(repository)
    with pytest.raises(ConflictError):
        job.publish(rebase_with=None)
    assert job.give_up_commit()
    assert job.done() == set()
    job.run(write_as_theirs, keys=[1])
    assert job.publish(rebase_with=None) == [repository.lookup_branch("main")]
    assert job.committed() == {"1"}
    assert values(repository.storage)[THEIRS] == 5


# -- how far it is ---------------------------------------------------------------------------
def test_status(repository: Repository) -> None:
    job = repository.jobs.create("days", keys=[*KEYS, "never", "bad", "dead"], message="ours")

    def fail(store: IcechunkStore, key: Any) -> None:
        raise OSError(f"no {key}") if key == "bad" else Killed

    job.run(add_one, 0)
    job.publish()
    for _ in range(2):
        with pytest.raises(
            TaskError, match=r'"bad" of the job .days. failed: OSError: no'
        ) as error:
            job.run(fail, keys=["bad"])
        assert isinstance(error.value.__cause__, OSError)
    dead = Repository.open(Dying(repository.storage, 2)).jobs.open("days")
    with pytest.raises(Killed):
        dead.run(fail, keys=["dead"])
    job.run(add_one, 1)
    status = job.status()
    assert (status.total, status.done, status.committed) == (6, KEYS[:2], 1)
    assert status.missing == [KEYS[2], "never"]
    assert [(p.key, p.attempt) for p in status.running] == [("dead", 1)]
    assert status.running[0].host
    (failed,) = status.failed
    assert (failed.key, failed.attempts, failed.error) == ("bad", 2, "OSError: no bad")
    assert "in fail" in failed.traceback
    assert not status.is_complete
    assert json.loads(json.dumps(status.to_dict()))["missing"] == status.missing
    assert repr(status).splitlines()[0] == (
        "<icechunk.JobStatus> days, on branch 'main': open, 6 parts"
    )
    assert "'bad' (2 times): OSError: no bad" in repr(status)
    assert "<td>missing</td><td>2</td>" in status._repr_html_()
    with pytest.raises(SessionStateError, match=r'4 of 6 parts are left, the keys "bad", "dead"'):
        job.finish()
    with pytest.raises(SessionStateError, match="is finished"):
        finished(repository).cancel()


def finished(repository: Repository) -> Job:
    job = repository.jobs.create("none", keys=[], message="nothing")
    assert job.finish() is None
    return job


def test_jobs_by_name(repository: Repository) -> None:
    jobs = repository.jobs
    assert jobs.list() == []
    job = jobs.create("b.1", keys=KEYS, message="m", metadata={"a": [1]})
    again = {"keys": [*KEYS], "message": "m", "metadata": {"a": [1]}, "exist_ok": True}
    assert jobs.create("b.1", **again).keys == pickle.loads(pickle.dumps(job)).keys == KEYS
    with pytest.raises(AlreadyExistsError, match=r"another message and keys"):
        jobs.create("b.1", **{**again, "keys": [1], "message": "n"})
    with pytest.raises(AlreadyExistsError, match=r"jobs\.open\('b\.1'\)"):
        jobs.create("b.1", message="m")
    with pytest.raises(NotFoundError, match=r"no job 'c'; there is 'b\.1'"):
        jobs.open("c")
    assert "b.1" in jobs
    assert repr(jobs) == "<icechunk.Jobs 'b.1'>"
    assert repr(job) == "<icechunk.Job 'b.1' on branch 'main', 3 parts>"
    jobs.delete("b.1")
    assert jobs.list() == objects(repository.storage, "jobs/") == []


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_names_of_any_kind(kind: str, request: pytest.FixtureRequest) -> None:
    repository = prepared(new_storage(kind, request))
    names = sorted(["monthly means", "a/b", "..", ".hidden", "=41", "A", "ü%20", "x" * 100, "*?"])
    for name in names:
        job = repository.jobs.create(name, keys=[name], message=name)
        job.run(lambda store, key: None, 0)
    assert repository.jobs.list() == names
    assert [repository.jobs.open(name).status().done for name in names] == [[n] for n in names]
    repository.garbage_collect(datetime.now(UTC))
    repository.jobs.delete("..")
    assert repository.jobs.list() == [name for name in names if name != ".."]


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("is not a valid job name", lambda jobs, job: jobs.create("a\n", message="m")),
        ("is not a valid job name", lambda jobs, job: jobs.create("", message="m")),
        ("the message of a job", lambda jobs, job: jobs.create("a", message=None)),
        ("key 1 occurs twice", lambda jobs, job: jobs.create("a", keys=[1, 1], message="m")),
        ("the keys of a dict", lambda jobs, job: jobs.create("a", keys=[{1: 2}], message="m")),
        ("cannot be the key", lambda jobs, job: jobs.create("a", keys=[b"x"], message="m")),
        ("cannot be the key", lambda jobs, job: jobs.create("a", keys=[float("nan")], message="m")),
        ("has 3 parts, counted from 0", lambda jobs, job: job.run(add_one, 3)),
        ("has 3 parts, counted from 0", lambda jobs, job: job.run(add_one, -1)),
        ("either the index of a key or keys=", lambda jobs, job: job.run(add_one)),
        ("no part with the key 8", lambda jobs, job: job.run(add_one, keys=[7, 8])),
        ("must be a function of store and key", lambda jobs, job: job.run(None, 0)),
        ("was created without keys", lambda jobs, job: jobs.create("a", message="m").run(print, 0)),
    ],
)
def test_wrong_arguments(repository: Repository, words: str, call: Callable[..., Any]) -> None:
    job = repository.jobs.create("add", keys=KEYS, message="ours")
    with pytest.raises(InvalidInputError, match=words):
        call(repository.jobs, job)


@pytest.mark.parametrize("kind", ["add/job", "attempts/", "parts/", "log/"])
@pytest.mark.parametrize("damage", [b"", b"\x28\xb5\x2f\xfd", b"x" * 100, None], ids=str)
def test_damaged_records(repository: Repository, kind: str, damage: bytes | None) -> None:
    """Nobody guesses, and garbage is not collected."""
    job = repository.jobs.create("add", keys=KEYS, message="ours")
    job.run(add_one, 0)
    job.publish()
    job.run(add_one, 1)
    dead = Repository.open(Dying(repository.storage, 2)).jobs.open("add")
    with pytest.raises(Killed):
        dead.run(add_one, 2)
    storage = repository.storage
    key = next(key for key in objects(storage, "jobs/add/") if f"/{kind}" in key)
    data = bytes(storage.get(key).data)
    storage.put(key, data[:-3] + b"abc" if damage is None else damage)
    for call in (
        lambda: repository.jobs.open("add").finish(),
        lambda: repository.garbage_collect(datetime.now(UTC)),
    ):
        with pytest.raises((FormatError, SessionStateError), match=r"jobs/add/|parts are left|job"):
            call()
    assert values(storage)[:2] == [1, 0]
    repository.jobs.delete("add")
    assert repository.jobs.list() == []
    repository.garbage_collect(datetime.now(UTC))
    assert len(objects(storage, "chunks/")) == 1


# -- real processes --------------------------------------------------------------------------
def test_processes_that_are_killed(tmp_path: Path) -> None:
    """Two at a time do the same parts from two ends, until one comes through."""
    storage = LocalStorage(tmp_path / "repository")
    repository = Repository.create(storage, RepositoryConfig(inline_chunk_threshold_bytes=0))
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(6,), chunks=(1,), dtype="i4")
    repository.jobs.create("rows", keys=range(6), message="rows")
    command = [sys.executable, "-m", "tests.repository.job_script", str(tmp_path / "repository")]
    ends = []
    while "finished" not in repr(repository.jobs.open("rows").status()):
        processes = [subprocess.Popen([*command, first], cwd=ROOT) for first in ("0", "3")]
        ends += [process.wait(120) for process in processes]
        repository.expire_snapshots(datetime.now(UTC))
        repository.garbage_collect(datetime.now(UTC))
        assert len(ends) < 20
    assert -signal.SIGKILL in ends
    assert 0 in ends
    assert zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")[
        :
    ].tolist() == [1, 2, 3, 4, 5, 6]
    assert landed(repository) == 1
    repository.garbage_collect(datetime.now(UTC))
    assert len(objects(storage, "chunks/")) == 6
