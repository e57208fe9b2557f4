"""A scanner whose files do to their process what damaged ones do. Children import it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icechunk_dask.archives.parts import Scan
from icechunk_dask.archives.signs import step


@dataclass
class Odd:
    """Does what the names of files say; notes in `folder` which process did."""

    folder: Path
    call: str = "call"

    def some(self, urls: Sequence[str], counted: Callable[[], None] | None = None) -> list[Scan]:
        found = []
        for url in urls:
            with (self.folder / "log").open("a") as log:
                log.write(f"{os.getpid()} {url}\n")
            found.append(self._scanned(url))
            if counted is not None:
                counted()
        return found

    def _scanned(self, url: str) -> Scan:
        match url.split("-")[0]:
            case "segv" | "abrt" | "kill":
                os.kill(os.getpid(), getattr(signal, f"SIG{url.split('-')[0].upper()}"))
            case "exit":
                os._exit(3)
            case "loop":
                while True:
                    pass
            case "wait":
                time.sleep(3600)
            case "long":
                # more than a step may take, but there are signs of life
                end = time.process_time() + 3.5
                while time.process_time() < end:
                    step()
            case "greedy":
                return Scan(url, failure=_taken())
            case "spoilt":
                # what it spoils shows in the next file
                self.spoilt = True
            case _ if getattr(self, "spoilt", False):
                os.kill(os.getpid(), signal.SIGABRT)
        return Scan(url)

    def read(self, what: str) -> Any:
        if what == "raise":
            raise OSError("no such thing")
        self._scanned(what)
        return os.getpid()


def _taken() -> str:
    try:
        return str(len(bytearray(1 << 46)))
    except MemoryError as exc:
        return type(exc).__name__
