"""Where a file lies along a dimension: the range of its coordinate, small and comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cftime
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

__all__ = ["Extent", "Extents", "ends", "extent_of"]

#: Origin of times in every calendar.
_EPOCH: Final = "microseconds since 1970-01-01"


@dataclass(frozen=True, slots=True)
class Extent:
    """The range of a coordinate.

    Attributes
    ----------
    kind : str
        The kind of its values; only values of one kind can be compared.
    low, high : int, float or str
        Times and durations are in microseconds.
    falling : bool
        Whether the coordinate descends.
    digest : int
        A 32-bit hash of all values: if it differs between equal ends, other values differ.
    """

    kind: str
    low: Any
    high: Any
    falling: bool
    digest: int


@dataclass(frozen=True)
class Extents:
    """Many extents, as columns.

    Attributes
    ----------
    kinds : tuple of str
    kind : int16[n]
        Index into `kinds`; -1 for no extent, and then the other columns mean nothing.
    low, high : int64[n], float64[n] or object[n]
        Objects are strings, or integers beside floats.
    falling : bool[n]
    digest : uint32[n]
    """

    kinds: tuple[str, ...]
    kind: npt.NDArray[np.int16]
    low: npt.NDArray[Any]
    high: npt.NDArray[Any]
    falling: npt.NDArray[np.bool_]
    digest: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, extents: Sequence[Extent | None]) -> Extents:
        """Return extents as columns."""
        kinds = tuple(dict.fromkeys(e.kind for e in extents if e is not None))
        number = {kind: i for i, kind in enumerate(kinds)}
        count = len(extents)
        return cls(
            kinds,
            np.fromiter((-1 if e is None else number[e.kind] for e in extents), np.int16, count),
            ends([0 if e is None else e.low for e in extents]),
            ends([0 if e is None else e.high for e in extents]),
            np.fromiter((e is not None and e.falling for e in extents), np.bool_, count),
            np.fromiter((0 if e is None else e.digest for e in extents), np.uint32, count),
        )

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, index: int) -> Extent | None:
        kind = int(self.kind[index])
        if kind < 0:
            return None
        low, high = (column[index : index + 1].tolist()[0] for column in (self.low, self.high))
        falling, digest = bool(self.falling[index]), int(self.digest[index])
        return Extent(self.kinds[kind], low, high, falling, digest)

    def take(self, rows: npt.NDArray[Any]) -> Extents:
        """Return some of them, by index or by mask."""
        columns = (self.kind, self.low, self.high, self.falling, self.digest)
        return Extents(self.kinds, *(column[rows] for column in columns))

    def followed_by(self, other: Extents) -> Extents:
        """Return these extents followed by others."""
        kinds = tuple(dict.fromkeys((*self.kinds, *other.kinds)))
        # the last kind stands for no extent
        numbers = np.asarray([*map(kinds.index, other.kinds), -1], np.int16)
        return Extents(
            kinds,
            np.concatenate([self.kind, numbers[other.kind]]),
            _joined(self.low, other.low),
            _joined(self.high, other.high),
            np.concatenate([self.falling, other.falling]),
            np.concatenate([self.digest, other.digest]),
        )


def ends(values: Sequence[Any]) -> npt.NDArray[Any]:
    """Return ends of extents as a column that holds them exactly."""
    kinds = set(map(type, values))
    if kinds <= {int} and all(-(1 << 63) <= value < 1 << 63 for value in values):
        return np.asarray(values, np.int64)
    if kinds == {float}:
        return np.asarray(values, np.float64)
    found = np.empty(len(values), object)
    found[:] = values
    return found


def _joined(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not len(a) or not len(b):
        return a if len(a) else b
    if a.dtype == b.dtype:
        return np.concatenate([a, b])
    # a column has one type, or objects
    return ends([*a.tolist(), *b.tolist()])


def extent_of(name: str, variable: xr.Variable) -> Extent | None:
    """Return the extent of a coordinate that is not yet decoded; None if it is empty.

    Raises
    ------
    ValueError
        If all values are missing; otherwise the others determine the extent. If they have no
        order.
    """
    kind, ordinals, known = _ordinals(name, variable)
    if not known.size:
        return None
    if not known.any():
        raise ValueError(f"its coordinate {name!r} has no value that is not missing")
    listed = ordinals.tolist()
    low, high = min(listed), max(listed)
    falling = len(listed) > 1 and listed[-1] < listed[0]
    told = listed if known.all() else [listed, known.tolist()]
    hashed = hashlib.blake2b(repr(told).encode(), digest_size=8)
    return Extent(kind, low, high, falling, int.from_bytes(hashed.digest()[:4]))


def _ordinals(
    name: str, variable: xr.Variable
) -> tuple[str, npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return the kind of the values, those that are not missing, and a mask of these."""
    try:
        values = np.atleast_1d(np.asarray(xr.conventions.decode_cf_variable(name, variable).values))
    except (ValueError, KeyError, OverflowError, TypeError, AttributeError):
        # time units that the conventions leave open, such as months of some calendar
        values = np.atleast_1d(np.asarray(variable.values)).ravel()
        units, calendar = variable.attrs.get("units"), variable.attrs.get("calendar", "standard")
        kind = f"numbers in {units!r} of the calendar {calendar!r}"
        return kind, values, np.ones(len(values), np.bool_)
    # cftime has no missing times: xarray turns them into the origin
    numbers = xr.conventions.decode_cf_variable(name, variable, decode_times=False)
    known = ~np.asarray(pd.isnull(np.ravel(numbers.values)), np.bool_)
    known &= ~np.asarray(pd.isnull(values.ravel()), np.bool_)
    values = values.ravel()[known]
    match values.dtype.kind:
        case "M":
            return _calendar("standard"), _finest(values), known
        case "m":
            return "durations", _finest(values), known
        case "O" if len(values) and hasattr(values[0], "calendar"):
            calendar = values[0].calendar
            moments = np.asarray(cftime.date2num(values, _EPOCH, calendar))
            return _calendar(calendar), moments, known
        case "O" | "T" | "U" | "S":
            texts = [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values]
            return "texts", np.asarray(texts, object), known
        case "f":
            return "numbers", values.astype("f8"), known
        case "b":
            # the table of an archive holds numbers and texts
            return "numbers", values.astype("i8"), known
        case "i" | "u":
            return "numbers", values, known
    raise ValueError(f"its coordinate {name!r} is of type {values.dtype}, which has no order")


def _finest(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return microseconds, with leftover nanoseconds as a fraction."""
    whole = values.astype(f"{values.dtype.kind}8[us]")
    if (whole.astype(values.dtype) == values).all():
        return whole.astype("i8")
    return values.astype(f"{values.dtype.kind}8[ns]").astype("i8") / 1000


def _calendar(name: str) -> str:
    name = "standard" if name in ("gregorian", "standard") else name
    return f"times of the calendar {name!r}"
