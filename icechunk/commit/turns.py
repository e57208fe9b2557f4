"""Turns of the threads of one process at the repo info, and commits that share one put.

Whoever has the turn publishes; the others wait. A commit that waits may go along: the one that has
the turn, its host, shows it the state that is about to be published. The guest builds on top of
that, in its own thread, and hands its change over. Then one conditional put publishes all of them,
or none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, TypeAlias

from icechunk.base import deadline
from icechunk.base.threads import AT_ONCE
from icechunk.errors import ConflictError, ErrorKind
from icechunk.format.repo_info import RepoInfo
from icechunk.format.updates import UpdateEntry
from icechunk.storage.base import BytesLike

__all__ = ["Compute", "Fate", "Guest", "Seen", "Turns"]

#: Computes the next state, and what the operations log says about the change.
Compute: TypeAlias = Callable[[RepoInfo], tuple[RepoInfo, UpdateEntry]]

#: Commits in one put.
_MOST: Final = 32
#: How long a host waits for a guest that builds, in seconds.
_PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The state of a repository at some moment.

    Attributes
    ----------
    info : RepoInfo
    etag : str or None
        Its version; None in spec version 1, where each ref has one.
    data : bytes-like or None
        As it is stored.
    """

    info: RepoInfo
    etag: str | None
    data: BytesLike | None = field(default=None, repr=False, compare=False)


class Fate(Enum):
    """What became of a change that was handed over."""

    #: It was published.
    DONE = "done"
    #: It was not, and never will be.
    LOST = "lost"
    #: Nobody has said so: it may have been published.
    UNKNOWN = "unknown"


class Guest:
    """A commit that waits, and may go along with the one that has the turn.

    Parameters
    ----------
    branch : str or None
        None for one that waits, but goes along with nobody.

    Attributes
    ----------
    seen : Seen or None
        What to build upon, once a host asks: a state that is not published yet.
    change : callable or None
        What it hands over.
    is_gone : bool
        Whether it hands nothing over any more.
    fate : Fate or None
    """

    def __init__(self, branch: str | None) -> None:
        self.branch = branch
        self.seen: Seen | None = None
        self.change: Compute | None = None
        self.is_gone = False
        self.fate: Fate | None = None


class Turns:
    """Who may publish, of the threads of a process. One thread may enter more than once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: int | None = None
        self._waiting: list[Guest] = []
        self.depth = 0

    # -- to wait ---------------------------------------------------------------------------
    def take(self, guest: Guest | None = None) -> bool:
        """Wait for the turn, and return True; False if the guest is asked to go along.

        Raises
        ------
        TimeoutError
            If the time limit of this thread has passed.
        """
        me = threading.get_ident()
        with self._changed:
            if self._holder != me:
                waits = guest or Guest(None)
                self._waiting.append(waits)
                try:
                    # who came first is served first
                    while self._holder is not None or self._waiting[0] is not waits:
                        if waits.seen is not None and not waits.is_gone:
                            return False
                        self._wait()
                except BaseException:
                    waits.is_gone = True
                    raise
                finally:
                    self._waiting.remove(waits)
                    self._changed.notify_all()
            self._holder = me
            self.depth += 1
            return True

    def give(self) -> None:
        """Let the next one have the turn."""
        with self._changed:
            self.depth -= 1
            if not self.depth:
                self._holder = None
            self._changed.notify_all()

    def _wait(self, seconds: float = AT_ONCE) -> None:
        left = deadline.seconds_left()
        if left <= 0:
            raise TimeoutError
        self._changed.wait(min(seconds, left, AT_ONCE))

    # -- for guests ------------------------------------------------------------------------
    def hand_over(self, guest: Guest, change: Compute) -> Fate:
        """Let the host publish a change, and return what became of it."""
        with self._changed:
            if guest.is_gone:  # the host did not wait so long
                return Fate.LOST
            guest.change = change
            self._changed.notify_all()
            while guest.fate is None:
                try:
                    self._wait()
                except TimeoutError:
                    return Fate.UNKNOWN
            return guest.fate

    def leave(self, guest: Guest) -> None:
        """Let the host go on without a guest that has handed nothing over."""
        with self._changed:
            guest.is_gone = True
            self._changed.notify_all()

    # -- for the host ----------------------------------------------------------------------
    @contextmanager
    def together(self, seen: Seen, branch: str | None, change: Compute) -> Iterator[list[Compute]]:
        """Yield a change, and those of guests that go along; the block publishes them.

        Guests learn from the end of the block what became of theirs.

        Parameters
        ----------
        seen : Seen
            What the change applies to.
        branch : str or None
            Of the host, which has the turn; None to take nobody along.
        change : Compute
        """
        changes, guests = [change], list[Guest]()
        fate = Fate.UNKNOWN
        try:
            info = seen.info if branch is None else change(seen.info)[0]
            while len(changes) < _MOST and (guest := self._next(branch)) is not None:
                guests.append(guest)
                made = self._ask(guest, replace(seen, info=info, data=None))
                if made is not None:
                    info, _ = made(info)
                    changes.append(made)
            yield changes
            fate = Fate.DONE
        except ConflictError as error:
            if error.kind is ErrorKind.COMMIT_CONFLICT:
                fate = Fate.LOST
            raise
        finally:
            with self._changed:
                for guest in guests:
                    guest.fate = fate
                    guest.is_gone |= guest.change is None
                self._changed.notify_all()

    def _next(self, branch: str | None) -> Guest | None:
        if branch is None:
            return None
        with self._changed:
            fit = (g for g in self._waiting if g.branch == branch and g.seen is None)
            return next(fit, None)

    def _ask(self, guest: Guest, seen: Seen) -> Compute | None:
        """Return the change of a guest; None if it does not come along, or not soon."""
        end = deadline.clock() + min(_PATIENCE, deadline.seconds_left())
        with self._changed:
            guest.seen = seen
            self._changed.notify_all()
            while guest.change is None and not guest.is_gone:
                left = end - deadline.clock()
                if left <= 0:
                    guest.is_gone = True
                    break
                self._changed.wait(min(left, AT_ONCE))
            return guest.change
