"""Servers whose answer is another one than the request asked for, or than it says itself.

Whatever they send, a read ends with the bytes that were asked for or with an error, after so
many bytes as the request names and what lies in sockets.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zarr

from icechunk import (
    MemoryStorage,
    Repository,
    RepositoryConfig,
    StorageRetriesSettings,
    StorageSettings,
    StorageTimeoutSettings,
    VirtualChunkContainer,
    containers_credentials,
    http_storage,
    http_store,
    s3_credentials,
    s3_storage,
    s3_store,
)
from icechunk.credentials import HttpAccess
from icechunk.errors import IcechunkError, StorageError
from icechunk.storage import Storage, base, object_store, reading
from icechunk.storage.allowance import Allowance
from icechunk.storage.waiting import Request
from tests.endless import BLOCK, CHUNK, MIB, Endless, endless

HEAD = b'Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nETag: "v1"\r\n'
PART = b"HTTP/1.1 206 Partial Content\r\n" + HEAD
WHOLE = b"HTTP/1.1 200 OK\r\n" + HEAD
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
#: What is asked for: sixteen bytes from the fourth on, of a file of a hundred.
RANGE = (4, 20)
GOOD = b"sixteen good one"
BAD = b"b" * 16


def said(range: bytes | None, length: int | None, body: bytes = b"", more: bytes = b"") -> bytes:
    """Return a partial answer."""
    named = b"" if range is None else b"Content-Range: bytes " + range + b"\r\n"
    counted = b"" if length is None else b"Content-Length: %d\r\n" % length
    return PART + named + counted + more + b"\r\n" + body


#: What the server sends, and then for ever; None: it closes.
LIES: dict[str, tuple[bytes, bytes | None]] = {
    "no end": (said(b"4-19/100", 1 << 60), BLOCK),
    "no end, not announced": (said(b"4-19/100", None), BLOCK),
    "no end, in chunks": (said(b"4-19/100", None)[:-2] + CHUNKED, CHUNK),
    "longer": (said(b"4-19/100", MIB, BAD * (MIB // 16)), None),
    "shorter": (said(b"4-19/100", 8, BAD[:8]), None),
    "cut": (said(b"4-19/100", 16, BAD[:8]), None),
    "cut, not announced": (said(b"4-19/100", None, BAD[:8]), None),
    "ends early": (said(b"4-11/100", 8, BAD[:8]), None),
    "begins early": (said(b"0-15/100", 16, BAD), None),
    "begins late": (said(b"5-20/100", 16, BAD), None),
    "longer range": (said(b"4-99/100", 96, BAD * 6), None),
    "no range": (said(None, 16, BAD), None),
    "a range that is none": (said(b"4-x/100", 16, BAD), None),
    "a range of what is smaller": (said(b"4-19/10", 16, BAD), None),
    "another unit": (said(b"", 16, BAD).replace(b"bytes ", b"lines 4-19/100"), None),
    "compressed": (
        said(b"4-19/100", 36, gzip.compress(BAD), b"Content-Encoding: gzip\r\n"),
        None,
    ),
    "several": (
        said(None, 16, BAD, b"Content-Type: multipart/byteranges; boundary=x\r\n"),
        None,
    ),
    "whole, compressed": (
        WHOLE + b"Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n" + b"b" * 100,
        None,
    ),
    "whole, cut": (WHOLE + b"Content-Length: 100\r\n\r\n" + b"b" * 10, None),
    "whole, no such bytes": (WHOLE + b"Content-Length: 3\r\n\r\nbbb", None),
}
#: These are answers, too, if a server knows no ranges.
TRUE: dict[str, tuple[bytes, bytes | None]] = {
    "the range": (said(b"4-19/100", 16, GOOD), None),
    "the range, of some file": (said(b"4-19/*", 16, GOOD), None),
    "whole": (WHOLE + b"Content-Length: 100\r\n\r\nbbbb" + GOOD + b"b" * 80, None),
    "whole, no end": (WHOLE + b"\r\nbbbb" + GOOD, BLOCK),
}


def settings(**timeouts: int) -> StorageSettings:
    return StorageSettings(
        retries=StorageRetriesSettings(max_tries=2, initial_backoff_ms=1, max_backoff_ms=1),
        timeouts=StorageTimeoutSettings(**timeouts),
    )


def place_of(kind: str, server: Endless) -> Storage:
    if kind == "http":
        return http_storage(server.url).with_settings(settings())
    root = server.url.removesuffix("/d")
    options: Any = {"endpoint_url": root, "allow_http": True, "force_path_style": True}
    made = s3_storage(bucket="d", prefix=None, anonymous=True, region="us-east-1", **options)
    return made.with_settings(settings())


def virtual_of(kind: str, server: Endless) -> Any:
    """Return what reads virtual chunks of the same server."""
    prefix, store = server.url + "/", http_store()
    if kind == "s3":
        root = server.url.removesuffix("/d")
        prefix = "s3://d/"
        store = s3_store(
            region="us-east-1",
            endpoint_url=root,
            allow_http=True,
            force_path_style=True,
            anonymous=True,
        )
    config = RepositoryConfig(storage=settings())
    config.set_virtual_chunk_container(VirtualChunkContainer(prefix, store))
    allowed = {prefix: HttpAccess if kind == "http" else s3_credentials(anonymous=True)}
    repository = Repository.create(MemoryStorage(), config, containers_credentials(allowed))
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=16, chunks=16, dtype="u1", compressors=None)
    session.store.set_virtual_ref("a/c/0", prefix + "f", offset=4, length=16)
    return session


CALLS: dict[str, Callable[[str, Endless], Any]] = {
    "get": lambda kind, server: place_of(kind, server).get("f", byte_range=RANGE).data,
    "get_async": lambda kind, server: (
        asyncio.run(place_of(kind, server).get_async("f", byte_range=RANGE)).data
    ),
    "virtual": lambda kind, server: zarr.open_array(
        virtual_of(kind, server).store, path="a", mode="r"
    )[:].tobytes(),
    "virtual, in threads": lambda kind, server: virtual_of(kind, server).virtual.fetch(
        server.url + "/f" if kind == "http" else "s3://d/f", 4, 16
    ),
}


@pytest.fixture(params=["http", "s3"])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("lie", LIES)
def test_ranges(kind: str, lie: str, call: str) -> None:
    first, then = LIES[lie]
    with endless(first, then) as server:
        try:
            data = bytes(CALLS[call](kind, server))
        except IcechunkError as error:
            assert isinstance(error, StorageError)
        else:
            # what comes after the range may be cut off; what is short is seen by who asked
            assert "no end" in lie or (len(data) < 16 and lie == "whole, no such bytes")
            assert data == BLOCK[: len(data)] or len(data) < 16
        assert server.sent < 32 * MIB
        assert server.requests <= 4


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("truth", TRUE)
def test_ranges_that_are_right(kind: str, truth: str, call: str) -> None:
    if kind == "s3" and ("whole" in truth or "some" in truth):
        return  # no object store answers so, and its client takes that for an error
    first, then = TRUE[truth]
    with endless(first, then) as server:
        assert bytes(CALLS[call](kind, server)) == GOOD
        assert server.sent < 32 * MIB
        assert server.requests == 1


#: Ranges without an end that the caller names, and files as a whole.
OPEN: dict[str, tuple[int | None, int | None] | None] = {
    "whole": None,
    "to the end": (4, None),
    "the end": (None, 16),
    "far away": (1 << 40, (1 << 40) + 16),
}
STREAMS = {
    "announced": b"Content-Length: 1152921504606846976\r\n\r\n",
    "not announced": b"\r\n",
    "in chunks": CHUNKED,
}


@pytest.mark.parametrize("wanted", OPEN)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("part", [None, b"4-1152921504606846975/1152921504606846976", b"4-19/*"])
def test_reads_whose_end_the_server_says(
    kind: str, stream: str, wanted: str, part: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_WHOLE", 2 * MIB)
    start = WHOLE if part is None else PART + b"Content-Range: bytes " + part + b"\r\n"
    then = CHUNK if stream == "in chunks" else BLOCK
    for call in ("get", "get_async"):
        with endless(start + STREAMS[stream], then) as server:
            storage = place_of(kind, server)
            with pytest.raises(StorageError):
                if call == "get":
                    storage.get("f", byte_range=OPEN[wanted])
                else:
                    asyncio.run(storage.get_async("f", byte_range=OPEN[wanted]))
            assert server.sent < 32 * MIB
            assert server.requests <= 4


def test_an_answer_that_drips(kind: str) -> None:
    # each part comes long before the line counts as silent
    first = said(b"4-19/100", 16)
    limits = settings(operation_timeout_ms=300, read_timeout_ms=60_000)
    for call in ("get", "get_async"):
        with endless(first, b"b", 0.1) as server:
            storage = place_of(kind, server).with_settings(limits)
            with pytest.raises(StorageError, match=r"slowly|timed out|took more than"):
                if call == "get":
                    storage.get("f", byte_range=RANGE)
                else:
                    asyncio.run(storage.get_async("f", byte_range=RANGE))
            assert server.sent < 16


@pytest.mark.parametrize("call", ["get", "get_async"])
def test_a_large_answer_that_drips(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # no time for what may be on its way
    monkeypatch.setattr(reading, "_CREDIT", 0)
    monkeypatch.setattr(object_store, "_ANSWER", 0.3)
    first = said(b"0-3145727/3145728", 3 * MIB)
    with endless(first, b"b", 0.05) as server:
        storage = place_of("s3", server)
        for requests in (2, 3):
            with pytest.raises(StorageError, match="slowly"):
                if call == "get":
                    storage.get("f", byte_range=(0, 3 * MIB))
                else:
                    asyncio.run(storage.get_async("f", byte_range=(0, 3 * MIB)))
            # it is asked again once, for small pieces, and from then on for these
            assert server.requests == requests


#: What object stores are asked, and their client reads as a whole: sync and async.
ASKED: dict[str, Callable[[Storage], Any]] = {
    "get": lambda storage: storage.get("f"),
    "get_async": lambda storage: asyncio.run(storage.get_async("f")),
    "get_if_changed": lambda storage: storage.get_if_changed("f", '"v1"'),
    "put": lambda storage: storage.put("f", b"x"),
    "put, in parts": lambda storage: storage.put("f", bytes(300)),
    "put_async": lambda storage: asyncio.run(storage.put_async("f", b"x")),
    "delete": lambda storage: storage.delete(["f", "g"]),
    "copy": lambda storage: storage.copy("f", "g"),
    "list": lambda storage: list(storage.list("f/")),
}


@pytest.mark.parametrize("status", [b"200 OK", b"403 Forbidden", b"404 Not Found", b"409 Conflict"])
@pytest.mark.parametrize("asked", ASKED)
def test_pages_without_an_end(asked: str, status: bytes) -> None:
    """Errors and listings: who gives up receives no more of them."""
    first = b"HTTP/1.1 " + status + b"\r\nContent-Type: text/xml\r\n\r\n<?xml version='1.0'?><a>"
    # little at a time: what is counted is who is still there
    with endless(first, b"<b/>" * 256, 0.01) as server:
        limits = settings(operation_timeout_ms=200)
        limits.minimum_size_for_multipart_upload = 100
        storage = place_of("s3", server).with_settings(limits)
        with pytest.raises(StorageError):
            ASKED[asked](storage)
        assert server.left.wait(20)


def test_how_long_an_answer_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    request = Request("read", "f", "s3://b", 30)
    now = 29
    assert request.left == 1
    request.allowance = Allowance(180, 180, strict=False)
    assert request.left == 180
    request.allowance.count(1 << 20)
    assert request.left == 1024
    now = 29 + 1024
    assert request.left == 0
    assert "less than a kilobyte a second" in str(request.too_late())
