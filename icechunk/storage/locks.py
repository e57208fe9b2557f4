"""Locks on a file, and queues for one, between threads, processes and machines that share it."""

from __future__ import annotations

import errno
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from icechunk.base import deadline

if sys.platform == "win32":
    import msvcrt

    def _acquire(fd: int) -> None:
        while deadline.seconds_left() > 0:
            try:
                # it gives up with an error after ten seconds, which is no reason for us to
                msvcrt.locking(fd, msvcrt.LK_LOCK, 1)
            except OSError:
                continue
            return
        raise _too_late()

else:
    import fcntl

    def _acquire(fd: int) -> None:
        if deadline.seconds_left() == math.inf:
            # the system knows the order of those who wait
            fcntl.flock(fd, fcntl.LOCK_EX)
            return
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if deadline.seconds_left() <= 0:
                    raise _too_late() from None
            time.sleep(_ONE_LOOK)


def _too_late() -> OSError:
    return TimeoutError(errno.ETIMEDOUT, f"another process has the lock; {deadline.current()}")


#: Seconds between two looks at a lock, where there is a time limit.
_ONE_LOOK: Final = 0.01
#: A link in its place is not followed: it could lead anywhere.
_FLAGS: Final = (
    os.O_RDWR
    | os.O_CREAT
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
)


def open_lock(path: str, *, dir_fd: int | None = None) -> int:
    """Open a file for locking. It is created if necessary.

    Parameters
    ----------
    path : str
    dir_fd : int, optional
        An open directory that a relative path starts from.

    Returns
    -------
    int
        A file descriptor for `exclusive`.

    Raises
    ------
    OSError
        If the file cannot be opened, or is a symbolic link.
    """
    return os.open(path, _FLAGS, 0o666, dir_fd=dir_fd)


#: Errors of file systems without locks.
_NO_LOCKS: Final = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
_ADVICE: Final = (
    "This file system has no file locks, and of two writers at a time one would be lost: mount "
    "it with locks, as NFS of version 4 has them, or put the repository elsewhere"
)


@contextmanager
def exclusive(fd: int) -> Iterator[None]:
    """Hold the lock on a file while the block runs, and close the file.

    The lock belongs to the open file, so two threads of a process exclude each other too,
    and the operating system releases it when a process dies. The file stays: deleting it
    would let two holders lock two different files of one name.
    """
    try:
        try:
            _acquire(fd)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise OSError(error.errno, f"{error.strerror}. {_ADVICE}") from error
            raise
        yield
    finally:
        os.close(fd)


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
        called.wait(max(min(patience, deadline.seconds_left()), 0))
        yield
    finally:
        done.set()
