"""HDF5 virtual datasets, which consist of boxes of datasets in other files."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5g, h5p, h5s

from icechunk_dask.archives.hdf5_chunks import Rows, nowhere
from icechunk_dask.archives.hdf5_dimensions import is_virtual
from icechunk_dask.archives.hdf5_links import at_path
from icechunk_dask.archives.hdf5_located import (
    Located,
    Source,
    declared_fill,
    located,
    read_fill,
    same_bytes,
)
from icechunk_dask.archives.hdf5_reach import Reach
from icechunk_dask.archives.hdf5_types import StoredType, stored_type

__all__ = ["check_mappings", "mapped"]

_VIRTUAL = "its values are in other files (a virtual dataset)"
#: Start and length along one dimension.
_Span = tuple[int, int]


def check_mappings(reach: Reach | None, plist: h5p.PropDCID) -> Reach:
    """Refuse mappings for which HDF5 opens other files as soon as it is asked for a shape.

    Raises
    ------
    ValueError
        If there is such a mapping, or a file may not be referenced.
    """
    if reach is None:
        raise ValueError(_VIRTUAL)
    for number in range(plist.get_virtual_count()):
        names = plist.get_virtual_filename(number), plist.get_virtual_dsetname(number)
        if any("%" in name for name in names):
            raise ValueError(f"{_VIRTUAL}, and {names[0]!r} is a pattern of names")
        for space in (plist.get_virtual_vspace(number), plist.get_virtual_srcspace(number)):
            if space.get_select_type() != h5s.SEL_HYPERSLABS:
                continue
            if not space.is_regular_hyperslab() or any(
                h5s.UNLIMITED in part for part in space.get_regular_hyperslab()
            ):
                raise ValueError(f"{_VIRTUAL}, and which of them is not fixed")
        if names[0] != ".":
            reach.find(names[0])
    return reach


@dataclass(frozen=True)
class _Piece:
    """The part of a virtual dataset that one mapping fills."""

    rows: Rows
    chunks: tuple[int, ...]
    codecs: list[dict[str, Any]]
    location: str


def mapped(source: Source, did: h5d.DatasetID, stored: StoredType) -> Located:
    """Locate the values of a virtual dataset.

    Parameters
    ----------
    source : Source
    did : h5py.h5d.DatasetID
    stored : StoredType

    Raises
    ------
    ValueError
        If it cannot be represented; the message says why.
    """
    plist, shape = did.get_create_plist(), did.shape
    reach = check_mappings(source.reach, plist)
    fill = read_fill(did, stored, declared_fill(did, stored))
    pieces: list[_Piece] = []
    reasons: list[str] = []
    for number in range(plist.get_virtual_count()):
        name = plist.get_virtual_filename(number)
        path, location = (reach.path, source.location) if name == "." else reach.find(name)
        with h5py.File(path, "r") as file:
            other = Source(location, os.path.getsize(path), file.userblock_size)
            found = at_path(h5g.open(file.id, b"/"), plist.get_virtual_dsetname(number).encode())
            if not isinstance(found, h5d.DatasetID) or is_virtual(found):
                raise ValueError(f"{_VIRTUAL}, and {location} has no plain dataset for it")
            piece = _piece(other, found, stored, fill, shape, plist, number)
        if isinstance(piece, str):
            reasons.append(f"of its part in {location}: {piece}")
        else:
            pieces.append(piece)
    if not reasons and len({(one.chunks, repr(one.codecs)) for one in pieces}) > 1:
        reasons.append("its parts have different chunks or filters")
    if not reasons and pieces:
        coords = np.concatenate([one.rows.coords for one in pieces])
        if len(np.unique(coords, axis=0)) < len(coords):
            reasons.append("its parts overlap")
    if reasons or not pieces:
        return Located(
            nowhere(len(shape)), shape, [], "".join(reasons[:1]), [], np.zeros(0, np.int32)
        )
    locations = list(dict.fromkeys(one.location for one in pieces))
    place = np.concatenate(
        [np.full(len(one.rows.offset), locations.index(one.location)) for one in pieces]
    )
    rows = Rows(
        coords,
        np.concatenate([one.rows.offset for one in pieces]),
        np.concatenate([one.rows.length for one in pieces]),
        np.concatenate([one.rows.mask for one in pieces]),
    )
    first = pieces[0]
    return Located(rows, first.chunks, first.codecs, "", locations, place.astype(np.int32))


def _piece(
    source: Source,
    did: h5d.DatasetID,
    stored: StoredType,
    fill: Any,
    shape: tuple[int, ...],
    plist: h5p.PropDCID,
    number: int,
) -> _Piece | str:
    """Return what a dataset adds to a virtual one, or why its values have to be copied."""
    other = stored_type(did.get_type())
    if other.refused:
        raise ValueError(other.refused)
    found = located(source, did, other)
    if found.by_value:
        return found.by_value
    if replace(other, by_value="") != replace(stored, by_value="") or stored.by_value:
        return "it has another type"
    if found.rows.payload is not None:
        return "its values are in its header"
    target = _spans(plist.get_virtual_vspace(number), shape)
    origin = _spans(plist.get_virtual_srcspace(number), did.shape)
    if target is None or origin is None:
        return "it is not mapped as one box"
    axes = _axes(target, origin)
    if axes is None:
        return "its box has another shape"
    chunks = tuple(1 if axis is None else found.chunks[axis] for axis in axes)
    rows = _moved(found.rows, axes, chunks, target, origin, shape)
    if rows is None:
        return "its box and its chunks begin or end in different places"
    counts = [-(-length // chunk) for (_, length), chunk in zip(target, chunks, strict=True)]
    if len(rows.offset) < math.prod(counts):
        there = read_fill(did, other, declared_fill(did, other))
        if not same_bytes(there, fill):
            return "it has another fill value"
    return _Piece(rows, chunks, found.codecs, source.location)


def _spans(space: h5s.SpaceID, shape: tuple[int, ...]) -> list[_Span] | None:
    """Return the selected box; None if the selection is not a box."""
    if space.get_select_type() == h5s.SEL_ALL:
        return [(0, length) for length in shape]
    if space.get_select_type() != h5s.SEL_HYPERSLABS:
        return None
    found = []
    for start, stride, count, block in zip(*space.get_regular_hyperslab(), strict=True):
        if count != 1 and stride != block:
            return None
        found.append((int(start), int(count * block)))
    return found


def _axes(target: list[_Span], origin: list[_Span]) -> list[int | None] | None:
    """Return the origin's axis for each axis of the target, None for a new one of length 1."""
    found: list[int | None] = []
    axis = 0
    for _, length in target:
        if axis < len(origin) and origin[axis][1] == length:
            found.append(axis)
            axis += 1
        elif length == 1:
            found.append(None)
        else:
            return None
    return found if axis == len(origin) else None


def _moved(
    rows: Rows,
    axes: list[int | None],
    chunks: tuple[int, ...],
    target: list[_Span],
    origin: list[_Span],
    shape: tuple[int, ...],
) -> Rows | None:
    """Move the rows of a box to their place in the virtual dataset; None if they do not fit."""
    inside = np.ones(len(rows.offset), np.bool_)
    columns: list[npt.NDArray[np.int64]] = []
    for axis, chunk, (start, length), whole in zip(axes, chunks, target, shape, strict=True):
        if start % chunk or ((start + length) % chunk and start + length != whole):
            return None
        if axis is None:
            columns.append(np.full(len(inside), start, np.int64))
            continue
        begin = origin[axis][0]
        if begin % chunk:
            return None
        column = rows.coords[:, axis] - begin // chunk
        inside &= (column >= 0) & (column < -(-length // chunk))
        columns.append(column + start // chunk)
    coords = np.stack(columns, axis=1) if columns else rows.coords
    return Rows(coords[inside], rows.offset[inside], rows.length[inside], rows.mask[inside])
