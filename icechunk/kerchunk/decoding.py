"""Whether two arrays decode their chunks in the same way, however that is written.

The level of a compressor, for example, only matters for encoding: chunks of any level can be in
one array. Numbers are equal whatever their type in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from icechunk.kerchunk.metadata import normal_form

__all__ = ["decoding_form", "difference_of_grids", "equal"]

#: Options of codecs that decoding does not need, because the bytes contain them.
_FOR_ENCODING: Final[Mapping[str, frozenset[str]]] = {
    "blosc": frozenset({"blocksize", "clevel", "cname", "shuffle", "typesize"}),
    "gzip": frozenset({"level"}),
    "zstd": frozenset({"checksum", "level"}),
    "numcodecs.blosc": frozenset({"blocksize", "clevel", "cname", "shuffle", "typesize"}),
    "numcodecs.bz2": frozenset({"level"}),
    "numcodecs.gzip": frozenset({"level"}),
    "numcodecs.lz4": frozenset({"acceleration"}),
    "numcodecs.zlib": frozenset({"level"}),
    "numcodecs.zstd": frozenset({"checksum", "level"}),
}


def decoding_form(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``zarr.json`` of an array without what decoding does not need."""
    found = normal_form(document)
    found["codecs"] = [_decoding(codec) for codec in found["codecs"]]
    return found


def _decoding(codec: Any) -> Any:
    if not isinstance(codec, Mapping):
        return codec
    options = codec.get("configuration") or {}
    left_out = _FOR_ENCODING.get(codec["name"], frozenset())
    return {
        "name": codec["name"],
        "configuration": {
            # shards have codecs of their own
            key: list(map(_decoding, value)) if key in ("codecs", "index_codecs") else value
            for key, value in options.items()
            if key not in left_out
        },
    }


def difference_of_grids(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say how the second of two chunk grids differs from the first."""
    ours, theirs = ((g.get("configuration") or {}).get("chunk_shape") for g in (one, other))
    if isinstance(ours, list) and isinstance(theirs, list):
        return f"chunks {tuple(theirs)}, not {tuple(ours)}"
    return f"the chunk grid {json.dumps(other)}, not {json.dumps(one)}"


def equal(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same: 1 is 1.0, NaN is NaN, and true is not a number."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b or (a != a and b != b))
