"""The configuration of a repository.

All classes are mutable dataclasses in which None means *not set*. What is not set
here may be set by the configuration stored in the repository, and otherwise has the
default that the documentation of the option states. `RepositoryConfig.effective`
returns the values that the library works with, defaults filled in; the library itself
never fills a default into a `RepositoryConfig`, so nothing that the user did not ask
for is ever stored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, TypeAlias

from icechunk.base.display import Displayed, NumberedEnum
from icechunk.base.texts import Labelled, call, labelled, literal
from icechunk.config.conditions import (
    AnyDimCondition,
    ManifestPreloadCondition,
    ManifestSplitCondition,
    ManifestSplitDimCondition,
    SplitSizes,
    preload_condition,
    splitting_rules,
)
from icechunk.config.logs import initialize_logs, set_logs_filter, shutdown_telemetry
from icechunk.config.object_stores import (
    AnyObjectStoreConfig,
    ChecksumAlgorithm,
    ObjectStoreConfig,
    S3Options,
    VirtualChunkContainer,
    VirtualChunkSpec,
    azure_store,
    containers,
    gcs_store,
    http_store,
    local_filesystem_store,
    s3_store,
)
from icechunk.config.options import (
    Options,
    integer,
    invalid_option,
    member,
    nested,
    stored_map,
    unsigned,
)
from icechunk.config.storage_settings import (
    EffectiveRetries,
    EffectiveStorageSettings,
    StorageConcurrencySettings,
    StorageRetriesSettings,
    StorageSettings,
    StorageTimeoutSettings,
    effective_retries,
    value_or,
)
from icechunk.errors import ErrorKind, FormatError, InvalidInputError

__all__ = [
    "AnyObjectStoreConfig",
    "Attribution",
    "CachingConfig",
    "ChecksumAlgorithm",
    "CompressionAlgorithm",
    "CompressionConfig",
    "EffectiveConfig",
    "EffectiveRetries",
    "EffectiveStorageSettings",
    "FeatureFlag",
    "ManifestConfig",
    "ManifestPreloadCondition",
    "ManifestPreloadConfig",
    "ManifestSplitCondition",
    "ManifestSplitDimCondition",
    "ManifestSplitValues",
    "ManifestSplittingConfig",
    "ManifestVirtualChunkLocationCompressionConfig",
    "ObjectStoreConfig",
    "RepoUpdateRetryConfig",
    "RepositoryConfig",
    "S3Options",
    "SplitSizesDict",
    "StorageConcurrencySettings",
    "StorageRetriesSettings",
    "StorageSettings",
    "StorageTimeoutSettings",
    "VirtualChunkContainer",
    "VirtualChunkSpec",
    "azure_store",
    "gcs_store",
    "http_store",
    "initialize_logs",
    "local_filesystem_store",
    "s3_store",
    "set_logs_filter",
    "shutdown_telemetry",
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
    """How much of what was read is kept in memory.

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
class ManifestPreloadConfig(Options):
    """Which manifests are fetched in the background when a session opens.

    Parameters
    ----------
    max_total_refs : int, optional
        Stop before this many chunk references. Default 10,000.
    preload_if : ManifestPreloadCondition, optional
        Default: manifests of at most 1,000 references, of arrays with names that are usual
        for coordinates, such as ``time``, ``lat`` or ``x``.
    max_arrays_to_scan : int, optional
        Look at this many arrays. Default 50.
    """

    _in_force: ClassVar = {"max_total_refs": 10_000, "max_arrays_to_scan": 50}

    max_total_refs: Annotated[int | None, unsigned(32)] = None
    preload_if: Annotated[ManifestPreloadCondition | None, preload_condition()] = None
    max_arrays_to_scan: Annotated[int | None, unsigned(32)] = None


#: Sizes by dimension condition, and those by array condition: what `from_dict` takes.
ManifestSplitValues: TypeAlias = dict[AnyDimCondition, int]
SplitSizesDict: TypeAlias = dict[ManifestSplitCondition, ManifestSplitValues]


@dataclass(repr=False)
class ManifestSplittingConfig(Options):
    """How the references of an array are split into several manifests.

    Parameters
    ----------
    split_sizes : tuple, optional
        Pairs of a `ManifestSplitCondition` and of pairs ``(dimension condition, number
        of chunks)``. Each dimension takes the first dimension condition that matches,
        among those of all array conditions that match, in their order, and is not split
        if there is none. Default: no splitting. (Without this configuration arrays are cut
        where they have very many references, into manifests of about 130,000.)
    """

    split_sizes: Annotated[SplitSizes | None, splitting_rules()] = None

    @staticmethod
    def from_dict(
        split_sizes: Mapping[ManifestSplitCondition, Mapping[AnyDimCondition, int]],
    ) -> ManifestSplittingConfig:
        """Return the configuration for rules as nested dicts, in their order."""
        try:
            rules = tuple((array, tuple(dims.items())) for array, dims in split_sizes.items())
        except AttributeError:
            raise invalid_option(
                "ManifestSplittingConfig.from_dict: split_sizes", "a dict of dicts", split_sizes
            ) from None
        return ManifestSplittingConfig(rules)

    def to_dict(self) -> dict[ManifestSplitCondition, dict[AnyDimCondition, int]]:
        """Return the rules as nested dicts."""
        return {array: dict(dims) for array, dims in self.split_sizes or ()}

    def _merge(self, other: ManifestSplittingConfig) -> ManifestSplittingConfig:
        # one option as a whole: rules that are not set override others, as official has it
        return ManifestSplittingConfig(other.split_sizes)


@dataclass(repr=False)
class ManifestVirtualChunkLocationCompressionConfig(Options):
    """Compression of the locations of virtual chunks with a dictionary.

    Without this configuration locations are compressed only where that makes a manifest
    smaller, which is rare: manifests are compressed as a whole.

    Parameters
    ----------
    min_num_chunks : int, optional
        Compress in manifests with this many virtual references. Default 1,000.
    dictionary_max_training_samples : int, optional
        Default 100.
    dictionary_max_size_bytes : int, optional
        Default 2,048.
    compression_level : int, optional
        Of zstd. Default 3.
    """

    _in_force: ClassVar = {
        "min_num_chunks": 1000,
        "dictionary_max_training_samples": 100,
        "dictionary_max_size_bytes": 2048,
        "compression_level": 3,
    }

    min_num_chunks: Annotated[int | None, unsigned(16)] = None
    dictionary_max_training_samples: Annotated[int | None, unsigned(16)] = field(
        default=None, kw_only=True
    )
    dictionary_max_size_bytes: Annotated[int | None, unsigned(32)] = field(
        default=None, kw_only=True
    )
    compression_level: Annotated[int | None, integer(-(2**31), 2**31 - 1)] = field(
        default=None, kw_only=True
    )


@dataclass(repr=False)
class ManifestConfig(Options):
    """Everything about manifests.

    Parameters
    ----------
    preload : ManifestPreloadConfig, optional
    splitting : ManifestSplittingConfig, optional
    virtual_chunk_location_compression : ManifestVirtualChunkLocationCompressionConfig, optional
    max_concurrent_manifest_fetches_during_commit : int, optional
        Default 1.
    """

    _in_force: ClassVar = {
        "preload": ManifestPreloadConfig(),
        "splitting": ManifestSplittingConfig(
            (
                (
                    ManifestSplitCondition.path_matches(".*"),
                    ((ManifestSplitDimCondition.Any(), 2**32 - 1),),
                ),
            )
        ),
        "virtual_chunk_location_compression": ManifestVirtualChunkLocationCompressionConfig(),
        "max_concurrent_manifest_fetches_during_commit": 1,
    }

    preload: Annotated[ManifestPreloadConfig | None, nested(ManifestPreloadConfig)] = None
    splitting: Annotated[ManifestSplittingConfig | None, nested(ManifestSplittingConfig)] = None
    virtual_chunk_location_compression: Annotated[
        ManifestVirtualChunkLocationCompressionConfig | None,
        nested(ManifestVirtualChunkLocationCompressionConfig),
    ] = None
    max_concurrent_manifest_fetches_during_commit: Annotated[int | None, unsigned(16)] = None


@dataclass(repr=False)
class RepoUpdateRetryConfig(Options):
    """How a lost race for the repository's one mutable object is tried again.

    Parameters
    ----------
    default : StorageRetriesSettings, optional
    """

    _in_force: ClassVar = {"default": StorageRetriesSettings(100, 50, 30_000)}

    default: Annotated[StorageRetriesSettings | None, nested(StorageRetriesSettings)] = None


# -- the whole -------------------------------------------------------------------------
#: Names of coordinates, by the rules with which cf_xarray guesses axes.
_COORDINATES: Final = "|".join(
    [
        r"t|(time|min|hour|day|week|month|year)[0-9]*",
        r"(z|nav_lev|gdep|lv_|o*lev|bottom_top|sigma|h(ei)?ght|altitude|depth|isobaric|pres"
        r"|isotherm)[a-z_]*[0-9]*",
        r"y|j|nlat|rlat|nj|y?(nav_lat|lat|gphi)[a-z0-9]*",
        r"x|i|nlon|rlon|ni|x?(nav_lon|lon|glam)[a-z0-9]*",
    ]
)
#: Small manifests of coordinates are preloaded unless a condition is set.
_PRELOAD: Final = ManifestPreloadCondition.name_matches(
    rf"^({_COORDINATES})$"
) & ManifestPreloadCondition.num_refs(None, 1001)


@dataclass(frozen=True)
class EffectiveConfig:
    """The values that the library works with, defaults filled in.

    The attributes have the names, meanings and units of the options that they come
    from; those of nested classes are prefixed where their name alone would not tell.
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
    split_sizes: SplitSizes | None
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
        """Add a container under its url prefix, or replace the one that is there."""
        if not isinstance(cont, VirtualChunkContainer):
            raise invalid_option(
                "set_virtual_chunk_container: cont", "a VirtualChunkContainer", cont
            )
        self.virtual_chunk_containers = {
            **(self.virtual_chunk_containers or {}),
            cont.url_prefix: cont,
        }

    def clear_virtual_chunk_containers(self) -> None:
        """Remove all containers, also those that a stored configuration would add."""
        self.virtual_chunk_containers = {}

    def merge(self, other: RepositoryConfig) -> RepositoryConfig:
        """Return this configuration with what `other` sets laid over it.

        Option by option, at every depth; the containers and the rules for splitting
        are one option each, and replaced as a whole (Icechunk spec, "RepositoryConfig").
        """
        if not isinstance(other, RepositoryConfig):
            raise invalid_option("RepositoryConfig.merge: other", "a RepositoryConfig", other)
        return self._merge(other)

    def to_dict(self) -> dict[str, Any]:
        """Return the stored form: every key, None where unset, plain values only.

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
            What errors call the source.

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
        compression = self.compression or CompressionConfig()
        caching = self.caching or CachingConfig()
        manifest = self.manifest or ManifestConfig()
        preload = manifest.preload or ManifestPreloadConfig()
        locations = (
            manifest.virtual_chunk_location_compression
            or ManifestVirtualChunkLocationCompressionConfig()
        )
        retries = self.repo_update_retries or RepoUpdateRetryConfig()
        return EffectiveConfig(
            inline_chunk_threshold_bytes=value_or(self.inline_chunk_threshold_bytes, 512),
            get_partial_values_concurrency=value_or(self.get_partial_values_concurrency, 10),
            compression_level=min(value_or(compression.level, 3), 22),
            max_concurrent_requests=value_or(self.max_concurrent_requests, 256),
            max_concurrent_decodes=value_or(self.max_concurrent_decodes, os.cpu_count() or 1),
            num_snapshot_nodes=value_or(caching.num_snapshot_nodes, 500_000),
            num_chunk_refs=value_or(caching.num_chunk_refs, 15_000_000),
            num_transaction_changes=value_or(caching.num_transaction_changes, 0),
            num_bytes_attributes=value_or(caching.num_bytes_attributes, 0),
            num_bytes_chunks=value_or(caching.num_bytes_chunks, 0),
            preload_max_total_refs=value_or(preload.max_total_refs, 10_000),
            preload_if=value_or(preload.preload_if, _PRELOAD),
            preload_max_arrays_to_scan=value_or(preload.max_arrays_to_scan, 50),
            split_sizes=None
            if manifest.splitting is None
            else manifest.splitting.split_sizes or (),
            location_compression_is_wanted=manifest.virtual_chunk_location_compression is not None,
            location_compression_min_num_chunks=value_or(locations.min_num_chunks, 1000),
            location_compression_max_training_samples=value_or(
                locations.dictionary_max_training_samples, 100
            ),
            location_compression_max_dictionary_size=value_or(
                locations.dictionary_max_size_bytes, 2048
            ),
            location_compression_level=value_or(locations.compression_level, 3),
            max_concurrent_manifest_fetches_during_commit=value_or(
                manifest.max_concurrent_manifest_fetches_during_commit, 1
            ),
            repo_update_retries=effective_retries(retries.default, 100, 50, 30_000),
            num_updates_per_repo_info_file=value_or(self.num_updates_per_repo_info_file, 1000),
            storage=(self.storage or StorageSettings()).effective(),
            virtual_chunk_containers=dict(self.virtual_chunk_containers or {}),
        )


#: ``name`` or ``name/version`` in the characters of a token (RFC 9110, "User-Agent").
_PRODUCT: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+(/[-!#$%&'*+.^_`|~0-9A-Za-z]+)?")
#: Printable ASCII without what stands between the labels.
_LABEL: Final = re.compile(r"[ -~]*")
_BETWEEN_LABELS: Final = frozenset('()\\;="')
_MAX_ATTRIBUTION: Final = 128


@dataclass(frozen=True, kw_only=True, repr=False)
class Attribution(Displayed):
    r"""Who makes the requests, for the access logs of the storage.

    Parameters
    ----------
    client : str, optional
        The program: ``name`` or ``name/version``, of the characters that HTTP allows there.
    workload, principal : str, optional
        What it is doing, and on whose behalf: printable ASCII without any of ``()\\;="``.

    Raises
    ------
    InvalidInputError
        If a label is longer than 128 bytes, or has other characters.
    """

    client: str | None = None
    workload: str | None = None
    principal: str | None = None

    def __repr__(self) -> str:
        return call("icechunk.Attribution", self._texts())

    def __str__(self) -> str:
        return labelled("icechunk.Attribution", self._texts())

    def _texts(self) -> dict[str, str]:
        return {name: literal(value) for name, value in vars(self).items()}

    def __post_init__(self) -> None:
        for name in ("client", "workload", "principal"):
            value = getattr(self, name)
            if value is None:
                continue
            where = f"Attribution: {name}"
            if not isinstance(value, str):
                raise invalid_option(where, "a string", value)
            if len(value.encode()) > _MAX_ATTRIBUTION:
                raise invalid_option(where, f"at most {_MAX_ATTRIBUTION} bytes long", value)
            if name == "client" and not _PRODUCT.fullmatch(value):
                raise invalid_option(where, "'name' or 'name/version' without spaces", value)
            if not _LABEL.fullmatch(value) or _BETWEEN_LABELS.intersection(value):
                raise invalid_option(where, 'printable ASCII without any of ()\\;="', value)

    def user_agent(self, library: str) -> str:
        """Return the header that carries it, in the form of the official client.

        Parameters
        ----------
        library : str
            What this library calls itself.
        """
        labels = [
            f"{name}={value}"
            for name, value in (("workload", self.workload), ("principal", self.principal))
            if value is not None
        ]
        comment = [f"({'; '.join(labels)})"] if labels else []
        return " ".join([*([self.client] if self.client else []), library, *comment])


@dataclass(frozen=True, repr=False)
class FeatureFlag(Labelled):
    """A feature and whether it is on.

    Attributes
    ----------
    id : int
    name : str
    default_enabled : bool
    setting : bool or None
        None where it was not set, or set back to its default.
    enabled : bool
        What is in force.
    """

    _label = "icechunk.config.FeatureFlag"

    id: int
    name: str
    default_enabled: bool
    setting: bool | None
    enabled: bool
