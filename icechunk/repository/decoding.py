"""Decode chunks as Zarr does, to see whether they can be decoded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from icechunk.base.rectilinear import places, rectilinear_chunks, stored_sizes
from icechunk.errors import ErrorKind, IcechunkError
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.session import Session

__all__ = ["NOT_ALLOWED", "Problem", "Tried", "decode_chunks"]

#: Chunks of an array that are decoded for a sample.
_SAMPLE: Final = 8
#: Chunks of up to this many bytes are decoded; larger ones only if they are not much larger
#: than their stored bytes.
_FREE: Final = 1 << 30
_RATIO: Final = 1 << 20
#: Kinds of errors of virtual chunks that the caller was not allowed to read.
NOT_ALLOWED: Final = frozenset(
    {
        ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK,
        ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
    }
)
#: Errors that say nothing about the bytes: they could not be fetched, or not here.
_NOT_OF_BYTES: Final = (IcechunkError, ImportError, MemoryError, NotImplementedError)
_WHICH: Final = re.compile(r"^chunk \([\d, ]*\) of '.*?': ")


class Problem(NamedTuple):
    """Why a chunk, or an array, cannot be decoded.

    Attributes
    ----------
    told : str
    is_of_bytes : bool
        Whether the bytes were there, and the codecs of the array refused them.
    """

    told: str
    is_of_bytes: bool = False


#: Coordinates of a chunk, and what is wrong with it.
Tried: TypeAlias = tuple[tuple[int, ...], Problem | None]


def decode_chunks(
    session: Session,
    path: str,
    *,
    sample: bool = False,
    refs: ChunkRefs | None = None,
    pick: Callable[[ChunkRefs], ChunkRefs] | None = None,
) -> Iterator[Tried]:
    """Decode chunks of an array, or shards where it has any.

    Parameters
    ----------
    session : Session
        Read-only.
    path : str
    sample : bool
        Whether a few chunks are enough, including the first and the last.
    refs : ChunkRefs, optional
        The references to check. Default: all of the array.
    pick : callable, optional
        Returns which of them to check after all.

    Yields
    ------
    tuple of int
        Coordinates of a chunk that was written and may be read; empty if the problem concerns
        the array.
    Problem or None
    """
    import zarr  # importing it takes half the time of opening a repository

    try:
        with rectilinear_chunks():
            array: Any = zarr.open_array(session.store, path=path.strip("/"), mode="r")
        sizes = stored_sizes(array)
        # a grid may be declared of any size: only written chunks count
        refs = session.chunk_refs(path) if refs is None else refs
        grid = np.asarray(session.tree.require(path).array.num_chunks, np.int64)  # type: ignore[union-attr]
        stored = int(refs.length.max(initial=0))
        refs = pick(refs) if pick is not None else refs
        coords = refs.coords.astype(np.int64)
        written = np.unique(coords[(coords < grid).all(axis=1)], axis=0)
        largest = [size if isinstance(size, int) else max(size, default=0) for size in sizes]
        where = [places(size, n) for size, n in zip(sizes, array.shape, strict=True)]
        decoded = math.prod(largest) * array.dtype.itemsize
    except Exception as error:  # any document may be wrong in any way
        yield (), Problem(f"the array cannot be opened: {_told(error)}")
        return
    if decoded > max(_FREE, _RATIO * stored):
        yield (), Problem(f"a chunk has {decoded} bytes, and no more than {stored} are stored")
        return
    if sample and len(written) > _SAMPLE:
        written = written[np.linspace(0, len(written) - 1, _SAMPLE).astype(int)]
    for coord in written.tolist():
        region = tuple(place(i) for i, place in zip(coord, where, strict=True))
        try:
            values = np.asarray(array[region])
        except Exception as error:  # so may any chunk
            if isinstance(error, IcechunkError) and error.kind in NOT_ALLOWED:
                # only those who may read it know whether it can be read
                continue
            yield tuple(coord), Problem(_told(error), not isinstance(error, _NOT_OF_BYTES))
            continue
        expected = math.prod(part.stop - part.start for part in region)
        same = values.size == expected
        yield tuple(coord), None if same else Problem("it has another size", is_of_bytes=True)


def _told(error: Exception) -> str:
    if isinstance(error, IcechunkError):
        # many chunks can have the same problem
        return _WHICH.sub("", str(error))
    return f"{type(error).__name__}: {error}"
