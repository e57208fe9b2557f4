"""An exclusive lock on a file, between threads, processes and machines that share it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

if sys.platform == "win32":
    import msvcrt

    def _acquire(fd: int) -> None:
        while True:
            try:
                # gives up with an error after ten seconds, which is no reason for us to
                msvcrt.locking(fd, msvcrt.LK_LOCK, 1)
            except OSError:
                continue
            return

else:
    import fcntl

    def _acquire(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX)


@contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Hold the lock on a file while the block runs; the file is created if need be.

    The lock belongs to the open file, so two threads of a process exclude each other too,
    and the operating system releases it when a process dies. The file stays: deleting it
    would let two holders lock two files of one name.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _acquire(fd)
        yield
    finally:
        os.close(fd)
