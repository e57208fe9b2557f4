"""Whether nested groups still make a tree that xarray opens.

A group inherits the coordinates of the groups around it, so dimensions of one name must have one
length and the same labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
import xarray as xr

from icechunk import IcechunkStore
from icechunk.base.calling import depth_of_caller
from icechunk.base.rectilinear import rectilinear_chunks
from icechunk_xarray.refusals import refused
from icechunk_xarray.values import decode_like

__all__ = ["Sizes", "check_tree", "check_tree_append", "sizes_around"]

#: Lengths of dimensions by group, and whether a group has labels for each.
Sizes: TypeAlias = dict[str, dict[str, tuple[int, bool]]]
Clash: TypeAlias = tuple[str, str, str]


def sizes_around(store: IcechunkStore, groups: Sequence[str]) -> Sizes:
    """Return the dimensions of groups, of the groups around them, and of those in them."""
    tree = store.session.tree
    sizes: Sizes = {}
    for group in groups:
        path = _absolute(group)
        nodes = tree.within(path)
        while path != "/":
            path = path.rpartition("/")[0] or "/"
            nodes += tree.children(path)
        for node in nodes:
            if node.array is None:
                continue
            parent, _, own = node.path.rpartition("/")
            found = sizes.setdefault(parent or "/", {})
            for name, length in zip(
                node.array.dimension_names or (), node.array.shape, strict=False
            ):
                if name is not None:
                    labelled = found.get(name, (0, False))[1] or name == own
                    found[name] = (length, labelled)
    return sizes


def check_tree(
    store: IcechunkStore,
    datasets: dict[str, xr.Dataset],
    before: Sizes,
    *,
    is_tree: bool,
) -> None:
    """Report groups that do not fit those around them, unless they clashed before.

    Parameters
    ----------
    store : IcechunkStore
        Contains the arrays that a call has made.
    datasets : dict of str to xarray.Dataset
        What the call writes, by group.
    before : Sizes
        The dimensions before the call.
    is_tree : bool
        Whether the call writes a tree. A clash in a tree is refused, because somebody will
        open it as one. For a dataset it is a warning: groups can be opened one by one.
    """
    given = {_absolute(group): dataset for group, dataset in datasets.items()}
    known = set(_clashes(before))
    for outer, inner, dim in _clashes(sizes_around(store, list(given))):
        if (outer, inner, dim) not in known:
            _tell(f"are of another length along {dim!r}", outer, inner, is_tree=is_tree)
            return
    for path, dataset in given.items():
        for other in before:
            for dim in map(str, dataset.indexes):
                outer, inner = sorted((path, other), key=len)
                if other in given or not _is_within(inner, outer):
                    continue
                # what was in a group that is written anew is gone
                if store.session.tree.get(f"{other.rstrip('/')}/{dim}") is None:
                    continue
                if not before[other].get(dim, (0, False))[1] or dim in before.get(path, {}):
                    continue
                if not _has_labels(store, other, dim, dataset):
                    _tell(f"have other labels along {dim!r}", outer, inner, is_tree=is_tree)
                    return


def check_tree_append(store: IcechunkStore, groups: Sequence[str], dim: str) -> None:
    """Refuse an append to some groups of a tree if the others no longer fit.

    A group that inherits the coordinate from a group around it must have the same length, or
    xarray does not open the tree. Groups that inherit none are often unrelated.

    Parameters
    ----------
    store : IcechunkStore
    groups : sequence of str
        Paths of all groups that one call appends to.
    dim : str
    """
    appended = {_absolute(group) for group in groups}
    sizes = {
        group: found[dim] for group, found in sizes_around(store, ["/"]).items() if dim in found
    }
    for group in sorted(appended & sizes.keys()):
        for other in sorted(sizes.keys() - appended):
            outer, inner = sorted((group, other), key=len)
            inherits = _is_within(inner, outer) and sizes[outer][1] and not sizes[inner][1]
            if inherits and sizes[group][0] == sizes[other][0]:
                raise refused(
                    f"the groups {group!r} and {other!r} share the coordinate {dim!r}, and only "
                    f"the first would become longer: the tree could not be opened any more with "
                    "xarray.open_datatree. Append to both by one call, with a DataTree, or pass "
                    "safe_append=False if another append of this session does the rest"
                )


def _clashes(sizes: Sizes) -> Iterator[Clash]:
    """Yield nested groups that have a dimension of different lengths."""
    for inner, found in sizes.items():
        for outer, around in sizes.items():
            if _is_within(inner, outer):
                for dim in found.keys() & around.keys():
                    if found[dim][0] != around[dim][0]:
                        yield outer, inner, dim


def _has_labels(store: IcechunkStore, group: str, dim: str, dataset: xr.Dataset) -> bool:
    """Whether the stored labels of a group equal those of a dataset."""
    given = dataset.coords[dim].variable
    with rectilinear_chunks():
        opened = xr.open_zarr(
            store, group=group.strip("/"), consolidated=False, chunks=None, decode_cf=False
        )
    try:
        stored = decode_like(dim, opened[dim].variable, given.values).values
        new = given.values
        same = (stored == new) | (pd.isnull(stored) & pd.isnull(new))
    except (ValueError, TypeError, OverflowError):
        return False
    return stored.shape == new.shape and bool(np.all(same))


def _tell(what: str, outer: str, inner: str, *, is_tree: bool) -> None:
    message = (
        f"the groups {outer!r} and {inner!r} {what}, and one lies in the other: "
        "xarray.open_datatree cannot open them as a tree"
    )
    if is_tree:
        raise refused(f"{message}; write the tree into another group, or rename the dimension")
    warnings.warn(
        f"{message}, only xarray.open_dataset one by one; to have a tree, write them beside each "
        "other, or rename the dimension",
        stacklevel=depth_of_caller(),
    )


def _absolute(group: str) -> str:
    return "/" + group.strip("/")


def _is_within(path: str, group: str) -> bool:
    return path != group and path.startswith(group.rstrip("/") + "/")
