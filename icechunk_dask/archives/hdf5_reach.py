"""Other files that an HDF5 file names as holding its values."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from h5py import h5p

from icechunk.base.windows import is_elsewhere
from icechunk.kerchunk.locations import normalizer

__all__ = ["Reach", "external"]

#: With these set, HDF5 reads files other than those checked here.
_PREFIXES = ("HDF5_VDS_PREFIX", "HDF5_EXTFILE_PREFIX")
_EXTERNAL = "its values are in other files (external storage)"


@dataclass(frozen=True)
class Reach:
    """Which other files may be referenced.

    Parameters
    ----------
    path : str
        Path of the file that names them.
    may_open : callable
        Decides whether a file at a location may be referenced.
    """

    path: str
    may_open: Callable[[str], bool]

    def find(self, name: str) -> tuple[str, str]:
        """Return the path and the location of a file.

        Parameters
        ----------
        name : str
            Name as that file gives it; a relative one starts at that file's folder.

        Raises
        ------
        ValueError
            If the file may not be referenced, or does not exist.
        """
        if os.name == "nt" and is_elsewhere(name):
            # even looking for it would send a request
            raise ValueError(f"its values are in {name!r}, on another host or a device")
        for variable in _PREFIXES:
            if os.environ.get(variable) and not os.path.isabs(name):
                raise ValueError(
                    f"its values are in {name!r}, and {variable} of the environment says where "
                    "HDF5 looks for that: unset it"
                )
        path = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(self.path)), name))
        location = normalizer()(path)
        if not self.may_open(location):
            raise ValueError(f"its values are in {location}, which is not among the authorised")
        if not os.path.isfile(path):
            raise ValueError(f"its values are in {location}, which does not exist")
        return path, location


def external(reach: Reach | None, plist: h5p.PropDCID) -> tuple[str, int, int]:
    """Locate the values of a dataset in external storage.

    Returns
    -------
    location : str
    offset : int
        Offset of the values in bytes.
    size : int
        Size of the file in bytes.

    Raises
    ------
    ValueError
        If they may not be referenced, or are not in one piece.
    """
    if reach is None:
        raise ValueError(_EXTERNAL)
    if plist.get_external_count() > 1:
        raise ValueError(f"{_EXTERNAL}, and not in one piece")
    raw, offset, _ = plist.get_external(0)
    name = os.fsdecode(raw)
    if not os.path.isabs(name):
        # HDF5 looks for it in the current working directory
        raise ValueError(f"{_EXTERNAL}, and {name!r} is not an absolute path")
    path, location = reach.find(name)
    return location, offset, os.path.getsize(path)
