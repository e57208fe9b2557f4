"""Mistakes of the first day, and what their errors say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import xarray as xr
import zarr

from icechunk import (
    InvalidInputError,
    NodeNotFoundError,
    RefNotFoundError,
    Repository,
    RepositoryNotFoundError,
    in_memory_storage,
)
from icechunk.storage.wrappers import WrapperStorage


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository in the folder ``repo`` of the working directory, beside other things."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    repo = Repository.create("repo")
    session = repo.writable_session("main")
    zarr.create_group(session.store, path="group")
    session.commit("A group")
    zarr.create_array("plain.zarr", shape=4, dtype="f8")
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf("file.nc", engine="h5netcdf")
    Path("classic.nc").write_bytes(b"CDF\x01")
    Path("file.grib").write_bytes(b"GRIB")
    Path("notes.txt").write_text("notes")
    Path("empty").mkdir()
    shutil.make_archive("packed", "zip", "repo")
    return repo


ELSEWHERE = {
    "plain.zarr": "is a plain Zarr store, not an Icechunk repository: open it with engine='zarr'",
    "file.nc": "is a NetCDF or HDF5 file: icechunk_dask.virtualize",
    "classic.nc": "is a NetCDF file: icechunk_dask.virtualize",
    "file.grib": "is a GRIB file: icechunk_dask.virtualize",
    "packed.zip": "is a zip archive: unpack it",
    "notes.txt": "is a file, and a repository is a folder",
    "repo/group": "repo is one: open that, and name the group 'group'",
    "repo/group/inner": "repo is one: open that, and name the group 'group/inner'",
    "repo/snapshots": "repo is one: open that$",
    ".": "is no repository, but there are some in it: .*repo$",
    "empty": "create one with Repository.create",
    "nothing/here": "create one with Repository.create",
}


@pytest.mark.parametrize("path", ELSEWHERE)
def test_where_there_is_no_repository(repo: Repository, path: str) -> None:
    """The error says what is there, in each way to open."""
    ways: list[Callable[[], Any]] = [
        lambda: Repository.open(path),
        lambda: Repository.open(Path(path)),
        lambda: Repository.open_readonly_session(path, "main"),
        lambda: xr.open_dataset(path, engine="icechunk"),
    ]
    for way in ways:
        with pytest.raises(RepositoryNotFoundError, match=ELSEWHERE[path]) as caught:
            way()
        assert str(caught.value).startswith("the repository doesn't exist")


def test_what_is_advised_works(repo: Repository) -> None:
    assert zarr.open_array("plain.zarr", mode="r").shape == (4,)
    assert list(xr.open_dataset("repo", engine="icechunk", group="group")) == []


def test_memory(repo: Repository) -> None:
    Repository.create(in_memory_storage())
    with pytest.raises(RepositoryNotFoundError, match="is a memory of its own"):
        Repository.open(in_memory_storage())
    with pytest.raises(RepositoryNotFoundError, match="create one with"):
        Repository.open("memory://named")


class Recorder(WrapperStorage):
    """Notes what is asked for."""

    asked: ClassVar[list[str]] = []

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        self.asked.extend(keys)


def test_only_a_failure_looks_for_other_things() -> None:
    Recorder.asked.clear()
    storage = Recorder(in_memory_storage())
    Repository.open_or_create(storage).readonly_session("main")
    Repository.open(storage)
    assert Recorder.asked and "zarr.json" not in Recorder.asked
    with pytest.raises(RepositoryNotFoundError):
        Repository.open(Recorder(in_memory_storage()))
    assert "zarr.json" in Recorder.asked


def test_home(repo: Repository, tmp_path: Path) -> None:
    """``~`` is the home directory, as in xarray and in shells; ``./~`` is a folder."""
    Repository.create("~/mine")
    assert Repository.exists(tmp_path / "mine")
    assert Repository.exists(Path("~/mine"))
    with pytest.raises(NodeNotFoundError, match=f"{tmp_path}/mine"):  # it has no groups yet
        xr.open_dataset("~/mine", engine="icechunk")
    Repository.create("./~")
    assert (tmp_path / "~/repo").exists()


CALLS: list[tuple[Callable[[Repository], Any], type[Exception], str]] = [
    (lambda r: r.readonly_session(r.lookup_branch("main")), RefNotFoundError, "pass snapshot_id="),
    (lambda r: r.readonly_session(r.lookup_branch("main")[:8]), RefNotFoundError, "snapshot_id="),
    (lambda r: Repository("repo"), InvalidInputError, "use Repository.open, create"),
    (lambda r: Repository.open("repo", config={"a": 1}), InvalidInputError, "config is a dict"),
    (lambda r: Repository.create("x", config={}), InvalidInputError, "must be a RepositoryConfig"),
    (lambda r: Repository.open(r), InvalidInputError, "a Repository is not a storage"),
    (
        lambda r: Repository.open(r.readonly_session("main").store),
        InvalidInputError,
        "an IcechunkStore is not a storage",
    ),
    (lambda r: r.garbage_collect(timedelta(days=3)), InvalidInputError, "now.UTC. - timedelta"),
    (lambda r: r.expire_snapshots(np.timedelta64(3, "D")), InvalidInputError, "now.UTC. - timed"),
    # Python's errors name the class that was called, as those of the official client
    (lambda r: r.ancestry("main"), TypeError, r"^Repository\.ancestry\(\)"),
    (lambda r: r.readonly_session(snapshot="x"), TypeError, r"^Repository\.readonly_session\(\)"),
    (lambda r: r.create_branch("x"), TypeError, r"^Repository\.create_branch\(\)"),
    (lambda r: r.garbage_collect(), TypeError, r"^Repository\.garbage_collect\(\)"),
    (lambda r: r.transaction("main"), TypeError, r"^Repository\.transaction\(\)"),
    (lambda r: Repository.open("az://c/p"), InvalidInputError, "pass account=..., the name"),
    (lambda r: r.writable_session("main").commit(), TypeError, r"^Session\.commit\(\)"),
]


@pytest.mark.parametrize("given", [True, "file:///", ["file:///"]])
def test_authorization(repo: Repository, given: Any) -> None:
    ways: list[Callable[[], Any]] = [
        lambda: Repository.open("repo", authorize_virtual_chunk_access=given),
        lambda: repo.reopen(authorize_virtual_chunk_access=given),
        lambda: xr.open_dataset("repo", engine="icechunk", authorize_virtual_chunk_access=given),
    ]
    for way in ways:
        with pytest.raises(InvalidInputError, match="must map prefixes to credentials"):
            way()


@pytest.mark.parametrize(("call", "kind", "words"), CALLS)
def test_calls(
    repo: Repository, call: Callable[[Repository], Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        call(repo)
