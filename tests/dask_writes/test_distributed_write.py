"""A function for each of many items, and commits in batches."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from rich.console import Console

from icechunk import (
    BasicConflictSolver,
    ConflictDetector,
    ConflictError,
    IcechunkStore,
    InvalidInputError,
    LocalStorage,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    TaskError,
    VersionSelection,
)
from icechunk.repository.jobs_records import Entry, JobFiles
from icechunk_dask import Status, distributed_write, store_dask, written_chunks
from icechunk_dask.batches import Every
from icechunk_dask.progress import terminal_bar
from tests.dask_writes.clusters import running

ROWS = 12


def prepared(storage: Any) -> Repository:
    repository = Repository.create(storage, RepositoryConfig(inline_chunk_threshold_bytes=0))
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(ROWS, 4), chunks=(1, 2), dtype="i4")
    return repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return prepared(LocalStorage(tmp_path / "repository"))


def rows(repository: Repository, branch: str = "main") -> list[int]:
    store = repository.readonly_session(branch).store
    found: list[int] = zarr.open_array(store, path="a", mode="r")[:, 0].tolist()
    return found


def commits(repository: Repository, branch: str = "main") -> int:
    """Count the commits that came after the array."""
    return len(list(repository.ancestry(branch=branch))) - 2


def fill(store: IcechunkStore, row: int) -> int:
    zarr.open_array(store, path="a", mode="r+")[row] = row + 1
    return 10 * row


ALL = list(range(1, ROWS + 1))


class Fill:
    """Fills rows in this process, notes which, and fails where it is told to."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.bad: set[int] = set()

    def __call__(self, store: IcechunkStore, row: int) -> None:
        self.seen.append(row)
        if row in self.bad:
            raise OSError(f"no row {row}")
        fill(store, row)


# -- into a session ----------------------------------------------------------------------
def test_anywhere(anywhere: str, repository: Repository) -> None:
    session = repository.writable_session("main")
    written = distributed_write(
        fill, range(ROWS), session, return_results=True, split_every=3, progress=False
    )
    assert (written.tasks, written.chunks, written.skipped) == (ROWS, 2 * ROWS, 0)
    assert written.results == [10 * row for row in range(ROWS)]
    assert commits(repository) == 0
    session.commit("filled")
    assert rows(repository) == ALL


def test_a_failing_item(anywhere: str, repository: Repository) -> None:
    session = repository.writable_session("main")
    with pytest.raises(TaskError, match=r"item 'c' \(number 2\) failed: ZeroDivision") as error:
        distributed_write(_fail_at_c, "abcd", session)
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert not session.has_uncommitted_changes


def _fail_at_c(store: IcechunkStore, item: str) -> None:
    fill(store, ord(item) - ord("a"))
    if item == "c":
        raise ZeroDivisionError("c")


def test_two_items_that_write_one_chunk(anywhere: str, repository: Repository) -> None:
    session = repository.writable_session("main")
    with pytest.raises(ConflictError, match=r"item 3 and item 3 \(number 7\) \('/a'\)"):
        distributed_write(_fill_other, [0, 1, 2, 3, 4, 5, 6, 3], session, split_every=2)
    assert not session.has_uncommitted_changes


def test_items_in_turns_are_no_conflict(repository: Repository, here: None) -> None:
    """Only those are named that wrote the same chunk, not those that wrote between."""

    def fill_some(store: IcechunkStore, some: tuple[int, ...]) -> None:
        for row in some:
            _fill_other(store, row)

    session = repository.writable_session("main")
    with pytest.raises(ConflictError) as error:
        distributed_write(fill_some, [(0, 4, 8), (1, 5, 9), (2, 5, 10), (3, 7, 11)], session)
    assert "item (1, 5, 9) (number 1) and item (2, 5, 10) (number 2) ('/a')" in str(error.value)
    assert "(number 0)" not in str(error.value)
    assert "(number 3)" not in str(error.value)


def _fill_other(store: IcechunkStore, row: int) -> None:
    rng = np.random.default_rng()
    zarr.open_array(store, path="a", mode="r+")[row] = rng.integers(1, 1000, 4)


def test_nodes_that_items_make(repository: Repository, here: None) -> None:
    """And nothing at all."""
    session = repository.writable_session("main")

    def make(store: IcechunkStore, name: str) -> None:
        zarr.create_array(store, name=f"new/{name}", shape=(1,), chunks=(1,), dtype="i4")[:] = 1

    distributed_write(make, ["x", "y"], session)
    assert sorted(zarr.open_group(session.store, path="new", mode="r")) == ["x", "y"]
    assert distributed_write(make, [], session).tasks == 0
    assert distributed_write(lambda store, item: None, [1, 2], session).chunks == 0


# -- commits -------------------------------------------------------------------------------
def test_one_commit(repository: Repository, here: None) -> None:
    for storage in (repository, repository.storage, repository.storage.url):
        fresh = distributed_write(
            fill, range(ROWS), storage, message="filled", metadata={"by": "test"}
        )
        newest = next(iter(repository.ancestry(branch="main")))
        assert fresh.snapshots == (newest.id,)
        assert (newest.message, newest.metadata) == ("filled", {"by": "test"})
    assert rows(repository) == ALL
    assert commits(repository) == 3


def test_batches(anywhere: str, repository: Repository) -> None:
    written = distributed_write(fill, range(ROWS), repository, message="x", commit_every=5)
    assert len(written.snapshots) == commits(repository) == 3
    assert rows(repository) == ALL


@pytest.mark.parametrize("publish", ["batch", "end"])
def test_a_job_that_is_run_again(repository: Repository, here: None, publish: Any) -> None:
    work = Fill()
    work.bad = {6}
    how: dict[str, Any] = {"message": "x", "commit_every": 2, "publish": publish, "job": "fill"}
    with pytest.raises(TaskError, match="writing item 6 failed") as error:
        distributed_write(work, range(8), repository, **how)
    assert "6 of 8 are " in error.value.__notes__[0]
    assert "the job 'fill'; the same call goes on with the rest" in error.value.__notes__[0]
    assert rows(repository) == ([1, 2, 3, 4, 5, 6] if publish == "batch" else [0] * 6) + [0] * 6
    # what the history says of it is gone
    with repository.transaction("main", message="theirs") as store:
        zarr.create_group(store, path="theirs")
    repository.expire_snapshots(datetime.now(UTC))
    repository.garbage_collect(datetime.now(UTC))
    # the cause is gone, and there is more to do: at the beginning, in the middle and at the end
    work.bad, work.seen = set(), []
    how["rebase_with"] = ConflictDetector()
    items = [*range(6, 9), *range(6), *range(9, ROWS)]
    written = distributed_write(work, items, repository, **how)
    assert sorted(work.seen) == list(range(6, ROWS))
    assert (written.skipped, written.tasks) == (6, 6)
    assert len(written.snapshots) == (3 if publish == "batch" else 1)
    assert rows(repository) == ALL
    assert repository.list_branches() == {"main"}
    # all is done; and a job of another name knows nothing of it
    work.seen = []
    assert distributed_write(work, range(ROWS), repository, **how).snapshots == ()
    assert work.seen == []
    assert distributed_write(work, range(2), repository, message="x", job="other").tasks == 2
    # other items are other work
    assert distributed_write(work, [5, 1], repository, message="x", job="other").tasks == 1


def test_a_run_of_a_job_beside_another(repository: Repository, here: None) -> None:
    """What both have done is committed once, and the job goes on."""
    how: dict[str, Any] = {"message": "x", "job": "add", "rebase_with": ConflictDetector()}

    def add(store: IcechunkStore, row: int) -> None:
        array: Any = zarr.open_array(store, path="a", mode="r+")
        array[row] += 1

    def beside(store: IcechunkStore, row: int) -> None:
        add(store, row)
        if row == 2:
            distributed_write(add, [2, 1], repository, **how)

    with pytest.raises(ConflictError, match="another process runs the job 'add', too"):
        distributed_write(beside, [0, 1, 2, 3], repository, commit_every=4, **how)
    assert rows(repository)[:4] == [0, 1, 1, 0]
    assert distributed_write(add, range(5), repository, **how).tasks == 3
    assert rows(repository)[:6] == [1, 1, 1, 1, 1, 0]


def test_batches_that_contradict_each_other(repository: Repository, here: None) -> None:
    with pytest.raises(
        ConflictError,
        match=r"chunk, \(1, 0\) of '/a': item 1, which is committed, and item 1 .number 4",
    ):
        distributed_write(_fill_other, [0, 1, 2, 3, 1], repository, message="x", commit_every=2)
    assert commits(repository) == 2


def test_a_branch_that_moved_meanwhile(repository: Repository, here: None) -> None:
    """What waits on a temporary branch is not lost."""

    def interfere(store: IcechunkStore, row: int) -> None:
        fill(store, row)
        if row == 1:
            with repository.transaction("main", message="theirs") as other:
                zarr.create_group(other, path="theirs")

    how: dict[str, Any] = {"message": "x", "publish": "end", "job": "j", "commit_every": 2}
    with pytest.raises(ConflictError, match=r"work stays in the job 'j'") as error:
        distributed_write(interfere, range(4), repository, **how)
    assert "run it with rebase_with=icechunk.ConflictDetector()" in str(error.value)
    # as the message says: theirs is kept, and the work done again
    assert "repo.jobs.delete('j'), and run it" in str(error.value)
    repository.jobs.delete("j")
    assert distributed_write(fill, range(4), repository, **how).tasks == 4
    assert rows(repository)[:4] == [1, 2, 3, 4]
    assert [s.message for s in repository.ancestry(branch="main")][:2] == ["x", "theirs"]


@pytest.mark.parametrize("killed", [False, True])
def test_work_that_waits_is_published_beside_that_of_others(
    repository: Repository, here: None, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interfere(store: IcechunkStore, row: int) -> None:
        fill(store, row)
        if row == 3:
            with repository.transaction("main", message="theirs") as other:
                zarr.open_array(other, path="a")[9] = 99
                zarr.create_group(other, path="theirs")

    how: dict[str, Any] = {
        **{"message": "ours", "metadata": {"who": "we"}, "publish": "end", "job": "j"},
        **{"commit_every": 2, "rebase_with": ConflictDetector()},
    }
    if killed:
        # after the commit, before the job knows of it
        monkeypatch.setattr(JobFiles, "change", _interrupted_when_done(JobFiles.change))
        with pytest.raises(KeyboardInterrupt):
            distributed_write(interfere, range(6), repository, **how)
        monkeypatch.undo()
        again = distributed_write(interfere, range(6), repository, **how)
        assert (again.tasks, again.skipped) == (0, 6)
    else:
        written = distributed_write(interfere, range(6), repository, **how)
        assert written.snapshots == (repository.lookup_branch("main"),)
    ours, theirs, *_ = repository.ancestry(branch="main")
    assert (ours.message, ours.metadata["who"], theirs.message) == ("ours", "we", "theirs")
    assert rows(repository) == [1, 2, 3, 4, 5, 6, 0, 0, 0, 99, 0, 0]
    assert "theirs" in zarr.open_group(repository.readonly_session("main").store, mode="r")
    assert repository.list_branches() == {"main"}
    # the job goes on from there
    assert distributed_write(fill, range(8), repository, **how).tasks == 2


def _interrupted_when_done(change: Any) -> Any:
    def interrupted(self: JobFiles, entry: Entry, version: Any) -> Any:
        if entry.state == "done":
            raise KeyboardInterrupt
        return change(self, entry, version)

    return interrupted


def test_work_that_waits_and_contradicts_that_of_others(repository: Repository, here: None) -> None:
    def interfere(store: IcechunkStore, row: int) -> None:
        fill(store, row)
        if row == 3:
            with repository.transaction("main", message="theirs") as other:
                zarr.open_array(other, path="a")[1] = 99

    how: dict[str, Any] = {"message": "x", "publish": "end", "job": "j", "commit_every": 2}
    with pytest.raises(ConflictError, match=r"ChunkDoubleUpdate.*'/a'.*stays in the job"):
        distributed_write(interfere, range(6), repository, rebase_with=ConflictDetector(), **how)
    assert rows(repository)[:3] == [0, 99, 0]
    # all is written: the second run only settles it
    solver = BasicConflictSolver(on_chunk_conflict=VersionSelection.UseTheirs)
    assert distributed_write(fill, range(6), repository, rebase_with=solver, **how).tasks == 0
    assert rows(repository)[:6] == [1, 99, 3, 4, 5, 6]
    assert repository.list_branches() == {"main"}


def test_others_commit_between_and_within_batches(repository: Repository, here: None) -> None:
    solver = BasicConflictSolver()

    def interfere(store: IcechunkStore, row: int) -> None:
        fill(store, row)
        # ours is being committed meanwhile
        with repository.transaction("main", message="theirs", rebase_with=solver) as other:
            zarr.create_group(other, path=f"theirs/{row}")

    how: dict[str, Any] = {"message": "x", "commit_every": 2}
    with pytest.raises(ConflictError):
        distributed_write(interfere, range(2), repository, **how)
    assert rows(repository) == [0] * ROWS
    distributed_write(interfere, range(2, 7), repository, rebase_with=solver, **how)
    assert rows(repository) == [0, 0, 3, 4, 5, 6, 7] + [0] * 5
    messages = [s.message for s in repository.ancestry(branch="main")]
    # the last of theirs may be before the batch that came before
    assert sorted(messages[:8]) == ["theirs"] * 5 + ["x"] * 3


def test_what_cannot_be_asked_for(repository: Repository, here: None) -> None:
    session = repository.writable_session("main")
    for words, where, options in (
        ("need a repository in place of a session", session, {"message": "x"}),
        ("pass a message", repository, {}),
        ("name it with job=", repository, {"message": "x", "publish": "end"}),
        ("'batch' or 'end'", repository, {"message": "x", "publish": "never"}),
        ("commit_every is '5 parsecs'", repository, {"message": "x", "commit_every": "5 parsecs"}),
        # seconds, bytes, or what
        ("commit_every is '1.5'", repository, {"message": "x", "commit_every": "1.5"}),
        ("commit_every is ''", repository, {"message": "x", "commit_every": ""}),
        ("commit_every is 0", repository, {"message": "x", "commit_every": 0}),
        ("progress must be True, False", session, {"progress": "yes"}),
    ):
        with pytest.raises(InvalidInputError, match=words):
            distributed_write(fill, [1], where, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="a object has no JSON; pass key="):
        distributed_write(fill, [object()], repository, message="x", job="j")  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"argument 'worker'.*; did you mean 'workers'"):
        distributed_write(fill, [1], session, worker=1)
    # before anything is said of what is then missing
    with pytest.raises(TypeError, match=r"argument 'mesage'.*; did you mean 'message'"):
        distributed_write(fill, [1], repository, mesage="x")
    with running("processes"), pytest.raises(InvalidInputError, match="memory of this process"):
        distributed_write(fill, [1], prepared(MemoryStorage()), message="x")
    assert commits(repository) == 0


@pytest.mark.parametrize(
    ("value", "every"),
    [
        (None, Every()),
        (7, Every(tasks=7)),
        # as `icechunk ingest --commit-every 7` gives it
        ("7", Every(tasks=7)),
        ("1.5 GB", Every(nbytes=1_500_000_000)),
        ("2 MiB", Every(nbytes=2 << 20)),
        ("60s", Every(seconds=60.0)),
        ("5m", Every(seconds=300.0)),
        (timedelta(seconds=90), Every(seconds=90.0)),
    ],
)
def test_sizes_of_batches(value: Any, every: Every) -> None:
    assert Every.parse(value) == every


# -- Dask arrays, in batches --------------------------------------------------------------
def source() -> da.Array:
    return da.from_array(np.arange(ROWS * 4, dtype="i4").reshape(ROWS, 4) + 1, chunks=(1, 4))


@pytest.mark.parametrize(("every", "expected"), [(5, 3), ("64B", 3), ("1h", 2), (None, 1)])
def test_arrays_in_batches(repository: Repository, every: Any, expected: int) -> None:
    written = store_dask(
        sources=[source()],
        targets=["a"],
        repository=repository,
        message="x",
        commit_every=every,
        scheduler="threads",
        num_workers=2,
    )
    assert len(written.snapshots) == commits(repository) == expected
    assert rows(repository) == list(range(1, ROWS * 4, 4))


def test_what_is_there_is_not_written_again(repository: Repository, here: None) -> None:
    with repository.transaction("main", message="some") as store:
        array = zarr.open_array(store, path="a", mode="r+")
        array[2:5] = -1
        array[7, :2] = -1
        assert written_chunks(array).sum() == 7
    reader = repository.readonly_session("main")
    array = zarr.open_array(reader.store, path="a", mode="r")
    grid = written_chunks(array)
    assert grid.shape == (ROWS, 2)
    assert np.argwhere(grid[:, 0] & grid[:, 1]).ravel().tolist() == [2, 3, 4]
    how: dict[str, Any] = {
        "sources": [source()],
        "targets": [array],
        "repository": repository,
        "message": "x",
        "resume": True,
    }
    written = store_dask(commit_every=4, **how)
    assert (written.skipped, written.tasks, len(written.snapshots)) == (3, 9, 3)
    expected = np.arange(1, ROWS * 4, 4)
    expected[2:5] = -1
    assert rows(repository) == expected.tolist()
    assert store_dask(**how).snapshots == ()


def test_fill_values_are_not_committed_for_ever(repository: Repository, here: None) -> None:
    how: dict[str, Any] = {
        "sources": [da.zeros((ROWS, 4), chunks=(1, 4), dtype="i4")],
        "targets": ["a"],
        "repository": repository,
        "message": "x",
    }
    written = store_dask(resume=True, **how)
    assert (written.empty, written.chunks, written.snapshots) == (2 * ROWS, 0, ())
    # a job with a name knows that it has done them
    assert store_dask(job="zeros", **how).tasks == ROWS
    assert store_dask(job="zeros", **how).tasks == 0
    # where there was something, it is a change
    store_dask(**{**how, "sources": [source()]})
    assert len(store_dask(**how).snapshots) == 1
    assert rows(repository) == [0] * ROWS


def test_overwriting_aside(repository: Repository, here: None) -> None:
    """What the branch has does not count as done by the job."""
    how: dict[str, Any] = {"targets": ["a"], "repository": repository, "message": "x"}
    store_dask(sources=[source()], **how)
    store_dask(sources=[source() + 1], publish="end", job="more", commit_every=5, **how)
    assert rows(repository) == list(range(2, ROWS * 4 + 1, 4))


# -- progress ------------------------------------------------------------------------------
def test_progress(anywhere: str, repository: Repository) -> None:
    told: list[Status] = []
    distributed_write(
        fill, range(ROWS), repository, message="x", commit_every=6, progress=told.append
    )
    phases = [status.phase for status in told]
    assert [p for p, before in zip(phases, ["", *phases], strict=False) if p != before] == [
        *["writing", "merging", "committing"] * 2,
        "done",
    ]
    last = told[-1]
    assert (last.tasks, last.total, last.chunks, last.commits) == (ROWS, ROWS, 2 * ROWS, 2)
    assert last.nbytes > 0
    assert [s.tasks for s in told] == sorted(s.tasks for s in told)


def test_a_bar_in_a_terminal(repository: Repository, here: None) -> None:
    console = Console(file=io.StringIO(), record=True, force_terminal=True, width=120)
    with terminal_bar(console) as tell:
        distributed_write(fill, range(ROWS), repository, message="x", commit_every=6, progress=tell)
    # one frame over another
    _, done, last = console.export_text().rpartition("done ")
    assert done
    assert f" {ROWS}/{ROWS} {2 * ROWS} chunks, " in last
    assert ", 2 commits " in last


def test_no_bar_where_nobody_looks(
    repository: Repository, here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    distributed_write(fill, range(ROWS), repository, message="x")
    assert capsys.readouterr().err == ""
    distributed_write(fill, range(ROWS), repository, message="x", progress=True)
    assert f"{ROWS}/{ROWS}" in capsys.readouterr().err
