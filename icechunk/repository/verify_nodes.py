"""Contradictions between nodes and their documents, and between sources and references."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from icechunk.changes.zarr_metadata import parse_node_metadata
from icechunk.errors import ErrorKind, IcechunkError, ObjectNotFoundError
from icechunk.format.nodes import Node

__all__ = ["Extents", "box", "contradictions", "problem_of_source"]

#: A box of chunk coordinates, ``[from, to)`` per dimension.
Extents: TypeAlias = tuple[tuple[int, int], ...]


def contradictions(node: Node) -> Iterator[str]:
    """Yield how a node contradicts its ``zarr.json``, or itself."""
    try:
        document = parse_node_metadata(node.user_data, node.path)
    except IcechunkError as error:
        yield str(error)
        return
    if document.is_array != node.is_array:
        yield f"the zarr.json of {node.path} describes another kind of node"
        return
    array = node.array
    if array is None:
        return
    if document.shape != array.shape:
        yield f"{node.path} has the shape {array.shape}, and {document.shape} in its zarr.json"
    elif document.num_chunks != array.num_chunks:
        by_document = document.num_chunks
        yield f"{node.path} has {array.num_chunks} chunks, and {by_document} by its zarr.json"
    names = tuple(name or None for name in array.dimension_names or ())
    said = document.dimension_names or ()
    if any(names) != any(said) or (any(said) and names != said):
        yield f"{node.path} has the dimensions {names}, and {said} by its zarr.json"
    boxes = sorted(ref.extents for ref in array.manifests)
    if any(len(box) not in (0, len(array.num_chunks)) for box in boxes):
        yield f"a manifest of {node.path} has extents of another number of dimensions"
    elif _overlapping(boxes):
        yield f"manifests of {node.path} overlap, so that chunks are hidden"


def _overlapping(boxes: list[Extents]) -> bool:
    """Whether two sorted boxes overlap."""
    if len(boxes) > 1 and not all(boxes):
        return True  # one without extents covers everything
    active: list[Extents] = []
    for box in boxes:
        if not box:
            continue
        active = [other for other in active if other[0][1] > box[0][0]]
        for other in active:
            if all(a < d and c < b for (a, b), (c, d) in zip(box, other, strict=True)):
                return True
        active.append(box)
    return False


def box(extents: Iterable[Extents]) -> Extents | None:
    """Return the smallest box that contains the given ones; None if there are none."""
    boxes = [each for each in extents if each]
    if not boxes:
        return None
    return tuple(
        (min(low for low, _ in axis), max(high for _, high in axis))
        for axis in zip(*boxes, strict=True)
    )


def problem_of_source(error: IcechunkError) -> str:
    """Return the kind of damage that a failed read of a source means."""
    if error.kind is ErrorKind.VIRTUAL_CHUNK_MODIFIED:
        return "changed"
    if isinstance(error.__cause__, ObjectNotFoundError):
        return "missing"
    # without a cause the read succeeded, but there were too few bytes
    is_short = error.kind is ErrorKind.VIRTUAL_CHUNK_FETCH and error.__cause__ is None
    return "short" if is_short else "unreadable"
