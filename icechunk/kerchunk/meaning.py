"""Whether two documents mean the same, however they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["decoding", "difference_of_grids", "same"]

#: Options of codecs that matter when chunks are written: what is written says the rest itself.
_FOR_WRITERS: Final[dict[str, frozenset[str]]] = {
    "blosc": frozenset({"blocksize", "clevel", "cname", "shuffle", "typesize"}),
    "bz2": frozenset({"level"}),
    "gzip": frozenset({"level"}),
    "lz4": frozenset({"acceleration"}),
    "zlib": frozenset({"level"}),
    "zstd": frozenset({"checksum", "level"}),
}


def same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are equal; 1.0 is 1, and NaN is NaN."""
    return _text(one) == _text(other)


def decoding(codecs: Sequence[Any]) -> list[Any]:
    """Return what readers need to know of a chain of codecs.

    Parameters
    ----------
    codecs : sequence
        As they stand in a ``zarr.json``.
    """
    return [_for_readers(codec) for codec in codecs]


def difference_of_grids(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say how two chunk grids differ."""
    ours, theirs = ((g.get("configuration") or {}).get("chunk_shape") for g in (one, other))
    if isinstance(ours, list) and isinstance(theirs, list):
        return f"chunks {tuple(theirs)}, not {tuple(ours)}"
    return f"the chunk grid {json.dumps(other)}, not {json.dumps(one)}"


def _for_readers(codec: Any) -> Any:
    if not isinstance(codec, Mapping):
        return codec
    name = str(codec.get("name"))
    left_out = _FOR_WRITERS.get(name.removeprefix("numcodecs."), frozenset())
    options = {
        key: decoding(value) if key in ("codecs", "index_codecs") else value
        for key, value in (codec.get("configuration") or {}).items()
        if key not in left_out
    }
    return {"name": name, "configuration": options}


def _text(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
