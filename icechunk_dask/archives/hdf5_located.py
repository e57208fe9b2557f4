"""Where the values of an HDF5 dataset are, and which codecs decode them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from h5py import h5d, h5p

from icechunk_dask.archives.hdf5_chunks import Rows, at, chunked, compact, contiguous
from icechunk_dask.archives.hdf5_edges import edges_filtered
from icechunk_dask.archives.hdf5_filters import check_plugins, filters_of, pipeline
from icechunk_dask.archives.hdf5_reach import Reach, external
from icechunk_dask.archives.hdf5_types import StoredType

__all__ = ["Located", "Source", "copied", "declared_fill", "located", "read_fill", "same_bytes"]


@dataclass(frozen=True)
class Source:
    """The file that holds a dataset.

    Attributes
    ----------
    location : str
        Location of the file in references.
    size : int
        Size of the file in bytes.
    user_block : int
        Number of bytes before its HDF5 part.
    reach : Reach or None
        Which other files may hold values of its datasets; None for none.
    """

    location: str
    size: int
    user_block: int
    reach: Reach | None = None


@dataclass(frozen=True)
class Located:
    """Where the bytes of a dataset are, and which codecs decode them.

    Attributes
    ----------
    rows : Rows
    chunks : tuple of int
        Length of a chunk along each dimension.
    codecs : list of dict
        Codecs after the array-to-bytes codec.
    by_value : str
        Why these do not give the values; empty if they do.
    locations : list of str
        Locations of the files.
    place : int32[n]
        Index of each row's file in `locations`.
    """

    rows: Rows
    chunks: tuple[int, ...]
    codecs: list[dict[str, Any]]
    by_value: str
    locations: list[str]
    place: npt.NDArray[np.int32]


def located(source: Source, did: h5d.DatasetID, stored: StoredType) -> Located:
    """Locate the values of a dataset that is not virtual.

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
    location, size = source.location, source.size
    itemsize = did.get_type().get_size()
    chunks = shape
    by_value = stored.by_value
    codecs: list[dict[str, Any]] = []
    match plist.get_layout():
        case h5d.COMPACT:
            rows = compact(did, shape, itemsize)
            wanted: int | None = math.prod(shape) * itemsize
        case h5d.CONTIGUOUS if plist.get_external_count():
            location, offset, size = external(source.reach, plist)
            wanted = math.prod(shape) * itemsize
            rows = at(len(shape), offset, wanted)
        case h5d.CONTIGUOUS:
            rows = contiguous(did, shape, source.user_block)
            wanted = math.prod(shape) * itemsize
        case h5d.CHUNKED:
            chunks = plist.get_chunk()
            rows = chunked(did, shape, chunks, source.user_block)
            codecs, wanted, reason = _filters(did, plist, rows, chunks, stored)
            by_value = by_value or reason
        case _:
            raise ValueError("its values are in other files (a virtual dataset)")
    ends = rows.offset + rows.length
    if (rows.offset < 0).any() or (ends > size).any():
        raise ValueError(f"its values reach beyond the end of the file, at {size} bytes")
    if wanted is not None and (rows.length != wanted).any():
        by_value = by_value or f"chunks have another length than the {wanted} bytes of their values"
    place = np.zeros(len(rows.offset), np.int32)
    return copied(Located(rows, chunks, codecs, "", [location], place), did, by_value)


def copied(found: Located, did: h5d.DatasetID, reason: str) -> Located:
    """Return `found` with the reason why values have to be copied, if there is one.

    Raises
    ------
    ValueError
        If HDF5 cannot read them.
    """
    if reason:
        filters = filters_of(did.get_create_plist())
        check_plugins(filters, _masks(found.rows, len(filters)), reason)
    return replace(found, by_value=reason)


def _masks(rows: Rows, filters: int) -> list[int]:
    """Return the distinct masks of the chunks, without bits that stand for no filter."""
    found: list[int] = np.unique(rows.mask & np.uint32((1 << filters) - 1)).tolist()
    return found or [0]


def _filters(
    did: h5d.DatasetID,
    plist: h5p.PropDCID,
    rows: Rows,
    chunks: tuple[int, ...],
    stored: StoredType,
) -> tuple[list[dict[str, Any]], int | None, str]:
    """Return codecs, the length of every chunk if it is known, and why there are no codecs."""
    filters = filters_of(plist)
    raw = math.prod(chunks) * did.get_type().get_size()
    masks = _masks(rows, len(filters))
    made = [pipeline(filters, mask, raw) for mask in masks]
    for one in made:
        if one.by_value:
            return [], None, one.by_value
    if len(masks) > 1:
        return [], None, "some of its chunks skip filters, and others do not"
    codecs, length = made[0].codecs, made[0].length
    if codecs and stored.data_type and not edges_filtered(did, rows, chunks, codecs, stored.dtype):
        return [], None, "its chunks at the edge are not filtered, and others are"
    return codecs, length, ""


# -- fill values -----------------------------------------------------------------------
def declared_fill(did: h5d.DatasetID, stored: StoredType) -> Any:
    """Return the fill value in the creation properties, or zero if there is none."""
    if stored.text:
        return ""
    # h5py identifies some types only by the metadata of its own dtype
    value = np.zeros((), did.dtype)
    plist = did.get_create_plist()
    if plist.fill_value_defined() != h5d.FILL_VALUE_UNDEFINED:
        plist.get_fill_value(value)
    return value.astype(stored.dtype)[()]


def read_fill(did: h5d.DatasetID, stored: StoredType, declared: Any) -> Any:
    """Return what h5py reads for unwritten elements.

    Parameters
    ----------
    did : h5py.h5d.DatasetID
    stored : StoredType
    declared : scalar
        The fill value of the creation properties.
    """
    plist = did.get_create_plist()
    never = plist.get_fill_time() == h5d.FILL_TIME_NEVER and plist.get_layout() != h5d.VIRTUAL
    # HDF5 then leaves the buffer as it is, and h5py passes one of zeros
    return np.zeros((), stored.dtype)[()] if never and not stored.text else declared


def same_bytes(a: Any, b: Any) -> bool:
    """Whether fill values are equal, with NaN equal to itself."""
    return bool(np.asarray(a).tobytes() == np.asarray(b).tobytes())
