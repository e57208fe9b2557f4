"""Work in threads that ends at once when the one who waits for it is interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: What threads are waiting for, by their number; cancelled when nobody wants it any more.
_waiting: dict[int, Future[Any]] = {}


class Interruptible:
    """Notes what this thread waits for while the block runs.

    Parameters
    ----------
    future : Future
        Is cancelled if the thread works for somebody who is interrupted.
    """

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def __enter__(self) -> None:
        _waiting[threading.get_ident()] = self._future

    def __exit__(self, *_: object) -> None:
        _waiting.pop(threading.get_ident(), None)


def map_in_threads(function: Callable[[T], R], items: Sequence[T], limit: int) -> list[R]:
    """Return what a function makes of each item, several at the same time.

    Parameters
    ----------
    function : callable
    items : sequence
        A single one is done at once.
    limit : int
        Threads at most.

    Raises
    ------
    BaseException
        What the function raises first, or an interrupt of this thread: then what the others
        are waiting for is cancelled.
    """
    if len(items) < 2:
        return [function(item) for item in items]
    numbers: set[int] = set()

    def work(item: T) -> R:
        numbers.add(threading.get_ident())
        return function(item)

    with ThreadPoolExecutor(min(limit, len(items))) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for number in numbers:
                waited = _waiting.get(number)
                if waited is not None:
                    waited.cancel()
            raise
