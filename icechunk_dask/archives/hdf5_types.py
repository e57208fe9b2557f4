"""The type of the values of an HDF5 dataset, and the Zarr data type with the same bytes.

The type that a file declares is compared with the one that h5py makes from a NumPy dtype.
If they differ (12 bits within 16, another exponent bias), h5py converts while it reads, and
the bytes are not those of NumPy. Such values have to be copied.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from h5py import h5t
from zarr.dtype import parse_dtype

__all__ = ["StoredType", "fill_to_json", "stored_type"]

_ENDIAN: Final = {"<": "little", ">": "big"}
#: Kinds whose NumPy dtypes and Zarr data types have the same names.
_PLAIN_KINDS: Final = "biufc"
#: Bit field types by the dtype with the same bytes.
_BITFIELDS: Final = {
    "|u1": (h5t.STD_B8LE, h5t.STD_B8BE),
    "<u2": (h5t.STD_B16LE,),
    ">u2": (h5t.STD_B16BE,),
    "<u4": (h5t.STD_B32LE,),
    ">u4": (h5t.STD_B32BE,),
    "<u8": (h5t.STD_B64LE,),
    ">u8": (h5t.STD_B64BE,),
}


@dataclass(frozen=True)
class StoredType:
    """The type of the values of a dataset.

    Attributes
    ----------
    dtype : numpy.dtype
        Data type of the values as read, without metadata.
    data_type : str or dict
        Zarr data type; None if the values have to be copied or cannot be represented.
    endian : {"little", "big", ""}
        Byte order of the stored values; empty if they have none.
    by_value, refused : str
        Why the bytes are not those of `data_type`, and why there is no such type at all; empty
        if neither applies.
    text : bool
        Whether values are variable-length strings.
    """

    dtype: np.dtype[Any]
    data_type: Any = None
    endian: str = ""
    by_value: str = ""
    refused: str = ""
    text: bool = False


def _refused(reason: str, dtype: Any = "V1") -> StoredType:
    return StoredType(np.dtype(dtype), refused=reason)


def stored_type(tid: h5t.TypeID) -> StoredType:
    """Describe an HDF5 type.

    Parameters
    ----------
    tid : h5py.h5t.TypeID
        As the file declares it.
    """
    kind = tid.get_class()
    match kind:
        case h5t.VLEN:
            return _refused("its elements are sequences of different lengths")
        case h5t.ARRAY:
            return _refused("its elements are arrays")
        case h5t.REFERENCE:
            return _refused("its elements are references to objects of the file")
        case h5t.STRING:
            return _string(tid)
    try:
        dtype = tid.dtype
    except (TypeError, ValueError, KeyError) as exc:
        return _refused(f"its type has no equivalent in NumPy: {exc}")
    # h5py keeps the names of an enumeration in the metadata of the dtype
    plain = np.dtype(dtype.str) if dtype.names is None else dtype
    match kind:
        case h5t.INTEGER | h5t.FLOAT:
            same = tid.equal(h5t.py_create(plain))
        case h5t.BITFIELD:
            same = any(tid.equal(one) for one in _BITFIELDS.get(plain.str, ()))
        case h5t.ENUM:
            bases = ("i1", "u1") if plain.kind == "b" else (plain,)
            parent = tid.get_super()
            same = any(parent.equal(h5t.py_create(np.dtype(base))) for base in bases)
        case h5t.OPAQUE:
            same = True
        case h5t.COMPOUND:
            if plain.kind != "c":
                return _compound(tid, dtype)
            same = _is_complex(tid, plain)
        case _ if plain.kind == "c":  # a class of its own from HDF5 2 on
            part = h5t.py_create(np.dtype(f"{plain.str[0]}f{plain.itemsize // 2}"))
            same = tid.get_super().equal(part)
        case _:
            return _refused("its type has no equivalent in Zarr", plain)
    return _with_zarr_type(plain, "" if same else _why(tid, plain))


def _with_zarr_type(dtype: np.dtype[Any], by_value: str) -> StoredType:
    if dtype.kind in _PLAIN_KINDS and dtype.itemsize <= (16 if dtype.kind == "c" else 8):
        data_type: Any = dtype.name
    else:
        try:
            data_type = _zarr_type(dtype).to_json(zarr_format=3)
        except (TypeError, ValueError):
            return _refused(f"Zarr has no data type for {dtype}", dtype)
    if by_value:
        return StoredType(dtype, by_value=by_value)
    order = ">" if dtype.str[0] == ">" else "<"
    ordered = dtype.itemsize > 1 and dtype.kind in "iufcMm"
    return StoredType(dtype, data_type, _ENDIAN[order] if ordered else "")


def _zarr_type(dtype: np.dtype[Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return parse_dtype(dtype, zarr_format=3)


def _why(tid: h5t.TypeID, dtype: np.dtype[Any]) -> str:
    """Return how the bytes of a type differ from those of NumPy."""
    if isinstance(tid, h5t.TypeIntegerID):
        bits, offset = tid.get_precision(), tid.get_offset()
        return f"its integers have {bits} bits at bit {offset} of {8 * tid.get_size()}"
    if isinstance(tid, h5t.TypeFloatID):
        return f"its floats are not those of NumPy's {dtype}"
    return f"its elements are not stored as NumPy's {dtype}"


def _string(tid: h5t.TypeStringID) -> StoredType:
    if tid.is_variable_str():
        reason = "texts of any length are stored apart from the chunks"
        return StoredType(np.dtype(np.dtypes.StringDType()), by_value=reason, text=True)
    size, padding = tid.get_size(), tid.get_strpad()
    dtype = np.dtype(f"S{size}")
    reason = ""
    if padding == h5t.STR_SPACEPAD:
        reason = "its texts are padded with spaces"
    elif padding == h5t.STR_NULLTERM and size > 1:
        # bytes after the first zero do not count, but NumPy would keep them
        reason = "its texts end at their first zero"
    return _with_zarr_type(dtype, reason)


def _is_complex(tid: h5t.TypeCompoundID, dtype: np.dtype[Any]) -> bool:
    half = dtype.itemsize // 2
    part = h5t.py_create(np.dtype(f"{dtype.str[0]}f{half}"))
    return (
        tid.get_size() == dtype.itemsize
        and tid.get_nmembers() == 2
        and [tid.get_member_offset(n) for n in range(2)] == [0, half]
        and all(tid.get_member_type(n).equal(part) for n in range(2))
    )


def _compound(tid: h5t.TypeCompoundID, dtype: np.dtype[Any]) -> StoredType:
    """Return the type of records; Zarr has their fields little-endian and packed."""
    packed: list[tuple[str, Any]] = []
    same = True
    end = 0
    for number in range(tid.get_nmembers()):
        name = dtype.names[number] if dtype.names else ""
        member = stored_type(tid.get_member_type(number))
        if member.refused or member.text:
            reason = member.refused or member.by_value
            return _refused(f"of its field {name!r}: {reason}", dtype)
        same = same and not member.by_value and member.endian != "big"
        same = same and tid.get_member_offset(number) == end
        end += tid.get_member_type(number).get_size()
        packed.append((name, member.dtype.newbyteorder("<")))
    same = same and end == tid.get_size()
    reason = "" if same else "its records are not little-endian and packed"
    return _with_zarr_type(np.dtype(packed), reason)


def fill_to_json(value: Any, stored: StoredType) -> Any:
    """Encode the value of unwritten elements for a ``zarr.json``.

    Parameters
    ----------
    value : numpy scalar or array of no dimensions
    stored : StoredType
        It must have a `data_type`.
    """
    dtype = stored.dtype
    item = np.asarray(value, dtype)[()]
    match dtype.kind:
        case "b":
            return bool(item)
        case "i" | "u":
            return int(item)
        case "f":
            return _float_to_json(float(item))
        case "c":
            return [_float_to_json(float(item.real)), _float_to_json(float(item.imag))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _zarr_type(dtype).to_json_scalar(item, zarr_format=3)


def _float_to_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
