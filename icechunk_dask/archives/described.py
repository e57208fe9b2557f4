"""What a scanner says of a file: its variables, and where their chunks are.

Every scanner (HDF5, classic NetCDF, GRIB) answers in these terms. Nothing else is
assumed: a chunk without a row was never written, and reads as the fill value of the
document, which is the one that the file's own library returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from icechunk.kerchunk.tables import ChunkTable

__all__ = ["Dataset", "FileVariable"]


@dataclass(frozen=True)
class FileVariable:
    """One variable of a file.

    Attributes
    ----------
    dimensions : tuple of str
        Names as xarray has them, without the path of a group.
    shape : tuple of int
    dtype : numpy.dtype
        The type of the values that `read` returns.
    attributes : dict
        As xarray has them with ``decode_cf=False``, in forms that JSON has.
    document : dict or None
        The ``zarr.json`` that decodes the chunks of `table` to what the file's own library
        reads; None if no document does, and the values must be copied.
    table : ChunkTable or None
        Where its chunks are; None where `document` is None.
    by_value : str
        Why the values must be copied, such as ``"filter 'szip' has no codec"``; empty if
        they need not.
    refused : str
        Why it cannot be represented at all, not even by value; empty if it can be.
    read : callable
        Returns the values of a selection (a tuple of slices) as they are stored, read by the
        file's own library. Works while the file is open.
    odd_attributes : dict of str to str
        Attributes that cannot be stored, and why: ``"is a reference to an object"``. They
        Either they or the variable must be left out.
    """

    dimensions: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: Mapping[str, Any]
    document: dict[str, Any] | None
    table: ChunkTable | None
    by_value: str
    refused: str
    read: Callable[[tuple[slice, ...]], npt.NDArray[Any]] = field(repr=False, compare=False)
    odd_attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """What a file holds, or the fields of a GRIB file that form one hypercube.

    Attributes
    ----------
    groups : dict of str to dict
        Attributes of each group by path; the root is ``""``.
    variables : dict of str to FileVariable
        By path within the file, such as ``"group/name"``.
    odd_attributes : dict of str to dict
        By path of a group, attributes that cannot be stored, and why.
    keys : dict
        For GRIB, what ecCodes says of the first field that may tell the dataset from others:
        ``{"typeOfLevel": "surface", ...}``.
    dropped : frozenset of str
        Variables that it has, and that were not looked at because nobody wants them.
    """

    groups: Mapping[str, Mapping[str, Any]]
    variables: Mapping[str, FileVariable]
    odd_attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
