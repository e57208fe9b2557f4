"""The tasks of a batch run while the batch before it is committed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import zarr

from icechunk import (
    ConflictDetector,
    ConflictError,
    IcechunkStore,
    MemoryStorage,
    Repository,
    RepositoryConfig,
)
from icechunk.storage import WrapperStorage
from icechunk.storage.base import Storage
from icechunk_dask import distributed_write

ROWS = 6


class SlowCommits(WrapperStorage):
    """Holds a commit of ours until the tasks of the next batch have begun."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.begun: set[int] = set()
        self.changed = threading.Condition()
        self.commits = 0
        self.overlapped = 0
        self.held = ROWS - 1
        self.during: Callable[[int], None] = lambda number: None

    def begin(self, item: int) -> None:
        with self.changed:
            self.begun.add(item)
            self.changed.notify_all()

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        ours = threading.current_thread().name.startswith("icechunk-commit")
        if operation == "put" and keys == ("repo",) and ours:
            self.commits += 1
            self.during(self.commits)
            if self.commits <= self.held:
                with self.changed:
                    self.overlapped += self.changed.wait_for(
                        lambda: self.commits in self.begun, timeout=60
                    )

    def with_settings(self, settings: Any) -> Storage:
        return self


@pytest.fixture
def storage() -> SlowCommits:
    storage = SlowCommits(MemoryStorage())
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(storage, config)
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(ROWS + 1,), chunks=(1,), dtype="i4")
    return storage


def rows(repository: Repository) -> list[int]:
    store = repository.readonly_session("main").store
    found: list[int] = zarr.open_array(store, path="a", mode="r")[:].tolist()
    return found


@pytest.mark.parametrize("job", [None, "chain"])
def test_batches_overlap_and_see_each_other(storage: SlowCommits, job: str | None) -> None:
    """Each item reads a row and an array that the one before it has written."""
    repository = Repository.open(storage)

    def chain(store: IcechunkStore, item: int) -> None:
        storage.begin(item)
        array: Any = zarr.open_array(store, path="a", mode="r+")
        array[item] = array[item - 1] + 1 if item else 1
        made: Any = zarr.create_array(store, name=f"x{item}", shape=(1,), chunks=(1,), dtype="i4")
        made[0] = 10 * item
        if item:
            before: Any = zarr.open_array(store, path=f"x{item - 1}", mode="r+")
            assert before[0] == 10 * (item - 1)
            before.attrs["next"] = item

    written = distributed_write(
        chain, range(ROWS), repository, message="x", commit_every=1, job=job, scheduler="threads"
    )
    assert storage.overlapped == ROWS - 1
    assert rows(repository) == [1, 2, 3, 4, 5, 6, 0]
    assert len(written.snapshots) == ROWS
    for number, snapshot in enumerate(written.snapshots):
        store = repository.readonly_session(snapshot_id=snapshot).store
        values: Any = zarr.open_array(store, path="a", mode="r")[:]
        assert (values > 0).sum() == number + 1
    group: Any = zarr.open_group(repository.readonly_session("main").store, mode="r")
    assert [group[f"x{item}"].attrs["next"] for item in range(ROWS - 1)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("job", [None, "fill"])
@pytest.mark.parametrize("solver", [None, ConflictDetector()])
def test_others_commit_meanwhile(storage: SlowCommits, job: str | None, solver: Any) -> None:
    repository = Repository.open(storage)
    other = Repository.open(storage.inner)

    def interfere(number: int) -> None:
        if number == 2:
            with other.transaction("main", message="theirs") as store:
                zarr.open_array(store, path="a")[ROWS] = 9

    def fill(store: IcechunkStore, item: int) -> None:
        storage.begin(item)
        zarr.open_array(store, path="a", mode="r+")[item] = item + 1

    storage.during, storage.held = interfere, 1
    how: dict[str, Any] = {"message": "x", "commit_every": 1, "job": job, "rebase_with": solver}
    if solver is None:
        with pytest.raises(ConflictError) as error:
            distributed_write(fill, range(ROWS), repository, scheduler="threads", **how)
        assert rows(repository) == [1, 0, 0, 0, 0, 0, 9]
        assert error.value.__notes__[0].startswith("1 of 6 are committed")
        if job is None:
            return
    distributed_write(fill, range(ROWS), repository, scheduler="threads", **how)
    assert rows(repository) == [1, 2, 3, 4, 5, 6, 9]
