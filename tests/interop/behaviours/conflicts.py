"""Rebases, and what becomes of the session and the repository."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import icechunk
from tests.interop.base import create
from tests.interop.behaviours.table import (
    BEHAVIOURS,
    attempt,
    behaviour,
    changes,
    commit,
    conflicts,
    messages,
    root_of,
    succeeds,
    tree,
)

Edit = Callable[[Any], Any]


def _set(path: str, at: Any, value: int) -> Edit:
    def edit(root: Any) -> None:
        root[path][at] = value

    return edit


def _attribute(path: str) -> Edit:
    return lambda root: root[path].attrs.update(x=1)


def _delete(path: str) -> Edit:
    def edit(root: Any) -> None:
        del root[path]

    return edit


def _create(path: str) -> Edit:
    return lambda root: create(root, path, (4,), (2,))


#: What they and we do, for every kind of conflict that edits can have with edits.
PAIRS: dict[str, tuple[Edit, Edit]] = {
    "ChunkDoubleUpdate": (_set("m", (0, 0), 8), _set("m", (0, slice(0, 3)), 9)),
    "ChunksUpdatedInDeletedArray": (_delete("m"), _set("m", (0, 0), 9)),
    "ChunksUpdatedInUpdatedArray": (_attribute("m"), _set("m", (0, 0), 9)),
    "DeleteOfUpdatedArray": (_set("m", (0, 0), 8), _delete("m")),
    "DeleteOfUpdatedGroup": (_attribute("g"), _delete("g")),
    "NewNodeConflictsWithExistingNode": (_create("new"), _create("new")),
    "NewNodeInInvalidGroup": (_create("new"), _create("new/below")),
    "ZarrMetadataDoubleUpdate": (_attribute("m"), _attribute("m")),
    "ZarrMetadataUpdateOfDeletedArray": (_delete("m"), _attribute("m")),
    "ZarrMetadataUpdateOfDeletedGroup": (_delete("g"), _attribute("g/deep")),
}


def _commit_over(theirs: Edit, ours: Edit) -> Callable[[Any], Any]:
    """Return a script that commits over a commit by others, with one solver after the other."""

    def script(repo: Any) -> Any:
        session, other = repo.writable_session("main"), repo.writable_session("main")
        ours(root_of(session))
        theirs(root_of(other))
        other.commit("theirs")
        found = [succeeds(session.commit, "without a solver")]
        for number, solver in enumerate(
            (
                icechunk.ConflictDetector(),
                icechunk.BasicConflictSolver(on_chunk_conflict=icechunk.VersionSelection.Fail),
                icechunk.BasicConflictSolver(
                    on_chunk_conflict=icechunk.VersionSelection.UseTheirs,
                    fail_on_delete_of_updated_array=True,
                    fail_on_delete_of_updated_group=True,
                ),
                icechunk.BasicConflictSolver(),
            )
        ):
            found.append(conflicts(session.commit, f"try {number}", rebase_with=solver))
            found.append(session.has_uncommitted_changes)
            if session.has_uncommitted_changes:
                found.append(changes(session.status()))
        return [*found, messages(repo, branch="main"), tree(repo.readonly_session("main"))]

    return script


for _kind, (_theirs, _ours) in PAIRS.items():
    BEHAVIOURS[f"commit_with_conflict_{_kind}"] = _commit_over(_theirs, _ours)


@behaviour
def rebase_over_a_move(repo: Any) -> Any:
    """All kinds of changes meet a move by others."""
    edits: dict[str, Edit] = {
        "written": _set("a", 0, 9),
        "written elsewhere": _set("m", (0, 0), 9),
        "attribute": _attribute("g"),
        "deleted": _delete("sparse"),
        "created": _create("new"),
    }
    sessions = {name: repo.writable_session("main") for name in edits}
    for name, edit in edits.items():
        edit(root_of(sessions[name]))
    sessions["untouched"] = repo.writable_session("main")
    sessions["moves"] = repo.rearrange_session("main")
    sessions["moves"].move("/m", "/moved")
    mover = repo.rearrange_session("main")
    mover.move("/a", "/g/a")
    mover.commit("moved")
    return {
        name: [
            conflicts(session.rebase, solver)
            for solver in (icechunk.ConflictDetector(), icechunk.BasicConflictSolver())
        ]
        for name, session in sessions.items()
    }


@behaviour
def a_move_is_rebased(repo: Any) -> Any:
    """Moves meet all kinds of changes by others."""
    start = repo.lookup_branch("main")
    edits: dict[str, Edit] = {
        "written": _set("a", 0, 9),
        "attribute": _attribute("a"),
        "source deleted": _delete("a"),
        "target taken": _create("h"),
        "target below": _create("g/new"),
        "parent of the target deleted": _delete("g"),
    }
    found = {}
    for name, edit in edits.items():
        for target in ("/h", "/g/h"):
            repo.reset_branch("main", start)
            mover = repo.rearrange_session("main")
            mover.move("/a", target)
            other = repo.writable_session("main")
            edit(root_of(other))
            other.commit(f"{name} {target}")
            outcome = conflicts(mover.rebase, icechunk.BasicConflictSolver())
            found[f"{name}, {target}"] = outcome
    repo.reset_branch("main", start)
    return found


@behaviour
def what_a_conflict_error_says(repo: Any) -> Any:
    session = repo.writable_session("main")
    root_of(session)["a"][0] = 1
    start = session.snapshot_id
    tip = commit(repo, {"scalar": 6}, "theirs")
    try:
        session.commit("ours")
    except icechunk.ConflictError as error:
        told = [error.expected_parent == start, error.actual_parent == tip]
        return [told, str(error.kind), session.has_uncommitted_changes, session.branch]
    return "no error"


@behaviour
def rebase_over_several_commits(repo: Any) -> Any:
    """The second of three commits is in the way of one chunk."""
    session = repo.writable_session("main")
    root_of(session)["a"][0:6] = 9
    for number, (path, value) in enumerate([("scalar", 1), ("g/deep/x", 2), ("split", 3)]):
        commit(repo, {path: value}, f"theirs {number}")
    other = repo.writable_session("main")
    root_of(other)["a"][2] = 8
    other.commit("in the way")
    commit(repo, {"scalar": 9}, "last")
    found = [conflicts(session.rebase, icechunk.ConflictDetector())]
    theirs = icechunk.BasicConflictSolver(on_chunk_conflict=icechunk.VersionSelection.UseTheirs)
    found += [conflicts(session.rebase, theirs), changes(session.status())]
    session.commit("ours")
    return [*found, tree(repo.readonly_session("main"))]


@behaviour
def rebase_without_anything_new(repo: Any) -> Any:
    session = repo.writable_session("main")
    found = [succeeds(session.rebase, icechunk.ConflictDetector())]
    root_of(session)["a"][0] = 9
    found.append(succeeds(session.rebase, icechunk.ConflictDetector()))
    return [*found, succeeds(session.commit, "ours", rebase_with=icechunk.ConflictDetector())]


@behaviour
def rebase_without_changes(repo: Any) -> Any:
    session = repo.writable_session("main")
    commit(repo, {"scalar": 6}, "theirs")
    before = tree(session)["scalar"]
    found = [before, succeeds(session.rebase, icechunk.ConflictDetector())]
    found += [tree(session)["scalar"], session.snapshot_id == repo.lookup_branch("main")]
    return [*found, succeeds(session.commit, "empty", allow_empty=True)]


@behaviour
def rebase_where_nothing_can_be_written(repo: Any) -> Any:
    return succeeds(repo.readonly_session("main").rebase, icechunk.ConflictDetector())


@behaviour
def rebase_with_no_tries(repo: Any) -> Any:
    session = repo.writable_session("main")
    root_of(session)["a"][0] = 9
    commit(repo, {"scalar": 6}, "theirs")
    detector = icechunk.ConflictDetector()
    found = [succeeds(session.commit, "none", rebase_with=detector, rebase_tries=0)]
    return [*found, succeeds(session.commit, "one", rebase_with=detector, rebase_tries=1)]


@behaviour
def rebase_after_the_branch_was_reset(repo: Any) -> Any:
    parent, tip = [entry.id for entry in repo.ancestry(branch="main")][1::-1]
    repo.create_branch("kept", tip)
    session = repo.writable_session("main")
    root_of(session)["a"][0] = 9
    repo.reset_branch("main", parent)
    return {
        "commit": succeeds(session.commit, "gone"),
        "rebase": conflicts(session.rebase, icechunk.ConflictDetector()),
    }


@behaviour
def rebase_after_the_branch_was_deleted(repo: Any) -> Any:
    repo.create_branch("b", repo.lookup_branch("main"))
    session = repo.writable_session("b")
    root_of(session)["a"][0] = 9
    repo.delete_branch("b")
    found = {
        "commit": succeeds(session.commit, "gone"),
        "rebase": succeeds(session.rebase, icechunk.ConflictDetector()),
        "amend": succeeds(session.amend, "gone"),
        "session": [session.branch, session.has_uncommitted_changes, changes(session.status())],
    }
    repo.create_branch("b", repo.lookup_branch("main"))
    return {**found, "back again": succeeds(session.commit, "back again")}


@behaviour
def amend_after_a_rebase(repo: Any) -> Any:
    session = repo.writable_session("main")
    root_of(session)["a"][0] = 9
    commit(repo, {"scalar": 6}, "theirs")
    session.rebase(icechunk.ConflictDetector())
    session.amend("amended")
    return [messages(repo, branch="main"), tree(repo.readonly_session("main"))]


@behaviour
def amend_where_a_rebase_is_needed(repo: Any) -> Any:
    session = repo.writable_session("main")
    root_of(session)["a"][0] = 9
    commit(repo, {"scalar": 6}, "theirs")
    found = [succeeds(session.amend, "too early"), session.has_uncommitted_changes]
    session.rebase(icechunk.ConflictDetector())
    found += [succeeds(session.amend, "amended"), succeeds(session.amend, "again")]
    session = repo.writable_session("main")
    root_of(session)["a"][0] = 10
    session.amend("amended once more", metadata={"x": 1})
    return [*found, messages(repo, branch="main"), tree(repo.readonly_session("main"))]


@behaviour
def rebase_over_an_amended_commit(repo: Any) -> Any:
    """The commit below the session is replaced."""
    commit(repo, {"scalar": 6}, "to be amended")
    session, other = repo.writable_session("main"), repo.writable_session("main")
    root_of(session)["a"][0] = 9
    root_of(other)["scalar"][...] = 7
    other.amend("amended")
    return {
        "commit": succeeds(session.commit, "too early"),
        "rebase": conflicts(session.rebase, icechunk.ConflictDetector()),
    }


@behaviour
def where_a_move_is_in_the_way(repo: Any) -> Any:
    session, mover = repo.writable_session("main"), repo.rearrange_session("main")
    root_of(session)["m"][0, 0] = 9
    mover.move("/a", "/b")
    mover.commit("moved")
    try:
        session.rebase(icechunk.ConflictDetector())
    except icechunk.RebaseFailedError as error:
        return {"path": [conflict.path for conflict in error.conflicts]}
    return {}


@behaviour
def amend_of_a_rebased_deletion(repo: Any) -> Any:
    session = repo.writable_session("main")
    del root_of(session)["m"]
    other = repo.writable_session("main")
    root_of(other)["m"][0, 0] = 9
    other.commit("theirs")
    session.commit("deleted all the same", rebase_with=icechunk.BasicConflictSolver())
    session = repo.writable_session("main")
    create(root_of(session), "m", (4,), (2,))[:] = 1
    session.amend("created again")
    first = list(repo.ancestry(branch="main"))[1].id
    diff = repo.diff(from_snapshot_id=first, to_branch="main")
    return [messages(repo, branch="main"), tree(repo.readonly_session("main")), changes(diff)]


@behaviour
def two_sessions_take_turns_rebasing(repo: Any) -> Any:
    one, other = repo.writable_session("main"), repo.writable_session("main")
    detector = icechunk.ConflictDetector()
    for number in range(3):
        for name, session in (("one", one), ("other", other)):
            root_of(session)["m"][2 * number, 0 if name == "one" else 2] = number
        one.commit(f"one {number}", rebase_with=detector)
        other.commit(f"other {number}", rebase_with=detector)
        one, other = repo.writable_session("main"), repo.writable_session("main")
    return [messages(repo, branch="main"), tree(repo.readonly_session("main"))["m"]]


@behaviour
def discard_after_a_failed_rebase(repo: Any) -> Any:
    session = repo.writable_session("main")
    root_of(session)["a"][0] = 9
    commit(repo, {"a": 6}, "theirs")
    found = [conflicts(session.rebase, icechunk.ConflictDetector())]
    session.discard_changes()
    found += [session.has_uncommitted_changes, tree(session)["a"]]
    found += [attempt(lambda: changes(session.status()))]
    found += [succeeds(session.rebase, icechunk.ConflictDetector()), tree(session)["a"]]
    root_of(session)["a"][0] = 9
    return [*found, succeeds(session.commit, "ours")]


@behaviour
def forks_are_rebased(repo: Any) -> Any:
    session = repo.writable_session("main")
    fork = session.fork()
    root_of(fork)["a"][0] = 9
    commit(repo, {"scalar": 6}, "theirs")
    found = [succeeds(fork.rebase, icechunk.ConflictDetector())]
    session.merge(fork)
    found += [succeeds(session.commit, "merged", rebase_with=icechunk.ConflictDetector())]
    return [*found, tree(repo.readonly_session("main"))]
