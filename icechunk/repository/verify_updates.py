"""Verification of the repo info, and of the copies that its log of updates names.

Each copy is the state before an update, so two neighbours differ by exactly what that update
says. A state that differs by more from both of its neighbours is the one that is damaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from icechunk.base.threads import Threads
from icechunk.errors import IcechunkError, ObjectNotFoundError
from icechunk.format import layout
from icechunk.format.encoding import flexbuf
from icechunk.format.encoding.envelope import BytesLike, FileType
from icechunk.format.ids import INITIAL_SNAPSHOT_ID, encode_id
from icechunk.format.invariants import broken_invariants
from icechunk.format.repo_info import RepoInfo, decode_repo_info
from icechunk.format.snapshot_table import SnapshotTable
from icechunk.format.update_log import UpdateLog
from icechunk.format.updates import UpdateEntry, UpdateKind
from icechunk.repository.reachable import batches
from icechunk.repository.verify_records import GONE, Found, unreadable
from icechunk.storage.base import Storage

__all__ = ["repo_damages"]

#: The number of copies to decode: the newest, from which a repair would restore.
_DECODED: Final = 10
#: Copies that are read at the same time.
_AT_A_TIME: Final = 16

#: Updates that determine whether a branch or tag exists.
_REFS: Final = {
    UpdateKind.TAG_CREATED: "tag",
    UpdateKind.TAG_DELETED: "tag",
    UpdateKind.BRANCH_CREATED: "branch",
    UpdateKind.BRANCH_DELETED: "branch",
    UpdateKind.BRANCH_RESET: "branch",
    UpdateKind.NEW_COMMIT: "branch",
    UpdateKind.COMMIT_AMENDED: "branch",
}
_DELETED: Final = (UpdateKind.TAG_DELETED, UpdateKind.BRANCH_DELETED)
_ADDING: Final = (
    UpdateKind.NEW_COMMIT,
    UpdateKind.COMMIT_AMENDED,
    UpdateKind.NEW_DETACHED_SNAPSHOT,
)
#: Updates by which a history is copied from another repository.
_MANY: Final = (UpdateKind.BRANCH_CREATED, UpdateKind.BRANCH_RESET)
#: Updates that drop snapshots, branches and tags, and name none.
_DROPPING: Final = (UpdateKind.GC_RAN, UpdateKind.EXPIRATION_RAN)


class _State(NamedTuple):
    """A repo info, and the object that holds it."""

    key: str
    info: RepoInfo


def repo_damages(storage: Storage, info: RepoInfo, *, all_copies: bool) -> Iterator[Found]:
    """Yield what is wrong with the repo info, and with the copies that its log names.

    Parameters
    ----------
    storage : Storage
    info : RepoInfo
        The current one, of spec version 2.
    all_copies : bool
        Whether to decode all copies, not only the newest ones and those where the log of
        updates continues.
    """
    key = layout.REPO_KEY
    if INITIAL_SNAPSHOT_ID not in info.snapshots:
        told = f"it does not list the first snapshot, {encode_id(INITIAL_SNAPSHOT_ID)}"
        yield Found("inconsistent", key, told)
    try:
        for told in broken_invariants(FileType.REPO, storage.get(key).data, key):
            yield Found("inconsistent", key, told)
        dict(info.metadata)
    except IcechunkError as error:
        yield unreadable(key, error)
    for told in _unlike_its_log(info):
        yield Found("inconsistent", key, told)
    chain = _Chain()
    yield from chain.add(_State(key, info))
    there = {meta.key for meta in storage.list(layout.OVERWRITTEN)}
    rest: int | None = None if all_copies else _DECODED
    seen: set[str] = set()
    updates, before = list(info.updates), info.repo_before_updates
    while True:
        named = [update for update in updates if update.backup is not None]
        for update in named:
            copy = layout.backup_key(update.backup or "")
            if copy not in there:
                yield Found("missing", copy, f"{GONE}; the log of updates names it")
        yield from _copies(storage, named[:rest], there, chain)
        if rest is not None:
            rest = max(rest - len(named), 0)
            if not rest:
                yield from chain.end()
        if before is None or before in seen:
            yield from chain.end()
            return
        seen.add(before)
        copy = layout.backup_key(before)
        try:
            older = decode_repo_info(storage.get(copy).data, copy)
            dict(older.metadata)
        except ObjectNotFoundError:
            yield Found("missing", copy, f"{GONE}; the log of updates goes on there")
            yield from chain.end()
            return
        except IcechunkError as error:
            yield unreadable(copy, error)
            yield from chain.end()
            return
        if rest != 0:
            yield from chain.add(_State(copy, older))
        updates, before = list(older.updates), older.repo_before_updates


def _copies(
    storage: Storage, named: list[UpdateEntry], there: set[str], chain: _Chain
) -> Iterator[Found]:
    """Read copies, and yield what is wrong with each of them and with their order."""

    def read(update: UpdateEntry) -> BytesLike | IcechunkError | None:
        key = layout.backup_key(update.backup or "")
        try:
            return storage.get(key).data if key in there else None
        except ObjectNotFoundError:
            return None  # collected meanwhile
        except IcechunkError as error:
            return error

    with Threads(_AT_A_TIME) as pool:
        for batch in batches(named, _AT_A_TIME):
            for update, data in zip(batch, pool.map(read, batch), strict=True):
                if data is None:
                    yield from chain.end()
                    continue
                key = layout.backup_key(update.backup or "")
                try:
                    if isinstance(data, IcechunkError):
                        raise data
                    info = decode_repo_info(data, key)
                    told = list(broken_invariants(FileType.REPO, data, key))
                except IcechunkError as error:
                    yield unreadable(key, error)
                    yield from chain.end()
                    continue
                is_other = not info.updates or info.updates[0].updated_at != update.updated_at
                if is_other and not chain.goes_on:
                    told = ["it is the copy of another state than the log says"]
                yield from (Found("inconsistent", key, each) for each in told)
                yield from chain.end() if told else chain.add(_State(key, info))


class _Chain:
    """States that followed each other, newest first; it finds those that do not fit."""

    def __init__(self) -> None:
        self._last: _State | None = None
        self._fits = 0
        self._doubt: tuple[str, str, str] | None = None

    @property
    def goes_on(self) -> bool:
        """Whether there is a state to compare the next one with."""
        return self._last is not None

    def add(self, state: _State) -> Iterator[Found]:
        """Add the state before the last one, and yield who does not fit, if that is clear."""
        newer, self._last = self._last, state
        if newer is None:
            return
        try:
            told = _unexplained(state.info, newer.info)
        except IcechunkError as error:
            # of what is decoded late; the message begins with the object
            key = error.message.partition(":")[0]
            yield unreadable(newer.key if key == newer.key else state.key, error)
            return
        if self._doubt is not None:
            # the one that fits neither its successor nor its predecessor; else the newer one
            yield self._blame(newer.key if told is not None else self._doubt[0])
        elif told is not None:
            self._doubt = (newer.key, state.key, told)
        else:
            self._fits += 1

    def end(self) -> Iterator[Found]:
        """Say that what comes next is no neighbour, and yield who does not fit."""
        if self._doubt is not None:
            # the oldest fits nobody, if its successor fits into the rest
            yield self._blame(self._doubt[1 if self._fits else 0])
        self._last, self._fits = None, 0

    def _blame(self, key: str) -> Found:
        assert self._doubt is not None
        newer, older, told = self._doubt
        self._doubt = None
        other = newer if key == older else older
        return Found("inconsistent", key, f"{told}, beside {other}, and no update says so")


def _unexplained(older: RepoInfo, newer: RepoInfo) -> str | None:
    """Return what differs between a state and the one before it that its update does not say."""
    if not newer.updates or not UpdateLog.of(newer.updates).continues(UpdateLog.of(older.updates)):
        return "it has another log of updates"
    update = newer.updates[0]
    kind = update.kind
    if not _same_snapshots(older, newer, update):
        return "it lists other snapshots"
    for of, what in (("branch", "branches"), ("tag", "tags")):
        changed = {update.name} if _REFS.get(kind) == of else set()
        before, after = (dict(getattr(info, what)) for info in (older, newer))
        for name in changed:
            before.pop(name or "", None)
            after.pop(name or "", None)
        dropped = kind in _DROPPING and after.items() <= before.items()
        if before != after and not dropped:
            return f"it has other {what}"
    deleted = set(newer.deleted_tags) ^ set(older.deleted_tags)
    if kind is UpdateKind.TAG_DELETED:
        deleted.discard(update.name or "")
    if deleted and kind not in _DROPPING:
        return "it has other deleted tags"
    if kind is not UpdateKind.CONFIG_CHANGED and not _same_config(older.config, newer.config):
        return "it has another config"
    if kind is not UpdateKind.METADATA_CHANGED and older.metadata != newer.metadata:
        return "it has other metadata"
    status = update.status if kind is UpdateKind.REPO_STATUS_CHANGED else older.status
    if status != newer.status:
        return "it has another status"
    flags = [(info.enabled_flags or (), info.disabled_flags or ()) for info in (older, newer)]
    if kind is not UpdateKind.FEATURE_FLAG_CHANGED and flags[0] != flags[1]:
        return "it has other feature flags"
    return None


def _same_snapshots(older: RepoInfo, newer: RepoInfo, update: UpdateEntry) -> bool:
    before, after = SnapshotTable.of(older.snapshots), SnapshotTable.of(newer.snapshots)
    if update.kind in _DROPPING:
        # those that stay may get other parents
        return all(
            (was := before.get(id)) is not None
            and (was.flushed_at, was.message) == (entry.flushed_at, entry.message)
            and was.metadata == entry.metadata
            for id, entry in after.items()
        )
    if update.kind in _ADDING and update.snapshot not in after:
        return False
    if update.kind in _ADDING and len(after) == len(before) + 1:
        added = after[update.snapshot or b""]
        if added.id in before or added.parent_id in (added.id, *(after.keys() - before.keys())):
            return False
        before = before.with_entry(added)
    if len(after) <= len(before) or update.kind not in _MANY:
        return before.equals(after)
    # a copy brings a whole history at once
    return all(after.get(id) == entry for id, entry in before.items())


def _same_config(one: bytes | None, other: bytes | None) -> bool:
    if one == other:
        return True

    def meaning(data: bytes | None) -> Any:
        return None if data is None else flexbuf.loads(data, "config")

    try:
        return bool(meaning(one) == meaning(other))
    except IcechunkError:
        return False


def _unlike_its_log(info: RepoInfo) -> Iterator[str]:
    """Yield the branches and tags that differ from what their newest update says."""
    if info.status.availability not in (0, 1, 2):
        yield f"its status has the number {info.status.availability}, which means nothing"
    seen: set[tuple[str, str]] = set()
    expired = False
    for update in info.updates:  # newest first
        kind, name, of = update.kind, update.name or "", _REFS.get(update.kind)
        if kind is UpdateKind.EXPIRATION_RAN:
            expired = True  # it may delete branches and tags, but names none
        if of is None or (of, name) in seen:
            continue
        seen.add((of, name))
        target = (info.branches if of == "branch" else info.tags).get(name)
        if kind in _DELETED:
            if target is not None:
                yield f"the {of} {name!r} is listed, and was deleted by the log of updates"
        elif target is None:
            if not expired:
                yield f"the {of} {name!r} is not listed, and is there by the log of updates"
        elif of == "branch" and update.snapshot not in (None, target):
            at, by_log = encode_id(target), encode_id(update.snapshot or b"")
            yield f"the branch {name!r} is at {at}, and by the log of updates at {by_log}"
