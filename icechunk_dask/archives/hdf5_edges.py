"""Chunks that stick out of an HDF5 dataset: they may be stored unfiltered.

A file can say so for all of them (``H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS``), without a filter
mask, and h5py does not tell. But then they are as long as their values.
"""

from __future__ import annotations

import math
from typing import Any

import h5py
import numcodecs
import numpy as np
import numpy.typing as npt
from h5py import h5d

from icechunk_dask.archives.hdf5_chunks import Rows

__all__ = ["edges_filtered"]


def edges_filtered(
    did: h5d.DatasetID,
    rows: Rows,
    chunks: tuple[int, ...],
    codecs: list[dict[str, Any]],
    dtype: np.dtype[Any],
) -> bool:
    """Whether codecs decode the chunks at the edge, too.

    Parameters
    ----------
    did : h5py.h5d.DatasetID
    rows : Rows
    chunks : tuple of int
    codecs : list of dict
        Of Zarr, after the one that makes bytes of an array.
    dtype : numpy.dtype
        Whose bytes are those of the values.
    """
    shape: tuple[int, ...] = did.shape
    partial = [n % c != 0 for n, c in zip(shape, chunks, strict=True)]
    if not any(partial):
        return True
    last = [n // c for n, c in zip(shape, chunks, strict=True)]
    size = math.prod(chunks) * dtype.itemsize
    suspects = ((rows.coords == last) & partial).any(axis=1) & (rows.length == size)
    dataset = h5py.Dataset(did)
    for coords in rows.coords[suspects].tolist():
        start = [at * c for at, c in zip(coords, chunks, strict=True)]
        inside = tuple(
            slice(0, min(c, n - at)) for at, c, n in zip(start, chunks, shape, strict=True)
        )
        region = tuple(slice(at, at + one.stop) for at, one in zip(start, inside, strict=True))
        raw = did.read_direct_chunk(tuple(start))[1]
        decoded = _inside(_decoded(raw, codecs), dtype, chunks, inside)
        try:
            truth = np.asarray(dataset[region], dtype).tobytes()
        except OSError:  # there is no plugin; other bytes than a codec's own do not decode
            return bool(decoded)
        if decoded != truth:
            return False
        if _inside(raw, dtype, chunks, inside) != truth:
            return True  # it is filtered, and so are all
    return True


def _inside(
    data: bytes, dtype: np.dtype[Any], chunks: tuple[int, ...], inside: tuple[slice, ...]
) -> bytes:
    """Return the bytes of the part of a chunk that lies in the dataset, b"" if it is none."""
    if len(data) != math.prod(chunks) * dtype.itemsize:
        return b""
    values: npt.NDArray[Any] = np.frombuffer(data, dtype).reshape(chunks)
    return values[inside].tobytes()


def _decoded(data: bytes, codecs: list[dict[str, Any]]) -> bytes:
    """Return what codecs make of a chunk, b"" if it is not theirs."""
    for codec in reversed(codecs):
        config = {"id": codec["name"].removeprefix("numcodecs.")}
        if config["id"] == "shuffle":
            config |= codec["configuration"]
        try:
            data = bytes(numcodecs.get_codec(config).decode(data))
        except MemoryError:
            raise
        except Exception:  # codecs of other people, and bytes that are not theirs
            return b""
    return data
