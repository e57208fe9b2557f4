"""One job: its parts, their commits, and its progress."""

from __future__ import annotations

import copy
import json
import operator
import os
import platform
import threading
import traceback
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from icechunk.base.display import Displayed
from icechunk.base.texts import counted
from icechunk.base.time_limits import Heartbeat, call_within
from icechunk.commit.conflicts import ConflictDetector, ConflictSolver
from icechunk.errors import InvalidInputError, SessionStateError, StorageError, TaskError
from icechunk.repository.jobs_progress import JobProgress
from icechunk.repository.jobs_publish import Host, Publisher, some
from icechunk.repository.jobs_records import (
    LEASE,
    Attempt,
    Definition,
    JobFiles,
    Part,
    canonical,
    closing,
    digest_of,
    now,
)
from icechunk.repository.jobs_status import FailedPart, JobStatus, PartResult, RunningPart

if TYPE_CHECKING:
    from icechunk.store import IcechunkStore

__all__ = ["Job", "check_distinct", "listed_keys"]

#: How a commit continues if the branch has moved: refuse only if both wrote the same.
_DETECT = ConflictDetector()


class Job(Displayed):
    """A write in many parts. Made by `Repository.jobs`.

    It pickles if the repository does, and holds no state that others change.

    Examples
    --------
    >>> job = repo.jobs.create("backfill", keys=[2, 3], message="Two more rows")
    >>> job.status().missing
    [2, 3]
    """

    def __init__(self, repository: Host, files: JobFiles, definition: Definition) -> None:
        self._repository = repository
        self._files = files
        self._definition = definition
        self._publisher = Publisher(repository, files, definition)

    # -- what it is --------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """The name of the job."""
        return self._definition.name

    @property
    def branch(self) -> str:
        """The branch to which it commits."""
        return self._definition.branch

    @property
    def keys(self) -> list[Any] | None:
        """The keys of its parts, in the order given; None if any key is allowed."""
        keys = self._definition.keys
        return None if keys is None else list(keys)

    @property
    def about(self) -> dict[str, Any]:
        """What `Jobs.create` recorded about it."""
        return copy.deepcopy(self._definition.about or {})

    def differences(self, other: Definition) -> Sequence[str]:
        """Return the names of what differs in another definition."""
        mine = self._definition
        pairs = {
            "branch": (mine.branch, other.branch),
            "message": (mine.message, other.message),
            "metadata": (json.dumps(mine.metadata), json.dumps(other.metadata)),
            "keys": (_texts(mine.keys), _texts(other.keys)),
            "about": (mine.about, other.about),
        }
        return [name for name, (one, another) in pairs.items() if one != another]

    def __repr__(self) -> str:
        keys = self._definition.keys
        parts = "" if keys is None else f", {counted(len(keys), 'part')}"
        return f"<icechunk.Job {self.name!r} on branch {self.branch!r}{parts}>"

    # -- running parts -----------------------------------------------------------------------
    def run(
        self,
        func: Callable[[IcechunkStore, Any], Any],
        index: int | None = None,
        *,
        keys: Iterable[Any] | None = None,
        retries: int = 0,
        timeout: float | None = None,
        lease: float = LEASE,
    ) -> list[PartResult]:
        """Run parts in this process, unless they are done.

        Any process may run any part at any time, and several may run the same one: the first
        that finishes counts. Parts must not write the same chunks.

        Parameters
        ----------
        func : callable
            Called as ``func(store, key)`` with a store of its own.
        index : int, optional
            Position of a key in `Job.keys`: the number of this process in a job array.
        keys : iterable of JSON values, optional
            Several keys, run one after another. Keys after one that failed are still run.
            Exactly one of `index` and `keys` is needed. ``keys=job.status().left`` takes up all
            that nobody runs, or that look dead.
        retries : int
            How often a failed part is retried at once.
        timeout : float, optional
            Seconds after which a part is given up as failed. Its function then runs in a thread
            of its own, which nothing can stop: what it still writes is in no version.
        lease : float
            Seconds. A part gives three signs of life in each such period; one without any for
            this long looks dead in `status`, with the time and the host.

        Returns
        -------
        list of PartResult
            One for each key.

        Raises
        ------
        TaskError
            If the function failed. It names the key, and its cause is the original error. The
            part can be run again.
        InvalidInputError
            If the job has no such key.
        SessionStateError
            If the job was cancelled; or closed or deleted while the part ran, which is then lost.
        """
        if not callable(func):
            raise InvalidInputError(f"func is {func!r}, it must be a function of store and key")
        timeout = None if timeout is None else _seconds("timeout", timeout)
        lease = _seconds("lease", lease)
        if retries < 0:
            raise InvalidInputError(f"retries is {retries!r}, it must not be negative")
        chosen = self._chosen(index, keys)
        if closing(self._files.log()) == "cancelled":
            raise SessionStateError(f"the job {self.name!r} was cancelled; create another one")
        results, errors = [], []
        for number, (key, text) in enumerate(chosen):
            if number:
                # others run parts, too
                self._files.log()
            if text in self._files.committed or self._files.has_part(digest_of(text)):
                results.append(PartResult(key))
                continue
            for left in range(retries, -1, -1):
                try:
                    results.append(self._run_one(func, key, timeout, lease))
                    break
                except TaskError as error:
                    if not left:
                        errors.append(error)
        if errors:
            if len(errors) > 1:
                errors[0].add_note(
                    f"{counted(len(errors) - 1, 'other key')} of this call failed, too"
                )
            raise errors[0]
        return results

    def _chosen(self, index: int | None, keys: Iterable[Any] | None) -> list[tuple[Any, str]]:
        if (index is None) == (keys is None):
            raise InvalidInputError("run takes either the index of a key or keys=")
        known = self._definition.keys
        if keys is not None:
            texts = self.texts_of(listed_keys(keys))
            return [(json.loads(text), text) for text in texts]
        if known is None:
            raise InvalidInputError(
                f"the job {self.name!r} was created without keys; run it with keys="
            )
        try:
            number = -1 if isinstance(index, bool) else operator.index(index)  # type: ignore[arg-type]
        except TypeError:
            number = -1
        if not 0 <= number < len(known):
            raise InvalidInputError(
                f"index is {index!r}; the job {self.name!r} has {counted(len(known), 'part')}, "
                f"counted from 0"
            )
        return [(known[number], canonical(known[number]))]

    def _run_one(
        self,
        func: Callable[[IcechunkStore, Any], Any],
        key: Any,
        timeout: float | None,
        lease: float,
    ) -> PartResult:
        text = canonical(key)
        base = self._definition.base or self._repository.lookup_branch(self.branch)
        attempt = self._files.begin(
            Attempt(key, 1, base, now(), platform.node() or "unknown", os.getpid(), lease=lease)
        )
        try:
            fork = self._repository.session_after_commit(self.branch, base).fork()
            with Heartbeat(lease / 3, partial(self._files.is_alive, attempt)):
                # a copy of the key: what the function does to it changes no record
                result = call_within(timeout, func, fork.store, json.loads(text))
            changes = fork.array_changes()
            data = fork.change_set_bytes()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
            noted = replace(attempt, ended=now(), error=said, traceback=traceback.format_exc())
            # an interrupt waits for no further request, and a storage error must not hide the cause
            if not isinstance(error, KeyboardInterrupt):
                with suppress(StorageError):
                    self._files.note(noted)
            if not isinstance(error, Exception):
                raise
            raise TaskError(f"the part {text} of the job {self.name!r} failed: {said}") from error
        part = Part(
            keys=[key],
            base=base,
            attempt=attempt.number,
            started=attempt.started,
            ended=now(),
            host=attempt.host,
            pid=attempt.pid,
            chunks=sum(change.stored for change in changes),
            nbytes=sum(change.nbytes for change in changes),
            token=uuid.uuid4().hex,
            change_set=data,
        )
        counts = self._leave(part, text)
        self._files.forget(attempt)
        return PartResult(key, True, counts, attempt.number, part.chunks, part.nbytes, result)

    def _leave(self, part: Part, text: str) -> bool:
        """Leave a part for whoever commits it; return whether it counts.

        Raises
        ------
        SessionStateError
            If nobody will, because the job was closed or deleted meanwhile.
        """
        files = self._files
        closed, counts = closing(files.log()), False
        if closed is None and text not in files.committed:
            counts = files.put_part(part)
            # whoever closes the job after this sees the part
            closed = closing(files.log())
        if not files.exists():
            closed = "deleted"
            files.delete_all_of_this()
        if text in files.committed and closed != "deleted":
            return counts
        if closed is not None:
            files.delete_parts([files.part_name(part.keys)])
            raise SessionStateError(
                f"the job {self.name!r} was {closed} while the part {text} ran: what it wrote is "
                "in no version, and is dropped"
            )
        return counts

    def add_part(self, keys: Sequence[Any], change_set: bytes, base: str) -> bool:
        """Add what was done elsewhere: for engines that run parts in their own way.

        Parameters
        ----------
        keys : sequence of JSON values
            All keys that it did.
        change_set : bytes
            From `Session.change_set_bytes`.
        base : str
            Id of the snapshot that the changes were made on.

        Returns
        -------
        bool
            Whether it was the first for all of these keys.
        """
        if not self.done().isdisjoint(self.texts_of(keys)):
            return False
        when = now()
        part = Part(
            keys=list(keys),
            base=base,
            attempt=1,
            started=when,
            ended=when,
            host=platform.node() or "unknown",
            pid=os.getpid(),
            chunks=0,
            nbytes=0,
            token=uuid.uuid4().hex,
            change_set=change_set,
        )
        return self._files.put_part(part)

    def drop_part(self, keys: Sequence[Any]) -> None:
        """Drop what `add_part` added, unless it is committed.

        Parameters
        ----------
        keys : sequence of JSON values
            The same as were passed then.
        """
        self._files.delete_parts([self._files.part_name(list(keys))])

    # -- committing --------------------------------------------------------------------------
    def publish(
        self,
        *,
        rebase_with: ConflictSolver | None = _DETECT,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Commit the parts that are done and not committed yet.

        Any process may call this, and several at the same time: each part is committed once. A
        commit that another process has begun is finished first.

        Parameters
        ----------
        rebase_with : ConflictSolver or None
            What to do if others have committed in the meantime. Default: refuse if they changed the
            same, otherwise continue. None refuses whenever the branch has moved.
        message, metadata : optional
            For the commits. Default: those of the job.

        Returns
        -------
        list of str
            Ids of the commits that this call made or finished.

        Raises
        ------
        ConflictError
            If two parts, or a part and somebody else's commit, wrote the same. Nothing is
            committed.
        SessionStateError
            If the branch was reset or deleted, and lost a commit of the job.
        """
        self._publisher.check_history()
        return self._publisher.publish(rebase_with, message, metadata)

    def finish(self, *, rebase_with: ConflictSolver | None = _DETECT) -> str | None:
        """Commit what is left, and close the job. Several processes may call it, repeatedly.

        Parameters
        ----------
        rebase_with : ConflictSolver or None
            See `publish`.

        Returns
        -------
        str or None
            Id of the newest commit of the job; None if its parts changed nothing.

        Raises
        ------
        SessionStateError
            If a part is not done, the job was cancelled, or the branch has lost a commit of it.
        ConflictError
            See `publish`. The job stays open, and its parts are kept.
        """
        self._publisher.check_history()
        while True:
            if closing(self._files.log()) is None:
                self._check_complete()
                self._publisher.publish(rebase_with)
            if self._publisher.close("finished") == "cancelled":
                raise SessionStateError(f"the job {self.name!r} was cancelled; create another one")
            if not self._publisher.reopen_for_late():
                break
        self._files.clean()
        commits = [entry.snapshot for entry in self._files.log() if entry.snapshot is not None]
        return commits[-1] if commits else None

    def _check_complete(self) -> None:
        status = self.status()
        left = [p.key for p in status.running] + [p.key for p in status.failed] + status.missing
        if status.total is not None and left:
            verb = "is" if len(left) == 1 else "are"
            raise SessionStateError(
                f"the job {self.name!r} is not done: {len(left)} of "
                f"{counted(status.total, 'part')} {verb} "
                f"left, {some(map(canonical, left))}; run them, or publish() what is there"
                f"{status.said_of_dead()}"
            )

    def give_up_commit(self) -> bool:
        """Drop the pending commit and its parts, if it can never take place.

        For use after `publish` has raised a `ConflictError`: the parts must be run again, on top of
        what others have committed.

        Returns
        -------
        bool
            Whether nothing is pending any more. False if another process may still
            commit it.
        """
        return self._publisher.give_up()

    def cancel(self) -> None:
        """End the job. What is not committed is dropped, and nobody can run parts any more.

        A commit that has begun is finished, if possible.

        Raises
        ------
        SessionStateError
            If the job is finished.
        """
        if self._publisher.close("cancelled") == "finished":
            raise SessionStateError(f"the job {self.name!r} is finished, and all is committed")
        self._files.clean()

    def check_history(self) -> None:
        """Refuse to continue if the branch has lost commits of the job.

        Raises
        ------
        SessionStateError
            If the branch was reset or deleted after the newest commit of the job, and does
            not have it.
        """
        self._publisher.check_history()

    # -- how far it is -----------------------------------------------------------------------
    def committed(self) -> set[str]:
        """Return the keys that are committed, as JSON without spaces."""
        self._files.log()
        return set(self._files.committed)

    def done(self) -> set[str]:
        """Return the keys that are done, committed or not, as JSON without spaces."""
        # in this order: a part is deleted once it is in the log
        names = self._files.part_names()
        committed = self.committed()
        waiting = self._files.part_keys(names - self._files.committed_digests)
        return committed | set(map(canonical, waiting))

    def waiting_base(self) -> str | None:
        """Return the snapshot that uncommitted parts are based on; None if there are none."""
        names = self._files.part_names()
        self._files.log()
        parts = self._files.parts(sorted(names - self._files.committed_digests))
        return parts[0].base if parts else None

    def texts_of(self, keys: Sequence[Any]) -> list[str]:
        """Return keys as JSON without spaces, if the job can have parts with them.

        Raises
        ------
        InvalidInputError
            If a key is not a JSON value, is repeated, or is not among the keys of the job.
        """
        texts = _texts(keys)
        check_distinct(texts)
        if self._definition.keys is not None:
            unknown = set(texts) - set(_texts(self._definition.keys))
            if unknown:
                raise InvalidInputError(f"the job {self.name!r} has no part with {some(unknown)}")
        return texts

    def progress(self, every: float = 5.0) -> JobProgress:
        """Return a bar and the status, which follow the job in a notebook.

        Any notebook can show it at any time, even after reconnecting, whoever runs the
        parts.

        Parameters
        ----------
        every : float
            Seconds between reads of the records of the job.
        """
        return JobProgress(self.status, every)

    def status(self) -> JobStatus:
        """Return what is done, running, failed and missing."""
        begun = self._files.attempt_names()
        names = self._files.part_names()
        log = self._files.log()
        committed = self._files.committed
        keys = self._definition.keys
        done = committed | {text for text in _texts(keys) if digest_of(text) in names}
        if keys is None or any(name.startswith("some-") for name in names):
            done |= self.done()
        finished = set(map(digest_of, done))
        newest = {digest: max(found) for digest, found in sorted(begun.items())}
        attempts = self._files.attempts(
            (digest, found.number) for digest, found in newest.items() if digest not in finished
        )
        running = [
            self._running(a, newest[digest_of(canonical(a.key))].seen)
            for a in attempts
            if a.ended is None
        ]
        failed = [
            FailedPart(a.key, a.number, a.error or "", a.traceback or "", a.ended, a.host)
            for a in attempts
            if a.ended is not None
        ]
        seen = done | {canonical(a.key) for a in attempts}
        order = done if keys is None else [text for text in _texts(keys) if text in done]
        return JobStatus(
            name=self.name,
            branch=self.branch,
            state=closing(log) or "open",
            total=None if keys is None else len(keys),
            done=[json.loads(text) for text in order],
            committed=len(committed),
            running=running,
            failed=failed,
            missing=[json.loads(text) for text in _texts(keys) if text not in seen],
            commits=[entry.snapshot for entry in log if entry.snapshot is not None],
        )

    @staticmethod
    def _running(attempt: Attempt, seen: datetime) -> RunningPart:
        dead = (datetime.now(UTC) - seen).total_seconds() > attempt.lease
        last = seen.astimezone(UTC).isoformat(timespec="microseconds")
        a = attempt
        return RunningPart(a.key, a.number, a.started, a.host, a.pid, last, dead)


def _seconds(name: str, value: Any) -> float:
    """Return a time that threads can wait; refuse all else."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise InvalidInputError(f"{name} must be a number of seconds, not {value!r}")
    return seconds


def _texts(keys: Sequence[Any] | None) -> list[str]:
    return [canonical(key) for key in keys or ()]


def listed_keys(keys: Iterable[Any]) -> list[Any]:
    """Return keys as a list; refuse a single key."""
    if isinstance(keys, str | bytes | Mapping):
        raise InvalidInputError(f"keys must be a list of keys such as [{keys!r}], not {keys!r}")
    return list(keys)


def check_distinct(texts: Sequence[str]) -> None:
    """Refuse repeated keys."""
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise InvalidInputError(f"the key {text} occurs twice; each part needs its own")
        seen.add(text)
