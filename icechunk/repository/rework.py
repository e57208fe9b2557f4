"""Commits made from other commits: combine several, apply one to another branch, undo one.

Values are never copied: the new commit refers to the chunks that the old ones wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from icechunk.changes.change_set import ChangeSet
from icechunk.commit import publish
from icechunk.commit.building import now_microseconds
from icechunk.commit.retrying import Backoff
from icechunk.commit.version_names import branch_tip, require_snapshot, resolve_ref
from icechunk.errors import (
    ConflictError,
    ErrorKind,
    InvalidInputError,
    RebaseFailedError,
    SessionStateError,
)
from icechunk.format.ids import encode_id, new_object_id
from icechunk.format.metadata import with_reserved
from icechunk.format.repo_info import RepoInfo, SnapshotEntry, with_item
from icechunk.format.snapshot import Snapshot
from icechunk.format.transaction_log import Move, TransactionLog
from icechunk.format.updates import UpdateEntry, UpdateKind
from icechunk.session.context import SessionContext, SessionMode
from icechunk.session.replay import changes_between
from icechunk.session.session import Session
from icechunk.session.transplant import transplanted

__all__ = ["Rework"]

#: Metadata that belongs to the library, and does not describe a commit that is made again.
_RESERVED: Final = "__icechunk"


@dataclass(frozen=True)
class Rework:
    """Makes commits from other commits.

    Parameters
    ----------
    context : callable
        Returns what the sessions of the repository share.
    """

    _context: Callable[[], SessionContext]

    # -- several commits as one --------------------------------------------------------------
    def squash(
        self,
        branch: str,
        from_: str,
        message: str,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Combine the newest commits of a branch into one.

        The newest version of the branch stays the same, down to the last chunk; only its history
        gets shorter. The old commits stay in other branches and tags, and can be read by their
        ids until garbage is collected.

        Parameters
        ----------
        branch : str
        from_ : str
            The version below the commits to combine, such as ``"main~3"``. It stays.
        message : str
        metadata : mapping, optional
            For the new commit. Entries of the old commits stay unless this has one of the same
            name; among the old ones, the newest wins.

        Returns
        -------
        str
            Id of the new snapshot.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such branch or version.
        InvalidInputError
            If the version is not below the newest one of the branch.
        ConflictError
            If the branch moves in the meantime.

        Examples
        --------
        >>> repo.squash("main", "main~3", "the whole import")  # doctest: +SKIP
        """
        context = self._context()
        seen = context.state.look()
        publish.require_online(seen.info)
        tip, base = branch_tip(seen.info, branch), resolve_ref(seen.info, from_)
        above = list(_above(seen.info, tip, base))
        if not above:
            raise InvalidInputError(
                f"there is nothing to squash: {from_!r} is the newest snapshot of {branch!r}",
                ErrorKind.NO_CHANGES_TO_COMMIT,
            )
        assets = context.assets
        id = new_object_id()
        log = TransactionLog(id)
        noted: dict[str, Any] = {}
        for entry in reversed(above):
            for log_id in (*entry.pruned, entry.id):
                log = log.merge(assets.transaction_log(log_id), id)
            noted.update(_own_metadata(entry))
        old = assets.snapshot(tip)
        log = _outcome(log, assets.snapshot(base), old)
        version = context.state.spec_version
        snapshot = Snapshot.build(
            id=id,
            nodes=list(old.nodes()),
            flushed_at=max(now_microseconds(), above[-1].flushed_at + 1),
            message=message,
            metadata={**context.default_commit_metadata, **noted, **(metadata or {})},
            manifest_files=old.manifest_files,
            parent_id=base if version == 1 else None,
        )
        assets.write_transaction_log(log, spec_version=version)
        assets.write_snapshot(snapshot, spec_version=version)
        entry = SnapshotEntry(id, base, snapshot.flushed_at, snapshot.message, snapshot.metadata)

        def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
            now = publish.commit_tip(info, branch)
            if now != tip:
                raise ConflictError(encode_id(tip), encode_id(now))
            # if it expired meanwhile, its history is another one, or none
            if not _is_same(info, tip, base, above):
                raise ConflictError(
                    message=f"the history of {branch!r} changed while it was squashed: try again",
                    kind=ErrorKind.COMMIT_CONFLICT,
                )
            changed = replace(
                info,
                snapshots=with_item(info.snapshots, id, entry),
                branches=with_item(info.branches, branch, id),
            )
            if version == 1:
                return changed, UpdateEntry(kind=UpdateKind.BRANCH_RESET, name=branch, previous=tip)
            return changed, UpdateEntry(
                kind=UpdateKind.COMMIT_AMENDED, name=branch, snapshot=id, previous=tip
            )

        context.state.update(compute, seen=seen)
        return encode_id(id)

    # -- one commit applied again, and one undone ----------------------------------------------
    def cherry_pick(
        self,
        branch: str,
        commit: str,
        *,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Apply the changes of one commit to another branch, as a new commit.

        Parameters
        ----------
        branch : str
            The branch that gets a new commit.
        commit : str
            The commit, as `resolve` takes it: the newest of a branch, an id, a tag.
        message : str, optional
            Default: that of the commit.
        metadata : mapping, optional
            Added to that of the commit, and overriding it.

        Returns
        -------
        str
            Id of the new snapshot.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such branch or version.
        RebaseFailedError
            If the branch contradicts the commit. The error lists all `conflicts`: a chunk that is
            not what it was before the commit, or an array that is gone. Nothing is committed.
        SessionStateError
            If the branch has all these changes already, if the commit moved nodes, or if the
            version before it has expired.

        Examples
        --------
        >>> repo.cherry_pick("main", "experiment~1")  # doctest: +SKIP
        """
        return self._again(branch, commit, message, metadata, is_inverse=False)

    def revert(
        self,
        branch: str,
        commit: str,
        *,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Undo the changes of one commit, by a new commit.

        What was written before the commit is there again. What came after it stays. The
        history keeps both.

        Parameters
        ----------
        branch : str
            The branch that gets a new commit.
        commit : str
            The commit to undo, as `resolve` takes it.
        message : str, optional
            Default: that of the commit, as ``Revert "..."``.
        metadata : mapping, optional

        Returns
        -------
        str
            Id of the new snapshot.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such branch or version.
        RebaseFailedError
            If something was changed again since then. The error lists all `conflicts`. Nothing is
            committed.
        SessionStateError
            If nothing of the commit is left, if it moved nodes, or if the version before it has
            expired.

        Examples
        --------
        >>> repo.revert("main", "main~1")  # doctest: +SKIP
        """
        return self._again(branch, commit, message, metadata, is_inverse=True)

    def _again(
        self,
        branch: str,
        commit: str,
        message: str | None,
        metadata: Mapping[str, Any] | None,
        *,
        is_inverse: bool,
    ) -> str:
        context = self._context()
        info = context.state.load()
        publish.require_online(info)
        entry = require_snapshot(info, resolve_ref(info, commit))
        id = encode_id(entry.id)
        if entry.parent_id is None or entry.pruned:
            why = "it is the first of its history"
            raise _unknown(id, why if entry.parent_id is None else "the one before it has expired")
        before, after = self._read(entry.parent_id), self._read(entry.id)
        log = context.assets.transaction_log(entry.id)
        changes = changes_between(before, after)
        _check_told(changes, log, id)
        if is_inverse:
            before, after = after, before
            changes = changes_between(before, after)
        noted = {} if is_inverse else _own_metadata(entry)
        kind = "reverted" if is_inverse else "picked"
        noted = with_reserved({**noted, **(metadata or {})}, **{kind: id})
        if message is None:
            message = f'Revert "{entry.message}"' if is_inverse else entry.message
        needs = [after.tree.snapshot.id]
        backoff = Backoff(context.state.retries)
        for _ in range(context.state.retries.max_tries):
            tip = branch_tip(context.state.load(), branch)
            found, conflicts = transplanted(changes, before, self._read(tip))
            if conflicts:
                raise RebaseFailedError(encode_id(tip), conflicts)
            session = Session(context, tip, SessionMode.writable, branch, [found], needs)
            try:
                return session.commit(message, noted)
            except ConflictError as error:
                if error.kind is not ErrorKind.COMMIT_CONFLICT:
                    raise
                backoff.pause(1)
        raise ConflictError(
            message=f"gave up: others kept committing to {branch!r}; try again",
            kind=ErrorKind.UPDATE_ATTEMPTS_EXHAUSTED,
        )

    def _read(self, id: bytes) -> Session:
        return Session(self._context(), id, SessionMode.readonly)


def _above(info: RepoInfo, tip: bytes, base: bytes) -> Iterator[SnapshotEntry]:
    """Yield the history of a version back to another one, which is not included.

    Raises
    ------
    InvalidInputError
        If that version is not in the history.
    """
    for entry in info.ancestry(tip):
        if entry.id == base:
            return
        yield entry
    raise InvalidInputError(
        f"snapshot {encode_id(base)} is not an ancestor of {encode_id(tip)}: name a version below "
        "it",
        ErrorKind.BAD_SNAPSHOT_CHAIN_FOR_DIFF,
    )


def _is_same(info: RepoInfo, tip: bytes, base: bytes, above: list[SnapshotEntry]) -> bool:
    """Whether these are still between two versions."""
    try:
        return [each.id for each in _above(info, tip, base)] == [each.id for each in above]
    except InvalidInputError:
        return False


def _outcome(log: TransactionLog, before: Snapshot, after: Snapshot) -> TransactionLog:
    """Return what a log says about nodes in either of two versions, and only them.

    The result is the log of a single session: it does not mention what came and went, and
    says of a new node only that it is new (Icechunk spec, "Transaction logs").
    """
    old = {node.id: node.path for node in before.nodes()}
    new = {node.id: node.path for node in after.nodes()}
    both = old.keys() & new.keys()

    def among(ids: Iterable[bytes], known: Collection[bytes]) -> tuple[bytes, ...]:
        return tuple(id for id in ids if id in known)

    return TransactionLog(
        log.id,
        new_groups=among(log.new_groups, new.keys() - old.keys()),
        new_arrays=among(log.new_arrays, new.keys() - old.keys()),
        deleted_groups=among(log.deleted_groups, old.keys() - new.keys()),
        deleted_arrays=among(log.deleted_arrays, old.keys() - new.keys()),
        updated_arrays=among(log.updated_arrays, both),
        updated_groups=among(log.updated_groups, both),
        updated_chunks={id: parts for id, parts in log.updated_chunks.items() if id in new},
        moved_nodes=tuple(
            Move(old[move.node_id], new[move.node_id], move.node_id, move.is_array)
            for move in log.moved_nodes
            if move.node_id in both and old[move.node_id] != new[move.node_id]
        ),
    )


def _own_metadata(entry: SnapshotEntry) -> dict[str, Any]:
    return {name: value for name, value in entry.metadata.items() if name != _RESERVED}


def _check_told(changes: ChangeSet, log: TransactionLog, id: str) -> None:
    """Refuse a commit whose parent is not the version that it was made on.

    Expiration in spec version 1 leaves such commits, and so do clients 2.0, which forget.
    """
    nodes = {*log.new_arrays, *log.new_groups, *log.deleted_arrays, *log.deleted_groups}
    nodes |= {*log.updated_arrays, *log.updated_groups}
    changed = {node.id for node in changes.new_nodes.values()}
    changed |= changes.deleted.keys() | changes.updated.keys()
    if not changed <= nodes or not changes.chunks.keys() <= nodes | log.updated_chunks.keys():
        raise _unknown(id, "the one before it has expired")


def _unknown(id: str, why: str) -> SessionStateError:
    return SessionStateError(
        f"what snapshot {id} changed cannot be said: {why}", ErrorKind.NOT_ALLOWED
    )
