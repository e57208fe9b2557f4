"""Signs of life that scanners give, and what listens to them.

Python cannot interrupt a library that computes without an end. So whoever scans in a
process of its own (`apart.py`) limits the time from one sign to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["listen", "step"]

_listener: Callable[[int], Any] | None = None


def step(size: int = 0) -> None:
    """Say that a scan goes on. This costs next to nothing.

    Parameters
    ----------
    size : int
        Bytes that may be read before the next sign, such as those of a file that is opened.
    """
    if _listener is not None:
        _listener(size)


def listen(listener: Callable[[int], Any]) -> None:
    """Have a function called at each sign of this process."""
    global _listener
    _listener = listener
