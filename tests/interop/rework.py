"""What both sides do to a repository whose commits were made of other commits."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr

import icechunk


def _open(folder: str) -> Any:
    return icechunk.Repository.open(icechunk.local_filesystem_storage(folder))


def write(folder: str, branch: str, start: int, value: int, message: str) -> str:
    """Commit two values of the array ``a``, which is made if need be."""
    session = _open(folder).writable_session(branch)
    group = zarr.open_group(session.store, mode="a")
    array = (
        group["a"] if "a" in group else group.create_array("a", shape=(8,), chunks=(1,), dtype="i4")
    )
    array[start : start + 2] = value
    return str(session.commit(message, metadata={"from": message}))


def create(folder: str) -> None:
    """Make a repository with two branches."""
    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(folder))
    repo.create_branch("side", repo.lookup_branch("main"))


def branch(folder: str, name: str) -> None:
    """Make a branch at the newest version."""
    repo = _open(folder)
    repo.create_branch(name, repo.lookup_branch("main"))


def state(folder: str, branch: str) -> Any:
    """Return the history of a branch, what it holds, and what each commit changed."""
    repo = _open(folder)
    history = list(repo.ancestry(branch=branch))
    values = zarr.open_group(repo.readonly_session(branch=branch).store, mode="r")["a"]
    diffs = []
    for entry in history[:-1]:
        diff = repo.diff(from_snapshot_id=entry.parent_id, to_snapshot_id=entry.id)
        diffs.append([sorted(diff.new_arrays), sorted(diff.updated_chunks.items())])
    return {
        "history": [[each.id, each.message, sorted(each.metadata)] for each in history],
        "values": np.asarray(values[:]).tolist(),
        "diffs": diffs,
    }
