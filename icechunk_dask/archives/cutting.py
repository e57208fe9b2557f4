"""Chunks without compression, cut into smaller ones or joined: their rows follow each other.

Months have 28 to 31 days, and each is a chunk. They fit on a grid of single days, or of a number
of days that divides all of them. The other way round, chunks that follow each other in a file
can be one larger chunk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from icechunk.kerchunk.metadata import Documented
from icechunk.kerchunk.tables import IN_PLACE, ChunkTable

__all__ = [
    "clip",
    "common_rows",
    "cut",
    "in_rows",
    "is_clipped",
    "rows_of",
    "with_chunks_of",
    "with_dims",
    "with_rows",
    "without_last",
]


def rows_of(variable: Documented, dimensions: Collection[str]) -> int:
    """Return how many steps of its first dimension a chunk has; 0 if it cannot be cut.

    Parameters
    ----------
    variable : Documented
        The shape is 0 along the dimensions along which files are combined.
    dimensions : collection of str
        These dimensions.
    """
    document = variable.document
    names = document.get("dimension_names") or []
    whole = list(variable.chunks[1:]) == list(variable.shape[1:])
    if not names or names[0] not in dimensions or not whole:
        return 0
    return variable.chunks[0] if [c["name"] for c in document["codecs"]] == ["bytes"] else 0


def common_rows(rows: Iterable[int], lengths: Iterable[int]) -> int:
    """Return the rows of the largest chunk that divides chunks and blocks; 0 if none does."""
    sizes = list(rows)
    return 0 if not all(sizes) else math.gcd(*sizes, *lengths)


def with_rows(document: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return a document whose chunks have another number of rows."""
    grid = document["chunk_grid"]
    chunks = [rows, *grid["configuration"]["chunk_shape"][1:]]
    return {**document, "chunk_grid": {**grid, "configuration": {"chunk_shape": chunks}}}


def is_clipped(variable: Documented, axis: int) -> bool:
    """Whether a reference can leave out the end of a chunk along an axis."""
    return not axis and [c["name"] for c in variable.document["codecs"]] == ["bytes"]


def with_chunks_of(table: ChunkTable, rows: int, to: int, length: int) -> ChunkTable | None:
    """Return a table of chunks with other rows; None if the present chunks lie apart.

    Parameters
    ----------
    table : ChunkTable
        Chunks without compression that span the other dimensions.
    rows, to : int
        Rows of the present chunks, and of the new ones.
    length : int
        How many rows the array has.
    """
    common = math.gcd(rows, to)
    return _joined(cut(table, rows, common, length), to // common, -(-length // common))


def _joined(table: ChunkTable, times: int, count: int) -> ChunkTable | None:
    """Return a table in which so many chunks become one; None if they cannot.

    Parameters
    ----------
    table : ChunkTable
    times : int
    count : int
        Chunks of the array, written or not.
    """
    if times == 1:
        return table
    order = np.argsort(table.coords[:, 0])
    if count % times or len(order) % times:
        return None
    index = table.coords[order, 0].astype(np.int64)
    groups = (index // times).reshape(-1, times)
    inside = (index % times).reshape(-1, times)
    if (groups != groups[:, :1]).any() or (inside != np.arange(times)).any():
        # some were never written and read as the fill value
        return None
    where = table.location[order].reshape(-1, times)
    offset = table.offset[order].reshape(-1, times)
    length = table.length[order].reshape(-1, times)
    inline = where == IN_PLACE
    apart = offset[:, 1:] != offset[:, :-1] + length[:, :-1]
    if (where != where[:, :1]).any() or (apart & ~inline[:, 1:]).any():
        return None
    number = np.cumsum(table.location == IN_PLACE) - 1
    rows = order.reshape(-1, times)[inline[:, 0]]
    payloads = [b"".join(table.payloads[number[row]] for row in group) for group in rows.tolist()]
    coords = table.coords[order][::times].copy()
    coords[:, 0] = groups[:, 0]
    return replace(
        table,
        coords=coords,
        location=where[:, 0].copy(),
        offset=offset[:, 0].copy(),
        length=length.sum(axis=1),
        payloads=payloads,
    )


def clip(table: ChunkTable, rows: int, length: int) -> ChunkTable:
    """Return a table whose chunks do not reach beyond the rows of the array.

    Parameters
    ----------
    table : ChunkTable
        Of chunks without compression.
    rows, length : int
        Of each chunk, and of the array.
    """
    left = length % rows
    last = table.coords[:, 0] == length // rows
    if not left or not last.any():
        return table
    payloads = list(table.payloads)
    inline = np.cumsum(table.location == IN_PLACE) - 1
    for row in np.flatnonzero(last & (table.location == IN_PLACE)).tolist():
        data = payloads[inline[row]]
        payloads[inline[row]] = data[: len(data) // rows * left]
    sizes = np.where(last, table.length // rows * left, table.length)
    return replace(table, length=sizes, payloads=payloads)


def without_last(table: ChunkTable, axis: int, last: int) -> ChunkTable:
    """Return a table without the chunks at some index along an axis."""
    kept = table.coords[:, axis] != last
    inline = kept[table.location == IN_PLACE].tolist()
    return replace(
        table,
        coords=table.coords[kept],
        location=table.location[kept],
        offset=table.offset[kept],
        length=table.length[kept],
        payloads=[data for data, there in zip(table.payloads, inline, strict=True) if there],
    )


def in_rows(document: dict[str, Any], table: ChunkTable) -> tuple[dict[str, Any], ChunkTable]:
    """Return a document and a table of single rows, if chunks can be cut."""
    array = Documented()
    array.document = document
    rows = rows_of(array, document.get("dimension_names") or ())
    if rows < 2:
        return document, table
    return with_rows(document, 1), cut(table, rows, 1, array.shape[0])


def cut(table: ChunkTable, rows: int, to: int, length: int) -> ChunkTable:
    """Return a table of smaller chunks.

    Parameters
    ----------
    table : ChunkTable
    rows, to : int
        Rows of the present chunks, and of the new ones.
    length : int
        How many rows the array has; what a chunk has beyond them is left out.
    """
    count = rows // to
    if count <= 1:
        return table
    piece = np.tile(np.arange(count), len(table.coords))
    source = np.repeat(np.arange(len(table.coords)), count)
    coords = table.coords[source].copy()
    coords[:, 0] = coords[:, 0] * count + piece
    size = table.length[source] // count
    inside = coords[:, 0].astype(np.int64) * to < length
    where = table.location[source]
    payloads: list[bytes] = []
    if table.payloads:
        number = np.cumsum(table.location == IN_PLACE) - 1
        for row in np.flatnonzero(inside & (where == IN_PLACE)).tolist():
            begin = int(piece[row] * size[row])
            payloads.append(table.payloads[number[source[row]]][begin : begin + int(size[row])])
    return replace(
        table,
        coords=coords[inside],
        location=where[inside],
        offset=(table.offset[source] + piece * size)[inside],
        length=size[inside],
        payloads=payloads,
    )


def with_dims(
    document: dict[str, Any], table: ChunkTable, dims: Sequence[str]
) -> tuple[dict[str, Any], ChunkTable]:
    """Prepend dimensions of length 1 to those of a variable."""
    count = len(dims)
    if not count:
        return document, table
    found = json.loads(json.dumps(document))
    found["shape"] = [1] * count + found["shape"]
    grid = found["chunk_grid"]["configuration"]
    grid["chunk_shape"] = [1] * count + grid["chunk_shape"]
    found["dimension_names"] = [*dims, *(found.get("dimension_names") or [])]
    for codec in found["codecs"]:
        if codec["name"] == "transpose":
            order = codec["configuration"]["order"]
            codec["configuration"]["order"] = [*range(count), *(n + count for n in order)]
    before = np.zeros((len(table.coords), count), np.uint32)
    return found, replace(table, coords=np.hstack([before, table.coords]))
