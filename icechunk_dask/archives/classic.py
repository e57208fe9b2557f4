"""Scan classic NetCDF files: turn what `classic_header` reads into references.

Values in the file are big-endian and uncompressed, so every variable can be referenced. The
library writes fill values where nobody wrote values, so no chunk is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from icechunk.kerchunk.metadata import array_from_v2
from icechunk.kerchunk.tables import ChunkTable
from icechunk_dask.archives.classic_header import ClassicVariable, read_classic_header
from icechunk_dask.archives.described import Dataset, FileVariable
from icechunk_dask.archives.range_files import FileRanges, open_ranges

__all__ = ["open_classic"]

#: More references than this would take more memory than the values.
_MOST_RECORDS: Final = 1 << 24
#: Records closer together than this are read with everything in between.
_NEAR: Final = 1 << 16
#: Roughly how many bytes are read at once where records are near each other.
_AT_ONCE: Final = 1 << 22

_FILL: Final = "_FillValue"
_MISSING: Final = "missing_value"


@contextmanager
def open_classic(file: str | os.PathLike[str] | BinaryIO, location: str) -> Iterator[Dataset]:
    """Scan a classic NetCDF file (CDF-1, CDF-2 or CDF-5) by its header alone.

    A variable with the record dimension has one chunk per record; any other has one chunk.
    Attributes are those that xarray shows, with one exception: a ``_FillValue`` that is not a
    value of the variable's type (several numbers, a fraction for integers, text) moves to the
    values of ``missing_value``, where it means the same and Zarr readers understand it.

    Parameters
    ----------
    file : str, path or binary file
        A binary file needs only ``seek`` and ``read``, and stays open.
    location : str
        Location of the file in references.

    Yields
    ------
    Dataset
        Its variables can be read while the file is open.

    Raises
    ------
    InvalidInputError
        If the file is damaged or truncated; the message names `location`.

    Examples
    --------
    >>> with open_classic("sst.nc", "file:///data/sst.nc") as dataset:
    ...     sst = dataset.variables["sst"]
    ...     len(sst.table.offset), sst.shape
    (12, (12, 180, 360))
    """
    with open_ranges(file) as ranges:
        header = read_classic_header(ranges.file, location)
        yield Dataset(
            {"": _plain_attributes(header.attributes)},
            {v.name: _described(v, location, ranges) for v in header.variables},
        )


def _described(variable: ClassicVariable, location: str, ranges: FileRanges) -> FileVariable:
    attributes = _plain_attributes(_with_fitting_fill(variable))
    document, table, by_value = None, None, ""
    if variable.stride and variable.shape[0] > _MOST_RECORDS:
        by_value = f"its {variable.shape[0]} records would need a reference each"
    else:
        document = _document(variable, attributes)
        table = _table(variable, location)
    return FileVariable(
        variable.dimensions,
        variable.shape,
        variable.dtype,
        attributes,
        document,
        table,
        by_value,
        "",
        partial(_read, ranges, variable),
    )


def _document(variable: ClassicVariable, attributes: dict[str, Any]) -> dict[str, Any]:
    chunks = [1, *variable.shape[1:]] if variable.stride else list(variable.shape)
    zarray = {
        "shape": list(variable.shape),
        "chunks": chunks,
        "dtype": variable.dtype.str,
        "fill_value": None,
    }
    named = {**attributes, "_ARRAY_DIMENSIONS": list(variable.dimensions)}
    return array_from_v2(variable.name, zarray, named, mask_fill_value=False).document


def _table(variable: ClassicVariable, location: str) -> ChunkTable:
    rows = variable.shape[0] if variable.stride else 1
    coords = np.zeros((rows, len(variable.shape)), np.uint32)
    number = np.arange(rows, dtype=np.int64)
    if variable.stride:
        coords[:, 0] = number
    return ChunkTable.of_file(
        location,
        coords,
        variable.begin + number * variable.stride,
        np.full(rows, variable.row, np.int64),
    )


# -- attributes ------------------------------------------------------------------------
def _with_fitting_fill(variable: ClassicVariable) -> dict[str, Any]:
    """Return attributes whose ``_FillValue`` is a value of the variable's type, if any.

    xarray masks ``_FillValue`` and ``missing_value`` alike, whatever their types and numbers.
    """
    attributes = dict(variable.attributes)
    if _FILL not in attributes or _fits(attributes[_FILL], variable.dtype):
        return attributes
    found = _values(attributes.get(_MISSING, []))
    found += [value for value in _values(attributes.pop(_FILL)) if value not in found]
    # NaN needs no masking
    found = [value for value in found if value == value]
    # a string is not a number, and would turn the others into strings
    found = [value for value in found if not isinstance(value, str)] or found
    # xarray chooses the type of unpacked floats by whether this attribute exists
    if found or variable.dtype.kind == "f":
        attributes[_MISSING] = found[0] if len(found) == 1 else found
    return attributes


def _fits(value: Any, dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "S":
        return isinstance(value, str) and len(value.encode()) <= 1
    if isinstance(value, str | np.ndarray):
        return False
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return bool(value == value) and limits.min <= value <= limits.max and int(value) == value


def _values(value: Any) -> list[Any]:
    plain = _plain(value)
    return plain if isinstance(plain, list) else [plain]


def _plain_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in attributes.items()}


def _plain(value: Any) -> Any:
    """Convert a value to one that JSON can represent."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


# -- values ----------------------------------------------------------------------------
def _read(
    ranges: FileRanges, variable: ClassicVariable, selection: tuple[slice, ...]
) -> npt.NDArray[Any]:
    """Return the values of a selection."""
    shape, dtype = variable.shape, variable.dtype
    if not shape:
        data = ranges.read(variable.begin, variable.row)
        return np.frombuffer(data, dtype).reshape(())
    whole = selection + (slice(None),) * (len(shape) - len(selection))
    numbers = range(shape[0])[whole[0]]
    row = variable.row if variable.stride else prod(shape[1:]) * dtype.itemsize
    stride = variable.stride or row
    first = min(numbers, default=0)
    count = max(numbers, default=-1) + 1 - first
    values = _rows(ranges, variable, first, count, row, stride)
    values = values.view(dtype).reshape(count, *shape[1:])
    # a selection may go backwards
    picked = np.asarray(numbers, np.intp) - first
    return values[picked][(slice(None), *whole[1:])]


def _rows(
    ranges: FileRanges, variable: ClassicVariable, first: int, count: int, row: int, stride: int
) -> npt.NDArray[np.uint8]:
    """Return the bytes of successive rows: uint8[count * row]."""
    made = np.empty((count, row), np.uint8)
    together = max(1, _AT_ONCE // stride) if row < stride <= _NEAR else 1
    if row == stride:
        together = max(count, 1)
    for start in range(0, count, together):
        taken = min(together, count - start)
        begin = variable.begin + (first + start) * stride
        # the last row of the file may lack padding
        data = ranges.read(begin, (taken - 1) * stride + row)
        flat = np.frombuffer(data, np.uint8)
        made[start : start + taken] = np.lib.stride_tricks.as_strided(
            flat, (taken, row), (stride, 1)
        )
    return made.reshape(-1)
