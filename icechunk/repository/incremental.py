"""Garbage collection whose cost grows with what has changed since the last one.

A record says which snapshots and manifests were needed, and how many manifests refer to each
chunk. So only snapshots that are new or gone are read, and only manifests that are new or no
longer needed; chunks are not listed. Chunks of a session that never built a snapshot are
not found this way: a full collection finds them.

The record is an object of this library, beside those of the format. If it is missing,
damaged or out of date, everything is read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from icechunk.errors import ErrorKind, IcechunkError, SnapshotNotFoundError, StorageError
from icechunk.format import layout
from icechunk.format.manifest import NativeChunks
from icechunk.repository.garbage import Collector, DeleteLimits, Deleter
from icechunk.repository.live_record import LiveRecord, StaleRecordError
from icechunk.repository.ops import GCSummary
from icechunk.repository.reachable import Column, id_prefixes
from icechunk.storage.base import ObjectMeta

__all__ = ["IncrementalCollector"]

_NONE: Column = np.empty(0, np.uint64)


@dataclass
class _Added:
    """A new manifest.

    Attributes
    ----------
    prefixes : uint64[n]
        Prefixes of the ids of its native chunks, in order.
    rest : uint64[n]
        Those that are not in the manifest that it replaces.
    is_paired : bool
        Whether that manifest was found.
    """

    prefixes: Column
    rest: Column
    is_paired: bool = False


class IncrementalCollector(Collector):
    """One run that continues from a record.

    Parameters
    ----------
    record : LiveRecord
    *args
        As for `Collector`.
    """

    def __init__(self, record: LiveRecord, *args: Any) -> None:
        super().__init__(*args)
        self._record = record
        self._live: set[bytes] = set()
        # manifests listed by each snapshot, with their sizes
        self._lists: dict[bytes, dict[bytes, int]] = {}
        self._listed: Counter[bytes] = Counter()
        self._needed = LiveRecord()

    # -- what stays ----------------------------------------------------------------------
    def _keep_references(self, snapshots: set[bytes], optional: set[bytes]) -> None:
        """Find which manifests are new since the record, and which are no longer needed.

        Raises
        ------
        StaleRecordError
            If somebody else has deleted something in the record.
        """
        record = self._record
        live = {id for id in snapshots if id in record.snapshots or self._read(id, optional)}
        gone = record.snapshots - live
        if not all(map(self._can_read, gone)):
            raise StaleRecordError
        # built but never needed, or needed only between two collections
        strays = set(filter(self._can_read, self._old - live - gone))
        listed = Counter(record.manifests)
        for id in live - record.snapshots:
            listed.update(self._lists[id].keys())
        for id in gone:
            listed.subtract(self._lists[id].keys())
        self._dead = {m for id in gone | strays for m in self._lists[id] if listed[m] <= 0}
        self._added = {m for m, n in listed.items() if n > 0 and m not in record.manifests}
        self._required = {m for id in live - record.snapshots - optional for m in self._lists[id]}
        self._live, self._gone, self._listed = live, gone | strays, listed

    def _read(self, id: bytes, optional: set[bytes]) -> bool:
        """Learn which manifests a snapshot lists; False if it is missing and need not exist."""
        if id not in self._lists:
            try:
                files = self._assets.snapshot(id).manifest_files
            except SnapshotNotFoundError:
                if id not in optional:
                    raise
                return False
            self._lists[id] = {each: file.size_bytes for each, file in files.items()}
        return True

    def _can_read(self, id: bytes) -> bool:
        """Learn the same of a snapshot that is not needed, if possible."""
        try:
            return self._read(id, {id})
        except IcechunkError:
            return False

    # -- what goes -------------------------------------------------------------------------
    def delete(self, limits: DeleteLimits, *, dry_run: bool) -> GCSummary:
        """Delete what nothing needs any more, and store the record.

        Raises
        ------
        StaleRecordError
            If somebody else has deleted something in the record; then nothing is deleted.
        StorageError, FormatError
            If a manifest that a version needs cannot be read; then nothing is deleted, either. Or
            if too many requests fail in a row.
        """
        chunks = self._count()
        deleter = Deleter(self._storage, limits, dry_run)
        sizes = {m: size for files in self._lists.values() for m, size in files.items()}
        logs = self._gone - self._logs
        phases: list[tuple[str, list[tuple[str, int]]]] = [
            ("snapshots", [(layout.snapshot_key(id), 0) for id in self._gone]),
            ("transaction_logs", [(layout.transaction_key(id), 0) for id in logs]),
            ("manifests", [(layout.manifest_key(id), sizes[id]) for id in self._dead]),
            ("chunks", chunks),
        ]
        counts: dict[str, int] = {}
        skipped: list[str] = []
        freed = failed = 0
        errors: list[str] = []
        for name, objects in phases:
            if failed:
                skipped.append(name)
                continue
            done = deleter.delete(
                ObjectMeta(key, size, None, self._cutoff) for key, size in objects
            )
            counts[name] = done.count
            freed += done.bytes
            failed += done.failed
            errors += done.errors
        if not (failed or dry_run):
            self._needed.save(self._storage)
        return GCSummary(
            bytes_deleted=freed,
            chunks_deleted=counts.get("chunks", 0),
            manifests_deleted=counts.get("manifests", 0),
            snapshots_deleted=counts["snapshots"],
            transaction_logs_deleted=counts.get("transaction_logs", 0),
            objects_failed_to_delete=failed,
            delete_errors=errors,
            skipped_phases=skipped,
            since=self._cutoff,
            reasons=self._reasons,
        )

    def _count(self) -> list[tuple[str, int]]:
        """Update the counts of references, and return chunks without any, with their sizes.

        A manifest mostly repeats the one that it replaces. Equal rows of the two cancel out, so
        only the others are sorted and searched for.
        """
        total = len(self._added) + len(self._dead)
        by_place: defaultdict[Any, list[_Added]] = defaultdict(list)
        for done, id in enumerate(sorted(self._added), 1):
            chunks = self._chunks_of(id, is_required=id in self._required)
            if chunks is not None:
                prefixes = id_prefixes(chunks.ids)
                by_place[chunks.begins_at].append(_Added(prefixes, prefixes))
            self._progress("manifests", done, total)
        gone: list[Column] = []
        unsure: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]] = []
        for done, id in enumerate(sorted(self._dead), len(self._added) + 1):
            was_counted = id in self._record.manifests
            chunks = self._chunks_of(id)
            self._progress("manifests", done, total)
            if chunks is None and was_counted:
                raise StaleRecordError
            if chunks is None:
                continue
            prefixes = id_prefixes(chunks.ids)
            beside = by_place.get(chunks.begins_at, [])
            # prefer one that is not paired yet
            other = min(beside, key=lambda each: each.is_paired, default=_Added(_NONE, _NONE, True))
            differs, differs_there = _differing(prefixes, other.prefixes)
            if was_counted and not other.is_paired:
                other.is_paired = True
                other.rest = other.prefixes[differs_there]
                gone.append(prefixes[differs])
            elif was_counted:
                gone.append(prefixes)
            unsure.append((chunks.ids[differs], chunks.ends[differs]))
        added = (each.rest for some in by_place.values() for each in some)
        listed = {id: count for id, count in self._listed.items() if count > 0}
        self._needed = self._record.changed(self._live, listed, added, gone)
        return self._unneeded(unsure)

    def _chunks_of(self, id: bytes, *, is_required: bool = False) -> NativeChunks | None:
        """Read a manifest; None if it is missing and need not exist.

        A manifest that is no longer needed need not be readable.
        """
        try:
            return self._assets.native_chunks(id)
        except StorageError as error:
            # left by a session that was older than an earlier collection
            if is_required or (id in self._added and error.kind is not ErrorKind.OBJECT_NOT_FOUND):
                raise
        except IcechunkError:
            if id in self._added:
                raise
        return None

    def _unneeded(
        self, unsure: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]]
    ) -> list[tuple[str, int]]:
        """Return the chunks among these that nothing needs, each once."""
        kept_for_jobs = LiveRecord(prefixes=self._chunks.columns()[0])
        found: dict[bytes, int] = {}
        for ids, ends in unsure:
            prefixes = id_prefixes(ids)
            dead = ~(self._needed.needs(prefixes) | kept_for_jobs.needs(prefixes))
            for row, end in zip(ids[dead], ends[dead].tolist(), strict=True):
                id = row.tobytes()
                found[id] = max(end, found.get(id, 0))
        return [(layout.chunk_key(id), size) for id, size in found.items()]


def _differing(a: Column, b: Column) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which rows of two columns remain after equal ones cancel out.

    Rows are compared at equal distances from the beginning, or from the end. So only changes
    remain if chunks were replaced, or added before or after the others.
    """
    same = min(len(a), len(b))
    left = np.ones(len(a), np.bool_), np.ones(len(b), np.bool_)
    from_start = a[:same] != b[:same]
    from_end = a[len(a) - same :] != b[len(b) - same :]
    if from_end.sum() < from_start.sum():
        left[0][len(a) - same :] = left[1][len(b) - same :] = from_end
    else:
        left[0][:same] = left[1][:same] = from_start
    return left
