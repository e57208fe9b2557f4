"""Chunks without compression, cut into smaller ones: their rows lie one after the other.

Months have 28 to 31 days, and a chunk each. On a grid of single days, or of as many as all
months are multiples of, they fit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from icechunk.kerchunk.metadata import Documented
from icechunk.kerchunk.tables import IN_PLACE, ChunkTable

__all__ = ["common_rows", "cut", "in_rows", "rows_of", "with_rows"]


def rows_of(variable: Documented, dimensions: Collection[str]) -> int:
    """Return how many steps of its first dimension a chunk has, 0 if it cannot be cut.

    Parameters
    ----------
    variable : Documented
        Its shape is 0 along dimensions along which files are combined.
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
    """Return the rows of the largest chunk that divides chunks and blocks; 0 if there is none."""
    sizes = list(rows)
    return 0 if not all(sizes) else math.gcd(*sizes, *lengths)


def with_rows(document: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return a document whose chunks have other rows."""
    grid = document["chunk_grid"]
    chunks = [rows, *grid["configuration"]["chunk_shape"][1:]]
    return {**document, "chunk_grid": {**grid, "configuration": {"chunk_shape": chunks}}}


def in_rows(document: dict[str, Any], table: ChunkTable) -> tuple[dict[str, Any], ChunkTable]:
    """Return a document and table of single rows, where chunks can be cut."""
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
        Of the chunks that there are, and of those that they become.
    length : int
        Rows that the array has; what a chunk has beyond them is left out.
    """
    count = rows // to
    if count == 1:
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
