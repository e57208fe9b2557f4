"""Expiration and garbage collection: beside other work, with failures, and when killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from icechunk import (
    ConflictDetector,
    FaultyStorage,
    GCSummary,
    IcechunkError,
    LocalStorage,
    MemoryStorage,
    RebaseFailedError,
    Repository,
    SnapshotNotFoundError,
    StorageError,
)
from icechunk.format import layout
from icechunk.format.ids import decode_id, encode_id, new_object_id
from icechunk.storage import WrapperStorage
from icechunk.storage.base import Storage
from tests.histories import CONFIG, commit, create, newest, read, write
from tests.reachability import FOLDERS, collectable, needed, objects, protected, snapshot
from tests.storages import Meanwhile

#: What `garbage_collect` calls the folders.
PHASES = ["snapshots", "transaction_logs", "manifests", "chunks"]


@pytest.fixture(params=[2, 1])
def spec_version(request: pytest.FixtureRequest) -> int:
    version: int = request.param
    return version


@pytest.fixture
def storage() -> Storage:
    return MemoryStorage()


def now() -> datetime:
    return datetime.now(UTC)


def with_garbage(storage: Storage, spec_version: int) -> Repository:
    """Return a repository with a tag and two branches, and with garbage of every kind."""
    repository = create(storage, spec_version)
    second = commit(repository, {0: b"old value", 1: b"in"})
    repository.create_tag("second", second)
    repository.create_branch("gone", second)
    commit(repository, {2: b"garbage"}, "gone")
    commit(repository, {3: b"garbage, too", 4: b"x"}, "gone")
    repository.delete_branch("gone")
    commit(repository, {0: b"new value"})
    repository.create_branch("side", second)
    commit(repository, {5: b"beside"}, "side")
    session = repository.writable_session("side")
    write(session, {0: b"belongs to no branch"})
    session.flush("alone")
    commit(repository, {3: b"newest"})
    return repository


def copied(storage: Storage) -> MemoryStorage:
    """Return a storage with the same objects; they are new there."""
    copy = MemoryStorage()
    for key in objects(storage):
        copy.put(key, storage.get(key).data)
    return copy


def check_whole(storage: Storage) -> None:
    """Check that all is there that branches and tags lead to."""
    stored = objects(storage).keys()
    # spec version 1 has no log of the first snapshot
    assert needed(storage) - stored <= {"transactions/1CECHNKREP0F1RSTCMT0"}


# -- sessions that began before -------------------------------------------------------------
@pytest.mark.parametrize("base_stays", [True, False])
def test_rebase_over_expired_commits(storage: Storage, base_stays: bool) -> None:
    """What was committed meanwhile still counts, in spec version 2."""
    repository = create(storage)
    base = commit(repository, {0: b"1"})
    if base_stays:
        repository.create_tag("base", base)
    sessions = [repository.writable_session("main") for _ in range(3)]
    for number, session in enumerate(sessions):
        write(session, {number: b"me"})
    commit(repository, {0: b"you"})
    commit(repository, {1: b"you"})
    time = now()
    commit(repository, {5: b"you"})
    expired = repository.expire_snapshots(time)
    assert len(expired) == (3 if base_stays else 4)
    assert (base in expired) != base_stays
    repository.garbage_collect(now())
    for number, session in enumerate(sessions[:2]):
        with pytest.raises(RebaseFailedError) as caught:
            session.commit("conflict", rebase_with=ConflictDetector())
        assert [c.conflicted_chunks for c in caught.value.conflicts] == [[[number]]]
    sessions[2].commit("fits", rebase_with=ConflictDetector())
    assert newest(storage) == {0: b"you", 1: b"you", 2: b"me", 5: b"you"}


def test_diff_over_expired_commits(storage: Storage) -> None:
    """Also over those that had expired commits before them already."""
    repository = with_garbage(storage, 2)
    first = [*repository.ancestry(branch="main")][-1].id
    for number in range(3):
        commit(repository, {number: b"more"})
        before = repository.diff(from_snapshot_id=first, to_branch="main")
        assert len(repository.expire_snapshots(now(), delete_expired_tags=True)) > 0
        repository.garbage_collect(now())
        assert [entry.id for entry in repository.ancestry(branch="main")][1:] == [first]
        assert Repository.open(storage).diff(from_snapshot_id=first, to_branch="main") == before


def test_a_young_snapshot_without_a_branch(storage: Storage, spec_version: int) -> None:
    """It stays, with all that it needs, for a branch or tag to be made of it."""
    repository = create(storage, spec_version)
    commit(repository, {0: b"below it"})
    time = now()
    session = repository.writable_session("main")
    write(session, {1: b"in it"})
    flushed = session.flush("alone")
    repository.garbage_collect(time)
    Repository.open(storage).create_tag("saved", flushed)
    check_whole(storage)
    saved = read(Repository.open(storage).readonly_session(tag="saved"))
    assert saved == {0: b"below it", 1: b"in it"}


def test_flush_of_a_session_whose_base_expired(storage: Storage) -> None:
    repository = create(storage)
    session = repository.writable_session("main")
    write(session, {0: b"me"})
    commit(repository, {1: b"you"})
    repository.expire_snapshots(now())
    before = objects(storage)["repo"]
    with pytest.raises(SnapshotNotFoundError, match="rebase the session"):
        session.flush("detached")
    assert objects(storage)["repo"] == before
    session.rebase(ConflictDetector())
    repository.create_tag("saved", session.flush("detached"))
    check_whole(storage)


def test_leftovers_of_a_session_that_was_too_old(storage: Storage) -> None:
    """A young snapshot whose manifests are gone keeps nobody from collecting garbage."""
    repository = with_garbage(storage, 1)
    repository.create_branch("late", repository.lookup_branch("side"))
    session = repository.writable_session("late")
    write(session, {1: b"me"})
    repository.delete_branch("side")
    repository.delete_branch("late")
    repository.garbage_collect(now() + timedelta(seconds=10))
    time = now()
    flushed = session.flush("refers to what is gone")
    with pytest.raises(IcechunkError):
        newest_of = Repository.open(storage).readonly_session(snapshot_id=flushed)
        newest_of.store.get_sync("a/c/5")
    repository.garbage_collect(time)
    assert f"snapshots/{flushed}" in objects(storage)
    repository.garbage_collect(now())
    assert f"snapshots/{flushed}" not in objects(storage)
    check_whole(storage)


# -- others do something meanwhile ------------------------------------------------------------
class Log(WrapperStorage):
    """A storage that notes the first key of every request."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.keys: list[str] = []

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        self.keys.append(keys[0])


def reset(repository: Repository) -> None:
    """Go back to a snapshot that no branch leads to, if it is still there."""
    for entry in list(repository._info.snapshots.values()):
        if "garbage, too" in entry.message:
            repository.create_branch("found again", encode_id(entry.id))


def flush(repository: Repository) -> None:
    session = repository.writable_session("side")
    write(session, {4: b"flushed meanwhile"})
    repository.create_tag("flushed", session.flush("meanwhile"))


def replace_branch(repository: Repository) -> None:
    repository.create_branch("moved", repository.lookup_branch("side"))
    repository.delete_branch("side")
    commit(repository, {4: b"moved"}, "moved")


def amend(repository: Repository) -> None:
    session = repository.writable_session("main")
    write(session, {4: b"amended"})
    session.amend("meanwhile")


ACTIONS: list[Callable[[Repository], object]] = [
    lambda r: commit(r, {4: b"meanwhile"}),
    replace_branch,
    lambda r: r.garbage_collect(now()),
    lambda r: r.expire_snapshots(now()),
]
# in spec version 1 nothing but its age protects what a flush leaves
ACTIONS_2 = [*ACTIONS, flush, amend, reset]


@pytest.mark.parametrize("work", ["collect", "expire"])
@pytest.mark.parametrize(
    ("spec_version", "actions"),
    [(2, ACTIONS_2), (2, [reset]), (1, ACTIONS)],
    ids=["2", "2-reset", "1"],
)
def test_others_at_every_request(
    spec_version: int, actions: list[Callable[[Repository], object]], work: str
) -> None:
    """Whatever is done between two requests, all of it is there afterwards."""
    template = MemoryStorage()
    with_garbage(template, spec_version)
    for nth in range(1, 1000):
        storage = copied(template)
        cutoff = now()
        other, action = Repository.open(storage, CONFIG), actions[nth % len(actions)]
        meanwhile = Meanwhile(storage, nth, partial(action, other))
        repository = Repository.open(meanwhile)
        if work == "collect":
            repository.garbage_collect(cutoff)
        else:
            repository.expire_snapshots(cutoff)
        check_whole(storage)
        if meanwhile.left > 0:
            break
        tip = other.lookup_branch("main")
        other.garbage_collect(cutoff)
        check_whole(storage)
        assert other.lookup_branch("main") == tip
    assert nth > 5


def test_a_branch_to_garbage_while_manifests_are_read_in_spec_version_1(storage: Storage) -> None:
    """The refs are read again before anything is deleted."""
    repository = with_garbage(storage, 1)
    lost = repository.lookup_branch("side")
    repository.delete_branch("side")
    cutoff = now()

    # before the first manifest is read
    requests = Log(storage)
    Repository.open(requests).garbage_collect(cutoff, dry_run=True)
    (first, *_) = (i for i, key in enumerate(requests.keys, 1) if key.startswith("manifests/"))
    meanwhile = Meanwhile(storage, first, lambda: repository.create_branch("found", lost))
    Repository.open(meanwhile).garbage_collect(cutoff)
    assert newest(storage, "found")[5] == b"beside"


def test_many_at_once(storage: Storage, spec_version: int) -> None:
    repository = with_garbage(storage, spec_version)
    cutoff = now()

    def write_on(branch: str) -> None:
        mine = Repository.open(storage, CONFIG)
        for number in range(8):
            commit(mine, {4: f"{branch} {number}".encode()}, branch)

    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(write_on, branch) for branch in ("main", "side")]
        for _ in range(2):
            work += [
                pool.submit(Repository.open(storage).garbage_collect, cutoff),
                pool.submit(Repository.open(storage).expire_snapshots, cutoff),
            ]
    for each in work:
        each.result()
    check_whole(storage)
    assert newest(storage) == {0: b"new value", 1: b"in", 3: b"newest", 4: b"main 7"}
    assert newest(storage, "side")[4] == b"side 7"
    repository.garbage_collect(cutoff)
    assert collectable(storage).keys() == protected(storage, cutoff, at_once=True)


# -- requests fail ----------------------------------------------------------------------------
MISHAPS: list[tuple[Any, Any]] = [
    ("before", StorageError("no answer")),
    ("after", StorageError("no answer")),
    ("after", KeyboardInterrupt()),
]


@pytest.mark.parametrize("work", ["collect", "expire"])
def test_a_mishap_at_every_request(spec_version: int, work: str) -> None:
    """The repository is whole afterwards, and the next run finishes."""
    template = MemoryStorage()
    with_garbage(template, spec_version)

    def run(storage: Storage, cutoff: datetime) -> None:
        repository = Repository.open(storage)
        if work == "collect":
            repository.garbage_collect(cutoff)
        else:
            repository.expire_snapshots(cutoff, delete_expired_tags=True)

    before = newest(template)
    for nth in range(1, 1000):
        storage = copied(template)
        cutoff = now()
        faulty = FaultyStorage(storage)
        when, error = MISHAPS[nth % len(MISHAPS)]
        fault = faulty.fail(nth=nth, when=when, error=error)
        with contextlib.suppress(IcechunkError, KeyboardInterrupt):
            run(faulty, cutoff)
        check_whole(storage)
        assert newest(storage) == before
        run(storage, cutoff)
        check_whole(storage)
        if work == "collect":
            assert collectable(storage).keys() == protected(storage, cutoff)
        else:
            repository = Repository.open(storage)
            assert repository.list_tags() == set()
            assert len([*repository.ancestry(branch="main")]) == 2
        if not fault.raised:
            break
    assert nth > 5


KILLED = """
import os, signal, sys
from datetime import UTC, datetime, timedelta
from icechunk import LocalStorage, Repository
from icechunk.storage import WrapperStorage

class Deadly(WrapperStorage):
    left = int(sys.argv[2])
    def before(self, operation, keys, written):
        Deadly.left -= 1
        if Deadly.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

repository = Repository.open(Deadly(LocalStorage(sys.argv[1])))
repository.expire_snapshots(datetime.now(UTC), delete_expired_tags=True)
repository.garbage_collect(datetime.now(UTC))
"""


# while it expires, and while it deletes
@pytest.mark.parametrize(("spec_version", "nth"), [(2, 5), (2, 21), (1, 32), (1, 89)])
def test_killed(tmp_path: Path, spec_version: int, nth: int) -> None:
    storage = LocalStorage(tmp_path)
    with_garbage(storage, spec_version)
    before = {branch: newest(storage, branch) for branch in ("main", "side")}
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(nth)]
    assert subprocess.run(command, check=False).returncode < 0
    check_whole(storage)
    assert {branch: newest(storage, branch) for branch in before} == before
    repository = Repository.open(storage)
    repository.expire_snapshots(now(), delete_expired_tags=True)
    repository.garbage_collect(now() + timedelta(seconds=10))
    check_whole(storage)
    assert collectable(storage).keys() <= needed(storage)


# -- damage -----------------------------------------------------------------------------------
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_nothing_is_deleted_if_a_version_is_damaged(spec_version: int, damage: str) -> None:
    template = MemoryStorage()
    with_garbage(template, spec_version)
    doomed = [k for k in sorted(needed(template)) if k.startswith(("snapshots/", "manifests/"))]
    assert len(doomed) > 8
    for key in doomed:
        storage = copied(template)
        repository = Repository.open(storage)
        repository.lookup_branch("main")
        storage.delete([key])
        if damage == "damaged":
            storage.put(key, bytes(template.get(key).data)[:-9])
        before = objects(storage)
        for act in (
            lambda repository=repository: repository.garbage_collect(now()),
            lambda repository=repository: repository.garbage_collect(now(), dry_run=True),
            lambda repository=repository: repository.chunk_storage_stats(),
        ):
            with pytest.raises(IcechunkError, match=key.partition("/")[2]):
                act()
            assert objects(storage) == before


# -- deletes that fail ------------------------------------------------------------------------
@pytest.mark.parametrize("phase", range(4))
def test_one_object_that_cannot_be_deleted(storage: Storage, spec_version: int, phase: int) -> None:
    repository = with_garbage(storage, spec_version)
    cutoff = now()
    garbage = collectable(storage).keys() - protected(storage, cutoff)
    expected = repository.garbage_collect(cutoff, dry_run=True)
    bad = sorted(key for key in garbage if key.startswith(FOLDERS[phase]))[0]
    faulty = FaultyStorage(storage)
    faulty.fail("delete", key=bad, times=10**6, error=StorageError("the disk says no"))
    summary = Repository.open(faulty).garbage_collect(cutoff)
    assert summary.objects_failed_to_delete == 1
    assert "the disk says no" in summary.delete_errors[0]
    assert summary.skipped_phases == PHASES[phase + 1 :]
    counts = [getattr(summary, f"{name}_deleted") for name in PHASES]
    whole = [getattr(expected, f"{name}_deleted") for name in PHASES]
    assert counts == [*whole[:phase], whole[phase] - 1, *([0] * (3 - phase))]
    assert bad in objects(storage)
    check_whole(storage)
    rest = repository.garbage_collect(cutoff)
    assert summary.bytes_deleted + rest.bytes_deleted == expected.bytes_deleted
    assert rest.objects_failed_to_delete == 0
    assert collectable(storage).keys() == protected(storage, cutoff)


def test_deletes_that_all_fail(storage: Storage, spec_version: int) -> None:
    with_garbage(storage, spec_version)
    cutoff = now()
    before = collectable(storage)
    faulty = FaultyStorage(storage)
    fault = faulty.fail("delete", times=10**6, error=StorageError("the disk says no"))
    opened = Repository.open(faulty)
    with pytest.raises(StorageError, match=r"gave up after 3 failures.*the disk says no"):
        opened.garbage_collect(cutoff, max_consecutive_delete_failures=3, max_concurrent_deletes=1)
    # and what told the time of the storage
    assert fault.raised == 3 + 1
    assert collectable(storage) == before
    summary = opened.garbage_collect(cutoff)
    assert summary.objects_failed_to_delete == 3
    assert summary.skipped_phases == PHASES[1:]
    faulty.clear()
    assert opened.garbage_collect(cutoff).snapshots_deleted == 3
    check_whole(storage)


# -- what is none of its business ---------------------------------------------------------------
def test_foreign_files_stay(tmp_path: Path, spec_version: int) -> None:
    storage = LocalStorage(tmp_path / "r")
    repository = with_garbage(storage, spec_version)
    id = encode_id(new_object_id())
    foreign = [tmp_path / "r" / "attributes" / id, tmp_path / "r" / id]
    for folder in ("chunks", "snapshots", "manifests", "transactions", "overwritten"):
        for name in (
            "README",
            "0",
            id.lower(),
            f"{id}.tmp",
            f"{id}#0",
            f"sub/{id}",
            f"{id}0",
            id[:-1] + "1",
            f"{id}#123",
        ):
            foreign.append(tmp_path / "r" / folder / name)
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
        os.utime(path, (0, 0))
    (tmp_path / "linked").write_bytes(b"mine")
    (tmp_path / "r" / "chunks" / encode_id(new_object_id())).symlink_to(tmp_path / "linked")
    repository.garbage_collect(now() + timedelta(seconds=10))
    assert all(path.read_bytes() == b"mine" for path in [*foreign, tmp_path / "linked"])
    check_whole(storage)


@pytest.mark.parametrize("name", ["x#1", "a%20b", "%c3%a9", "a%2Fb", "ünï", "100%", "a b"])
def test_branches_of_a_folder_that_was_copied_from_s3(tmp_path: Path, name: str) -> None:
    """Their names are not encoded. What they lead to is no garbage."""
    storage = LocalStorage(tmp_path)
    repository = create(storage, 1)
    repository.create_branch("plain", repository.lookup_branch("main"))
    commit(repository, {0: b"on the branch"}, "plain")
    shutil.move(tmp_path / "refs" / "branch.plain", tmp_path / "refs" / f"branch.{name}")
    assert repository.list_branches() == {"main", name}
    repository.garbage_collect(now() + timedelta(seconds=10))
    assert newest(storage, name) == {0: b"on the branch"}
    check_whole(storage)


def test_whole_seconds(tmp_path: Path, spec_version: int) -> None:
    """A time without a fraction may be one that was cut off: the whole second is meant."""
    storage = LocalStorage(tmp_path)
    repository = with_garbage(storage, spec_version)
    second = now().replace(microsecond=0) - timedelta(hours=1)
    for key in objects(storage):
        os.utime(tmp_path / key, (second.timestamp(), second.timestamp()))
    microsecond = timedelta(microseconds=1)
    for cutoff in (second, second + microsecond, second + timedelta(seconds=1) - microsecond):
        assert repository.garbage_collect(cutoff) == GCSummary()
    assert repository.garbage_collect(second + timedelta(seconds=1)).chunks_deleted == 3
    check_whole(storage)


def test_what_a_session_has_not_committed_yet(storage: Storage, spec_version: int) -> None:
    """Nothing but its age protects it, in all folders."""
    repository = create(storage, spec_version)
    old, young = ([f"{folder}{encode_id(new_object_id())}" for folder in FOLDERS[1:]] for _ in "12")
    for key in old:
        storage.put(key, b"old")
    time = now()
    for key in young:
        storage.put(key, b"young")
    session = repository.writable_session("main")
    write(session, {0: b"not committed yet"})
    before = collectable(storage).keys()
    repository.garbage_collect(time)
    assert before - collectable(storage).keys() == set(old)
    session.commit("now it is")
    assert newest(storage) == {0: b"not committed yet"}
    repository.garbage_collect(now())
    assert not collectable(storage).keys() & set(young)
    check_whole(storage)


def test_what_a_young_snapshot_needs_is_not_deleted(storage: Storage) -> None:
    """Also if that is older: a session is about to commit it."""
    repository = with_garbage(storage, 1)
    base = repository.lookup_branch("side")
    session = repository.writable_session("side")
    write(session, {1: b"me"})
    time = now()
    flushed = session.flush("soon on a branch")
    repository.delete_branch("side")
    repository.garbage_collect(time)
    assert f"snapshots/{base}" not in objects(storage)
    manifests = {layout.manifest_key(id) for id in snapshot(storage, decode_id(flushed))[1]}
    assert manifests <= objects(storage).keys()


# -- copies of the repo info ------------------------------------------------------------------
def copies(storage: Storage) -> set[str]:
    return {meta.key for meta in storage.list("overwritten/")}


@pytest.mark.parametrize("per_file", [2, 1000])
def test_copies_of_updates_that_were_lost_are_collected(per_file: int) -> None:
    """Those that the log names stay, and so does what is no copy."""
    storage = MemoryStorage()
    config = replace(CONFIG, num_updates_per_repo_info_file=per_file)
    repository = Repository.create(storage, config)
    tip = repository.lookup_branch("main")
    for number in range(7):
        repository.create_tag(f"t{number}", tip)
    named = copies(storage)
    log = list(repository.ops_log())
    lost = [f"overwritten/repo.{n:014d}.0123456789ABCDEFGHJK" for n in (1, 2)]
    others = ["overwritten/config.yaml.00000000000001.0123456789ABCDEFGHJK", "overwritten/note"]
    for key in (*lost, *others):
        storage.put(key, b"12345")
    past = datetime.now(UTC) - timedelta(days=1)
    assert repository.garbage_collect(past).bytes_deleted == 0
    later = datetime.now(UTC) + timedelta(seconds=5)
    assert repository.garbage_collect(later, dry_run=True).bytes_deleted == 10
    assert copies(storage) >= {*lost, *others, *named}
    assert repository.garbage_collect(later).bytes_deleted == 10
    assert copies(storage) >= {*others, *named}
    assert not copies(storage) & set(lost)
    assert [entry.kind for entry in repository.ops_log()][2:] == [entry.kind for entry in log]


def test_no_copy_is_collected_when_the_log_was_cut() -> None:
    storage = MemoryStorage()
    config = replace(CONFIG, num_updates_per_repo_info_file=2)
    repository = Repository.create(storage, config)
    tip = repository.lookup_branch("main")
    for number in range(7):
        repository.create_tag(f"t{number}", tip)
    cut = repository._info.repo_before_updates
    storage.delete([f"overwritten/{cut}"])
    before = copies(storage)
    repository.garbage_collect(datetime.now(UTC) + timedelta(seconds=5))
    assert copies(storage) >= before
