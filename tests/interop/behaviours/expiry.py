"""Expiration and garbage collection, between all else that is done."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from typing import Any

import icechunk
from tests.interop import turns
from tests.interop.behaviours.table import (
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

SOLVERS = {
    "detector": icechunk.ConflictDetector,
    "ours": icechunk.BasicConflictSolver,
    "theirs": lambda: icechunk.BasicConflictSolver(
        on_chunk_conflict=icechunk.VersionSelection.UseTheirs
    ),
    "fail": lambda: icechunk.BasicConflictSolver(on_chunk_conflict=icechunk.VersionSelection.Fail),
}


def prepare(base: str, folder: str) -> None:
    """Copy the base and commit to it, so that something can expire."""
    shutil.copytree(base, folder)
    repo = icechunk.Repository.open(turns.storage(folder))
    for number in range(2):
        commit(repo, {"scalar": number}, f"number {number}")


def outcome(folder: str, solver: str) -> dict[str, Any]:
    """Return what becomes of the session that is open there, with one of the `SOLVERS`."""
    session = turns.OPEN.pop(folder)
    found = {
        "before": [
            succeeds(lambda: root_of(session)["scalar"][...]),
            succeeds(session.commit, "ours"),
        ],
        "rebase": conflicts(session.commit, "rebased", rebase_with=SOLVERS[solver]()),
        "uncommitted": session.has_uncommitted_changes,
    }
    repo = icechunk.Repository.open(turns.storage(folder))
    return {
        **found,
        "history": messages(repo, branch="main"),
        "nodes": tree(repo.readonly_session("main")),
    }


# -- each side by itself ---------------------------------------------------------------------
def commits(repo: Any, count: int = 3, branch: str = "main") -> list[str]:
    """Write some commits; return their ids."""
    return [
        commit(repo, {"scalar": number, "a": number}, f"{branch} {number}", branch)
        for number in range(count)
    ]


def now() -> datetime:
    """Return a time after everything that was written."""
    return datetime.now(UTC) + timedelta(milliseconds=1)


def expired(repo: Any, older_than: datetime | None = None, **options: bool) -> Any:
    """Expire, everything if no time is given; return the messages of what expired."""
    known = {
        entry.id: entry.message
        for version in (
            *({"branch": name} for name in repo.list_branches()),
            *({"tag": name} for name in repo.list_tags()),
        )
        for entry in repo.ancestry(**version)
    }
    found = attempt(repo.expire_snapshots, older_than or now(), **options)
    return (
        found
        if isinstance(found, dict)
        else sorted(known.get(id, "of no branch or tag") for id in found)
    )


def collected(repo: Any) -> Any:
    """Collect all garbage; return how many objects of each kind it was."""
    found = attempt(repo.garbage_collect, now() + timedelta(seconds=2))
    if isinstance(found, dict):
        return found
    kinds = ("chunks", "manifests", "snapshots", "transaction_logs", "attributes")
    return [getattr(found, f"{kind}_deleted") for kind in kinds]


def refs(repo: Any) -> dict[str, Any]:
    """Return the messages of all histories, and names that may not be used."""
    return {
        "branches": {name: messages(repo, branch=name) for name in sorted(repo.list_branches())},
        "tags": {name: messages(repo, tag=name) for name in sorted(repo.list_tags())},
    }


@behaviour
def everything_but_the_newest_expires(repo: Any) -> Any:
    commits(repo)
    found = [expired(repo), refs(repo), collected(repo), collected(repo)]
    session = repo.readonly_session("main")
    return [*found, expired(repo), refs(repo), tree(session)]


@behaviour
def the_limit_is_exclusive(repo: Any) -> Any:
    _, second, _ = commits(repo)
    at = repo.lookup_snapshot(second).written_at
    found = [expired(repo, at), refs(repo)]
    return [*found, expired(repo, at + timedelta(microseconds=1)), refs(repo)]


@behaviour
def nothing_has_expired(repo: Any) -> Any:
    commits(repo)
    found = [expired(repo, datetime(2000, 1, 1, tzinfo=UTC)), collected(repo)]
    return [*found, [type(update.kind).__name__ for update in repo.ops_log()], refs(repo)]


@behaviour
def branches_and_tags_keep_what_they_point_to(repo: Any) -> Any:
    first, second, _ = commits(repo)
    repo.create_branch("aside", first)
    repo.create_tag("v1", second)
    root = list(repo.ancestry(branch="main"))[-1].id
    repo.create_branch("at the root", root)
    repo.create_tag("root", root)
    found = [expired(repo), refs(repo), collected(repo), refs(repo)]
    return [*found, tree(repo.readonly_session("aside")), tree(repo.readonly_session(tag="v1"))]


@behaviour
def branches_and_tags_expire(repo: Any) -> Any:
    first, second, third = commits(repo)
    repo.create_branch("aside", first)
    repo.create_branch("of main", third)
    repo.create_tag("v1", second)
    repo.create_tag("newest", third)
    repo.create_branch("at the root", list(repo.ancestry(branch="main"))[-1].id)
    options = {"delete_expired_branches": True, "delete_expired_tags": True}
    found = [expired(repo, **options), refs(repo), collected(repo), refs(repo)]
    again = {name: succeeds(repo.create_tag, name, third) for name in ("v1", "newest", "v2")}
    return [*found, again, succeeds(repo.create_branch, "aside", third), refs(repo)]


@behaviour
def tags_expire_though_none_may_be_deleted(repo: Any) -> Any:
    first, *_ = commits(repo)
    repo.create_tag("v1", first)
    repo.set_feature_flag("delete_tag", False)
    return [expired(repo, delete_expired_tags=True), refs(repo)]


@behaviour
def main_is_old_where_a_branch_is_young(repo: Any) -> Any:
    first, _, newest = commits(repo)
    repo.create_branch("aside", first)
    commits(repo, branch="aside")
    limit = repo.lookup_snapshot(newest).written_at + timedelta(microseconds=1)
    options = {"delete_expired_branches": True}
    found = [expired(repo, limit, **options), refs(repo), collected(repo)]
    return [*found, refs(repo), expired(repo, **options), refs(repo), collected(repo)]


@behaviour
def amended_and_detached_snapshots_expire(repo: Any) -> Any:
    commits(repo)
    for how in ("amend", "flush"):
        session = repo.writable_session("main")
        root_of(session)["scalar"][...] = 9
        getattr(session, how)(how)
    return [succeeds(repo.expire_snapshots, now()), refs(repo), collected(repo), refs(repo)]


@behaviour
def a_read_only_repository_expires(repo: Any) -> Any:
    commits(repo)
    repo.set_status(icechunk.RepoStatus(icechunk.RepoAvailability.read_only))
    dry = succeeds(repo.garbage_collect, now(), dry_run=True)
    found = [expired(repo), dry, succeeds(repo.garbage_collect, now())]
    return [*found, succeeds(repo.chunk_storage_stats), repo.total_chunks_storage()]


@behaviour
def expired_snapshots_are_asked_for(repo: Any) -> Any:
    first, _, newest = commits(repo)
    found: dict[str, Any] = {"expired": expired(repo)}
    for when in ("before", "after"):
        # which has nothing in its cache
        again = icechunk.Repository.open(repo.storage)
        one, other = {"from_snapshot_id": first}, {"from_snapshot_id": newest}
        asked: list[tuple[str, Any, list[Any], dict[str, Any]]] = [
            ("lookup", again.lookup_snapshot, [first], {}),
            ("session", again.readonly_session, [], {"snapshot_id": first}),
            ("history", messages, [again], {"snapshot_id": first}),
            ("branch", again.create_branch, ["of what expired", first], {}),
            ("tag", again.create_tag, ["of what expired", first], {}),
            ("reset", again.reset_branch, ["main", first], {}),
            ("manifests", again.list_manifest_files, [first], {}),
            ("diff", again.diff, [], {**one, "to_branch": "main"}),
            ("diff back", again.diff, [], {**other, "to_snapshot_id": first}),
            ("inspect", again.inspect_snapshot, [first], {}),
            ("inspect log", again.inspect_transaction_log, [first], {}),
        ]
        for name, call, arguments, options in asked:
            found[f"{name}, {when}"] = succeeds(call, *arguments, **options)
        found[f"collected {when}"] = collected(repo)
    return found


@behaviour
def a_reader_stays_open(repo: Any) -> Any:
    first, *_ = commits(repo)
    readers = [repo.readonly_session(snapshot_id=first) for _ in range(2)]
    before = tree(readers[0])
    found = [expired(repo), tree(readers[0]) == before, collected(repo)]
    again = icechunk.Repository.open(repo.storage)
    return [*found, succeeds(again.readonly_session, snapshot_id=first)]


@behaviour
def diffs_over_what_expired(repo: Any) -> Any:
    first, _, newest = commits(repo)
    root = list(repo.ancestry(branch="main"))[-1].id
    repo.create_tag("first", first)
    later = [commit(repo, {"scalar": number}, f"later {number}") for number in range(2)]
    found = [expired(repo)]
    for _ in range(2):
        for start, end in ((root, first), (root, later[1]), (first, later[1]), (root, newest)):
            diff = attempt(repo.diff, from_snapshot_id=start, to_snapshot_id=end)
            found += [diff if isinstance(diff, dict) else changes(diff)]
        found += [collected(repo)]
    return found


@behaviour
def logs_and_drawings_after_maintenance(repo: Any) -> Any:
    first, *_ = commits(repo)
    repo.create_branch("aside", first)
    commits(repo, branch="aside")
    expired(repo)
    collected(repo)
    return [
        [type(update.kind).__name__ for update in repo.ops_log()],
        len(str(repo.ancestry_graph(plain=True)).splitlines()),
        len(str(repo.ancestry_graph(plain=True, branch="aside")).splitlines()),
    ]


@behaviour
def work_goes_on_after_maintenance(repo: Any) -> Any:
    _, second, _ = commits(repo)
    repo.create_tag("v1", second)
    found = [expired(repo), collected(repo)]
    for how in ("amend", "commit", "flush"):
        session = repo.writable_session("main")
        root_of(session)["scalar"][...] = 7
        found += [succeeds(getattr(session, how), f"{how} after")]
    session = repo.rearrange_session("main")
    session.move("/a", "/moved")
    session.commit("moved")
    repo.rewrite_manifests("rewritten", branch="main")
    found += [refs(repo), expired(repo), collected(repo), refs(repo)]
    return [*found, expired(repo, delete_expired_tags=True), collected(repo), refs(repo)]


@behaviour
def a_session_goes_on_after_its_chunks_were_collected(repo: Any) -> Any:
    session = repo.writable_session("main")
    root_of(session)["m"][...] = 4
    collected(repo)
    found = {"read": attempt(lambda: root_of(session)["m"][0, 0].item())}
    session.discard_changes()
    return found
