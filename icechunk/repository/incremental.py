"""Garbage collection that grows with what has changed since the last one.

A record says which snapshots and manifests were needed, and in how many manifests each chunk
was. So only snapshots that are new or gone are read, and only manifests that are new or no
longer needed; chunks are not listed. What a session has written that never built a snapshot is
not found that way: a whole collection finds it.

The record is an object of this library, beside those of the format. Should it be missing,
damaged, or not be the truth any more, everything is read.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.errors import (
    ErrorKind,
    IcechunkError,
    ObjectNotFoundError,
    PreconditionFailedError,
    SnapshotNotFoundError,
    StorageError,
)
from icechunk.format import layout
from icechunk.format.chunk_refs import RefKind
from icechunk.format.ids import OBJECT_ID_SIZE
from icechunk.repository.garbage import Collector, DeleteLimits, Deleter
from icechunk.repository.ops import GCSummary
from icechunk.repository.reachable import Column, id_prefixes
from icechunk.storage.base import ObjectMeta, Storage

__all__ = ["IncrementalCollector", "LiveRecord", "StaleRecordError"]

RECORD_KEY: Final = "collections/live"
_VERSION: Final = b"icechunk live objects 1\n"


class StaleRecordError(Exception):
    """The record of an earlier collection is not the truth any more."""


@dataclass
class LiveRecord:
    """What was needed when a collection ran.

    Attributes
    ----------
    snapshots : set of bytes
    manifests : dict of bytes to int
        By id: how many of the snapshots list it.
    prefixes : uint64[n]
        Beginnings of the ids of chunks, sorted and distinct.
    counts : int64[n]
        How many of the manifests refer to each.
    etag : str or None
        The version of the stored record.
    """

    snapshots: set[bytes] = field(default_factory=set)
    manifests: dict[bytes, int] = field(default_factory=dict)
    prefixes: Column = field(default_factory=lambda: np.empty(0, np.uint64))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    etag: str | None = None

    @classmethod
    def load(cls, storage: Storage) -> LiveRecord:
        """Return the stored record, an empty one if there is none that is whole."""
        try:
            stored = storage.get(RECORD_KEY)
        except ObjectNotFoundError:
            return cls()
        empty = cls(etag=stored.etag)
        data = bytes(stored.data)
        body = data[len(_VERSION) + 32 :]
        if data[: len(_VERSION)] != _VERSION or data[len(_VERSION) :][:32] != _digest(body):
            return empty
        with np.load(io.BytesIO(body), allow_pickle=False) as columns:
            ids = _split(columns["manifests"])
            return cls(
                set(_split(columns["snapshots"])),
                dict(zip(ids, columns["listed"].tolist(), strict=True)),
                columns["prefixes"],
                columns["counts"].astype(np.int64),
                stored.etag,
            )

    def save(self, storage: Storage) -> None:
        """Store the record, unless somebody else has stored another one meanwhile."""
        body = io.BytesIO()
        np.savez(
            body,
            snapshots=_join(self.snapshots),
            manifests=_join(self.manifests),
            listed=np.array([*self.manifests.values()], np.int64),
            prefixes=self.prefixes,
            counts=self.counts.astype(np.uint32),
        )
        data = _VERSION + _digest(body.getvalue()) + body.getvalue()
        try:
            storage.put(RECORD_KEY, data, if_match=self.etag, if_absent=self.etag is None)
        except PreconditionFailedError:
            # that of a run beside this one: what it says is checked when it is used
            storage.delete([RECORD_KEY])


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=32).digest()


def _join(ids: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(ids), np.uint8).reshape(-1, OBJECT_ID_SIZE)


def _split(rows: npt.NDArray[np.uint8]) -> list[bytes]:
    return [row.tobytes() for row in rows]


class IncrementalCollector(Collector):
    """One run that goes on from a record.

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
        # manifests that each snapshot lists, with their sizes
        self._lists: dict[bytes, dict[bytes, int]] = {}
        self._made: dict[bytes, Column] = {}
        self._lost: dict[bytes, tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]] = {}
        self._listed: Counter[bytes] = Counter()

    # -- what stays ----------------------------------------------------------------------
    def _keep_references(self, snapshots: set[bytes], optional: set[bytes]) -> None:
        """Read what is new since the record, and what is not needed any more.

        Raises
        ------
        StaleRecordError
            If something of the record was deleted by somebody else.
        """
        record = self._record
        live = {id for id in snapshots if id in record.snapshots or self._read(id, optional)}
        gone = record.snapshots - live
        if not all(map(self._can_read, gone)):
            raise StaleRecordError
        # built and never needed, or needed between two collections only
        strays = set(filter(self._can_read, self._old - live - gone))
        listed = Counter(record.manifests)
        for id in live - record.snapshots:
            listed.update(self._lists[id].keys())
        for id in gone:
            listed.subtract(self._lists[id].keys())
        dead = {m for id in gone | strays for m in self._lists[id] if listed[m] <= 0}
        for id in dead - self._lost.keys():
            found = self._chunks_of(id)
            if found is None and id in record.manifests:
                raise StaleRecordError
            if found is not None:
                self._lost[id] = found
        new = {m for m, count in listed.items() if count > 0 and m not in record.manifests}
        required = {m for id in live - record.snapshots - optional for m in self._lists[id]}
        for done, id in enumerate(sorted(new - self._made.keys()), 1):
            self._made[id] = self._prefixes(id, is_required=id in required)
            self._progress("manifests", done, len(new))
        self._live, self._gone, self._dead, self._listed = live, gone | strays, dead, listed
        self._added = new

    def _read(self, id: bytes, optional: set[bytes]) -> bool:
        """Learn which manifests a snapshot lists; False if it is not there, and need not be."""
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
        """Learn the same of a snapshot that is not needed, if that is possible."""
        try:
            return self._read(id, {id})
        except IcechunkError:
            return False

    def _prefixes(self, id: bytes, *, is_required: bool) -> Column:
        try:
            return np.unique(id_prefixes(self._assets.chunk_ids(id)))
        except StorageError as error:
            # what is left of a session that was older than an earlier collection
            if is_required or error.kind is not ErrorKind.OBJECT_NOT_FOUND:
                raise
            return np.empty(0, np.uint64)

    def _chunks_of(self, id: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]] | None:
        """Return the chunks of a manifest that is not needed, and how long they are at least."""
        try:
            manifest = self._assets.manifest(id)
        except IcechunkError:
            return None
        ids = [np.empty((0, OBJECT_ID_SIZE), np.uint8)]
        ends = [np.empty(0, np.int64)]
        for refs in manifest.arrays.values():
            if refs.chunk_id is not None:
                rows = refs.kind == RefKind.NATIVE
                ids.append(refs.chunk_id[rows])
                ends.append((refs.offset[rows] + refs.length[rows]).astype(np.int64))
        return np.concatenate(ids), np.concatenate(ends)

    # -- what goes -------------------------------------------------------------------------
    def delete(self, limits: DeleteLimits, *, dry_run: bool) -> GCSummary:
        """Delete what nothing needs any more, and store the record."""
        record = self._counted()
        chunks = self._dead_chunks(record)
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
            record.save(self._storage)
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

    def _counted(self) -> LiveRecord:
        """Return the record of what is needed now."""
        old = self._record
        gone = [np.unique(id_prefixes(self._lost[m][0])) for m in self._dead & old.manifests.keys()]
        parts = [old.prefixes, *(self._made[id] for id in self._added), *gone]
        signs = [old.counts]
        signs += [np.ones(len(self._made[id]), np.int64) for id in self._added]
        signs += [np.full(len(each), -1, np.int64) for each in gone]
        prefixes, place = np.unique(np.concatenate(parts), return_inverse=True)
        counts = np.zeros(len(prefixes), np.int64)
        np.add.at(counts, place.reshape(-1), np.concatenate(signs))
        stays = counts > 0
        return LiveRecord(
            set(self._live),
            {id: count for id, count in self._listed.items() if count > 0},
            prefixes[stays],
            counts[stays],
            old.etag,
        )

    def _dead_chunks(self, record: LiveRecord) -> list[tuple[str, int]]:
        needed = np.union1d(record.prefixes, self._chunks.columns()[0])
        found: dict[bytes, int] = {}
        for id in self._dead & self._lost.keys():
            ids, ends = self._lost[id]
            dead = ~np.isin(id_prefixes(ids), needed)
            for row, end in zip(_split(ids[dead]), ends[dead].tolist(), strict=True):
                found[row] = max(end, found.get(row, 0))
        return [(layout.chunk_key(id), size) for id, size in found.items()]
