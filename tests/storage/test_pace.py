"""Small files are read and written without threads as long as that is quick."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from icechunk import LocalStorage
from icechunk.errors import ObjectNotFoundError
from icechunk.storage.pace import Pace
from icechunk.storage.to_disk import ToDisk


def test_one_hitch_says_nothing_and_several_do() -> None:
    pace = Pace(0.001)
    pace.note(10.0)
    assert pace.is_quick()
    for _ in range(4):
        pace.note(0.002)
    assert not pace.is_quick()


def test_what_is_slow_is_tried_now_and_then() -> None:
    pace = Pace(0.001)
    for _ in range(50):
        pace.note(1.0)
    tried = [turn for turn in range(1000) if pace.is_quick()]
    assert len(tried) == 15 and tried[0] == 63
    # it has become quick, and soon that is known
    turns = 0
    while pace._mean >= 0.001:
        turns += 1
        if pace.is_quick():
            pace.note(0.0001)
    assert turns < 1000
    assert all(pace.is_quick() for _ in range(100))


class Noting(LocalStorage):
    """Notes which threads work."""

    threads: set[int]

    def get(self, *args: Any, **kwargs: Any) -> Any:
        self.threads.add(threading.get_ident())
        return super().get(*args, **kwargs)

    def put(self, *args: Any, **kwargs: Any) -> str:
        self.threads.add(threading.get_ident())
        return super().put(*args, **kwargs)


@pytest.mark.parametrize("slow", [False, True])
async def test_threads_are_used_where_they_help(slow: bool, tmp_path: Path) -> None:
    storage = Noting(tmp_path)
    small, large = bytes(1000), bytes(1 << 18)
    here = {threading.get_ident()}

    async def used(method: Any, *args: Any, **kwargs: Any) -> set[int]:
        # whatever the machine is doing: for each call anew
        for pace in (storage._reads, storage._writes):
            pace._mean, pace._skipped = (1.0 if slow else 0.0), 0
        storage.threads = set()
        await method(*args, **kwargs)
        return storage.threads

    for quick in (
        await used(storage.put_async, "small", small),
        await used(storage.get_async, "small", byte_range=(0, 1000)),
    ):
        assert (quick == here) is not slow
    for never in (
        await used(storage.put_async, "large", large),
        await used(storage.get_async, "large", byte_range=(0, 1 << 18)),
        # how much that is nobody knows before
        await used(storage.get_async, "small"),
        await used(storage.get_async, "small", byte_range=(5, None)),
        await used(storage.get_async, "small", byte_range=(None, 5)),
        # these wait for the disk
        await used(storage.put_async, "new", small, if_absent=True),
        await used(storage.put_async, "new", small, if_match=storage.get("new").etag),
    ):
        assert never and never != here
    assert bytes(storage.get("new").data) == small


@pytest.mark.parametrize("slow", [False, True])
def test_what_takes_long_is_not_fetched_at_once(slow: bool, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    small, large = bytes(1000), bytes(1 << 18)
    storage.put("small", small)
    storage.put("large", large)
    storage._reads._mean = 1.0 if slow else 0.0
    found = storage.get_at_once("small")
    assert found == (None if slow else storage.get("small"))
    assert storage.get_at_once("large") is None
    storage._reads._mean = 0.0
    with pytest.raises(ObjectNotFoundError):
        storage.get_at_once("missing")


async def test_the_event_loop_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icechunk.storage.to_disk._MAX_WAITING", 5)
    forced: list[int] = []
    sync = ToDisk.sync

    def noted(waiting: ToDisk) -> None:
        forced.append(threading.get_ident())
        sync(waiting)

    monkeypatch.setattr(ToDisk, "sync", noted)
    storage = LocalStorage(tmp_path)
    for number in range(12):
        storage._writes._mean = 0.0
        await storage.put_async(f"key{number}", b"data")
    assert len(forced) == 2 and threading.get_ident() not in forced
