"""Repositories: create and open them, their branches and tags, their history."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from icechunk._version import user_agent
from icechunk.base.async_twin import async_twin
from icechunk.base.parts import of_part
from icechunk.base.texts import labelled
from icechunk.commit import publish
from icechunk.commit.conflicts import ConflictSolver
from icechunk.commit.snapshot_info import CommitMethod
from icechunk.commit.splitting import splitting_note
from icechunk.commit.version_names import (
    as_of as snapshot_as_of,
    branch_tip,
    invalid_version,
    resolve,
    resolve_ref,
)
from icechunk.config import Attribution, RepositoryConfig, StorageSettings
from icechunk.config.credential_types import AnyCredential
from icechunk.config.times import Time
from icechunk.errors import (
    AlreadyExistsError,
    ErrorKind,
    InvalidInputError,
    PreconditionFailedError,
    ReadOnlyError,
    RepositoryNotFoundError,
)
from icechunk.format.encoding import flexbuf
from icechunk.format.ids import decode_id, encode_id, normalize_path
from icechunk.format.metadata import Metadata, with_reserved
from icechunk.format.repo_info import RepoInfo
from icechunk.format.spec import SpecVersion, supported_spec_versions
from icechunk.format.updates import UpdateEntry, UpdateKind
from icechunk.repository.administration import Administration
from icechunk.repository.annotation import Annotation, annotate, in_region
from icechunk.repository.branches_and_tags import BranchesAndTags
from icechunk.repository.copying import Copied, Copier
from icechunk.repository.creation import (
    already_exists,
    check_clean,
    store_first_snapshot,
    stored_config,
)
from icechunk.repository.decoding import decode_chunks
from icechunk.repository.history import History
from icechunk.repository.inspection import Inspection
from icechunk.repository.jobs import Jobs
from icechunk.repository.maintenance import Maintenance
from icechunk.repository.ops import RepoStatus
from icechunk.repository.overview import overview
from icechunk.repository.preload import preloading
from icechunk.repository.recipe import RepositoryRecipe, new_key
from icechunk.repository.repack import RepackSummary, repack
from icechunk.repository.repair import Repairer
from icechunk.repository.repairs import Repair
from icechunk.repository.rework import Rework
from icechunk.repository.verification import Verification
from icechunk.repository.verify import Verifier, damage_to_all
from icechunk.session.context import SessionContext, SessionMode
from icechunk.session.replay import changes_between
from icechunk.session.session import Session
from icechunk.storage import AnyStorage, Storage, as_storage
from icechunk.virtual.deprecations import warn_of_none

if TYPE_CHECKING:
    from icechunk.store import IcechunkStore

__all__ = ["Repository"]

Authorization: TypeAlias = Mapping[str, AnyCredential | None]


class Repository:
    """A repository: a history of snapshots with branches and tags.

    Use `create`, `open` or `open_or_create`.
    """

    def __init__(self, recipe: RepositoryRecipe) -> None:
        self._recipe = recipe
        self._context = context = recipe.context()
        assets, state = context.assets, context.state
        self._branches_and_tags = BranchesAndTags(state)
        self._history = History(assets, state)
        self._administration = Administration(assets, state)
        self._inspection = Inspection(assets, state)
        self._maintenance = Maintenance(assets, state)
        # a function: default metadata of commits may be set later
        self._rework = Rework(lambda: self._context)

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
                f"Unsupported version {version}: the spec versions are 1 and 2",
                ErrorKind.UNSUPPORTED_SPEC_VERSION,
            )
        warn_of_none(authorize_virtual_chunk_access)
        place = as_storage(storage)
        if not place.supports_writes:
            raise ReadOnlyError(f"{place.url} cannot be written", ErrorKind.READ_ONLY_STORAGE)
        config = config if config is not None else RepositoryConfig()
        config.validate()
        if check_clean_root:
            check_clean(place)
        elif publish.exists(place) is not None:  # of the other version, too
            raise already_exists(place)
        repository = cls._make(place, config, authorize_virtual_chunk_access, attribution)
        assets = repository._context.assets
        info = store_first_snapshot(assets, SpecVersion(version), config)
        try:
            repository._context.state.create(info, level=assets.compression_level)
        except PreconditionFailedError:
            raise already_exists(place) from None
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
        stored = stored_config(info)
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
        return cls(RepositoryRecipe(storage, config, authorized, *trusted, attribution=attribution))

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
        return stored_config(Repository._make(as_storage(storage), RepositoryConfig(), None)._info)

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
        self._context.state.update(
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
        lines = {"storage": repr(self.storage), "config": "<RepositoryConfig ...>"}
        version = self._context.state.known_spec_version
        known = "" if version is None else f" (v{int(version)})"
        return labelled(f"icechunk.Repository{known}", lines)

    def _repr_html_(self) -> str:
        return overview(self.storage.url, self._context.state)

    def __getstate__(self) -> dict[str, Any]:
        return {"recipe": self._recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Repository.__init__(self, state["recipe"])

    def __dask_tokenize__(self) -> str:
        # Dask takes equal tokens for equal data, and what a repository holds changes
        return uuid.uuid4().hex

    @property
    def context(self) -> SessionContext:
        """What the sessions of this repository share."""
        return self._context

    @property
    def _info(self) -> RepoInfo:
        return self._context.state.load()

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
            raise InvalidInputError(f"deep must be False, True or 'sample', not {deep!r}")

        def decode(snapshot_id: str, path: str) -> Iterator[tuple[tuple[int, ...], str | None]]:
            session = self.readonly_session(snapshot_id=snapshot_id)
            return decode_chunks(session, path, sample=deep == "sample")

        damage = damage_to_all(self._context.state)
        if damage is not None:
            return Verification(self.storage.url, (damage,))
        return Verifier(
            self._context.assets.uncached(),
            self._context.state.load,
            virtual=self._context.virtual if sources else None,
            read_values=decode if deep else None,
            all_copies=deep is True,
            progress=progress,
        ).run()

    @staticmethod
    def repair(
        storage: AnyStorage,
        *,
        branch: str | None = None,
        drop_unreadable: bool = False,
        adopt: Mapping[str, str] | None = None,
        dry_run: bool = True,
        config: RepositoryConfig | None = None,
    ) -> Repair:
        """Repair a damaged repository, so that it can be opened and read again.

        If the object ``repo``, which names all versions, is missing, cut or damaged, it is
        restored from the newest copy in ``overwritten/`` that can be read and whose branches
        and tags can be. What was there is kept beside it. Such a copy is the state *before* an
        update: the last commit may be unknown to it, and is listed for `adopt`.

        Nothing is dropped unless `drop_unreadable` asks for it, and then only from the newest
        version of one branch, by a new commit; older versions stay as they are.

        Parameters
        ----------
        storage : Storage, str or path
            Where: the repository need not be one that can be opened.
        branch : str, optional
            A branch whose newest version is looked at. Transaction logs of its history that
            cannot be read are made anew, from the snapshots.
        drop_unreadable : bool, default False
            Whether to commit to that branch a version without what cannot be read: chunks
            whose objects are missing or cut short, manifests, nodes. **What is dropped reads as
            fill values**; the report names each. If the newest version cannot be read at all,
            the branch is moved to the newest that can be.
        adopt : mapping of str to str, optional
            Branches, and the ids of snapshots that become their newest versions: commits that
            the restored state does not know. In spec 1, where no copies of refs exist, it says
            where a branch was that cannot be read.
        dry_run : bool, default True
            Change nothing, and say what would be done.
        config : RepositoryConfig, optional
            For how objects are written.

        Returns
        -------
        Repair
            What was found and done. ``print`` it.

        Raises
        ------
        RepositoryNotFoundError
            If there is nothing to restore a repository from.
        FormatError
            If no copy can be restored, or no version of the branch can be read.
        InvalidInputError
            If a snapshot cannot be the next one of the branch that shall adopt it.
        ConflictError
            If somebody else writes meanwhile.
        ReadOnlyError
            If the storage takes no writes.

        Examples
        --------
        >>> print(Repository.repair("s3://bucket/weather"))  # doctest: +SKIP
        >>> Repository.repair("s3://bucket/weather", dry_run=False)  # doctest: +SKIP
        """
        if drop_unreadable and branch is None:
            raise InvalidInputError("drop_unreadable needs a branch: name the one to drop from")
        context = Repository._make(as_storage(storage), config or RepositoryConfig(), None).context
        repairer = Repairer(context.assets.uncached(), context.state, dry_run=dry_run)
        return repairer.run(branch, adopt or {}, drop_unreadable=drop_unreadable)

    # -- elsewhere, and since when -------------------------------------------------------
    def copy_to(
        self,
        target: AnyStorage,
        ref: str = "main",
        *,
        branch: str | None = None,
        history: bool = True,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Copied:
        """Copy a version into another repository, with its history and its chunks.

        Objects are copied byte for byte and keep their names, so that ids of snapshots mean the
        same there. What is there already is skipped: a copy that was broken off goes on when it
        is called again, and a later one brings what is new. Virtual references stay as they are.
        The branch is moved when everything is there. Do not collect garbage in the target
        meanwhile.

        Parameters
        ----------
        target : Storage, str or path
            Where there is no repository yet, or a copy of this one.
        ref : str, default "main"
            The version, as `resolve` takes it.
        branch : str, optional
            The branch of the target that will be at it. Default: `ref` if that is the name of
            a branch, else ``main``.
        history : bool, default True
            Whether to copy all versions before it, too. Otherwise they are as expired there.
        progress : callable, optional
            Called with what is copied, how many were, and how many there are.

        Returns
        -------
        Copied

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            If there is no such version.
        InvalidInputError
            If the target is another repository.
        ConflictError
            If its branch has commits that are not in the history of the version.
        FormatError
            If one of them is of spec version 1; `icechunk.upgrade_icechunk_repository` helps.

        Examples
        --------
        >>> repo.copy_to("s3://backup/weather")  # doctest: +SKIP
        """
        self._context.state.require_version_2("a copy of versions")
        info = self._info
        if branch is None:
            branch = ref if ref in info.branches else "main"
        other = self._make(as_storage(target), self.config, None).context
        copier = Copier(
            self._context.assets.uncached(), info, other.assets.uncached(), other.state, progress
        )
        return copier.run(resolve_ref(info, ref), branch, history=history)

    def annotate(
        self,
        path: str,
        ref: str = "main",
        *,
        region: Sequence[tuple[int, int]] | None = None,
    ) -> Annotation:
        """Say which commit last changed each chunk of an array.

        By the transaction logs, newest first, until all chunks are found.

        Parameters
        ----------
        path : str
            Of the array.
        ref : str, default "main"
            The version, as `resolve` takes it.
        region : sequence of (int, int), optional
            A box ``[from, to)`` of chunk coordinates, per dimension. Default: all chunks.

        Returns
        -------
        Annotation
            Of the chunks that have a value. ``print`` it, or ask it `of` a chunk.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError, NodeNotFoundError
            If there is no such version or array.
        InvalidInputError
            If the region has another number of dimensions.

        Examples
        --------
        >>> print(repo.annotate("/temperature", region=[(0, 10), (0, 1)]))  # doctest: +SKIP
        """
        info = self._info
        session = self._session_at(info, None, None, None, ref, None)
        node, _ = session.tree.require_array(normalize_path(path))
        refs = in_region(session.chunk_refs(node.path), region)
        tip = decode_id(session.snapshot_id)
        return annotate(self._context.assets, info, tip, node, refs)

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
            raise invalid_version("as_of argument must be provided together with a branch name")
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
        return preloading(session, self._context.assets)

    def writable_session(self, branch: str, *, pack: bool = False) -> Session:
        """Return a session that edits the newest snapshot of a branch.

        Parameters
        ----------
        branch : str
        pack : bool, default False
            Whether chunks of less than 256 KiB share objects of about 4 MiB. Far fewer
            requests write them, and neighbours are read by one. A chunk that is written
            again leaves its old bytes in the object; `repack` tells how many, and makes
            objects without them. Every client of the format reads packed chunks.

        Raises
        ------
        RefNotFoundError
            If there is no such branch.
        """
        return self._open_branch(branch, SessionMode.writable, pack=pack)

    def rearrange_session(self, branch: str) -> Session:
        """Return a session that moves nodes of the newest snapshot of a branch.

        Raises
        ------
        RefNotFoundError
            If there is no such branch.
        """
        return self._open_branch(branch, SessionMode.rearrange)

    def _open_branch(self, branch: str, mode: SessionMode, *, pack: bool = False) -> Session:
        info = self._writable_info()
        if mode is SessionMode.rearrange:
            self._context.state.require_version_2("moving nodes")
        session = Session(self._context, branch_tip(info, branch), mode, branch, pack=pack)
        return preloading(session, self._context.assets)

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
        needs = [decode_id(after.snapshot_id)]
        return Session(self._context, changes.base, SessionMode.writable, branch, [changes], needs)

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
        """Yield a writable store, and commit at the end of the block.

        If the block raises, nothing is committed. The parameters are those of
        `Session.commit`.
        """
        session = self.writable_session(branch)
        yield session.store
        session.commit(message, metadata, rebase_with=rebase_with, rebase_tries=rebase_tries)

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

    # -- commits of commits ------------------------------------------------------------------
    squash = of_part("_rework", Rework.squash)
    cherry_pick = of_part("_rework", Rework.cherry_pick)
    revert = of_part("_rework", Rework.revert)

    def rewrite_manifests(
        self,
        message: str,
        *,
        branch: str,
        metadata: Mapping[str, Any] | None = None,
        commit_method: CommitMethod = "new_commit",
    ) -> str:
        """Split the references of all arrays into new manifests, and commit.

        The rules are those of the configuration in force, and are noted in the metadata of
        the commit, as ``metadata["__icechunk"]["splitting_config"]``. Every array gets new
        manifests, even if they hold the same as before.

        Parameters
        ----------
        message : str
        branch : str
        metadata : mapping, optional
            Anything that JSON can express, to be found in the history.
        commit_method : {"new_commit", "amend"}
            Whether to add a snapshot to the branch, or to replace the newest one.

        Returns
        -------
        str
            Id of the new snapshot.

        Raises
        ------
        InvalidInputError
            If `commit_method` is neither.
        ConflictError
            If the branch moves meanwhile.
        SessionStateError
            If the newest snapshot cannot be amended.
        """
        if commit_method not in get_args(CommitMethod):
            raise InvalidInputError(
                f"commit_method is {commit_method!r}, expected 'new_commit' or 'amend'",
                ErrorKind.INVALID_COMMIT_CONFIGURATION,
            )
        noted = with_reserved(metadata, splitting_config=splitting_note(self.config))
        return self.writable_session(branch).rewrite_manifests(
            message, noted, amends=commit_method == "amend"
        )

    def repack(
        self,
        branch: str,
        *,
        message: str = "Pack small chunks",
        max_waste: float = 0.5,
        dry_run: bool = False,
    ) -> RepackSummary:
        """Pack small chunks of the newest snapshot into shared objects, and commit.

        These are the native chunks of less than 256 KiB that have an object each, and those in
        objects of which too much is waste, because chunks were written again or deleted.
        Older versions keep the objects that they refer to: `expire_snapshots` and
        `garbage_collect` delete what no version needs.

        Parameters
        ----------
        branch : str
        message : str
            Of the commit.
        max_waste : float, default 0.5
            The share of an object, from 0 to 1, up to which waste is left in peace.
        dry_run : bool, default False
            Whether to tell only what is there.

        Returns
        -------
        RepackSummary
            How many bytes are wasted, how many chunks are written again, and the new snapshot.

        Raises
        ------
        RefNotFoundError
            If there is no such branch.
        InvalidInputError
            If `max_waste` is no share.
        ConflictError
            If the branch moves meanwhile.
        """
        session = self.writable_session(branch, pack=True)
        return repack(session, message, max_waste=max_waste, dry_run=dry_run)

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
