"""Find the caller of this library, so that warnings point at that line."""

from __future__ import annotations

import sys
from typing import Final

_OURS: Final = ("icechunk", "icechunk_dask", "icechunk_xarray")


def depth_of_caller() -> int:
    """Return the stack level, seen from our caller, of the first frame outside of this library."""
    depth = 1
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        frame = frame.f_back
        depth += 1
    return depth
