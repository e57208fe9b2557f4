"""What a fork knows about its copies in other processes.

A fork that is pickled has copies, and what is written to them is not written to the fork
itself. Merging the fork without them would silently lose that, so it is refused.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable

from icechunk.base.texts import counted
from icechunk.errors import ErrorKind, SessionStateError


class Copies:
    """The copies of one session: those that were sent, and those that came back.

    Parameters
    ----------
    originals : iterable of bytes
        Ids of the objects that this one is a copy of, directly or through other copies.
    """

    def __init__(self, originals: Iterable[bytes] = ()) -> None:
        self._id = os.urandom(16)
        # the ids whose copies are here, or were merged into what is here
        self._back = frozenset(originals)
        self._out = frozenset[bytes]()

    def send(self) -> list[bytes]:
        """Record that a copy is made, and return its originals.

        A copy that Dask makes to find a name for a task goes nowhere and does not count.
        """
        if not _makes_a_name():
            self._out |= {self._id}
        return [*self._back, self._id]

    def take_over(self, others: Iterable[Copies]) -> None:
        """Record that other sessions were merged into this one."""
        for other in others:
            self._out |= other._out
            self._back |= other._back

    def check(self, others: Iterable[Copies]) -> None:
        """Refuse to merge a fork if a copy of it was sent and none came back.

        Raises
        ------
        SessionStateError
        """
        others = list(others)
        back = self._back.union(*(other._back for other in others))
        lost = [other for other in others if other._out - back]
        if lost:
            which = (
                "the fork" if len(others) == 1 else f"{len(lost)} of {counted(len(others), 'fork')}"
            )
            raise SessionStateError(
                f"cannot merge: copies of {which} were sent to other processes, and what these "
                "wrote is in the copies only; return the forks from the tasks, and merge what "
                "comes back. With Dask, icechunk.xarray.to_icechunk and icechunk.dask.store_dask "
                "do that. If the copies were read and not written, "
                "session.merge_change_sets([fork.change_set_bytes()]) merges the fork as it is",
                ErrorKind.MERGE_NOT_ALLOWED,
            )


def _makes_a_name() -> bool:
    """Whether the caller is Dask's `tokenize`, which pickles types that it does not know."""
    frame = inspect.currentframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name == "normalize_object" and module.startswith("dask."):
            return True
        frame = frame.f_back
    return False
