"""Salvage a branch when objects of its newest version are missing or damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from icechunk.changes.zarr_metadata import parse_node_metadata
from icechunk.commit import publish
from icechunk.commit.assets import Assets
from icechunk.commit.building import now_microseconds
from icechunk.commit.publish import RepoState
from icechunk.commit.relog import log_between
from icechunk.commit.version_names import branch_tip
from icechunk.errors import (
    ConflictError,
    ErrorKind,
    FormatError,
    IcechunkError,
    ObjectNotFoundError,
)
from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRefs, RefKind
from icechunk.format.ids import INITIAL_SNAPSHOT_ID, encode_id, new_object_id
from icechunk.format.metadata import with_reserved
from icechunk.format.nodes import ArrayInfo, ManifestFile, ManifestRef, Node
from icechunk.format.repo_info import RepoInfo, SnapshotEntry, with_item
from icechunk.format.snapshot import Snapshot
from icechunk.format.transaction_log import TransactionLog
from icechunk.format.updates import UpdateEntry, UpdateKind
from icechunk.repository.decoding import Tried
from icechunk.repository.listing import Listing
from icechunk.repository.repairs import Dropped
from icechunk.repository.rereading import READS, check_damage, read_again

__all__ = ["Salvage"]


class Salvage:
    """Finds what can be kept of one branch.

    Parameters
    ----------
    assets : Assets
        Without a cache.
    state : RepoState
    info : RepoInfo
        The current one, or the one that a repair would publish.
    branch : str
    decode : callable or None
        Called with the id of a snapshot, the path of an array and some of its references; yields
        the results of decoding their chunks. None: no chunk is decoded.
    """

    def __init__(
        self,
        assets: Assets,
        state: RepoState,
        info: RepoInfo,
        branch: str,
        decode: Callable[[bytes, str, ChunkRefs], Iterator[Tried]] | None = None,
    ) -> None:
        self._assets = assets
        self._state = state
        self._info = info
        self._branch = branch
        self._decode = decode
        self._spec_version = info.spec_version
        self._dropped: list[Dropped] = []
        self._unread: list[Dropped] = []
        self._chunks: dict[bytes, npt.NDArray[np.uint32]] = {}
        self._touched: set[bytes] = set()
        self._gone: list[Node] = []
        self._listing: Listing | None = None

    def run(self, *, drop: bool, dry_run: bool) -> dict[str, Any]:
        """Return the findings as fields of a `Repair`; apply the changes unless `dry_run`."""
        tip = branch_tip(self._info, self._branch)
        unreadable, version = self._newest_readable()
        logs = self._make_logs(dry_run=dry_run)
        nodes, pieces = self._what_is_left(version)
        told: dict[str, Any] = {
            "reset": tuple(map(encode_id, unreadable)),
            "dropped": tuple(self._dropped),
            "unread": tuple(self._unread),
            "logs": tuple(logs),
        }
        if any(told.values()) and (now := branch_tip(self._state.load(), self._branch)) != tip:
            # what it was moved away from may have been collected meanwhile: that is no damage
            raise ConflictError(encode_id(tip), encode_id(now))
        if drop and not dry_run:
            if unreadable:
                self._reset(tip, version.id)
            if self._dropped:
                told["snapshot_id"] = self._commit(version, nodes, pieces)
        return told

    def _newest_readable(self) -> tuple[list[bytes], Snapshot]:
        unreadable: list[bytes] = []
        why: IcechunkError | None = None
        try:
            for entry in self._info.ancestry(branch_tip(self._info, self._branch)):
                try:
                    return unreadable, read_again(partial(self._version, entry.id))
                except IcechunkError as error:
                    check_damage(error)  # the branch would be moved
                    why = why or error
                    unreadable.append(entry.id)
        except IcechunkError as error:
            check_damage(error)
            why = why or error
        raise FormatError(
            f"no version of the branch {self._branch!r} can be read: {why}",
            ErrorKind.INVALID_FILE_FORMAT,
        )

    def _version(self, id: bytes) -> Snapshot:
        """Return a version of which all nodes can be read."""
        version = self._assets.snapshot(id)
        list(version.nodes())
        return version

    def _history(self) -> Iterator[SnapshotEntry]:
        """Yield the history of the branch, as far as it can be read."""
        try:
            yield from self._info.ancestry(branch_tip(self._info, self._branch))
        except IcechunkError as error:
            check_damage(error)

    # -- transaction logs ------------------------------------------------------------------
    def _make_logs(self, *, dry_run: bool) -> list[str]:
        """Rebuild unreadable transaction logs of the branch if both versions are readable."""
        made: list[str] = []
        for entry in self._history():
            if entry.pruned or (entry.parent_id is None and entry.id != INITIAL_SNAPSHOT_ID):
                continue
            key = layout.transaction_key(entry.id)
            etag: str | None = None
            try:
                etag = read_again(partial(self._assets.storage.get, key)).etag
                read_again(partial(self._assets.transaction_log, entry.id))
                continue
            except (ObjectNotFoundError, FormatError):
                pass
            if entry.parent_id is None:
                if etag is None:
                    continue  # upgraded repositories have none for the first snapshot
                log = TransactionLog(entry.id)
            else:
                try:
                    ends = self._assets.snapshot(entry.parent_id), self._assets.snapshot(entry.id)
                    log = log_between(self._assets, *ends)
                except IcechunkError as error:
                    check_damage(error)
                    continue
            if not dry_run:
                # an unreadable log is of no use to anybody
                if etag is not None:
                    self._assets.storage.delete([key])
                self._assets.write_transaction_log(log, spec_version=self._spec_version)
            made.append(key)
        return made

    # -- what cannot be read ---------------------------------------------------------------
    def _what_is_left(
        self, version: Snapshot
    ) -> tuple[list[Node], dict[bytes, list[ManifestRef | ChunkRefs]]]:
        """Return the nodes that stay, and the remaining references of those that lose chunks."""
        nodes: list[Node] = []
        pieces: dict[bytes, list[ManifestRef | ChunkRefs]] = {}
        for node in version.nodes():
            try:
                parse_node_metadata(node.user_data, node.path)
            except IcechunkError as error:
                self._gone.append(node)
                self._dropped.append(Dropped(node.path, str(error)))
                continue
            nodes.append(node)
            if node.array is not None:
                left = [self._left(version, node, node.array, ref) for ref in node.array.manifests]
                if any(
                    each is not ref for each, ref in zip(left, node.array.manifests, strict=True)
                ):
                    self._touched.add(node.id)
                    pieces[node.id] = [each for each in left if each is not None]
        return nodes, pieces

    def _left(
        self, version: Snapshot, node: Node, array: ArrayInfo, ref: ManifestRef
    ) -> ManifestRef | ChunkRefs | None:
        """Return what is left of one manifest: all, some references, or nothing."""
        key = layout.manifest_key(ref.id)
        try:
            if ref.id not in version.manifest_files:
                raise FormatError(f"the snapshot does not list manifest {key}")
            manifest = read_again(partial(self._assets.manifest, ref.id))
            refs = manifest.arrays.get(node.id)
            if refs is None or refs.ndim != len(array.num_chunks):
                raise FormatError(f"{key}: holds no references of this array")
        except IcechunkError as error:
            check_damage(error)
            count = version.manifest_files.get(ref.id, ManifestFile(ref.id, 0, 0)).num_chunk_refs
            self._dropped.append(Dropped(node.path, str(error), count, ref.extents or None))
            return None
        bad = self._bad_rows(refs)
        self._drop(node, refs.take(bad), "missing or cut short")
        for told, rows in self._undecodable(version, node, refs, ~bad).items():
            self._drop(node, refs.take(rows), f"cannot be decoded, {told}")
            bad[rows] = True
        if not bad.any():
            return ref
        return None if bad.all() else refs.take(~bad)

    def _drop(self, node: Node, lost: ChunkRefs, why: str) -> None:
        """Record that some references of an array are dropped."""
        if not len(lost):
            return
        self._chunks[node.id] = np.concatenate(
            [self._chunks.get(node.id, lost.coords[:0]), lost.coords]
        )
        if lost.chunk_id is not None:
            native = lost.chunk_id[lost.kind == RefKind.NATIVE]
            names = [layout.chunk_key(id.tobytes()) for id in native[:3]]
            names += [f"{len(native) - 3} more"] if len(native) > 3 else []
            why += f": {', '.join(names)}" if names else ""
        self._dropped.append(Dropped(node.path, why, len(lost), lost.extents()))

    def _undecodable(
        self, version: Snapshot, node: Node, refs: ChunkRefs, there: npt.NDArray[np.bool_]
    ) -> dict[str, npt.NDArray[np.intp]]:
        """Return the references whose bytes the codecs of the array refuse, by error."""
        found: dict[str, list[tuple[int, ...]]] = {}
        failed: dict[str, list[tuple[int, ...]]] = {}
        rest = refs.take(there)
        for _ in range(READS):
            if self._decode is None or not len(rest):
                break
            failed = {}
            for coord, problem in self._decode(version.id, node.path, rest):
                if problem is not None:
                    told = found if problem.is_of_bytes else failed
                    told.setdefault(problem.told, []).append(coord)
            coords = [coord for some in failed.values() for coord in some]
            if not coords or (refs.ndim and () in coords):
                break  # nothing is left, or the array cannot be opened here
            rest = refs.take(refs.find_many(coords))
        for why, coords in failed.items():
            some = rest if refs.ndim and () in coords else refs.take(refs.find_many(coords))
            self._unread.append(Dropped(node.path, why, len(some), some.extents()))
        return {told: refs.find_many(coords) for told, coords in found.items()}

    def _bad_rows(self, refs: ChunkRefs) -> npt.NDArray[np.bool_]:
        bad: npt.NDArray[np.bool_] = refs.length == 0
        if refs.chunk_id is None:
            return bad
        if self._listing is None:
            self._listing = Listing(self._assets.storage.list(layout.CHUNKS), layout.CHUNKS)
        rows = np.flatnonzero(refs.kind == RefKind.NATIVE)
        place = self._listing.find(np.ascontiguousarray(refs.chunk_id[rows]))
        needed = refs.ends[rows]
        size = self._listing.size[place] if len(self._listing.size) else np.zeros(len(rows))
        bad[rows] |= (place < 0) | (size < needed)
        return bad

    # -- the version without it ------------------------------------------------------------
    def _reset(self, tip: bytes, target: bytes) -> None:
        branch = self._branch

        def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
            now = publish.commit_tip(info, branch)
            if now != tip:
                raise ConflictError(encode_id(tip), encode_id(now))
            changed = replace(info, branches=with_item(info.branches, branch, target))
            return changed, UpdateEntry(kind=UpdateKind.BRANCH_RESET, name=branch, previous=tip)

        self._state.update(compute)

    def _commit(
        self,
        version: Snapshot,
        nodes: list[Node],
        pieces: dict[bytes, list[ManifestRef | ChunkRefs]],
    ) -> str:
        assets, id = self._assets, new_object_id()
        files: dict[bytes, ManifestFile] = {}
        for i, node in enumerate(nodes):
            if node.array is None:
                continue
            kept: list[ManifestRef] = []
            for piece in pieces.get(node.id, node.array.manifests):
                if isinstance(piece, ManifestRef):
                    files[piece.id] = version.manifest_files[piece.id]
                    kept.append(piece)
                    continue
                file = assets.write_manifest({node.id: piece}, spec_version=self._spec_version)
                files[file.id] = file
                kept.append(ManifestRef(file.id, piece.extents()))
            nodes[i] = replace(node, array=replace(node.array, manifests=tuple(kept)))
        metadata = with_reserved(None, dropped=[str(each) for each in self._dropped[:100]])
        snapshot = Snapshot.build(
            id=id,
            nodes=nodes,
            flushed_at=max(now_microseconds(), version.flushed_at + 1),
            message=f"Drop what cannot be read: {len(self._dropped)} in all",
            metadata=metadata,
            manifest_files=dict(sorted(files.items())),
            parent_id=version.id if self._spec_version == 1 else None,
        )
        log = TransactionLog(
            id,
            deleted_arrays=tuple(sorted(n.id for n in self._gone if n.is_array)),
            deleted_groups=tuple(sorted(n.id for n in self._gone if not n.is_array)),
            # nobody knows which chunks a missing manifest held
            updated_arrays=tuple(sorted(self._touched)),
            updated_chunks={k: (_sorted(c),) for k, c in sorted(self._chunks.items())},
        )
        assets.write_transaction_log(log, spec_version=self._spec_version)
        assets.write_snapshot(snapshot, spec_version=self._spec_version)
        entry = SnapshotEntry(
            id, version.id, snapshot.flushed_at, snapshot.message, snapshot.metadata
        )
        self._state.update(publish.add_commit(self._branch, version.id, entry))
        return encode_id(id)


def _sorted(coords: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return sorted coordinates; a scalar has one chunk, without coordinates."""
    return coords[np.lexsort(coords.T[::-1])] if coords.shape[1] else coords
