"""Chunks of parts that others have deleted: no commit refers to them, whichever they are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    IcechunkStore,
    Job,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    SessionStateError,
)
from icechunk.repository import jobs_lost
from icechunk.storage import WrapperStorage
from icechunk.storage.base import Storage

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class Counting(WrapperStorage):
    """Counts listings of chunks, and looks at single ones."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.lists = self.gets = 0

    def list(self, prefix: str = "") -> Any:
        self.lists += prefix == "chunks/"
        return super().list(prefix)

    def get(self, key: str, **kwargs: Any) -> Any:
        self.gets += key.startswith("chunks/")
        return super().get(key, **kwargs)


def write(store: IcechunkStore, key: Any) -> None:
    zarr.open_array(store, path="a", mode="r+")[key] = np.arange(key * 8 + 1, key * 8 + 9)


def prepared(spec_version: int = 2) -> tuple[Repository, Counting, Job]:
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    storage = Counting(MemoryStorage())
    repository = Repository.create(storage, config, spec_version=spec_version)
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(
            store, name="a", shape=(3, 8), chunks=(1, 1), dtype="i8", compressors=None
        )
        write(store, 2)
    job = repository.jobs.create("rows", keys=[0, 1], message="rows")
    return repository, storage, job


def chunks(storage: Storage) -> list[str]:
    return [meta.key for meta in storage.list("chunks/")]


@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("few", [500, 0])
@pytest.mark.parametrize("when", ["before", "after", "pending"])
def test_each_single_chunk(
    monkeypatch: pytest.MonkeyPatch, spec_version: int, few: int, when: str
) -> None:
    monkeypatch.setattr(jobs_lost, "_FEW", few)
    places = (0, 6, 15) if few else (1, 8)
    for place in places:
        repository, storage, job = prepared(spec_version)
        others = set(chunks(storage))
        job.run(write, keys=[0, 1])
        if when == "before":
            repository.garbage_collect(LONG_AGO)
        mine = [key for key in chunks(storage) if key not in others]
        if when == "pending":
            die_before_the_commit(job, monkeypatch)
        assert len(mine) == 16
        lost = mine[place]
        storage.delete([lost])
        if when != "before":
            repository.garbage_collect(LONG_AGO)
        tip = repository.lookup_branch("main")
        with pytest.raises(SessionStateError, match=r"the key [01] are gone: .* run .* again"):
            job.finish()
        assert repository.lookup_branch("main") == tip
        # the other part stays, unless somebody had begun to commit both
        assert len(job.status().missing) == (2 if when == "pending" else 1)
        job.run(write, keys=job.status().left)
        job.finish()
        array: Any = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")
        assert array[:].ravel().tolist() == list(range(1, 25))
        assert repository.verify().ok


def die_before_the_commit(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job._publisher, "_complete", die)
        with pytest.raises(KeyboardInterrupt):
            job.finish()


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("by_us", [False, True])
def test_cost(monkeypatch: pytest.MonkeyPatch, cut: bool, by_us: bool) -> None:
    """Both ends of a part, unless somebody may have collected since; then one listing."""
    monkeypatch.setattr(jobs_lost, "_FEW", 0)
    repository, storage, job = prepared()
    job.run(write, keys=[0, 1])
    if by_us:
        repository.garbage_collect(LONG_AGO)
    if cut:
        whole = Repository.ops_log
        repository.create_branch("side", repository.lookup_branch("main"))
        monkeypatch.setattr(Repository, "ops_log", lambda self: iter([next(whole(self))]))
    storage.lists = storage.gets = 0
    job.finish()
    assert (storage.lists, storage.gets) == ((1, 0) if cut or by_us else (0, 4))


def test_a_collection_before_is_none_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_lost, "_FEW", 0)
    repository, storage, _ = prepared()
    repository.garbage_collect(LONG_AGO)
    with repository.transaction("main", message="later") as store:
        write(store, 2)
    job = repository.jobs.create("more", keys=[0, 1], message="rows")
    job.run(write, keys=[0, 1])
    storage.lists = 0
    job.finish()
    assert storage.lists == 0


@pytest.mark.parametrize("few", [0, 500])
@pytest.mark.parametrize("changed", ["gone", "cut", "none"])
def test_packed_chunks(monkeypatch: pytest.MonkeyPatch, changed: str, few: int) -> None:
    """Several chunks share an object: it is gone, or shorter than the last of them needs."""
    monkeypatch.setattr(jobs_lost, "_FEW", few)
    repository, storage, job = prepared()
    before = set(chunks(storage))
    session = repository.writable_session("main", pack=True)
    base = session.snapshot_id
    for key in (0, 1):
        write(session.store, key)
    job.add_part([0, 1], session.change_set_bytes(), base)
    repository.garbage_collect(LONG_AGO)
    (pack,) = set(chunks(storage)) - before
    data = bytes(storage.inner.get(pack).data)
    if changed == "none":
        assert job.finish() is not None
        return
    storage.delete([pack])
    if changed == "cut":
        storage.put(pack, data[:-1])
    with pytest.raises(SessionStateError, match="are gone"):
        job.finish()
