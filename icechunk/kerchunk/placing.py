"""Chunks of many files into one array, as columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icechunk.format.chunk_refs import ChunkRefs, RefKind
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.kerchunk.tables import ChunkTable
from icechunk.session.session import Session

__all__ = ["place_tables"]


def place_tables(
    session: Session,
    path: str,
    tables: Sequence[ChunkTable],
    starts: Sequence[tuple[int, ...]],
    last_modified: Sequence[int],
) -> int:
    """Make chunks of an array refer to the chunks of several files.

    Parameters
    ----------
    session : Session
        Writable.
    path : str
        Of an array whose grid holds all of the chunks.
    tables : sequence of ChunkTable
        Where the chunks of each file are; none may be in place.
    starts : sequence of tuple of int
        Coordinates of the chunk that the first chunk of each becomes.
    last_modified : sequence of int
        Of each file, seconds since the epoch, 0 for unknown.

    Returns
    -------
    int
        How many chunks these were.

    Raises
    ------
    InvalidInputError
        If two of them are the same chunk, or one is outside of the array.
    """
    sizes = [len(table.coords) for table in tables]
    if not sum(sizes):
        return 0
    heap, maps = StringHeap.merge([table.locations for table in tables])
    coords = [
        table.coords + np.asarray(start, np.uint32)
        for table, start in zip(tables, starts, strict=True)
    ]
    location = [index[table.location] for table, index in zip(tables, maps, strict=True)]
    refs = ChunkRefs.from_columns(
        np.concatenate(coords),
        RefKind.VIRTUAL,
        np.concatenate([table.offset for table in tables]).view(np.uint64),
        np.concatenate([table.length for table in tables]).view(np.uint64),
        location=np.concatenate(location),
        locations=heap,
        last_modified=np.repeat(np.asarray(last_modified, np.uint32), sizes),
    )
    session.set_refs(path, refs)
    return len(refs)
