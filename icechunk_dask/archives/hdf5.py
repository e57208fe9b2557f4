"""Describe an HDF5 or NetCDF4 file through the HDF5 library."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import h5py
from h5py import h5d, h5g, h5l, h5o, h5s

from icechunk.errors import ErrorKind, InvalidInputError
from icechunk_dask.archives.described import Dataset, FileVariable
from icechunk_dask.archives.hdf5_attributes import ObjectAttributes
from icechunk_dask.archives.hdf5_dimensions import GroupDimensions, Item, Objects, is_virtual
from icechunk_dask.archives.hdf5_links import follow, shown_name
from icechunk_dask.archives.hdf5_located import Source
from icechunk_dask.archives.hdf5_reach import Reach
from icechunk_dask.archives.hdf5_variables import refused_variable, variable
from icechunk_dask.archives.hdf5_virtual import check_mappings
from icechunk_dask.archives.signs import step

__all__ = ["open_hdf5"]


@contextmanager
def open_hdf5(
    file: str | os.PathLike[str] | BinaryIO,
    location: str,
    *,
    drop_variables: Collection[str] = (),
    may_open: Callable[[str], bool] | None = None,
) -> Iterator[Dataset]:
    """Open an HDF5 file and describe its contents without reading values.

    A variable whose values are in other files is refused by name, before any of them is
    opened. `may_open` may allow files of virtual datasets and of external storage; external
    links are never followed.

    Parameters
    ----------
    file : path or binary file
        A local file should be given by its path.
    location : str
        Location of the file in references.
    drop_variables : collection of str
        Paths within the file of variables to skip, such as ``"group/name"``.
    may_open : callable, optional
        Decides whether another file at a location, such as ``"file:///data/raw.bin"``, may be
        opened and referenced. It is used only if `file` is a path. Default: no other file may
        be.

    Yields
    ------
    Dataset
        Its variables can be read until the context ends.

    Raises
    ------
    InvalidInputError
        If it cannot be opened as an HDF5 file.

    Examples
    --------
    >>> with open_hdf5("/data/day_1.nc", "file:///data/day_1.nc") as dataset:
    ...     print(sorted(dataset.variables))
    """
    if isinstance(file, str | os.PathLike):
        size = os.stat(file).st_size
    else:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
    try:
        opened = h5py.File(file, "r")
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as exc:
        raise InvalidInputError(
            f"{location} cannot be opened as an HDF5 file: {exc}", ErrorKind.INVALID_VIRTUAL_REF
        ) from exc
    with opened:
        reach = None
        if may_open is not None and isinstance(file, str | os.PathLike):
            reach = Reach(os.fspath(file), may_open)
        source = Source(location, size, opened.userblock_size, reach)
        yield _Scan(source, opened, frozenset(drop_variables)).dataset()


#: A group still to visit, its path, and the dimensions of its parent group.
_Left = tuple[h5g.GroupID, str, GroupDimensions | None]


class _Scan:
    """Scans the groups of a file.

    Parameters
    ----------
    source : Source
    file : h5py.File
    dropped : frozenset of str
    """

    def __init__(self, source: Source, file: h5py.File, dropped: frozenset[str]) -> None:
        self._source = source
        self._root = h5g.open(file.id, b"/")
        self._dropped = dropped
        self._objects = Objects(file.id)
        self._groups: dict[str, dict[str, Any]] = {}
        self._odd: dict[str, dict[str, str]] = {}
        self._variables: dict[str, FileVariable] = {}
        self._seen: set[int] = set()
        self._left_out: set[str] = set()

    def dataset(self) -> Dataset:
        """Return the contents of the file."""
        left: list[_Left] = [(self._root, "", None)]
        while left:  # no recursion: groups may nest to any depth
            left += reversed(self._group(*left.pop()))
        return Dataset(self._groups, self._variables, self._odd, dropped=frozenset(self._left_out))

    def _group(self, gid: h5g.GroupID, path: str, above: GroupDimensions | None) -> list[_Left]:
        """Scan a group and return its subgroups."""
        address = h5o.get_info(gid).addr
        if address in self._seen:  # several links to one group, perhaps in a cycle
            return []
        self._seen.add(address)
        attributes = ObjectAttributes(gid)
        self._groups[path], self._odd[path] = attributes.shown, attributes.odd
        items: list[Item] = []
        groups: list[tuple[str, h5g.GroupID]] = []
        for raw in gid:
            step()
            key = shown_name(raw)
            whole = _joined(path, key)
            try:
                raw.decode()
                found = follow(self._root, gid, raw)
                if isinstance(found, h5g.GroupID):
                    # a soft link leads to a group that is found under its own name
                    if gid.links.get_info(raw).type == h5l.TYPE_HARD:
                        groups.append((whole, found))
                elif isinstance(found, h5d.DatasetID):
                    items.append(self._item(key, found))
            except MemoryError:
                raise
            except Exception as exc:  # one bad object must not hide the others
                self._refuse(whole, _reason(exc))
        dimensions = GroupDimensions(self._objects, items, above)
        taken = {item.key for item in items if item.attributes.is_variable}
        for item in items:
            step()
            whole = _joined(path, item.name)
            if item.name != item.key and item.name in taken:
                self._refuse(
                    _joined(path, item.key), f"its name is that of the variable {item.name!r}"
                )
            elif item.attributes.is_variable and not self._is_dropped(whole):
                self._variable(whole, item, dimensions)
        return [(group, whole, dimensions) for whole, group in groups]

    def _refuse(self, path: str, reason: str, **known: Any) -> None:
        if not self._is_dropped(path):
            self._variables[path] = refused_variable(path, reason, **known)

    def _is_dropped(self, path: str) -> bool:
        if path in self._dropped:
            self._left_out.add(path)
        return path in self._dropped

    def _item(self, key: str, did: h5d.DatasetID) -> Item:
        """Return a dataset without reading its values.

        Raises
        ------
        ValueError
            If its mappings are refused, or it has no values.
        """
        if is_virtual(did):
            check_mappings(self._source.reach, did.get_create_plist())
        if did.get_space().get_simple_extent_type() == h5s.NULL:
            raise ValueError("it has no values (an empty dataspace)")
        self._objects.add(key, did)
        return Item(key, did, did.shape, ObjectAttributes(did))

    def _variable(self, path: str, item: Item, dimensions: GroupDimensions) -> None:
        try:
            names = dimensions.names(item)
            shape = dimensions.shape(item, names)
            self._variables[path] = variable(self._source, path, item, names, shape)
        except MemoryError:
            raise
        except Exception as exc:  # one bad variable must not hide the others
            self._refuse(path, _reason(exc))


def _joined(group: str, name: str) -> str:
    return f"{group}/{name}" if group else name


def _reason(exc: Exception) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return "its name is not UTF-8"
    return str(exc.args[0]) if exc.args else type(exc).__name__
