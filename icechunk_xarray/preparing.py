"""Variables made ready for xarray, so that it encodes them, and they mean what they meant."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from icechunk_xarray.values import is_nan
from icechunk_xarray.xarray_internals import is_in_memory

__all__ = ["in_shape", "prepared", "with_chunks"]


def in_shape(name: Hashable, variable: xr.Variable) -> xr.Variable:
    """Return a variable whose Dask blocks are checked for shape, if they are all loaded below.

    Joined to an array of another shape, or at other places, blocks would pass for its values.
    Blocks that a task writes are checked in the task.
    """
    if not hasattr(variable.data, "dask") or (variable.size and variable.dtype.kind not in "OMm"):
        return variable
    from icechunk_dask.blocks import in_shape as checked

    result = variable.copy(deep=False)
    result.data = checked(variable.data, f"variable {name!r}")
    return result


def prepared(variable: xr.Variable, stored: xr.Variable | None) -> xr.Variable:
    """Return a variable that xarray encodes without failing half-way.

    `stored` is the array that it is written to, None for a new one.
    """
    if not variable.size:
        # an empty block gives no chunk size for a new array
        variable = variable.compute()
    if variable.dtype.kind == "V":
        # Zarr's metadata does not record the byte order of the fields of a record
        variable = variable.to_base_variable().astype(variable.dtype.newbyteorder("<"))
    if variable.dtype.kind == "O" and variable.size and is_in_memory(variable):
        first = next(iter(variable.values.flat))
        if isinstance(first, list | tuple | dict | set | np.ndarray):
            # NumPy's own error is about sizes of arrays
            raise TypeError(f"its values are of the type {type(first).__name__}")
    if stored is None:
        return _with_finite_missing_value(_without_foreign_codecs(variable))
    if variable.dtype.kind in "Mm":
        # Dask would encode them task by task, and fail there without a name
        return variable.compute()
    if stored.dtype.kind in "SUTO" and variable.dtype.kind == "O":
        variable = _without_missing(variable, b"" if stored.dtype.kind == "S" else "")
    if stored.dtype.kind == "T" and variable.dtype.kind == "U":
        # xarray takes such strings as objects only
        return variable.to_base_variable().astype(object)
    if stored.dtype.kind in "SU" and variable.dtype != stored.dtype:
        # strings of another length are refused even if they fit
        return variable.to_base_variable().astype(stored.dtype)
    return variable


def _without_missing(variable: xr.Variable, empty: str | bytes) -> xr.Variable:
    """Return strings with missing ones made empty, as in a new array.

    NumPy would turn them into the text 'nan' or 'None'.
    """
    missing = pd.isnull(variable.values)
    if not missing.any():
        return variable
    result: xr.Variable = variable.to_base_variable().copy(
        deep=False, data=np.where(missing, empty, variable.values)
    )
    return result


def _without_foreign_codecs(variable: xr.Variable) -> xr.Variable:
    """Return a variable without encodings of its source that no new array can have.

    These are codecs of Zarr 2, and shards that do not fit the chunks, as after a selection.
    xarray drops other encodings that do not fit, but not these.
    """
    given = variable.encoding
    foreign = {
        key for key in ("compressors", "filters") if any(map(_is_foreign, _codecs(given.get(key))))
    }
    shards, chunks = given.get("shards"), given.get("chunks")
    if isinstance(shards, tuple) and isinstance(chunks, tuple):
        fits = len(shards) == len(chunks) == variable.ndim
        sizes = [*zip(shards, chunks, strict=False)] if fits else []
        if not fits or any(
            isinstance(size, int) and isinstance(part, int) and size % max(part, 1)
            for size, part in sizes
        ):
            foreign |= {"shards", "chunks"}
    if not foreign:
        return variable
    result = variable.copy(deep=False)
    result.encoding = {key: value for key, value in given.items() if key not in foreign}
    return result


def _codecs(given: Any) -> tuple[Any, ...]:
    if given is None or isinstance(given, str):
        return ()
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def _is_foreign(codec: Any) -> bool:
    """Whether a codec is one of Zarr 2."""
    return hasattr(codec, "codec_id")


def with_chunks(variable: xr.Variable) -> xr.Variable:
    """Return a variable with a chunk size for its new array.

    xarray takes the size from Dask blocks, but only if they have one.
    """
    if variable.chunks is None or variable.encoding.get("chunks"):
        return variable
    result = variable.copy(deep=False)
    result.encoding = {**variable.encoding, "chunks": tuple(map(max, variable.chunks))}
    return result


def _with_finite_missing_value(variable: xr.Variable) -> xr.Variable:
    """Return a variable that marks missing values in one way, which JSON can express.

    ``_FillValue`` means the same as ``missing_value``, and xarray stores any float in it.
    """
    result = variable
    for where in ("encoding", "attrs"):
        given: dict[str, Any] = getattr(variable, where)
        missing = np.asarray(given.get("missing_value"))
        if missing.dtype.kind != "f" or missing.size != 1:
            continue
        if np.isfinite(missing.item()):
            if where == "encoding" and is_nan(given.get("_FillValue", np.nan)):
                # xarray adds NaN as a second mark, and cannot encode values by both
                result = result.copy(deep=False)
                result.encoding = {**given, "_FillValue": missing.item()}
            continue
        fill = given.get("_FillValue", missing.item())
        # NaN is missing whatever else marks missing values
        if not np.isnan(missing.item()) and fill != missing.item():
            continue
        result = result.copy(deep=False)
        changed = {name: value for name, value in given.items() if name != "missing_value"}
        setattr(result, where, {**changed, "_FillValue": fill})
    return result
