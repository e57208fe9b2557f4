"""The processes that scan files: they answer requests until nobody sends any.

On Linux the first process only forks another one, which does the work. If that one is lost, it
forks the next. So the slow part, the imports, happens once. Requests and answers are pickled,
through standard input and output, each behind its length. What libraries print goes to the
standard error output.
"""

from __future__ import annotations

import importlib
import os
import pickle
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

from icechunk_dask.archives.signs import listen

__all__ = ["SIZE", "main", "message", "take"]

#: How many bytes a length takes.
SIZE: Final = 8
#: A process ends after this many seconds without a request: it holds about a hundred megabytes.
_IDLE: Final = 300
#: Seconds between two signs of life that are sent.
_TOLD: Final = 1.0
#: How many bytes any library reads in a second.
_SLOW: Final = 10_000_000
_MEMORY_OF_CGROUP: Final = Path("/sys/fs/cgroup/memory.max")


def take(file: BinaryIO) -> bytes | None:
    """Read a message; None if there are no more."""
    head = file.read(SIZE)
    size = int.from_bytes(head, "little")
    data = file.read(size) if len(head) == SIZE else b""
    return data if len(head) == SIZE and len(data) == size else None


def message(value: Any) -> bytes:
    """Return a message."""
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(SIZE, "little") + data


def main() -> None:
    """Answer requests until there are no more, whatever happens to the forks that do so."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # every fork inherits it
    importlib.import_module("icechunk_dask.archives.scan")
    try:
        own = os.pidfd_open(os.getpid())
    except (AttributeError, OSError):  # this is not Linux, or an old one
        _answer(answers)
        return
    os.close(own)
    while status := _forked(answers):
        answers.write(message(("ended", status)))
        answers.flush()


def _forked(answers: BinaryIO) -> int:
    """Have a fork answer requests; return its status, as `subprocess` has them."""
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _answer(answers)
        finally:
            os._exit(0)

    def end(*_: Any) -> None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    events = select.poll()
    there = os.pidfd_open(child)
    events.register(there, select.POLLIN)
    events.register(0, 0)  # the end of all requests is always reported
    if there not in [number for number, _ in events.poll()]:
        end()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(there)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _answer(answers: BinaryIO) -> None:
    """Answer requests.

    A request is an object, the name of a method, its arguments, and how many seconds of
    computing one step may take. A method ``"some"`` is told to count what it has done.
    """
    _bound_memory()
    signs = _Signs(answers)
    listen(signs.step)
    requests = sys.stdin.buffer
    while _is_asked(requests) and (data := take(requests)) is not None:
        try:
            signs.begin()
            target, method, arguments, signs.seconds = pickle.loads(data)
            signs.step(1)
            given = (*arguments, signs.count) if method == "some" else arguments
            answer = "done", getattr(target, method)(*given)
        except Exception as exc:
            answer = "raised", exc
        signs.tell(*answer)


def _is_asked(requests: BinaryIO) -> bool:
    """Wait for the next request, but not for ever."""
    return sys.platform == "win32" or bool(select.select([requests], [], [], _IDLE)[0])


class _Signs:
    """Tells that the process is alive, and bounds how long it computes in between."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers
        self._told = 0.0
        self._done = 0
        self.seconds = 60.0

    def begin(self) -> None:
        """Begin to work on a request."""
        self._done = 0
        self._renew(0)

    def count(self) -> None:
        """Report that a file is done."""
        self._done += 1
        self._renew(0)

    def step(self, size: int) -> None:
        """Report that something is done, unless a report was sent a moment ago."""
        if size > 0 or time.monotonic() - self._told > _TOLD:
            self._renew(size)

    def _renew(self, size: int) -> None:
        self._told = time.monotonic()
        _bound_computing(self.seconds + size / _SLOW)
        self.tell("step", self._done)

    def tell(self, kind: str, value: Any) -> None:
        """Send a message."""
        try:
            data = message((kind, value))
        except Exception as exc:  # an exception of a library may not travel
            why = f"{type(value).__name__}: {value} ({exc})"
            data = message(("raised", RuntimeError(why)))
        self._answers.write(data)
        self._answers.flush()


def _bound_computing(seconds: float) -> None:
    """Have the system end this process once it has computed for this many seconds more."""
    try:
        import resource
    except ImportError:  # on Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(time.process_time() + seconds) + 1
    resource.setrlimit(
        resource.RLIMIT_CPU,
        (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most),
    )


def _bound_memory() -> None:
    """Use no more memory than there is, and be the first to be ended when memory is short."""
    try:
        import resource
    except ImportError:  # on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not sys.platform.startswith("linux"):
        return  # other systems do not keep to this limit
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        allowed = _MEMORY_OF_CGROUP.read_text().strip() if _MEMORY_OF_CGROUP.exists() else "max"
        if allowed.isdecimal():
            there = min(there, int(allowed))
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        if most == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_AS, (taken + there, most))
    except (OSError, ValueError):
        return  # if memory cannot be limited, it is not
