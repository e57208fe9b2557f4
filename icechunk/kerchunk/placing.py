"""Chunks of many files in one array, as columns: put there, moved, and taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from icechunk.format.chunk_refs import ChunkRefs, RefKind
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.kerchunk.tables import IN_PLACE, ChunkTable
from icechunk.session.session import Session

__all__ = ["clear_chunks", "move_chunks", "place_tables"]


def place_tables(
    session: Session,
    path: str,
    tables: Sequence[ChunkTable],
    starts: Sequence[tuple[int, ...]],
    last_modified: Sequence[npt.NDArray[np.uint32]],
) -> tuple[int, int]:
    """Make chunks of an array refer to the chunks of several files.

    Parameters
    ----------
    session : Session
        Writable.
    path : str
        Of an array whose grid holds all of the chunks.
    tables : sequence of ChunkTable
        Where the chunks of each file are.
    starts : sequence of tuple of int
        Coordinates that the first chunk of each file gets.
    last_modified : sequence of uint32[n]
        When the file of each row was modified, in seconds since the epoch, 0 if unknown.

    Returns
    -------
    virtual, inline : int
        How many chunks refer to files, and how many lie in the references.

    Raises
    ------
    InvalidInputError
        If two chunks get the same place, or one lies outside of the array.
    """
    sizes = [len(table.coords) for table in tables]
    if not sum(sizes):
        return 0, 0
    heap, maps = StringHeap.merge([table.locations for table in tables])
    coords = np.concatenate(
        [
            table.coords + np.asarray(start, np.uint32)
            for table, start in zip(tables, starts, strict=True)
        ]
    )
    location = np.concatenate(
        [
            # rows by place may have no location at all
            np.append(index, np.int32(IN_PLACE))[table.location]
            for table, index in zip(tables, maps, strict=True)
        ]
    )
    offset = np.concatenate([table.offset for table in tables]).view(np.uint64)
    length = np.concatenate([table.length for table in tables]).view(np.uint64)
    modified = np.concatenate(last_modified)
    inline = location == IN_PLACE
    kind: npt.ArrayLike = RefKind.VIRTUAL
    data = None
    if inline.any():
        payloads = [payload for table in tables for payload in table.payloads]
        kind = np.where(inline, np.uint8(RefKind.INLINE), np.uint8(RefKind.VIRTUAL))
        lengths = np.fromiter(map(len, payloads), np.uint64, len(payloads))
        offset[inline], length[inline] = np.cumsum(lengths) - lengths, lengths
        data = np.frombuffer(b"".join(payloads), np.uint8)
    refs = ChunkRefs.from_columns(
        coords,
        kind,
        offset,
        length,
        location=location,
        locations=heap,
        last_modified=modified,
        inline_data=data,
    )
    session.set_refs(path, refs)
    return int(len(refs) - inline.sum()), int(inline.sum())


def move_chunks(session: Session, path: str, targets: Mapping[int, npt.NDArray[np.int64]]) -> None:
    """Move the chunks of an array along some axes. No data is copied.

    Parameters
    ----------
    session : Session
        Writable.
    path : str
        An array whose grid holds all places of chunks, old and new.
    targets : mapping of int to int64[n]
        By axis: the new index for each index; -1 for none. Chunks beyond it are dropped.
    """
    refs = session.chunk_refs(path)
    coords = refs.coords.astype(np.int64)
    stays = np.ones(len(coords), np.bool_)
    for axis, target in targets.items():
        known = coords[:, axis] < len(target)
        where = np.where(known, np.append(target, -1)[np.where(known, coords[:, axis], -1)], -1)
        stays &= where >= 0
        coords[:, axis] = where
    moved = refs.take(stays).at(coords[stays])
    session.set_refs(path, ChunkRefs.deleted(refs.coords).overlay(moved))


def clear_chunks(session: Session, path: str, boxes: Sequence[Sequence[tuple[int, int]]]) -> None:
    """Delete the chunks of some boxes of an array's grid.

    Parameters
    ----------
    session : Session
        Writable.
    path : str
    boxes : sequence
        For each box, the first index and the one after the last along each axis.
    """
    for box in boxes:
        axes = [np.arange(low, high, dtype=np.uint32) for low, high in box]
        grid = [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
        if grid and len(grid[0]):
            session.set_refs(path, ChunkRefs.deleted(np.stack(grid, axis=1)))
