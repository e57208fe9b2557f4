"""Chunks decoded as Zarr does it, to see whether they can be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from icechunk.base.rectilinear import place_of, rectilinear_chunks, stored_sizes
from icechunk.errors import ErrorKind, IcechunkError
from icechunk.session import Session

__all__ = ["NOT_ALLOWED", "decode_chunks"]

#: Chunks of an array that are decoded if not all are.
_SAMPLE: Final = 8
#: Chunks of up to so many bytes are decoded, and larger ones if they are not that much larger
#: than what is stored of them.
_FREE: Final = 1 << 30
_RATIO: Final = 1 << 20
#: Kinds of errors of virtual chunks that the caller was not allowed to read.
NOT_ALLOWED: Final = frozenset(
    {
        ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK,
        ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
    }
)
_WHICH: Final = re.compile(r"^chunk \([\d, ]*\) of '.*?': ")


def decode_chunks(
    session: Session, path: str, *, sample: bool
) -> Iterator[tuple[tuple[int, ...], str | None]]:
    """Decode chunks of an array, or shards where it has any.

    Parameters
    ----------
    session : Session
        Read-only.
    path : str
    sample : bool
        Whether a few chunks are enough, the first and the last among them.

    Yields
    ------
    tuple of int
        Coordinates of a chunk that was written, and that may be read.
    str or None
        What is wrong with it.
    """
    import zarr  # half of the time that opening a repository would take

    try:
        with rectilinear_chunks():
            array: Any = zarr.open_array(session.store, path=path.strip("/"), mode="r")
        sizes = stored_sizes(array)
        # a grid may be declared of any size: what counts is what was written
        refs = session.chunk_refs(path)
        grid = np.asarray(session.tree.require(path).array.num_chunks, np.int64)  # type: ignore[union-attr]
        coords = refs.coords.astype(np.int64)
        written = np.unique(coords[(coords < grid).all(axis=1)], axis=0)
        largest = [size if isinstance(size, int) else max(size, default=0) for size in sizes]
        decoded = math.prod(largest) * array.dtype.itemsize
        stored = int(refs.length.max(initial=0))
    except Exception as error:  # any document may be wrong in any way
        yield (), f"the array cannot be opened: {_told(error)}"
        return
    if decoded > max(_FREE, _RATIO * stored):
        yield (), f"a chunk has {decoded} bytes, and no more than {stored} of any are stored"
        return
    if sample and len(written) > _SAMPLE:
        written = written[np.linspace(0, len(written) - 1, _SAMPLE).astype(int)]
    for coord in written.tolist():
        region = tuple(
            place_of(i, size, length)
            for i, size, length in zip(coord, sizes, array.shape, strict=True)
        )
        try:
            values = np.asarray(array[region])
        except Exception as error:  # so may any chunk
            if isinstance(error, IcechunkError) and error.kind in NOT_ALLOWED:
                # whether it can be read, only those know who may
                continue
            yield tuple(coord), _told(error)
            continue
        expected = math.prod(part.stop - part.start for part in region)
        yield tuple(coord), None if values.size == expected else "it has another size"


def _told(error: Exception) -> str:
    if isinstance(error, IcechunkError):
        # many chunks can have the same problem
        return _WHICH.sub("", str(error))
    return f"{type(error).__name__}: {error}"
