"""Workers that cannot read the repository: the task fails, and the worker lives on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
import zarr
from distributed import Client

from icechunk import IcechunkError, LocalStorage, MemoryStorage, Repository
from icechunk.storage.base import Storage
from tests.dask_writes.clusters import running

#: Much longer than it takes, so that a hang ends as a failure.
PATIENCE = 60


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with running("cluster") as client:
        assert client is not None
        yield client


def with_array(storage: Storage) -> Repository:
    repository = Repository.create(storage)
    session = repository.writable_session("main")
    xr.Dataset({"a": ("x", [1.0, 2.0, 3.0])}).to_zarr(session.store, consolidated=False)
    session.commit("array")
    return repository


def kinds(repository: Repository) -> dict[str, Any]:
    session = repository.writable_session("main")
    fork = session.fork()
    zarr.open_array(fork.store, path="a", mode="r+")[0] = 5
    reader = repository.readonly_session("main")
    return {
        "session": reader,
        "store": reader.store,
        "fork": fork,
        "store of a fork": fork.store,
        "repository": repository,
    }


def use(thing: Any) -> float:
    if isinstance(thing, Repository):
        thing = thing.readonly_session("main")
    array = zarr.open_array(getattr(thing, "store", thing), path="a", mode="r")
    return float(array[:].sum())  # type: ignore[union-attr]


def ignore(thing: Any) -> str:
    return type(thing).__name__


@pytest.mark.parametrize("where", ["memory", "a folder that is not there"])
def test_a_task_fails_and_the_worker_lives(client: Client, where: str, tmp_path: Path) -> None:
    storage = MemoryStorage() if where == "memory" else LocalStorage(tmp_path / "repo")
    things = kinds(with_array(storage))
    if where != "memory":
        (tmp_path / "repo").rename(tmp_path / "elsewhere")
    workers = set(client.scheduler_info()["workers"])
    assert len(workers) == 2
    for name, thing in things.items():
        arrived = client.submit(ignore, thing, pure=False).result(PATIENCE)
        assert arrived == type(thing).__name__
        with pytest.raises((IcechunkError, FileNotFoundError)) as error:
            client.submit(use, thing, pure=False).result(PATIENCE)
        reason = "between processes" if where == "memory" else "there is no"
        assert reason in str(error.value), name
    assert set(client.scheduler_info()["workers"]) == workers


def test_an_xarray_computation_fails_and_the_workers_live(client: Client) -> None:
    reader = with_array(MemoryStorage()).readonly_session("main")
    dataset = xr.open_dataset(reader.store, engine="zarr", consolidated=False, chunks={"x": 1})  # type: ignore[arg-type]
    workers = set(client.scheduler_info()["workers"])
    with pytest.raises(IcechunkError, match="between processes"):
        client.gather(client.compute(dataset.a.sum()))
    assert set(client.scheduler_info()["workers"]) == workers
