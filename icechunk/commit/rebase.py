"""Rebasing: carry a session's changes over to the newest snapshot of its branch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

from icechunk.base.threads import map_in_threads
from icechunk.changes.change_set import ChangeSet
from icechunk.commit.assets import Assets
from icechunk.commit.conflicts import ConflictSolver, carry_over, find_conflicts
from icechunk.errors import (
    ErrorKind,
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

    Every commit in between is looked at, oldest first.

    Raises
    ------
    RebaseFailedError
        If the solver cannot settle a conflict; it lists all with that commit, settled or not.
    SessionStateError
        If the log of a commit is missing.
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


def _path_to(
    info: RepoInfo, tip: bytes, base: bytes, known: set[bytes]
) -> tuple[_Path, bytes | None]:
    """Return the logs down to one of some snapshots, and that snapshot; None if none is there."""
    path: _Path = []
    for entry in info.ancestry(tip):
        if entry.id in known:
            return path, entry.id
        path.append((entry.id, entry.id))
        if base in entry.pruned:
            newer = entry.pruned[entry.pruned.index(base) + 1 :]
            return path + [(entry.id, log) for log in reversed(newer)], base
        path += [(entry.id, log) for log in reversed(entry.pruned)]
    return path, None


def _logs_between(
    assets: Assets, info: RepoInfo, base: bytes, tip: bytes
) -> Iterator[tuple[bytes, bytes, TransactionLog, Snapshot]]:
    """Yield the logs that lead from a base to a tip: id of a snapshot and log, log and snapshot.

    Expired commits count by their logs, which the next younger snapshot lists. A base that
    is not among the ancestors, because the branch was reset, is left by going up to the
    common ancestor: what was undone on that way counts as changed, too.
    """
    path, shared = _path_to(info, tip, base, {base})
    if shared is None and base in info.snapshots:
        # the whole history of the base: in spec version 1 each ancestor takes a request
        known = {entry.id for entry in info.ancestry(base)}
        path, shared = _path_to(info, tip, base, known)
    if shared is not None and shared != base:
        for entry in info.ancestry(base):
            if entry.id == shared:
                break
            path += [(tip, log) for log in (entry.id, *reversed(entry.pruned))]

    def fetch(names: tuple[bytes, bytes]) -> tuple[bytes, bytes, TransactionLog, Snapshot]:
        snapshot_id, log_id = names
        return snapshot_id, log_id, _log_of(assets, log_id), assets.snapshot(snapshot_id)

    path.reverse()
    for start in range(0, len(path), _AT_A_TIME):
        yield from map_in_threads(fetch, path[start : start + _AT_A_TIME], _AT_A_TIME)


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
