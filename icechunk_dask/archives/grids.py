"""Chunks of different lengths along a dimension: those of each file, one after another.

Months have 28 to 31 days, and each is a compressed chunk. A regular grid cannot hold them. In
a grid that Zarr calls rectilinear, each chunk has its own length.

A chunk that extends beyond its file decodes to more values than the file has. The last chunk of
an array may do that. In the middle the excess is in the way, so its values must be written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from icechunk import InvalidInputError
from icechunk.base.rectilinear import are_known, is_rectilinear, what_it_takes

__all__ = [
    "CHUNK_GRIDS",
    "Edges",
    "Laid",
    "as_regular",
    "check_known",
    "is_in_chunks",
    "is_short",
    "laid",
    "regular",
    "with_edges",
]

#: Where chunks begin along an axis, and where the last one ends: int64[n + 1].
Edges: TypeAlias = npt.NDArray[np.int64]

#: Values of the argument ``chunk_grid``.
CHUNK_GRIDS: Final = ("auto", "regular")


@dataclass
class Laid:
    """The chunks along one axis of an array that concatenates files.

    Attributes
    ----------
    edges : Edges
    cut : int
        An old block that others now follow, although its last chunk extends beyond it; -1 for
        none.
    """

    edges: Edges
    cut: int = -1


def regular(length: int, size: int) -> Edges:
    """Return the edges of chunks of equal size; the last one may extend beyond the length."""
    return np.arange(0, length + size, size, dtype=np.int64)[: -(-length // size) + 1]


def laid(
    starts: Edges,
    old: Edges,
    moved: npt.NDArray[np.int64],
    old_edges: Edges,
    sizes: Mapping[int, int],
) -> Laid | None:
    """Lay the chunks of blocks one after another.

    Parameters
    ----------
    starts, old : int64[n + 1]
        Edges of the new and of the old blocks.
    moved : int64[m]
        The new index of each old block; -1 if it is gone.
    old_edges : Edges
        The edges of the old chunks.
    sizes : mapping of int to int
        The chunk length of each new block.

    Returns
    -------
    Laid or None
        None if old blocks would have to be separated within a chunk.
    """
    count = len(starts) - 1
    source = np.full(count, -1, np.int64)
    source[moved[moved >= 0]] = np.flatnonzero(moved >= 0)
    found = Laid(np.zeros(1, np.int64))
    pieces = [found.edges]
    block = 0
    while block < count:
        first, after = int(starts[block]), block + 1
        if source[block] < 0:
            length = int(starts[after]) - first
            ends = regular(length, sizes.get(block, length))[1:] + first
        else:
            while after < count and source[after] == source[after - 1] + 1:
                after += 1
            low, high = int(old[source[block]]), int(old[source[after - 1] + 1])
            i, j = np.searchsorted(old_edges, [low, high]).tolist()
            if old_edges[i] != low:
                return None
            ends = old_edges[i + 1 : j + 1] - low + first
        if after < count and ends[-1] > starts[after]:
            if source[block] >= 0:
                if high != old[-1]:
                    return None
                found.cut = after - 1
            ends = ends.copy()
            ends[-1] = starts[after]
        pieces.append(ends)
        block = after
    found.edges = np.concatenate(pieces)
    return found


def is_in_chunks(edges: Edges, start: int, length: int, size: int) -> bool:
    """Whether chunks of equal size, from some place on, are those of a grid.

    The last one may be shorter in the grid.
    """
    count = -(-length // size)
    begin = int(np.searchsorted(edges, start))
    own = edges[begin : begin + count + 1]
    wanted = start + np.arange(count) * size
    return (
        len(own) == count + 1
        and np.array_equal(own[:-1], wanted)
        and bool(start + length <= own[-1] <= wanted[-1] + size)
    )


def is_short(edges: Edges, start: int, length: int, size: int) -> bool:
    """Whether the last of such chunks is longer than its place in a grid."""
    return bool(length % size) and start + length == edges[np.searchsorted(edges, start + length)]


# -- documents ---------------------------------------------------------------------------
def as_regular(
    document: Mapping[str, Any], dims: Collection[str]
) -> tuple[dict[str, Any], dict[int, Edges]]:
    """Return a ``zarr.json`` with a regular grid, and the edges along some axes.

    These are the axes along which chunks differ in length, or may do so because files are
    combined along them. Their chunk size in the document means nothing.
    """
    found = dict(document)
    names = found.get("dimension_names") or ()
    if not is_rectilinear(found):
        return found, {}
    shape: list[int] = []
    edges: dict[int, Edges] = {}
    for axis, sizes in enumerate(found["chunk_grid"]["configuration"]["chunk_shapes"]):
        if isinstance(sizes, int):
            shape.append(sizes)
            continue
        runs = [size if isinstance(size, list) else (size, 1) for size in sizes]
        single = np.repeat(*np.asarray(runs, np.int64).reshape(-1, 2).T)
        shape.append(int(single[0]) if len(single) else 1)
        if (names[axis : axis + 1] and names[axis] in dims) or len(np.unique(single)) > 1:
            edges[axis] = np.append(0, np.cumsum(single))
    found["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": shape}}
    return found, edges


def with_edges(document: Mapping[str, Any], edges: Mapping[int, Edges]) -> dict[str, Any]:
    """Return a regular-grid ``zarr.json`` with the given edges along some axes.

    The official client accepts a list along each axis, but no single size.
    """
    found = dict(document)
    if edges:
        sizes = found["chunk_grid"]["configuration"]["chunk_shape"]
        shapes = [
            _runs(np.diff(edges[axis] if axis in edges else regular(max(length, 1), size)).tolist())
            for axis, (size, length) in enumerate(zip(sizes, found["shape"], strict=True))
        ]
        options = {"kind": "inline", "chunk_shapes": shapes}
        found["chunk_grid"] = {"name": "rectilinear", "configuration": options}
    return found


def _runs(sizes: Iterable[int]) -> list[int | list[int]]:
    """Return sizes in the form of the specification: runs of equal sizes as size and count."""
    found: list[list[int]] = []
    for size in sizes:
        if found and found[-1][0] == size:
            found[-1][1] += 1
        else:
            found.append([size, 1])
    return [size if times == 1 else [size, times] for size, times in found]


def check_known(path: str) -> None:
    """Refuse an array with a rectilinear grid if the installed Zarr does not support it.

    Raises
    ------
    InvalidInputError
    """
    if not are_known():
        raise InvalidInputError(f"the array {path}: {what_it_takes()}")
