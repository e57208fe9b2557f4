"""How copied numbers are stored: as in their files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

__all__ = ["kept_encoding"]

_KEPT: Final = (
    "dtype",
    "scale_factor",
    "add_offset",
    "_FillValue",
    "_Unsigned",
    "units",
    "calendar",
)
_FILL: Final = "_FillValue"
_UNSIGNED: Final = "_Unsigned"
_PACKS: Final = {"scale_factor", "add_offset", _UNSIGNED}
_MISSING: Final = "missing_value"


def kept_encoding(encoding: Mapping[str, Any], dtype: Any = None) -> dict[str, Any]:
    """Return the encoding that stores the values of a variable as its file does.

    Parameters
    ----------
    encoding : mapping
        The encoding of a variable that xarray has read.
    dtype : numpy.dtype, optional
        The type of its values. Integers that are packed as other integers are stored as they are.

    Returns
    -------
    dict
        The encoding without what concerns the file itself. Of several numbers that mark missing
        values, only one is kept, because only one can be stored.

    Examples
    --------
    >>> kept_encoding({"dtype": "int16", "missing_value": [-1, -2], "source": "a.nc"})
    {'dtype': 'int16', 'missing_value': -1}
    """
    found = {key: encoding[key] for key in _KEPT if key in encoding}
    if found.get(_UNSIGNED) == "false" and np.dtype(found.get("dtype", "i1")).kind == "u":
        # xarray decodes it, and encodes the opposite only
        found["dtype"] = np.dtype(f"i{np.dtype(found['dtype']).itemsize}")
        del found[_UNSIGNED]
    fill, missing = encoding.get(_FILL), _one_missing(encoding)
    if "_Encoding" in encoding:
        # texts that the file has as bytes of one length: of the next file they may be longer
        found.pop("dtype", None)
    if encoding.get("chunks"):
        found["chunks"] = tuple(encoding["chunks"])
    if missing is not None and (fill is None or pd.isnull(fill) or fill == missing):
        found[_MISSING] = missing
        if fill is not None and not np.array_equal(fill, missing):
            del found[_FILL]
    if dtype is not None and _is_of_integers(np.dtype(dtype), found):
        # xarray decodes integers by integers, and encodes them by floats or not at all
        for key in ("dtype", _FILL, _MISSING, *_PACKS):
            found.pop(key, None)
        if np.dtype(dtype).kind in "mM":
            # xarray wants units and a type, or neither
            found["dtype"] = np.dtype("i8")
    return found


def _is_of_integers(dtype: np.dtype[Any], found: Mapping[str, Any]) -> bool:
    """Whether values are integers that are packed as others, or times made of such integers."""
    packs = [found[key] for key in _PACKS if key in found]
    if dtype.kind in "mM":
        return any(np.asarray(each).dtype.kind in "iu" for each in packs)
    return dtype.kind in "iu" and bool(packs)


def _one_missing(encoding: Mapping[str, Any]) -> Any:
    """Return a value that marks missing ones; None if no stored value can."""
    if encoding.get(_MISSING) is None:
        return None
    values = np.atleast_1d(encoding[_MISSING])
    stored = np.dtype(encoding.get("dtype", values.dtype))
    numbers = stored.kind in "biuf"
    if numbers and values.dtype.kind not in "biuf":
        return None
    with np.errstate(invalid="ignore"):
        for value in values:
            # xarray compares it with stored values, and the dtype may not have the number
            if not numbers or pd.isnull(value) or value.astype(stored) == value:
                return value.item()
    return None
