"""What versions refer to: snapshots of refs, manifests of snapshots, chunks of manifests.

Every object is read once. Ids of chunks are kept as columns: a repository may have many
millions of them, and most manifests repeat those of the manifest before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from icechunk.base.threads import Threads
from icechunk.commit.assets import BYTES_PER_CHUNK_REF, Assets
from icechunk.errors import ErrorKind, IcechunkError, SnapshotNotFoundError, StorageError
from icechunk.format.chunk_ref import RefKind
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import OBJECT_ID_SIZE
from icechunk.format.metadata import Metadata
from icechunk.format.repo_info import RepoInfo, SnapshotEntry
from icechunk.format.snapshot import ManifestFile, Snapshot

__all__ = [
    "MAX_THREADS",
    "Column",
    "DistinctRows",
    "Limits",
    "batches",
    "id_prefixes",
    "known_snapshots",
    "manifest_files",
    "native_ids",
    "reachable_snapshots",
    "read_manifests",
]

T = TypeVar("T")
Column: TypeAlias = npt.NDArray[np.uint64]

#: More threads than this are no faster, because decoding does not run in parallel.
MAX_THREADS: Final = 32
#: Minimum number of rows that wait to be merged into existing ones.
_FEW: Final = 1 << 20


@dataclass(frozen=True)
class Limits:
    """How much is fetched and held at the same time; each at least 1.

    Attributes
    ----------
    snapshots : int
    compressed_bytes, decoded_bytes : int
        Of manifests. One that is larger is read alone.
    manifests : int
    """

    snapshots: int = 50
    compressed_bytes: int = 512 << 20
    decoded_bytes: int = 4 << 30
    manifests: int = 500


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield items in lists of `size`; the last list may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


# -- snapshots ---------------------------------------------------------------------------
def reachable_snapshots(info: RepoInfo) -> set[bytes]:
    """Return the snapshots of all branches and tags, with their ancestors."""
    found: set[bytes] = set()
    for refs in (info.branches, info.tags):
        for target in dict(refs.items()).values():
            for entry in info.ancestry(target):
                if entry.id in found:
                    break
                found.add(entry.id)
    return found


def manifest_files(
    assets: Assets,
    snapshots: Iterable[bytes],
    limits: Limits,
    optional: Collection[bytes] = (),
    look: Callable[[Snapshot], None] | None = None,
) -> dict[bytes, ManifestFile]:
    """Return the manifests that some snapshots refer to.

    Parameters
    ----------
    assets : Assets
    snapshots : iterable of bytes
    limits : Limits
    optional : collection of bytes
        Snapshots that need not exist.
    look : callable, optional
        Called with each snapshot, by several threads.

    Raises
    ------
    SnapshotNotFoundError, FormatError
        If one cannot be read.
    """
    found: dict[bytes, ManifestFile] = {}

    def read(id: bytes) -> Mapping[bytes, ManifestFile]:
        try:
            snapshot = assets.snapshot(id)
        except SnapshotNotFoundError:
            if id not in optional:
                raise
            return {}
        if look is not None:
            look(snapshot)
        return snapshot.manifest_files

    with Threads(min(limits.snapshots, MAX_THREADS)) as pool:
        for batch in batches(snapshots, limits.snapshots):
            for files in pool.map(read, batch):
                found.update(files)
    return found


# -- manifests ---------------------------------------------------------------------------
def read_manifests(
    files: Mapping[bytes, ManifestFile],
    limits: Limits,
    read: Callable[[bytes], T],
    optional: Collection[bytes] = (),
) -> Iterator[T]:
    """Yield what a function reads of each manifest.

    Parameters
    ----------
    files : mapping
    limits : Limits
    read : callable
        Called with the id of a manifest, by several threads.
    optional : collection of bytes
        Manifests that need not exist.

    Raises
    ------
    StorageError, FormatError
        If one is missing or damaged.
    """

    def looked_at(file: ManifestFile) -> list[T]:
        try:
            return [read(file.id)]
        except StorageError as error:
            if file.id not in optional or error.kind is not ErrorKind.OBJECT_NOT_FOUND:
                raise
            return []

    with Threads(min(limits.manifests, MAX_THREADS)) as pool:
        for batch in _affordable(files.values(), limits):
            for found in pool.map(looked_at, batch):
                yield from found


def _affordable(files: Iterable[ManifestFile], limits: Limits) -> Iterator[list[ManifestFile]]:
    """Yield lists of manifests that fit into memory together."""
    batch: list[ManifestFile] = []
    compressed = decoded = 0
    for file in files:
        compressed += file.size_bytes
        decoded += file.num_chunk_refs * BYTES_PER_CHUNK_REF
        if batch and (
            compressed > limits.compressed_bytes
            or decoded > limits.decoded_bytes
            or len(batch) == limits.manifests
        ):
            yield batch
            batch = []
            compressed, decoded = file.size_bytes, file.num_chunk_refs * BYTES_PER_CHUNK_REF
        batch.append(file)
    if batch:
        yield batch


def native_ids(refs: ChunkRefs) -> npt.NDArray[np.uint8]:
    """Return the ids of the native chunks among some references: uint8[n, 12]."""
    if refs.chunk_id is None:
        return np.empty((0, OBJECT_ID_SIZE), np.uint8)
    ids: npt.NDArray[np.uint8] = refs.chunk_id[refs.kind == RefKind.NATIVE]
    return ids


# -- many of them --------------------------------------------------------------------------
def id_prefixes(ids: npt.NDArray[np.uint8]) -> Column:
    """Return the first eight bytes of ids, uint8[n, 12], as numbers."""
    return np.ascontiguousarray(ids[:, :8]).view(">u8").ravel().astype(np.uint64)


class DistinctRows:
    """Distinct rows of numbers, to which more can be added.

    Memory is that of the distinct rows, however often each was added; four times that
    while a single column is merged, and five times for several.

    Parameters
    ----------
    columns : int
    """

    def __init__(self, columns: int) -> None:
        self._rows: tuple[Column, ...] = tuple(np.empty(0, np.uint64) for _ in range(columns))
        self._pending: list[tuple[Column, ...]] = []
        self._waiting = 0

    def add(self, *columns: npt.NDArray[Any]) -> None:
        """Add rows, a column at a time."""
        self._pending.append(tuple(column.astype(np.uint64, copy=False) for column in columns))
        self._waiting += len(columns[0])
        if self._waiting > max(_FEW, len(self._rows[0])):
            self._merge()

    def columns(self) -> tuple[Column, ...]:
        """Return the distinct rows, sorted."""
        if self._pending:
            self._merge()
        return self._rows

    def _merge(self) -> None:
        ordered = [np.concatenate(parts) for parts in zip(self._rows, *self._pending, strict=True)]
        # not needed while sorting, when memory use is highest
        self._rows, self._pending, self._waiting = (), [], 0
        if len(ordered) == 1:
            ordered[0].sort()
        else:
            order = np.lexsort(ordered[::-1])
            ordered = [column[order] for column in ordered]
        first = np.ones(len(ordered[0]), np.bool_)
        first[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in ordered])
        self._rows = tuple(column[first] for column in ordered)


def known_snapshots(info: RepoInfo) -> dict[bytes, SnapshotEntry]:
    """Return all snapshots that a repository knows of."""
    if info.spec_version > 1:
        return dict(info.snapshots)
    # spec 1 knows only the snapshots that are found one by one, starting from the refs
    found: dict[bytes, SnapshotEntry] = {}
    for refs in (info.branches, info.tags):
        for target in dict(refs.items()).values():
            id: bytes | None = target
            while id is not None and id not in found:
                try:
                    found[id] = info.snapshots[id]
                except (KeyError, IcechunkError):
                    # an unreadable snapshot is reported where it is read
                    found[id] = SnapshotEntry(id, None, 0, "", Metadata({}))
                id = found[id].parent_id
    return found
