"""Chunks written by parts of jobs that other clients have collected as garbage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.base.threads import map_in_threads
from icechunk.changes.codec import decode_change_set
from icechunk.errors import ObjectNotFoundError
from icechunk.format.chunk_ref import RefKind
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import OBJECT_ID_SIZE
from icechunk.format.layout import CHUNKS, chunk_key
from icechunk.repository.jobs_records import Part
from icechunk.repository.listing import Listing
from icechunk.repository.update_types import Update, UpdateType
from icechunk.storage.base import Storage

__all__ = ["collected_since", "lost_parts"]

#: Objects that are checked at the same time.
_THREADS: Final = 16
#: Up to this many objects are checked one by one: a listing covers the whole repository.
_FEW: Final = 500


def collected_since(updates: Iterable[Update], bases: Iterable[str]) -> bool:
    """Return whether a collection may have run since some snapshots were made.

    The order of the log decides; clocks are not used.

    Parameters
    ----------
    updates : iterable of Update
        The operations log, newest first.
    bases : iterable of str
        Ids of snapshots. If the log does not say when they were made, the answer is yes.
    """
    wanted, update = set(bases), None
    for update in updates:
        if isinstance(update.kind, UpdateType.GCRan):
            return True
        wanted.discard(getattr(update.kind, "new_snap_id", ""))
        if not wanted:
            return False
    # no update names the snapshot that every repository begins with
    return update is None or not isinstance(update.kind, UpdateType.RepoInitialized)


def lost_parts(storage: Storage, parts: Sequence[Part], job: str, *, exact: bool) -> list[Part]:
    """Return the parts that have lost chunks, or the ends of chunks.

    Parameters
    ----------
    storage : Storage
    parts : sequence of Part
    job : str
        Name of the job, for errors.
    exact : bool
        Whether to check all objects: one by one if they are few, else by one listing of all
        chunks. Otherwise only the first and last of each part: a collection goes by age.
    """
    written = [_written(part, job) for part in parts]
    owner = np.repeat(np.arange(len(parts)), [len(ids) for ids, _ in written])
    if not len(owner):
        return []
    ids = np.concatenate([ids for ids, _ in written])
    ends = np.concatenate([to for _, to in written])
    # packed chunks share an object
    objects, place = np.unique(
        np.ascontiguousarray(ids).view(f"S{OBJECT_ID_SIZE}").ravel(), return_inverse=True
    )
    needed = np.zeros(len(objects), np.uint64)
    np.maximum.at(needed, place, ends)
    table = np.ascontiguousarray(objects).view(np.uint8).reshape(-1, OBJECT_ID_SIZE)
    there = np.ones(len(objects), bool)
    if exact and len(objects) > _FEW:
        listing = Listing(storage.list(CHUNKS), CHUNKS)
        found = listing.find(table)
        there = found >= 0
        there[there] = listing.size[found[there]].astype(np.uint64) >= needed[there]
    else:
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        both = place[np.union1d(first, np.append(first[1:], len(owner)) - 1)]
        looked = np.arange(len(objects)) if exact else np.unique(both)
        named = [(chunk_key(table[i].tobytes()), int(needed[i])) for i in looked.tolist()]
        there[looked] = map_in_threads(partial(_is_whole, storage), named, _THREADS)
    return [parts[number] for number in np.unique(owner[~there[place]]).tolist()]


def _written(part: Part, job: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """Return the ids of the native chunks of a part, uint8[n, 12], and the end of each."""
    changes = decode_change_set(part.change_set, f"a part of the job {job!r}")
    ids, ends = [np.empty((0, OBJECT_ID_SIZE), np.uint8)], [np.empty(0, np.uint64)]
    for edits in changes.chunks.values():
        refs: ChunkRefs = edits.refs()
        if refs.chunk_id is not None:
            native = refs.kind == RefKind.NATIVE
            ids.append(refs.chunk_id[native])
            ends.append(refs.ends[native].astype(np.uint64))
    return np.concatenate(ids), np.concatenate(ends)


def _is_whole(storage: Storage, wanted: tuple[str, int]) -> bool:
    """Whether an object has this many bytes; requests only the last of them."""
    key, size = wanted
    try:
        last = storage.get(key, byte_range=(max(size - 1, 0), max(size, 1))).data
    except ObjectNotFoundError:
        return False
    return len(last) >= min(size, 1)
