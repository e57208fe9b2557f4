"""How far this machine's clock is ahead of that of a storage, which sets the times of objects."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from icechunk.errors import StorageError
from icechunk.format import layout
from icechunk.format.ids import encode_id, new_object_id
from icechunk.storage.base import Storage

__all__ = ["CLOCK_PROBES", "ahead_of_storage"]

_log = logging.getLogger(__name__)

#: Objects that were put to learn a time; litter if they are still there.
CLOCK_PROBES: Final = f"{layout.OVERWRITTEN}clock-"
#: The most that may lie between two requests, or between two correct clocks.
_TOLERANCE: Final = timedelta(seconds=5)


def ahead_of_storage(storage: Storage) -> timedelta:
    """Return how far the clock of this machine is ahead of the storage's; 0 if it is not.

    An object is put, read and deleted. If that fails, as on a full disk, the result is 0.
    """
    key = CLOCK_PROBES + encode_id(new_object_id())
    try:
        before = datetime.now(UTC)
        storage.put(key, b"-")
        written = _written(storage, key)
        # not after an interrupt, to avoid another wait; collections delete old probes
        with suppress(StorageError):
            storage.delete([key])
    except StorageError as error:
        _log.info("the clock of %s is not known: %s", storage.url, error)
        return timedelta(0)
    if written is None:
        return timedelta(0)
    # times without a fraction may be any moment of that second
    latest = written + timedelta(seconds=1 if written.microsecond == 0 else 0)
    ahead = before - latest
    if ahead <= _TOLERANCE:
        return timedelta(0)
    _log.warning(
        "the clock of this machine is %s ahead of that of %s: objects are kept so much longer",
        ahead,
        storage.url,
    )
    return ahead


def _written(storage: Storage, key: str) -> datetime | None:
    with suppress(StorageError):
        return storage.get(key).last_modified
    return None
