"""What a live Dask cluster shows of work with secrets: names, events, logs, pages, metrics.

Tasks read from and write to a server behind a password, and some fail. Memory of the cluster
holds the credentials, as its workers need them; nothing that it shows does.
"""

from __future__ import annotations

import logging
import re
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import dask.array as da
import pytest
import xarray as xr
import zarr

from icechunk import MemoryStorage, Repository, RepositoryConfig, http_storage, s3_storage
from icechunk_dask import distributed_write, store_dask
from tests.dask_writes.clusters import running
from tests.web_server import WebServer, serving

SECRET = "SEKRET0000"
PAGES = (
    "info/main/workers.html",
    "info/main/exceptions.html",
    "info/main/logs.html",
    "json/counts.json",
    "json/identity.json",
    "json/index.html",
    "metrics",
    "health",
    "individual-plots.json",
)


@pytest.fixture
def web() -> Iterator[WebServer]:
    place = MemoryStorage()
    repository = Repository.create(place, RepositoryConfig(inline_chunk_threshold_bytes=0))
    with repository.transaction("main", message="values") as store:
        options: Any = {"dimension_names": ["x"]}
        zarr.create_array(store, name="a", shape=4, chunks=2, dtype="u1", **options)[:] = 1
    with serving() as server:
        for meta in place.list():
            server.files[f"/r/{meta.key}"] = bytes(place.get(meta.key).data)
        yield server


def page(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode(errors="replace"))
    except urllib.error.HTTPError as error:
        return error.read().decode(errors="replace")


def shown_by(client: Any) -> Iterator[str]:
    """Yield all that the cluster shows."""
    scheduler = client.cluster.scheduler
    for name, task in list(scheduler.tasks.items()):
        yield f"{name} {task!r} {task.prefix} {task.group} {task.annotations}"
        yield f"{task.exception_text} {task.traceback_text}"
        yield page(
            f"http://127.0.0.1:{scheduler.http_server.port}/info/task/{quote(str(name))}.html"
        )
    yield str(client.get_events())
    yield str(client.get_scheduler_logs())
    yield str(client.get_worker_logs())
    yield str(scheduler.transition_log)
    yield str(client.scheduler_info())
    yield str(client.has_what()) + str(client.who_has())
    yield repr(client) + client._repr_html_() + repr(client.cluster) + client.cluster._repr_html_()
    for address, worker in scheduler.workers.items():
        yield repr(worker)
        root = f"http://127.0.0.1:{scheduler.http_server.port}/info"
        for kind in ("worker", "logs", "call-stacks"):
            yield page(f"{root}/{kind}/{quote(address, safe='')}.html")
    for worker in client.cluster.workers.values():
        yield (
            str(list(worker.state.log)) + str(worker.state.stimulus_log) + repr(worker.state.tasks)
        )
    for name in PAGES:
        yield page(f"http://127.0.0.1:{scheduler.http_server.port}/{name}")


def failing(store: Any, item: int) -> None:
    # what programs do in the middle of their work
    logging.getLogger("distributed.worker").warning("%r %s", store, store)
    if item:
        raise RuntimeError(f"item {item} of {store!r}")


def shows(storage: Any) -> None:
    """Do what a dashboard, a log and an error of a program do with what a task was given."""
    logging.getLogger("distributed.worker").warning("%r %s", storage, [storage])
    raise RuntimeError(f"{storage!r} {storage}")


def test_what_a_cluster_shows(web: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"http://me:{SECRET}@{web.url.removeprefix('http://')}r?sig={SECRET}"
    behind = http_storage(url, headers={"X-Token": SECRET})
    keys = s3_storage(
        bucket="b",
        prefix="p",
        endpoint_url=web.url.rstrip("/"),
        allow_http=True,
        region="us-east-1",
        access_key_id=SECRET,
        secret_access_key=SECRET,
        session_token=SECRET,
    )
    errors: list[str] = []
    pages: list[str] = []
    with running("inproc") as client:
        for storage in (behind, keys):
            errors.append(str(client.submit(shows, storage, pure=False).exception()))
        with xr.open_dataset(behind, engine="icechunk", chunks={"x": 2}) as dataset:
            lazy = dataset["a"].data.persist()
            assert lazy.compute().tolist() == [1] * 4
            pages += shown_by(client)
            web.failures[:] = [403] * 1000
            other = http_storage(url, headers={"X-Token": SECRET})
            web.failures.clear()
            unread = Repository.open(other).readonly_session("main")
            broken = da.from_zarr(zarr.open_array(unread.store, path="a", mode="r"))
            web.failures[:] = [403] * 1000
            for work in (broken.persist, lambda: Repository.open(keys), broken.compute):
                try:
                    work()
                except Exception as error:
                    errors.append("".join(traceback.format_exception(error)))
        web.failures.clear()
        repository = Repository.create(MemoryStorage())
        session = repository.writable_session("main")
        array = zarr.create_array(session.store, name="a", shape=4, chunks=2, dtype="u1")
        for attempt in (
            lambda: distributed_write(repository, failing, [0, 1], message="m", branch="main"),
            lambda: store_dask(session, sources=[broken], targets=[array]),
        ):
            web.failures[:] = [403] * 1000
            try:
                attempt()
            except Exception as error:
                errors.append("".join(traceback.format_exception(error)))
        pages += shown_by(client)
        tasks = len(client.cluster.scheduler.transition_log)
    assert tasks > 10 and len(errors) >= 2
    assert sum(len(each) > 200 for each in pages) > 10
    for text in (*errors, *pages, caplog.text):
        found = re.search(f".{{0,200}}{SECRET}", text, re.DOTALL)
        assert found is None, found
