"""How references of arrays are split into manifests, compressed, and fetched early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final, TypeAlias

from icechunk.config.conditions import (
    AnyDimCondition,
    ManifestPreloadCondition,
    ManifestSplitCondition,
    ManifestSplitDimCondition,
    SplitRules,
    preload_condition,
    splitting_rules,
)
from icechunk.config.options import Options, integer, invalid_option, nested, unsigned

__all__ = [
    "ManifestConfig",
    "ManifestPreloadConfig",
    "ManifestSplitValues",
    "ManifestSplittingConfig",
    "ManifestVirtualChunkLocationCompressionConfig",
    "SplitSizesDict",
]

#: Names of coordinates, by the rules that cf_xarray uses to guess axes.
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
DEFAULT_PRELOAD: Final = ManifestPreloadCondition.name_matches(
    rf"^({_COORDINATES})$"
) & ManifestPreloadCondition.num_refs(None, 1001)


@dataclass(repr=False)
class ManifestPreloadConfig(Options):
    """Which manifests are fetched in the background when a session opens.

    Parameters
    ----------
    max_total_refs : int, optional
        Stop before this many chunk references. Default 10,000.
    preload_if : ManifestPreloadCondition, optional
        Default: manifests of at most 1,000 references, of arrays with names that are common
        for coordinates, such as ``time``, ``lat`` or ``x``.
    max_arrays_to_scan : int, optional
        Look at this many arrays. Default 50.

    Examples
    --------
    >>> preload = icechunk.ManifestPreloadConfig(max_total_refs=10_000)
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
        among those of all array conditions that match, in order. A dimension that none
        matches is not split. Default: no splitting. (Without this configuration, arrays with
        very many references are cut into manifests of about 130,000.)

    Examples
    --------
    >>> splitting = icechunk.ManifestSplittingConfig.from_dict(
    ...     {
    ...         icechunk.ManifestSplitCondition.AnyArray(): {
    ...             icechunk.ManifestSplitDimCondition.DimensionName("time"): 1000
    ...         }
    ...     }
    ... )
    """

    split_sizes: Annotated[SplitRules | None, splitting_rules()] = None

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
        # one option as a whole: rules replace others even when they are unset, as in official
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

    Examples
    --------
    >>> packed = icechunk.ManifestVirtualChunkLocationCompressionConfig(min_num_chunks=100)
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

    Examples
    --------
    >>> config = icechunk.RepositoryConfig(
    ...     manifest=icechunk.ManifestConfig(
    ...         preload=icechunk.ManifestPreloadConfig(max_total_refs=0)
    ...     )
    ... )
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
