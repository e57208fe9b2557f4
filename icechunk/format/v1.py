"""What repositories of spec 1 keep in another form than those of spec 2.

Refs are JSON objects and the config is YAML; metadata values are MessagePack; snapshots
list manifests and shapes as structs. Only reading is implemented: this library writes
spec 2. Which form a file has follows from its own header, because a migrated repository
keeps its spec-1 files for ever (Icechunk spec, "Spec version 1").
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgpack
import numpy as np
import yaml
from numpy.typing import NDArray

from icechunk.errors import ErrorKind, FormatError, InvalidInputError
from icechunk.format.envelope import BytesLike
from icechunk.format.flatbuf import Tables
from icechunk.ids import decode_id

__all__ = ["array_shapes", "manifest_files", "metadata_loads", "parse_config", "parse_ref"]

#: Largest ``config.yaml`` and ``ref.json`` that are parsed, in bytes.
MAX_TEXT: Final = 1 << 20

_MANIFEST_FILE: Final = np.dtype(
    {
        "names": ["id", "size_bytes", "num_chunk_refs"],
        "formats": ["V12", "<u8", "<u4"],
        "offsets": [0, 16, 24],
        "itemsize": 32,
    }
)


def metadata_loads(data: BytesLike, name: str) -> Any:
    """Decode a metadata value.

    Parameters
    ----------
    data : bytes-like
        One MessagePack value.
    name : str
        Where it comes from, for messages.

    Raises
    ------
    FormatError
        If the value is damaged or not one that JSON could have.
    """
    try:
        return msgpack.unpackb(data, object_pairs_hook=_json_object, ext_hook=_no_extension)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise FormatError(f"{name}: not a MessagePack value: {error}") from error


def _json_object(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    if not all(isinstance(key, str) for key, _ in pairs):
        raise ValueError("keys must be strings")
    return dict(pairs)


def _no_extension(code: int, data: bytes) -> None:
    raise ValueError(f"extension type {code}")


def parse_ref(data: BytesLike, name: str) -> bytes:
    """Return the snapshot id that a ``ref.json`` points to.

    Raises
    ------
    FormatError
        If it is not ``{"snapshot": "<id>"}``.
    """
    try:
        return decode_id(json.loads(bytes(data[:MAX_TEXT]))["snapshot"])
    except (ValueError, TypeError, KeyError, RecursionError, InvalidInputError) as error:
        raise FormatError(f'{name}: not a ref, expected {{"snapshot": "<id>"}}') from error


def manifest_files(
    snapshot: Tables,
) -> tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint32]]:
    """Return the columns of a snapshot's manifest list.

    Parameters
    ----------
    snapshot : Tables
        One root table.

    Returns
    -------
    ids : uint8[n, 12]
    size_bytes : uint64[n]
    num_chunk_refs : uint32[n]
    """
    raw, _ = snapshot.vector(
        6, np.uint8, "manifest_files", required=True, columns=_MANIFEST_FILE.itemsize
    )
    files = np.ascontiguousarray(raw).reshape(-1).view(_MANIFEST_FILE)
    ids = np.ascontiguousarray(files["id"]).view(np.uint8).reshape(-1, 12)
    return ids, files["size_bytes"], files["num_chunk_refs"]


def array_shapes(
    arrays: Tables, name: str
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]:
    """Return the shapes and chunk counts of arrays, whose grids are all regular.

    Parameters
    ----------
    arrays : Tables
        ``ArrayNodeData`` tables.
    name : str
        The file, for messages.

    Returns
    -------
    lengths, num_chunks : uint64[total]
        Per dimension.
    offsets : int64[n + 1]
        Of the dimensions of each array.
    """
    dimensions, offsets = arrays.vector(0, "<u8", "shape", required=True, columns=2)
    lengths, chunk_lengths = dimensions[:, 0], dimensions[:, 1]
    if ((chunk_lengths == 0) & (lengths != 0)).any():
        raise FormatError(f"{name}: shape: a dimension that is not empty has chunks of length 0")
    whole, rest = np.divmod(lengths, np.maximum(chunk_lengths, 1))
    return lengths, whole + (rest != 0), offsets


# -- config.yaml ---------------------------------------------------------------


def parse_config(data: BytesLike, name: str) -> dict[str, Any]:
    """Decode a ``config.yaml``.

    Returns
    -------
    dict
        With the structure of the config that spec 2 stores: a YAML tag, ``!s3 {...}``, is a
        dict with one key, ``{"s3": {...}}``. Empty for an empty file.

    Raises
    ------
    FormatError
        If it is not YAML, not a mapping of strings, or larger than `MAX_TEXT`.
    """
    problem: object = f"larger than {MAX_TEXT} bytes"
    if len(data) <= MAX_TEXT:
        try:
            node = yaml.compose(bytes(data).decode(), Loader=yaml.SafeLoader)
            config = {} if node is None else _plain(node, set())
            if isinstance(config, dict):
                return config
            problem = "not a mapping"
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            problem = error
    raise FormatError(f"{name}: not a config: {problem}", ErrorKind.CONFIG_DESERIALIZATION)


def _plain(node: yaml.Node, seen: set[int]) -> Any:
    # an alias gives the same node again: no writer uses them, a few could expand without end
    if id(node) in seen:
        raise ValueError("aliases are not part of a config")
    seen.add(id(node))
    value: Any
    if isinstance(node, yaml.MappingNode):
        if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
            raise ValueError("keys must be strings")
        value = {key.value: _plain(item, seen) for key, item in node.value}
    elif isinstance(node, yaml.SequenceNode):
        value = [_plain(item, seen) for item in node.value]
    else:
        value = _scalar(node.value) if node.style is None else node.value
    if not node.tag.startswith("!"):
        return value
    variant = node.tag[1:]
    return variant if value is None else {variant: value}


def _scalar(text: str) -> Any:
    """Return an unquoted scalar: null, a boolean or number of JSON, else a string.

    YAML 1.1 knows more, dates and numbers to base 60 among them; the writer does not.
    """
    if text in ("", "~"):
        return None
    try:
        value = json.loads(text, parse_constant=str)
    except ValueError:
        return text
    return text if isinstance(value, (str, list, dict)) else value
