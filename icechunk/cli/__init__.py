"""The command `icechunk`: what the library does, from a terminal."""

from __future__ import annotations

import atexit
import gc
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say what it needs."""
    # imports make much that stays: looking through it again and again took a fifth of the start
    gc.set_threshold(100_000)
    # and looking through it at the end, to free what the system frees anyway, another
    atexit.register(gc.freeze)
    try:
        from icechunk.cli.app import main as command
    except ModuleNotFoundError as error:
        sys.exit(f"Error: the command line needs {error.name}: pip install 'icechunk[cli]'")
    command()
