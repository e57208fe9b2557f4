"""Whether an operation is quick enough to be done without a thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["Pace"]

#: How much the newest time counts in the mean.
_WEIGHT: Final = 1 / 8
#: No time counts for more than so many times the limit: one hitch says nothing.
_MOST: Final = 4
#: While it is slow, one in so many is tried.
_TRIES: Final = 64


class Pace:
    """How long something took lately.

    A small file that the system has in memory is read in less time than it takes to hand
    that to a thread. On a network or a busy disk it is not, and an event loop must not wait
    for it.

    Parameters
    ----------
    limit : float
        What is quick takes less, in seconds.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._mean = 0.0
        self._skipped = 0

    def is_quick(self) -> bool:
        """Say whether to do it at once. If it is slow, now and then yes, to see."""
        if self._mean < self._limit:
            return True
        self._skipped += 1
        if self._skipped < _TRIES:
            return False
        self._skipped = 0
        return True

    def note(self, seconds: float) -> None:
        """Note how long it took."""
        self._mean += (min(seconds, self._limit * _MOST) - self._mean) * _WEIGHT

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Note how long the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.note(time.perf_counter() - start)
