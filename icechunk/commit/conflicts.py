"""What contradicts what when a session is rebased, and who resolves it.

"Ours" are the uncommitted changes of a session. "Theirs" are the transaction log of a commit
that was made in the meantime, and the snapshot of that commit. The rules are those of
the Icechunk spec, "Rebase and conflicts". Where official clients are known to write two
nodes with one path, or nodes without a parent, this module finds a conflict instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from icechunk.base.display import NumberedEnum
from icechunk.changes.change_set import ChangeSet, MovedNode, overlay
from icechunk.errors import Conflict, ConflictType, ErrorKind, InvalidInputError
from icechunk.format.chunk_edits import ChunkEdits
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import encode_id, is_within, parent_path
from icechunk.format.snapshot import Snapshot
from icechunk.format.transaction_log import TransactionLog

__all__ = [
    "BasicConflictSolver",
    "Conflict",
    "ConflictDetector",
    "ConflictSolver",
    "ConflictType",
    "VersionSelection",
]


class VersionSelection(NumberedEnum):
    """Whose version of a chunk that both sides wrote is kept."""

    Fail = 0
    UseOurs = 1
    UseTheirs = 2


class ConflictSolver(ABC):
    """Decides whether a rebase may go on when both sides changed the same thing.

    Examples
    --------
    >>> isinstance(icechunk.ConflictDetector(), icechunk.ConflictSolver)
    True
    """

    @abstractmethod
    def settles(self, conflict: Conflict) -> bool:
        """Whether this solver can resolve a conflict."""

    @property
    def drops_our_chunks(self) -> bool:
        """Whether chunks that both sides wrote are taken from them."""
        return False

    def for_commit(self, snapshot_id: str) -> ConflictSolver:
        """Return the solver for the conflicts with one commit of theirs. Default: this one."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ConflictDetector(ConflictSolver):
    """Resolves nothing: every conflict makes the rebase fail.

    Examples
    --------
    >>> zarr.open_array(session.store, path="temperature")[1] = 17.0
    >>> snapshot = session.commit("Warmer", rebase_with=icechunk.ConflictDetector())
    """

    def settles(self, conflict: Conflict) -> bool:
        """Return False."""
        return False


@dataclass(frozen=True, kw_only=True)
class BasicConflictSolver(ConflictSolver):
    """Resolves conflicts that have an obvious solution.

    Parameters
    ----------
    on_chunk_conflict : VersionSelection
        For a chunk that both sides wrote. Default: ours.
    fail_on_delete_of_updated_array, fail_on_delete_of_updated_group : bool
        Whether to refuse the deletion of what they have changed. Default: delete it.

    Examples
    --------
    >>> solver = icechunk.BasicConflictSolver(
    ...     on_chunk_conflict=icechunk.VersionSelection.UseOurs
    ... )
    >>> session.rebase(solver)
    """

    on_chunk_conflict: VersionSelection = VersionSelection.UseOurs
    fail_on_delete_of_updated_array: bool = False
    fail_on_delete_of_updated_group: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.on_chunk_conflict, VersionSelection):
            raise InvalidInputError(
                "BasicConflictSolver: on_chunk_conflict must be a VersionSelection, not "
                f"{self.on_chunk_conflict!r}",
                ErrorKind.INVALID_COMMIT_CONFIGURATION,
            )

    def settles(self, conflict: Conflict) -> bool:
        """Whether this solver can resolve a conflict."""
        kind = conflict.conflict_type
        if kind is ConflictType.ChunkDoubleUpdate:
            return self.on_chunk_conflict is not VersionSelection.Fail
        if kind is ConflictType.DeleteOfUpdatedArray:
            return not self.fail_on_delete_of_updated_array
        if kind is ConflictType.DeleteOfUpdatedGroup:
            return not self.fail_on_delete_of_updated_group
        return False

    @property
    def drops_our_chunks(self) -> bool:
        """Whether chunks that both sides wrote are taken from them."""
        return self.on_chunk_conflict is VersionSelection.UseTheirs


def find_conflicts(ours: ChangeSet, log: TransactionLog, theirs: Snapshot) -> list[Conflict]:
    """Return all contradictions between our changes and one log of theirs.

    Parameters
    ----------
    ours : ChangeSet
    log : TransactionLog
    theirs : Snapshot
        The repository after the commit that the log belongs to.
    """
    if log.moved_nodes:
        # nothing else can be said: a path means different nodes on each side
        return [Conflict(ConflictType.MoveOperationCannotBeRebased, log.moved_nodes[0].from_path)]
    return [
        *_about_new_nodes(ours, log, theirs),
        *_about_metadata(ours, log, theirs),
        *_about_chunks(ours, log, theirs),
        *_about_deletions(ours, log, theirs),
        *_about_moves(ours, theirs),
    ]


def _path(ours: ChangeSet, theirs: Snapshot, node_id: bytes) -> str:
    node = theirs.get_by_id(node_id)
    return node.path if node is not None else ours.node_paths.get(node_id, encode_id(node_id))


def _about_new_nodes(ours: ChangeSet, log: TransactionLog, theirs: Snapshot) -> Iterator[Conflict]:
    removes_nodes = bool(log.deleted_groups or log.deleted_arrays) or any(
        # the log of a commit that was undone: the branch was reset
        theirs.get_by_id(node_id) is None
        for node_id in log.new_groups
    )
    for path in ours.new_nodes:
        there = theirs.get(path)
        # what we deleted at this path is not in the way; what they put there since is, also
        # if sessions that began at the same snapshot gave both nodes the same id
        if there is not None and there.id not in ours.deleted:
            yield Conflict(ConflictType.NewNodeConflictsWithExistingNode, path)
        parent = parent_path(path)
        first = True
        while parent is not None:
            there = theirs.get(parent)
            if there is not None and there.id in ours.deleted:
                there = None
            # a parent that neither side has any more would leave our node an orphan
            orphan = first and there is None and parent not in ours.new_nodes
            if (there is not None and there.is_array) or (orphan and removes_nodes):
                yield Conflict(ConflictType.NewNodeInInvalidGroup, parent)
                break
            parent, first = parent_path(parent), False


def _about_metadata(ours: ChangeSet, log: TransactionLog, theirs: Snapshot) -> Iterator[Conflict]:
    updated = {*log.updated_arrays, *log.updated_groups}
    arrays, groups = set(log.deleted_arrays), set(log.deleted_groups)
    made_arrays, made_groups = set(log.new_arrays), set(log.new_groups)
    for node_id in ours.updated:
        path = _path(ours, theirs, node_id)
        if node_id in updated:
            yield Conflict(ConflictType.ZarrMetadataDoubleUpdate, path)
        # a branch that was reset has logs that undo changes: what they made is gone, too
        gone = theirs.get_by_id(node_id) is None
        if node_id in arrays or (gone and node_id in made_arrays):
            yield Conflict(ConflictType.ZarrMetadataUpdateOfDeletedArray, path)
        if node_id in groups or (gone and node_id in made_groups):
            yield Conflict(ConflictType.ZarrMetadataUpdateOfDeletedGroup, path)


def _about_chunks(ours: ChangeSet, log: TransactionLog, theirs: Snapshot) -> Iterator[Conflict]:
    deleted, updated = set(log.deleted_arrays), set(log.updated_arrays)
    new = {node.id for node in ours.new_nodes.values()}
    for node_id, edits in ours.chunks.items():
        if not edits or node_id in new:
            continue
        path = _path(ours, theirs, node_id)
        if node_id in deleted or theirs.get_by_id(node_id) is None:
            yield Conflict(ConflictType.ChunksUpdatedInDeletedArray, path)
        if node_id in updated:
            yield Conflict(ConflictType.ChunksUpdatedInUpdatedArray, path)
        both = _written_by_both(edits.refs(), log, node_id)
        if both is not None and both.any():
            chunks = edits.refs().coords[both].tolist()
            yield Conflict(ConflictType.ChunkDoubleUpdate, path, chunks)


def _written_by_both(
    refs: ChunkRefs, log: TransactionLog, node_id: bytes
) -> np.ndarray[tuple[int], np.dtype[np.bool_]] | None:
    parts = log.updated_chunks.get(node_id, ())
    coords = next((part for part in parts if part.shape[1] == refs.ndim), None)
    if coords is None:
        return None
    mask = np.zeros(len(refs), np.bool_)
    rows = refs.find_many(coords)
    mask[rows[rows >= 0]] = True
    return mask


def _about_deletions(ours: ChangeSet, log: TransactionLog, theirs: Snapshot) -> Iterator[Conflict]:
    arrays = {*log.updated_arrays, *(k for k, parts in log.updated_chunks.items() if parts)}
    groups = set(log.updated_groups)
    for node_id, gone in ours.deleted.items():
        # whatever they have at the path, it is not what we meant to delete
        at_path = theirs.get(gone.path)
        if at_path is not None and at_path.id in arrays:
            yield Conflict(ConflictType.DeleteOfUpdatedArray, gone.path)
        if at_path is not None and at_path.id in groups:
            yield Conflict(ConflictType.DeleteOfUpdatedGroup, gone.path)
        # their new nodes below a group that we delete would be orphans
        there = theirs.get_by_id(node_id)
        if (
            there is not None
            and not there.is_array
            and any(child.id not in ours.deleted for child in theirs.children(there.path))
        ):
            yield Conflict(ConflictType.NewNodeInInvalidGroup, gone.path)


def _about_moves(ours: ChangeSet, theirs: Snapshot) -> Iterator[Conflict]:
    groups = {move.to_path for move in ours.moved.values() if not move.is_array}
    for node_id, move in ours.moved.items():
        if theirs.get_by_id(node_id) is None:
            kind = (
                ConflictType.ZarrMetadataUpdateOfDeletedArray
                if move.is_array
                else ConflictType.ZarrMetadataUpdateOfDeletedGroup
            )
            yield Conflict(kind, move.from_path)
        there = theirs.get(move.to_path)
        if there is not None and there.id != node_id and there.id not in ours.moved:
            yield Conflict(ConflictType.NewNodeConflictsWithExistingNode, move.to_path)
        # the group that it was moved into may be gone, or be an array now
        parent = parent_path(move.to_path)
        if parent is None or parent in groups:
            continue
        there = theirs.get(parent)
        if there is None or there.is_array or there.id in ours.moved:
            yield Conflict(ConflictType.NewNodeInInvalidGroup, parent)


def carry_over(
    ours: ChangeSet, log: TransactionLog, theirs: Snapshot, *, drop_chunks: bool
) -> ChangeSet:
    """Return our changes as changes on top of their snapshot.

    Parameters
    ----------
    drop_chunks : bool
        Whether to leave out chunks that they wrote as well.
    """
    result = overlay(ChangeSet(ours.base), ours)
    result.base = theirs.id
    if drop_chunks:
        for node_id, edits in ours.chunks.items():
            refs = edits.refs()
            both = _written_by_both(refs, log, node_id)
            if both is not None and both.any():
                result.chunks[node_id] = ChunkEdits.from_refs(refs.take(~both))
    # what they added below a group that we move goes along
    for node_id, move in list(result.moved.items()):
        if move.is_array or theirs.get_by_id(node_id) is None:
            continue
        for node in theirs.within(move.from_path):
            if node.id not in result.moved and is_within(node.path, move.from_path):
                target = move.to_path + node.path[len(move.from_path) :]
                result.moved[node.id] = MovedNode(node.path, target, node.is_array)
    return result
