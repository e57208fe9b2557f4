"""Garbage collection and the tables of archives: what a version names stays."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from icechunk import Repository
from icechunk.repository.archive_tables import Named
from icechunk_dask import remove_files, virtualize


def days(folder: Path, count: int) -> list[Path]:
    paths = []
    for i in range(count):
        time = ("time", [float(i)], {"units": "days since 2000-01-01"})
        paths.append(folder / f"{i}.nc")
        xr.Dataset({"v": (("time", "x"), np.full((1, 3), i, "f4"))}, {"time": time}).to_netcdf(
            paths[-1]
        )
    return paths


def tables(target: Path) -> set[str]:
    return {path.name for path in (target / "archives").iterdir()}


def named(repository: Repository, **version: str) -> set[str]:
    """Return the tables that arrays of a version name."""
    session = repository.readonly_session(**version)
    found = set()
    for node in session.tree.nodes():
        field = json.loads(node.user_data).get("icechunk_archive")
        if field is not None:
            found.add(field["table"])
    return found


def now() -> datetime:
    # the clock of a file system ticks
    return datetime.now(UTC) + timedelta(seconds=2)


@pytest.mark.parametrize("group", ["/", "a/b"])
def test_superseded_tables_are_deleted(tmp_path: Path, group: str) -> None:
    target = tmp_path / "repo"
    files = days(tmp_path, 4)
    for count in (1, 2, 3):
        virtualize(files[:count], target, group=group, scheduler="sync")
        if count == 1:
            Repository.open(str(target)).create_tag(
                "first", Repository.open(str(target)).lookup_branch("main")
            )
    virtualize(files[:2], target, group="another", scheduler="sync")
    others = [target / "archives" / name for name in ("notes.txt", "f" * 23, "f" * 25)]
    for path in others:
        path.write_text("kept")
    repository = Repository.open(str(target))
    before = tables(target)
    newest, first = named(repository, branch="main"), named(repository, tag="first")
    assert (len(before), len(newest), len(first)) == (4 + len(others), 2, 1)
    # all versions are there: nothing goes
    assert repository.garbage_collect(now()).bytes_deleted == 0
    assert tables(target) == before
    repository.expire_snapshots(now())
    # too young, and only counted
    repository.garbage_collect(datetime.now(UTC) - timedelta(days=1))
    summary = repository.garbage_collect(now(), dry_run=True)
    assert tables(target) == before
    again = repository.garbage_collect(now())
    assert again.bytes_deleted == summary.bytes_deleted
    kept = {path.name for path in others}
    assert tables(target) - kept == newest | first
    assert kept <= tables(target)
    # and the archive goes on
    report = virtualize(files, target, group=group, scheduler="sync")
    assert (len(report.already), len(report.added)) == (3, 1)
    remove_files(files[:1], target, group=group)
    repository = Repository.open(str(target))
    repository.delete_tag("first")
    repository.expire_snapshots(now())
    repository.garbage_collect(now())
    assert tables(target) - kept == named(repository, branch="main")


def test_tables_of_sessions_that_have_not_committed_stay(tmp_path: Path) -> None:
    """They are as young as the session."""
    target = tmp_path / "repo"
    files = days(tmp_path, 2)
    virtualize(files[:1], target, scheduler="sync")
    (target / "archives" / ("0" * 24)).write_bytes(b"of a session")
    Repository.open(str(target)).garbage_collect(datetime.now(UTC) - timedelta(seconds=60))
    assert "0" * 24 in tables(target)
    Repository.open(str(target)).garbage_collect(now())
    assert "0" * 24 not in tables(target)


@pytest.mark.parametrize(
    ("order", "old"),
    [
        (("/", "/a", "/a/b"), False),
        (("/a/b", "/", "/a"), False),
        (("/a", "/a/b", "/"), False),
        (("/", "/a", "/a/b"), True),
    ],
)
def test_archives_within_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...], old: bool
) -> None:
    """Each has its own table, also where an earlier version has not said whose it is."""
    target = tmp_path / "repo"
    files = days(tmp_path, 4)
    if old:
        monkeypatch.setattr(
            Named, "field", lambda self: {"must_understand": False, "table": self.table}
        )
    for count, group in enumerate(order, 1):
        assert virtualize(files[:count], target, group=group, scheduler="sync").added
    for count, group in enumerate(order, 1):
        report = virtualize(files, target, group=group, scheduler="sync")
        assert (len(report.already), len(report.added)) == (count, 4 - count)
        found = xr.open_dataset(
            str(target),
            engine="icechunk",
            group=group,
            authorize_virtual_chunk_access={f"{tmp_path.as_uri()}/": None},
        )
        assert found["v"].values[:, 0].tolist() == [0, 1, 2, 3]
