"""Uncommitted edits of one session, and what travels between processes.

A change set says which nodes were created, updated, deleted and moved. For each array it
holds the columns of chunk references that were set or deleted. It knows nothing about
where chunks are stored. There are two ways to combine change sets:

- `overlay`: the second happened after the first (a fork on top of its parent);
- `merge`: both happened side by side on the same base (workers of one job). It is
  associative, merging the same change set twice equals merging it once, and values that
  disagree are a conflict.

Node ids are derived from base, kind and path, so workers that create the same group or array
side by side create the same node.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from icechunk.errors import (
    Conflict,
    ConflictError,
    ConflictType,
    ErrorKind,
    InternalError,
    SessionStateError,
)
from icechunk.format.chunk_edits import ChunkEdits
from icechunk.format.chunk_refs import ChunkRefs, RefKind
from icechunk.format.ids import NODE_ID_SIZE, encode_id, parent_paths

OnConflict = Literal["error", "last"]


@dataclass(frozen=True, slots=True)
class NewNode:
    """A node that the base does not have."""

    id: bytes
    path: str
    user_data: bytes
    is_array: bool


@dataclass(frozen=True, slots=True)
class DeletedNode:
    """A node that is gone; `path` is where it was when it was deleted.

    `is_undone` means that the same change set created it and wrote no chunk of it: it is as if
    it had never existed.
    """

    path: str
    is_array: bool
    is_undone: bool = False


@dataclass(frozen=True, slots=True)
class MovedNode:
    """A node of the base that is now at another path. Intermediate moves are not kept."""

    from_path: str
    to_path: str
    is_array: bool


@dataclass(frozen=True, slots=True)
class ArrayChanges:
    """What happened to the chunks of one array, as counts.

    Attributes
    ----------
    path : str
    stored : int
        Chunks that got a value.
    nbytes : int
        The size of these values as stored.
    deleted : int
        Chunks that were deleted, among them those that hold fill values only and were
        therefore not stored.
    extents : tuple of (int, int)
        The box of chunk coordinates, [from, to) for each dimension, that holds all of them.
    """

    path: str
    stored: int
    nbytes: int
    deleted: int
    extents: tuple[tuple[int, int], ...]


class ChangeSet:
    """Edits on top of one snapshot.

    Parameters
    ----------
    base : bytes
        Id of the snapshot.
    lineage : bytes
        Names the session that this change set was forked from; empty if there is none.
    """

    def __init__(self, base: bytes, lineage: bytes = b"") -> None:
        self.base = base
        self.lineage = lineage
        self.new_nodes: dict[str, NewNode] = {}
        self.updated: dict[bytes, bytes] = {}
        self.deleted: dict[bytes, DeletedNode] = {}
        self.moved: dict[bytes, MovedNode] = {}
        self.chunks: dict[bytes, ChunkEdits] = {}
        # paths as last seen, so that a conflict names the node rather than its id
        self.node_paths: dict[bytes, str] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever edited."""
        return not self.deleted and self.is_void

    @property
    def is_void(self) -> bool:
        """Whether there is nothing to commit.

        This is so when nodes were created and deleted again. If chunks of them were written in
        between, that counts as a change, as it does for the official client.
        """
        return not (
            self.new_nodes
            or self.updated
            or self.moved
            or any(not node.is_undone for node in self.deleted.values())
            or any(bool(edits) for edits in self.chunks.values())
        )

    # -- editing ---------------------------------------------------------------
    def create(self, path: str, user_data: bytes, *, is_array: bool, taken: int) -> NewNode:
        """Create a node.

        Parameters
        ----------
        taken : int
            How many nodes at this path were deleted before, in this session or in those that
            it was forked from: a new node must not get the id of a deleted one.
        """
        seed = self.base + bytes([is_array]) + taken.to_bytes(4, "big") + path.encode()
        node = NewNode(
            hashlib.blake2b(seed, digest_size=NODE_ID_SIZE).digest(), path, user_data, is_array
        )
        self.new_nodes[path] = node
        return node

    def update(self, node_id: bytes, path: str, user_data: bytes) -> None:
        """Replace the metadata of a node, new or of the base."""
        node = self.new_nodes.get(path)
        if node is not None and node.id == node_id:
            self.new_nodes[path] = NewNode(node.id, path, user_data, node.is_array)
        else:
            self.updated[node_id] = user_data
            self.node_paths[node_id] = path

    def delete(self, node_id: bytes, path: str, *, is_array: bool) -> None:
        """Delete one node. Its descendants are deleted by separate calls."""
        node = self.new_nodes.get(path)
        is_new = node is not None and node.id == node_id
        if is_new:
            del self.new_nodes[path]
        self.updated.pop(node_id, None)
        was_written = bool(self.chunks.pop(node_id, None))
        self.deleted[node_id] = DeletedNode(path, is_array, is_new and not was_written)

    def edits(self, node_id: bytes, path: str, ndim: int) -> ChunkEdits:
        """Return the chunk edits of an array, for adding to them."""
        found = self.chunks.get(node_id)
        if found is None:
            # setdefault: two threads may write the first chunks of an array at once
            found = self.chunks.setdefault(node_id, ChunkEdits(ndim))
            self.node_paths[node_id] = path
        return found

    def deleted_at(self, path: str) -> set[bytes]:
        """Return the ids of the nodes at this path that were deleted."""
        return {node_id for node_id, node in self.deleted.items() if node.path == path}

    def array_changes(self) -> list[ArrayChanges]:
        """Return what happened to the chunks of each array that was edited."""
        found = []
        for node_id, edits in self.chunks.items():
            refs = edits.refs()
            if len(refs):
                path = self.node_paths.get(node_id) or encode_id(node_id)
                stored = int(np.count_nonzero(refs.kind != RefKind.DELETED))
                size = int(refs.length.sum())
                found.append(ArrayChanges(path, stored, size, len(refs) - stored, refs.extents()))
        return found

    # -- combining -------------------------------------------------------------
    def copy(self) -> ChangeSet:
        """Return an independent copy. Columns are shared, because they never change."""
        return overlay(ChangeSet(self.base, self.lineage), self)


def overlay(earlier: ChangeSet, later: ChangeSet) -> ChangeSet:
    """Combine two change sets, the second of which was made on top of the first."""
    _check_same_base(earlier, later)
    result = ChangeSet(earlier.base, earlier.lineage)
    # an id is never reused, so what either of them deleted stays deleted
    gone = result.deleted = {**earlier.deleted, **later.deleted}
    both = {**earlier.new_nodes, **later.new_nodes}
    result.new_nodes = {path: node for path, node in both.items() if node.id not in gone}
    by_id = {node.id: node for node in result.new_nodes.values()}
    for node_id, user_data in {**earlier.updated, **later.updated}.items():
        node = by_id.get(node_id)
        if node is not None:
            result.new_nodes[node.path] = NewNode(node_id, node.path, user_data, node.is_array)
        elif node_id not in gone:
            result.updated[node_id] = user_data
    result.moved = {**earlier.moved}
    for node_id, move in later.moved.items():
        start = earlier.moved[node_id].from_path if node_id in earlier.moved else move.from_path
        result.moved[node_id] = MovedNode(start, move.to_path, move.is_array)
    result.node_paths = {**earlier.node_paths, **later.node_paths}
    for source in (earlier, later):
        for node_id, edits in source.chunks.items():
            if node_id in gone:
                continue
            refs = edits.refs()
            if node_id in result.chunks:
                result.chunks[node_id].set_many(refs)
            else:
                result.chunks[node_id] = ChunkEdits.from_refs(refs)
    return result


def flatten(layers: Iterable[ChangeSet]) -> ChangeSet:
    """Combine layers of edits, oldest first, into one change set. A single layer is returned."""
    return functools.reduce(overlay, layers)


def merge(change_sets: Iterable[ChangeSet], *, on_conflict: OnConflict = "error") -> ChangeSet:
    """Combine change sets that were made side by side on the same base.

    Parameters
    ----------
    change_sets : iterable of ChangeSet
        At least one.
    on_conflict : {"error", "last"}
        What to do where two of them disagree about a node or a chunk.

    Raises
    ------
    SessionStateError
        If they were made on different snapshots.
    ConflictError
        If two disagree and `on_conflict` is ``"error"``. The message names every contradiction.
    """
    parts = list(change_sets)
    if not parts:
        raise InternalError("nothing to merge")
    for part in parts[1:]:
        _check_same_base(parts[0], part)
    lineages = {part.lineage for part in parts}
    result = ChangeSet(parts[0].base, lineages.pop() if len(lineages) == 1 else b"")
    if on_conflict == "last":
        for part in parts:
            result = overlay(result, part)
        return result
    conflicts: list[Conflict] = []
    for part in parts:
        conflicts += _merge_nodes(result, part)
    conflicts += _below_arrays(result, parts)
    conflicts += _merge_chunks(result, parts)
    if conflicts:
        shown = "; ".join(c.in_a_line() for c in conflicts[:10])
        more = f" and {len(conflicts) - 10} more" if len(conflicts) > 10 else ""
        raise ConflictError(
            message=f"change sets contradict each other: {shown}{more}; let each task write "
            "chunks of its own. Session.merge_change_sets(..., on_conflict='last') keeps the last",
            kind=ErrorKind.MERGE_FAILED,
        )
    return result


def _check_same_base(a: ChangeSet, b: ChangeSet) -> None:
    if a.base != b.base:
        raise SessionStateError(
            f"change sets were made on different snapshots, {encode_id(a.base)} and "
            f"{encode_id(b.base)}; open all stores of one job at the same snapshot",
            ErrorKind.MERGE_FAILED,
        )


def _merge_nodes(into: ChangeSet, part: ChangeSet) -> list[Conflict]:
    """Add the node edits of `part`, and return the contradictions."""
    # whoever deleted the group knew what it did, and made a new one or did not need it
    conflicts = [
        conflict
        for one, other in ((into, part), (part, into))
        for conflict in _nodes_in(
            one, {n.path for k, n in other.deleted.items() if k not in one.deleted}
        )
    ]
    for path, node in part.new_nodes.items():
        other = into.new_nodes.setdefault(path, node)
        if other != node:
            conflicts.append(Conflict(ConflictType.NewNodeConflictsWithExistingNode, path))
    for node_id, user_data in part.updated.items():
        if into.updated.setdefault(node_id, user_data) != user_data:
            known = into.node_paths.get(node_id) or part.node_paths.get(node_id)
            conflicts.append(
                Conflict(ConflictType.ZarrMetadataDoubleUpdate, known or encode_id(node_id))
            )
    for node_id, gone in part.deleted.items():
        if node_id not in into.deleted or not gone.is_undone:
            into.deleted[node_id] = gone
    for node_id, move in part.moved.items():
        if into.moved.setdefault(node_id, move) != move:
            conflicts.append(Conflict(ConflictType.MoveOperationCannotBeRebased, move.from_path))
    into.node_paths.update(part.node_paths)
    for node_id, gone in into.deleted.items():
        if node_id in into.updated:
            conflicts.append(
                Conflict(
                    ConflictType.ZarrMetadataUpdateOfDeletedArray
                    if gone.is_array
                    else ConflictType.ZarrMetadataUpdateOfDeletedGroup,
                    gone.path,
                )
            )
        created = into.new_nodes.get(gone.path)
        if created is not None and created.id == node_id:
            conflicts.append(Conflict(ConflictType.DeleteOfUpdatedArray, gone.path))
    return conflicts


def _nodes_in(changes: ChangeSet, paths: set[str]) -> list[Conflict]:
    """Return a conflict for each new node below one of the paths."""
    if not paths:
        return []
    return [
        Conflict(ConflictType.NewNodeInInvalidGroup, path)
        for path in changes.new_nodes
        if any(parent in paths for parent in parent_paths(path))
    ]


def _below_arrays(merged: ChangeSet, parts: list[ChangeSet]) -> list[Conflict]:
    """Return a conflict for each new node below a new array, if no part knew both."""
    arrays = {node.path for node in merged.new_nodes.values() if node.is_array}
    return [
        Conflict(ConflictType.NewNodeInInvalidGroup, path)
        for path in (merged.new_nodes if arrays else ())
        if any(
            parent in arrays
            and not any(path in part.new_nodes and parent in part.new_nodes for part in parts)
            for parent in parent_paths(path)
        )
    ]


def _merge_chunks(into: ChangeSet, parts: list[ChangeSet]) -> list[Conflict]:
    conflicts = []
    by_node: dict[bytes, list[ChunkEdits]] = {}
    for part in parts:
        for node_id, edits in part.chunks.items():
            if edits:
                by_node.setdefault(node_id, []).append(edits)
    for node_id, all_edits in by_node.items():
        path = into.node_paths.get(node_id) or encode_id(node_id)
        if node_id in into.deleted:
            conflicts.append(
                Conflict(ConflictType.ChunksUpdatedInDeletedArray, into.deleted[node_id].path)
            )
            continue
        merged, clashes = ChunkRefs.merge_all([edits.refs() for edits in all_edits])
        if len(clashes):
            conflicts.append(
                Conflict(ConflictType.ChunkDoubleUpdate, path, clashes[:1000].tolist())
            )
        into.chunks[node_id] = ChunkEdits.from_refs(merged)
    return conflicts
