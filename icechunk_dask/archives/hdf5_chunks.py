"""Where the values of an HDF5 dataset are, according to the HDF5 library."""

from __future__ import annotations

import io
import math
from array import array
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5s

from icechunk.kerchunk.tables import IN_PLACE, ChunkTable, StringHeap

__all__ = ["Rows", "at", "chunked", "compact", "contiguous", "nowhere", "table_of"]

#: Size of the smallest user block in bytes.
_USER_BLOCK: Final = 512


@dataclass(frozen=True)
class Rows:
    """Where the chunks of a dataset are.

    Attributes
    ----------
    coords : int64[n, ndim]
        Indices in the chunk grid.
    offset, length : int64[n]
        In bytes; offsets count from the start of the file.
    mask : uint32[n]
        Which filters each chunk skips.
    payload : bytes or None
        Bytes of the only chunk if the object header holds them; there are then no rows.
    """

    coords: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    mask: npt.NDArray[np.uint32]
    payload: bytes | None = None


def at(ndim: int, offset: int, length: int) -> Rows:
    """Return the row of a single chunk; no row if it is empty."""
    if not length:
        return nowhere(ndim)
    return Rows(
        np.zeros((1, ndim), np.int64),
        np.array([offset], np.int64),
        np.array([length], np.int64),
        np.zeros(1, np.uint32),
    )


def nowhere(ndim: int) -> Rows:
    """Return no rows."""
    nothing = np.zeros(0, np.int64)
    return Rows(np.zeros((0, ndim), np.int64), nothing, nothing, nothing.astype(np.uint32))


def compact(did: h5d.DatasetID, shape: tuple[int, ...], itemsize: int) -> Rows:
    """Return the values in the object header of a dataset, byte for byte as in the file."""
    size = math.prod(shape)
    if not size:
        return nowhere(len(shape))
    raw = np.zeros(shape, f"V{itemsize}")
    did.read(h5s.ALL, h5s.ALL, raw, mtype=did.get_type())
    nothing = nowhere(len(shape))
    return Rows(nothing.coords, nothing.offset, nothing.length, nothing.mask, raw.tobytes())


def contiguous(did: h5d.DatasetID, shape: tuple[int, ...], user_block: int) -> Rows:
    """Locate the values of a dataset that is not chunked."""
    offset = did.get_offset()
    size = did.get_storage_size()
    if offset is None:
        return nowhere(len(shape))
    return at(len(shape), offset + _base(user_block)[0], size)


def chunked(
    did: h5d.DatasetID, shape: tuple[int, ...], chunks: tuple[int, ...], user_block: int
) -> Rows:
    """Locate the chunks of a dataset.

    Raises
    ------
    ValueError
        If the library contradicts itself.
    """
    ndim = len(chunks)
    coords, masks, places, sizes = array("q"), array("Q"), array("q"), array("q")

    def collect(info: Any) -> None:
        coords.extend(info.chunk_offset)
        masks.append(info.filter_mask)
        places.append(info.byte_offset)
        sizes.append(info.size)

    did.chunk_iter(collect)
    count = len(places)
    if not count:
        return nowhere(ndim)
    starts = np.array(coords, np.int64).reshape(count, ndim)
    offset, length = np.array(places, np.int64), np.array(sizes, np.int64)
    last = int(np.lexsort(starts.T[::-1])[-1])
    # HDF5 releases differ in what they report as the chunk offset
    asked = did.get_chunk_info_by_coord(tuple(map(int, starts[last])))
    if (starts % chunks).any() or asked.byte_offset != offset[last]:
        raise ValueError("this version of HDF5 does not tell where its chunks begin")
    mask = np.array(masks, np.uint64).astype(np.uint32)
    inside = (starts < shape).all(axis=1)
    return Rows(
        (starts // chunks)[inside],
        offset[inside] + _base(user_block)[1],
        length[inside],
        mask[inside],
    )


def _base(user_block: int) -> tuple[int, int]:
    """Return what to add to offsets of contiguous datasets and to offsets of chunks.

    HDF5 releases count either from the start of the file or from the end of its user block.
    """
    if not user_block:
        return 0, 0
    return tuple(0 if counted else user_block for counted in _user_block_counts())  # type: ignore[return-value]


@cache
def _user_block_counts() -> tuple[bool, bool]:
    """Whether offsets of contiguous datasets, and those of chunks, include the user block."""
    values = np.arange(1, 33, dtype="<i8")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=_USER_BLOCK) as file:
        file["contiguous"] = values
        file.create_dataset("chunked", data=values, chunks=values.shape)
    with h5py.File(buffer, "r") as file:
        places = [
            file["contiguous"].id.get_offset(),
            file["chunked"].id.get_chunk_info(0).byte_offset,
        ]
    content, wanted = buffer.getvalue(), values.tobytes()
    first, second = (content[place : place + len(wanted)] == wanted for place in places)
    return first, second


def table_of(rows: Rows, locations: list[str], place: npt.NDArray[np.int32]) -> ChunkTable:
    """Convert rows to references.

    Parameters
    ----------
    rows : Rows
    locations : list of str
        Locations of files, without duplicates.
    place : int32[n]
        Index of each row's file in `locations`.
    """
    heap, _ = StringHeap.from_strings(locations)
    if rows.payload is None:
        coords = rows.coords.astype(np.uint32)
        return ChunkTable(coords, place, heap, rows.offset, rows.length, [])
    one = at(rows.coords.shape[1], 0, len(rows.payload))
    coords, place = one.coords.astype(np.uint32), np.array([IN_PLACE], np.int32)
    return ChunkTable(coords, place, heap, one.offset, one.length, [rows.payload])
