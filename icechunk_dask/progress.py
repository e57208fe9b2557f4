"""Progress of a write: counted where tasks end, reported at most ten times a second.

On a cluster the workers count, and report to the scheduler at most twice a second. Without
a cluster, Dask says in this process which task has ended. The last tasks of all are
known from the result. Nothing waits for progress.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dask.callbacks import Callback

from icechunk import InvalidInputError
from icechunk.base.texts import counted
from icechunk_dask.part import Part

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "LogLines",
    "Progress",
    "ProgressOption",
    "Status",
    "count",
    "progress_of",
    "terminal_bar",
]

_log: Final = logging.getLogger("icechunk_dask")
#: Seconds between two messages of a worker.
_SEND_EVERY: Final = 0.5
#: Seconds between two calls of a callback.
_TELL_EVERY: Final = 0.1


@dataclass(frozen=True, slots=True)
class Status:
    """How far a write has come.

    Attributes
    ----------
    phase : str
        ``"scanning"`` files, ``"writing"``, ``"merging"`` into the session,
        ``"committing"``, ``"publishing"`` a temporary branch, or ``"done"``.
    tasks, total : int
        Tasks that are done, and all tasks. Those that an earlier run has done count.
    chunks, nbytes : int
        Chunks stored, and their size in storage. A task that ran twice, because
        its worker died, counts twice.
    merged : int
        Change sets merged on the workers.
    retries : int
        How often a task failed while the others went on.
    commits : int
    skipped : int
        Tasks that an earlier run has done.
    seconds : float
        Since the call began.
    """

    phase: str = "writing"
    tasks: int = 0
    total: int = 0
    chunks: int = 0
    nbytes: int = 0
    merged: int = 0
    retries: int = 0
    commits: int = 0
    skipped: int = 0
    seconds: float = field(default=0.0, compare=False)

    @property
    def rate(self) -> float:
        """Tasks a second, in this call."""
        return (self.tasks - self.skipped) / self.seconds if self.seconds > 0 else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes stored a second."""
        return self.nbytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining(self) -> float | None:
        """Estimated seconds until the rest is done; None while unknown."""
        return (self.total - self.tasks) / self.rate if self.rate > 0 else None

    def __str__(self) -> str:
        return f"{self.phase}: {self.tasks:,} of {counted(self.total, 'task')}, {_words(self)}"


ProgressOption: TypeAlias = bool | Callable[[Status], object] | None


class Progress:
    """Counts, and tells.

    Parameters
    ----------
    tell : callable, optional
        Gets a `Status`. With None, nobody listens.
    """

    def __init__(self, tell: Callable[[Status], object] | None = None) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._told = 0.0
        self._later: threading.Timer | None = None
        self._single = False
        self._thread = threading.get_ident()
        self._error: BaseException | None = None
        self._began = time.monotonic()
        self.status = Status()

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return self._tell is not None

    def set(self, **values: Any) -> None:
        """Replace values of the status, and report it.

        Raises
        ------
        BaseException
            What the listener raised in a thread of a timer or a client, where it would be lost.
        """
        with self._lock:
            if self._error is not None and threading.get_ident() == self._thread:
                error, self._error = self._error, None
                raise error
            self.status = replace(self.status, **values)
            self._say()

    def add(self, counts: Mapping[str, int]) -> None:
        """Add to values of the status, and report it if it is time."""
        with self._lock:
            now = {name: getattr(self.status, name) + n for name, n in counts.items()}
            now["tasks"] = min(now.get("tasks", self.status.tasks), self.status.total)
            self.status = replace(self.status, **now)
            rest = self._told + _TELL_EVERY - time.monotonic()
            if rest <= 0:
                self._say()
            elif self._tell is not None and self._later is None:
                # the next task may take hours
                self._later = threading.Timer(rest, self._say_now)
                self._later.daemon = True
                self._later.start()

    def _say_now(self) -> None:
        with self._lock:
            if self._later is not None:
                self._say()

    def _say(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._tell is not None and self._error is None:
            self._told = time.monotonic()
            self.status = replace(self.status, seconds=self._told - self._began)
            try:
                self._tell(self.status)
            except BaseException as error:
                if threading.get_ident() == self._thread:
                    raise
                self._error = error

    @contextmanager
    def watching(self, client: Any, topic: str | None) -> Iterator[None]:
        """Count what happens while the block runs.

        Parameters
        ----------
        client : distributed.Client or None
        topic : str or None
            What the workers of the client send their counts to.
        """
        if not self.wanted:
            yield
        elif topic is not None:
            client.subscribe_topic(topic, lambda event: self.add(event[1]["counts"]))
            try:
                yield
            finally:
                client.unsubscribe_topic(topic)
        else:
            with Callback(posttask=self._ended):
                yield

    def _ended(self, key: Any, result: Any, *_: Any) -> None:
        if not (isinstance(result, Part) and isinstance(key, tuple)):
            return
        kind = str(key[0])
        if kind.startswith(("icechunk-write", "icechunk-item")):
            self._single = True
            self.add(counts_of(result))
        elif kind.startswith("icechunk-group") and not self._single:
            # one task did the work for all of its blocks
            self.add(counts_of(result))
        else:
            self.add({"merged": result.fan_in})


def counts_of(part: Part) -> dict[str, int]:
    """Return what a part adds to a `Status`."""
    return {"tasks": part.tasks, "chunks": part.chunks, "nbytes": part.nbytes}


# -- on a worker -----------------------------------------------------------------------------
class _Outbox:
    """What a worker has counted for one topic and not sent yet."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._waits = False
        self._sent = -_SEND_EVERY

    def add(self, worker: Any, counts: Mapping[str, int]) -> None:
        """Count; send now, or later when it is time."""
        with self._lock:
            for name, n in counts.items():
                self._counts[name] = self._counts.get(name, 0) + n
            rest = self._sent + _SEND_EVERY - time.monotonic()
            if rest > 0 and not self._waits:
                self._waits = True
                # the next task may take hours
                worker.loop.add_callback(worker.loop.call_later, rest, self._send, worker)
            if rest > 0:
                return
        self._send(worker)

    def _send(self, worker: Any) -> None:
        with self._lock:
            counts, self._counts, self._waits = self._counts, {}, False
            self._sent = time.monotonic()
        if counts:
            # in a dict of their own: the scheduler adds the worker to the dict that it gets
            worker.log_event(self._topic, {"counts": counts})


#: Of the newest jobs.
_outboxes: Final[dict[str, _Outbox]] = {}
_boxing: Final = threading.Lock()


def count(topic: str | None, counts: Mapping[str, int]) -> None:
    """Count on a worker of a cluster; elsewhere, or without a topic, do nothing."""
    if topic is None:
        return
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return
    with _boxing:
        outbox = _outboxes.setdefault(topic, _Outbox(topic))
        for old in list(_outboxes)[:-8]:
            del _outboxes[old]
    outbox.add(worker, counts)


# -- to be seen ------------------------------------------------------------------------------
@contextmanager
def progress_of(option: ProgressOption) -> Iterator[Progress]:
    """Return the listener that an argument `progress` asks for.

    Parameters
    ----------
    option : bool, callable or None
        A bar, none, or a function that gets a `Status`. None means a bar in a terminal or
        a notebook, and elsewhere a line in the log each minute, at level INFO.
    """
    was_open = option is None
    if option is None:
        # without rich, a bar that nobody asked for must not fail
        option = _in_notebook() or (sys.stderr.isatty() and find_spec("rich") is not None)
    if option is False and was_open and _log.isEnabledFor(logging.INFO):
        option = LogLines()
    if callable(option):
        shown: Any = nullcontext(option)
    elif not isinstance(option, bool):
        raise InvalidInputError(f"progress must be True, False, None or a function, not {option!r}")
    elif not option:
        shown = nullcontext(None)
    else:
        shown = _notebook_bar() if _in_notebook() else terminal_bar()
    with shown as tell:
        yield Progress(tell)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


class LogLines:
    """Logs how far a write has come: when a phase begins, and each minute.

    Parameters
    ----------
    every : float
        Seconds.
    """

    def __init__(self, every: float = 60.0) -> None:
        self._every = every
        self._next = every

    def __call__(self, status: Status) -> None:
        """Log it, if it is time."""
        if status.phase == "done" or status.seconds >= self._next:
            self._next = status.seconds + self._every
            _log.info("%s", status)


def _words(status: Status) -> str:
    words = f"{counted(status.chunks, 'chunk')}, {_bytes(status.nbytes)}, {status.merged:,} merged"
    if status.nbytes and status.seconds >= 1:
        words += f", {_bytes(status.bytes_per_second)}/s"
    if status.remaining and status.seconds >= 1 and status.phase != "done":
        words += f", {_time(status.remaining)} left"
    if status.commits:
        words += f", {counted(status.commits, 'commit')}"
    if status.retries:
        words += f", {counted(status.retries, 'retry', 'retries')}"
    return words


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} s"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


@contextmanager
def terminal_bar(console: Console | None = None) -> Iterator[Callable[[Status], object]]:
    """Draw a bar while the block runs, by default on the standard error stream."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress as Bars,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console or Console(stderr=True), refresh_per_second=5) as bars:
        task = bars.add_task("writing", total=None, words="")

        def tell(status: Status) -> None:
            bars.update(
                task,
                description=status.phase,
                completed=status.tasks,
                total=status.total,
                words=_words(status),
            )

        yield tell


@contextmanager
def _notebook_bar() -> Iterator[Callable[[Status], object]]:
    from IPython.display import HTML, display

    def page(status: Status) -> Any:
        bar = f"<progress value='{status.tasks}' max='{max(status.total, 1)}'></progress>"
        return HTML(f"{status.phase} {bar} {status.tasks:,}/{status.total:,}: {_words(status)}")

    handle = display(page(Status()), display_id=True)
    last, shown = Status(), 0.0

    def tell(status: Status) -> None:
        nonlocal last, shown
        # every message goes to the browser and into the notebook's file
        due = status.phase != last.phase or time.monotonic() - shown > 0.5
        last = status
        if due:
            shown = time.monotonic()
            handle.update(page(status))

    try:
        yield tell
    finally:
        handle.update(page(last))
