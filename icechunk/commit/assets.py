"""Snapshots, manifests and transaction logs: fetched and written, with a cache.

These objects never change once written, so a decoded one stays valid. Each is
fetched at most once, however many threads ask for it at the same time.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from icechunk.base.texts import COLLECTED, MENDED
from icechunk.base.threads import map_in_threads
from icechunk.errors import (
    ErrorKind,
    FormatError,
    ObjectNotFoundError,
    SnapshotNotFoundError,
    StorageError,
)
from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRef, ChunkRefs
from icechunk.format.encoding.envelope import FileType, Scratch
from icechunk.format.ids import encode_id, new_object_id
from icechunk.format.manifest import (
    LocationCompression,
    Manifest,
    NativeChunks,
    decode_chunk_ids,
    decode_native_chunks,
    encode_manifest,
)
from icechunk.format.snapshot import ManifestFile, Snapshot, decode_snapshot, encode_snapshot
from icechunk.format.stored_manifest import StoredManifest
from icechunk.format.transaction_log import (
    TransactionLog,
    decode_transaction_log,
    encode_transaction_log,
)
from icechunk.storage.base import BytesLike, Storage

T = TypeVar("T")
Inspect: TypeAlias = Callable[[FileType, str, BytesLike], None]

#: Memory that one decoded chunk reference and one snapshot node take, roughly. The
#: config bounds caches by number, the caches themselves count bytes.
BYTES_PER_CHUNK_REF: Final = 48
BYTES_PER_NODE: Final = 2048
#: Memory for transaction logs, in bytes.
_LOGS: Final = 1 << 22
#: Manifests that are fetched at the same time.
_REQUESTS: Final = 16
#: Of a batch, that wait to be stored together, in bytes.
_MAX_WAITING: Final = 1 << 23


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """Say what to do about something that cannot be decoded."""
    try:
        yield
    except FormatError as error:
        if error.kind is ErrorKind.UNSUPPORTED_SPEC_VERSION:
            raise
        raise FormatError(f"{error.message}; {advice}", error.kind) from error


class _Cache(Generic[T]):
    """Least recently used values up to a total size. Each is made once."""

    def __init__(self, max_bytes: int, size: Callable[[T], int]) -> None:
        self._max_bytes = max_bytes
        self._size = size
        self._values: OrderedDict[bytes, tuple[T, int]] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()
        self._making: dict[bytes, threading.Lock] = {}

    def peek(self, key: bytes) -> T | None:
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def get(self, key: bytes, make: Callable[[], T]) -> T:
        value = self.peek(key)
        if value is not None:
            return value
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        try:
            with making:
                value = self.peek(key)
                if value is None:
                    value = make()
                    self.put(key, value)
        finally:
            with self._lock:
                # waiting threads hold the lock; after a failure each of them tries again
                self._making.pop(key, None)
        return value

    def put(self, key: bytes, value: T) -> None:
        size = self._size(value)
        with self._lock:
            if key in self._values or size > self._max_bytes:
                return
            self._values[key] = value, size
            self._total += size
            while self._total > self._max_bytes:
                _, (_, dropped) = self._values.popitem(last=False)
                self._total -= dropped

    def forget(self, key: bytes) -> None:
        with self._lock:
            _, size = self._values.pop(key, (None, 0))
            self._total -= size


class Assets:
    """Typed access to the metadata objects of one repository.

    Parameters
    ----------
    storage : Storage
    max_snapshot_nodes, max_chunk_refs, max_chunk_bytes : int
        Bounds of the caches of snapshots, manifests and native chunks.
    compression_level : int
        Of zstd.
    location_compression : LocationCompression, optional
        When and how to compress the locations of virtual chunks; None for never.
    inspect : callable, optional
        Called with type, key and bytes of each object that was fetched and decoded.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        max_snapshot_nodes: int,
        max_chunk_refs: int,
        max_chunk_bytes: int = 0,
        compression_level: int,
        location_compression: LocationCompression | None,
        inspect: Inspect | None = None,
    ) -> None:
        self.storage = storage
        self._inspect = inspect or (lambda file_type, key, data: None)
        self.compression_level = compression_level
        self._location_compression = location_compression
        self._snapshots: _Cache[Snapshot] = _Cache(
            max_snapshot_nodes * BYTES_PER_NODE, lambda s: (len(s) + 1) * BYTES_PER_NODE
        )
        # rebasing reads those of others, and of other threads, again and again
        self._logs: _Cache[TransactionLog] = _Cache(
            min(max_snapshot_nodes * BYTES_PER_NODE, _LOGS), lambda log: log.nbytes
        )
        self._manifests: _Cache[StoredManifest] = _Cache(
            max_chunk_refs * BYTES_PER_CHUNK_REF, lambda m: m.nbytes
        )
        self._chunks: _Cache[bytes] | None = (
            _Cache(max_chunk_bytes, len) if max_chunk_bytes else None
        )

    def uncached(
        self,
        inspect: Inspect | None = None,
        *,
        max_snapshot_nodes: int = 0,
        max_chunk_refs: int = 0,
    ) -> Assets:
        """Return access to what is stored now, without what was read before.

        For work that looks at everything once, or that must not trust what was read before:
        snapshots of spec version 1 are rewritten when others expire. Nothing of it is
        kept, or a bounded number of nodes and references.
        """
        return Assets(
            self.storage,
            max_snapshot_nodes=max_snapshot_nodes,
            max_chunk_refs=max_chunk_refs,
            compression_level=self.compression_level,
            location_compression=self._location_compression,
            inspect=inspect,
        )

    # -- reading ---------------------------------------------------------------
    def snapshot(self, snapshot_id: bytes) -> Snapshot:
        """Fetch a snapshot.

        Raises
        ------
        SnapshotNotFoundError
            If there is no such object.
        """

        def fetch() -> Snapshot:
            key = layout.snapshot_key(snapshot_id)
            try:
                data = self.storage.get(key).data
            except ObjectNotFoundError:
                raise SnapshotNotFoundError(
                    f"there is no snapshot {encode_id(snapshot_id)} in {self.storage.url}: "
                    + COLLECTED
                ) from None
            with advising(MENDED):
                snapshot = decode_snapshot(data, key)
                _check_id(snapshot.id, snapshot_id, key)
            self._inspect(FileType.SNAPSHOT, key, data)
            return snapshot

        return self._snapshots.get(snapshot_id, fetch)

    def forget_snapshot(self, snapshot_id: bytes) -> None:
        """Make the next request for a snapshot fetch it again: it was rewritten in place."""
        self._snapshots.forget(snapshot_id)

    def manifest(self, manifest_id: bytes) -> Manifest:
        """Fetch a manifest, and decode all of it.

        Raises
        ------
        StorageError
            If there is no such object: the repository is damaged.
        FormatError
            If it is damaged.
        """
        return self._whole(manifest_id, self.stored_manifest(manifest_id))

    def manifests(self, manifest_ids: Sequence[bytes]) -> list[Manifest]:
        """Fetch many manifests, several at the same time, as `manifest` fetches each."""
        missing = [id for id in dict.fromkeys(manifest_ids) if self.cached_manifest(id) is None]
        limit = _REQUESTS if self.storage.is_remote else min(os.cpu_count() or 1, _REQUESTS)
        fetched = map_in_threads(self.manifest, missing, limit)
        # the cache may be too small for all of them
        found = dict(zip(missing, fetched, strict=True))
        return [found[id] if id in found else self.manifest(id) for id in manifest_ids]

    def _whole(self, manifest_id: bytes, stored: StoredManifest) -> Manifest:
        before = stored.nbytes
        manifest = stored.whole()
        if stored.nbytes != before:
            self._manifests.put(manifest_id, stored)
        return manifest

    def stored_manifest(self, manifest_id: bytes) -> StoredManifest:
        """Fetch a manifest, to look up some chunks.

        Raises
        ------
        StorageError
            If there is no such object: the repository is damaged.
        FormatError
            If it is damaged where it was looked at.
        """
        key = layout.manifest_key(manifest_id)
        return self._manifests.get(
            manifest_id, lambda: self._decoded(manifest_id, key, self._get(key, "manifest"))
        )

    def manifest_at_once(self, manifest_id: bytes) -> StoredManifest | None:
        """Return a manifest if it is cached, or quick to fetch: event loops ask for it.

        Raises
        ------
        StorageError, FormatError
            As `stored_manifest`.
        """
        found = self._manifests.peek(manifest_id)
        if found is None:
            key = layout.manifest_key(manifest_id)
            with _is_missing(key, "manifest", self.storage):
                got = self.storage.get_at_once(key)
            if got is not None:
                found = self._decoded(manifest_id, key, got.data)
                self._manifests.put(manifest_id, found)
        return found

    def _decoded(self, manifest_id: bytes, key: str, data: BytesLike) -> StoredManifest:
        with advising(MENDED):
            manifest = StoredManifest(data, key)
            _check_id(manifest.id, manifest_id, key)
        self._inspect(FileType.MANIFEST, key, data)
        return manifest

    def chunk_ids(self, manifest_id: bytes, scratch: Scratch | None = None) -> NDArray[np.uint8]:
        """Fetch a manifest only for the ids of its native chunks: uint8[n, 12].

        Parameters
        ----------
        manifest_id : bytes
        scratch : Scratch, optional
            For whoever reads many.

        Raises
        ------
        StorageError, FormatError
            As `manifest`.
        """
        key = layout.manifest_key(manifest_id)
        found, ids = decode_chunk_ids(self._get(key, "manifest"), key, scratch or Scratch(1))
        _check_id(found, manifest_id, key)
        return ids

    def native_chunks(self, manifest_id: bytes) -> NativeChunks:
        """Fetch a manifest for the ids of its native chunks, and their sizes.

        Raises
        ------
        StorageError, FormatError
            As `manifest`.
        """
        key = layout.manifest_key(manifest_id)
        found = decode_native_chunks(self._get(key, "manifest"), key)
        _check_id(found.manifest_id, manifest_id, key)
        return found

    def chunk_ref(
        self, manifest_id: bytes, node_id: bytes, coordinate: Sequence[int]
    ) -> ChunkRef | None:
        """Return the reference to a chunk in a manifest, or None.

        Raises
        ------
        StorageError, FormatError
            As `stored_manifest` and `manifest` do.
        """
        stored = self.stored_manifest(manifest_id)
        is_known, ref = stored.peek(node_id, coordinate)
        if not is_known:
            self._whole(manifest_id, stored)
            _, ref = stored.peek(node_id, coordinate)
        return ref

    def cached_manifest(self, manifest_id: bytes) -> StoredManifest | None:
        """Return a manifest if that needs no request."""
        return self._manifests.peek(manifest_id)

    def forget_manifests(self, manifest_ids: Iterable[bytes]) -> None:
        """Drop manifests from the cache that are unlikely to be needed again."""
        for manifest_id in manifest_ids:
            self._manifests.forget(manifest_id)

    def transaction_log(self, snapshot_id: bytes) -> TransactionLog:
        """Fetch the transaction log of a snapshot."""

        def fetch() -> TransactionLog:
            key = layout.transaction_key(snapshot_id)
            data = self._get(key, "transaction log")
            with advising(MENDED):
                log = decode_transaction_log(data, key)
                # it carries the id of its snapshot (Icechunk spec, "Transaction logs")
                _check_id(log.id, snapshot_id, key)
            self._inspect(FileType.TRANSACTION_LOG, key, data)
            return log

        return self._logs.get(snapshot_id, fetch)

    def _get(self, key: str, what: str) -> Any:
        with _is_missing(key, what, self.storage):
            return self.storage.get(key).data

    # -- chunks ----------------------------------------------------------------
    def chunk_bytes(self, key: str, byte_range: tuple[int, int]) -> BytesLike | None:
        """Return a range of a chunk object if it is cached."""
        return None if self._chunks is None else self._chunks.peek(_range_name(key, byte_range))

    def keep_chunk_bytes(self, key: str, byte_range: tuple[int, int], data: BytesLike) -> None:
        """Put a range of a chunk object into the cache, if there is one."""
        if self._chunks is not None:
            self._chunks.put(_range_name(key, byte_range), bytes(data))

    # -- writing ---------------------------------------------------------------
    def write_snapshot(
        self, snapshot: Snapshot, *, spec_version: int = 2, batch: Batch | None = None
    ) -> None:
        """Store a snapshot under its id, or let a batch do so."""
        data = encode_snapshot(snapshot, level=self.compression_level, spec_version=spec_version)
        # a snapshot that is built again has the same id
        self._snapshots.forget(snapshot.id)
        self._put(layout.snapshot_key(snapshot.id), data, batch)
        # a session goes on from the snapshot that it has committed
        self._snapshots.put(snapshot.id, snapshot)

    def write_manifest(
        self,
        arrays: Mapping[bytes, ChunkRefs],
        *,
        spec_version: int = 2,
        batch: Batch | None = None,
    ) -> ManifestFile:
        """Store the references of some arrays as a new manifest, or let a batch do so."""
        manifest_id = new_object_id()
        data = encode_manifest(
            manifest_id,
            arrays,
            level=self.compression_level,
            compress_locations=self._location_compression,
            spec_version=spec_version,
        )
        self._put(layout.manifest_key(manifest_id), data, batch)
        # a session that goes on after its commit reads what it wrote
        self._manifests.put(manifest_id, StoredManifest.of(Manifest(manifest_id, dict(arrays))))
        return ManifestFile(manifest_id, len(data), sum(len(refs) for refs in arrays.values()))

    def write_transaction_log(
        self, log: TransactionLog, *, spec_version: int = 2, batch: Batch | None = None
    ) -> None:
        """Store a transaction log under the id of its snapshot, or let a batch do so."""
        data = encode_transaction_log(log, level=self.compression_level, spec_version=spec_version)
        # like a snapshot, it may be built again
        self._logs.forget(log.id)
        self._put(layout.transaction_key(log.id), data, batch)
        self._logs.put(log.id, log)

    def _put(self, key: str, data: BytesLike, batch: Batch | None) -> None:
        if batch is None:
            self.storage.put(key, data)
        else:
            batch.put(key, data)


class Batch:
    """Objects that are stored at the same time, where a request takes long.

    Any number of threads may add to it.

    Parameters
    ----------
    storage : Storage
        In one that is not remote, an object is stored at once.
    limit : int
        Objects at the same time.
    """

    def __init__(self, storage: Storage, limit: int) -> None:
        self._storage = storage
        self._limit = limit
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._waiting: list[tuple[str, BytesLike]] = []
        self._room = _MAX_WAITING if self._storage.is_remote else 0

    def put(self, key: str, data: BytesLike) -> None:
        """Store an object, at once if it is large, or in `send`."""
        with self._lock:
            waits = len(data) <= self._room
            if waits:
                self._room -= len(data)
                self._waiting.append((key, data))
        if not waits:
            self._storage.put(key, data)

    def send(self) -> None:
        """Store what is waiting.

        Raises
        ------
        StorageError
            If one of them fails; then any of them may be missing.
        """
        map_in_threads(lambda item: self._storage.put(*item), self._waiting, self._limit)
        self._begin()


@contextmanager
def _is_missing(key: str, what: str, storage: Storage) -> Iterator[None]:
    """Say what it means if an object is missing."""
    try:
        yield
    except ObjectNotFoundError:
        raise StorageError(
            f"the {what} {key} is missing from {storage.url}: {COLLECTED}",
            ErrorKind.OBJECT_NOT_FOUND,
        ) from None


def _range_name(key: str, byte_range: tuple[int, int]) -> bytes:
    return f"{key} {byte_range[0]} {byte_range[1]}".encode()


def _check_id(found: bytes, expected: bytes, key: str) -> None:
    if found != expected:
        raise FormatError(
            f"{key}: holds the id {encode_id(found)}; the object was replaced or misnamed",
            ErrorKind.INVALID_FILE_FORMAT,
        )
