"""Follow HDF5 links, but only within one file."""

from __future__ import annotations

from typing import Any, Final

from h5py import h5g, h5l, h5o, h5t

__all__ = ["at_path", "follow", "shown_name"]

#: Length of the longest chain of soft links that is followed.
_MOST_LINKS: Final = 16


def shown_name(raw: bytes) -> str:
    """Return a name for a message."""
    return raw.decode(errors="backslashreplace")


def follow(root: h5g.GroupID, gid: h5g.GroupID, name: bytes) -> Any:
    """Return the target of a link; None if it is a named type.

    HDF5 itself would follow external links along the path.

    Parameters
    ----------
    root : h5py.h5g.GroupID
        Root group of the file.
    gid : h5py.h5g.GroupID
        The group that has the link.
    name : bytes

    Raises
    ------
    ValueError
        If it leads out of the file, or nowhere.
    """
    return _data(_link(root, gid, name, 0))


def _data(found: Any) -> Any:
    """Return a group or dataset, and None for a data type, which has no values."""
    return None if isinstance(found, h5t.TypeID) else found


def _link(root: h5g.GroupID, gid: h5g.GroupID, name: bytes, depth: int) -> Any:
    kind = gid.links.get_info(name).type
    if kind == h5l.TYPE_HARD:
        return h5o.open(gid, name)
    if kind != h5l.TYPE_SOFT:
        raise ValueError("it is in another file (an external link)")
    if depth == _MOST_LINKS:
        raise ValueError(f"it is a link that leads through more than {depth} others")
    target = gid.links.get_val(name)
    found = _path(root, gid, target, depth + 1)
    if found is None:
        raise ValueError(f"it is a link to {shown_name(target)!r}, which does not exist")
    return found


def _path(root: h5g.GroupID, gid: h5g.GroupID, path: bytes, depth: int) -> Any:
    """Return the object at a path; None if there is none."""
    here: Any = root if path.startswith(b"/") else gid
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        if not isinstance(here, h5g.GroupID) or not here.links.exists(part):
            return None
        here = _link(root, here, part, depth)
    return here


def at_path(root: h5g.GroupID, path: bytes) -> Any:
    """Return the object at a path from the root of a file; None if there is none.

    Raises
    ------
    ValueError
        If it is in another file.
    """
    return _data(_path(root, root, path, 0))
