"""Upgrade a repository from spec version 1 to version 2.

Icechunk spec, "Migration". Snapshots, manifests and transaction logs stay unchanged;
only the repo info, which lists them, is new. It is stored with one put: before it, nothing
has changed; after it, the upgrade is complete, and what version 2 does not use can be
deleted safely.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from icechunk.base.texts import COLLECTED
from icechunk.commit import publish_v1
from icechunk.commit.building import now_microseconds
from icechunk.commit.publish import exists
from icechunk.commit.publish_v1 import AllRefs
from icechunk.config import RepositoryConfig
from icechunk.errors import (
    ErrorKind,
    FormatError,
    InvalidatedRepositoryError,
    InvalidInputError,
    ReadOnlyError,
    SessionStateError,
    SnapshotNotFoundError,
    StorageError,
)
from icechunk.format import layout
from icechunk.format.encoding import flexbuf
from icechunk.format.ids import encode_id
from icechunk.format.repo_info import RepoInfo, SnapshotEntry, encode_repo_info
from icechunk.format.spec import SpecVersion
from icechunk.format.updates import Status, UpdateEntry, UpdateKind
from icechunk.repository.branches_and_tags import MAIN
from icechunk.repository.repository import Repository
from icechunk.repository.rereading import while_others_collect

__all__ = ["upgrade_icechunk_repository"]

_LOG: Final = logging.getLogger(__name__)
#: Microseconds between a snapshot and the refs that the reconstructed log gives it.
_MILLISECOND: Final = 1000


def upgrade_icechunk_repository(
    repo: Repository,
    *,
    dry_run: bool,
    delete_unused_v1_files: bool = True,
    prefetch_concurrency: int | None = None,
) -> Repository:
    """Upgrade a repository from spec version 1 to version 2, for clients 2.x.

    Nobody else should write to the repository in the meantime: they may see either version.
    No data is copied or rewritten. If the upgrade fails or is killed, the repository is
    complete, in version 1 or in version 2, and the upgrade can be run again. Each
    step is logged, at level INFO.

    Parameters
    ----------
    repo : Repository
    dry_run : bool
        Read everything and compute the result, but write nothing.
    delete_unused_v1_files : bool, default True
        Delete what version 2 does not use: refs and configuration, which are in the repo
        info now. As long as they are there, clients 1.x continue with version 1.
    prefetch_concurrency : int, optional
        Snapshots that are read at the same time. Default: 64.

    Returns
    -------
    Repository
        The repository, opened again. After an upgrade, `repo` itself refuses to go on.

    Raises
    ------
    SessionStateError
        If the repository already has version 2, and nothing of version 1 is left.
    ReadOnlyError
        If the storage does not allow writes.
    FormatError
        If a part of the history is missing or damaged. Nothing is changed then.

    Examples
    --------
    >>> old = icechunk.Repository.create(icechunk.in_memory_storage(), spec_version=1)
    >>> icechunk.upgrade_icechunk_repository(old, dry_run=False)  # doctest: +SKIP
    """
    concurrency = 64 if prefetch_concurrency is None else prefetch_concurrency
    if concurrency < 1:
        raise InvalidInputError(f"prefetch_concurrency is {concurrency}, it must be at least 1")
    given = repo
    # its cache may be outdated: expiration rewrites snapshots in version 1
    repo = repo.reopen()
    storage = repo.storage
    if not (dry_run or storage.supports_writes):
        raise ReadOnlyError(f"{storage.url} cannot be written", ErrorKind.READ_ONLY_STORAGE)
    if repo.spec_version > 1:
        _check_unfinished(repo, delete_unused_v1_files)
    else:
        # versions may expire and be collected in the meantime
        info = while_others_collect(
            repo.context.state, lambda note: _read(repo.reopen(), concurrency)
        )
        if dry_run:
            encode_repo_info(info)
            _LOG.info("%s can be upgraded; nothing was changed", storage.url)
            return repo.reopen()
        _store(repo, info)
    if delete_unused_v1_files and not dry_run:
        unused = publish_v1.stored_keys(storage)
        for key in unused:
            # one by one, because the order matters
            storage.delete([key])
        _LOG.info("deleted %d objects that version 2 does not use", len(unused))
    new = repo.reopen()
    if not dry_run:
        # it would continue with the old version
        given.context.state.retire(
            InvalidatedRepositoryError(
                "this repository was upgraded to spec version 2, and this object knows version 1 "
                "only: go on with the repository that the upgrade returned, or open it anew"
            )
        )
    return new


def _check_unfinished(repo: Repository, delete_unused_v1_files: bool) -> None:
    if not (delete_unused_v1_files and publish_v1.stored_keys(repo.storage)):
        raise SessionStateError(
            f"{repo.storage.url} is a repository of spec version 2 already: there is nothing to "
            "upgrade",
            ErrorKind.INVALID_REPOSITORY_MIGRATION,
        )


def _read(repo: Repository, concurrency: int) -> RepoInfo:
    """Return the repo info of a repository, for one state of its refs."""
    refs = publish_v1.read_all_refs(repo.storage)
    while True:
        _LOG.info("reading the history of %d branches", len(refs.branches))
        info = _upgraded(repo, refs, concurrency)
        # an expiration leaves the refs as they are, and what it dropped may have been collected
        keys = {meta.key for meta in repo.storage.list(layout.SNAPSHOTS)}
        for id in info.snapshots:
            if layout.snapshot_key(id) not in keys:
                raise SnapshotNotFoundError(
                    f"there is no snapshot {encode_id(id)} in {repo.storage.url}: {COLLECTED}"
                )
        now = publish_v1.read_all_refs(repo.storage)
        if now == refs:
            return info
        refs = now


def _store(repo: Repository, info: RepoInfo) -> None:
    state = repo.context.state
    try:
        state.create(info, level=repo.context.assets.compression_level)
    except StorageError:
        # The response may be lost although the put succeeded. Somebody else's upgrade is just
        # as good, if it has the same refs.
        if exists(repo.storage) != SpecVersion.v2:
            raise
    stored = repo.reopen().context.state.load()
    if (stored.branches, stored.tags) != (info.branches, info.tags):
        # nothing of version 1 is deleted, so nothing is lost
        raise SessionStateError(
            f"{repo.storage.url}: somebody else upgraded or changed the repository meanwhile; "
            "open it again, and look at its branches and tags before version 1 is deleted",
            ErrorKind.INVALID_REPOSITORY_MIGRATION,
        )
    _LOG.info("stored the repo info: the repository is of spec version 2")


def _upgraded(repo: Repository, refs: AllRefs, concurrency: int) -> RepoInfo:
    info = publish_v1.load_whole(repo.context.assets, refs, concurrency)
    if MAIN not in refs.branches:
        raise FormatError(f"{repo.storage.url}: the branch 'main' is missing")
    kept: dict[bytes, SnapshotEntry] = {}
    by_branch: dict[str, list[SnapshotEntry]] = {}
    for branch in sorted(refs.branches, key=lambda name: (name != MAIN, name)):
        history = list(info.ancestry(refs.branches[branch]))
        by_branch[branch] = [entry for entry in history if entry.id not in kept]
        kept.update((entry.id, entry) for entry in history)
    for target in refs.tags.values():
        kept.update((entry.id, entry) for entry in info.ancestry(target))
    root = by_branch[MAIN][-1]
    config = None
    if info.config is not None:
        document = flexbuf.loads(info.config, layout.CONFIG_KEY)
        config = flexbuf.dumps(RepositoryConfig.from_dict(document, layout.CONFIG_KEY).to_dict())
    return RepoInfo(
        snapshots=kept,
        branches=refs.branches,
        tags=refs.tags,
        deleted_tags=tuple(sorted(refs.deleted_tags)),
        status=Status(0, root.flushed_at),
        updates=_operations(refs, by_branch, kept),
        config=config,
    )


def _operations(
    refs: AllRefs,
    by_branch: dict[str, list[SnapshotEntry]],
    kept: Mapping[bytes, SnapshotEntry],
) -> tuple[UpdateEntry, ...]:
    """Reconstruct an operations log that could have led here, newest entry first.

    Parameters
    ----------
    refs : AllRefs
    by_branch : dict
        The snapshots of each branch that are on no earlier one, newest first; ``main`` is first.
    kept : mapping
        All snapshots.
    """
    *commits, root = by_branch[MAIN]
    log = [UpdateEntry(kind=UpdateKind.REPO_INITIALIZED, updated_at=root.flushed_at)]

    def note(kind: UpdateKind, name: str, target: bytes, later: int, **fields: bytes) -> None:
        # nobody knows when a ref was made: assume soon after its snapshot
        time = kept.get(target, root).flushed_at + later
        log.append(UpdateEntry(kind=kind, updated_at=time, name=name, **fields))  # type: ignore[arg-type]

    for branch, entries in {**by_branch, MAIN: commits}.items():
        for entry in reversed(entries):
            note(UpdateKind.NEW_COMMIT, branch, entry.id, 0, snapshot=entry.id)
    for name, target in sorted(refs.branches.items()):
        if name != MAIN:
            note(UpdateKind.BRANCH_CREATED, name, target, _MILLISECOND)
    for name, target in sorted(refs.tags.items()):
        note(UpdateKind.TAG_CREATED, name, target, _MILLISECOND)
    for name, was in sorted(refs.deleted_tags.items()):
        if was is not None:
            note(UpdateKind.TAG_CREATED, name, was, _MILLISECOND)
            note(UpdateKind.TAG_DELETED, name, was, 2 * _MILLISECOND, previous=was)
    log.sort(key=lambda update: update.updated_at)
    now = now_microseconds()
    log.append(
        UpdateEntry(kind=UpdateKind.REPO_MIGRATED, updated_at=now, from_version=1, to_version=2)
    )
    # times must increase
    earlier = 0
    for row, update in enumerate(log):
        earlier = max(update.updated_at, earlier + 1)
        log[row] = replace(update, updated_at=earlier)
    return tuple(reversed(log))
