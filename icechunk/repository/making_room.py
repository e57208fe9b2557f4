"""Free space for the one write that a collection needs on a full disk.

What no listed version needs can be deleted first. If there is nothing of that kind, the
transaction logs of versions that are about to be dropped are deleted: reading data does not need
them, and `Repository.repair` can rebuild them if this process is killed in between.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from icechunk.commit.publish import RepoState
from icechunk.errors import ObjectNotFoundError, StorageError
from icechunk.format import layout
from icechunk.format.repo_info import RepoInfo
from icechunk.repository.garbage import Collector, DeleteLimits
from icechunk.repository.live_record import RECORD_KEY
from icechunk.repository.ops import GCSummary
from icechunk.storage.base import BytesLike, Storage

__all__ = ["added", "is_full", "make_room", "without_logs"]

_log = logging.getLogger(__name__)

#: Fields of a summary that add up.
_COUNTS: Final = (
    "bytes_deleted",
    "chunks_deleted",
    "manifests_deleted",
    "snapshots_deleted",
    "transaction_logs_deleted",
    "objects_failed_to_delete",
    "delete_errors",
)
#: The minimum size of a file on most file systems.
_BLOCK: Final = 4096
#: For folders, and names in them.
_SPARE: Final = 16 * _BLOCK


def is_full(error: BaseException) -> bool:
    """Whether an error says that a storage has no room left."""
    # an error that was caught and raised again may be in its own chain of contexts
    seen = [error]
    for each in seen:
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen += [e for e in (each.__cause__, each.__context__) if e is not None and e not in seen]
    return False


def make_room(
    collector: Collector, info: RepoInfo, limits: DeleteLimits, storage: Storage
) -> GCSummary:
    """Delete what no listed version needs, and the record, which only saves the next run time."""
    _log.info("%s is full: making room first", storage.url)
    collector.keep(info, all_listed=True)
    done = collector.delete(limits, dry_run=False)
    storage.delete([RECORD_KEY])
    return done


def added(first: GCSummary, then: GCSummary) -> GCSummary:
    """Return the sum of what a first collection deleted and a second one that completed it."""
    both: dict[str, Any] = {name: getattr(first, name) + getattr(then, name) for name in _COUNTS}
    return replace(then, **both)


@contextmanager
def without_logs(
    state: RepoState, storage: Storage, remaining: Callable[[RepoInfo], RepoInfo]
) -> Iterator[None]:
    """Delete transaction logs while the block publishes; put back those that are still needed.

    Parameters
    ----------
    state : RepoState
    storage : Storage
    remaining : callable
        Returns a state without the versions that are about to be dropped.
    """
    seen = state.look()
    info = seen.info
    wanted = 2 * len(memoryview(seen.data or b"")) + _SPARE
    taken: dict[bytes, BytesLike] = {}
    for id in sorted(info.snapshots.keys() - remaining(info).snapshots.keys()):
        if wanted <= 0:
            break
        try:
            taken[id] = storage.get(layout.transaction_key(id)).data
        except ObjectNotFoundError:
            continue
        wanted -= max(len(memoryview(taken[id])), _BLOCK)
    _log.info("%d transaction logs of dropped versions make room", len(taken))
    try:
        storage.delete(map(layout.transaction_key, taken))
        yield
    finally:
        listed = state.load().snapshots
        for id in taken.keys() & listed.keys():
            try:
                storage.put(layout.transaction_key(id), taken[id])
            except StorageError as error:
                _log.error(
                    "%s could not be put back; Repository.repair makes it anew: %s",
                    layout.transaction_key(id),
                    error,
                )
