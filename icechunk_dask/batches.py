"""Work that is committed for the caller: at once or in batches, where readers see it or aside.

A job has a name if it is to be found again. Each of its commits then says in the metadata,
under `METADATA_KEY`, which job it belongs to and how much of it was done; that, and the
chunks that are there, is all that a later run needs to go on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from dask.utils import parse_bytes, parse_timedelta

from icechunk import (
    ConflictError,
    ConflictSolver,
    ErrorKind,
    InternalError,
    InvalidInputError,
    RebaseFailedError,
    Repository,
    Session,
    SnapshotInfo,
    Storage,
)
from icechunk_dask.graph import Runner, Write
from icechunk_dask.part import Part

__all__ = [
    "METADATA_KEY",
    "Committing",
    "Every",
    "Units",
    "Work",
    "Written",
    "refuse_commit_options",
]

METADATA_KEY: Final = "icechunk_dask"
#: Under that: the newest commit of the temporary branch, in one that has all its work.
_OF: Final = "of"
Units = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Written:
    """What a write did.

    Attributes
    ----------
    tasks : int
        Blocks or items that were written.
    skipped : int
        Those that an earlier run had written.
    chunks, nbytes : int
        Chunks stored, and their size as they are stored.
    empty : int
        Chunks that hold fill values only, which Zarr does not store by default; a later
        run cannot tell them from missing ones, and writes them again.
    snapshots : tuple of str
        Ids of the commits, oldest first; without any if nothing was missing.
    results : list or None
        What the function of a `distributed_write` returned for each item, if that was
        asked for; None for items that were skipped.
    """

    tasks: int
    skipped: int
    chunks: int
    nbytes: int
    empty: int
    snapshots: tuple[str, ...] = ()
    results: list[Any] | None = None

    @classmethod
    def of(
        cls,
        parts: Sequence[Part],
        skipped: int = 0,
        snapshots: Sequence[str] = (),
        results: list[Any] | None = None,
    ) -> Written:
        """Add up what batches did."""
        return cls(
            sum(part.tasks for part in parts),
            skipped,
            sum(part.chunks for part in parts),
            sum(part.nbytes for part in parts),
            sum(part.empty for part in parts),
            tuple(snapshots),
            results,
        )


@dataclass(frozen=True)
class Every:
    """How large a batch is: exactly one of these, or all at once.

    Attributes
    ----------
    tasks : int, optional
    nbytes : int, optional
    seconds : float, optional
    """

    tasks: int | None = None
    nbytes: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: int | str | timedelta | None) -> Every:
        """Read an argument `commit_every`: a number of tasks, ``"1GB"`` or ``"60s"``.

        Raises
        ------
        InvalidInputError
        """
        every = cls()
        try:
            if isinstance(value, timedelta):
                every = cls(seconds=value.total_seconds())
            elif isinstance(value, str) and value.strip().lower().endswith("b"):
                every = cls(nbytes=int(parse_bytes(value)))
            elif isinstance(value, str):
                every = cls(seconds=float(parse_timedelta(value)))
            elif isinstance(value, int) and not isinstance(value, bool):
                every = cls(tasks=value)
            elif value is None:
                return every
        except (ValueError, KeyError):
            pass
        if not any(size is not None and size > 0 for size in vars(every).values()):
            raise InvalidInputError(
                f"commit_every is {value!r}; it is a number of tasks, a size such as '1GB', or "
                "a time such as '60s'",
                ErrorKind.INVALID_COMMIT_CONFIGURATION,
            )
        return every


class Work(Protocol):
    """Units of work, numbered from zero, that tasks do."""

    def __len__(self) -> int:
        """Return how many there are."""

    @property
    def nbytes(self) -> Units | None:
        """Size of each unit, if it is known before: int64[len(self)]."""

    def graph(
        self, session: Session, units: Units, split_every: int | None, topic: str | None
    ) -> Write:
        """Return the delayed part that does some units on forks of a session."""

    def missing(self, session: Session) -> Units:
        """Return the units that are not in the repository yet: int64[n], rising."""

    def record(self, done: int) -> dict[str, Any]:
        """Return what a commit notes when the first `done` units are done."""

    def check(self, session: Session, part: Part) -> bool:
        """Say whether there is anything to commit.

        Raises
        ------
        ConflictError
            If a batch contradicts an earlier one of this run.
        """

    def results(self, parts: Sequence[Part]) -> list[Any] | None:
        """Return what is to be returned beside the numbers."""


@dataclass(frozen=True)
class Committing:
    """Where and how a job is committed. The parameters are those of `distributed_write`."""

    repository: Repository
    branch: str
    message: str
    metadata: Mapping[str, Any] | None = None
    rebase_with: ConflictSolver | None = None
    every: Every = Every()
    publish: str = "batch"
    job: str | None = None
    resume: bool = False

    @classmethod
    def of(
        cls,
        repository: Repository | Storage | str | os.PathLike[str],
        branch: str,
        message: str | None,
        metadata: Mapping[str, Any] | None,
        rebase_with: ConflictSolver | None,
        commit_every: int | str | timedelta | None,
        publish: str,
        job: str | None,
        *,
        resume: bool = False,
    ) -> Committing:
        """Check arguments and put them together.

        Raises
        ------
        InvalidInputError
        """
        if message is None:
            raise _wrong("a repository is committed to, so message must say what the commit is")
        if publish not in ("batch", "end"):
            raise _wrong(f"publish is {publish!r}, it must be 'batch' or 'end'")
        if publish == "end" and not job:
            raise _wrong(
                "with publish='end' the work waits on a temporary branch; name it with job=, so "
                "that a later run finds it"
            )
        every = Every.parse(commit_every)
        if not isinstance(repository, Repository):
            repository = Repository.open(repository)
        return cls(repository, branch, message, metadata, rebase_with, every, publish, job, resume)

    @property
    def working_branch(self) -> str:
        """The branch that batches are committed to."""
        return self.branch if self.publish == "batch" else f"{self.branch}.job-{self.job}"

    def do(self, work: Work, runner: Runner, split_every: int | None) -> Written:
        """Do what is left of some work, and commit it.

        Raises
        ------
        ConflictError
            If others moved the branch meanwhile, or tasks contradict each other. What was
            committed before stays.
        """
        runner.check_reach(self.repository.storage)
        if self.publish == "end":
            self._start()
        pending = np.arange(self._recorded(work), len(work))
        if self.resume:
            reader = self.repository.readonly_session(self.working_branch)
            pending = np.intersect1d(pending, work.missing(reader), assume_unique=True)
        skipped = len(work) - len(pending)
        progress = runner.progress
        progress.set(phase="writing", total=len(work), tasks=skipped)
        parts: list[Part] = []
        snapshots: list[str] = []
        sizes = _Sizes(self.every, work.nbytes, runner.slots)
        while len(pending):
            units = pending[: sizes.next(pending)]
            pending = pending[len(units) :]
            started = time.monotonic()
            session = self.repository.writable_session(self.working_branch)
            (part,) = runner.run(work.graph(session, units, split_every, runner.new_topic()))
            session.merge_change_sets([part.changes.to_bytes()])
            if work.check(session, part) or self.job is not None:
                progress.set(phase="committing")
                done = int(pending[0]) if len(pending) else len(work)
                snapshots.append(self._commit(session, work.record(done)))
                progress.set(phase="writing", commits=len(snapshots))
            parts.append(part)
            sizes.learn(part, time.monotonic() - started)
        if self.publish == "end":
            progress.set(phase="publishing")
            snapshots += self._publish(work.record(len(work)))
        progress.set(phase="done")
        return Written.of(parts, skipped, snapshots, work.results(parts))

    def _commit(self, session: Session, record: dict[str, Any]) -> str:
        metadata = dict(self.metadata or {})
        if self.job is not None:
            metadata[METADATA_KEY] = {"job": self.job, **record}
        return session.commit(
            self.message,
            metadata,
            rebase_with=self.rebase_with,
            # that the job is further is worth a commit, even if its tasks wrote nothing
            allow_empty=self.job is not None,
        )

    def _recorded(self, work: Work) -> int:
        """Return how many of the first units earlier runs of the job have done."""
        if self.job is None:
            return 0
        for snapshot in self.repository.ancestry(branch=self.working_branch):
            noted = snapshot.metadata.get(METADATA_KEY)
            if isinstance(noted, dict) and noted.get("job") == self.job:
                done = noted.get("done")
                # else the job of this name was given other work, and begins anew
                if not (isinstance(done, int) and 0 <= done <= len(work)):
                    continue
                if {**noted, _OF: None} == {"job": self.job, **work.record(done), _OF: None}:
                    return done
        return 0

    # -- a temporary branch --------------------------------------------------------------
    def _start(self) -> None:
        """Make the temporary branch, unless an earlier run has left it."""
        tip = self.repository.lookup_branch(self.branch)
        if self.working_branch in self.repository.list_branches():
            base, ahead = self._aside()
            if ahead and not self._was_replayed(base, ahead[0].id):
                return
            # it was published, or nothing was ever written to it
            self.repository.delete_branch(self.working_branch)
        self.repository.create_branch(self.working_branch, tip)

    def _aside(self) -> tuple[str, list[SnapshotInfo]]:
        """Return where the temporary branch left the other one, and its own snapshots."""
        known = {snapshot.id for snapshot in self.repository.ancestry(branch=self.branch)}
        ahead: list[SnapshotInfo] = []
        for snapshot in self.repository.ancestry(branch=self.working_branch):
            if snapshot.id in known:
                return snapshot.id, ahead
            ahead.append(snapshot)
        raise InternalError("the branches have no common snapshot")

    def _publish(self, record: dict[str, Any]) -> list[str]:
        """Let the branch have what the temporary one has, in one step.

        Returns
        -------
        list of str
            The commit that this took; none if the branch can stand where the other does.
        """
        base, ahead = self._aside()
        commits: list[str] = []
        if ahead and not self._was_replayed(base, ahead[0].id):
            tip = ahead[0].id
            try:
                self.repository.reset_branch(self.branch, tip, from_snapshot_id=base)
            except ConflictError as error:
                # others have committed meanwhile
                if self.rebase_with is None:
                    raise self._not_published(tip, "it has moved", error) from error
                commits = [self._replay(base, tip, record)]
        self.repository.delete_branch(self.working_branch)
        return commits

    def _replay(self, base: str, tip: str, record: dict[str, Any]) -> str:
        """Commit all the work at once on top of what others have committed."""
        session = self.repository.replay_session(
            self.branch, from_snapshot_id=base, to_snapshot_id=tip
        )
        noted = {"job": self.job, **record, _OF: tip}
        try:
            return session.commit(
                self.message,
                {**(self.metadata or {}), METADATA_KEY: noted},
                rebase_with=self.rebase_with,
                allow_empty=True,
            )
        except RebaseFailedError as error:
            raise self._not_published(tip, error.message, error) from error

    def _not_published(self, tip: str, reason: str, error: ConflictError) -> ConflictError:
        ways = [
            f"To keep the work only, move the branch with reset_branch({self.branch!r}, {tip!r})",
            f"to keep what others did, delete_branch({self.working_branch!r}) and run the job "
            "again",
        ]
        if self.rebase_with is None:
            ways.append("to keep both, run it with rebase_with=icechunk.ConflictDetector()")
        return ConflictError(
            message=f"all is written, but the branch {self.branch!r} cannot have it: {reason}. "
            f"The work stays on the branch {self.working_branch!r}. {'; '.join(ways)}",
            kind=error.kind,
        )

    def _was_replayed(self, base: str, tip: str) -> bool:
        """Whether the branch has the work already: a run was killed before it cleaned up."""
        for snapshot in self.repository.ancestry(branch=self.branch):
            if snapshot.id == base:
                return False
            noted = snapshot.metadata.get(METADATA_KEY)
            if isinstance(noted, dict) and noted.get("job") == self.job and noted.get(_OF) == tip:
                return True
        return False


def refuse_commit_options(
    message: str | None,
    metadata: Mapping[str, Any] | None,
    rebase_with: ConflictSolver | None,
    commit_every: int | str | timedelta | None,
    publish: str,
    job: str | None,
    *,
    resume: bool = False,
) -> None:
    """Refuse what only makes sense for a commit.

    Raises
    ------
    InvalidInputError
    """
    values = (message, metadata, rebase_with, commit_every, job)
    if publish != "batch" or resume or any(value is not None for value in values):
        raise _wrong(
            "message, metadata, rebase_with, commit_every, publish, job and resume are about "
            "commits, and need a repository in place of a session"
        )


class _Sizes:
    """How many units the next batch has."""

    def __init__(self, every: Every, nbytes: Units | None, slots: int) -> None:
        self._every = every
        self._nbytes = nbytes if every.nbytes is not None else None
        # nothing is known before the first batch, which keeps every worker busy twice
        self._count = 2 * slots

    def next(self, pending: Units) -> int:
        """Return the size of the next batch, at least one."""
        every = self._every
        if every.tasks is not None:
            return every.tasks
        if self._nbytes is not None and every.nbytes is not None:
            total = np.cumsum(self._nbytes[pending])
            return max(int(np.count_nonzero(total <= every.nbytes)), 1)
        if every == Every():
            return len(pending)
        return self._count

    def learn(self, part: Part, seconds: float) -> None:
        """Note what a batch was like, so that the next one is as large as asked for."""
        every = self._every
        wanted: float = self._count
        if every.nbytes is not None:
            wanted = every.nbytes / max(part.nbytes, 1)
        elif every.seconds is not None:
            wanted = every.seconds / max(seconds, 1e-3)
        # one odd batch does not make the next a hundred times as large
        self._count = max(int(part.tasks * min(wanted, 8.0)), 1)


def _wrong(reason: str) -> InvalidInputError:
    return InvalidInputError(reason, ErrorKind.INVALID_COMMIT_CONFIGURATION)
