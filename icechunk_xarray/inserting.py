"""Sort steps by their labels: new ones go between those of a group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
import zarr

from icechunk import Session
from icechunk.base.rectilinear import rectilinear_chunks, stored_sizes
from icechunk_dask.write import store_dask
from icechunk_xarray.regions import edges_of

__all__ = ["order_of", "put_in_order"]

Order = npt.NDArray[np.intp]


def order_of(stored: xr.Dataset, given: xr.Dataset, dim: str) -> Order | None:
    """Return the order of steps if new ones belong between or before those of a group.

    Parameters
    ----------
    stored, given : xarray.Dataset
        Decoded.
    dim : str

    Returns
    -------
    intp[n] or None
        For each place, the step that goes there; new steps are counted after the others. None
        if new ones just follow, or the labels have no order.
    """
    if not all(dim in each.coords for each in (stored, given)):
        return None
    old, new = stored[dim].values, given[dim].values
    if not len(old) or not len(new) or isinstance(old[0], str | bytes):
        return None
    whole = np.concatenate([old, new])
    labels = pd.Index(old)
    falling = len(old) > 1 and labels.is_monotonic_decreasing
    if pd.isnull(whole).any() or not (falling or labels.is_monotonic_increasing):
        return None
    if len(old) == 1 and pd.Index(whole).is_monotonic_decreasing:
        return None
    order = np.argsort(whole, kind="stable")
    if falling:
        order = order[::-1]
    return None if np.array_equal(order, np.arange(len(order))) else order


def put_in_order(
    session: Session, root: str, dim: str, order: Order, options: Mapping[str, Any]
) -> None:
    """Reorder the steps of all arrays of a group, in a session.

    Where whole chunks change places, no value is read; otherwise all that moves is written anew.

    Parameters
    ----------
    session : Session
        Contains the steps.
    root : str
        Path of the group.
    dim : str
    order : intp[n]
        For each place, the step that goes there.
    options : mapping
        Options of `icechunk_dask.store_dask`.
    """
    with rectilinear_chunks():
        group: Any = zarr.open_group(session.store, path=root.strip("/"), mode="r+")
        before: Any = zarr.open_group(session.fork().store, path=root.strip("/"), mode="r")
        arrays = {
            name: (array, array.metadata.dimension_names.index(dim), before[name])
            for name, array in group.arrays()
            if dim in (array.metadata.dimension_names or ())
        }
    sources, targets, regions = [], [], []
    for array, axis, old in arrays.values():
        moves = _whole_chunks(order, stored_sizes(array)[axis])
        if moves is not None:
            _move(session, f"/{array.path}", axis, moves)
            continue
        first = _first_edge(array, axis, order)
        sources.append(_in_order(old, axis, order[first:]))
        targets.append(array)
        place = [slice(0, size) for size in array.shape]
        place[axis] = slice(first, array.shape[axis])
        regions.append(tuple(place))
    if sources:
        store_dask(sources=sources, targets=targets, regions=regions, align_chunks=True, **options)


def _whole_chunks(order: Order, size: Any) -> npt.NDArray[np.intp] | None:
    """Return the chunk that goes to each place; None if chunks would be cut."""
    if not isinstance(size, int):
        return None
    starts = order[::size]
    whole = np.repeat(starts, size)[: len(order)] + np.arange(len(order)) % size
    if (starts % size).any() or not np.array_equal(order, whole):
        return None
    moves = starts // size
    # only the last chunk may be partial
    return moves if len(order) % size == 0 or moves[-1] == len(moves) - 1 else None


def _move(session: Session, path: str, axis: int, moves: npt.NDArray[np.intp]) -> None:
    goes = np.argsort(moves)

    def by(table: npt.NDArray[np.intp], index: list[int]) -> list[int]:
        return [*index[:axis], int(table[index[axis]]), *index[axis + 1 :]]

    session.reindex_array(path, lambda index: by(goes, index), lambda index: by(moves, index))


def _first_edge(array: zarr.Array[Any], axis: int, order: Order) -> int:
    """Return the start of the chunk that has the first step that moves."""
    moved = int(np.flatnonzero(order != np.arange(len(order)))[0])
    ends = edges_of(array)[axis]
    return int(ends[np.searchsorted(ends, moved, side="right") - 1])


def _in_order(array: zarr.Array[Any], axis: int, order: Order) -> Any:
    """Return steps of an array, reordered by Dask."""
    chunks = tuple(tuple(np.diff(ends).tolist()) for ends in edges_of(array))
    whole = da.from_array(array, chunks=chunks)
    parts = []
    for run in _runs(order):
        place = [slice(None)] * array.ndim
        place[axis] = run
        parts.append(whole[tuple(place)])
    return da.concatenate(parts, axis=axis)


def _runs(order: Order) -> Iterator[slice]:
    """Yield runs of consecutive steps."""
    breaks = np.flatnonzero(np.diff(order) != 1) + 1
    for part in np.split(order, breaks):
        yield slice(int(part[0]), int(part[-1]) + 1)
