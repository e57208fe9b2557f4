"""Pairs of edits by two sessions at the same time, of which the second one is rebased."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import zarr
from zarr.core.sync import sync

import icechunk
from tests.interop.base import create

EDITS: dict[str, Callable[[zarr.Group], None]] = {}

SOLVERS: dict[str, Any] = {
    "detector": icechunk.ConflictDetector(),
    "ours": icechunk.BasicConflictSolver(),
    "theirs": icechunk.BasicConflictSolver(
        on_chunk_conflict=icechunk.VersionSelection.UseTheirs,
        fail_on_delete_of_updated_array=True,
        fail_on_delete_of_updated_group=True,
    ),
}


def an_edit(function: Callable[[zarr.Group], None]) -> Callable[[zarr.Group], None]:
    """Add a function to the table, under its name."""
    EDITS[function.__name__] = function
    return function


@an_edit
def chunk(root: zarr.Group) -> None:
    root["a"][0] = 50


@an_edit
def another_chunk(root: zarr.Group) -> None:
    root["a"][2] = 50


@an_edit
def erased_chunk(root: zarr.Group) -> None:
    root["a"][:2] = 0


@an_edit
def chunk_where_nothing_was(root: zarr.Group) -> None:
    root["unwritten"][0] = 1


@an_edit
def erased_chunk_where_nothing_was(root: zarr.Group) -> None:
    root["unwritten"][:2] = 0


@an_edit
def attributes(root: zarr.Group) -> None:
    root["a"].attrs["x"] = 1


@an_edit
def attributes_of_group(root: zarr.Group) -> None:
    root["g"].attrs["x"] = 1


@an_edit
def shrunk(root: zarr.Group) -> None:
    root["a"].resize((6,))


@an_edit
def deleted_array(root: zarr.Group) -> None:
    del root["a"]


@an_edit
def deleted_group(root: zarr.Group) -> None:
    del root["g"]


@an_edit
def recreated_array(root: zarr.Group) -> None:
    create(root, "a", (4,), (2,), overwrite=True)[0] = 3


@an_edit
def new_array(root: zarr.Group) -> None:
    create(root, "n", (4,), (2,))[:] = 1


@an_edit
def new_group(root: zarr.Group) -> None:
    create(root.create_group("n"), "below", (2,), (2,))[:] = 1


@an_edit
def new_array_in_group(root: zarr.Group) -> None:
    create(root, "g/new", (4,), (2,))


@an_edit
def chunk_in_group(root: zarr.Group) -> None:
    root["g/deep/x"][0] = 70


def matrix(repo: Any) -> dict[str, Any]:
    """Return for every pair of edits and every solver what became of the second session.

    That is its conflicts with the first, or what it sees after the rebase.
    """
    start = repo.lookup_branch("main")
    found = {}
    for theirs in EDITS:
        repo.reset_branch("main", start)
        sessions = {(ours, name): _edited(repo, ours) for ours in EDITS for name in SOLVERS}
        _edited(repo, theirs).commit("theirs")
        for (ours, name), session in sessions.items():
            found[f"{theirs}, {ours}, {name}"] = _rebased(session, SOLVERS[name])
    return found


def _edited(repo: Any, edit: str) -> Any:
    session = repo.writable_session("main")
    EDITS[edit](zarr.open_group(session.store, mode="a"))
    return session


def _rebased(session: Any, solver: Any) -> Any:
    try:
        session.rebase(solver)
    except icechunk.RebaseFailedError as error:
        return sorted(
            [_name(c.conflict_type), c.path, sorted(c.conflicted_chunks or [])]
            for c in error.conflicts
        )
    return sync(_contents(session.store))


def _name(kind: Any) -> str:
    """Return the name of a kind of conflict, which is no enum on the official side."""
    return next(name for name in dir(icechunk.ConflictType) if _is(name, kind))


def _is(name: str, kind: Any) -> bool:
    return not name.startswith("_") and getattr(icechunk.ConflictType, name) == kind


#: All that the edits can write.
KEYS = [
    *("a/zarr.json", "g/zarr.json", "g/deep/x/zarr.json", "g/new/zarr.json"),
    *("n/zarr.json", "n/below/zarr.json"),
    *(f"a/c/{i}" for i in range(6)),
    *("unwritten/c/0", "g/deep/x/c/0", "n/c/0", "n/c/1", "n/below/c/0"),
]


async def _contents(store: Any) -> dict[str, str]:
    values = await asyncio.gather(*(_value(store, key) for key in KEYS))
    return {key: value for key, value in zip(KEYS, values, strict=True) if value is not None}


async def _value(store: Any, key: str) -> str | None:
    try:
        value = await store.get(key, zarr.core.buffer.default_buffer_prototype())
    except icechunk.IcechunkError:
        return None  # on the official side, for a chunk of what is no array
    if value is None:
        return None
    # the metadata is not written in the same way by all versions of zarr
    return "" if key.endswith("zarr.json") else value.to_bytes().hex()
