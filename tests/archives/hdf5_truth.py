"""Compares what the scanner says of an HDF5 file with what h5py and xarray read from it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import h5py
import numpy as np
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from icechunk.kerchunk.tables import IN_PLACE
from icechunk_dask.archives.described import Dataset, FileVariable
from icechunk_dask.archives.hdf5 import open_hdf5
from icechunk_dask.archives.hdf5_attributes import text_of, zarr_attributes

_buffer = default_buffer_prototype().buffer.from_bytes


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def everything(variable: FileVariable) -> np.ndarray:
    return variable.read((slice(None),) * len(variable.shape))


def store_of(dataset: Dataset) -> MemoryStore:
    """Return a Zarr store with the chunks that a dataset refers to, and the values it lacks."""
    chunks: dict[str, Any] = {}
    for group, attributes in dataset.groups.items():
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        key = f"{group}/zarr.json" if group else "zarr.json"
        chunks[key] = _buffer(json.dumps(document).encode())
    for name, variable in dataset.variables.items():
        if variable.document is not None:
            assert not variable.by_value and not variable.refused
            chunks[f"{name}/zarr.json"] = _buffer(json.dumps(variable.document).encode())
            for key, data in _chunks(variable):
                chunks[f"{name}/{key}"] = _buffer(data)
    store = MemoryStore(chunks)
    for name, variable in dataset.variables.items():
        if variable.by_value:
            values = everything(variable)
            array = zarr.create_array(
                store,
                name=name,
                shape=values.shape,
                dtype=values.dtype,
                dimension_names=variable.dimensions,
                attributes=zarr_attributes(variable.attributes, values.dtype),
            )
            array[...] = values
    return store


def _without(dataset: Dataset) -> Dataset:
    """Return a dataset without the variables that have to leave attributes out."""
    kept = {name: one for name, one in dataset.variables.items() if not one.odd_attributes}
    return Dataset(dataset.groups, kept)


def _chunks(variable: FileVariable) -> Iterator[tuple[str, bytes]]:
    table = variable.table
    assert table is not None
    assert len({tuple(c) for c in table.coords.tolist()}) == len(table.coords)
    payloads = iter(table.payloads)
    for row, coords in enumerate(table.coords.tolist()):
        key = "/".join(["c", *map(str, coords)])
        if table.location[row] == IN_PLACE:
            yield key, next(payloads)
        else:
            start, size = int(table.offset[row]), int(table.length[row])
            location = urlsplit(table.locations[table.location[row]])
            content = Path(unquote(location.path)).read_bytes()
            assert 0 <= start <= start + size <= len(content)
            yield key, content[start : start + size]


def plain(value: Any) -> Any:
    """Return an attribute of xarray in the form that JSON has."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, str):  # with the surrogates of h5netcdf
        value = value.encode(errors="surrogateescape")
    return text_of(value) if isinstance(value, bytes) else value


def assert_equal_values(found: Any, truth: Any, what: str) -> None:
    found, truth = np.asarray(found), np.asarray(truth)
    assert found.shape == truth.shape, what
    if truth.dtype.kind in "OTU" or found.dtype.kind in "OTU":
        assert _texts(found) == _texts(truth), what
        return
    if truth.dtype.names:
        assert found.dtype.names == truth.dtype.names, what
        for name in truth.dtype.names:
            assert_equal_values(found[name], truth[name], f"{what}.{name}")
        return
    assert found.dtype.newbyteorder("=") == truth.dtype.newbyteorder("="), what
    if truth.dtype.kind == "V":
        assert found.tobytes() == truth.tobytes(), what
    else:
        equal_nan = truth.dtype.kind in "fcmM"
        assert np.array_equal(found, truth, equal_nan=equal_nan), (what, found, truth)


def _texts(values: np.ndarray) -> list[Any]:
    return [
        text_of(item) if isinstance(item, bytes) else None if item != item else item
        for item in values.ravel().tolist()
    ]


def check(
    path: Path,
    *,
    xarray: bool = True,
    lost: Collection[str] = (),
    may_open: Callable[[str], bool] | None = None,
) -> dict[str, str]:
    """Compare every variable with the file, and return what became of each.

    Parameters
    ----------
    path : Path
    xarray : bool
        Whether xarray can open the file.
    lost : collection of str
        Attributes of bytes that Zarr cannot have.
    may_open : callable, optional
        As the scanner takes it.

    Returns
    -------
    dict of str to str
        ``"virtual"``, ``"by value: "`` and why, or ``"refused: "`` and why.
    """
    with _quiet(), open_hdf5(path, path.as_uri(), may_open=may_open) as dataset:
        outcome = {
            name: f"refused: {_refused(one)}"
            if _refused(one)
            else f"by value: {one.by_value}"
            if one.by_value
            else "virtual"
            for name, one in dataset.variables.items()
        }
        store = store_of(_without(dataset))
        with h5py.File(path) as file:
            for name, one in dataset.variables.items():
                if not _refused(one):
                    _check_with_h5py(file[_key(file, name)], one, store, name)
        if xarray:
            refused = {name for name, one in dataset.variables.items() if _refused(one)}
            for group in dataset.groups:
                _check_with_xarray(path, store, group, refused, lost)
    return outcome


def _refused(one: FileVariable) -> str:
    """Why a variable is refused, if nothing is left out."""
    odd = [f"its attribute {name!r} {reason}" for name, reason in one.odd_attributes.items()]
    return one.refused or "; ".join(odd)


def _key(file: h5py.File, name: str) -> str:
    group, _, last = name.rpartition("/")
    avoided = f"{group}/_nc4_non_coord_{last}"
    scale = file[name].attrs.get("NAME", b"") if name in file else b"This is a netCDF dimension but"
    return avoided if avoided in file and b"This is a netCDF dimension but" in scale else name


def _check_with_h5py(
    dataset: h5py.Dataset, one: FileVariable, store: MemoryStore, name: str
) -> None:
    if h5py.check_string_dtype(dataset.dtype) and dataset.dtype.kind == "O":
        truth = dataset.asstr()[()]
    else:
        truth = dataset[()]
    inside = tuple(slice(n) for n in dataset.shape)
    for values in (everything(one), zarr.open_array(store, path=name, mode="r")[...]):
        assert np.shape(values) == one.shape
        assert_equal_values(np.asarray(values)[inside], truth, name)
    if one.shape:
        assert_equal_values(
            one.read(tuple(slice(1, None, 2) for _ in one.shape)),
            everything(one)[tuple(slice(1, None, 2) for _ in one.shape)],
            name,
        )


def _check_with_xarray(
    path: Path, store: MemoryStore, group: str, refused: set[str], lost: Collection[str]
) -> None:
    dropped = [name.rpartition("/")[2] for name in refused if name.rpartition("/")[0] == group]
    for decode in (False, True):
        with (
            xr.open_dataset(
                path,
                engine="h5netcdf",
                group=group or None,
                decode_cf=decode,
                phony_dims="access",
                drop_variables=dropped,
            ) as truth,
            xr.open_zarr(store, group=group or None, decode_cf=decode, consolidated=False) as found,
        ):
            what = f"{group}: decoded {decode}"
            assert set(found.variables) == set(truth.variables), what
            if decode:
                assert set(found.coords) == set(truth.coords), what
            else:
                attrs = {k: plain(v) for k, v in truth.attrs.items()}
                assert _same(dict(found.attrs), attrs), what
            for name, variable in truth.variables.items():
                _check_variable(found.variables[name], variable, decode, lost, f"{what}: {name}")


def _check_variable(
    found: xr.Variable, truth: xr.Variable, decode: bool, lost: Collection[str], what: str
) -> None:
    assert found.dims == truth.dims, what
    values = np.asarray(truth.values)
    if decode and values.dtype.kind == "f":
        # attributes in JSON have one precision only
        np.testing.assert_allclose(found.values, values, rtol=1e-6, err_msg=what)
    else:
        assert_equal_values(found.values, values, what)
    if not decode:
        attrs = {k: plain(v) for k, v in truth.attrs.items() if not _is_reference(v)}
        if truth.dtype.kind in "OU" and "_FillValue" in attrs:
            attrs["missing_value"] = attrs.pop("_FillValue")
        if truth.dtype.kind == "S":
            attrs = {k: v for k, v in attrs.items() if k not in lost}
        assert _same({k: plain(v) for k, v in found.attrs.items()}, attrs), what


def _is_reference(value: Any) -> bool:
    item = value.ravel()[0] if isinstance(value, np.ndarray) and value.size else value
    return isinstance(item, h5py.Reference | h5py.RegionReference)


def _same(a: Any, b: Any) -> bool:
    """Whether attributes are equal, NaN to itself too."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b or (a != a and b != b))
