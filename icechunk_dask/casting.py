"""Blocks checked against what Dask declared, and cast to what is stored.

Zarr casts and broadcasts what it gets, as NumPy does: integers wrap, strings are cut, a
block of one element fills a region. Dask declares a shape and a dtype for each block before
exists, and functions that are mapped over blocks do not always keep to that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BlockRefusedError", "fitted", "wrong_shape"]

Bools = npt.NDArray[np.bool_]


class BlockRefusedError(ValueError):
    """A block cannot be stored as it is; the message says why."""


def fitted(
    block: Any, shape: tuple[int, ...], declared: np.dtype[Any], stored: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Return a block as an array of the stored dtype, every value unchanged.

    Parameters
    ----------
    block : array-like
        What a task computed.
    shape : tuple of int
        The shape of the region that it goes to.
    declared : numpy.dtype
        The dtype that Dask declared for the block. Floats of that dtype may be rounded to
        stored floats of less precision; everything else must be stored exactly.
    stored : numpy.dtype
        Of the Zarr array.

    Raises
    ------
    BlockRefusedError
        If the block has another shape or masked values, or a value would change.
    """
    if isinstance(block, np.ma.MaskedArray):
        if np.ma.getmaskarray(block).any():
            raise BlockRefusedError(
                "it has masked values, which an array cannot hold; fill them first, with "
                "dask.array.ma.filled(source, value)"
            )
        block = block.data
    values = np.asarray(block)
    if values.shape != shape:
        raise BlockRefusedError(wrong_shape(values, shape))
    if values.dtype == stored or not values.size:
        return values
    kept = values.dtype == declared
    origin = f"{values.dtype}" if kept else f"{values.dtype}, where Dask declared {declared},"
    if not _same_kind(values.dtype, stored):
        raise BlockRefusedError(
            f"values of {origin} cannot be stored as {stored}; convert the source with .astype()"
        )
    if values.dtype.kind == "O" and stored.kind == "O":
        return values
    try:
        # whatever does not fit is found below
        with np.errstate(all="ignore"):
            real = values.dtype.kind == "c" and stored.kind not in "cO"
            cast = (values.real if real else values).astype(stored)
            changed = _changed(values, cast, rounds=kept)
    except (TypeError, ValueError, OverflowError) as error:
        raise BlockRefusedError(
            f"values of {origin} cannot be stored as {stored}: {error}; convert the source first"
        ) from None
    if changed.any():
        at = np.unravel_index(int(changed.argmax()), shape)
        advice = (
            f"convert the source with .astype({str(stored)!r}) if that is meant, or store it in an "
            "array that holds its values"
        )
        if not kept:
            # for Dask, .astype() of what it declared is nothing to do
            told = f".astype({str(values.dtype)!r})"
            advice = f"{told} tells Dask, and {told}.astype({str(stored)!r}) converts it as well"
        raise BlockRefusedError(
            f"the value {_shown(values[at])} of {origin} would be stored as {_shown(cast[at])}, "
            f"because the array holds {stored}; {advice}"
        )
    return cast


def wrong_shape(block: Any, declared: tuple[int, ...]) -> str:
    """Return what to say of a block that has another shape than Dask declared."""
    return (
        f"the block has the shape {np.shape(block)}, and Dask declared {declared}; let the "
        "function that makes it keep the shape, or pass its real chunks= to map_blocks"
    )


def _same_kind(values: np.dtype[Any], stored: np.dtype[Any]) -> bool:
    """Whether values of one dtype can have the same meaning in another one."""
    if values.names is not None or stored.names is not None:
        return values.names == stored.names and all(
            _same_kind(values[name], stored[name]) for name in values.names or ()
        )
    if values.kind == "O":
        return stored.kind != "V"
    for kinds in ("biufc", "SUTO", "M", "m"):
        if values.kind in kinds:
            return stored.kind in kinds
    # raw bytes, and the dtypes of other packages
    return bool(np.can_cast(values, stored, "equiv"))


def _changed(values: npt.NDArray[Any], cast: npt.NDArray[Any], *, rounds: bool) -> Bools:
    """Say which values are not the same after a cast."""
    if values.dtype.names is not None:
        changed = np.zeros(values.shape, bool)
        for name in values.dtype.names:
            changed |= _changed(values[name], cast[name], rounds=rounds)
        return changed
    if values.dtype.kind == "O":
        return _objects_changed(values, cast)
    given, stored = values.dtype.kind, cast.dtype.kind
    if given in "Mm":
        back = cast.astype(values.dtype)
        return np.asarray((back != values) & ~(np.isnat(back) & np.isnat(values)))
    if given in "SUT" or stored in "SUTO":
        lost = np.asarray(cast.astype(values.dtype) != values, bool)
        # Zarr has no missing strings; NumPy turns them into text that compares equal
        missing = np.isnan(values) if _may_miss(values.dtype) else False
        return np.asarray(lost | missing)
    if given == "c" and stored != "c":
        return np.asarray((values.imag != 0) | _changed(values.real, cast, rounds=rounds))
    if given == "c":
        return _changed(values.real, cast.real, rounds=rounds) | _changed(
            values.imag, cast.imag, rounds=rounds
        )
    if stored == "c":
        return _changed(values, cast.real, rounds=rounds)
    return _numbers_changed(values, cast, rounds=rounds)


def _may_miss(dtype: np.dtype[Any]) -> bool:
    """Whether strings of a dtype may be missing."""
    return dtype.kind == "T" and not isinstance(getattr(dtype, "na_object", ""), str)


def _numbers_changed(values: npt.NDArray[Any], cast: npt.NDArray[Any], *, rounds: bool) -> Bools:
    """Compare real numbers; what casts out of range give depends on the processor."""
    given, stored = values.dtype.kind, cast.dtype.kind
    if given == "b":
        return np.zeros(values.shape, bool)
    if stored == "b":
        return np.asarray((values != 0) & (values != 1))
    if stored == "f":
        if given == "f":
            lost = np.isfinite(values) & ~np.isfinite(cast)
            exact = (cast.astype(values.dtype) == values) | (np.isnan(cast) & np.isnan(values))
            return np.asarray(lost if rounds else ~exact)
        limits = np.iinfo(values.dtype)
        # the largest integers round up to a float that no integer of this dtype equals
        inside = np.isfinite(cast) & (cast < 2.0 ** (limits.bits - (limits.min < 0)))
        return np.asarray(~inside | (np.where(inside, cast, 0).astype(values.dtype) != values))
    wanted = np.iinfo(cast.dtype)
    if given == "f":
        # the limits are infinite as float16
        wide = values.astype(np.float64) if values.itemsize < 8 else values
        inside = (wide >= float(wanted.min)) & (wide < 2.0 ** (wanted.bits - (wanted.min < 0)))
        return np.asarray(~inside | (np.where(inside, cast, 0).astype(values.dtype) != values))
    # NumPy compares integers with Python's exactly
    return np.asarray((values < int(wanted.min)) | (values > int(wanted.max)))


def _objects_changed(values: npt.NDArray[Any], cast: npt.NDArray[Any]) -> Bools:
    """Compare Python objects; text and numbers are never taken for each other."""
    texts = cast.dtype.kind in "SUT"
    changed = np.zeros(values.shape, bool)
    for index, value in np.ndenumerate(values):
        stored = cast[index]
        same = stored == value or (value != value and stored != stored)
        changed[index] = texts != isinstance(value, str | bytes) or not bool(same)
    return changed


def _shown(value: Any) -> str:
    if isinstance(value, np.datetime64 | np.timedelta64 | np.void):
        return str(value)
    return repr(value.item()) if isinstance(value, np.generic) else repr(value)
