"""`virtualize` and `ingest`, of files and servers of strangers, into repositories of strangers.

Nothing of a file that was not named gets into the repository, whatever the file, its server or
the repository say, and no server is asked that was not named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest

from icechunk import (
    MemoryStorage,
    Repository,
    RepositoryConfig,
    VirtualChunkContainer,
    http_store,
    local_filesystem_store,
    s3_store,
)
from icechunk.credentials import HttpAccess, LocalFileSystemAccess
from icechunk.errors import IcechunkError, StorageError
from icechunk.virtual import outside
from icechunk.virtual.outside import OutsideFiles
from icechunk_dask import ingest, virtualize
from icechunk_dask.archives.range_files import RangeFile
from tests.archives.day_files import write_days
from tests.hostile.test_bombs import BLOCK, MIB, endless
from tests.hostile.test_lying_servers import LIES, settings
from tests.web_server import WebServer, serving

CANARY = b"never to be read"


def virtualized(urls: list[str], place: Any, **options: Any) -> Any:
    return virtualize(urls, place, concat_dims=["time"], scheduler="sync", **options)


def ingested(urls: list[str], place: Any, **options: Any) -> Any:
    return ingest(urls, place, concat_dims=["time"], **options)


ENTRIES: dict[str, Callable[..., Any]] = {"virtualize": virtualized, "ingest": ingested}


@pytest.fixture(params=ENTRIES)
def entry(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return ENTRIES[request.param]


class Site(NamedTuple):
    """A folder ``public`` and one ``private``, in the file system and on a server."""

    folder: Path
    web: WebServer
    other: WebServer


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "files"
    for name in ("public", "private"):
        (folder / name).mkdir(parents=True)
    (folder / "private" / "raw").write_bytes(CANARY)
    secret = write_days(folder / "private" / "f.nc", 0, attributes={"note": CANARY.decode()})
    with serving() as web, serving() as other:
        for server in (web, other):
            server.files["/private/f.nc"] = secret.read_bytes()
            server.files["/private/raw"] = CANARY
        yield Site(folder, web, other)


def options_of(kind: str, server: str) -> dict[str, Any]:
    if kind != "s3":
        return {}
    client = {"region_name": "us-east-1"}
    return {"anon": True, "endpoint_url": server.rstrip("/"), "client_kwargs": client}


def base_of(kind: str, site: Site) -> str:
    """Return the URL of the folders; in S3 these are buckets."""
    return {"local": f"{site.folder}/", "http": site.web.url, "s3": "s3://"}[kind]


def publish(site: Site, name: str) -> None:
    """Put a file of the public folder on the server, too."""
    path = site.folder / "public" / name
    site.web.files[f"/public/{name}"] = path.read_bytes()


# -- what a file refers to -----------------------------------------------------------------
def external(site: Site, file: h5py.File) -> None:
    raw = str(site.folder / "private" / "raw")
    file.create_dataset("bait", (16,), "u1", external=[(raw, 0, 16)])


def external_above(site: Site, file: h5py.File) -> None:
    file.create_dataset("bait", (16,), "u1", external=[("../private/raw", 0, 16)])


def mosaic(site: Site, file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource(str(site.folder / "private" / "f.nc"), "t", shape=(4, 3))
    file.create_virtual_dataset("bait", layout)


def linked(site: Site, file: h5py.File) -> None:
    file["bait"] = h5py.ExternalLink("../private/f.nc", "t")


FILES = {"raw": external, "raw above": external_above, "mosaic": mosaic, "linked": linked}


@pytest.mark.parametrize("kind", ["local", "http", "s3"])
@pytest.mark.parametrize("file", FILES)
def test_files(file: str, kind: str, site: Site, entry: Callable[..., Any]) -> None:
    path = write_days(site.folder / "public" / "a.nc", 0)
    with h5py.File(path, "a") as opened:
        FILES[file](site, opened)
    publish(site, "a.nc")
    refused(entry, site, base_of(kind, site) + "public/a.nc", kind, MemoryStorage())


def refused(
    entry: Callable[..., Any], site: Site, url: str, kind: str, place: MemoryStorage, **more: Any
) -> None:
    try:
        target = Repository.open(place, **more) if more else place
        report = entry([url], target, remote_options=options_of(kind, site.web.url))
    except (IcechunkError, ValueError):
        pass
    else:
        assert report.failed
    for meta in place.list():
        assert CANARY not in bytes(place.get(meta.key).data)
    asked = {path for path, _ in site.web.requests}
    assert not any("private" in path for path in asked), asked
    assert not site.other.requests


# -- what a URL leads to ---------------------------------------------------------------------
#: Where a file that is named in the public folder is to be found, by its server.
REDIRECTS = {
    "beside": lambda site: site.web.url + "private/f.nc",
    "above": lambda site: site.web.url + "public/../private/f.nc",
    "above, encoded": lambda site: site.web.url + "public/%252e%252e/private/f.nc",
    "elsewhere": lambda site: site.other.url + "private/f.nc",
    "inwards": lambda site: "http://localhost:1/latest/meta-data",
    "a file": lambda site: (site.folder / "private" / "f.nc").as_uri(),
}


@pytest.mark.parametrize("target", REDIRECTS)
@pytest.mark.parametrize("existing", [False, True])
def test_redirects(target: str, existing: bool, site: Site, entry: Callable[..., Any]) -> None:
    site.web.redirects["/public/r.nc"] = REDIRECTS[target](site)
    place = MemoryStorage()
    if existing:
        config = RepositoryConfig()
        config.set_virtual_chunk_container(
            VirtualChunkContainer(site.web.url + "public/", http_store())
        )
        Repository.create(place, config)
    url = site.web.url + "public/r.nc"
    allowed: dict[str, Any] = {site.web.url + "public/": HttpAccess} if existing else {}
    more = {"authorize_virtual_chunk_access": allowed} if existing else {}
    refused(entry, site, url, "http", place, **more)


#: Keys of object stores are names, and only these two are none.
DOTS = [("s3", ".."), ("s3", "."), *(("http", dots) for dots in ("..", "%2e%2e", "%252e%252e"))]
DOTS += [("http", dots) for dots in ("..%2f..", "..;", "..\\..", "%2e.;x=1")]


@pytest.mark.parametrize(("kind", "dots"), DOTS)
def test_dots(dots: str, kind: str, site: Site, entry: Callable[..., Any]) -> None:
    """A URL of a list that a stranger wrote, below the prefix that was looked at."""
    url = f"{base_of(kind, site)}public/{dots}/private/f.nc"
    refused(entry, site, url, kind, MemoryStorage())


@pytest.mark.parametrize("through", ["a file", "a folder", "a pattern"])
def test_links(through: str, site: Site, entry: Callable[..., Any]) -> None:
    """A link in a folder that a stranger may write to, and that was authorised."""
    public = site.folder / "public"
    (public / "leak.nc").symlink_to("../private/f.nc")
    (public / "leaks").symlink_to("../private")
    if through == "a folder" and entry is ingested:
        return  # what is named is copied; containers have no part in it
    name = {"a file": "leak.nc", "a folder": "leaks/f.nc", "a pattern": "*.nc"}[through]
    config = RepositoryConfig()
    prefix = public.as_uri() + "/"
    config.set_virtual_chunk_container(VirtualChunkContainer(prefix, local_filesystem_store("/")))
    place = MemoryStorage()
    Repository.create(place, config)
    allowed: dict[str, Any] = {prefix: LocalFileSystemAccess}
    refused(entry, site, f"{public}/{name}", "local", place, authorize_virtual_chunk_access=allowed)


def test_a_pipe(site: Site, entry: Callable[..., Any]) -> None:
    os.mkfifo(site.folder / "public" / "a.nc")
    refused(entry, site, f"{site.folder}/public/a.nc", "local", MemoryStorage())


# -- what a repository says --------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_stored_container(
    kind: str, site: Site, entry: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are read from where the caller says, not from where the repository does."""
    write_days(site.folder / "public" / "a.nc", 0)
    publish(site, "a.nc")
    store: Any = s3_store(
        endpoint_url=site.other.url, allow_http=True, anonymous=True, region="us-east-1"
    )
    prefix = "s3://public/"
    if kind == "http":
        store, prefix = http_store(headers={"X-Original-URL": "/private/f.nc"}), site.web.url
    config = RepositoryConfig(
        virtual_chunk_containers={prefix: VirtualChunkContainer(prefix, store)}
    )
    place = MemoryStorage()
    with monkeypatch.context() as lax:
        lax.setattr(RepositoryConfig, "validate", lambda self: None)
        Repository.create(place, config)
    url = base_of(kind, site) + "public/a.nc"
    with suppress(IcechunkError):
        entry([url], Repository.open(place), remote_options=options_of(kind, site.web.url))
    assert not site.other.requests
    assert all("x-original-url" not in headers for _, headers in site.web.requests)


# -- what a server sends ---------------------------------------------------------------------
@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between tries."""
    monkeypatch.setattr("icechunk.storage.guarded_http.time.sleep", lambda seconds: None)


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str, no_waiting: None) -> None:
    with endless(*LIES[lie]) as server:
        with pytest.raises(IcechunkError):
            virtualized([server.url + "/f.nc"], MemoryStorage())
        assert server.sent < 64 * MIB and server.requests < 100


@pytest.mark.parametrize("lie", LIES)
def test_lies_of_buckets(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "_SINGLE", settings())
    outside._bucket.cache_clear()
    with endless(*LIES[lie]) as server:
        options = options_of("s3", server.url.removesuffix("/d"))
        storage, key = OutsideFiles(options).place("s3://d/f.nc")
        with pytest.raises(StorageError):
            RangeFile(storage, key, 100 * MIB, '"v1"', ahead=MIB).read(16)
        assert server.sent < 32 * MIB and server.requests < 24


@pytest.mark.parametrize("size", [b"600", b"1152921504606846976"])
def test_a_file_without_an_end(size: bytes, entry: Callable[..., Any], no_waiting: None) -> None:
    """The beginning is that of a file, and what follows never ends."""
    head = b"\x89HDF\r\n\x1a\n" + bytes(504)
    said = b"Content-Range: bytes 0-511/" + size + b"\r\nContent-Length: 1152921504606846976\r\n"
    with endless(b"HTTP/1.1 206 Partial Content\r\n" + said + b"\r\n" + head, BLOCK) as server:
        with pytest.raises(IcechunkError):
            entry([server.url + "/f.nc"], MemoryStorage())
        assert server.sent < 64 * MIB and server.requests < 100


def test_netrc(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords of hosts are for the programs that the user gave them to."""
    host = "127.0.0.1"
    (tmp_path / ".netrc").write_text(f"machine {host}\nlogin me\npassword SEKRET\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    write_days(site.folder / "public" / "a.nc", 0)
    publish(site, "a.nc")
    for kind in ("http", "s3"):
        url = base_of(kind, site) + "public/a.nc"
        virtualized([url], MemoryStorage(), remote_options=options_of(kind, site.web.url))
    assert np.any(site.web.requests)
    assert all("authorization" not in headers for _, headers in site.web.requests)
