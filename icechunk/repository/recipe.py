"""What rebuilds a repository in another process, and what its copies share."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from icechunk._version import user_agent
from icechunk.commit.assets import Assets
from icechunk.commit.publish import RepoState
from icechunk.config import Attribution, RepositoryConfig, StorageSettings
from icechunk.config.credential_types import AnyCredential
from icechunk.config.repository_config import EffectiveConfig
from icechunk.errors import InvalidInputError
from icechunk.format.manifest import LocationCompression
from icechunk.session.context import RequestLimit, SessionContext
from icechunk.storage import AnyStorage, Storage, as_storage
from icechunk.virtual.container_trust import Trust
from icechunk.virtual.deprecations import authorized
from icechunk.virtual.resolver import VirtualResolver


def new_key() -> bytes:
    """Return a key that no other recipe has."""
    return os.urandom(16)


def checked(recipe: object) -> RepositoryRecipe:
    """Return what a repository is made of.

    Raises
    ------
    InvalidInputError
        If it is something else, which users would open.
    """
    if not isinstance(recipe, RepositoryRecipe):
        raise InvalidInputError(
            "Repository(...) opens nothing: use Repository.open, create or open_or_create"
        )
    return recipe


@dataclass(frozen=True)
class RepositoryRecipe:
    """All that another process needs to make the same context, without a request.

    Copies have the same `key`, and share a context in each process: a Dask graph contains one
    copy for every array, and each would fetch the snapshot for itself.
    """

    storage: Storage
    config: RepositoryConfig
    authorization: dict[str, AnyCredential | None]
    #: Whether the virtual chunk containers are those that the caller passed.
    own_containers: bool = True
    #: The storage settings that the caller passed.
    own_settings: StorageSettings | None = None
    commit_metadata: dict[str, Any] = field(default_factory=dict)
    attribution: Attribution | None = None
    #: The stored configuration, as it was read.
    stored: RepositoryConfig | None = None
    key: bytes = field(default_factory=new_key, repr=False)

    @classmethod
    def of(
        cls,
        storage: Storage,
        config: RepositoryConfig,
        authorization: Mapping[str, AnyCredential | None] | None,
        attribution: Attribution | None = None,
        *,
        passed: tuple[bool, StorageSettings | None] = (True, None),
        stored: RepositoryConfig | None = None,
    ) -> RepositoryRecipe:
        """Return a recipe whose storage has the settings of the configuration.

        `passed` says whether the caller passed its containers, and which settings of the storage.
        """
        if config.storage is not None:
            storage = storage.with_settings(config.storage)
        if attribution is not None:
            storage = storage.with_user_agent(attribution.user_agent(user_agent()))
        return cls(
            storage,
            config,
            authorized(authorization),
            *passed,
            attribution=attribution,
            # the caller may change it later
            stored=deepcopy(stored),
        )

    def context(self) -> SessionContext:
        """Return what sessions share: that of other copies, if this process has it."""
        with _contexts_lock:
            found = _contexts.get(self.key)
            if found is None:
                found = _contexts[self.key] = self._make_context()
            return found

    def _make_context(self) -> SessionContext:
        effective = self.config.effective()
        assets = _assets(self.storage, effective)
        state = RepoState(
            assets, effective.repo_update_retries, effective.num_updates_per_repo_info_file
        )
        virtual = VirtualResolver(
            effective.virtual_chunk_containers,
            self.authorization,
            Trust(self.own_containers, self.storage.endpoint, self.own_settings),
            self.config.storage,
        )
        limit = RequestLimit(effective.max_concurrent_requests)
        return SessionContext(
            assets, state, virtual, self.config, effective, self, limit, self.commit_metadata
        )


def context_at(storage: AnyStorage, config: RepositoryConfig) -> SessionContext:
    """Return what sessions share, for the repository in a storage, without credentials."""
    return RepositoryRecipe.of(as_storage(storage), config, None).context()


#: Contexts in use in this process, by key of the recipe.
_contexts: weakref.WeakValueDictionary[bytes, SessionContext] = weakref.WeakValueDictionary()
_contexts_lock = threading.Lock()


def _forget_contexts() -> None:
    global _contexts, _contexts_lock
    _contexts, _contexts_lock = weakref.WeakValueDictionary(), threading.Lock()


# connections and locks do not survive a fork of the process
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_contexts)


def _assets(storage: Storage, effective: EffectiveConfig) -> Assets:
    return Assets(
        storage,
        max_snapshot_nodes=effective.num_snapshot_nodes,
        max_chunk_refs=effective.num_chunk_refs,
        max_chunk_bytes=effective.num_bytes_chunks,
        compression_level=effective.compression_level,
        location_compression=LocationCompression(
            min_num_chunks=effective.location_compression_min_num_chunks,
            max_samples=effective.location_compression_max_training_samples,
            max_dictionary_size=effective.location_compression_max_dictionary_size,
            level=effective.location_compression_level,
            only_where_smaller=not effective.location_compression_is_wanted,
        ),
    )
