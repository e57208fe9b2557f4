"""What repositories of spec 1 keep in another form than those of spec 2.

Refs are JSON objects and the config is YAML; metadata values are MessagePack; snapshots
list manifests and shapes as structs. Which form a file has follows from its own header,
because a migrated repository keeps its spec-1 files for ever (Icechunk spec, "Spec
version 1").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from icechunk.errors import ErrorKind, FormatError, InvalidInputError
from icechunk.format.encoding.envelope import BytesLike
from icechunk.format.encoding.flatbuf import Tables
from icechunk.format.ids import decode_id, encode_id
from icechunk.format.nodes import ManifestFile, Node

if TYPE_CHECKING:
    import yaml

__all__ = [
    "array_shapes",
    "chunk_lengths",
    "dump_config",
    "dump_ref",
    "irregular_grid",
    "manifest_file_rows",
    "manifest_files",
    "metadata_dumps",
    "metadata_loads",
    "parse_config",
    "parse_ref",
    "shape_rows",
]

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


def metadata_dumps(value: Any) -> bytes:
    """Encode a metadata value, one that JSON could have."""
    packed: bytes = msgpack.packb(value)
    return packed


def dump_ref(snapshot_id: bytes) -> bytes:
    """Return the ``ref.json`` that points to a snapshot."""
    return f'{{"snapshot":"{encode_id(snapshot_id)}"}}'.encode()


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


def manifest_file_rows(files: Sequence[ManifestFile]) -> NDArray[np.uint64]:
    """Return a snapshot's manifest list as structs, uint64[n, 4]."""
    # zeros, because nothing else is written between the fields
    rows = np.zeros(len(files), _MANIFEST_FILE)
    rows["id"] = [np.void(file.id) for file in files]
    rows["size_bytes"] = [file.size_bytes for file in files]
    rows["num_chunk_refs"] = [file.num_chunk_refs for file in files]
    return rows.view("<u8").reshape(-1, 4)


def irregular_grid(path: str) -> InvalidInputError:
    """Return the error for an array whose chunks have several shapes."""
    return InvalidInputError(
        f"metadata of node {path!r}: a chunk_grid that is not regular cannot be stored in a "
        "repository of spec version 1; icechunk.upgrade_icechunk_repository upgrades it",
        ErrorKind.BAD_METADATA,
    )


def chunk_lengths(user_data: bytes, path: str) -> tuple[int, ...]:
    """Return the chunk shape that a ``zarr.json`` of an array names.

    Raises
    ------
    InvalidInputError
        If its grid is not regular: spec 1 stores one chunk length per dimension.
    """
    grid = json.loads(user_data)["chunk_grid"]
    if grid["name"] != "regular":
        raise irregular_grid(path)
    return tuple(grid["configuration"]["chunk_shape"])


def shape_rows(arrays: Iterable[Node]) -> NDArray[np.uint64]:
    """Return the dimensions of all arrays as structs, uint64[total, 2].

    Raises
    ------
    InvalidInputError
        As `chunk_lengths`.
    """
    rows = [
        pair
        for node in arrays
        if node.array is not None
        for pair in zip(node.array.shape, chunk_lengths(node.user_data, node.path), strict=True)
    ]
    return np.array(rows, "<u8").reshape(-1, 2)


# -- config.yaml ---------------------------------------------------------------

#: Variants of enumerations that hold something: what is `{"Axis": 0}` in the config of
#: spec 2 is `!Axis 0` here. Below the second group lie options with names of their own.
_VARIANTS: Final = (
    *("and", "or", "path_matches", "name_matches", "num_refs", "Included", "Excluded"),
    *("Axis", "DimensionName"),
)
_STORES: Final = ("local_file_system", "http", "s3", "s3_compatible", "tigris", "gcs", "azure")


def dump_config(config: Mapping[str, Any]) -> bytes:
    """Encode a ``config.yaml``.

    Parameters
    ----------
    config : mapping
        With the structure that `parse_config` returns.
    """
    return "".join(f"{key}: {_flow(value)}\n" for key, value in config.items()).encode()


def _flow(value: Any, *, variants: bool = True) -> str:
    """Return a value in YAML's flow style: JSON, but for the tags."""
    if isinstance(value, list):
        return f"[{', '.join(_flow(item, variants=variants) for item in value)}]"
    if not isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if variants and len(value) == 1:
        ((key, item),) = value.items()
        if key in _VARIANTS or key in _STORES:
            return f"!{key} {_flow(item, variants=key not in _STORES)}"
    pairs = (
        f"{json.dumps(key, ensure_ascii=False)}: {_flow(item, variants=variants)}"
        for key, item in value.items()
    )
    return f"{{{', '.join(pairs)}}}"


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
    import yaml

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
    import yaml

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
