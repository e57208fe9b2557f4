"""Every kind of damage to every kind of object: verification names that object, and no other."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import IcechunkError, Repository, RepositoryConfig, local_filesystem_storage
from icechunk.format import layout
from icechunk.format.ids import INITIAL_SNAPSHOT_ID
from icechunk.repository.archive_tables import FIELD, Named, table_key
from icechunk.storage import LocalStorage
from icechunk.storage.base import Storage
from tests import reachability
from tests.data import golden_content
from tests.repository.damage import KINDS, damaged

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = Path(golden_content.__file__).parent
FIRST_LOG = layout.transaction_key(INITIAL_SNAPSHOT_ID)


def make(folder: Path, spec_version: int) -> None:
    """Make a repository with objects of all types: a job that goes on, a table of an archive."""
    config = RepositoryConfig(inline_chunk_threshold_bytes=8)
    storage = local_filesystem_storage(str(folder))
    repo = Repository.create(storage, config, spec_version=spec_version)
    name = "0" * 24
    options: Any = {zstd.CompressionParameter.checksum_flag: 1}
    table = zstd.compress(json.dumps({"version": 1, "x": "y" * 40}).encode(), options=options)
    storage.put(table_key(name), table)
    for i in range(4):
        with repo.transaction("main", message=f"commit {i}", metadata={"i": i}) as store:
            array = (
                zarr.create_array(store, name="a", shape=(6, 4), chunks=(1, 4), dtype="i4")
                if not i
                else zarr.open_array(store, path="a")
            )
            array[i : i + 2] = np.arange(8).reshape(2, 4) + i + 1
            if not i:
                document = json.loads(store.get_sync("a/zarr.json").to_bytes())
                document[FIELD] = Named(name, "a").field()
                buffer = store.get_sync("a/zarr.json").from_bytes(json.dumps(document).encode())
                store.set_sync("a/zarr.json", buffer)
        if i == 1:
            repo.create_tag("t", repo.lookup_branch("main"))
    cutoff = repo.lookup_snapshot(repo.resolve("main~1")).written_at
    if spec_version > 1:
        repo.expire_snapshots(cutoff)
    job = repo.jobs.create("j", message="parts")

    def work(store: Any, key: Any) -> None:
        if key < 0:
            raise ValueError("it does not work")
        zarr.open_array(store, path="a", mode="r+")[key] = key + 100

    job.run(work, keys=[3])
    job.publish()
    job.run(work, keys=[4, 5])
    for key in (-1, -2):
        with pytest.raises(IcechunkError, match="does not work"):
            job.run(work, keys=[key])


@pytest.fixture(scope="module", params=["ours 1", "ours 2", "v1", "v2", "migrated"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "repo"
    if request.param.startswith("ours"):
        make(folder, int(request.param[-1]))
    else:
        # made by the official client
        shutil.copytree(DATA / request.param / "repository", folder)
    repo = Repository.open(local_filesystem_storage(str(folder)))
    assert repo.verify(deep=True).damages == ()
    return folder


def problem_of(key: str, kind: str) -> str | None:
    """Return what a verification says of a damaged object that is needed; None for nothing."""
    type = key.partition("/")[0]
    if kind == "remove":
        is_optional = key == FIRST_LOG or "/attempts/" in key or "/parts/" in key
        if "/log/" in key:
            return None if key.endswith("1") else "unreadable"
        return None if is_optional else "missing"
    if type == "chunks":
        return "short" if kind in ("cut", "empty") else None
    if kind in ("cut", "empty", "flip"):
        return "unreadable"
    if type in ("snapshots", "manifests", "transactions"):
        return "unreadable"
    if type == "overwritten" and kind == "swap":
        return "inconsistent"
    if type == "jobs" and kind == "swap":
        return "unreadable" if "/log/" in key else "inconsistent"
    return None


def applies(key: str, kind: str) -> bool:
    if key.startswith(("refs/", "config")):
        return False  # see the tests of repair
    if kind == "id":
        return key.startswith(("snapshots", "manifests", "transactions"))
    return not (kind == "swap" and key == "repo")


def needed(folder: Path) -> list[str]:
    """Return all objects that something refers to."""
    storage = LocalStorage(folder)
    referred = reachability.needed(storage)
    keys = [
        meta.key
        for meta in storage.list()
        if meta.key in referred or not meta.key.startswith(reachability.FOLDERS)
    ]
    copies = {k for k in keys if k.startswith("overwritten/")}
    if copies and (folder / "repo").exists():
        from icechunk.repository.garbage import logged_copies

        copies = logged_copies(storage) or set()
    return [key for key in keys if not key.startswith("overwritten/") or key in copies]


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_named_and_nothing_else(original: Path, tmp_path: Path, kind: str) -> None:
    if kind == "flip" and not (original / "jobs").exists():
        pytest.skip("files of official clients have no checksum")
    folder = tmp_path / "copy"
    shutil.copytree(original, folder)
    repo = Repository.open(local_filesystem_storage(str(folder)))
    seen: dict[str, int] = {}
    for key in needed(original):
        type = key.partition("/")[0] + str("/log/" in key) + str("/parts/" in key)
        if not applies(key, kind) or seen.get(type, 0) >= (2 if kind == "remove" else 1):
            continue
        if not damaged(folder / key, kind):
            continue
        seen[type] = seen.get(type, 0) + 1
        found = repo.verify()
        (folder / key).write_bytes((original / key).read_bytes())
        expected = problem_of(key, kind)
        told = {(damage.problem, damage.key) for damage in found.damages}
        if "/log/" in key and expected:
            assert [damage.problem for damage in found.damages] == ["unreadable"], key
            assert key.rpartition("/")[0] in found.damages[0].key + "/", key
        else:
            assert told == ({(expected, key)} if expected else set()), key
        if expected and key.startswith(("snapshots/", "manifests/")):
            assert all(damage.snapshots for damage in found.damages)
    assert seen


def test_on_s3(original: Path, request: pytest.FixtureRequest) -> None:
    """The same on a server, with one damage of each type."""
    if original.parent.name.startswith("damage") and not (original / "jobs").exists():
        pytest.skip("one repository of each version is enough")
    storage: Storage = request.getfixturevalue("s3_server").storage()
    for key in [meta.key for meta in LocalStorage(original).list()]:
        storage.put(key, (original / key).read_bytes())
    repo = Repository.open(storage)
    assert repo.verify().damages == ()
    for type in ("snapshots/", "manifests/", "transactions/", "chunks/"):
        key = next(key for key in needed(original) if key.startswith(type) and key != FIRST_LOG)
        data = bytes(storage.get(key).data)
        for damage in ("remove", "cut"):
            storage.delete([key])
            if damage == "cut":
                storage.put(key, data[:-2])
            told = {(d.problem, d.key) for d in repo.verify().damages}
            assert told == {(problem_of(key, damage), key)}
        storage.put(key, data)
