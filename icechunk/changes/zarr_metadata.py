"""The few things that the library reads from a node's ``zarr.json``.

Everything else in the document is opaque and stored byte for byte. Only chunk keys of
the default encoding with the separator ``/`` exist in the format (Icechunk spec,
"Zarr keys"), so other encodings are refused when a node is written.

Documents are checked more strictly when they are written than when they are read: others may
have stored one, and it must stay readable.
"""

from __future__ import annotations

import json
import math
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from icechunk.errors import ErrorKind, FormatError, InvalidInputError

#: The official client counts chunks in a u32 and wraps; larger grids are unusable there.
MAX_CHUNKS_PER_DIMENSION: Final = 2**32 - 1
#: As many chunks along an axis may be runs in a short document, which Zarr writes out.
_MAX_WRITTEN_OUT: Final = 1 << 20
#: How deep arrays and objects may be nested; other readers of JSON stop there.
_MAX_DEPTH: Final = 100
#: Sizes are stored in 64 bits.
_MAX_SIZE: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class NodeMetadata:
    """What a ``zarr.json`` says.

    Attributes
    ----------
    is_array : bool
    shape : tuple of int
        Empty for a group and for a scalar array.
    num_chunks : tuple of int
        Length of the chunk grid along each dimension; 0 where the array is empty.
    dimension_names : tuple of (str or None), optional
        None if the document has none; the empty string counts as unnamed.
    is_regular : bool
        Whether all chunks have the same shape.
    """

    is_array: bool
    shape: tuple[int, ...] = ()
    num_chunks: tuple[int, ...] = ()
    dimension_names: tuple[str | None, ...] | None = None
    is_regular: bool = True


def parse_node_metadata(user_data: bytes, path: str) -> NodeMetadata:
    """Read a ``zarr.json``.

    Raises
    ------
    InvalidInputError
        If it is not a Zarr v3 node, names a field that cannot be right, or uses a chunk
        grid or chunk keys that the format cannot hold.
    """
    try:
        document = json.loads(user_data)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _bad(path, "not a JSON object")
    if document.get("zarr_format", 3) != 3:
        raise _bad(path, f"zarr_format is {document['zarr_format']!r}; only 3 can be stored")
    node_type = document.get("node_type")
    if node_type == "group":
        return NodeMetadata(is_array=False)
    if node_type != "array":
        raise _bad(path, f"node_type is {node_type!r}, expected 'array' or 'group'")
    shape = _sizes(document.get("shape"), path, "shape")
    encoding = document.get("chunk_key_encoding", {"name": "default"})
    name = encoding.get("name") if isinstance(encoding, dict) else encoding
    options = encoding.get("configuration") or {} if isinstance(encoding, dict) else {}
    separator = options.get("separator", "/") if isinstance(options, dict) else None
    if name != "default" or separator != "/":
        raise _bad(
            path,
            f"chunk_key_encoding {encoding!r} cannot be stored; use the default encoding "
            "with the separator '/'",
        )
    num_chunks = _grid(document.get("chunk_grid"), shape, path)
    names = _dimension_names(document, len(shape), path)
    is_regular = document["chunk_grid"]["name"] == "regular"
    return NodeMetadata(True, shape, num_chunks, names, is_regular)


def chunk_runs(user_data: bytes, shape: tuple[int, ...]) -> list[list[tuple[int, int]]]:
    """Return how long chunks are along each axis, as runs of a size and how often it comes.

    A stored document that cannot be read so is taken for one of chunks as long as the axes.
    """
    try:
        options = json.loads(user_data)["chunk_grid"]["configuration"]
        given = options.get("chunk_shape") or options["chunk_shapes"]
        return [_runs(sizes, length) for sizes, length in zip(given, shape, strict=True)]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return [_runs(length, length) for length in shape]


def _runs(sizes: Any, length: int) -> list[tuple[int, int]]:
    if not isinstance(sizes, list):
        return [(operator.index(sizes), -(-length // max(sizes, 1)))]
    pairs = (size if isinstance(size, list) else (size, 1) for size in sizes)
    return [(operator.index(size), operator.index(times)) for size, times in pairs]


def check_document(user_data: bytes, path: str) -> None:
    """Refuse a ``zarr.json`` that other readers of the format could not read.

    Python's own reader and writer of JSON know numbers that JSON has not.

    Raises
    ------
    InvalidInputError
        If it is not strict JSON, has a name twice, or its chunk grid contradicts its shape. The
        message names the attribute.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(key for key, times in Counter(k for k, _ in pairs).items() if times > 1)
            raise _bad(path, f"{twice!r} is there twice, and clients differ in which they take")
        return found

    try:
        document = json.loads(user_data.decode(), object_pairs_hook=unique)
    except InvalidInputError:
        raise
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"not JSON: {error}") from None
    _check_value(document, path, ())
    grid = document.get("chunk_grid") if isinstance(document, dict) else None
    if isinstance(grid, dict) and grid.get("name") == "rectilinear":
        _check_edges(grid, document["shape"], len(user_data), path)


def check_stored(user_data: bytes, path: str) -> None:
    """Refuse a stored ``zarr.json`` that no reader of Zarr can make anything of.

    Raises
    ------
    FormatError
        If it is no JSON object, or its chunk grid cannot be that of its shape or stands for too
        many chunks.
    """
    try:
        document = json.loads(user_data)
        if not isinstance(document, dict):
            raise _bad(path, "not a JSON object")
        grid = document.get("chunk_grid")
        if document.get("node_type") == "array" and isinstance(grid, dict):
            shape = _sizes(document.get("shape"), path, "shape")
            if grid.get("name") == "regular":
                _regular(grid.get("configuration"), shape, path)
            elif grid.get("name") == "rectilinear":
                _grid(grid, shape, path)
                _check_edges(grid, shape, len(user_data), path)
    except (InvalidInputError, RecursionError, ValueError) as error:
        text = error if isinstance(error, InvalidInputError) else _bad(path, f"not JSON: {error}")
        raise FormatError(f"{text}; write it anew, or delete the node") from None


def _check_value(value: Any, path: str, where: tuple[str, ...], depth: int = 1) -> None:
    """Refuse what JSON cannot express, somewhere in a document."""
    if depth > _MAX_DEPTH:
        raise _bad(path, f"{_name(where[:2])} is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_value(key, path, (*where, key), depth)
            _check_value(item, path, (*where, key), depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, path, where, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        token = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        raise _bad(
            path,
            f"{_name(where)} is {token}, a number that JSON does not have, so other clients could "
            "not change this node; drop it, or store a finite number or a text",
        )
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _bad(
                path, f"{_name(where)} is {value!r}, which has half of a surrogate pair"
            ) from None


def _name(where: tuple[str, ...]) -> str:
    if where[:1] == ("attributes",) and len(where) > 1:
        return f"attribute {'.'.join(where[1:])!r}"
    return f"field {'.'.join(where)!r}"


def _check_edges(grid: Any, shape: Sequence[int], size: int, path: str) -> None:
    """Refuse a rectilinear grid that does not cover an array, or that stands for too much.

    Zarr writes out runs of chunk sizes, so a few bytes may become any number.
    """
    for axis, edges in enumerate(grid["configuration"]["chunk_shapes"]):
        if not isinstance(edges, list):
            continue  # one size for all, which was looked at
        count = _edges(edges, 0, path)
        if count > max(_MAX_WRITTEN_OUT, size):
            raise _bad(
                path,
                f"{count} chunks along axis {axis} of the rectilinear grid are too many for a "
                f"document of {size} bytes; give one size for the axis, or use a regular grid",
            )
        total = 0
        for edge in edges:
            length, times = edge if isinstance(edge, list) and len(edge) == 2 else (edge, 1)
            if any(type(n) is not int or n < 1 for n in (length, times)):
                raise _bad(
                    path,
                    f"chunk size {edge!r} along axis {axis} of the rectilinear grid: expected a "
                    "positive integer, or a pair of a size and a count",
                )
            total += length * times
        if total < shape[axis]:
            raise _bad(
                path,
                f"the chunks along axis {axis} of the rectilinear grid add up to {total}, but "
                f"the array is {shape[axis]} long",
            )


def _bad(path: str, reason: str) -> InvalidInputError:
    return InvalidInputError(f"metadata of node {path!r}: {reason}", ErrorKind.BAD_METADATA)


def _sizes(value: Any, path: str, field: str) -> tuple[int, ...]:
    if not isinstance(value, list) or any(
        not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in value
    ):
        raise _bad(path, f"{field} is {value!r}, expected a list of sizes")
    if any(n > _MAX_SIZE for n in value):
        raise _bad(path, f"{field} is {value!r}, but sizes are stored in 64 bits")
    return tuple(value)


def _grid(grid: Any, shape: tuple[int, ...], path: str) -> tuple[int, ...]:
    name = grid.get("name") if isinstance(grid, dict) else None
    options = grid.get("configuration") if isinstance(grid, dict) else None
    if name == "regular" and isinstance(options, dict):
        chunks = _regular(options, shape, path)
        counts = tuple(-(-n // c) if n else 0 for n, c in zip(shape, chunks, strict=True))
    elif name == "rectilinear" and isinstance(options, dict):
        per_dimension = options.get("chunk_shapes")
        if not isinstance(per_dimension, list) or len(per_dimension) != len(shape):
            raise _bad(path, f"chunk_shapes of the rectilinear grid do not fit shape {shape}")
        counts = tuple(
            _edges(edges, n, path) for edges, n in zip(per_dimension, shape, strict=True)
        )
    else:
        raise _bad(path, f"chunk_grid is {grid!r}, expected 'regular' or 'rectilinear'")
    if any(n > MAX_CHUNKS_PER_DIMENSION for n in counts):
        raise _bad(path, f"{max(counts)} chunks along one dimension; the format counts to 2**32-1")
    return counts


def _regular(options: Any, shape: tuple[int, ...], path: str) -> tuple[int, ...]:
    """Return the shape of the chunks of a regular grid."""
    given = options.get("chunk_shape") if isinstance(options, dict) else None
    chunks = _sizes(given, path, "chunk_shape")
    if len(chunks) != len(shape):
        raise _bad(path, f"chunk_shape {chunks} and shape {shape} differ in rank")
    if any(c == 0 < n for n, c in zip(shape, chunks, strict=True)):
        raise _bad(path, f"chunk_shape {chunks} has a zero for a dimension that is not empty")
    return chunks


def _edges(edges: Any, length: int, path: str) -> int:
    """Count the chunks of one dimension of a rectilinear grid."""
    if isinstance(edges, int) and not isinstance(edges, bool) and edges > 0:
        return -(-length // edges)
    if not isinstance(edges, list):
        raise _bad(path, f"chunk sizes {edges!r} of the rectilinear grid are not a list")
    count = 0
    for edge in edges:
        # a run is [size, how many times]
        run = isinstance(edge, list) and len(edge) == 2 and type(edge[1]) is int and edge[1] > 0
        count += edge[1] if run else 1
    return count


def _dimension_names(
    document: dict[str, Any], ndim: int, path: str
) -> tuple[str | None, ...] | None:
    names = document.get("dimension_names")
    if names is None:
        return None
    if not isinstance(names, list) or any(n is not None and not isinstance(n, str) for n in names):
        raise _bad(path, f"dimension_names is {names!r}, expected a list of names")
    if len(names) != ndim:
        raise _bad(path, f"{len(names)} dimension_names for {ndim} dimensions")
    return tuple(n or None for n in names)
