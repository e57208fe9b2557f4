"""Which chunks of an array are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from icechunk.session.distributed import extract_session

__all__ = ["written_chunks"]


def written_chunks(array: zarr.Array[Any]) -> npt.NDArray[np.bool_]:
    """Say which chunks of an array are stored, without reading them.

    Parameters
    ----------
    array : zarr.Array
        In an Icechunk store.

    Returns
    -------
    bool[...]
        In the shape of the grid of chunks, or of shards where the array has any. A chunk
        that holds nothing but the fill value is usually not stored, and false.

    Raises
    ------
    InvalidInputError
        If the array is in another kind of store.

    Examples
    --------
    >>> array = zarr.open_array(session.store, path="temperature")
    >>> int(written_chunks(array).sum())
    4
    """
    return extract_session(array).written_chunks(array.path)
