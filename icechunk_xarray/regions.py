"""Chunk edges of arrays, and regions that end on them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr

from icechunk import InvalidInputError, NodeNotFoundError
from icechunk.base.rectilinear import rectilinear_chunks, stored_sizes
from icechunk.errors import ErrorKind
from icechunk.storage.keywords import answers_keywords
from icechunk_xarray.names import group_path
from icechunk_xarray.targets import Authorization, Target, open_session

__all__ = ["edges_of", "plan_regions", "split"]

Edges = npt.NDArray[np.int64]

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
#: The bytes assumed for one value of unknown size, such as a string.
_UNKNOWN = 16


@answers_keywords("storage_options")
def plan_regions(
    target: Target,
    nbytes: int | str = "500MB",
    *,
    group: str | None = None,
    variables: Sequence[str] | None = None,
    branch: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    authorize_virtual_chunk_access: Authorization | None = None,
) -> list[dict[Hashable, slice]]:
    """Cut the arrays of a group into regions that can be written at the same time.

    Regions end on chunk (or shard) boundaries of all variables, so no two regions share a chunk.
    They span the dimensions that all variables have. Pass each of them to
    ``to_icechunk(..., region=...)`` unchanged. The plan holds until the arrays change.

    Parameters
    ----------
    target : Session, IcechunkStore, Repository, Storage, StorageConfig, str or path
        As for `to_icechunk`; `initialize` makes the arrays.
    nbytes : int or str
        The maximum size of the values of a region, before compression: bytes, or ``"500MB"``.
        A region has at least one chunk of each variable. Values of unknown size count 16 bytes.
    group : str, optional
        Path of the group. Default: the root.
    variables : sequence of str, optional
        Variables to write. Default: all that are not coordinates.
    branch : str, optional
        Default: ``main``.
    storage_options, authorize_virtual_chunk_access
        As for `to_icechunk`.

    Returns
    -------
    list of dict of str to slice
        Together they cover the variables. Later dimensions vary fastest.

    Raises
    ------
    InvalidInputError
        If the variables have no dimension in common. Then plan them one by one, with `variables`.
    NodeNotFoundError
        If the group or a variable does not exist.

    Examples
    --------
    >>> from icechunk_xarray import initialize, to_icechunk
    >>> snapshot = initialize(ds, "year", chunks={"time": 24})
    >>> for region in plan_regions("year", "100MB"):
    ...     snapshot = to_icechunk(ds.isel(region), "year", region=region)
    """
    limit = _bytes(nbytes)
    session = open_session(
        target,
        branch=branch,
        storage_options=storage_options,
        authorize_virtual_chunk_access=authorize_virtual_chunk_access,
    )
    path = "/" + group_path(group)
    try:
        with rectilinear_chunks():
            opened = zarr.open_group(session.store, path=path.strip("/"), mode="r")
            arrays = dict(opened.arrays())
    except FileNotFoundError:
        raise NodeNotFoundError(
            f"there is no group {path!r}; make it with icechunk_xarray.initialize"
        ) from None
    names = _data_names(session.store, path, arrays) if variables is None else list(variables)
    missing = [name for name in names if name not in arrays]
    if missing or not names:
        raise NodeNotFoundError(
            f"the group {path!r} has no variable {missing[0] if missing else 'to write'!r}; it has "
            f"{', '.join(map(repr, sorted(arrays))) or 'none'}"
        )
    chosen = {name: arrays[name] for name in names}
    shared = _shared(chosen, path)
    edges = {
        dim: reduce(
            np.intersect1d,
            [edges_of(array)[_dims(array).index(dim)] for array in chosen.values()],
        )
        for dim in shared
    }
    row = sum(
        _item_size(array)
        * math.prod(n for dim, n in zip(_dims(array), array.shape, strict=True) if dim not in edges)
        for array in chosen.values()
    )
    return [dict(zip(edges, box, strict=True)) for box in split(list(edges.values()), row, limit)]


def split(edges: Sequence[Edges], row: float, limit: float) -> Iterator[tuple[slice, ...]]:
    """Cut a box at edges into boxes of limited size, the first dimensions first.

    Parameters
    ----------
    edges : sequence of int64[n]
        Where to cut along each dimension: ascending, both ends included.
    row : float
        Size of one element.
    limit : float
        Maximum size of a box that has more than one cell.
    """
    if not edges:
        yield ()
        return
    first, *rest = edges
    inner = row * math.prod(int(each[-1] - each[0]) for each in rest)
    start = 0
    while start < len(first) - 1:
        fits = np.searchsorted(first, first[start] + limit / max(inner, 1), side="right") - 1
        stop = max(int(fits), start + 1)
        cut = slice(int(first[start]), int(first[stop]))
        for more in split(rest, row * (cut.stop - cut.start), limit):
            yield (cut, *more)
        start = stop


def edges_of(array: zarr.Array[Any]) -> list[Edges]:
    """Return the edges of the chunks (or shards) along each dimension: int64[n + 1]."""
    found = []
    for length, size in zip(array.shape, stored_sizes(array), strict=True):
        if isinstance(size, int):
            ends = np.arange(0, length + max(size, 1), max(size, 1), dtype=np.int64)
        else:
            ends = np.cumsum([0, *size], dtype=np.int64)
        found.append(np.unique(np.minimum(ends, length)))
    return found


def _data_names(store: Any, path: str, arrays: Mapping[str, zarr.Array[Any]]) -> list[str]:
    with rectilinear_chunks():
        dataset = xr.open_zarr(
            store, group=path.strip("/"), consolidated=False, chunks=None, decode_cf=False
        )
    # includes what the attribute `coordinates` names
    coords = set(xr.decode_cf(dataset, decode_times=False, mask_and_scale=False).coords)
    return [name for name, array in arrays.items() if name not in coords and array.ndim]


def _shared(arrays: Mapping[str, zarr.Array[Any]], path: str) -> list[Hashable]:
    of_all: list[list[Hashable]] = [_dims(array) for array in arrays.values()]
    shared = [dim for dim in of_all[0] if all(dim in dims for dims in of_all)]
    if not shared:
        listed = ", ".join(f"{name!r} {tuple(_dims(array))}" for name, array in arrays.items())
        raise InvalidInputError(
            f"the variables of the group {path!r} have no dimension in common: {listed}. Plan "
            "those together that have, with variables=[...]",
            ErrorKind.INVALID_CHUNK_INDEX,
        )
    return shared


def _dims(array: zarr.Array[Any]) -> list[Hashable]:
    return list(getattr(array.metadata, "dimension_names", None) or ())


def _item_size(array: zarr.Array[Any]) -> int:
    dtype = array.dtype
    return _UNKNOWN if dtype.kind in "OT" else int(dtype.itemsize)


def _bytes(size: int | str) -> int:
    text = str(size).strip().lower().replace(" ", "")
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    try:
        found = int(float(number) * _UNITS[text[len(number) :] or "b"])
    except (KeyError, ValueError, OverflowError):
        found = 0
    if found < 1 or isinstance(size, bool):
        raise InvalidInputError(f"nbytes is {size!r}; it must be a number of bytes such as '500MB'")
    return found
