"""Names that lead elsewhere than one may think: into a private network, or to another host."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from icechunk import (
    ErrorKind,
    InvalidInputError,
    Storage,
    azure_storage,
    http_storage,
    r2_storage,
    redirect_storage,
    s3_storage,
    storage_from_url,
)
from icechunk.errors import StorageError
from icechunk.storage import reach
from icechunk.storage.reach import Reach, is_inside
from icechunk.virtual.outside import OutsideFiles
from tests.hostile.test_redirects import Server, serving

INSIDE = [
    "localhost", "LOCALHOST", "localhost.", "a.localhost", "metadata.google.internal.", "a.local.",
    "metadata", "0", "127.1", "127.0.0.1.", "0x7f.1", "0177.1", "017700000001", "2130706433",
    "10.0.0.1", "169.254.169.254.", "100.64.0.1", "192.0.0.192", "[::1]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::127.0.0.1]",
    "[fe80::1%25eth0]", "127\u30020\uff0e0\uff611", "\uff11\uff12\uff17.0.0.1", "\u24dbocalhost",
]  # fmt: skip
OUTSIDE = ["example.org", "example.org.", "8.8.8.8", "[2606:4700::1111]", "[64:ff9b::808:808]"]
ADDRESSES = ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"]


@pytest.mark.parametrize("scheme", ["http", "https", "http+icechunk", "https+icechunk"])
def test_names_of_private_networks(scheme: str) -> None:
    for host in INSIDE:
        for port in ("", ":8080"):
            assert is_inside(f"{scheme}://{host}{port}/x"), host
            assert not Reach("https://example.org/")(f"{scheme}://{host}{port}/x")
            assert Reach("http://10.0.0.1/")(f"{scheme}://{host}{port}/x")
    for host in OUTSIDE:
        assert not is_inside(f"{scheme}://{host}/x"), host


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_behind_names(address: str) -> None:
    start = Reach("https://example.org/")
    assert start.connected("https://example.org/x", "8.8.8.8")
    assert not start.connected("http://example.com/x", address)
    # a server of the private network, under a name that does not say so
    within = Reach("https://data.example.org/")
    assert within.connected("https://data.example.org/x", address)
    assert within("http://10.0.0.1/") and within.connected("http://example.com/x", address)
    assert not within.only("http://example.com")("http://example.org/")


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Server]]:
    """Return a server of the world, and one of the private network. Names lead to both."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    real = socket.getaddrinfo
    hosts = {"world.example": "127.0.0.1", "inward.example": "127.0.0.2"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more, **kw: real(hosts.get(host, host), *more, **kw)
    )
    monkeypatch.setattr(reach, "_is_private", lambda address: address != "127.0.0.1")
    with serving() as world, serving("127.0.0.2") as inward:
        yield world, inward


CALLS: dict[str, Callable[[str], Any]] = {
    "http_storage": lambda url: http_storage(url, follow_redirects=True).get("k"),
    "files": lambda url: OutsideFiles({}).read(f"{url}/k", 100),
    "redirect_storage": lambda url: redirect_storage(f"{url}/k").get("k"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("host", ["inward.example", "127.0.0.2"])
def test_redirects_inwards(servers: tuple[Server, Server], call: str, host: str) -> None:
    world, inward = servers
    world.status = 307
    forms = [f"http://{host}:{inward.port}/there"]
    if call == "redirect_storage":
        forms.append(forms[0].replace("http:", "http+icechunk:"))
        forms.append(f"s3://bucket/x?endpoint_url=http://{host}:{inward.port}")
    for location in forms:
        world.location = location
        with pytest.raises(StorageError) as caught:
            CALLS[call](f"http://world.example:{world.port}")
        assert caught.value.kind == ErrorKind.BAD_REDIRECT
    assert len(world.requests) == len(forms)
    assert not inward.requests


def test_redirects_within_the_private_network(servers: tuple[Server, Server]) -> None:
    _, inward = servers
    with serving("127.0.0.2") as second:
        inward.status, inward.location = 307, f"http://other.example:{second.port}/there"
        url = f"http://inward.example:{inward.port}"
        with pytest.MonkeyPatch.context() as patch:
            real = socket.getaddrinfo
            patch.setattr(
                socket,
                "getaddrinfo",
                lambda host, *more, **kw: real(host.replace("other", "inward"), *more, **kw),
            )
            assert http_storage(url, follow_redirects=True).get("k").data
        assert second.requests


# -- parts of host names ----------------------------------------------------------------------
PARTS = [
    "x@127.0.0.1:80/#", "x:80", "x/", "x?", "x#", "x\\y", "x%2f", "x\ny", "x y", "\u24e7", "x.",
    ".x", "-",
]  # fmt: skip
KEYS = {"access_key_id": "key", "secret_access_key": "secret"}
NAMED: dict[str, Callable[[str], Storage]] = {
    "region": lambda part: s3_storage(bucket="b", prefix=None, region=part, **KEYS),
    "anonymous": lambda part: s3_storage(bucket="b", prefix=None, region=part, anonymous=True),
    "a URL": lambda part: storage_from_url("s3://b/p", region=part, anonymous=True),
    "account_id": lambda part: r2_storage(bucket="b", prefix=None, account_id=part, **KEYS),
    "account": lambda part: azure_storage(
        account=part, container="b", prefix=None, access_key="c2VjcmV0"
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_that_make_another_host(
    part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for make in NAMED.values():
        with pytest.raises(InvalidInputError, match="is not a valid"):
            make(part)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_REGION", part)
        with pytest.raises(InvalidInputError, match="is not a valid region"):
            s3_storage(bucket="b", prefix=None, from_env=True)
    if "\n" not in part and part.strip() == part:
        (tmp_path / "config").write_text(f"[default]\nregion = {part}\n")
        with monkeypatch.context() as patch:
            for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
                patch.delenv(name, raising=False)
            patch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
            with pytest.raises(InvalidInputError, match="is not a valid region"):
                s3_storage(bucket="b", prefix=None, from_env=True)


@pytest.mark.parametrize(
    "scheme", ["s3://b/x?region", "r2://b/x?account_id", "tigris://b/x?region"]
)
def test_redirects_that_make_another_host(scheme: str) -> None:
    from urllib.parse import quote

    with serving() as server:
        server.status = 302
        for part in PARTS:
            server.location = f"{scheme}={quote(part)}"
            with pytest.raises(StorageError, match="is not a valid") as caught:
                redirect_storage(f"http://127.0.0.1:{server.port}/x")
            assert caught.value.kind == ErrorKind.BAD_REDIRECT
