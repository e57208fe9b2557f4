"""Histories that are unusual, as one side leaves them to the other."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zarr
from zarr.core.sync import sync

import icechunk


def _open(folder: str) -> Any:
    return icechunk.Repository.open(icechunk.local_filesystem_storage(folder))


def delete_keys(base: str, folder: str, keys: list[str]) -> None:
    """Delete some keys in a copy of the base, and commit."""
    shutil.copytree(base, folder)
    session = _open(folder).writable_session("main")
    for key in keys:
        sync(session.store.delete(key))
    session.commit("deleted")


def carry_on(folder: str, row: int) -> dict[str, Any]:
    """Diff the newest commit, rebase a change of ``/a`` over it, and amend the result.

    Returns
    -------
    dict
        The diffs, and the coordinates that the rebase found to be in conflict.
    """
    repo = _open(folder)
    before, deleted = (entry.id for entry in list(repo.ancestry(branch="main"))[1::-1])
    repo.create_branch("aside", before)
    session = repo.writable_session("aside")
    zarr.open_group(session.store, mode="r+")["a"][row] = 50
    repo.reset_branch("aside", deleted)
    conflicts: Any = []
    try:
        session.rebase(icechunk.ConflictDetector())
    except icechunk.RebaseFailedError as error:
        conflicts = [[each.path, each.conflicted_chunks] for each in error.conflicts]
        session.rebase(icechunk.BasicConflictSolver())
    session.commit("rebased")
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="r+")["a"][row] = 51
    session.amend("amended")
    diffs = [
        repo.diff(from_snapshot_id=before, to_snapshot_id=deleted),
        repo.diff(from_snapshot_id=before, to_branch="aside"),
        repo.diff(from_snapshot_id=before, to_branch="main"),
    ]
    return {"diffs": [diff.updated_chunks for diff in diffs], "conflicts": conflicts}


def inspect(folder: str) -> dict[str, Any]:
    """Return what is said about every object of a repository, through JSON."""
    repo = _open(folder)

    def each(kind: str, look: Any) -> dict[str, Any]:
        # locks of conditional puts have a "#"
        paths = [path for path in Path(folder, kind).glob("*") if "#" not in path.name]
        return {path.name: look(path.name) for path in sorted(paths)}

    found = {
        "snapshots": each("snapshots", repo.inspect_snapshot),
        "manifests": each("manifests", repo.inspect_manifest),
        "transactions": each("transactions", repo.inspect_transaction_log),
    }
    if Path(folder, "repo").exists():
        found["repo"] = repo.inspect_repo_info()
    for log in found["transactions"].values():
        for array in log["updated_chunks"]:
            array["chunks"].sort()  # version 1.1.21 did not
        # words for people
        if "synthetic_composite" in log:
            assert log["synthetic_composite"].pop("note")
    return json.loads(json.dumps(found))


def expire_all_but_two(folder: str) -> str:
    """Commit, and expire all snapshots but the first and the newest.

    Returns
    -------
    str
        Id of one of those that expired.
    """
    repo = _open(folder)
    for value in range(3):
        session = repo.writable_session("main")
        zarr.open_group(session.store, mode="r+")["a"][value] = 99
        session.commit(f"to expire {value}")
    lost = repo.lookup_branch("main")
    now = datetime.now(UTC)
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="r+")["a"][9] = 99
    session.commit("to stay")
    repo.expire_snapshots(now)
    return str(lost)


def branch_out(folder: str) -> None:
    """Create branches, of branches, too, and commit to them."""
    repo = _open(folder)
    commits = 0

    def commit(branch: str, message: str) -> str:
        nonlocal commits
        commits += 1
        session = repo.writable_session(branch)
        zarr.open_group(session.store, mode="r+").attrs["n"] = commits
        return str(session.commit(message))

    start = commit("main", "x" * 61)
    repo.create_branch("dev", start)
    aside = commit("dev", "on dev\nand more")
    repo.create_branch("of-dev", aside)
    commit("of-dev", "")
    commit("main", "y" * 60)
    repo.create_branch("later", commit("main", "<the last> & newest"))
    repo.create_tag("v1", start)
    repo.create_tag("v\u00e9 2", aside)
    commit("dev", "on dev again")


def draw(folder: str) -> list[str]:
    """Return drawings of the history: of all branches, and of each branch and tag."""
    repo = _open(folder)
    versions = [
        {},
        *({"branch": name} for name in sorted(repo.list_branches())),
        *({"tag": name} for name in sorted(repo.list_tags())),
        {"snapshot_id": repo.lookup_branch("main")},
    ]
    # where no branch is asked for the official client leaves an empty name
    return [
        str(repo.ancestry_graph(plain=True, **version)).replace("(, ", "(").replace(" ()", "")
        for version in versions
    ]
