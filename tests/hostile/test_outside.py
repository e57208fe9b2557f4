"""Files outside of a repository, read in bounded ranges from whichever service they are in.

Archives, references of kerchunk and parsers of VirtualiZarr come to them by one way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr

from icechunk import (
    MemoryStorage,
    Repository,
    RepositoryConfig,
    VirtualChunkContainer,
    http_store,
    local_filesystem_store,
)
from icechunk.credentials import HttpAccess, LocalFileSystemAccess
from icechunk.errors import IcechunkError, InvalidInputError, StorageError
from icechunk.kerchunk import import_references
from icechunk.virtual import outside
from icechunk.virtual.outside import OutsideFiles
from icechunk_dask import ingest, virtualize
from icechunk_dask.archives import sources as sources_module
from icechunk_dask.archives.sources import Sources
from tests.archives.day_files import write_days
from tests.endless import MIB, endless
from tests.hostile.test_lying_servers import LIES, settings
from tests.http_servers import Quiet, running_server
from tests.web_server import WebServer, serving

CANARY = b"never to be read"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try twice at most, and keep no client of another test."""
    monkeypatch.setattr(outside, "_SINGLE", settings())
    monkeypatch.setattr("icechunk.storage.guarded_http.time.sleep", lambda seconds: None)
    outside._bucket.cache_clear()


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the environment have what it takes, as where no options are passed."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SEKRET")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


#: The service, and how it is reached: by options, and with keys of the environment.
SERVICES: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "http": ("{server}/d/", lambda server: {}),
    "s3 with keys": (
        "s3://d/",
        lambda server: {
            "key": "key",
            "secret": "SEKRET",
            "client_kwargs": {"endpoint_url": server, "region_name": "us-east-1"},
        },
    ),
    "s3 without keys": ("s3://d/", lambda server: {"endpoint_url": server}),
    "s3 without region": ("s3a://d/", lambda server: {"endpoint_url": server, "anon": True}),
    "gs": (
        "gs://d/",
        lambda server: {"token": "anon", "config": {"base_url": server, "allow_http": "true"}},
    ),
    "az": (
        "az://d/",
        lambda server: {
            "account_name": "account",
            "anon": True,
            "config": {"endpoint": server, "allow_http": "true"},
        },
    ),
}


def place(service: str, server: str) -> tuple[str, dict[str, Any]]:
    """Return the URL of the folder or bucket ``d``, and the options."""
    base, options = SERVICES[service]
    return base.format(server=server), options(server)


# -- what a service sends ------------------------------------------------------------------
@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("service", SERVICES)
def test_lies(service: str, lie: str) -> None:
    with endless(*LIES[lie]) as server:
        base, options = place(service, server.url.removesuffix("/d"))
        with pytest.raises((IcechunkError, ValueError)):
            file = Sources(options).open(base + "f.nc").opened()
            # what was asked for is not what was sent; a short file shows where it ends
            if len(file.read(1 << 40)) < 100:
                raise StorageError("short")
        assert server.sent < 64 * MIB and server.requests < 40


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("service", SERVICES)
def test_truth(service: str) -> None:
    data = bytes(range(256)) * 100
    with serving() as web:
        # the client for Google encodes dots
        for path in ("/d/f.nc", "/account/d/f.nc", "/d/f%2Enc"):
            web.files[path] = data
        base, options = place(service, web.url.removesuffix("/"))
        source = Sources(options).open(base + "f.nc")
        file = source.opened()
        file.seek(1000)
        assert file.read(300) == data[1000:1300]
        version = source.version()
        assert version.size == len(data) and version.etag == "v1"
        assert version.modified == 1445412480 * 10**9
        assert OutsideFiles(options).read(base + "f.nc", len(data)) == data
        with pytest.raises(StorageError, match="more than 100 bytes"):
            OutsideFiles(options).read(base + "f.nc", 100)


class Listing:
    """A bucket whose listing has no end: each page says that there is another."""

    def __init__(self) -> None:
        self.pages = 0
        self.url = ""

    def page(self) -> bytes:
        self.pages += 1
        first = 1000 * self.pages
        rows = "".join(
            f"<Contents><Key>a/{first + i:012}.nc</Key><Size>1</Size>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            for i in range(1000)
        )
        more = f"<NextContinuationToken>{self.pages}</NextContinuationToken>"
        return (
            f"<ListBucketResult><IsTruncated>true</IsTruncated>{more}{rows}</ListBucketResult>"
        ).encode()


@contextmanager
def listing() -> Iterator[Listing]:
    state = Listing()

    class Handler(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = state.page()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with running_server(Handler) as state.url:
        yield state


@pytest.mark.parametrize("entry", [virtualize, ingest])
def test_a_listing_without_an_end(
    entry: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "_MOST_LISTED", 5000)
    with listing() as server:
        options = {"endpoint_url": server.url, "anon": True, "region": "us-east-1"}
        with pytest.raises(InvalidInputError, match=r"more than 5000 objects.*list of URLs"):
            entry("s3://d/a/*.nc", MemoryStorage(), remote_options=options)
        assert server.pages < 12


def test_versions_of_a_folder_without_an_end() -> None:
    with listing() as server:
        sources = Sources({"endpoint_url": server.url, "anon": True, "region": "us-east-1"})
        urls = [f"s3://d/a/{i}.nc" for i in range(5)]
        found = sources.versions(urls)
        # asked for one by one then, and there is none
        assert {version.size for version in found.values()} == {0}
        assert server.pages < 20


@pytest.mark.parametrize("pattern", ["s3://d/a/*.nc", "s3://d/**/00000000000[12].nc"])
def test_patterns(pattern: str) -> None:
    with listing() as server:
        real, pages = server.page, []

        def once() -> bytes:
            pages.append(1)
            last = real().replace(b"<IsTruncated>true", b"<IsTruncated>false")
            return re.sub(b"<Next.*Token>", b"", last)

        server.page = once  # type: ignore[method-assign]
        sources = Sources({"endpoint_url": server.url, "anon": True, "region": "us-east-1"})
        if "**" in pattern:
            with pytest.raises(InvalidInputError, match="no file matches"):
                sources.expand(pattern)
        else:
            assert len(sources.expand(pattern)) == 1000
        assert len(pages) == 1
        with pytest.raises(InvalidInputError, match="no pattern"):
            sources.expand("s3://*/a.nc")


def test_no_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but local paths goes to fsspec, and what is read in no other way is refused."""
    real = fsspec.filesystem

    def only_local(protocol: str, **options: Any) -> Any:
        assert protocol in ("file", "local"), protocol
        return real(protocol, **options)

    monkeypatch.setattr(fsspec, "filesystem", only_local)
    monkeypatch.setattr(fsspec.core, "filesystem", only_local)
    path = write_days(tmp_path / "a.nc", 0)
    with serving() as web:
        web.files["/d/a.nc"] = path.read_bytes()
        for service in ("http", "s3 with keys"):
            base, options = place(service, web.url.removesuffix("/"))
            for entry in (virtualize, ingest):
                entry(
                    [base + "a.nc"],
                    MemoryStorage(),
                    concat_dims=["time"],
                    remote_options=options,
                )
    for url in ("ftp://h/a.nc", "memory://a.nc", "simplecache::s3://b/a.nc", "github://o:r@/a.nc"):
        with pytest.raises(InvalidInputError, match="files are read of this machine"):
            virtualize([url], MemoryStorage(), concat_dims=["time"])


# -- references of kerchunk --------------------------------------------------------------
def writable(prefix: str | None = None) -> Any:
    config = RepositoryConfig()
    if prefix is not None:
        config.set_virtual_chunk_container(VirtualChunkContainer(prefix, http_store()))
    return Repository.create(MemoryStorage(), config).writable_session("main")


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("name", ["refs.json", "refs.parq"])
@pytest.mark.parametrize("lie", ["no end", "no end, not announced", "longer", "cut", "compressed"])
@pytest.mark.parametrize("service", SERVICES)
def test_references(service: str, lie: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icechunk.kerchunk.reading.MAX_FILE", MIB)
    with endless(*LIES[lie]) as server:
        base, options = place(service, server.url.removesuffix("/d"))
        with pytest.raises(IcechunkError) as caught:
            import_references(base + name, writable(), storage_options=options)
        assert "SEKRET" not in str(caught.value)
        assert server.sent < 64 * MIB and server.requests < 40


def references(url: str) -> dict[str, Any]:
    metadata = {
        "zarr_format": 2,
        "shape": [16],
        "chunks": [16],
        "dtype": "|u1",
        "compressor": None,
        "filters": None,
        "fill_value": None,
        "order": "C",
    }
    return {"version": 1, "refs": {"a/.zarray": json.dumps(metadata), "a/0": [url]}}


@pytest.mark.parametrize("where", ["elsewhere", "not in a container", "below"])
def test_sizes_of_whole_files(where: str) -> None:
    """Headers of the caller go to files in containers only, and redirects lead nowhere else."""
    with serving() as web, serving() as other:
        web.redirects["/public/r"] = other.url + "private"
        web.files["/public/f"] = other.files["/private"] = CANARY
        session = writable(web.url + "public/")
        options = {"headers": {"X-Auth": "SEKRET"}}
        name = {"elsewhere": web.url + "public/r", "below": web.url + "public/f"}.get(where)
        arguments: dict[str, Any] = {"remote_options": options, "verify": "none"}
        arguments["validate_containers"] = where != "not in a container"
        given = references(name or other.url + "private")
        if where == "below":
            import_references(given, session, **arguments)
            assert web.requests[0][1]["x-auth"] == "SEKRET"
        else:
            with pytest.raises(InvalidInputError, match="whole file"):
                import_references(given, session, **arguments)
        assert not other.requests


# -- parsers ---------------------------------------------------------------------------------
class Site:
    """A folder with a public and a private part, on this machine or on a server."""

    def __init__(self, kind: str, folder: Path, web: WebServer) -> None:
        for name in ("public", "private"):
            (folder / name).mkdir()
        write_days(folder / "public" / "a.nc", 0)
        (folder / "private" / "raw").write_bytes(CANARY)
        web.files["/public/a.nc"] = (folder / "public" / "a.nc").read_bytes()
        web.files["/private/raw"] = CANARY
        self.base = web.url if kind == "http" else folder.as_uri() + "/"
        store: Any = http_store() if kind == "http" else local_filesystem_store(str(folder))
        prefix = self.base + "public/"
        config = RepositoryConfig()
        config.set_virtual_chunk_container(VirtualChunkContainer(prefix, store))
        self.place = MemoryStorage()
        Repository.create(self.place, config)
        access: Any = HttpAccess if kind == "http" else LocalFileSystemAccess
        self.target = Repository.open(self.place, authorize_virtual_chunk_access={prefix: access})


def hands_over(url: str, registry: Any, private: str) -> Any:
    store, path = registry.resolve(url)
    assert store.head(path)["size"] > 0
    store, path = registry.resolve(private)
    return store.get(path).buffer()


def in_ranges(url: str, registry: Any, private: str) -> Any:
    store, path = registry.resolve(private)
    return store.get_ranges(path, starts=[0], lengths=[4])


def listed(url: str, registry: Any, private: str) -> Any:
    store, _ = registry.resolve(url)
    return list(store.list("private"))


def above(url: str, registry: Any, private: str) -> Any:
    store, path = registry.resolve(url)
    return store.get(path.replace("a.nc", "../private/raw")).buffer()


def by_client(url: str, registry: Any, private: str) -> Any:
    import obstore

    store, path = registry.resolve(private)
    return obstore.get(store, path)


def by_reference(url: str, registry: Any, private: str) -> Any:
    """A variable that is copied, and whose chunk is said to be elsewhere."""
    from virtualizarr.manifests import ChunkManifest, ManifestArray, ManifestGroup, ManifestStore
    from virtualizarr.parsers import HDFParser

    group = HDFParser()(url, registry)._group
    strings = np.dtypes.StringDType()
    manifest = ChunkManifest.from_arrays(
        paths=np.asarray([private], strings),
        offsets=np.asarray([0], np.uint64),
        lengths=np.asarray([16], np.uint64),
    )
    metadata = zarr.create_array(
        {}, shape=16, chunks=16, dtype="u1", compressors=None, dimension_names=["n"]
    ).metadata
    arrays = {**group.arrays, "bait": ManifestArray(metadata, manifest)}
    return ManifestStore(ManifestGroup(arrays, attributes={}), registry=registry)


PARSERS = {
    "get": hands_over,
    "get_ranges": in_ranges,
    "list": listed,
    "above": above,
    "client": by_client,
    "reference": by_reference,
}


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("kind", ["local", "http"])
@pytest.mark.parametrize("parser", PARSERS)
def test_parsers(parser: str, kind: str, copied: bool, tmp_path: Path) -> None:
    pytest.importorskip("virtualizarr")
    with serving() as web:
        site = Site(kind, tmp_path, web)
        private = site.base + "private/raw"

        def parse(url: str, registry: Any) -> Any:
            return PARSERS[parser](url, registry, private)

        with pytest.raises((IcechunkError, ValueError)):
            virtualize(
                [site.base + "public/a.nc"],
                site.target,
                concat_dims=["time"],
                parser=parse,
                loadable=["bait"] if copied and parser == "reference" else [],
                scheduler="sync",
            ).raise_for_failures()
        for meta in site.place.list():
            assert CANARY not in bytes(site.place.get(meta.key).data)
        assert not any("private" in path for path, _ in web.requests)


@pytest.mark.parametrize("lie", LIES)
def test_lies_to_parsers(lie: str) -> None:
    from virtualizarr.parsers import HDFParser

    with endless(*LIES[lie]) as server:
        with pytest.raises((IcechunkError, ValueError)):
            virtualize(
                [server.url + "/f.nc"],
                MemoryStorage(),
                concat_dims=["time"],
                parser=HDFParser(),
                scheduler="sync",
            )
        assert server.sent < 64 * MIB and server.requests < 40


# -- headers -------------------------------------------------------------------------------------
def test_headers_of_an_ingest(tmp_path: Path) -> None:
    """Files that take a header are copied with it, and it is stored nowhere."""
    path = write_days(tmp_path / "a.nc", 0)
    storage = MemoryStorage()
    with serving() as web:
        web.files["/d/a.nc"] = path.read_bytes()
        report = ingest(
            [web.url + "d/a.nc"],
            storage,
            concat_dims=["time"],
            remote_options={"headers": {"X-Auth": "SEKRET"}, "bearer_token": "SEKRET"},
        )
        assert len(report.added) == 1
        assert all(headers.get("x-auth") == "SEKRET" for _, headers in web.requests)
        assert all(headers["authorization"] == "Bearer SEKRET" for _, headers in web.requests)
    assert not any(b"SEKRET" in bytes(storage.get(meta.key).data) for meta in storage.list())


@pytest.mark.parametrize(
    "options",
    [
        {"storage_options": {"key": "SEKRET"}},
        {"backend_kwargs": {"storage_options": [{"headers": {"X-Auth": "SEKRET"}}]}},
        {"mirror": "https://me:SEKRET@host/d"},
        {"password": "SEKRET"},
    ],
)
def test_options_of_an_engine(options: dict[str, Any], tmp_path: Path) -> None:
    """A job stores them for the call that goes on, so that they hold no secret."""
    path = write_days(tmp_path / "a.nc", 0)
    storage = MemoryStorage()
    with pytest.raises(InvalidInputError, match="has a secret") as caught:
        ingest([path], storage, concat_dims=["time"], engine="h5netcdf", open_options=options)
    assert "SEKRET" not in str(caught.value)
    assert not any(b"SEKRET" in bytes(storage.get(meta.key).data) for meta in storage.list())


def test_plain_options_of_an_engine(tmp_path: Path) -> None:
    path = write_days(tmp_path / "a.nc", 0)
    options = {"decode_times": False, "backend_kwargs": {"phony_dims": "access"}}
    report = ingest(
        [path], MemoryStorage(), concat_dims=["time"], engine="h5netcdf", open_options=options
    )
    assert len(report.added) == 1
