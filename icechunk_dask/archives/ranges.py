"""Ranges of a file that several threads may read."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

__all__ = ["FileRanges", "open_ranges"]


class FileRanges:
    """Reads ranges of a file, one after the other.

    Parameters
    ----------
    file : binary file
        It needs ``seek`` and ``read`` only.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._lock = threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes, all of them.

        Raises
        ------
        OSError
            If the file ends before: it has changed since its header was read.
        """
        with self._lock:
            self.file.seek(offset)
            data = self.file.read(count)
        if len(data) != count:
            raise OSError(f"the file ends before byte {offset + count}: it has changed")
        return data


@contextmanager
def open_ranges(file: str | os.PathLike[str] | BinaryIO) -> Iterator[FileRanges]:
    """Open a file, or take one that is open and stays so."""
    with open(file, "rb") if isinstance(file, str | os.PathLike) else nullcontext(file) as opened:
        yield FileRanges(opened)
