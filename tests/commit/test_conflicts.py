"""Conflicts of two sessions that began at one snapshot, pair by pair."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    BasicConflictSolver,
    ConflictDetector,
    ConflictError,
    ConflictType,
    MemoryStorage,
    RebaseFailedError,
    Repository,
    Session,
    VersionSelection,
)

SIZE = 4


@pytest.fixture(scope="module")
def repository() -> Repository:
    """Return one with arrays ``/a`` and ``/g/b`` of four chunks each."""
    repository = Repository.create(MemoryStorage())
    session = repository.writable_session("main")
    root = zarr.create_group(session.store)
    for group, name in ((root, "a"), (root.create_group("g"), "b")):
        group.create_array(name, shape=(SIZE,), chunks=(1,), dtype="i4")[:] = [1, 2, 3, 4]
    session.commit("base")
    return repository


# -- what a session does -------------------------------------------------------------------
def write(path: str, index: int) -> Callable[[Session, int], None]:
    def edit(session: Session, value: int) -> None:
        zarr.open_array(session.store, path=path, mode="r+")[index] = value

    return edit


def describe(path: str) -> Callable[[Session, int], None]:
    def edit(session: Session, value: int) -> None:
        node: Any = zarr.open(session.store, path=path, mode="r+")
        node.attrs["x"] = value

    return edit


def delete(path: str) -> Callable[[Session, int], None]:
    return lambda session, value: session.delete_nodes(f"/{path}")


def group(path: str) -> Callable[[Session, int], None]:
    return lambda session, value: void(zarr.create_group(session.store, path=path))


def array(path: str) -> Callable[[Session, int], None]:
    def edit(session: Session, value: int) -> None:
        made = zarr.create_array(session.store, name=path, shape=(2,), chunks=(1,), dtype="i4")
        made[:] = value

    return edit


def void(_: object) -> None:
    return None


EDITS: dict[str, Callable[[Session, int], None]] = {
    "write a0": write("a", 0),
    "write a1": write("a", 1),
    "write b0": write("g/b", 0),
    "describe a": describe("a"),
    "describe g": describe("g"),
    "delete a": delete("a"),
    "delete g": delete("g"),
    "new group n": group("n"),
    "new array n": array("n"),
    "new group g/n": group("g/n"),
    "new array g/n": array("g/n"),
    "new group o": group("o"),
}
T = ConflictType
#: What ours and theirs contradict each other about; pairs that are not here do not.
CONFLICTS: dict[tuple[str, str], set[tuple[ConflictType, str]]] = {
    ("write a0", "write a0"): {(T.ChunkDoubleUpdate, "/a")},
    ("write a1", "write a1"): {(T.ChunkDoubleUpdate, "/a")},
    ("write b0", "write b0"): {(T.ChunkDoubleUpdate, "/g/b")},
    ("write a0", "describe a"): {(T.ChunksUpdatedInUpdatedArray, "/a")},
    ("write a1", "describe a"): {(T.ChunksUpdatedInUpdatedArray, "/a")},
    ("write a0", "delete a"): {(T.ChunksUpdatedInDeletedArray, "/a")},
    ("write a1", "delete a"): {(T.ChunksUpdatedInDeletedArray, "/a")},
    ("write b0", "delete g"): {(T.ChunksUpdatedInDeletedArray, "/g/b")},
    ("describe a", "describe a"): {(T.ZarrMetadataDoubleUpdate, "/a")},
    ("describe g", "describe g"): {(T.ZarrMetadataDoubleUpdate, "/g")},
    ("describe a", "delete a"): {(T.ZarrMetadataUpdateOfDeletedArray, "/a")},
    ("describe g", "delete g"): {(T.ZarrMetadataUpdateOfDeletedGroup, "/g")},
    ("delete a", "write a0"): {(T.DeleteOfUpdatedArray, "/a")},
    ("delete a", "write a1"): {(T.DeleteOfUpdatedArray, "/a")},
    ("delete a", "describe a"): {(T.DeleteOfUpdatedArray, "/a")},
    ("delete g", "write b0"): {(T.DeleteOfUpdatedArray, "/g/b")},
    ("delete g", "describe g"): {(T.DeleteOfUpdatedGroup, "/g")},
    ("delete g", "new group g/n"): {(T.NewNodeInInvalidGroup, "/g")},
    ("delete g", "new array g/n"): {(T.NewNodeInInvalidGroup, "/g")},
    ("new group g/n", "delete g"): {(T.NewNodeInInvalidGroup, "/g")},
    ("new array g/n", "delete g"): {(T.NewNodeInInvalidGroup, "/g")},
    **{
        (f"new {ours} {path}", f"new {theirs} {path}"): {
            (T.NewNodeConflictsWithExistingNode, f"/{path}")
        }
        for ours, theirs in itertools.product(("group", "array"), repeat=2)
        for path in ("n", "g/n")
    },
    ("new group o", "new group o"): {(T.NewNodeConflictsWithExistingNode, "/o")},
}
#: Of these it settles all but those that it is told not to.
SETTLED = {T.ChunkDoubleUpdate, T.DeleteOfUpdatedArray, T.DeleteOfUpdatedGroup}


def state(session: Session) -> dict[str, tuple[bytes, list[int]]]:
    """Return all that can be read of a session."""
    found = {}
    for node in session.tree.nodes():
        values: list[int] = []
        if node.is_array:
            array = zarr.open_array(session.store, path=node.path, mode="r")
            values = np.asarray(array[:]).tolist()
        found[node.path] = node.user_data, values
    return found


def both(repository: Repository, ours: str, theirs: str) -> tuple[Session, Repository]:
    """Return a session with our edits, on a branch where theirs were committed meanwhile."""
    copy = Repository.open(repository.storage)
    branch = f"{ours} {theirs}"
    copy.create_branch(branch, copy.lookup_branch("main"))
    session, other = (copy.writable_session(branch) for _ in range(2))
    EDITS[theirs](other, 8)
    other.commit("theirs")
    EDITS[ours](session, 9)
    return session, copy


def done(repository: Repository, *edits: str) -> dict[str, tuple[bytes, list[int]]]:
    """Return the state after some edits in one session, theirs first."""
    session = repository.writable_session("main")
    for value, edit in zip((8, 9), edits, strict=False):
        EDITS[edit](session, value)
    return state(session)


@pytest.mark.parametrize("ours", EDITS)
def test_every_pair_of_edits(repository: Repository, ours: str) -> None:
    """Those that contradict each other are refused; others lead to what both did in turn."""
    for theirs in EDITS:
        session, copy = both(repository, ours, theirs)
        before = state(session)
        with pytest.raises(ConflictError):
            session.commit("too late")
        expected = CONFLICTS.get((ours, theirs), set())
        if expected:
            with pytest.raises(RebaseFailedError) as error:
                session.rebase(ConflictDetector())
            found = {(c.conflict_type, c.path) for c in error.value.conflicts}
            assert found == expected, theirs
            # nothing happened
            assert state(session) == before
            assert session.has_uncommitted_changes
            continue
        session.commit("ours", rebase_with=ConflictDetector(), allow_empty=True)
        after = copy.readonly_session(f"{ours} {theirs}")
        assert state(after) == done(repository, theirs, ours), theirs


@pytest.mark.parametrize(
    ("solver", "settled"),
    [
        (BasicConflictSolver(), SETTLED),
        (
            BasicConflictSolver(on_chunk_conflict=VersionSelection.UseTheirs),
            SETTLED,
        ),
        (
            BasicConflictSolver(on_chunk_conflict=VersionSelection.Fail),
            SETTLED - {T.ChunkDoubleUpdate},
        ),
        (
            BasicConflictSolver(fail_on_delete_of_updated_array=True),
            SETTLED - {T.DeleteOfUpdatedArray},
        ),
        (
            BasicConflictSolver(fail_on_delete_of_updated_group=True),
            SETTLED - {T.DeleteOfUpdatedGroup},
        ),
    ],
    ids=repr,
)
def test_what_a_solver_settles(
    solver: BasicConflictSolver, settled: set[ConflictType], repository: Repository
) -> None:
    copy = Repository.open(repository.storage)
    for number, ((ours, theirs), conflicts) in enumerate(CONFLICTS.items()):
        branch = f"{solver!r} {number}"
        copy.create_branch(branch, copy.lookup_branch("main"))
        session, other = (copy.writable_session(branch) for _ in range(2))
        EDITS[theirs](other, 8)
        other.commit("theirs")
        EDITS[ours](session, 9)
        kinds = {kind for kind, _ in conflicts}
        if kinds <= settled:
            session.commit("ours", rebase_with=solver)
            drops = kinds == {T.ChunkDoubleUpdate} and solver.drops_our_chunks
            expected = done(repository, theirs, *(() if drops else (ours,)))
            assert state(copy.readonly_session(branch)) == expected, (ours, theirs)
        else:
            with pytest.raises(RebaseFailedError):
                session.commit("ours", rebase_with=solver)
