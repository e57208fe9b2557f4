"""Virtual references as users give them, made into columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from icechunk.config import VirtualChunkSpec
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.chunk_refs import ChunkRefs


def checksum_parts(checksum: str | datetime | None) -> tuple[str | None, datetime | None]:
    """Return a checksum as ETag and time, of which at most one is set."""
    if checksum is None or isinstance(checksum, str):
        return checksum or None, None
    if isinstance(checksum, datetime):
        return None, checksum
    raise InvalidInputError(
        f"a checksum is an ETag (str) or a time of last modification (datetime), not {checksum!r}",
        ErrorKind.INVALID_VIRTUAL_REF,
    )


def _seconds(time: datetime | None) -> int:
    """Return whole seconds since the epoch; a time without zone is taken as UTC."""
    if time is None:
        return 0
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return int(aware.timestamp())


def refs_from_specs(specs: Sequence[VirtualChunkSpec], ndim: int) -> ChunkRefs:
    """Return references for a list of specs.

    Raises
    ------
    InvalidInputError
        If a coordinate has the wrong rank or a length is zero.
    """
    for spec in specs:
        if len(spec.index) != ndim:
            raise InvalidInputError(
                f"chunk {tuple(spec.index)} has {len(spec.index)} dimensions, the array {ndim}",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
    coords = _coordinates([list(spec.index) for spec in specs], ndim)
    lengths = _sizes([spec.length for spec in specs], "length")
    _check_lengths(coords, lengths)
    etags = [spec.etag_checksum for spec in specs]
    times = [_seconds(spec.last_updated_at_checksum) for spec in specs]
    return ChunkRefs.virtual(
        coords,
        [spec.location for spec in specs],
        _sizes([spec.offset for spec in specs], "offset"),
        lengths,
        etags if any(etags) else None,
        np.asarray(times, np.uint32) if any(times) else None,
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
        If the sizes do not agree, or a chunk has no bytes.
    """
    shape = tuple(int(n) for n in grid)
    count = math.prod(shape)
    if not isinstance(locations, Sequence) or isinstance(locations, str):
        locations = list(locations)
    offsets = _sizes(offsets, "offsets")
    lengths = _sizes(lengths, "lengths")
    if not len(locations) == len(offsets) == len(lengths) == count:
        raise InvalidInputError(
            f"a chunk grid of shape {shape} has {count} chunks; got {len(locations)} locations, "
            f"{len(offsets)} offsets and {len(lengths)} lengths",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    if start is not None and len(start) != len(shape):
        raise InvalidInputError(
            f"arr_offset {tuple(start)} and chunk_grid_shape {shape} differ in rank",
            ErrorKind.INVALID_CHUNK_INDEX,
        )
    coords = np.indices(shape, np.uint32).reshape(len(shape), count).T
    if start is not None and len(shape):
        coords = coords + np.asarray(start, np.uint32)
    if "" in locations:
        present = np.fromiter((bool(location) for location in locations), np.bool_, count)
        locations = [location for location in locations if location]
        coords, offsets, lengths = coords[present], offsets[present], lengths[present]
    _check_lengths(coords, lengths)
    seconds = _seconds(modified)
    return ChunkRefs.virtual(
        np.ascontiguousarray(coords),
        locations,
        offsets,
        lengths,
        [etag] * len(locations) if etag else None,
        np.full(len(locations), seconds, np.uint32) if seconds else None,
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


def _coordinates(rows: list[list[int]], ndim: int) -> npt.NDArray[np.uint32]:
    array = np.asarray(rows, np.int64).reshape(len(rows), ndim)
    if array.size and (int(array.min()) < 0 or int(array.max()) >= 2**32):
        bad = rows[int(((array < 0) | (array >= 2**32)).any(axis=1).argmax())]
        raise InvalidInputError(
            f"chunk {tuple(bad)} has an index that no grid has", ErrorKind.INVALID_CHUNK_INDEX
        )
    return array.astype(np.uint32)


def _check_lengths(coords: npt.NDArray[np.uint32], lengths: npt.NDArray[np.uint64]) -> None:
    if lengths.size and not lengths.all():
        first = tuple(coords[int((lengths == 0).argmax())].tolist())
        raise InvalidInputError(
            f"the virtual chunk {first} has length 0; leave out chunks without bytes",
            ErrorKind.ZERO_LENGTH_CHUNK,
        )
