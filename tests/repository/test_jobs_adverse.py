"""Jobs whose history, name or keys change under them: refused by name, or right."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    BasicConflictSolver,
    ConflictDetector,
    ConflictError,
    IcechunkStore,
    InvalidInputError,
    Job,
    MemoryStorage,
    RebaseFailedError,
    Repository,
    RepositoryConfig,
    SessionStateError,
    VersionSelection,
)
from icechunk.storage import WrapperStorage
from icechunk.storage.base import Storage


def prepared(spec_version: int = 2) -> Repository:
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(MemoryStorage(), config, spec_version=spec_version)
    repository.create_branch("side", repository.lookup_branch("main"))
    for branch in ("main", "side"):
        with repository.transaction(branch, message="an array") as store:
            zarr.create_array(store, name="a", shape=(6,), chunks=(1,), dtype="i4")
    return repository


@pytest.fixture
def repository() -> Repository:
    return prepared()


def write(store: IcechunkStore, key: Any) -> None:
    zarr.open_array(store, path="a", mode="r+")[key] = key + 1


def values(repository: Repository, branch: str = "main") -> list[int]:
    found: Any = zarr.open_array(repository.readonly_session(branch).store, path="a", mode="r")
    listed: list[int] = found[:].tolist()
    return listed


def parts(repository: Repository) -> list[str]:
    return [meta.key for meta in repository.storage.list("jobs/") if "/parts/" in meta.key]


# -- the branch ------------------------------------------------------------------------------
def reset(repository: Repository, base: str) -> None:
    repository.reset_branch("side", base)


def recreate(repository: Repository, base: str) -> None:
    repository.delete_branch("side")
    repository.create_branch("side", base)


@pytest.mark.parametrize("loses", [reset, recreate])
@pytest.mark.parametrize("done", [[0], [0, 1]])
def test_a_branch_that_has_lost_commits(
    repository: Repository, loses: Callable[..., None], done: list[int]
) -> None:
    base = repository.lookup_branch("side")
    job = repository.jobs.create("rows", keys=[0, 1], message="rows", branch="side")
    job.run(write, keys=done)
    (commit,) = job.publish()
    loses(repository, base)
    job.run(write, keys=[0, 1])
    for call in (
        job.publish,
        job.finish,
        Repository.open(repository.storage).jobs.open("rows").finish,
    ):
        with pytest.raises(SessionStateError, match=f"lost the commit {commit} of the job 'rows'"):
            call()
    assert values(repository, "side") == [0] * 6
    # what the message says
    repository.reset_branch("side", commit)
    job.finish()
    assert values(repository, "side") == [1, 2, 0, 0, 0, 0]
    loses(repository, base)
    repository.jobs.delete("rows")
    again = repository.jobs.create("rows", keys=[0, 1], message="rows", branch="side")
    again.run(write, keys=[0, 1])
    again.finish()
    assert values(repository, "side") == [1, 2, 0, 0, 0, 0]


def test_commits_that_went_otherwise_are_no_loss(repository: Repository) -> None:
    job = repository.jobs.create("rows", keys=[0, 1], message="rows")
    job.run(write, keys=[0])
    job.publish()
    session = repository.writable_session("main")
    write(session.store, 5)
    session.amend("amended")
    repository.expire_snapshots(datetime.now(UTC))
    job.run(write, keys=[1])
    job.finish()
    assert values(repository) == [1, 2, 0, 0, 0, 6]


@pytest.mark.parametrize("change", ["chunks", "attributes", "group"])
@pytest.mark.parametrize("through", ["session", "job"])
def test_what_was_written_to_is_undone(change: str, through: str) -> None:
    """The branch is reset to a snapshot without the array."""
    repository = Repository.create(MemoryStorage())
    first = repository.lookup_branch("main")
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="g/a", shape=(6,), chunks=(1,), dtype="i4")

    def edit(store: IcechunkStore, key: object) -> None:
        if change == "group":
            zarr.create_group(store, path="g/h")
        else:
            array = zarr.open_array(store, path="g/a", mode="r+")
            if change == "chunks":
                array[0] = 1
            else:
                array.update_attributes({"units": "m"})

    if through == "job":
        job = repository.jobs.create("one", keys=[0], message="one")
        job.run(edit, 0)
        repository.reset_branch("main", first)
        with pytest.raises(RebaseFailedError, match="/g"):
            job.finish()
    else:
        session = repository.writable_session("main")
        edit(session.store, 0)
        repository.reset_branch("main", first)
        with pytest.raises(RebaseFailedError, match="/g"):
            session.commit("one", rebase_with=ConflictDetector())
    assert repository.lookup_branch("main") == first


# -- the name --------------------------------------------------------------------------------
@pytest.mark.parametrize("end", ["cancelled", "deleted", "finished", "deleted, and created anew"])
def test_a_part_whose_job_ends_meanwhile(repository: Repository, end: str) -> None:
    """It does not count, it says so, and it is in no other job of that name."""
    job = repository.jobs.create("rows", message="rows")

    def slow(store: IcechunkStore, key: Any) -> None:
        zarr.open_array(store, path="a", mode="r+")[key] = 99
        other = repository.jobs.open("rows")
        if end.startswith("deleted"):
            repository.jobs.delete("rows")
            if "anew" in end:
                repository.jobs.create("rows", keys=[0, 1], message="rows")
        else:
            (other.cancel if end == "cancelled" else other.finish)()

    with pytest.raises(SessionStateError, match=f"{end[:7]}.* while the part 0 ran"):
        job.run(slow, keys=[0])
    assert parts(repository) == []
    if "anew" in end:
        new = repository.jobs.open("rows")
        assert new.status().missing == [0, 1]
        new.run(write, keys=[0, 1])
        new.finish()
        assert values(repository) == [1, 2, 0, 0, 0, 0]
    else:
        assert values(repository) == [0] * 6


class Pausing(WrapperStorage):
    """Does something before a request, once."""

    def __init__(self, inner: Storage, at: str, action: Callable[[], object]) -> None:
        super().__init__(inner)
        self._at = at
        self._action: Callable[[], object] | None = action
        self._lock = threading.Lock()

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        if operation == "put" and self._action is not None and self._at in keys[0]:
            action, self._action = self._action, None
            action()

    def with_settings(self, settings: Any) -> Storage:
        return self


def test_a_part_that_comes_when_the_job_is_closed(repository: Repository) -> None:
    """Between the last look at the parts and the end of the job: it counts."""
    job = repository.jobs.create("rows", message="rows")
    job.run(write, keys=[0])
    job.publish()
    late = Pausing(repository.storage, "/log/", lambda: job.run(write, keys=[1]))
    Repository.open(late).jobs.open("rows").finish()
    assert job.status().state == "finished"
    assert values(repository) == [1, 2, 0, 0, 0, 0]
    assert parts(repository) == []


# -- the keys --------------------------------------------------------------------------------
def test_a_function_that_changes_its_key(repository: Repository) -> None:
    job = repository.jobs.create("rows", keys=[[0, "x"], [1, "y"]], message="rows")
    loose = repository.jobs.create("loose", message="rows")

    def pop(store: IcechunkStore, key: list[Any]) -> None:
        write(store, key.pop(0))

    job.run(pop, 0)
    job.run(pop, keys=[[1, "y"]])
    loose.run(pop, keys=[[2, "z"]])
    assert job.keys == job.status().done == [[0, "x"], [1, "y"]]
    assert loose.status().done == [[2, "z"]]
    job.finish()
    assert values(repository) == [1, 2, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            "keys must be a list .*not 'ab'",
            lambda jobs, job: jobs.create("b", keys="ab", message="m"),
        ),
        ("keys must be a list .*not {0: 1}", lambda jobs, job: job.run(write, keys={0: 1})),
        ("index is True", lambda jobs, job: job.run(write, True)),
        ("index is 1.0", lambda jobs, job: job.run(write, 1.0)),
    ],
)
def test_what_is_no_key(
    repository: Repository, words: str, call: Callable[[Any, Job], object]
) -> None:
    job = repository.jobs.create("rows", keys=[0, 1], message="rows")
    with pytest.raises(InvalidInputError, match=words):
        call(repository.jobs, job)
    assert [part.key for part in job.run(write, np.int64(1))] == [1]


# -- the parts -------------------------------------------------------------------------------
@pytest.mark.parametrize("selection", [VersionSelection.UseOurs, VersionSelection.UseTheirs])
def test_parts_that_overlap_after_a_commit(
    repository: Repository, selection: VersionSelection
) -> None:
    """A solver is for what others did, not for what another part did."""
    job = repository.jobs.create("rows", keys=["p", "q"], message="rows")
    job.run(lambda store, key: write(store, 0), keys=["p"])
    job.publish()
    job.run(lambda store, key: write(store, 0), keys=["q"])
    with repository.transaction("main", message="theirs") as store:
        write(store, 0)
    with pytest.raises(RebaseFailedError, match="ChunkDoubleUpdate"):
        job.finish(rebase_with=BasicConflictSolver(on_chunk_conflict=selection))


def test_two_runs_with_other_batches(repository: Repository) -> None:
    """What is done once counts; the rest of the other batch is free again."""
    job = repository.jobs.create("rows", message="rows")
    base = repository.lookup_branch("main")

    def did(*keys: int) -> bytes:
        session = repository.session_after_commit("main", base)
        for key in keys:
            write(session.store, key)
        return session.change_set_bytes()

    storage = repository.storage
    faster = Pausing(storage, "/parts/", lambda: job.add_part([0, 1], did(0, 1), base))
    other = Repository.open(faster).jobs.open("rows")
    assert other.add_part([1, 2], did(1, 2), base)
    with pytest.raises(ConflictError, match="two runs have done the key 1, one of them together"):
        other.publish()
    other.publish()
    done = job.committed()
    assert done in ({"0", "1"}, {"1", "2"})
    assert job.done() == done
    job.run(write, keys=[key for key in range(3) if str(key) not in done])
    job.finish()
    assert values(repository) == [1, 2, 3, 0, 0, 0]


class Interfering(WrapperStorage):
    """A storage where something happens before the next put of the repo info."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.act: Callable[[], Any] | None = None

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        if operation == "put" and keys == ("repo",) and self.act is not None:
            act, self.act = self.act, None
            act()


@pytest.mark.parametrize("solver", [None, ConflictDetector()])
def test_another_process_finishes_the_same_commit(
    repository: Repository, solver: ConflictDetector | None
) -> None:
    """The branch has moved because it did what this one was about to do: no conflict."""
    storage = Interfering(repository.storage)
    job = Repository.open(storage).jobs.create("rows", keys=[0, 1], message="rows")
    job.run(write, keys=[0, 1])
    storage.act = repository.jobs.open("rows").publish
    job.publish(rebase_with=solver)
    assert storage.act is None
    assert job.status().committed == 2
    assert values(repository)[:2] == [1, 2]
    assert [commit.message for commit in repository.ancestry(branch="main")].count("rows") == 1


def test_somebody_else_moves_the_branch(repository: Repository) -> None:
    storage = Interfering(repository.storage)
    job = Repository.open(storage).jobs.create("rows", keys=[0], message="rows")
    job.run(write, 0)

    def theirs() -> None:
        with repository.transaction("main", message="theirs") as store:
            write(store, 5)

    storage.act = theirs
    with pytest.raises(ConflictError, match="the branch moved"):
        job.publish(rebase_with=None)
    job.publish()
    assert values(repository) == [1, 0, 0, 0, 0, 6]
