"""Find the manifest that contains a chunk, among all manifests of an array."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import numpy as np

from icechunk.format.snapshot import ManifestRef

#: No chunk coordinate is this large (Icechunk spec, "ManifestRef").
_BEYOND: Final = 2**32


class ManifestIndex:
    """Finds a manifest by its extents, without looking at each of them.

    The manifests are sorted along the dimension that separates them best. Two binary
    searches leave the candidates for a coordinate there, usually one, or one row of a grid.

    Parameters
    ----------
    manifests : sequence of ManifestRef
        The manifests of one array. Empty extents mean that a manifest may hold any chunk.
    ndim : int
        Of the array.
    """

    def __init__(self, manifests: Sequence[ManifestRef], ndim: int) -> None:
        self.manifests = manifests
        self._ndim = ndim
        everywhere = ((0, _BEYOND),) * ndim
        boxes = np.array([ref.extents or everywhere for ref in manifests], np.int64)
        boxes = boxes.reshape(len(manifests), ndim, 2)
        distinct = [len(np.unique(boxes[:, axis, 0])) for axis in range(ndim)]
        self._axis = int(np.argmax(distinct)) if ndim else 0
        if ndim:
            self._rows = np.argsort(boxes[:, self._axis, 0], kind="stable")
            self._boxes = boxes[self._rows]
            self._starts: list[int] = self._boxes[:, self._axis, 0].tolist()
            # none of the rows before reaches further than this
            self._reach: list[int] = np.maximum.accumulate(self._boxes[:, self._axis, 1]).tolist()

    def find(self, coordinate: tuple[int, ...]) -> ManifestRef | None:
        """Return the manifest whose extents hold a chunk, the first of several."""
        if len(coordinate) != self._ndim or not self.manifests:
            return None
        if not coordinate:
            return self.manifests[0]
        at = coordinate[self._axis]
        begin, end = bisect_right(self._reach, at), bisect_right(self._starts, at)
        if end - begin == 1:  # NumPy takes longer for one row than for a hundred
            box = self._boxes[begin].tolist()
            is_inside = all(low <= i < high for i, (low, high) in zip(coordinate, box, strict=True))
            return self.manifests[int(self._rows[begin])] if is_inside else None
        boxes = self._boxes[begin:end]
        wanted = np.array(coordinate, np.int64)
        inside = ((boxes[:, :, 0] <= wanted) & (wanted < boxes[:, :, 1])).all(axis=1)
        rows = self._rows[begin:end][inside]
        return self.manifests[int(rows.min())] if len(rows) else None
