"""Work that is committed for the caller: at once or in batches, visible at once or at the end.

A job that is to be found again has a name. What it has done is then recorded in
`Repository.jobs`, and a later run leaves that out.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from dask.utils import parse_bytes, parse_timedelta

from icechunk import (
    ConflictSolver,
    ErrorKind,
    InvalidInputError,
    Repository,
    Session,
    Storage,
)
from icechunk.base.texts import counted
from icechunk_dask.graph import Runner, Write
from icechunk_dask.part import Part, TaskRun, slowest_of
from icechunk_dask.pipeline import Pipeline
from icechunk_dask.progress import Progress
from icechunk_dask.record import Record

__all__ = [
    "Committing",
    "Every",
    "Units",
    "Work",
    "Written",
    "refuse_commit_options",
]

_log = logging.getLogger(__name__)

Units = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Written:
    """What a write did.

    Attributes
    ----------
    tasks : int
        Blocks or items that were written.
    skipped : int
        Blocks or items that an earlier run had written.
    chunks, nbytes : int
        Chunks stored, and their size in storage.
    empty : int
        Chunks that hold only fill values. Zarr does not store them by default, so a later
        run cannot tell them from missing ones and writes them again.
    snapshots : tuple of str
        Ids of the commits, oldest first; empty if nothing was missing.
    results : list or None
        What the function of a `distributed_write` returned for each item, if the caller
        asked for it; None for items that were skipped.
    slowest : tuple of TaskRun
        The tasks that took longest, the longest first.
    peak_memory : int
        The peak memory of a process that ran tasks, in bytes: the largest of all.

    Examples
    --------
    >>> from icechunk_dask import distributed_write
    >>> def warmer(store, day):
    ...     zarr.open_array(store, path="temperature")[day] = 17.0
    >>> options = {"executor": "threads", "progress": False}
    >>> written = distributed_write(warmer, range(4), repo, message="Warmer", **options)
    >>> written.tasks, len(written.snapshots)
    (4, 1)
    """

    tasks: int
    skipped: int
    chunks: int
    nbytes: int
    empty: int
    snapshots: tuple[str, ...] = ()
    results: list[Any] | None = None
    slowest: tuple[TaskRun, ...] = ()
    peak_memory: int = 0

    def __repr__(self) -> str:
        words = [counted(self.tasks, "task"), f"{self.skipped:,} skipped"]
        words += [counted(self.chunks, "chunk"), counted(self.nbytes, "byte")]
        if self.empty:
            words.append(f"{self.empty:,} empty")
        if self.snapshots:
            words.append(
                f"{counted(len(self.snapshots), 'commit')}, the newest {self.snapshots[-1]}"
            )
        return f"<icechunk_dask.Written {', '.join(words)}>"

    @classmethod
    def of(
        cls,
        parts: Sequence[Part],
        skipped: int = 0,
        snapshots: Sequence[str] = (),
        results: list[Any] | None = None,
    ) -> Written:
        """Add up the results of batches."""
        return cls(
            sum(part.tasks for part in parts),
            skipped,
            sum(part.chunks for part in parts),
            sum(part.nbytes for part in parts),
            sum(part.empty for part in parts),
            tuple(snapshots),
            results,
            slowest_of(parts),
            max((part.peak_memory for part in parts), default=0),
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
            elif isinstance(value, str) and value.strip().isdecimal():
                # as on the command line; Dask would read seconds
                every = cls(tasks=int(value))
            elif isinstance(value, str) and value.strip().lower().endswith("b"):
                every = cls(nbytes=int(parse_bytes(value)))
            elif isinstance(value, str) and value.strip()[-1:].isalpha():
                every = cls(seconds=float(parse_timedelta(value)))
            elif isinstance(value, int) and not isinstance(value, bool):
                every = cls(tasks=value)
            elif value is None:
                return every
        except (ValueError, KeyError):
            pass
        if not any(size is not None and size > 0 for size in vars(every).values()):
            raise InvalidInputError(
                f"commit_every is {value!r}; it must be a number of tasks, a size such as '1GB', "
                "or a time such as '60s'",
                ErrorKind.INVALID_COMMIT_CONFIGURATION,
            )
        return every


class Work(Protocol):
    """Units of work, numbered from zero, that tasks do."""

    def __len__(self) -> int:
        """Return how many there are."""

    @property
    def title(self) -> str:
        """What messages call all of them."""

    @property
    def nbytes(self) -> Units | None:
        """Size of each unit, if it is known beforehand: int64[len(self)]."""

    def graph(
        self, session: Session, units: Units, split_every: int | None, topic: str | None
    ) -> Write:
        """Return the delayed part that does some units on forks of a session."""

    def missing(self, session: Session) -> Units:
        """Return the units that are not in the repository yet: int64[n], rising."""

    def keys(self) -> list[Any]:
        """Return what a job knows each unit by: values that JSON can express."""

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
            raise _wrong("a write to a repository is a commit: pass a message")
        if publish not in ("batch", "end"):
            raise _wrong(f"publish is {publish!r}, it must be 'batch' or 'end'")
        if publish == "end" and not job:
            raise _wrong(
                "with publish='end' the work waits in a job; name it with job=, so that a later "
                "run finds it"
            )
        every = Every.parse(commit_every)
        if not isinstance(repository, Repository):
            repository = Repository.open(repository)
        return cls(repository, branch, message, metadata, rebase_with, every, publish, job, resume)

    def do(self, work: Work, runner: Runner, split_every: int | None) -> Written:
        """Do what is left of some work, and commit it.

        Raises
        ------
        ConflictError
            If others moved the branch meanwhile, or tasks contradict each other. What was
            committed before stays.
        """
        runner.check_reach(self.repository.storage)
        record = None
        pending = np.arange(len(work))
        snapshots: list[str] = []
        if self.job is not None:
            record = Record(self, self.job, work.keys())
            snapshots += record.begin()
            pending = record.pending()
        if self.resume:
            reader = self.repository.readonly_session(self.branch)
            pending = np.intersect1d(pending, work.missing(reader), assume_unique=True)
        run = _Run(self, work, record, len(work) - len(pending), snapshots)
        if run.skipped:
            _log.info("%d of %d are done, %d left", run.skipped, len(work), len(pending))
        progress = runner.progress
        progress.set(phase="writing", total=len(work), tasks=run.skipped, skipped=run.skipped)
        sizes = _Sizes(self.every, work.nbytes, runner.slots)
        with run.explained():
            with Pipeline(self, record, partial(self._commit, run, progress)) as pipeline:
                while len(pending):
                    units = pending[: sizes.next(pending)]
                    pending = pending[len(units) :]
                    started = time.monotonic()
                    session = pipeline.session()
                    graph = work.graph(session, units, split_every, runner.new_topic())
                    (part,) = runner.run(graph, of=work.title)
                    progress.set(phase="committing")
                    pipeline.add(units, part, session)
                    sizes.learn(part, time.monotonic() - started)
                    if len(pending):
                        progress.set(phase="writing")
            if record is not None and self.publish == "end":
                progress.set(phase="publishing")
                snapshots += record.publish()
        progress.set(phase="done", commits=len(snapshots))
        return Written.of(run.parts, run.skipped, snapshots, work.results(run.parts))

    def _commit(
        self, run: _Run, progress: Progress, units: Units, part: Part, changes: bytes, base: str
    ) -> str | None:
        session = self.repository.session_after_commit(self.branch, base)
        session.merge_change_sets([changes])
        changed = run.work.check(session, part)
        snapshots: list[str] = []
        if run.record is not None:
            snapshots = run.record.add(units, changes, base)
        elif changed:
            solver = self.rebase_with
            snapshots = [session.commit(self.message, self.metadata, rebase_with=solver)]
        run.parts.append(part)
        run.snapshots += snapshots
        progress.set(commits=len(run.snapshots))
        return snapshots[-1] if snapshots else None


@dataclass
class _Run:
    """What a call has done so far."""

    how: Committing
    work: Work
    record: Record | None
    skipped: int
    snapshots: list[str]
    parts: list[Part] = field(default_factory=list)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say in an error what is kept, and how to go on."""
        try:
            yield
        except BaseException as error:
            error.add_note(self._said())
            raise

    def _said(self) -> str:
        done = self.skipped + sum(part.tasks for part in self.parts)
        if self.record is not None:
            kept = "saved in" if self.how.publish == "end" else "committed by"
            return (
                f"{done} of {len(self.work)} are {kept} the job {self.how.job!r}; the same call "
                "goes on with the rest"
            )
        if done == self.skipped:
            return "nothing was committed"
        return (
            f"{done} of {len(self.work)} are committed to the branch {self.how.branch!r}; with "
            "job='a name' the same call would go on with the rest"
        )


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
    """Refuse options that only make sense for a commit.

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
        # nothing is known before the first batch, which gives every worker two tasks
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
        """Note what a batch was like, so that the next one is as large as the caller asked for."""
        every = self._every
        wanted: float = self._count
        if every.nbytes is not None:
            wanted = every.nbytes / max(part.nbytes, 1)
        elif every.seconds is not None:
            wanted = every.seconds / max(seconds, 1e-3)
        # one odd batch must not make the next a hundred times as large
        self._count = max(int(part.tasks * min(wanted, 8.0)), 1)


def _wrong(reason: str) -> InvalidInputError:
    return InvalidInputError(reason, ErrorKind.INVALID_COMMIT_CONFIGURATION)
