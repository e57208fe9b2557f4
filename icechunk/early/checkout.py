"""Version control on the store itself, as in the early Icechunk API.

There, one stateful store does everything: it opens a repository, checks out a branch, tag
or snapshot, and commits. `Checkout` is the part of `icechunk.IcechunkStore` that does this;
each of its methods is a call on the repository or session behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from icechunk.changes.change_set import OnConflict
from icechunk.commit.snapshot_info import SnapshotInfo
from icechunk.commit.version_names import require_snapshot
from icechunk.config import RepositoryConfig
from icechunk.early.config import StoreConfig
from icechunk.errors import ErrorKind, InvalidInputError, RepositoryExistsError, SessionStateError
from icechunk.format.ids import decode_id
from icechunk.format.repo_info import RepoInfo, with_item
from icechunk.format.updates import UpdateEntry, UpdateKind
from icechunk.repository.branches_and_tags import MAIN
from icechunk.repository.repository import Authorization, Repository
from icechunk.session.session import Session
from icechunk.storage import AnyStorage

AccessMode: TypeAlias = Literal["r", "r+", "a", "w", "w-"]
AnyConfig: TypeAlias = StoreConfig | RepositoryConfig | None
Access: TypeAlias = Authorization | None
_MODES = ("r", "r+", "a", "w", "w-")


class Checkout:
    """The version that a store has checked out, and how it gets to other versions.

    A store that was taken from a session stays with that session: it has no repository.

    Parameters
    ----------
    session : Session
    repository : Repository, optional
    branch : str, optional
        The one that is checked out; None if a tag or snapshot is.
    read_only : bool
        Whether branches are checked out for reading.
    moves_tags : bool
        Whether an existing tag may be moved.
    """

    def __init__(
        self,
        session: Session,
        repository: Repository | None = None,
        branch: str | None = None,
        *,
        read_only: bool = False,
        moves_tags: bool = False,
    ) -> None:
        self.session = session
        self.repository = repository
        self.read_only = read_only
        self._branch = branch
        self._moves_tags = moves_tags

    # -- opening -------------------------------------------------------------------
    @classmethod
    def open_or_create(
        cls, storage: AnyStorage | None, mode: AccessMode, config: AnyConfig, access: Access
    ) -> Checkout:
        """Check out ``main``, creating a repository first if the mode says so."""
        if storage is None:
            raise InvalidInputError(
                "a storage is required: pass a StorageConfig, a Storage, a URL or a path",
                ErrorKind.STORAGE_CONFIG,
            )
        _check_mode(mode)
        if mode in ("r", "r+"):
            return cls.open_existing(storage, mode, config, access)
        there = Repository.exists(storage)
        if there and mode == "w-":
            raise RepositoryExistsError(
                "there is a repository already; open it with mode 'r+', or with mode 'w' to "
                "begin with nothing in it"
            )
        if not there:
            return cls.create(storage, mode, config, access)
        found = cls.open_existing(storage, mode, config, access)
        if mode == "w":
            found.session.delete_nodes("/")
        return found

    @classmethod
    def open_existing(
        cls, storage: AnyStorage, mode: AccessMode, config: AnyConfig, access: Access
    ) -> Checkout:
        """Check out ``main`` of an existing repository."""
        _check_mode(mode)
        return cls._main_of(
            Repository.open(storage, _stored_part(config), access), mode, config, access
        )

    @classmethod
    def create(
        cls, storage: AnyStorage, mode: AccessMode, config: AnyConfig, access: Access
    ) -> Checkout:
        """Create a repository and check out ``main``."""
        _check_mode(mode)
        return cls._main_of(
            Repository.create(storage, _stored_part(config), access), mode, config, access
        )

    @classmethod
    def _main_of(
        cls, repository: Repository, mode: AccessMode, config: AnyConfig, access: Access
    ) -> Checkout:
        repository = _with_virtual_refs(repository, config, access)
        reads = mode == "r"
        session = repository.readonly_session(MAIN) if reads else repository.writable_session(MAIN)
        moves_tags = isinstance(config, StoreConfig) and bool(config.unsafe_overwrite_refs)
        return cls(session, repository, MAIN, read_only=reads, moves_tags=moves_tags)

    def with_mode(self, mode: AccessMode) -> Checkout:
        """Return the same version with another mode."""
        _check_mode(mode)
        session = self.session
        if mode != "r" and session.read_only:
            session = self._repo("with_mode").writable_session(self._branch_or_raise())
        return Checkout(
            session,
            self.repository,
            self._branch,
            read_only=mode == "r",
            moves_tags=self._moves_tags,
        )

    def __getstate__(self) -> dict[str, Any]:
        session = self.session
        if self.repository is not None and not session.read_only and not session.is_fork:
            # the copy works for this one, which commits
            session = session.fork()
        return {**self.__dict__, "session": session}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _repo(self, what: str) -> Repository:
        if self.repository is None:
            raise SessionStateError(
                f"{what} works on stores from IcechunkStore.open_existing, create and "
                "open_or_create; this one belongs to a session, so use its Repository",
                ErrorKind.NOT_ALLOWED,
            )
        return self.repository

    def _branch_or_raise(self) -> str:
        if self._branch is None:
            raise SessionStateError(
                "no branch is checked out, only a tag or snapshot; check out a branch first",
                ErrorKind.NOT_ON_BRANCH,
            )
        return self._branch

    # -- where it is -----------------------------------------------------------------
    @property
    def snapshot_id(self) -> str:
        """Id of the snapshot that the store is based on."""
        return self.session.snapshot_id

    @property
    def branch(self) -> str | None:
        """The branch that is checked out; None if a tag or snapshot is."""
        return self.session.branch or self._branch

    @property
    def has_uncommitted_changes(self) -> bool:
        """Whether there are uncommitted changes; in a copy, including those it came with."""
        session = self.session
        came_with = self.repository is not None and session.has_inherited_changes
        return came_with or session.has_uncommitted_changes

    def checkout(
        self,
        snapshot_id: str | None = None,
        branch: str | None = None,
        tag: str | None = None,
    ) -> None:
        """Go to another version. Only on a branch can changes be made and committed.

        Parameters
        ----------
        snapshot_id, branch, tag : str
            Exactly one of them.

        Raises
        ------
        InvalidInputError
            If not exactly one is given.
        SessionStateError
            If there are uncommitted changes.
        RefNotFoundError, SnapshotNotFoundError
            If there is no such version.
        """
        repository = self._repo("checkout")
        if sum(name is not None for name in (snapshot_id, branch, tag)) != 1:
            raise InvalidInputError(
                "only one of snapshot_id, branch and tag may be specified, and one must be",
                ErrorKind.INVALID_REF_TYPE,
            )
        self._check_clean("check out another version")
        if branch is not None and not self.read_only:
            self.session = repository.writable_session(branch)
        else:
            self.session = repository.readonly_session(branch, tag=tag, snapshot_id=snapshot_id)
        self._branch = branch

    def _check_clean(self, what: str) -> None:
        if self.session.has_uncommitted_changes:
            raise SessionStateError(
                f"cannot {what}: there are uncommitted changes; commit() or reset() first",
                ErrorKind.UNCOMMITTED_CHANGES,
            )

    # -- changing it -----------------------------------------------------------------
    def commit(self, message: str) -> str:
        """Turn the changes into a new snapshot of the branch, and go on from there.

        Returns
        -------
        str
            Id of the new snapshot.

        Raises
        ------
        SessionStateError
            If no branch is checked out, or nothing changed.
        ConflictError
            If somebody else has committed to the branch.
        """
        return self.distributed_commit(message, [])

    def distributed_commit(
        self,
        message: str,
        other_change_set_bytes: Iterable[bytes],
        *,
        on_conflict: OnConflict = "error",
    ) -> str:
        """Commit the changes of this store together with those of others.

        Parameters
        ----------
        message : str
        other_change_set_bytes : iterable of bytes
            What `change_set_bytes` of the other stores returned.
        on_conflict : {"error", "last"}
            What to do where two disagree about a chunk or a node.

        Returns
        -------
        str
            Id of the new snapshot.

        Raises
        ------
        FormatError, ConflictError, SessionStateError
            If the bytes are damaged, disagree, or belong to another snapshot. Nothing is
            committed then. Also as `commit` does.
        """
        if self.session.branch is None and self.repository is not None:
            self._branch_or_raise()
        branch = self.session.branch
        snapshot_id = self.session.distributed_commit(
            message, other_change_set_bytes, on_conflict=on_conflict
        )
        if self.repository is not None and branch is not None:
            self.session = self.repository.session_after_commit(branch, snapshot_id)
        return snapshot_id

    def change_set_bytes(self) -> bytes:
        """Return the uncommitted changes, for `distributed_commit` of another store."""
        return self.session.change_set_bytes()

    def reset(self) -> None:
        """Drop all uncommitted changes."""
        if self.repository is None:
            self.session.discard_changes()
        else:
            self.session.discard_inherited_changes()

    def new_branch(self, branch_name: str) -> str:
        """Create a branch at the checked out snapshot and check it out.

        Returns
        -------
        str
            Id of the snapshot.

        Raises
        ------
        SessionStateError
            If there are uncommitted changes.
        AlreadyExistsError
            If there is such a branch.
        """
        repository = self._repo("new_branch")
        self._check_clean("create a branch")
        snapshot_id = self.snapshot_id
        repository.create_branch(branch_name, snapshot_id)
        self.checkout(branch=branch_name)
        return snapshot_id

    def tag(self, tag_name: str, snapshot_id: str) -> None:
        """Create a tag of a snapshot.

        With `StoreConfig.unsafe_overwrite_refs`, an existing tag is moved there.

        Raises
        ------
        AlreadyExistsError, SnapshotNotFoundError
        """
        repository = self._repo("tag")
        if self._moves_tags and tag_name in repository.list_tags():
            _move_tag(repository, tag_name, decode_id(repository.lookup_snapshot(snapshot_id).id))
        else:
            repository.create_tag(tag_name, snapshot_id)

    # -- history -----------------------------------------------------------------------
    def ancestry(self) -> list[SnapshotInfo]:
        """Return the checked out snapshot and its ancestors, newest first."""
        return list(self._repo("ancestry").ancestry(snapshot_id=self.snapshot_id))

    async def async_ancestry(self) -> AsyncGenerator[SnapshotInfo, None]:
        """Yield what `ancestry` returns."""
        for entry in await asyncio.to_thread(self.ancestry):
            yield entry


def _move_tag(repository: Repository, tag: str, target: bytes) -> None:
    def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
        require_snapshot(info, target)
        changed = replace(info, tags=with_item(info.tags, tag, target))
        return changed, UpdateEntry(kind=UpdateKind.TAG_CREATED, name=tag)

    repository.context.state.require_version_2("moving a tag")
    repository.context.state.update(compute)


def _check_mode(mode: str) -> None:
    if mode not in _MODES:
        raise InvalidInputError(
            f"unknown mode {mode!r}; known are {', '.join(_MODES)}", ErrorKind.STORAGE_CONFIG
        )


def _stored_part(config: AnyConfig) -> RepositoryConfig | None:
    """Return the part of a configuration of either kind that a repository can hold."""
    if config is None or isinstance(config, RepositoryConfig):
        return config
    if not isinstance(config, StoreConfig):
        raise InvalidInputError(
            f"config must be a StoreConfig or a RepositoryConfig, not a {type(config).__name__}",
            ErrorKind.STORAGE_CONFIG,
        )
    return config.to_repository_config()


def _with_virtual_refs(
    repository: Repository,
    config: AnyConfig,
    access: Access,
) -> Repository:
    """Return the repository with the access to virtual chunks that a config gives."""
    if not isinstance(config, StoreConfig) or config.virtual_ref_config is None:
        return repository
    container = config.virtual_ref_config.container()
    containers = {
        **(repository.config.virtual_chunk_containers or {}),
        container.url_prefix: container,
    }
    return repository.reopen(
        RepositoryConfig(virtual_chunk_containers=containers),
        {**(access or {}), container.url_prefix: config.virtual_ref_config.credentials()},
    )
