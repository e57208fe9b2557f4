"""Storages to run one test on: each kind, empty and new every time."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection

import pytest

from icechunk.storage import LocalStorage, MemoryStorage, WrapperStorage
from icechunk.storage.base import Storage

KINDS = ("memory", "local", "s3")


def new_storage(kind: str, request: pytest.FixtureRequest) -> Storage:
    """Return a new place of a kind."""
    if kind == "memory":
        return MemoryStorage()
    if kind == "local":
        return LocalStorage(request.getfixturevalue("tmp_path") / uuid.uuid4().hex)
    storage: Storage = request.getfixturevalue("s3_server").storage()
    return storage


class Meanwhile(WrapperStorage):
    """A storage where somebody else does something once, before the nth of some requests.

    Requests count if they are among `operations`, or any, for a key in `folder`, and while it is
    on. `left` says how many are still to come.
    """

    def __init__(
        self,
        inner: Storage,
        nth: int,
        act: Callable[[], object],
        *,
        folder: str = "",
        operations: Collection[str] | None = None,
        is_on: bool = True,
    ) -> None:
        super().__init__(inner)
        self.left = nth
        self.is_on = is_on
        self._act, self._folder, self._operations = act, folder, operations
        self._lock = threading.Lock()

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        if not self.is_on or (self._operations is not None and operation not in self._operations):
            return
        if self._folder and not (keys and keys[0].startswith(self._folder)):
            return
        # requests come from several threads
        with self._lock:
            self.left -= 1
            mine = self.left == 0
        if mine:
            self._act()
