"""Commits made of other commits: squash, cherry-pick, revert, against a model."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings, strategies as st

from icechunk import (
    CachingConfig,
    ConflictDetector,
    ConflictError,
    ConflictType,
    InvalidInputError,
    RebaseFailedError,
    Repository,
    SessionStateError,
    SnapshotNotFoundError,
)
from icechunk.storage import MemoryStorage
from tests import histories
from tests.histories import Values

SPECS = [1, 2]
chunks = st.dictionaries(
    st.integers(0, histories.CHUNKS - 1), st.binary(min_size=1, max_size=5), min_size=1, max_size=3
)


def repository(spec: int = 2) -> Repository:
    return histories.create(MemoryStorage(), spec)


def now(repo: Repository, branch: str = "main") -> Values:
    return histories.newest(repo.storage, branch)


def messages(repo: Repository, branch: str = "main") -> list[str]:
    return [each.message for each in repo.ancestry(branch=branch)]


# -- squash --------------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=10)
@given(before=st.lists(chunks, max_size=2), after=st.lists(chunks, min_size=1, max_size=4))
def test_squash(spec: int, before: list[Values], after: list[Values]) -> None:
    repo = repository(spec)
    for values in before:
        histories.commit(repo, values)
    base = repo.lookup_branch("main")
    tips = [histories.commit(repo, values) for values in after]
    state = now(repo)
    diff = repo.diff(from_snapshot_id=base, to_branch="main")
    repo.create_tag("old", tips[-1])
    id = repo.squash("main", base, "one", metadata={"by": "us"})
    assert now(repo) == state
    assert repo.lookup_branch("main") == id
    newest, parent = list(repo.ancestry(branch="main"))[:2]
    assert (newest.message, newest.metadata, parent.id) == ("one", {"by": "us"}, base)
    assert repo.diff(from_snapshot_id=base, to_branch="main") == diff
    # what is elsewhere stays
    assert [each.id for each in repo.ancestry(tag="old")][: len(tips)] == tips[::-1]
    assert repo.verify().ok
    # and goes on
    histories.commit(repo, {0: b"next"})
    assert now(repo) == {**state, 0: b"next"}


def test_squash_of_all_that_can_happen_to_nodes() -> None:
    repo = repository()
    base = repo.lookup_branch("main")
    session = repo.writable_session("main")
    root = zarr.open_group(session.store)
    root.create_group("g").create_array("x", shape=(2,), chunks=(1,), dtype="i4")[:] = 1
    root.create_array("gone", shape=(2,), chunks=(1,), dtype="i4")[:] = 1
    session.commit("made", metadata={"a": 1, "b": 1})
    session = repo.writable_session("main")
    root = zarr.open_group(session.store)
    root["g"].attrs["k"] = 1
    root["a"].attrs["k"] = 1
    del root["gone"]
    session.commit("edited", metadata={"b": 2})
    session = repo.rearrange_session("main")
    session.move("/g", "/h")
    session.move("/a", "/b")
    tip = session.commit("moved")
    before = {n.path: n for n in repo.readonly_session("main").tree.nodes()}
    id = repo.squash("main", base, "all")
    assert {n.path: n for n in repo.readonly_session("main").tree.nodes()} == before
    (newest, *_) = repo.ancestry(branch="main")
    assert newest.metadata == {"a": 1, "b": 2}
    diff = repo.diff(from_snapshot_id=base, to_snapshot_id=id)
    assert diff.new_groups == {"/h"}
    assert diff.new_arrays == {"/h/x"}
    assert diff.updated_arrays == {"/b"}
    assert diff.moved_nodes == [("/a", "/b")]
    assert not (diff.deleted_arrays or diff.updated_groups)
    kinds = [type(each.kind).__name__ for each in repo.ops_log()][:1]
    assert kinds == ["CommitAmended"]
    # a session that began before, or on what was squashed, is told
    assert repo.verify().ok
    assert repo.readonly_session(snapshot_id=tip).snapshot_id == tip


def test_squash_keeps_what_expired_commits_said() -> None:
    repo = repository()
    session = repo.writable_session("main")
    histories.write(session, {0: b"mine"})
    histories.commit(repo, {0: b"a"})
    histories.commit(repo, {1: b"b"})
    cutoff = repo.lookup_snapshot(histories.commit(repo, {2: b"c"})).written_at
    repo.expire_snapshots(cutoff)
    repo.squash("main", "main~1", "one")
    # what it began with has expired: the whole history counts as changed
    with pytest.raises(RebaseFailedError):
        session.commit("late", rebase_with=ConflictDetector())


def test_squash_refuses() -> None:
    repo = repository()
    base = repo.lookup_branch("main")
    repo.create_branch("side", base)
    other = histories.commit(repo, {0: b"a"}, "side")
    with pytest.raises(InvalidInputError, match="nothing to squash"):
        repo.squash("main", "main", "none")
    with pytest.raises(InvalidInputError, match="not an ancestor"):
        repo.squash("main", other, "none")


def test_squash_loses_to_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    repo = repository()
    histories.commit(repo, {0: b"a"})
    state = repo.context.state
    update = state.update

    def late(*args: object, **kwargs: object) -> int:
        monkeypatch.undo()
        histories.commit(repo, {1: b"b"})
        return update(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(state, "update", late)
    with pytest.raises(ConflictError):
        repo.squash("main", "main~1", "one")
    assert now(repo) == {0: b"a", 1: b"b"}


# -- cherry-pick and revert ------------------------------------------------------------------------
def patched(state: Values, before: Values, after: Values) -> Values | None:
    """Return a state with what makes `after` of `before`; None if that contradicts it."""
    result = dict(state)
    for chunk in range(histories.CHUNKS):
        old, new, here = before.get(chunk), after.get(chunk), state.get(chunk)
        if old == new or here == new:
            continue
        if here != old:
            return None
        result.pop(chunk, None)
        if new is not None:
            result[chunk] = new
    return result


inline = st.dictionaries(
    st.integers(0, 3), st.binary(min_size=1, max_size=2), min_size=1, max_size=2
)


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=25)
@given(
    shared=st.lists(inline, max_size=2),
    here=st.lists(inline, max_size=2),
    there=st.lists(inline, min_size=1, max_size=3),
    data=st.data(),
)
def test_like_the_model(
    spec: int, shared: list[Values], here: list[Values], there: list[Values], data: st.DataObject
) -> None:
    repo = repository(spec)
    for values in shared:
        histories.commit(repo, values)
    repo.create_branch("side", repo.lookup_branch("main"))
    for values in here:
        histories.commit(repo, values)
    ids = [histories.commit(repo, values, "side") for values in there]
    is_revert = data.draw(st.booleans())
    branch = data.draw(st.sampled_from(["main", "side"]))
    id = data.draw(st.sampled_from(ids))
    (parent,) = [e.parent_id for e in repo.ancestry(branch="side") if e.id == id]
    versions = [histories.read(repo.readonly_session(snapshot_id=each)) for each in (parent, id)]
    if is_revert:
        versions.reverse()
    state = now(repo, branch)
    expected = patched(state, *versions)
    make = repo.revert if is_revert else repo.cherry_pick
    old = repo.lookup_branch(branch)
    try:
        new = make(branch, id)
    except RebaseFailedError as error:
        assert expected is None
        assert {c.conflict_type for c in error.conflicts} == {ConflictType.ChunkDoubleUpdate}
    except SessionStateError:
        assert expected == state
    else:
        assert now(repo, branch) == expected
        assert [e.id for e in repo.ancestry(branch=branch)][:2] == [new, old]
        assert repo.verify().ok
        return
    assert repo.lookup_branch(branch) == old


def test_nodes_are_picked_and_reverted() -> None:
    repo = repository()
    repo.create_branch("side", repo.lookup_branch("main"))
    session = repo.writable_session("side")
    root = zarr.open_group(session.store)
    root.create_group("g").create_array("x", shape=(3,), chunks=(1,), dtype="i4")[:] = [1, 2, 3]
    made = session.commit("made", metadata={"by": "me"})
    session = repo.writable_session("side")
    zarr.open_array(session.store, path="g/x")[1] = 9
    changed = session.commit("changed")
    histories.commit(repo, {5: b"5"})
    # what is not there cannot be changed
    with pytest.raises(RebaseFailedError, match="ChunksUpdatedInDeletedArray, '/g/x'"):
        repo.cherry_pick("main", changed)
    id = repo.cherry_pick("main", made)
    info = repo.lookup_snapshot(id)
    assert (info.message, info.metadata["by"]) == ("made", "me")
    assert info.metadata["__icechunk"] == {"picked": made}
    repo.cherry_pick("main", "side", message="again")
    values = zarr.open_array(repo.readonly_session("main").store, path="g/x", mode="r")[:]
    assert values.tolist() == [1, 9, 3]
    assert now(repo)[5] == b"5"
    with pytest.raises(SessionStateError, match="no changes made to the session"):
        repo.cherry_pick("main", "side")
    # what was changed since is not taken away
    with pytest.raises(RebaseFailedError, match="DeleteOfUpdatedArray, '/g/x'"):
        repo.revert("main", id)
    repo.revert("main", "main")
    repo.revert("main", id)
    assert [n.path for n in repo.readonly_session("main").tree.nodes()] == ["/", "/a"]
    assert messages(repo)[:3] == ['Revert "made"', 'Revert "again"', "again"]
    # a deletion that is taken back brings the values with it
    repo.revert("main", "main")
    values = zarr.open_array(repo.readonly_session("main").store, path="g/x", mode="r")[:]
    assert values.tolist() == [1, 2, 3]
    assert repo.verify().ok


def attrs(repo: Repository, branch: str, path: str, **values: object) -> str:
    session = repo.writable_session(branch)
    zarr.open(session.store, path=path, mode="a").attrs.update(values)
    return session.commit("attributes")


def test_conflicts_of_nodes_are_named() -> None:
    repo = repository()
    base = repo.lookup_branch("main")
    for branch in ("side", "other", "gone"):
        repo.create_branch(branch, base)
    picked = attrs(repo, "side", "a", k=1)
    attrs(repo, "other", "a", k=2)
    with pytest.raises(RebaseFailedError, match="ZarrMetadataDoubleUpdate, '/a'"):
        repo.cherry_pick("other", picked)
    session = repo.writable_session("gone")
    del zarr.open_group(session.store)["a"]
    deleted = session.commit("deleted")
    with pytest.raises(RebaseFailedError, match="ZarrMetadataUpdateOfDeletedArray, '/a'"):
        repo.cherry_pick("gone", picked)
    with pytest.raises(RebaseFailedError, match="DeleteOfUpdatedArray, '/a'"):
        repo.cherry_pick("side", deleted)
    # attributes say nothing of chunks, the shape does
    written = histories.commit(repo, {0: b"xyzw"})
    repo.cherry_pick("side", written)
    assert now(repo, "side") == {0: b"xyzw"}
    session = repo.writable_session("other")
    zarr.open_array(session.store, path="a").resize((3,))
    session.commit("resized")
    with pytest.raises(RebaseFailedError, match="ChunksUpdatedInUpdatedArray, '/a'"):
        repo.cherry_pick("other", written)
    session = repo.writable_session("main")
    zarr.open_group(session.store).create_group("n")
    session.commit("group")
    session = repo.writable_session("main")
    zarr.open_group(session.store, path="n").create_group("m")
    below = session.commit("below")
    with pytest.raises(RebaseFailedError, match="NewNodeInInvalidGroup, '/n'"):
        repo.cherry_pick("side", below)
    session = repo.writable_session("side")
    zarr.open_group(session.store).create_array("n", shape=(1,), dtype="i4")
    session.commit("array")
    with pytest.raises(RebaseFailedError, match="NewNodeConflictsWithExistingNode, '/n'"):
        repo.cherry_pick("side", "main~1")


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_unknown_is_refused(spec: int) -> None:
    repo = repository(spec)
    root = repo.resolve("main~1")
    with pytest.raises(SessionStateError, match="first of its history"):
        repo.revert("main", root)
    histories.commit(repo, {0: b"a"})
    histories.commit(repo, {1: b"b"})
    tip = histories.commit(repo, {2: b"c"})
    repo.expire_snapshots(repo.lookup_snapshot(tip).written_at)
    fresh = Repository.open(repo.storage)
    with pytest.raises(SessionStateError, match="the one before it has expired"):
        fresh.cherry_pick("main", "main")


def test_chunks_that_were_collected_are_not_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken from a version is safe only while that version is known."""
    for how in ("replay", "pick"):
        repo = repository()
        base = repo.lookup_branch("main")
        repo.create_branch("side", base)
        tip = histories.commit(repo, {0: b"a native chunk"}, "side")
        collector = Repository.open(repo.storage)

        def collect(repo: Repository = collector) -> None:
            repo.delete_branch("side")
            repo.garbage_collect(datetime.now(UTC) + timedelta(days=1))

        if how == "replay":
            session = repo.replay_session("main", from_snapshot_id=base, to_snapshot_id=tip)
            collect()
            with pytest.raises(SnapshotNotFoundError, match="was removed since"):
                session.commit("lost")
        else:
            state = repo.context.state
            update = state.update

            def late(*args: Any, update: Any = update, **kwargs: Any) -> int:
                collect()
                return int(update(*args, **kwargs))

            monkeypatch.setattr(state, "update", late)
            with pytest.raises(SnapshotNotFoundError, match="was removed since"):
                repo.cherry_pick("main", tip)
        assert now(repo) == {}


def test_a_branch_that_was_reset_below_an_array() -> None:
    """Chunks of an array that is not there any more are a conflict, not lost in silence."""
    repo = repository()
    base = repo.lookup_branch("main")
    session = repo.writable_session("main")
    root = zarr.open_group(session.store)
    root.create_array("late", shape=(4,), chunks=(1,), dtype="i4")
    root.create_group("g")
    session.commit("made")
    written, changed = repo.writable_session("main"), repo.writable_session("main")
    zarr.open_array(written.store, path="late")[:] = np.arange(4)
    zarr.open_group(changed.store, path="g").attrs["k"] = 1
    repo.reset_branch("main", base)
    with pytest.raises(RebaseFailedError, match="ChunksUpdatedInDeletedArray, '/late'"):
        written.commit("lost", rebase_with=ConflictDetector())
    with pytest.raises(RebaseFailedError, match="ZarrMetadataUpdateOfDeletedGroup, '/g'"):
        changed.commit("lost", rebase_with=ConflictDetector())


# -- sessions that began on a commit which is no ancestor any more ---------------------------------
def _squash(repo: Repository, base: str) -> None:
    repo.squash("main", base, "one")


def _squash_and_commit(repo: Repository, base: str) -> None:
    repo.squash("main", base, "one")
    histories.commit(repo, {0: b"more"})


def _amend(repo: Repository, base: str) -> None:
    session = repo.writable_session("main")
    histories.write(session, {1: b"amend"})
    session.amend("amended")


def _reset(repo: Repository, base: str) -> None:
    repo.reset_branch("main", base)


def _reset_and_commit_the_same(repo: Repository, base: str) -> None:
    # inline chunks of the same bytes are the same; an object that is written again is another
    values = {chunk: value for chunk, value in now(repo).items() if len(value) <= 3}
    repo.reset_branch("main", base)
    histories.commit(repo, values)


WAYS = {
    "squash": (_squash, SPECS),
    "squash, and a commit": (_squash_and_commit, SPECS),
    "amend": (_amend, [2]),
    "reset": (_reset, SPECS),
    "reset, and the same": (_reset_and_commit_the_same, SPECS),
}


@pytest.mark.parametrize(
    ("way", "spec"), [(way, spec) for way, (_, specs) in WAYS.items() for spec in specs]
)
@pytest.mark.parametrize("at", [0, 1])
def test_conflicts_are_with_what_differs(way: str, spec: int, at: int) -> None:
    """Whatever became of the commit that a session began on, what is the same is no conflict."""
    for chunk in range(3):
        repo = repository(spec)
        base = histories.commit(repo, {2: b"low"})
        tips = [histories.commit(repo, {0: b"long"}), histories.commit(repo, {1: b"two"})]
        began = now(repo) if at else {0: b"long", 2: b"low"}
        repo.reset_branch("main", tips[at])
        session = repo.writable_session("main")
        repo.reset_branch("main", tips[-1])
        histories.write(session, {chunk: b"mine"})
        WAYS[way][0](repo, base)
        theirs = now(repo)
        if began.get(chunk) == theirs.get(chunk):
            session.commit("ours", rebase_with=ConflictDetector())
            assert now(repo) == {**theirs, chunk: b"mine"}
        else:
            with pytest.raises(RebaseFailedError) as caught:
                session.commit("ours", rebase_with=ConflictDetector())
            (conflict,) = caught.value.conflicts
            assert conflict.conflict_type == ConflictType.ChunkDoubleUpdate
            assert conflict.conflicted_chunks == [[chunk]]
            assert now(repo) == theirs
        assert repo.verify().ok


def test_the_commit_that_a_session_began_on_is_gone() -> None:
    config = replace(histories.CONFIG, caching=CachingConfig(num_snapshot_nodes=0))
    repo = histories.create(MemoryStorage(), 2, config)
    base = repo.lookup_branch("main")
    tip = histories.commit(repo, {0: b"one"})
    session = repo.writable_session("main")
    histories.write(session, {1: b"mine"})
    repo.reset_branch("main", base)
    histories.commit(repo, {2: b"two"})
    repo.garbage_collect(datetime.now(UTC) + timedelta(seconds=1))
    with pytest.raises(SessionStateError, match=f"cannot rebase.* began on snapshot {tip}"):
        session.commit("late", rebase_with=ConflictDetector())
