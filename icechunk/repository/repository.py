"""Repositories: create and open them, their branches and tags, their history."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from icechunk._version import user_agent
from icechunk.base.async_twin import async_twin
from icechunk.commit import publish
from icechunk.commit.assets import Assets
from icechunk.commit.building import now_microseconds
from icechunk.commit.conflicts import ConflictSolver
from icechunk.commit.versions import (
    as_of as snapshot_as_of,
    branch_tip,
    invalid_version,
    resolve,
    resolve_ref,
)
from icechunk.config.credentials import AnyCredential
from icechunk.config.repository_config import Attribution, RepositoryConfig, StorageSettings
from icechunk.config.times import Time
from icechunk.errors import (
    AlreadyExistsError,
    ErrorKind,
    InvalidInputError,
    PreconditionFailedError,
    ReadOnlyError,
    RepositoryExistsError,
    RepositoryNotFoundError,
)
from icechunk.format import layout
from icechunk.format.encoding import flexbuf
from icechunk.format.ids import INITIAL_SNAPSHOT_ID, decode_id, encode_id
from icechunk.format.metadata import Metadata
from icechunk.format.repo_info import RepoInfo, SnapshotEntry
from icechunk.format.snapshot import Snapshot
from icechunk.format.spec import SpecVersion, supported_spec_versions
from icechunk.format.transaction_log import TransactionLog
from icechunk.format.updates import Status, UpdateEntry, UpdateKind
from icechunk.repository.administration import Administration
from icechunk.repository.decoding import decode_chunks
from icechunk.repository.history import History
from icechunk.repository.inspection import Inspection
from icechunk.repository.jobs import Jobs
from icechunk.repository.maintenance import Maintenance
from icechunk.repository.preload import preloading
from icechunk.repository.recipe import Recipe, new_key
from icechunk.repository.refs import MAIN, Refs
from icechunk.repository.verification import Verification
from icechunk.repository.verify import Verifier
from icechunk.session.context import SessionMode
from icechunk.session.replay import changes_between
from icechunk.session.session import Session
from icechunk.storage import AnyStorage, Storage, as_storage
from icechunk.virtual.deprecations import warn_of_none

if TYPE_CHECKING:
    from icechunk.store import IcechunkStore

__all__ = ["Repository"]

Authorization: TypeAlias = Mapping[str, AnyCredential | None]


class Repository(Refs, Administration, History, Inspection, Maintenance):
    """A repository: a history of snapshots with branches and tags.

    Use `create`, `open` or `open_or_create`.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._context = recipe.context()

    # -- making and opening --------------------------------------------------------
    @classmethod
    def create(
        cls,
        storage: AnyStorage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorization | None = None,
        spec_version: SpecVersion | int | None = None,
        check_clean_root: bool = True,
        attribution: Attribution | None = None,
    ) -> Repository:
        """Create a repository.

        Parameters
        ----------
        storage : Storage, str or path
            Where: a storage, a URL such as ``s3://bucket/prefix``, or a folder.
        config : RepositoryConfig, optional
            Stored with the repository where it differs from the default.
        authorize_virtual_chunk_access : mapping of str to credentials, optional
            Prefixes of the virtual chunk containers that may be read, and how.
        spec_version : SpecVersion or int, optional
            Default: 2. Version 1 is for others who have clients 1.x; it has no moves, no
            amend, no operations log, and no settings but the configuration.
        check_clean_root : bool
            Whether to refuse a place where there is something already.
        attribution : Attribution, optional
            Labels for the access logs of the storage.

        Raises
        ------
        AlreadyExistsError
            If there is a repository.
        InvalidInputError
            If there is something else.
        """
        version = SpecVersion.current() if spec_version is None else int(spec_version)
        if version not in supported_spec_versions():
            raise InvalidInputError(
                f"cannot create a repository of spec version {version}: only 1 and 2 are known",
                ErrorKind.UNSUPPORTED_SPEC_VERSION,
            )
        warn_of_none(authorize_virtual_chunk_access)
        place = as_storage(storage)
        if not place.supports_writes:
            raise ReadOnlyError(f"{place.url} cannot be written", ErrorKind.READ_ONLY_STORAGE)
        config = config if config is not None else RepositoryConfig()
        config.validate()
        if check_clean_root:
            _check_clean(place)
        elif publish.exists(place) is not None:  # of the other version, too
            raise _already_exists(place)
        repository = cls._make(place, config, authorize_virtual_chunk_access, attribution)
        assets = repository._context.assets
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
        info = RepoInfo(
            snapshots={root.id: SnapshotEntry(root.id, None, now, root.message, root.metadata)},
            branches={MAIN: root.id},
            tags={},
            deleted_tags=(),
            status=Status(0, now),
            updates=(UpdateEntry(kind=UpdateKind.REPO_INITIALIZED, updated_at=now_microseconds()),),
            config=flexbuf.dumps(stored) if stored is not None else None,
            spec_version=version,
        )
        try:
            repository._context.state.create(info, level=assets.compression_level)
        except PreconditionFailedError:
            raise _already_exists(place) from None
        return repository

    @classmethod
    def open(
        cls,
        storage: AnyStorage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorization | None = None,
        attribution: Attribution | None = None,
    ) -> Repository:
        """Open a repository.

        Reading takes no permission but to get objects, and creates nothing.

        Parameters
        ----------
        storage : Storage, str or path
        config : RepositoryConfig, optional
            Overrides the stored one, option by option.
        authorize_virtual_chunk_access : mapping of str to credentials, optional
            Prefixes of the virtual chunk containers that may be read, and how. A prefix
            covers the containers inside of it. The stored configuration cannot make your
            credentials go to another service than the one that a prefix names: containers
            with an endpoint of their own, for one, have to be passed in `config`.
        attribution : Attribution, optional
            Labels for the access logs of the storage.

        Raises
        ------
        RepositoryNotFoundError
            If there is none.
        FormatError
            If it is damaged, or of a newer version.
        """
        warn_of_none(authorize_virtual_chunk_access)
        return cls._open(storage, config, authorize_virtual_chunk_access, attribution)[0]

    @classmethod
    def _open(
        cls,
        storage: AnyStorage,
        config: RepositoryConfig | None,
        authorization: Authorization | None,
        attribution: Attribution | None = None,
    ) -> tuple[Repository, RepoInfo]:
        """Open a repository; return also what it was at that moment."""
        place = as_storage(storage)
        given = config if config is not None else RepositoryConfig()
        first = cls._make(place, given, authorization, attribution)
        info = first._info
        stored = _stored_config(info)
        if stored is None:
            return first, info
        repository = cls._make(
            place,
            stored.merge(given),
            authorization,
            attribution,
            own_containers=given.virtual_chunk_containers is not None,
            own_settings=given.storage,
        )
        repository._context.state.take_over(first._context.state)
        return repository, info

    @classmethod
    def open_readonly_session(
        cls,
        storage: AnyStorage,
        branch: str | None = None,
        *,
        tag: str | None = None,
        snapshot_id: str | None = None,
        ref: str | None = None,
        as_of: Time | None = None,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorization | None = None,
    ) -> Session:
        """Return a session that reads one version of a repository that is not open yet.

        The same as `open` and then `readonly_session`, whose parameters and errors it has,
        with one request less.
        """
        repository, info = cls._open(storage, config, authorize_virtual_chunk_access)
        return repository._session_at(info, branch, tag, snapshot_id, ref, as_of)

    @classmethod
    def open_or_create(
        cls,
        storage: AnyStorage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorization | None = None,
        create_version: SpecVersion | int | None = None,
        check_clean_root: bool = True,
        attribution: Attribution | None = None,
    ) -> Repository:
        """Open a repository, or create it if there is none.

        Takes the parameters of `open` and `create`. Two processes that do this at the
        same time end up with the same repository.
        """
        place = as_storage(storage)
        opening = (place, config, authorize_virtual_chunk_access)
        try:
            return cls.open(*opening, attribution)
        except RepositoryNotFoundError:
            try:
                return cls.create(*opening, create_version, check_clean_root, attribution)
            except (AlreadyExistsError, InvalidInputError):
                # somebody else may have been faster
                if publish.exists(place) is None:
                    raise
        return cls.open(*opening, attribution)

    @classmethod
    def _make(
        cls,
        storage: Storage,
        config: RepositoryConfig,
        authorization: Authorization | None,
        attribution: Attribution | None = None,
        *,
        own_containers: bool = True,
        own_settings: StorageSettings | None = None,
    ) -> Repository:
        if config.storage is not None:
            storage = storage.with_settings(config.storage)
        if attribution is not None:
            storage = storage.with_user_agent(attribution.user_agent(user_agent()))
        authorized = dict(authorization or {})
        trusted = (own_containers, own_settings)
        return cls(Recipe(storage, config, authorized, *trusted, attribution=attribution))

    @staticmethod
    def exists(storage: AnyStorage, storage_settings: StorageSettings | None = None) -> bool:
        """Whether there is a repository.

        Parameters
        ----------
        storage : Storage, str or path
        storage_settings : StorageSettings, optional
            For this look only.
        """
        return Repository.fetch_spec_version(storage, storage_settings) is not None

    @staticmethod
    def fetch_spec_version(
        storage: AnyStorage, storage_settings: StorageSettings | None = None
    ) -> SpecVersion | None:
        """Return the spec version of a repository, None if there is none.

        Parameters are those of `exists`.
        """
        place = as_storage(storage)
        if storage_settings is not None:
            place = place.with_settings(storage_settings)
        version = publish.exists(place)
        return SpecVersion(version) if version is not None else None

    @staticmethod
    def fetch_config(storage: AnyStorage) -> RepositoryConfig | None:
        """Return the stored configuration of a repository, None if there is none."""
        return _stored_config(Repository._make(as_storage(storage), RepositoryConfig(), None)._info)

    def reopen(
        self,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorization | None = None,
    ) -> Repository:
        """Open the same repository with another configuration.

        Parameters are those of `open`; where they are left out those of this repository
        stay.
        """
        warn_of_none(authorize_virtual_chunk_access)
        merged = self.config.merge(config) if config is not None else self.config
        authorization = (
            authorize_virtual_chunk_access
            if authorize_virtual_chunk_access is not None
            else self._recipe.authorization
        )
        given = config is not None and config.virtual_chunk_containers is not None
        return self._make(
            self.storage,
            merged,
            authorization,
            self.attribution,
            own_containers=given or self._recipe.own_containers,
            own_settings=(config.storage if config else None) or self._recipe.own_settings,
        )

    def save_config(self) -> None:
        """Store the configuration of this repository for all who open it later."""
        self.config.validate()
        raw = flexbuf.dumps(self.config.to_dict())
        self._update(
            lambda info: (replace(info, config=raw), UpdateEntry(kind=UpdateKind.CONFIG_CHANGED))
        )

    # -- what it is --------------------------------------------------------------------
    @property
    def config(self) -> RepositoryConfig:
        """The configuration in force: the stored one, overridden by what was given."""
        return self._recipe.config

    @property
    def storage(self) -> Storage:
        """Where the repository is."""
        return self._recipe.storage

    @property
    def jobs(self) -> Jobs:
        """Writes in many parts, by any processes at any time."""
        return Jobs(self)

    @property
    def attribution(self) -> Attribution | None:
        """The labels that its requests carry."""
        return self._recipe.attribution

    @property
    def spec_version(self) -> SpecVersion:
        """The version of the format that the repository is stored in."""
        return SpecVersion(self._info.spec_version)

    @property
    def authorized_virtual_container_prefixes(self) -> set[str]:
        """The prefixes of virtual chunk containers that may be read."""
        return set(self._recipe.authorization)

    def __repr__(self) -> str:
        return f"<icechunk.Repository {self.storage.url!r}>"

    def __getstate__(self) -> dict[str, Any]:
        return {"recipe": self._recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Repository.__init__(self, state["recipe"])

    def __dask_tokenize__(self) -> str:
        # Dask takes equal tokens for equal data, and what a repository holds changes
        return uuid.uuid4().hex

    @property
    def _info(self) -> RepoInfo:
        return self._context.state.load()

    @property
    def _assets(self) -> Assets:
        return self._context.assets

    @property
    def _state(self) -> publish.RepoState:
        return self._context.state

    def _update(self, compute: publish.Compute, *, needs_online: bool = True) -> None:
        self._context.state.update(compute, needs_online=needs_online)

    # -- proof ---------------------------------------------------------------------------
    def verify(
        self,
        *,
        sources: bool = False,
        deep: bool | Literal["sample"] = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Verification:
        """Prove that all that versions refer to is there, and fits together.

        Reads the snapshots, transaction logs and manifests of all versions, and lists the
        chunks. Nothing is changed; others may commit meanwhile, but collection of garbage may
        look like damage.

        Parameters
        ----------
        sources : bool
            Whether to look at the files that virtual chunks are in: one request for each file
            tells whether it is there, long enough, and the version that was referred to.
        deep : bool or "sample"
            Whether to decode the chunks of the newest version of each branch and tag: all of
            them, or a few of each array.
        progress : callable, optional
            Called with what is looked at, how many were, and how many there are.

        Returns
        -------
        Verification
            Falsy if there is damage; it says what is wrong, and what that touches.

        Examples
        --------
        >>> print(repo.verify(deep="sample"))  # doctest: +SKIP
        """
        if deep not in (False, True, "sample"):
            raise InvalidInputError(f"deep is False, True or 'sample', not {deep!r}")

        def decode(snapshot_id: str, path: str) -> Iterator[tuple[tuple[int, ...], str | None]]:
            session = self.readonly_session(snapshot_id=snapshot_id)
            return decode_chunks(session, path, sample=deep == "sample")

        return Verifier(
            self._assets.uncached(),
            self._state.load,
            virtual=self._context.virtual if sources else None,
            read_values=decode if deep else None,
            progress=progress,
        ).run()

    def set_default_commit_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Set metadata that every commit of sessions opened from now on gets."""
        Metadata(metadata)  # refuses what cannot be stored
        self._recipe = replace(self._recipe, commit_metadata=dict(metadata), key=new_key())
        self._context = replace(
            self._context, recipe=self._recipe, default_commit_metadata=dict(metadata)
        )

    def default_commit_metadata(self) -> dict[str, Any]:
        """Return the metadata that every commit gets."""
        return dict(self._recipe.commit_metadata)

    # -- sessions ------------------------------------------------------------------------
    def readonly_session(
        self,
        branch: str | None = None,
        *,
        tag: str | None = None,
        snapshot_id: str | None = None,
        ref: str | None = None,
        as_of: Time | None = None,
    ) -> Session:
        """Return a session that reads one version.

        Parameters
        ----------
        branch, tag, snapshot_id, ref : str
            Exactly one of them. Of an id its beginning is enough, if no other begins so; for
            `ref` see `resolve`.
        as_of : datetime, date, numpy.datetime64 or str, optional
            With `branch`: the newest snapshot of its history that is not younger. Strings are
            dates or times in ISO 8601. A time without zone is in UTC, a date is its first
            instant.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such version.
        InvalidInputError
            If not exactly one version is named.
        """
        if as_of is not None and branch is None:
            raise invalid_version("as_of goes with a branch")
        return self._session_at(self._info, branch, tag, snapshot_id, ref, as_of)

    def resolve(self, ref: str) -> str:
        """Return the id of the snapshot that a text names.

        Parameters
        ----------
        ref : str
            A branch, a tag, or the id of a snapshot or its beginning (4 characters or more, if
            no other begins so). ``@branch.NAME``, ``@tag.NAME`` and ``@{ID}`` say which of these
            is meant. After any of them, ``~N`` is the snapshot N commits before, and ``@TIME``
            the newest of the history that is not younger: a date or time in ISO 8601, in UTC
            if it has no zone.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such version; the message has names that are near.
        InvalidInputError
            If more than one version is called so.

        Examples
        --------
        >>> before = repo.resolve("main~2")
        >>> repo.readonly_session(ref="main@2024-05-01")
        """
        return encode_id(resolve_ref(self._info, ref))

    def _session_at(
        self,
        info: RepoInfo,
        branch: str | None,
        tag: str | None,
        snapshot_id: str | None,
        ref: str | None,
        as_of: Time | None,
    ) -> Session:
        resolved = resolve(info, branch, tag, snapshot_id, ref)
        if as_of is not None and branch is not None:
            resolved = snapshot_as_of(info, branch, as_of)
        session = Session(self._context, resolved, SessionMode.readonly)
        return preloading(session, self._assets)

    def writable_session(self, branch: str) -> Session:
        """Return a session that edits the newest snapshot of a branch.

        Raises
        ------
        RefNotFoundError
            If there is no such branch.
        """
        return self._open_branch(branch, SessionMode.writable)

    def rearrange_session(self, branch: str) -> Session:
        """Return a session that moves nodes of the newest snapshot of a branch.

        Raises
        ------
        RefNotFoundError
            If there is no such branch.
        """
        return self._open_branch(branch, SessionMode.rearrange)

    def _open_branch(self, branch: str, mode: SessionMode) -> Session:
        info = self._writable_info()
        if mode is SessionMode.rearrange:
            self._context.state.require_version_2("moving nodes")
        session = Session(self._context, branch_tip(info, branch), mode, branch)
        return preloading(session, self._assets)

    def _writable_info(self) -> RepoInfo:
        """Return the current repo info, if the repository and its storage take writes."""
        info = self._info
        if not self.storage.supports_writes:
            raise ReadOnlyError(
                f"{self.storage.url} cannot be written; use readonly_session",
                ErrorKind.READ_ONLY_STORAGE,
            )
        publish.require_online(info)
        return info

    def replay_session(self, branch: str, *, from_snapshot_id: str, to_snapshot_id: str) -> Session:
        """Return a session that holds what changed between two versions, to be committed.

        To bring the work of one branch to another that has moved meanwhile, as one commit:
        it began at the first version and led to the second one. The session stands on the
        first version, so a commit to a branch that is elsewhere needs ``rebase_with``, and
        is refused where both changed the same.

        Parameters
        ----------
        branch : str
            That the session commits to.
        from_snapshot_id, to_snapshot_id : str
            The versions.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such branch or version.
        SessionStateError
            If a node was moved in between.
        """
        info = self._writable_info()
        branch_tip(info, branch)  # refuses one that is missing
        before, after = (
            Session(self._context, resolve(info, None, None, id), SessionMode.readonly)
            for id in (from_snapshot_id, to_snapshot_id)
        )
        changes = changes_between(before, after)
        return Session(self._context, changes.base, SessionMode.writable, branch, [changes])

    def session_after_commit(self, branch: str, snapshot_id: str) -> Session:
        """Return a writable session that goes on from a commit that was just made."""
        return Session(self._context, decode_id(snapshot_id), SessionMode.writable, branch)

    @contextmanager
    def transaction(
        self,
        branch: str,
        *,
        message: str,
        metadata: Mapping[str, Any] | None = None,
        rebase_with: ConflictSolver | None = None,
        rebase_tries: int = 1000,
    ) -> Iterator[IcechunkStore]:
        """Give a writable store and commit it at the end of the block.

        If the block raises, nothing is committed. The parameters are those of
        `Session.commit`.
        """
        session = self.writable_session(branch)
        yield session.store
        session.commit(message, metadata, rebase_with=rebase_with, rebase_tries=rebase_tries)

    create_async = async_twin(create)
    open_async = async_twin(open)
    open_or_create_async = async_twin(open_or_create)
    exists_async = async_twin(exists)
    fetch_spec_version_async = async_twin(fetch_spec_version)
    fetch_config_async = async_twin(fetch_config)
    reopen_async = async_twin(reopen)
    save_config_async = async_twin(save_config)
    readonly_session_async = async_twin(readonly_session)
    resolve_async = async_twin(resolve)
    writable_session_async = async_twin(writable_session)
    rearrange_session_async = async_twin(rearrange_session)
    replay_session_async = async_twin(replay_session)
    verify_async = async_twin(verify)


def _stored_config(info: RepoInfo) -> RepositoryConfig | None:
    if info.config is None:
        return None
    return RepositoryConfig.from_dict(flexbuf.loads(info.config, "repo: config"), "repo: config")


def _check_clean(storage: Storage) -> None:
    # a creation that was interrupted leaves these, and the next one writes them again
    left = {layout.snapshot_key(INITIAL_SNAPSHOT_ID), layout.transaction_key(INITIAL_SNAPSHOT_ID)}
    for found in storage.list():
        if found.key in left:
            continue
        if publish.exists(storage) is not None:
            raise _already_exists(storage)
        raise InvalidInputError(
            f"cannot create a repository at {storage.url}: there is something already "
            f"({found.key!r}); choose an empty place, or pass check_clean_root=False",
            ErrorKind.PARENT_DIRECTORY_NOT_CLEAN,
        )


def _already_exists(storage: Storage) -> RepositoryExistsError:
    return RepositoryExistsError(
        f"there is an Icechunk repository at {storage.url} already; open it with Repository.open"
    )
