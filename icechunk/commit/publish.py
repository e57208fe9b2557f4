"""Publishing: the one conditional put that makes a new state visible.

Everything that changes a repository ends here: read the repo info with its version,
compute the next one, keep a copy of the old one in ``overwritten/``, and put the next one
on condition that the version is still the same (Icechunk spec, "Updating repo"). Whoever
was too slow starts over with the new state. Failures of requests are not retried here: the
storage does so, and `icechunk.commit.delivery` where the outcome of a put is in doubt.

A repository of spec version 1 has no repo info: `icechunk.commit.publish_v1` shows one, and
turns the changes of it into puts of single refs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Final

from icechunk.base import deadline
from icechunk.base.texts import RESTORED, counted
from icechunk.commit import publish_v1
from icechunk.commit.assets import Assets, Batch, advising
from icechunk.commit.delivery import Outcome, Write, deliver
from icechunk.commit.features import MOVE_NODE, require_feature
from icechunk.commit.probing import check_conditions
from icechunk.commit.retrying import Backoff
from icechunk.commit.snapshot_info import from_microseconds
from icechunk.commit.turns import Compute, Guest, Seen, Turns
from icechunk.config.storage_settings import EffectiveRetries
from icechunk.errors import (
    ConflictError,
    ErrorKind,
    IcechunkError,
    ObjectNotFoundError,
    PreconditionFailedError,
    ReadOnlyError,
    RefNotFoundError,
    SessionStateError,
    SnapshotNotFoundError,
    StorageError,
)
from icechunk.format import layout
from icechunk.format.ids import encode_id
from icechunk.format.repo_info import (
    RepoInfo,
    SnapshotEntry,
    decode_repo_info,
    encode_repo_info,
    with_item,
)
from icechunk.format.updates import UpdateEntry, UpdateKind
from icechunk.storage.base import BytesLike, Storage

_log = logging.getLogger(__name__)

#: Value of `Status.availability` for a repository that takes no writes. An offline one
#: counts as online, as it does for the official client.
READ_ONLY: Final = 1
#: A clock this far ahead of ours is taken for a broken one, in seconds.
MAX_CLOCK_SKEW: Final = 600
#: Copies of the repo info that are stored at the same time.
_COPIES: Final = 8


class RepoState:
    """The current repo info of a repository, and the way to change it.

    Parameters
    ----------
    assets : Assets
    retries : EffectiveRetries
    updates_per_file : int
        Entries of the operations log that stay in the repo info itself.

    Attributes
    ----------
    retries : EffectiveRetries
    is_contended : bool
        Whether the last change that was made here was lost to others at first, or made together
        with others.
    turns : Turns
        Of the threads of this process.
    """

    def __init__(self, assets: Assets, retries: EffectiveRetries, updates_per_file: int) -> None:
        self.retries = retries
        self.is_contended = False
        self.turns = Turns()
        self._assets = assets
        self._storage = assets.storage
        self._updates_per_file = updates_per_file
        self._lock = threading.Lock()
        self._cached: Seen | None = None
        self._spec_version: int | None = None
        self._is_probed = False
        self._retired: IcechunkError | None = None

    def retire(self, reason: IcechunkError) -> None:
        """Let everything that asks for the state from now on raise an error."""
        self._retired = reason
        self._spec_version = None

    @property
    def known_spec_version(self) -> int | None:
        """The version of the format, None as long as nothing was read."""
        return self._spec_version

    @property
    def spec_version(self) -> int:
        """The spec version of the repository, as of the last look at it."""
        if self._spec_version is None:
            self.look()
        return self._spec_version or 0

    @property
    def puts_per_attempt(self) -> int:
        """Objects that an attempt to change the state writes."""
        return 1 if self.spec_version < 2 else 2

    def require_version_2(self, what: str) -> None:
        """Refuse something that repositories of spec version 1 do not have.

        Raises
        ------
        FormatError
        """
        if self.spec_version < 2:
            raise publish_v1.needs_upgrade(what)

    def load(self) -> RepoInfo:
        """Return the current repo info; one conditional request.

        For a repository of spec version 1 it is put together from its refs.

        Raises
        ------
        RepositoryNotFoundError
            If there is none.
        """
        return self.look().info

    def look(self) -> Seen:
        """Return what `load` does, with its version."""
        if self._retired is not None:
            raise self._retired
        with self._lock:
            cached = self._cached
        etag = cached.etag if cached is not None else None
        try:
            result = self._storage.get_if_changed(layout.REPO_KEY, etag)
        except ObjectNotFoundError:
            info = publish_v1.load(self._assets)
            self._spec_version = 1
            return Seen(info, None)
        self._spec_version = 2
        if result is None and cached is not None:
            return cached
        if result is None:
            raise StorageError(f"{layout.REPO_KEY}: unchanged, but never read before")
        with advising(RESTORED):
            info = decode_repo_info(result.data, layout.REPO_KEY)
        seen = Seen(info, result.etag, result.data)
        self._keep(seen)
        return seen

    def _keep(self, seen: Seen) -> None:
        with self._lock:
            self._cached = seen

    def take_over(self, other: RepoState) -> None:
        """Start with what another state of the same repository has loaded."""
        self._cached = other._cached
        self._spec_version = other._spec_version
        self._is_probed = other._is_probed

    @contextmanager
    def turn(self, guest: Guest | None = None) -> Iterator[bool]:
        """Wait until others have published, and let the next ones wait.

        Threads of this process wait for each other; whether other processes do is up to the
        storage. May be entered again by who is in it. Yields whether it is the caller's turn: a
        guest that is asked to go along with somebody else does not have it.
        """
        try:
            is_ours = self.turns.take(guest)
        except TimeoutError:
            raise StorageError(
                f"cannot write {layout.REPO_KEY} in {self._storage.url}: {deadline.current()}"
            ) from None
        with ExitStack() as queue:
            if is_ours:
                queue.callback(self.turns.give)
                if self.turns.depth == 1:
                    queue.enter_context(self._storage.turn(layout.REPO_KEY))
            yield is_ours

    # -- the first state ------------------------------------------------------------------
    def create(self, info: RepoInfo, *, level: int) -> None:
        """Store the first repo info. The first snapshot is stored already.

        Raises
        ------
        PreconditionFailedError
            If there is one that somebody else made.
        OutcomeUnknownError
            If nobody knows whether it was stored.
        StorageError
            If the storage does not check the conditions of puts.
        """
        self._probe_first_snapshot(info)
        self._spec_version = info.spec_version
        entry = UpdateEntry(kind=UpdateKind.REPO_INITIALIZED)
        if info.spec_version < 2:
            for write in publish_v1.first_writes(self._storage, info):
                self._deliver_first(write, entry)
            return
        data = encode_repo_info(info, level=level)
        etag: str | None = None

        def send() -> None:
            nonlocal etag
            etag = self._storage.put(layout.REPO_KEY, data, if_absent=True)

        def look() -> Outcome:
            try:
                stored = self._storage.get(layout.REPO_KEY)
            except ObjectNotFoundError:
                return Outcome.OPEN
            # it holds times in microseconds: that of somebody else differs
            return Outcome.DONE if bytes(stored.data) == data else Outcome.LOST

        self._deliver_first(Write(send, look), entry)
        if etag is not None:
            self._keep(Seen(info, etag, data))

    def _probe_first_snapshot(self, info: RepoInfo) -> None:
        """Replace the first snapshot by itself, if it were another version; that must fail."""
        if not self._storage.checks_conditions:
            key = layout.snapshot_key(info.branches["main"])
            stored = self._storage.get(key)
            check_conditions(self._storage, key, stored.data, stored.etag)
        self._is_probed = True

    def _deliver_first(self, write: Write, entry: UpdateEntry) -> None:
        if not deliver(write, entry, self._storage.url, self.retries):
            raise PreconditionFailedError(f"there is a repository at {self._storage.url} already")

    # -- later ones -----------------------------------------------------------------------
    def update(self, *changes: Compute, needs_online: bool = True, seen: Seen | None = None) -> int:
        """Replace the repo info by what some changes make of it, one after the other.

        They are computed again whenever somebody else was faster. One of them raises to give up,
        for instance because its branch has moved.

        Parameters
        ----------
        *changes : callable
            More than one are only possible in spec version 2.
        needs_online : bool
            Whether to refuse if the repository was set read-only.
        seen : Seen, optional
            The state to begin with, if that is known. Default: look.

        Returns
        -------
        int
            The number of attempts that it took.

        Raises
        ------
        ConflictError
            If all attempts were lost to others.
        OutcomeUnknownError
            If nobody knows whether it was done.
        StorageError
            If it was not done.
        ReadOnlyError
            If the repository was set read-only.
        """
        backoff = Backoff(self.retries)
        seen = seen or self.look()
        with ExitStack() as turn:
            for number in range(1, self.retries.max_tries + 1):
                if needs_online:
                    require_online(seen.info)
                if self._publish(seen, changes):
                    self.is_contended = number > 1
                    return number
                if number < self.retries.max_tries:
                    if number == 1:
                        # it may be impossible by now, and then there is nothing to wait for
                        changes[0](self.load())
                        turn.enter_context(self.turn())
                    self.pause(backoff, seen)
                    seen = self.look()
        raise ConflictError(
            message=f"gave up after {counted(self.retries.max_tries, 'attempt')}: other writers "
            "kept changing the repository; try again, or raise repo_update_retries in the config",
            kind=ErrorKind.UPDATE_ATTEMPTS_EXHAUSTED,
        )

    def pause(self, backoff: Backoff, seen: Seen) -> None:
        """Wait before the next attempt of somebody who has lost one, and is in his turn.

        Parameters
        ----------
        backoff : Backoff
        seen : Seen
            What the attempt was made on.
        """
        with self._lock:
            newest = self._cached or seen
        others = len(_news(seen.info, newest.info)) or 1
        _log.debug("somebody else was faster: %d changes while this one was made", others)
        # in a queue it would keep the others waiting
        if not self._storage.queues_writers:
            backoff.pause(others)

    def _now(self, info: RepoInfo) -> int:
        """Return the time of a change, in microseconds; not before the change that came last.

        Raises
        ------
        SessionStateError
            If that lies in the future, and the clock of the storage does not contradict.
        """
        now = time.time_ns() // 1000
        newest = info.updates[0].updated_at if info.updates else 0
        latest = now + MAX_CLOCK_SKEW * 1_000_000
        if newest > latest:
            written = self._storage.get(layout.REPO_KEY).last_modified
            if written is None or written.timestamp() * 1_000_000 > latest:
                raise SessionStateError(
                    "the newest entry of the operations log lies in the future; check the clock "
                    "of this machine, and of the one that wrote last",
                    ErrorKind.SNAPSHOT_TIMESTAMP,
                )
            _log.warning(
                "the clock of whoever changed %s last was ahead: it says %s, and the storage %s",
                self._storage.url,
                from_microseconds(newest),
                written,
            )
        # names of copies are milliseconds
        return now if now > newest else newest + 1000

    def _publish(self, seen: Seen, changes: Sequence[Compute]) -> bool:
        """Publish one candidate; False if somebody else was faster."""
        info, etag = seen.info, seen.etag
        if info.spec_version < 2:
            changed, entry = changes[0](info)
            write = publish_v1.write_of(self._assets, info, changed, entry)
            return write is None or deliver(write, entry, self._storage.url, self.retries)
        now = self._now(info)
        candidate, states, entries = info, list[BytesLike](), list[UpdateEntry]()
        # the names say which copy is newer
        backups = [layout.backup_name(now // 1000 + number) for number in range(len(changes))]
        for change, name in zip(changes, backups, strict=True):
            changed, entry = change(candidate)
            entries.append(replace(entry, updated_at=now))
            candidate = changed.with_update(entries[-1], backup=name, limit=self._updates_per_file)
            states.append(encode_repo_info(candidate, level=self._assets.compression_level))
        backup, data = backups[0], states[-1]
        try:
            if self._storage.copies_by_reading and seen.data is not None:
                # it was read already, and is known to be whole
                self._storage.put(layout.backup_key(backup), seen.data)
            else:
                self._storage.copy(layout.REPO_KEY, layout.backup_key(backup), if_match=etag)
        except PreconditionFailedError:
            return False
        self._probe_backup(backup, etag)
        # the states in between are in the log as if they had been published
        between = Batch(self._storage, _COPIES)
        for name, state in zip(backups[1:], states[:-1], strict=True):
            between.put(layout.backup_key(name), state)
        between.send()
        new_etag: str | None = None

        def send() -> None:
            nonlocal new_etag
            new_etag = self._storage.put(layout.REPO_KEY, data, if_match=etag)

        def look() -> Outcome:
            stored = self.look()
            if stored.etag == etag:
                return Outcome.OPEN
            # the name of the backup is ours alone
            landed = self._has_backup(stored.info, backup, info)
            return Outcome.DONE if landed else Outcome.LOST

        if not deliver(Write(send, look), entries[0], self._storage.url, self.retries):
            self._drop_backups(backups)
            return False
        if new_etag is not None:
            self._keep(Seen(candidate, new_etag, data))
        return True

    def _has_backup(self, stored: RepoInfo, backup: str, before: RepoInfo) -> bool:
        """Whether the log of a state that came later says that there was a copy of `before`."""
        while True:
            names = [update.backup for update in stored.updates]
            older = stored.repo_before_updates
            if backup in names or backup == older:
                return True
            if older is None or stored.updates[-1].updated_at <= before.updates[0].updated_at:
                return False
            # others have moved the entry to the next file since
            key = layout.backup_key(older)
            stored = decode_repo_info(self._storage.get(key).data, key)

    def _probe_backup(self, backup: str, etag: str | None) -> None:
        """Look once whether the storage checks conditions, on an object that is ours alone."""
        if self._is_probed:
            return
        try:
            check_conditions(self._storage, layout.backup_key(backup), b"", etag)
        except StorageError:
            self._drop_backups([backup])
            raise
        self._is_probed = True

    def _drop_backups(self, names: list[str]) -> None:
        # litter if that fails, and no more
        with suppress(StorageError):
            self._storage.delete([layout.backup_key(name) for name in names])


def _news(before: RepoInfo, after: RepoInfo) -> list[UpdateEntry]:
    """Return the entries of the operations log that came since."""
    known = before.updates[0].updated_at if before.updates else 0
    return [update for update in after.updates if update.updated_at > known]


def require_online(info: RepoInfo) -> None:
    """Refuse a repository that was set read-only.

    Raises
    ------
    ReadOnlyError
    """
    if info.status.availability == READ_ONLY:
        reason = f": {info.status.reason}" if info.status.reason else ""
        raise ReadOnlyError(
            f"the repository was set read-only{reason}; Repository.set_status changes that",
            ErrorKind.READ_ONLY_REPOSITORY,
        )


def exists(storage: Storage) -> int | None:
    """Return the spec version of the repository in a storage, None if there is none."""
    try:
        storage.get(layout.REPO_KEY)
    except ObjectNotFoundError:
        pass
    else:
        return 2
    return 1 if publish_v1.exists(storage) else None


def commit_tip(info: RepoInfo, branch: str) -> bytes:
    """Return the newest snapshot of a branch that a session was opened on.

    Raises
    ------
    RefNotFoundError
        If it was deleted since.
    """
    tip = info.branches.get(branch)
    if tip is None:
        raise RefNotFoundError(
            f"branch {branch!r} was deleted since the session began; create it again to "
            "commit to it",
            ErrorKind.BRANCH_NOT_FOUND,
        )
    return tip


def has_landed(info: RepoInfo, branch: str, snapshot_id: bytes, base: bytes) -> bool:
    """Whether a snapshot that was sent to be published is there.

    Parameters
    ----------
    info : RepoInfo
    branch : str
        That it was for; in spec version 1 only its history is known.
    snapshot_id : bytes
    base : bytes
        What is below the snapshot.
    """
    if info.spec_version > 1:
        return snapshot_id in info.snapshots
    tip = info.branches.get(branch)
    return tip is not None and publish_v1.is_above(info, tip, snapshot_id, base)


# -- what a commit changes -------------------------------------------------------
def add_commit(
    branch: str,
    expected_tip: bytes,
    entry: SnapshotEntry,
    *,
    amends: bool = False,
    moves: bool = False,
) -> Compute:
    """Return the change that puts a snapshot on a branch.

    Parameters
    ----------
    branch : str
    expected_tip : bytes
        Where the branch must still be.
    entry : SnapshotEntry
        The new snapshot; its parent is `expected_tip`, or when it amends that one's parent.
    amends : bool
        Whether it takes the place of the tip.
    moves : bool
        Whether it moves nodes, which a repository may not allow.
    """

    def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
        tip = commit_tip(info, branch)
        if tip != expected_tip:
            raise ConflictError(encode_id(expected_tip), encode_id(tip))
        if moves:
            require_feature(info, MOVE_NODE)
        added = entry
        if amends:
            old = info.snapshots[expected_tip]
            added = replace(entry, parent_id=old.parent_id, pruned=old.pruned)
        changed = replace(
            info,
            snapshots=with_item(info.snapshots, entry.id, added),
            branches=with_item(info.branches, branch, entry.id),
        )
        if amends:
            update = UpdateEntry(
                kind=UpdateKind.COMMIT_AMENDED,
                name=branch,
                snapshot=entry.id,
                previous=expected_tip,
            )
        else:
            update = UpdateEntry(kind=UpdateKind.NEW_COMMIT, name=branch, snapshot=entry.id)
        return changed, update

    return compute


def needing(change: Compute, versions: Collection[bytes]) -> Compute:
    """Return a change that is refused once the repository does not list some versions.

    References that were taken from a version that is not below the new one are only safe
    while it is listed: then a collection that runs meanwhile keeps its chunks, or starts over.
    """

    def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
        for id in versions:
            if id not in info.snapshots:
                raise SnapshotNotFoundError(
                    f"snapshot {encode_id(id)}, whose chunks this commit refers to, was removed "
                    "since; they may be gone, so nothing was committed"
                )
        return change(info)

    return compute if versions else change


def add_detached(entry: SnapshotEntry) -> Compute:
    """Return the change that registers a snapshot on no branch."""

    def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
        base = entry.parent_id
        if base is not None and base not in info.snapshots:
            raise SnapshotNotFoundError(
                f"cannot flush: the snapshot {encode_id(base)} that the session began with has "
                "expired since; rebase the session, or commit with rebase_with"
            )
        changed = replace(info, snapshots=with_item(info.snapshots, entry.id, entry))
        return changed, UpdateEntry(kind=UpdateKind.NEW_DETACHED_SNAPSHOT, snapshot=entry.id)

    return compute
