"""Points in time, in every form in which they are written."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import TypeAlias

import numpy as np

from icechunk.errors import ErrorKind, InvalidInputError

__all__ = ["Time", "has_zone", "instant"]

#: A point in time; pandas has datetimes of its own. One without a zone is in UTC, a date is its
#: first instant.
Time: TypeAlias = str | date | datetime | np.datetime64


def instant(
    value: Time, name: str = "as_of", kind: ErrorKind = ErrorKind.INVALID_REF_TYPE
) -> datetime:
    """Return a point in time with its zone. One without a zone is in UTC.

    Parameters
    ----------
    value : datetime, date, numpy.datetime64 or str
        Strings are dates or times in ISO 8601, such as ``2024-05-01`` or
        ``2024-05-01T12:00+02:00``.
    name : str
        The name of the argument, for messages.
    kind : ErrorKind
        Of the error.

    Raises
    ------
    InvalidInputError
        If it is not a point in time.

    Examples
    --------
    >>> instant("2024-05-01T12:00+02:00").astimezone(UTC).isoformat()
    '2024-05-01T10:00:00+00:00'
    """
    parsed = _parsed(value)
    if not isinstance(parsed, datetime):
        raise InvalidInputError(
            f"{name} is {value!r}: expected a datetime, or a date or time in ISO 8601 such as "
            f"'2024-05-01' or '2024-05-01T12:00:00+00:00'{_from_now(value)}",
            kind,
        )
    return parsed if has_zone(parsed) else parsed.replace(tzinfo=UTC)


def has_zone(value: Time) -> bool:
    """Whether a point in time has a time zone."""
    parsed = _parsed(value)
    return isinstance(parsed, datetime) and parsed.utcoffset() is not None


def _from_now(value: object) -> str:
    if not isinstance(value, timedelta | np.timedelta64):
        return ""
    return "; for a time so long ago, datetime.now(UTC) - timedelta(days=30)"


def _parsed(value: Time) -> object:
    """Return a datetime if the value is a point in time, and something else otherwise."""
    if value != value:
        return None  # NumPy's or pandas' missing time
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, np.datetime64):
        return value.astype("datetime64[us]").item()
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime.combine(value, time())
    return value
