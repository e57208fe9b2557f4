"""Zarr keys: which node or chunk a key of the store means.

Metadata is at ``<path>/zarr.json``, chunks at ``<path>/c/0/1`` and, for scalar arrays, at
``<path>/c`` (Zarr v3 core spec, default chunk key encoding with the separator ``/``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from icechunk.errors import ErrorKind, InvalidInputError, SessionStateError

METADATA_NAME: Final = "zarr.json"
_CHUNK: Final = re.compile(r"(?:(?P<path>.*)/)?c(?P<coordinate>(?:/[0-9]{1,10})*)", re.DOTALL)
#: An empty segment, ``.``, ``..``, and halves of surrogate pairs, which have no UTF-8
#: form: no node has such a path.
_BAD_PATH: Final = re.compile(r"//|(?:^|/)\.\.?(?:/|$)|/$|[\ud800-\udfff]")
_V2_NAMES: Final = (".zarray", ".zgroup", ".zattrs", ".zmetadata")
_MAX_INDEX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class MetadataKey:
    """The ``zarr.json`` of a node."""

    path: str


@dataclass(frozen=True, slots=True)
class ChunkKey:
    """A chunk of an array."""

    path: str
    coordinate: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class V2Key:
    """A document of Zarr v2: readers probe for it, the format cannot hold it."""


Key: TypeAlias = MetadataKey | ChunkKey | V2Key


def find_key(key: str) -> Key | None:
    """Say what a key means, or return None if Zarr uses no such key."""
    stripped = key.lstrip("/")
    head, _, name = stripped.rpartition("/")
    if name == METADATA_NAME:
        return None if _BAD_PATH.search(head) else MetadataKey("/" + head)
    match = _CHUNK.fullmatch(stripped)
    if match is not None:
        path = match["path"] or ""
        coordinate = tuple(int(i) for i in match["coordinate"].split("/")[1:])
        if any(i > _MAX_INDEX for i in coordinate) or _BAD_PATH.search(path):
            return None
        return ChunkKey("/" + path, coordinate)
    return V2Key() if name in _V2_NAMES else None


def parse_key(key: str) -> Key:
    """Say what a key means.

    Raises
    ------
    InvalidInputError
        If Zarr uses no such key.
    """
    found = find_key(key)
    if found is None:
        raise InvalidInputError(
            f"invalid zarr key format: {key!r}, expected <path>/zarr.json or <path>/c/0/0",
            ErrorKind.INVALID_KEY,
        )
    return found


def writable_key(key: str) -> MetadataKey | ChunkKey:
    """Say what a key that is about to be written means.

    Raises
    ------
    InvalidInputError
        If Zarr uses no such key.
    SessionStateError
        If it is a document of Zarr format 2.
    """
    found = parse_key(key)
    if isinstance(found, V2Key):
        raise SessionStateError(
            f"{key!r}: documents of Zarr format 2 cannot be stored; write zarr_format=3",
            ErrorKind.UNIMPLEMENTED,
        )
    return found


def metadata_key(path: str) -> str:
    """Return the key of a node's ``zarr.json``."""
    return f"{path[1:]}/{METADATA_NAME}" if path != "/" else METADATA_NAME


def chunk_prefix(path: str) -> str:
    """Return the key that all chunk keys of an array begin with, without a final ``/``."""
    return f"{path[1:]}/c" if path != "/" else "c"


def chunk_key(path: str, coordinate: tuple[int, ...]) -> str:
    """Return the key of a chunk."""
    return "/".join([chunk_prefix(path), *map(str, coordinate)])
