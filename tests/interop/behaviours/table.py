"""The table of behaviours, and what its scripts have in common.

A script takes a repository as `base.write_base` leaves it and returns what it saw, as JSON
can express it. What it leaves in storage is compared too, so a script returns no ids and
gives every commit a message of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zarr
from zarr.core.sync import sync

import icechunk

Script = Callable[[Any], Any]

BEHAVIOURS: dict[str, Script] = {}


def behaviour(function: Script) -> Script:
    """Add a script to the table, under its name."""
    assert function.__name__ not in BEHAVIOURS
    BEHAVIOURS[function.__name__] = function
    return function


def attempt(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what a call returns, or class and kind of its error."""
    try:
        return call(*arguments, **options)
    except icechunk.IcechunkError as error:
        return {"error": type(error).__name__, "kind": str(error.kind)}
    except Exception as error:
        return {"error": type(error).__name__}


def succeeds(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return "done", or class and kind of the error: for calls that return ids."""
    found = attempt(call, *arguments, **options)
    return found if isinstance(found, dict) and "error" in found else "done"


def root_of(session: Any) -> Any:
    """Return the root group of a writable session."""
    return zarr.open_group(session.store, mode="a")


def commit(repo: Any, edits: dict[str, Any], message: str, branch: str = "main") -> str:
    """Write values to arrays from the start on, and commit; return the snapshot id."""
    session = repo.writable_session(branch)
    root = root_of(session)
    for path, value in edits.items():
        root[path][...] = value
    return str(session.commit(message))


def messages(repo: Any, **version: Any) -> list[str]:
    """Return the messages of a history, newest first."""
    return [entry.message for entry in repo.ancestry(**version)]


def conflicts(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return the conflicts that a call fails with, or as `succeeds`.

    Without the path of a move, for which see the script `where_a_move_is_in_the_way`.
    """
    try:
        call(*arguments, **options)
    except icechunk.RebaseFailedError as error:
        found = []
        for each in error.conflicts:
            kind = kind_of(each)
            path = "" if kind == "MoveOperationCannotBeRebased" else each.path
            found.append([kind, path, sorted(each.conflicted_chunks or [])])
        return sorted(found)
    except Exception as error:
        return {"error": type(error).__name__, "kind": str(getattr(error, "kind", ""))}
    return "done"


def kind_of(conflict: Any) -> str:
    """Return the name of the kind of a conflict, which is no enum on the official side."""
    kinds = icechunk.ConflictType
    names = [name for name in dir(kinds) if not name.startswith("_")]
    return next(name for name in names if getattr(kinds, name) == conflict.conflict_type)


def changes(diff: Any) -> dict[str, Any]:
    """Return a diff or a status as JSON."""
    return {
        "new_arrays": sorted(diff.new_arrays),
        "new_groups": sorted(diff.new_groups),
        "deleted_arrays": sorted(diff.deleted_arrays),
        "deleted_groups": sorted(diff.deleted_groups),
        "updated_arrays": sorted(diff.updated_arrays),
        "updated_groups": sorted(diff.updated_groups),
        "updated_chunks": {path: sorted(at) for path, at in sorted(diff.updated_chunks.items())},
        "moved_nodes": [list(move) for move in diff.moved_nodes],
    }


def buffer(data: bytes) -> Any:
    """Return bytes as a store takes them."""
    return zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(data)


def get(store: Any, key: str, byte_range: Any = None) -> Any:
    """Return the value of a key in hexadecimal digits, None, or class and kind of an error."""
    prototype = zarr.core.buffer.default_buffer_prototype()

    def look() -> str | None:
        found = sync(store.get(key, prototype, byte_range))
        return None if found is None else str(found.to_bytes().hex())

    return attempt(look)


async def _listed(items: Any) -> list[str]:
    return sorted([item async for item in items])


def listed(items: Any) -> list[str]:
    """Return what an asynchronous iterator of keys yields, sorted."""
    return sync(_listed(items))


def tree(session: Any) -> dict[str, Any]:
    """Return all nodes that can be seen, with attributes, and values of those of few elements."""
    found: dict[str, Any] = {}
    group = zarr.open_group(session.store, mode="r")
    for path, node in group.members(max_depth=None):
        found[path] = {"attributes": dict(node.attrs)}
        # of "virtual" nobody has the file
        if isinstance(node, zarr.Array) and node.size < 100 and "virtual" not in path:
            found[path]["values"] = node[...].tolist()  # type: ignore[union-attr]
    return dict(sorted(found.items()))
