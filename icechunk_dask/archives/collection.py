"""Garbage collection held back where it would wait for a lock that waits for it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collection_paused"]

_lock = threading.Lock()
_pauses = 0
_was_enabled = False


@contextmanager
def collection_paused() -> Iterator[None]:
    """Run the body without automatic garbage collection, in every thread.

    kerchunk's scanner of HDF5 holds h5py's global lock while it waits for zarr's thread.
    If Python collected garbage in that thread, and HDF5 handles were among it, h5py would
    ask for the same lock to close them, and neither would ever go on.

    Blocks may overlap: collection goes on after the last one, if it was on before the first.
    """
    global _pauses, _was_enabled
    with _lock:
        if not _pauses:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if not _pauses and _was_enabled:
                gc.enable()
