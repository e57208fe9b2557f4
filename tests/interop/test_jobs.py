"""The official client beside jobs that are not finished: it does not know of them."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zarr

from icechunk import (
    IcechunkStore,
    LocalStorage,
    Repository,
    RepositoryConfig,
    SessionStateError,
)
from tests.interop.sides import Official


def write(store: IcechunkStore, key: Any) -> None:
    zarr.open_array(store, path="a", mode="r+")[key] = key + 1


@pytest.mark.parametrize("age", ["sane", "too young"])
def test_garbage_collection_beside_a_job(official: Official, tmp_path: Path, age: str) -> None:
    """Sane is older than the job; else it deletes what parts have written, which is said."""
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(LocalStorage(tmp_path), config)
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(4,), chunks=(1,), dtype="i4")
    begun = datetime.now(UTC)
    job = repository.jobs.create("rows", keys=range(4), message="rows")
    job.run(write, keys=[0, 1])
    with repository.transaction("main", message="theirs") as store:
        write(store, 3)
    older = begun if age == "sane" else datetime.now(UTC)
    summary = official.run("maintenance.collect", str(tmp_path), _micros(older), False)
    assert summary["chunks"] == (0 if age == "sane" else 2)
    job.run(write, keys=[2])
    assert job.status().done == [0, 1, 2]
    job.run(lambda store, key: None, keys=[3])
    if age == "too young":
        tip = repository.lookup_branch("main")
        with pytest.raises(SessionStateError, match=r"wrote for the keys 0, 1 are gone.* again"):
            job.finish()
        assert repository.lookup_branch("main") == tip
        assert job.status().missing == [0, 1]
        job.run(write, keys=job.status().left)
    job.finish()
    array: Any = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")
    assert array[:].tolist() == [1, 2, 3, 4]
    assert repository.verify().ok


def test_a_part_of_a_part_is_collected(official: Official, tmp_path: Path) -> None:
    """The first and the last chunk of it are young, and one between them is not."""
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(LocalStorage(tmp_path), config)
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(8,), chunks=(1,), dtype="i4")
    job = repository.jobs.create("all", keys=["all", "none"], message="all")
    places: list[Path] = []

    def write_all(store: IcechunkStore, key: Any) -> None:
        for place in range(8):
            write(store, place)
            places.extend(set((tmp_path / "chunks").iterdir()) - set(places))

    job.run(write_all, keys=["all"])
    job.run(lambda store, key: None, keys=["none"])
    os.utime(places[3], (0, 0))
    older = datetime.now(UTC) - timedelta(days=1)
    assert official.run("maintenance.collect", str(tmp_path), _micros(older), False)["chunks"] == 1
    tip = repository.lookup_branch("main")
    with pytest.raises(SessionStateError, match='wrote for the key "all" are gone'):
        job.finish()
    assert repository.lookup_branch("main") == tip
    job.run(write_all, keys=job.status().left)
    job.finish()
    array: Any = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")
    assert array[:].tolist() == list(range(1, 9))


def _micros(time: datetime) -> int:
    return int(time.timestamp() * 1_000_000)
