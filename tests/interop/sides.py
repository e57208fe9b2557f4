"""The two sides of an interop test: this project, and the official client.

Both run functions of the modules here, by name; take and return what JSON can express, and see
the other's work in the file system only.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tests.interop import worker

VARIABLE = "ICECHUNK_OFFICIAL_PYTHON"
#: Of the client 1.1.21.
VARIABLE_V1 = "ICECHUNK_OFFICIAL_V1_PYTHON"


class Side(Protocol):
    """One of the two."""

    name: str

    def run(self, function: str, *arguments: Any) -> Any:
        """Call a function that `worker.find` finds, and return its result."""


#: Sides, each with the folder of what it made of `base.write_base`.
Bases = list[tuple[Side, str]]


class Ours:
    """This project, in this process."""

    name = "ours"

    def run(self, function: str, *arguments: Any) -> Any:
        """Call a function that `worker.find` finds, and return its result, as JSON returns it."""
        return json.loads(json.dumps(worker.find(function)(*arguments)))


class OfficialError(Exception):
    """A function failed under the official client."""

    def __init__(self, kind: str, traceback: str) -> None:
        super().__init__(f"under the official client:\n{traceback}")
        self.kind = kind


class Official:
    """The official client, in one process for all tests: starting it takes a second."""

    def __init__(self, python: str, folder: Path, name: str = "official") -> None:
        self.name = name
        self._folder = folder
        self._calls = 0
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        # it warns once per repository that local storage is not safe
        environment["ICECHUNK_LOG"] = "error"
        self._process = subprocess.Popen(
            [python, "-W", "ignore", worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, function: str, *arguments: Any) -> Any:
        """Call a function that `worker.find` finds, and return its result.

        Raises
        ------
        OfficialError
            If it raised.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._calls += 1
        request = self._folder / f"{self._calls}.request"
        request.write_text(json.dumps([function, arguments]), encoding="utf-8")
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            raise RuntimeError(
                f"the process with the official client ended, code {self._process.wait()}; "
                "see its standard error"
            )
        answer = json.loads(request.with_suffix(".answer").read_text(encoding="utf-8"))
        if "error" in answer:
            raise OfficialError(answer["error"], answer["traceback"])
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
