"""How the chunk grid of an array is cut into manifests.

A split size for each dimension cuts the grid into blocks. Each block with chunks in it gets a
manifest. Which sizes apply is config: per dimension the first dimension condition that
matches, among those of all array conditions that match, in their order. (The Icechunk spec,
"Manifests on commit", lets the first array condition decide for all dimensions; official
clients go on to the next ones for dimensions that it leaves uncut.)

Without a config, only arrays with very many references are cut, so that an edit, or a read of
one chunk, does not move all of them. What is appended becomes a manifest of its own, until that
is as large as to be joined with the one before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.config import RepositoryConfig
from icechunk.config.conditions import SplitRules, splitting_rules
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.snapshot import ArrayInfo

Extents = tuple[tuple[int, int], ...]
BlockSizes = tuple[int | None, ...]

#: About how many references a manifest holds at most, where no config says how to cut.
DEFAULT_REFS: Final = 1 << 17

#: Smaller manifests are written again with new references beside them.
_SMALL: Final = 1 << 12
#: Others too, unless they have so many times as many references.
_SEVERAL: Final = 8

#: How the official client says that no array is split.
_NO_SPLITTING: Final[Any] = [
    [{"path_matches": {"regex": ".*"}}, [{"condition": "Any", "num_chunks": 2**32 - 1}]]
]


def split_sizes(path: str, array: ArrayInfo, rules: SplitRules) -> BlockSizes:
    """Return the length of a block along each dimension, or None where it is not cut."""
    ndim = len(array.num_chunks)
    dimensions = [each for condition, sizes in rules if condition.matches(path) for each in sizes]
    names = array.dimension_names or (None,) * ndim
    return tuple(
        next((size for dim, size in dimensions if dim.matches(axis, names[axis])), None)
        for axis in range(ndim)
    )


def default_sizes(grid: tuple[int, ...], count: int) -> BlockSizes:
    """Return the length of a block along each dimension if no config says anything.

    Blocks are consecutive in C order, and their lengths are powers of two: when an array
    grows, existing cuts stay where they are.

    Parameters
    ----------
    grid : tuple of int
        Chunks along each dimension.
    count : int
        References in all, at most.
    """
    sizes: list[int | None] = [None] * len(grid)
    if count <= DEFAULT_REFS:
        return tuple(sizes)
    # where few chunks are written, blocks are larger
    room = DEFAULT_REFS * max(1, math.prod(grid) // count)
    for axis in reversed(range(len(grid))):
        if grid[axis] > room:
            sizes[axis] = 1 << (room.bit_length() - 1)
            room = 1
        else:
            room //= max(grid[axis], 1)
    return tuple(sizes)


def block_ids(coords: npt.NDArray[np.uint32], sizes: BlockSizes) -> npt.NDArray[np.int64]:
    """Return the block number of each coordinate: equal numbers mean the same block.

    Parameters
    ----------
    coords : ndarray of uint32, shape (n, ndim)
    sizes : tuple of (int or None)

    Returns
    -------
    ndarray of int64, shape (n,)
        Dense numbers, in the order of the blocks.
    """
    cut = [axis for axis, size in enumerate(sizes) if size is not None]
    if not cut or not len(coords):
        return np.zeros(len(coords), np.int64)
    blocks = [coords[:, axis] // np.uint32(sizes[axis] or 1) for axis in cut]
    lows = [int(column.min()) for column in blocks]
    counts = [int(column.max()) + 1 - low for column, low in zip(blocks, lows, strict=True)]
    if math.prod(counts) > max(len(coords), 2**16):
        _, ids = np.unique(np.stack(blocks, axis=1), axis=0, return_inverse=True)
        return ids.reshape(-1).astype(np.int64)
    # a number for each block, without sorting millions of rows
    numbers = np.zeros(len(coords), np.int64)
    for column, low, count in zip(blocks, lows, counts, strict=True):
        numbers *= count
        numbers += column - np.uint32(low)
    used = np.zeros(math.prod(counts), np.bool_)
    used[numbers] = True
    dense: npt.NDArray[np.int64] = np.cumsum(used) - 1
    return dense[numbers]


def split(refs: ChunkRefs, sizes: BlockSizes) -> Iterator[ChunkRefs]:
    """Yield the references of each block that has any."""
    if not len(refs):
        return
    ids = block_ids(refs.coords, sizes)
    count = int(ids.max()) + 1
    if count == 1:
        yield refs
        return
    # of the smallest dtype: NumPy sorts short integers by radix
    order = np.argsort(ids.astype(np.min_scalar_type(count)), kind="stable")
    bounds = np.cumsum([0, *np.bincount(ids, minlength=count).tolist()])
    for lo, hi in pairwise(bounds):
        yield refs.take(order[lo:hi])


def touches(extents: Extents, blocks: set[tuple[int, ...]], sizes: BlockSizes) -> bool:
    """Whether extents overlap any of some blocks.

    Parameters
    ----------
    extents : tuple of (int, int)
    blocks : set of tuple of int
        Numbers of the blocks along the dimensions that are cut.
    sizes : tuple of (int or None)
    """
    cut = [
        range(lo // size, (hi - 1) // size + 1)
        for (lo, hi), size in zip(extents, sizes, strict=True)
        if size is not None
    ]
    if math.prod(map(len, cut)) <= len(blocks):  # nearly always: extents lie in one block
        return any(block in blocks for block in product(*cut))
    return any(all(n in numbers for n, numbers in zip(block, cut, strict=True)) for block in blocks)


def covers(refs: ChunkRefs, extents: Extents) -> bool:
    """Whether there is a reference, or a deletion, for every chunk within some extents."""
    size = math.prod(high - low for low, high in extents)
    if len(extents) != refs.ndim or not 0 < size <= len(refs):
        return False
    corners = [low for low, _ in extents], [high - 1 for _, high in extents]
    first, last = map(refs.find, corners)
    # references are sorted, so those of the extents lie from the first corner to the last
    if first < 0 or last - first < size - 1:
        return False
    if refs.ndim == 1:
        return last - first == size - 1
    axes = np.indices([high - low for low, high in extents], np.uint32).reshape(len(extents), size)
    lows = np.array(corners[0], np.uint32).reshape(-1, 1)
    return bool((refs.find_many((axes + lows).T) >= 0).all())


def stay_beside(edits: ChunkRefs, manifests: Sequence[Extents], counts: Sequence[int]) -> set[int]:
    """Say which manifests may stay as they are where new references come beside them.

    An append would otherwise write all references of the last block again, however few are new.
    Each manifest that stays has several times as many references as all smaller ones and the new
    ones together: so there are few in a block, and no reference is written again very often.

    Parameters
    ----------
    edits : ChunkRefs
        At least one.
    manifests : sequence of tuple of (int, int)
        Extents, which do not overlap.
    counts : sequence of int
        References in each; 0 for one that must not stay.

    Returns
    -------
    set of int
        Positions in `manifests`. The others are to be written again, as one with the edits.
    """
    staying, total = set(), len(edits)
    for position in np.argsort(counts, kind="stable").tolist():
        if counts[position] >= max(_SEVERAL * total, _SMALL):
            staying.add(position)
        total += counts[position]
    box, going = edits.extents(), set(range(len(manifests))) - staying
    while True:
        for position in going:
            box = _hull(box, manifests[position])
        # what is written may overlap nothing that stays
        going = {position for position in staying if _overlap(box, manifests[position])}
        if not going:
            return staying
        staying -= going


def _hull(one: Extents, other: Extents) -> Extents:
    return tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))


def _overlap(one: Extents, other: Extents) -> bool:
    return all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True))


def is_one_block(extents: Extents, sizes: BlockSizes) -> bool:
    """Whether extents lie within a single block."""
    return all(
        size is None or lo // size == (hi - 1) // size
        for (lo, hi), size in zip(extents, sizes, strict=True)
    )


def splitting_note(config: RepositoryConfig) -> dict[str, Any]:
    """Return the rules of a configuration as they are recorded in the metadata of a commit."""
    splitting = config.manifest.splitting if config.manifest is not None else None
    if splitting is None:
        return {"split_sizes": _NO_SPLITTING}
    return {"split_sizes": splitting_rules().dump(splitting.split_sizes)}
