"""Versions in another repository, and which commit changed what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings, strategies as st

from icechunk import (
    ConflictDetector,
    ConflictError,
    FormatError,
    IcechunkError,
    InvalidInputError,
    MemoryStorage,
    RebaseFailedError,
    Repository,
    StorageError,
)
from icechunk.storage import FaultyStorage
from tests import histories, reachability
from tests.storages import KINDS, Meanwhile, new_storage


def source(commits: int = 3) -> Repository:
    repo = histories.create(MemoryStorage())
    for i in range(commits):
        histories.commit(repo, {0: b"native %d" % i, i + 1: b"x"})
    repo.create_branch("side", repo.resolve("main~1"))
    histories.commit(repo, {5: b"on a side"}, "side")
    return repo


def ids(repo: Repository, branch: str) -> list[str]:
    return [each.id for each in repo.ancestry(branch=branch)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_with_its_history(kind: str, request: pytest.FixtureRequest) -> None:
    repo, target = source(), new_storage(kind, request)
    seen: list[tuple[str, int, int]] = []
    done = repo.copy_to(target, progress=lambda *told: seen.append(told))
    other = Repository.open(target)
    assert (done.branch, done.snapshots, done.skipped) == ("main", 5, 0)
    assert ids(other, "main") == ids(repo, "main")
    assert histories.newest(target) == histories.newest(repo.storage)
    assert other.verify(deep=False).damages == ()
    assert sum(each.objects for each in other.verify().orphans.values()) == 0
    assert {what for what, _, _ in seen} >= {"chunks", "manifests", "snapshots", "logs"}
    # again: nothing is left to do, and what is new comes along
    assert repo.copy_to(target).objects == 0
    histories.commit(repo, {4: b"later on"})
    again = repo.copy_to(target)
    assert (again.snapshots, again.skipped > 0) == (1, True)
    side = repo.copy_to(target, "side")
    assert (side.branch, side.snapshots) == ("side", 1)
    for branch in ("main", "side"):
        assert ids(Repository.open(target), branch) == ids(repo, branch)
        assert histories.newest(target, branch) == histories.newest(repo.storage, branch)
    # it lives on by itself
    histories.commit(Repository.open(target), {0: b"there"})
    with pytest.raises(ConflictError, match="another name"):
        repo.copy_to(target)
    assert repo.copy_to(target, branch="theirs").branch == "theirs"
    assert Repository.open(target).verify().damages == ()


def test_one_version_without_history() -> None:
    repo, target = source(), MemoryStorage()
    done = repo.copy_to(target, "main~1", history=False)
    other = Repository.open(target)
    assert (done.snapshots, len(ids(other, "main"))) == (2, 2)
    state = histories.read(repo.readonly_session(ref="main~1"))
    assert histories.newest(target) == state
    assert other.verify().damages == ()
    # what was before it counts as changed for a session that began at the first version
    session = Repository.open(target).replay_session(
        "main", from_snapshot_id=ids(other, "main")[1], to_snapshot_id=ids(other, "main")[0]
    )
    with pytest.raises(RebaseFailedError):
        session.commit("again", rebase_with=ConflictDetector())


def test_broken_off_at_every_write() -> None:
    repo = source()
    for nth in range(1, 100):
        target = MemoryStorage()
        faulty = FaultyStorage(target)
        faulty.fail("put", nth=nth, times=1, error=StorageError("gone"))
        try:
            repo.copy_to(faulty)
        except StorageError:
            pass
        else:
            break
        assert not Repository.exists(target) or Repository.open(target).verify().damages == ()
        repo.copy_to(target)
        assert histories.newest(target) == histories.newest(repo.storage)
        assert Repository.open(target).verify().damages == ()
    assert nth > 15
    # cut short, it is not taken for whole
    chunk = next(target.list("chunks/")).key
    target.put(chunk, b"")
    copied = MemoryStorage()
    copied.put(chunk, b"x")
    repo.copy_to(copied)
    assert Repository.open(copied).verify().damages == ()


@pytest.mark.parametrize("folder", ["snapshots/", "manifests/", "chunks/"])
def test_versions_that_are_collected_in_the_meantime(folder: str) -> None:
    repo, target = source(), MemoryStorage()
    later = datetime.now(UTC) + timedelta(days=1)

    def others() -> None:
        histories.commit(repo, {0: b"newer"})
        repo.expire_snapshots(later)
        repo.garbage_collect(later)

    slow = Meanwhile(repo.storage, 1, others, folder=folder, operations=("get",))
    done = Repository.open(slow).copy_to(target)
    assert slow.left <= 0 and done.snapshots == 2
    assert ids(Repository.open(target), "main") == ids(repo, "main")
    assert histories.newest(target) == histories.newest(repo.storage)
    found = Repository.open(target).verify()
    assert found.damages == ()
    # what the repository still needs is another matter
    repo.storage.delete([meta.key for meta in repo.storage.list(folder)])
    with pytest.raises(IcechunkError, match=r"there is no|is missing"):
        repo.copy_to(MemoryStorage())


def test_other_repositories_are_refused() -> None:
    repo, target = source(), MemoryStorage()
    Repository.create(target)
    before = reachability.objects(target)
    with pytest.raises(InvalidInputError, match="another history"):
        repo.copy_to(target)
    assert reachability.objects(target) == before
    with pytest.raises(FormatError, match="spec version 1"):
        histories.create(MemoryStorage(), 1).copy_to(MemoryStorage())


# -- who changed what ----------------------------------------------------------------------------
chunks = st.dictionaries(st.integers(0, histories.CHUNKS - 1), st.binary(min_size=1, max_size=5))


@settings(max_examples=15)
@given(st.lists(chunks.filter(bool), max_size=6))
def test_the_last_commit_of_each_chunk(commits: list[dict[int, bytes]]) -> None:
    repo = histories.create(MemoryStorage())
    made = repo.lookup_branch("main")
    expected = {}
    for values in commits:
        id = histories.commit(repo, values)
        expected |= dict.fromkeys(values, id)
    repo.rewrite_manifests("no change", branch="main")
    found = repo.annotate("a")
    assert found.metadata is not None
    assert found.metadata.id == made
    told = {chunk: found.of([chunk]) for chunk in range(histories.CHUNKS)}
    assert {k: v.id for k, v in told.items() if v is not None} == expected
    assert {id for id in found.to_dict()["commits"]} == set(expected.values())
    some = repo.annotate("/a", region=[(2, 4)])
    assert set(some.chunks[:, 0].tolist()) == set(expected) & {2, 3}
    if expected:
        assert next(iter(expected.values())) in repr(found)
        assert "<table>" in found._repr_html_()


def test_what_expired_is_told_as_such() -> None:
    repo = histories.create(MemoryStorage())
    histories.commit(repo, {0: b"a"})
    histories.commit(repo, {1: b"b"})
    tip = histories.commit(repo, {2: b"c"})
    repo.expire_snapshots(repo.lookup_snapshot(tip).written_at)
    found = repo.annotate("a")
    assert (found.expired, [each.id for each in found.commits]) == ({tip}, [tip])
    assert (found.commit == 0).all()
    assert "expired" in repr(found)


def test_it_follows_an_array_that_moved() -> None:
    repo = histories.create(MemoryStorage())
    histories.commit(repo, {0: b"a"})
    written = repo.lookup_branch("main")
    session = repo.rearrange_session("main")
    session.move("/a", "/b")
    session.commit("moved")
    session = repo.writable_session("main")
    array: Any = zarr.open_array(session.store, path="b")
    array.attrs["k"] = 1
    changed = session.commit("attributes")
    found = repo.annotate("b")
    told = found.of([0])
    assert told is not None and told.id == written
    assert found.metadata is not None and found.metadata.id == changed
    with pytest.raises(InvalidInputError, match="2 dimensions"):
        repo.annotate("b", region=[(0, 1), (0, 1)])
    assert np.array_equal(found.chunks, [[0]])
