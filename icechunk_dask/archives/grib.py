"""A scanner of GRIB files of editions 1 and 2: fields as datasets, named as cfgrib names them.

Data values become references and are never read. Header contents (times, levels) and
coordinates, which follow from the definition of the grid, are copied by value.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, BinaryIO, Final, NoReturn

import numpy as np
import numpy.typing as npt
from cfgrib import dataset as cf

from icechunk import InvalidInputError
from icechunk.kerchunk.grib import NUMCODEC, GribCodec
from icechunk.kerchunk.grib_sections import GribField, grib_fields
from icechunk.kerchunk.metadata import array_from_v2
from icechunk.kerchunk.tables import ChunkTable
from icechunk_dask.archives.described import Dataset, FileVariable
from icechunk_dask.archives.grib_header import (
    GribHeader,
    grib_keys,
    grib_matches,
    read_grib_header,
)
from icechunk_dask.archives.range_files import FileRanges, open_ranges
from icechunk_dask.archives.signs import step

__all__ = ["open_grib"]

_FROM_HEADER: Final = "it stands in the headers of messages"
_FROM_GRID: Final = "it follows from the description of the grid"
_DTYPE: Final = np.dtype("<f8")


@contextmanager
def open_grib(
    file: str | os.PathLike[str] | BinaryIO,
    location: str,
    *,
    filter_by_keys: Mapping[str, Any] | None = None,
) -> Iterator[list[Dataset]]:
    """Scan the fields of a GRIB file, without reading their values.

    Fields that share time, step, level, ensemble member and grid form a dataset. As in cfgrib,
    its scalar variables identify it: ``time`` (int64, seconds since 1970), ``step`` (float64,
    hours), ``valid_time`` (int64), one named after the type of level, and ``number``. A dataset
    has one field of each name: a second one starts another dataset.

    Values are float64, and NaN where a message says that they are missing. Their dimensions are
    ``latitude`` and ``longitude`` on regular grids, ``y`` and ``x`` on projected ones, and
    ``values`` on all others, such as reduced ones and spherical harmonics, as in cfgrib.
    Unlike in cfgrib, coordinates match the values in every scanning mode, seconds are kept, and
    parameters that are in no table get distinct names.

    Parameters
    ----------
    file : str, path or binary file
        A binary file needs ``seek`` and ``read`` only, and stays open.
    location : str
        The location of the file, as references give it.
    filter_by_keys : mapping, optional
        Keys of ecCodes and the values, or lists of values, that fields must have. Default:
        all fields are taken.

    Yields
    ------
    list of Dataset
        In the order of their first fields. Variables can read values while the file is open.

    Raises
    ------
    InvalidInputError
        If a message is damaged or truncated, or there is none; the error names `location` and
        the message. A field that cannot be represented is a variable that is `refused`.

    Examples
    --------
    >>> with open_grib("t2m.grib2", "file:///data/t2m.grib2") as datasets:
    ...     list(datasets[0].variables)
    ['time', 'step', 'heightAboveGround', 'valid_time', 'latitude', 'longitude', 't2m']
    """
    with open_ranges(file) as ranges:
        places: dict[Any, list[_Place]] = {}
        first: GribField | None = None
        for found in grib_fields(ranges.file, location):
            first = first or found
            step()
            if filter_by_keys and not grib_matches(found, filter_by_keys):
                continue
            header = read_grib_header(found)
            key = _key(header, found)
            known = places.setdefault(key, [])
            name = header.name
            if name in header.scalars or name in ("latitude", "longitude"):
                name += "_values"
            place = next((p for p in known if name not in p.variables), None)
            if place is None:
                place = _Place(header.file_attributes, _coordinates(header), header.keys)
                known.append(place)
            place.variables[name] = _variable(header, found, location, ranges)
        if first is not None and not places:
            own = grib_keys(first, filter_by_keys or {})
            raise InvalidInputError(
                f"no message of {location} has {filter_by_keys}; its first one has {own}"
            )
        if not places:
            raise InvalidInputError(f"{location} has no GRIB message of edition 1 or 2")
        yield [
            Dataset({"": place.attributes}, place.variables, keys=place.keys)
            for known in places.values()
            for place in known
        ]


@dataclass
class _Place:
    """The fields of one place in time, space and ensemble."""

    attributes: dict[str, Any]
    variables: dict[str, FileVariable]
    keys: Mapping[str, Any]


def _key(header: GribHeader, found: GribField) -> Any:
    """Return the key that identifies a place."""
    scalars = [(name, value.item()) for name, (value, _) in header.scalars.items()]
    return repr(scalars), found.grid, header.grid is None


def _coordinates(header: GribHeader) -> dict[str, FileVariable]:
    found = {
        name: _by_value((), np.asarray(value), attributes, _FROM_HEADER)
        for name, (value, attributes) in header.scalars.items()
    }
    if header.grid is not None:
        for name, (dimensions, values) in header.grid.coordinates.items():
            attributes = dict(cf.COORD_ATTRS[name])
            if name == "latitude" and dimensions == ("latitude",) and values[0] > values[-1]:
                attributes["stored_direction"] = "decreasing"  # as cfgrib says
            found[name] = _by_value(dimensions, values, attributes, _FROM_GRID)
        if header.grid.unplaced:
            for name in ("latitude", "longitude"):
                found[name] = FileVariable(
                    (), (), _DTYPE, {}, None, None, "", header.grid.unplaced, _unreadable
                )
    return found


def _by_value(
    dimensions: tuple[str, ...], values: npt.NDArray[Any], attributes: dict[str, Any], reason: str
) -> FileVariable:
    def read(selection: tuple[slice, ...]) -> npt.NDArray[Any]:
        return np.asarray(values[selection])

    return FileVariable(
        dimensions, values.shape, values.dtype, attributes, None, None, reason, "", read
    )


@cache
def _plain_document(dimensions: tuple[str, ...], shape: tuple[int, ...]) -> str:
    """Return the ``zarr.json`` of a field without attributes."""
    zarray = {
        "shape": list(shape),
        "chunks": list(shape),
        "dtype": _DTYPE.str,
        "fill_value": "NaN",
        "filters": [{"id": NUMCODEC, "var": "values", "dtype": _DTYPE.str}],
    }
    named = {"_ARRAY_DIMENSIONS": list(dimensions)}
    return json.dumps(array_from_v2("", zarray, named, mask_fill_value=False).document)


def _variable(
    header: GribHeader, found: GribField, location: str, ranges: FileRanges
) -> FileVariable:
    if header.grid is None:
        return FileVariable((), (), _DTYPE, {}, None, None, "", header.refused, _unreadable)
    dimensions, shape = header.grid.dimensions, header.grid.shape
    table = ChunkTable.of_file(
        location,
        np.zeros((1, len(shape)), np.uint32),
        np.asarray([found.offset], np.int64),
        np.asarray([found.length], np.int64),
    )
    return FileVariable(
        dimensions,
        shape,
        _DTYPE,
        header.attributes,
        {**json.loads(_plain_document(dimensions, shape)), "attributes": dict(header.attributes)},
        table,
        "",
        "",
        partial(_read, ranges, found, shape),
    )


def _read(
    ranges: FileRanges, found: GribField, shape: tuple[int, ...], selection: tuple[slice, ...]
) -> npt.NDArray[Any]:
    data = ranges.read(found.offset, found.length)
    return GribCodec("values", _DTYPE.str).decode_field(data, shape)[selection]


def _unreadable(selection: tuple[slice, ...]) -> NoReturn:
    raise InvalidInputError("a field that is refused cannot be read")
