"""What programs show in a pseudo-terminal."""

from __future__ import annotations

import os


def all_shown(parent: int) -> bytes:
    """Read all that is shown, until no program has the terminal open any more."""
    shown = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:  # the other end is closed
            return shown
        if not piece:
            return shown
        shown += piece
