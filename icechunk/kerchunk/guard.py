"""Check references before they are committed.

Chunks without compression have an exact size; ranges lie within their file; and the codecs
decode a chunk to what the file's own library reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zarr
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from icechunk.kerchunk.metadata import quiet
from icechunk.kerchunk.tables import IN_PLACE, WHOLE_FILE, ChunkTable
from icechunk.session.keys import chunk_key

__all__ = ["VERIFY", "check_sizes", "check_values", "decode_chunk", "pipeline_of"]

#: Values of the argument ``verify``.
VERIFY: Final = ("sample", "all", "none")
#: Fields of ``zarr.json`` that determine how chunks are decoded.
_PIPELINE: Final = ("data_type", "codecs", "fill_value", "chunk_grid")

#: Reads values of an array, one slice per dimension, with the file's own library.
Reader = Callable[[tuple[slice, ...]], npt.NDArray[Any]]
#: Returns the bytes of a row of a table.
Fetch = Callable[[int], bytes]


def pipeline_of(document: Mapping[str, Any]) -> str:
    """Return a string that identifies how the chunks of an array are decoded."""
    return json.dumps([document.get(name) for name in _PIPELINE], sort_keys=True)


def _exact_length(document: Mapping[str, Any]) -> int | None:
    """Return the size in bytes of each chunk of an array; None if it depends on the values."""
    codecs = [codec["name"] for codec in document["codecs"]]
    if not set(codecs) <= {"bytes", "transpose"} or "bytes" not in codecs:
        return None
    with quiet():
        dtype = _empty(document).dtype
    if dtype.kind in "OT":
        return None
    chunks = document["chunk_grid"]["configuration"]["chunk_shape"]
    return int(math.prod(chunks) * dtype.itemsize)


def check_sizes(
    document: Mapping[str, Any], table: ChunkTable, sizes: Mapping[str, int]
) -> Iterator[tuple[int, str]]:
    """Yield the rows of a table that cannot be right, and why.

    Parameters
    ----------
    document : mapping
        The ``zarr.json`` of the array.
    table : ChunkTable
    sizes : mapping
        By location, for files of known size.
    """
    exact = _exact_length(document)
    inline = table.location == IN_PLACE
    lengths = table.length.copy()
    lengths[inline] = [len(data) for data in table.payloads]
    measured = lengths != WHOLE_FILE
    if exact is not None:
        for row in np.flatnonzero(measured & (lengths != exact))[:1].tolist():
            yield row, f"has {lengths[row]} bytes, and each chunk of the array {exact}"
    ends = np.asarray([sizes.get(location, -1) for location in table.locations], np.int64)
    if not len(ends):
        return
    limit = np.where(inline, -1, ends[table.location])
    bad = (limit >= 0) & measured & ~inline & (table.offset + table.length > limit)
    for row in np.flatnonzero(bad)[:1].tolist():
        begin, end = int(table.offset[row]), int(table.offset[row] + table.length[row])
        yield row, f"is at bytes {begin} to {end} of a file that has {limit[row]}"


def check_values(
    document: Mapping[str, Any],
    table: ChunkTable,
    fetch: Fetch,
    read: Reader | None,
    *,
    every: bool = False,
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield chunks that do not decode to what the file's own library reads, and why.

    Parameters
    ----------
    document : mapping
        The ``zarr.json`` of the array.
    table : ChunkTable
    fetch : callable
        Returns the bytes of a row.
    read : callable, optional
        Returns the values of a selection as the library reads them. Default: chunks must only
        be decodable.
    every : bool
        Whether to check all chunks. Default: the first, the last, and one without a row.
    """
    rows = range(len(table.coords)) if every else sorted({0, len(table.coords) - 1} - {-1})
    rows = [row for row in rows if row < len(table.coords)]
    chunks = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
    shape = tuple(document["shape"])
    for row in rows:
        coordinate = tuple(table.coords[row].tolist())
        data = fetch(row)
        try:
            found = decode_chunk(document, data)
        except MemoryError:
            raise
        except Exception as exc:  # whatever a codec raises for bytes that it does not expect
            yield coordinate, f"cannot be decoded: {type(exc).__name__}: {exc}"
            continue
        yield from _compared(found, coordinate, chunks, shape, read)
    if read is None or 0 in shape:
        return
    empty = _empty(document)
    for coordinate in _without_row(table, chunks, shape, every=every):
        fill = np.full(chunks, empty.fill_value, empty.dtype)
        yield from _compared(fill, coordinate, chunks, shape, read)


def _compared(
    found: npt.NDArray[Any],
    coordinate: tuple[int, ...],
    chunks: tuple[int, ...],
    shape: tuple[int, ...],
    read: Reader | None,
) -> Iterator[tuple[tuple[int, ...], str]]:
    if read is None:
        return
    place = tuple(
        slice(i * size, min((i + 1) * size, length))
        for i, size, length in zip(coordinate, chunks, shape, strict=True)
    )
    inside = found[tuple(slice(0, part.stop - part.start) for part in place)]
    wanted = np.asarray(read(place))
    if wanted.shape != inside.shape or not _equal(inside, wanted):
        yield coordinate, "decodes to other values than the file's own library reads"


def _equal(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    if a.dtype.kind != b.dtype.kind or a.dtype.itemsize != b.dtype.itemsize:
        return False
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fcmM"))


def _without_row(
    table: ChunkTable, chunks: Sequence[int], shape: Sequence[int], *, every: bool
) -> Iterator[tuple[int, ...]]:
    """Yield the chunks that have no row, or the first of them."""
    grid = tuple(-(-n // size) for n, size in zip(shape, chunks, strict=True))
    if len(table.coords) >= math.prod(grid):
        return
    written = set(map(tuple, table.coords.tolist()))
    for coordinate in np.ndindex(*grid):
        if coordinate not in written:
            yield coordinate
            if not every:
                return


def decode_chunk(document: Mapping[str, Any], data: bytes) -> npt.NDArray[Any]:
    """Return the values of a whole chunk, decoded with the codecs of an array.

    Raises
    ------
    Exception
        Whatever the codecs raise.
    """
    chunks = document["chunk_grid"]["configuration"]["chunk_shape"]
    make = default_buffer_prototype().buffer.from_bytes
    one = {**document, "shape": list(chunks)}
    stored = {
        "zarr.json": make(json.dumps(one).encode()),
        chunk_key("/", (0,) * len(chunks)): make(data),
    }
    with quiet():
        return np.asarray(zarr.open_array(MemoryStore(stored), mode="r")[...])


def _empty(document: Mapping[str, Any]) -> zarr.Array[Any]:
    make = default_buffer_prototype().buffer.from_bytes
    one = {**document, "shape": [0] * len(document["shape"])}
    return zarr.open_array(MemoryStore({"zarr.json": make(json.dumps(one).encode())}), mode="r")
