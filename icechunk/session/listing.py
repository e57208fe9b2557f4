"""Zarr keys and the nodes and chunk references they stand for: find, list, and delete them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from icechunk.changes.zarr_metadata import check_stored
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import normalize_path
from icechunk.format.snapshot import Node
from icechunk.session.keys import (
    METADATA_NAME,
    ChunkKey,
    MetadataKey,
    V2Key,
    chunk_key,
    find_key,
    metadata_key,
)
from icechunk.session.session import Session


def keys_below(session: Session, prefix: str) -> Iterator[str]:
    """Yield the keys in a folder and below it. If a key is given, yield that key."""
    wanted = prefix.strip("/")
    key = find_key(wanted)
    if isinstance(key, MetadataKey):
        if session.tree.get(key.path) is not None:
            yield wanted
        return
    for node, refs in below(session, wanted):
        if refs is None:
            yield metadata_key(node.path)
        else:
            yield from (chunk_key(node.path, tuple(c)) for c in refs.coords.tolist())


def find(session: Session, key: str) -> bytes | tuple[Node, tuple[int, ...]] | None:
    """Return the metadata that a key means, or the array and the coordinate of a chunk."""
    parsed = find_key(key)
    if parsed is None or isinstance(parsed, V2Key):
        return None
    node = session.tree.get(parsed.path)
    if node is None:
        return None
    if isinstance(parsed, MetadataKey):
        return node.user_data
    array = node.array
    # a folder among the chunks of an array has no value: ``a/c/0`` of two dimensions
    if array is None or len(parsed.coordinate) != len(array.shape):
        return None
    return node, parsed.coordinate


def below(session: Session, prefix: str) -> Iterator[tuple[Node, ChunkRefs | None]]:
    """Yield what lies below a folder: each node, and then the chunks of arrays.

    A pair without references stands for the node's metadata document.
    """
    path = "/" + prefix.strip("/")
    tree = session.tree
    for node in tree.within(path):
        yield node, None
        if node.is_array:
            refs = session.chunk_refs(node.path)
            if len(refs):
                yield node, refs
    if tree.get(path) is not None:
        return
    # a folder within the chunks of an array: <path>/c/1
    array, leading = _chunk_folder(session, path)
    if array is not None:
        refs = session.chunk_refs(array.path)
        if leading:
            refs = refs.take((refs.coords[:, : len(leading)] == leading).all(axis=1))
        if len(refs):
            yield array, refs


def _chunk_folder(session: Session, path: str) -> tuple[Node | None, tuple[int, ...]]:
    parsed = find_key(path)
    if isinstance(parsed, ChunkKey):
        node = session.tree.get(parsed.path)
        array = node.array if node is not None else None
        if array is not None and len(parsed.coordinate) <= len(array.shape):
            return node, parsed.coordinate
    return None, ()


def names_in(session: Session, prefix: str) -> list[str]:
    """Return the names directly below a folder, of keys and of folders."""
    path = "/" + prefix.strip("/")
    tree = session.tree
    names: dict[str, None] = {}
    node = tree.get(path)
    if node is not None:
        names[METADATA_NAME] = None
        if node.is_array and len(session.chunk_refs(path)):
            names["c"] = None
    depth = 1 if path == "/" else len(path) + 1
    for found in tree.paths_below(path):
        # groups need no document of their own to have members
        names[found[depth:].partition("/")[0]] = None
    array, leading = _chunk_folder(session, path) if not names else (None, ())
    if array is not None and array.array is not None:
        for _, refs in below(session, prefix):
            if refs is not None and len(leading) < refs.ndim:
                for index in np.unique(refs.coords[:, len(leading)]).tolist():
                    names[str(index)] = None
    return list(names)


def size_below(session: Session, prefix: str) -> int:
    """Return the size in bytes of all values below a folder, without reading chunks."""
    return sum(
        len(node.user_data) if refs is None else int(refs.length.sum())
        for node, refs in below(session, prefix)
    )


def delete_below(session: Session, prefix: str) -> None:
    """Delete all values below a folder."""
    path = normalize_path(prefix)
    if path == "/" or session.tree.get(path) is not None:
        session.delete_nodes(path)
        return
    # implicit groups have descendants but no document; c/0 is a part of an array
    for node, refs in list(below(session, prefix)):
        if refs is None:
            session.delete_nodes(node.path)
        else:
            session.set_refs(node.path, ChunkRefs.deleted(refs.coords))


def readable(document: bytes | None, key: str) -> bytes | None:
    """Return a document after a check: for some, readers of Zarr give messages that help nobody.

    Raises
    ------
    FormatError
        If it is one of those. The message names the node.
    """
    if document is not None:
        check_stored(document, "/" + key.rpartition("/")[0])
    return document
