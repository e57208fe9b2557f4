"""Names in files and references that no node can have, or that Zarr would not find."""

from __future__ import annotations

from typing import Final

__all__ = ["METADATA", "name_problem"]

#: The key of the metadata of a node.
METADATA: Final = "zarr.json"


def name_problem(path: str) -> str:
    r"""Return why a node cannot have a path.

    Parameters
    ----------
    path : str
        Names separated by slashes.

    Returns
    -------
    str
        Empty if it can.

    Examples
    --------
    >>> name_problem("inner/t")
    ''
    >>> name_problem(r"inner\t")
    "Zarr takes the backslash in 'inner\\\\t' for a slash"
    """
    for name in path.split("/"):
        if name == METADATA:
            return f"no node can be called {METADATA!r}, the name of metadata of Zarr"
        if "\\" in name:
            return f"Zarr takes the backslash in {name!r} for a slash"
        if name in (".", ".."):
            return f"no node can be called {name!r}"
    return ""
