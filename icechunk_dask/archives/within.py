"""Check that reading an HDF5 file opens no other file."""

from __future__ import annotations

from typing import BinaryIO

import h5py
from h5py import h5d, h5g, h5l, h5o

from icechunk import InvalidInputError
from icechunk.errors import StorageError
from icechunk_dask.archives.hdf5_dimensions import is_virtual
from icechunk_dask.archives.hdf5_links import follow, shown_name
from icechunk_dask.archives.sources import Sources

__all__ = ["check_within"]


def check_within(sources: Sources, url: str) -> None:
    """Refuse an HDF5 file that makes the HDF5 library open others, whoever calls it.

    A folder, such as a Zarr store, must have no links that lead out of it. Other formats and
    missing files are left to whatever opens them.

    Parameters
    ----------
    sources : Sources
    url : str

    Raises
    ------
    InvalidInputError
        If it has external links, external storage or virtual datasets; is a pipe or a device; or
        is a folder with links that lead out of it.
    """
    source = sources.open(url)
    if source.is_folder:
        link = source.link_out()
        if link is not None:
            raise InvalidInputError(
                f"{url}: {link!r} is a link that leads out of the folder; copy what it leads to"
            )
        return
    try:
        file = source.opened()
    except (OSError, StorageError):
        return
    with file:
        found = _leads_out(file)
    if found is not None:
        path, why = found
        raise InvalidInputError(
            f"{url}: {path!r} {why}, which engine= would open: leave engine= out, since ingest "
            "reads by itself what may be read of those, or drop the variable from the file"
        )


def _leads_out(file: BinaryIO) -> tuple[str, str] | None:
    try:
        # the library also finds HDF5 data behind other data
        opened = h5py.File(file, "r")
    except OSError:
        return None
    with opened:
        root = h5g.open(opened.id, b"/")
        seen: set[int] = set()
        left: list[tuple[str, h5g.GroupID]] = [("", root)]
        while left:
            path, group = left.pop()
            address = h5o.get_info(group).addr
            if address in seen:
                continue
            seen.add(address)
            for raw in group:
                name = f"{path}/{shown_name(raw)}"
                if group.links.get_info(raw).type not in (h5l.TYPE_HARD, h5l.TYPE_SOFT):
                    return name, "is a link to another file"
                try:
                    found = follow(root, group, raw)
                except ValueError:
                    # a dangling soft link, or one through a link that is checked itself
                    continue
                if isinstance(found, h5g.GroupID):
                    left.append((name, found))
                elif isinstance(found, h5d.DatasetID):
                    if is_virtual(found):
                        return name, "has its values in other files (a virtual dataset)"
                    if found.get_create_plist().get_external_count():
                        return name, "has its values in other files (external storage)"
    return None
