"""What a write must not do to arrays that exist, checked before anything is written.

Each check raises `InvalidInputError` with the variable, the dimension, and what to do.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr

from icechunk import InvalidInputError
from icechunk.base.texts import counted
from icechunk_xarray.kinds import check_kinds
from icechunk_xarray.names import listed
from icechunk_xarray.refusals import refused
from icechunk_xarray.values import decode_like

Regions = dict[Hashable, slice]
Grid: TypeAlias = Sequence[int | Sequence[int]]

#: How much two floats of a coordinate may differ and still be the same, relative to one.
_TOLERANCE = 1e-6


def resolve_region(
    dataset: xr.Dataset, existing: Mapping[str, xr.Variable], region: Any
) -> Regions:
    """Return the part of the stored arrays that a dataset is written to, with starts and stops.

    Parameters
    ----------
    dataset : xarray.Dataset
    existing : mapping of str to xarray.Variable
        What is stored.
    region : mapping of dimensions to slices or "auto", or "auto"
        ``"auto"``: where the values of the coordinate are found.
    """
    if isinstance(region, str) and region == "auto":
        region = dict.fromkeys(dataset.dims, "auto")
    if not isinstance(region, Mapping):
        raise refused(
            f"region is {region!r}: expected 'auto', or slices by dimension such as "
            "{'time': slice(0, 12)}"
        )
    # places are found by labels
    check_kinds({dim: dataset.variables[dim] for dim in dataset.indexes}, existing)
    sizes = stored_sizes(existing)
    resolved: Regions = {}
    for dim, part in region.items():
        if dim not in dataset.dims:
            raise refused(
                f"region has the dimension {dim!r}, but the dataset has only {listed(dataset.dims)}"
            )
        if dim not in sizes:
            raise refused(f"region has the dimension {dim!r}, which no stored array has")
        if isinstance(part, str) and part == "auto":
            resolved[dim] = _find(dataset, existing, dim)
            continue
        try:
            start, stop, step = part.indices(sizes[dim])
        except (AttributeError, TypeError, ValueError):
            step = 0
        if step != 1:
            raise refused(
                f"region of dimension {dim!r} is {part!r}: expected a slice of whole numbers "
                "without step, or 'auto'"
            )
        if stop - start != dataset.sizes[dim]:
            raise refused(
                f"region {start}:{stop} of dimension {dim!r}, which is {sizes[dim]} long on disk, "
                f"holds {counted(max(stop - start, 0), 'value')}, and the dataset has "
                f"{dataset.sizes[dim]}"
            )
        _check_position(dataset, existing, dim, slice(start, stop))
        resolved[dim] = slice(start, stop)
    outside = [name for name, v in dataset.data_vars.items() if not set(resolved) & set(v.dims)]
    if resolved and outside:
        raise refused(
            f"{listed(outside)}: without a dimension of the region ({listed(resolved)}) it "
            f"would be overwritten as a whole; leave it out with .drop_vars({outside!r})"
        )
    return resolved


def settled_coordinates(
    dataset: xr.Dataset,
    existing: Mapping[str, xr.Variable],
    region: Regions,
    is_written: Callable[[str, Sequence[slice]], bool],
) -> list[Hashable]:
    """Return the coordinates that a region leaves alone because they are stored already.

    A coordinate with a dimension of the region is written where nothing was stored yet, as
    after a template of Dask arrays was written with ``compute=False``.

    Parameters
    ----------
    dataset : xarray.Dataset
    existing : mapping of str to xarray.Variable
        What is stored.
    region : mapping of str to slice
    is_written : function of name and slices
        Whether any chunk of a part of an array is stored.

    Raises
    ------
    InvalidInputError
        If one differs: the values would go to other places than the stored ones say.
    """
    settled: list[Hashable] = []
    for key, coordinate in dataset.coords.items():
        name = str(key)
        stored = existing[name]
        part = {dim: region.get(dim, slice(None)) for dim in stored.dims}
        differing = _difference(name, coordinate.variable, stored[part])
        if differing is None:
            settled.append(key)
            continue
        inside = bool(set(region) & set(stored.dims)) and name not in dataset.indexes
        if inside and (differing.fills or not is_written(name, [part[dim] for dim in stored.dims])):
            continue
        replacing = (
            f"or make it a data variable with .reset_coords({name!r}) to replace what is stored"
            if inside
            else f"or write {name!r} by itself, with mode='a' and without region, to replace it"
        )
        raise refused(
            f"coordinate {name!r} differs from what is on disk{differing}: the values would go "
            "to other places than it says; select them in the order that is on disk, with "
            f".sel() or .reindex(), {replacing}"
        )
    return settled


def check_against(
    dataset: xr.Dataset,
    existing: Mapping[str, xr.Variable],
    encoding: Mapping[str, Any],
    *,
    mode: str,
    append_dim: Hashable | None,
    region: Regions | None,
    safe_append: bool,
) -> None:
    """Refuse a dataset that does not fit the arrays of the group that it goes to."""
    for name in encoding:
        if name in existing:
            raise refused(
                f"variable {name!r} exists, and keeps the encoding that it was created with: "
                "leave it out of encoding, or write the group anew with mode='w'"
            )
    sizes = stored_sizes(existing)
    if append_dim is not None:
        _check_append_dim(dataset, append_dim, sizes)
    for key, variable in dataset.variables.items():
        name = str(key)
        if name not in existing:
            _check_new(name, variable, sizes, mode, append_dim, region)
        elif not (region is not None and name in dataset.indexes):
            _check_existing(name, variable, existing[name], append_dim, region)
    if append_dim is not None and safe_append:
        _check_append(dataset, existing, append_dim)
    if append_dim is None and region is None:
        _check_labels(dataset, existing)


def stored_sizes(existing: Mapping[str, xr.Variable]) -> dict[Hashable, int]:
    """Return the lengths of dimensions on disk."""
    sizes: dict[Hashable, int] = {}
    for variable in existing.values():
        for dim, size in variable.sizes.items():
            sizes[dim] = max(size, sizes.get(dim, 0))
    return sizes


def check_blocks(
    name: str,
    dims: Sequence[Hashable],
    grid: Grid,
    region: Sequence[slice],
    blocks: Sequence[tuple[int, ...]],
) -> None:
    """Refuse Dask blocks if two would write one stored chunk, or shard, at the same time.

    Parameters
    ----------
    name : str
    dims : sequence of str
    grid : sequence of int or sequences of int
        By dimension, the size of what is stored as one object, or all sizes: of shards where
        there are any, or of chunks.
    region : sequence of slice
        The part of the array that the blocks cover.
    blocks : sequence of tuple of int
        Sizes of the Dask blocks, by dimension.
    """
    for dim, sizes, chunk, part in zip(dims, blocks, grid, region, strict=True):
        meeting = list(accumulate(sizes, initial=part.start))[1:-1]
        if isinstance(chunk, int):
            shared = next((edge for edge in meeting if edge % chunk), None)
            first = min(-part.start % chunk, part.stop - part.start)
            fitting = f"({first}, {chunk}, ...)" if first else f"{chunk}, or a multiple of it"
        else:
            ends = set(accumulate(chunk, initial=0))
            shared = next((edge for edge in meeting if edge not in ends), None)
            inside = sorted(end for end in ends if part.start < end < part.stop)
            fitting = str(tuple(b - a for a, b in pairwise([part.start, *inside, part.stop])))
        if shared is None:
            continue
        stored = f"of {chunk}" if isinstance(chunk, int) else f"they have the sizes {tuple(chunk)}"
        raise refused(
            f"variable {name!r}, dimension {dim!r}: two Dask blocks meet at index {shared}, "
            f"within a stored chunk ({stored}), and would overwrite each other. Rechunk to "
            f"{fitting} with .chunk(), pass align_chunks=True, or choose other stored chunks "
            "with encoding where the array is new"
        )


def check_region(
    name: str,
    dims: Sequence[Hashable],
    grid: Grid,
    region: Sequence[slice],
    shape: Sequence[int],
) -> None:
    """Refuse a region that begins or ends within a stored chunk, or shard.

    One task writes that chunk here, but another call may write the rest of it. The
    parameters are those of `check_blocks`, and the shape of the array.
    """
    for dim, chunk, part, length in zip(dims, grid, region, shape, strict=True):
        start, stop = _around(part.start, chunk)[0], min(_around(part.stop, chunk)[1], length)
        if (start, stop) != (part.start, part.stop):
            stored = f"of {chunk}" if isinstance(chunk, int) else "whose sizes differ"
            raise refused(
                f"variable {name!r}, dimension {dim!r}: the region {part.start}:{part.stop} does "
                f"not cover whole stored chunks ({stored}); parallel writers of the rest would "
                f"be lost. Write {start}:{stop}, .load() the data first, or pass "
                "mode='a' or safe_chunks=False if no other write runs at the same time"
            )


def _around(index: int, chunk: int | Sequence[int]) -> tuple[int, int]:
    """Return the last chunk edge up to an index, and the first one from there on."""
    if isinstance(chunk, int):
        return index // chunk * chunk, -(-index // chunk) * chunk
    edges = list(accumulate(chunk, initial=0))
    return edges[bisect_right(edges, index) - 1], edges[min(bisect_left(edges, index), len(chunk))]


# -- arrays that exist, and those that do not ---------------------------------------------
def _check_new(
    name: str,
    variable: xr.Variable,
    sizes: Mapping[Hashable, int],
    mode: str,
    append_dim: Hashable | None,
    region: Regions | None,
) -> None:
    if region is not None or mode == "r+":
        raise refused(
            f"variable {name!r} is not on disk, and this only writes values of arrays that are: "
            "create it first, or drop it"
        )
    for dim, size in variable.sizes.items():
        if dim == append_dim:
            raise refused(
                f"variable {name!r} is not on disk, and would be shorter than the other arrays "
                f"along {dim!r}; create it in full length first, or drop it"
            )
        if sizes.get(dim, size) != size:
            raise refused(
                f"variable {name!r}, dimension {dim!r}: {size} long, but {sizes[dim]} on disk in "
                "other arrays, which would make the group unreadable; write the whole group anew "
                "with mode='w', or rename the dimension"
            )


def _check_existing(
    name: str,
    variable: xr.Variable,
    stored: xr.Variable,
    append_dim: Hashable | None,
    region: Regions | None,
) -> None:
    if set(variable.dims) != set(stored.dims):
        raise refused(
            f"variable {name!r} has the dimensions {variable.dims}, and {stored.dims} on disk; "
            "rename them, or write the group anew with mode='w'"
        )
    for dim, size in variable.sizes.items():
        if dim == append_dim:
            continue
        part = (region or {}).get(dim)
        expected = stored.sizes[dim] if part is None else part.stop - part.start
        if size != expected:
            raise refused(
                f"variable {name!r}, dimension {dim!r}: {size} long, but {expected} on disk; "
                "select the same part, pass append_dim or region to add or replace one, or write "
                "the group anew with mode='w'"
            )
    given, kept = variable.attrs.get("units"), stored.attrs.get("units")
    if given is not None and kept is not None and given != kept:
        raise refused(
            f"variable {name!r} has the units {given!r}, and {kept!r} on disk, which stay; "
            "convert the values first"
        )


def _check_labels(dataset: xr.Dataset, existing: Mapping[str, xr.Variable]) -> None:
    """Refuse changed coordinates of arrays that are not written along with them.

    A coordinate may be replaced by itself: that is deliberate.
    """
    for key in dataset.coords:
        name = str(key)
        dims = set(dataset.coords[key].dims)
        ours = [n for n, v in dataset.data_vars.items() if dims <= set(v.dims)]
        others = [
            n
            for n, v in existing.items()
            if n not in dataset.variables and dims <= set(v.dims) and (dims or v.ndim)
        ]
        if name not in existing or not ours or not others:
            continue
        differing = _difference(name, dataset.coords[key].variable, existing[name])
        if differing is not None and not differing.fills:
            raise refused(
                f"coordinate {name!r} differs from what is on disk{differing}, where it says what "
                f"{listed(others)} {'is' if len(others) == 1 else 'are'} about, too: select in "
                "the order that is on disk, with .sel() or .reindex(), use another group, or "
                f"write {name!r} by itself first, to replace it for all"
            )


# -- appending ----------------------------------------------------------------------------
def _check_append_dim(dataset: xr.Dataset, dim: Hashable, sizes: Mapping[Hashable, int]) -> None:
    if dim not in sizes:
        raise refused(
            f"append_dim {dim!r} is not a dimension of the arrays on disk, which have "
            f"{listed(sizes)}; write "
            "the first part without append_dim"
        )
    if dim not in dataset.dims:
        raise refused(
            f"append_dim {dim!r} is not a dimension of the dataset, which has "
            f"{listed(dataset.dims)}; "
            f"use .expand_dims({dim!r})"
        )
    twice = [name for name, v in dataset.variables.items() if v.dims.count(dim) > 1]
    if twice:
        raise refused(
            f"variable {twice[0]!r} has the dimension {dim!r} more than once, and cannot become "
            "longer along it; write the whole group anew with mode='w'"
        )


def _check_append(dataset: xr.Dataset, existing: Mapping[str, xr.Variable], dim: Hashable) -> None:
    missing = [name for name, v in existing.items() if dim in v.dims and name not in dataset]
    if missing:
        raise refused(
            f"{listed(missing)}: on disk along {dim!r}, but not in the dataset, and would "
            "become shorter than the other arrays; add it, or pass safe_append=False if "
            "another append of this session does"
        )
    _check_repeats(dataset, existing, dim)
    for key in dataset.coords:
        name, variable = str(key), dataset.coords[key].variable
        if name not in existing or dim in variable.dims:
            continue
        where = _difference(name, variable, existing[name])
        if where is not None:
            raise refused(
                f"coordinate {name!r} differs from what is on disk{where}: the data would be "
                "appended to other places; select or interpolate to the same coordinates, drop "
                "this one, or pass safe_append=False"
            )


def _check_repeats(dataset: xr.Dataset, existing: Mapping[str, xr.Variable], dim: Hashable) -> None:
    name = str(dim)
    if name not in existing or dim not in dataset.coords:
        return
    given = dataset.coords[dim].variable
    index = pd.Index(_decoded(name, existing[name], given))
    repeated = pd.Index(given.values).isin(index)
    if repeated.any():
        first = given.values[repeated][0]
        raise refused(
            f"coordinate {name!r}: {repeated.sum()} of {counted(repeated.size, 'value')} to append "
            f"{'is' if repeated.size == 1 else 'are'} on disk already, {first} the first; write "
            f"these with region='auto', append the others "
            f"only, or pass safe_append=False to repeat them"
        )
    new = pd.Index(given.values)
    if not new.is_unique:
        raise refused(
            f"coordinate {name!r}: the values to append repeat {new[new.duplicated()][0]}; drop "
            f"repeats with .drop_duplicates({name!r}), or pass safe_append=False to keep them"
        )
    _check_order(name, index, new)


def _check_order(name: str, stored: pd.Index, new: pd.Index) -> None:
    """Refuse numbers and times that would end the order of a coordinate.

    Slices by label need it, and a step backwards is most often a forgotten part.
    """
    if not new.size or isinstance(new[0], str | bytes | bool):
        return
    if new.hasnans and not stored.hasnans:
        raise refused(
            f"coordinate {name!r}: the value to append at index {int(new.isna().argmax())} is "
            f"missing; drop it with .dropna({name!r}), or pass safe_append=False"
        )
    whole = stored.append(new)
    for order, direction in (
        ("is_monotonic_increasing", "rising"),
        ("is_monotonic_decreasing", "falling"),
    ):
        if len(stored) > 1 and getattr(stored, order) and not getattr(whole, order):
            raise refused(
                f"coordinate {name!r} is {direction} on disk, up to {stored[-1]}, and the values "
                f"to append, from {new[0]} to {new[-1]}, do not go on like that; sort them with "
                f".sortby({name!r}), append parts in their order, or pass safe_append=False"
            )


# -- regions ------------------------------------------------------------------------------
def _find(dataset: xr.Dataset, existing: Mapping[str, xr.Variable], dim: Hashable) -> slice:
    """Return where the values of a coordinate are on disk."""
    name = str(dim)
    if dim not in dataset.coords:
        _check_whole(dataset, existing, dim)
        return slice(0, dataset.sizes[dim])
    if name not in existing:
        raise refused(
            f"region of dimension {name!r} is 'auto', and there is no such coordinate on disk; "
            "pass a slice"
        )
    given = dataset.coords[dim].variable
    index = pd.Index(_decoded(name, existing[name], given))
    if not index.is_unique:
        raise refused(
            f"region of dimension {name!r} is 'auto', and the coordinate on disk repeats values; "
            "pass a slice"
        )
    found = _places(index, pd.Index(given.values))
    if (found < 0).any():
        raise refused(
            f"coordinate {name!r}: {given.values[found < 0][0]} is not on disk; region writes "
            "among stored coordinates, append_dim adds to them"
        )
    if (np.diff(found) != 1).any():
        raise refused(
            f"coordinate {name!r}: its values are not next to each other on disk, in this order; "
            "sort them, and write each run by itself"
        )
    start = int(found[0]) if found.size else 0
    return slice(start, start + found.size)


def _places(stored: pd.Index, given: pd.Index) -> Any:
    """Return the positions of values in an index, -1 for those not found.

    Floats may differ as much as in `_difference`, if only one is near.
    """
    found = stored.get_indexer(given)
    if (found >= 0).all() or not (stored.dtype.kind == given.dtype.kind == "f"):
        return found
    kept, values = stored.to_numpy(), given.to_numpy()
    order = np.argsort(kept)
    slack = _TOLERANCE * abs(values)
    low = np.searchsorted(kept[order], values - slack, side="left")
    high = np.searchsorted(kept[order], values + slack, side="right")
    one = (found < 0) & (high - low == 1)
    found[one] = order[np.clip(low, 0, len(kept) - 1)][one]
    return found


def _check_whole(dataset: xr.Dataset, existing: Mapping[str, xr.Variable], dim: Hashable) -> None:
    size = stored_sizes(existing)[dim]
    if dataset.sizes[dim] != size:
        raise refused(
            f"region of dimension {dim!r} is 'auto', and the dataset has no such coordinate to "
            f"look for: its {dataset.sizes[dim]} values could be anywhere among {size}; pass a "
            "slice"
        )


def _check_position(
    dataset: xr.Dataset, existing: Mapping[str, xr.Variable], dim: Hashable, part: slice
) -> None:
    """Refuse a coordinate that says the data belongs elsewhere."""
    name = str(dim)
    if name not in existing or dim not in dataset.coords:
        return
    where = _difference(name, dataset.coords[dim].variable, existing[name][part])
    if where is not None:
        raise refused(
            f"coordinate {name!r} differs from region {part.start}:{part.stop} on disk{where}; "
            "pass region='auto' to find its place"
        )


# -- values -------------------------------------------------------------------------------
def _decoded(name: str, stored: xr.Variable, given: xr.Variable) -> Any:
    try:
        return decode_like(name, stored, given.values).values
    except (ValueError, TypeError, OverflowError) as error:
        raise _calendar(name, stored, error) from error


@dataclass(frozen=True)
class _Difference:
    """The first place where two coordinates differ.

    Attributes
    ----------
    text : str
    fills : bool
        Whether the stored values are missing wherever they differ.
    """

    text: str
    fills: bool

    def __str__(self) -> str:
        return self.text


def _difference(name: str, given: xr.Variable, stored: xr.Variable) -> _Difference | None:
    """Return where two coordinates differ, None if they do not.

    Floats may have been stored with less precision.
    """
    if given.sizes != stored.sizes:
        return _Difference(f" (sizes {dict(given.sizes)} instead of {dict(stored.sizes)})", False)
    new = given.transpose(*stored.dims).values
    old = _decoded(name, stored, given)
    try:
        if new.dtype.kind in "fc" or old.dtype.kind in "fc":
            differs = ~np.isclose(new, old, rtol=_TOLERANCE, atol=0, equal_nan=True)
        else:
            # of scalars pandas returns Python's booleans, which ~ takes for integers
            missing = np.logical_and(pd.isnull(new), pd.isnull(old))
            differs = (new != old) & ~missing
    except TypeError as error:
        raise _calendar(name, stored, error) from error
    differs = np.asarray(differs, bool)
    if not differs.any():
        return None
    at = np.unravel_index(int(differs.argmax()), differs.shape)
    place = f" at index {', '.join(str(int(i)) for i in at)}" if at else ""
    text = f" ({new[at]} instead of {old[at]}{place})"
    return _Difference(text, bool(np.all(pd.isnull(old[differs]))))


def _calendar(name: str, stored: xr.Variable, error: Exception) -> InvalidInputError:
    kept = {key: stored.attrs[key] for key in ("units", "calendar") if key in stored.attrs}
    # xarray's advice does not help here
    reason = str(error).partition(" Try opening")[0].rstrip(".")
    return refused(
        f"coordinate {name!r} cannot be compared with what is on disk ({kept or stored.dtype}): "
        f"{reason}; convert it to the same kind of values, with .convert_calendar() for times"
    )
