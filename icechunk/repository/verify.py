"""Verification: whether everything that versions refer to exists and is consistent.

The invariants are those of the Icechunk spec. The metadata objects of all versions are read,
each once. Chunk objects are listed rather than requested one by one, so a hundred thousand of
them cost a hundred requests. Ids and sizes are columns.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from icechunk.base.texts import MENDED, counted
from icechunk.base.threads import Threads
from icechunk.commit.assets import Assets
from icechunk.commit.relog import NodeState, node_states, rewritten, surplus, untold, untold_chunks
from icechunk.errors import (
    IcechunkError,
    ObjectNotFoundError,
    SnapshotNotFoundError,
)
from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRefs, RefKind
from icechunk.format.encoding.envelope import BytesLike, FileType
from icechunk.format.ids import INITIAL_SNAPSHOT_ID, encode_id
from icechunk.format.invariants import broken_invariants
from icechunk.format.manifest import Manifest
from icechunk.format.nodes import ManifestFile, ManifestRef, Node
from icechunk.format.repo_info import RepoInfo, SnapshotEntry
from icechunk.format.snapshot import Snapshot
from icechunk.format.transaction_log import TransactionLog
from icechunk.repository import archive_tables
from icechunk.repository.decoding import NOT_ALLOWED
from icechunk.repository.listing import Listing
from icechunk.repository.reachable import MAX_THREADS, batches, known_snapshots
from icechunk.repository.rereading import READS
from icechunk.repository.verification import Damage, Verification
from icechunk.repository.verify_nodes import Extents, box, contradictions, problem_of_source
from icechunk.repository.verify_records import Found, job_damages, table_damages
from icechunk.repository.verify_updates import repo_damages
from icechunk.repository.verify_values import ReadValues, bad_values
from icechunk.virtual.resolver import VirtualResolver

__all__ = ["Verifier"]

T = TypeVar("T")

#: References of manifests, and nodes, that are kept while versions are compared.
_KEPT_REFS: Final = 1 << 20
_KEPT_NODES: Final = 20_000
_FOLDERS: Final = (layout.SNAPSHOTS, layout.MANIFESTS, layout.TRANSACTIONS, layout.CHUNKS)


@dataclass
class _Use:
    """How versions use a manifest for one array: the same way in all the snapshots."""

    node_id: bytes
    path: str
    grid: tuple[int, ...]
    extents: Extents
    snapshots: list[bytes] = field(default_factory=list)


@dataclass
class _Finding:
    """A damage, while further effects of it are being found."""

    problem: str
    key: str
    told: str
    array: str | None
    snapshots: set[bytes] = field(default_factory=set)
    coords: set[tuple[int, ...]] = field(default_factory=set)
    chunks: int = 0
    region: Extents | None = None


class Verifier:
    """One verification.

    Parameters
    ----------
    assets : Assets
        Without a cache.
    load : callable
        Returns the current repo info.
    virtual : VirtualResolver or None
        Checks the files that hold virtual chunks; None to leave them alone.
    read_values : callable or None
        See `bad_values`. None to decode nothing.
    is_deep : bool
        Whether to decode all copies of the repo info, not only the newest, and to compare all
        versions with what transaction logs say about their chunks.
    progress : callable or None
        Called with what is being checked, how many are done, and how many there are.
    """

    def __init__(
        self,
        assets: Assets,
        load: Callable[[], RepoInfo],
        *,
        virtual: VirtualResolver | None = None,
        read_values: ReadValues | None = None,
        is_deep: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        # where versions are compared, each object is needed by two of them
        kept = {"max_chunk_refs": _KEPT_REFS, "max_snapshot_nodes": _KEPT_NODES}
        self._assets = assets.uncached(self._inspect, **(kept if is_deep else {}))
        self._is_deep = is_deep
        self._broken: dict[str, list[str]] = defaultdict(list)
        self._tables: dict[str, set[bytes]] = defaultdict(set)
        self._storage = assets.storage
        self._virtual = virtual
        self._read_values = read_values
        self._progress = progress or (lambda what, done, total: None)
        self._damages: dict[tuple[str, str, str, str | None], _Finding] = {}
        self._checked = dict.fromkeys(("snapshots", "manifests", "chunks"), 0)
        # The state first: what is committed meanwhile is listed, but not expected.
        self._load = load
        self._info = load()
        self._entries = known_snapshots(self._info)
        self._listings = {
            folder: Listing(self._storage.list(folder), folder) for folder in _FOLDERS
        }
        self._uses: dict[bytes, dict[tuple[Any, ...], _Use]] = defaultdict(dict)
        self._files: dict[bytes, ManifestFile] = {}
        self._sources: dict[tuple[str, str | None, int], int] = {}
        self._users: dict[tuple[str, str | None, int], tuple[str, list[bytes]]] = {}

    def run(self) -> Verification:
        """Check everything."""
        self._check_refs()
        self._check_snapshots()
        files = list(self._files.values())
        for file, manifest in self._each("manifests", files, self._manifest):
            if manifest is not None:
                self._check_manifest(file, manifest)
        self._check_records(self._listings[layout.CHUNKS])
        if self._virtual is not None:
            self._check_sources(self._virtual)
        if self._read_values is not None:
            self._check_values(self._read_values)
        self._forget_collected()
        return Verification(
            self._storage.url,
            tuple(map(self._damage, self._damages.values())),
            {folder: listing.orphans() for folder, listing in self._listings.items()},
            self._checked,
        )

    def _each(
        self, what: str, items: Sequence[T], read: Callable[[T], Any]
    ) -> Iterator[tuple[T, Any]]:
        """Read many in parallel, and yield them one by one."""
        with Threads(MAX_THREADS) as pool:
            for batch in batches(items, MAX_THREADS):
                for item, found in zip(batch, pool.map(read, batch), strict=True):
                    self._checked[what] += 1
                    yield item, found
                self._progress(what, self._checked[what], len(items))

    def _inspect(self, file_type: FileType, key: str, data: BytesLike) -> None:
        self._broken[key] += broken_invariants(file_type, data, key)

    # -- damages -----------------------------------------------------------------------
    def _found(
        self,
        problem: str,
        key: str,
        told: str,
        snapshots: Iterable[bytes],
        array: str | None = None,
        coords: npt.NDArray[np.uint32] | None = None,
        *,
        chunks: int = 0,
        region: Extents | None = None,
    ) -> None:
        # the same reference in two manifests is one damage
        finding = self._damages.setdefault(
            (problem, key, told, array), _Finding(problem, key, told, array)
        )
        finding.snapshots.update(snapshots)
        finding.chunks = max(finding.chunks, chunks)
        finding.region = finding.region or region
        if coords is not None:
            finding.coords.update(map(tuple, coords.tolist()))

    def _forget_collected(self) -> None:
        """Drop what was found wrong with versions that others deleted in the meantime."""
        for _ in range(READS):
            if not self._damages or (now := self._load()) is self._info:
                return
            self._info, self._entries = now, known_snapshots(now)
            for at, found in list(self._damages.items()):
                found.snapshots &= self._entries.keys()
                if not found.snapshots:
                    del self._damages[at]
            for users in self._tables.values():
                users &= self._entries.keys()
            # what is wrong beside the versions may be gone, too
            self._check_refs()
            self._check_records(Listing(self._storage.list(layout.CHUNKS), layout.CHUNKS))
            if now.spec_version < 2:
                return  # nothing tells whether it changed again

    def _damage(self, found: _Finding) -> Damage:
        chunks, region = found.chunks, found.region
        if found.coords:
            chunks = len(found.coords)
            region = tuple((min(axis), max(axis) + 1) for axis in zip(*found.coords, strict=True))
        info = self._info
        refs = [*dict(info.branches.items()).items(), *dict(info.tags.items()).items()]
        return Damage(
            found.problem,
            found.key,
            found.told,
            tuple(sorted(map(encode_id, found.snapshots))),
            tuple(sorted({name for name, target in refs if target in found.snapshots})),
            found.array,
            chunks,
            region,
        )

    def _read(
        self, key: str, snapshots: Iterable[bytes], read: Callable[[], T], **lost: Any
    ) -> T | None:
        """Return what is read, or record why it cannot be, and what is lost with it."""
        try:
            return read()
        except IcechunkError as error:
            gone = isinstance(error, SnapshotNotFoundError | ObjectNotFoundError) or (
                isinstance(error.__context__, ObjectNotFoundError)
            )
            told = str(error).removeprefix(f"{key}: ").removesuffix(f"; {MENDED}")
            told = "there is no such object" if gone else told
            self._found("missing" if gone else "unreadable", key, told, snapshots, **lost)
            return None

    # -- refs and snapshots --------------------------------------------------------------
    def _check_refs(self) -> None:
        info, known = self._info, self._entries
        for kind, refs in (("branch", info.branches), ("tag", info.tags)):
            for name, target in dict(refs.items()).items():
                if target not in known:
                    told = f"the {kind} {name!r} is at snapshot {encode_id(target)}, not known"
                    self._found("inconsistent", layout.REPO_KEY, told, [target])
        if "main" not in info.branches:
            self._found("inconsistent", layout.REPO_KEY, "there is no branch 'main'", [])
        for entry in known.values():
            parent = entry.parent_id
            if parent is None:
                continue
            if parent not in known:
                told = f"the parent of snapshot {encode_id(entry.id)}, {encode_id(parent)}, is gone"
                self._found("inconsistent", layout.REPO_KEY, told, [entry.id])
            elif known[parent].flushed_at >= entry.flushed_at:
                told = f"snapshot {encode_id(entry.id)} is not younger than its parent"
                self._found("inconsistent", layout.REPO_KEY, told, [entry.id])

    def _check_snapshots(self) -> None:
        """Check every version, and whether its log records what it changed."""
        entries = sorted(self._entries.values(), key=lambda entry: entry.flushed_at)
        children = Counter(entry.parent_id for entry in entries)
        states: dict[bytes, dict[bytes, NodeState]] = {}
        for entry, (snapshot, logs) in self._each("snapshots", entries, self._snapshot):
            parent = entry.parent_id
            before = states.get(parent) if parent is not None else None
            children[parent] -= 1
            if parent is not None and not children[parent]:
                states.pop(parent, None)
            if snapshot is None:
                continue
            if parent is None and logs and logs[0] and entry.id != INITIAL_SNAPSHOT_ID:
                told = f"snapshot {encode_id(entry.id)} has a transaction log, and no parent"
                self._found("inconsistent", layout.REPO_KEY, told, [entry.id])
            self._check_snapshot(entry, snapshot)
            log = self._check_log(entry, snapshot, logs)
            after = node_states(snapshot)
            if children[entry.id]:
                states[entry.id] = after
            # no log records what expired between a version of spec 1 and the first one
            is_cut = snapshot.parent_id is not None and parent == self._first_of(entry)
            if before is not None and log is not None and not is_cut:
                key = layout.transaction_key(entry.id)
                found = list(untold(log, before, after))
                if self._is_deep or (not entry.pruned and rewritten(log, before, after)):
                    # what cannot be read is reported where it is checked
                    with suppress(IcechunkError):
                        old = self._assets.snapshot(entry.parent_id or b"")
                        found += untold_chunks(self._assets, log, old, snapshot)
                for told in found:
                    self._found("inconsistent", key, f"it does not say {told}", [entry.id])

    def _check_log(
        self, entry: SnapshotEntry, snapshot: Snapshot, logs: list[TransactionLog | None]
    ) -> TransactionLog | None:
        """Return what changed since the version before, as far as all logs of it can be read."""
        whole: TransactionLog | None = None
        seen: set[str] = set()
        for id, log in zip((entry.id, *reversed(entry.pruned)), logs, strict=False):
            if log is None:
                return None
            whole = log if whole is None else log.merge(whole, entry.id)
            for told in surplus(whole, snapshot):
                if told not in seen:
                    self._found("inconsistent", layout.transaction_key(id), told, [entry.id])
                seen.add(told)
        return whole

    def _first_of(self, entry: SnapshotEntry) -> bytes | None:
        """Return the parent of a snapshot if that has no parent itself."""
        parent = self._entries.get(entry.parent_id or b"")
        return parent.id if parent is not None and parent.parent_id is None else None

    def _snapshot(
        self, entry: SnapshotEntry
    ) -> tuple[Snapshot | None, list[TransactionLog | None]]:
        """Return a version and its log, and those of what expired before it, newest first."""
        key = layout.snapshot_key(entry.id)
        self._listings[layout.SNAPSHOTS].size_of(entry.id)
        snapshot = self._read(key, [entry.id], lambda: _whole(self._assets.snapshot(entry.id)))
        # the first snapshot of spec 1 has none, even after an upgrade
        has_log = self._listings[layout.TRANSACTIONS].size_of(entry.id) is not None
        logs: list[TransactionLog | None] = []
        if has_log or (entry.id != INITIAL_SNAPSHOT_ID and entry.parent_id is not None):
            logs.append(self._log(entry.id, entry.id))
        for id in reversed(entry.pruned):
            # a rebase replays what has expired between a version and the one before it
            self._listings[layout.TRANSACTIONS].size_of(id)
            logs.append(self._log(id, entry.id))
        return snapshot, logs

    def _log(self, id: bytes, needed_by: bytes) -> TransactionLog | None:
        key = layout.transaction_key(id)
        log = self._read(key, [needed_by], lambda: self._assets.transaction_log(id))
        for told in self._broken.pop(key, ()):
            self._found("inconsistent", key, told, [needed_by])
        return log

    def _check_snapshot(self, entry: SnapshotEntry, snapshot: Snapshot) -> None:
        key = layout.snapshot_key(entry.id)

        def wrong(told: str, path: str | None = None) -> None:
            self._found("inconsistent", key, told, [entry.id], path)

        for told in self._broken.pop(key, ()):
            wrong(told)
        if snapshot.flushed_at != entry.flushed_at:
            wrong("it was written at another time than the repo info says")
        if (snapshot.message, snapshot.metadata) != (entry.message, entry.metadata):
            wrong("it has another message or other metadata than the repo info says")
        used: set[bytes] = set()
        ids: set[bytes] = set()
        # a missing parent group is no damage: stores accept documents in any order, and keep
        # what lies below a group that was deleted or became an array
        for node in snapshot.nodes():
            if node.id in ids:
                wrong(f"{node.path} has the id of another node", node.path)
            for table in archive_tables.tables_in(node.user_data):
                self._tables[table].add(entry.id)
            ids.add(node.id)
            for told in contradictions(node):
                wrong(told, node.path)
            if node.array is None:
                continue
            for ref in node.array.manifests:
                used.add(ref.id)
                file = snapshot.manifest_files.get(ref.id)
                if file is None:
                    wrong(
                        f"it does not list manifest {encode_id(ref.id)} of {node.path}", node.path
                    )
                    continue
                if self._files.setdefault(ref.id, file) != file:
                    name = encode_id(ref.id)
                    wrong(f"it says another size of manifest {name} than other versions", node.path)
                self._use(entry.id, node, ref)
        for id in snapshot.manifest_files.keys() - used:
            wrong(f"it lists manifest {encode_id(id)}, which no array uses")

    def _use(self, snapshot_id: bytes, node: Node, ref: ManifestRef) -> None:
        assert node.array is not None
        grid = node.array.num_chunks
        uses = self._uses[ref.id]
        use = uses.setdefault(
            (node.id, grid, ref.extents), _Use(node.id, node.path, grid, ref.extents)
        )
        use.snapshots.append(snapshot_id)

    # -- manifests and chunks ------------------------------------------------------------
    def _manifest(self, file: ManifestFile) -> Manifest | None:
        key = layout.manifest_key(file.id)
        users = [id for use in self._uses[file.id].values() for id in use.snapshots]
        uses = self._uses[file.id].values()
        paths = {use.path for use in uses}
        lost: dict[str, Any] = {"chunks": file.num_chunk_refs}
        if len(paths) == 1:
            lost |= {"array": paths.pop(), "region": box(use.extents for use in uses)}
        size = self._listings[layout.MANIFESTS].size_of(file.id)
        manifest = self._read(key, users, lambda: _unpacked(self._assets.manifest(file.id)), **lost)
        for told in self._broken.pop(key, ()):
            self._found("inconsistent", key, told, users)
        if manifest is not None and size is not None and size != file.size_bytes:
            told = f"it has {size} bytes, and snapshots say {file.size_bytes}"
            self._found("inconsistent", key, told, users)
        return manifest

    def _check_manifest(self, file: ManifestFile, manifest: Manifest) -> None:
        key = layout.manifest_key(file.id)
        uses = list(self._uses[file.id].values())
        count = sum(map(len, manifest.arrays.values()))
        if count != file.num_chunk_refs:
            told = (
                f"it holds {counted(count, 'reference')}, and snapshots say {file.num_chunk_refs}"
            )
            self._found("inconsistent", key, told, (id for use in uses for id in use.snapshots))
        for use in uses:
            refs = manifest.arrays.get(use.node_id)
            if refs is None:
                told = f"it holds no references of {use.path}"
                self._found("inconsistent", key, told, use.snapshots, use.path)
                continue
            self._check_places(key, use, refs)
        by_node: dict[bytes, list[_Use]] = defaultdict(list)
        for use in uses:
            by_node[use.node_id].append(use)
        for node_id, of_node in by_node.items():
            refs = manifest.arrays.get(node_id)
            if refs is not None:
                self._check_chunks(of_node, refs)
                self._note_sources(of_node, refs)

    def _check_places(self, key: str, use: _Use, refs: ChunkRefs) -> None:
        coords = refs.coords
        if coords.shape[1] != len(use.grid):
            told = f"its references of {use.path} have {coords.shape[1]} dimensions"
            self._found("inconsistent", key, told, use.snapshots, use.path)
            return
        extents = use.extents if len(use.extents) == len(use.grid) else ()
        hidden = np.zeros(len(coords), np.bool_)
        for axis, (low, high) in enumerate(extents):
            hidden |= (coords[:, axis] < low) | (coords[:, axis] >= high)
        # extents describe existing chunks; shrinking the shape changes neither
        if hidden.any():
            told = "references lie outside the extents by which they are found"
            self._found("inconsistent", key, told, use.snapshots, use.path, coords[hidden])
        elif (
            extents
            and len(coords)
            and not np.array_equal(
                extents, np.stack([coords.min(axis=0), coords.max(axis=0) + 1], axis=1)
            )
        ):
            # nothing is hidden; no client writes such, so a byte of the version is wrong
            told = f"its references of {use.path} do not fill the extents that versions say"
            self._found("inconsistent", key, told, use.snapshots, use.path)

    def _check_chunks(self, uses: Sequence[_Use], refs: ChunkRefs) -> None:
        self._checked["chunks"] += len(refs)
        if refs.chunk_id is None:
            return
        rows = np.flatnonzero(refs.kind == RefKind.NATIVE)
        ids = np.ascontiguousarray(refs.chunk_id[rows])
        listing = self._listings[layout.CHUNKS]
        place = listing.find(ids)
        needed = refs.ends[rows]
        gone = place < 0
        short = ~gone & (listing.size[place] < needed) if len(listing.size) else gone
        for bad, problem in ((gone, "missing"), (short & ~gone, "short")):
            self._bad_chunks(uses, refs, rows[bad], problem)

    def _bad_chunks(
        self, uses: Sequence[_Use], refs: ChunkRefs, rows: npt.NDArray[np.int64], problem: str
    ) -> None:
        if not len(rows) or refs.chunk_id is None:
            return
        grouped: dict[bytes, list[int]] = defaultdict(list)
        for row in rows.tolist():
            grouped[refs.chunk_id[row].tobytes()].append(row)
        users = [id for use in uses for id in use.snapshots]
        for id, mine in grouped.items():
            needed = int(refs.offset[mine[0]]) + int(refs.length[mine[0]])
            told = (
                "there is no such object"
                if problem == "missing"
                else f"it has {self._listings[layout.CHUNKS].size_of(id)} bytes of {needed}"
            )
            self._found(problem, layout.chunk_key(id), told, users, uses[0].path, refs.coords[mine])

    # -- beside the versions ---------------------------------------------------------------
    def _check_records(self, chunks: Listing) -> None:
        found: list[Found] = []
        if self._info.spec_version > 1:
            found += repo_damages(self._storage, self._info, all_copies=self._is_deep)
        found += job_damages(self._storage, partial(self._use_of_job, chunks))
        for each in found:
            self._found(each.problem, each.key, each.told, [])
        needed = {table for table, users in self._tables.items() if users}
        for each in table_damages(self._storage, needed):
            self._found(each.problem, each.key, each.told, self._tables[each.key])

    def _use_of_job(self, chunks: Listing, key: str, path: str, ids: npt.NDArray[np.uint8]) -> None:
        gone = chunks.find(ids) < 0
        for id in ids[gone]:
            chunk = layout.chunk_key(id.tobytes())
            self._found("missing", chunk, f"there is no such object; {key} needs it", [], path)

    # -- files elsewhere -------------------------------------------------------------------
    def _note_sources(self, uses: Sequence[_Use], refs: ChunkRefs) -> None:
        if self._virtual is None or refs.location is None or refs.locations is None:
            return
        ends = refs.ends
        rows = np.flatnonzero(refs.kind == RefKind.VIRTUAL)
        users = [id for use in uses for id in use.snapshots]
        etag = refs.etag if refs.etag is not None else np.full(len(refs), -1, np.int32)
        time = refs.last_modified if refs.last_modified is not None else np.zeros(len(refs), "u4")
        table = np.stack([refs.location[rows], etag[rows], time[rows].astype(np.int64)], axis=1)
        distinct, which = np.unique(table, axis=0, return_inverse=True)
        longest = np.zeros(len(distinct), np.int64)
        np.maximum.at(longest, which.reshape(-1), ends[rows])
        for (place, tag, seconds), end in zip(distinct.tolist(), longest.tolist(), strict=True):
            text = refs.etags[tag] if refs.etags is not None and tag >= 0 else None
            source = (refs.locations[place], text, seconds)
            self._sources[source] = max(end, self._sources.get(source, 0))
            self._users.setdefault(source, (uses[0].path, []))[1].extend(users)

    def _check_sources(self, virtual: VirtualResolver) -> None:
        self._checked["sources"] = 0

        def look(source: tuple[str, str | None, int]) -> tuple[str, str] | None:
            location, etag, seconds = source
            end = self._sources[source]
            try:
                # its last byte: one request checks existence, version and length
                virtual.fetch(location, max(end - 1, 0), min(end, 1), etag, seconds)
            except IcechunkError as error:
                if error.kind in NOT_ALLOWED:
                    return "", ""
                return problem_of_source(error), str(error)
            return None

        for source, bad in self._each("sources", list(self._sources), look):
            if bad == ("", ""):
                what = "sources that may not be read"
                self._checked[what] = self._checked.get(what, 0) + 1
            elif bad is not None:
                path, users = self._users[source]
                self._found(bad[0], source[0], bad[1], users, path)

    # -- values ------------------------------------------------------------------------------
    def _check_values(self, read: ReadValues) -> None:
        """Decode chunks of the newest version of each branch and tag."""
        self._checked["values"] = 0
        refs = (self._info.branches, self._info.tags)
        tips = {target for each in refs for target in dict(each.items()).values()}
        # in the order of time: a version shares most with the one before it
        ordered = sorted(
            tips, key=lambda id: entry.flushed_at if (entry := self._entries.get(id)) else 0
        )
        for found in bad_values(self._assets, ordered, read):
            self._checked["values"] += found.tried
            for told, coords in found.bad.items():
                table = np.asarray(coords, np.uint32).reshape(len(coords), -1)
                self._found("unreadable", found.path, told, [found.snapshot_id], found.path, table)


def _whole(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot after decoding all of it."""
    list(snapshot.nodes())
    dict(snapshot.metadata)
    len(snapshot.manifest_files)
    return snapshot


def _unpacked(manifest: Manifest) -> Manifest:
    """Return a manifest after decompressing all its locations."""
    for refs in manifest.arrays.values():
        if refs.locations is not None:
            len(refs.locations.data)
    return manifest
