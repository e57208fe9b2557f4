"""The edits of one session: layers of change sets on a snapshot, and the resulting tree.

A plain session has one layer. A fork has its parent's edits below its own. A session
that was forked begins a new layer, because its later edits happen beside the fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from icechunk.changes import change_set
from icechunk.changes.change_set import ChangeSet, OnConflict
from icechunk.changes.codec import decode_change_set, encode_change_set
from icechunk.changes.tree import Tree
from icechunk.errors import ErrorKind, ReadOnlyError, SessionStateError
from icechunk.format.snapshot import Snapshot
from icechunk.session.context import SessionMode
from icechunk.session.failed_writes import FailedWrites


class Edits:
    """What a session has changed, and what may still be changed.

    Nothing is fetched or decoded until the tree or the layers are needed, or `load` is
    called: a copy in another process fails when it is used, not when it arrives.

    Parameters
    ----------
    fetch : callable
        Takes the id of a snapshot and returns the snapshot.
    snapshot_id : bytes
    mode : SessionMode
    layers : sequence of ChangeSet or bytes
        Oldest first, as objects or as bytes; none for a fresh start.
    inherited : int
        How many of the layers come from the parent of a fork.
    lineage : bytes
        Of a fork; empty for other sessions.
    forks : mapping, optional
        How many of the layers the forks of each lineage began with.

    Attributes
    ----------
    lock : RLock
        To be held by whoever edits.
    mode : SessionMode
    snapshot_id : bytes
    failed : FailedWrites
        What is missing among the edits.
    """

    def __init__(
        self,
        fetch: Callable[[bytes], Snapshot],
        snapshot_id: bytes,
        mode: SessionMode,
        layers: Sequence[ChangeSet | bytes] = (),
        inherited: int = 0,
        lineage: bytes = b"",
        forks: Mapping[bytes, int] | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.mode = mode
        self.snapshot_id = snapshot_id
        self.failed = FailedWrites()
        self._fetch = fetch
        self._encoded = list(layers)
        self._inherited = inherited
        self._lineage = lineage
        self._forks = dict(forks) if forks is not None else self._no_forks()
        self._layers = [] if layers else [ChangeSet(snapshot_id, lineage)]
        self._tree: Tree | None = None
        # how many layers take no more edits, and these layers combined
        self._frozen = 0, ChangeSet(snapshot_id)

    def _no_forks(self) -> dict[bytes, int]:
        return {self._lineage: self._inherited} if self._lineage else {}

    # -- the state ---------------------------------------------------------------------
    @property
    def is_loaded(self) -> bool:
        """Whether the snapshot was fetched."""
        return self._tree is not None

    @property
    def tree(self) -> Tree:
        """The node hierarchy, with all edits. The first use fetches the snapshot."""
        tree = self._tree
        if tree is None:
            with self.lock:
                if self._tree is None:
                    self._tree = Tree(self._fetch(self.snapshot_id), self.layers)
                tree = self._tree
        return tree

    def load(self) -> None:
        """Fetch the snapshot, unless it was fetched before."""
        _ = self.tree

    @property
    def layers(self) -> list[ChangeSet]:
        """All change sets, oldest first. The last one takes new edits."""
        if self._encoded:
            with self.lock:
                if self._encoded:
                    self._layers = [
                        layer if isinstance(layer, ChangeSet) else decode_change_set(layer)
                        for layer in self._encoded
                    ]
                    self._encoded = []
        return self._layers

    @property
    def has_changes(self) -> bool:
        """Whether there are changes to commit."""
        return any(not layer.is_void for layer in self.layers[self._inherited :])

    @property
    def has_inherited_changes(self) -> bool:
        """Whether the parent of a fork had changes when it was forked."""
        return any(not layer.is_void for layer in self.layers[: self._inherited])

    def own(self) -> ChangeSet:
        """Return what was done here: for a fork, since it was forked."""
        return change_set.flatten(self.layers[self._inherited :])

    def everything(self) -> bytes:
        """Return all changes, including inherited ones, for comparisons."""
        layers = [layer for layer in self.layers if not layer.is_empty]
        start = ChangeSet(self.snapshot_id)
        return encode_change_set(change_set.flatten([start, *layers])) if layers else b""

    def to_send(self) -> dict[str, Any]:
        """Return the arguments that make a copy in another process, without `fetch`."""
        with self.lock:
            return {
                "snapshot_id": self.snapshot_id,
                "mode": self.mode,
                # one by one: forks of this fork began with some of them
                "layers": [
                    encode_change_set(layer) if isinstance(layer, ChangeSet) else layer
                    for layer in self._encoded or self._layers
                ],
                "inherited": self._inherited,
                "lineage": self._lineage,
                "forks": dict(self._forks),
            }

    # -- editing -----------------------------------------------------------------------
    def check_editable(self) -> None:
        """Refuse edits of nodes and chunks.

        Raises
        ------
        ReadOnlyError, SessionStateError
        """
        if self.mode is SessionMode.readonly:
            raise ReadOnlyError(
                "get one that writes from Repository.writable_session(branch)",
                ErrorKind.READ_ONLY_SESSION,
            )
        if self.mode is SessionMode.rearrange:
            raise SessionStateError(
                "commit it, and write in a session from Repository.writable_session(branch)",
                ErrorKind.REARRANGE_SESSION_ONLY,
            )

    def check_written(self) -> None:
        """Refuse to go on with a part of a write that failed.

        Raises
        ------
        SessionStateError
        """
        if self.failed:
            self.failed.check(self.tree)

    def reset(self, snapshot: Snapshot, layers: Sequence[ChangeSet] = ()) -> None:
        """Go on from a snapshot: that of a commit, or that of a rebase with its changes."""
        self._forks = self._no_forks()
        self._frozen = 0, ChangeSet(snapshot.id)
        self._encoded = []
        self._layers = list(layers) or [ChangeSet(snapshot.id, self._lineage)]
        self._tree = Tree(snapshot, self._layers)
        self.snapshot_id = snapshot.id

    @contextmanager
    def attempt(self) -> Iterator[Callable[[], None]]:
        """Put back what there is now at the end of the block, unless that calls what it yields."""
        before = (self._forks, self._frozen, self.layers, self.tree, self.snapshot_id)
        kept = False

        def keep() -> None:
            nonlocal kept
            kept = True

        try:
            yield keep
        finally:
            if not kept:
                self._forks, self._frozen, self._layers, self._tree, self.snapshot_id = before

    def discard(self, *, inherited: bool = False) -> None:
        """Drop what was done here and, if asked, what was inherited."""
        with self.lock:
            self.failed.clear()
            if inherited:
                self._inherited = 0
            kept = self.layers[: self._inherited]
            self.reset(self.tree.snapshot, [*kept, ChangeSet(self.snapshot_id, self._lineage)])

    def restore(self, top: ChangeSet) -> None:
        """Put back the top layer that was there before a merge."""
        self.layers[-1] = top
        self.tree.rebuild()

    # -- forks -------------------------------------------------------------------------
    def fork(self) -> tuple[bytes, list[ChangeSet]]:
        """Return the lineage of a new fork, and the layers that it begins with."""
        with self.lock:
            top = self.layers[-1]
            if not top.is_empty:
                # what this session does from now on happens beside the fork
                self._layers.append(ChangeSet(top.base, top.lineage))
            seen = len(self._layers) - 1
            known = [lineage for lineage, layers in self._forks.items() if layers == seen]
            lineage = known[0] if known else os.urandom(16)
            self._forks[lineage] = seen
            return lineage, [self._frozen_layers(seen)] if seen else []

    def _frozen_layers(self, seen: int) -> ChangeSet:
        """Return the layers that take no more edits, combined into one.

        A fork does not need to know where each of them begins and ends, but looks for each chunk
        in each layer, which would be slow after many merges. Start from what the last fork got.
        """
        known, frozen = self._frozen
        if known < seen:
            frozen = change_set.flatten([frozen, *self._layers[known:seen]])
            self._frozen = seen, frozen
        return frozen.copy()

    # -- merging -----------------------------------------------------------------------
    def merge(self, parts: list[ChangeSet], on_conflict: OnConflict = "error") -> None:
        """Take over change sets that were made side by side: all of them, or none.

        Raises
        ------
        ReadOnlyError, SessionStateError, ConflictError
        """
        self.check_editable()
        if not parts:
            return
        with self.lock:
            # first, because it builds a merge as large as the result, and drops it
            if on_conflict == "error":
                self._check_beside(parts)
            merged = change_set.merge(parts, on_conflict=on_conflict)
            top = self.layers[-1]
            self._layers[-1] = change_set.overlay(top, merged)
            try:
                self.tree.rebuild()
                self._check_nodes(merged)
            except BaseException:
                self.restore(top)
                raise
            for node_id, edits in merged.chunks.items():
                self.failed.forget_many(node_id, edits.refs())

    def _check_beside(self, parts: list[ChangeSet]) -> None:
        """Refuse change sets that contradict what their makers could not know.

        A fork saw what its parent had done before, and may override it. What the parent did or
        merged afterwards happened beside it. A store that was opened on its own saw
        nothing of this session.
        """
        for lineage in {part.lineage for part in parts}:
            beside = change_set.flatten(self.layers[self._forks.get(lineage, 0) :])
            if not beside.is_empty:
                change_set.merge([beside, *(part for part in parts if part.lineage == lineage)])

    def _check_nodes(self, merged: ChangeSet) -> None:
        """Refuse edits of nodes that were made in a session that no longer exists, and moves."""
        edited = merged.updated.keys() | merged.chunks.keys()
        # for these, the deletion was the last word
        edited -= {node_id for layer in self.layers for node_id in layer.deleted}
        found = self.tree.by_id(edited)
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
