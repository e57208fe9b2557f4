"""Combine small chunks into shared objects, and rewrite objects that hold much waste."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from icechunk.base.display import Displayed
from icechunk.base.threads import map_in_threads
from icechunk.errors import InvalidInputError
from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRefs, RefKind
from icechunk.format.ids import OBJECT_ID_SIZE
from icechunk.format.snapshot import Node
from icechunk.session.packing import MAX_PACKED, PACK_HEADER
from icechunk.session.session import Session

__all__ = ["RepackSummary", "repack"]

_READERS: Final = 16
#: Chunks that are in memory at the same time.
_BATCH: Final = 256


@dataclass(frozen=True)
class RepackSummary(Displayed):
    """What `Repository.repack` found in a version, and what it did.

    Attributes
    ----------
    snapshot_id : str or None
        The new snapshot; None if nothing was done.
    packs : int
        Objects that several chunks of the version share, or may share.
    packed_bytes : int
        The size of these objects.
    wasted_bytes : int
        Bytes in them that no chunk of the version refers to. Older versions may.
    chunks : int
        Chunks to pack: those in objects with too much waste, or alone in small
        objects.

    Examples
    --------
    >>> repo.repack("main", dry_run=True).packs
    0
    """

    snapshot_id: str | None
    packs: int
    packed_bytes: int
    wasted_bytes: int
    chunks: int


@dataclass
class _Array:
    node: Node
    refs: ChunkRefs
    ids: npt.NDArray[np.bytes_]


def repack(session: Session, message: str, *, max_waste: float, dry_run: bool) -> RepackSummary:
    """Do what `Repository.repack` describes, in a session that packs."""
    if not 0 <= max_waste <= 1:
        raise InvalidInputError(f"max_waste is {max_waste}, it must be a number from 0 to 1")
    arrays = list(_arrays(session))
    ids, live, packed = _live(arrays)
    names = {layout.chunk_key(id.ljust(OBJECT_ID_SIZE, b"\0")): i for i, id in enumerate(ids)}
    sizes = live.copy()
    for meta in session.storage.list(layout.CHUNKS) if len(ids) else ():
        if meta.key in names:
            sizes[names[meta.key]] = meta.size
    waste = np.maximum(sizes - live - len(PACK_HEADER), 0) * packed
    alone = ~packed & (live <= MAX_PACKED)
    again = packed & (waste > max_waste * sizes)
    if alone.sum() > 1:
        again |= alone
    chosen = [again[np.searchsorted(ids, array.ids)] if len(ids) else [] for array in arrays]
    count = int(sum(np.sum(rows) for rows in chosen))
    snapshot_id = None
    if count and not dry_run:
        for array, rows in zip(arrays, chosen, strict=True):
            _write_again(session, array, np.flatnonzero(rows))
        snapshot_id = session.commit(message)
    return RepackSummary(
        snapshot_id, int(packed.sum()), int(sizes[packed].sum()), int(waste.sum()), count
    )


def _arrays(session: Session) -> Iterator[_Array]:
    """Yield the native references of each array that has any."""
    for node in session.tree.nodes():
        if node.array is None:
            continue
        refs = session.chunk_refs(node.path)
        refs = refs.take(np.flatnonzero(refs.kind == RefKind.NATIVE))
        if len(refs):
            ids = np.ascontiguousarray(refs.chunk_id).view(f"S{OBJECT_ID_SIZE}")
            yield _Array(node, refs, ids.reshape(len(refs)))


def _live(
    arrays: list[_Array],
) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the objects that chunks refer to, sorted; the bytes used of each; which are packs."""
    if not arrays:
        return np.empty(0, f"S{OBJECT_ID_SIZE}"), np.empty(0, np.int64), np.empty(0, np.bool_)
    columns = [
        np.concatenate([array.ids for array in arrays]),
        np.concatenate([array.refs.offset for array in arrays]),
        np.concatenate([array.refs.length for array in arrays]),
    ]
    order = np.lexsort(columns[::-1])
    name, offset, length = (column[order] for column in columns)
    # two chunks may share the same bytes
    new = np.ones(len(name), np.bool_)
    new[1:] = (name[1:] != name[:-1]) | (offset[1:] != offset[:-1]) | (length[1:] != length[:-1])
    ids, which = np.unique(name, return_inverse=True)
    live = np.zeros(len(ids), np.int64)
    np.add.at(live, which, np.where(new, length, 0).astype(np.int64))
    packed = np.zeros(len(ids), np.bool_)
    packed[which[offset > 0]] = True
    return ids, live, packed


def _write_again(session: Session, array: _Array, rows: npt.NDArray[np.int64]) -> None:
    node = array.node
    for begin in range(0, len(rows), _BATCH):
        coords = array.refs.coords[rows[begin : begin + _BATCH]].tolist()
        places = [tuple(place) for place in coords]
        found = map_in_threads(lambda place: session.chunks.get(node, place), places, _READERS)
        for place, data in zip(places, found, strict=True):
            if data is not None:
                session.chunks.set(node.path, place, data)
