"""One dataset of an HDF5 file as a variable: what decodes it, and where its chunks are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from icechunk.errors import InvalidInputError
from icechunk_dask.archives.described import FileVariable
from icechunk_dask.archives.hdf5_attributes import (
    FILL,
    UnstorableFillError,
    zarr_attributes,
)
from icechunk_dask.archives.hdf5_chunks import table_of
from icechunk_dask.archives.hdf5_dimensions import Item, is_virtual
from icechunk_dask.archives.hdf5_filters import without_plugin
from icechunk_dask.archives.hdf5_located import (
    Located,
    Source,
    copied,
    declared_fill,
    located,
    read_fill,
    same_bytes,
)
from icechunk_dask.archives.hdf5_types import StoredType, fill_to_json, stored_type
from icechunk_dask.archives.hdf5_virtual import mapped

__all__ = ["refused_variable", "variable"]

#: Kinds of values for which NetCDF libraries pad a dataset shorter than its dimensions.
_FILLED_UP: Final = "fiuST"


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
        Path of the variable within the file.
    item : Item
    dimensions, shape
        Names and lengths of the dimensions; a dataset may be shorter than they are.
    """
    stored = stored_type(item.did.get_type())
    shown, odd = dict(item.attributes.shown), dict(item.attributes.odd)
    try:
        reason = stored.refused or item.attributes.unreadable
        if not reason and shape != item.shape and stored.dtype.kind not in _FILLED_UP:
            reason = f"it has the shape {item.shape}, and its dimensions {shape}"
        if reason:
            raise ValueError(reason)
        try:
            attributes = zarr_attributes(shown, stored.dtype)
        except UnstorableFillError as exc:
            odd[FILL] = str(exc)
            attributes = {name: value for name, value in shown.items() if name != FILL}
        declared = declared_fill(item.did, stored)
        fill = read_fill(item.did, stored, declared)
        read = _reader(path, item, shape, stored, declared)
        locate = mapped if is_virtual(item.did) else located
        found = locate(source, item.did, stored)
        if shape != item.shape and not found.by_value:
            found = _filled_up(found, item, shape, same_bytes(fill, declared))
    except ValueError as exc:
        return refused_variable(
            path, str(exc), dimensions=dimensions, shape=shape, dtype=stored.dtype
        )
    document = table = None
    if not found.by_value:
        table = table_of(found.rows, found.locations, found.place)
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
        dimensions, shape, stored.dtype, shown, document, table, found.by_value, "", read, odd
    )


def _filled_up(found: Located, item: Item, shape: tuple[int, ...], fills_agree: bool) -> Located:
    """Return where a dataset shorter than its dimensions is, or why its values must be copied.

    Parameters
    ----------
    found : Located
    item : Item
    shape : tuple of int
        Lengths of the dimensions.
    fills_agree : bool
        Whether unwritten elements read as the value that h5netcdf pads with.
    """
    partly = any(
        whole != part and part % max(n, 1)
        for whole, part, n in zip(shape, item.shape, found.chunks, strict=True)
    )
    if not partly and fills_agree:
        return found
    return copied(found, item.did, f"it has the shape {item.shape}, and its dimensions {shape}")


# -- values ----------------------------------------------------------------------------
def _reader(
    path: str, item: Item, shape: tuple[int, ...], stored: StoredType, fill: Any
) -> Callable[[tuple[slice, ...]], npt.NDArray[Any]]:
    """Return a function that reads a selection of a dataset."""
    dataset = h5py.Dataset(item.did)

    def stored_values(selection: tuple[slice, ...]) -> npt.NDArray[Any]:
        try:
            values = np.asarray(dataset[selection])
            if not stored.text:
                return values.astype(stored.dtype, copy=False)
            texts = [text.decode() for text in values.ravel().tolist()]
        except UnicodeDecodeError as exc:
            raise InvalidInputError(f"variable {path!r}: a text in it is not UTF-8: {exc}") from exc
        except OSError as exc:
            reason = without_plugin(item.did.get_create_plist()) or exc
            raise InvalidInputError(f"variable {path!r} cannot be read: {reason}") from exc
        return np.array(texts, stored.dtype).reshape(values.shape)

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
