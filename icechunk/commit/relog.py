"""What two snapshots say of a transaction log: whether it tells all, and a new one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from icechunk.commit.assets import Assets
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import encode_id
from icechunk.format.nodes import ManifestRef, Node
from icechunk.format.snapshot import Snapshot
from icechunk.format.transaction_log import Move, TransactionLog, by_rank

__all__ = [
    "NodeState",
    "log_between",
    "node_states",
    "rewritten",
    "says_all",
    "surplus",
    "untold",
    "untold_chunks",
]

#: Path, metadata, whether it is an array, and manifests, of a node.
NodeState = tuple[str, int, bool, int]


def node_states(snapshot: Snapshot) -> dict[bytes, NodeState]:
    """Return what a transaction log tells of the nodes of a snapshot; small, to be compared."""
    return {
        node.id: (node.path, hash(node.user_data), node.is_array, hash(_manifests(node)))
        for node in snapshot.nodes()
    }


def rewritten(
    log: TransactionLog, before: dict[bytes, NodeState], after: dict[bytes, NodeState]
) -> bool:
    """Whether an array has other manifests, and the log says nothing of its chunks."""
    told = {*log.updated_chunks, *log.updated_arrays}
    return any(
        id not in told and before[id][3] != after[id][3] for id in before.keys() & after.keys()
    )


def untold_chunks(
    assets: Assets, log: TransactionLog, before: Snapshot, after: Snapshot
) -> Iterator[str]:
    """Yield of which arrays chunks changed that a transaction log does not tell, though it has to.

    Raises
    ------
    IcechunkError
        If a manifest that is not in both cannot be read.
    """
    for node in after.nodes():
        old = before.get_by_id(node.id)
        if node.array is None or (old is not None and old.array is None):
            continue
        grid = node.array.num_chunks
        if old is not None and old.array is not None and len(old.array.num_chunks) != len(grid):
            continue  # all of them, which is told of the array
        changed = _changed_chunks(assets, old, node)
        # those that a smaller shape has no more are not told
        changed = changed[(changed < np.maximum(np.asarray(grid, np.int64), 1)).all(axis=1)]
        told = set[tuple[int, ...]]()
        for part in log.updated_chunks.get(node.id, ()):
            told.update(map(tuple, part.tolist()))
        count = sum(tuple(coord) not in told for coord in changed.tolist())
        if count:
            yield f"that {count} {'chunk' if count == 1 else 'chunks'} of {node.path} changed"


def untold(
    log: TransactionLog, before: dict[bytes, NodeState], after: dict[bytes, NodeState]
) -> Iterator[str]:
    """Yield which changes of nodes a transaction log does not tell, though it has to.

    Whoever commits at the same time takes what is not told for unchanged.
    """
    moved = {move.node_id for move in log.moved_nodes}
    new, deleted = {*log.new_arrays, *log.new_groups}, {*log.deleted_arrays, *log.deleted_groups}
    updated = {*log.updated_arrays, *log.updated_groups}
    for id in before.keys() | after.keys():
        old, now = before.get(id), after.get(id)
        if old == now:
            continue
        if old is None and now is not None:
            if id not in new:
                yield f"that {now[0]} is new"
        elif now is None and old is not None:
            if id not in deleted:
                yield f"that {old[0]} was deleted"
        elif old is not None and now is not None:
            if old[0] != now[0] and id not in moved:
                yield f"that {old[0]} was moved to {now[0]}"
            # an amended log may tell of a node that was made anew
            if old[1] != now[1] and id not in updated:
                yield f"that the metadata of {now[0]} changed"


def surplus(log: TransactionLog, after: Snapshot) -> Iterator[str]:
    """Yield what a transaction log tells of nodes that its version cannot have.

    A chunk that is told and did not change is no contradiction: it may have been written with
    the same bytes. Neither is one outside the array where a session changed the shape, even twice.
    """
    gone = {*log.deleted_arrays, *log.deleted_groups}
    made = {*log.new_arrays, *log.new_groups}
    told = {*made, *log.updated_arrays, *log.updated_groups, *log.updated_chunks}
    told |= {move.node_id for move in log.moved_nodes}
    # an amended log tells of nodes that were made and deleted
    for id in sorted(told - gone):
        if after.get_by_id(id) is None:
            yield f"it tells of a node {encode_id(id)} that the version does not have"
    for id in sorted(gone - made):
        node = after.get_by_id(id)
        if node is not None:
            yield f"it tells that {node.path} was deleted, which the version has"
    for id in sorted(log.updated_chunks.keys() - {*made, *gone, *log.updated_arrays}):
        node = after.get_by_id(id)
        if node is None:
            continue
        if node.array is None:
            yield f"it tells of chunks of {node.path}, which is a group"
            continue
        grid = np.maximum(np.asarray(node.array.num_chunks, np.int64), 1)
        for part in log.updated_chunks[id]:
            count = -1 if part.shape[1] != len(grid) else int((part >= grid).any(axis=1).sum())
            if count:
                yield f"it tells of chunks of {node.path} outside of the array"


def says_all(log: TransactionLog, before: Snapshot, after: Snapshot) -> bool:
    """Whether the second snapshot is the first one with the changes that a log tells."""
    if any(untold(log, node_states(before), node_states(after))):
        return False
    told = {*log.updated_chunks, *log.updated_arrays, *log.new_arrays}
    if log == TransactionLog(log.id):
        # manifests that are cut anew are no change
        return True
    for node in after.nodes():
        old = before.get_by_id(node.id)
        if old is not None and _manifests(old) != _manifests(node) and node.id not in told:
            return False
    # of everything that is new something must be there, or it was made on another one
    there = {node.id for node in after.nodes()}
    return not ({*log.new_arrays, *log.new_groups} & {n.id for n in before.nodes()}) and (
        not ({*log.deleted_arrays, *log.deleted_groups} & there)
    )


def _manifests(node: Node) -> tuple[ManifestRef, ...]:
    return node.array.manifests if node.array is not None else ()


def log_between(assets: Assets, before: Snapshot, after: Snapshot) -> TransactionLog:
    """Return the transaction log that leads from one snapshot to another.

    Raises
    ------
    IcechunkError
        If a manifest that is not in both cannot be read.
    """
    old, new = ({node.id: node for node in each.nodes()} for each in (before, after))
    created = [node for id, node in new.items() if id not in old]
    deleted = [node for id, node in old.items() if id not in new]
    both = [(old[id], node) for id, node in new.items() if id in old]
    changed = [now for was, now in both if was.user_data != now.user_data]
    chunks: dict[bytes, tuple[npt.NDArray[np.uint32], ...]] = {}
    for node in new.values():
        coords = _changed_chunks(assets, old.get(node.id), node)
        if len(coords):
            chunks[node.id] = by_rank([coords])
    moves = [
        Move(was.path, now.path, now.id, now.is_array) for was, now in both if was.path != now.path
    ]
    return TransactionLog(
        after.id,
        new_groups=_ids(created, is_array=False),
        new_arrays=_ids(created, is_array=True),
        deleted_groups=_ids(deleted, is_array=False),
        deleted_arrays=_ids(deleted, is_array=True),
        updated_arrays=_ids(changed, is_array=True),
        updated_groups=_ids(changed, is_array=False),
        updated_chunks=dict(sorted(chunks.items())),
        moved_nodes=tuple(sorted(moves, key=lambda move: move.to_path.split("/"))),
    )


def _ids(nodes: list[Node], *, is_array: bool) -> tuple[bytes, ...]:
    return tuple(sorted(node.id for node in nodes if node.is_array == is_array))


def _changed_chunks(assets: Assets, old: Node | None, new: Node) -> npt.NDArray[np.uint32]:
    if new.array is None:
        return np.empty((0, 0), np.uint32)
    ndim = len(new.array.shape)
    was = _manifests(old) if old is not None else ()
    if was == new.array.manifests:
        return np.empty((0, ndim), np.uint32)
    if old is not None and old.array is not None and len(old.array.shape) != ndim:
        was = ()

    def read(refs: tuple[ManifestRef, ...], others: tuple[ManifestRef, ...]) -> ChunkRefs:
        arrays = [assets.manifest(ref.id).arrays.get(new.id) for ref in refs if ref not in others]
        return ChunkRefs.concatenate(ndim, [refs for refs in arrays if refs is not None])

    one, other = read(was, new.array.manifests), read(new.array.manifests, was)
    gone = one.coords[other.find_many(one.coords) < 0]
    made = other.coords[one.find_many(other.coords) < 0]
    return np.concatenate([gone, made, one.conflicts(other)]).astype(np.uint32)
