"""A queue of the writers that want to commit to one branch, kept as tickets in the storage.

Tickets do not belong to the format, and other clients ignore them::

    queue/<digest of the branch>/<number>    who waits, and which arrays they have changed

A writer waits until all tickets before its own are gone. The holder of a ticket writes it again
every few seconds. If a ticket was written long before the newest write of one's own ticket, by
the clock of the storage, its holder is dead and the ticket is deleted. So is that of a ticket
which was not written for as long while others waited, whatever its time is.

The queue only saves work. What protects a commit is the condition of the put that publishes it.
So it does no harm if two writers believe that it is their turn. If the queue cannot be read,
nobody waits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import random
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

from icechunk.base.threads import map_in_threads
from icechunk.base.time_limits import Heartbeat, call_within
from icechunk.commit import retrying
from icechunk.errors import ObjectNotFoundError, PreconditionFailedError, StorageError
from icechunk.storage.base import Storage

__all__ = ["QUEUE", "Place", "stand_in"]

_log = logging.getLogger(__name__)

QUEUE: Final = "queue/"
#: The holder of a ticket counts as dead after so many seconds without a sign of life.
LEASE: Final = 20.0
#: Who is in front for more seconds than this gives no more signs of life.
_LONGEST_TURN: Final = 900.0
#: The longest pause between two looks at the queue, in seconds.
_LONGEST_PAUSE: Final = 5.0
#: A ticket lists no more arrays than this. Without a list it may be any array.
_MOST_ARRAYS: Final = 10_000
#: Who presses Ctrl-C waits no longer than this for the ticket to be deleted, in seconds.
_IMPATIENT: Final = 0.5
_THREADS: Final = 16
#: Anybody may have written tickets: of each no more bytes are read, and no more tickets.
_MOST_BYTES: Final = 1 << 20
_MOST_READ: Final = 1000

#: Ids of the arrays that somebody has changed, None if it may be any.
Arrays: TypeAlias = Collection[bytes] | None


class Place:
    """One writer's place in the queue.

    Parameters
    ----------
    storage : Storage
    branch : str
    arrays : collection of bytes, optional
        Ids of the arrays that the commit changes.

    Attributes
    ----------
    puts : int
        How often the ticket was put.
    """

    def __init__(self, storage: Storage, branch: str, arrays: Arrays) -> None:
        digest = hashlib.blake2b(branch.encode(), digest_size=8).hexdigest()
        self._folder = f"{QUEUE}{digest}/"
        self._storage = storage
        self._key = ""
        self._data = _packed(branch, arrays)
        self._turn_began: float | None = None
        self._joined = retrying.clock()
        self._behind = 0
        #: When each ticket in front was last seen to change: its time, and that of ours.
        self._seen: dict[str, tuple[datetime, float]] = {}
        self.puts = 0

    def take(self) -> None:
        """Put a ticket behind all others."""
        numbers = [_number(meta.key) for meta in self._storage.list(self._folder)]
        number = max(numbers, default=0)
        while not self._key:
            number += 1
            key = f"{self._folder}{number:010d}"
            try:
                self._storage.put(key, self._data, if_absent=True)
            except PreconditionFailedError:
                # somebody else was faster, or the answer to a first attempt was lost
                if self._stored(key) != self._data:
                    continue
            self._key = key
            self.puts += 1

    def give_back(self, patience: float | None = None) -> None:
        """Delete the ticket, so that the next writer goes on; try for so many seconds."""
        if self._key:
            # otherwise the others wait until it looks dead
            with suppress(StorageError, TimeoutError):
                call_within(patience, self._storage.delete, [self._key])

    def show_life(self) -> None:
        """Write the ticket again, unless the turn takes so long that something is wrong."""
        began = self._turn_began
        if began is None or retrying.clock() - began < _LONGEST_TURN:
            self._storage.put(self._key, self._data)
            self.puts += 1

    def wait(self, meanwhile: Callable[[list[Arrays]], None]) -> None:
        """Return when no other writer is in front.

        Parameters
        ----------
        meanwhile : callable
            Called once, if there are others in front, with the arrays that each has changed.
        """
        is_first_look = True
        while True:
            asked = retrying.clock()
            ahead = self._ahead()
            if not ahead:
                break
            if is_first_look:
                is_first_look = False
                self._behind = len(ahead)
                meanwhile(self._arrays_of(ahead))
                continue
            retrying.pause(self._pause(len(ahead), retrying.clock() - asked))
        self._turn_began = retrying.clock()

    def _ahead(self) -> list[str]:
        """Return the tickets in front of this one. Delete those of dead holders."""
        listed = self._storage.list(self._folder)
        tickets = {meta.key: meta.last_modified for meta in listed if _number(meta.key)}
        mine = tickets.get(self._key)
        if mine is None:
            # somebody took this writer for dead
            self.show_life()
            return [key for key in tickets if key < self._key]
        oldest, now = mine - timedelta(seconds=LEASE), retrying.clock()
        before = self._seen
        self._seen = {
            key: before[key] if key in before and before[key][0] == seen else (seen, now)
            for key, seen in tickets.items()
        }
        dead = [
            key
            for key, (seen, since) in self._seen.items()
            if seen < oldest or (now - since > 2 * LEASE and key != self._key)
        ]
        if dead:
            _log.info("%d processes died while they waited to commit", len(dead))
            self._storage.delete(dead)
        return [key for key in tickets if key < self._key and key not in dead]

    def _pause(self, ahead: int, request: float) -> float:
        """Return how long to wait before the next look. It gets shorter towards the turn."""
        gone = self._behind - ahead
        # what a commit takes, as far as is known: some requests
        step = (retrying.clock() - self._joined) / gone if gone > 0 else 10 * request
        longest = min(max(request, (ahead - 0.75) * step / 2), _LONGEST_PAUSE)
        return random.uniform(longest / 2, longest)

    def _arrays_of(self, keys: list[str]) -> list[Arrays]:
        read = keys[:_MOST_READ]
        found = map_in_threads(lambda key: _arrays(self._stored(key)), read, _THREADS)
        return [*found, *([None] if len(keys) > len(read) else [])]

    def _stored(self, key: str) -> bytes | None:
        try:
            return bytes(self._storage.get(key, byte_range=(0, _MOST_BYTES)).data)
        except ObjectNotFoundError:
            return None


@contextmanager
def stand_in(
    storage: Storage, branch: str, arrays: Arrays, meanwhile: Callable[[list[Arrays]], None]
) -> Iterator[Place]:
    """Wait for the turn to commit to a branch, run the block, and let the next writer go on.

    Parameters
    ----------
    storage : Storage
        Of the repository.
    branch : str
    arrays : collection of bytes, optional
        Ids of the arrays that the commit changes.
    meanwhile : callable
        See `Place.wait`.

    Yields
    ------
    Place
    """
    place = Place(storage, branch, arrays)
    patience: float | None = None
    try:
        try:
            place.take()
        except StorageError as error:
            _go_on_after(error)
            yield place
            return
        with Heartbeat(LEASE / 4, place.show_life):
            try:
                place.wait(meanwhile)
            except StorageError as error:
                _go_on_after(error)
            yield place
    except KeyboardInterrupt:
        patience = _IMPATIENT
        raise
    finally:
        place.give_back(patience)


def _go_on_after(error: StorageError) -> None:
    _log.warning("the queue cannot be used, so this commit does not wait for others: %s", error)


def _packed(branch: str, arrays: Arrays) -> bytes:
    few = None if arrays is None or len(arrays) > _MOST_ARRAYS else arrays
    document: dict[str, Any] = {
        "branch": branch,
        "host": platform.node() or "unknown",
        "pid": os.getpid(),
        "token": uuid.uuid4().hex,
        "arrays": None if few is None else sorted(id.hex() for id in few),
    }
    return json.dumps(document).encode()


def _arrays(data: bytes | None) -> Arrays:
    """Return the arrays that a ticket lists. A holder that is gone changes none."""
    if data is None:
        return ()
    try:
        return {bytes.fromhex(text) for text in json.loads(data)["arrays"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _number(key: str) -> int:
    name = key.rpartition("/")[2]
    return int(name) if name.isdecimal() else 0
