"""Names of dimensions in references, as netCDF has them: within the group of an array.

kerchunk puts the path of a group before the names of its dimensions, and numbers nameless ones
separately in each array, so one name may have several lengths within a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from icechunk.kerchunk.metadata import ArrayMetadata

__all__ = ["name_dimensions"]

_NAMES: Final = "dimension_names"
_NAMELESS: Final = "phony_dim_"


def name_dimensions(arrays: Mapping[str, ArrayMetadata]) -> None:
    """Remove paths of groups from the names of dimensions, and tell nameless ones apart.

    Names stay unchanged if a group would then have two lengths for one name.

    Parameters
    ----------
    arrays : mapping of str to ArrayMetadata
        By path; their documents are changed.
    """
    groups: dict[str, list[ArrayMetadata]] = {}
    for path, array in sorted(arrays.items()):
        if array.document.get(_NAMES):
            groups.setdefault(path.rpartition("/")[0], []).append(array)
    for members in groups.values():
        _number_nameless(members)
        short = [_without_paths(array) for array in members]
        if _is_clear(zip(short, members, strict=True)):
            for array, names in zip(members, short, strict=True):
                array.document[_NAMES] = names


def _without_paths(array: ArrayMetadata) -> list[Any]:
    """Return names without the path of the array's group."""
    group = array.keys.path.rpartition("/")[0]
    found = []
    for name in array.document[_NAMES]:
        head, slash, last = str(name).rpartition("/")
        head = head.strip("/")
        inside = not head or f"{group}/".startswith(f"{head}/")
        found.append(last if name is not None and slash and last and inside else name)
    return found if len(set(found)) == len(set(array.document[_NAMES])) else array.document[_NAMES]


def _is_clear(named: Iterable[tuple[list[Any], ArrayMetadata]]) -> bool:
    """Whether each name has one length."""
    lengths: dict[Any, int] = {}
    return all(
        name is None or lengths.setdefault(name, length) == length
        for names, array in named
        for name, length in zip(names, array.shape, strict=True)
    )


def _number_nameless(members: list[ArrayMetadata]) -> None:
    """Give each length a name, and a second name to arrays that have the length twice."""

    def is_nameless(name: Any) -> bool:
        return str(name).rpartition("/")[2].startswith(_NAMELESS)

    if _is_clear((array.document[_NAMES], array) for array in members):
        return
    known: dict[tuple[int, int], str] = {}
    for array in members:
        names: list[Any] = []
        seen: list[int] = []
        for name, length in zip(array.document[_NAMES], array.shape, strict=True):
            if is_nameless(name):
                key = length, seen.count(length)
                seen.append(length)
                name = known.setdefault(key, f"{_NAMELESS}{len(known)}")
            names.append(name)
        array.document[_NAMES] = names
