"""Rebasing: carry a session's changes over to the newest snapshot of its branch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

from icechunk.base.threads import map_in_threads
from icechunk.changes.change_set import ChangeSet
from icechunk.commit.assets import Assets
from icechunk.commit.conflicts import ConflictSolver, carry_over, find_conflicts
from icechunk.commit.relog import log_between
from icechunk.errors import (
    ErrorKind,
    IcechunkError,
    RebaseFailedError,
    SessionStateError,
    StorageError,
)
from icechunk.format.ids import encode_id
from icechunk.format.repo_info import RepoInfo
from icechunk.format.snapshot import Snapshot
from icechunk.format.transaction_log import TransactionLog

#: Commits that are read at the same time.
_AT_A_TIME: Final = 8


def rebase(
    assets: Assets, info: RepoInfo, changes: ChangeSet, tip: bytes, solver: ConflictSolver
) -> ChangeSet:
    """Return changes on top of `tip` that say what `changes` say on top of their base.

    Every commit in between is looked at, oldest first; where there is no way from one to the
    other, what differs is.

    Raises
    ------
    RebaseFailedError
        If the solver cannot settle a conflict; it lists all with that commit, settled or not.
    SessionStateError
        If the log of a commit is missing, or the base where there are no logs from it to the tip.
    """
    for snapshot_id, log_id, log, theirs in _logs_between(assets, info, changes.base, tip):
        conflicts = find_conflicts(changes, log, theirs)
        chosen = solver.for_commit(encode_id(log_id))
        if not all(chosen.settles(conflict) for conflict in conflicts):
            raise RebaseFailedError(encode_id(snapshot_id), conflicts)
        changes = carry_over(changes, log, theirs, drop_chunks=chosen.drops_our_chunks)
    changes.base = tip
    return changes


#: Pairs of a snapshot to compare to and a log, newest first.
_Path: TypeAlias = list[tuple[bytes, bytes]]


def _path_to(info: RepoInfo, tip: bytes, base: bytes) -> _Path | None:
    """Return the logs from a tip down to a base; None if that is not among the ancestors."""
    path: _Path = []
    for entry in info.ancestry(tip):
        if entry.id == base:
            return path
        path.append((entry.id, entry.id))
        if base in entry.pruned:
            newer = entry.pruned[entry.pruned.index(base) + 1 :]
            return path + [(entry.id, log) for log in reversed(newer)]
        path += [(entry.id, log) for log in reversed(entry.pruned)]
    return None


def _logs_between(
    assets: Assets, info: RepoInfo, base: bytes, tip: bytes
) -> Iterator[tuple[bytes, bytes, TransactionLog, Snapshot]]:
    """Yield the logs that lead from a base to a tip: id of a snapshot and log, log and snapshot.

    Expired commits count by their logs, which the next younger snapshot lists. A base is not
    among the ancestors where the branch was reset, or its commit was amended or squashed: then the
    two versions are compared, and what they have in common did not change.
    """
    path = _path_to(info, tip, base)
    if path is None:
        yield tip, tip, *_difference(assets, base, tip)
        return

    def fetch(names: tuple[bytes, bytes]) -> tuple[bytes, bytes, TransactionLog, Snapshot]:
        snapshot_id, log_id = names
        return snapshot_id, log_id, _log_of(assets, log_id), assets.snapshot(snapshot_id)

    path.reverse()
    for start in range(0, len(path), _AT_A_TIME):
        yield from map_in_threads(fetch, path[start : start + _AT_A_TIME], _AT_A_TIME)


def _difference(assets: Assets, base: bytes, tip: bytes) -> tuple[TransactionLog, Snapshot]:
    """Return what makes the tip of the base, and the tip."""
    now = assets.snapshot(tip)
    try:
        return log_between(assets, assets.snapshot(base), now), now
    except IcechunkError as error:
        if error.kind not in (ErrorKind.SNAPSHOT_NOT_FOUND, ErrorKind.OBJECT_NOT_FOUND):
            raise  # it may be read later
        raise SessionStateError(
            f"cannot rebase: {error}; the session began on snapshot {encode_id(base)}, which is "
            "not in the history of the branch any more; discard the changes and write them again "
            "on the newest snapshot",
            ErrorKind.REBASE_TX_LOG_PRUNED,
        ) from error


def _log_of(assets: Assets, log_id: bytes) -> TransactionLog:
    try:
        return assets.transaction_log(log_id)
    except StorageError as error:
        if error.kind is not ErrorKind.OBJECT_NOT_FOUND:
            raise  # it may be read later
        raise SessionStateError(
            f"cannot rebase: the transaction log of snapshot {encode_id(log_id)} is missing; "
            "discard the changes and write them again on the newest snapshot",
            ErrorKind.REBASE_TX_LOG_PRUNED,
        ) from error
