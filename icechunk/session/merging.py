"""What sessions, their forks and workers tell each other: change sets, out and in."""

from __future__ import annotations

from collections.abc import Iterable

from icechunk.changes import change_set
from icechunk.changes.change_set import ChangeSet, OnConflict
from icechunk.changes.codec import decode_change_set, encode_change_set
from icechunk.errors import ErrorKind, SessionStateError
from icechunk.session.workspace import Workspace


class Merging(Workspace):
    """The part of `icechunk.Session` that gives its changes away and takes others over."""

    @property
    def _own_layers(self) -> list[ChangeSet]:
        return self._layers

    def _changes(self) -> ChangeSet:
        """Return what `change_set_bytes` stands for."""
        return change_set.flatten(self._own_layers)

    def change_set_bytes(self) -> bytes:
        """Return the uncommitted changes, to be sent to the coordinator of a job.

        Of a fork they are what was done since it was forked. Chunks are already stored;
        what travels is where they are.
        """
        self._context.assets.storage.sync()
        return encode_change_set(self._changes())

    def _everything(self) -> bytes:
        """Return all changes that the session sees, inherited ones too, to compare."""
        layers = [layer for layer in self._layers if not layer.is_empty]
        start = ChangeSet(self._snapshot_id)
        return encode_change_set(change_set.flatten([start, *layers])) if layers else b""

    def _frozen_layers(self, seen: int) -> ChangeSet:
        """Return the layers that take no more edits as one, for a fork.

        A fork has no use for where they begin and end, and looks for each chunk in each
        layer: after many merges it would be slow. What the last fork got is gone on with.
        """
        known, frozen = self._frozen
        if known < seen:
            frozen = change_set.flatten([frozen, *self._layers[known:seen]])
            self._frozen = seen, frozen
        return frozen.copy()

    def merge_change_sets(
        self, change_sets: Iterable[bytes], *, on_conflict: OnConflict = "error"
    ) -> None:
        """Take over what other processes did, from their `change_set_bytes`.

        Parameters
        ----------
        change_sets : iterable of bytes
            In any order; one that comes twice counts once.
        on_conflict : {"error", "last"}
            What to do where two disagree.

        Raises
        ------
        FormatError
            If some bytes are damaged or no change set.
        SessionStateError
            If a change set was made on another snapshot, or on nodes that this session
            does not have.
        ConflictError
            If two disagree about a chunk or a node, or one with this session. In all three
            cases nothing is taken over.
        """
        parts = [decode_change_set(data, f"change set {i}") for i, data in enumerate(change_sets)]
        self._merge(parts, on_conflict)

    def _merge(self, parts: list[ChangeSet], on_conflict: OnConflict = "error") -> None:
        self._check_editable()
        if not parts:
            return
        with self._lock:
            # first, because it makes something of the size of the result, and drops it
            if on_conflict == "error":
                self._check_beside(parts)
            merged = change_set.merge(parts, on_conflict=on_conflict)
            top = self._layers[-1]
            self._layers[-1] = change_set.overlay(top, merged)
            try:
                self._tree.rebuild()
                self._check_nodes(merged)
            except BaseException:
                self._layers[-1] = top
                self._tree.rebuild()
                raise

    def _check_beside(self, parts: list[ChangeSet]) -> None:
        """Refuse change sets that contradict what their makers could not know.

        A fork saw what its parent had done before and may override it, all that the parent
        did or merged since happened beside it. A store that was opened on its own saw
        nothing of this session.
        """
        for lineage in {part.lineage for part in parts}:
            beside = change_set.flatten(self._layers[self._forks.get(lineage, 0) :])
            if not beside.is_empty:
                change_set.merge([beside, *(part for part in parts if part.lineage == lineage)])

    def _check_nodes(self, merged: ChangeSet) -> None:
        """Refuse edits of nodes that were made in a session that is no more, and moves."""
        edited = merged.updated.keys() | merged.chunks.keys()
        # the last word about these was the deletion
        edited -= {node_id for layer in self._layers for node_id in layer.deleted}
        found = self._tree.by_id(edited)
        for node_id in sorted(edited):
            refs = merged.chunks[node_id].refs() if node_id in merged.chunks else None
            node = found.get(node_id)
            fits = node is not None and (
                refs is None or (node.array and len(node.array.shape) == refs.ndim)
            )
            if not fits:
                raise SessionStateError(
                    f"a change set edits {merged.node_paths.get(node_id, '/')!r}, but not as this "
                    "session has it; commit the nodes first, or fork the session that has them",
                    ErrorKind.MERGE_FAILED,
                )
        if merged.moved:
            raise SessionStateError(
                "a change set moves nodes; commit them in the session that moved them",
                ErrorKind.MERGE_FAILED,
            )
