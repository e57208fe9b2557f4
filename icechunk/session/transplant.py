"""Carry changes between two versions over to a third one, for cherry-pick and revert.

Unlike a rebase, this compares the contents of the versions, not the logs of the commits in
between: the third version need not descend from the first, and commits may have expired.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from icechunk.changes.change_set import ChangeSet
from icechunk.errors import Conflict, ConflictType
from icechunk.format.chunk_edits import ChunkEdits
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import parent_path
from icechunk.format.nodes import Node
from icechunk.session.session import Session

__all__ = ["transplanted"]


def transplanted(
    changes: ChangeSet, before: Session, onto: Session
) -> tuple[ChangeSet, list[Conflict]]:
    """Return changes as changes of another version, and what contradicts them.

    Changes that the version has already are left out.

    Parameters
    ----------
    changes : ChangeSet
        Without moves.
    before : Session
        The version that the changes were made on.
    onto : Session
        The version to carry them to.
    """
    return _Transplant(changes, before, onto).run()


class _Transplant:
    def __init__(self, changes: ChangeSet, before: Session, onto: Session) -> None:
        self._changes = changes
        self._before = before
        self._onto = onto
        self._old = {node.id: node for node in before.tree.nodes()}
        self._here = {node.id: node for node in onto.tree.nodes()}
        self._result = ChangeSet(onto.tree.snapshot.id)
        self._result.node_paths = dict(changes.node_paths)
        self._conflicts: list[Conflict] = []

    def run(self) -> tuple[ChangeSet, list[Conflict]]:
        for id in self._changes.deleted:
            self._delete(id)
        for id, user_data in self._changes.updated.items():
            self._update(id, user_data)
        self._create()
        for id, edits in self._changes.chunks.items():
            self._write(id, edits.refs())
        self._conflicts += self._strays()
        return self._result, self._conflicts

    def _clash(self, kind: ConflictType, path: str, chunks: Any = None) -> None:
        self._conflicts.append(Conflict(kind, path, chunks))

    # -- nodes ---------------------------------------------------------------------------
    def _delete(self, id: bytes) -> None:
        node = self._here.get(id)
        if node is None:
            return
        gone = self._changes.deleted[id]
        old = self._old[id]
        changed = node.user_data != old.user_data or (
            node.array is not None and len(self._differing(old, node))
        )
        if changed:
            kind = ConflictType.DeleteOfUpdatedGroup
            if gone.is_array:
                kind = ConflictType.DeleteOfUpdatedArray
            self._clash(kind, node.path)
        self._result.delete(id, node.path, is_array=node.is_array)

    def _update(self, id: bytes, user_data: bytes) -> None:
        node, old = self._here.get(id), self._old[id]
        if node is None:
            kind = ConflictType.ZarrMetadataUpdateOfDeletedGroup
            if old.is_array:
                kind = ConflictType.ZarrMetadataUpdateOfDeletedArray
            self._clash(kind, old.path)
        elif node.user_data == old.user_data:
            self._result.update(id, node.path, user_data)
        elif node.user_data != user_data:
            self._clash(ConflictType.ZarrMetadataDoubleUpdate, node.path)

    def _create(self) -> None:
        paths = {node.path: node for node in self._here.values()}
        for id in self._result.deleted:
            paths.pop(self._here[id].path, None)
        for path, node in self._changes.new_nodes.items():
            there = paths.get(path)
            if there is None and node.id not in self._here:
                self._result.new_nodes[path] = node
            elif there is None or there.id != node.id or there.user_data != node.user_data:
                self._clash(ConflictType.NewNodeConflictsWithExistingNode, path)

    def _strays(self) -> Iterator[Conflict]:
        """Yield a conflict for each parent of a node that is not a group."""
        result = self._result
        left = [node for node in self._here.values() if node.id not in result.deleted]
        groups = {node.path for node in left if not node.is_array}
        groups |= {path for path, node in result.new_nodes.items() if not node.is_array}
        gone = {node.path for node in result.deleted.values()}
        told: set[str] = set()
        for path in (*result.new_nodes, *(node.path for node in left)):
            parent = parent_path(path)
            if parent is None or parent in groups or parent in told:
                continue
            # nodes without a group exist in old repositories, and are none of our business
            if path in result.new_nodes or parent in gone:
                told.add(parent)
                yield Conflict(ConflictType.NewNodeInInvalidGroup, parent)

    # -- chunks ----------------------------------------------------------------------------
    def _write(self, id: bytes, edits: ChunkRefs) -> None:
        path = self._changes.node_paths[id]
        if id not in self._here:
            if path in self._result.new_nodes:
                self._result.chunks[id] = ChunkEdits.from_refs(edits)
            else:
                self._clash(ConflictType.ChunksUpdatedInDeletedArray, path)
            return
        node, old = self._here[id], self._old.get(id)
        wanted = _described(self._result.updated.get(id, node.user_data))
        meant = self._changes.updated.get(id, old.user_data if old is not None else None)
        if meant is not None and _described(meant) != wanted:
            # chunks would land elsewhere, or be read by other codecs
            self._clash(ConflictType.ChunksUpdatedInUpdatedArray, node.path)
            return
        have = _at(self._onto.chunk_refs(node.path), edits.coords)
        had = ChunkRefs.deleted(edits.coords)
        if old is not None and edits.ndim == len(old.array.shape if old.array else ()):
            had = _at(self._before.chunk_refs(old.path), edits.coords)
        new = _differ(have, edits)
        clash = new & _differ(have, had)
        if clash.any():
            chunks = edits.coords[clash].tolist()
            self._clash(ConflictType.ChunkDoubleUpdate, node.path, chunks)
        if new.any():
            self._result.chunks[id] = ChunkEdits.from_refs(edits.take(np.flatnonzero(new)))

    def _differing(self, old: Node, node: Node) -> npt.NDArray[np.uint32]:
        """Return the chunks of an array that differ between the versions."""
        assert old.array is not None and node.array is not None
        if old.array.manifests == node.array.manifests:
            return np.empty((0, len(node.array.shape)), np.uint32)
        one, other = self._before.chunk_refs(old.path), self._onto.chunk_refs(node.path)
        if one.ndim != other.ndim:
            return np.asarray(other.coords, np.uint32)
        coords = ChunkRefs.deleted(one.coords).overlay(ChunkRefs.deleted(other.coords)).coords
        differ = _differ(_at(one, coords), _at(other, coords))
        return np.asarray(coords[differ], np.uint32)


def _at(refs: ChunkRefs, coords: npt.NDArray[np.uint32]) -> ChunkRefs:
    """Return a sorted row for each of some chunks; it says so if there is none."""
    rows = refs.find_many(coords) if refs.ndim == coords.shape[1] else np.full(len(coords), -1)
    found = refs.take(rows[rows >= 0])
    return ChunkRefs.deleted(coords).overlay(found) if len(found) else ChunkRefs.deleted(coords)


def _differ(one: ChunkRefs, other: ChunkRefs) -> npt.NDArray[np.bool_]:
    """Say which rows of two columns about the same chunks differ."""
    mask = np.zeros(len(one), np.bool_)
    mask[one.find_many(one.conflicts(other))] = True
    return mask


def _described(user_data: bytes) -> Any:
    """Return what a ``zarr.json`` says about chunks."""
    document = json.loads(user_data)
    return {k: v for k, v in document.items() if k not in ("attributes", "dimension_names")}
