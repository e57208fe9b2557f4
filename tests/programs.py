"""Programs run as users run them, each in a process of its own, without its seconds of imports.

One process imports what most of them use, and is forked for each.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: Imported before, and what these import.
MODULES = ("zarr", "icechunk_xarray", "icechunk_dask", "icechunk_dask.archives.virtualize")


@dataclass(frozen=True)
class Done:
    """How a program ended, and what it wrote to both of its outputs."""

    returncode: int
    output: str


class Programs:
    """A process that runs programs, one after another.

    Parameters
    ----------
    folder : Path
        Where it notes outputs.
    """

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.programs"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str | Path, cwd: Path, env: Mapping[str, str]) -> Done:
        """Run a program: its path, and its arguments."""
        assert self._process.stdin is not None and self._process.stdout is not None
        # absolute, as processes that it starts look for it from another folder
        program, *arguments = map(str, command)
        order = [[str(cwd / program), *arguments], str(cwd), dict(env), str(self._output)]
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        returncode = int(self._process.stdout.readline())
        return Done(returncode, self._output.read_text(encoding="utf-8"))

    def close(self) -> None:
        """End the process."""
        # it ends when there is no more to read
        self._process.communicate()


def _run(command: list[str], cwd: str, env: dict[str, str], output: str) -> int:
    written = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(ours, theirs)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    try:
        runpy.run_path(command[0], run_name="__main__")
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Run what is asked for on the input, and say how each ended."""
    for name in MODULES:
        __import__(name)
    while line := sys.stdin.readline():
        child = os.fork()
        if not child:
            sys.exit(_run(*json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
