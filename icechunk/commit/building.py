"""Building a new state: manifests, transaction log and snapshot.

Building depends on nothing but the base and the edits, so it can be run again after a
lost race. What it stores has random names and is invisible until `icechunk.commit.publish`
makes the repo info point to it; if that never happens it is litter for the garbage
collector. The rules are those of the Icechunk spec, "Commit".
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from icechunk.changes.change_set import ChangeSet
from icechunk.changes.tree import Tree
from icechunk.commit.assets import Assets
from icechunk.commit.splitting import (
    SplitSizes,
    block_ids,
    default_sizes,
    is_one_block,
    split,
    split_sizes,
    touches,
)
from icechunk.config.conditions import SplitSizes as SplitRules
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import new_object_id
from icechunk.format.snapshot import ArrayInfo, ManifestFile, ManifestRef, Node, Snapshot
from icechunk.format.transaction_log import Move, TransactionLog


@dataclass(frozen=True, slots=True)
class Built:
    """A stored snapshot that nothing points to yet."""

    snapshot: Snapshot
    log: TransactionLog


def now_microseconds() -> int:
    """Return the time in microseconds since the epoch, UTC."""
    return time.time_ns() // 1000


def build(
    assets: Assets,
    base: Snapshot,
    changes: ChangeSet,
    *,
    message: str,
    metadata: Mapping[str, Any],
    splitting: SplitRules | None,
    amended: TransactionLog | None = None,
    rewrites: bool = False,
    concurrency: int = 8,
    spec_version: int = 2,
) -> Built:
    """Store the snapshot that results from some changes.

    Parameters
    ----------
    assets : Assets
    base : Snapshot
        What the changes were made on.
    changes : ChangeSet
        All layers of the session in one.
    message : str
    metadata : mapping
        Of the commit.
    splitting : sequence, optional
        Rules for cutting the chunk grids of arrays into manifests. Default: only what is
        large is cut, and cuts that are there stay.
    amended : TransactionLog, optional
        Log of the commit that the result replaces; its changes are listed again.
    rewrites : bool
        Whether to cut the references of all arrays anew, also of those that did not change.
    concurrency : int
        Manifests written at the same time.
    spec_version : int
        Of the repository: its objects are written in this form.
    """
    tree = Tree(base, [changes])
    snapshot_id = new_object_id()
    nodes, manifest_files = _write_manifests(
        assets,
        base,
        tree,
        changes,
        splitting,
        concurrency,
        rewrites=rewrites,
        spec_version=spec_version,
    )
    log = transaction_log(snapshot_id, base, tree, changes)
    if amended is not None:
        log = amended.merge(log, snapshot_id)
    snapshot = Snapshot.build(
        id=snapshot_id,
        nodes=nodes,
        # the official client refuses a snapshot that is not younger than its parent
        flushed_at=max(now_microseconds(), base.flushed_at + 1),
        message=message,
        metadata=dict(metadata),
        manifest_files=manifest_files,
        parent_id=base.id if spec_version == 1 else None,
    )
    assets.write_transaction_log(log, spec_version=spec_version)
    assets.write_snapshot(snapshot, spec_version=spec_version)
    return Built(snapshot, log)


def transaction_log(
    snapshot_id: bytes, base: Snapshot, tree: Tree, changes: ChangeSet
) -> TransactionLog:
    """Say what changed between a snapshot and the tree on top of it.

    A node that was created and deleted again is not mentioned, and neither is one that
    was moved away and back; a new node is only that, however often its metadata was set
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


def _write_manifests(
    assets: Assets,
    base: Snapshot,
    tree: Tree,
    changes: ChangeSet,
    splitting: SplitRules | None,
    concurrency: int,
    *,
    rewrites: bool,
    spec_version: int,
) -> tuple[list[Node], dict[bytes, ManifestFile]]:
    """Store the manifests of all arrays that changed; return nodes and manifest list."""
    nodes = tree.nodes()
    touched = {node_id for node_id, edits in changes.chunks.items() if edits}
    touched |= changes.updated.keys()
    files: dict[bytes, ManifestFile] = {}
    work: list[tuple[int, Node, ArrayInfo]] = []
    for position, node in enumerate(nodes):
        if node.array is None:
            continue
        if rewrites or node.id in touched:
            work.append((position, node, node.array))
        else:
            for ref in node.array.manifests:
                files[ref.id] = base.manifest_files[ref.id]

    def rewrite(
        item: tuple[int, Node, ArrayInfo],
    ) -> tuple[int, Node, list[tuple[ManifestRef, ManifestFile]]]:
        position, node, array = item
        edits = changes.chunks.get(node.id)
        refs = edits.refs() if edits else None
        if splitting is None:
            count = sum(base.manifest_files[ref.id].num_chunk_refs for ref in array.manifests)
            count += 0 if refs is None else len(refs)
            sizes = default_sizes(array.num_chunks, count)
        else:
            sizes = split_sizes(node.path, array, splitting)
        manifests = _array_manifests(
            assets,
            base,
            node,
            array,
            refs,
            sizes,
            by_default=splitting is None,
            rewrites=rewrites,
            spec_version=spec_version,
        )
        # the first coordinates first, so that equal content gives equal lists
        manifests.sort(key=lambda pair: pair[0].extents)
        info = replace(array, manifests=tuple(ref for ref, _ in manifests))
        return position, replace(node, array=info), manifests

    if len(work) > 1:
        with ThreadPoolExecutor(min(concurrency, len(work))) as pool:
            done = list(pool.map(rewrite, work))
    else:
        done = [rewrite(item) for item in work]
    for position, node, manifests in done:
        nodes[position] = node
        files.update((file.id, file) for _, file in manifests)
    return nodes, dict(sorted(files.items()))


def _array_manifests(
    assets: Assets,
    base: Snapshot,
    node: Node,
    array: ArrayInfo,
    edits: ChunkRefs | None,
    sizes: SplitSizes,
    *,
    by_default: bool,
    rewrites: bool,
    spec_version: int,
) -> list[tuple[ManifestRef, ManifestFile]]:
    """Return the manifests of one changed array: old ones that still fit, and new ones.

    Their extents never overlap: a block with edits, or any block if `rewrites`, gets one new
    manifest, and in other blocks each old manifest stays by itself, whole or in pieces.
    """
    grid = array.num_chunks
    edits = _in_grid(edits if edits is not None else ChunkRefs.empty(len(grid)), grid)
    edited = _blocks(edits, sizes)
    kept: list[tuple[ManifestRef, ManifestFile]] = []
    written: list[ChunkRefs] = []
    parts: list[ChunkRefs] = []
    for ref in array.manifests:
        fits = not rewrites and _fits(ref.extents, grid, None if by_default else sizes)
        if fits and not touches(ref.extents, edited, sizes):
            kept.append((ref, base.manifest_files[ref.id]))
            continue
        refs = assets.manifest(ref.id).arrays.get(node.id)
        if refs is not None:
            # chunks outside the grid, left behind by a shrunk shape, are dropped here
            for piece in split(_in_grid(refs, grid), sizes):
                joins = rewrites or edited & _blocks(piece, sizes)
                (parts if joins else written).append(piece)
    pool = ChunkRefs.concatenate(len(grid), parts).overlay(edits).without_deleted()
    for piece in (*written, *split(pool, sizes)):
        file = assets.write_manifest({node.id: piece}, spec_version=spec_version)
        kept.append((ManifestRef(file.id, piece.extents()), file))
    return kept


def _fits(
    extents: tuple[tuple[int, int], ...], grid: tuple[int, ...], sizes: SplitSizes | None
) -> bool:
    """Whether extents lie within the grid and, if `sizes` are given, within a single block."""
    return (
        len(extents) == len(grid)
        and all(hi <= n for (_, hi), n in zip(extents, grid, strict=True))
        and (sizes is None or is_one_block(extents, sizes))
    )


def _blocks(refs: ChunkRefs, sizes: SplitSizes) -> set[tuple[int, ...]]:
    """Return the blocks that some references lie in."""
    if not len(refs):
        return set()
    cut = [axis for axis, size in enumerate(sizes) if size is not None]
    if not cut:
        return {()}
    # one reference of each block is enough, and there may be millions
    ids = block_ids(refs.coords, sizes)
    row = np.zeros(int(ids.max()) + 1, np.int64)
    row[ids] = np.arange(len(ids))
    blocks = [refs.coords[row, axis] // np.uint32(sizes[axis] or 1) for axis in cut]
    return {tuple(block) for block in np.stack(blocks, axis=1).tolist()}


def _in_grid(refs: ChunkRefs, grid: tuple[int, ...]) -> ChunkRefs:
    """Return the references that lie within the grid.

    Writers take the coordinate 0 of an empty dimension, but nothing is stored there.
    """
    inside = (refs.coords < np.asarray(grid, np.int64)).all(axis=1)
    return refs if inside.all() else refs.take(inside)
