"""Refuse names, dtypes and attributes that a Zarr group cannot have, before writing."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from icechunk import IcechunkStore
from icechunk_xarray.refusals import refused

__all__ = ["check_names", "check_place", "group_path", "listed"]

#: Parts of keys that Zarr does not read as names.
_NO_NAMES = ("", ".", "..", "zarr.json")
#: How to convert values of pandas to those of NumPy.
_AS_NUMPY = {
    "category": ".astype(str)",
    "datetime64": ".tz_convert('UTC').tz_localize(None)",
    "period": ".to_timestamp()",
}


def check_names(dataset: xr.Dataset, encoding: Mapping[str, Any]) -> None:
    """Refuse variables that no Zarr array can hold, and encodings without a variable."""
    for name, variable in dataset.variables.items():
        if not isinstance(name, str) or not _is_name(name):
            raise refused(
                f"variable {name!r}: the name of an array must be a string, neither empty nor "
                "with '/'; rename it"
                if not isinstance(name, str) or name == "" or "/" in name
                else f"variable {name!r}: Zarr cannot name an array like that; rename it"
            )
        odd = next(
            (dim for dim in variable.dims if dim is not None and not isinstance(dim, str)), None
        )
        if odd is not None:
            raise refused(
                f"variable {name!r}: the dimension {odd!r} is no text, and Zarr takes no other "
                f"names; rename it, as with .rename({{{odd!r}: {str(odd)!r}}})"
            )
        _check_values(name, variable)
        _check_attributes(f"variable {name!r}", variable.attrs)
    _check_attributes("the dataset", dataset.attrs)
    for name in encoding:
        if name not in dataset.variables:
            raise refused(
                f"encoding names {name!r}, but the dataset has no such variable, only "
                f"{listed(dataset.variables)}"
            )
        if not isinstance(encoding[name], Mapping):
            raise refused(
                f"encoding of {name!r} is {encoding[name]!r}: expected a mapping such as "
                "{'dtype': 'f4'}"
            )
        _check_chunks(name, dataset.variables[name], encoding[name])


def _check_chunks(name: str, variable: xr.Variable, encoding: Mapping[str, Any]) -> None:
    """Refuse chunk sizes that xarray would ignore, because they are not one for each dimension."""
    # characters of texts may have a dimension of their own
    counts = (variable.ndim, variable.ndim + 1 if variable.dtype.kind in "SUO" else variable.ndim)
    for key in ("chunks", "shards"):
        given = encoding.get(key)
        if isinstance(given, str | Mapping):
            fits = given == "auto"
        else:
            # one number, or nothing, means the same for all
            fits = not isinstance(given, Sized) or len(given) in counts
        if not fits:
            raise refused(
                f"encoding of {name!r} has {key}={given!r}: expected a size for each of its "
                f"dimensions {variable.dims}, as in {{{key!r}: {variable.shape}}}"
            )


def group_path(group: str | None) -> str:
    """Return the path of a group without slashes at its ends; the root is empty.

    Raises
    ------
    InvalidInputError
        If it is no text.

    Examples
    --------
    >>> group_path("/ocean/surface/")
    'ocean/surface'
    """
    if group is None:
        return ""
    if not isinstance(group, str):
        raise refused(f"group is {group!r}: expected a path such as 'ocean/surface'")
    return group.strip("/")


def check_place(dataset: xr.Dataset, store: IcechunkStore, group: str, *, anew: bool) -> None:
    """Refuse an invalid path, and names that nodes of the other kind have.

    Parameters
    ----------
    dataset : xarray.Dataset
    store : IcechunkStore
    group : str
        Where the dataset goes.
    anew : bool
        Whether everything below the group is deleted.
    """
    parts = group.split("/") if group else []
    # Zarr allows a group to have the name of its documents
    wrong = next((part for part in parts if part != "zarr.json" and not _is_name(part)), None)
    if wrong is not None:
        raise refused(
            f"group {'/' + group!r}: {wrong!r} is no name of a group; give a path such as "
            "'ocean/surface'"
        )
    tree = store.session.tree
    for end in range(1, len(parts) + 1):
        path = "/" + "/".join(parts[:end])
        node = tree.get(path)
        if node is not None and node.is_array:
            raise refused(
                f"{path!r} is an array, and no group can be in its place or below it; choose "
                "another group"
            )
    for name in dataset.variables:
        path = f"/{group}/{name}".replace("//", "/")
        node = tree.get(path)
        if node is not None and not node.is_array and not anew:
            raise refused(
                f"variable {name!r}: there is a group {path!r}, and no array can have its name; "
                "rename the variable"
            )


def listed(names: Any) -> str:
    """Return names as shown in messages."""
    return ", ".join(repr(name) for name in names) or "none"


def _is_name(name: str) -> bool:
    # Zarr treats a backslash as a slash
    return name not in _NO_NAMES and not set(name) & {"/", "\\"}


def _check_values(name: Hashable, variable: xr.Variable) -> None:
    for dim, sizes in zip(variable.dims, variable.chunks or (), strict=False):
        if any(size != size for size in sizes):
            raise refused(
                f"variable {name!r}, dimension {dim!r}: its Dask array has chunks of unknown "
                "size; call .data.compute_chunk_sizes() of the variable first"
            )
    dtype: Any = variable.dtype
    if isinstance(dtype, pd.api.extensions.ExtensionDtype):
        shown = str(dtype)
        how = next((call for kind, call in _AS_NUMPY.items() if shown.startswith(kind)), None)
        raise refused(
            f"variable {name!r} has values of pandas ({shown}), which Zarr does not have: convert "
            f"them first, as with {how or '.to_numpy(dtype)'} of pandas"
        )


def _check_attributes(what: str, attrs: Mapping[Any, Any]) -> None:
    for name, value in attrs.items():
        if not isinstance(name, str) or not name:
            raise refused(
                f"{what} has an attribute of the name {name!r}: names of attributes must be texts, "
                "and not empty; rename or drop it"
            )
        given = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        try:
            # the session names numbers that JSON cannot express
            json.dumps(given)
        except (TypeError, ValueError, RecursionError):
            culprit = next(_no_json(given), given)
            raise refused(
                f"{what} has the attribute {name!r}, in which a value of type "
                f"{type(culprit).__name__} cannot be stored: attributes are numbers, texts, and "
                "lists and mappings of them; convert it, such as with str() or float(), or drop it"
            ) from None


def _no_json(value: Any) -> Iterator[Any]:
    """Yield values that JSON cannot express, the innermost first."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _no_json(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _no_json(each)
    elif not isinstance(value, str | int | float | None):
        yield value
