"""The groups that an xarray object is written as, and their arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import xarray as xr

from icechunk import InvalidInputError, Session
from icechunk.base.rectilinear import rectilinear_chunks
from icechunk.errors import ErrorKind
from icechunk_xarray.refusals import refused
from icechunk_xarray.staging import Options, PendingWrite, stage
from icechunk_xarray.trees import check_tree, check_tree_append, sizes_around

__all__ = ["GroupPart", "Writable", "describe", "groups_of", "stage_groups", "write_now"]

Writable: TypeAlias = xr.Dataset | xr.DataArray | xr.DataTree

#: Path, dataset and encoding of a group.
GroupPart: TypeAlias = tuple[str, xr.Dataset, Mapping[str, Mapping[str, Any]]]

# the names that xarray gives to unnamed arrays, and looks for when it opens them
_ARRAY_NAME = "__xarray_dataarray_name__"
_ARRAY_VARIABLE = "__xarray_dataarray_variable__"


def groups_of(
    obj: Writable, group: str, encoding: Mapping[Any, Any], *, inherit: bool | Collection[str]
) -> list[GroupPart]:
    """Return the groups to write: path, dataset and encoding of each.

    Parameters
    ----------
    obj : Dataset, DataArray or DataTree
    group : str
        Where it goes.
    encoding : mapping
    inherit : bool or collection of str
        Whether nodes of a tree have the coordinates that they inherit, or the paths of those.
    """
    if isinstance(obj, xr.DataArray):
        return [(group, _as_dataset(obj), encoding)]
    if isinstance(obj, xr.Dataset):
        return [(group, obj, encoding)]
    if not isinstance(obj, xr.DataTree):
        raise InvalidInputError(
            f"to_icechunk writes a Dataset, DataArray or DataTree, not a {type(obj).__name__}",
            ErrorKind.NOT_ALLOWED,
        )
    nodes = list(obj.subtree_with_keys)
    encodings = {"/" + path.strip("/"): wanted for path, wanted in encoding.items()}
    paths = {"/" + key.strip("./"): node for key, node in nodes}
    for path in encodings:
        if path not in paths:
            raise InvalidInputError(
                f"encoding names the node {path!r}, and the tree has no such node: encodings of a "
                "DataTree are given by path, then by variable",
                ErrorKind.INVALID_ARRAY_METADATA,
            )
    return [
        (
            f"{group}{path}".strip("/"),
            _of_node(node, path, True if node is obj else inherit),
            encodings.get(path, {}),
        )
        for path, node in paths.items()
    ]


def _of_node(node: xr.DataTree, path: str, inherit: bool | Collection[str]) -> xr.Dataset:
    own = node.to_dataset(inherit=False)
    if not inherit:
        return own
    whole = node.to_dataset()
    if isinstance(inherit, bool):
        return whole
    inherited = whole.coords.keys() - own.coords.keys()
    return whole.drop_vars([name for name in inherited if f"{path}/{name}" not in inherit])


def _as_dataset(array: xr.DataArray) -> xr.Dataset:
    if array.name is not None and array.name not in (*array.coords, *array.dims):
        return array.to_dataset()
    dataset = array.to_dataset(name=_ARRAY_VARIABLE)
    if array.name is not None:
        dataset.attrs[_ARRAY_NAME] = array.name
    return dataset


def describe(parts: list[GroupPart], options: Options) -> str:
    """Return a default commit message."""
    verb = "Write"
    if options.append_dim is not None:
        verb = f"Append along {options.append_dim}"
    elif options.region is not None:
        verb = "Write a region of"
    names = [str(name) for _, dataset, _ in parts for name in dataset.data_vars]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    where = f" in /{parts[0][0]}" if parts[0][0] else ""
    return f"{verb}{': ' if options.append_dim is not None else ' '}{shown or 'attributes'}{where}"


def stage_groups(parts: list[GroupPart], session: Session, options: Options) -> list[PendingWrite]:
    """Make the arrays of all groups, and return the pending writes."""
    store = session.store
    writes: list[PendingWrite] = []
    if options.append_dim is not None and options.safe_append:
        longer = [group for group, dataset, _ in parts if options.append_dim in dataset.dims]
        check_tree_append(store, longer, str(options.append_dim))
    creates = options.append_dim is None and options.region is None
    before = sizes_around(store, [group for group, _, _ in parts]) if creates else {}
    for group, dataset, encoding in parts:
        fitting = options
        if len(parts) > 1:
            # nodes of a tree that have nothing to do with the dimensions
            if options.region is not None and not dataset.variables:
                continue
            if options.append_dim not in dataset.dims:
                fitting = replace(options, append_dim=None)
        with rectilinear_chunks():
            writes += stage(dataset, store, group, encoding, fitting)
    if creates:
        datasets = {group: dataset for group, dataset, _ in parts}
        check_tree(store, datasets, before, is_tree=len(parts) > 1)
    return writes


def write_now(writes: list[PendingWrite]) -> list[PendingWrite]:
    """Write what is in memory, and return the writes that Dask computes."""
    lazy = []
    for write in writes:
        if write.is_lazy:
            lazy.append(write)
        else:
            try:
                write.target[write.region or ...] = write.source
            except UnicodeEncodeError as error:
                raise refused(
                    f"variable {write.target.basename!r} has a text that cannot be stored: {error}"
                ) from error
    return lazy
