"""How a session's changes become a snapshot that a branch points to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from icechunk.base.visible import in_a_line
from icechunk.changes.codec import encode_change_set
from icechunk.commit import publish
from icechunk.commit.building import Builder, Built, touched_nodes
from icechunk.commit.conflicts import ConflictSolver
from icechunk.commit.rebase import rebase as rebase_changes
from icechunk.commit.retrying import Backoff
from icechunk.commit.tickets import Arrays, Place, stand_in
from icechunk.commit.turns import Compute, Fate, Guest, Seen
from icechunk.commit.version_names import branch_tip
from icechunk.errors import (
    ConflictError,
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    OutcomeUnknownError,
    SessionStateError,
    StorageError,
)
from icechunk.format.ids import INITIAL_SNAPSHOT_ID, encode_id
from icechunk.format.metadata import with_reserved
from icechunk.format.repo_info import RepoInfo, SnapshotEntry
from icechunk.format.transaction_log import TransactionLog
from icechunk.session.context import SessionContext, SessionMode
from icechunk.session.edits import Edits
from icechunk.session.terms import Committed, Course, Rebasing, Sent, check_solver, check_words

_log = logging.getLogger(__name__)


class Committer:
    """Commits the edits of one session.

    Parameters
    ----------
    context : SessionContext
    edits : Edits
    branch : str, optional
        The one that a commit moves; None for sessions that do not commit.
    needs : collection of bytes
        Versions from which chunks were taken, and which must exist until the commit.
    send : callable
        Stores chunks that are not stored yet.

    Attributes
    ----------
    committed : Committed or None
        What the commit took, once there is one.
    """

    def __init__(
        self,
        context: SessionContext,
        edits: Edits,
        branch: str | None,
        needs: Collection[bytes] = (),
        send: Callable[[], None] = lambda: None,
    ) -> None:
        self._context = context
        self._edits = edits
        self._lock = edits.lock
        self._sent: list[Sent] = []
        self._needs = needs
        self._send = send
        self.branch = branch
        self.committed: Committed | None = None

    def commit(
        self,
        message: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        rebase_with: ConflictSolver | None = None,
        rebase_tries: int = 1000,
        fair: bool = False,
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
            The maximum number of rebases.
        fair : bool
            Whether to wait in a queue with the other writers of this branch. Each writer then
            gets its turn, and builds its commit once. Use it for a crowd of writers, in all of
            them. It needs `rebase_with` and takes a few more requests. The queue is kept as
            objects in the storage. Other clients of the format ignore these objects and do not
            wait, and neither do commits without `fair`. A writer that dies in the queue delays
            the others by up to half a minute.
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
            If `rebase_with` cannot resolve a conflict.
        OutcomeUnknownError
            If the storage gave no answer, and nobody knows whether the commit was made. Commit
            again: the session finds out, and does not commit twice.
        SessionStateError
            If nothing changed, or the session cannot commit.

        Examples
        --------
        >>> zarr.open_array(session.store, path="temperature")[0] = 17.0
        >>> snapshot = session.commit("Warmer", {"author": "me"})
        """
        if rebase_with is None and fair:
            raise InvalidInputError(
                "fair=True needs rebase_with=, such as icechunk.ConflictDetector(): a writer that "
                "waits for others commits on top of what they have committed",
                ErrorKind.INVALID_COMMIT_CONFIGURATION,
            )
        if rebase_with is None:
            return self.put(message, metadata, allow_empty, amends=False, on_built=on_built)
        check_solver("rebase_with", rebase_with)
        if rebase_tries < 0:
            raise InvalidInputError(
                f"rebase_tries is {rebase_tries}, it must not be negative",
                ErrorKind.INVALID_COMMIT_CONFIGURATION,
            )
        rebasing = Rebasing(rebase_with, rebase_tries, fair, before_rebase, after_rebase)
        return self.put(
            message, metadata, allow_empty, amends=False, rebasing=rebasing, on_built=on_built
        )

    def amend(
        self,
        message: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        allow_empty: bool = False,
    ) -> str:
        """Replace the newest snapshot of the branch by one that also has the changes.

        Parameters and errors are those of `commit`. The first snapshot of a repository
        cannot be amended, and neither can one that moved nodes by a session that edits.

        Examples
        --------
        >>> zarr.open_array(session.store, path="temperature")[0] = 17.0
        >>> snapshot = session.amend("Second, corrected")
        """
        self._context.state.require_version_2("amend")
        return self.put(message, metadata, allow_empty, amends=True)

    def rewrite_manifests(
        self, message: str, metadata: Mapping[str, Any] | None, *, amends: bool
    ) -> str:
        """Commit with new manifests for all arrays; see `Repository.rewrite_manifests`."""
        return self.put(message, metadata, True, amends=amends, rewrites=True)

    def rebase(self, solver: ConflictSolver) -> None:
        """Carry the changes over to the newest snapshot of the branch.

        Parameters
        ----------
        solver : ConflictSolver
            Says how to go on where others changed the same thing.

        Raises
        ------
        RebaseFailedError
            If the solver cannot resolve a conflict. The session then stays as it was.
        SessionStateError
            If the session cannot commit, or a transaction log is missing.
        InvalidInputError
            If `solver` is none.

        Examples
        --------
        >>> session.rebase(icechunk.ConflictDetector())
        """
        check_solver("solver", solver)
        self.check_committable(allow_empty=True)
        with self._lock:
            info = self._context.state.load()
            # what has landed is there, and the next commit finds out
            if self._landed(info) is None:
                self._rebase(info, solver)

    def _rebase(self, info: RepoInfo, solver: ConflictSolver) -> None:
        tip = branch_tip(info, self.branch or "")
        if tip != self._edits.snapshot_id:
            changes = rebase_changes(self._context.assets, info, self._edits.own(), tip, solver)
            self._edits.reset(self._context.assets.snapshot(tip), [changes])

    def flush(self, message: str, *, metadata: Mapping[str, Any] | None = None) -> str:
        """Store the changes, if any, as a snapshot that belongs to no branch.

        The session is read-only afterwards. Garbage collection removes the snapshot
        eventually, unless a branch or tag is made from it.

        Examples
        --------
        >>> zarr.open_array(session.store, path="temperature")[0] = 17.0
        >>> snapshot = session.flush("On no branch")
        """
        self.check_committable(allow_empty=True)
        check_words(message, metadata)
        with self._lock:
            seen = self._context.state.look()
            if self._finish_landed(seen.info):
                return encode_id(self._edits.snapshot_id)
            self._send()
            builder = self._builder()
            built = self._build(builder, message, metadata)
            change = publish.needing(publish.add_detached(self._entry(built)), self._needs)
            attempts = self._publish(built, [change], seen)
            course = Course(message, metadata, builder, None, None, None, ExitStack())
            course.attempts = attempts
            return self._finish(built, self._taken(built, course))

    def check_committable(self, *, allow_empty: bool) -> None:
        """Refuse if there is no branch to commit to, or nothing to commit."""
        if self._edits.mode is SessionMode.readonly or self.branch is None:
            raise SessionStateError(
                "this one is read-only, was committed before, or is a fork, which is merged into "
                "the session that it came from; Repository.writable_session(branch) returns one "
                "that commits",
                ErrorKind.COMMIT_NOT_ALLOWED,
            )
        self._edits.check_written()
        if not allow_empty and not self._edits.has_changes:
            raise SessionStateError(
                "pass allow_empty=True to commit all the same",
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
        rebasing: Rebasing | None = None,
        on_built: Callable[[str], None] | None = None,
    ) -> str:
        """Add a snapshot to the branch, or replace the newest one."""
        self.check_committable(allow_empty=allow_empty or bool(self._sent))
        check_words(message, metadata)
        with self._lock, ExitStack() as turn:
            seen = self._context.state.look()
            if self._finish_landed(seen.info):
                return encode_id(self._edits.snapshot_id)
            self.check_committable(allow_empty=allow_empty)
            self._send()
            amended = self._amended_log() if amends else None
            builder = self._builder(rewrites=rewrites)
            course = Course(message, metadata, builder, amended, rebasing, on_built, turn)
            if rebasing is not None and rebasing.fair:
                course.place = turn.enter_context(self._in_turn(builder))
                # those who were before have committed
                seen = self._context.state.look()
                if self._finish_landed(seen.info):
                    return encode_id(self._edits.snapshot_id)
            return self._put(seen, course)

    def _in_turn(self, builder: Builder) -> AbstractContextManager[Place]:
        """Return what to hold while a fair commit is made; it waits for its turn."""
        changes, base = self._edits.own(), self._edits.tree.snapshot

        def meanwhile(others: list[Arrays]) -> None:
            """Write what those who stand before leave as it is."""
            if None not in others:
                tip = publish.commit_tip(self._context.state.load(), self.branch or "")
                newest = self._context.assets.snapshot(tip)
                builder.prepare(base, changes, newest, {id for some in others for id in some or ()})

        storage = self._context.assets.storage
        return stand_in(storage, self.branch or "", touched_nodes(changes), meanwhile)

    def _put(self, seen: Seen, course: Course) -> str:
        """Build and publish, in rounds. Each round starts from what changed in the one before."""
        state, branch = self._context.state, self.branch or ""
        backoff = Backoff(state.retries)
        while True:
            self._catch_up(seen.info, course)
            built = self._build_round(course)
            if (state.is_contended or course.lost) and not course.has_turn and not course.place:
                # the slow part is done: wait for those in front, then catch up
                id = self._stand(course)
                if id is not None:
                    return id
                before, seen = seen, state.look()
                if self._finish_landed(seen.info):
                    return encode_id(self._edits.snapshot_id)
                course.lost = course.lost or before.etag != seen.etag
                if before.etag != seen.etag or not course.has_turn:
                    continue
            if course.on_built is not None:
                course.on_built(encode_id(built.snapshot.id))
            change = self._change(built, amends=course.amended is not None)
            takes_others = course.has_turn and course.amended is None and course.place is None
            try:
                with state.turns.together(seen, branch if takes_others else None, change) as all:
                    course.attempts += self._publish(built, all, seen)
                state.is_contended = course.lost or course.attempts > 1 or len(all) > 1
                return self._finish(built, self._taken(built, course))
            except ConflictError as error:
                expected = course.rebasing or self._sent
                if error.kind is not ErrorKind.COMMIT_CONFLICT or not expected:
                    raise
            course.attempts += 1
            course.lost = True
            if not course.has_turn:
                id = self._stand(course)
                if id is not None:
                    return id
            if course.place is None:
                state.pause(backoff, seen)
            seen = state.look()
            if self._finish_landed(seen.info):
                return encode_id(self._edits.snapshot_id)

    def _build_round(self, course: Course) -> Built:
        noted = course.metadata
        if course.rebasing is not None:
            # official clients record this in every commit that was allowed to rebase
            noted = with_reserved(noted, rebase_attempts=course.rebases)
        return self._build(course.builder, course.message, noted, course.amended)

    def _change(self, built: Built, *, amends: bool = False) -> Compute:
        """Return what puts a snapshot on the branch."""
        moves = self._edits.mode is SessionMode.rearrange
        base, entry = self._edits.snapshot_id, self._entry(built)
        change = publish.add_commit(self.branch or "", base, entry, amends=amends, moves=moves)
        return publish.needing(change, self._needs)

    def _stand(self, course: Course) -> str | None:
        """Wait for the turn, or go along with somebody else; return the new snapshot then."""
        state = self._context.state
        may_go_along = (
            course.rebasing is not None
            and course.asks_nobody
            and course.place is None
            and not self._needs
            and self._edits.mode is SessionMode.writable
            and state.spec_version > 1
        )
        guest = Guest(self.branch if may_go_along else None)
        course.has_turn = course.turn.enter_context(state.turn(guest))
        return None if course.has_turn else self._go_along(guest, course)

    def _go_along(self, guest: Guest, course: Course) -> str | None:
        """Build upon what a host is about to publish, and let it publish that, too.

        Returns
        -------
        str or None
            The new snapshot. Otherwise everything is as it was before, and what may have been
            published all the same is noted.

        Raises
        ------
        OutcomeUnknownError
        """
        state, seen, rebases = self._context.state, guest.seen, course.rebases
        sent: Sent | None = None
        try:
            with self._edits.attempt() as keep:
                try:
                    assert seen is not None
                    self._catch_up(seen.info, course)
                    built = self._build_round(course)
                except IcechunkError as error:
                    # what it is built upon may never be published; the next turn will tell
                    _log.debug("did not go along with another commit: %s", error)
                    return None
                sent = Sent(built, self._edits.snapshot_id)
                self._sent.append(sent)
                fate = state.turns.hand_over(guest, self._change(built))
                if fate is Fate.DONE:
                    keep()
                    id = encode_id(built.snapshot.id)
                    # one copy of the repo info; the put is the host's
                    objects = course.builder.written + 1
                    taken = Committed(id, course.attempts + 1, course.rebases, objects)
                    return self._finish(built, taken)
                if fate is Fate.LOST:
                    self._sent.remove(sent)
                    return None
        finally:
            state.turns.leave(guest)
            if sent in self._sent:
                sent.changes = encode_change_set(self._edits.own())
            if sent in self._sent or sent is None:
                course.rebases = rebases
        course.builder = self._builder()
        try:
            state.look()
        except IcechunkError as error:
            id = encode_id(built.snapshot.id)
            raise OutcomeUnknownError(
                f"it is not known whether snapshot {id} was committed to branch {self.branch!r}: "
                "another thread was to publish it with its own commit, and did not end that, and "
                f"looking failed ({error.message}); commit again with this session: it finds out, "
                "and does not commit twice",
                branch=self.branch,
                snapshot=id,
            ) from error
        return None

    def _catch_up(self, info: RepoInfo, course: Course) -> None:
        """Rebase if the branch has moved."""
        if publish.commit_tip(info, self.branch or "") != self._edits.snapshot_id:
            self._carry_over(info, course.rebasing, course.rebases)
            course.rebases += 1

    def _carry_over(self, info: RepoInfo, rebasing: Rebasing | None, done: int) -> None:
        """Rebase, if the caller wants that and the limit is not reached."""
        if rebasing is None or done >= rebasing.tries:
            expected = self._edits.snapshot_id
            tip = publish.commit_tip(info, self.branch or "")
            raise ConflictError(encode_id(expected), encode_id(tip))
        if rebasing.before is not None:
            rebasing.before(done + 1)
        self._rebase(info, rebasing.solver)
        if rebasing.after is not None:
            rebasing.after(done + 1)

    def _publish(self, built: Built, changes: Sequence[Compute], seen: Seen) -> int:
        """Make a snapshot visible, by the first of some changes.

        Whatever happens, remember it if it may have become visible.
        """
        sent = Sent(built, self._edits.snapshot_id)
        self._sent.append(sent)
        try:
            return self._context.state.update(*changes, seen=seen)
        except IcechunkError as error:
            if isinstance(error, StorageError):
                sent.changes = encode_change_set(self._edits.own())
            else:
                self._sent.remove(sent)
            raise
        except BaseException:
            sent.changes = encode_change_set(self._edits.own())
            raise

    def _landed(self, info: RepoInfo) -> Sent | None:
        """Return the snapshot that was published although nobody could say so.

        Raises
        ------
        SessionStateError
            If the session was changed in the meantime.
        """
        for sent in self._sent:
            id = sent.built.snapshot.id
            if publish.has_landed(info, self.branch or "", id, sent.base):
                if self._edits.has_changes and encode_change_set(self._edits.own()) != sent.changes:
                    raise SessionStateError(
                        f"snapshot {encode_id(id)} of this session was committed, though its "
                        "answer was lost; what was changed since is not in it, and cannot be "
                        "committed here: write it again in a new session",
                        ErrorKind.NOT_ALLOWED,
                    )
                return sent
        return None

    def _finish_landed(self, info: RepoInfo) -> bool:
        sent = self._landed(info)
        if sent is not None:
            _log.info("snapshot %s had been committed", encode_id(sent.built.snapshot.id))
            self._finish(sent.built, Committed(encode_id(sent.built.snapshot.id), 0, 0))
        return sent is not None

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

    def _builder(self, *, rewrites: bool = False) -> Builder:
        return Builder(
            self._context.assets,
            self._context.effective.split_sizes,
            rewrites=rewrites,
            spec_version=self._context.state.spec_version,
        )

    def _build(
        self,
        builder: Builder,
        message: str,
        metadata: Mapping[str, Any] | None,
        amended: TransactionLog | None = None,
    ) -> Built:
        return builder.build(
            self._edits.tree.snapshot,
            self._edits.own(),
            message=message,
            metadata={**self._context.default_commit_metadata, **(metadata or {})},
            amended=amended,
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

    def _taken(self, built: Built, course: Course) -> Committed:
        objects = course.builder.written + course.attempts * self._context.state.puts_per_attempt
        objects += 0 if course.place is None else course.place.puts
        return Committed(encode_id(built.snapshot.id), course.attempts, course.rebases, objects)

    def _finish(self, built: Built, committed: Committed) -> str:
        level = logging.DEBUG if committed.attempts == 1 and not committed.rebases else logging.INFO
        _log.log(
            level,
            "committed snapshot %s to branch %s, in %d attempts, with %d rebases and %d objects",
            committed.snapshot_id,
            in_a_line(str(self.branch)),
            committed.attempts,
            committed.rebases,
            committed.objects,
        )
        self.committed = committed
        # they would stay in the cache until it is full
        replaced = self._edits.tree.snapshot.manifest_files.keys()
        self._context.assets.forget_manifests(replaced - built.snapshot.manifest_files.keys())
        self._sent.clear()
        self._edits.mode = SessionMode.readonly
        self.branch = None
        self._edits.reset(built.snapshot)
        return committed.snapshot_id
