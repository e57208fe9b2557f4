"""Attributes of existing nodes: xarray leaves those of arrays, and replaces those of groups.

Attributes that say how numbers are stored stay; and a stored coordinate remains one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr

from icechunk_xarray.kinds import is_of_time

__all__ = ["of_group", "replace"]

#: Attributes by which numbers are decoded.
_STORED = ("_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned", "dtype")
_OF_TIME = ("units", "calendar")
_COORDINATES = "coordinates"


def of_group(given: Mapping[Any, Any], group: zarr.Group, dataset: xr.Dataset) -> dict[Any, Any]:
    """Return the attributes of a group after a dataset is written to it.

    Parameters
    ----------
    given : mapping
        Attributes of the dataset, with the names of coordinates that no variable names.
    group : zarr.Group
    dataset : xarray.Dataset
    """
    stored = dict(group.attrs)
    wanted = dict(given)
    names = _merged(wanted.pop(_COORDINATES, None), stored.pop(_COORDINATES, None), group, dataset)
    result: dict[Any, Any] = wanted or stored
    return {**result, _COORDINATES: names} if names else result


def replace(group: zarr.Group, variables: Mapping[str, xr.Variable]) -> None:
    """Give arrays the attributes of the variables that replace all of their values.

    A variable without attributes changes nothing.

    Parameters
    ----------
    group : zarr.Group
    variables : mapping of str to xarray.Variable
        Their attributes include the names of their coordinates.
    """
    for name, variable in variables.items():
        array: Any = group[name]
        stored = dict(array.attrs)
        fixed = _STORED + _OF_TIME if is_of_time(variable) else _STORED
        wanted = {str(k): _encoded(v) for k, v in variable.attrs.items() if k not in fixed}
        names = _merged(
            wanted.pop(_COORDINATES, None), stored.pop(_COORDINATES, None), group, variables
        )
        kept = {k: v for k, v in stored.items() if k in fixed or not wanted}
        result = {**wanted, **kept}
        if names:
            result[_COORDINATES] = names
        if result != dict(array.attrs):
            array.attrs.put(result)


def _merged(given: Any, stored: Any, group: zarr.Group, written: Any) -> str:
    """Return names of coordinates: those given, and stored ones that are not written now."""
    names = str(given or "").split()
    for name in str(stored or "").split():
        if name not in names and name not in written and name in group:
            names.append(name)
    return " ".join(names)


def _encoded(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
