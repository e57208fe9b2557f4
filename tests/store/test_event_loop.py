"""Which thread requests are made in: not that of the event loop."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import zarr

from icechunk import IcechunkStore, MemoryStorage, Repository
from icechunk.storage import WrapperStorage
from icechunk.storage.base import Storage


class Threads(WrapperStorage):
    """Notes the thread of each request."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.seen: list[threading.Thread] = []

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        self.seen.append(threading.current_thread())


async def collect(listed: AsyncIterator[object]) -> list[object]:
    return [key async for key in listed]


LISTINGS: dict[str, Callable[[IcechunkStore], Awaitable[object]]] = {
    "list": lambda store: collect(store.list()),
    "list_prefix": lambda store: collect(store.list_prefix("a")),
    "list_dir": lambda store: collect(store.list_dir("a")),
    "is_empty": lambda store: store.is_empty("a/c"),
    "getsize_prefix": lambda store: store.getsize_prefix("a"),
    "chunk_coordinates": lambda store: collect(store.session.chunk_coordinates("/a")),
    "chunk_batches": lambda store: collect(store.session.chunk_batches("/a")),
    "exists": lambda store: store.exists("a/c/0"),
    "get": lambda store: store.get("a/c/0"),
}


@pytest.mark.parametrize("name", LISTINGS)
async def test_manifests_are_not_fetched_in_the_event_loop(name: str) -> None:
    storage = MemoryStorage()
    session = Repository.create(storage).writable_session("main")
    zarr.create_array(session.store, name="a", shape=(4,), chunks=(1,), dtype="i1")[:] = 1
    session.commit("array")
    threads = Threads(storage)
    store = Repository.open(threads).readonly_session("main").store
    threads.seen.clear()
    await LISTINGS[name](store)
    # the manifest; the chunks are inline
    assert len(threads.seen) == 1
    assert threading.current_thread() not in threads.seen
