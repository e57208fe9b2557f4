"""Blocks of chunk grids: every reference is in the piece of its block, and in no other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from icechunk.commit.building import _blocks
from icechunk.commit.splitting import split
from icechunk.format.chunk_refs import ChunkRefs


@given(st.data())
def test_split(data: st.DataObject) -> None:
    ndim = data.draw(st.integers(1, 3))
    # close together, or so far apart that numbers for all blocks would not fit in memory
    index = st.integers(0, data.draw(st.sampled_from([5, 2**32 - 1])))
    coords = data.draw(st.lists(st.tuples(*[index] * ndim), max_size=30, unique=True))
    sizes = tuple(
        data.draw(st.one_of(st.none(), st.integers(1, 4), st.just(2**31))) for _ in range(ndim)
    )
    refs = ChunkRefs.deleted(np.array(coords, np.uint32).reshape(-1, ndim))

    def block(coordinate: tuple[int, ...]) -> tuple[int, ...]:
        pairs = zip(coordinate, sizes, strict=True)
        return tuple(i // size for i, size in pairs if size is not None)

    expected: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for coordinate in sorted(coords):
        expected.setdefault(block(coordinate), []).append(coordinate)
    pieces = [[tuple(c) for c in piece.coords.tolist()] for piece in split(refs, sizes)]
    assert pieces == [expected[key] for key in sorted(expected)]
    assert _blocks(refs, sizes) == set(expected)
