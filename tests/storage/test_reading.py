"""How answers become bytes: what is copied, and what is held meanwhile."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from icechunk import StorageConcurrencySettings, StorageSettings
from icechunk.errors import StorageError
from icechunk.storage import GetResult, ObjectStorage
from icechunk.storage.allowance import Allowance
from icechunk.storage.places import S3Place
from icechunk.storage.reading import _PIECE, _WHOLE, Body, Line, Memory, Read, joined
from tests.servers import S3Server

MIB = 1 << 20


class Stream:
    """Bytes of an answer, in pieces of at least so many."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._pieces = [data[i : i + piece] for i in range(0, len(data), piece)]

    def __iter__(self) -> Iterator[bytes]:
        while self._pieces:
            yield bytes(bytearray(self._pieces.pop(0)))

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        for piece in self:
            return piece
        raise StopAsyncIteration


class Answer:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.range = 0, len(data)

    def stream(self, piece: int) -> Stream:
        self.piece = piece
        return Stream(self._data, piece)


def allowance() -> Allowance:
    return Allowance(60, 60, strict=False)


def read(body: Body, how: str) -> Any:
    return body.read(wait) if how == "sync" else asyncio.run(body.read_async(lambda: None))


def wait(begin: Callable[[], Coroutine[Any, Any, Any]], forget: Callable[[], object]) -> Any:
    """Wait for one piece; without an event loop, whose memory would count."""
    try:
        begin().send(None)
    except StopIteration as done:
        return done.value


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_large_answer_is_in_memory_once(how: str) -> None:
    data = np.random.default_rng(0).bytes(8 * MIB + 3)
    answer = Answer(data)
    tracemalloc.start()
    try:
        memory = Memory(len(data)).part(0, len(data))
        body = Body("a", "s3://b", answer, len(data), allowance(), _PIECE, memory)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        found = read(body, how)
        grown = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert found == data
    assert found.readonly
    assert answer.piece == _PIECE
    # the memory itself was there before
    assert grown < 2 * _PIECE


@pytest.mark.parametrize("size", [0, 1, _PIECE - 1, _PIECE])
def test_a_small_answer_is_not_copied(size: int) -> None:
    answer = Answer(bytes(size))
    found = Body("a", "s3://b", answer, size, allowance(), size).read(wait)
    assert found == bytes(size)
    assert size == 0 or (answer.piece == size and isinstance(found, bytes))


@pytest.mark.parametrize("size", [1, _PIECE + 1, 3 * MIB, _WHOLE])
def test_an_answer_is_one_piece_until_one_came_too_slowly(size: int) -> None:
    place, line, late = cast("S3Place", SimpleNamespace(url="s3://b")), Line(), StorageError("late")
    answer = Answer(np.zeros(size, np.uint8).data)  # type: ignore[arg-type]
    read = Read(place, "a", line=line)
    body = read.body(answer, allowance())
    assert answer.piece == size
    found = body.read(wait)
    assert isinstance(found, bytes) and len(found) == size
    # an error of another kind is one; this one is if nothing could have been noticed
    assert read.failed(late, False) is late
    assert read.failed(late, True) is (None if size > _PIECE else late)
    assert read.failed(late, True) is late
    for again in (read, Read(place, "a", line=line)):
        again.body(answer, allowance())
        assert answer.piece == min(size, _PIECE)


def test_an_answer_in_one_piece_has_as_long_as_the_first_of_many() -> None:
    for piece in (4 * _PIECE, _PIECE):
        counted = allowance()
        Body("a", "s3://b", Answer(b""), 4 * _PIECE, counted, piece)
        assert 250 < counted.left < 257


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("reserved", [True, False])
@pytest.mark.parametrize(("sent", "some"), [(3 * MIB, "3145728"), (5 * MIB, "more")])
def test_an_answer_of_another_length(how: str, reserved: bool, sent: int, some: str) -> None:
    memory = Memory(4 * MIB).part(0, 4 * MIB) if reserved else None
    # the last piece goes beyond the end
    answer = Answer(bytes(sent))
    answer.stream = lambda piece: Stream(bytes(sent), 3 * MIB)  # type: ignore[method-assign]
    body = Body("a", "s3://b", answer, 4 * MIB, allowance(), _PIECE, memory)
    with pytest.raises(StorageError, match=f"announced 4194304 bytes and sent {some}"):
        read(body, how)


def test_what_is_announced_reserves_no_more_than_a_gigabyte() -> None:
    assert Memory(1 << 60).part(0, 1 << 59) is None


def test_parts_that_fill_one_memory_are_not_copied() -> None:
    memory = Memory(10)
    first, second = memory.part(0, 4), memory.part(4, 10)
    assert first is not None and second is not None
    first[:], second[:] = b"0123", b"456789"
    whole = joined("a", [GetResult(part.toreadonly(), None) for part in (first, second)]).data
    assert isinstance(whole, memoryview) and whole.readonly
    assert whole == b"0123456789"
    assert whole.obj is first.obj
    # one part was short
    short = joined("a", [GetResult(first, None), GetResult(second[:3], None)]).data
    assert short == b"0123456"


@pytest.fixture
def in_parts(s3_server: S3Server) -> ObjectStorage:
    settings = StorageSettings(
        concurrency=StorageConcurrencySettings(
            max_concurrent_requests_for_object=3, ideal_concurrent_request_size=2 * MIB
        )
    )
    return s3_server.storage().with_settings(settings)


async def test_large_ranges_of_a_server(in_parts: ObjectStorage) -> None:
    data = np.random.default_rng(1).bytes(7 * MIB + 5)
    in_parts.put("a", data)
    for start, end in [(0, len(data)), (1, len(data) - 1), (17, 9 * MIB), (5 * MIB, 30 * MIB)]:
        stop = min(end, len(data))
        found = in_parts.get("a", byte_range=(start, end)).data
        assert found == data[start:stop]
        assert found == (await in_parts.get_async("a", byte_range=(start, end))).data
        if end == stop:
            # three parts, side by side in the memory of one array
            assert isinstance(found, memoryview) and isinstance(found.obj, np.ndarray)
    assert in_parts.get("a").data == data
    assert in_parts.get("a", byte_range=(None, 3 * MIB)).data == data[-3 * MIB :]
