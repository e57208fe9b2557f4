"""Convert virtual references from the user's form into columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt

from icechunk.base.texts import counted
from icechunk.config import VirtualChunkSpec
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.chunk_refs import ChunkRefs, RefKind, optional_strings
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.virtual.plain_locations import location_heap, stored_heap


def checksum_parts(checksum: str | datetime | None) -> tuple[str | None, datetime | None]:
    """Return a checksum as ETag and time, of which at most one is set.

    Raises
    ------
    InvalidInputError
        If it is neither a string nor a time with a zone.
    """
    if checksum is None or isinstance(checksum, str):
        return checksum or None, None
    if isinstance(checksum, datetime) and checksum.tzinfo is not None:
        return None, checksum
    raise InvalidInputError(
        "a checksum is an ETag (str) or a time of last modification (datetime with a time "
        f"zone), not {checksum!r}",
        ErrorKind.INVALID_VIRTUAL_REF,
    )


def whole_seconds(time: datetime | None) -> int:
    """Return whole seconds since the epoch, 0 if there is no time.

    A fraction is cut off, as the official client does it: rounded up, a file that is replaced
    within that second would be read as the old one.
    """
    if time is None:
        return 0
    seconds = math.floor(time.timestamp())
    if not 0 < seconds < 2**32:
        raise InvalidInputError(
            f"the time of last modification {time} cannot be stored: it must be after 1970 and "
            "before 2106",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    return seconds


def scalar_place(place: Sequence[int], ndim: int, first: int = 0) -> tuple[int, ...]:
    """Return a chunk index, or the shape of a grid, with the rank of its array.

    An array without dimensions has one chunk. Some clients nevertheless pass an index or a
    grid with dimensions.

    Parameters
    ----------
    place : sequence of int
    ndim : int
        Of the array.
    first : int, default 0
        The value that superfluous numbers must have: 0 in an index, 1 in a shape.
    """
    superfluous = ndim == 0 and all(number == first for number in place)
    return () if superfluous else tuple(place)


def refs_from_specs(specs: Sequence[VirtualChunkSpec], ndim: int) -> ChunkRefs:
    """Return references for a list of specs. If there are several for a chunk, the last counts.

    Raises
    ------
    InvalidInputError
        If a coordinate has the wrong rank, a length is zero, or a location is no URL or carries
        credentials.
    """
    by_chunk = {scalar_place(spec.index, ndim): spec for spec in specs}
    for index in by_chunk:
        if len(index) != ndim:
            raise InvalidInputError(
                f"chunk {index} has {counted(len(index), 'dimension')}, the array {ndim}",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
    chosen = list(by_chunk.values())
    coords = _coordinates(np.asarray(list(by_chunk), np.int64).reshape(len(chosen), ndim))
    lengths = _sizes([spec.length for spec in chosen], "length")
    _check_lengths(coords, lengths)
    heap, location = location_heap([spec.location for spec in chosen])
    locations, stored = stored_heap(heap)
    etags = [spec.etag_checksum for spec in chosen]
    etag_heap, etag = optional_strings(etags) if any(etags) else (None, None)
    times = [whole_seconds(spec.last_updated_at_checksum) for spec in chosen]
    return ChunkRefs.from_columns(
        coords,
        RefKind.VIRTUAL,
        _sizes([spec.offset for spec in chosen], "offset"),
        lengths,
        location=stored[location],
        locations=locations,
        etag=etag,
        etags=etag_heap,
        last_modified=np.asarray(times, np.uint32) if any(times) else None,
    )


def refs_from_arrays(
    grid: Sequence[int],
    locations: Sequence[str],
    offsets: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.uint64],
    start: Sequence[int] | None = None,
    etag: str | None = None,
    modified: datetime | None = None,
) -> ChunkRefs:
    """Return references for a block of chunks, given flat in C order.

    An empty location means that there is no such chunk.

    Raises
    ------
    InvalidInputError
        If the sizes do not agree, a chunk has no bytes, or a location is no URL or carries
        credentials.
    """
    shape = tuple(max(int(n), 0) for n in grid)
    count = math.prod(shape)
    heap, location = location_heap(locations)
    offsets = _sizes(offsets, "offsets")
    lengths = _sizes(lengths, "lengths")
    if not len(location) == len(offsets) == len(lengths) == count:
        raise InvalidInputError(
            f"a chunk grid of shape {shape} has {counted(count, 'chunk')}; got "
            f"{counted(len(location), 'location')}, {counted(len(offsets), 'offset')} and "
            f"{counted(len(lengths), 'length')}",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    if start is not None and len(start) != len(shape):
        raise InvalidInputError(
            f"arr_offset {tuple(start)} and chunk_grid_shape {shape} differ in rank",
            ErrorKind.INVALID_CHUNK_INDEX,
        )
    places = np.indices(shape, np.int64).reshape(len(shape), count).T
    if start is not None:
        places = places + np.asarray(start, np.int64)
    coords = _coordinates(places)
    empty = np.flatnonzero(np.diff(heap.offsets) == 0)
    if len(empty):
        present = location != empty[0]
        coords, offsets, lengths = coords[present], offsets[present], lengths[present]
        heap = heap.take(np.delete(np.arange(len(heap)), empty))
        location = location[present]
        location -= location > empty[0]
    _check_lengths(coords, lengths)
    seconds = whole_seconds(modified)
    stored, of_heap = stored_heap(heap)
    return ChunkRefs.from_columns(
        coords,
        RefKind.VIRTUAL,
        offsets,
        lengths,
        location=of_heap[location],
        locations=stored,
        etag=np.zeros(len(location), np.int32) if etag else None,
        etags=StringHeap.from_strings([etag])[0] if etag else None,
        last_modified=np.full(len(location), seconds, np.uint32) if seconds else None,
    )


def _sizes(values: object, name: str) -> npt.NDArray[np.uint64]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidInputError(
            f"{name}: expected a flat array of integers, got {array.dtype} of shape {array.shape}",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    if array.dtype.kind == "i" and array.size and int(array.min()) < 0:
        raise InvalidInputError(
            f"{name}: {int(array.min())} is negative", ErrorKind.INVALID_VIRTUAL_REF
        )
    return array.astype(np.uint64, copy=False)


def _coordinates(places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    outside = (places < 0) | (places >= 2**32)
    if outside.any():
        first = tuple(places[int(outside.any(axis=1).argmax())].tolist())
        raise InvalidInputError(
            f"chunk {first} has an index outside of any grid", ErrorKind.INVALID_CHUNK_INDEX
        )
    return np.ascontiguousarray(places, np.uint32)


def _check_lengths(coords: npt.NDArray[np.uint32], lengths: npt.NDArray[np.uint64]) -> None:
    if lengths.size and not lengths.all():
        first = tuple(coords[int((lengths == 0).argmax())].tolist())
        raise InvalidInputError(
            f"the virtual chunk {first} has length 0; leave out chunks without bytes",
            ErrorKind.ZERO_LENGTH_CHUNK,
        )
