"""Work in threads that stops at once when the caller who waits for it is interrupted."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: A signal that arrives when the main thread is about to wait does not end the wait, because Python
#: looks for signals before it. So no wait is longer than this, in seconds.
AT_ONCE: Final = 0.5
#: What threads are waiting for, by thread number. It is cancelled when nobody wants it any more.
_waiting: dict[int, Future[Any]] = {}
#: Threads that must not wait for anything any more.
_stopped: set[int] = set()


class Interruptible:
    """Records what this thread waits for while the block runs.

    Parameters
    ----------
    future : Future
        Is cancelled if this thread works for a caller who is interrupted.
    """

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def __enter__(self) -> None:
        number = threading.get_ident()
        _waiting[number] = self._future
        if number in _stopped:
            self._future.cancel()

    def __exit__(self, *_: object) -> None:
        _waiting.pop(threading.get_ident(), None)


class Threads(ThreadPoolExecutor):
    """A pool whose block ends at once with the first error, or when the caller is interrupted.

    Whatever its threads are waiting for is then cancelled.

    Parameters
    ----------
    count : int
        Threads at most.
    """

    def __init__(self, count: int) -> None:
        self._numbers: set[int] = set()
        self._is_closed = False
        super().__init__(count, initializer=self._note)

    def _note(self) -> None:
        self._numbers.add(threading.get_ident())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function in a thread, under the time limit of whoever wants that.

        When the interpreter ends (`atexit`, threads that outlive the main one) no thread can be
        started: it is called in this one then, so that what is being written is finished.
        """
        try:
            return super().submit(contextvars.copy_context().run, fn, *args, **kwargs)
        except RuntimeError:
            if self._is_closed:
                raise
            return _called(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work."""
        self._is_closed = True
        super().shutdown(wait, cancel_futures=cancel_futures)

    def map(self, fn: Callable[..., R], *iterables: Iterable[Any], **_: Any) -> Iterator[R]:
        """Return the results in order, as `Executor.map` does; an interrupt ends the wait."""
        futures = [self.submit(fn, *arguments) for arguments in zip(*iterables, strict=False)]

        def results() -> Iterator[R]:
            try:
                for future in futures:
                    yield result_of(future)
            finally:
                for future in futures:
                    future.cancel()

        return results()

    def __exit__(self, kind: type[BaseException] | None, *more: Any) -> None:
        if kind is not None:
            self.shutdown(wait=False, cancel_futures=True)
            # also those that are about to begin another request
            _stopped.update(self._numbers)
            for number in list(self._numbers):
                waited = _waiting.get(number)
                if waited is not None:
                    waited.cancel()
        try:
            super().__exit__(kind, *more)
        finally:
            # thread numbers are reused
            _stopped.difference_update(self._numbers)


def _called(fn: Callable[..., R], *args: Any, **kwargs: Any) -> Future[R]:
    future: Future[R] = Future()
    try:
        future.set_result(fn(*args, **kwargs))
    except Exception as error:
        future.set_exception(error)
    return future


def result_of(future: Future[R]) -> R:
    """Return the result of a future. An interrupt ends the wait, whenever it arrives."""
    while True:
        try:
            return future.result(AT_ONCE)
        except TimeoutError:
            if future.done():  # it is an error of the function
                raise


def map_in_threads(function: Callable[[T], R], items: Sequence[T], limit: int) -> list[R]:
    """Return the function's result for each item; several items run at the same time.

    Parameters
    ----------
    function : callable
    items : sequence
        A single item runs at once, in this thread.
    limit : int
        Threads at most.

    Raises
    ------
    BaseException
        The first error of the function, or an interrupt of this thread. Whatever the other
        threads are waiting for is then cancelled.
    """
    if len(items) < 2:
        return [function(item) for item in items]
    with Threads(min(limit, len(items))) as pool:
        return list(pool.map(function, items))
