"""The initial content of a new repository."""

from __future__ import annotations

from dataclasses import replace

from icechunk.base.texts import RESTORED
from icechunk.commit import publish
from icechunk.commit.assets import Assets, advising
from icechunk.commit.building import now_microseconds
from icechunk.config import RepositoryConfig
from icechunk.errors import ConflictError, ErrorKind, InvalidInputError, RepositoryExistsError
from icechunk.format import layout
from icechunk.format.encoding import flexbuf
from icechunk.format.ids import INITIAL_SNAPSHOT_ID
from icechunk.format.repo_info import RepoInfo, SnapshotEntry
from icechunk.format.snapshot import Snapshot
from icechunk.format.spec import SpecVersion
from icechunk.format.transaction_log import TransactionLog
from icechunk.format.updates import Status, UpdateEntry, UpdateKind
from icechunk.repository.branches_and_tags import MAIN
from icechunk.storage import Storage


def store_first_snapshot(
    assets: Assets, version: SpecVersion, config: RepositoryConfig
) -> RepoInfo:
    """Store the snapshot that every history begins with, and return the repo info to publish."""
    now = now_microseconds()
    root = Snapshot.build(
        id=INITIAL_SNAPSHOT_ID,
        nodes=(),
        flushed_at=now,
        message="Repository initialized",
        metadata={"__icechunk": {"is_root": True}},
        manifest_files={},
    )
    assets.write_snapshot(root, spec_version=version)
    if version > 1:  # in version 1 the first snapshot has no log
        assets.write_transaction_log(TransactionLog(INITIAL_SNAPSHOT_ID))
    stored = config.to_dict() if config != RepositoryConfig() else None
    return RepoInfo(
        snapshots={root.id: SnapshotEntry(root.id, None, now, root.message, root.metadata)},
        branches={MAIN: root.id},
        tags={},
        deleted_tags=(),
        status=Status(0, now),
        updates=(UpdateEntry(kind=UpdateKind.REPO_INITIALIZED, updated_at=now_microseconds()),),
        config=flexbuf.dumps(stored) if stored is not None else None,
        spec_version=version,
    )


def stored_config(info: RepoInfo) -> RepositoryConfig | None:
    """Return the configuration in a repo info, None if there is none."""
    if info.config is None:
        return None
    place = "repo: config"
    with advising(RESTORED):
        return RepositoryConfig.from_dict(flexbuf.loads(info.config, place), place)


def check_clean(storage: Storage) -> None:
    """Refuse to create a repository in a place that has objects already.

    Raises
    ------
    RepositoryExistsError, InvalidInputError
    """
    # an interrupted creation leaves these, and the next one overwrites them
    left = {layout.snapshot_key(INITIAL_SNAPSHOT_ID), layout.transaction_key(INITIAL_SNAPSHOT_ID)}
    for found in storage.list():
        if found.key in left:
            continue
        if publish.exists(storage) is not None:
            raise already_exists(storage)
        raise InvalidInputError(
            f"cannot create a repository at {storage.url}: there is something already "
            f"({found.key!r}); choose an empty place, or pass check_clean_root=False",
            ErrorKind.PARENT_DIRECTORY_NOT_CLEAN,
        )


def already_exists(storage: Storage) -> RepositoryExistsError:
    """Return the error for a place that already has a repository."""
    return RepositoryExistsError(
        f"there is an Icechunk repository at {storage.url} already; open it with Repository.open"
    )


def with_config(
    read: RepositoryConfig | None, config: RepositoryConfig, info: RepoInfo
) -> tuple[RepoInfo, UpdateEntry]:
    """Return a state with another configuration, and what the log says about it.

    Parameters
    ----------
    read : RepositoryConfig or None
        What was stored when `config` was made.
    config : RepositoryConfig
    info : RepoInfo

    Raises
    ------
    ConflictError
        If something else is stored by now.
    """
    now = stored_config(info) or RepositoryConfig()
    if now not in (read or RepositoryConfig(), config):
        raise ConflictError(
            message="config was updated by other session: open the repository again, and save "
            "the configuration then",
            kind=ErrorKind.CONFIG_UPDATED,
        )
    changed = replace(info, config=flexbuf.dumps(config.to_dict()))
    return changed, UpdateEntry(kind=UpdateKind.CONFIG_CHANGED)
