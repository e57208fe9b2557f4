"""How long to wait before something is tried again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from icechunk.base import deadline
from icechunk.config.storage_settings import EffectiveRetries
from icechunk.errors import StorageError

#: Tests put functions of their own here.
sleep: Callable[[float], None] = time.sleep
clock: Callable[[], float] = time.monotonic

#: Larger exponents say no more than the longest pause does.
_MAX_EXPONENT: Final = 30


def pause(seconds: float) -> None:
    """Wait, but not longer than a time limit allows.

    Raises
    ------
    StorageError
        If no time is left.
    """
    limit = deadline.current()
    if limit.left <= 0:
        raise StorageError(f"gave up: {limit}; a longer one can be set with icechunk.time_limit")
    sleep(min(seconds, limit.left))


class Backoff:
    """Pauses between the attempts of one writer, with full jitter.

    Who lost to others waits for about as long as all of them take for one attempt each, so
    that pauses grow with the crowd and not with bad luck. Who failed for another reason
    waits twice as long each time.

    Parameters
    ----------
    retries : EffectiveRetries
    """

    def __init__(self, retries: EffectiveRetries) -> None:
        self._retries = retries
        self._failures = 0
        self._began = clock()

    def longest(self, crowd: int) -> float:
        """Return the longest pause that may come next, in seconds.

        Parameters
        ----------
        crowd : int
            Changes that others published during the last attempt; 0 if it failed for another
            reason.
        """
        exponent = min(max(self._failures - 1, 0), _MAX_EXPONENT)
        doubled = float(self._retries.initial_backoff_ms) * 2.0**exponent
        seconds = min(doubled, self._retries.max_backoff_ms) / 1000
        return min(seconds, crowd * (clock() - self._began)) if crowd else seconds

    def pause(self, crowd: int) -> None:
        """Wait before the next attempt."""
        self._failures += 1
        pause(random.uniform(0, self.longest(crowd)))
        self._began = clock()
