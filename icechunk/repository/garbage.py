"""Garbage collection: delete what no version refers to, once it is old enough.

Icechunk spec, "Garbage collection". Age is what protects the work of sessions that have
not committed yet: nothing refers to their chunks. Jobs say what they need. Everything else
is decided by reading all versions, and nothing is deleted before that has succeeded.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import compress, islice
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from icechunk.base.threads import Threads
from icechunk.commit.assets import Assets
from icechunk.commit.tickets import QUEUE
from icechunk.errors import ObjectNotFoundError, StorageError
from icechunk.format import layout
from icechunk.format.encoding.envelope import Scratch
from icechunk.format.ids import OBJECT_ID_SIZE, decode_ids
from icechunk.format.repo_info import RepoInfo, decode_repo_info
from icechunk.format.snapshot import Snapshot
from icechunk.repository import archive_tables
from icechunk.repository.expiration import without_snapshots
from icechunk.repository.ops import GCSummary
from icechunk.repository.reachable import (
    MAX_THREADS,
    DistinctRows,
    Limits,
    batches,
    id_prefixes,
    manifest_files,
    reachable_snapshots,
    read_manifests,
)
from icechunk.repository.storage_clock import CLOCK_PROBES
from icechunk.storage.base import ObjectMeta, Storage

__all__ = ["Collector", "DeleteLimits", "Deleter", "Progress"]

_log = logging.getLogger(__name__)

#: Names per lookup, and objects per delete request (the limit of S3).
_LISTED: Final = 10_000
_DELETED: Final = 1000
_COPIES: Final = f"{layout.OVERWRITTEN}{layout.REPO_KEY}."
#: What is being checked, how many are done, and how many there are.
Progress: TypeAlias = Callable[[str, int, int], None]
#: Bytes of manifests, as the cache estimates them, whose ids are read at the same time.
_AT_A_TIME: Final = 64 << 20
#: How many of them are decompressed at the same time.
_DECODED_AT_A_TIME: Final = 2
#: The most failure messages in a summary.
_MAX_ERRORS: Final = 10


@dataclass(frozen=True)
class DeleteLimits:
    """How persistently to try deleting.

    Attributes
    ----------
    concurrency : int
        Requests at a time.
    failures : int
        Failures in a row after which the run is given up.
    """

    concurrency: int = 10
    failures: int = 50


class Collector:
    """One run of a garbage collection.

    Parameters
    ----------
    assets : Assets
        Without a cache.
    cutoff : datetime
        Objects written at that time or later stay.
    limits : Limits
    progress : callable, optional
        Called with what is being checked, how many are done, and how many there are, 0 if unknown.
    reasons : iterable of str
        Why the cutoff is before the time that a user gave.
    """

    def __init__(
        self,
        assets: Assets,
        cutoff: datetime,
        limits: Limits,
        progress: Progress | None = None,
        reasons: Iterable[str] = (),
    ) -> None:
        self._assets = assets
        self._progress = progress or (lambda what, done, total: None)
        self._reasons = list(reasons)
        self._kept: dict[str, Counter[str]] = {}
        self._storage = assets.storage
        # the user's limit is for whole manifests; more than this is no faster
        self._limits = replace(limits, decoded_bytes=min(limits.decoded_bytes, _AT_A_TIME))
        from icechunk.repository.jobs_needs import needed_by_jobs

        # First: a part that is gone when read was committed before the state that `keep` gets.
        needed = needed_by_jobs(self._storage)
        self._bases = needed.snapshots
        if needed.since is not None and needed.since < cutoff:
            self._reasons.append("a part of a job that is running began then")
            cutoff = needed.since
        self._cutoff = cutoff
        self._snapshots: set[bytes] = set()
        self._manifests: set[bytes] = set()
        self._chunks = DistinctRows(1)
        for ids in needed.chunks:
            self._chunks.add(id_prefixes(ids))
        self._logs: set[bytes] = set()
        # Listed before anything is decided: a table or snapshot that is not listed is newer.
        self._tables = {
            meta.key: meta
            for meta in self._storage.list(archive_tables.FOLDER)
            if archive_tables.is_table(meta.key) and _is_older(meta, cutoff)
        }
        self._old: set[bytes] = set()
        self._young: set[bytes] = set()
        for batch in batches(self._storage.list(layout.SNAPSHOTS), _LISTED):
            metas, ids = _named(batch, layout.SNAPSHOTS)
            for meta, id in zip(metas, ids, strict=True):
                (self._old if _is_older(meta, cutoff) else self._young).add(id.tobytes())

    # -- what stays ----------------------------------------------------------------------
    def keep(self, info: RepoInfo, *, all_listed: bool = False) -> RepoInfo:
        """Find all that must stay, and return the state without the other snapshots.

        Can be called again with a newer state; it reads only what it has not read before.

        Parameters
        ----------
        info : RepoInfo
        all_listed : bool
            Whether every snapshot that the state lists stays.

        Raises
        ------
        IcechunkError
            If a snapshot or manifest cannot be read. Then nobody knows what it refers to.
        """
        kept = reachable = reachable_snapshots(info)
        changed = info
        if info.spec_version > 1:
            old = set() if all_listed else self._old - self._bases
            kept = reachable | (info.snapshots.keys() - old)
            changed = without_snapshots(info, info.snapshots.keys() - kept, kept)
            self._logs.update(log for entry in changed.snapshots.values() for log in entry.pruned)
        # of sessions that have not committed, or are about to
        others = (kept | self._young | self._bases) - reachable
        self._logs |= reachable | others
        self._keep_references(reachable | others, others)
        return changed

    def _keep_references(self, snapshots: set[bytes], optional: set[bytes]) -> None:
        new = snapshots - self._snapshots
        look = self._keep_tables if self._tables else None
        needed = manifest_files(self._assets, new - optional, self._limits, look=look)
        # left by a session that was older than an earlier run: it refers to what is
        # gone, and must not stop this run
        others = manifest_files(self._assets, new & optional, self._limits, optional, look)
        missing = {id: f for id, f in (others | needed).items() if id not in self._manifests}
        _log.info("%d more snapshots refer to %d more manifests", len(new), len(missing))
        # eight bytes of twelve: if another chunk has the same eight, it stays, too
        scratch = Scratch(_DECODED_AT_A_TIME)
        found = read_manifests(
            missing,
            self._limits,
            lambda id: id_prefixes(self._assets.chunk_ids(id, scratch)),
            others.keys() - needed.keys(),
        )
        for done, prefixes in enumerate(found, 1):
            self._chunks.add(prefixes)
            self._progress("manifests", done, len(missing))
        self._manifests |= missing.keys()
        self._snapshots |= new

    def _keep_tables(self, snapshot: Snapshot) -> None:
        for node in snapshot.nodes():
            for key in archive_tables.tables_in(node.user_data):
                self._tables.pop(key, None)

    # -- what goes -------------------------------------------------------------------------
    def delete(self, limits: DeleteLimits, *, dry_run: bool) -> GCSummary:
        """Delete what does not stay: each object before those that it refers to.

        Raises
        ------
        StorageError
            If too many requests fail in a row.
        """
        deleter = Deleter(self._storage, limits, dry_run)
        counts: dict[str, int] = {}
        skipped: list[str] = []
        total = Deleted()
        for folder, name, kept in (
            (layout.SNAPSHOTS, "snapshots", _sorted_prefixes(self._snapshots)),
            (layout.TRANSACTIONS, "transaction_logs", _sorted_prefixes(self._logs)),
            (layout.MANIFESTS, "manifests", _sorted_prefixes(self._manifests)),
            (layout.CHUNKS, "chunks", self._chunks.columns()[0]),
        ):
            if total.failed:
                skipped.append(name)
                continue
            done = deleter.delete(self._garbage(folder, name, kept))
            _log.info("%s: %d deleted, %d failed", name, done.count, done.failed)
            counts[name] = done.count
            total.add(done)
        if not total.failed:
            total.add(deleter.delete(self._tables.values()))
        if not total.failed:
            total.add(deleter.delete(self._lost_copies()))
        if not total.failed:
            # a waiting process puts its ticket again
            tickets = self._storage.list(QUEUE)
            total.add(deleter.delete(meta for meta in tickets if _is_older(meta, self._cutoff)))
        if not total.failed:
            total.bytes += self._storage.delete_leftovers(self._cutoff, dry_run=dry_run)
        return GCSummary(
            bytes_deleted=total.bytes,
            chunks_deleted=counts.get("chunks", 0),
            manifests_deleted=counts.get("manifests", 0),
            snapshots_deleted=counts["snapshots"],
            transaction_logs_deleted=counts.get("transaction_logs", 0),
            objects_failed_to_delete=total.failed,
            delete_errors=total.errors,
            skipped_phases=skipped,
            kept={name: dict(counts) for name, counts in self._kept.items()},
            since=self._cutoff,
            reasons=self._reasons,
        )

    def _garbage(
        self, folder: str, name: str, kept: npt.NDArray[np.uint64]
    ) -> Iterator[ObjectMeta]:
        """Yield the objects of a folder that do not stay; `kept` is sorted."""
        why = self._kept[name] = Counter(needed=0, young=0, foreign=0)
        listed = 0
        for batch in batches(self._storage.list(folder), _LISTED):
            metas, ids = _named(batch, folder)
            listed += len(batch)
            why["foreign"] += len(batch) - len(metas)
            prefixes = id_prefixes(ids)
            # where it would be, and whether it is there; `isin` would sort `kept` each time
            stays = np.searchsorted(kept, prefixes, "right") > np.searchsorted(kept, prefixes)
            why["needed"] += int(stays.sum())
            for place in np.flatnonzero(~stays).tolist():
                if _is_older(metas[place], self._cutoff):
                    yield metas[place]
                else:
                    why["young"] += 1
            self._progress(name, listed, 0)

    def _lost_copies(self) -> Iterator[ObjectMeta]:
        """Yield copies of the repo info that belong to updates which lost a race."""
        copies = [
            meta
            for meta in self._storage.list(layout.OVERWRITTEN)
            if meta.key.startswith((_COPIES, CLOCK_PROBES)) and _is_older(meta, self._cutoff)
        ]
        # in this order: a copy that counts is in the log by now
        named = logged_copies(self._storage) if copies else None
        if named is not None:
            yield from (meta for meta in copies if meta.key not in named)


def logged_copies(storage: Storage) -> set[str] | None:
    """Return the keys of the copies of the repo info that the operations log names.

    None if that is unknown: spec version 1 has no log, and a log may have been cut.
    """
    named: set[str] = set()
    followed: set[str] = set()
    key = layout.REPO_KEY
    while True:
        try:
            info = decode_repo_info(storage.get(key).data, key)
        except ObjectNotFoundError:
            return None
        names = [update.backup for update in info.updates] + [info.repo_before_updates]
        named.update(layout.backup_key(name) for name in names if name is not None)
        if info.repo_before_updates is None:
            return named
        key = layout.backup_key(info.repo_before_updates)
        if key in followed:
            return None
        followed.add(key)


def _named(
    metas: Sequence[ObjectMeta], folder: str
) -> tuple[list[ObjectMeta], npt.NDArray[np.uint8]]:
    """Return the objects whose names are ids, and the ids; other objects are foreign."""
    valid, ids = decode_ids([meta.key.removeprefix(folder) for meta in metas])
    return list(compress(metas, valid)), ids


def _sorted_prefixes(ids: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    rows = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, OBJECT_ID_SIZE)
    return np.unique(id_prefixes(rows))


def _is_older(meta: ObjectMeta, cutoff: datetime) -> bool:
    """Whether an object was written before a time, even if its own time lacks the fraction."""
    written = meta.last_modified
    if written.microsecond == 0:
        return written + timedelta(seconds=1) <= cutoff
    return written < cutoff


# -- deleting ----------------------------------------------------------------------------
@dataclass
class Deleted:
    """What was deleted, and what could not be."""

    count: int = 0
    bytes: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)

    def add(self, other: Deleted) -> None:
        """Add the counts of another call."""
        self.count += other.count
        self.bytes += other.bytes
        self.failed += other.failed
        self.errors += other.errors[: _MAX_ERRORS - len(self.errors)]


class Deleter:
    """Deletes objects in batches, and counts them.

    Parameters
    ----------
    storage : Storage
    limits : DeleteLimits
    dry_run : bool
    """

    def __init__(self, storage: Storage, limits: DeleteLimits, dry_run: bool) -> None:
        self._storage = storage
        self._limits = limits
        self._dry_run = dry_run
        self._lock = threading.Lock()
        self._in_a_row = 0

    def delete(self, metas: Iterable[ObjectMeta]) -> Deleted:
        """Delete objects.

        Raises
        ------
        StorageError
            If too many requests fail in a row.
        """
        total = Deleted()
        groups = batches(metas, _DELETED)
        threads = min(self._limits.concurrency, MAX_THREADS)
        with Threads(threads) as pool:
            while some := list(islice(groups, threads)):
                for done in pool.map(self._delete, some):
                    total.add(done)
        return total

    def _delete(self, metas: list[ObjectMeta]) -> Deleted:
        if self._dry_run or self._succeeds(metas, []):
            return Deleted(len(metas), sum(meta.size for meta in metas))
        # the error does not say which of them failed
        done = Deleted()
        for meta in metas:
            if self._succeeds([meta], done.errors):
                done.count += 1
                done.bytes += meta.size
            else:
                done.failed += 1
        return done

    def _succeeds(self, metas: list[ObjectMeta], errors: list[str]) -> bool:
        try:
            self._storage.delete([meta.key for meta in metas])
        except StorageError as error:
            errors.append(str(error))
            with self._lock:
                self._in_a_row += 1
                hopeless = self._in_a_row >= self._limits.failures
            if hopeless:
                raise StorageError(
                    f"gave up after {self._in_a_row} failures in a row when deleting garbage; what "
                    f"versions refer to is untouched, and the next run goes on. The last: {error}"
                ) from error
            return False
        with self._lock:
            self._in_a_row = 0
        return True
