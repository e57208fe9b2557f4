"""What one file of an archive holds: where its chunks are, and the values of coordinates.

References come from kerchunk's scanners. What they lose (which fill values a file declares,
the types of attributes) is read from the file by xarray, without decoding.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

import fsspec
import h5py
import numpy as np
import numpy.typing as npt
import xarray as xr
from kerchunk.grib2 import scan_grib
from kerchunk.hdf import SingleHdf5ToZarr
from kerchunk.netCDF3 import NetCDF3ToZarr

from icechunk.kerchunk.locations import normalizer
from icechunk.kerchunk.metadata import MEANING, Documented, array_from_v2
from icechunk.kerchunk.references import open_references
from icechunk.kerchunk.tables import ChunkTable
from icechunk_dask.archives.collection import collection_paused

__all__ = ["Part", "Scan", "Scanner", "Variable", "decoded", "digest", "location_of", "meanings"]

#: Where an HDF5 file may begin (HDF5 file format specification, "Superblock").
_HDF5_STARTS: Final = (0, 512, 1024, 2048, 4096)
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
#: Bytes of a chunk of coordinates, about.
_NATIVE_CHUNK: Final = 1 << 16
#: What a variable without the combined dimensions may have to be stored by value.
_SMALL: Final = 512


@dataclass(frozen=True)
class Variable(Documented):
    """One variable of a file.

    Attributes
    ----------
    dimensions : tuple of str
    document : dict
        Its ``zarr.json``.
    meaning : dict
        Those of its attributes that say what the stored numbers mean; bounds have the
        units of what they bound.
    table : ChunkTable or None
        Where its chunks are; None if it is stored by value.
    values : array or None
        As they are stored, of variables that are stored by value.
    digest : str
        Of the values of a variable without all of the combined dimensions, which several
        files have to agree about; else empty.
    """

    dimensions: tuple[str, ...]
    document: dict[str, Any]
    meaning: dict[str, Any]
    table: ChunkTable | None = None
    values: npt.NDArray[Any] | None = None
    digest: str = ""


@dataclass(frozen=True)
class Part:
    """A block of the combined dataset: a file, or the messages of a GRIB file of one place.

    Attributes
    ----------
    url : str
        As it was given.
    variables : dict of str to Variable
        By path within the file.
    groups : dict of str to dict
        Attributes, by path; the root is ``""``.
    coordinates : dict of str to array or None
        Decoded, of the dimensions along which files are combined; None where there is no
        such variable.
    message : int or None
        Of a GRIB file, to find it again.
    """

    url: str
    variables: dict[str, Variable]
    groups: dict[str, dict[str, Any]]
    coordinates: dict[str, npt.NDArray[Any] | None]
    message: int | None = None

    def length(self, dimension: str) -> int:
        """Return the length of a dimension, 0 if no variable has it."""
        for variable in self.variables.values():
            if dimension in variable.dimensions:
                return variable.shape[variable.dimensions.index(dimension)]
        return 0


@dataclass(frozen=True)
class Scan:
    """What became of one URL.

    Attributes
    ----------
    url, location : str
        As it was given, and as references have it.
    parts : list of Part
    last_modified : int
        Seconds since the epoch, 0 if unknown.
    failure : str
        Why there is nothing else; empty if there is.
    """

    url: str
    location: str = ""
    parts: list[Part] = field(default_factory=list)
    last_modified: int = 0
    failure: str = ""


@dataclass(frozen=True)
class Scanner:
    """Scans files. Travels to workers.

    Attributes
    ----------
    concat_dims, expand_dims : tuple of str
        All dimensions along which files are combined, and those that scalars become.
    coordinates : tuple of str or None
        Names of variables to store by value; None for those that xarray takes for
        coordinates, their bounds, and small ones.
    remote_options : dict
        For fsspec.
    compare : bool
        Whether to take digests of variables that several files have to agree about.
    """

    concat_dims: tuple[str, ...]
    expand_dims: tuple[str, ...]
    coordinates: tuple[str, ...] | None
    remote_options: dict[str, Any]
    compare: bool

    def __call__(self, url: str) -> Scan:
        """Scan one file. What goes wrong is part of the result."""
        try:
            with warnings.catch_warnings():
                # of kerchunk and zarr, about data types and attributes
                warnings.simplefilter("ignore")
                return self._scan(url)
        except Exception as exc:  # any file may be damaged in any way
            reason = str(exc) or "no reason is given"
            return Scan(url, failure=f"{type(exc).__name__}: {reason}")

    def __repr__(self) -> str:
        return f"Scanner({self.concat_dims})"

    def _scan(self, url: str) -> Scan:
        fs, path, options = self._filesystem(url)
        parts = [
            self._part(url, refs, group, number)
            for number, (refs, group) in enumerate(self._contents(url, fs, path, options))
        ]
        if not any(part.variables for part in parts):
            raise ValueError("there are no variables in it")
        return Scan(url, location_of(url), _joined(parts), _modified(fs.info(path)))

    def _filesystem(self, url: str) -> tuple[Any, str, dict[str, Any]]:
        remote = "://" in url and not url.startswith(("file://", "local://"))
        options = self.remote_options if remote else {}
        fs, path = fsspec.core.url_to_fs(url, **options)
        return fs, path, options

    def _contents(
        self, url: str, fs: Any, path: str, options: Mapping[str, Any]
    ) -> Iterator[tuple[dict[str, Any], dict[str, xr.Dataset]]]:
        """Yield references and datasets by group, of a file or of each message of one."""
        kind = _kind(fs, path)
        full = url if "://" in url else path
        if kind == "grib":
            for found in scan_grib(full, storage_options=dict(options), inline_threshold=0):
                yield found, {"": _through_references(found, full, options)}
            return
        with fs.open(path, "rb") as file:
            if kind == "classic":
                scanner = NetCDF3ToZarr(full, storage_options=dict(options), inline_threshold=0)
                with xr.open_dataset(file, engine="scipy", decode_cf=False) as dataset:
                    yield scanner.translate(), {"": dataset}
                return
            with collection_paused():
                refs = SingleHdf5ToZarr(
                    file,
                    url=full,
                    inline_threshold=0,
                    storage_options=dict(options),
                    error="ignore",
                ).translate()
        with fs.open(path, "rb") as file, _groups(file) as groups:
            yield refs, groups

    def read(self, part: Part, name: str) -> npt.NDArray[Any]:
        """Return the values of a variable as they are stored."""
        fs, path, options = self._filesystem(part.url)
        head, _, last = name.rpartition("/")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number, (_, groups) in enumerate(self._contents(part.url, fs, path, options)):
                if part.message in (None, number):
                    return _plain_values(groups[head].variables[last])
        raise ValueError(f"{part.url} has changed")

    # -- one dataset -------------------------------------------------------------------
    def _part(
        self, url: str, refs: Mapping[str, Any], groups: Mapping[str, xr.Dataset], number: int
    ) -> Part:
        source = open_references(refs, normalizer())
        variables: dict[str, Variable] = {}
        coordinates: dict[str, npt.NDArray[Any] | None] = {}
        for group, dataset in groups.items():
            by_value = self._by_value(dataset)
            means = meanings(dataset)
            new = [
                dim
                for dim in self.expand_dims
                if dim in dataset.variables and not dataset.variables[dim].shape
            ]
            for dim in self.concat_dims:
                if dim in dataset.variables and dim not in coordinates:
                    coordinates[dim] = np.atleast_1d(decoded(dim, dataset.variables[dim]))
            for name, variable in dataset.variables.items():
                path = f"{group}/{name}" if group else str(name)
                attributes = _plain_attributes(variable.attrs)
                named = {**attributes, "_ARRAY_DIMENSIONS": list(variable.dims)}
                meaning = means[str(name)]
                table = None
                zarray = source.documents.get(f"{path}/.zarray")
                if name not in by_value and zarray is not None:
                    array = array_from_v2(path, zarray, named, mask_fill_value=False)
                    table = source.table(array.keys, lambda _: None)
                    fits = array.shape == variable.shape and not table.payloads
                    table = table if fits and array.recode is None else None
                values = None
                if table is None:
                    values = _plain_values(variable)
                    document = _native_document(path, values, named)
                else:
                    document = array.document
                dims = tuple(map(str, variable.dims))
                made = Variable(dims, document, meaning, table, values)
                if name in new:
                    made = _expanded(made, [str(name)])
                elif new and (table is not None or _is_moment(variable)):
                    made = _expanded(made, new)
                if self.compare and not set(self.concat_dims) <= set(made.dimensions):
                    whole = values if values is not None else _plain_values(variable)
                    made = replace(made, digest=digest(whole))
                variables[path] = made
        for dim in self.concat_dims:
            coordinates.setdefault(dim, None)
        attributes_of = {group: _plain_attributes(ds.attrs) for group, ds in groups.items()}
        grib = number if "" in groups and groups[""].encoding.get("grib") else None
        return Part(url, variables, attributes_of, coordinates, grib)

    def _by_value(self, dataset: xr.Dataset) -> set[Any]:
        """Return the names of the variables that are read and stored by value."""
        chosen = {
            name
            for name, variable in dataset.variables.items()
            # only numbers have the same form everywhere
            if variable.dtype.kind not in "fciub"
        }
        if self.coordinates is not None:
            return chosen | (set(self.coordinates) & set(dataset.variables))
        named = set(dataset.dims) | set(self.concat_dims)
        for attributes in (dataset.attrs, *(v.attrs for v in dataset.variables.values())):
            named.update(str(attributes.get("coordinates", "")).split())
        for name in list(named):
            if name in dataset.variables:
                for of in ("bounds", "climatology"):
                    named.add(str(dataset.variables[name].attrs.get(of, "")))
        scalars_only = any(dim in dataset.variables for dim in self.expand_dims)
        small = {
            name
            for name, variable in dataset.variables.items()
            if variable.nbytes <= _SMALL
            and not set(self.concat_dims) & set(variable.dims)
            # the others get a dimension
            and not (variable.shape and scalars_only)
        }
        return chosen | small | (named & set(dataset.variables))


# -- files -----------------------------------------------------------------------------
def location_of(url: str) -> str:
    """Return a URL or path in the form in which references have it."""
    return normalizer()(url)


def _kind(fs: Any, path: str) -> str:
    with fs.open(path, "rb") as file:
        head = file.read(8)
        if head[:4] in (b"CDF\x01", b"CDF\x02"):
            return "classic"
        if head[:4] == b"GRIB":
            return "grib"
        for start in _HDF5_STARTS:
            file.seek(start)
            if file.read(8) == _HDF5:
                return "hdf5"
    raise ValueError(f"it is no NetCDF, HDF5 or GRIB file; it begins with {head!r}")


def _modified(info: Mapping[str, Any]) -> int:
    """Return the whole second after which a file was not modified, 0 if nobody says.

    Servers tell whole seconds only, and file systems more: rounded up, an unchanged file
    is never taken for a changed one.
    """
    for name in ("mtime", "LastModified", "last_modified", "updated"):
        value = info.get(name)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            value = value.replace(tzinfo=value.tzinfo or UTC).timestamp()
        if isinstance(value, int | float):
            return math.ceil(value)
    return 0


@contextmanager
def _groups(file: Any) -> Iterator[dict[str, xr.Dataset]]:
    """Open all groups of an HDF5 file."""
    names = [""]

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group):
            names.append(name)

    with h5py.File(file, "r") as opened:
        opened.visititems(visit)
    found: dict[str, xr.Dataset] = {}
    try:
        for name in names:
            found[name] = xr.open_dataset(
                file, engine="h5netcdf", group=name or None, decode_cf=False, phony_dims="access"
            )
        yield found
    finally:
        for dataset in found.values():
            dataset.close()


def _through_references(found: Any, url: str, options: Mapping[str, Any]) -> xr.Dataset:
    protocol = url.partition("://")[0] if "://" in url else "file"
    dataset = xr.open_dataset(
        "reference://",
        engine="zarr",
        decode_cf=False,
        consolidated=False,
        zarr_format=2,
        storage_options={
            "fo": found,
            "remote_protocol": protocol,
            "remote_options": dict(options),
        },
    )
    dataset.encoding["grib"] = True
    return dataset


def _joined(parts: list[Part]) -> list[Part]:
    """Join the messages of a GRIB file that lie in one place."""
    if len(parts) < 2:
        return parts
    found: dict[str, Part] = {}
    for part in parts:
        place = repr([np.asarray(v).tolist() for v in part.coordinates.values()])
        known = found.get(place)
        clash = known and [
            name
            for name, variable in part.variables.items()
            if name in known.variables
            and not (variable.table is None and variable.digest)
            and not _same(variable, known.variables[name])
        ]
        if clash:
            raise ValueError(
                f"several of its messages have the variable {clash[0]!r}; name the dimensions "
                "that tell them apart in concat_dims"
            )
        found[place] = (
            part
            if known is None
            else replace(known, variables={**part.variables, **known.variables})
        )
    return list(found.values())


def _same(a: Variable, b: Variable) -> bool:
    return a.values is not None and b.values is not None and digest(a.values) == digest(b.values)


# -- variables -------------------------------------------------------------------------
def _plain_values(variable: xr.Variable) -> npt.NDArray[Any]:
    values = np.asarray(variable.values)
    if values.dtype.kind == "O":
        texts = [v.decode() if isinstance(v, bytes) else v for v in values.ravel().tolist()]
        values = np.asarray(texts, dtype=np.dtypes.StringDType()).reshape(values.shape)
    elif values.dtype.kind == "U":
        values = values.astype(np.dtypes.StringDType())
    return values


def _plain_attributes(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Return attributes as JSON has them."""
    return {str(name): _plain(value) for name, value in attributes.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, complex):
        return [value.real, value.imag]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _native_document(
    path: str, values: npt.NDArray[Any], attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the ``zarr.json`` of a variable that is stored by value.

    Parameters
    ----------
    path : str
    values : array
    attributes : mapping
        With ``_ARRAY_DIMENSIONS``.
    """
    dtype = values.dtype
    chunks = list(values.shape)
    if chunks:
        row = max(1, math.prod(chunks[1:])) * max(1, dtype.itemsize)
        chunks[0] = max(1, _NATIVE_CHUNK // row)
    text = dtype.kind in "OTU"
    zarray = {
        "zarr_format": 2,
        "shape": list(values.shape),
        "chunks": chunks,
        "dtype": "|O" if text else dtype.newbyteorder("<").str,
        "fill_value": None,
        "order": "C",
        "filters": [{"id": "vlen-utf8"}] if text else None,
        "compressor": {"id": "zstd", "level": 3},
    }
    document = array_from_v2(path, zarray, attributes, mask_fill_value=False).document
    fill = attributes.get("_FillValue")
    if text and isinstance(fill, str):
        document["attributes"]["_FillValue"] = fill
    return document


def meanings(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Return what the numbers of each variable mean (CF conventions, 7.1, for bounds)."""
    found = {
        str(name): {k: _plain(variable.attrs[k]) for k in MEANING if k in variable.attrs}
        for name, variable in dataset.variables.items()
    }
    for variable in dataset.variables.values():
        for of in ("bounds", "climatology"):
            bounds = variable.attrs.get(of)
            if bounds in found and " since " in str(variable.attrs.get("units", "")):
                for key in ("units", "calendar"):
                    if key in variable.attrs:
                        found[bounds].setdefault(key, variable.attrs[key])
    return found


def _is_moment(variable: xr.Variable) -> bool:
    """Whether a variable is a point in time, which differs where others do."""
    return not variable.shape and " since " in str(variable.attrs.get("units", ""))


def _expanded(variable: Variable, dims: Sequence[str]) -> Variable:
    """Put dimensions of length 1 before those that a variable has."""
    count = len(dims)
    document = json.loads(json.dumps(variable.document))
    document["shape"] = [1] * count + document["shape"]
    grid = document["chunk_grid"]["configuration"]
    native = variable.values is not None
    grid["chunk_shape"] = [_NATIVE_CHUNK // 8 if native else 1] * count + grid["chunk_shape"]
    document["dimension_names"] = [*dims, *(document.get("dimension_names") or [])]
    for codec in document["codecs"]:
        if codec["name"] == "transpose":
            order = codec["configuration"]["order"]
            codec["configuration"]["order"] = [*range(count), *(n + count for n in order)]
    table, values = variable.table, variable.values
    if table is not None:
        before = np.zeros((len(table.coords), count), np.uint32)
        table = replace(table, coords=np.hstack([before, table.coords]))
    if values is not None:
        values = values.reshape((1,) * count + values.shape)
    return Variable((*dims, *variable.dimensions), document, variable.meaning, table, values)


def decoded(name: str, variable: xr.Variable) -> npt.NDArray[Any]:
    """Return the values that xarray decodes."""
    return np.asarray(xr.conventions.decode_cf_variable(name, variable.load()).values)


def digest(values: npt.NDArray[Any]) -> str:
    """Return what tells values apart, whatever their byte order."""
    hashed = hashlib.sha256(repr((values.dtype.kind, values.shape)).encode())
    if values.dtype.kind in "OTU":
        hashed.update(json.dumps(values.tolist()).encode())
    else:
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        hashed.update(np.ascontiguousarray(little).tobytes())
    return hashed.hexdigest()
