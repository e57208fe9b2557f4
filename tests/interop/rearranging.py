"""Chunks that move within their array, done by both sides on the same base."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import zarr

import icechunk
from tests.interop.base import create, edit, operation, set_virtual

#: Maps of chunk positions by name; each makes one for a chunk grid.
MAPS: dict[str, Any] = {
    "reverse": lambda grid: lambda at: [n - 1 - i for i, n in zip(at, grid, strict=True)],
    "wrap": lambda grid: lambda at: [(i + 1) % n for i, n in zip(at, grid, strict=True)],
    "unwrap": lambda grid: lambda at: [(i - 1) % n for i, n in zip(at, grid, strict=True)],
    "to the first": lambda grid: lambda at: [0] * len(at),
    "nowhere": lambda grid: lambda at: None,
    "stay": lambda grid: lambda at: tuple(at),
    "next": lambda grid: (
        lambda at: (
            [i + 1 for i in at] if all(i + 1 < n for i, n in zip(at, grid, strict=True)) else None
        )
    ),
    "last": lambda grid: lambda at: [i - 1 for i in at] if all(i > 0 for i in at) else None,
    "halves": lambda grid: lambda at: [i // 2 for i in at],
    "doubles": lambda grid: (
        lambda at: (
            [2 * i for i in at] if all(2 * i < n for i, n in zip(at, grid, strict=True)) else None
        )
    ),
}
MANY_TO_ONE = {"to the first", "halves"}


@operation
def shift_everything(repo: Any) -> None:
    session = repo.writable_session("main")
    for path, offset in {
        "/a": [2],
        "/m": [1, -1],
        "/scalar": [],
        "/split": [-3, 0],
        "/sparse": [1],
        "/unwritten": [1],
        "/sharded": [1, 0],
        "/virtual": [1],
        "/g/deep/x": [0],
    }.items():
        session.shift_array(path, offset)
    session.commit("shifted")


@operation
def shift_all_out_of_the_grid(repo: Any) -> None:
    session = repo.writable_session("main")
    session.shift_array("/a", [-6])
    session.shift_array("/m", [0, 2**40])
    session.commit("shifted")


@operation
def shift_into_a_larger_grid(repo: Any) -> None:
    session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    root["a"].resize((17,))
    root["split"][0] = 0
    root["split"].resize((14, 2))
    session.shift_array("/a", [3])
    session.shift_array("/split", [4, 0])
    session.shift_array("/split", [-1, 0])
    session.commit("shifted")


@operation
def shift_a_new_array(repo: Any) -> None:
    session = repo.writable_session("main")
    create(zarr.open_group(session.store, mode="r+"), "new", (7, 3), (2, 2))[1:] = 8
    session.shift_array("/new", [1, -1])
    session.commit("shifted")


@operation
def reindex(repo: Any) -> None:
    session = repo.writable_session("main")
    session.reindex_array("/a", MAPS["wrap"]((6,)))
    session.reindex_array("/m", MAPS["reverse"]((4, 4)))
    session.reindex_array("/virtual", MAPS["next"]((4,)), MAPS["last"]((4,)))
    session.commit("reindexed")


def move_chunks(case: dict[str, Any]) -> dict[str, Any]:
    """Write some chunks of a new array and move them; return what became of it.

    Parameters
    ----------
    case : dict
        ``grid``; ``written`` and ``erased`` before, and ``changed`` in the session, each
        a list of chunks; and ``offset``, or ``forward`` and ``backward``, names of `MAPS`.
    """
    repo = icechunk.Repository.create(icechunk.in_memory_storage())
    grid = tuple(case["grid"])

    def write(root: Any, chunks: list[list[int]], first: int) -> None:
        for number, at in enumerate(chunks):
            root["x"][tuple(slice(2 * i, 2 * i + 2) for i in at)] = first + number

    with edit(repo) as root:
        create(root, "x", tuple(2 * n for n in grid), (2,) * len(grid))
        write(root, case["written"], 1)
        # not in the session: the official client visits what was erased there, though it
        # documents that it does not
        for at in case["erased"]:
            root["x"][tuple(slice(2 * i, 2 * i + 2) for i in at)] = 0
    session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    write(root, case["changed"], 1000)
    outcome = "done"
    try:
        if "offset" in case:
            session.shift_array("/x", case["offset"])
        else:
            maps = [MAPS[case[k]](grid) if case[k] else None for k in ("forward", "backward")]
            session.reindex_array("/x", *maps)
    except icechunk.IcechunkError as error:
        outcome = f"{type(error).__name__} {error.kind}"
    x: Any = root["x"]
    return {
        "outcome": outcome,
        "values": np.asarray(x[...]).tolist(),
        "chunks": session.status().updated_chunks,
    }


def list_chunks(folder: str) -> dict[str, Any]:
    """Return what a version of the base says of the chunks of each array."""
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(folder))
    session = repo.readonly_session("main")

    async def look(path: str) -> Any:
        coordinates = [list(c) async for c in session.chunk_coordinates(path, batch_size=3)]
        rows = []
        async for batch in session.store.array_chunk_iterator(path, batch_size=5):
            coords, kinds, places, offsets, lengths, inlined = batch
            assert (coords.dtype, kinds.dtype) == (np.uint32, np.uint8)
            assert offsets.dtype == lengths.dtype == np.uint64
            assert len(kinds) <= 5
            for row in range(len(kinds)):
                where = [places[row], int(offsets[row]), int(lengths[row])]
                data = inlined[row].hex() if row in inlined else None
                rows.append([coords[row].tolist(), int(kinds[row]), *where, data])
        types = [str(session.chunk_type(path, at)) for at in ([0], [1, 1], [], [99], [0, 0, 0])]
        return sorted(coordinates), sorted(rows), types

    found = {
        path: asyncio.run(look(path))
        for path in ("/a", "/m", "/scalar", "/split", "/sparse", "/unwritten", "/virtual")
    }
    return {**found, "locations": sorted(session.all_virtual_chunk_locations())}


def share_a_file(base: str) -> None:
    """Make two virtual chunks of the base lie in one file."""
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(base))
    session = repo.writable_session("main")
    set_virtual(session, [1, 3], offset=100)
    session.store.set_virtual_ref("virtual/c/2", "s3://bucket/file-1", offset=0, length=4)
    session.commit("shared")
