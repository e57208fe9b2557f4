"""One dataset of an HDF5 file as a variable: what decodes it, and where its chunks are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5p

from icechunk.errors import InvalidInputError
from icechunk_dask.archives.described import FileVariable
from icechunk_dask.archives.hdf5_attributes import masks_bytes, zarr_attributes
from icechunk_dask.archives.hdf5_chunks import Rows, chunked, compact, contiguous, table_of
from icechunk_dask.archives.hdf5_dimensions import Item
from icechunk_dask.archives.hdf5_edges import edges_filtered
from icechunk_dask.archives.hdf5_filters import filters_of, pipeline
from icechunk_dask.archives.hdf5_types import StoredType, fill_to_json, stored_type

__all__ = ["Source", "refused_variable", "variable"]

#: Kinds of values that h5netcdf fills up where a dataset is shorter than its dimensions.
_FILLED_UP: Final = "fiu"


@dataclass(frozen=True)
class Source:
    """The file that a dataset is in.

    Attributes
    ----------
    location : str
        As references have it.
    size : int
        Of the file in bytes.
    user_block : int
        Bytes before the HDF5 part of it.
    """

    location: str
    size: int
    user_block: int


def refused_variable(
    path: str,
    reason: str,
    *,
    dimensions: tuple[str, ...] = (),
    shape: tuple[int, ...] = (),
    dtype: np.dtype[Any] | None = None,
) -> FileVariable:
    """Return a variable that cannot be represented.

    Parameters
    ----------
    path : str
    reason : str
    dimensions, shape, dtype
        As far as they are known.
    """

    def read(_: tuple[slice, ...]) -> npt.NDArray[Any]:
        raise InvalidInputError(f"variable {path!r}: {reason}")

    return FileVariable(
        dimensions, shape, dtype or np.dtype("V1"), {}, None, None, "", reason, read
    )


def variable(
    source: Source, path: str, item: Item, dimensions: tuple[str, ...], shape: tuple[int, ...]
) -> FileVariable:
    """Describe a dataset.

    Parameters
    ----------
    source : Source
    path : str
        Within the file, of the variable.
    item : Item
    dimensions, shape
        Names and lengths of the dimensions; a dataset may be shorter than they are.
    """
    plist = item.did.get_create_plist()
    stored = stored_type(item.did.get_type())
    shown = dict(item.attributes.shown)
    try:
        reason = stored.refused or item.attributes.unreadable
        if not reason and shape != item.shape and stored.dtype.kind not in _FILLED_UP:
            reason = f"it has the shape {item.shape}, and its dimensions {shape}"
        attributes = {} if reason else zarr_attributes(shown, stored.dtype)
        if reason:
            raise ValueError(reason)
        declared = _declared_fill(item, plist, stored)
        fill = _read_fill(plist, stored, declared)
        read = _reader(path, item, shape, stored, declared)
        found = _located(source, item, plist, stored)
        if shape != item.shape and not found.by_value:
            found = _filled_up(found, item, shape, _same(fill, declared))
        if stored.dtype.kind == "S" and "_FillValue" in shown:
            everything = (slice(None),) * len(shape)
            if masks_bytes(shown, read(everything)):
                raise ValueError(
                    "some of its texts equal its attribute _FillValue, which xarray cannot read "
                    "from Zarr for bytes"
                )
    except ValueError as exc:
        return refused_variable(
            path, str(exc), dimensions=dimensions, shape=shape, dtype=stored.dtype
        )
    document = table = None
    if not found.by_value:
        table = table_of(found.rows, source.location)
        endian = {"configuration": {"endian": stored.endian}} if stored.endian else {}
        document = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": stored.data_type,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [max(n, 1) for n in found.chunks]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill_to_json(fill, stored),
            "codecs": [{"name": "bytes", **endian}, *found.codecs],
            "attributes": attributes,
            "storage_transformers": [],
            "dimension_names": list(dimensions),
        }
    return FileVariable(
        dimensions, shape, stored.dtype, shown, document, table, found.by_value, "", read
    )


@dataclass(frozen=True)
class _Located:
    """Where the bytes are, and what decodes them, or why that does not give the values."""

    rows: Rows
    chunks: tuple[int, ...]
    codecs: list[dict[str, Any]]
    by_value: str = ""


def _filled_up(found: _Located, item: Item, shape: tuple[int, ...], fills_agree: bool) -> _Located:
    """Return where a dataset is that is shorter than its dimensions.

    Parameters
    ----------
    found : _Located
    item : Item
    shape : tuple of int
        Lengths of the dimensions.
    fills_agree : bool
        Whether what is unwritten reads as what h5netcdf fills up with.
    """
    partly = any(
        whole != part and part % max(n, 1)
        for whole, part, n in zip(shape, item.shape, found.chunks, strict=True)
    )
    if not partly and fills_agree:
        return found
    return replace(found, by_value=f"it has the shape {item.shape}, and its dimensions {shape}")


def _located(source: Source, item: Item, plist: h5p.PropDCID, stored: StoredType) -> _Located:
    """Return where a dataset is.

    Raises
    ------
    ValueError
        If it cannot be represented; the message says why.
    """
    if plist.get_external_count():
        raise ValueError("its values are in other files (external storage)")
    itemsize = item.did.get_type().get_size()
    chunks = item.shape
    by_value = stored.by_value
    codecs: list[dict[str, Any]] = []
    match plist.get_layout():
        case h5d.COMPACT:
            rows = compact(item.did, item.shape, itemsize)
            wanted: int | None = math.prod(item.shape) * itemsize
        case h5d.CONTIGUOUS:
            rows = contiguous(item.did, item.shape, source.user_block)
            wanted = math.prod(item.shape) * itemsize
        case h5d.CHUNKED:
            chunks = plist.get_chunk()
            rows = chunked(item.did, item.shape, chunks, source.user_block)
            codecs, wanted, reason = _filters(item, plist, rows, chunks, stored)
            by_value = by_value or reason
        case _:
            raise ValueError("its values are in other files (a virtual dataset)")
    ends = rows.offset + rows.length
    if (rows.offset < 0).any() or (ends > source.size).any():
        raise ValueError(f"its values reach beyond the end of the file, at {source.size} bytes")
    if wanted is not None and (rows.length != wanted).any():
        by_value = by_value or f"chunks have another length than the {wanted} bytes of their values"
    return _Located(rows, chunks, codecs, by_value)


def _filters(
    item: Item,
    plist: h5p.PropDCID,
    rows: Rows,
    chunks: tuple[int, ...],
    stored: StoredType,
) -> tuple[list[dict[str, Any]], int | None, str]:
    """Return codecs, the length of every chunk if it is known, and why there are no codecs."""
    filters = filters_of(plist)
    raw = math.prod(chunks) * item.did.get_type().get_size()
    masks = np.unique(rows.mask & np.uint32((1 << len(filters)) - 1)).tolist() or [0]
    made = [pipeline(filters, mask, raw) for mask in masks]
    for one in made:
        if one.refused:
            raise ValueError(one.refused)
    for one in made:
        if one.by_value:
            return [], None, one.by_value
    if len(masks) > 1:
        return [], None, "some of its chunks skip filters, and others do not"
    codecs, length = made[0].codecs, made[0].length
    if (
        codecs
        and stored.data_type
        and not edges_filtered(item.did, rows, chunks, codecs, stored.dtype)
    ):
        return [], None, "its chunks at the edge are not filtered, and others are"
    return codecs, length, ""


# -- values ----------------------------------------------------------------------------
def _declared_fill(item: Item, plist: h5p.PropDCID, stored: StoredType) -> Any:
    """Return the fill value of the creation properties, zero if there is none."""
    if stored.text:
        return ""
    # h5py knows some types by the metadata of its own dtype only
    value = np.zeros((), item.did.dtype)
    if plist.fill_value_defined() != h5d.FILL_VALUE_UNDEFINED:
        plist.get_fill_value(value)
    return value.astype(stored.dtype)[()]


def _read_fill(plist: h5p.PropDCID, stored: StoredType, declared: Any) -> Any:
    """Return what h5py reads where nothing was written."""
    # HDF5 then leaves the memory as it is, and h5py gives it zeros
    if plist.get_fill_time() == h5d.FILL_TIME_NEVER and not stored.text:
        return np.zeros((), stored.dtype)[()]
    return declared


def _same(a: Any, b: Any) -> bool:
    return bool(np.asarray(a).tobytes() == np.asarray(b).tobytes())


def _reader(
    path: str, item: Item, shape: tuple[int, ...], stored: StoredType, fill: Any
) -> Callable[[tuple[slice, ...]], npt.NDArray[Any]]:
    """Return the function that reads a selection of a dataset."""
    dataset = h5py.Dataset(item.did)

    def stored_values(selection: tuple[slice, ...]) -> npt.NDArray[Any]:
        if not stored.text:
            return np.asarray(dataset[selection]).astype(stored.dtype, copy=False)
        raw = np.asarray(dataset[selection], dtype=object)
        try:
            texts = [text.decode() for text in raw.ravel().tolist()]
        except UnicodeDecodeError as exc:
            raise InvalidInputError(f"variable {path!r}: a text in it is not UTF-8: {exc}") from exc
        return np.array(texts, stored.dtype).reshape(raw.shape)

    def read(selection: tuple[slice, ...]) -> npt.NDArray[Any]:
        if shape == item.shape:
            return stored_values(selection)
        ranges = [range(*one.indices(length)) for one, length in zip(selection, shape, strict=True)]
        values = np.full([len(one) for one in ranges], fill, stored.dtype)
        inside = [
            range(one.start, min(one.stop, length), one.step)
            for one, length in zip(ranges, item.shape, strict=True)
        ]
        if all(map(len, inside)):
            there = tuple(slice(one.start, one.stop, one.step) for one in inside)
            values[tuple(slice(len(one)) for one in inside)] = stored_values(there)
        return values

    return read
