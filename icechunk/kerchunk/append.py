"""Where the chunks of an import go in existing arrays: at the end, or into a region."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from icechunk.base.rectilinear import is_rectilinear
from icechunk.base.texts import counted
from icechunk.errors import ErrorKind, InvalidInputError, NodeNotFoundError
from icechunk.kerchunk.decoding import decoding_form, difference_of_grids, equal
from icechunk.kerchunk.metadata import MEANING, ArrayMetadata
from icechunk.session.session import Session

__all__ = ["Place", "appended", "in_region"]


@dataclass(frozen=True)
class Place:
    """Where an array of the references goes.

    Attributes
    ----------
    document : dict or None
        The ``zarr.json`` to set; None leaves the present one.
    start : tuple of int
        Coordinates of the chunk that the first chunk becomes.
    clear : tuple of (int, int), optional
        The box of chunks that are deleted unless the references have others for them.
    selection : tuple of slice, optional
        Where the values go if they are written by value.
    reason : str
        Why they must be; empty if they need not be.
    """

    document: dict[str, Any] | None
    start: tuple[int, ...]
    clear: tuple[tuple[int, int], ...] | None = None
    selection: tuple[slice, ...] | None = None
    reason: str = ""

    @property
    def by_value(self) -> bool:
        """Whether chunks are decoded and rewritten, because they do not fit as they are."""
        return bool(self.reason)


def _differ(path: str, reason: str) -> NoReturn:
    raise InvalidInputError(
        f"cannot add to the array {path!r}: {reason}", ErrorKind.INVALID_ARRAY_METADATA
    )


def _compared(session: Session, path: str, array: ArrayMetadata) -> tuple[dict[str, Any], str]:
    """Compare an array with the existing one.

    Returns
    -------
    document : dict
        The document of the existing array.
    reason : str
        Why the chunks of one cannot be chunks of the other; empty if they can.

    Raises
    ------
    InvalidInputError
        If the values have another meaning.
    NodeNotFoundError
        If there is no such array.
    """
    node = session.tree.get(path)
    if node is None or not node.is_array:
        raise NodeNotFoundError(
            f"cannot add to the array {path!r}: there is none; import it without append_dim and "
            "region first"
        )
    document: dict[str, Any] = json.loads(node.user_data)
    if is_rectilinear(document):
        _differ(path, "it has chunks of several lengths, and references cannot be put among them")
    old, new = decoding_form(document), decoding_form(array.document)
    if len(old["shape"]) != len(new["shape"]):
        has = counted(len(old["shape"]), "dimension")
        _differ(path, f"it has {has}, the references {len(new['shape'])}")
    for field in ("data_type", "dimension_names", "fill_value"):
        if not equal(old.get(field), new.get(field)):
            _differ(path, f"its {field} is {old.get(field)!r}, the references {new.get(field)!r}")
    ours, theirs = old.get("attributes") or {}, new.get("attributes") or {}
    for name in MEANING:
        if not equal(ours.get(name), theirs.get(name)):
            _differ(
                path,
                f"its attribute {name!r} is {ours.get(name)!r}, in the references "
                f"{theirs.get(name)!r}: the values would not mean the same",
            )
    if not equal(old["chunk_grid"], new["chunk_grid"]):
        wrong = difference_of_grids(old["chunk_grid"], new["chunk_grid"])
        return document, f"the references of {path!r} have {wrong}"
    if not equal(old["codecs"], new["codecs"]):
        return document, (
            f"the chunks of {path!r} are decoded by {json.dumps(old['codecs'])}, those of the "
            f"references by {json.dumps(new['codecs'])}"
        )
    return document, ""


def appended(
    session: Session, root: str, arrays: Mapping[str, ArrayMetadata], dimension: str
) -> dict[str, Place]:
    """Return the places of arrays that are appended along a dimension.

    Arrays without that dimension are checked and left out.

    Raises
    ------
    InvalidInputError, NodeNotFoundError
        If arrays do not fit, or an array of the repository with that dimension is not
        among them.
    """
    places = {}
    for path, array in arrays.items():
        document, reason = _compared(session, path, array)
        old = tuple(document["shape"])
        if dimension not in array.dimensions:
            if old != array.shape:
                _differ(path, f"its shape is {old}, in the references {array.shape}")
            continue
        axis = array.dimensions.index(dimension)
        if [*old[:axis], *old[axis + 1 :]] != [*array.shape[:axis], *array.shape[axis + 1 :]]:
            _differ(
                path,
                f"its shape is {old}, in the references {array.shape}: they may only "
                f"differ along {dimension!r}",
            )
        size = array.chunks[axis]
        if not reason and old[axis] % size:
            reason = (
                f"the last chunk of {path!r} along {dimension!r} is not full: its length "
                f"{old[axis]} is not a multiple of {size}"
            )
        grown = list(old)
        grown[axis] += array.shape[axis]
        start = [0] * len(old)
        start[axis] = old[axis] // size
        selection = tuple(
            slice(old[axis], grown[axis]) if i == axis else slice(None) for i in range(len(old))
        )
        places[path] = Place({**document, "shape": grown}, tuple(start), None, selection, reason)
    for node in session.tree.within(root):
        names = node.array.dimension_names if node.array is not None else None
        if names and dimension in names and node.path not in arrays:
            _differ(
                node.path,
                f"it has the dimension {dimension!r}, but is not among the references, so it "
                "would stay behind",
            )
    if not places:
        raise InvalidInputError(
            f"no array of the references has the dimension {dimension!r}",
            ErrorKind.INVALID_ARRAY_METADATA,
        )
    return places


def in_region(
    session: Session, arrays: Mapping[str, ArrayMetadata], region: Mapping[str, slice]
) -> dict[str, Place]:
    """Return the places of arrays that are put into a region.

    Arrays without any of its dimensions are checked and left out.

    Raises
    ------
    InvalidInputError, NodeNotFoundError
        If arrays do not fit, or the region does not begin and end with whole chunks.
    """
    places = {}
    for path, array in arrays.items():
        document, reason = _compared(session, path, array)
        old = tuple(document["shape"])
        touched = any(name in region for name in array.dimensions)
        selection, start, clear = [], [], []
        for length, size, chunk, name in zip(
            old, array.shape, array.chunks, array.dimensions, strict=True
        ):
            given = region.get(name, slice(None)) if name is not None else slice(None)
            low, high, step = given.indices(length)
            if step != 1 or high - low != size or (given.stop or 0) > length:
                _differ(
                    path,
                    f"the region of {name!r} is {low} to {high} of {length}, the references have "
                    f"{size}",
                )
            if not reason and (low % chunk or (high % chunk and high != length)):
                reason = (
                    f"the region of {name!r}, {low} to {high}, does not begin and end with whole "
                    f"chunks of {chunk} in {path!r}"
                )
            selection.append(slice(low, high))
            start.append(low // chunk)
            clear.append((low // chunk, -(-high // chunk)))
        if touched:
            places[path] = Place(None, tuple(start), tuple(clear), tuple(selection), reason)
    known = {name for array in arrays.values() for name in array.dimensions}
    for name in region:
        if name not in known:
            raise InvalidInputError(
                f"no array of the references has the dimension {name!r} of the region",
                ErrorKind.INVALID_ARRAY_METADATA,
            )
    return places
