"""Turns what the scanners of classic NetCDF and GRIB say into Zarr, and reads it with xarray."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from icechunk_dask.archives.described import Dataset, FileVariable

LOCATION = "file:///archive/file"


def stored(dataset: Dataset, path: Path) -> MemoryStore:
    """Return a Zarr store with the bytes that the references of a file mean."""
    make = default_buffer_prototype().buffer.from_bytes
    data = path.read_bytes()
    found: dict[str, Any] = {}
    group = {"zarr_format": 3, "node_type": "group", "attributes": dict(dataset.groups[""])}
    found["zarr.json"] = make(json.dumps(group).encode())
    for name, variable in dataset.variables.items():
        assert not variable.refused, variable.refused
        if variable.document is None:
            assert variable.table is None and variable.by_value
            continue
        assert not variable.by_value
        found[f"{name}/zarr.json"] = make(json.dumps(variable.document).encode())
        for key, part in chunks(variable, data).items():
            found[f"{name}/{key}"] = make(part)
    return MemoryStore(found)


def chunks(variable: FileVariable, data: bytes) -> dict[str, bytes]:
    """Return the bytes of the chunks of a variable by key."""
    table = variable.table
    assert table is not None and not table.payloads
    assert list(table.locations) == [LOCATION] and not table.location.any()
    found = {}
    for coords, offset, length in zip(
        table.coords.tolist(), table.offset.tolist(), table.length.tolist(), strict=True
    ):
        assert offset >= 0 and offset + length <= len(data)
        key = "/".join(["c", *map(str, coords)])
        assert key not in found
        found[key] = data[offset : offset + length]
    return found


def read_values(variable: FileVariable) -> npt.NDArray[Any]:
    values = variable.read((slice(None),) * len(variable.shape))
    assert values.dtype == variable.dtype and values.shape == variable.shape
    return values


def as_xarray(dataset: Dataset, path: Path, *, decode: bool = False) -> xr.Dataset:
    """Open what a scanner says of a file; what goes by value is read with its `read`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = xr.open_zarr(
            stored(dataset, path), zarr_format=3, consolidated=False, decode_cf=False, chunks=None
        ).load()
        rest = {
            name: (v.dimensions, read_values(v), dict(v.attributes))
            for name, v in dataset.variables.items()
            if v.document is None
        }
        both = opened.assign(rest)
        return xr.decode_cf(both) if decode else both


def zarr_values(dataset: Dataset, path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the values of all variables with references, as zarr decodes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(stored(dataset, path), mode="r")
        named = [name for name, v in dataset.variables.items() if v.document is not None]
        return {name: np.asarray(group[name][...]) for name in named}
