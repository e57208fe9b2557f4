"""A collection that goes on from the last one leaves what a whole one leaves."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings, strategies as st

from icechunk import FormatError, MemoryStorage, Repository, StorageError
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.repository.live_record import RECORD_KEY, LiveRecord, StaleRecordError
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


# -- the record ----------------------------------------------------------------------------
few = st.lists(st.integers(0, 12), max_size=20)


@given(st.lists(st.tuples(few, few), max_size=6))
def test_the_record_counts(steps: list[tuple[list[int], list[int]]]) -> None:
    def column(values: list[int]) -> Any:
        return np.array(values, np.uint64)

    record, truth = LiveRecord(), Counter[int]()
    storage = MemoryStorage()
    for added, gone in steps:
        truth.update(added)
        truth.subtract(gone)
        changes = [column(added[:7]), column(added[7:])], [column(gone)]
        if min(truth.values(), default=0) < 0:
            with pytest.raises(StaleRecordError):
                record.changed({bytes(12)}, {bytes(12): 3}, *changes)
            return
        truth = +truth
        record = record.changed({bytes(12)}, {bytes(12): 3}, *changes)
        assert dict(zip(record.prefixes.tolist(), record.counts.tolist(), strict=True)) == truth
        assert record.prefixes.tolist() == sorted(truth)
        assert record.needs(column([*range(14)])).tolist() == [n in truth for n in range(14)]
        record.save(storage)
        stored = LiveRecord.load(storage)
        assert stored.prefixes.tolist() == record.prefixes.tolist()
        assert stored.counts.tolist() == record.counts.tolist()
        assert (stored.snapshots, stored.manifests) == ({bytes(12)}, {bytes(12): 3})
        record = stored


def test_many_references_to_one_chunk_are_counted() -> None:
    """More of them than a narrow count holds."""
    record = LiveRecord()
    for number in range(1, 5):
        record = record.changed(set(), {}, [np.full(100, 7, np.uint64)], [])
        assert record.counts.tolist() == [100 * number]
    record = record.changed(set(), {}, [], [np.full(399, 7, np.uint64)])
    assert record.counts.tolist() == [1]


@pytest.mark.parametrize("where", ["scattered", "appended", "before", "all"])
def test_few_of_many_change(where: str) -> None:
    """Of a large manifest nothing but what changed is looked for; few columns of it are made."""
    count = 100_000
    storage = MemoryStorage()
    repo = Repository.create(storage)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(count,), chunks=(1,), dtype="i1")
    session.commit("array")
    random = np.random.default_rng(0)

    def write(chunks: Any) -> Any:
        session = repo.writable_session("main")
        node = session._edits.tree.require("/a")
        ids = random.integers(0, 256, (len(chunks), 12), np.uint8)
        refs = ChunkRefs.native(np.asarray(chunks, np.uint32).reshape(-1, 1), ids, 1000)
        session._edits.layers[-1].edits(node.id, "/a", 1).set_many(refs)
        session.commit("references")
        return {bytes(row) for row in ids}

    bounds = {"before": (1000, count), "appended": (0, count - 1000)}.get(where, (0, count))
    before = write(np.arange(*bounds))
    repo.garbage_collect(future(), incremental=True)
    changed = {
        "scattered": np.sort(random.choice(count, 1000, replace=False)),
        "appended": np.arange(count - 1000, count),
        "before": np.arange(1000),
        "all": np.arange(count),
    }[where]
    added = write(changed)
    repo.expire_snapshots(datetime.now(UTC))
    counting = Counting(storage)
    tracemalloc.start()
    try:
        summary = Repository.open(counting).garbage_collect(future(), incremental=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    replaced = {"scattered": 1000, "all": count}.get(where, 0)
    # references beside those of a large manifest come into another one
    rewritten = int(where in ("scattered", "all"))
    assert (summary.chunks_deleted, summary.manifests_deleted) == (replaced, rewritten)
    assert summary.bytes_deleted >= 1000 * replaced
    assert counting.seen["get", "manifests"] == 1 + rewritten
    record = LiveRecord.load(storage)
    assert len(record.prefixes) == count
    assert record.counts.max() == 1
    assert len(before) + len(added) - replaced == count
    # of which a decoded manifest takes 70: as stored, its rows, ids and sizes
    assert peak < (400 if where == "all" else 160) * count, peak / count
