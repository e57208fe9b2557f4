"""Variables that are stored by value: their documents, and writing their values."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.kerchunk.metadata import array_from_v2
from icechunk_dask.archives.described import FileVariable
from icechunk_dask.archives.hdf5_attributes import zarr_attributes

__all__ = ["digest", "native_document", "selection", "stored_texts", "write_together"]

#: Roughly how many bytes a chunk has.
_CHUNK: Final = 1 << 16


def native_document(
    name: str,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    variable: FileVariable,
    dimensions: Sequence[str],
) -> dict[str, Any]:
    """Return the ``zarr.json`` of a variable that is stored by value.

    Parameters
    ----------
    name : str
    shape : sequence of int
        With the dimensions that the variable is to have besides its own.
    dtype : numpy.dtype
        Of the values.
    variable : FileVariable
    dimensions : sequence of str

    Raises
    ------
    ValueError
        If Zarr has no such type, or no form for the attributes.
    """
    if dtype.fields is not None:
        raise ValueError(f"references have no form for its type {dtype}")
    text = dtype.kind in "OTU"
    zarray = {
        "zarr_format": 2,
        "shape": list(shape),
        "chunks": _chunks(shape, max(1, dtype.itemsize)),
        "dtype": "|O" if text else dtype.newbyteorder("<").str,
        "fill_value": None,
        "order": "C",
        "filters": [{"id": "vlen-utf8"}] if text else None,
        "compressor": {"id": "zstd", "level": 3},
    }
    attributes = {**variable.attributes, "_ARRAY_DIMENSIONS": list(dimensions)}
    document = array_from_v2(name, zarray, attributes, mask_fill_value=False).document
    if text:
        shown = {**variable.attributes}
        shown.pop("_ARRAY_DIMENSIONS", None)
        document["attributes"] = zarr_attributes(shown, np.dtype(np.dtypes.StringDType()))
    elif variable.document is not None:
        # attributes in the forms that readers of Zarr understand
        document["attributes"] = variable.document["attributes"]
    return document


def stored_texts(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values with texts in the form in which they are stored.

    Raises
    ------
    ValueError
        If they are objects of other kinds.
    """
    if values.dtype.kind == "O":
        texts = [v.decode() if isinstance(v, bytes) else v for v in values.ravel().tolist()]
        other = {type(text).__name__ for text in texts if not isinstance(text, str)}
        if other:
            raise ValueError(f"its values are objects of {', '.join(sorted(other))}, not texts")
        return np.asarray(texts, dtype=np.dtypes.StringDType()).reshape(values.shape)
    return values.astype(np.dtypes.StringDType()) if values.dtype.kind == "U" else values


def _chunks(shape: Sequence[int], itemsize: int) -> list[int]:
    """Return the shape of the chunks.

    Many small blocks share a chunk. A large block begins and ends with whole chunks, so that it
    can move without being rewritten.
    """
    if not shape:
        return []
    rest = [max(1, n) for n in shape[1:]]
    row = math.prod(rest) * itemsize
    rows = max(1, _CHUNK // row)
    if 1 < rows < shape[0]:
        fitting = [n for n in range(1, rows + 1) if shape[0] % n == 0]
        rows = fitting[-1] if fitting[-1] * 4 >= rows else rows
    return [rows, *rest]


def write_together(array: Any, values: Sequence[tuple[tuple[int, ...], npt.NDArray[Any]]]) -> None:
    """Write small blocks together: many of them share chunks.

    Parameters
    ----------
    array : zarr.Array
    values : sequence of (tuple of int, array)
        Where each block begins, and the block.
    """
    starts = np.asarray([start for start, _ in values], np.int64)
    ends = starts + np.asarray([block.shape for _, block in values], np.int64)
    low = tuple(starts.min(axis=0).tolist())
    box = tuple((ends.max(axis=0) - starts.min(axis=0)).tolist())
    if len(values) == 1:
        whole = values[0][1]
    else:
        # what no file has stays unchanged
        whole = np.array(array[selection(low, box)])
        for start, block in values:
            at = tuple(a - b for a, b in zip(start, low, strict=True))
            whole[selection(at, block.shape)] = block
    array[selection(low, box)] = whole


def selection(start: Sequence[int], shape: Sequence[int]) -> Any:
    """Return what selects a block of an array."""
    return tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True)) or ...


def digest(values: npt.NDArray[Any]) -> bytes:
    """Return what tells values apart, in any byte order."""
    hashed = hashlib.blake2b(repr((values.dtype.kind, values.shape)).encode(), digest_size=16)
    if values.dtype.kind in "OTU":
        hashed.update(json.dumps(values.tolist()).encode())
    else:
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        hashed.update(np.ascontiguousarray(little).tobytes())
    return hashed.digest()
