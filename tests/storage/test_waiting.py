"""Servers that do not answer: the one who waits is told, can be interrupted, and gives up."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any

import numpy as np
import obstore
import pytest
import zarr

from icechunk import (
    ObjectStorage,
    Repository,
    RepositoryConfig,
    StorageError,
    StorageRetriesSettings,
    StorageSettings,
    StorageTimeoutSettings,
)
from icechunk.base.threads import Interruptible, map_in_threads
from icechunk.storage.waiting import Request, answer
from tests.servers import ObjectServer

Call = Callable[[ObjectStorage], Any]

CALLS: dict[str, Call] = {
    "get": lambda storage: storage.get("folder/key"),
    "get_if_changed": lambda storage: storage.get_if_changed("folder/key", '"1"#1'),
    "put": lambda storage: storage.put("folder/key", b"x"),
    "delete": lambda storage: storage.delete(["folder/key"]),
    "copy": lambda storage: storage.copy("folder/key", "folder/other"),
    "list": lambda storage: list(storage.list("folder/")),
}


def storage_of(server: ObjectServer, milliseconds: int | None = None) -> ObjectStorage:
    made = server.gcs()
    settings = StorageSettings(
        timeouts=StorageTimeoutSettings(operation_timeout_ms=milliseconds),
        retries=StorageRetriesSettings(max_tries=1),
    )
    made = made.with_settings(settings)
    assert isinstance(made, ObjectStorage)
    return made


@pytest.mark.parametrize("name", CALLS)
def test_the_wait_ends(object_server: ObjectServer, name: str) -> None:
    object_server.release.clear()
    with pytest.raises(StorageError, match=r"no answer for 0.2 s.*operation_timeout_ms") as caught:
        CALLS[name](storage_of(object_server, 200))
    assert "folder/" in str(caught.value)
    assert "gs://bucket/p" in str(caught.value)
    assert object_server.answered == 0


async def test_the_wait_ends_in_an_event_loop(object_server: ObjectServer) -> None:
    object_server.release.clear()
    storage = storage_of(object_server, 200)
    for call in (storage.get_async("folder/key"), storage.put_async("folder/key", b"x")):
        with pytest.raises(StorageError, match=r"folder/key.*no answer for 0.2 s"):
            await call
    assert object_server.answered == 0


def test_somebody_who_sends_much_has_more_time(object_server: ObjectServer) -> None:
    storage = storage_of(object_server, 1000)
    assert storage._request("write", "a", 0).seconds == 1
    assert storage._request("write", "a", 1 << 20).seconds == 33


@pytest.mark.parametrize("form", ["sync", "async"])
async def test_the_wait_is_logged(
    object_server: ObjectServer,
    form: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("icechunk.storage.waiting._SILENCE", 0.05)
    object_server.release.clear()
    storage = storage_of(object_server, 200)
    with caplog.at_level(logging.WARNING), pytest.raises(StorageError):
        if form == "sync":
            storage.get("folder/key")
        else:
            await storage.get_async("folder/key")
    (message,) = caplog.messages
    assert message == "no answer yet: read folder/key in gs://bucket/p; giving up after 0.2 s"


def test_a_quick_answer_is_not_logged(
    object_server: ObjectServer, caplog: pytest.LogCaptureFixture
) -> None:
    storage = storage_of(object_server)
    storage.put("a", b"x")
    assert bytes(storage.get("a").data) == b"x"
    assert not caplog.messages


# -- interrupts ------------------------------------------------------------------------------
def interrupt_when(condition: Callable[[], object]) -> threading.Thread:
    """Interrupt the main thread as soon as something is true."""

    def wait() -> None:
        pause = threading.Event()
        while not condition():
            pause.wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_ends_the_wait(object_server: ObjectServer, name: str) -> None:
    storage = storage_of(object_server)
    object_server.release.clear()
    interrupt_when(lambda: object_server.requests)
    with pytest.raises(KeyboardInterrupt):
        CALLS[name](storage)
    assert object_server.answered == 0


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_opening(object_server: ObjectServer) -> None:
    object_server.release.clear()
    interrupt_when(lambda: object_server.requests)
    with pytest.raises(KeyboardInterrupt):
        Repository.open(storage_of(object_server))
    assert object_server.answered == 0


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_a_commit(object_server: ObjectServer) -> None:
    """Also where threads of it wait; and the next one commits."""
    storage = storage_of(object_server)
    Repository.create(storage, check_clean_root=False)
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    session = Repository.open(storage, config).writable_session("main")
    group = zarr.create_group(session.store)
    for name in "abc":
        group.create_array(name, data=np.arange(2), chunks=(1,))
    answered = object_server.answered

    def manifests() -> int:
        return sum("/manifests/" in request.path for request in object_server.requests)

    # the look at the branch, which comes before, is answered; the rest is sent at the same time
    written = ("/manifests/", "/transactions/", "/snapshots/")
    object_server.passing = lambda path: not any(folder in path for folder in written)
    object_server.release.clear()
    interrupt_when(lambda: manifests() == 3)
    with pytest.raises(KeyboardInterrupt):
        session.commit("interrupted")
    assert object_server.answered == answered + 1
    object_server.release.set()
    session.commit("done")
    history = [entry.message for entry in Repository.open(storage).ancestry(branch="main")]
    assert history == ["done", "Repository initialized"]


def test_what_others_wait_for_is_cancelled() -> None:
    """One of several fails: nobody waits for the rest."""
    never: Future[None] = Future()
    waiting = threading.Event()

    def work(item: int) -> None:
        if item == 0:
            waiting.wait()
            raise ValueError("first")
        with Interruptible(never):
            waiting.set()
            never.result()

    with pytest.raises(ValueError, match="first"):
        map_in_threads(work, [0, 1], 2)
    with pytest.raises(CancelledError):
        never.result()


def test_results_come_in_order() -> None:
    assert map_in_threads(lambda item: item * 2, [3, 1, 2], 2) == [6, 2, 4]
    assert map_in_threads(lambda item: item, [], 2) == []


def test_errors_of_a_call_are_raised() -> None:
    request = Request("read", "a", "memory://", 60)
    store = obstore.store.MemoryStore()
    made: list[Any] = []

    def fails() -> Any:
        made.append(asyncio.get_running_loop().create_future())
        made[-1].set_exception(TimeoutError("its own"))
        return made[-1]

    for _ in range(3):
        with pytest.raises(TimeoutError, match="its own"):
            answer(request, fails)
        with pytest.raises(FileNotFoundError):
            answer(request, lambda: obstore.get_async(store, "a"))
    obstore.put(store, "a", b"12")
    assert answer(request, lambda: obstore.head_async(store, "a"))["size"] == 2


async def test_a_call_that_waits_leaves_the_event_loop_as_it_is() -> None:
    store = obstore.store.MemoryStore()
    obstore.put(store, "a", b"12")
    request = Request("read", "a", "memory://", 60)
    before = asyncio.get_running_loop()
    for begin in (lambda: obstore.head_async(store, "a"), lambda: obstore.head_async(store, "b")):
        with suppress(FileNotFoundError):
            answer(request, begin)
        assert asyncio.get_running_loop() is before
    assert (await obstore.head_async(store, "a"))["size"] == 2


def test_who_gives_up_ends_the_request(object_server: ObjectServer) -> None:
    """The client has nothing more to do with it, so it keeps nothing alive."""
    object_server.release.clear()
    storage = storage_of(object_server, 200)
    data = np.ones(100_000, np.uint8)
    kept = weakref.ref(data)
    with pytest.raises(StorageError, match="no answer"):
        storage.put("folder/key", memoryview(data))
    del data
    pause = threading.Event()
    for _ in range(1000):
        gc.collect()
        if kept() is None:
            break
        pause.wait(0.01)
    assert kept() is None
