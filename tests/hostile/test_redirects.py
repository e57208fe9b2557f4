"""Object stores that redirect requests: these are sent to no other host, headers neither."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from icechunk import azure_storage, gcs_storage, s3_storage
from icechunk.errors import StorageError
from icechunk.storage import Storage
from icechunk.storage.one_host import staying_at
from tests.hostile.test_lying_servers import settings
from tests.http_servers import Quiet, running_server

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "AWS_PROXY_URL")
BODY = b"of another host"
ANSWER = {
    "Content-Length": str(len(BODY)),
    "ETag": '"v1"',
    "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Server:
    """One that redirects, or that answers everything."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.port = 0
        self.status = 200
        self.location = ""


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[Server]:
    state = Server()

    class Handler(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append((self.path, str(self.headers)))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            there = state.location and not self.path.endswith("there")
            self.send_response(state.status if there else 200)
            headers = {"Location": state.location, "Content-Length": "0"} if there else ANSWER
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if not there and self.command != "HEAD":
                self.wfile.write(BODY)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 (as the base class has it)

    with running_server(Handler, host=host) as url:
        state.port = int(url.rpartition(":")[2])
        yield state


def s3(endpoint: str) -> Storage:
    return s3_storage(
        bucket="bucket",
        prefix=None,
        region="us-east-1",
        endpoint_url=endpoint,
        allow_http=True,
        access_key_id="key",
        secret_access_key="secret",
        session_token="SEKRET",
        headers={"X-Auth": "SEKRET"},
    )


def anonymous(endpoint: str) -> Storage:
    options: Any = {"endpoint_url": endpoint, "allow_http": True, "anonymous": True}
    return s3_storage(bucket="bucket", prefix=None, region="us-east-1", **options)


def gcs(endpoint: str) -> Storage:
    config = {"base_url": endpoint, "allow_http": "true"}
    return gcs_storage(bucket="bucket", prefix=None, bearer_token="SEKRET", config=config)


def azure(endpoint: str) -> Storage:
    config = {"endpoint": endpoint, "allow_http": "true"}
    return azure_storage(
        account="account", container="bucket", prefix=None, sas_token="sig=SEKRET", config=config
    )


STORAGES: dict[str, Callable[[str], Storage]] = {
    "s3": s3,
    "s3, unsigned": anonymous,
    "gcs": gcs,
    "azure": azure,
}
CALLS: dict[str, Callable[[Storage], Any]] = {
    "get": lambda storage: storage.get("k"),
    "get a range": lambda storage: storage.get("k", byte_range=(0, 4)),
    "get_async": lambda storage: asyncio.run(storage.get_async("k")),
    "list": lambda storage: list(storage.list("")),
    "put": lambda storage: storage.put("k", b"data"),
    "put, if absent": lambda storage: storage.put("k", b"data", if_absent=True),
    "delete": lambda storage: storage.delete(["k"]),
    "copy": lambda storage: storage.copy("k", "l"),
}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", STORAGES)
def test_to_another_host(kind: str, call: str, status: int) -> None:
    with serving() as first, serving() as other:
        first.status, first.location = status, f"http://127.0.0.1:{other.port}/there"
        storage = STORAGES[kind](f"http://localhost:{first.port}").with_settings(settings())
        with pytest.raises(StorageError) as caught:
            CALLS[call](storage)
        assert "SEKRET" not in str(caught.value)
        if call in ("get", "get_async", "list"):
            assert "redirects to another host" in str(caught.value)
            assert not caught.value.transient
        assert first.requests
        assert not other.requests


def test_to_the_same_host() -> None:
    with serving() as server:
        server.status, server.location = 307, f"http://127.0.0.1:{server.port}/there"
        storage = s3(f"http://127.0.0.1:{server.port}")
        assert bytes(storage.get("k").data) == BODY


@pytest.mark.parametrize(
    ("endpoint", "hosts"),
    [
        ("https://minio.example:9000/x", "minio.example"),
        ("http://[::1]:9000", "::1"),
        ("https://s3.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com,amazonaws.com"),
        ("https://s3.hf.co/me", "s3.hf.co,hf.co"),
        # a look-alike is no member of the family
        ("https://evilamazonaws.com", "evilamazonaws.com"),
    ],
)
def test_hosts(endpoint: str, hosts: str) -> None:
    assert staying_at(endpoint)["proxy_excludes"] == hosts
    assert staying_at(endpoint, "http://meta:1/x")["proxy_excludes"].startswith(
        hosts.partition(",")[0] + ",meta"
    )


@pytest.mark.parametrize("name", ["https_proxy", "ALL_PROXY", "AWS_PROXY_URL"])
def test_behind_a_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out is the proxy then, and it stays in use."""
    monkeypatch.setenv(name, "http://proxy.example:3128")
    assert staying_at("https://minio.example") == {}
    if name != "AWS_PROXY_URL":
        monkeypatch.setenv("no_proxy", "minio.example")
        assert staying_at("https://minio.example")


@pytest.mark.parametrize("found", ["machine", "container"])
def test_credentials_are_still_fetched(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the client asks for lie at other hosts than the service."""
    from icechunk.storage import aws_environment

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    name = {
        "machine": "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        "container": "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    }[found]
    monkeypatch.setenv(name, "http://creds.example/x")
    hosts = staying_at("https://minio.example", *aws_environment.asked_by_the_client())
    assert "creds.example" in hosts["proxy_excludes"].split(",")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    assert aws_environment.asked_by_the_client() == []
