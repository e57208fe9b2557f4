"""Publishing: the one conditional put that makes a new state visible.

Everything that changes a repository ends here: read the repo info with its version,
compute the next one, keep a copy of the old one in ``overwritten/``, and put the next one
on condition that the version is still the same (Icechunk spec, "Updating repo"). This is
the only retry loop of the library that starts over with new data; transient failures of
single requests are retried by the storage.

A repository of spec version 1 has no repo info: `icechunk.commit.publish_v1` shows one, and
turns the changes of it into puts of single refs.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from icechunk.commit import publish_v1
from icechunk.commit.assets import Assets
from icechunk.commit.features import MOVE_NODE, require_feature
from icechunk.config.repository_config import EffectiveRetries
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
from icechunk.storage.base import Storage

_log = logging.getLogger(__name__)

#: Value of `Status.availability` for a repository that takes no writes. An offline one
#: counts as online, as it does for the official client.
READ_ONLY = 1
#: A clock this far ahead of ours is taken for a broken one, in seconds.
MAX_CLOCK_SKEW = 600
#: The first retries follow at once: most races are over by then.
IMMEDIATE_RETRIES = 5


def _delay(retries: EffectiveRetries, attempt: int) -> float:
    """Return the seconds to wait before an attempt, with full jitter."""
    if attempt <= IMMEDIATE_RETRIES:
        return 0.0
    exponent = min(attempt - IMMEDIATE_RETRIES, 30)
    ceiling = min(retries.initial_backoff_ms * 2**exponent, retries.max_backoff_ms)
    return random.uniform(0, ceiling) / 1000


#: Computes the next state, and what the operations log says about the change.
Compute = Callable[[RepoInfo], tuple[RepoInfo, UpdateEntry]]


class RepoState:
    """The current repo info of a repository, and the way to change it.

    Parameters
    ----------
    assets : Assets
    retries : EffectiveRetries
    updates_per_file : int
        Entries of the operations log that stay in the repo info itself.
    """

    def __init__(self, assets: Assets, retries: EffectiveRetries, updates_per_file: int) -> None:
        self._assets = assets
        self._storage = assets.storage
        self._retries = retries
        self._updates_per_file = updates_per_file
        self._lock = threading.Lock()
        self._cached: tuple[RepoInfo, str | None] | None = None
        self._spec_version: int | None = None

    @property
    def spec_version(self) -> int:
        """The spec version of the repository, as of the last look at it."""
        if self._spec_version is None:
            self._load()
        return self._spec_version or 0

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
        return self._load()[0]

    def _load(self) -> tuple[RepoInfo, str | None]:
        with self._lock:
            cached = self._cached
        etag = cached[1] if cached is not None else None
        try:
            result = self._storage.get_if_changed(layout.REPO_KEY, etag)
        except ObjectNotFoundError:
            info = publish_v1.load(self._assets)
            self._spec_version = 1
            return info, None
        self._spec_version = 2
        if result is None and cached is not None:
            return cached
        if result is None:
            raise StorageError(f"{layout.REPO_KEY}: unchanged, but never read before")
        loaded = decode_repo_info(result.data, layout.REPO_KEY), result.etag
        with self._lock:
            self._cached = loaded
        return loaded

    def create(self, info: RepoInfo, *, level: int) -> None:
        """Store the first repo info.

        Raises
        ------
        PreconditionFailedError
            If there is one already.
        """
        self._spec_version = info.spec_version
        if info.spec_version < 2:
            publish_v1.create(self._storage, info)
            return
        data = encode_repo_info(info, level=level)
        etag = self._storage.put(layout.REPO_KEY, data, if_absent=True)
        with self._lock:
            self._cached = info, etag

    def take_over(self, other: RepoState) -> None:
        """Start with what another state of the same repository has loaded."""
        self._cached = other._cached
        self._spec_version = other._spec_version

    def update(self, compute: Compute, *, needs_online: bool = True) -> RepoInfo:
        """Replace the repo info by what `compute` makes of it.

        `compute` runs again whenever somebody else was faster. It raises to give up, for
        instance because its branch has moved.

        Returns
        -------
        RepoInfo
            The state that was published.

        Raises
        ------
        ConflictError
            If all retries were lost.
        ReadOnlyError
            If the repository was set read-only.
        """
        for attempt in range(self._retries.max_tries):
            delay = _delay(self._retries, attempt)
            if attempt:
                _log.debug("somebody else was faster: attempt %d in %.3f s", attempt + 1, delay)
            time.sleep(delay)
            info, etag = self._load()
            if needs_online:
                require_online(info)
            changed, entry = compute(info)
            if info.spec_version < 2:
                if publish_v1.publish(self._assets, info, changed, entry):
                    return changed
                continue
            published = self._put(info, etag, changed, entry)
            if published is not None:
                return published
        raise ConflictError(
            message=f"gave up after {self._retries.max_tries} attempts: other writers kept "
            "changing the repository; try again, or raise repo_update_retries in the config",
            kind=ErrorKind.UPDATE_ATTEMPTS_EXHAUSTED,
        )

    def _put(
        self, info: RepoInfo, etag: str | None, changed: RepoInfo, entry: UpdateEntry
    ) -> RepoInfo | None:
        """Publish one candidate; None if somebody else was faster."""
        now = time.time_ns() // 1000
        if info.updates and info.updates[0].updated_at > now + MAX_CLOCK_SKEW * 1_000_000:
            raise SessionStateError(
                "the newest entry of the operations log lies in the future; check the clock of "
                "this machine, and of the one that wrote last",
                ErrorKind.SNAPSHOT_TIMESTAMP,
            )
        backup = layout.backup_name(now // 1000)
        candidate = changed.with_update(
            replace(entry, updated_at=now), backup=backup, limit=self._updates_per_file
        )
        data = encode_repo_info(candidate, level=self._assets.compression_level)
        try:
            self._storage.copy(layout.REPO_KEY, layout.backup_key(backup), if_match=etag)
        except PreconditionFailedError:
            return None
        try:
            new_etag = self._storage.put(layout.REPO_KEY, data, if_match=etag)
        except StorageError as error:
            # The reply may be lost and the put done all the same. The name of the backup
            # is ours alone: if the stored log has it, so it is.
            if self._has_landed(backup):
                return candidate
            if isinstance(error, PreconditionFailedError):
                return None
            raise
        with self._lock:
            self._cached = candidate, new_etag
        return candidate

    def _has_landed(self, backup: str) -> bool:
        try:
            stored = self.load()
        except IcechunkError:
            return False
        return any(update.backup == backup for update in stored.updates)


def require_online(info: RepoInfo) -> None:
    """Refuse a repository that was set read-only.

    Raises
    ------
    ReadOnlyError
    """
    if info.status.availability == READ_ONLY:
        reason = f": {info.status.reason}" if info.status.reason else ""
        raise ReadOnlyError(
            f"the repository was set read-only{reason}; Repository.set_status says otherwise",
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
        tip = info.branches.get(branch)
        if tip is None:
            raise RefNotFoundError(
                f"branch {branch!r} was deleted since the session began; create it again to "
                "commit to it",
                ErrorKind.BRANCH_NOT_FOUND,
            )
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
