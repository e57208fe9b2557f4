"""A queue of writers that want to replace one file, between threads and processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from icechunk.storage.locks import exclusive, open_lock

#: Whoever is first in the queue may be suspended, or be on a machine that is gone.
_PATIENCE: Final = 10.0


@contextmanager
def queue_at(
    path: str, patience: float = _PATIENCE, *, dir_fd: int | None = None
) -> Iterator[None]:
    """Run the block when it is this caller's turn, or after some time in any case.

    Parameters
    ----------
    path : str
        A file to lock. It is created if necessary, and stays.
    patience : float
        Wait no longer than this, in seconds.
    dir_fd : int, optional
        An open directory that a relative path starts from.
    """
    fd = open_lock(path, dir_fd=dir_fd)
    called, done = threading.Event(), threading.Event()

    def wait() -> None:
        try:
            with exclusive(fd):
                called.set()
                done.wait()
        except OSError:
            called.set()  # no locks here: nobody waits for anybody

    # The system keeps the order of those who wait for a lock, but has no wait with a time
    # limit, so the wait takes a thread.
    threading.Thread(target=wait, name="icechunk-queue", daemon=True).start()
    try:
        called.wait(patience)
        yield
    finally:
        done.set()
