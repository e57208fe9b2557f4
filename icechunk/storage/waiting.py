"""Waiting for requests: the caller can be interrupted, is kept informed, and finally gives up.

The synchronous calls of obstore ignore interrupts and go on when nobody waits any more, so that
a server without an end fills the memory. Its asynchronous calls are made instead. They end when
they are cancelled.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from icechunk.base import deadline
from icechunk.base.deadline import Deadline
from icechunk.base.threads import AT_ONCE, Interruptible
from icechunk.base.visible import in_a_line
from icechunk.errors import StorageError
from icechunk.storage.allowance import Allowance

__all__ = ["Request", "Runtime", "answer", "patient"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Report a missing answer after this many seconds.
_SILENCE: Final = 5.0


@dataclass
class Request:
    """One request to a storage, as messages describe it.

    Attributes
    ----------
    operation : str
        A verb.
    key : str
        The object, or the folder, that it is about.
    url : str
        The storage, without credentials.
    seconds : float
        Wait no longer until the answer begins.
    allowance : Allowance or None
        How long the rest may take, once it has begun.
    """

    operation: str
    key: str
    url: str
    seconds: float
    allowance: Allowance | None = None
    _start: float = field(default_factory=lambda: time.monotonic())
    _deadline: Deadline = field(default_factory=deadline.current)

    @property
    def left(self) -> float:
        """How much longer to wait, in seconds; zero or less for no longer."""
        if self.allowance is not None:
            left = self.allowance.left
        else:
            left = self._start + self.seconds - time.monotonic()
        return min(left, self._deadline.left)

    @property
    def came_slowly(self) -> bool:
        """Whether the answer has begun, and took too long then."""
        return self.allowance is not None and self.allowance.is_spent and self._deadline.left > 0

    def say(self) -> None:
        """Log that there is no answer yet."""
        _log.warning(
            "no answer yet: %s %s in %s; giving up after %.3g s",
            self.operation,
            in_a_line(self.key),
            self.url,
            min(self.seconds, self._deadline.seconds),
        )

    def too_late(self) -> StorageError:
        """Return the error for an answer that did not arrive, or not completely."""
        if self._deadline.left <= 0:
            return StorageError(
                f"cannot {self.operation} {self.key} in {self.url}: {self._deadline}"
            )
        if self.allowance is not None:
            return StorageError(
                f"cannot {self.operation} {self.key} in {self.url}: the answer comes too slowly, "
                "with less than a kilobyte a second"
            )
        return StorageError(
            f"cannot {self.operation} {self.key} in {self.url}: no answer for "
            f"{self.seconds:.3g} s; check the endpoint and the network, or wait longer with "
            "RepositoryConfig(storage=StorageSettings(timeouts=StorageTimeoutSettings(operation_timeout_ms=...)))"
        )


class Runtime:
    """Notices that this process was forked after obstore had started its threads.

    They do not exist in the child, and a request there would wait for them for ever.
    """

    started = False
    lost = False

    @classmethod
    def after_fork(cls) -> None:
        """Note that the threads are gone, if there were any."""
        cls.lost = cls.started


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Runtime.after_fork)


# -- in any thread -----------------------------------------------------------------------
class _Pending(Future[Any]):
    """The result of a request. Whoever cancels it ends the request, too."""

    def set_result(self, result: Any) -> None:
        # it may just have been given up
        with suppress(InvalidStateError):
            super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        with suppress(InvalidStateError):
            super().set_exception(exception)


class _Loop:
    """As much of an event loop as the client wants to see: its own threads do the work."""

    def create_future(self) -> Any:
        return _Pending()

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, **_: Any) -> Any:
        callback(*args)


_LOOP: Final[Any] = _Loop()


def _begun(begin: Callable[[], Any]) -> Any:
    """Begin an asynchronous request, whether there is an event loop or not."""
    import asyncio

    running = asyncio._get_running_loop()
    asyncio._set_running_loop(_LOOP)
    try:
        return begin()
    finally:
        asyncio._set_running_loop(running)


def answer(
    request: Request, begin: Callable[[], Awaitable[T]], forget: Callable[[], object] = bool
) -> T:
    """Return the answer to a request, or raise what became of it.

    Parameters
    ----------
    request : Request
    begin : callable
        Calls an asynchronous function of the client. It is not awaited.
    forget : callable, optional
        Is called when there will be no answer, and drops what `begin` has of the client. Then
        the client ends the request in a thread of its own. Another thread cannot.

    Raises
    ------
    StorageError
        If there is no answer in time. The client then stops to receive it.
    """
    if request.left <= 0:
        raise request.too_late()
    future: Future[T] = _begun(begin)
    try:
        with Interruptible(future):
            return _wait(request, future)
    except BaseException:
        forget()
        raise
    finally:
        # nobody wants more of it
        future.cancel()


def _wait(request: Request, future: Future[T]) -> T:
    to_say = request.allowance is None
    begun = time.monotonic()
    while True:
        try:
            return future.result(max(min(request.left, AT_ONCE, _SILENCE), 0))
        except TimeoutError:
            if future.done():
                raise
        if request.left <= 0:
            raise request.too_late()
        if to_say and time.monotonic() - begun >= _SILENCE:
            request.say()
            to_say = False


# -- in an event loop ----------------------------------------------------------------------
class patient:  # noqa: N801 (used like a function)
    """Run an asynchronous request in ``async with``, for no longer than it may take.

    Parameters
    ----------
    request : Request
    """

    def __init__(self, request: Request) -> None:
        self._request = request

    async def __aenter__(self) -> patient:
        import asyncio

        request = self._request
        left = request.left
        if left <= 0:
            raise request.too_late()
        loop = asyncio.get_running_loop()
        self._saying = loop.call_later(_SILENCE, request.say) if left > _SILENCE else None
        self._limit = asyncio.timeout(left)
        await self._limit.__aenter__()
        return self

    def goes_on(self) -> None:
        """Record that a part of the answer has arrived: the rest has as long as is allowed."""
        import asyncio

        if self._saying is not None:
            self._saying.cancel()
        self._limit.reschedule(asyncio.get_running_loop().time() + max(self._request.left, 0))

    async def __aexit__(self, *error: Any) -> None:
        if self._saying is not None:
            self._saying.cancel()
        try:
            await self._limit.__aexit__(*error)
        except TimeoutError:
            raise self._request.too_late() from None
