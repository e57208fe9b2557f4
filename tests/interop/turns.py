"""Turns that the two sides take in one repository, on data that JSON can express."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import zarr

import icechunk
from tests.interop.base import config, create

#: An edit: what to do, where, and with what.
Edit = list[Any]

#: Sessions that are open between calls.
OPEN: dict[str, Any] = {}


def storage(folder: str) -> Any:
    """Return the storage of a folder."""
    return icechunk.local_filesystem_storage(folder)


def new(folder: str) -> None:
    """Create the repository."""
    icechunk.Repository.create(storage(folder), config())


def edit(store: Any, edits: list[Edit]) -> None:
    """Do edits through zarr."""
    root = zarr.open_group(store, mode="a")
    for name, path, *arguments in edits:
        if name == "array":
            create(root, path, (arguments[0],), (2,))
        elif name == "group":
            root.create_group(path)
        elif name == "delete":
            del root[path]
        elif name == "attribute":
            root[path].attrs["x"] = arguments[0]
        else:
            array = root[path]
            assert isinstance(array, zarr.Array)
            if name == "write":
                start, values = arguments
                array[start : start + len(values)] = values
            else:
                assert name == "resize"
                array.resize((arguments[0],))


def commit(folder: str, branch: str, edits: list[Edit], message: str, how: str) -> str:
    """Do edits and end the session by `commit` or `amend`; return the new snapshot id."""
    session = icechunk.Repository.open(storage(folder)).writable_session(branch)
    edit(session.store, edits)
    return str(getattr(session, how)(message, allow_empty=True))


def move(folder: str, branch: str, moves: list[list[str]], message: str) -> str:
    """Move nodes; return the new snapshot id."""
    session = icechunk.Repository.open(storage(folder)).rearrange_session(branch)
    for source, target in moves:
        session.move(f"/{source}", f"/{target}")
    return str(session.commit(message))


def begin(folder: str, branch: str, edits: list[Edit]) -> None:
    """Do edits in a session that stays open."""
    OPEN[folder] = icechunk.Repository.open(storage(folder)).writable_session(branch)
    edit(OPEN[folder].store, edits)


def end(folder: str, message: str, solve: bool) -> list[str]:
    """Commit what stayed open, rebased; return the paths of conflicts, if there are some."""
    solver = icechunk.BasicConflictSolver() if solve else icechunk.ConflictDetector()
    try:
        OPEN.pop(folder).commit(message, rebase_with=solver)
    except icechunk.RebaseFailedError as error:
        return sorted({conflict.path for conflict in error.conflicts})
    return []


def forget(folder: str) -> None:
    """Drop what stayed open."""
    OPEN.pop(folder).discard_changes()


def create_branch(folder: str, source: str, name: str) -> None:
    """Create a branch where another one is."""
    repo = icechunk.Repository.open(storage(folder))
    repo.create_branch(name, repo.lookup_branch(source))


def delete_branch(folder: str, name: str) -> None:
    """Delete a branch."""
    icechunk.Repository.open(storage(folder)).delete_branch(name)


def reset_branch(folder: str, name: str, target: str) -> None:
    """Move a branch to where another one is."""
    repo = icechunk.Repository.open(storage(folder))
    repo.reset_branch(name, repo.lookup_branch(target))


def create_tag(folder: str, source: str, name: str) -> None:
    """Create a tag where a branch is."""
    repo = icechunk.Repository.open(storage(folder))
    repo.create_tag(name, repo.lookup_branch(source))


def delete_tag(folder: str, name: str) -> None:
    """Delete a tag."""
    icechunk.Repository.open(storage(folder)).delete_tag(name)


def expire(
    folder: str, source: str | None = None, age: int = 0, branches: bool = False, tags: bool = False
) -> None:
    """Expire what is older than a snapshot of a branch, counted from its tip, or everything."""
    repo = icechunk.Repository.open(storage(folder))
    older_than = datetime.now(UTC)
    if source is not None:
        older_than = [entry.written_at for entry in repo.ancestry(branch=source)][age]
    repo.expire_snapshots(older_than, delete_expired_branches=branches, delete_expired_tags=tags)


def collect(folder: str) -> int:
    """Delete what nothing needs; return how many objects. No session may be open."""
    repo = icechunk.Repository.open(storage(folder))
    # of some storages times are whole seconds
    summary = repo.garbage_collect(datetime.now(UTC) + timedelta(seconds=2))
    return int(summary.chunks_deleted + summary.manifests_deleted + summary.snapshots_deleted)


def look(folder: str) -> dict[str, Any]:
    """Return what is on every branch and tag: values, and messages of the history."""
    repo = icechunk.Repository.open(storage(folder))
    return {
        "branches": {
            name: _version(repo.readonly_session(name).store) for name in repo.list_branches()
        },
        "tags": {
            name: _version(repo.readonly_session(tag=name).store) for name in repo.list_tags()
        },
        "history": {
            name: [snapshot.message for snapshot in repo.ancestry(branch=name)]
            for name in repo.list_branches()
        },
    }


def _version(store: Any) -> dict[str, Any]:
    try:
        root = zarr.open_group(store, mode="r")
    except FileNotFoundError:
        return {}
    found: dict[str, Any] = {}
    for path, node in root.members(max_depth=None):
        values = np.asarray(node[...]).tolist() if isinstance(node, zarr.Array) else None
        found[path] = [node.attrs.get("x"), values]
    return found
