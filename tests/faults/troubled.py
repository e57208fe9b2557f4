"""A storage where one request goes wrong, in each way that networks know."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Literal, get_args

from icechunk import PreconditionFailedError, StorageError
from icechunk.base import deadline
from icechunk.storage import WrapperStorage
from icechunk.storage.base import BytesLike, Storage

#: How a request goes wrong. Those with "unseen" also refuse all looks for a while; a "late" put
#: arrives when others have been made since. "Out of time" it is before or after a request, and
#: nothing more is sent then.
Fault = Literal[
    "before",
    "after",
    "after, refused",
    "before, unseen",
    "after, unseen",
    "late",
    "late, unseen",
    "out of time before",
    "out of time after",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
#: How many requests are made before a late one arrives.
_LATE = 2
_LOOKS = 6
#: Seconds that are enough for everything that tests do.
LIMIT = 1000


class Troubled(WrapperStorage):
    """A storage where one request goes wrong.

    Parameters
    ----------
    inner : Storage

    Attributes
    ----------
    reached : bool
        Whether there was such a request.
    """

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.seen = 0
        self.nth = 0
        self.fault: Fault = "before"
        self.unseen = 0
        self.reached = False
        self.is_over = False
        self._sent: tuple[str, bytes, bool, str | None] | None = None
        self._passing = 0

    def plan(self, nth: int, fault: Fault) -> None:
        """Let a request go wrong, counted from now."""
        self.seen, self.nth, self.fault, self.unseen = 0, nth, fault, 0
        self.reached = False
        self._sent = None

    def heal(self) -> None:
        """Let everything go well from now on; what is on its way arrives."""
        self.nth = self.unseen = 0
        self.is_over = False
        deadline.clock = time.monotonic
        self._arrive()

    def _arrive(self) -> None:
        if self._sent is not None:
            key, data, if_absent, if_match = self._sent
            self._sent = None
            with suppress(PreconditionFailedError):
                self.inner.put(key, data, if_absent=if_absent, if_match=if_match)

    def put(
        self, key: str, data: BytesLike, *, if_absent: bool = False, if_match: str | None = None
    ) -> str | None:
        """Put, or send on a way that takes long."""
        with self._lock:
            is_late = self.fault.startswith("late") and self.seen + 1 == self.nth
            if is_late:
                self.seen += 1
                self.reached = True
                self._sent = key, bytes(data), if_absent, if_match
                self._passing = _LATE
                self.unseen = _LOOKS if self.fault.endswith("unseen") else 0
        if is_late:
            raise StorageError("no answer")
        return super().put(key, data, if_absent=if_absent, if_match=if_match)

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        """Count, and fail if it is time."""
        if self.is_over:
            raise StorageError(f"cannot {operation} {keys}: the time limit has passed")
        with self._lock:
            if operation in ("get", "get_if_changed", "list") and self.unseen:
                self.unseen -= 1
                raise StorageError("403: refused")
            if self._sent is not None:
                self._passing -= 1
                if self._passing < 0:
                    self._arrive()
            self.seen += 1
            mine = self.seen == self.nth
            self.reached = self.reached or mine
        if mine and self.fault.startswith(("before", "late", "out of time before")):
            self._fail()

    def after(self, operation: str, keys: tuple[str, ...], read: int) -> None:
        """Fail if it is time."""
        # threads may have made other requests meanwhile: then one of these is lost
        if self.seen == self.nth and self.fault.endswith("after") | self.fault.startswith("after"):
            self._fail()

    def _fail(self) -> None:
        if self.fault.startswith("out of time"):
            self.is_over = True
            deadline.clock = lambda: time.monotonic() + 2 * LIMIT
        if self.fault.endswith("unseen"):
            self.unseen = _LOOKS
        if self.fault.endswith("refused"):
            # the client has sent it again, and the condition did not hold any more
            raise PreconditionFailedError("sent twice")
        raise StorageError(f"lost {self.fault}")
