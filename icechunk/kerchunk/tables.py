"""A set of references: Zarr metadata, and for each array where its chunks are."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.encoding.string_heap import StringHeap

__all__ = [
    "IN_PLACE",
    "METADATA_NAMES",
    "WHOLE_FILE",
    "ChunkKeys",
    "ChunkTable",
    "References",
    "StringHeap",
    "consolidated",
    "document_of",
    "is_array",
    "payload_of",
    "refuse",
]

#: Length of a reference to a whole file, until its size is requested.
WHOLE_FILE: Final = -1
#: Location of a row whose bytes are in the references.
IN_PLACE: Final = -1

#: Key names of metadata documents.
METADATA_NAMES: Final = (".zarray", ".zgroup", ".zattrs", "zarr.json")


def refuse(key: str, reason: str, kind: ErrorKind = ErrorKind.INVALID_VIRTUAL_REF) -> NoReturn:
    """Refuse references because of one key.

    Raises
    ------
    InvalidInputError
    """
    raise InvalidInputError(f"reference {key!r}: {reason}", kind)


@dataclass(frozen=True)
class ChunkKeys:
    """The form of the keys of an array's chunks.

    Parameters
    ----------
    path : str
        Path of the array within the references, without leading or trailing slashes.
    grid : tuple of int
        Number of chunks along each dimension.
    separator : {".", "/"}
    prefix : str
        What precedes the first number: ``"c/"`` in the default encoding of Zarr v3.
    scalar : str
        The key of the only chunk of an array without dimensions.
    """

    path: str
    grid: tuple[int, ...]
    separator: str = "."
    prefix: str = ""
    scalar: str = "0"

    def key(self, name: str) -> str:
        """Return the key of a chunk from its name within the array."""
        return f"{self.path}/{name}" if self.path else name


@dataclass(frozen=True)
class ChunkTable:
    """Where the chunks of one array are; missing chunks have no row.

    Attributes
    ----------
    coords : uint32[n, ndim]
    location : int32[n]
        Index into `locations`; `IN_PLACE` where the bytes are in `payloads`.
    locations : StringHeap
        Distinct, as Icechunk stores them.
    offset, length : int64[n]
        In bytes; 0 and `WHOLE_FILE` for a reference to a whole file.
    payloads : list of bytes
        Bytes of the rows that are in place, in their order.
    """

    coords: npt.NDArray[np.uint32]
    location: npt.NDArray[np.int32]
    locations: StringHeap
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    payloads: list[bytes]

    @classmethod
    def of_file(
        cls,
        location: str,
        coords: npt.NDArray[np.uint32],
        offset: npt.NDArray[np.int64],
        length: npt.NDArray[np.int64],
    ) -> ChunkTable:
        """Return a table of chunks that all lie in one file; parameters as the attributes."""
        heap, _ = StringHeap.from_strings([location])
        return cls(coords, np.zeros(len(coords), np.int32), heap, offset, length, [])


class References(Protocol):
    """A set of references."""

    documents: dict[str, Any]
    """Zarr metadata by key, such as ``"group/array/.zarray"``."""

    def count(self, keys: ChunkKeys) -> int:
        """Return how many references of an array there are to examine."""

    def table(self, keys: ChunkKeys, progress: Callable[[int], None]) -> ChunkTable:
        """Return where the chunks of an array are.

        Parameters
        ----------
        keys : ChunkKeys
        progress : callable
            Called with the number of references examined since the last call.

        Raises
        ------
        InvalidInputError
            If a reference is malformed, or names a chunk that the array does not have.
        """


def document_of(key: str, value: Any) -> dict[str, Any]:
    """Return a metadata document, given as JSON or already decoded."""
    document = value
    if not isinstance(value, Mapping):
        data = payload_of(key, value)
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as exc:
            refuse(key, f"is not JSON: {exc}", ErrorKind.BAD_METADATA)
    if not isinstance(document, Mapping):
        refuse(key, "is not a JSON object", ErrorKind.BAD_METADATA)
    return dict(document)


def payload_of(key: str, value: Any) -> bytes:
    """Return the inline bytes of a reference."""
    if isinstance(value, str):
        data = value.encode()
    elif isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
    elif hasattr(value, "to_bytes") and not isinstance(value, int):
        data = value.to_bytes()  # a buffer of zarr
    else:
        refuse(key, f"{value!r} is neither data nor [url, offset, length]")
    if data.startswith(b"base64:"):
        try:
            return base64.b64decode(data[7:], validate=True)
        except binascii.Error as exc:
            refuse(key, f"its base64 data is damaged: {exc}")
    return data


def is_array(key: str, document: Mapping[str, Any]) -> bool:
    """Return whether a metadata document describes an array, in Zarr v2 or v3."""
    name = key.rpartition("/")[2]
    return name == ".zarray" or (name == "zarr.json" and document.get("node_type") == "array")


def consolidated(key: str, value: Any) -> dict[str, Any]:
    """Return the metadata documents in a ``.zmetadata``, by key."""
    document = document_of(key, value)
    parts = document.get("metadata")
    if not isinstance(parts, Mapping):
        refuse(key, "has no dictionary 'metadata'", ErrorKind.BAD_METADATA)
    start = key.rpartition("/")[0]
    found = {}
    for name, part in parts.items():
        whole = f"{start}/{name}" if start else name
        if whole.rpartition("/")[2] in METADATA_NAMES:
            found[whole] = document_of(whole, part)
    return found


#: In bytes. A fill value is as large as an item, and is part of the metadata.
_MAX_ITEM: Final = 1 << 24


def check_item_size(key: str, dtype: Any) -> None:
    """Refuse a NumPy data type, as ``.zarray`` names it, whose items are too large.

    Raises
    ------
    InvalidInputError
    """
    try:
        size = np.dtype([tuple(f) for f in dtype] if isinstance(dtype, list) else dtype).itemsize
    except (TypeError, ValueError, SyntaxError, OverflowError):
        return  # not a NumPy type, or none at all: whoever uses it says so
    if size > _MAX_ITEM:
        refuse(
            key,
            f"the data type {str(dtype)[:50]!r} has items of {size} bytes",
            ErrorKind.INVALID_ARRAY_METADATA,
        )
