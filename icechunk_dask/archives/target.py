"""The repository of an archive: opened, or created if it does not exist."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from icechunk import (
    InvalidInputError,
    Repository,
    RepositoryConfig,
    Session,
    Storage,
    VirtualChunkContainer,
    storage_from_url,
)
from icechunk.errors import IcechunkError
from icechunk.kerchunk.tables import StringHeap
from icechunk.storage.option_names import for_storage
from icechunk.virtual.container_storage import credential_call
from icechunk_dask.archives.containers import authorization, derive_containers

__all__ = ["Opened", "Target"]

Target: TypeAlias = Repository | Storage | str | os.PathLike[str]
#: Options that a report may show.
_PUBLIC: Final = ("allow_http", "anonymous", "endpoint_url", "force_path_style", "region")


@dataclass
class Opened:
    """A repository, or the place for a new one.

    Attributes
    ----------
    place : Repository or Storage
    repository : Repository or None
        None until it exists.
    access : mapping or None
        What the caller authorised.
    remote_options : dict
        For reading remote files.
    options : dict
        Options for opening the place, without secrets.
    """

    place: Repository | Storage
    repository: Repository | None
    access: Mapping[str, Any] | None
    remote_options: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        target: Target,
        storage_options: Mapping[str, Any] | None,
        remote_options: Mapping[str, Any] | None,
        access: Mapping[str, Any] | None,
    ) -> Opened:
        """Open a target, if it exists."""
        remote = dict((storage_options if remote_options is None else remote_options) or {})
        if isinstance(target, Repository):
            if access is not None:
                raise InvalidInputError(
                    "authorize_virtual_chunk_access is for repositories that are opened here; "
                    "pass it to Repository.open"
                )
            return cls(target, target, None, remote)
        options: dict[str, Any] = {}
        if isinstance(target, Storage):
            storage = target
        else:
            url = os.path.expanduser(target)
            is_remote = "://" in str(url) and not str(url).startswith(("file:", "memory:"))
            # a folder takes no options: these are for the files
            given = for_storage(str(url), storage_options) if is_remote else {}
            storage = storage_from_url(url, **given)
            options = {name: given[name] for name in _PUBLIC if name in given}
        repository = None
        if Repository.exists(storage):
            repository = Repository.open(storage, None, access)
        return cls(storage, repository, access, remote, options)

    @property
    def made(self) -> Repository:
        """The repository, which must exist."""
        assert self.repository is not None
        return self.repository

    def session(self, branch: str) -> Session | None:
        """Return a writable session; None if there is no repository yet."""
        return None if self.repository is None else self.repository.writable_session(branch)

    def prefixes(
        self,
        session: Session | None,
        locations: Sequence[str],
        containers: Sequence[VirtualChunkContainer] | None,
    ) -> tuple[str, ...]:
        """Return the folders and URLs below which files may be read.

        The caller authorised them, or will do so if there is no repository yet.
        """
        if session is None:
            chosen = containers
            if chosen is None:
                chosen = derive_containers(locations, self.remote_options)
            return tuple(each.url_prefix for each in chosen if not _is_of_all(each.url_prefix))
        found = []
        for container in (self.made.config.virtual_chunk_containers or {}).values():
            if _is_of_all(container.url_prefix):
                continue
            try:
                session.virtual.resolve(container.url_prefix + "file")
            except IcechunkError:
                # it was not authorised, or cannot be reached
                continue
            found.append(container.url_prefix)
        return tuple(found)

    def create(
        self, locations: Sequence[str], containers: Sequence[VirtualChunkContainer] | None
    ) -> None:
        """Create the repository, with containers for some files."""
        chosen = containers
        if chosen is None:
            chosen = derive_containers(locations, self.remote_options)
        access = self.access
        if access is None:
            access = authorization(chosen, self.remote_options)
        config = RepositoryConfig()
        for container in chosen:
            config.set_virtual_chunk_container(container)
        assert isinstance(self.place, Storage)
        self.repository = Repository.create(self.place, config, access)

    def reading(self, locations: Sequence[str]) -> dict[str, Any]:
        """Return what is needed to read some files, as fields of a report."""
        if self.repository is None:
            return {}
        access: dict[str, str] = {}
        trusted = False
        for container in (self.repository.config.virtual_chunk_containers or {}).values():
            if _any_begins_with(locations, container.url_prefix):
                access[container.url_prefix] = credential_call(container.store)
                options = getattr(container.store, "options", None)
                trusted |= getattr(options, "endpoint_url", None) is not None
        return {
            "access": access,
            "trusted": trusted,
            "target": self.repository.storage.url,
            "options": self.options,
        }


def _any_begins_with(locations: Sequence[str], prefix: str) -> bool:
    # of most archives, the first does
    if not len(locations) or locations[0].startswith(prefix):
        return bool(len(locations))
    if not isinstance(locations, StringHeap):
        return any(location.startswith(prefix) for location in locations)
    # search them as one piece; only a match at the start of a location counts
    data, begin, starts = locations.data.tobytes(), prefix.encode(), locations.offsets
    at = data.find(begin)
    while at >= 0 and starts[np.searchsorted(starts, at)] != at:
        at = data.find(begin, at + 1)
    return at >= 0


def _is_of_all(prefix: str) -> bool:
    # a prefix of all servers or buckets allows none in particular
    return prefix.endswith("://")
