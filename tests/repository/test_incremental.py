"""A collection that goes on from the last one leaves what a whole one leaves."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from icechunk import FormatError, MemoryStorage, Repository, StorageError
from icechunk.repository.incremental import RECORD_KEY
from icechunk.storage import FaultyStorage, WrapperStorage
from icechunk.storage.base import Storage
from tests import histories
from tests.reachability import collectable, needed


def future() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


def copied(storage: Storage) -> Storage:
    copy = MemoryStorage()
    for meta in storage.list():
        copy.put(meta.key, storage.get(meta.key).data)
    return copy


values = st.dictionaries(
    st.integers(0, histories.CHUNKS - 1), st.binary(min_size=2, max_size=6), min_size=1
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.sampled_from(["main", "b"]), values),
        st.tuples(st.just("amend"), st.sampled_from(["main", "b"]), values),
        st.tuples(st.just("flush"), st.sampled_from(["main", "b"]), values),
        st.tuples(st.just("reset"), st.sampled_from(["main", "b"]), st.integers(0, 4)),
        st.tuples(st.just("tag"), st.just("main"), st.integers(0, 4)),
        st.tuples(st.just("untag"), st.just("main"), st.integers(0, 4)),
        st.tuples(st.just("expire"), st.just("main"), st.integers(0, 4)),
        st.tuples(st.just("revert"), st.just("main"), st.integers(0, 2)),
        st.tuples(st.just("squash"), st.just("main"), st.integers(1, 3)),
        st.tuples(st.just("collect"), st.just("main"), st.booleans()),
    ),
    max_size=14,
)


def step(repo: Repository, kind: str, branch: str, what: Any, number: int) -> None:
    history = [each.id for each in repo.ancestry(branch=branch)]
    if kind == "revert" and what >= len(history) - 2:
        return  # that would take the array away
    if kind in ("commit", "amend", "flush"):
        session = repo.writable_session(branch)
        histories.write(session, what)
        getattr(session, kind)(f"{number}")
    elif kind == "reset":
        # not below the array
        repo.reset_branch(branch, history[min(what, max(len(history) - 2, 0))])
    elif kind == "tag":
        repo.create_tag(f"t{number}", history[min(what, len(history) - 1)])
    elif kind == "untag":
        for name in sorted(repo.list_tags())[:1]:
            repo.delete_tag(name)
    elif kind == "expire":
        repo.expire_snapshots(repo.lookup_snapshot(history[min(what, len(history) - 1)]).written_at)
    else:
        try:
            if kind == "revert":
                repo.revert(branch, f"{branch}~{what}")
            else:
                repo.squash(branch, f"{branch}~{what}", "one")
        except Exception as error:
            assert type(error).__module__ == "icechunk.errors"


@settings(max_examples=40)
@given(steps)
def test_like_a_whole_one(work: list[tuple[str, str, Any]]) -> None:
    storage = MemoryStorage()
    repo = histories.create(storage)
    repo.create_branch("b", repo.lookup_branch("main"))
    for number, (kind, branch, what) in enumerate([*work, ("collect", "main", True)]):
        if kind != "collect":
            step(repo, kind, branch, what, number)
            continue
        whole = copied(storage)
        repo.garbage_collect(future(), incremental=what)
        Repository.open(whole).garbage_collect(future())
        assert collectable(storage).keys() == collectable(whole).keys()
        assert set(collectable(storage)) == needed(storage)
        assert repo.verify().damages == ()


class Counting(WrapperStorage):
    """What is read and listed, by folder."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.seen: Counter[tuple[str, str]] = Counter()

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        self.seen[operation, keys[0].partition("/")[0]] += 1

    def with_settings(self, settings: Any) -> Storage:
        return self


@pytest.mark.parametrize("commits", [10, 30])
def test_it_grows_with_what_changed(commits: int) -> None:
    storage = MemoryStorage()
    repo = histories.create(storage)
    for i in range(commits):
        repo.create_tag(f"t{i}", histories.commit(repo, {i % 6: b"native %d" % i}))
    repo.garbage_collect(future(), incremental=True)
    counting = Counting(storage)
    repo = Repository.open(counting)
    for i in range(3):
        repo.create_tag(f"new{i}", histories.commit(repo, {0: b"something new %d" % i}))
    for i in range(2):
        repo.delete_tag(f"t{i}")
    repo.expire_snapshots(repo.lookup_snapshot(repo.lookup_tag("t4")).written_at)
    counting.seen.clear()
    summary = repo.garbage_collect(future(), incremental=True)
    assert summary.snapshots_deleted > 0
    assert summary.bytes_deleted > 0
    assert counting.seen["list", "chunks"] == counting.seen["list", "manifests"] == 0
    # three new ones, and those of which the tags are gone
    assert counting.seen["get", "snapshots"] <= 3 + 3
    assert counting.seen["get", "manifests"] <= 3 + 3


def test_a_record_that_is_not_true_is_not_believed() -> None:
    storage = MemoryStorage()
    repo = histories.create(storage)
    for i in range(4):
        histories.commit(repo, {0: b"native %d" % i})
    repo.garbage_collect(future(), incremental=True)
    # somebody else, who knows nothing of the record
    repo.reset_branch("main", repo.resolve("main~2"))
    repo.garbage_collect(future())
    histories.commit(repo, {1: b"more of it"})
    repo.garbage_collect(future(), incremental=True)
    assert set(collectable(storage)) == needed(storage)
    # damaged, it is as none
    data = bytearray(storage.get(RECORD_KEY).data)
    data[len(data) // 2] ^= 1
    storage.put(RECORD_KEY, bytes(data))
    repo.reset_branch("main", repo.resolve("main~1"))
    before = storage.get(RECORD_KEY).data
    repo.garbage_collect(future(), incremental=True, dry_run=True)
    assert storage.get(RECORD_KEY).data == before
    assert repo.garbage_collect(future(), incremental=True).chunks_deleted == 1
    assert set(collectable(storage)) == needed(storage)
    assert repo.verify().damages == ()


def test_what_is_young_stays() -> None:
    storage = MemoryStorage()
    repo = histories.create(storage)
    base = repo.lookup_branch("main")
    histories.commit(repo, {0: b"a native chunk"})
    repo.reset_branch("main", base)
    before = set(collectable(storage))
    past = datetime.now(UTC) - timedelta(hours=1)
    assert repo.garbage_collect(past, incremental=True).chunks_deleted == 0
    assert set(collectable(storage)) == before
    assert repo.garbage_collect(future(), incremental=True).chunks_deleted == 1
    with pytest.raises(FormatError, match="spec version 1"):
        histories.create(MemoryStorage(), 1).garbage_collect(past, incremental=True)


@pytest.mark.parametrize("folder", ["snapshots/", "manifests/"])
def test_what_cannot_be_read_is_not_taken_for_gone(folder: str) -> None:
    """A request that fails while a commit is under way must not cost its chunks."""
    storage = MemoryStorage()
    repo = histories.create(storage)
    repo.garbage_collect(future(), incremental=True)
    before = {meta.key for meta in storage.list(folder)}
    session = repo.writable_session("main")
    histories.write(session, {0: b"a native chunk"})
    session.flush("under way")
    (new,) = {meta.key for meta in storage.list(folder)} - before
    there = set(collectable(storage))
    faulty = FaultyStorage(storage)
    faulty.fail("get", key=new, times=100, error=StorageError("busy"))
    past = datetime.now(UTC) - timedelta(hours=1)
    with pytest.raises(StorageError, match="busy"):
        Repository.open(faulty).garbage_collect(past, incremental=True)
    assert set(collectable(storage)) == there
