"""Web servers, and what every HTTP client needs: retries, time limits, headers.

The same small server speaks enough of Google's and Azure's protocols to see that
conditions reach them in the form that they understand.
"""

from __future__ import annotations

import http.client
import http.server
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from icechunk.config import StorageRetriesSettings, StorageSettings, StorageTimeoutSettings
from icechunk.errors import (
    ErrorKind,
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    ReadOnlyError,
    StorageError,
)
from icechunk.storage import (
    ObjectStorage,
    Storage,
    azure_storage,
    gcs_storage,
    http_storage,
    redirect_storage,
    s3_storage,
    tigris_storage,
)
from icechunk.storage.guarded_http import GuardedHttp, _Answer
from icechunk.testing.storage import byte_ranges, few_examples, slice_of
from tests import servers
from tests.servers import ObjectServer

DATA = bytes(range(25))


@pytest.fixture(params=[False, True], ids=["full", "plain"])
def web(object_server: ObjectServer, request: pytest.FixtureRequest) -> ObjectServer:
    """A server that knows ranges and conditions, or one that does not."""
    object_server.plain = request.param
    object_server.put("site/a b/é#%", DATA)
    object_server.put("site/empty", b"")
    return object_server


# -- reading ---------------------------------------------------------------------------
async def test_get(web: ObjectServer) -> None:
    storage = http_storage(f"{web.url}/site/")
    result = storage.get("a b/é#%")
    assert bytes(result.data) == DATA
    assert (result.etag is None) == web.plain
    assert (result.last_modified is None) == web.plain
    assert bytes((await storage.get_async("a b/é#%")).data) == DATA
    with pytest.raises(ObjectNotFoundError, match="missing"):
        storage.get("missing")
    with pytest.raises(InvalidInputError):
        storage.get("../site/empty")
    assert storage.url == f"{web.url}/site"


@few_examples
@given(byte_range=byte_ranges)
def test_a_range_is_a_slice(web: ObjectServer, byte_range: tuple[int | None, int | None]) -> None:
    storage = http_storage(f"{web.url}/site")
    for key, data in (("a b/é#%", DATA), ("empty", b"")):
        assert bytes(storage.get(key, byte_range=byte_range).data) == slice_of(data, byte_range)


def test_conditions_are_met_or_known_to_be_met(web: ObjectServer) -> None:
    storage = http_storage(f"{web.url}/site")
    stored = web.objects["site/a b/é#%"]
    earlier = stored.modified - timedelta(days=1)
    for byte_range in (None, (0, 3), (50, 60), (3, 3)):
        get: Callable[..., Any] = partial(storage.get, "a b/é#%", byte_range=byte_range)
        with pytest.raises(PreconditionFailedError):
            get(if_match='"other"')
        with pytest.raises(PreconditionFailedError):
            get(if_unmodified_since=earlier)
        if web.plain:
            # the server does not say, so nobody can know
            with pytest.raises(PreconditionFailedError):
                get(if_match=stored.etag)
            with pytest.raises(PreconditionFailedError):
                get(if_unmodified_since=datetime.now(UTC) + timedelta(days=1))
        else:
            get(if_match=stored.etag, if_unmodified_since=stored.modified)


def test_get_if_changed(web: ObjectServer) -> None:
    storage = http_storage(f"{web.url}/site")
    etag = web.objects["site/empty"].etag
    assert (storage.get_if_changed("empty", etag) is None) != web.plain
    assert storage.get_if_changed("empty", '"other"') is not None
    assert storage.get_if_changed("empty", None) is not None


def test_the_server_of_the_standard_library(tmp_path: Path) -> None:
    # what people have at hand; it knows no ranges
    (tmp_path / "a").write_bytes(DATA)
    handler = partial(QuietHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        storage = http_storage(f"http://127.0.0.1:{server.server_port}")
        assert bytes(storage.get("a").data) == DATA
        assert bytes(storage.get("a", byte_range=(3, 7)).data) == DATA[3:7]
        assert bytes(storage.get("a", byte_range=(None, 7)).data) == DATA[-7:]
        assert storage.get("a").last_modified is not None
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_writing_and_listing_are_refused(object_server: ObjectServer) -> None:
    storage = http_storage(f"{object_server.url}/site")
    object_server.put("site/a", b"x")
    assert not storage.supports_writes
    calls: list[Callable[[], Any]] = [
        lambda: storage.put("a", b""),
        lambda: storage.put("a", b"", if_absent=True),
        lambda: storage.delete(["a"]),
        lambda: storage.copy("a", "b"),
        lambda: storage.copy("a", "b", if_match=object_server.objects["site/a"].etag),
    ]
    for call in calls:
        with pytest.raises(ReadOnlyError, match="can only be read") as caught:
            call()
        assert caught.value.kind == ErrorKind.READ_ONLY_STORAGE
    storage.delete([])
    with pytest.raises(StorageError, match="cannot list"):
        list(storage.list())
    assert {r.method for r in object_server.requests} <= {"GET", "HEAD"}
    assert list(object_server.objects) == ["site/a"]


# -- what is sent ----------------------------------------------------------------------
def test_headers_and_secrets_in_the_url(object_server: ObjectServer) -> None:
    object_server.put("site/a", b"x")
    host = object_server.url.removeprefix("http://")
    storage = http_storage(
        f"http://user:p%40ss@{host}/site?token=QUERY-SECRET", headers={"X-Mine": "HEADER-SECRET"}
    )
    storage.get("a")
    [request] = object_server.requests
    # user:p@ss in base64
    assert request.headers["authorization"] == "Basic dXNlcjpwQHNz"
    assert request.headers["x-mine"] == "HEADER-SECRET"
    assert request.query == "token=QUERY-SECRET"
    assert request.headers["user-agent"].startswith("icechunk-py/")
    shown = [repr(storage), storage.url]
    object_server.failures = [403, 404, 418]
    for _ in range(3):
        with pytest.raises(StorageError) as caught:
            storage.get("a")
        shown += traceback.format_exception(caught.value)
    text = "".join(shown)
    for secret in ("QUERY-SECRET", "HEADER-SECRET", "p@ss", "p%40ss", "dXNlcjpw", "LEAK"):
        assert secret not in text
    assert "Debug source" not in text
    assert "418" in text


def test_headers_for_reading_and_writing(object_server: ObjectServer) -> None:
    storage = s3_storage(
        bucket="bucket",
        prefix="p",
        endpoint_url=object_server.url,
        allow_http=True,
        access_key_id="key-id",
        secret_access_key="secret",
        headers={"x-both": "both", "x-one": "both"},
        read_headers={"x-one": "read"},
        write_headers={"x-amz-acl": "bucket-owner-full-control"},
    )
    storage.put("a", b"x")
    storage.get("a")
    write, read = (request.headers for request in object_server.requests)
    assert (write["x-both"], write["x-one"]) == ("both", "both")
    assert write["x-amz-acl"] == "bucket-owner-full-control"
    # the service accepts headers of its own only if they are signed
    assert "x-amz-acl" in write["authorization"]
    assert (read["x-both"], read["x-one"]) == ("both", "read")
    assert "x-amz-acl" not in read


@pytest.mark.parametrize("weak", [False, True])
def test_tigris(object_server: ObjectServer, weak: bool) -> None:
    storage = tigris_storage(
        bucket="bucket",
        prefix="p",
        region=None if weak else "iad",
        endpoint_url=object_server.url,
        allow_http=True,
        anonymous=True,
        use_weak_consistency=weak,
    )
    object_server.put("bucket/p/a", b"x")
    storage.get("a")
    [request] = object_server.requests
    assert ("x-tigris-consistent" in request.headers) != weak
    assert storage.supports_writes != weak
    copied = pickle.loads(pickle.dumps(storage)).with_settings(StorageSettings())
    assert copied.supports_writes != weak
    with pytest.raises(InvalidInputError, match="region"):
        tigris_storage(bucket="bucket", prefix="p", anonymous=True)


# -- services with conditions of their own -----------------------------------------------
def gcs(server: ObjectServer) -> Storage:
    return server.gcs("p/q")


def azure(server: ObjectServer) -> Storage:
    return azure_storage(
        account="account",
        container="bucket",
        prefix="p/q",
        access_key="c2VjcmV0",
        config={"endpoint": server.url, "allow_http": "true"},
    )


@pytest.mark.parametrize("make", [gcs, azure])
async def test_conditions_of_other_services(
    object_server: ObjectServer, make: Callable[[ObjectServer], Storage]
) -> None:
    storage = make(object_server)
    first = storage.put("a", DATA, if_absent=True)
    with pytest.raises(PreconditionFailedError):
        storage.put("a", b"no", if_absent=True)
    assert list(object_server.objects) == ["bucket/p/q/a"]
    assert storage.get("a").etag == first
    second = await storage.put_async("a", DATA[::-1], if_match=first)
    for key in ("a", "missing"):
        with pytest.raises(PreconditionFailedError):
            storage.put(key, b"no", if_match=first)
    third = storage.put("a", DATA, if_match=second)
    assert len({first, second, third}) == 3
    assert storage.get_if_changed("a", third) is None
    assert storage.get_if_changed("a", second) is not None
    assert bytes(storage.get("a", if_match=third).data) == DATA
    with pytest.raises(PreconditionFailedError):
        storage.get("a", if_match=second)
    # a checksum of a virtual chunk is an etag and nothing else
    etag = object_server.objects["bucket/p/q/a"].etag
    assert bytes(storage.get("a", if_match=etag.strip('"')).data) == DATA


def test_google_says_what_is_missing_and_we_do_not(object_server: ObjectServer) -> None:
    storage = gcs(object_server)
    for key in "abcdef":
        storage.put(key, b"x")
    storage.delete(["missing", "a", "b", "missing", "c", "a", "d", "e"])
    assert list(object_server.objects) == ["bucket/p/q/f"]


@pytest.mark.parametrize("make", [gcs, azure])
@few_examples
@given(byte_range=byte_ranges)
def test_ranges_of_other_services(
    object_server: ObjectServer,
    make: Callable[[ObjectServer], Storage],
    byte_range: tuple[int | None, int | None],
) -> None:
    storage = make(object_server)
    for key, data in (("full", DATA), ("empty", b"")):
        etag = storage.put(key, data)
        result = storage.get(key, byte_range=byte_range)
        assert bytes(result.data) == slice_of(data, byte_range)
        assert result.etag == etag


def test_a_service_that_says_little(object_server: ObjectServer) -> None:
    storage = s3_storage(
        bucket="bucket", prefix="p", endpoint_url=object_server.url, allow_http=True, anonymous=True
    )
    object_server.put("bucket/p/a", DATA)
    object_server.plain = True
    result = storage.get("a")
    assert (bytes(result.data), result.etag, result.last_modified) == (DATA, None, None)
    for condition in ({"if_match": '"x"'}, {"if_unmodified_since": datetime.now(UTC)}):
        with pytest.raises(PreconditionFailedError):
            storage.get("a", **condition)  # type: ignore[arg-type]


def test_an_etag_alone_cannot_replace_an_object_of_google(object_server: ObjectServer) -> None:
    storage = gcs(object_server)
    storage.put("a", b"x")
    with pytest.raises(InvalidInputError, match="version"):
        storage.put("a", b"y", if_match='"etag"')


# -- failures --------------------------------------------------------------------------
def retrying(tries: int, **timeouts: int) -> StorageSettings:
    return StorageSettings(
        retries=StorageRetriesSettings(max_tries=tries, initial_backoff_ms=1, max_backoff_ms=5),
        timeouts=StorageTimeoutSettings(**timeouts),
    )


def test_failures_in_passing_are_retried(object_server: ObjectServer) -> None:
    object_server.put("site/a", b"x")
    storage = http_storage(f"{object_server.url}/site")
    object_server.failures = [500, 503]
    assert bytes(storage.with_settings(retrying(3)).get("a").data) == b"x"
    assert len(object_server.requests) == 3
    object_server.failures = [500, 503, 500]
    with pytest.raises(StorageError, match="500"):
        storage.with_settings(retrying(3)).get("a")
    object_server.failures = [500]
    with pytest.raises(StorageError, match="500"):
        storage.with_settings(retrying(1)).get("a")
    object_server.failures = [503]
    with pytest.raises(StorageError, match="503") as caught:
        storage.with_settings(retrying(1)).get("a")
    assert caught.value.kind == ErrorKind.THROTTLED


def test_a_put_whose_answer_is_lost_reports_its_condition(object_server: ObjectServer) -> None:
    # the first try takes effect and the retry meets it: the caller has to look
    storage = gcs(object_server).with_settings(retrying(2))
    etag = storage.put("a", b"old")
    real = object_server.put

    def put_and_fail(path: str, data: bytes) -> Any:
        stored = real(path, data)
        if not failed:
            failed.append(True)
            raise ConnectionAbortedError("the answer is lost")
        return stored

    failed: list[bool] = []
    object_server.put = put_and_fail  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        storage.put("a", b"new", if_match=etag)
    assert bytes(storage.get("a").data) == b"new"


@pytest.mark.parametrize("limit", ["read_timeout_ms", "operation_attempt_timeout_ms"])
async def test_a_silent_server(object_server: ObjectServer, limit: str) -> None:
    object_server.put("site/a", b"x")
    storage = http_storage(f"{object_server.url}/site").with_settings(retrying(1, **{limit: 100}))
    object_server.release.clear()
    start = time.monotonic()
    with pytest.raises(StorageError, match="cannot read a in "):
        storage.get("a")
    with pytest.raises(StorageError, match="cannot read a in "):
        await storage.get_async("a")
    # the server itself gives up after ten seconds
    assert time.monotonic() - start < 9
    object_server.release.set()
    assert bytes(storage.with_settings(StorageSettings()).get("a").data) == b"x"


def test_nobody_there(object_server: ObjectServer) -> None:
    storage = http_storage("http://127.0.0.1:9/site").with_settings(retrying(2))
    with pytest.raises(StorageError, match=r"cannot read a in http://127\.0\.0\.1:9/site"):
        storage.get("a")


def test_a_server_that_never_answers_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After all attempts of one request failed; when it answers, others are repeated again."""
    asked: list[str] = []
    answers: list[int] = []

    class Server(GuardedHttp):
        def _exchange(self, method: str, *arguments: Any) -> Any:
            asked.append(method)
            if not answers:
                raise ConnectionRefusedError("nobody is there")
            return _Answer(answers.pop(0), http.client.HTTPMessage(), b"x")

    storage = Server("http://127.0.0.1:9/", settings=retrying(3))
    for found in (["HEAD"] * 3 + ["GET"], ["HEAD", "GET"]):
        with pytest.raises(StorageError, match="nobody is there"):
            storage.head("a")
        assert asked == found
        asked.clear()
    answers[:] = [200]
    assert bytes(storage.get("a").data) == b"x"
    answers[:] = [503, 503, 503]
    with pytest.raises(StorageError, match="status 503"):
        storage.get("a")
    # it did answer
    answers[:] = [503, 200]
    storage.get("a")
    assert asked == ["GET"] * 6


def test_a_name_that_nobody_has_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be looked up for the moment is tried again."""
    for number, times in ((socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)):
        asked: list[object] = []

        def look_up(*arguments: Any, asked: Any = asked, number: Any = number, **_: Any) -> Any:
            asked.append(arguments)
            raise socket.gaierror(number, "not known")

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        storage = http_storage("http://no.invalid/").with_settings(retrying(3))
        with pytest.raises(StorageError, match=r"http://no\.invalid: not known"):
            storage.get("a")
        assert len(asked) == times


def test_unknown_options_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="colour"):
        gcs_storage(bucket="b", prefix="p", anonymous=True, config={"colour": "red"})
    with pytest.raises(InvalidInputError, match="colour"):
        azure_storage(
            account="a", container="c", prefix="p", anonymous=True, config={"colour": "red"}
        )


FORK = """
import os, signal, sys
from icechunk.errors import StorageError
from icechunk.storage import s3_storage

storage = s3_storage(
    bucket="site", prefix=None, endpoint_url=sys.argv[1], allow_http=True, anonymous=True,
)
if os.fork() == 0:
    # nothing had been used before
    print("before", bytes(storage.get("a").data), flush=True)
    os._exit(0)
os.wait()
storage.get("a")
if os.fork() == 0:
    # rather dead than waiting for ever
    signal.alarm(20)
    try:
        storage.get("a")
    except StorageError as error:
        print("after", error, flush=True)
    os._exit(0)
os.wait()
"""


def test_forked_processes(object_server: ObjectServer) -> None:
    object_server.put("site/a", b"x")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, object_server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    before, after = done.stdout.splitlines()
    assert before == "before b'x'"
    assert "forked" in after
    assert "spawn" in after


# -- redirects ---------------------------------------------------------------------------
@pytest.mark.parametrize("follow", [False, True])
def test_redirects_to_other_servers(object_server: ObjectServer, follow: bool) -> None:
    with servers.object_server() as other:
        other.put("elsewhere/a", DATA)
        object_server.put("site/b", DATA)
        object_server.redirects["site/a"] = f"{other.url}/elsewhere/a"
        object_server.redirects["site/c"] = "/site/b"
        host = object_server.url.removeprefix("http://")
        storage = http_storage(
            f"http://user:password@{host}/site", headers={"x-key": "k"}, follow_redirects=follow
        )
        copy = pickle.loads(pickle.dumps(storage)).with_settings(StorageSettings())
        for each in (storage, copy):
            # to the same server always
            assert bytes(each.get("c").data) == DATA
            assert object_server.requests[-1].headers["x-key"] == "k"
            if follow:
                assert bytes(each.get("a", byte_range=(2, 5)).data) == DATA[2:5]
            else:
                with pytest.raises(StorageError, match="follow_redirects=True") as caught:
                    each.get("a")
                assert caught.value.kind == ErrorKind.BAD_REDIRECT
        assert len(other.requests) == 2 * follow
        # what was given for one server does not go to another
        for request in other.requests:
            assert not {"x-key", "authorization"} & request.headers.keys()


def test_a_forked_process_has_connections_of_its_own(object_server: ObjectServer) -> None:
    object_server.put("site/a", DATA)
    storage = http_storage(f"{object_server.url}/site")
    storage.get("a")
    assert sum(map(len, storage._idle.values())) == 1
    storage._process += 1  # as in a child
    storage.get("a")
    assert sum(map(len, storage._idle.values())) == 1


@pytest.mark.parametrize(
    "options", [{"http3": "true"}, {"timeout": "soon"}, {"proxy_url": "http://x"}]
)
def test_options_that_a_web_server_does_not_have(options: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        http_storage("http://127.0.0.1:9/site", options)


# -- redirects to storages -------------------------------------------------------------
@pytest.fixture
def redirecting(object_server: ObjectServer) -> Iterator[ObjectServer]:
    object_server.redirects["start"] = f"{object_server.url}/hop"
    yield object_server


def test_a_redirect_to_a_web_server(redirecting: ObjectServer) -> None:
    redirecting.redirects["hop"] = redirecting.url.replace("http", "http+icechunk") + "/site"
    redirecting.put("site/a", b"x")
    storage = redirect_storage(f"{redirecting.url}/start")
    assert bytes(storage.get("a").data) == b"x"
    assert not storage.supports_writes


def test_a_redirect_to_a_bucket(redirecting: ObjectServer) -> None:
    redirecting.redirects["hop"] = "s3://bucket/folder?region=eu-central-1&other=1"
    storage = redirect_storage(f"{redirecting.url}/start")
    assert isinstance(storage, ObjectStorage)
    assert storage.url == "s3://bucket/folder"
    assert not storage.supports_writes
    # nothing is signed for whoever answers at a URL
    assert "Anonymous" in repr(storage._place.credentials)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc", "file://"),
        ("memory://name", "memory://"),
        ("ftp://host/x", "ftp://"),
        ("/missing", "404"),
        ("/start", "10 redirects"),
        ("http://127.0.0.1:9/", "refused"),
    ],
)
def test_redirects_to_no_storage(redirecting: ObjectServer, location: str, message: str) -> None:
    redirecting.redirects["hop"] = location
    with pytest.raises(StorageError, match=message) as caught:
        redirect_storage(f"{redirecting.url}/start")
    assert caught.value.kind == ErrorKind.BAD_REDIRECT


def test_a_redirect_starts_at_a_web_server() -> None:
    with pytest.raises(InvalidInputError, match="http"):
        redirect_storage("s3://bucket/prefix")
