"""A process that is killed at a request, as far as the storage can tell."""

from __future__ import annotations

import threading
from typing import Any

from icechunk.storage import WrapperStorage
from icechunk.storage.base import Storage

__all__ = ["Dying", "Killed"]


class Killed(BaseException):
    """What is left of a process, to the test."""


class Dying(WrapperStorage):
    """The storage of a process that is killed before its n-th request that writes.

    Attributes
    ----------
    dead : bool
    chunks : int
        Chunks that it has written.
    """

    def __init__(self, inner: Storage, nth: int = -1) -> None:
        super().__init__(inner)
        self._left = nth
        self._lock = threading.Lock()
        self.dead = False
        self.chunks = 0

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        """Count, or die."""
        with self._lock:
            if operation in ("put", "delete", "copy") and not self.dead:
                self._left -= 1
                self.dead = self._left == 0
            if self.dead:
                raise Killed
            self.chunks += operation == "put" and keys[0].startswith("chunks/")

    def with_settings(self, settings: Any) -> Storage:
        """Return itself: the process is the same."""
        return self
