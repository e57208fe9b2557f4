"""Units of times that xarray reads, and the ones in which it can write the same times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["encodable"]

#: The name that xarray encodes by, for those that it reads by way of cftime.
_NAMES: Final = {
    short: name
    for name, all_of in {
        "microseconds": ("microsec", "microsecs"),
        "milliseconds": ("millisec", "millisecs", "msec", "msecs", "ms"),
        "seconds": ("sec", "secs", "s"),
        "minutes": ("min", "mins"),
        "hours": ("hr", "hrs", "h"),
        "days": ("d",),
    }.items()
    for short in all_of
}
#: Calendars whose months or years are all of one length, with these units. They become days.
_EVEN: Final = {
    "360_day": ("month", "months"),
    "365_day": ("common_year", "common_years"),
    "noleap": ("common_year", "common_years"),
}


def encodable(encoding: Mapping[str, Any], *, stored: bool = False) -> dict[str, Any]:
    """Return an encoding with units of time that xarray can encode.

    Parameters
    ----------
    encoding : mapping
        Of a variable, or the attributes of an array.
    stored : bool
        Whether numbers in these units are stored already: then only words may change.

    Returns
    -------
    dict
        The same with other words for the units, if they are those of times. Months and years
        that have one length in the calendar become days.

    Examples
    --------
    >>> encodable({"units": "sec since 2000-01-01"})
    {'units': 'seconds since 2000-01-01'}
    """
    found = dict(encoding)
    units = found.get("units")
    if isinstance(units, str):
        word, since, origin = units.partition(" since ")
        key = word.strip().lower()
        even = not stored and key in _EVEN.get(str(found.get("calendar", "")).lower(), ())
        name = "days" if even else _NAMES.get(key)
        if since and name is not None:
            found["units"] = f"{name} since {origin}"
    return found
