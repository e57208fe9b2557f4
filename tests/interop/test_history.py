"""Unusual histories that the official client leaves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zarr

from icechunk import LocalStorage, Repository
from icechunk.format.repo_info import decode_repo_info, encode_repo_info
from tests.data import golden_content as content
from tests.histories import commit_at_once
from tests.interop.sides import Official, Ours, Side
from tests.interop.summary import Summary

DATA = Path(content.__file__).parent
#: Chunk keys of a wrong rank: the official client logs all of them.
KEYS = ["a/c/0", "a/c/0/0", "a/c/3", "a/c", "m/c/1", "m/c/1/1"]


@pytest.fixture(scope="module")
def base(official: Official, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the official client made of `base.write_base`."""
    folder = str(tmp_path_factory.mktemp("history") / "base")
    official.run("create_base", folder)
    return folder


@pytest.mark.parametrize("row,conflict", [(0, True), (5, False)])
def test_coordinates_of_several_ranks(
    row: int, conflict: bool, base: str, ours: Ours, official: Official, tmp_path: Path
) -> None:
    folder = tmp_path / "deleted"
    official.run("history.delete_keys", base, str(folder), KEYS)

    def gone_on(side: Side) -> tuple[object, object]:
        copy = tmp_path / side.name
        shutil.copytree(folder, copy)
        return side.run("history.carry_on", str(copy), row), Summary(copy).everything()

    (mine, my_summary), (theirs, their_summary) = gone_on(ours), gone_on(official)
    assert mine == theirs
    assert isinstance(mine, dict)
    assert bool(mine["conflicts"]) is conflict
    assert {len(coordinate) for coordinate in mine["diffs"][0]["/a"]} == {0, 1, 2}
    assert my_summary == their_summary


# -- what both say about stored objects -----------------------------------------------------
def assert_same(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compare what both say about all objects, one by one."""
    assert mine.keys() == theirs.keys()
    for kind in ("snapshots", "manifests", "transactions"):
        assert mine[kind].keys() == theirs[kind].keys()
        for key, found in theirs[kind].items():
            assert mine[kind][key] == found
    assert mine.get("repo") == theirs.get("repo")


@pytest.mark.parametrize("name", ["v1", "v2", "migrated"])
def test_both_inspect_alike(name: str, ours: Ours, official: Official, tmp_path: Path) -> None:
    folder = str(tmp_path / name)
    shutil.copytree(DATA / name / "repository", folder)
    assert_same(ours.run("history.inspect", folder), official.run("history.inspect", folder))


def test_both_inspect_what_is_written_here(ours: Ours, official: Official, tmp_path: Path) -> None:
    folder = str(tmp_path / "repository")
    ours.run("write", folder, str(tmp_path))
    assert_same(ours.run("history.inspect", folder), official.run("history.inspect", folder))


def test_both_inspect_commits_that_shared_a_put(
    ours: Ours, official: Official, tmp_path: Path
) -> None:
    """And the official client goes on. Some copies of the repo info were never the current one."""
    folder = str(tmp_path)
    repository = Repository.create(LocalStorage(tmp_path))
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(4,), chunks=(1,), dtype="i4")
    sessions = [repository.writable_session("main") for _ in range(3)]
    for number, session in enumerate(sessions, 1):
        zarr.open_array(session.store, path="a", mode="r+")[number] = number
    commit_at_once(repository, sessions)
    theirs = official.run("history.inspect", folder)
    assert_same(ours.run("history.inspect", folder), theirs)
    assert len(theirs["repo"]["latest_updates"]) == 5
    official.run("maintenance.commit_and_collect", folder, "a")
    array: Any = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")
    assert array[:].tolist() == [7, 1, 2, 3]
    assert repository.verify(deep=True).ok


def test_both_inspect_refs_and_settings(
    base: str, ours: Ours, official: Official, tmp_path: Path
) -> None:
    folder = str(tmp_path / "repository")
    official.run("operate", base, folder, "refs_and_settings")
    # logs of expired commits, of which one is lost
    lost = ours.run("history.expire_all_but_two", folder)
    Path(folder, "transactions", lost).unlink()
    theirs = official.run("history.inspect", folder)
    assert_same(ours.run("history.inspect", folder), theirs)
    (composite,) = (
        log["synthetic_composite"]
        for log in theirs["transactions"].values()
        if "synthetic_composite" in log
    )
    assert composite["missing_tx_logs"] == [lost]
    assert composite["merged_pruned_ancestor_tx_logs"]


def test_times_as_short_as_possible(ours: Ours, official: Official, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    ours.run("create_base", str(folder))
    repo = folder / "repo"
    info = decode_repo_info(repo.read_bytes(), "repo")
    times = (1_700_000_001_000_001, 1_700_000_001_000_000, 1_700_000_000_120_000, 10, 0)
    updates = tuple(
        replace(info.updates[0], updated_at=time, backup=f"repo.{i}" if i else None)
        for i, time in enumerate(times)
    )
    repo.write_bytes(encode_repo_info(replace(info, updates=updates)))
    mine, theirs = (side.run("history.inspect", str(folder))["repo"] for side in (ours, official))
    assert mine == theirs
    assert len(mine["latest_updates"]) == len(times)


# of spec version 1 the official client does not find branches with unusual names
@pytest.mark.parametrize("name", ["v2", "migrated"])
def test_both_draw_golden_histories_alike(
    name: str, ours: Ours, official: Official, tmp_path: Path
) -> None:
    folder = str(tmp_path / name)
    shutil.copytree(DATA / name / "repository", folder)
    assert ours.run("history.draw", folder) == official.run("history.draw", folder)


def test_both_draw_alike(base: str, ours: Ours, official: Official, tmp_path: Path) -> None:
    folder = str(tmp_path / "repository")
    shutil.copytree(base, folder)
    ours.run("history.branch_out", folder)
    assert ours.run("history.draw", folder) == official.run("history.draw", folder)
