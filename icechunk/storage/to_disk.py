"""What was written to a folder and is not on its disk yet."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

from icechunk.base.threads import Threads
from icechunk.errors import ErrorKind, StorageError
from icechunk.storage.folder import Folder, folder_of, folders_above

__all__ = ["ToDisk"]

#: At most this many files wait to be forced to disk, so that a commit never waits for long.
_MAX_WAITING: Final = 4096
_THREADS: Final = 8
#: Of many files, a thread forces this many to disk before it takes more: handing each over
#: takes longer than what the processor has to do for it.
_SHARE: Final = 16


class ToDisk:
    """Files and folders that wait to be forced to disk, and what is known to be there.

    Parameters
    ----------
    folder : Folder
    url : str
        Of the folder, for messages.
    """

    def __init__(self, folder: Folder, url: str) -> None:
        self._folder = folder
        self._url = url
        self._lock = threading.Lock()
        # objects that are not forced to disk yet, and folders with new names in them
        self._waiting: list[str] = []
        self._changed: set[str] = set()
        # folders whose own names are on disk, and versions of objects that are
        self._named: set[str] = {""}
        self._forced: dict[str, str] = {}
        # repeated from then on: after a failure the system forgets what it could not write,
        # and claims success when asked again
        self._lost: StorageError | None = None

    @property
    def is_nearly_full(self) -> bool:
        """Whether the next file will be forced to disk at once, with those that wait."""
        return len(self._waiting) >= _MAX_WAITING - 1

    def add(self, key: str) -> None:
        """Let the next `sync` force a new file to disk."""
        with self._lock:
            self._waiting.append(key)
            is_full = len(self._waiting) >= _MAX_WAITING
        if is_full:
            self.sync()

    def add_name(self, source: str, etag: str, key: str) -> None:
        """Do as `add` does for another name of a file, which may be there itself."""
        if self._forced.get(source) != etag:
            self.add(key)
            return
        with self._lock:
            self._changed.add(folder_of(key))

    def published(self, key: str, etag: str, folders: Sequence[str]) -> None:
        """Force the name of a file to disk that is there itself.

        Parameters
        ----------
        key : str
        etag : str
            Version of the file.
        folders : sequence of str
            Those that have a new name in them.
        """
        for folder in folders:
            self._sync_folder(folder)
        self._forced[key] = etag

    def sync(self, force: Callable[[], None] = lambda: None) -> None:
        """Force to disk what waits.

        Parameters
        ----------
        force : callable, optional
            Forces something else to disk meanwhile. A file system then combines the writes.

        Raises
        ------
        StorageError
            If that fails, now or ever before: objects may be lost.
        OSError
            If `force` fails.
        """
        with self._lock:
            # held meanwhile: nobody publishes what another thread is still forcing to disk
            if self._lost is None:
                self._sync_all(force)
                # not earlier: an interrupt must leave them to the next call
                self._waiting.clear()
                self._changed.clear()
            if self._lost is not None:
                raise self._lost

    def _sync_all(self, force: Callable[[], None]) -> None:
        folders = self._changed.union(map(folder_of, self._waiting))
        # a name is lost, too, if the folder that holds it is lost
        above = {up for folder in folders - self._named for up in folders_above(folder)}
        work: list[tuple[Callable[[str], None], str]]
        work = [(self._sync_file, key) for key in self._waiting]
        work += [(self._sync_folder, folder) for folder in folders | above]
        # in parallel, because file systems then combine several writes
        share = min(len(work) // (4 * _THREADS) + 1, _SHARE)
        shares = [work[i : i + share] for i in range(0, len(work), share)]
        found = _threads().map(self._sync_some, shares)
        try:
            force()
        finally:
            is_whole = all(list(found))
        if is_whole and self._lost is None:
            self._named |= folders | above

    def _sync_some(self, work: Sequence[tuple[Callable[[str], None], str]]) -> bool:
        """Do one thing after another, and return whether nothing was missing."""
        is_whole = True
        for call, key in work:
            try:
                call(key)
            except FileNotFoundError:
                is_whole = False  # it was deleted
            except OSError as error:
                # noted here, since whoever waits may be interrupted, or fail itself
                self._lost = StorageError(
                    f"objects written to {self._url} may be lost, because they could not be "
                    f"forced to disk: {error.strerror or error}; write them again in a new "
                    "process",
                    ErrorKind.IO,
                )
        return is_whole

    def _sync_folder(self, prefix: str) -> None:
        if os.name == "nt":
            return  # folders cannot be opened there
        with self._folder.listed(prefix + "/" if prefix else "") as folder:
            if isinstance(folder, int):
                os.fsync(folder)

    def _sync_file(self, key: str) -> None:
        if os.name == "nt":
            # files open for reading cannot be forced to disk there
            with self._folder.place(key) as (_, path):
                fd = os.open(path, os.O_RDWR)
        else:
            fd = self._folder.open_file(key)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@cache
def _threads() -> Threads:
    """Return threads that stay: starting some for a commit takes longer than what they do."""
    return Threads(_THREADS)


if hasattr(os, "register_at_fork"):
    # a forked process has none of them
    os.register_at_fork(after_in_child=_threads.cache_clear)
