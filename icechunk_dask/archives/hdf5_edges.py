"""Partial chunks at the edge of an HDF5 dataset, which may be stored unfiltered.

The flag ``H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS`` covers all of them, without a filter mask, and
h5py does not expose it. But unfiltered chunks are as long as their values.
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
    """Whether the codecs also decode the chunks at the edge.

    Parameters
    ----------
    did : h5py.h5d.DatasetID
    rows : Rows
    chunks : tuple of int
    codecs : list of dict
        Zarr codecs after the array-to-bytes codec.
    dtype : numpy.dtype
        Data type with the same bytes as the values.
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
        except OSError:  # no plugin: codecs reject bytes that are not their own
            return bool(decoded)
        if decoded != truth:
            return False
        if _inside(raw, dtype, chunks, inside) != truth:
            return True  # this one is filtered, so all are
    return True


def _inside(
    data: bytes, dtype: np.dtype[Any], chunks: tuple[int, ...], inside: tuple[slice, ...]
) -> bytes:
    """Return the bytes of a chunk that lie within the dataset, b"" if its length is wrong."""
    if len(data) != math.prod(chunks) * dtype.itemsize:
        return b""
    values: npt.NDArray[Any] = np.frombuffer(data, dtype).reshape(chunks)
    return values[inside].tobytes()


def _decoded(data: bytes, codecs: list[dict[str, Any]]) -> bytes:
    """Decode a chunk with codecs; return b"" if they reject it."""
    for codec in reversed(codecs):
        config = {"id": codec["name"].removeprefix("numcodecs.")}
        if config["id"] == "shuffle":
            config |= codec["configuration"]
        try:
            data = bytes(numcodecs.get_codec(config).decode(data))
        except MemoryError:
            raise
        except Exception:  # whatever third-party codecs raise for bytes that are not their own
            return b""
    return data
