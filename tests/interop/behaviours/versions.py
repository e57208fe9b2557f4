"""Branches, tags, histories and what is said about commits."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import icechunk
from tests.interop.behaviours.table import (
    attempt,
    behaviour,
    changes,
    commit,
    messages,
    root_of,
    succeeds,
    tree,
)

NAMES = ["a/b", "é", "日本", " ", "a b", "%20", "x" * 100, ".", "..", "", "/", "a//b", "main"]


def _tip(repo: Any, branch: str = "main") -> str:
    return str(repo.lookup_branch(branch))


@behaviour
def branches_with_unusual_names(repo: Any) -> Any:
    made = {name: succeeds(repo.create_branch, name, _tip(repo)) for name in NAMES}
    written = {
        name: succeeds(commit, repo, {"scalar": number}, f"on number {number}", name)
        for number, name in enumerate(NAMES)
        if name != "main"
    }
    listed = sorted(repo.list_branches())
    deleted = {name: succeeds(repo.delete_branch, name) for name in NAMES[::2]}
    return [made, written, listed, deleted, sorted(repo.list_branches())]


@behaviour
def tags_with_unusual_names(repo: Any) -> Any:
    made = {name: succeeds(repo.create_tag, name, _tip(repo)) for name in NAMES}
    listed = sorted(repo.list_tags())
    deleted = {name: succeeds(repo.delete_tag, name) for name in NAMES[::2]}
    again = {name: succeeds(repo.create_tag, name, _tip(repo)) for name in NAMES}
    looked = {name: succeeds(repo.lookup_tag, name) for name in NAMES}
    read = {name: succeeds(repo.readonly_session, tag=name) for name in NAMES}
    return [made, listed, deleted, again, looked, read, sorted(repo.list_tags())]


@behaviour
def branch_and_tag_of_one_name(repo: Any) -> Any:
    old = _tip(repo)
    repo.create_branch("both", old)
    repo.create_tag("both", old)
    commit(repo, {"scalar": 1}, "on the branch", "both")
    return [
        messages(repo, branch="both"),
        messages(repo, tag="both"),
        repo.lookup_tag("both") == old,
        tree(repo.readonly_session("both"))["scalar"],
        tree(repo.readonly_session(tag="both"))["scalar"],
    ]


@behaviour
def lookups_of_what_is_missing(repo: Any) -> Any:
    nothing = "0" * 20
    return [
        succeeds(repo.lookup_branch, "nothing"),
        succeeds(repo.lookup_tag, "nothing"),
        succeeds(repo.lookup_snapshot, nothing),
        succeeds(repo.readonly_session, "nothing"),
        succeeds(repo.readonly_session, tag="nothing"),
        succeeds(repo.readonly_session, snapshot_id=nothing),
        succeeds(repo.delete_branch, "nothing"),
        succeeds(repo.delete_tag, "nothing"),
        succeeds(repo.reset_branch, "nothing", _tip(repo)),
        succeeds(repo.create_branch, "b", nothing),
        succeeds(repo.create_tag, "t", nothing),
        succeeds(lambda: list(repo.ancestry(branch="nothing"))),
        succeeds(lambda: list(repo.ancestry(tag="nothing"))),
        succeeds(lambda: list(repo.ancestry(snapshot_id=nothing))),
        succeeds(repo.diff, from_branch="nothing", to_branch="main"),
    ]


@behaviour
def deletion_of_a_branch_with_sessions(repo: Any) -> Any:
    repo.create_branch("b", _tip(repo))
    reader, writer = repo.readonly_session("b"), repo.writable_session("b")
    root_of(writer)["scalar"][...] = 9
    repo.delete_branch("b")
    found = [tree(reader)["scalar"], tree(writer)["scalar"], writer.branch]
    found += [succeeds(writer.commit, "gone")]
    repo.create_branch("b", _tip(repo))
    return [*found, succeeds(writer.commit, "there again"), messages(repo, branch="b")]


@behaviour
def ancestry_while_the_branch_is_reset(repo: Any) -> Any:
    ids = [commit(repo, {"scalar": n}, f"number {n}") for n in range(4)]
    walk = repo.ancestry(branch="main")
    found = [next(walk).message]
    repo.reset_branch("main", ids[1])
    found += [entry.message for entry in walk]
    found += messages(repo, branch="main")
    return [*found, messages(repo, snapshot_id=ids[3]), messages(repo, snapshot_id=ids[0])]


@behaviour
def reset_forwards_and_back(repo: Any) -> Any:
    ids = [commit(repo, {"scalar": n}, f"number {n}") for n in range(3)]
    found = []
    for target, start in ((0, 2), (2, 0), (1, 0), (1, 2), (0, 1)):
        found.append(succeeds(repo.reset_branch, "main", ids[target], from_snapshot_id=ids[start]))
        found.append(messages(repo, branch="main")[0])
    return found


@behaviour
def reset_to_what_was_flushed(repo: Any) -> Any:
    session = repo.writable_session("main")
    root_of(session)["a"][0] = 9
    flushed = session.flush("flushed", metadata={"n": 1})
    found = [session.branch, session.read_only, str(session.mode), session.snapshot_id == flushed]
    found += [messages(repo, branch="main"), messages(repo, snapshot_id=flushed)]
    repo.create_tag("t", flushed)
    repo.create_branch("b", flushed)
    repo.reset_branch("main", flushed)
    commit(repo, {"scalar": 2}, "on top")
    found += [messages(repo, branch="main"), messages(repo, tag="t"), messages(repo, branch="b")]
    return [*found, tree(repo.readonly_session("main"))["a"]]


@behaviour
def versions_as_of_times(repo: Any) -> Any:
    for number in range(3):
        commit(repo, {"scalar": number}, f"number {number}")
    entries = list(repo.ancestry(branch="main"))
    step = timedelta(microseconds=1)
    names = {entry.id: entry.message for entry in entries}

    def at(time: datetime) -> Any:
        found = attempt(lambda: repo.readonly_session("main", as_of=time).snapshot_id)
        return names[found] if isinstance(found, str) else found

    return {
        entry.message: [at(entry.written_at + delta * step) for delta in (-1, 0, 1)]
        for entry in entries
    }


@behaviour
def metadata_of_all_types(repo: Any) -> Any:
    found = []
    for number, value in enumerate(
        (
            *(None, True, False, 0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1),
            *(0.0, -0.5, 1e300, 5e-324, "", "é🧊", "\0", [], {}, [None, [1, "a", {"b": []}]]),
            *({"": {"": ""}}, {"é": {"z": 1, "a": 2}}, list(range(300)), "x" * 1000, (1, 2)),
        )
    ):
        session = repo.writable_session("main")
        outcome = succeeds(
            session.commit, f"number {number}", metadata={"value": value}, allow_empty=True
        )
        stored = next(iter(repo.ancestry(branch="main"))).metadata.get("value", "none")
        found.append([repr(value)[:40], outcome, json.dumps(stored, sort_keys=True)[:100]])
        repo.reset_branch("main", list(repo.ancestry(branch="main"))[-2].id)
    return found


@behaviour
def metadata_that_is_no_json(repo: Any) -> Any:
    found = {}
    for value in (float("inf"), 2**64, b"bytes", {1: 2}):
        session = icechunk.Repository.create(icechunk.in_memory_storage()).writable_session("main")
        metadata = {"value": value}
        found[repr(value)] = succeeds(session.commit, "x", metadata=metadata, allow_empty=True)
    return found


@behaviour
def default_metadata_of_commits(repo: Any) -> Any:
    found = [repo.default_commit_metadata()]
    repo.set_default_commit_metadata({"who": "me", "n": 1})
    found.append(repo.default_commit_metadata())
    early = repo.writable_session("main")
    repo.set_default_commit_metadata({"who": "you", "m": [1]})
    root_of(early)["scalar"][...] = 1
    early.commit("early", metadata={"n": 2, "x": None})
    commit(repo, {"scalar": 2}, "late")
    session = repo.writable_session("main")
    root_of(session)["scalar"][...] = 3
    session.amend("amended", metadata={"who": "nobody"})
    again = icechunk.Repository.open(repo.storage)
    found += [again.default_commit_metadata(), repo.reopen().default_commit_metadata()]
    return [*found, [entry.metadata for entry in repo.ancestry(branch="main")]]


@behaviour
def metadata_of_the_repository(repo: Any) -> Any:
    found = [repo.get_metadata(), repo.metadata]
    repo.set_metadata({"a": 1, "b": {"c": [1, 2]}})
    found.append(repo.get_metadata())
    found.append(repo.update_metadata({"b": {"d": 1}, "e": None}))
    found.append(repo.get_metadata())
    repo.set_metadata({})
    return [*found, icechunk.Repository.open(repo.storage).get_metadata()]


@behaviour
def the_operations_log(repo: Any) -> Any:
    """Every kind of operation, newest first."""
    tip = _tip(repo)
    repo.create_branch("b", tip)
    repo.create_tag("t", tip)
    commit(repo, {"scalar": 1}, "to amend", "b")
    session = repo.writable_session("b")
    root_of(session)["scalar"][...] = 2
    session.amend("amended")
    session = repo.writable_session("b")
    root_of(session)["scalar"][...] = 3
    session.flush("flushed")
    repo.reset_branch("b", tip)
    repo.delete_tag("t")
    repo.delete_branch("b")
    repo.save_config()
    repo.set_metadata({"a": 1})
    repo.set_feature_flag("delete_tag", True)
    kinds = [type(entry.kind).__name__ for entry in repo.ops_log()]
    times = [entry.updated_at for entry in repo.ops_log()]
    return [kinds, times == sorted(times, reverse=True)]


@behaviour
def diffs_over_several_hops(repo: Any) -> Any:
    start = _tip(repo)
    ids = [start]
    session = repo.writable_session("main")
    root = root_of(session)
    root["a"][0:4] = 9
    root.create_group("new").attrs["x"] = 1
    ids.append(session.commit("first"))
    session = repo.writable_session("main")
    root = root_of(session)
    root["a"][2:6] = 8
    del root["m"]
    root["new"].attrs["y"] = 1
    ids.append(session.commit("second"))
    session = repo.writable_session("main")
    root = root_of(session)
    del root["new"]
    root["sparse"].resize((3,))
    root["scalar"].attrs["x"] = 1
    ids.append(session.commit("third"))
    repo.create_tag("t", ids[2])
    return [
        changes(repo.diff(from_snapshot_id=ids[i], to_snapshot_id=ids[j]))
        for i in range(4)
        for j in range(i + 1, 4)
    ] + [
        changes(repo.diff(from_tag="t", to_branch="main")),
        succeeds(repo.diff, from_branch="main", to_tag="t"),
    ]


@behaviour
def diffs_of_branches_that_parted(repo: Any) -> Any:
    repo.create_branch("b", _tip(repo))
    commit(repo, {"scalar": 1}, "on main")
    commit(repo, {"scalar": 2}, "on b", "b")
    return [
        succeeds(repo.diff, from_branch="main", to_branch="b"),
        succeeds(repo.diff, from_branch="b", to_branch="main"),
    ]
