"""`virtualize` and `ingest`, of files and servers of strangers, into repositories of strangers.

Nothing of a file that was not named gets into the repository, whatever the file, its server or
the repository say, and no server is asked that was not named.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr

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
from icechunk.errors import IcechunkError, InvalidInputError, StorageError
from icechunk.virtual import outside
from icechunk.virtual.outside import OutsideFiles
from icechunk_dask import ingest, virtualize
from icechunk_dask.archives.range_files import RangeFile
from icechunk_xarray import copying
from icechunk_xarray.opened_files import Opening
from tests.archives.day_files import write_days
from tests.archives.grib_files import message
from tests.endless import BLOCK, MIB, endless
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


@pytest.mark.parametrize("variable", ["HDF5_VDS_PREFIX", "HDF5_EXTFILE_PREFIX"])
def test_prefixes_of_the_environment(
    variable: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is looked at is beside the file, and what HDF5 would read is elsewhere."""
    public = site.folder / "public"
    path = write_days(public / "a.nc", 0)
    write_days(public / "f.nc", 0)
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource("f.nc", "t", shape=(4, 3))
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("bait", layout)
        for axis, name in enumerate(("time", "lat")):
            file["bait"].dims[axis].attach_scale(file[name])
    monkeypatch.setenv(variable, str(site.folder / "private"))
    place = MemoryStorage()
    for more in ({}, {"loadable": ["bait"]}):
        with pytest.raises(InvalidInputError, match=rf"bait(.|\n)*{variable}.*unset it"):
            virtualized([str(path)], place, isolate=False, **more)
    assert not [*place.list("manifests/")]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("behind", [0, 8192])
def test_files_that_an_engine_opens(file: str, behind: int, site: Site) -> None:
    """HDF5 itself opens what a file names, whoever asks it to."""
    path = site.folder / "public" / "a.nc"
    write_days(path, 0)
    if behind:
        plain, path = path, path.with_name("b.nc")
        with h5py.File(plain) as source, h5py.File(path, "w", userblock_size=behind) as copy:
            for name in ("time", "lat", "t"):
                source.copy(name, copy)
    with h5py.File(path, "a") as opened:
        FILES[file](site, opened)
    place = MemoryStorage()
    with pytest.raises(InvalidInputError, match=r"bait' .*other file.*leave engine= out"):
        ingested([str(path)], place, engine="h5netcdf", executor="sync")
    assert not [*place.list("manifests/")]


class Loaded:
    """Makes a folder when a pickle of it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


def test_an_index_beside_a_file(tmp_path: Path) -> None:
    """cfgrib loads pickles that lie there; and leaves some."""
    files = tmp_path / "files"
    files.mkdir()
    path, loaded = files / "a.grib2", tmp_path / "loaded"
    path.write_bytes(message(dataDate=20000101))
    how: Any = {"engine": "cfgrib", "executor": "sync", "expand_dims": ["time"]}
    assert ingested([str(path)], MemoryStorage(), **how).added
    assert [*files.iterdir()] == [path]
    xr.open_dataset(path, engine="cfgrib").close()
    (index,) = files.glob("*.idx")
    index.write_bytes(pickle.dumps(Loaded(loaded)))
    os.utime(index, (2e9, 2e9))
    assert ingested([str(path)], MemoryStorage(), **how).added
    assert not loaded.exists()
    # the user may say otherwise
    ingested([str(path)], MemoryStorage(), open_options={"indexpath": str(index)}, **how)
    assert loaded.exists()


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


#: What a job says that an earlier call has begun; None: as it is right for the file.
JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "another file": ({"locations": ["{private}"]}, "begun to copy .*private/f.nc, and this one"),
    "this and another": (
        {"locations": ["{public}", "{private}"], "versions": [[-1, 0, "", 0, 0]] * 2},
        "begun to copy .*private/f.nc",
    ),
    "names of another": ({"files": ["{private}"], "opening": None}, "engine=None"),
    "another engine": ({"opening": {"engine": "cfgrib", "options": {}}}, "engine='cfgrib'"),
    "an engine": ({"opening": "x"}, "engine=None"),
    "no versions": ({"versions": []}, "makes no sense"),
    "versions": ({"versions": [[0, 0, 0, 0, 0]]}, "makes no sense"),
    "no list": ({"locations": "{public}"}, "makes no sense"),
    "no places": ({"locations": [7]}, "makes no sense"),
    "appends": ({"appends": "x"}, "makes no sense"),
    "on_mismatch": ({"on_mismatch": "x"}, "makes no sense"),
}


@pytest.mark.parametrize("said", JOBS)
def test_jobs_of_strangers(said: str, site: Site) -> None:
    """A repository may say that a copy of any file was begun, and is to go on."""
    public = write_days(site.folder / "public" / "a.nc", 4)
    places = {"public": public.as_uri(), "private": (site.folder / "private" / "f.nc").as_uri()}

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [*map(filled, value)]
        return value.format(**places) if isinstance(value, str) else value

    how: Any = {"engine": "h5netcdf", "executor": "sync"}
    opening = Opening.of("h5netcdf", None, "time", (), None, (), None)
    assert opening is not None
    changed, message = JOBS[said]
    about = {
        "files": [str(public)],
        "appends": False,
        "locations": [places["public"]],
        "versions": [[-1, 0, "", 0, 0]],
        "opening": opening.to_dict(),
        "on_mismatch": "error",
        **{name: filled(value) for name, value in changed.items()},
    }
    place = MemoryStorage()
    repository = Repository.create(place)
    plant(repository, about)
    with pytest.raises(InvalidInputError, match=f"{message}.*jobs.delete") as caught:
        ingested([str(public)], place, **how)
    assert repository.lookup_branch("main") == next(iter(repository.ancestry(branch="main"))).id
    # what the message says
    (name,) = re.findall(r"jobs\.delete\('([^']+)'\)", str(caught.value))
    repository.jobs.delete(name)
    assert ingested([str(public)], place, **how).added
    assert found_times(place) == [4, 5, 6, 7]


def test_a_scan_of_strangers(site: Site) -> None:
    """A branch may say that a file was scanned, and that its values are in others."""
    public = write_days(site.folder / "public" / "a.nc", 4)
    beside = site.folder / "public" / "raw"
    beside.write_bytes(CANARY * 10)
    place = MemoryStorage()
    repository = Repository.create(place)
    about = {
        "files": [str(public)],
        "appends": False,
        "locations": [public.as_uri()],
        "versions": [[-1, 0, "", 0, 0]],
    }
    branch = plant(repository, about)
    repository.create_branch(branch, repository.lookup_branch("main"))
    session = repository.writable_session(branch)
    root = zarr.create_group(session.store, path=branch)
    how: Any = {"dtype": "u1", "compressors": None, "dimension_names": ["time"]}
    root.create_array("time", shape=16, chunks=16, **how)
    session.store.set_virtual_ref(
        f"{branch}/time/c/0", beside.as_uri(), offset=0, length=16, validate_container=False
    )
    session.commit("planted")
    with pytest.raises(InvalidInputError, match=r"begun to copy .*public/raw, to which none"):
        ingested([str(public)], place, executor="sync")
    assert all(CANARY not in bytes(place.get(meta.key).data) for meta in place.list())


def plant(repository: Repository, about: dict[str, Any]) -> str:
    """Begin a copy into the root of the main branch, as another call would."""
    name = f"ingest-{copying._digest(['main', '/'])}-0"
    repository.jobs.create(f"{name}-files", branch="main", message="files", about=about)
    return name


def found_times(place: MemoryStorage) -> list[int]:
    session = Repository.open(place).readonly_session("main")
    array: Any = zarr.open_group(session.store, mode="r")["time"]
    return [int(value) for value in array[:]]


# -- what a server sends ---------------------------------------------------------------------
@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between tries."""
    monkeypatch.setattr("icechunk.storage.guarded_http.time.sleep", lambda seconds: None)


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str, no_waiting: None) -> None:
    with endless(*LIES[lie]) as server:
        with pytest.raises(IcechunkError):
            # what is cut is asked for again, after pauses that another process would make
            apart = lie != "whole, cut"
            virtualized([server.url + "/f.nc"], MemoryStorage(), isolate=apart)
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
