"""Send one write under a condition until its outcome is known.

A failed write has three possible outcomes. It was done, and only the answer was lost; it was
not done; or nobody can say, because looking fails as well. The last is an answer of its own,
`OutcomeUnknownError`, and is never taken for one of the others.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from icechunk.base.deadline import seconds_left
from icechunk.base.texts import counted
from icechunk.commit import retrying
from icechunk.commit.retrying import Backoff
from icechunk.config.storage_settings import EffectiveRetries
from icechunk.errors import (
    ErrorKind,
    IcechunkError,
    OutcomeUnknownError,
    PreconditionFailedError,
    StorageError,
)
from icechunk.format.ids import encode_id
from icechunk.format.updates import UpdateEntry, UpdateKind

__all__ = ["Outcome", "Write", "deliver"]

_log = logging.getLogger(__name__)

#: How often a write is sent although nobody else was faster.
_MAX_SENT: Final = 8
#: How often the stored state is looked at, and for how many seconds.
_MAX_LOOKS: Final = 6
_LOOKING: Final = 30.0
#: The longest pause before the second look, in seconds; later ones are longer.
_FIRST_PAUSE: Final = 0.1


class Outcome(Enum):
    """What is stored after a failed write."""

    #: What was written, or something that came after it.
    DONE = "done"
    #: What somebody else wrote: the condition will never hold again.
    LOST = "lost"
    #: What was there before.
    OPEN = "open"


@dataclass(frozen=True)
class Write:
    """One write under a condition.

    Attributes
    ----------
    send : callable
        Raises a `StorageError` if it fails.
    look : callable
        Returns the `Outcome`, as far as the stored state shows it.
    is_ours : bool
        Whether nobody else would write the same. Otherwise, a condition that fails at the
        first try means that somebody else was faster, even if they did the same.
    """

    send: Callable[[], object]
    look: Callable[[], Outcome]
    is_ours: bool = True


def deliver(write: Write, entry: UpdateEntry, url: str, retries: EffectiveRetries) -> bool:
    """Send a write; return False if somebody else was faster.

    Parameters
    ----------
    write : Write
    entry : UpdateEntry
        What it is about, for messages.
    url : str
        The storage, likewise.
    retries : EffectiveRetries

    Raises
    ------
    OutcomeUnknownError
        If nobody knows whether it was done.
    StorageError
        If it was refused, and looking shows that nothing was written.
    """
    backoff = Backoff(retries)
    sent = 0
    while True:
        sent += 1
        try:
            write.send()
            return True
        except StorageError as error:
            refused = isinstance(error, PreconditionFailedError)
            if refused and sent == 1 and not write.is_ours:
                return False
            outcome = _look(write, entry, url, error)
            if outcome is not Outcome.OPEN:
                return outcome is Outcome.DONE
            if (
                sent == min(_MAX_SENT, retries.max_tries)
                or not _is_transient(error)
                or seconds_left() <= 0
            ):
                raise _failed(error, sent, url) from error
            _log.info("%s; nothing was written, so it is sent again", error)
        backoff.pause(0)


def _is_transient(error: StorageError) -> bool:
    # an answer of a file system stays true for a while
    return error.transient and error.kind is not ErrorKind.IO


def _failed(error: StorageError, sent: int, url: str) -> StorageError:
    if isinstance(error, PreconditionFailedError):
        return StorageError(
            f"gave up after {counted(sent, 'attempt')}: {url} refuses a put under a condition "
            f"that holds, "
            f"as nobody else has written ({error.message}); try again later, and if that does "
            "not help, see whether this service supports conditional puts",
            error.kind,
        )
    if sent == 1:
        return error
    return StorageError(f"{error.message}; gave up after {counted(sent, 'attempt')}", error.kind)


def _look(write: Write, entry: UpdateEntry, url: str, error: StorageError) -> Outcome:
    """Return the outcome of a write, as soon as there is an answer."""
    began = retrying.clock()
    for number in range(_MAX_LOOKS):
        if number:
            retrying.pause(random.uniform(0, _FIRST_PAUSE * 2**number))
        try:
            return write.look()
        except IcechunkError as failure:
            last = failure
        if retrying.clock() - began > _LOOKING or seconds_left() <= 0:
            break
    raise _unknown(entry, url, error, last) from error


#: What a change does to the thing that it names.
_DONE: Final = {
    UpdateKind.REPO_INITIALIZED: "the repository was created",
    UpdateKind.CONFIG_CHANGED: "the configuration was saved",
    UpdateKind.METADATA_CHANGED: "the metadata of the repository was set",
    UpdateKind.TAG_CREATED: "the tag {name!r} was created",
    UpdateKind.TAG_DELETED: "the tag {name!r} was deleted",
    UpdateKind.BRANCH_CREATED: "the branch {name!r} was created",
    UpdateKind.BRANCH_DELETED: "the branch {name!r} was deleted",
    UpdateKind.BRANCH_RESET: "the branch {name!r} was reset",
    UpdateKind.NEW_COMMIT: "snapshot {id} was committed to branch {name!r}",
    UpdateKind.COMMIT_AMENDED: "the newest snapshot of branch {name!r} was replaced by {id}",
    UpdateKind.NEW_DETACHED_SNAPSHOT: "snapshot {id} was registered",
    UpdateKind.GC_RAN: "the snapshots to be collected were taken out",
    UpdateKind.EXPIRATION_RAN: "the snapshots were expired",
    UpdateKind.FEATURE_FLAG_CHANGED: "the feature flag was set",
    UpdateKind.REPO_STATUS_CHANGED: "the status of the repository was set",
}
_COMMITS: Final = (UpdateKind.NEW_COMMIT, UpdateKind.COMMIT_AMENDED)


def _unknown(
    entry: UpdateEntry, url: str, error: StorageError, last: IcechunkError
) -> OutcomeUnknownError:
    id = encode_id(entry.snapshot) if entry.snapshot is not None else None
    what = _DONE.get(entry.kind, "the change was made").format(name=entry.name, id=id)
    advice = (
        "commit again with this session: it finds out, and does not commit twice"
        if entry.kind in _COMMITS
        else "look before you do it again"
    )
    return OutcomeUnknownError(
        f"it is not known whether {what} in {url}; it may have been. The put failed "
        f"({error.message}), and so did looking ({last.message}); {advice}",
        branch=entry.name if entry.kind in _COMMITS else None,
        snapshot=id,
    )
