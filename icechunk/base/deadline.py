"""One limit for all that a call waits for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Deadline", "current", "seconds_left", "time_limit"]

#: Tests put a clock of their own here.
clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Deadline:
    """When to give up.

    Attributes
    ----------
    seconds : float
        The limit, as it was given.
    end : float
        By the clock of this module.
    """

    seconds: float
    end: float

    @property
    def left(self) -> float:
        """The time that is left, in seconds; not positive for none."""
        return self.end - clock()

    def __str__(self) -> str:
        return f"the time limit of {self.seconds:.3g} s has passed"


#: Threads and tasks begin with the one of whoever starts them.
_current: ContextVar[Deadline | None] = ContextVar("icechunk_time_limit", default=None)
_NEVER = Deadline(math.inf, math.inf)


def current() -> Deadline:
    """Return the deadline of this thread or task; one that never comes if there is no limit."""
    return _current.get() or _NEVER


def seconds_left() -> float:
    """Return how much longer to wait for anything; infinity without a limit."""
    return current().left


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Give up whatever waits when so many seconds have passed, while the block runs.

    One number for everything that a call waits for: requests with their retries, answers that
    come slowly, locks on files, the pauses before another attempt. What waits then fails with a
    `StorageError`, and nothing more is sent. A commit whose answer did not come in time fails with
    `OutcomeUnknownError`, and the next `commit` of the session finds out.

    Computing is not interrupted, and neither is a disk. The limit counts for this thread, and for
    threads and tasks that are started for it. Inside of another limit the earlier end counts.

    Parameters
    ----------
    seconds : float

    Raises
    ------
    ValueError
        If it is not a positive number.

    Examples
    --------
    >>> import icechunk
    >>> repo = icechunk.Repository.create(icechunk.in_memory_storage())
    >>> with icechunk.time_limit(60):
    ...     session = repo.readonly_session("main")
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(f"the time limit is {seconds!r}, expected a positive number of seconds")
    deadline = Deadline(seconds, clock() + seconds)
    token = _current.set(min(deadline, current(), key=lambda each: each.end))
    try:
        yield
    finally:
        _current.reset(token)
