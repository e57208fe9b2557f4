"""Whether an operation is quick enough to run without a thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["Pace"]

#: The weight of the newest time in the mean.
_WEIGHT: Final = 1 / 8
#: No time counts for more than this multiple of the limit: a single hitch says nothing.
_MOST: Final = 4
#: While it is slow, one in this many is tried.
_TRIES: Final = 64


class Pace:
    """How long an operation took recently.

    Reading a small file that the system has in memory takes less time than handing the task
    to a thread. On a network or a busy disk it takes more, and an event loop must not wait
    for it.

    Parameters
    ----------
    limit : float
        An operation is quick if it takes less than this, in seconds.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._mean = 0.0
        self._skipped = 0

    def is_quick(self) -> bool:
        """Whether to run it at once. If it is slow, say yes now and then, to measure again."""
        if self._mean < self._limit:
            return True
        self._skipped += 1
        if self._skipped < _TRIES:
            return False
        self._skipped = 0
        return True

    def note(self, seconds: float) -> None:
        """Record how long it took."""
        self._mean += (min(seconds, self._limit * _MOST) - self._mean) * _WEIGHT

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Record how long the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.note(time.perf_counter() - start)
