"""How numbers of files are stored when their values are copied."""

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
_MISSING: Final = "missing_value"


def kept_encoding(encoding: Mapping[str, Any]) -> dict[str, Any]:
    """Return the encoding of a variable by which its values are stored as a file has them.

    Parameters
    ----------
    encoding : mapping
        What xarray says of a variable that it has read.

    Returns
    -------
    dict
        Without what is of the file. Of several numbers that stand for missing values one is
        left, because only one can be stored.

    Examples
    --------
    >>> kept_encoding({"dtype": "int16", "missing_value": [-1, -2], "source": "a.nc"})
    {'dtype': 'int16', 'missing_value': -1}
    """
    found = {key: encoding[key] for key in _KEPT if key in encoding}
    fill, missing = encoding.get(_FILL), _one_missing(encoding)
    if encoding.get("chunks"):
        found["chunks"] = tuple(encoding["chunks"])
    if missing is not None and (fill is None or pd.isnull(fill) or fill == missing):
        found[_MISSING] = missing
        if fill is not None and not np.array_equal(fill, missing):
            del found[_FILL]
    return found


def _one_missing(encoding: Mapping[str, Any]) -> Any:
    """Return a value that stands for missing ones; None if no value that is stored does."""
    if encoding.get(_MISSING) is None:
        return None
    values = np.atleast_1d(encoding[_MISSING])
    stored = np.dtype(encoding.get("dtype", values.dtype))
    numbers = stored.kind in "biuf"
    if numbers and values.dtype.kind not in "biuf":
        return None
    with np.errstate(invalid="ignore"):
        for value in values:
            # xarray compares it with what is stored, and a type may not have the number
            if not numbers or pd.isnull(value) or value.astype(stored) == value:
                return value.item()
    return None
