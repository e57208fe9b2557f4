"""Scanning in processes apart, which a damaged file may end or keep busy for ever.

HDF5 and ecCodes were not made for damaged files. Some files end the process that reads them,
make it write outside its memory, or keep it busy for ever. So children scan files. They live as
long as there is work, and a lost child is replaced. Whatever happens to a child counts as
the failure of one file.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from dask.system import CPU_COUNT

from icechunk import InvalidInputError
from icechunk_dask.archives.apart_child import message, take
from icechunk_dask.archives.parts import Scan

__all__ = ["call_apart", "can_be_apart", "scan_apart", "stop_apart"]

#: Seconds that a child may compute without a sign of life. The size of a file adds to them.
_COMPUTING: Final = 60.0
#: Seconds that a child may be silent: it may wait for a slow server, or for a lock for ever.
_SILENT: Final = 600.0
#: Seconds that a child has to start: it imports what it needs.
_STARTING: Final = 600.0
#: How often a child may end before it has started.
_EARLY: Final = 3
#: The greatest number of children, and how long to wait for a busy one before starting another.
_MOST: Final = min(CPU_COUNT, 16)
_PATIENCE: Final = 0.5
#: Schemes of files that other processes find too. They do not find those in fsspec's memory.
_ANYWHERE: Final = frozenset(
    ["file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https"]
)
_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from icechunk_dask.archives.apart_child import main; main()"
)
#: What pytest sets for each test, and no library reads.
_RUNNING_TEST: Final = "PYTEST_CURRENT_TEST"


class _EndedError(Exception):
    """A child has ended, or was ended."""

    def __init__(self, reason: str, done: int, *, certain: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        #: Files that were done before, and whether the next one is certainly to blame.
        self.done = done
        self.certain = certain


class _StoppedError(Exception):
    """A call was given up."""


def can_be_apart(urls: Sequence[str]) -> bool:
    """Whether another process finds these files."""
    schemes = {url.partition("://")[0] for url in urls if "://" in url}
    return schemes <= _ANYWHERE and bool(sys.executable) and not getattr(sys, "frozen", False)


def scan_apart(
    scanner: Any, urls: Sequence[str], counted: Callable[[], None] | None = None
) -> list[Scan]:
    """Return what ``scanner.some`` returns in a process apart.

    Parameters
    ----------
    scanner : Scanner
    urls : sequence of str
    counted : callable, optional
        Called for each file that is done.
    """
    told = 0

    def count(done: int) -> None:
        nonlocal told
        for _ in range(told, done if counted is not None else 0):
            told += 1
            counted()  # type: ignore[misc]

    def some(urls: Sequence[str], before: int) -> list[Scan]:
        if not urls:
            return []
        try:
            found: list[Scan] = _pool.call(
                scanner, "some", (urls,), lambda done: count(before + done)
            )
            return found
        except _EndedError as ended:
            at = min(ended.done, len(urls) - 1)
            if ended.certain or len(urls) == 1:
                lost = [Scan(urls[at], failure=ended.reason)]
            else:
                # an earlier file may be to blame: damaged memory shows later
                lost = some(urls[at : at + 1], before + at)
            return [
                *some(urls[:at], before),
                *lost,
                *some(urls[at + 1 :], before + at + 1),
            ]

    found = some(urls, 0)
    count(len(urls))
    return found


def call_apart(scanner: Any, method: str, *arguments: Any) -> Any:
    """Call a method of a scanner in a process apart.

    Raises
    ------
    InvalidInputError
        If that ends the process.
    """
    try:
        return _pool.call(scanner, method, arguments)
    except _EndedError as ended:
        raise InvalidInputError(ended.reason) from None


def stop_apart(call: str) -> None:
    """End the children that work for a call of `virtualize`."""
    _pool.stop(call)


class _Child:
    """A process apart, and what it was started with."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self.call = ""
        self.begun = False
        self.is_stopped = self._silent = False
        self._heard = 0.0
        _, _, path = state
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # a keyboard interrupt is for the parent
            start_new_session=True,
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, scanner: Any, method: str, arguments: Any, done: Callable[[int], None]) -> Any:
        """Send a request, and wait for its answer."""
        self._silent, count = False, 0
        self._heard = time.monotonic()
        answered = threading.Event()
        threading.Thread(target=self._watch, args=(answered,), daemon=True).start()
        kind: str = "step"
        value: Any = 0
        early = 0
        try:
            self._send((scanner, method, arguments, _COMPUTING))
            while kind == "step":
                data = take(self._process.stdout)  # type: ignore[arg-type]
                if data is None:
                    raise BrokenPipeError
                self._heard = time.monotonic()
                kind, value = pickle.loads(data)
                if kind == "step":
                    self.begun, count = True, value
                    done(count)
                elif kind == "ended" and not self.begun and early < _EARLY:
                    # it ended before the request; the next child answers
                    kind, early = "step", early + 1
        except BrokenPipeError:
            kind, value = "ended", self.end()
        except BaseException:
            # nobody needs its answer any more
            self.end()
            raise
        finally:
            answered.set()
        if kind == "ended":
            raise self._lost(value, count)
        if kind == "raised":
            raise value
        return value

    def stop(self) -> None:
        """End it while it works."""
        self.is_stopped = True
        self._process.terminate()

    def end(self) -> int:
        """End it, and wait until it has; return its status."""
        self._process.terminate()
        status = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return status

    def _send(self, request: Any) -> None:
        pipe: Any = self._process.stdin
        pipe.write(message(request))
        pipe.flush()

    def _watch(self, answered: threading.Event) -> None:
        """End it when it has been silent for too long."""
        while not answered.wait(1.0):
            limit = _SILENT if self.begun else _STARTING
            if time.monotonic() - self._heard >= limit:
                self._silent = True
                self._process.terminate()
                return

    def _lost(self, status: int, done: int) -> Exception:
        """Return words for a process that has ended with a status."""
        if self.is_stopped:
            return _StoppedError("the call was given up")
        if self._silent:
            why = f"there was no sign of life for {_SILENT:g} seconds"
        elif status == -getattr(signal, "SIGXCPU", 0):
            why = f"it was not done after {_COMPUTING:g} seconds of computing"
        else:
            name = signal.Signals(-status).name if status < 0 else f"status {status}"
            short = ", for which too little memory may be the reason" if status == -9 else ""
            return _EndedError(
                f"the library that reads it ended its process ({name}){short}: the file may be "
                "damaged. The process was for scanning only, and nothing else is lost",
                done,
                certain=False,
            )
        return _EndedError(
            f"the library that reads it was stopped: {why}, and the file may be damaged. If it is "
            "not, isolate=False scans it without a limit",
            done,
            certain=True,
        )


class _Pool:
    """The children of this process. Each of them works for one thread at a time."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._idle: list[_Child] = []
        self._busy: list[_Child] = []
        self._waiting = 0

    def call(
        self,
        scanner: Any,
        method: str,
        arguments: Any,
        done: Callable[[int], None] = lambda _: None,
    ) -> Any:
        """Have a child call a method.

        Raises
        ------
        _EndedError
            If the child ends.
        """
        for attempt in range(3):
            child = self._take()
            child.call = scanner.call
            try:
                return child.ask(scanner, method, arguments, done)
            except _EndedError:
                # a child that has long been idle may end just now
                if child.begun or attempt == 2:
                    raise
            finally:
                self._give(child)
        raise AssertionError

    def stop(self, call: str) -> None:
        with self._condition:
            for child in self._busy:
                if child.call == call:
                    child.stop()

    def close(self) -> None:
        with self._condition:
            children = [*self._idle, *self._busy]
            self._idle, self._busy = [], []
        for child in children:
            child.end()

    def _take(self) -> _Child:
        state = _state()
        with self._condition:
            if not self._idle and self._busy:
                self._condition.wait(_PATIENCE)
            while not self._idle and len(self._busy) >= _MOST:
                self._condition.wait()
            child = None
            while self._idle and child is None:
                child = self._idle.pop()
                if child.state != state or not child.is_alive:
                    child.end()
                    child = None
            if child is None:
                child = _Child(state)
            child.begun = False
            self._busy.append(child)
            return child

    def _give(self, child: _Child) -> None:
        with self._condition:
            if child in self._busy:
                self._busy.remove(child)
                if child.is_alive and not child.is_stopped:
                    self._idle.append(child)
            self._condition.notify()


def _state() -> tuple[str, dict[str, str], list[str]]:
    """Return what a child takes over when it starts."""
    given = {name: value for name, value in os.environ.items() if name != _RUNNING_TEST}
    return os.getcwd(), given, list(sys.path)


_pool = _Pool()
atexit.register(lambda: _pool.close())


def _anew() -> None:
    # a fork of this process has no children and must not use their pipes
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)
