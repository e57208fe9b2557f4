"""Attributes of an HDF5 object as JSON values, the way xarray shows them without decoding."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from h5py import h5a, h5r, h5s, h5t

from icechunk.kerchunk.metadata import with_finite_missing_value

__all__ = [
    "FILL",
    "MASKS_BYTES",
    "ObjectAttributes",
    "UnstorableFillError",
    "masking_bytes",
    "text_of",
    "zarr_attributes",
]

#: Attributes that map NetCDF4 onto HDF5; h5netcdf hides them all.
_HIDDEN: Final = frozenset(
    {
        "CLASS",
        "DIMENSION_LIST",
        "NAME",
        "REFERENCE_LIST",
        "_NCProperties",
        "_Netcdf4Coordinates",
        "_Netcdf4Dimid",
        "_nc3_strict",
    }
)
FILL: Final = "_FillValue"
_MISSING: Final = "missing_value"
#: In the name of a scale that is a length without a variable (NetCDF4 format, "dimensions").
_NOT_A_VARIABLE: Final = b"This is a netCDF dimension but not a netCDF variable."


#: Why an attribute that marks missing bytes cannot be stored, see `masking_bytes`.
MASKS_BYTES: Final = "equals some of its texts, which xarray cannot read from Zarr for bytes"


class UnstorableFillError(ValueError):
    """An attribute ``_FillValue`` cannot be represented in a ``zarr.json``."""


class _NoJsonError(Exception):
    """JSON cannot represent a value, such as a reference to an object."""


class ObjectAttributes:
    """The attributes of one object.

    Attributes
    ----------
    shown : dict
        JSON values by name. Attributes that JSON cannot represent (references) are left out.
    odd : dict of str to str
        Why the others are left out: JSON cannot represent them, or HDF5 cannot read them.
    unreadable : str
        Which of the attributes that h5netcdf hides HDF5 cannot read, and why; empty if it
        reads all.
    """

    def __init__(self, oid: Any) -> None:
        self.shown: dict[str, Any] = {}
        self.odd: dict[str, str] = {}
        self.unreadable = ""
        self._hidden: dict[str, h5a.AttrID] = {}
        self._found: dict[str, npt.NDArray[Any] | None] = {}
        names: list[bytes] = []
        h5a.iterate(oid, lambda name, *_: names.append(name))
        for raw in names:
            name = text_of(raw)
            try:
                attribute = h5a.open(oid, raw)
                if name in _HIDDEN:
                    self._hidden[name] = attribute
                else:
                    self.shown[name] = _shown(attribute)
            except _NoJsonError as exc:
                self.odd[name] = f"is {exc}, for which JSON has no form"
            except MemoryError:
                raise
            except Exception as exc:  # whatever HDF5 or h5py raises for a damaged attribute
                self.odd[name] = f"cannot be read: {exc}"

    def hidden(self, name: str) -> npt.NDArray[Any] | None:
        """Return an attribute that h5netcdf hides, or None if it is absent."""
        if name not in self._found:
            self._found[name] = None
            if name in self._hidden:
                try:
                    self._found[name] = _values(self._hidden[name])[1]
                except MemoryError:
                    raise
                except Exception as exc:  # whatever HDF5 or h5py raises for a damaged attribute
                    self.unreadable = f"its attribute {name!r} cannot be read: {exc}"
        return self._found[name]

    def hidden_text(self, name: str) -> bytes:
        """Return the text of a hidden attribute; empty if it is absent or not text."""
        values = self.hidden(name)
        item = values[()] if values is not None and values.ndim == 0 else b""
        return item if isinstance(item, bytes) else b""

    @cached_property
    def is_scale(self) -> bool:
        """Whether h5netcdf takes the dataset for a dimension scale."""
        # h5netcdf accepts only a fixed-length string
        found = self.hidden("CLASS")
        fixed = found is not None and found.dtype.kind == "S"
        return fixed and self.hidden_text("CLASS") == b"DIMENSION_SCALE"

    @cached_property
    def is_variable(self) -> bool:
        """Whether a dataset is more than the length of a dimension."""
        return _NOT_A_VARIABLE not in self.hidden_text("NAME")


def text_of(raw: bytes) -> str:
    """Decode text as UTF-8, or as Latin-1 if it is not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _values(attribute: h5a.AttrID) -> tuple[h5t.TypeID, npt.NDArray[Any] | None]:
    """Return the type and values of an attribute; the values of an empty dataspace are None.

    Strings are returned as bytes.
    """
    tid, space = attribute.get_type(), attribute.get_space()
    if space.get_simple_extent_type() == h5s.NULL:
        return tid, None
    shape = space.get_simple_extent_dims()
    dtype = tid.dtype
    if dtype.subdtype is None:
        values = np.zeros(shape, dtype)
        attribute.read(values)
    else:
        inner, more = dtype.subdtype
        values = np.zeros(shape + more, inner)
        attribute.read(values, mtype=h5t.py_create(dtype))
    return tid, values


def _shown(attribute: h5a.AttrID) -> Any:
    """Return an attribute as h5netcdf and xarray show it, as a JSON value."""
    tid, values = _values(attribute)
    fixed = tid.get_class() == h5t.STRING and not tid.is_variable_str()
    if values is None:
        return "" if fixed and tid.get_size() == 1 else []
    if not values.ndim:
        return _plain(values[()])
    if fixed and tid.get_size() > 1:
        values = values.reshape(-1)
    plain = _plain(values)
    # h5netcdf unwraps an array of one element
    return plain[0] if len(plain) == 1 else plain


def _plain(value: Any) -> Any:
    """Convert a value to one that JSON can represent."""
    match value:
        case np.ndarray() if value.dtype.kind in "biuf":
            return value.tolist() if value.dtype.itemsize <= 8 else value.astype("f8").tolist()
        case np.ndarray():
            return [_plain(item) for item in value]
        case bytes():  # and numpy.bytes_
            return text_of(value)
        case str():
            return str(value)
        case np.bool_():
            return bool(value)
        case np.integer():
            return int(value)
        case np.floating():
            return float(value)
        case np.complexfloating():
            return [float(value.real), float(value.imag)]
        case np.datetime64() | np.timedelta64():
            return str(value)
        case np.void() if value.dtype.names:
            return [_plain(value[name]) for name in value.dtype.names]
        case bool() | int() | float():
            return value
        case h5r.Reference():
            raise _NoJsonError("a reference")
    raise _NoJsonError("of an opaque type")


def zarr_attributes(shown: Mapping[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return attributes for a ``zarr.json``, with ``_FillValue`` as xarray stores it there.

    Bytes lose it (see `masking_bytes`); for strings it becomes ``missing_value``.

    Parameters
    ----------
    shown : mapping
        Undecoded attributes, as xarray shows them.
    dtype : numpy.dtype
        Data type of the variable.

    Raises
    ------
    UnstorableFillError
        If ``_FillValue`` cannot be stored; the message says why.
    """
    attributes = with_finite_missing_value(shown, dtype)
    if FILL not in attributes:
        return attributes
    fill = attributes[FILL]
    if dtype.kind in "ST":
        # xarray cannot open such an array with the attribute;
        # for strings, missing_value has the same effect
        del attributes[FILL]
        if dtype.kind == "T" and attributes.setdefault(_MISSING, fill) != fill:
            raise UnstorableFillError(f"differs from {_MISSING}, which is one in Zarr")
        return attributes
    try:
        attributes[FILL] = _fill(fill, dtype, attributes.get("_Unsigned"))
    except (TypeError, ValueError, OverflowError):
        raise UnstorableFillError(
            f"is {fill!r}, which xarray cannot read from Zarr for {dtype}"
        ) from None
    return attributes


def masking_bytes(shown: Mapping[str, Any], values: npt.NDArray[Any], *, joined: bool) -> list[str]:
    """Return the attributes that make xarray treat some of these bytes as missing.

    Parameters
    ----------
    shown : mapping
        Undecoded attributes, as xarray shows them.
    values : array of bytes
        All values of a variable.
    joined : bool
        Whether xarray joins characters along the last dimension before it compares.
    """
    if values.dtype.kind != "S":
        return []
    if joined and values.dtype.itemsize == 1 and values.ndim and values.shape[-1]:
        values = np.ascontiguousarray(values).view(f"S{values.shape[-1]}")
    # xarray takes longer ones for strings, which equal no bytes
    marks = {
        name: mark
        for name in (FILL, _MISSING)
        if isinstance(mark := shown.get(name), str) and len(mark) <= 1
    }
    return [
        name for name, mark in marks.items() if (values == mark.encode("latin-1", "replace")).any()
    ]


def _as_signed(fill: int, dtype: np.dtype[Any]) -> int:
    """Return a fill value as the signed integer with the same bytes.

    Where ``_Unsigned`` reverses the signedness, files have the fill value in either type, and
    xarray expects a Python number to be signed.
    """
    half = 1 << (8 * dtype.itemsize - 1)
    return (fill + half) % (2 * half) - half


def _fill(fill: Any, dtype: np.dtype[Any], unsigned: Any = None) -> Any:
    if isinstance(fill, list) and dtype.kind != "c":
        raise TypeError
    match dtype.kind:
        case "f":
            return base64.b64encode(struct.pack("<d", float(fill))).decode()
        case "c":
            parts = fill if isinstance(fill, list) else [fill, 0.0]
            real, imaginary = (_fill(part, np.dtype("f8")) for part in parts)
            return [real, imaginary]
        case "b":
            return bool(fill)
        case "i" | "u":
            if isinstance(fill, str) or int(fill) != fill:
                raise ValueError
            is_other = unsigned == {"i": "true", "u": "false"}[dtype.kind]
            return _as_signed(int(fill), dtype) if is_other else int(fill)
    raise TypeError
