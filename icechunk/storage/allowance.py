"""How long an answer may take: its silence, and all of it."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["Allowance"]

#: In bytes per second: a line that stays slower than this is as good as dead.
_MIN_SPEED: Final = 1024


class Allowance:
    """How long an answer may take.

    Parameters
    ----------
    silence : float
        In seconds, between two parts of it.
    whole : float
        In seconds, for all of it.
    strict : bool
        Whether `whole` is the limit in any case. Otherwise a line that carries at least a
        kilobyte per second gets more time.
    """

    def __init__(self, silence: float, whole: float, *, strict: bool) -> None:
        self._silence, self._whole, self._strict = silence, whole, strict
        self._start = time.monotonic()
        self._received = 0

    def count(self, received: int) -> None:
        """Record that bytes have arrived."""
        self._received += received

    @property
    def left(self) -> float:
        """The remaining time if nothing more arrives, in seconds; not positive if there is none."""
        earned = 0.0 if self._strict else self._received / _MIN_SPEED
        return max(self._whole, earned) - (time.monotonic() - self._start)

    @property
    def is_spent(self) -> bool:
        """Whether no time is left."""
        return self.left <= 0

    def wait(self) -> float:
        """Return how long to wait for the next part, in seconds.

        Raises
        ------
        TimeoutError
            If no more time is left.
        """
        if self.is_spent:
            raise TimeoutError(
                f"the answer took more than {self._whole:g} seconds, {self._received} bytes were "
                "received"
            )
        left = self._whole - (time.monotonic() - self._start)
        return min(self._silence, left) if left > 0 else self._silence
