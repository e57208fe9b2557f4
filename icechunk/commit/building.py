"""Building a new state: manifests, transaction log and snapshot.

Building depends on nothing but the base and the edits, so it can be repeated after a lost
race. What it stores has random names and is invisible until `icechunk.commit.publish`
makes the repo info point to it. If that never happens, it is litter for the garbage
collector. The rules are those of the Icechunk spec, "Commit".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from icechunk.base.threads import map_in_threads
from icechunk.changes.change_set import ChangeSet
from icechunk.changes.tree import Tree
from icechunk.commit.assets import Assets, Batch
from icechunk.commit.splitting import (
    BlockSizes,
    block_ids,
    covers,
    default_sizes,
    is_one_block,
    split,
    split_sizes,
    stay_beside,
    touches,
)
from icechunk.config.conditions import SplitRules
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import new_object_id
from icechunk.format.snapshot import ArrayInfo, ManifestFile, ManifestRef, Node, Snapshot
from icechunk.format.transaction_log import Move, TransactionLog

#: Manifests and other objects that are written at the same time.
_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Built:
    """A stored snapshot that nothing points to yet."""

    snapshot: Snapshot
    log: TransactionLog


def now_microseconds() -> int:
    """Return the time in microseconds since the epoch, UTC."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class _Part:
    """The manifests of one array, and what they were made from.

    Attributes
    ----------
    before : tuple of ManifestRef
        Of the base.
    grid : tuple of int
    edits : ChunkRefs or None
    sizes : tuple of (int or None)
    manifests : list of (ManifestRef, ManifestFile)
    """

    before: tuple[ManifestRef, ...]
    grid: tuple[int, ...]
    edits: ChunkRefs | None
    sizes: BlockSizes
    manifests: list[tuple[ManifestRef, ManifestFile]]

    def is_of(self, array: ArrayInfo, edits: ChunkRefs | None, sizes: BlockSizes) -> bool:
        """Whether building would give the same manifests again."""
        return (self.before, self.grid, self.sizes) == (
            array.manifests,
            array.num_chunks,
            sizes,
        ) and (self.edits is edits or self.edits == edits)


class Builder:
    """Stores the snapshot of one commit, and stores it again after each lost race.

    What was made in an earlier round and would be the same again is kept: manifests of arrays
    that nobody else has changed, and the transaction log. In spec version 2 the snapshot keeps
    its id: nobody knows it before it is published. After an error it is not used again.

    Parameters
    ----------
    assets : Assets
    splitting : sequence, optional
        Rules for cutting the chunk grids of arrays into manifests. Default: only large arrays
        are cut, and existing cuts stay.
    rewrites : bool
        Whether to cut the references of all arrays again, even of unchanged ones.
    spec_version : int
        Of the repository: its objects are written in this form.

    Attributes
    ----------
    written : int
        Objects that were stored.
    """

    def __init__(
        self,
        assets: Assets,
        splitting: SplitRules | None,
        *,
        rewrites: bool = False,
        spec_version: int = 2,
    ) -> None:
        self._assets = assets
        self._splitting = splitting
        self._rewrites = rewrites
        self._spec_version = spec_version
        self._id = new_object_id()
        self._parts: dict[bytes, _Part] = {}
        self._log: TransactionLog | None = None
        self._batch = Batch(assets.storage, _AT_ONCE)
        self._counting = threading.Lock()
        self.written = 0

    def prepare(
        self, base: Snapshot, changes: ChangeSet, newest: Snapshot, others: Collection[bytes]
    ) -> None:
        """Store the manifests that `build` will need whatever others are about to commit.

        Parameters
        ----------
        base, changes
            As for `build`.
        newest : Snapshot
            Where the branch is.
        others : collection of bytes
            Ids of the arrays that others are about to change.
        """

        def is_ours(id: bytes) -> bool:
            old, now = base.get_by_id(id), newest.get_by_id(id)
            same = old is None or (now is not None and now.array == old.array)
            return same and id not in others

        work = self._work(Tree(base, [changes]).nodes(), changes)
        self._parts_of(base, [pair for pair in work if is_ours(pair[0].id)], changes)
        self._batch.send()

    def build(
        self,
        base: Snapshot,
        changes: ChangeSet,
        *,
        message: str,
        metadata: Mapping[str, Any],
        amended: TransactionLog | None = None,
    ) -> Built:
        """Store the snapshot that results from some changes.

        Parameters
        ----------
        base : Snapshot
            What the changes were made on.
        changes : ChangeSet
            All layers of the session in one.
        message : str
        metadata : mapping
            Of the commit.
        amended : TransactionLog, optional
            Log of the commit that the result replaces; its changes are listed again.
        """
        if self._log is not None and self._spec_version == 1:
            # refs can return to an earlier state, so a lost put is less certain to be
            self._id = new_object_id()
        tree = Tree(base, [changes])
        nodes, manifest_files = self._write_manifests(base, tree, changes)
        log = transaction_log(self._id, base, changes)
        if amended is not None:
            log = amended.merge(log, self._id)
        snapshot = Snapshot.build(
            id=self._id,
            nodes=nodes,
            # the official client refuses a snapshot that is not younger than its parent
            flushed_at=max(now_microseconds(), base.flushed_at + 1),
            message=message,
            metadata=dict(metadata),
            manifest_files=manifest_files,
            parent_id=base.id if self._spec_version == 1 else None,
        )
        if log != self._log:
            self._assets.write_transaction_log(
                log, spec_version=self._spec_version, batch=self._batch
            )
            self._count()
        self._assets.write_snapshot(snapshot, spec_version=self._spec_version, batch=self._batch)
        self._count()
        self._batch.send()
        self._log = log
        return Built(snapshot, log)

    def _write_manifests(
        self, base: Snapshot, tree: Tree, changes: ChangeSet
    ) -> tuple[list[Node], dict[bytes, ManifestFile]]:
        """Store the manifests of all arrays that changed; return nodes and manifest list."""
        nodes = tree.nodes()
        parts = self._parts_of(base, self._work(nodes, changes), changes)
        files: dict[bytes, ManifestFile] = {}
        for position, node in enumerate(nodes):
            if node.array is None:
                continue
            part = parts.get(node.id)
            if part is None:
                for ref in node.array.manifests:
                    files[ref.id] = base.manifest_files[ref.id]
                continue
            manifests = tuple(ref for ref, _ in part.manifests)
            nodes[position] = replace(node, array=replace(node.array, manifests=manifests))
            files.update((file.id, file) for _, file in part.manifests)
        return nodes, dict(sorted(files.items()))

    def _work(self, nodes: list[Node], changes: ChangeSet) -> list[tuple[Node, ArrayInfo]]:
        """Return the arrays whose manifests may have to be made anew."""
        touched = touched_nodes(changes)
        return [
            (node, node.array)
            for node in nodes
            if node.array is not None and (self._rewrites or node.id in touched)
        ]

    def _parts_of(
        self, base: Snapshot, work: list[tuple[Node, ArrayInfo]], changes: ChangeSet
    ) -> dict[bytes, _Part]:
        def rewrite(item: tuple[Node, ArrayInfo]) -> _Part:
            node, array = item
            edits = changes.chunks.get(node.id)
            return self._part(base, node, array, edits.refs() if edits else None)

        parts = map_in_threads(rewrite, work, _AT_ONCE)
        return {node.id: part for (node, _), part in zip(work, parts, strict=True)}

    def _count(self) -> None:
        with self._counting:
            self.written += 1

    def _part(self, base: Snapshot, node: Node, array: ArrayInfo, edits: ChunkRefs | None) -> _Part:
        if self._splitting is None:
            count = sum(base.manifest_files[ref.id].num_chunk_refs for ref in array.manifests)
            count += 0 if edits is None else len(edits)
            sizes = default_sizes(array.num_chunks, count)
        else:
            sizes = split_sizes(node.path, array, self._splitting)
        kept = self._parts.get(node.id)
        if kept is not None and kept.is_of(array, edits, sizes):
            return kept
        manifests = self._array_manifests(base, node, array, edits, sizes)
        # the first coordinates first, so that equal content gives equal lists
        manifests.sort(key=lambda pair: pair[0].extents)
        part = _Part(array.manifests, array.num_chunks, edits, sizes, manifests)
        self._parts[node.id] = part
        return part

    def _array_manifests(
        self,
        base: Snapshot,
        node: Node,
        array: ArrayInfo,
        edits: ChunkRefs | None,
        sizes: BlockSizes,
    ) -> list[tuple[ManifestRef, ManifestFile]]:
        """Return the manifests of one changed array: old ones that still fit, and new ones.

        Their extents never overlap: a block with edits, or any block if `rewrites`, gets one
        new manifest, and in other blocks each old manifest stays by itself, whole or in pieces.
        Without rules for cutting, a large one also stays where all edits are beside it.
        """
        rewrites = self._rewrites
        grid = array.num_chunks
        # writers take the coordinate 0 of an empty dimension, but nothing is stored there
        edits = (edits if edits is not None else ChunkRefs.empty(len(grid))).within(grid)
        edited = _blocks(edits, sizes)
        kept: list[tuple[ManifestRef, ManifestFile]] = []
        written: list[ChunkRefs] = []
        parts: list[ChunkRefs] = []
        touched = {ref for ref in array.manifests if touches(ref.extents, edited, sizes)}
        if not rewrites and self._splitting is None:
            touched -= _beside(
                base, edits, sorted(touched, key=lambda ref: ref.extents), sizes, grid
            )
        for ref in array.manifests:
            fits = not rewrites and _fits(
                ref.extents, grid, None if self._splitting is None else sizes
            )
            if fits and ref not in touched:
                kept.append((ref, base.manifest_files[ref.id]))
                continue
            if covers(edits, ref.extents):
                continue  # nothing of it stays, so it need not be read
            refs = self._assets.manifest(ref.id).arrays.get(node.id)
            if refs is not None:
                # chunks outside the grid, left over from a shrunk shape, are dropped here
                for piece in split(refs.within(grid), sizes):
                    joins = rewrites or edited & _blocks(piece, sizes)
                    (parts if joins else written).append(piece)
        pool = ChunkRefs.concatenate(len(grid), parts).overlay(edits).without_deleted()
        for piece in (*written, *split(pool, sizes)):
            file = self._assets.write_manifest(
                {node.id: piece}, spec_version=self._spec_version, batch=self._batch
            )
            self._count()
            kept.append((ManifestRef(file.id, piece.extents()), file))
        return kept


def touched_nodes(changes: ChangeSet) -> set[bytes]:
    """Return the ids of the nodes whose chunks or documents were changed."""
    touched = {node_id for node_id, edits in changes.chunks.items() if edits}
    return touched | changes.updated.keys()


def transaction_log(snapshot_id: bytes, base: Snapshot, changes: ChangeSet) -> TransactionLog:
    """Say what changes made of a snapshot.

    A node that was created and deleted again is not mentioned, and neither is one that
    was moved away and back. A new node is only new, however often its metadata was set
    afterwards.
    """
    new: dict[bool, list[bytes]] = {True: [], False: []}
    deleted: dict[bool, list[bytes]] = {True: [], False: []}
    updated: dict[bool, list[bytes]] = {True: [], False: []}
    for node in changes.new_nodes.values():
        new[node.is_array].append(node.id)
    for node_id in changes.deleted:
        old = base.get_by_id(node_id)
        if old is not None:
            deleted[old.is_array].append(node_id)
    for node_id in changes.updated:
        old = base.get_by_id(node_id)
        if old is not None:
            updated[old.is_array].append(node_id)
    chunks = {node_id: (edits.refs().coords,) for node_id, edits in changes.chunks.items() if edits}
    moves = [
        Move(m.from_path, m.to_path, node_id, m.is_array)
        for node_id, m in changes.moved.items()
        if m.from_path != m.to_path
    ]
    return TransactionLog(
        id=snapshot_id,
        new_groups=tuple(sorted(new[False])),
        new_arrays=tuple(sorted(new[True])),
        deleted_groups=tuple(sorted(deleted[False])),
        deleted_arrays=tuple(sorted(deleted[True])),
        updated_arrays=tuple(sorted(updated[True])),
        updated_groups=tuple(sorted(updated[False])),
        updated_chunks=dict(sorted(chunks.items())),
        moved_nodes=tuple(sorted(moves, key=lambda m: m.to_path.split("/"))),
    )


def _beside(
    base: Snapshot,
    edits: ChunkRefs,
    touched: list[ManifestRef],
    sizes: BlockSizes,
    grid: tuple[int, ...],
) -> set[ManifestRef]:
    """Return those manifests in the blocks of edits that can stay beside a new one."""
    if not touched:
        return set()
    counts = [
        base.manifest_files[ref.id].num_chunk_refs * _fits(ref.extents, grid, sizes)
        for ref in touched
    ]
    beside = stay_beside(edits, [ref.extents for ref in touched], counts)
    return {touched[position] for position in beside}


def _fits(
    extents: tuple[tuple[int, int], ...], grid: tuple[int, ...], sizes: BlockSizes | None
) -> bool:
    """Whether extents lie within the grid and, if `sizes` are given, within a single block."""
    return (
        len(extents) == len(grid)
        and all(hi <= n for (_, hi), n in zip(extents, grid, strict=True))
        and (sizes is None or is_one_block(extents, sizes))
    )


def _blocks(refs: ChunkRefs, sizes: BlockSizes) -> set[tuple[int, ...]]:
    """Return the blocks that contain any of some references."""
    if not len(refs):
        return set()
    cut = [axis for axis, size in enumerate(sizes) if size is not None]
    if not cut:
        return {()}
    # one reference per block is enough, and there may be millions
    ids = block_ids(refs.coords, sizes)
    row = np.zeros(int(ids.max()) + 1, np.int64)
    row[ids] = np.arange(len(ids))
    blocks = [refs.coords[row, axis] // np.uint32(sizes[axis] or 1) for axis in cut]
    return {tuple(block) for block in np.stack(blocks, axis=1).tolist()}
