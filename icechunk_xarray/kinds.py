"""Whether values are of the same kind as the stored ones: numbers, times, durations, texts.

Zarr stores times as numbers with the attribute ``units``. xarray writes plain numbers among them
unchanged, and a reader gets times that nobody gave it; times among plain numbers become days
since some day.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import xarray as xr

from icechunk_xarray.refusals import refused
from icechunk_xarray.xarray_internals import is_in_memory

__all__ = ["check_kinds", "is_of_time"]

_TIMES, _DURATIONS, _NUMBERS, _TEXTS = "times", "durations", "numbers", "texts"
_ADVICE = {
    _TIMES: "convert them first, as with numpy.datetime64 or xarray.decode_cf",
    _DURATIONS: "convert them first, as with numpy.timedelta64",
    _NUMBERS: "convert them to numbers first",
    _TEXTS: "convert them with .astype(str) first",
}
#: Calendars that agree wherever NumPy's times are of any use.
_STANDARD = ("standard", "proleptic_gregorian")
#: Second names of calendars.
_CALENDARS = {"gregorian": "standard", "365_day": "noleap", "366_day": "all_leap"}


def check_kinds(variables: Mapping[Any, xr.Variable], existing: Mapping[str, xr.Variable]) -> None:
    """Refuse values of another kind than those of the arrays that they are written to.

    Parameters
    ----------
    variables : mapping of str to xarray.Variable
    existing : mapping of str to xarray.Variable
        What is stored, not decoded.

    Raises
    ------
    InvalidInputError
    """
    for key, variable in variables.items():
        name = str(key)
        if name not in existing:
            continue
        stored = existing[name]
        given, kept = _kind(variable), _kind(stored)
        if given is None or kept is None:
            continue
        if given != kept and not _may_stand_for(variable, given, stored, kept):
            units = f" with units={stored.attrs['units']!r}" if is_of_time(stored) else ""
            hint = ""
            if kept in (_TIMES, _DURATIONS) and given == _NUMBERS:
                hint = ", or say that they are of these units with the attribute 'units'"
            raise refused(
                f"variable {name!r} has {given}, and {kept} are on disk{units}: "
                f"{_ADVICE[kept]}{hint}, or pass safe_encoding=False to store them all the same"
            )
        if given == kept == _TIMES:
            _check_calendar(name, variable, stored)


def is_of_time(variable: xr.Variable) -> bool:
    """Whether a variable holds times or durations, decoded or not."""
    return _kind(variable) in (_TIMES, _DURATIONS)


def _kind(variable: xr.Variable) -> str | None:
    """Return the kind of a variable's values, None if finding it means computing them."""
    dtype: Any = variable.dtype
    if dtype.kind == "M":
        return _TIMES
    if dtype.kind == "m":
        return _DURATIONS
    if dtype.kind in "SUT":
        return _TEXTS
    if dtype.kind in "iuf":
        if " since " in str(variable.attrs.get("units", "")):
            return _TIMES
        return _DURATIONS if _says_duration(variable) else _NUMBERS
    if dtype.kind in "bc":
        return _NUMBERS
    if dtype.kind != "O" or not is_in_memory(variable):
        return None
    return _kind_of_object(_first(variable))


def _says_duration(variable: xr.Variable) -> bool:
    return str(variable.attrs.get("dtype", "")).startswith("timedelta64")


def _first(variable: xr.Variable) -> Any:
    return next((value for value in variable.values.flat if not pd.isnull(value)), None)


def _kind_of_object(value: Any) -> str | None:
    if isinstance(value, str | bytes):
        return _TEXTS
    if hasattr(value, "calendar") or isinstance(value, pd.Timestamp) or hasattr(value, "hour"):
        return _TIMES
    if hasattr(value, "total_seconds"):
        return _DURATIONS
    return _NUMBERS if isinstance(value, int | float | complex) else None


def _may_stand_for(variable: xr.Variable, given: str, stored: xr.Variable, kept: str) -> bool:
    """Whether two kinds differ only in their attributes."""
    units, other = (each.attrs.get("units") for each in (variable, stored))
    if (given, kept) == (_DURATIONS, _NUMBERS):
        # older releases of xarray mark durations by their units only
        return _is_unit_of_time(other)
    return (given, kept) == (_NUMBERS, _DURATIONS) and units == other is not None


def _is_unit_of_time(units: Any) -> bool:
    names = ["nanosecond", "microsecond", "millisecond", "second", "minute", "hour", "day", "week"]
    return str(units).rstrip("s") in names


def _calendar_of(variable: xr.Variable, name: str | None = None) -> str:
    """Return the name of a calendar that has several, as cftime has it for moments."""
    found = str(name or variable.attrs.get("calendar", "standard")).lower()
    return _CALENDARS.get(found, found)


def _check_calendar(name: str, variable: xr.Variable, stored: xr.Variable) -> None:
    if stored.dtype.kind == "M":
        return
    kept = _calendar_of(stored)
    if variable.dtype.kind == "M":
        given = kept if kept in _STANDARD else "proleptic_gregorian"
    elif variable.dtype.kind == "O":
        given = _calendar_of(variable, getattr(_first(variable), "calendar", kept))
    else:
        given = _calendar_of(variable)
    how = f", dim={name!r}" if name in variable.dims else ""
    if "360_day" in (given, kept):
        how += ", align_on='date'"
    if given != kept:
        raise refused(
            f"variable {name!r} has times of the calendar {given!r}, and is stored with "
            f"calendar={kept!r}; convert it with .convert_calendar({kept!r}{how}), or pass "
            "safe_encoding=False to accept what becomes of it"
        )
