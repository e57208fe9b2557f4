"""Calls that are given up after some time, and signs of life."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["Heartbeat", "call_within"]

R = TypeVar("R")


def call_within(seconds: float | None, function: Callable[..., R], *args: Any) -> R:
    """Call a function, and give up if it takes too long.

    Python cannot stop a thread. A call that was given up runs on until its function returns or
    the process ends, and its result is lost.

    Parameters
    ----------
    seconds : float or None
        With None, call the function in this thread and wait for it.

    Raises
    ------
    TimeoutError
    """
    if seconds is None:
        return function(*args)
    results: list[R] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function(*args))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True, name="icechunk-limited")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"it did not end within {seconds:g} seconds")
    return results[0]


class Heartbeat:
    """Calls a function at regular times while the block runs.

    Parameters
    ----------
    seconds : float
    function : callable
        Any error that it raises is ignored: the next call may succeed.
    """

    def __init__(self, seconds: float, function: Callable[[], object]) -> None:
        self._seconds = seconds
        self._function = function
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="icechunk-alive")

    def _beat(self) -> None:
        while not self._end.wait(self._seconds):
            try:
                self._function()
            except Exception:
                continue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        # after Ctrl-C nobody waits for a call that a silent server keeps
        if kind is None or issubclass(kind, Exception):
            self._thread.join()
