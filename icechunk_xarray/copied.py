"""What was copied: the files that are there, and how their numbers are stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import xarray as xr

from icechunk import InvalidInputError, Session
from icechunk.repository.archive_tables import FIELD, Named
from icechunk_dask.archives.record import Files, Record
from icechunk_dask.archives.sources import Version
from icechunk_xarray.copy_checks import in_words
from icechunk_xarray.kept_encoding import kept_encoding
from icechunk_xarray.templates import with_chunks

__all__ = [
    "encodings_of",
    "keep_group_attributes",
    "note_files",
    "read_group",
    "read_tree",
    "repeated_coordinates",
    "without_references",
]

#: Data types of numbers in Zarr, without their sizes.
_NUMBERS: Final = ("bool", "int", "uint", "float", "complex")


def read_group(session: Session, group: str) -> xr.Dataset:
    """Open the dataset of a group; values are read when they are needed."""
    return xr.open_dataset(session, engine="icechunk", group=group, chunks=None)  # type: ignore[arg-type]


def read_tree(session: Session, group: str, chunks: Any) -> xr.DataTree:
    """Open a group and the groups below it, and say what xarray cannot open."""
    _check_encodings(session, f"/{group.strip('/')}")
    with in_words():
        tree = xr.open_datatree(session, engine="icechunk", group=group, chunks=chunks)  # type: ignore[arg-type]
    tree.name = None
    for each in tree.subtree:
        for name, variable in each.variables.items():
            if _has_integers_to_mask(variable):
                path = f"{each.path.strip('/')}/{name}".strip("/")
                raise InvalidInputError(
                    f"xarray cannot read these files: variable {path!r} has integers that are "
                    "packed as integers, which cannot be missing, and a number for missing ones: "
                    f"leave it out with drop_attributes=[{f'{path}:_FillValue'!r}, "
                    f"{f'{path}:missing_value'!r}]"
                )
    return tree


def _has_integers_to_mask(variable: xr.Variable) -> bool:
    """Whether xarray fails at the first missing value, since it makes integers of all."""
    given = {key for key, value in variable.encoding.items() if value is not None}
    packed, masked = {"scale_factor", "add_offset"}, {"_FillValue", "missing_value"}
    return variable.dtype.kind in "iu" and bool(packed & given) and bool(masked & given)


def _check_encodings(session: Session, root: str) -> None:
    """Refuse numbers that have an encoding of texts, which xarray fails to decode when it reads."""
    for node in session.tree.within(root):
        if node.array is None or b'"_Encoding"' not in node.user_data:
            continue
        document = json.loads(node.user_data)
        name = node.path.removeprefix(root).strip("/")
        kind = str(document.get("data_type")).rstrip("0123456789")
        if kind in _NUMBERS and "_Encoding" in document.get("attributes", {}):
            raise InvalidInputError(
                f"xarray cannot open these files: variable {name!r} is of type "
                f"{document['data_type']}, and its attribute '_Encoding' is for texts: leave the "
                f"attribute out with drop_attributes=[{f'{name}:_Encoding'!r}]"
            )


def repeated_coordinates(session: Session, root: str) -> set[str]:
    """Return the paths below a group of coordinates that groups around theirs have, too.

    An `xarray.DataTree` has them in the outer group only, and inherits them.
    """
    own = {
        node.path.removeprefix(root)
        for node in session.tree.within(root)
        if node.array is not None and node.array.dimension_names == (_last(node.path),)
    }
    return {path for path in own if any(f"{outer}/{_last(path)}" in own for outer in _around(path))}


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _around(path: str) -> list[str]:
    """Return the groups around the group of an array, without a slash at their ends."""
    names = path.split("/")[:-1]
    return ["/".join(names[:depth]) for depth in range(1, len(names))]


def note_files(
    session: Session, root: str, dim: str, about: Mapping[str, Any], begun: Record | None
) -> bool:
    """Record which files are there, in a table that an array names.

    Parameters
    ----------
    session : Session
        The session to write to.
    root : str
        Path of the group.
    dim : str
        The dimension along which files are combined.
    about : mapping
        Has the locations of files, and their versions.
    begun : Record or None
        The record to continue if the group has none.

    Returns
    -------
    bool
        False if all of them were recorded already.
    """
    # an append may have removed the name of the table from its array
    there = Record.find(session, root)
    record = there or begun or Record()
    known = set(record.files.locations)
    if known >= set(about["locations"]) and there is not None:
        return False
    versions = dict(zip(about["locations"], about["versions"], strict=True))
    new = [location for location in versions if location not in known]
    files = record.files.followed_by(
        Files.of(new, [Version(*versions[location]) for location in new], [True] * len(new))
    )
    noted = Record(replace(files, by_value=np.ones(len(files), np.bool_)))
    table = noted.save(session)
    arrays = sorted(
        (node for node in session.tree.within(root) if node.is_array),
        # an array that an append leaves alone keeps the name
        key=lambda node: (dim.encode() in node.user_data, node.path),
    )
    path = arrays[0].path
    document = json.loads(arrays[0].user_data)
    within = path.removeprefix(root).strip("/")
    document[FIELD] = Named(table, within).field()
    session.set_metadata_document(path, json.dumps(document).encode())
    return True


def without_references(dataset: xr.Dataset) -> xr.Dataset:
    """Return a dataset that keeps how its numbers are stored, and nothing of references."""
    for variable in dataset.variables.values():
        variable.encoding = kept_encoding(variable.encoding, variable.dtype)
    return dataset


def keep_group_attributes(tree: xr.DataTree) -> None:
    """Empty the attributes of groups that are appended: a group keeps those of its first file."""
    for node in tree.subtree:
        node.attrs = {}


def encodings_of(
    obj: xr.DataTree,
    encoding: Mapping[str, Mapping[str, Any]],
    chunks: Mapping[str, int] | None,
) -> dict[str, Any]:
    """Return the encodings of new arrays, as `to_icechunk` takes them.

    Parameters
    ----------
    obj : xarray.DataTree
    encoding : mapping of str to mapping
        For variables of the root.
    chunks : mapping of str to int, optional
        Chunk sizes, by dimension.
    """
    parts: list[Any] = []
    for node in obj.subtree:
        path = node.path.strip("/")
        parts.append((path, node.to_dataset(), encoding if not path else {}))
    if chunks is not None:
        parts = with_chunks(parts, chunks)
    if len(obj.children):
        return {f"/{path}": wanted for path, _, wanted in parts}
    return dict(parts[0][2])
