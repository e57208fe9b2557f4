"""The official client beside a queue of ours: it does not know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr

from icechunk import ConflictDetector, LocalStorage, Repository
from icechunk.commit.tickets import QUEUE, Place
from tests.interop.sides import Official


def test_it_leaves_tickets_alone(official: Official, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    repository = Repository.create(storage)
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(4,), chunks=(1,), dtype="i4")
    place = Place(storage, "main", None)
    place.take()
    session = repository.writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+")[1] = 2
    official.run("maintenance.commit_and_collect", str(tmp_path), "a")
    assert len(list(storage.list(QUEUE))) == 1
    place.give_back()
    session.commit("ours", rebase_with=ConflictDetector(), fair=True)
    official.run("maintenance.commit_and_collect", str(tmp_path), "a")
    array: Any = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")
    assert array[:].tolist() == [7, 2, 0, 0]
