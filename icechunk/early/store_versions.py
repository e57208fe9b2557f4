"""Version control on the store itself: the early Icechunk API.

One stateful store does everything there: it opens a repository, checks out a branch, tag
or snapshot, and commits. Each method is a call on the repository or session behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any, Literal, Self, TypeAlias

from icechunk.base.async_twin import async_twin
from icechunk.changes.change_set import OnConflict
from icechunk.commit.snapshots import SnapshotInfo
from icechunk.config.repository_config import RepositoryConfig
from icechunk.early.config import StoreConfig
from icechunk.errors import ErrorKind, InvalidInputError, RepositoryExistsError, SessionStateError
from icechunk.repository.refs import MAIN
from icechunk.repository.repository import Authorization, Repository
from icechunk.session.session import Session
from icechunk.storage import AnyStorage

AccessMode: TypeAlias = Literal["r", "r+", "a", "w", "w-"]
_MODES = ("r", "r+", "a", "w", "w-")


class VersionControl:
    """The part of `icechunk.IcechunkStore` that is about versions."""

    _session: Session
    _read_only: bool  # the mode; on a tag or snapshot nothing can be written in any mode
    #: set where the store was opened by a class method, and not taken from a session
    _repository: Repository | None = None
    _checked_out: str | None = None

    # -- opening -------------------------------------------------------------------
    @classmethod
    async def open(cls, *args: Any, **kwargs: Any) -> Self:
        """Open or create a store; Zarr calls this, users call `open_or_create`."""
        return await asyncio.to_thread(lambda: cls.open_or_create(*args, **kwargs))

    @classmethod
    def open_or_create(
        cls,
        storage: AnyStorage | None = None,
        mode: AccessMode = "r",
        config: StoreConfig | RepositoryConfig | None = None,
        *,
        authorize_virtual_chunk_access: Authorization | None = None,
        read_only: bool | None = None,
    ) -> Self:
        """Open a store on the branch ``main``, or create a repository first.

        Parameters
        ----------
        storage : StorageConfig, Storage, str or path
        mode : {"r", "r+", "a", "w", "w-"}
            Read an existing repository; write to an existing one; write, creating it if
            need be; the same and begin with nothing in it; create it or fail.
        config : StoreConfig or RepositoryConfig, optional
        authorize_virtual_chunk_access : mapping, optional
            See `Repository.open`.
        read_only : bool, optional
            Zarr's name for the choice between the modes ``"r"`` and ``"a"``.

        Raises
        ------
        InvalidInputError
            If there is no storage, or the mode is unknown.
        RepositoryNotFoundError
            If there is no repository, in the modes ``"r"`` and ``"r+"``.
        RepositoryExistsError
            If there is one, in the mode ``"w-"``.
        """
        if storage is None:
            raise InvalidInputError(
                "a storage is required: pass a StorageConfig, a Storage, a URL or a path",
                ErrorKind.STORAGE_CONFIG,
            )
        if read_only is not None:
            mode = "r" if read_only else "a"
        _check_mode(mode)
        options: dict[str, Any] = {"authorize_virtual_chunk_access": authorize_virtual_chunk_access}
        if mode in ("r", "r+"):
            return cls.open_existing(storage, mode, config, **options)
        there = Repository.exists(storage)
        if there and mode == "w-":
            raise RepositoryExistsError(
                "there is a repository already; open it with mode 'r+', or with mode 'w' to "
                "begin with nothing in it"
            )
        if not there:
            return cls.create(storage, mode, config, **options)
        store = cls.open_existing(storage, mode, config, **options)
        if mode == "w":
            store._session.delete_nodes("/")
        return store

    @classmethod
    def open_existing(
        cls,
        storage: AnyStorage,
        mode: AccessMode = "r",
        config: StoreConfig | RepositoryConfig | None = None,
        *,
        authorize_virtual_chunk_access: Authorization | None = None,
    ) -> Self:
        """Open a store on the branch ``main`` of an existing repository.

        Parameters are those of `open_or_create`; in every mode but ``"r"`` the store can
        be written.

        Raises
        ------
        RepositoryNotFoundError
            If there is none.
        """
        _check_mode(mode)
        repository = Repository.open(storage, _stored_part(config), authorize_virtual_chunk_access)
        repository = _with_virtual_refs(repository, config, authorize_virtual_chunk_access)
        return cls._on_main(repository, mode)

    @classmethod
    def create(
        cls,
        storage: AnyStorage,
        mode: AccessMode = "w",
        config: StoreConfig | RepositoryConfig | None = None,
        *,
        authorize_virtual_chunk_access: Authorization | None = None,
    ) -> Self:
        """Create a repository and open a store on it.

        Parameters are those of `open_or_create`.

        Raises
        ------
        RepositoryExistsError
            If there is a repository.
        """
        _check_mode(mode)
        repository = Repository.create(
            storage, _stored_part(config), authorize_virtual_chunk_access
        )
        repository = _with_virtual_refs(repository, config, authorize_virtual_chunk_access)
        return cls._on_main(repository, mode)

    @classmethod
    def _on_main(cls, repository: Repository, mode: AccessMode) -> Self:
        session = (
            repository.readonly_session(MAIN) if mode == "r" else repository.writable_session(MAIN)
        )
        return cls._of(repository, session, MAIN, read_only=mode == "r")

    @classmethod
    def _of(
        cls, repository: Repository | None, session: Session, branch: str | None, *, read_only: bool
    ) -> Self:
        store = cls(session, read_only)  # type: ignore[call-arg]
        store._repository = repository
        store._checked_out = branch
        store._is_open = True  # type: ignore[attr-defined]
        return store

    def with_mode(self, mode: AccessMode) -> Self:
        """Return a store on the same version with another mode.

        From a store that reads, any other mode but ``"r"`` gives one that writes to the
        branch that is checked out.
        """
        _check_mode(mode)
        session = self._session
        if mode != "r" and session.read_only:
            session = self._repo("with_mode").writable_session(self._branch_or_raise())
        store = self._of(self._repository, session, self._checked_out, read_only=mode == "r")
        store._is_open = False  # type: ignore[attr-defined]
        return store

    def _repo(self, what: str) -> Repository:
        if self._repository is None:
            raise SessionStateError(
                f"{what} works on stores from IcechunkStore.open_existing, create and "
                "open_or_create; this one belongs to a session, so use its Repository",
                ErrorKind.NOT_ALLOWED,
            )
        return self._repository

    def _branch_or_raise(self) -> str:
        if self._checked_out is None:
            raise SessionStateError(
                "no branch is checked out, only a tag or snapshot; check out a branch first",
                ErrorKind.NOT_ON_BRANCH,
            )
        return self._checked_out

    def _picklable_session(self) -> Session:
        """Return the session to send elsewhere; the copy of a writable one is a fork."""
        session = self._session
        if self._repository is not None and not session.read_only and not session.is_fork:
            return session.fork()
        return session

    # -- where it is -----------------------------------------------------------------
    @property
    def snapshot_id(self) -> str:
        """Id of the snapshot that the store is based on."""
        return self._session.snapshot_id

    @property
    def branch(self) -> str | None:
        """The branch that is checked out, None if it is a tag or snapshot."""
        return self._session.branch or self._checked_out

    @property
    def has_uncommitted_changes(self) -> bool:
        """Whether there are changes that were not committed."""
        return self._session.has_uncommitted_changes

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
        if branch is not None and not self._read_only:
            self._session = repository.writable_session(branch)
        else:
            self._session = repository.readonly_session(branch, tag=tag, snapshot_id=snapshot_id)
        self._checked_out = branch

    def _check_clean(self, what: str) -> None:
        if self._session.has_uncommitted_changes:
            raise SessionStateError(
                f"cannot {what}: there are uncommitted changes; commit() or reset() first",
                ErrorKind.UNCOMMITTED_CHANGES,
            )

    # -- changing it -----------------------------------------------------------------
    def commit(self, message: str) -> str:
        """Make the changes a new snapshot of the branch, and go on from there.

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
            If the bytes are damaged, disagree, or belong to another snapshot; then nothing
            is committed. Also as `commit` does.
        """
        if self._session.branch is None and self._repository is not None:
            self._branch_or_raise()
        branch = self._session.branch
        snapshot_id = self._session.distributed_commit(
            message, other_change_set_bytes, on_conflict=on_conflict
        )
        if self._repository is not None and branch is not None:
            self._session = self._repository.session_after_commit(branch, snapshot_id)
        return snapshot_id

    def change_set_bytes(self) -> bytes:
        """Return the uncommitted changes, for `distributed_commit` of another store."""
        return self._session.change_set_bytes()

    def reset(self) -> None:
        """Drop all uncommitted changes."""
        self._session.discard_changes()

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

        Raises
        ------
        AlreadyExistsError, SnapshotNotFoundError
        """
        self._repo("tag").create_tag(tag_name, snapshot_id)

    # -- history -----------------------------------------------------------------------
    def ancestry(self) -> list[SnapshotInfo]:
        """Return the checked out snapshot and its ancestors, newest first."""
        return list(self._repo("ancestry").ancestry(snapshot_id=self.snapshot_id))

    async def async_ancestry(self) -> AsyncGenerator[SnapshotInfo, None]:
        """Yield what `ancestry` returns."""
        for entry in await asyncio.to_thread(self.ancestry):
            yield entry

    async def empty(self) -> bool:
        """Whether there is neither group nor array."""
        return not self._session.tree.nodes()

    async_checkout = async_twin(checkout)
    async_commit = async_twin(commit)
    async_distributed_commit = async_twin(distributed_commit)
    async_reset = async_twin(reset)
    async_new_branch = async_twin(new_branch)
    async_tag = async_twin(tag)


def _check_mode(mode: str) -> None:
    if mode not in _MODES:
        raise InvalidInputError(
            f"unknown mode {mode!r}; known are {', '.join(_MODES)}", ErrorKind.STORAGE_CONFIG
        )


def _stored_part(config: StoreConfig | RepositoryConfig | None) -> RepositoryConfig | None:
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
    config: StoreConfig | RepositoryConfig | None,
    access: Authorization | None,
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
