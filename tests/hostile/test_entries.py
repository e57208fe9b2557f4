"""One table of attacks, through every way to open a repository, on every storage.

Each row is a repository that somebody else wrote, and what its reader allowed. Nothing of it
may lead to what the reader did not allow: every read ends with an error of this library, and
the server with the secret is not asked.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner

from icechunk import (
    MemoryStorage,
    Repository,
    RepositoryConfig,
    VirtualChunkContainer,
    http_storage,
    http_store,
    local_filesystem_store,
    s3_store,
)
from icechunk.cli.app import main
from icechunk.errors import IcechunkError
from icechunk.kerchunk import import_references
from icechunk.storage import Storage
from tests.storages import new_storage
from tests.web_server import WebServer, serving

CANARY = b"never to be read"


class Attack(NamedTuple):
    """What the repository stores, what its chunk refers to, and what the reader allowed."""

    containers: Callable[[str, Path], list[VirtualChunkContainer]]
    location: str
    allowed: tuple[str, ...]


def web_container(path: str, name: str | None = None, **options: Any) -> Any:
    return lambda web, folder: [VirtualChunkContainer(web + path, http_store(**options), name)]


def s3_container(endpoint: str, **options: Any) -> Any:
    return lambda web, folder: [
        VirtualChunkContainer(
            "s3://public/",
            s3_store(endpoint_url=endpoint.format(web[:-1]), allow_http=True, **options),
        )
    ]


def file_container(path: str, name: str | None = None) -> Any:
    return lambda web, folder: [
        VirtualChunkContainer(f"{folder.as_uri()}/{path}", local_filesystem_store("/"), name)
    ]


#: ``{web}`` is the URL of a server, with its slash, and ``{folder}`` that of a folder.
ATTACKS = {
    "an endpoint": Attack(s3_container("{}", anonymous=True), "s3://public/f", ("s3://public/",)),
    "an endpoint with a path": Attack(
        s3_container("{}/private", anonymous=True), "s3://public/f", ("s3://public/",)
    ),
    "an endpoint, signed": Attack(s3_container("{}"), "s3://public/f", ("s3://public/",)),
    "dots in a location": Attack(
        web_container("public/"), "{web}public/../private/f", ("{web}public/",)
    ),
    "encoded dots in a location": Attack(
        web_container("public/"), "{web}public/%252e%252e/private/f", ("{web}public/",)
    ),
    "dots in a prefix": Attack(
        web_container("public/../private/"), "{web}public/../private/f", ("{web}public/",)
    ),
    "dots in a named prefix": Attack(
        web_container("public/..%2fprivate/", "n"), "vcc://n/f", ("{web}public/",)
    ),
    "a prefix beside": Attack(
        web_container("public-private/"), "{web}public-private/f", ("{web}public/",)
    ),
    "a host header": Attack(
        web_container("public/", headers={"Host": "internal"}), "{web}public/f", ("{web}public/",)
    ),
    "a header of a proxy": Attack(
        web_container("public/", headers={"X-Original-URL": "/private/f"}),
        "{web}public/f",
        ("{web}public/",),
    ),
    "certificates": Attack(
        web_container("public/", opts={"allow_invalid_certificates": "true"}),
        "{web}public/f",
        ("{web}public/",),
    ),
    "a redirect": Attack(web_container("public/"), "{web}public/r", ("{web}public/",)),
    "a link": Attack(file_container("in/"), "{folder}/in/leak", ("{folder}/in/",)),
    "a link to a folder": Attack(file_container("in/"), "{folder}/in/leaks/f", ("{folder}/in/",)),
    "a prefix behind a link": Attack(
        file_container("in/leaks/", "n"), "vcc://n/f", ("{folder}/in/",)
    ),
    "a pipe": Attack(file_container("in/"), "{folder}/in/pipe", ("{folder}/in/",)),
    "nothing allowed": Attack(file_container("in/"), "{folder}/in/f", ()),
    "no container": Attack(lambda web, folder: [], "{folder}/in/f", ("{folder}/in/",)),
}


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving() as server:
        for path in ("/private/f", "/public/f", "/private/public/f", "/public-private/f"):
            server.files[path] = CANARY
        server.redirects["/public/r"] = server.url + "private/f"
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files" / "in").mkdir(parents=True)
    (tmp_path / "files" / "out").mkdir()
    for name in ("in", "out"):
        (tmp_path / "files" / name / "f").write_bytes(CANARY)
    (tmp_path / "files" / "in" / "leak").symlink_to("../out/f")
    (tmp_path / "files" / "in" / "leaks").symlink_to("../out")
    os.mkfifo(tmp_path / "files" / "in" / "pipe")
    return tmp_path / "files"


def written(attack: Attack, web: WebServer, folder: Path, place: Storage) -> dict[str, Any]:
    """Write the repository as its author would; return what its reader allows."""
    containers = attack.containers(web.url, folder)
    stored = RepositoryConfig(virtual_chunk_containers={c.url_prefix: c for c in containers})
    validate = RepositoryConfig.validate
    try:
        RepositoryConfig.validate = lambda self: None  # type: ignore[method-assign]
        repository = Repository.create(place, stored)
    finally:
        RepositoryConfig.validate = validate  # type: ignore[method-assign]
    names = {"web": web.url, "folder": folder.as_uri()}
    with repository.transaction("main", message="bait") as store:
        zarr.create_group(store)
        zarr.create_array(
            store,
            name="a",
            shape=16,
            chunks=16,
            dtype="u1",
            compressors=None,
            dimension_names=["x"],
        )
        store.set_virtual_ref(
            "a/c/0", attack.location.format(**names), offset=0, length=16, validate_container=False
        )
    return {prefix.format(**names): None for prefix in attack.allowed}


def by_session(place: Storage, allowed: dict[str, Any]) -> Any:
    session = Repository.open(place, authorize_virtual_chunk_access=allowed).readonly_session(
        "main"
    )
    return zarr.open_array(session.store, path="a", mode="r")[:]


def by_pickle(place: Storage, allowed: dict[str, Any]) -> Any:
    repository = Repository.open(place, authorize_virtual_chunk_access=allowed)
    session = pickle.loads(pickle.dumps(repository.readonly_session("main")))
    return zarr.open_array(session.store, path="a", mode="r")[:]


def by_writing(place: Storage, allowed: dict[str, Any]) -> Any:
    repository = Repository.open(place, authorize_virtual_chunk_access=allowed)
    return zarr.open_array(repository.writable_session("main").store, path="a", mode="r+")[:]


def by_engine(place: Storage, allowed: dict[str, Any]) -> Any:
    with xr.open_dataset(
        place, engine="icechunk", authorize_virtual_chunk_access=allowed
    ) as dataset:
        return dataset["a"].values


def by_dask(place: Storage, allowed: dict[str, Any]) -> Any:
    with xr.open_dataset(
        place, engine="icechunk", chunks={}, authorize_virtual_chunk_access=allowed
    ) as dataset:
        return dataset["a"].data.compute(scheduler="synchronous")


def by_command(place: Storage, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Run each command that reads; nobody can allow it anything."""
    monkeypatch.setattr("icechunk.cli.options._storage", lambda repo, options: place)
    numbers = str(np.frombuffer(CANARY, "u1")[:3])[1:-1]
    target = folder / "references.json"
    lines = (
        ["cat", "R", "a", "-c", "0"],
        ["verify", "R", "--sources", "--deep", "all", "--json"],
        ["export", "R", str(target)],
        *([command, "R", *more] for command, *more in (["tree"], ["chunks", "a"], ["info"])),
    )
    for line in lines:
        result = CliRunner().invoke(main, line)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert CANARY.decode() not in result.output and numbers not in result.output
        assert line[0] != "cat" or (result.exit_code == 1 and "chunk" in result.output)
    assert not target.exists() or CANARY not in target.read_bytes()


def by_maintenance(place: Storage, allowed: dict[str, Any]) -> None:
    """Do what goes through all references of a repository; it never reads what they refer to."""
    repository = Repository.open(place, authorize_virtual_chunk_access=allowed)
    repository.verify(sources=True, deep=True)
    old = {meta.key for meta in place.list()}
    repository.rewrite_manifests("anew", branch="main")
    repository.chunk_storage_stats()
    repository.expire_snapshots(datetime.now(UTC))
    repository.garbage_collect(datetime.now(UTC))
    for meta in place.list():
        if meta.key not in old:
            assert CANARY not in bytes(place.get(meta.key).data)


ENTRIES = (by_session, by_pickle, by_writing, by_engine, by_dask)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", ["memory", "local", "s3", "http"])
def test_attacks(
    attack: str,
    kind: str,
    web: WebServer,
    folder: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    place = MemoryStorage() if kind == "http" else new_storage(kind, request)
    allowed = written(ATTACKS[attack], web, folder, place)
    if kind == "http":
        for meta in place.list():
            web.files[f"/repository/{meta.key}"] = bytes(place.get(meta.key).data)
        place = http_storage(web.url + "repository")
    for entry in ENTRIES:
        if entry is by_writing and kind == "http":
            continue
        with pytest.raises(IcechunkError) as caught:
            entry(place, allowed)
        assert "chunk" in str(caught.value)
    by_command(place, monkeypatch, tmp_path)
    if kind != "http":
        by_maintenance(place, allowed)
    asked = {path for path, _ in web.requests if not path.startswith("/repository")}
    # a redirect is asked for, and not followed
    assert asked <= {"/public/r"}


#: What a location does by itself, whatever its container stores.
BY_LOCATION = [
    name
    for name in ATTACKS
    if any(word in name for word in ("location", "link", "redirect", "pipe"))
]


@pytest.mark.parametrize("attack", BY_LOCATION)
def test_attacks_by_references(
    attack: str, web: WebServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """References of a stranger, imported into a repository of one's own."""
    row = ATTACKS[attack]
    names = {"web": web.url, "folder": folder.as_uri()}
    allowed = {prefix.format(**names): None for prefix in row.allowed}
    config = RepositoryConfig()
    for prefix in allowed:
        store: Any = local_filesystem_store("/") if prefix.startswith("file") else http_store()
        config.set_virtual_chunk_container(VirtualChunkContainer(prefix, store))
    array = {
        "zarr_format": 2,
        "shape": [16],
        "chunks": [16],
        "dtype": "|u1",
        "compressor": None,
        "filters": None,
        "fill_value": 0,
        "order": "C",
    }
    location = row.location.format(**names)
    refs = {
        ".zgroup": '{"zarr_format":2}',
        "a/.zarray": json.dumps(array),
        "a/0": [location, 0, 16],
    }
    place = MemoryStorage()
    session = Repository.create(place, config, allowed).writable_session("main")
    with pytest.raises(IcechunkError):
        import_references(refs, session)
        zarr.open_array(session.store, path="a", mode="r")[:]
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    monkeypatch.setattr("icechunk.cli.options._storage", lambda repo, options: place)
    result = CliRunner().invoke(main, ["import-kerchunk", "R", str(tmp_path / "refs.json")])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if result.exit_code == 0:
        by_command(place, monkeypatch, tmp_path)
    assert {path for path, _ in web.requests} <= {"/public/r"}
