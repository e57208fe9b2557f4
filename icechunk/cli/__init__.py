"""The command `icechunk`: what the library does, from a terminal."""

from __future__ import annotations

import atexit
import gc
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say what to install for it."""
    # imports create many lasting objects: looking for garbage among them took a fifth of the start
    gc.set_threshold(100_000)
    # and at the exit, where the system frees them anyway, it took another fifth
    atexit.register(gc.freeze)
    try:
        from icechunk.cli.app import main as command
    except ModuleNotFoundError as error:
        sys.exit(f"Error: the command line needs {error.name}: pip install 'icechunk[cli]'")
    command()
