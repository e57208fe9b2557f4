"""Expiration and garbage collection between all that makes history, against a model.

The model of a version is its chunks; that of a history is the list of all commits that
ever led to a snapshot, whatever expires: their transaction logs must be there as long as
the snapshot is (in spec version 2). What may be deleted is found by `tests.reachability`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from icechunk import Repository
from icechunk.format import layout
from icechunk.format.ids import decode_id, encode_id
from icechunk.storage.base import Storage
from tests import reachability
from tests.histories import CHUNKS, Values, create, read, write
from tests.storages import new_storage

BRANCHES = ("main", "b", "c")
TAGS = tuple("tuvwxyz")
T = TypeVar("T")
TICK = timedelta(microseconds=1)
edits = st.dictionaries(st.integers(0, CHUNKS - 1), st.binary(min_size=1, max_size=6), min_size=1)
# what undoes the work of other steps would keep them from meeting each other
rarely = st.sampled_from([False, False, True])


#: Which of those that there are: ids and times differ between runs, so they cannot be drawn.
picks = st.integers(0, 1000)


def choose(things: Iterable[T], pick: int) -> T:
    known = list(things)
    return known[pick % len(known)]


@dataclass
class Commit:
    """What is known of a snapshot, with all snapshots before it, oldest first."""

    values: Values
    commits: list[str]


class Histories(RuleBasedStateMachine):
    def __init__(self, storage: Storage, spec_version: int) -> None:
        super().__init__()
        self.storage = storage
        self.spec_version = spec_version
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.unused_tags = list(TAGS)

    @initialize()
    def create(self) -> None:
        self.repository = create(self.storage, self.spec_version)
        self.root, tip = (
            entry.id for entry in reversed([*self.repository.ancestry(branch="main")])
        )
        self.commits[self.root] = Commit({}, [])
        self.commits[tip] = Commit({}, [tip])
        self.branches["main"] = tip

    # -- history is made -----------------------------------------------------------------
    @rule(
        pick=picks,
        work=st.lists(edits, min_size=1, max_size=3),
        how=st.sampled_from(["commit", "commit", "flush", "amend"]),
    )
    def edit(self, pick: int, work: list[Values], how: str) -> None:
        branch = choose(self.branches, pick)
        if how == "amend" and self.spec_version < 2:
            return
        for values in work:
            base = self.commits[self.branches[branch]]
            if not base.commits:
                return
            session = self.repository.writable_session(branch)
            write(session, values)
            id: str = getattr(session, how)(how)
            before = base.commits[:-1] if how == "amend" else base.commits
            self.commits[id] = Commit({**base.values, **values}, [*before, id])
            if how != "flush":
                self.branches[branch] = id

    def targets(self) -> list[str]:
        """Return the snapshots that are there, and that a ref may be made of."""
        if self.spec_version > 1:
            listed = self.repository._info.snapshots
            return [id for id in self.commits if decode_id(id) in listed]
        stored = {meta.key.removeprefix("snapshots/") for meta in self.storage.list("snapshots/")}
        # a flush leaves nothing but files: the history of one may be gone
        return [id for id in self.commits if {id, *self.commits[id].commits} <= stored]

    @rule(pick=picks, name=st.sampled_from(BRANCHES), delete=rarely)
    def branch(self, pick: int, name: str, delete: bool) -> None:
        if delete and name in self.branches and name != "main":
            self.repository.delete_branch(name)
            del self.branches[name]
            return
        target = choose(self.targets(), pick)
        if name in self.branches:
            self.repository.reset_branch(name, target)
        else:
            self.repository.create_branch(name, target)
        self.branches[name] = target

    @precondition(lambda self: self.unused_tags)
    @rule(pick=picks)
    def tag(self, pick: int) -> None:
        name, target = self.unused_tags.pop(), choose(self.targets(), pick)
        self.repository.create_tag(name, target)
        self.tags[name] = target

    @precondition(lambda self: self.tags)
    @rule(pick=picks)
    def delete_tag(self, pick: int) -> None:
        name = choose(self.tags, pick)
        self.repository.delete_tag(name)
        del self.tags[name]

    # -- and undone ----------------------------------------------------------------------
    @rule(pick=picks, later=st.booleans(), branches=rarely, tags=rarely)
    def expire(self, pick: int, later: bool, branches: bool, tags: bool) -> None:
        refs = [*self.branches.values(), *self.tags.values()]
        before = {tip: [*self.repository.ancestry(snapshot_id=tip)] for tip in refs}
        when = {entry.id: entry.written_at for entries in before.values() for entry in entries}
        older_than = choose(sorted(when.values()), pick) + TICK * later
        listed = self.targets()
        found = self.repository.expire_snapshots(
            older_than, delete_expired_branches=branches, delete_expired_tags=tags
        )
        old = {id for id in when if when[id] < older_than and id != self.root}
        if self.spec_version > 1:
            assert found == set(listed) - set(self.targets())
        # in spec version 1 refs go that point to the first snapshot, as with official clients
        doomed = {id for id in when if when[id] < older_than} if self.spec_version < 2 else old
        for name in [name for name in self.branches if branches and name != "main"]:
            if self.branches[name] in doomed:
                del self.branches[name]
        for name in [name for name in self.tags if tags and self.tags[name] in doomed]:
            del self.tags[name]
        assert self.repository.list_branches() == set(self.branches)
        assert self.repository.list_tags() == set(self.tags)
        tips = {*self.branches.values(), *self.tags.values()}
        for tip in tips:
            # a history goes on until the first that neither is young nor kept for a ref
            kept = [tip]
            for entry in before[tip][1:]:
                if entry.id in old and (entry.id not in tips or self.spec_version < 2):
                    break
                kept.append(entry.id)
            after = [entry.id for entry in self.repository.ancestry(snapshot_id=tip)]
            assert after == [*(id for id in kept if id != self.root), self.root]
            if self.spec_version < 2:
                assert {entry.id for entry in before[tip]} - set(after) <= found <= old

    @rule(pick=picks, later=st.booleans())
    def garbage_collect(self, pick: int, later: bool) -> None:
        before = reachability.collectable(self.storage)
        everything = reachability.objects(self.storage)
        times = sorted({meta.last_modified for meta in before.values()})
        # often after all of them, so that something is old enough
        cutoff = choose([*times, *times[-1:] * len(times)], pick) + TICK * later
        stays = reachability.protected(self.storage, cutoff)
        expected = self.repository.garbage_collect(cutoff, dry_run=True)
        assert reachability.objects(self.storage) == everything
        summary = self.repository.garbage_collect(cutoff)
        assert summary == expected
        after = reachability.collectable(self.storage)
        assert after.keys() == stays
        gone = before.keys() - stays
        assert summary.bytes_deleted == sum(before[key].size for key in gone)
        assert [
            summary.snapshots_deleted,
            summary.transaction_logs_deleted,
            summary.manifests_deleted,
            summary.chunks_deleted,
        ] == [sum(key.startswith(folder) for key in gone) for folder in reachability.FOLDERS]

    @rule()
    def collect_everything(self) -> None:
        # but the transaction log of the first snapshot, which spec version 1 does not have
        stays = reachability.needed(self.storage) & reachability.objects(self.storage).keys()
        self.repository.garbage_collect(datetime.now(UTC) + timedelta(seconds=10))
        assert reachability.collectable(self.storage).keys() == stays

    # -- what always holds ----------------------------------------------------------------
    @invariant()
    def every_ref_reads_what_was_written(self) -> None:
        repository = Repository.open(self.storage)
        assert {b: repository.lookup_branch(b) for b in repository.list_branches()} == self.branches
        assert {t: repository.lookup_tag(t) for t in repository.list_tags()} == self.tags
        for tip in {*self.branches.values(), *self.tags.values()}:
            assert read(repository.readonly_session(snapshot_id=tip)) == self.commits[tip].values
            *_, root = repository.ancestry(snapshot_id=tip)
            assert root.id == self.root
            # needs all transaction logs
            diff = repository.diff(from_snapshot_id=self.root, to_snapshot_id=tip)
            if self.spec_version > 1:
                assert {chunk for (chunk,) in diff.updated_chunks.get("/a", [])} == (
                    self.commits[tip].values.keys()
                )

    @invariant()
    def every_commit_is_remembered(self) -> None:
        info = reachability.repo_info(self.storage)
        if info is None:
            return
        stored = reachability.collectable(self.storage).keys()
        for id in info.snapshots:
            logs = [log for e in info.ancestry(id) for log in (e.id, *reversed(e.pruned))][:-1]
            assert [encode_id(log) for log in reversed(logs)] == self.commits[encode_id(id)].commits
            assert {layout.transaction_key(log) for log in logs} <= stored


@pytest.mark.parametrize("kind", ["memory", "local"])
@pytest.mark.parametrize("spec_version", [2, 1])
def test_maintenance(spec_version: int, kind: str, request: pytest.FixtureRequest) -> None:
    run_state_machine_as_test(
        lambda: Histories(new_storage(kind, request), spec_version),
        settings=settings(
            max_examples=8 if kind == "memory" else 3,
            stateful_step_count=30,
        ),
    )
