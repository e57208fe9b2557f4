"""Names and lengths of the dimensions of NetCDF4 variables, as h5netcdf and xarray find them.

The lookups and their order are those of h5netcdf with ``phony_dims="access"``, opening every
group by itself.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5i, h5o, h5r, h5s

from icechunk_dask.archives.hdf5_attributes import ObjectAttributes, text_of

__all__ = ["Dimension", "GroupDimensions", "Item", "Objects", "is_virtual"]

_DETACHED: Final = "_nc4_non_coord_"


@dataclass(frozen=True)
class Dimension:
    """A dimension that variables of a group and its subgroups can use.

    Attributes
    ----------
    name : str
    length : int
    unlimited : bool
    number : int
        The ID by which multidimensional coordinates refer to it; -1 for none.
    """

    name: str
    length: int
    unlimited: bool = False
    number: int = -1


@dataclass(frozen=True)
class Item:
    """A dataset found in a group.

    Attributes
    ----------
    key : str
        The name of its link.
    did : h5py.h5d.DatasetID
    shape : tuple of int
    attributes : ObjectAttributes
    """

    key: str
    did: h5d.DatasetID
    shape: tuple[int, ...]
    attributes: ObjectAttributes

    @property
    def name(self) -> str:
        """Name of the variable, without the prefix by which NetCDF4 avoids a dimension's name."""
        return self.key.replace(_DETACHED, "")

    def scales(self) -> list[Any]:
        """Return a reference to the last scale of each dimension, or None where there is none.

        Raises
        ------
        ValueError
            If some dimensions have scales and others have none.
        """
        listed = self.attributes.hidden("DIMENSION_LIST")
        if listed is None or not self.shape:
            return [None] * len(self.shape)
        try:
            found = [one[-1] if one is not None and len(one) else None for one in listed.ravel()]
        except TypeError:
            raise ValueError("its attribute DIMENSION_LIST does not list references") from None
        found += [None] * (len(self.shape) - len(found))
        if any(one is None for one in found) and any(one is not None for one in found):
            raise ValueError("some of its dimensions have scales, and others have none")
        return found


def is_virtual(did: h5d.DatasetID) -> bool:
    """Whether a dataset is virtual; even asking such a dataset for its shape may open files."""
    return bool(did.get_create_plist().get_layout() == h5d.VIRTUAL)


@dataclass
class Objects:
    """The datasets of a file by the addresses of their object headers.

    Attributes
    ----------
    fid : h5py.h5f.FileID
    names : dict of int to str
        The name that the library gives a dataset, by the address of its header.
    """

    fid: Any
    names: dict[int, str] = field(default_factory=dict)

    def add(self, key: str, did: h5d.DatasetID) -> None:
        """Remember a dataset."""
        info = h5o.get_info(did)
        if info.rc == 1:
            self.names[info.addr] = key

    def name(self, reference: h5py.Reference) -> str:
        """Return the name of the referenced object, without its path.

        Raises
        ------
        ValueError
            If it was deleted, or cannot be opened.
        """
        try:
            found = h5r.dereference(reference, self.fid)
        except (ValueError, RuntimeError) as exc:
            raise ValueError(f"a scale of its dimensions cannot be opened: {exc}") from None
        address = h5o.get_info(found).addr
        if address not in self.names:
            # the library searches the file for it
            self.names[address] = text_of(h5i.get_name(found) or b"").rpartition("/")[2]
        if not self.names[address]:
            raise ValueError("a scale of its dimensions was deleted")
        return self.names[address]

    def lengths(self, listed: npt.NDArray[Any]) -> list[int]:
        """Return the lengths of the dimensions that a ``REFERENCE_LIST`` refers to."""
        found: list[int] = []
        for reference, axis in listed.ravel().tolist():
            with suppress(ValueError, RuntimeError):  # it refers to a deleted object
                did = h5r.dereference(reference, self.fid)
                shape = () if is_virtual(did) else did.shape or ()
                found += shape[axis : axis + 1]
        return found


class GroupDimensions:
    """The dimensions of a group, and those that it inherits.

    Parameters
    ----------
    objects : Objects
    items : list of Item
        The datasets of the group, in the order of the file.
    above : GroupDimensions, optional
        Dimensions of the parent group.
    """

    def __init__(
        self, objects: Objects, items: list[Item], above: GroupDimensions | None = None
    ) -> None:
        self._objects = objects
        self._phony: int = above._phony if above else 0
        self._numbers: int = above._numbers if above else -1
        self.own: dict[str, Dimension] = {}
        self.all: ChainMap[str, Dimension] = ChainMap(self.own, *(above.all.maps if above else []))
        wanted: Counter[int] = Counter()
        for item in items:
            if item.attributes.is_scale and item.shape:
                self._numbers += 1
                with suppress(Exception):  # refused when its names are asked for
                    self.own[item.key] = self._dimension(item)
            elif item.shape and not self._labeled(item):
                wanted |= Counter(item.shape)
        known = Counter(one.length for one in self.own.values() if not one.unlimited)
        for length, count in wanted.items():
            for _ in range(known[length], count):
                name = f"phony_dim_{self._phony}"
                self.own[name] = Dimension(name, length)
                self._phony += 1

    def _labeled(self, item: Item) -> bool:
        try:
            return item.scales()[0] is not None
        except Exception:  # `names` reports what is wrong
            return True

    def _dimension(self, item: Item) -> Dimension:
        length, unlimited = item.shape[0], False
        if len(item.shape) == 1:
            limits = item.did.get_space().get_simple_extent_dims(True)
            unlimited = limits[0] == h5s.UNLIMITED
        listed = item.attributes.hidden("REFERENCE_LIST") if unlimited else None
        if listed is not None:
            # an unlimited dimension is as long as the longest variable along it
            length = max([length, *self._objects.lengths(listed)])
        number = item.attributes.hidden("_Netcdf4Dimid")
        return Dimension(
            item.key, length, unlimited, self._numbers if number is None else int(number)
        )

    def names(self, item: Item) -> tuple[str, ...]:
        """Return the names of the dimensions of a dataset.

        Raises
        ------
        ValueError
            If they cannot be determined; the message says why.
        """
        attributes = item.attributes
        numbers = attributes.hidden("_Netcdf4Coordinates") if attributes.is_scale else None
        if numbers is not None:
            by_number = {one.number: name for name, one in self.all.items() if one.number >= 0}
            try:
                return self._checked(item, [by_number[int(n)] for n in np.atleast_1d(numbers)])
            except KeyError as exc:
                raise ValueError(
                    f"it refers to dimension number {exc}, and there is none"
                ) from None
        scales = item.scales()
        if scales and scales[0] is not None:
            return self._checked(item, [self._objects.name(scale) for scale in scales])
        if item.key in self.all:
            return self._checked(item, [item.key])
        seen: Counter[int] = Counter()
        found = []
        for length in item.shape:
            same = [one.name for one in self.own.values() if one.length == length]
            if seen[length] >= len(same):
                raise ValueError(f"it has a length of {length}, and no dimension is that long")
            found.append(same[seen[length]])
            seen[length] += 1
        return tuple(found)

    def _checked(self, item: Item, names: list[str]) -> tuple[str, ...]:
        if len(names) != len(item.shape):
            raise ValueError(f"it has the shape {item.shape}, but its dimensions are {names}")
        return tuple(names)

    def shape(self, item: Item, names: tuple[str, ...]) -> tuple[int, ...]:
        """Return the lengths of the dimensions; a dataset may fill only part of them.

        Raises
        ------
        ValueError
            If a dataset is longer than its dimension.
        """
        found = []
        for name, length in zip(names, item.shape, strict=True):
            dimension = self.all.get(name)
            whole = length if dimension is None else dimension.length
            if length > whole:
                raise ValueError(
                    f"it has a length of {length} along {name!r}, whose length is {whole}"
                )
            found.append(whole)
        return tuple(found)
