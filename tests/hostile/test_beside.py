"""What lies beside a repository: programs and passwords of the user, files with another name."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zarr

from icechunk import (
    MemoryStorage,
    Repository,
    RepositoryConfig,
    StorageRetriesSettings,
    StorageSettings,
    VirtualChunkContainer,
    local_filesystem_storage,
    s3_store,
)
from icechunk.changes.codec import decode_change_set, encode_change_set
from icechunk.credentials import s3_credentials
from icechunk.errors import IcechunkError


def test_no_program_runs_for_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile may name one; a stored container may not make it run."""
    (tmp_path / ".aws").mkdir()
    mark = tmp_path / "ran"
    (tmp_path / ".aws" / "config").write_text(f"[default]\ncredential_process = touch {mark}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    prefix = "s3://public/"
    store = s3_store(region="us-east-1")
    config = RepositoryConfig()
    config.set_virtual_chunk_container(VirtualChunkContainer(prefix, store))
    place = MemoryStorage()
    with Repository.create(place, config).transaction("main", message="bait") as written:
        zarr.create_array(written, name="a", shape=16, chunks=16, dtype="u1", compressors=None)
        written.set_virtual_ref("a/c/0", prefix + "f", offset=0, length=16)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    quick = RepositoryConfig(storage=StorageSettings(retries=StorageRetriesSettings(max_tries=1)))
    anonymous: Any = s3_credentials(anonymous=True)
    own: Any = s3_credentials(from_env=True)
    for allowed in ({}, {"s3://other/": own}, {prefix: anonymous}, {prefix: own}):
        assert not mark.exists()
        with pytest.raises(IcechunkError):
            session = Repository.open(place, quick, allowed).readonly_session("main")
            session.virtual.fetch(prefix + "f", 0, 16)
    # the last one is the word of the user
    assert mark.exists()


def test_hard_links(tmp_path: Path) -> None:
    """Objects are replaced, never written into: what has another name elsewhere stays."""
    place = local_filesystem_storage(str(tmp_path / "repository"))
    repository = Repository.create(place)
    with repository.transaction("main", message="m") as store:
        zarr.create_array(store, name="a", shape=4, chunks=2, dtype="u1")[:] = 1
    files = [path for path in (tmp_path / "repository").rglob("*") if path.is_file()]
    (tmp_path / "outside").mkdir()
    kept = {}
    for number, path in enumerate(files):
        outside = tmp_path / "outside" / str(number)
        os.link(path, outside)
        kept[outside] = path.read_bytes()
    with repository.transaction("main", message="n") as store:
        zarr.open_array(store, path="a")[:] = 2
    repository.expire_snapshots(datetime.now(UTC))
    repository.garbage_collect(datetime.now(UTC))
    assert {path: path.read_bytes() for path in kept} == kept


def test_nodes_with_one_id(tmp_path: Path) -> None:
    """Of a change set whose nodes have the id of another one, or of each other."""
    for same in (True, False):
        place = MemoryStorage()
        repository = Repository.create(place)
        with repository.transaction("main", message="m") as store:
            zarr.create_array(store, name="a", shape=4, chunks=2, dtype="u1")[:] = 1
        session = repository.writable_session("main")
        id = session.tree.get("/a").id  # type: ignore[union-attr]
        fork = session.fork()
        for name in ("b", "c"):
            zarr.create_array(fork.store, name=name, shape=4, chunks=2, dtype="u1")[:] = 7
        changes = decode_change_set(fork.change_set_bytes())
        ids = [node.id for node in changes.new_nodes.values()]
        for path, node in list(changes.new_nodes.items()):
            changes.new_nodes[path] = replace(node, id=ids[0] if same else id)
        with suppress(IcechunkError):
            session.merge_change_sets([encode_change_set(changes)])
            session.commit("hostile")
        read = Repository.open(place).readonly_session("main").store
        assert zarr.open_array(read, path="a", mode="r")[:].tolist() == [1] * 4
