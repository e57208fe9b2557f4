"""Files that an HDF5 file says its values are in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from h5py import h5p

from icechunk.base.windows import is_elsewhere
from icechunk.kerchunk.locations import normalizer

__all__ = ["Reach", "external"]

#: With these, HDF5 reads other files than those that are looked at here.
_PREFIXES = ("HDF5_VDS_PREFIX", "HDF5_EXTFILE_PREFIX")
_EXTERNAL = "its values are in other files (external storage)"


@dataclass(frozen=True)
class Reach:
    """Which other files may be referred to.

    Parameters
    ----------
    path : str
        Of the file that names them.
    may_open : callable
        Says whether a file at a location may be.
    """

    path: str
    may_open: Callable[[str], bool]

    def find(self, name: str) -> tuple[str, str]:
        """Return the path and the location of a file.

        Parameters
        ----------
        name : str
            As the file names it, from its own folder if it is relative.

        Raises
        ------
        ValueError
            If it may not be referred to, or does not exist.
        """
        if os.name == "nt" and is_elsewhere(name):
            # to look for it is a request already
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
    """Return where the values of a dataset are that has external storage.

    Returns
    -------
    location : str
    offset : int
        Of the values, in bytes.
    size : int
        Of the file, in bytes.

    Raises
    ------
    ValueError
        If they may not be referred to, or are not in one piece.
    """
    if reach is None:
        raise ValueError(_EXTERNAL)
    if plist.get_external_count() > 1:
        raise ValueError(f"{_EXTERNAL}, and not in one piece")
    raw, offset, _ = plist.get_external(0)
    name = os.fsdecode(raw)
    if not os.path.isabs(name):
        # HDF5 looks for it in whatever folder is the current one
        raise ValueError(f"{_EXTERNAL}, and {name!r} is not an absolute path")
    path, location = reach.find(name)
    return location, offset, os.path.getsize(path)
