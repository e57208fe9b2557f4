"""Versions expire, or are left behind, and are collected while others are at work.

Everything that people do begins with the state of a repository and goes on to objects that the
state names. Before the first look into each folder, and before one in the middle, somebody else
expires and collects. What comes back is right, before or after that, or an error that
says what happened; and the repository is whole.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any

import pytest
import zarr

from icechunk import (
    ConflictDetector,
    ConflictError,
    IcechunkError,
    MemoryStorage,
    Repository,
    Session,
    upgrade_icechunk_repository,
)
from icechunk.storage import WrapperStorage
from icechunk.storage.base import Storage
from tests.faults.operations import (
    CONFIG,
    FIRST,
    LENGTH,
    Made,
    check_whole,
    commit,
    lay_out,
    read,
    write,
)
from tests.storages import Meanwhile

pytestmark = pytest.mark.usefixtures("no_pauses")

#: What an error says: that something is gone, or that what was asked for is no more.
SAID = re.compile(
    "garbage collected under this reader"
    "|has no snapshot|there is no (branch|tag)|there is no snapshot .* in this repository"
    "|there is no such object|the one before it has expired|has [123] snapshot"
)
EVERY = bool(os.environ.get("ICECHUNK_EVERY_CALL"))
READS = ("get", "get_if_changed", "list", "head")


class Counted(WrapperStorage):
    """A storage that counts reads by folder."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.reads: Counter[str] = Counter()

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        """Count."""
        if operation in READS and keys:
            folder, slash, _ = keys[0].partition("/")
            self.reads[folder + slash] += 1


# -- what others do ------------------------------------------------------------------------------
def _expire(other: Repository, now: datetime) -> None:
    """Shorten the history: the newest versions stay."""
    other.expire_snapshots(now, delete_expired_tags=True)
    other.garbage_collect(now)


def _leave(other: Repository, now: datetime) -> None:
    """Go back by a version: the newest one is left behind."""
    other.reset_branch("main", other.resolve("main~1"))
    other.delete_branch("dev")
    other.garbage_collect(now)


# -- what is done --------------------------------------------------------------------------------
def _state(storage: Storage) -> Any:
    """Return the newest commit and its values; others may shorten the history below."""
    repository = Repository.open(storage, CONFIG)
    newest = next(iter(repository.ancestry(branch="main")))
    values = read(repository.readonly_session("main")) if newest.parent_id else {}
    return newest.message, values


def _changed(act: Callable[[Repository], Any]) -> Callable[[Repository], Any]:
    def changed(repository: Repository) -> Any:
        act(repository)
        storage = repository.storage
        return _state(storage.inner if isinstance(storage, WrapperStorage) else storage)

    return changed


def _commit(end: Callable[[Session], Any]) -> Callable[[Repository], Any]:
    def committed(repository: Repository) -> None:
        session = repository.writable_session("main")
        write(session, {4: 4})
        end(session)

    return _changed(committed)


def _annotate(repository: Repository) -> Any:
    told = repository.annotate("/b")
    return [getattr(told.of([at]), "message", None) for at in range(LENGTH)]


def _inspect(repository: Repository) -> Any:
    told = []
    for entry in repository.ancestry(branch="main"):
        told.append(repository.inspect_snapshot(entry.id)["commit_message"])
        for file in repository.list_manifest_files(entry.id):
            repository.inspect_manifest(file.id)
        if entry.parent_id is not None:
            repository.inspect_transaction_log(entry.id)
    return told


def _stats(repository: Repository) -> Any:
    found = repository.chunk_storage_stats()
    return found.native_bytes, found.inlined_bytes


def _copy(*, history: bool) -> Callable[[Repository], Any]:
    def copied(repository: Repository) -> Any:
        target = MemoryStorage()
        repository.copy_to(target, history=history)
        check_whole(target, Made(lambda: None, lambda: None))
        return _state(target)

    return copied


def _add(store: Any, key: int) -> None:
    write(store.session, {key: 7})


def _job(repository: Repository) -> None:
    job = repository.jobs.create("j", keys=[2, 3], message="ours")
    job.run(_add, keys=[2, 3])
    job.finish()


def _salvage(repository: Repository) -> Any:
    found = Repository.repair(repository.storage, branch="main", drop_unreadable=True, deep=True)
    return found.is_needed, list(found.unread)


def _long_ago() -> datetime:
    return datetime.now(UTC) - timedelta(days=1)


BOTH: dict[str, Callable[[Repository], Any]] = {
    "read": lambda repository: read(repository.readonly_session("main")),
    "read a tag": lambda repository: read(repository.readonly_session(tag="old")),
    "nodes": lambda r: sorted(zarr.open_group(r.readonly_session("main").store, mode="r").keys()),
    "ancestry": lambda repository: [e.message for e in repository.ancestry(branch="main")],
    "graph": lambda repository: len(str(repository.ancestry_graph())) > 0,
    "html": lambda repository: "snapshots" in repository._repr_html_(),
    "annotate": _annotate,
    "diff": lambda r: str(r.diff(from_tag="old", to_branch="main")),
    "look up": lambda r: r.lookup_snapshot(r.lookup_branch("main")).message,
    "inspect": _inspect,
    "stats": _stats,
    "verify": lambda repository: repository.verify(deep=True).raise_if_damaged(),
    "commit": _commit(lambda session: session.commit("mine")),
    "rebase": _commit(lambda session: session.commit("mine", rebase_with=ConflictDetector())),
    "squash": _changed(lambda repository: repository.squash("main", "main~2", "one")),
    "cherry-pick": _changed(lambda r: r.cherry_pick("main", "dev", message="picked")),
    "revert": _changed(lambda r: r.revert("main", "main", message="undone")),
    "rewrite": _changed(lambda r: r.rewrite_manifests("rewritten", branch="main")),
    "repack": _changed(lambda r: r.repack("main", message="packed")),
    "expire": _changed(lambda r: r.expire_snapshots(_long_ago(), delete_expired_tags=True)),
    "collect": _changed(lambda r: r.garbage_collect(_long_ago())),
    "would collect": lambda r: r.garbage_collect(_long_ago(), dry_run=True).chunks_deleted,
    "new branch": _changed(lambda r: r.create_branch("n", r.resolve("main~1"))),
    "new tag": _changed(lambda r: r.create_tag("n", r.resolve("main~1"))),
    "reset": _changed(lambda r: r.reset_branch("main", FIRST)),
    "salvage": _salvage,
}
ONLY_2: dict[str, Callable[[Repository], Any]] = {
    "amend": _commit(lambda session: session.amend("mine")),
    "job": _changed(_job),
    "copy": _copy(history=False),
    "copy all": _copy(history=True),
    "updates": lambda repository: len(list(repository.ops_log())) > 0,
    "preview": lambda r: len(r.preview_expiration(_long_ago()).snapshots),
    "repair": lambda repository: Repository.repair(repository.storage).is_needed,
}
ONLY_1: dict[str, Callable[[Repository], Any]] = {
    "upgrade": _changed(lambda r: upgrade_icechunk_repository(r, dry_run=False)),
}
OPERATIONS = {2: {**BOTH, **ONLY_2}, 1: {**BOTH, **ONLY_1}}
#: A folder, and which of the reads in it somebody is quicker than.
MOMENTS = [
    ("repo", 1),
    ("refs/", 1),
    ("snapshots/", 1),
    ("snapshots/", 2),
    ("manifests/", 1),
    ("transactions/", 1),
    ("chunks/", 1),
    ("overwritten/", 1),
]
OTHERS = {"expire": _expire, "leave": _leave}


@cache
def _objects(spec_version: int) -> dict[str, bytes]:
    storage = MemoryStorage()
    lay_out(storage, spec_version)
    commit(Repository.open(storage, CONFIG), {3: 5}, "dev")
    return {meta.key: bytes(storage.get(meta.key).data) for meta in storage.list()}


def _laid_out(spec_version: int) -> MemoryStorage:
    storage = MemoryStorage()
    for key, data in _objects(spec_version).items():
        storage.put(key, data)
    return storage


def _done(act: Callable[[Repository], Any], storage: Storage) -> Any:
    try:
        return act(Repository.open(storage, CONFIG))
    except IcechunkError as error:
        return type(error)


#: In one spec version an operation meets one of the others, in the other one the other.
CASES = [
    (name, spec_version, others)
    for spec_version, operations in OPERATIONS.items()
    for at, name in enumerate(operations)
    for more, others in enumerate(OTHERS)
    if EVERY or (at + more + spec_version) % 2
]


@pytest.mark.parametrize(("name", "spec_version", "others"), CASES)
def test_others_collect_meanwhile(name: str, spec_version: int, others: str) -> None:
    act = OPERATIONS[spec_version][name]
    # what comes back where nobody is beside, before and after the others
    watched = Counted(_laid_out(spec_version))
    right = [_done(act, watched)]
    storage = _laid_out(spec_version)
    OTHERS[others](Repository.open(storage, CONFIG), datetime.now(UTC))
    right.append(_done(act, storage))
    for folder, nth in MOMENTS:
        if watched.reads[folder] < nth:
            continue
        storage = _laid_out(spec_version)
        other, now = Repository.open(storage, CONFIG), datetime.now(UTC)
        act_of_others = partial(OTHERS[others], other, now)
        meanwhile = Meanwhile(
            storage, nth, act_of_others, folder=folder, operations=READS, is_on=False
        )
        repository = Repository.open(meanwhile, CONFIG)
        meanwhile.is_on = True
        try:
            found = act(repository)
        except ConflictError:
            pass
        except IcechunkError as error:
            assert SAID.search(str(error)) or type(error) in right, f"{folder} {nth}: {error}"
        else:
            assert found in right, f"{folder} {nth}"
        if act.__name__ == "changed":
            Repository.open(storage, CONFIG).verify().raise_if_damaged()
