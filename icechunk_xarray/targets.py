"""What names a repository or a version: a URL, a path, or an `icechunk` object."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from icechunk import (
    AnyCredential,
    IcechunkStore,
    InvalidInputError,
    Repository,
    RepositoryConfig,
    Session,
    Storage,
    StorageConfig,
    storage_from_url,
)
from icechunk.base.texts import article
from icechunk.config.times import Time, instant
from icechunk.errors import ErrorKind
from icechunk.storage import version_url

#: What a repository is opened from. A session or store stands for one of its versions.
Target: TypeAlias = (
    str | os.PathLike[str] | Storage | StorageConfig | Repository | Session | IcechunkStore
)
Authorization: TypeAlias = Mapping[str, AnyCredential | None]

#: The version of a repository if none is named.
DEFAULT_BRANCH = "main"


def open_repository(
    target: Target,
    *,
    storage_options: Mapping[str, Any] | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Authorization | None = None,
    create: bool = False,
) -> Repository:
    """Open the repository that a target names.

    Parameters
    ----------
    target : str, path-like, Storage, StorageConfig or Repository
        ``~`` at the beginning of a path is the home directory.
    storage_options : mapping, optional
        For a URL: the options of `icechunk.storage_from_url`.
    config : RepositoryConfig, optional
        Overrides the stored configuration, option by option.
    authorize_virtual_chunk_access : mapping of str to credentials, optional
        Prefixes of the virtual chunk containers that may be read, with credentials.
    create : bool
        Whether to create the repository if there is none.

    Raises
    ------
    RepositoryNotFoundError
        If there is no repository.
    InvalidInputError
        If the target is of another kind, or does not take an option.
    """
    if isinstance(target, Session | IcechunkStore):
        raise InvalidInputError(
            f"{article(target)} is one version, a repository is needed: pass the Repository that "
            "it was made by, or its URL",
            ErrorKind.STORAGE_CONFIG,
        )
    if isinstance(target, Repository):
        _refuse_options(target, storage_options=storage_options)
        if config is None and authorize_virtual_chunk_access is None:
            return target
        return target.reopen(config, authorize_virtual_chunk_access)
    storage = _storage(target, storage_options)
    if create:
        return Repository.open_or_create(storage, config, authorize_virtual_chunk_access)
    return Repository.open(storage, config, authorize_virtual_chunk_access)


def open_session(
    target: Target,
    *,
    branch: str | None = None,
    tag: str | None = None,
    snapshot_id: str | None = None,
    ref: str | None = None,
    as_of: Time | None = None,
    storage_options: Mapping[str, Any] | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Authorization | None = None,
) -> Session:
    """Return a session that reads the version named by a target and a ref.

    Parameters
    ----------
    target : Target
        A session, or the session of a store, is returned as it is. A URL may name the
        version: ``s3://bucket/repo|icechunk:@tag.v1``, see `icechunk.storage.version_url`.
    branch, tag, snapshot_id, ref : str, optional
        At most one of them. Default: the branch ``main``. For `ref`, which also accepts
        ``main~2`` or ``main@2024-05-01``, see `icechunk.Repository.resolve`.
    as_of : datetime, date, numpy.datetime64 or str, optional
        With a branch: selects its newest snapshot that is not younger. Strings are dates or
        times in ISO 8601, such as ``2024-05-01`` or ``2024-05-01T12:00+02:00``. A time without
        a zone is in UTC; a date is its first instant.
    storage_options, config, authorize_virtual_chunk_access
        See `open_repository`.

    Raises
    ------
    RepositoryNotFoundError, RefNotFoundError, SnapshotNotFoundError
        If there is no such repository or version.
    InvalidInputError
        If arguments contradict each other or the target.
    """
    refs = {"branch": branch, "tag": tag, "snapshot_id": snapshot_id, "ref": ref}
    if isinstance(target, Session | IcechunkStore):
        _refuse_options(
            target,
            **refs,
            as_of=as_of,
            storage_options=storage_options,
            config=config,
            authorize_virtual_chunk_access=authorize_virtual_chunk_access,
        )
        return target.session if isinstance(target, IcechunkStore) else target
    named = version_url(target)
    if named is not None:
        target = named.storage
        if named.ref is not None:
            refs["the URL"] = named.ref
            if ref is None:
                ref = named.ref
    given = [name for name, value in refs.items() if value is not None]
    if len(given) > 1:
        raise InvalidInputError(
            f"{' and '.join(given)} each name a version: pass one of them",
            ErrorKind.INVALID_REF_TYPE,
        )
    if as_of is not None and named is not None and named.branch is not None:
        branch, ref = named.branch, None
    if as_of is not None and given and branch is None:
        raise InvalidInputError(
            f"{given[0]} names one version, and as_of another: as_of goes with a branch",
            ErrorKind.INVALID_REF_TYPE,
        )
    if as_of is not None:
        instant(as_of)  # refuses an invalid time before anything is read
    if not given:
        branch = DEFAULT_BRANCH
    if isinstance(target, Repository):
        repository = open_repository(
            target,
            storage_options=storage_options,
            config=config,
            authorize_virtual_chunk_access=authorize_virtual_chunk_access,
        )
        return repository.readonly_session(
            branch, tag=tag, snapshot_id=snapshot_id, ref=ref, as_of=as_of
        )
    storage = _storage(target, storage_options)
    return Repository.open_readonly_session(
        storage,
        branch,
        tag=tag,
        snapshot_id=snapshot_id,
        ref=ref,
        as_of=as_of,
        config=config,
        authorize_virtual_chunk_access=authorize_virtual_chunk_access,
    )


def _storage(target: Target, options: Mapping[str, Any] | None) -> Storage:
    if isinstance(target, str | os.PathLike):
        return storage_from_url(os.path.expanduser(target), **dict(options or {}))
    _refuse_options(target, storage_options=options)
    if isinstance(target, StorageConfig):
        return target.storage()
    if isinstance(target, Storage):
        return target
    raise InvalidInputError(
        f"{article(target)} names no repository: pass a URL, a path, or a Storage, Repository, "
        "Session or IcechunkStore",
        ErrorKind.STORAGE_CONFIG,
    )


def _refuse_options(target: object, **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InvalidInputError(
            f"{', '.join(given)} cannot be given with {article(target)}, which settles that "
            "already",
            ErrorKind.STORAGE_CONFIG,
        )
