"""The objects of a folder by id, as sorted columns, with a mark for those referred to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.format.ids import decode_ids
from icechunk.repository.reachable import batches, id_prefixes
from icechunk.repository.verification import Orphans
from icechunk.storage.base import ObjectMeta

__all__ = ["Listing"]

_LISTED: Final = 10_000


class Listing:
    """The objects of a folder whose names are ids.

    Parameters
    ----------
    metas : iterable of ObjectMeta
    folder : str

    Attributes
    ----------
    size : int64[n]
        In bytes.
    used : bool[n]
        Whether each was asked for.
    """

    def __init__(self, metas: Iterable[ObjectMeta], folder: str) -> None:
        ids: list[npt.NDArray[np.uint8]] = []
        sizes: list[npt.NDArray[np.int64]] = []
        for batch in batches(metas, _LISTED):
            known, found = decode_ids([meta.key.removeprefix(folder) for meta in batch])
            ids.append(found)
            sizes.append(np.asarray([meta.size for meta in batch], np.int64)[known])
        table = np.concatenate(ids) if ids else np.empty((0, 12), np.uint8)
        size = np.concatenate(sizes) if sizes else np.empty(0, np.int64)
        prefix = id_prefixes(table)
        order = np.argsort(prefix, kind="stable")
        self._prefix, self._rest = prefix[order], _rest(table)[order]
        self.size = size[order]
        self.used = np.zeros(len(size), np.bool_)

    def find(self, ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return the positions of ids, uint8[n, 12], and mark them as used; -1 where missing."""
        if not len(self._prefix):
            return np.full(len(ids), -1, np.int64)
        wanted = id_prefixes(ids)
        place = np.minimum(np.searchsorted(self._prefix, wanted), len(self._prefix) - 1)
        hit = (self._prefix[place] == wanted) & (self._rest[place] == _rest(ids))
        self.used[place[hit]] = True
        return np.where(hit, place, -1)

    def size_of(self, id: bytes) -> int | None:
        """Return the size of one object, None if it does not exist."""
        place = int(self.find(np.frombuffer(id, np.uint8)[None])[0])
        return None if place < 0 else int(self.size[place])

    def orphans(self) -> Orphans:
        """Return the objects that nothing asked for."""
        return Orphans(int((~self.used).sum()), int(self.size[~self.used].sum()))


def _rest(ids: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(ids[:, 8:]).view(">u4").ravel()
