"""Maintenance of a repository: expiration, garbage collection, size of chunks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from icechunk.base.calling import depth_of_caller
from icechunk.commit import publish_v1
from icechunk.commit.assets import Assets
from icechunk.commit.publish import RepoState, require_online
from icechunk.commit.snapshot_info import to_microseconds
from icechunk.config.times import Time, has_zone, instant
from icechunk.errors import (
    ErrorKind,
    InvalidInputError,
    ReadOnlyError,
    StorageError,
)
from icechunk.format.chunk_ref import RefKind
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.format.ids import encode_id
from icechunk.format.manifest import Manifest
from icechunk.format.repo_info import RepoInfo
from icechunk.format.updates import UpdateEntry, UpdateKind
from icechunk.repository.expiration import expire, expire_v1
from icechunk.repository.garbage import Collector, DeleteLimits, Progress
from icechunk.repository.incremental import IncrementalCollector
from icechunk.repository.live_record import LiveRecord, StaleRecordError
from icechunk.repository.making_room import added, is_full, make_room, without_logs
from icechunk.repository.ops import ExpirationPreview, GCSummary
from icechunk.repository.reachable import (
    Column,
    DistinctRows,
    Limits,
    id_prefixes,
    manifest_files,
    native_ids,
    reachable_snapshots,
    read_manifests,
)
from icechunk.repository.rereading import while_others_collect
from icechunk.repository.stats import ChunkStorageStats
from icechunk.repository.storage_clock import ahead_of_storage

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Maintenance:
    """Removes what a repository no longer needs, and measures what it has.

    Parameters
    ----------
    assets : Assets
    state : RepoState
    """

    _assets: Assets
    _state: RepoState

    def expire_snapshots(
        self,
        older_than: Time,
        *,
        delete_expired_branches: bool = False,
        delete_expired_tags: bool = False,
    ) -> set[str]:
        """Take old snapshots out of the history of all branches and tags.

        The oldest remaining snapshot of a history gets the first snapshot of the repository as
        its parent. The first snapshot never expires, nor does the newest of ``main``. Those that
        other branches and tags point to stay, too, unless these are to be deleted. Nothing is
        deleted from the storage: `garbage_collect` does that.

        Parameters
        ----------
        older_than : datetime, date, numpy.datetime64 or str
            In UTC if it has no zone; a date is its first instant. A snapshot that was written at
            exactly that time stays.
        delete_expired_branches, delete_expired_tags : bool, default False
            Delete branches (but ``main``) or tags that point to an expired snapshot.

        Returns
        -------
        set of str
            The ids of the snapshots that are no longer in any history. In a repository of
            spec version 1: of those that are older, even if a branch or tag keeps them.

        Raises
        ------
        InvalidInputError
            If it is not a time, or is in the future and has no zone.
        ReadOnlyError
            If the repository or its storage does not allow writes.

        Examples
        --------
        >>> from datetime import UTC, datetime, timedelta
        >>> repo.expire_snapshots(datetime.now(UTC) - timedelta(days=30))
        set()
        """
        limit = to_microseconds(_cutoff(older_than, "older_than"))
        self._require_writable("expire")
        branches, tags = bool(delete_expired_branches), bool(delete_expired_tags)
        if self._state.spec_version < 2:
            released = while_others_collect(
                self._state,
                lambda note: expire_v1(
                    self._state, self._assets, limit, branches=branches, tags=tags
                ),
            )
        else:
            released = set()

            def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
                nonlocal released
                changed, released = expire(info, limit, branches=branches, tags=tags)
                return changed, UpdateEntry(kind=UpdateKind.EXPIRATION_RAN)

            self._state.update(compute)
        _log.info("%d snapshots expired in %s", len(released), self._assets.storage.url)
        return {encode_id(id) for id in released}

    def preview_expiration(
        self,
        older_than: Time,
        *,
        delete_expired_branches: bool = False,
        delete_expired_tags: bool = False,
    ) -> ExpirationPreview:
        """Say what `expire_snapshots` would remove from the history, and what that would free.

        Nothing is changed. It reads all versions and manifests.

        Parameters
        ----------
        older_than, delete_expired_branches, delete_expired_tags
            As for `expire_snapshots`.

        Returns
        -------
        ExpirationPreview

        Raises
        ------
        InvalidInputError
            As for `expire_snapshots`.
        FormatError
            If the repository is of spec version 1.

        Examples
        --------
        >>> from datetime import UTC, datetime
        >>> len(repo.preview_expiration(datetime.now(UTC)).snapshots)
        0
        """
        limit = to_microseconds(_cutoff(older_than, "older_than"))
        self._state.require_version_2("a preview of an expiration")
        branches, tags = bool(delete_expired_branches), bool(delete_expired_tags)

        def preview(note: Callable[[RepoInfo], RepoInfo]) -> ExpirationPreview:
            info = note(self._state.load())
            after, released = expire(info, limit, branches=branches, tags=tags)
            now, then = (self._garbage_of(state) for state in (info, after))
            return ExpirationPreview(
                frozenset(encode_id(id) for id in released),
                tuple(sorted(info.branches.keys() - after.branches.keys())),
                tuple(sorted(info.tags.keys() - after.tags.keys())),
                then.bytes_deleted - now.bytes_deleted,
                then.chunks_deleted - now.chunks_deleted,
                then.manifests_deleted - now.manifests_deleted,
            )

        return while_others_collect(self._state, preview)

    def _garbage_of(self, info: RepoInfo) -> GCSummary:
        """Return what a collection would delete in a state, at any age."""
        future = datetime.now(UTC) + timedelta(days=365)
        collector = Collector(self._assets.uncached(), future, Limits())
        collector.keep(info)
        return collector.delete(DeleteLimits(), dry_run=True)

    def garbage_collect(
        self,
        delete_object_older_than: Time,
        *,
        dry_run: bool = False,
        max_snapshots_in_memory: int = 50,
        max_compressed_manifest_mem_bytes: int = 512 * 1024 * 1024,
        max_decoded_manifest_mem_bytes: int = 4 * 1024 * 1024 * 1024,
        max_concurrent_manifest_fetches: int = 500,
        max_concurrent_deletes: int = 10,
        max_consecutive_delete_failures: int = 50,
        max_concurrent_listings: int | None = None,
        incremental: bool = False,
        progress: Progress | None = None,
    ) -> GCSummary:
        """Delete all objects that no branch or tag leads to, if they are old enough.

        Others may read and write in the meantime. But **a session must not be older than the
        time given here when it commits**: nothing refers to what it has written, and only its
        age protects that. The same applies to readers of expired versions. Whatever
        unfinished jobs need is kept, at any age.

        Every version is read before anything is deleted. If one cannot be read, nothing is
        deleted. Progress is logged at level INFO.

        Parameters
        ----------
        delete_object_older_than : datetime, date, numpy.datetime64 or str
            In UTC if it has no zone; a date is its first instant. Objects that were written
            later, by the clock of the storage, stay in any case. A time in the future does not
            protect commits in progress. If the clock of this machine is ahead of the storage's,
            objects stay that much longer.
        dry_run : bool, default False
            Count what would be deleted, and change nothing.
        max_snapshots_in_memory : int, default 50
        max_compressed_manifest_mem_bytes : int, default 512 MiB
            Limit for manifests that are fetched at the same time. A larger one is fetched alone.
        max_decoded_manifest_mem_bytes : int, default 4 GiB
            The same for decoded manifests, by estimate. In addition, each chunk that is kept
            takes 8 bytes, and temporarily about four times as much.
        max_concurrent_manifest_fetches : int, default 500
            More than 32 threads are never used.
        max_concurrent_deletes : int, default 10
            Requests at a time, of up to 1000 objects each.
        max_consecutive_delete_failures : int, default 50
            After this many failures in a row, the run ends with an error.
        max_concurrent_listings : int, optional
            Accepted for programs that set it: each folder is listed by itself.
        incremental : bool, default False
            Whether to continue from the record of the last incremental run. Only versions that
            are new or gone since then are read, and chunks are not listed: the time grows with
            what has changed. Leftovers of sessions that never committed are not found, and sizes
            are those that references state. Run a full collection now and then. The first run
            reads all versions. Not in spec version 1.
        progress : callable, optional
            Called with what is being read, how many are done, and how many there are, 0 if that is
            not known.

        Returns
        -------
        GCSummary

        Raises
        ------
        InvalidInputError
            If it is not a time, or is in the future and has no zone, or if a limit is not
            at least 1.
        ReadOnlyError
            If the repository or its storage does not allow writes.
        StorageError, FormatError
            If something that a version needs is missing or damaged. Then nothing is deleted.

        Examples
        --------
        >>> from datetime import UTC, datetime, timedelta
        >>> found = repo.garbage_collect(datetime.now(UTC) - timedelta(days=2), dry_run=True)
        >>> found.bytes_deleted
        0
        """
        cutoff = _cutoff(delete_object_older_than, "delete_object_older_than")
        limits = _limits(
            max_snapshots_in_memory,
            max_compressed_manifest_mem_bytes,
            max_decoded_manifest_mem_bytes,
            max_concurrent_manifest_fetches,
        )
        _check_positive("max_concurrent_deletes", max_concurrent_deletes)
        _check_positive("max_consecutive_delete_failures", max_consecutive_delete_failures)
        if max_concurrent_listings is not None:
            _check_positive("max_concurrent_listings", max_concurrent_listings)
        self._require_writable("collect garbage", dry_run=dry_run)
        deletes = DeleteLimits(max_concurrent_deletes, max_consecutive_delete_failures)
        reasons = []
        if not dry_run:
            ahead = ahead_of_storage(self._assets.storage)
            cutoff -= ahead
            if ahead:
                reasons.append(f"the clock of this machine is {ahead} ahead of the storage's")

        def collector() -> Collector:
            return Collector(self._assets.uncached(), cutoff, limits, progress, reasons)

        def collect(make: Callable[[], Collector]) -> GCSummary:
            current, first = make(), GCSummary()
            if self._state.spec_version < 2:
                self._keep_v1(current)
            elif dry_run:
                while_others_collect(
                    self._state, lambda note: current.keep(note(self._state.load()))
                )
            else:
                try:
                    self._drop(current)
                except StorageError as error:
                    if not is_full(error):
                        raise
                    info, storage = self._state.load(), self._assets.storage
                    first = make_room(collector(), info, deletes, storage)
                    current = self._drop_on_full_disk(make)
            return added(first, current.delete(deletes, dry_run=dry_run))

        if not incremental:
            return collect(collector)
        self._state.require_version_2("an incremental collection")
        assets = self._assets.uncached()
        record = LiveRecord.load(assets.storage)

        def going_on() -> Collector:
            return IncrementalCollector(record, assets, cutoff, limits, progress, reasons)

        try:
            return collect(going_on)
        except StaleRecordError:
            _log.info("what the last collection noted no longer holds")
        record = LiveRecord(etag=record.etag)
        return collect(going_on)

    def _drop(self, collector: Collector) -> None:
        """Publish the state without the versions that nothing leads to."""
        while_others_collect(
            self._state,
            lambda note: self._state.update(
                lambda info: (collector.keep(note(info)), UpdateEntry(kind=UpdateKind.GC_RAN))
            ),
        )

    def _drop_on_full_disk(self, make: Callable[[], Collector]) -> Collector:
        """Publish the same; the storage may have no space but that of what will be deleted."""
        current = make()
        try:
            self._drop(current)
        except StorageError as error:
            if not is_full(error):
                raise
            with without_logs(self._state, self._assets.storage, make().keep):
                current = make()
                self._drop(current)
        return current

    def _keep_v1(self, collector: Collector) -> None:
        """Find what stays, for one state of all refs at least."""
        assets = self._assets.uncached()
        refs = publish_v1.read_all_refs(assets.storage)
        info = publish_v1.load_whole(assets, refs)
        while True:
            collector.keep(info)
            now = publish_v1.read_all_refs(assets.storage)
            if now == refs:
                return
            # with the history known so far: otherwise nobody finishes before others commit
            refs, info = now, replace(info, branches=now.branches, tags=now.tags)

    def chunk_storage_stats(
        self,
        *,
        max_snapshots_in_memory: int = 50,
        max_compressed_manifest_mem_bytes: int = 512 * 1024 * 1024,
        max_decoded_manifest_mem_bytes: int = 4 * 1024 * 1024 * 1024,
        max_concurrent_manifest_fetches: int = 500,
    ) -> ChunkStorageStats:
        """Return how much space the chunks of all versions that branches and tags lead to take.

        What only expired or abandoned snapshots refer to is not counted; that is what
        `garbage_collect` would delete.

        Parameters
        ----------
        max_snapshots_in_memory : int, default 50
        max_compressed_manifest_mem_bytes : int, default 512 MiB
        max_decoded_manifest_mem_bytes : int, default 4 GiB
        max_concurrent_manifest_fetches : int, default 500
            As for `garbage_collect`.

        Returns
        -------
        ChunkStorageStats

        Raises
        ------
        StorageError, FormatError
            If a part of a version is missing or damaged.

        Examples
        --------
        >>> repo.chunk_storage_stats().non_virtual_bytes() > 0
        True
        """
        limits = _limits(
            max_snapshots_in_memory,
            max_compressed_manifest_mem_bytes,
            max_decoded_manifest_mem_bytes,
            max_concurrent_manifest_fetches,
        )

        def measure(note: Callable[[RepoInfo], RepoInfo]) -> ChunkStorageStats:
            assets = self._assets.uncached()
            info = note(self._state.load())
            if info.spec_version < 2:
                info = publish_v1.load_whole(assets, publish_v1.read_all_refs(assets.storage))
            files = manifest_files(assets, reachable_snapshots(info), limits)
            return _total(read_manifests(files, limits, lambda id: _Sizes.of(assets.manifest(id))))

        return while_others_collect(self._state, measure)

    def total_chunks_storage(
        self,
        *,
        max_snapshots_in_memory: int = 50,
        max_compressed_manifest_mem_bytes: int = 512 * 1024 * 1024,
        max_decoded_manifest_mem_bytes: int = 4 * 1024 * 1024 * 1024,
        max_concurrent_manifest_fetches: int = 500,
    ) -> int:
        """Return the bytes of all native chunks.

        .. deprecated:: 2.0
            Use `chunk_storage_stats`, which also counts inline and virtual chunks.
        """
        warnings.warn(
            "total_chunks_storage is deprecated: use chunk_storage_stats, whose native_bytes is "
            "the same number, beside those of inline and virtual chunks",
            DeprecationWarning,
            stacklevel=depth_of_caller(),
        )
        return self.chunk_storage_stats(
            max_snapshots_in_memory=max_snapshots_in_memory,
            max_compressed_manifest_mem_bytes=max_compressed_manifest_mem_bytes,
            max_decoded_manifest_mem_bytes=max_decoded_manifest_mem_bytes,
            max_concurrent_manifest_fetches=max_concurrent_manifest_fetches,
        ).native_bytes

    def _require_writable(self, what: str, *, dry_run: bool = False) -> None:
        storage = self._assets.storage
        if not (storage.supports_writes or dry_run):
            raise ReadOnlyError(
                f"cannot {what}: {storage.url} cannot be written", ErrorKind.READ_ONLY_STORAGE
            )
        require_online(self._state.load())


def _cutoff(when: Time, name: str) -> datetime:
    """Return the time before which an object counts as old.

    Raises
    ------
    InvalidInputError
        If it is not a time, or is in the future and has no zone. East of UTC, a user who
        gives local time would otherwise make new objects count as old.
    """
    checked = instant(when, name, ErrorKind.NOT_ALLOWED)
    if not has_zone(when) and checked > datetime.now(UTC):
        raise InvalidInputError(
            f"{name} is {when!r}, which is in the future: a time without zone is in UTC. Pass one "
            "with its zone, such as datetime.now(UTC) - timedelta(days=30)",
            ErrorKind.NOT_ALLOWED,
        )
    return checked


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise InvalidInputError(
            f"{name} is {value!r}, expected an int of at least 1", ErrorKind.NOT_ALLOWED
        )


def _limits(snapshots: int, compressed: int, decoded: int, manifests: int) -> Limits:
    _check_positive("max_snapshots_in_memory", snapshots)
    _check_positive("max_compressed_manifest_mem_bytes", compressed)
    _check_positive("max_decoded_manifest_mem_bytes", decoded)
    _check_positive("max_concurrent_manifest_fetches", manifests)
    return Limits(snapshots, compressed, decoded, manifests)


# -- sizes -------------------------------------------------------------------------------
@dataclass
class _Sizes:
    """The sizes of chunks according to the references of a manifest.

    Attributes
    ----------
    native : list of array
        Columns: id in two parts, offset, length; several chunks may share an object.
    virtual : list of (StringHeap, array)
        Locations, and columns: index of the location, offset, length.
    inline : int
        In bytes.
    """

    native: list[tuple[Column, ...]]
    virtual: list[tuple[StringHeap, tuple[Column, ...]]]
    inline: int

    @classmethod
    def of(cls, manifest: Manifest) -> _Sizes:
        sizes = cls([], [], 0)
        for refs in manifest.arrays.values():
            ids = native_ids(refs)
            rows = refs.kind == RefKind.NATIVE
            place = refs.offset[rows], refs.length[rows]
            sizes.native.append((id_prefixes(ids), _id_rests(ids), *place))
            if refs.location is not None and refs.locations is not None:
                rows = refs.kind == RefKind.VIRTUAL
                columns = refs.location[rows], refs.offset[rows], refs.length[rows]
                sizes.virtual.append((refs.locations, columns))
            sizes.inline += int(refs.length[refs.kind == RefKind.INLINE].sum())
        return sizes


def _id_rests(ids: npt.NDArray[np.uint8]) -> Column:
    """Return the last four bytes of ids, as numbers."""
    return np.ascontiguousarray(ids[:, 8:]).view(">u4").ravel().astype(np.uint64)


def _total(manifests: Iterable[_Sizes]) -> ChunkStorageStats:
    native, virtual = DistinctRows(4), DistinctRows(3)
    numbers: dict[str, int] = {}
    inline = 0
    for sizes in manifests:
        inline += sizes.inline
        for columns in sizes.native:
            native.add(*columns)
        for locations, (location, offset, length) in sizes.virtual:
            # all arrays of a manifest share one heap, and each uses little of it
            used, at = np.unique(location, return_inverse=True)
            known = [numbers.setdefault(locations[i], len(numbers)) for i in used.tolist()]
            virtual.add(np.array(known, np.uint64)[at], offset, length)
    return ChunkStorageStats(_sum(native.columns()[3]), _sum(virtual.columns()[2]), inline)


def _sum(lengths: Column) -> int:
    """Return the sum of lengths, which may exceed 64 bits."""
    high, low = lengths >> np.uint64(32), lengths & np.uint64(0xFFFFFFFF)
    return (int(high.sum()) << 32) + int(low.sum())
