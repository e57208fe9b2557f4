"""What goes wrong beside files: too little memory, mistakes of code, others who commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from icechunk import ConflictError, InvalidInputError, Repository, Session, StorageError
from icechunk.kerchunk.attributes import not_in_json
from icechunk_dask import Status, remove_files, virtualize
from icechunk_dask.archives import scan
from icechunk_dask.archives.failures import failure_of

FILES = 3


def days(folder: Path) -> list[Path]:
    paths = []
    for i in range(FILES):
        time = ("time", [float(i)], {"units": "days since 2000-01-01"})
        values = np.full((1, 3), i, "f4")
        paths.append(folder / f"{i}.nc")
        xr.Dataset({"v": (("time", "x"), values)}, {"time": time}).to_netcdf(paths[-1])
    return paths


def values(target: Path, folder: Path) -> list[float]:
    access = {f"{folder.as_uri()}/": None}
    dataset = xr.open_dataset(str(target), engine="icechunk", authorize_virtual_chunk_access=access)
    found: list[float] = dataset["v"][:, 0].values.tolist()
    return found


# -- while files are scanned -----------------------------------------------------------
@pytest.mark.parametrize("place", ["values", "check"])
def test_too_little_memory_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    files = days(tmp_path)

    def greedy(*_: Any, **__: Any) -> Any:
        raise MemoryError("Unable to allocate 1 TiB")

    target = (scan, "stored_texts") if place == "values" else (zarr, "open_array")
    monkeypatch.setattr(*target, greedy)
    with pytest.raises(InvalidInputError, match=r"too little memory.*nothing about the file"):
        virtualize(files[:1], tmp_path / "repo", scheduler="sync")


def test_mistakes_of_this_library_are_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = days(tmp_path)

    def wrong(dim: str, variable: Any) -> Any:
        # as a line of the library would do it
        return not_in_json(dim)  # type: ignore[arg-type]

    monkeypatch.setattr(scan, "extent_of", wrong)
    with pytest.raises(InvalidInputError, match=r"AttributeError.*attributes\.py.*please report"):
        virtualize(files[:1], tmp_path / "repo", scheduler="sync")


def test_what_a_file_is_to_blame_for_is_not_called_a_mistake(tmp_path: Path) -> None:
    for exc in (OSError("a"), ValueError("b"), InvalidInputError("c"), KeyError("of h5py")):
        assert "report" not in failure_of(exc)
    path = tmp_path / "damaged.nc"
    path.write_bytes(days(tmp_path)[0].read_bytes()[:-200])
    with pytest.raises(InvalidInputError) as info:
        virtualize([path], tmp_path / "repo", scheduler="sync")
    assert "report" not in str(info.value)


# -- at the commit ---------------------------------------------------------------------
@pytest.mark.parametrize("removes", [False, True])
def test_commits_of_others_elsewhere_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removes: bool
) -> None:
    files = days(tmp_path)
    target = tmp_path / "repo"
    virtualize(files[:2], target, group="a", scheduler="sync")
    commit = Session.commit
    others: list[str] = []

    def late(self: Session, *args: Any, **options: Any) -> str:
        if not others:
            other = Repository.open(str(target)).writable_session("main")
            zarr.create_array(other.store, name="b/c", shape=(3,), dtype="i4")
            others.append("b")
            commit(other, "others")
        return commit(self, *args, **options)

    monkeypatch.setattr(Session, "commit", late)
    if removes:
        remove_files(files[:1], target, group="a")
    else:
        virtualize(files, target, group="a", scheduler="sync")
    monkeypatch.undo()
    session = Repository.open(str(target)).readonly_session("main")
    assert session.tree.require("/b/c").is_array
    expected = [1.0] if removes else [0.0, 1.0, 2.0]
    access = {f"{tmp_path.as_uri()}/": None}
    found = xr.open_dataset(
        str(target), engine="icechunk", group="a", authorize_virtual_chunk_access=access
    )
    assert found["v"][:, 0].values.tolist() == expected


@pytest.mark.parametrize("change", ["append", "values", "deleted", "attributes"])
def test_changes_of_the_archive_by_others_are_not_overwritten(tmp_path: Path, change: str) -> None:
    files = days(tmp_path)
    target = tmp_path / "repo"
    virtualize(files[:1], target, scheduler="sync")

    def meanwhile(status: Status) -> None:
        if status.phase != "committing":
            return
        if change == "append":
            virtualize(files[:2], target, scheduler="sync")
            return
        session = Repository.open(str(target)).writable_session("main")
        array = zarr.open_array(session.store, path="v", mode="r+")
        if change == "values":
            array[0] = 7
        elif change == "attributes":
            array.attrs["a"] = 1
        else:
            session.delete_nodes("/v")
        session.commit(change)

    with pytest.raises(ConflictError, match=r"archive in / meanwhile.*Call again"):
        virtualize(files[1:], target, scheduler="sync", progress=meanwhile)


@pytest.mark.parametrize("failures", [2, 3])
def test_a_storage_that_fails_at_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    files = days(tmp_path)
    commit = Session.commit
    left = [failures]

    def failing(self: Session, *args: Any, **options: Any) -> str:
        if left[0]:
            left[0] -= 1
            raise StorageError("503: slow down")
        return commit(self, *args, **options)

    monkeypatch.setattr(Session, "commit", failing)
    if failures == 3:
        with pytest.raises(StorageError, match=r"503.*Nothing is committed.*call again"):
            virtualize(files, tmp_path / "repo", scheduler="sync")
    virtualize(files, tmp_path / "repo", scheduler="sync")
    assert values(tmp_path / "repo", tmp_path) == [0.0, 1.0, 2.0]
