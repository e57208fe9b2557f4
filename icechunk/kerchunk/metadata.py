"""Convert Zarr v2 metadata to v3; `icechunk.kerchunk.metadata_v2` converts it back.

Data types and fill values go through zarr's own machinery, so that readers get what zarr
reads from the v2 document. The layout of the chunk bytes (order, filters, compressor,
byte order) becomes the equivalent chain of v3 codecs.

xarray reads fill values differently in the two formats: in v2 the fill value stands for
missing values; in v3 the attribute ``_FillValue`` does, which holds floats as base64 of
their eight bytes. Conversions keep the meaning.
"""

from __future__ import annotations

import base64
import json
import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numcodecs
import numpy as np
from zarr.abc.codec import ArrayArrayCodec, ArrayBytesCodec, BytesBytesCodec
from zarr.buffer import default_buffer_prototype
from zarr.registry import get_codec_class

from icechunk.base.zarr_internals import ArrayV2Metadata, v3_metadata
from icechunk.errors import ErrorKind
from icechunk.kerchunk import grib
from icechunk.kerchunk.tables import ChunkKeys, check_item_size, refuse

__all__ = [
    "DIMENSIONS",
    "FILL_VALUE",
    "GRID",
    "MAPPING",
    "MEANING",
    "SHUFFLES",
    "ArrayMetadata",
    "Documented",
    "array_from_v2",
    "array_from_v3",
    "group_from_v2",
    "normal_form",
    "quiet",
    "refuse_metadata",
    "same_fill",
    "with_finite_missing_value",
]

#: Attributes of the CF conventions (appendix F) that place coordinates on Earth.
MAPPING: Final = (
    "crs_wkt",
    "earth_radius",
    "false_easting",
    "false_northing",
    "grid_mapping_name",
    "grid_north_pole_latitude",
    "grid_north_pole_longitude",
    "inverse_flattening",
    "latitude_of_projection_origin",
    "longitude_of_central_meridian",
    "longitude_of_prime_meridian",
    "longitude_of_projection_origin",
    "north_pole_grid_longitude",
    "perspective_point_height",
    "scale_factor_at_central_meridian",
    "scale_factor_at_projection_origin",
    "semi_major_axis",
    "semi_minor_axis",
    "spatial_ref",
    "standard_parallel",
    "straight_vertical_longitude_from_pole",
    "sweep_angle_axis",
)
#: Attributes that say what the stored numbers mean.
MEANING: Final = (
    *MAPPING,
    "_Encoding",
    "_FillValue",
    "_Unsigned",
    "add_offset",
    "calendar",
    "dtype",
    "flag_masks",
    "flag_meanings",
    "flag_values",
    "missing_value",
    "scale_factor",
    "units",
)
DIMENSIONS: Final = "_ARRAY_DIMENSIONS"
FILL_VALUE: Final = "_FillValue"
_MISSING: Final = "missing_value"
#: Filters that turn objects into bytes, as v3 data type and codec.
_OBJECT_CODECS: Final = {"vlen-utf8": "string", "vlen-bytes": "variable_length_bytes"}
#: Filters whose output, JSON or MessagePack of texts, is rewritten as ``vlen-utf8``.
_TEXT_CODECS: Final = frozenset({"json2", "msgpack2"})
SHUFFLES: Final = ("noshuffle", "shuffle", "bitshuffle")
GRID: Final = "regular"
_ORDERS: Final = {"<": "little", ">": "big", "=": "little"}


def refuse_metadata(key: str, reason: str) -> NoReturn:
    """Raise an `InvalidInputError` about the metadata of an array."""
    refuse(key, reason, ErrorKind.INVALID_ARRAY_METADATA)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop zarr's warnings about data types and codecs outside the v3 core spec."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def same_fill(a: Any, b: Any) -> bool:
    """Return whether fill values are equal; NaN and NaT equal themselves."""
    if isinstance(a, complex | np.complexfloating):
        return same_fill(a.real, b.real) and same_fill(a.imag, b.imag)
    return bool(a == b) or bool(a != a and b != b)


class Documented:
    """An object with the ``zarr.json`` of an array on a regular grid.

    Attributes
    ----------
    document : dict
    """

    document: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dimension."""
        return tuple(self.document["shape"])

    @property
    def chunks(self) -> tuple[int, ...]:
        """Length of a chunk along each dimension."""
        return tuple(self.document["chunk_grid"]["configuration"]["chunk_shape"])


@dataclass(frozen=True)
class ArrayMetadata(Documented):
    """The metadata of one array.

    Attributes
    ----------
    document : dict
        Its ``zarr.json``.
    keys : ChunkKeys
        How references name its chunks.
    recode : Codec or None
        The numcodecs codec of object arrays whose chunks must be rewritten, because v3 has no
        equivalent. That needs their bytes in the references.
    is_unmasked : bool
        Whether its fill value is zero, and nothing says whether that stands for missing
        values.
    """

    document: dict[str, Any]
    keys: ChunkKeys
    recode: Any = None
    is_unmasked: bool = False

    @property
    def dimensions(self) -> tuple[str | None, ...]:
        """Names of the dimensions."""
        return tuple(self.document.get("dimension_names") or (None,) * len(self.shape))


def group_from_v2(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``zarr.json`` of a group with these ``.zattrs``."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


# -- v2 to v3 --------------------------------------------------------------------------
def array_from_v2(
    path: str,
    zarray: Mapping[str, Any],
    zattrs: Mapping[str, Any],
    *,
    mask_fill_value: bool | None = None,
) -> ArrayMetadata:
    """Convert the metadata of an array.

    Parameters
    ----------
    path : str
        Path of the array within the references.
    zarray, zattrs : mapping
        Its documents ``.zarray`` and ``.zattrs``.
    mask_fill_value : bool, optional
        Whether the fill value also becomes the attribute ``_FillValue``, which is how xarray
        reads it in Zarr v2. Default: yes, unless it is zero, which writers of references and of
        Zarr v2 put where there is none.

    Raises
    ------
    InvalidInputError
        If a document is malformed, or v3 has no equivalent of a codec or data type; the
        message names the key.
    """
    key = f"{path}/.zarray" if path else ".zarray"
    shape, chunks = _sizes(key, zarray, "shape"), _sizes(key, zarray, "chunks")
    if len(shape) != len(chunks):
        refuse_metadata(key, f"shape {shape} and chunks {chunks} differ in rank")
    if any(c == 0 < n for n, c in zip(shape, chunks, strict=True)):
        refuse_metadata(key, f"chunks {chunks} has a zero for a dimension that is not empty")
    chunks = [max(c, 1) for c in chunks]
    order, separator = zarray.get("order", "C"), zarray.get("dimension_separator") or "."
    if order not in ("C", "F"):
        refuse_metadata(key, f"order is {order!r}, expected 'C' or 'F'")
    if separator not in (".", "/"):
        refuse_metadata(key, f"dimension_separator is {separator!r}, expected '.' or '/'")
    filters = list(zarray.get("filters") or [])
    if not all(isinstance(f, Mapping) and isinstance(f.get("id"), str) for f in filters):
        refuse_metadata(key, f"filters is {filters!r}, expected a list of codecs with ids")
    recode = None
    if zarray.get("dtype") == "|O" and filters and filters[0]["id"] in _TEXT_CODECS:
        recode = _numcodec(key, filters[0])
        filters[0] = {"id": "vlen-utf8"}
    check_item_size(key, zarray.get("dtype"))
    dtype, fill = _data_type(key, zarray, filters)
    compressor = zarray.get("compressor")
    if compressor is not None:
        if not isinstance(compressor, Mapping) or not isinstance(compressor.get("id"), str):
            refuse_metadata(key, f"compressor is {compressor!r}, expected a codec with an id")
        filters.append(compressor)
    if recode is not None and len(filters) > 1:
        refuse_metadata(
            key, f"the object codec {zarray['filters'][0]['id']!r} is followed by others"
        )
    native = dtype.to_native_dtype()
    stored = native if native.kind not in "OT" else None
    codecs = _codecs(key, filters, stored, order, len(shape))
    is_unmasked = False
    if mask_fill_value is None:
        is_unmasked = native.kind in "fciu" and fill is not None and not fill
        mask_fill_value = native.kind not in "fciub" or bool(fill)
    with quiet():
        stands_for = dtype.default_scalar() if fill is None else fill
        document: dict[str, Any] = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": dtype.to_json(zarr_format=3),
            "chunk_grid": {"name": GRID, "configuration": {"chunk_shape": chunks}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": dtype.to_json_scalar(stands_for, zarr_format=3),
            "codecs": codecs,
            "attributes": _attributes(key, zattrs, native, fill if mask_fill_value else None),
            "storage_transformers": [],
        }
    names = zattrs.get(DIMENSIONS)
    if names is not None:
        if not isinstance(names, list) or len(names) != len(shape):
            refuse_metadata(
                f"{path}/.zattrs" if path else ".zattrs",
                f"{DIMENSIONS} is {names!r}, expected {len(shape)} names",
            )
        document["dimension_names"] = names
    _check(key, document)
    is_unmasked &= FILL_VALUE not in document["attributes"]
    keys = ChunkKeys(path, _grid(shape, chunks), separator)
    return ArrayMetadata(document, keys, recode, is_unmasked)


def _sizes(key: str, zarray: Mapping[str, Any], name: str) -> list[int]:
    value = zarray.get(name)
    if not isinstance(value, list | tuple) or any(
        isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in value
    ):
        refuse_metadata(key, f"{name} is {value!r}, expected a list of sizes")
    return list(value)


def _grid(shape: list[int], chunks: list[int]) -> tuple[int, ...]:
    return tuple(-(-n // c) for n, c in zip(shape, chunks, strict=True))


def _data_type(
    key: str, zarray: Mapping[str, Any], filters: list[Mapping[str, Any]]
) -> tuple[Any, Any]:
    """Return zarr's data type, and the fill value as a scalar or None."""
    name = zarray.get("dtype")
    if isinstance(name, list):
        refuse_metadata(
            key, f"the structured data type {name!r} has no equivalent that other readers know"
        )
    # other codecs do not matter here, and zarr may not know them
    objects = [f for f in filters[:1] if name == "|O" and f["id"] in _OBJECT_CODECS]
    if name == "|O" and not objects:
        refuse_metadata(
            key,
            "arrays of objects need one of the filters "
            f"{', '.join(sorted({*_OBJECT_CODECS, *_TEXT_CODECS}))}, and as the first",
        )
    document = {
        "zarr_format": 2,
        "shape": [],
        "chunks": [],
        "dtype": name,
        "fill_value": zarray.get("fill_value"),
        "filters": objects or None,
        "compressor": None,
        "order": "C",
    }
    try:
        with quiet():
            metadata = ArrayV2Metadata.from_dict(document)
    except Exception as exc:  # zarr raises many kinds
        refuse_metadata(
            key, f"data type {name!r} with fill value {zarray.get('fill_value')!r}: {exc}"
        )
    return metadata.dtype, metadata.fill_value


def _numcodec(key: str, config: Mapping[str, Any]) -> Any:
    try:
        return numcodecs.get_codec(dict(config))
    except Exception as exc:  # a registry of third-party classes
        refuse_metadata(key, f"the codec {dict(config)!r} is not known to numcodecs: {exc}")


def _codecs(
    key: str,
    filters: list[Mapping[str, Any]],
    dtype: np.dtype[Any] | None,
    order: str,
    ndim: int,
) -> list[dict[str, Any]]:
    """Return the v3 codecs for filters and compressor.

    Parameters
    ----------
    dtype : dtype, optional
        What the first filter receives; None for objects.
    """
    array_dtype = dtype
    before: list[dict[str, Any]] = []
    serializer: dict[str, Any] | None = None
    after: list[dict[str, Any]] = []
    if order == "F" and ndim > 1:
        order_codec = {"order": list(range(ndim - 1, -1, -1))}
        before.append({"name": "transpose", "configuration": order_codec})
    for config in filters:
        name = config["id"]
        if dtype is None and serializer is None:
            serializer = {"name": name}
            continue
        codec, kind = _codec(key, config, dtype)
        if issubclass(kind, BytesBytesCodec):
            after.append(codec)
        elif after or serializer is not None:
            refuse_metadata(
                key, f"the filter {name!r} comes after one that makes bytes of the values"
            )
        elif issubclass(kind, ArrayBytesCodec):
            serializer = codec
        else:
            decoded = config.get("decode_dtype") or config.get("dtype")
            if decoded is not None and np.dtype(decoded) != dtype:
                # v2 would take the bytes of one type for those of the other
                refuse_metadata(key, f"the filter {name!r} decodes to {decoded!r}, not to {dtype}")
            before.append(codec)
            dtype = _encoded_dtype(config, dtype)
    if serializer is None:
        serializer = _bytes_codec(key, dtype, array_dtype)
    return [*before, serializer, *after]


def _codec(
    key: str, config: Mapping[str, Any], dtype: np.dtype[Any] | None
) -> tuple[dict[str, Any], type]:
    """Return the v3 codec for a numcodecs codec, and its class."""
    name = config["id"]
    if name == grib.NUMCODEC:
        return grib.GribCodec.from_numcodec(config).to_dict(), ArrayBytesCodec
    options = _numcodec(key, config).get_config()
    options.pop("id", None)
    match name:
        case "blosc":
            size = dtype.itemsize if dtype is not None else 1
            shuffle = options["shuffle"]
            if shuffle == -1:  # numcodecs chooses while encoding
                shuffle = 2 if size == 1 else 1
            options["shuffle"] = SHUFFLES[shuffle]
            options["typesize"] = size
            return {"name": "blosc", "configuration": options}, BytesBytesCodec
        case "zstd":
            chosen = {"level": options["level"], "checksum": options.get("checksum", False)}
            return {"name": "zstd", "configuration": chosen}, BytesBytesCodec
        case "gzip":
            return {"name": "gzip", "configuration": options}, BytesBytesCodec
    try:
        with quiet():
            kind = get_codec_class(f"numcodecs.{name}")
    except Exception:  # KeyError, or an error of newer versions
        refuse_metadata(key, f"the codec {name!r} has no equivalent in Zarr v3")
    if not issubclass(kind, ArrayArrayCodec | ArrayBytesCodec | BytesBytesCodec):
        refuse_metadata(key, f"the codec {name!r} has no equivalent in Zarr v3")
    return {"name": f"numcodecs.{name}", "configuration": options}, kind


def _encoded_dtype(config: Mapping[str, Any], dtype: np.dtype[Any] | None) -> np.dtype[Any] | None:
    """Return the data type of a filter's output."""
    if config["id"] == "packbits":
        return np.dtype("u1")
    named = config.get("encode_dtype") or config.get("astype") or config.get("dtype")
    return np.dtype(named) if named and config["id"] != "bitround" else dtype


def _bytes_codec(
    key: str, stored: np.dtype[Any] | None, array: np.dtype[Any] | None
) -> dict[str, Any]:
    """Return the codec that turns the output of the filters before it into bytes."""
    orders = [_ORDERS.get(d.str[0]) if d and d.itemsize > 1 else None for d in (stored, array)]
    if orders[0] is not None and orders[1] is None:
        # zarr drops the byte order from the codecs of an array whose own type has none
        refuse_metadata(
            key, f"its filters make {stored} of {array}, which readers of Zarr v3 do not follow"
        )
    # and requires one where the array's type needs one
    order = orders[0] or orders[1]
    return {"name": "bytes", **({"configuration": {"endian": order}} if order else {})}


def _attributes(
    key: str, zattrs: Mapping[str, Any], dtype: np.dtype[Any], fill: Any
) -> dict[str, Any]:
    """Return the attributes of a v3 array, with ``_FillValue`` as xarray expects it."""
    attributes = {k: v for k, v in zattrs.items() if k not in (DIMENSIONS, FILL_VALUE)}
    given = fill if fill is not None else zattrs.get(FILL_VALUE)
    if given is not None:
        attributes[FILL_VALUE] = given
    attributes = with_finite_missing_value(attributes, dtype)
    given = attributes.pop(FILL_VALUE, None)
    if given is not None and dtype.kind in "fciub":
        try:
            attributes[FILL_VALUE] = _encode_fill(given, dtype)
        except (TypeError, ValueError, OverflowError):
            refuse_metadata(
                key.replace(".zarray", ".zattrs"), f"{FILL_VALUE} is {given!r}, expected a {dtype}"
            )
    return attributes


def with_finite_missing_value(
    attributes: Mapping[str, Any], dtype: np.dtype[Any]
) -> dict[str, Any]:
    """Return attributes without a ``missing_value`` that JSON cannot express.

    ``_FillValue`` says the same, in a form that can express it. NaN is missing in any case.
    Where the two differ, both stay.

    Parameters
    ----------
    attributes : mapping
        As in the file.
    dtype : numpy.dtype
        Type of the variable.
    """
    found = dict(attributes)
    missing = found.get(_MISSING)
    if isinstance(missing, list) and len(missing) == 1:
        missing = missing[0]
    if dtype.kind != "f" or not isinstance(missing, float) or math.isfinite(missing):
        return found
    fill = found.setdefault(FILL_VALUE, missing)
    if math.isnan(missing) or (not isinstance(fill, list) and same_fill(float(fill), missing)):
        del found[_MISSING]
    return found


def _encode_fill(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return a fill value in the form that xarray keeps in Zarr v3 attributes."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    match dtype.kind:
        case "f":
            return base64.b64encode(struct.pack("<d", float(value))).decode()
        case "c":
            number = complex(*map(float, value)) if isinstance(value, list) else complex(value)
            return [_encode_fill(part, np.dtype("f8")) for part in (number.real, number.imag)]
        case "b":
            return bool(value)
    return int(value)


def _check(key: str, document: Mapping[str, Any]) -> None:
    """Refuse what zarr would not open."""
    try:
        with quiet():
            v3_metadata(document)
    except Exception as exc:  # zarr raises many kinds
        refuse_metadata(key, f"cannot be expressed in Zarr v3: {exc}")


def array_from_v3(path: str, document: Mapping[str, Any]) -> ArrayMetadata:
    """Adopt the ``zarr.json`` of an array; its chunk keys become those of Icechunk.

    Raises
    ------
    InvalidInputError
        If it is malformed, or has chunks of different sizes.
    """
    key = f"{path}/zarr.json" if path else "zarr.json"
    taken = dict(document)
    encoding = taken.get("chunk_key_encoding")
    name = encoding.get("name") if isinstance(encoding, Mapping) else encoding
    options = encoding.get("configuration") or {} if isinstance(encoding, Mapping) else {}
    if name not in ("default", "v2"):
        refuse_metadata(key, f"chunk_key_encoding {encoding!r} is unknown")
    separator = options.get("separator", "/" if name == "default" else ".")
    taken["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "/"}}
    grid = taken.get("chunk_grid")
    if not isinstance(grid, Mapping) or grid.get("name") != GRID:
        refuse_metadata(key, f"chunk_grid is {grid!r}, expected one that is regular")
    _check(key, taken)
    chunks = list(grid["configuration"]["chunk_shape"])
    default = name == "default"
    prefix, scalar = (f"c{separator}", "c") if default else ("", "0")
    counts = _grid(list(taken["shape"]), chunks)
    return ArrayMetadata(taken, ChunkKeys(path, counts, separator, prefix, scalar))


def normal_form(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``zarr.json`` of an array with everything that zarr would write."""
    with quiet():
        metadata = v3_metadata(document)
        written = metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"]
    found: dict[str, Any] = json.loads(written.to_bytes())
    return found
