"""Repositories: create and open them, their branches and tags, their history."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from icechunk.base.methods import async_twin, of_part
from icechunk.base.texts import labelled
from icechunk.commit import publish
from icechunk.config import Attribution, RepositoryConfig, StorageSettings
from icechunk.config.credential_types import AnyCredential
from icechunk.config.repository_config import as_config
from icechunk.config.times import Time
from icechunk.errors import (
    AlreadyExistsError,
    ErrorKind,
    InvalidInputError,
    PreconditionFailedError,
    ReadOnlyError,
    RepositoryNotFoundError,
)
from icechunk.format.metadata import Metadata
from icechunk.format.repo_info import RepoInfo
from icechunk.format.spec import SpecVersion, supported_spec_versions
from icechunk.repository.administration import Administration
from icechunk.repository.annotation import Annotations
from icechunk.repository.branches_and_tags import BranchesAndTags
from icechunk.repository.copying import Copying
from icechunk.repository.creation import (
    already_exists,
    check_clean,
    store_first_snapshot,
    stored_config,
    with_config,
)
from icechunk.repository.history import History
from icechunk.repository.inspection import Inspection
from icechunk.repository.maintenance import Maintenance
from icechunk.repository.ops import RepoStatus
from icechunk.repository.overview import overview
from icechunk.repository.proof import Proof
from icechunk.repository.recipe import RepositoryRecipe, checked, context_at, new_key
from icechunk.repository.recognition import saying_what_is_there
from icechunk.repository.repair import repair as repair_stored
from icechunk.repository.rework import Rework
from icechunk.repository.rewriting import Rewriting
from icechunk.repository.sessions import Sessions
from icechunk.session.context import SessionContext
from icechunk.session.session import Session
from icechunk.storage import AnyStorage, Storage, as_storage
from icechunk.storage.keywords import answers_keywords
from icechunk.virtual.deprecations import warn_of_none

if TYPE_CHECKING:
    from icechunk.repository.jobs import Jobs

__all__ = ["Repository"]

Authorization: TypeAlias = Mapping[str, AnyCredential | None]


class Repository:
    """A repository: a history of snapshots with branches and tags.

    Use `create`, `open` or `open_or_create`.

    Examples
    --------
    >>> repo = icechunk.Repository.open_or_create("weather")
    >>> with repo.transaction("main", message="A group") as store:
    ...     group = zarr.create_group(store, path="stations")
    """

    def __init__(self, recipe: RepositoryRecipe) -> None:
        self._recipe = checked(recipe)
        self._context = context = recipe.context()
        assets, state = context.assets, context.state
        self._branches_and_tags = BranchesAndTags(state)
        self._history = History(assets, state)
        self._administration = Administration(assets, state)
        self._inspection = Inspection(assets, state)
        self._maintenance = Maintenance(assets, state)

        # a function: default metadata of commits may be set later
        def current() -> SessionContext:
            return self._context

        self._sessions = sessions = Sessions(current)
        self._annotations = Annotations(current, sessions)
        self._rework = Rework(current)
        self._rewriting = Rewriting(current, sessions)
        self._copying = Copying(current)
        self._proof = Proof(current, sessions)

    # -- creating and opening ------------------------------------------------------
    @classmethod
    @answers_keywords("a storage")
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
            The place: a storage, a URL such as ``s3://bucket/prefix``, or a folder.
        config : RepositoryConfig, optional
            Stored with the repository where it differs from the default.
        authorize_virtual_chunk_access : mapping of str to credentials, optional
            Prefixes of the virtual chunk containers that may be read, with credentials.
        spec_version : SpecVersion or int, optional
            Default: 2. Version 1 is for sharing with clients 1.x. It has no moves, no amend,
            no operations log, and no settings except the configuration.
        check_clean_root : bool
            Whether to refuse a place where there already are other objects.
        attribution : Attribution, optional
            Labels for the access logs of the storage.

        Raises
        ------
        AlreadyExistsError
            If a repository exists there.
        InvalidInputError
            If other objects are there.

        Examples
        --------
        >>> repo = icechunk.Repository.create("weather")  # or a URL, or a storage
        >>> sorted(repo.list_branches())
        ['main']
        """
        version = SpecVersion.current() if spec_version is None else int(spec_version)
        if version not in supported_spec_versions():
            raise InvalidInputError(
                f"Unsupported version {version}: the spec versions are 1 and 2",
                ErrorKind.UNSUPPORTED_SPEC_VERSION,
            )
        warn_of_none(authorize_virtual_chunk_access)
        place = as_storage(storage)
        if not place.supports_writes:
            raise ReadOnlyError(f"{place.url} cannot be written", ErrorKind.READ_ONLY_STORAGE)
        config = as_config(config)
        config.validate()
        if check_clean_root:
            check_clean(place)
        elif publish.exists(place) is not None:  # of the other version, too
            raise already_exists(place)
        access = authorize_virtual_chunk_access
        repository = cls(RepositoryRecipe.of(place, config, access, attribution, stored=config))
        assets = repository._context.assets
        info = store_first_snapshot(assets, SpecVersion(version), config)
        try:
            repository._context.state.create(info, level=assets.compression_level)
        except PreconditionFailedError:
            raise already_exists(place) from None
        return repository

    @classmethod
    @answers_keywords("a storage")
    def open(
        cls,
        storage: AnyStorage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorization | None = None,
        attribution: Attribution | None = None,
    ) -> Repository:
        """Open a repository.

        Reading needs no permission except to get objects, and creates nothing.

        Parameters
        ----------
        storage : Storage, str or path
        config : RepositoryConfig, optional
            Overrides the stored one, option by option.
        authorize_virtual_chunk_access : mapping of str to credentials, optional
            Prefixes of the virtual chunk containers that may be read, with credentials. A prefix
            covers the containers inside it. The stored configuration cannot send your
            credentials to another service than the one that a prefix names: for example,
            containers with an endpoint of their own must be passed in `config`.
        attribution : Attribution, optional
            Labels for the access logs of the storage.

        Raises
        ------
        RepositoryNotFoundError
            If there is no repository.
        FormatError
            If it is damaged, or of a newer version.

        Examples
        --------
        >>> icechunk.Repository.open(storage).lookup_tag("v1") == first
        True
        """
        warn_of_none(authorize_virtual_chunk_access)
        with saying_what_is_there(storage, attribution):
            return cls._open(storage, config, authorize_virtual_chunk_access, attribution)[0]

    @classmethod
    def _open(
        cls,
        storage: AnyStorage,
        config: RepositoryConfig | None,
        authorization: Authorization | None,
        attribution: Attribution | None = None,
    ) -> tuple[Repository, RepoInfo]:
        """Open a repository, and also return its current state."""
        place = as_storage(storage)
        given = as_config(config)
        first = cls(RepositoryRecipe.of(place, given, authorization, attribution))
        info = first._info
        stored = stored_config(info)
        if stored is None:
            return first, info
        merged = stored.merge(given)
        passed = (given.virtual_chunk_containers is not None, given.storage)
        opening = (place, merged, authorization, attribution)
        repository = cls(RepositoryRecipe.of(*opening, passed=passed, stored=stored))
        repository._context.state.take_over(first._context.state)
        return repository, info

    @classmethod
    @answers_keywords("a storage")
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

        Equivalent to `open` followed by `readonly_session`, with the parameters and errors of
        both, but with one request less.

        Examples
        --------
        >>> session = icechunk.Repository.open_readonly_session(storage, "main")
        """
        with saying_what_is_there(storage):
            repository, info = cls._open(storage, config, authorize_virtual_chunk_access)
        return repository._sessions.at(info, branch, tag, snapshot_id, ref, as_of)

    @classmethod
    @answers_keywords("a storage")
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
        same time get the same repository.

        Examples
        --------
        >>> repo = icechunk.Repository.open_or_create("weather")
        """
        place = as_storage(storage)
        opening = (place, config, authorize_virtual_chunk_access)
        try:
            return cls._open(*opening, attribution)[0]
        except RepositoryNotFoundError:
            try:
                return cls.create(*opening, create_version, check_clean_root, attribution)
            except (AlreadyExistsError, InvalidInputError):
                # somebody else may have been faster
                if publish.exists(place) is None:
                    raise
        return cls.open(*opening, attribution)

    @staticmethod
    def exists(storage: AnyStorage, storage_settings: StorageSettings | None = None) -> bool:
        """Whether there is a repository.

        Parameters
        ----------
        storage : Storage, str or path
        storage_settings : StorageSettings, optional
            For this request only.

        Examples
        --------
        >>> icechunk.Repository.exists(storage)
        True
        """
        return Repository.fetch_spec_version(storage, storage_settings) is not None

    @staticmethod
    def fetch_spec_version(
        storage: AnyStorage, storage_settings: StorageSettings | None = None
    ) -> SpecVersion | None:
        """Return the spec version of a repository, None if there is none.

        Parameters are those of `exists`.

        Examples
        --------
        >>> int(icechunk.Repository.fetch_spec_version(storage))
        2
        """
        place = as_storage(storage)
        if storage_settings is not None:
            place = place.with_settings(storage_settings)
        version = publish.exists(place)
        return SpecVersion(version) if version is not None else None

    @staticmethod
    def fetch_config(storage: AnyStorage) -> RepositoryConfig | None:
        """Return the stored configuration of a repository, None if there is none.

        Examples
        --------
        >>> config = icechunk.Repository.fetch_config(storage)
        """
        return stored_config(context_at(storage, RepositoryConfig()).state.load())

    def reopen(
        self,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorization | None = None,
    ) -> Repository:
        """Open the same repository with another configuration.

        Parameters are those of `open`; those left out stay as in this
        repository.

        Examples
        --------
        >>> small = icechunk.RepositoryConfig(inline_chunk_threshold_bytes=0)
        >>> repo = repo.reopen(config=small)
        """
        warn_of_none(authorize_virtual_chunk_access)
        merged = self.config.merge(config) if config is not None else self.config
        authorization = authorize_virtual_chunk_access
        if authorization is None:
            authorization = self._recipe.authorization
        given = config is not None and config.virtual_chunk_containers is not None
        recipe = self._recipe
        own = (given or recipe.own_containers, (config and config.storage) or recipe.own_settings)
        made = (self.storage, merged, authorization, self.attribution)
        return type(self)(RepositoryRecipe.of(*made, passed=own, stored=recipe.stored))

    def save_config(self) -> None:
        """Store the configuration of this repository for everyone who opens it later.

        Raises
        ------
        ConflictError
            If somebody else has stored another one since the repository was opened.

        Examples
        --------
        >>> repo.save_config()
        """
        self.config.validate()
        self._context.state.update(partial(with_config, self._recipe.stored, self.config))
        self._recipe = replace(self._recipe, stored=deepcopy(self.config))

    # -- properties ----------------------------------------------------------------
    @property
    def config(self) -> RepositoryConfig:
        """The configuration in force: the stored one, overridden by what was passed."""
        return self._recipe.config

    @property
    def storage(self) -> Storage:
        """The place of the repository."""
        return self._recipe.storage

    @property
    def jobs(self) -> Jobs:
        """Writes in many parts, by any processes at any time."""
        from icechunk.repository.jobs import Jobs

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
        lines = {"storage": repr(self.storage), "config": "<RepositoryConfig ...>"}
        version = self._context.state.known_spec_version
        known = "" if version is None else f" (v{int(version)})"
        return labelled(f"icechunk.Repository{known}", lines)

    def _repr_html_(self) -> str:
        return overview(self.storage.url, self._context.state, self._context.assets)

    def __getstate__(self) -> dict[str, Any]:
        return {"recipe": self._recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Repository.__init__(self, state["recipe"])

    def __dask_tokenize__(self) -> str:
        # Dask takes equal tokens for equal data, but the content of a repository changes
        return uuid.uuid4().hex

    @property
    def context(self) -> SessionContext:
        """What the sessions of this repository share."""
        return self._context

    @property
    def _info(self) -> RepoInfo:
        return self._context.state.load()

    def set_default_commit_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Set metadata for every commit of sessions opened from now on.

        Examples
        --------
        >>> repo.set_default_commit_metadata({"author": "me"})
        >>> repo.default_commit_metadata()
        {'author': 'me'}
        """
        Metadata(metadata)  # refuses what cannot be stored
        self._recipe = replace(self._recipe, commit_metadata=dict(metadata), key=new_key())
        self._context = replace(
            self._context, recipe=self._recipe, default_commit_metadata=dict(metadata)
        )

    def default_commit_metadata(self) -> dict[str, Any]:
        """Return the metadata that every commit gets.

        Examples
        --------
        >>> repo.default_commit_metadata()
        {}
        """
        return dict(self._recipe.commit_metadata)

    # -- sessions ------------------------------------------------------------------------
    readonly_session = of_part("_sessions", Sessions.readonly_session)
    writable_session = of_part("_sessions", Sessions.writable_session)
    rearrange_session = of_part("_sessions", Sessions.rearrange_session)
    replay_session = of_part("_sessions", Sessions.replay_session)
    session_after_commit = of_part("_sessions", Sessions.session_after_commit)
    transaction = of_part("_sessions", Sessions.transaction)
    resolve = of_part("_sessions", Sessions.resolve)

    # -- branches and tags -----------------------------------------------------------------
    create_branch = of_part("_branches_and_tags", BranchesAndTags.create_branch)
    list_branches = of_part("_branches_and_tags", BranchesAndTags.list_branches)
    lookup_branch = of_part("_branches_and_tags", BranchesAndTags.lookup_branch)
    reset_branch = of_part("_branches_and_tags", BranchesAndTags.reset_branch)
    delete_branch = of_part("_branches_and_tags", BranchesAndTags.delete_branch)
    create_tag = of_part("_branches_and_tags", BranchesAndTags.create_tag)
    list_tags = of_part("_branches_and_tags", BranchesAndTags.list_tags)
    lookup_tag = of_part("_branches_and_tags", BranchesAndTags.lookup_tag)
    delete_tag = of_part("_branches_and_tags", BranchesAndTags.delete_tag)

    # -- history ---------------------------------------------------------------------------
    lookup_snapshot = of_part("_history", History.lookup_snapshot)
    list_manifest_files = of_part("_history", History.list_manifest_files)
    ancestry = of_part("_history", History.ancestry)
    async_ancestry = of_part("_history", History.async_ancestry)
    diff = of_part("_history", History.diff)
    ancestry_graph = of_part("_history", History.ancestry_graph)
    annotate = of_part("_annotations", Annotations.annotate)

    # -- commits of commits ------------------------------------------------------------------
    squash = of_part("_rework", Rework.squash)
    cherry_pick = of_part("_rework", Rework.cherry_pick)
    revert = of_part("_rework", Rework.revert)

    # -- the same version, stored otherwise ------------------------------------------------
    rewrite_manifests = of_part("_rewriting", Rewriting.rewrite_manifests)
    repack = of_part("_rewriting", Rewriting.repack)

    # -- the repository as a whole ---------------------------------------------------------
    ops_log = of_part("_administration", Administration.ops_log)
    ops_log_async = of_part("_administration", Administration.ops_log_async)
    get_metadata = of_part("_administration", Administration.get_metadata)
    set_metadata = of_part("_administration", Administration.set_metadata)
    update_metadata = of_part("_administration", Administration.update_metadata)
    get_status = of_part("_administration", Administration.get_status)
    set_status = of_part("_administration", Administration.set_status)
    feature_flags = of_part("_administration", Administration.feature_flags)
    enabled_feature_flags = of_part("_administration", Administration.enabled_feature_flags)
    disabled_feature_flags = of_part("_administration", Administration.disabled_feature_flags)
    set_feature_flag = of_part("_administration", Administration.set_feature_flag)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the repository itself."""
        return self.get_metadata()

    @property
    def status(self) -> RepoStatus:
        """Whether the repository takes writes."""
        return self.get_status()

    # -- what is stored --------------------------------------------------------------------
    inspect_repo_info = of_part("_inspection", Inspection.inspect_repo_info)
    inspect_snapshot = of_part("_inspection", Inspection.inspect_snapshot)
    inspect_manifest = of_part("_inspection", Inspection.inspect_manifest)
    inspect_transaction_log = of_part("_inspection", Inspection.inspect_transaction_log)

    # -- proof, repair, a copy elsewhere --------------------------------------------------
    verify = of_part("_proof", Proof.verify)
    repair = staticmethod(repair_stored)
    copy_to = of_part("_copying", Copying.copy_to)

    # -- what is not needed any more -------------------------------------------------------
    expire_snapshots = of_part("_maintenance", Maintenance.expire_snapshots)
    preview_expiration = of_part("_maintenance", Maintenance.preview_expiration)
    garbage_collect = of_part("_maintenance", Maintenance.garbage_collect)
    chunk_storage_stats = of_part("_maintenance", Maintenance.chunk_storage_stats)
    total_chunks_storage = of_part("_maintenance", Maintenance.total_chunks_storage)

    # -- without blocking the event loop ---------------------------------------------------
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
    copy_to_async = async_twin(copy_to)
    annotate_async = async_twin(annotate)
    repair_async = async_twin(repair)
    squash_async = async_twin(squash)
    cherry_pick_async = async_twin(cherry_pick)
    revert_async = async_twin(revert)
    verify_async = async_twin(verify)
    create_branch_async = async_twin(create_branch)
    list_branches_async = async_twin(list_branches)
    lookup_branch_async = async_twin(lookup_branch)
    reset_branch_async = async_twin(reset_branch)
    delete_branch_async = async_twin(delete_branch)
    create_tag_async = async_twin(create_tag)
    list_tags_async = async_twin(list_tags)
    lookup_tag_async = async_twin(lookup_tag)
    delete_tag_async = async_twin(delete_tag)
    lookup_snapshot_async = async_twin(lookup_snapshot)
    list_manifest_files_async = async_twin(list_manifest_files)
    diff_async = async_twin(diff)
    ancestry_graph_async = async_twin(ancestry_graph)
    rewrite_manifests_async = async_twin(rewrite_manifests)
    repack_async = async_twin(repack)
    get_metadata_async = async_twin(get_metadata)
    set_metadata_async = async_twin(set_metadata)
    update_metadata_async = async_twin(update_metadata)
    get_status_async = async_twin(get_status)
    set_status_async = async_twin(set_status)
    feature_flags_async = async_twin(feature_flags)
    enabled_feature_flags_async = async_twin(enabled_feature_flags)
    disabled_feature_flags_async = async_twin(disabled_feature_flags)
    set_feature_flag_async = async_twin(set_feature_flag)
    inspect_repo_info_async = async_twin(inspect_repo_info)
    inspect_snapshot_async = async_twin(inspect_snapshot)
    inspect_manifest_async = async_twin(inspect_manifest)
    inspect_transaction_log_async = async_twin(inspect_transaction_log)
    expire_snapshots_async = async_twin(expire_snapshots)
    preview_expiration_async = async_twin(preview_expiration)
    garbage_collect_async = async_twin(garbage_collect)
    chunk_storage_stats_async = async_twin(chunk_storage_stats)
    total_chunks_storage_async = async_twin(total_chunks_storage)
