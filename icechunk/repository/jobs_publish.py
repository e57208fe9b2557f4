"""Commit the parts of a job: each part exactly once, whichever process dies where.

An entry of the job's log says which parts a commit has, before the commit takes place. Then, as
often as needed: carry the changes over to the newest snapshot, check whether the operations log
has a snapshot that an earlier try named, name ours in the entry, and move the branch.
If another try lands after the check, the branch has moved, and ours fails.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from icechunk.commit.conflicts import Conflict, ConflictDetector, ConflictSolver
from icechunk.commit.snapshot_info import SnapshotInfo
from icechunk.errors import (
    ConflictError,
    ErrorKind,
    IcechunkError,
    PreconditionFailedError,
    SessionStateError,
)
from icechunk.repository.jobs_lost import collected_since, lost_parts
from icechunk.repository.jobs_records import (
    Definition,
    Entry,
    JobFiles,
    Part,
    Try,
    canonical,
    closing,
)
from icechunk.repository.update_types import Update, UpdateType
from icechunk.session.session import Session
from icechunk.storage import Storage

__all__ = ["Host", "Publisher", "some"]

_log = logging.getLogger(__name__)


class Host(Protocol):
    """What jobs need of a repository."""

    @property
    def storage(self) -> Storage:
        """The place of the repository."""

    @property
    def spec_version(self) -> int:
        """The version of the format."""

    def lookup_branch(self, branch: str) -> str:
        """Return the newest snapshot of a branch."""

    def ancestry(self, *, branch: str) -> Iterator[SnapshotInfo]:
        """Return the history of a branch, newest first."""

    def ops_log(self) -> Iterator[Update]:
        """Return all updates, newest first."""

    def session_after_commit(self, branch: str, snapshot_id: str) -> Session:
        """Return a writable session on a snapshot."""


class Publisher:
    """Commits the parts of one job.

    Parameters
    ----------
    repository : Host
    files : JobFiles
    definition : Definition
    """

    def __init__(self, repository: Host, files: JobFiles, definition: Definition) -> None:
        self._repository = repository
        self._files = files
        self._definition = definition

    def publish(
        self,
        solver: ConflictSolver | None,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Commit all parts that are there, and finish what others have begun.

        Parameters
        ----------
        solver : ConflictSolver or None
            What to do if the branch has moved; None refuses.
        message, metadata : optional
            Of the commits, in place of those of the job.

        Returns
        -------
        list of str
            Ids of the commits.
        """
        commits: list[str] = []
        while True:
            entry, is_new = self._pending()
            if entry is None:
                return commits
            snapshot = self._complete(entry, solver, message, metadata, checked=is_new)
            if snapshot is not None:
                commits.append(snapshot)

    def _pending(self) -> tuple[Entry | None, bool]:
        """Return the entry to process next, and whether it is new."""
        while True:
            log = self._files.log()
            last = log[-1] if log else None
            if last is not None and last.state == "pending":
                return last, False
            if closing(log) is not None:
                return None, False
            parts = self._next_parts()
            if not parts:
                return None, False
            self._check_chunks(parts)
            # before there is an entry: parts that contradict each other remain parts
            self._session(parts[0].base, parts)
            entry = Entry(
                number=len(log) + 1,
                kind="commit",
                state="pending",
                token=uuid.uuid4().hex,
                parts=[self._files.part_name(part.keys) for part in parts],
                keys=[key for part in parts for key in part.keys],
                base=parts[0].base,
                mark=self._newest_update(),
            )
            if self._files.append(entry):
                return entry, True

    def _next_parts(self) -> list[Part]:
        """Return the parts of the next commit, all on one base; call `JobFiles.log` first."""
        files = self._files
        names = files.part_names() - files.committed_digests
        chosen: list[Part] = []
        taken: set[str] = set()
        useless = []
        for part in files.parts(sorted(names)):
            texts = set(map(canonical, part.keys))
            if texts <= files.committed:
                useless.append(files.part_name(part.keys))
                continue
            twice = texts & (files.committed | taken)
            if twice:
                # whoever runs the rest again leaves out the keys that are done
                files.delete_parts([files.part_name(part.keys)])
                raise ConflictError(
                    message=f"the job {self._definition.name!r}: two runs have done {some(twice)}, "
                    f"one of them together with {some(texts - twice)}; what that one did is "
                    "dropped, and the same call goes on with the rest",
                    kind=ErrorKind.MERGE_FAILED,
                )
            if not chosen or part.base == chosen[0].base:
                taken |= texts
                chosen.append(part)
        # left by a late attempt, or by a process that died after a commit
        files.delete_parts(useless)
        return chosen

    def _check_chunks(self, parts: Sequence[Part]) -> None:
        """Drop parts whose chunks another client has collected as garbage, and raise an error."""
        lost = self._lost(parts)
        if lost:
            self._files.delete_parts([self._files.part_name(part.keys) for part in lost])
            raise self._losing(lost, "these parts")

    def _lost(self, parts: Sequence[Part]) -> list[Part]:
        """Return the parts that have lost chunks, as far as a check is needed.

        The ends of each part are always checked, and everything after a collection.
        """
        repository = self._repository
        exact = repository.spec_version < 2 or collected_since(
            repository.ops_log(), {part.base for part in parts}
        )
        return lost_parts(repository.storage, parts, self._definition.name, exact=exact)

    def _losing(self, lost: Sequence[Part], again: str) -> SessionStateError:
        keys = some(canonical(key) for part in lost for key in part.keys)
        return SessionStateError(
            f"the job {self._definition.name!r}: chunks that it wrote for {keys} are gone: other "
            "clients take what jobs have written for garbage. Let them collect only what is older "
            f"than the job, and run {again} again"
        )

    def _session(self, base: str, parts: Sequence[Part]) -> Session:
        session = self._repository.session_after_commit(self._definition.branch, base)
        try:
            session.merge_change_sets([part.change_set for part in parts])
        except ConflictError as error:
            raise self._naming(error, base, parts) from error
        return session

    def _naming(self, error: ConflictError, base: str, parts: Sequence[Part]) -> ConflictError:
        """Return the error that names keys of two parts that contradict each other."""
        branch = self._definition.branch
        for number, part in enumerate(parts):
            for earlier in parts[:number]:
                session = self._repository.session_after_commit(branch, base)
                try:
                    session.merge_change_sets([earlier.change_set, part.change_set])
                except ConflictError as found:
                    return ConflictError(
                        message=f"the parts {some(map(canonical, earlier.keys))} and "
                        f"{some(map(canonical, part.keys))} of the job "
                        f"{self._definition.name!r} wrote the same: {found.message}. Cancel the "
                        "job, let each part write chunks of its own, and begin again",
                        kind=error.kind,
                    )
        return error

    def _complete(
        self,
        entry: Entry,
        solver: ConflictSolver | None,
        message: str | None,
        metadata: Mapping[str, Any] | None,
        *,
        checked: bool = False,
    ) -> str | None:
        """Process an entry, unless that is done; return the snapshot."""
        files, number = self._files, entry.number
        parts = files.parts(entry.parts)
        if len(parts) < len(entry.parts):
            entry, _ = files.read_entry(number)
            if entry.state != "pending":
                return entry.snapshot
            if self.give_up():
                return None
            raise SessionStateError(
                f"the job {self._definition.name!r}: objects of its parts are gone, and the commit "
                f"of {some(map(canonical, entry.keys))} cannot be finished; cancel the job and "
                "begin again"
            )
        lost = [] if checked or self._landed(entry) is not None else self._lost(parts)
        if lost:
            # whoever put the entry has died, and chunks have been lost since
            if not self.give_up():
                raise self._losing(
                    lost,
                    f"this again once the branch {self._definition.branch!r} has moved, then "
                    f"{some(map(canonical, entry.keys))}",
                )
            entry, _ = files.read_entry(number)
            if entry.state == "void":
                raise self._losing(lost, some(map(canonical, entry.keys)))
            return entry.snapshot
        while True:
            session = self._session(entry.base, parts)
            if not session.has_uncommitted_changes:
                return self._settle(number, None)
            problem = None
            try:
                if solver is not None:
                    session.rebase(_StrictWithOurs(solver, self._commits()))
            except IcechunkError as error:
                # the commit that contradicts ours may be our own
                problem = error
            tip = session.snapshot_id
            # read after the session got its tip: anything that lands later makes the branch move
            entry, version = files.read_entry(number)
            if entry.state != "pending":
                return entry.snapshot
            landed = self._landed(entry)
            if landed is not None:
                return self._settle(number, landed)
            if problem is not None:
                raise problem
            naming = _Naming(files, entry, version, tip)
            try:
                snapshot = session.commit(
                    self._definition.message if message is None else message,
                    self._definition.metadata if metadata is None else metadata,
                    allow_empty=True,
                    on_built=naming,
                )
            except _MovedError:
                continue
            except ConflictError as error:
                if error.kind is not ErrorKind.COMMIT_CONFLICT:
                    raise
                if solver is None and not self._is_done(number):
                    raise
                _log.debug("job %s: the branch has moved", self._definition.name)
                continue
            return self._settle(number, snapshot)

    def _is_done(self, number: int) -> bool:
        """Whether another process has completed an entry."""
        entry, _ = self._files.read_entry(number)
        return entry.state != "pending" or self._landed(entry) is not None

    def _landed(self, entry: Entry) -> str | None:
        """Return the snapshot of an entry that became a commit, whatever happened to it since."""
        wanted = {each.snapshot for each in entry.tries}
        if not wanted:
            return None
        if not entry.mark:
            # there was no operations log, and no amending
            history = self._repository.ancestry(branch=self._definition.branch)
            return next((info.id for info in history if info.id in wanted), None)
        for update in self._repository.ops_log():
            if _time_of(update) <= entry.mark:
                return None
            if isinstance(update.kind, UpdateType.NewCommit) and update.kind.new_snap_id in wanted:
                return update.kind.new_snap_id
        raise SessionStateError(
            f"the job {self._definition.name!r}: the operations log was cut, and does not say "
            f"whether {some(map(canonical, entry.keys))} were committed; look at the branch "
            f"{self._definition.branch!r}, cancel the job, and begin a new one with what is missing"
        )

    def _newest_update(self) -> str:
        if self._repository.spec_version < 2:
            return ""
        return _time_of(next(self._repository.ops_log()))

    def _settle(self, number: int, snapshot: str | None) -> str | None:
        """Record that an entry is done, and delete its parts."""
        while True:
            entry, version = self._files.read_entry(number)
            if entry.state != "pending":
                break
            entry = replace(entry, state="done", snapshot=snapshot)
            try:
                self._files.change(entry, version)
            except PreconditionFailedError:
                continue
            break
        if entry.state == "done":
            # the parts of a void entry may have been run again
            self._files.delete_parts(entry.parts)
        return entry.snapshot

    def give_up(self) -> bool:
        """Void the pending entry, if its commit can never land.

        Returns
        -------
        bool
            Whether nothing is pending any more.
        """
        log = self._files.log()
        if not log or log[-1].state != "pending":
            return True
        tip = self._repository.lookup_branch(self._definition.branch)
        entry, version = self._files.read_entry(log[-1].number)
        landed = self._landed(entry)
        if landed is not None or entry.state != "pending":
            self._settle(entry.number, landed)
            return True
        if any(each.tip == tip for each in entry.tries):
            return False
        # first: from then on the parts may be run again
        self._files.delete_parts(entry.parts)
        try:
            self._files.change(replace(entry, state="void"), version)
        except PreconditionFailedError:
            return False
        return True

    def close(self, kind: str) -> str:
        """Put the last entry of the log, once nothing is pending; return the kind that is there.

        Raises
        ------
        IcechunkError
            If a commit is pending that can neither be completed nor given up.
        """
        while True:
            log = self._files.log()
            last = log[-1] if log else None
            closed = closing(log)
            if closed is not None:
                return closed
            if last is not None and last.state == "pending":
                try:
                    self._complete(last, ConflictDetector(), None, None)
                except IcechunkError:
                    if not self.give_up():
                        raise
                continue
            entry = Entry(len(log) + 1, kind, "done", uuid.uuid4().hex)
            if self._files.append(entry):
                return kind

    def reopen_for_late(self) -> bool:
        """Reopen a finished job if a part arrived while it was being closed; return whether it did.

        After leaving the part, its process saw the job open, and told its caller that the part
        counts.
        """
        log = self._files.log()
        if closing(log) != "finished" or not self._files.part_names() - (
            self._files.committed_digests
        ):
            return False
        entry, version = self._files.read_entry(log[-1].number)
        if entry.state == "done":
            with suppress(PreconditionFailedError):
                self._files.change(replace(entry, state="void"), version)
        return True

    def check_history(self) -> None:
        """Refuse to continue if the branch has lost commits of the job.

        Raises
        ------
        SessionStateError
            If the branch was reset or deleted after the newest commit of the job.
        """
        entries = [entry for entry in self._files.log() if entry.snapshot is not None]
        if not entries or self._repository.spec_version < 2:
            return
        newest, branch = entries[-1], self._definition.branch
        if any(info.id == newest.snapshot for info in self._repository.ancestry(branch=branch)):
            return
        # expired and amended commits are not among the ancestors, either
        for update in self._repository.ops_log():
            kind = update.kind
            if _time_of(update) <= newest.mark or (
                isinstance(kind, UpdateType.NewCommit) and kind.new_snap_id == newest.snapshot
            ):
                return
            if (
                isinstance(kind, UpdateType.BranchReset | UpdateType.BranchDeleted)
                and kind.name == branch
            ):
                name = self._definition.name
                what = "reset" if isinstance(kind, UpdateType.BranchReset) else "deleted"
                raise SessionStateError(
                    f"the branch {branch!r} was {what} at {_time_of(update)}, and lost the commit "
                    f"{newest.snapshot} of the job {name!r}, with "
                    f"{some(map(canonical, newest.keys))}. To do all parts again, forget the job "
                    f"with Repository.jobs.delete({name!r}), and create it anew; or take the "
                    f"commit back: Repository.reset_branch({branch!r}, {newest.snapshot!r})"
                )

    def _commits(self) -> set[str]:
        return {entry.snapshot for entry in self._files.log() if entry.snapshot is not None}


class _StrictWithOurs(ConflictSolver):
    """Lets no part undo what another one wrote, however it treats the changes of others."""

    def __init__(self, solver: ConflictSolver, ours: set[str]) -> None:
        self._solver = solver
        self._ours = ours

    def settles(self, conflict: Conflict) -> bool:
        return self._solver.settles(conflict)

    @property
    def drops_our_chunks(self) -> bool:
        return self._solver.drops_our_chunks

    def for_commit(self, snapshot_id: str) -> ConflictSolver:
        return ConflictDetector() if snapshot_id in self._ours else self._solver


class _MovedError(Exception):
    """Somebody else has changed the entry."""


class _Naming:
    """Names a snapshot in an entry, before it may become a commit."""

    def __init__(self, files: JobFiles, entry: Entry, version: str | None, tip: str) -> None:
        self._files = files
        self._entry = entry
        self._version = version
        self._tip = tip

    def __call__(self, snapshot: str) -> None:
        tries = [*self._entry.tries, Try(snapshot, self._tip)]
        try:
            self._files.change(replace(self._entry, tries=tries), self._version)
        except PreconditionFailedError:
            raise _MovedError from None


def _time_of(update: Update) -> str:
    return update.updated_at.isoformat(timespec="microseconds")


def some(texts: Any) -> str:
    """Return some of many keys for a message."""
    found = sorted(texts)
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ("the key " if len(found) == 1 else "the keys ") + ", ".join(found[:5]) + more
