"""One call at a time for one group: a second caller is told who is at work.

The running call is a job of the repository, so it gives signs of life, and anyone who looks at
the jobs sees it. A call whose process is gone gives way to the next.
"""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from icechunk import AlreadyExistsError, Job, NotFoundError, Repository, SessionStateError

__all__ = ["alone"]

R = TypeVar("R")
#: A call that gave no sign of life for this many seconds counts as dead.
_LEASE: Final = 300.0
#: The calls that run in this process.
_tokens: set[str] = set()


def alone(
    repository: Repository, branch: str, name: str, what: str, function: Callable[[], R]
) -> R:
    """Call a function, unless a call of the same name is running anywhere.

    Parameters
    ----------
    repository : Repository
    branch : str
        A repository that exists.
    name : str
        The beginning of the names of the jobs that stand for calls.
    what : str
        What the call does, for an error.
    function : callable

    Raises
    ------
    SessionStateError
        If such a call is running and does not count as dead.
    """
    jobs = repository.jobs
    before = _refuse_beside(repository, name, "", what)
    mine = f"{name}{max(before, default=0) + 1}"
    about = _me()
    try:
        job = jobs.create(mine, branch=branch, message=what, about=about)
    except AlreadyExistsError:
        # it has just begun
        raise _running(jobs.open(mine), what) from None
    token = str(about["token"])
    _tokens.add(token)
    try:
        for number in _refuse_beside(repository, name, mine, what):
            with suppress(NotFoundError):
                jobs.delete(f"{name}{number}")
        return _run(job, function)
    finally:
        _tokens.discard(token)
        with suppress(NotFoundError):
            jobs.delete(mine)


def _run(job: Job, function: Callable[[], R]) -> R:
    """Call a function as the part of a job, for its signs of life; pass on what it raises."""
    results: list[R] = []
    errors: list[Exception] = []

    def call(store: Any, key: Any) -> None:
        try:
            results.append(function())
        except Exception as error:
            errors.append(error)

    try:
        job.run(call, keys=["call"], lease=_LEASE)
    except Exception:
        # what the call has done counts, even if the job was deleted meanwhile
        if not errors and not results:
            raise
    if errors:
        raise errors[0]
    return results[0]


def _refuse_beside(repository: Repository, name: str, mine: str, what: str) -> list[int]:
    """Return the numbers of other calls, which must be dead; refuse if one is not."""
    dead = []
    for each in repository.jobs.list():
        number = each.removeprefix(name)
        if each == mine or not each.startswith(name) or not number.isdecimal():
            continue
        try:
            job = repository.jobs.open(each)
        except NotFoundError:
            # it has just ended
            continue
        if _is_alive(job):
            raise _running(job, what)
        dead.append(int(number))
    return dead


def _running(job: Job, what: str) -> SessionStateError:
    about = job.about
    return SessionStateError(
        f"another call does this: {what}, since {str(about.get('since'))[:19]}Z at "
        f"{about.get('host')}, pid {about.get('pid')}. Wait until it has ended, and call this "
        "again: what it has done is left out then. To cancel it, end its process; what it has "
        f"committed stays. It is taken for dead {_LEASE:g} seconds after its last sign of life; "
        f"if you know that it is, Repository.jobs.delete({job.name!r}) lets the same call go on "
        "at once"
    )


def _is_alive(job: Job) -> bool:
    about = job.about
    if not _makes_sense(about):
        return False
    if about.get("machine") and about["machine"] == _me()["machine"]:
        if about["pid"] == os.getpid():
            return about["token"] in _tokens
        if not _is_process(about["pid"]):
            return False
    running = job.status().running
    if running:
        return not running[0].looks_dead
    # it is about to begin, or to end
    since = datetime.fromisoformat(about["since"])
    return abs(datetime.now(UTC) - since) < timedelta(seconds=_LEASE)


def _makes_sense(about: dict[str, Any]) -> bool:
    """Whether a call has said this of itself, and not somebody who may write anything."""
    like = _me()
    if any(type(about.get(name)) is not type(like[name]) for name in like if name != "machine"):
        return False
    try:
        has_zone = datetime.fromisoformat(about["since"]).tzinfo is not None
    except ValueError:
        return False
    return has_zone and 0 < about["pid"] < 1 << 31 and isinstance(about.get("machine"), str | None)


def _me() -> dict[str, Any]:
    return {
        "machine": _machine(),
        "host": platform.node() or "unknown",
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(),
        "token": uuid.uuid4().hex,
    }


def _machine() -> str | None:
    """Return the scope in which ids of processes are unique; None if nothing tells.

    The name of a host is not enough: containers may share it and number their own processes.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
