"""Results of the parts of a job, and its progress: for display and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from icechunk.base.display import Displayed
from icechunk.base.html import card, section, table
from icechunk.base.texts import counted
from icechunk.base.visible import in_a_line

__all__ = ["FailedPart", "JobStatus", "PartResult", "RunningPart"]

#: The number of keys that a table shows.
_SHOWN = 10


@dataclass(frozen=True)
class PartResult(Displayed):
    """What one run of a part did.

    Attributes
    ----------
    key : JSON value
    ran : bool
        Whether the function was called. It is not if the part was already done.
    counts : bool
        Whether the job keeps what it wrote. False if another run of the part was faster.
    attempt : int
        From 1 on; 0 if it did not run.
    chunks, nbytes : int
        Chunks written, and their size as stored.
    result : object
        What the function returned.

    Examples
    --------
    >>> job = repo.jobs.create("backfill", keys=[2, 3], message="Two more rows")
    >>> [part.ran for part in job.run(lambda store, key: None, keys=[2])]
    [True]
    """

    key: Any
    ran: bool = False
    counts: bool = False
    attempt: int = 0
    chunks: int = 0
    nbytes: int = 0
    result: Any = None


@dataclass(frozen=True)
class RunningPart(Displayed):
    """A part that somebody has begun but not finished.

    Attributes
    ----------
    key : JSON value
    attempt : int
        From 1 on.
    since : str
        ISO 8601, in UTC, by the clock of that machine.
    host : str
    pid : int
        The process.
    seen : str
        Its last sign of life, by the clock of the storage.
    looks_dead : bool
        Whether that is longer ago than the lease. Any process may then run the part again. If the
        first one is alive after all, the one that finishes first counts.
    """

    key: Any
    attempt: int
    since: str
    host: str
    pid: int
    seen: str = ""
    looks_dead: bool = False


@dataclass(frozen=True)
class FailedPart(Displayed):
    """A part whose newest attempt failed.

    Attributes
    ----------
    key : JSON value
    attempts : int
    error : str
        Type and message of the exception.
    traceback : str
    ended : str
        ISO 8601, in UTC.
    host : str
    """

    key: Any
    attempts: int
    error: str
    traceback: str
    ended: str
    host: str


@dataclass(frozen=True)
class JobStatus(Displayed):
    """The progress of a job.

    Attributes
    ----------
    name, branch : str
    state : {"open", "finished", "cancelled"}
    total : int or None
        Number of keys; None if more may come at any time.
    done : list
        Keys whose parts are done, committed or not.
    committed : int
        How many of these are committed.
    running : list of RunningPart
    failed : list of FailedPart
    missing : list
        Keys that nobody has begun. In no particular order if the job was created without keys.
    commits : list of str
        Ids of the snapshots, oldest first.

    Examples
    --------
    >>> job = repo.jobs.create("backfill", keys=[2, 3], message="Two more rows")
    >>> job.status().is_complete
    False
    """

    name: str
    branch: str
    state: str
    total: int | None
    done: list[Any]
    committed: int
    running: list[RunningPart]
    failed: list[FailedPart]
    missing: list[Any]
    commits: list[str]

    @property
    def is_complete(self) -> bool:
        """Whether every part is done."""
        return self.total is not None and len(self.done) == self.total

    @property
    def left(self) -> list[Any]:
        """Remaining keys: those that are missing, have failed, or look dead."""
        dead = [part.key for part in self.running if part.looks_dead]
        return [*self.missing, *(part.key for part in self.failed), *dead]

    def said_of_dead(self) -> str:
        """Return a sentence about the parts that look dead, if there are any."""
        dead = [part for part in self.running if part.looks_dead]
        if not dead:
            return ""
        said = [f"{part.key!r} at {part.host} since {part.seen[:19]}Z" for part in dead]
        return f". No sign of life of {_few(said)}: run(func, keys=job.status().left) takes them up"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as values that JSON can express."""
        return asdict(self)

    def _rows(self) -> list[tuple[str, int, str]]:
        running = [
            f"{p.key!r} since {p.since[:19]}Z at {p.host}" for p in self.running if not p.looks_dead
        ]
        dead = [
            f"{p.key!r} at {p.host}, pid {p.pid}, last seen {p.seen[:19]}Z"
            for p in self.running
            if p.looks_dead
        ]
        failed = [
            f"{p.key!r} ({p.attempts} time{'s' * (p.attempts != 1)}): {p.error}"
            for p in self.failed
        ]
        return [
            ("done", len(self.done), f"{self.committed} of them committed"),
            ("running", len(running), _few(running)),
            *([("looks dead", len(dead), _few(dead))] if dead else []),
            ("failed", len(failed), _few(failed)),
            ("missing", len(self.missing), _few([repr(key) for key in self.missing])),
        ]

    def _title(self) -> str:
        of = f", {counted(self.total, 'part')}" if self.total is not None else ""
        return in_a_line(f"{self.name}, on branch {self.branch!r}: {self.state}{of}")

    def __repr__(self) -> str:
        lines = [f"<icechunk.JobStatus> {self._title()}"]
        for what, count, details in self._rows():
            lines.append(f"{what:10} {count:6}  {details}".rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        errors = [(repr(part.key), part.attempts, part.error, part.host) for part in self.failed]
        return card(
            "JobStatus",
            self._title(),
            table(("", "parts", ""), self._rows()),
            section("Errors", table(("part", "attempts", "error", "host"), errors)),
            section("Commits", table(("snapshot",), [(id,) for id in self.commits])),
        )


def _few(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(map(in_a_line, texts[:_SHOWN])) + more
