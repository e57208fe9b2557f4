"""Blocks of chunk grids: every reference is in the piece of its block, and in no other."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import zarr
from hypothesis import given, strategies as st

from icechunk import ManifestConfig, Repository, RepositoryConfig, Session, in_memory_storage
from icechunk.commit import splitting
from icechunk.commit.building import _blocks
from icechunk.commit.splitting import DEFAULT_REFS, covers, default_sizes, split, touches
from icechunk.config import ManifestSplittingConfig
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.storage.wrappers import WrapperStorage


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


@given(
    st.lists(st.integers(1, 3000), min_size=0, max_size=4).map(tuple),
    st.integers(0, 3 * DEFAULT_REFS),
)
def test_default_sizes(grid: tuple[int, ...], count: int) -> None:
    count = min(count, math.prod(grid))
    sizes = default_sizes(grid, count)
    if count <= DEFAULT_REFS:
        assert sizes == (None,) * len(grid)
        return
    block = math.prod(size or n for size, n in zip(sizes, grid, strict=True))
    density = math.prod(grid) // count
    # about as many references as are wanted, and not many more
    assert block <= DEFAULT_REFS * density
    assert block * max(grid) >= DEFAULT_REFS * density / 4 or block >= max(grid)
    assert all(size is None or size & (size - 1) == 0 for size in sizes)
    # consecutive in C order: whole dimensions behind the one that is cut, single steps before
    cut = [axis for axis, size in enumerate(sizes) if size is not None]
    last = max(cut)
    assert all(sizes[axis] == 1 or grid[axis] == 1 for axis in range(last))


@given(st.data())
def test_what_touches_and_what_covers_some_extents(data: st.DataObject) -> None:
    ndim = data.draw(st.integers(0, 3))
    far = data.draw(st.sampled_from([0, 2**32 - 8]))
    low = st.integers(far, far + 3)
    extents = tuple(
        (a, a + data.draw(st.integers(0, 3))) for a in data.draw(st.tuples(*[low] * ndim))
    )
    inside = list(itertools.product(*(range(*axis) for axis in extents)))
    coords = data.draw(st.sets(st.tuples(*[st.integers(far, far + 6)] * ndim), max_size=12))
    coords |= set(data.draw(st.sampled_from([inside, inside[1:], inside[:1]])))
    refs = ChunkRefs.deleted(np.array(sorted(coords), np.uint32).reshape(len(coords), ndim))
    assert covers(refs, extents) == (len(inside) > 0 and coords >= set(inside))

    sizes = tuple(data.draw(st.none() | st.integers(1, 4)) for _ in range(ndim))
    blocks = _blocks(refs, sizes)
    if inside:
        cells = ChunkRefs.deleted(np.array(inside, np.uint32).reshape(len(inside), ndim))
        assert touches(extents, blocks, sizes) == bool(blocks & _blocks(cells, sizes))


class ManifestReads(WrapperStorage):
    """Notes which manifests are fetched."""

    keys: list[str]

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        if operation == "get":
            self.keys += [key for key in keys if key.startswith("manifests/")]


def fill(session: Session, start: int, stop: int) -> None:
    """Set references of chunks of an array of one dimension."""
    n = stop - start
    lengths = np.full(n, 4, np.uint64)
    session.store.set_virtual_refs_arr(
        "a",
        (n,),
        ["s3://b/x"] * n,
        np.arange(n, dtype=np.uint64),
        lengths,
        validate_containers=False,
        arr_offset=(start,),
    )


def manifests(repo: Repository) -> list[tuple[int, int]]:
    """Return the extents of the manifests of an array of one dimension."""
    node = repo.readonly_session("main").tree.require("/a")
    assert node.array is not None
    return sorted(ref.extents[0] for ref in node.array.manifests)


def large(n: int) -> Repository:
    repo = Repository.create(in_memory_storage())
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(n,), chunks=(1,), dtype="i4")
    fill(session, 0, n)
    session.commit("large")
    return repo


def edit(repo: Repository, start: int, stop: int) -> int:
    """Change some chunks, and return how many manifests that reads."""
    storage = ManifestReads(repo.storage)
    storage.keys = []
    session = Repository.open(storage).writable_session("main")
    array = zarr.open_array(session.store, path="a")
    array.resize((max(stop, array.shape[0]),))
    fill(session, start, stop)
    session.commit("more")
    return len(storage.keys)


def test_a_large_array_is_cut_and_stays_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "DEFAULT_REFS", 64)
    repo = large(197)
    assert manifests(repo) == [(0, 64), (64, 128), (128, 192), (192, 197)]
    # an append reads and writes the last piece, and no other
    assert edit(repo, 197, 210) == 1
    assert manifests(repo) == [(0, 64), (64, 128), (128, 192), (192, 210)]
    assert edit(repo, 70, 71) == 1
    assert edit(repo, 256, 260) == 0
    assert manifests(repo) == [(0, 64), (64, 128), (128, 192), (192, 210), (256, 260)]
    # of what is replaced as a whole nothing is read
    assert edit(repo, 64, 200) == 1
    assert manifests(repo) == [(0, 64), (64, 128), (128, 192), (192, 210), (256, 260)]
    refs = repo.readonly_session("main").chunk_refs("/a")
    assert refs.offset[64:200].tolist() == list(range(136))


def test_pieces_of_another_size_stay_until_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "DEFAULT_REFS", 64)
    repo = large(256)
    monkeypatch.setattr(splitting, "DEFAULT_REFS", 32)
    assert edit(repo, 0, 1) == 1
    assert manifests(repo) == [(0, 32), (32, 64), (64, 128), (128, 192), (192, 256)]


def test_an_array_in_one_piece_is_cut_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    repo = large(100)
    assert manifests(repo) == [(0, 100)]
    monkeypatch.setattr(splitting, "DEFAULT_REFS", 32)
    assert edit(repo, 128, 130) == 0
    assert manifests(repo) == [(0, 100), (128, 130)]
    assert edit(repo, 99, 100) == 1
    assert manifests(repo) == [(0, 32), (32, 64), (64, 96), (96, 100), (128, 130)]


def test_a_config_without_splits_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "DEFAULT_REFS", 16)
    repo = large(40)
    assert len(manifests(repo)) == 3
    whole = ManifestConfig(splitting=ManifestSplittingConfig(split_sizes=()))
    repo = Repository.open(repo.storage, RepositoryConfig(manifest=whole))
    repo.rewrite_manifests("whole", branch="main")
    assert manifests(repo) == [(0, 40)]


def test_an_append_leaves_a_large_manifest_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "_SMALL", 16)
    repo = large(1000)
    # nothing is read, and the new references are a manifest of their own
    assert edit(repo, 1000, 1004) == 0
    assert manifests(repo) == [(0, 1000), (1000, 1004)]
    # which is written again as long as it is small
    assert edit(repo, 1004, 1010) == 1
    assert manifests(repo) == [(0, 1000), (1000, 1010)]
    # an edit of what is there writes that again, and what is smaller
    assert edit(repo, 5, 6) == 2
    assert manifests(repo) == [(0, 1010)]
    refs = repo.readonly_session("main").chunk_refs("/a")
    assert refs.coords[:, 0].tolist() == list(range(1010))


def test_appends_leave_few_manifests_and_write_each_reference_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splitting, "_SMALL", 16)
    sizes: list[tuple[int, int]] = []
    written = 0
    for end in range(3, 6000, 3):
        refs = ChunkRefs.deleted(np.arange(end - 3, end, dtype=np.uint32).reshape(-1, 1))
        stay = splitting.stay_beside(refs, [(pair,) for pair in sizes], [b - a for a, b in sizes])
        kept = [pair for k, pair in enumerate(sizes) if k in stay]
        begin = min([end - 3, *(a for k, (a, _) in enumerate(sizes) if k not in stay)])
        written += end - begin
        sizes = [*kept, (begin, end)]
        # side by side, and each reference in one
        assert [a for a, _ in sizes] == [0, *(b for _, b in sizes[:-1])]
        assert len(sizes) <= 4
    assert written < 20 * 6000


@given(st.data())
def test_what_stays_overlaps_nothing_that_is_written(data: st.DataObject) -> None:
    ndim = data.draw(st.integers(1, 3))
    # boxes that do not overlap: cells of a grid of boxes
    cells = data.draw(
        st.lists(st.tuples(*[st.integers(0, 4)] * ndim), min_size=1, max_size=12, unique=True)
    )
    extents = [tuple((4 * i, 4 * i + 4) for i in cell) for cell in cells]
    counts = data.draw(st.lists(st.integers(0, 10**6), min_size=len(cells), max_size=len(cells)))
    points = data.draw(
        st.lists(st.tuples(*[st.integers(0, 23)] * ndim), min_size=1, max_size=5, unique=True)
    )
    edits = ChunkRefs.deleted(np.array(sorted(points), np.uint32).reshape(-1, ndim))
    stay = splitting.stay_beside(edits, extents, counts)
    gone = [extents[k] for k in range(len(cells)) if k not in stay]
    ends = [*gone, edits.extents()]
    box = [(min(e[d][0] for e in ends), max(e[d][1] for e in ends)) for d in range(ndim)]
    for k in stay:
        assert counts[k] >= splitting._SMALL
        assert any(hi <= a or b <= lo for (lo, hi), (a, b) in zip(extents[k], box, strict=True))
