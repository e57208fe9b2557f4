"""How Zarr, xarray and the CF conventions interpret names, dimensions and attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from icechunk.kerchunk.metadata import MEANING
from icechunk_dask.archives.described import FileVariable

__all__ = ["GRIB_KINDS", "is_joined", "is_moment", "meanings"]

#: Keys of ecCodes that, beside the name of a parameter, say what a value is: of which substance,
#: at which wavelength, for which particles, or which statistic of an ensemble.
GRIB_KINDS: Final = (
    "constituentType",
    "wavelength",
    "scaledValueOfFirstSize",
    "scaledValueOfSecondSize",
    "derivedForecast",
    "percentileValue",
    "probabilityType",
    "scaledValueOfLowerLimit",
    "scaledValueOfUpperLimit",
)
_MEANING: Final = (*MEANING, *(f"GRIB_{key}" for key in GRIB_KINDS))


def is_joined(dim: str, last: Mapping[str, str], variables: Mapping[str, FileVariable]) -> bool:
    """Whether xarray joins the characters along a dimension of a group into strings.

    Parameters
    ----------
    dim : str
    last : mapping of str to str
        Names of variables within their group, by path.
    variables : mapping
        Variables of the group.
    """
    users = [one.dimensions for one in variables.values() if dim in one.dimensions]
    bytes_only = all(one.dtype.kind == "S" for one in variables.values() if dim in one.dimensions)
    return bytes_only and dim not in last.values() and all(dims[-1] == dim for dims in users)


def meanings(attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what the numbers of each variable mean (CF conventions, 7.1, for bounds)."""
    found = {
        name: {key: own[key] for key in _MEANING if key in own} for name, own in attributes.items()
    }
    for own in attributes.values():
        for of in ("bounds", "climatology"):
            bounds = own.get(of)
            if bounds in found and " since " in str(own.get("units", "")):
                for key in ("units", "calendar"):
                    if key in own:
                        found[bounds].setdefault(key, own[key])
    return found


def is_moment(variable: FileVariable, name: str, new: Sequence[str]) -> bool:
    """Whether a scalar is a point in time, or the step to one, which differs where others do."""
    moment = " since " in str(variable.attributes.get("units", ""))
    return not variable.shape and (moment or (name == "step" and "valid_time" in new))
