"""Read all of a GRIB field but its values, with ecCodes: name, time, place, attributes, grid.

Names and attributes are those of cfgrib, from its own tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final

import eccodes
import numpy as np
import numpy.typing as npt
from cfgrib import dataset as cf

from icechunk import InvalidInputError
from icechunk.kerchunk.grib import GridLines, grib_handle, grid_lines, grid_points
from icechunk.kerchunk.grib_sections import GribField
from icechunk_dask.archives.conventions import GRIB_KINDS

__all__ = ["GribHeader", "Grid", "grib_keys", "grib_matches", "read_grib_header"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Seconds per unit of time, by ecCodes number. ecCodes counts 30 days for a month.
_UNITS: Final = {
    0: 60,
    1: 3600,
    2: 86400,
    10: 10800,
    11: 21600,
    12: 43200,
    13: 1,
    14: 900,
    15: 1800,
}
#: Longest duration, in seconds, that fits NumPy's nanoseconds, to which xarray decodes steps.
_LONGEST: Final = (1 << 63) // 10**9
#: More points than any model has: their coordinates alone would fill the memory.
_MOST_POINTS: Final = 1 << 27
#: What ecCodes and cfgrib return in place of an unknown name.
_NAMELESS: Final = (None, "undef", "unknown", "~")
#: Keys that distinguish fields of the same name, most distinctive first.
_TELLING: Final = (
    "typeOfLevel",
    "level",
    "bottomLevel",
    "stepType",
    "stepRange",
    *GRIB_KINDS,
    "number",
    "forecastProbabilityNumber",
    "typeOfEnsembleForecast",
    "gridType",
    "numberOfPoints",
    "latitudeOfFirstGridPoint",
    "longitudeOfFirstGridPoint",
    "longitudeOfLastGridPoint",
    "dataType",
    "typeOfGeneratingProcess",
    "generatingProcessIdentifier",
    "experimentVersionNumber",
    "editionNumber",
)
#: How many grids keep their coordinates: those used last.
_KEPT: Final = 4


class _UnrepresentableError(Exception):
    """A field has a property that datasets cannot represent."""


@dataclass(frozen=True)
class Grid:
    """Where the values of a field lie.

    Attributes
    ----------
    dimensions : tuple of str
    shape : tuple of int
    coordinates : dict of str to tuple
        Dimensions and values (float64, degrees) of ``latitude`` and ``longitude``; empty if
        ecCodes provides none.
    attributes : dict
        Attributes of the variables on this grid.
    unplaced : str
        Why the places of the values are unknown; empty if they are known, or if the values have
        no places (spherical harmonics).
    """

    dimensions: tuple[str, ...]
    shape: tuple[int, ...]
    coordinates: dict[str, tuple[tuple[str, ...], npt.NDArray[np.float64]]]
    attributes: dict[str, Any]
    unplaced: str = ""


@dataclass(frozen=True)
class GribHeader:
    """The metadata of a field.

    Attributes
    ----------
    name : str
    attributes : dict
        Attributes of the variable.
    file_attributes : dict
        Attributes of a dataset with this field.
    scalars : dict of str to tuple
        Value and attributes of ``number``, ``time``, ``step``, ``valid_time`` and the level.
    grid : Grid or None
    refused : str
        Why the field cannot be a variable; empty if it can.
    keys : mapping
        Values of keys that may distinguish fields of the same name.
    """

    name: str
    attributes: dict[str, Any]
    file_attributes: dict[str, Any]
    scalars: dict[str, tuple[np.generic, dict[str, Any]]]
    grid: Grid | None
    refused: str = ""
    keys: Mapping[str, Any] = field(default_factory=dict)


class _Telling(Mapping[str, Any]):
    """Values of keys that distinguish fields of the same name, read on first use."""

    def __init__(self, message: bytes) -> None:
        self._message = message

    @cached_property
    def _values(self) -> dict[str, Any]:
        return _values(self._message, _TELLING)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def grib_keys(found: GribField, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of some keys, None for those that the message lacks."""
    return _values(found.header, names)


def _values(message: bytes, names: Iterable[str]) -> dict[str, Any]:
    with grib_handle(message) as handle:
        keys = _Keys(handle)
        return {name: keys.get(name) for name in names}


def grib_matches(found: GribField, wanted: Mapping[str, Any]) -> bool:
    """Return whether a field has the given values for some keys.

    Parameters
    ----------
    found : GribField
    wanted : mapping
        A value for each key, or a list of accepted values.

    Raises
    ------
    InvalidInputError
        If ecCodes cannot read the message.
    """
    try:
        with grib_handle(found.header) as handle:
            keys = _Keys(handle)
            for key, given in wanted.items():
                values = list(given) if isinstance(given, list | tuple | set) else [given]
                # some keys have both a number and a name
                if keys.get(key) not in values and keys.get(key, str) not in map(str, values):
                    return False
    except eccodes.CodesInternalError as exc:
        raise InvalidInputError(f"ecCodes cannot read its header: {exc}") from exc
    return True


def read_grib_header(found: GribField) -> GribHeader:
    """Read the header of a field.

    A failure is part of the result.
    """
    name = "unreadable"
    try:
        with grib_handle(found.header) as handle:
            keys = _Keys(handle)
            parameter = _parameter(keys)
            name = _name(keys, parameter)
            scalars = _scalars(keys)
            grid = _grid(keys, found)
            attributes = _attributes(keys, parameter, grid)
            # in the order of cfgrib
            named = [n for n in scalars if n != "valid_time"]
            attributes["coordinates"] = " ".join([*named, *grid.coordinates, "valid_time"])
            telling = _Telling(found.header)
            return GribHeader(name, attributes, _file_attributes(keys), scalars, grid, keys=telling)
    except (_UnrepresentableError, InvalidInputError) as exc:
        reason = str(exc)
    except eccodes.CodesInternalError as exc:
        reason = f"ecCodes cannot read its header: {exc}"
    return GribHeader(name, {}, {}, {}, None, reason)


class _Keys:
    """The keys of a message."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def get(self, name: str, kind: type | None = None) -> Any:
        """Return the value of a key as a Python object, None if there is none."""
        try:
            if eccodes.codes_get_size(self._handle, name) > 1:
                return eccodes.codes_get_array(self._handle, name, kind).tolist()
            return eccodes.codes_get(self._handle, name, kind)
        except eccodes.CodesInternalError:
            return None

    def number(self, name: str) -> int:
        """Return a number that must be present."""
        return int(eccodes.codes_get(self._handle, name, int))

    def size(self, name: str) -> int:
        return int(eccodes.codes_get_size(self._handle, name))

    def points(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return grid_points(self._handle)

    def lines(self) -> GridLines | None:
        return grid_lines(self._handle)


# -- names and attributes --------------------------------------------------------------
#: Keys that follow from the parameter, and that ecCodes is slow to look up.
_PARAMETER: Final = ("shortName", "units", "name", "cfName", "cfVarName")
#: Keys that follow from the grid.
_GRID: Final = ("gridDefinitionDescription", "gridType", "numberOfPoints", "uvRelativeToGrid")

#: By edition, centre and parameter.
_parameters: dict[tuple[Any, ...], dict[str, Any]] = {}
#: By edition, centre and subcentre.
_centres: dict[tuple[Any, ...], dict[str, Any]] = {}


def _parameter(keys: _Keys) -> dict[str, Any]:
    number = keys.get("paramId", int)
    key = keys.get("edition", int), keys.get("centre", int), number
    found = _parameters.get(key)
    if found is None:
        given = {name: keys.get(name, str) for name in _PARAMETER}
        found = {name: value for name, value in given.items() if value is not None}
        if number:
            _parameters[key] = found
    return {"paramId": number, **found}


def _name(keys: _Keys, parameter: dict[str, Any]) -> str:
    for key in ("cfVarName", "shortName"):
        if parameter.get(key) not in _NAMELESS:
            return str(parameter[key])
    # no table knows it; its numbers tell it from other such fields
    if keys.number("edition") == 1:
        numbers = [keys.get(key, int) for key in ("table2Version", "indicatorOfParameter")]
    else:
        known = ("discipline", "parameterCategory", "parameterNumber")
        numbers = [keys.get(key, int) for key in known]
    return "_".join(["unknown", *map(str, numbers)])


def _attributes(keys: _Keys, parameter: dict[str, Any], grid: Grid) -> dict[str, Any]:
    # steps are in hours, whatever the unit in the message, and missing values are NaN
    given: dict[str, Any] = {**parameter, "stepUnits": 1, "missingValue": None}
    found: dict[str, Any] = {}
    for name in cf.DATA_ATTRIBUTES_KEYS:
        if name in _GRID:
            continue
        value = given[name] if name in given else keys.get(name)
        if value not in _NAMELESS:
            found[f"GRIB_{name}"] = value
    for name in cf.EXTRA_DATA_ATTRIBUTES_KEYS:
        if name in _GRID:
            continue
        value = given.get(name) if name in (*_PARAMETER, "missingValue") else keys.get(name)
        if value is not None:
            found[f"GRIB_{name}"] = value
    kinds = {f"GRIB_{name}": keys.get(name) for name in GRIB_KINDS}
    found |= {name: value for name, value in kinds.items() if value not in _NAMELESS}
    found |= grid.attributes
    found["long_name"] = found.get("GRIB_name", f"original GRIB paramId: {given['paramId']}")
    found["units"] = found.get("GRIB_units", "1")
    if "GRIB_cfName" in found:
        found["standard_name"] = found["GRIB_cfName"]
    return found


def _grid_attributes(keys: _Keys) -> dict[str, Any]:
    names = [*_GRID, *cf.GRID_TYPE_MAP.get(keys.get("gridType"), [])]
    given = {name: keys.get(name) for name in names}
    return {f"GRIB_{name}": value for name, value in given.items() if value not in _NAMELESS}


def _file_attributes(keys: _Keys) -> dict[str, Any]:
    key = tuple(keys.get(name, int) for name in ("edition", "centre", "subCentre"))
    found = _centres.get(key)
    if found is None:
        given = {name: keys.get(name) for name in cf.GLOBAL_ATTRIBUTES_KEYS}
        found = {f"GRIB_{k}": v for k, v in given.items() if v not in _NAMELESS}
        found["Conventions"] = "CF-1.7"
        if "GRIB_centreDescription" in found:
            found["institution"] = found["GRIB_centreDescription"]
        _centres[key] = found
    return dict(found)


# -- time and place --------------------------------------------------------------------
def _scalars(keys: _Keys) -> dict[str, tuple[np.generic, dict[str, Any]]]:
    found: dict[str, np.generic] = {}
    number = keys.get("number", int)
    if number is not None:
        found["number"] = np.int64(number)
    time, step = _time(keys), _step(keys)
    found["time"] = np.int64(time)
    if step is not None:
        found["step"] = np.float64(step / 3600)
    level = keys.get("level", float)
    called = "level"
    if level is not None:
        kind = keys.get("typeOfLevel", str)
        called = "level" if kind in _NAMELESS else str(kind)
        found[called] = np.float64(level)
    for name in cf.SPECTRA_KEYS:
        value = keys.get(name, int)
        if value is not None:
            found[name] = np.int64(value)
    if step is not None:
        found["valid_time"] = np.int64(time + step)
    return {
        name: (value, _coordinate_attributes("level" if name == called else name, name))
        for name, value in found.items()
    }


def _coordinate_attributes(key: str, name: str) -> dict[str, Any]:
    plain = {"long_name": f"original GRIB coordinate for key: {key}({name})", "units": "1"}
    return {**plain, **cf.COORD_ATTRS.get(name, {})}


def _time(keys: _Keys) -> int:
    date, time = keys.number("dataDate"), keys.number("dataTime")
    # cfgrib drops the seconds
    second = keys.get("second", int) or 0
    try:
        moment = datetime(
            date // 10000,
            date // 100 % 100,
            date % 100,
            time // 100,
            time % 100,
            second if second < 60 else 0,
            tzinfo=UTC,
        )
    except ValueError:
        raise _UnrepresentableError(f"its time {date} {time:04} is in no calendar") from None
    return (moment - _EPOCH) // timedelta(seconds=1)


def _step(keys: _Keys) -> int | None:
    """Return the seconds from the reference time of the forecast to the end of its period.

    None for what is no forecast, such as an image of a satellite.
    """
    if keys.get("endStep") is None:
        return None
    step, unit = keys.number("endStep"), keys.number("stepUnits")
    if step and unit not in _UNITS:
        name = keys.get("stepUnits", str)
        raise _UnrepresentableError(
            f"its step is {step} in units of {name!r}, which differ in length"
        )
    seconds = step * _UNITS.get(unit, 0)
    if abs(seconds) > _LONGEST:
        raise _UnrepresentableError(f"its step of {seconds} seconds is longer than 292 years")
    return seconds


# -- grids -----------------------------------------------------------------------------
#: By edition and section.
_known: dict[tuple[int, bytes], Grid] = {}


def _grid(keys: _Keys, found: GribField) -> Grid:
    key = keys.number("edition"), found.grid
    grid = _known.pop(key, None) if found.grid else None
    if grid is None:
        grid = _computed(keys)
        while len(_known) >= _KEPT:
            del _known[next(iter(_known))]
    if found.grid:
        _known[key] = grid
    return grid


def _computed(keys: _Keys) -> Grid:
    kind = str(keys.get("gridType", str))
    attributes = _grid_attributes(keys)
    count = keys.size("values")
    if count > _MOST_POINTS:
        raise _UnrepresentableError(f"its grid has {count} points, more than {_MOST_POINTS}")
    shape: tuple[int, ...] = (count,)
    dimensions: tuple[str, ...] = ("values",)
    regular = kind in cf.GRID_TYPES_DIMENSION_COORDS
    if regular or kind in cf.GRID_TYPES_2D_NON_DIMENSION_COORDS:
        shape = keys.number("Ny"), keys.number("Nx")
        if shape[0] * shape[1] != count:
            raise _UnrepresentableError(f"its grid of {shape} points has {count} values")
        dimensions = ("latitude", "longitude") if regular else ("y", "x")
    try:
        latitudes, longitudes = keys.points()
    except eccodes.KeyValueNotFoundError:
        # such as spherical harmonics
        return Grid(dimensions, shape, {}, attributes)
    except eccodes.CodesInternalError as exc:
        return Grid(dimensions, shape, {}, attributes, f"ecCodes cannot place its points: {exc}")
    except InvalidInputError as exc:
        return Grid(dimensions, shape, {}, attributes, str(exc))
    found = [latitudes, longitudes]
    if len(shape) == 2:
        lines = keys.lines()
        found = [lines.points_in_rows(v) if lines else v.reshape(shape) for v in found]
    names = ("latitude", "longitude")
    if not regular:
        coordinates = {name: (dimensions, v) for name, v in zip(names, found, strict=True)}
        return Grid(dimensions, shape, coordinates, attributes)
    latitude, longitude = found[0][:, 0].copy(), found[1][0].copy()
    if (found[0] != latitude[:, None]).any() or (found[1] != longitude).any():
        reason = "its points do not lie on parallels and meridians"
        return Grid(dimensions, shape, {}, attributes, reason)
    axes = zip(names, (latitude, longitude), strict=True)
    return Grid(dimensions, shape, {name: ((name,), v) for name, v in axes}, attributes)
