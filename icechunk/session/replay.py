"""What changed between two versions, as changes that can be committed again."""

from __future__ import annotations

import numpy as np

from icechunk.changes.change_set import ChangeSet, DeletedNode, NewNode
from icechunk.errors import ErrorKind, SessionStateError
from icechunk.format.chunk_edits import ChunkEdits
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.snapshot import Node
from icechunk.session.session import Session

__all__ = ["changes_between"]


def changes_between(before: Session, after: Session) -> ChangeSet:
    """Return the changes that turn one version into the other, whatever happened in between.

    Parameters
    ----------
    before, after : Session
        Of read-only sessions.

    Raises
    ------
    SessionStateError
        If a node has moved.
    """
    old = {node.id: node for node in before.tree.nodes()}
    new = {node.id: node for node in after.tree.nodes()}
    changes = ChangeSet(before.tree.snapshot.id)
    for id, node in old.items():
        if id not in new:
            changes.deleted[id] = DeletedNode(node.path, node.is_array)
    for id, node in new.items():
        was = old.get(id)
        if was is None:
            changes.new_nodes[node.path] = NewNode(id, node.path, node.user_data, node.is_array)
        elif was.path != node.path:
            raise SessionStateError(
                f"{was.path!r} was moved to {node.path!r}: moves cannot be done again on another "
                "version; move it there in a session from Repository.rearrange_session",
                ErrorKind.MERGE_FAILED,
            )
        elif was.user_data != node.user_data:
            changes.update(id, node.path, node.user_data)
        edits = _chunks_between(before, after, was, node)
        if len(edits):
            changes.chunks[id] = ChunkEdits.from_refs(edits)
            changes.node_paths[id] = node.path
    return changes


def _chunks_between(before: Session, after: Session, was: Node | None, node: Node) -> ChunkRefs:
    if node.array is None:
        return ChunkRefs.empty(0)
    ndim = len(node.array.shape)
    known = was.array if was is not None else None
    if known is not None and known.manifests == node.array.manifests:
        return ChunkRefs.empty(ndim)
    new = after.chunk_refs(node.path)
    if known is None or len(known.shape) != ndim:
        return new
    old = before.chunk_refs(node.path)
    changed = old.find_many(new.coords) < 0
    changed[new.find_many(old.conflicts(new))] = True
    gone = old.coords[new.find_many(old.coords) < 0]
    return new.take(np.flatnonzero(changed)).overlay(ChunkRefs.deleted(gone))
