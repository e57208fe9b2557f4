"""Reading asks for nothing but objects, and for few of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import ManifestConfig, ManifestPreloadConfig, Repository, RepositoryConfig
from icechunk.errors import IcechunkError, RepositoryNotFoundError, StorageError
from icechunk.storage import (
    CountingStorage,
    FaultyStorage,
    LocalStorage,
    MemoryStorage,
    Storage,
)
from tests.servers import S3Server

DATA = np.arange(200.0).reshape(2, 100)


def create(storage: Storage) -> None:
    """Make a repository with a stored config and an array with two native chunks."""
    config = RepositoryConfig(
        inline_chunk_threshold_bytes=0,
        # requests that are counted are those of the foreground
        manifest=ManifestConfig(preload=ManifestPreloadConfig(max_total_refs=0)),
    )
    repository = Repository.create(storage, config)
    with repository.transaction("main", message="an array") as store:
        array = zarr.create_array(store, name="a", data=DATA, chunks=(1, 100), compressors=None)
        assert array.shape == DATA.shape
    repository.create_tag("v1", repository.lookup_branch("main"))


def read(storage: Any) -> None:
    """Read the repository in every way that takes no listing."""
    repository = Repository.open(storage)
    snapshot = repository.lookup_branch("main")
    for version in ({"branch": "main"}, {"tag": "v1"}, {"snapshot_id": snapshot}):
        store = repository.readonly_session(**version).store
        np.testing.assert_array_equal(zarr.open_array(store, path="a", mode="r")[:], DATA)
    assert next(s.message for s in repository.ancestry(branch="main")) == "an array"
    assert repository.list_tags() == {"v1"}


class GetOnly(FaultyStorage):
    """A storage where nothing but getting objects is allowed."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        for operation in ("list", "put", "delete", "copy"):
            self.fail(operation, times=10**6)


def test_reading_gets_objects_and_does_nothing_else() -> None:
    storage = MemoryStorage()
    create(storage)
    read(GetOnly(storage))
    with pytest.raises(StorageError, match="injected: list"):
        list(GetOnly(storage).list())


def test_an_identity_that_may_only_get_objects(s3_server: S3Server) -> None:
    owner = s3_server.storage("get-only")
    create(owner)
    reader = s3_server.reader("get-only")
    for forbidden in (lambda: list(reader.list()), lambda: reader.put("k", b"x")):
        with pytest.raises(StorageError, match="credentials"):
            forbidden()
    before = {meta.key for meta in owner.list()}
    read(reader)
    assert {meta.key for meta in owner.list()} == before


#: Reads a folder as somebody who may neither list nor write it, whoever runs the tests.
_READER = """
import os, sys
from icechunk.storage import MemoryStorage
from tests.repository.test_access import create, read
# all modules are imported before
create(warm := MemoryStorage())
read(warm)
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
root = sys.argv[1]
for forbidden in (lambda: os.listdir(root), lambda: open(root + "/x", "w")):
    try:
        forbidden()
    except PermissionError:
        continue
    sys.exit("that should have been refused")
read(root)
"""


def test_a_folder_that_may_be_neither_listed_nor_written() -> None:
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        root = Path(top, "repo")
        create(LocalStorage(root))
        folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o111)
        try:
            done = subprocess.run(
                [sys.executable, "-c", _READER, str(root)],
                capture_output=True,
                text=True,
                check=False,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        finally:
            for folder in folders:
                folder.chmod(0o755)
        assert done.returncode == 0, done.stderr


def test_opening_what_does_not_exist_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        Repository.open(tmp_path / "a" / "b")
    assert not Repository.exists(tmp_path / "a" / "b")
    assert Repository.fetch_spec_version(str(tmp_path / "a")) is None
    assert list(tmp_path.iterdir()) == []


def test_a_refused_object_is_not_a_missing_repository(s3_server: S3Server) -> None:
    # services that hide what exists answer "forbidden" for missing objects too
    storage = s3_server.storage("none", access_key_id="nobody", secret_access_key="x" * 20)
    with pytest.raises(StorageError, match="credentials") as caught:
        Repository.open(storage)
    assert not isinstance(caught.value, RepositoryNotFoundError)
    assert isinstance(caught.value, IcechunkError)


# -- how many requests -----------------------------------------------------------------
def test_requests_before_the_first_chunk() -> None:
    storage = CountingStorage(MemoryStorage())
    create(storage)
    storage.reset()
    repository = Repository.open(storage)
    assert storage.requests == 1  # the repo info

    session = repository.readonly_session("main")
    assert storage.requests == 3  # whether it changed, and the snapshot

    array = zarr.open_array(session.store, path="a", mode="r")
    assert storage.requests == 3
    np.testing.assert_array_equal(array[0], DATA[0])
    assert storage.requests == 5  # the manifest, and the chunk
    np.testing.assert_array_equal(array[1], DATA[1])
    assert storage.requests == 6


def test_requests_of_later_sessions() -> None:
    storage = CountingStorage(MemoryStorage())
    create(storage)
    repository = Repository.open(storage)
    zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")[:]
    storage.reset()
    array = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")
    assert storage.requests == 1  # whether the repo info changed
    array[:]
    assert storage.requests == 3  # snapshot and manifest are known, the chunks are not
