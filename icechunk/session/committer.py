"""How a session's changes become a snapshot, and a branch points to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from icechunk.commit import publish
from icechunk.commit.building import Built, build
from icechunk.commit.conflicts import ConflictSolver
from icechunk.commit.rebase import rebase as rebase_changes
from icechunk.commit.versions import branch_tip
from icechunk.errors import ConflictError, ErrorKind, InvalidInputError, SessionStateError
from icechunk.format.ids import INITIAL_SNAPSHOT_ID, encode_id
from icechunk.format.metadata import with_reserved
from icechunk.format.repo_info import SnapshotEntry
from icechunk.format.transaction_log import TransactionLog
from icechunk.session.context import SessionContext, SessionMode
from icechunk.session.edits import Edits

_log = logging.getLogger(__name__)


class Committer:
    """Commits the edits of one session; `icechunk.Session` says what each method does.

    Parameters
    ----------
    context : SessionContext
    edits : Edits
    branch : str, optional
        The one that a commit moves; None for sessions that do not commit.
    """

    def __init__(self, context: SessionContext, edits: Edits, branch: str | None) -> None:
        self._context = context
        self._edits = edits
        self._lock = edits.lock
        self.branch = branch

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
        """Make the changes a new snapshot of the branch."""
        if rebase_with is None:
            return self.put(message, metadata, allow_empty, amends=False, on_built=on_built)
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
                return self.put(message, noted, empty, amends=False, on_built=on_built)
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
        """Carry the changes over to the newest snapshot of the branch."""
        self.check_committable(allow_empty=True)
        with self._lock:
            info = self._context.state.load()
            tip = branch_tip(info, self.branch or "")
            if tip != self._edits.snapshot_id:
                changes = rebase_changes(self._context.assets, info, self._edits.own(), tip, solver)
                self._edits.reset(self._context.assets.snapshot(tip), [changes])

    def flush(self, message: str, *, metadata: Mapping[str, Any] | None = None) -> str:
        """Store the changes as a snapshot that belongs to no branch."""
        self.check_committable(allow_empty=True)
        with self._lock:
            built = self._build(message, metadata)
            entry = self._entry(built)
            self._context.state.update(publish.add_detached(entry))
            self._finish(built)
            return encode_id(self._edits.snapshot_id)

    def check_committable(self, *, allow_empty: bool) -> None:
        """Refuse if there is no branch to commit to, or nothing to commit."""
        if self._edits.mode is SessionMode.readonly or self.branch is None:
            raise SessionStateError(
                "this session cannot commit: it is read-only, was committed before, or is a "
                "fork whose changes are to be merged into the session it came from",
                ErrorKind.COMMIT_NOT_ALLOWED,
            )
        if not allow_empty and not self._edits.has_changes:
            raise SessionStateError(
                "nothing to commit: no changes were made (allow_empty=True commits all the same)",
                ErrorKind.NO_CHANGES_TO_COMMIT,
            )

    def put(
        self,
        message: str,
        metadata: Mapping[str, Any] | None,
        allow_empty: bool,
        *,
        amends: bool,
        rewrites: bool = False,
        on_built: Callable[[str], None] | None = None,
    ) -> str:
        """Add a snapshot to the branch, or replace the newest one; once, without a rebase."""
        self.check_committable(allow_empty=allow_empty)
        branch = self.branch or ""
        with self._lock:
            amended = self._amended_log() if amends else None
            built = self._build(message, metadata, amended, rewrites=rewrites)
            if on_built is not None:
                on_built(encode_id(built.snapshot.id))
            change = publish.add_commit(
                branch,
                self._edits.snapshot_id,
                self._entry(built),
                amends=amends,
                moves=self._edits.mode is SessionMode.rearrange,
            )
            self._context.state.update(change)
            self._finish(built)
            _log.debug(
                "committed snapshot %s to branch %s", encode_id(self._edits.snapshot_id), branch
            )
            return encode_id(self._edits.snapshot_id)

    def _amended_log(self) -> TransactionLog:
        if self._edits.snapshot_id == INITIAL_SNAPSHOT_ID:
            raise SessionStateError(
                "the first snapshot of a repository cannot be amended; commit instead",
                ErrorKind.NO_AMEND_FOR_INITIAL_COMMIT,
            )
        log = self._context.assets.transaction_log(self._edits.snapshot_id)
        if log.moved_nodes and self._edits.mode is not SessionMode.rearrange:
            raise SessionStateError(
                "the newest snapshot moved nodes; edits cannot amend it, commit instead",
                ErrorKind.REARRANGE_SESSION_ONLY,
            )
        return log

    def _build(
        self,
        message: str,
        metadata: Mapping[str, Any] | None,
        amended: TransactionLog | None = None,
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
            self._edits.tree.snapshot,
            self._edits.own(),
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
            self._edits.snapshot_id,
            snapshot.flushed_at,
            snapshot.message,
            snapshot.metadata,
        )

    def _finish(self, built: Built) -> None:
        self._edits.mode = SessionMode.readonly
        self.branch = None
        self._edits.reset(built.snapshot)
