"""Which blocks of a Dask array go to which chunks of a Zarr array, and whether that is safe.

A chunk is stored as a whole, and so is a shard where the array has shards. If two tasks wrote
parts of one chunk, each would read it, change its part and store it: one of the parts would be
lost. So blocks must end where chunks end. Only the first and the last block of a region may
begin or end within a chunk, because no other block of the region shares that chunk.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from icechunk.base.rectilinear import stored_sizes
from icechunk.base.texts import counted
from icechunk.errors import ErrorKind, InvalidInputError

__all__ = ["Target", "block_is_covered", "check_disjoint"]

Edges = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Target:
    """A region of a Zarr array, and the chunks in it.

    Attributes
    ----------
    path : str
        Of the array, absolute.
    names : tuple of str
        What messages call the dimensions.
    region : tuple of (int, int)
        [from, to) per dimension, in elements.
    edges : tuple of int64[n + 1]
        Where the chunks of the whole array begin, and where the last one ends, per
        dimension.
    unit : str
        What is stored as a whole: ``"chunks"`` or ``"shards"``.
    """

    path: str
    names: tuple[str, ...]
    region: tuple[tuple[int, int], ...]
    edges: tuple[Edges, ...]
    unit: str

    @classmethod
    def of(cls, array: Any, region: Sequence[slice] | slice | None) -> Target:
        """Describe a region of a Zarr array, the whole of it by default.

        Raises
        ------
        InvalidInputError
            If the region is not made of slices of step 1 that lie within the array.
        """
        path = "/" + array.path.strip("/")
        given = getattr(array.metadata, "dimension_names", None) or (None,) * array.ndim
        names = tuple(
            f"dimension {name!r} (axis {axis})" if name else f"axis {axis}"
            for axis, name in enumerate(given)
        )
        return cls(
            path,
            names,
            _bounds(path, names, array.shape, region),
            tuple(
                _edges(n, sizes) for n, sizes in zip(array.shape, stored_sizes(array), strict=True)
            ),
            "chunks" if array.shards is None else "shards",
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the region."""
        return tuple(stop - start for start, stop in self.region)

    @property
    def offset(self) -> tuple[int, ...]:
        """Where the region begins."""
        return tuple(start for start, _ in self.region)

    @property
    def box(self) -> tuple[tuple[int, int], ...]:
        """The chunks that the region touches: [from, to) per dimension."""
        return tuple(
            _touched(edges, *bounds) for edges, bounds in zip(self.edges, self.region, strict=True)
        )

    def check(self, source: Any) -> None:
        """Refuse blocks of a Dask array that share a chunk.

        Raises
        ------
        InvalidInputError
            If the array has another shape than the region or unknown chunks, or two of
            its blocks share a chunk. The message names the dimension and chunks that fit.
        """
        self.check_shape(source)
        fitting = self.fitting_chunks(source.chunks)
        for axis, (edges, chunks) in enumerate(zip(self.edges, source.chunks, strict=True)):
            inner = self.region[axis][0] + np.cumsum(chunks)[:-1]
            bad = inner[~np.isin(inner, edges)]
            bad = bad[bad < self.region[axis][1]]
            if len(bad):
                raise InvalidInputError(
                    f"array {self.path!r}, {self.names[axis]}: Dask chunks {_short(chunks)} end at "
                    f"{int(bad[0])}, within one of the {self.unit} of size "
                    f"{_short(np.diff(edges).tolist())} that are stored as a whole, so two tasks "
                    f"would write it at once and one would be lost. Chunks that would fit: "
                    f"{_short(fitting[axis])}; pass align_chunks=True, or rechunk with "
                    f".rechunk({{{axis}: {_argument(fitting[axis])}}})",
                    ErrorKind.INVALID_CHUNK_INDEX,
                )

    def fitting_chunks(self, chunks: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        """Return the nearest Dask chunks that end where chunks of the target end.

        Parameters
        ----------
        chunks : sequence of sequence of int
            The chunks of a Dask array in the shape of the region.
        """
        return tuple(
            _snapped(edges, bounds, sizes)
            for edges, bounds, sizes in zip(self.edges, self.region, chunks, strict=True)
        )

    def chunk_ranges(self, chunks: Sequence[Sequence[int]]) -> list[npt.NDArray[np.int64]]:
        """Return which chunks the blocks touch: int64[n, 2] per axis, as [from, to)."""
        result = []
        for edges, (start, _), sizes in zip(self.edges, self.region, chunks, strict=True):
            bounds = start + np.cumsum([0, *sizes])
            pairs = [_touched(edges, int(a), int(b)) for a, b in pairwise(bounds)]
            result.append(np.array(pairs, np.int64).reshape(-1, 2))
        return result

    def check_shape(self, source: Any) -> None:
        """Refuse a Dask array of another shape than the region, or of unknown chunks."""
        if any(np.isnan(size) for sizes in source.chunks for size in sizes):
            raise InvalidInputError(
                f"array {self.path!r}: the Dask array has chunks of unknown size; call its "
                "compute_chunk_sizes() first",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
        if tuple(source.shape) != self.shape:
            raise InvalidInputError(
                f"array {self.path!r}: a Dask array of shape {tuple(source.shape)} does not fit "
                f"the region {self.region} of shape {self.shape}",
                ErrorKind.INVALID_CHUNK_INDEX,
            )


def check_disjoint(targets: Sequence[Target]) -> None:
    """Refuse targets of which two touch the same chunk of one array.

    Raises
    ------
    InvalidInputError
    """
    by_path: dict[str, list[Target]] = {}
    for target in targets:
        if all(target.shape):
            by_path.setdefault(target.path, []).append(target)
    for path, group in by_path.items():
        boxes = np.array([t.box for t in group], np.int64).reshape(len(group), -1, 2)
        for i in range(1, len(group)):
            low, high = boxes[i, :, 0], boxes[i, :, 1]
            overlap = ((boxes[:i, :, 0] < high) & (low < boxes[:i, :, 1])).all(axis=1)
            if overlap.any():
                other = group[int(overlap.argmax())]
                raise InvalidInputError(
                    f"array {path!r}: the regions {other.region} and {group[i].region} share "
                    f"{other.unit}, and two tasks that write one lose data; write one after the "
                    f"other, or choose regions that end where {other.unit} end",
                    ErrorKind.INVALID_CHUNK_INDEX,
                )


def block_is_covered(mask: Bools, ranges: Sequence[npt.NDArray[np.int64]]) -> Bools:
    """Say for which blocks all chunks that they touch are set in a mask.

    Parameters
    ----------
    mask : bool[...]
        One value per chunk, in the shape of the chunk grid.
    ranges : sequence of int64[n, 2]
        The result of `Target.chunk_ranges`.

    Returns
    -------
    bool[...]
        One value per block, in the shape of the grid of blocks.
    """
    for axis, pairs in enumerate(ranges):
        # count, do not reduce: empty blocks touch nothing and are covered
        total = np.cumsum(mask, axis=axis, dtype=np.int64)
        total = np.insert(total, 0, 0, axis=axis)
        count = total.take(pairs[:, 1], axis=axis) - total.take(pairs[:, 0], axis=axis)
        size = (pairs[:, 1] - pairs[:, 0]).reshape(
            [-1 if a == axis else 1 for a in range(mask.ndim)]
        )
        mask = count == size
    return mask


def _edges(length: int, sizes: int | Sequence[int]) -> Edges:
    if isinstance(sizes, Sequence):
        edges = np.cumsum([0, *sizes], dtype=np.int64)
    else:
        edges = np.arange(0, length + max(sizes, 1), max(sizes, 1), dtype=np.int64)
    edges = np.minimum(edges, length)
    return edges


def _bounds(
    path: str,
    names: Sequence[str],
    shape: Sequence[int],
    region: Sequence[slice] | slice | None,
) -> tuple[tuple[int, int], ...]:
    given = () if region is None else (region,) if isinstance(region, slice) else tuple(region)
    if len(given) > len(shape):
        raise InvalidInputError(
            f"array {path!r}: a region of {counted(len(given), 'slice')} for "
            f"{counted(len(shape), 'dimension')}",
            ErrorKind.INVALID_CHUNK_INDEX,
        )
    bounds = []
    for axis, length in enumerate(shape):
        part = given[axis] if axis < len(given) else slice(None)
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise InvalidInputError(
                f"array {path!r}, {names[axis]}: {part!r} is not a slice of step 1; regions are "
                "tuples of such slices",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
        stop = length if part.stop is None else operator.index(part.stop)
        if stop > length:
            raise InvalidInputError(
                f"array {path!r}, {names[axis]}: the region ends at {stop}, the array at {length}; "
                "resize the array first",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
        start, stop, _ = part.indices(length)
        bounds.append((start, max(start, stop)))
    return tuple(bounds)


def _touched(edges: Edges, start: int, stop: int) -> tuple[int, int]:
    """Return the chunks that hold some elements, as [from, to)."""
    if stop <= start:
        first = int(np.searchsorted(edges, start, side="right")) - 1
        return first, first
    first = int(np.searchsorted(edges, start, side="right")) - 1
    last = int(np.searchsorted(edges, stop, side="left"))
    return first, last


def _snapped(edges: Edges, bounds: tuple[int, int], sizes: Sequence[int]) -> tuple[int, ...]:
    start, stop = bounds
    inner = start + np.cumsum(sizes)[:-1]
    # round down, so that no block gets larger than before by more than a chunk
    snapped = edges[np.searchsorted(edges, inner, side="right") - 1]
    snapped = np.unique(snapped[(snapped > start) & (snapped < stop)])
    return tuple(np.diff([start, *snapped.tolist(), stop]).tolist())


def _argument(sizes: Sequence[int]) -> str:
    """Return the argument for `rechunk`: one number where that means the same."""
    if len(set(sizes[:-1])) <= 1 and (len(sizes) < 2 or sizes[-1] <= sizes[0]):
        return str(sizes[0])
    return str(tuple(sizes)) if len(sizes) <= 20 else "..."


def _short(sizes: Sequence[int]) -> str:
    if len(sizes) <= 6:
        return str(tuple(sizes)) if len(sizes) > 1 else str(sizes[0] if sizes else 0)
    first = ", ".join(map(str, sizes[:5]))
    return f"({first}, ... {len(sizes)} in all)"
