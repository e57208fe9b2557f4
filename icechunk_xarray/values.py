"""Whether values survive being stored: decode what would be written, and compare.

xarray encodes values for the array that is to hold them: times become numbers since a
reference, floats become scaled integers, Zarr then casts to the stored dtype. None of these
steps tells when a value does not fit. This module asks the only question that matters: would
a reader get back what was given?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from xarray.coders import CFDatetimeCoder, CFTimedeltaCoder

from icechunk import InvalidInputError
from icechunk.errors import ErrorKind

#: Attributes of CF that say how numbers are to be read.
_PACKING = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")
#: Times that are stored as floats are rounded; those of any real dataset by less than this.
_TIME_TOLERANCE = np.timedelta64(1, "ms")
#: Bytes of values examined at a time: bounds the memory of a check.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Check:
    """Compares values of a variable with what would be read back.

    It is called with blocks, by Dask too, and pickles.

    Parameters
    ----------
    name : str
        The variable, for messages.
    dtype : numpy.dtype
        What is stored.
    attrs : mapping
        CF attributes of the stored array, by which it is decoded.
    raw : bool
        Whether the values are given as they are stored: packing is left alone.
    exact : bool
        Whether the array exists, so that its precision must suffice. A new array has the precision
        that its encoding asks for: rounding to that is no loss, all else is.
    """

    name: str
    dtype: np.dtype[Any]
    attrs: Mapping[str, Any]
    raw: bool
    exact: bool

    @classmethod
    def of(cls, name: str, original: xr.Variable, stored: xr.Variable, *, exact: bool) -> Check:
        """Return the check of a variable that goes to a stored array."""
        return cls(
            name,
            stored.dtype,
            dict(stored.attrs),
            raw=bool(packing_of(original.attrs)),
            exact=exact,
        )

    def needed(self, original: np.dtype[Any], encoded: np.dtype[Any]) -> bool:
        """Whether values can change at all between these dtypes."""
        if original.kind not in "biufcSUV" or not original == encoded == self.dtype:
            return True
        if original.kind == "V":
            return False
        return not self.raw and any(
            key in self.attrs and not is_nan(self.attrs[key]) for key in _PACKING
        )

    def __call__(self, encoded: npt.NDArray[Any], original: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the encoded values if they stand for the original ones.

        Raises
        ------
        InvalidInputError
            If they do not; the message names a value and what would become of it.
        """
        if np.shape(encoded) != np.shape(original):
            raise InvalidInputError(
                f"variable {self.name!r}: a Dask block was declared in one shape and computed in "
                f"another, {np.shape(original)} before and {np.shape(encoded)} after encoding",
                ErrorKind.INVALID_ARRAY_METADATA,
            )
        for index in _blocks(encoded.shape):
            self._compare(encoded[index].reshape(-1), original[index].reshape(-1))
        return encoded

    def _compare(self, encoded: npt.NDArray[Any], original: npt.NDArray[Any]) -> None:
        if not encoded.size:
            return
        with np.errstate(all="ignore"):
            vlen = encoded.dtype.kind in "OT" or self.dtype.kind in "OT"
            stored = encoded if vlen else encoded.astype(self.dtype, copy=False)
            try:
                decoded = self._decode(stored, original)
                wrong = self._differs(original, decoded)
            except (ValueError, TypeError, OverflowError) as error:
                # xarray's advice does not help here
                reason = str(error).partition(" Try opening")[0].rstrip(".")
                raise InvalidInputError(
                    f"variable {self.name!r}: its values cannot be stored {self._as()}: {reason}; "
                    f"{_ADVICE}",
                    ErrorKind.INVALID_ARRAY_METADATA,
                ) from error
        if wrong.any():
            at = int(wrong.argmax())
            raise InvalidInputError(
                f"variable {self.name!r}: the value {_show(original[at])} would be read back as "
                f"{_show(decoded[at])}, because it is stored {self._as()}; {_ADVICE}",
                ErrorKind.INVALID_ARRAY_METADATA,
            )

    def _as(self) -> str:
        keys = ("units", "calendar", *_PACKING) if not self.raw else ()
        parts = [f"{key}={self.attrs[key]!r}" for key in keys if key in self.attrs]
        return f"as {self.dtype}" + (f" with {', '.join(parts)}" if parts else "")

    def _decode(self, stored: npt.NDArray[Any], original: npt.NDArray[Any]) -> npt.NDArray[Any]:
        variable = xr.Variable(("value",), stored, dict(self.attrs))
        return decode_like(self.name, variable, original, mask_and_scale=not self.raw).values

    def _differs(
        self, original: npt.NDArray[Any], decoded: npt.NDArray[Any]
    ) -> npt.NDArray[np.bool_]:
        kinds = {original.dtype.kind, decoded.dtype.kind}
        if original.dtype.kind == "V":
            return ~_same_records(original, decoded)
        if original.dtype.kind == "T":
            # NumPy would turn missing ones into the text 'nan'
            return np.asarray(_missing_texts(original) | (original != decoded), bool)
        if original.dtype.kind in "biufc" and decoded.dtype.kind in "SUT":
            raise TypeError("numbers do not become texts, but for .astype(str)")
        missing = pd.isnull(original)
        if original.dtype.kind in "OSU" and not _is_cftime(original):
            # Zarr has no missing strings: xarray stores empty ones
            wrong = np.zeros(original.shape, bool)
            wrong[~missing] = original[~missing] != decoded[~missing]
            kept = decoded[missing]
            wrong[missing] = (kept != (b"" if kept.dtype.kind == "S" else "")) & ~pd.isnull(kept)
            return wrong
        same: npt.NDArray[np.bool_]
        if original.dtype.kind in "Mm" or original.dtype.kind == "O":
            exact = self.dtype.kind in "iu"
            present = ~missing & ~pd.isnull(decoded)
            gap = decoded[present] - original[present]
            gap = gap.astype("m8[us]") if gap.dtype == object else gap
            # compared in its own unit: in a finer one, centuries wrap around to negative numbers
            tolerance = np.timedelta64(0, "ms") if exact else _TIME_TOLERANCE
            same = np.ones(original.shape, bool)
            same[present] = abs(gap) <= tolerance.astype(gap.dtype)
        elif original.dtype.kind in "iu" and decoded.dtype.kind == "f" and not self._packed:
            # floats that compare equal may stand for another integer
            same = (decoded == original) & (decoded.astype(original.dtype) == original)
        elif kinds <= set("iu") or "b" in kinds:
            # differences of integers wrap around
            same = original == decoded
        else:
            # closeness to infinity is meaningless
            finite = np.isfinite(original) & np.isfinite(decoded)
            near = abs(decoded - original) <= self._tolerance(original)
            same = (original == decoded) | (finite & near)
        return np.asarray((missing != pd.isnull(decoded)) | (~missing & ~same), bool)

    @property
    def _packed(self) -> bool:
        return not self.raw and ("scale_factor" in self.attrs or "add_offset" in self.attrs)

    def _tolerance(self, original: npt.NDArray[Any]) -> Any:
        """Return how far a value may be from the one that is read back."""
        size = abs(original)
        if self._packed:
            scale = abs(float(self.attrs.get("scale_factor", 1)))
            offset = abs(float(self.attrs.get("add_offset", 0)))
            # packed values are often decoded as float32
            slack = 8 * np.finfo("f4").eps * (size + offset)
            return slack + (scale / 2 if self.dtype.kind in "iu" else 0.0)
        if self.exact:
            return 0.0
        if self.dtype.kind in "iu":
            return 0.5
        precision = np.finfo(self.dtype)
        return size * float(precision.eps) + float(precision.smallest_subnormal)


_ADVICE = (
    "convert the values first, give the variable an encoding that holds them where it is "
    "created, or pass safe_encoding=False to accept the loss"
)


def decode_like(
    name: str, stored: xr.Variable, original: npt.NDArray[Any], *, mask_and_scale: bool = True
) -> xr.Variable:
    """Decode a stored variable into the kind of values that others are given in.

    Parameters
    ----------
    name : str
    stored : xarray.Variable
        As it is stored, with its attributes.
    original : numpy.ndarray
        What the result is to be compared with: it decides whether numbers are times, and
        whether these are ``datetime64`` or of cftime.
    mask_and_scale : bool
        Whether to unpack numbers.

    Raises
    ------
    ValueError
        If the stored times are of a calendar that the kind of values does not have.
    """
    kind = original.dtype.kind
    unit: Any = np.datetime_data(original.dtype)[0] if kind in "mM" else None

    def decoded(decode_times: CFDatetimeCoder | bool) -> xr.Variable:
        return xr.conventions.decode_cf_variable(
            name,
            stored,
            mask_and_scale=mask_and_scale,
            decode_times=decode_times,
            stack_char_dim=False,
            decode_timedelta=CFTimedeltaCoder(time_unit=unit) if kind == "m" else False,
        )

    if kind != "M":
        return decoded(CFDatetimeCoder(use_cftime=True) if _is_cftime(original) else False)
    try:
        return decoded(CFDatetimeCoder(use_cftime=False, time_unit=unit))
    except ValueError:
        # times may be since a year that nanoseconds do not reach, and xarray reads them by way
        # of cftime
        found = decoded(CFDatetimeCoder(time_unit=unit))
        if found.dtype.kind != "M":
            raise
        return found


def _same_records(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Compare records of the same fields, each NaN equal to NaN: bool[n] for n of them."""
    if one.dtype.names is not None:
        fields = (_same_records(one[name], other[name]) for name in one.dtype.names)
        return np.asarray(np.logical_and.reduce(list(fields)))
    same = np.asarray(one == other)
    if one.dtype.kind in "fcMm":
        same |= pd.isnull(one) & pd.isnull(other)
    # a field may be an array
    return np.asarray(same.reshape(len(same), -1).all(axis=1))


def _missing_texts(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Say which values of a StringDType are missing."""
    if isinstance(getattr(values.dtype, "na_object", ""), str):
        return np.zeros(values.shape, bool)
    return np.asarray(np.isnan(values), bool)


def _is_cftime(values: npt.NDArray[Any]) -> bool:
    if values.dtype.kind != "O":
        return False
    first = next((value for value in values.flat if not pd.isnull(value)), None)
    return hasattr(first, "calendar")


def packing_of(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that say how numbers are packed."""
    return {key: attrs[key] for key in _PACKING if key in attrs}


def is_nan(value: object) -> bool:
    """Say whether a value is the number NaN."""
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def _show(value: Any) -> str:
    if isinstance(value, np.timedelta64):
        return str(pd.Timedelta(value))
    if isinstance(value, np.datetime64):
        return str(value)
    # all digits of a float32: it may differ from a float64 in the last ones
    return repr(value.item()) if isinstance(value, np.generic) else str(value)


def _blocks(shape: tuple[int, ...]) -> Iterator[Any]:
    """Yield indices that cut an array along its first dimension."""
    if not shape:
        yield ...
        return
    row = int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, _BLOCK // max(row, 1))
    for start in range(0, shape[0], step):
        yield slice(start, start + step)
