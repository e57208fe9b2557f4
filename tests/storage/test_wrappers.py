from __future__ import annotations

import asyncio
import pickle
import time

import pytest

from icechunk.config import StorageSettings
from icechunk.errors import InvalidInputError, PreconditionFailedError, StorageError
from icechunk.storage import MemoryStorage, Storage
from icechunk.storage.wrappers import READS, WRITES
from icechunk.testing import CountingStorage, FaultyStorage, LatencyStorage
from icechunk.testing.storage import StorageTests, contents


class TestLatencyStorage(StorageTests):
    large = 1024**2

    @pytest.fixture
    def storage(self) -> Storage:
        return LatencyStorage(MemoryStorage())


class TestCountingStorage(StorageTests):
    large = 1024**2

    @pytest.fixture
    def storage(self) -> Storage:
        return CountingStorage(MemoryStorage())


class TestFaultyStorage(StorageTests):
    large = 1024**2

    @pytest.fixture
    def storage(self) -> Storage:
        return FaultyStorage(MemoryStorage())


# -- latency -----------------------------------------------------------------------------
def seconds(storage: LatencyStorage, operation: str) -> float:
    start = time.perf_counter()
    if operation == "put":
        storage.put("a", b"x")
    else:
        storage.get("a")
    return time.perf_counter() - start


def test_latency_of_reads_and_writes() -> None:
    inner = MemoryStorage()
    inner.put("a", b"x")
    assert seconds(LatencyStorage(inner, write_latency_ms=50), "put") >= 0.05
    assert seconds(LatencyStorage(inner, write_latency_ms=10_000), "get") < 5
    assert seconds(LatencyStorage(inner, read_latency_ms=50), "get") >= 0.05
    assert seconds(LatencyStorage(inner, read_latency_ms=10_000), "put") < 5


def test_latency_can_be_changed_also_for_copies_in_use() -> None:
    storage = LatencyStorage(MemoryStorage())
    used = storage.with_settings(StorageSettings())
    storage.write_latency_ms = 50
    assert (used.write_latency_ms, used.read_latency_ms) == (50, 0)
    assert seconds(used, "put") >= 0.05


async def test_latency_does_not_block_the_event_loop() -> None:
    storage = LatencyStorage(MemoryStorage(), write_latency_ms=50)
    start = time.perf_counter()
    await asyncio.gather(*(storage.put_async(f"{i}", b"x") for i in range(100)))
    # one after the other would take five seconds
    assert 0.05 <= time.perf_counter() - start < 4


# -- counting ----------------------------------------------------------------------------
async def test_counts() -> None:
    storage = CountingStorage(MemoryStorage())
    etag = storage.put("a", b"12345")
    await storage.put_async("b", b"123")
    storage.get("a", byte_range=(1, 3))
    await storage.get_async("b")
    storage.get_if_changed("a", etag)
    storage.copy("a", "c")
    storage.delete(["a", "b"])
    list(storage.list())
    with pytest.raises(PreconditionFailedError):
        storage.put("c", b"1", if_absent=True)
    counts = storage.counts
    assert {name: count.requests for name, count in counts.items()} == {
        "get": 2,
        "get_if_changed": 1,
        "list": 1,
        "put": 3,
        "delete": 1,
        "copy": 1,
    }
    assert (counts["get"].bytes_read, counts["put"].bytes_written) == (5, 9)
    assert (storage.requests, storage.bytes_read, storage.bytes_written) == (9, 5, 9)
    storage.reset()
    assert storage.requests == storage.bytes_read == storage.bytes_written == 0
    # the copy that was returned before is nobody's but ours
    assert counts["get"].requests == 2


def test_counts_are_shared_with_other_settings_and_not_with_pickles() -> None:
    storage = CountingStorage(MemoryStorage())
    storage.with_settings(StorageSettings()).put("a", b"x")
    assert storage.requests == 1
    pickle.loads(pickle.dumps(storage)).put("a", b"x")
    assert storage.requests == 1


# -- faults ------------------------------------------------------------------------------
CALLS = {
    "get": lambda s: s.get("a"),
    "get_if_changed": lambda s: s.get_if_changed("a", None),
    "list": lambda s: s.list(""),
    "put": lambda s: s.put("a", b"new"),
    "copy": lambda s: s.copy("a", "b"),
    "delete": lambda s: s.delete(["x", "a"]),
}
EFFECTS = {"put": {"a": b"new"}, "copy": {"a": b"old", "b": b"old"}, "delete": {}}


@pytest.mark.parametrize("operation", READS + WRITES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_fault_strikes_once(operation: str, when: str) -> None:
    storage = FaultyStorage(MemoryStorage())
    storage.put("a", b"old")
    fault = storage.fail(operation, when=when)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="injected"):
        CALLS[operation](storage)
    # the effect is there if only the answer was lost
    effect = EFFECTS.get(operation) if when == "after" else None
    assert contents(storage.inner) == ({"a": b"old"} if effect is None else effect)
    storage.inner.put("a", b"old")
    for call in CALLS.values():
        call(storage)
    assert (fault.seen, fault.raised) == (2, 1)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_faults_in_async_calls(when: str) -> None:
    storage = FaultyStorage(MemoryStorage())
    storage.fail("put", when=when)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="injected"):
        await storage.put_async("a", b"x")
    assert contents(storage.inner) == ({"a": b"x"} if when == "after" else {})
    storage.fail("get", when=when)  # type: ignore[arg-type]
    storage.put("a", b"x")
    with pytest.raises(StorageError, match="injected"):
        await storage.get_async("a")


def test_which_calls_fail() -> None:
    storage = FaultyStorage(MemoryStorage())
    storage.fail("put", key="d/", nth=2, times=2, error=TimeoutError("mine"))
    storage.fail(key=lambda key: key.endswith("z"))
    failed = []
    for key in ("a", "d/1", "d/2", "a", "d/3", "d/4", "z", "z"):
        try:
            storage.put(key, b"x")
        except (TimeoutError, StorageError) as error:
            failed.append((key, str(error)))
    assert failed == [
        ("d/2", "mine"),
        ("d/3", "mine"),
        ("z", "injected: call failed before its effect"),
    ]
    storage.fail("list")
    storage.clear()
    assert list(storage.list("d/"))
    assert storage.faults == []


def test_rules_are_shared_with_other_settings_and_go_along_with_pickles() -> None:
    storage = FaultyStorage(MemoryStorage())
    storage.fail("get", key="a")
    copied = pickle.loads(pickle.dumps(storage))
    for each in (copied, storage.with_settings(StorageSettings())):
        with pytest.raises(StorageError, match="injected"):
            each.get("a")


@pytest.mark.parametrize("arguments", [{"operation": "got"}, {"nth": 0}, {"times": 0}])
def test_rules_that_cannot_be_right(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        FaultyStorage(MemoryStorage()).fail(**arguments)  # type: ignore[arg-type]
