"""One group as xarray would write it: arrays are made and resized, no values are written.

All that is used of xarray's Zarr backend is in this module: `ZarrStore` encodes variables and
makes arrays as `Dataset.to_zarr` does, and hands over what it would write.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr
import zarr
from xarray.backends import ZarrStore

from icechunk import AlreadyExistsError, IcechunkStore, InvalidInputError, NodeNotFoundError
from icechunk.errors import ErrorKind
from icechunk_xarray import safety
from icechunk_xarray.values import Check

Mode: TypeAlias = Literal["w", "w-", "a", "a-", "r+"]
Region: TypeAlias = Mapping[str, slice | Literal["auto"]] | Literal["auto"] | None


@dataclass(frozen=True)
class Options:
    """How datasets are written; the names are those of `to_icechunk`."""

    mode: Mode
    append_dim: Hashable | None
    region: Region
    safe_chunks: bool
    align_chunks: bool
    safe_append: bool
    safe_encoding: bool


@dataclass(frozen=True)
class PendingWrite:
    """Values, and the part of an array that they go to.

    Attributes
    ----------
    source : numpy.ndarray or dask.array.Array
        Encoded.
    target : zarr.Array
    region : tuple of slice
        With a start and a stop each.
    """

    source: Any
    target: zarr.Array[Any]
    region: tuple[slice, ...]

    @property
    def is_lazy(self) -> bool:
        """Whether Dask computes the values. xarray loads some variables to encode them."""
        return hasattr(self.source, "dask")


class _Collector:
    """Takes the place of xarray's `ArrayWriter`, and writes nothing."""

    def __init__(self) -> None:
        self.writes: list[PendingWrite] = []

    def add(self, source: Any, target: zarr.Array[Any], region: Any = None) -> None:
        """Note what xarray would write."""
        if not source.size:
            return
        cuts = region or (slice(None),) * target.ndim
        bounds = zip(cuts, target.shape, strict=True)
        explicit = tuple(slice(*cut.indices(size)[:2]) for cut, size in bounds)
        self.writes.append(PendingWrite(source, target, explicit))


def stage(
    dataset: xr.Dataset,
    store: IcechunkStore,
    group: str,
    encoding: Mapping[str, Mapping[str, Any]],
    options: Options,
) -> list[PendingWrite]:
    """Check a dataset against a group, make its arrays, and return the writes that remain.

    Raises
    ------
    InvalidInputError, AlreadyExistsError, NodeNotFoundError
        If the dataset does not fit what is stored, or the mode does not.
    """
    safety.check_names(dataset, encoding)
    existing = _existing(store, group, options.mode)
    region = None
    if options.region is not None:
        region = safety.resolve_region(dataset, existing, options.region)
    if options.mode not in ("w", "w-"):
        safety.check_against(
            dataset,
            existing,
            encoding,
            mode=options.mode,
            append_dim=options.append_dim,
            region=region,
            safe_append=options.safe_append,
        )
    if region is not None:
        # where values lie along these dimensions is settled
        dataset = dataset.drop_vars([str(name) for name in dataset.indexes])
    backend = ZarrStore.open_group(
        store,
        mode=options.mode,
        group=group,
        append_dim=options.append_dim,
        write_region=region,
        zarr_format=3,
        consolidated=False,
        consolidate_on_close=False,
        safe_chunks=False,  # checked here, on what is stored
        align_chunks=options.align_chunks,
    )
    variables, attrs = xr.conventions.encode_dataset_coordinates(dataset)
    for name, variable in variables.items():
        variables[name] = _prepared(variable, existing.get(name))
    for name, wanted in encoding.items():
        variables[name].encoding = dict(wanted)
    collector = _Collector()
    backend.store(variables, attrs, set(encoding), collector)
    stored = ZarrStore.open_group(store, mode="r", group=group, consolidated=False, zarr_format=3)
    return [_checked(write, dataset, stored, existing, options) for write in collector.writes]


def _existing(store: IcechunkStore, group: str, mode: Mode) -> dict[str, xr.Variable]:
    """Return the variables of a group as they are stored; refuse what the mode excludes."""
    if mode == "w":
        return {}
    try:
        opened = ZarrStore.open_group(
            store, mode="r", group=group, consolidated=False, zarr_format=3
        )
    except FileNotFoundError:
        if mode == "r+":
            raise NodeNotFoundError(
                f"there is no group {_shown(group)} to write values to; write it once with "
                "mode='w-', or check the name"
            ) from None
        return {}
    if mode == "w-":
        raise AlreadyExistsError(
            f"there is a group {_shown(group)} already: mode='w' replaces it, mode='a' overwrites "
            "and adds variables, append_dim and region add to its arrays"
        )
    return {name: opened.open_store_variable(name) for name in opened.array_keys()}


def _prepared(variable: xr.Variable, stored: xr.Variable | None) -> xr.Variable:
    """Return a variable that xarray encodes without failing half-way.

    `stored` is the array that it goes to, None for a new one.
    """
    if not variable.size:
        # empty blocks are no size for the chunks of a new array
        return variable.compute()
    if stored is None:
        return variable
    if variable.dtype.kind in "Mm":
        # of Dask they would be encoded task by task, and fail there, without a name
        return variable.compute()
    if stored.dtype.kind in "SU" and variable.dtype != stored.dtype:
        # strings of another length are refused even where they fit
        return variable.to_base_variable().astype(stored.dtype)
    return variable


def _checked(
    write: PendingWrite,
    dataset: xr.Dataset,
    stored: ZarrStore,
    existing: Mapping[str, xr.Variable],
    options: Options,
) -> PendingWrite:
    """Check chunks and values of a write; values of Dask are checked when they are computed."""
    name = write.target.basename
    variable: xr.Variable = stored.open_store_variable(name)  # type: ignore[no-untyped-call]
    original = dataset.variables[name].transpose(*variable.dims)
    if write.is_lazy and not options.align_chunks:
        grid = write.target.shards or write.target.chunks
        safety.check_chunks(
            name,
            original.dims,
            write.source.chunks,
            grid,
            write.target.shape,
            write.region,
            partial=options.mode != "r+" or not options.safe_chunks,
        )
    if not options.safe_encoding:
        return write
    check = Check.of(name, original, variable, exact=name in existing)
    if not check.needed(original.dtype, write.source.dtype):
        return write
    if not write.is_lazy:
        check(np.asarray(write.source), original.values)
        return write
    import dask.array as da

    given = original.data.rechunk(write.source.chunks)
    blocks: Any = da.map_blocks
    return replace(
        write,
        source=blocks(
            check, write.source, given, dtype=write.source.dtype, meta=write.source._meta
        ),
    )


def choose_mode(mode: str | None, append_dim: Hashable | None, region: Region) -> Mode:
    """Return the mode that arguments ask for.

    Raises
    ------
    InvalidInputError
        If they contradict each other.
    """
    if mode is None:
        if append_dim is not None:
            return "a"
        return "w-" if region is None else "r+"
    if mode not in ("w", "w-", "a", "a-", "r+"):
        raise InvalidInputError(
            f"mode is {mode!r}: expected 'w', 'w-', 'a', 'a-' or 'r+'",
            ErrorKind.NOT_ALLOWED,
        )
    if append_dim is not None and mode not in ("a", "a-"):
        raise InvalidInputError(
            f"append_dim={append_dim!r} adds to arrays, mode={mode!r} does not: leave mode out, "
            "or pass 'a' or 'a-'",
            ErrorKind.NOT_ALLOWED,
        )
    if region is not None and mode not in ("a", "a-", "r+"):
        raise InvalidInputError(
            f"region is a part of arrays that exist, mode={mode!r} makes new ones: leave mode "
            "out, or pass 'r+', 'a' or 'a-'",
            ErrorKind.NOT_ALLOWED,
        )
    return mode  # type: ignore[return-value]


def _shown(group: str) -> str:
    return repr("/" + group.strip("/"))
