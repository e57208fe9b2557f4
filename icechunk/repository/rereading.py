"""Whether something is damaged, or could only not be read just now, or is not needed any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from icechunk.commit.publish import RepoState
from icechunk.errors import ErrorKind, FormatError, IcechunkError
from icechunk.format.repo_info import RepoInfo

__all__ = ["READS", "check_damage", "read_again", "while_others_collect"]

#: How often something is read before it counts as damaged.
READS: Final = 4
#: How often collections may delete what something is about to read.
_OTHERS: Final = 10
_MISSING: Final = (ErrorKind.OBJECT_NOT_FOUND, ErrorKind.SNAPSHOT_NOT_FOUND)

T = TypeVar("T")


def check_damage(error: IcechunkError) -> None:
    """Raise an error again unless it says that something is damaged or missing.

    Another request may succeed later. Whoever goes on without what it asked for gives away
    what is there.
    """
    if not isinstance(error, FormatError) and error.kind not in _MISSING:
        raise error


def read_again(read: Callable[[], T]) -> T:
    """Return what is read. Damage counts if several reads meet it: servers send odd things, too."""
    for _ in range(READS - 1):
        try:
            return read()
        except IcechunkError as error:
            check_damage(error)
    return read()


def while_others_collect(state: RepoState, act: Callable[[Callable[[RepoInfo], RepoInfo]], T]) -> T:
    """Do something with the current state, again if a collection deleted what the state named.

    Parameters
    ----------
    state : RepoState
    act : callable
        Called with a function, to which it gives the state that it works with.

    Raises
    ------
    SnapshotNotFoundError, StorageError
        If the current state needs what is missing: that is damage.
    """
    seen: list[RepoInfo] = []

    def note(info: RepoInfo) -> RepoInfo:
        seen.append(info)
        return info

    missing = ""
    for _ in range(_OTHERS - 1):
        try:
            return act(note)
        except IcechunkError as error:
            # needed by what is there now, it is damage
            if error.kind not in _MISSING or missing == str(error):
                raise
            if seen and seen[-1].updates and state.load().updates[0] == seen[-1].updates[0]:
                raise
            # in spec 1 no object says whether something changed: what is there now may need it
            missing = str(error)
    return act(note)
