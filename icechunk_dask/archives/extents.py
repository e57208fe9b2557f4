"""Where a file lies along a dimension: the range of its coordinate, comparable and small."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import cftime
import numpy as np
import numpy.typing as npt
import xarray as xr

__all__ = ["Extent", "extent_of"]

#: Point of time from which times are counted, in any calendar.
_EPOCH: Final = "microseconds since 1970-01-01"


@dataclass(frozen=True, slots=True)
class Extent:
    """The range of a coordinate.

    Attributes
    ----------
    kind : str
        Of its values; only those of one kind can be compared.
    low, high : int, float or str
        Of times and durations in microseconds.
    falling : bool
        Whether it goes from high to low.
    digest : str
        Of all values, in hexadecimal.
    """

    kind: str
    low: Any
    high: Any
    falling: bool
    digest: str


def extent_of(name: str, variable: xr.Variable) -> Extent | None:
    """Return the extent of a coordinate that is not decoded yet; None if it is empty.

    Raises
    ------
    ValueError
        If values are missing.
    """
    kind, ordinals = _ordinals(name, variable)
    if not len(ordinals):
        return None
    if ordinals.dtype.kind == "f" and np.isnan(ordinals).any():
        raise ValueError(f"its coordinate {name!r} has missing values")
    listed = ordinals.tolist()
    low, high = min(listed), max(listed)
    falling = len(listed) > 1 and listed[-1] < listed[0]
    hashed = hashlib.blake2b(repr(listed).encode(), digest_size=8)
    return Extent(kind, low, high, falling, hashed.hexdigest())


def _ordinals(name: str, variable: xr.Variable) -> tuple[str, npt.NDArray[Any]]:
    try:
        values = np.atleast_1d(np.asarray(xr.conventions.decode_cf_variable(name, variable).values))
    except (ValueError, KeyError, OverflowError, TypeError, AttributeError):
        # units of times that the conventions do not settle, such as months of some calendar
        values = np.atleast_1d(np.asarray(variable.values))
        units, calendar = variable.attrs.get("units"), variable.attrs.get("calendar", "standard")
        return f"numbers in {units!r} of the calendar {calendar!r}", values.ravel()
    values = values.ravel()
    match values.dtype.kind:
        case "M":
            if np.isnat(values).any():
                raise ValueError(f"its coordinate {name!r} has missing values")
            return _calendar("standard"), _finest(values)
        case "m":
            if np.isnat(values).any():
                raise ValueError(f"its coordinate {name!r} has missing values")
            return "durations", _finest(values)
        case "O" if len(values) and hasattr(values[0], "calendar"):
            calendar = values[0].calendar
            return _calendar(calendar), np.asarray(cftime.date2num(values, _EPOCH, calendar))
        case "O" | "T" | "U" | "S":
            texts = [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values]
            return "texts", np.asarray(texts, object)
        case "f":
            return "numbers", values.astype("f8")
    return "numbers", values


def _finest(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return microseconds; nanoseconds that are none of them stay as a fraction."""
    whole = values.astype(f"{values.dtype.kind}8[us]")
    if (whole.astype(values.dtype) == values).all():
        return whole.astype("i8")
    return values.astype(f"{values.dtype.kind}8[ns]").astype("i8") / 1000


def _calendar(name: str) -> str:
    name = "standard" if name in ("gregorian", "standard") else name
    return f"times of the calendar {name!r}"
