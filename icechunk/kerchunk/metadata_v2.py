"""Convert Zarr v3 metadata to v2, for references that kerchunk's readers understand.

Conversions keep the meaning of fill values; see `icechunk.kerchunk.metadata`.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from icechunk.base.zarr_internals import v3_metadata
from icechunk.kerchunk import grib
from icechunk.kerchunk.metadata import (
    DIMENSIONS,
    FILL_VALUE,
    GRID,
    SHUFFLES,
    quiet,
    refuse_metadata,
    same_fill,
)

__all__ = ["array_to_v2"]

#: The last codec of a v2 array is its compressor if it is one of these.
_COMPRESSORS: Final = frozenset({"blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"})
_VALUE_FILTERS: Final = frozenset({"astype", "delta", "fixedscaleoffset", "quantize"})


def array_to_v2(
    path: str, document: Mapping[str, Any], *, complete: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert the metadata of an array to ``.zarray`` and ``.zattrs``.

    Parameters
    ----------
    path : str
    document : mapping
        Its ``zarr.json``.
    complete : bool
        Whether every chunk of the grid exists, so that no reader sees the fill value.

    Raises
    ------
    InvalidInputError
        If v2 has no equivalent of a codec, data type or chunk grid; the message names the
        array.
    """
    key = f"{path}/zarr.json" if path else "zarr.json"
    grid = document["chunk_grid"]
    if grid["name"] != GRID:
        refuse_metadata(key, f"the chunk grid {grid['name']!r} has no equivalent in Zarr v2")
    with quiet():
        metadata = v3_metadata(document)
    dtype: Any = metadata.data_type
    order, filters, compressor, dtype = _v2_codecs(key, document, dtype)
    fill, attributes = _v2_fill(key, document, metadata, complete)
    try:
        with quiet():
            name = dtype.to_json(zarr_format=2)["name"]
            stored = None if fill is None else dtype.to_json_scalar(fill, zarr_format=2)
    except Exception as exc:
        refuse_metadata(
            key, f"the data type {document['data_type']!r} has no equivalent in Zarr v2: {exc}"
        )
    if not isinstance(name, str):
        refuse_metadata(
            key, f"the data type {document['data_type']!r} has no equivalent in Zarr v2"
        )
    zarray = {
        "zarr_format": 2,
        "shape": list(document["shape"]),
        "chunks": list(grid["configuration"]["chunk_shape"]),
        "dtype": name,
        "fill_value": stored,
        "order": order,
        "filters": filters or None,
        "compressor": compressor,
        "dimension_separator": ".",
    }
    names = document.get("dimension_names")
    if names is not None and all(names):
        attributes[DIMENSIONS] = list(names)
    elif not document["shape"]:
        attributes[DIMENSIONS] = []
    return zarray, attributes


def _v2_codecs(
    key: str, document: Mapping[str, Any], dtype: Any
) -> tuple[str, list[dict[str, Any]], dict[str, Any] | None, Any]:
    """Return order, filters, compressor, and the data type with its byte order."""
    order = "C"
    filters: list[dict[str, Any]] = []
    endian = None
    numbers = list(range(len(document["shape"])))
    for position, codec in enumerate(document["codecs"]):
        name = codec if isinstance(codec, str) else codec["name"]
        options = {} if isinstance(codec, str) else dict(codec.get("configuration") or {})
        match name:
            case "transpose" if position == 0 and options.get("order") == numbers[::-1]:
                order = "F" if len(numbers) > 1 else "C"
            case "transpose" if options.get("order") == numbers:
                pass
            case "bytes":
                endian = options.get("endian")
            case "vlen-utf8" | "vlen-bytes":
                filters.append({"id": name})
            case "blosc":
                options["shuffle"] = SHUFFLES.index(options["shuffle"])
                options.pop("typesize", None)
                filters.append({"id": name, **options})
            case "zstd" | "gzip":
                filters.append({"id": name, **options})
            case grib.GribCodec.name:
                filters.append({"id": grib.NUMCODEC, **options})
            case _ if name.startswith("numcodecs."):
                filters.append({"id": name.removeprefix("numcodecs."), **options})
            case _:
                refuse_metadata(key, f"the codec {name!r} has no equivalent in Zarr v2")
    # filters that change values name the resulting data type, with its byte order
    decoded = next((f for f in filters if f["id"] in _VALUE_FILTERS), {})
    named = decoded.get("decode_dtype") or decoded.get("dtype")
    if named:
        endian = "big" if np.dtype(named).str[0] == ">" else "little"
    if endian is not None and hasattr(dtype, "endianness"):
        dtype = replace(dtype, endianness=endian)
    compressor = filters.pop() if filters and filters[-1]["id"] in _COMPRESSORS else None
    return order, filters, compressor, dtype


def _v2_fill(
    key: str, document: Mapping[str, Any], metadata: Any, complete: bool
) -> tuple[Any, dict[str, Any]]:
    """Return a fill value (or None) and attributes with the same meaning in v2.

    There, xarray treats every fill value as a missing value.
    """
    attributes = dict(document.get("attributes") or {})
    native = metadata.data_type.to_native_dtype()
    fill = metadata.fill_value
    unseen = complete or same_fill(fill, metadata.data_type.default_scalar())
    if native.kind not in "fciub":
        return (None if unseen else fill), attributes
    missing = _decode_fill(key, attributes.pop(FILL_VALUE, None), native)
    if missing is not None and same_fill(missing, fill):
        return fill, attributes
    if not unseen:
        if missing is None:
            return fill, attributes
        refuse_metadata(
            key,
            f"chunks are missing, and the fill value {fill!r} is not the {FILL_VALUE} {missing!r}: "
            "Zarr v2 has one for both",
        )
    if missing is not None:
        attributes[FILL_VALUE] = (
            [missing.real, missing.imag] if isinstance(missing, complex) else missing
        )
    return None, attributes


def _decode_fill(key: str, value: Any, dtype: np.dtype[Any]) -> Any:
    """Return the value that xarray stores in the attribute ``_FillValue`` of v3 arrays."""
    if value is None:
        return None
    try:
        match dtype.kind:
            case "f" if isinstance(value, str):
                return struct.unpack("<d", base64.b64decode(value))[0]
            case "c" if isinstance(value, list):
                parts = [_decode_fill(key, part, np.dtype("f8")) for part in value]
                return complex(*parts)
    except (ValueError, struct.error):
        refuse_metadata(key, f"{FILL_VALUE} is {value!r}, which is not a fill value of Zarr v3")
    return value
