"""The configuration of a repository.

All classes are mutable dataclasses in which None means *not set*. An option that is not
set here may be set by the configuration stored in the repository. Otherwise it has the
default that the documentation of the option states. `RepositoryConfig.effective`
returns the values that the library works with, with defaults filled in. The library
never fills a default into a `RepositoryConfig`, so nothing is ever stored that the user
did not ask for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from icechunk.base.display import NumberedEnum
from icechunk.base.texts import Labelled, article
from icechunk.config.conditions import ManifestPreloadCondition, SplitRules
from icechunk.config.manifests import DEFAULT_PRELOAD, ManifestConfig
from icechunk.config.options import (
    Options,
    in_force,
    invalid_option,
    member,
    nested,
    stored_map,
    unsigned,
)
from icechunk.config.storage_settings import (
    EffectiveRetries,
    EffectiveStorageSettings,
    StorageRetriesSettings,
    StorageSettings,
    effective_retries,
)
from icechunk.config.virtual_chunks import VirtualChunkContainer, containers
from icechunk.errors import ErrorKind, FormatError, InvalidInputError

__all__ = [
    "CachingConfig",
    "CompressionAlgorithm",
    "CompressionConfig",
    "FeatureFlag",
    "RepoUpdateRetryConfig",
    "RepositoryConfig",
]


class CompressionAlgorithm(NumberedEnum):
    """How metadata files are compressed."""

    Zstd = 0

    @staticmethod
    def default() -> CompressionAlgorithm:
        """Return the algorithm used when none is set."""
        return CompressionAlgorithm.Zstd


@dataclass(repr=False)
class CompressionConfig(Options):
    """Compression of metadata files; chunks are compressed by Zarr.

    Parameters
    ----------
    algorithm : CompressionAlgorithm, optional
        Default zstd.
    level : int, optional
        0 to 255, of which zstd uses 22 at most. Default 3.

    Examples
    --------
    >>> config = icechunk.RepositoryConfig(compression=icechunk.CompressionConfig(level=5))
    """

    _in_force: ClassVar = {"algorithm": CompressionAlgorithm.Zstd, "level": 3}

    algorithm: Annotated[
        CompressionAlgorithm | None, member({CompressionAlgorithm.Zstd: "zstd"})
    ] = None
    level: Annotated[int | None, unsigned(8)] = None

    @staticmethod
    def default() -> CompressionConfig:
        """Return a configuration with nothing set."""
        return CompressionConfig()


@dataclass(repr=False)
class CachingConfig(Options):
    """How much of what was read stays in memory.

    Parameters
    ----------
    num_snapshot_nodes : int, optional
        Groups and arrays of snapshots. Default 500,000.
    num_chunk_refs : int, optional
        Chunk references of manifests. Default 15,000,000.
    num_transaction_changes : int, optional
        Entries of transaction logs. Default 0.
    num_bytes_attributes : int, optional
        Default 0.
    num_bytes_chunks : int, optional
        Bytes of chunks. Default 0.

    Examples
    --------
    >>> config = icechunk.RepositoryConfig(
    ...     caching=icechunk.CachingConfig(num_bytes_chunks=100_000_000)
    ... )
    """

    _in_force: ClassVar = {
        "num_snapshot_nodes": 500_000,
        "num_chunk_refs": 15_000_000,
        "num_transaction_changes": 0,
        "num_bytes_attributes": 0,
        "num_bytes_chunks": 0,
    }

    num_snapshot_nodes: Annotated[int | None, unsigned(64)] = None
    num_chunk_refs: Annotated[int | None, unsigned(64)] = None
    num_transaction_changes: Annotated[int | None, unsigned(64)] = None
    num_bytes_attributes: Annotated[int | None, unsigned(64)] = None
    num_bytes_chunks: Annotated[int | None, unsigned(64)] = None


@dataclass(repr=False)
class RepoUpdateRetryConfig(Options):
    """How updates of the repository's one mutable object are retried after a lost race.

    Parameters
    ----------
    default : StorageRetriesSettings, optional

    Examples
    --------
    >>> config = icechunk.RepoUpdateRetryConfig()
    """

    _in_force: ClassVar = {"default": StorageRetriesSettings(100, 50, 30_000)}

    default: Annotated[StorageRetriesSettings | None, nested(StorageRetriesSettings)] = None


# -- the whole -------------------------------------------------------------------------
@dataclass(frozen=True)
class EffectiveConfig:
    """The values that the library works with, with defaults filled in.

    The attributes have the names, meanings and units of the options they come from. Those
    of nested classes have a prefix where their name alone would be ambiguous.
    """

    inline_chunk_threshold_bytes: int
    get_partial_values_concurrency: int
    compression_level: int
    max_concurrent_requests: int
    max_concurrent_decodes: int
    num_snapshot_nodes: int
    num_chunk_refs: int
    num_transaction_changes: int
    num_bytes_attributes: int
    num_bytes_chunks: int
    preload_max_total_refs: int
    preload_if: ManifestPreloadCondition
    preload_max_arrays_to_scan: int
    split_sizes: SplitRules | None
    location_compression_is_wanted: bool
    location_compression_min_num_chunks: int
    location_compression_max_training_samples: int
    location_compression_max_dictionary_size: int
    location_compression_level: int
    max_concurrent_manifest_fetches_during_commit: int
    repo_update_retries: EffectiveRetries
    num_updates_per_repo_info_file: int
    storage: EffectiveStorageSettings
    virtual_chunk_containers: Mapping[str, VirtualChunkContainer]


@dataclass(repr=False)
class RepositoryConfig(Options):
    """The configuration of a repository; None is *not set* in every option.

    Parameters
    ----------
    inline_chunk_threshold_bytes : int, optional
        Chunks of at most this size are stored inside manifests. Default 512.
    get_partial_values_concurrency : int, optional
        Default 10.
    compression : CompressionConfig, optional
    max_concurrent_requests : int, optional
        Default 256.
    caching : CachingConfig, optional
    storage : StorageSettings, optional
    virtual_chunk_containers : dict, optional
        `VirtualChunkContainer` by url prefix.
    manifest : ManifestConfig, optional
    repo_update_retries : RepoUpdateRetryConfig, optional
    num_updates_per_repo_info_file : int, optional
        Entries of the operations log kept in the repository's main object. Default
        1,000.
    max_concurrent_decodes : int, optional
        Default: the number of processors.

    Examples
    --------
    >>> config = icechunk.RepositoryConfig(inline_chunk_threshold_bytes=1024)
    >>> repo = icechunk.Repository.open(storage, config=config)
    """

    _order = (
        "inline_chunk_threshold_bytes",
        "get_partial_values_concurrency",
        "max_concurrent_requests",
        "max_concurrent_decodes",
        "num_updates_per_repo_info_file",
        "compression",
        "caching",
        "storage",
        "manifest",
        "repo_update_retries",
        "virtual_chunk_containers",
    )
    _in_force: ClassVar = {
        "inline_chunk_threshold_bytes": 512,
        "get_partial_values_concurrency": 10,
        "max_concurrent_requests": 256,
        "max_concurrent_decodes": os.cpu_count() or 1,
        "num_updates_per_repo_info_file": 1000,
        "compression": CompressionConfig(),
        "caching": CachingConfig(),
        "manifest": ManifestConfig(),
        "repo_update_retries": RepoUpdateRetryConfig(),
    }

    inline_chunk_threshold_bytes: Annotated[int | None, unsigned(16)] = None
    get_partial_values_concurrency: Annotated[int | None, unsigned(16)] = None
    compression: Annotated[CompressionConfig | None, nested(CompressionConfig)] = None
    max_concurrent_requests: Annotated[int | None, unsigned(16)] = None
    caching: Annotated[CachingConfig | None, nested(CachingConfig)] = None
    storage: Annotated[StorageSettings | None, nested(StorageSettings)] = None
    virtual_chunk_containers: Annotated[dict[str, VirtualChunkContainer] | None, containers()] = (
        None
    )
    manifest: Annotated[ManifestConfig | None, nested(ManifestConfig)] = None
    repo_update_retries: Annotated[RepoUpdateRetryConfig | None, nested(RepoUpdateRetryConfig)] = (
        None
    )
    num_updates_per_repo_info_file: Annotated[int | None, unsigned(16)] = None
    max_concurrent_decodes: Annotated[int | None, unsigned(16)] = None

    @staticmethod
    def default() -> RepositoryConfig:
        """Return a configuration with nothing set."""
        return RepositoryConfig()

    def get_virtual_chunk_container(self, name: str) -> VirtualChunkContainer | None:
        """Return the container with this key, which is its url prefix, or None."""
        return (self.virtual_chunk_containers or {}).get(name)

    def set_virtual_chunk_container(self, cont: VirtualChunkContainer) -> None:
        """Add a container under its URL prefix, replacing any that is there."""
        if not isinstance(cont, VirtualChunkContainer):
            raise invalid_option(
                "set_virtual_chunk_container: cont", "a VirtualChunkContainer", cont
            )
        self.virtual_chunk_containers = {
            **(self.virtual_chunk_containers or {}),
            cont.url_prefix: cont,
        }

    def clear_virtual_chunk_containers(self) -> None:
        """Remove all containers, including those that a stored configuration would add."""
        self.virtual_chunk_containers = {}

    def merge(self, other: RepositoryConfig) -> RepositoryConfig:
        """Return this configuration overlaid with everything that `other` sets.

        Options are merged one by one, at every depth. The containers are one option, and so are
        the rules for splitting: each is replaced as a whole (Icechunk spec, "RepositoryConfig").
        """
        if not isinstance(other, RepositoryConfig):
            raise invalid_option("RepositoryConfig.merge: other", "a RepositoryConfig", other)
        return self._merge(other)

    def to_dict(self) -> dict[str, Any]:
        """Return the stored form: every key, None where unset, and plain values only.

        The same structure is stored as FlexBuffers (spec 2) and as YAML (spec 1). An
        enumeration is a string, or a dict with one key for a variant that holds
        something.
        """
        # a pointer to an earlier file that official clients manage themselves
        return {**self._dump(), "previous_file": None}

    @staticmethod
    def from_dict(d: Mapping[str, Any], name: str = "config") -> RepositoryConfig:
        """Return the configuration for a stored form.

        A missing key is one that is not set; unknown keys are ignored.

        Parameters
        ----------
        d : mapping
            The structure that `to_dict` returns.
        name : str
            How error messages name the source.

        Raises
        ------
        FormatError
            If a value is of the wrong type, out of range, or an unknown variant.
        """
        try:
            return RepositoryConfig._load(stored_map(d, name), "")
        except InvalidInputError as exc:
            raise FormatError(f"{name}: {exc}", ErrorKind.CONFIG_DESERIALIZATION) from None

    def validate(self) -> None:
        """Check what must hold before the configuration is written to a repository.

        Raises
        ------
        InvalidInputError
            If a container cannot be stored; see `VirtualChunkContainer.validate`.
        """
        for container in (self.virtual_chunk_containers or {}).values():
            container.validate()

    def effective(self) -> EffectiveConfig:
        """Return the values to work with (Icechunk spec, "RepositoryConfig")."""
        compression, caching = in_force(self, "compression"), in_force(self, "caching")
        manifest = in_force(self, "manifest")
        preload = in_force(manifest, "preload")
        locations = in_force(manifest, "virtual_chunk_location_compression")
        wanted = self.manifest or ManifestConfig()
        return EffectiveConfig(
            inline_chunk_threshold_bytes=in_force(self, "inline_chunk_threshold_bytes"),
            get_partial_values_concurrency=in_force(self, "get_partial_values_concurrency"),
            # higher than zstd's highest
            compression_level=min(in_force(compression, "level"), 22),
            max_concurrent_requests=in_force(self, "max_concurrent_requests"),
            max_concurrent_decodes=in_force(self, "max_concurrent_decodes"),
            num_snapshot_nodes=in_force(caching, "num_snapshot_nodes"),
            num_chunk_refs=in_force(caching, "num_chunk_refs"),
            num_transaction_changes=in_force(caching, "num_transaction_changes"),
            num_bytes_attributes=in_force(caching, "num_bytes_attributes"),
            num_bytes_chunks=in_force(caching, "num_bytes_chunks"),
            preload_max_total_refs=in_force(preload, "max_total_refs"),
            preload_if=preload.preload_if or DEFAULT_PRELOAD,
            preload_max_arrays_to_scan=in_force(preload, "max_arrays_to_scan"),
            # the default differs from the rules that are displayed: arrays are cut by their size
            split_sizes=None if wanted.splitting is None else wanted.splitting.split_sizes or (),
            location_compression_is_wanted=wanted.virtual_chunk_location_compression is not None,
            location_compression_min_num_chunks=in_force(locations, "min_num_chunks"),
            location_compression_max_training_samples=in_force(
                locations, "dictionary_max_training_samples"
            ),
            location_compression_max_dictionary_size=in_force(
                locations, "dictionary_max_size_bytes"
            ),
            location_compression_level=in_force(locations, "compression_level"),
            max_concurrent_manifest_fetches_during_commit=in_force(
                manifest, "max_concurrent_manifest_fetches_during_commit"
            ),
            repo_update_retries=effective_retries(
                in_force(in_force(self, "repo_update_retries"), "default")
            ),
            num_updates_per_repo_info_file=in_force(self, "num_updates_per_repo_info_file"),
            storage=(self.storage or StorageSettings()).effective(),
            virtual_chunk_containers=dict(self.virtual_chunk_containers or {}),
        )


@dataclass(frozen=True, repr=False)
class FeatureFlag(Labelled):
    """A feature and whether it is on.

    Attributes
    ----------
    id : int
    name : str
    default_enabled : bool
    setting : bool or None
        None if it was never set, or was set back to its default.
    enabled : bool
        The value in force.
    """

    _label = "icechunk.config.FeatureFlag"

    id: int
    name: str
    default_enabled: bool
    setting: bool | None
    enabled: bool


def as_config(config: RepositoryConfig | None) -> RepositoryConfig:
    """Return a configuration, an empty one for None.

    Raises
    ------
    InvalidInputError
        If it is something else.
    """
    if config is None:
        return RepositoryConfig()
    if not isinstance(config, RepositoryConfig):
        raise InvalidInputError(
            f"config is {article(config)}, and must be a RepositoryConfig, such as "
            "RepositoryConfig(inline_chunk_threshold_bytes=512)",
            ErrorKind.STORAGE_CONFIG,
        )
    return config
