"""One transaction: edits on top of a snapshot until they are committed or dropped."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from icechunk.base.async_twin import async_twin
from icechunk.changes.change_set import ArrayChanges, ChangeSet, OnConflict
from icechunk.changes.codec import decode_change_set, encode_change_set
from icechunk.commit import publish
from icechunk.commit.building import Built, build, transaction_log
from icechunk.commit.conflicts import ConflictSolver
from icechunk.commit.rebase import rebase as rebase_changes
from icechunk.commit.snapshots import Diff, diff_from_logs
from icechunk.commit.versions import branch_tip
from icechunk.config.repository_config import EffectiveConfig, RepositoryConfig
from icechunk.errors import (
    ConflictError,
    ErrorKind,
    InvalidInputError,
    SessionStateError,
)
from icechunk.format.ids import INITIAL_SNAPSHOT_ID, encode_id, normalize_path
from icechunk.format.metadata import with_reserved
from icechunk.format.repo_info import SnapshotEntry
from icechunk.session.array_chunks import ArrayChunks
from icechunk.session.merging import Merging
from icechunk.session.workspace import ChunkType, SessionContext, SessionMode
from icechunk.storage.base import Storage
from icechunk.virtual.resolver import VirtualResolver

if TYPE_CHECKING:
    from icechunk.store import IcechunkStore

_log = logging.getLogger(__name__)

__all__ = ["ChunkType", "ForkSession", "Session", "SessionMode"]


class Session(ArrayChunks, Merging):
    """One transaction on a repository. Made by `Repository`, not directly.

    Read-only sessions look at one snapshot for ever. Writable ones collect edits and
    become read-only, at the new snapshot, once they are committed. A session may be used
    from several threads.
    """

    def __init__(
        self,
        context: SessionContext,
        snapshot_id: bytes,
        mode: SessionMode,
        branch: str | None = None,
        layers: Sequence[ChangeSet] = (),
    ) -> None:
        super().__init__(context, snapshot_id, mode, layers)
        self._branch = branch

    # -- what it is --------------------------------------------------------------
    @property
    def read_only(self) -> bool:
        """Whether the session refuses edits."""
        return self._mode is SessionMode.readonly

    @property
    def is_fork(self) -> bool:
        """Whether the session is a fork, to be merged and never committed."""
        return False

    @property
    def mode(self) -> SessionMode:
        """Whether the session reads, writes, or rearranges."""
        return self._mode

    @property
    def snapshot_id(self) -> str:
        """Id of the snapshot that the session began at; after a commit the new one."""
        return encode_id(self._snapshot_id)

    @property
    def branch(self) -> str | None:
        """The branch that a commit moves; None for read-only sessions and forks."""
        return self._branch

    @property
    def storage(self) -> Storage:
        """Where the repository is."""
        return self._context.assets.storage

    @property
    def config(self) -> RepositoryConfig:
        """The configuration that the session works with."""
        return self._context.config

    @property
    def has_uncommitted_changes(self) -> bool:
        """Whether a commit would have anything to say."""
        return any(not layer.is_void for layer in self._own_layers)

    def __repr__(self) -> str:
        lines = [f"<icechunk.{type(self).__name__}>", f"snapshot: {self.snapshot_id}"]
        if self._branch is not None:
            lines.append(f"branch: {self._branch}")
        lines.append(f"mode: {self._mode.name}")
        if not self.read_only:
            lines.append(f"uncommitted changes: {'yes' if self.has_uncommitted_changes else 'no'}")
        lines.append(f"storage: {self._context.assets.storage.url}")
        return "\n".join(lines)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        if self is other:
            return True
        return (
            self._context.assets.storage.url == other._context.assets.storage.url
            and self._snapshot_id == other._snapshot_id
            and self._mode == other._mode
            and self._everything() == other._everything()
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def store(self) -> IcechunkStore:
        """The Zarr store of this session."""
        # the one import that goes up a layer: users expect the attribute here
        from icechunk.store import IcechunkStore

        return IcechunkStore(self)

    # -- pickling ------------------------------------------------------------------
    def __getstate__(self) -> dict[str, Any]:
        if not self.read_only:
            raise SessionStateError(
                "a writable session cannot be pickled: changes made on the copy would be lost. "
                "Send session.fork() to other processes, and merge() what comes back",
                ErrorKind.PICKLE,
            )
        return {"recipe": self._context.recipe, "snapshot": self._snapshot_id}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Session.__init__(self, state["recipe"].context(), state["snapshot"], SessionMode.readonly)

    @property
    def virtual(self) -> VirtualResolver:
        """Access to the files that virtual chunks lie in."""
        return self._context.virtual

    @property
    def storage_url(self) -> str:
        """Where the repository is, without credentials."""
        return self._context.assets.storage.url

    @property
    def effective_config(self) -> EffectiveConfig:
        """The configuration with defaults filled in."""
        return self._context.effective

    def move(self, from_path: str, to_path: str) -> None:
        """Move a group or array, with all below it, to another path.

        Parameters
        ----------
        from_path, to_path : str
            Absolute paths.

        Raises
        ------
        SessionStateError
            If the session is not one from `Repository.rearrange_session`, or the target
            lies within the source or has no group as its parent.
        NodeNotFoundError
            If there is nothing at `from_path`.
        AlreadyExistsError
            If there is a node at `to_path`.
        """
        if self._mode is not SessionMode.rearrange:
            if self.read_only:
                self._check_editable()
            raise SessionStateError(
                "nodes move in sessions of their own; get one from "
                "Repository.rearrange_session(branch)",
                ErrorKind.NON_REARRANGE_SESSION,
            )
        with self._lock:
            self._tree.move(normalize_path(from_path), normalize_path(to_path))

    def get_node_id(self, path: str) -> str:
        """Return the id of a node, which stays the same when the node moves."""
        return encode_id(self._tree.require(normalize_path(path)).id)

    # -- changes -----------------------------------------------------------------------
    def array_changes(self) -> list[ArrayChanges]:
        """Return how many chunks of each array were changed, and how large they are.

        Of a fork they are those since it was forked.
        """
        return self._changes().array_changes()

    def status(self) -> Diff:
        """Return the uncommitted changes."""
        changes = self._changes()
        snapshot = self._tree.snapshot
        log = transaction_log(self._snapshot_id, snapshot, self._tree, changes)
        paths = {node.id: (node.path, node.is_array) for node in self._tree.nodes()}
        return diff_from_logs([log], snapshot, paths)

    def discard_changes(self) -> None:
        """Drop all uncommitted changes."""
        if self.read_only:
            self._check_editable()
        with self._lock:
            self._reset(self._tree.snapshot)

    def fork(self) -> ForkSession:
        """Return a session for other processes, which sees what this one has done.

        It pickles. What is written through it, or through copies of it, comes back by
        `merge`, or as `change_set_bytes` for `merge_change_sets`.
        """
        if self._mode is not SessionMode.writable:
            raise SessionStateError(
                "only a writable session can be forked; for reading, a read-only session pickles",
                ErrorKind.CANNOT_FORK_READ_ONLY_SESSION,
            )
        with self._lock:
            top = self._layers[-1]
            if not top.is_empty:
                # what this session does from now on, it does beside the fork
                self._layers.append(ChangeSet(top.base, top.lineage))
            seen = len(self._layers) - 1
            known = [lineage for lineage, layers in self._forks.items() if layers == seen]
            lineage = known[0] if known else os.urandom(16)
            self._forks[lineage] = seen
            inherited = [self._frozen_layers(seen)] if seen else []
        return ForkSession(self._context, self._snapshot_id, lineage, inherited)

    def merge(self, *others: ForkSession) -> None:
        """Take over what forks of this session did.

        Raises
        ------
        ConflictError
            If two forks, or a fork and what this session did after the fork was made,
            disagree about a chunk or a node; then nothing is taken over.
        """
        for other in others:
            if not isinstance(other, ForkSession):
                raise InvalidInputError(
                    f"merge takes forks of this session, not a {type(other).__name__}",
                    ErrorKind.MERGE_NOT_ALLOWED,
                )
        self._merge([other._changes() for other in others])

    # -- committing ----------------------------------------------------------------------
    def commit(
        self,
        message: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        rebase_with: ConflictSolver | None = None,
        rebase_tries: int = 1000,
        allow_empty: bool = False,
        before_rebase: Callable[[int], None] | None = None,
        after_rebase: Callable[[int], None] | None = None,
        on_built: Callable[[str], None] | None = None,
    ) -> str:
        """Make the changes a new snapshot of the branch.

        The session is read-only afterwards, at the new snapshot.

        Parameters
        ----------
        message : str
        metadata : mapping, optional
            Anything that JSON can express, to be found in the history.
        rebase_with : ConflictSolver, optional
            If the branch has moved, rebase with this solver and try again.
        rebase_tries : int
            How often at most.
        before_rebase, after_rebase : callable, optional
            Called around every rebase with its number, from 1 on.
        allow_empty : bool
            Whether to commit when nothing changed.
        on_built : callable, optional
            Called with the id of the new snapshot before the branch moves there, in each
            attempt. For records that must tell later whether the commit took place: the
            operations log names each snapshot that did. If it raises, nothing is committed.

        Returns
        -------
        str
            Id of the new snapshot.

        Raises
        ------
        ConflictError
            If the branch has moved since the session began.
        RebaseFailedError
            If `rebase_with` cannot settle a conflict.
        SessionStateError
            If nothing changed, or the session cannot commit.
        """
        if rebase_with is None:
            return self._commit(message, metadata, allow_empty, amends=False, on_built=on_built)
        if not isinstance(rebase_with, ConflictSolver):
            raise InvalidInputError(
                f"rebase_with must be a ConflictSolver, not {rebase_with!r}",
                ErrorKind.INVALID_COMMIT_CONFIGURATION,
            )
        for attempt in range(rebase_tries + 1):
            # official clients record this in every commit that was allowed to rebase
            noted = with_reserved(metadata, rebase_attempts=attempt)
            try:
                # what is left of the changes after a rebase may be nothing
                empty = allow_empty or attempt > 0
                return self._commit(message, noted, empty, amends=False, on_built=on_built)
            except ConflictError as error:
                if error.kind is not ErrorKind.COMMIT_CONFLICT or attempt == rebase_tries:
                    raise
            if before_rebase is not None:
                before_rebase(attempt + 1)
            self.rebase(rebase_with)
            if after_rebase is not None:
                after_rebase(attempt + 1)
        raise InvalidInputError(
            f"rebase_tries is {rebase_tries}, it must not be negative",
            ErrorKind.INVALID_COMMIT_CONFIGURATION,
        )

    def rebase(self, solver: ConflictSolver) -> None:
        """Carry the changes over to the newest snapshot of the branch.

        Parameters
        ----------
        solver : ConflictSolver
            Says how to go on where others changed the same.

        Raises
        ------
        RebaseFailedError
            If the solver cannot settle a conflict; then the session stays as it was.
        SessionStateError
            If the session cannot commit, or a transaction log is missing.
        """
        self._check_committable(allow_empty=True)
        with self._lock:
            info = self._context.state.load()
            tip = branch_tip(info, self._branch or "")
            if tip != self._snapshot_id:
                changes = rebase_changes(self._context.assets, info, self._changes(), tip, solver)
                self._reset(self._context.assets.snapshot(tip), [changes])

    def amend(
        self,
        message: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        allow_empty: bool = False,
    ) -> str:
        """Replace the newest snapshot of the branch by one that has the changes too.

        Parameters and errors are those of `commit`; the first snapshot of a repository
        cannot be amended, and neither can one that moved nodes by a session that edits.
        """
        self._context.state.require_version_2("amend")
        return self._commit(message, metadata, allow_empty, amends=True)

    def flush(self, message: str, *, metadata: Mapping[str, Any] | None = None) -> str:
        """Store the changes, if any, as a snapshot that belongs to no branch.

        The session is read-only afterwards. Garbage collection removes the snapshot in
        time, unless a branch or tag is made of it.
        """
        self._check_committable(allow_empty=True)
        with self._lock:
            built = self._build(message, metadata)
            entry = self._entry(built)
            self._context.state.update(publish.add_detached(entry))
            self._finish(built)
            return self.snapshot_id

    def distributed_commit(
        self,
        message: str,
        change_sets: Iterable[bytes],
        metadata: Mapping[str, Any] | None = None,
        *,
        on_conflict: OnConflict = "error",
        allow_empty: bool = False,
    ) -> str:
        """Commit the changes of this session and of other processes, all or nothing.

        Takes the parameters of `commit` and `merge_change_sets`, and raises their errors;
        when it raises, the session is as it was before.
        """
        with self._lock:
            top = self._layers[-1]
            self.merge_change_sets(change_sets, on_conflict=on_conflict)
            try:
                return self.commit(message, metadata, allow_empty=allow_empty)
            except BaseException:
                self._layers[-1] = top
                self._tree.rebuild()
                raise

    def _check_committable(self, *, allow_empty: bool) -> None:
        if self.read_only or self._branch is None:
            raise SessionStateError(
                "this session cannot commit: it is read-only, was committed before, or is a "
                "fork whose changes are to be merged into the session it came from",
                ErrorKind.COMMIT_NOT_ALLOWED,
            )
        if not allow_empty and not self.has_uncommitted_changes:
            raise SessionStateError(
                "nothing to commit: no changes were made (allow_empty=True commits all the same)",
                ErrorKind.NO_CHANGES_TO_COMMIT,
            )

    def _commit(
        self,
        message: str,
        metadata: Mapping[str, Any] | None,
        allow_empty: bool,
        *,
        amends: bool,
        rewrites: bool = False,
        on_built: Callable[[str], None] | None = None,
    ) -> str:
        self._check_committable(allow_empty=allow_empty)
        branch = self._branch or ""
        with self._lock:
            amended = self._amended_log() if amends else None
            built = self._build(message, metadata, amended, rewrites=rewrites)
            if on_built is not None:
                on_built(encode_id(built.snapshot.id))
            change = publish.add_commit(
                branch,
                self._snapshot_id,
                self._entry(built),
                amends=amends,
                moves=self._mode is SessionMode.rearrange,
            )
            self._context.state.update(change)
            self._finish(built)
            _log.debug("committed snapshot %s to branch %s", self.snapshot_id, branch)
            return self.snapshot_id

    def _amended_log(self) -> Any:
        if self._snapshot_id == INITIAL_SNAPSHOT_ID:
            raise SessionStateError(
                "the first snapshot of a repository cannot be amended; commit instead",
                ErrorKind.NO_AMEND_FOR_INITIAL_COMMIT,
            )
        log = self._context.assets.transaction_log(self._snapshot_id)
        if log.moved_nodes and self._mode is not SessionMode.rearrange:
            raise SessionStateError(
                "the newest snapshot moved nodes; edits cannot amend it, commit instead",
                ErrorKind.REARRANGE_SESSION_ONLY,
            )
        return log

    def _build(
        self,
        message: str,
        metadata: Mapping[str, Any] | None,
        amended: Any = None,
        *,
        rewrites: bool = False,
    ) -> Built:
        if not isinstance(message, str):
            raise InvalidInputError(
                f"the message of a commit must be a string, not {message!r}",
                ErrorKind.INVALID_COMMIT_CONFIGURATION,
            )
        if metadata is not None and not isinstance(metadata, Mapping):
            raise InvalidInputError(
                f"the metadata of a commit must be a dict, not {metadata!r}",
                ErrorKind.BAD_METADATA,
            )
        return build(
            self._context.assets,
            self._tree.snapshot,
            self._changes(),
            message=message,
            metadata={**self._context.default_commit_metadata, **(metadata or {})},
            splitting=self._context.effective.split_sizes,
            amended=amended,
            rewrites=rewrites,
            spec_version=self._context.state.spec_version,
        )

    def _entry(self, built: Built) -> SnapshotEntry:
        snapshot = built.snapshot
        return SnapshotEntry(
            snapshot.id,
            self._snapshot_id,
            snapshot.flushed_at,
            snapshot.message,
            snapshot.metadata,
        )

    def _finish(self, built: Built) -> None:
        self._mode = SessionMode.readonly
        self._branch = None
        self._reset(built.snapshot)

    move_async = async_twin(move)
    get_node_id_async = async_twin(get_node_id)
    merge_async = async_twin(merge)
    commit_async = async_twin(commit)
    amend_async = async_twin(amend)
    flush_async = async_twin(flush)
    rebase_async = async_twin(rebase)
    distributed_commit_async = async_twin(distributed_commit)


class ForkSession(Session):
    """A session for work in other processes. Made by `Session.fork`.

    It starts with what its parent had done, pickles with its changes, and cannot commit:
    the session that it was forked from merges it.
    """

    def __init__(
        self,
        context: SessionContext,
        snapshot_id: bytes,
        lineage: bytes,
        inherited: Sequence[ChangeSet],
        own: Sequence[ChangeSet] = (),
    ) -> None:
        layers = [*inherited, *(own or [ChangeSet(snapshot_id, lineage)])]
        super().__init__(context, snapshot_id, SessionMode.writable, None, layers)
        self._lineage = lineage
        self._inherited = len(inherited)
        self._forks[lineage] = self._inherited

    @property
    def is_fork(self) -> bool:
        """Always true."""
        return True

    @property
    def _own_layers(self) -> list[ChangeSet]:
        return self._layers[self._inherited :]

    def __getstate__(self) -> dict[str, Any]:
        # whoever commits what travels knows nothing of this process's files
        self._context.assets.storage.sync()
        return {
            "recipe": self._context.recipe,
            "snapshot": self._snapshot_id,
            "lineage": self._lineage,
            "inherited": [encode_change_set(c) for c in self._layers[: self._inherited]],
            # one by one: forks of this fork began with some of them
            "own": [encode_change_set(c) for c in self._own_layers],
            "forks": self._forks,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        ForkSession.__init__(
            self,
            state["recipe"].context(),
            state["snapshot"],
            state["lineage"],
            [decode_change_set(data, "inherited change set") for data in state["inherited"]],
            [decode_change_set(data) for data in state["own"]],
        )
        self._forks = dict(state["forks"])

    def discard_changes(self) -> None:
        """Drop what was done since the fork."""
        with self._lock:
            self._layers[self._inherited :] = [ChangeSet(self._snapshot_id, self._lineage)]
            self._forks = {self._lineage: self._inherited}
            self._frozen = 0, ChangeSet(self._snapshot_id)
            self._tree.rebuild()
