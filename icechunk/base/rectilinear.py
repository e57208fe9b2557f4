"""Chunk grids that Zarr calls rectilinear: chunks of several lengths along a dimension.

Zarr has them from 3.2, and takes them for an experiment: ``array.rectilinear_chunks`` of its
configuration allows them, and is off. That is about documents only; an open array needs it no
more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Final

__all__ = [
    "are_known",
    "decoded_sizes",
    "is_rectilinear",
    "places",
    "rectilinear_chunks",
    "stored_sizes",
    "what_it_takes",
]

#: Of Zarr's configuration.
_OPTION: Final = "array.rectilinear_chunks"
_lock = threading.Lock()
_users = 0
_before: Any = None


def are_known() -> bool:
    """Whether the installed Zarr knows rectilinear grids."""
    import zarr

    return zarr.config.get(_OPTION, None) is not None


def what_it_takes() -> str:
    """Say what it takes to have them, where they are not known."""
    import zarr

    return (
        f"Zarr {zarr.__version__} has no chunks of several lengths (a rectilinear chunk grid); "
        "install 3.2 or newer, which needs Python 3.12"
    )


def is_rectilinear(document: dict[str, Any]) -> bool:
    """Whether the ``zarr.json`` of an array has such a grid."""
    grid = document.get("chunk_grid")
    return isinstance(grid, dict) and grid.get("name") == "rectilinear"


def stored_sizes(array: Any) -> Sequence[int | Sequence[int]]:
    """Return what an array of Zarr stores as a whole: by dimension one size, or one of each chunk.

    That is shards, where it has any.
    """
    try:
        regular: tuple[int, ...] = array.chunks if array.shards is None else array.shards
    except NotImplementedError:
        sizes: Sequence[Sequence[int]] = array.write_chunk_sizes
        return sizes
    # the sizes of all chunks take a while to count, and a stranger's array has any number
    return regular


def decoded_sizes(array: Any) -> list[int | list[int]]:
    """Return what an array of Zarr decodes as a whole, as `stored_sizes`; regular if it is."""
    try:
        return list(array.chunks)
    except NotImplementedError:
        each: Any = stored_sizes(array)
        return [sizes[0] if len(set(sizes)) == 1 else list(sizes) for sizes in each]


def places(sizes: int | Sequence[int], length: int) -> Callable[[int], slice]:
    """Return a function that says which part of a dimension a chunk is."""
    if isinstance(sizes, int):
        return lambda i: slice(i * sizes, min((i + 1) * sizes, length))
    bounds = list(accumulate(sizes, initial=0))
    return lambda i: slice(bounds[i], min(bounds[i + 1], length))


@contextmanager
def rectilinear_chunks() -> Iterator[None]:
    """Allow rectilinear grids while arrays are opened or created.

    The configuration is one for all threads: the last to leave restores what the first found.
    """
    global _users, _before
    if not are_known():
        yield
        return
    import zarr

    with _lock:
        if not _users:
            _before = zarr.config.get(_OPTION)
            zarr.config.set({_OPTION: True})
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                zarr.config.set({_OPTION: _before})
