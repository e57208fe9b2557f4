"""The Zarr codecs that undo the filters of an HDF5 dataset."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numcodecs.blosc
from h5py import h5p, h5z

__all__ = ["Filter", "Pipeline", "check_plugins", "filters_of", "pipeline", "without_plugin"]

_DEFLATE, _SHUFFLE, _FLETCHER32 = h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32
_BZIP2, _BLOSC, _ZSTD = 307, 32001, 32015
#: Names of filters (The HDF Group's list of registered filters).
_NAMES: Final = {
    _DEFLATE: "deflate",
    _SHUFFLE: "shuffle",
    _FLETCHER32: "fletcher32",
    h5z.FILTER_SZIP: "szip",
    h5z.FILTER_NBIT: "n-bit",
    h5z.FILTER_SCALEOFFSET: "scale-offset",
    _BZIP2: "bzip2",
    305: "lzo",
    32000: "lzf",
    _BLOSC: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    _ZSTD: "zstd",
    32017: "sz",
    32023: "granular bitround",
    32024: "sz3",
    32026: "blosc2",
    32028: "jpeg-xl",
}
_BLOSC_COMPRESSORS: Final = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
_BLOSC_SHUFFLES: Final = ("noshuffle", "shuffle", "bitshuffle")


@dataclass(frozen=True)
class Filter:
    """One filter of a dataset.

    Attributes
    ----------
    code : int
    name : str
    values : tuple of int
        Its parameters ("client data").
    """

    code: int
    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Pipeline:
    """The codecs that undo the filters of a dataset.

    Attributes
    ----------
    codecs : list of dict
        Codecs after the array-to-bytes codec, in encoding order.
    length : int or None
        Length of an encoded chunk in bytes; None if it depends on the values.
    by_value : str
        Why there are no codecs; empty if there are.
    """

    codecs: list[dict[str, Any]]
    length: int | None
    by_value: str = ""


def filters_of(plist: h5p.PropDCID) -> list[Filter]:
    """Return the filters of a dataset in encoding order, of which HDF5 then has the plugins."""
    found = []
    for position in range(plist.get_nfilters()):
        code, _, values, label = plist.get_filter(position)
        name = _NAMES.get(code) or f"{code} {label.decode(errors='replace')}".strip()
        found.append(Filter(code, name, tuple(map(int, values))))
        if not h5z.filter_avail(code):
            _load_plugins()
    return found


@cache
def _load_plugins() -> None:
    # HDF5 knows them once this is imported
    with suppress(ImportError):
        importlib.import_module("hdf5plugin")


def without_plugin(plist: h5p.PropDCID) -> str:
    """Say which filter of a dataset HDF5 has no plugin for; empty if it has all of them."""
    missing = [one.name for one in filters_of(plist) if not h5z.filter_avail(one.code)]
    return f"HDF5 has no plugin for filter {missing[0]!r}; install hdf5plugin" if missing else ""


def pipeline(filters: list[Filter], mask: int, length: int) -> Pipeline:
    """Return the codecs that undo filters.

    Parameters
    ----------
    filters : list of Filter
        Filters of the dataset.
    mask : int
        Bit ``n`` says that the chunks skip filter ``n``.
    length : int
        Length of a decoded chunk in bytes.
    """
    codecs: list[dict[str, Any]] = []
    by_value = ""
    size: int | None = length
    for position, one in enumerate(filters):
        if mask >> position & 1 or _does_nothing(one):
            continue
        made = _codec(one, size)
        if isinstance(made, str):
            by_value = by_value or made
            size = None
            continue
        codec, size = made
        codecs.append(codec)
    if by_value:
        return Pipeline([], None, by_value)
    return Pipeline(codecs, size)


def check_plugins(filters: list[Filter], masks: Collection[int], reason: str) -> None:
    """Refuse filters for which HDF5 has no plugin.

    Parameters
    ----------
    filters : list of Filter
    masks : collection of int
        Which filters chunks skip; bit ``n`` is filter ``n``.
    reason : str
        Why values have to be copied.

    Raises
    ------
    ValueError
        If there is no plugin for a filter.
    """
    for position, one in enumerate(filters):
        if not h5z.filter_avail(one.code) and any(not mask >> position & 1 for mask in masks):
            raise ValueError(
                f"{reason}, and HDF5 has no plugin for filter {one.name!r}, so that its values "
                "cannot be copied either; install hdf5plugin"
            )


def _does_nothing(one: Filter) -> bool:
    return one.code == _SHUFFLE and one.values == (1,)


def _codec(one: Filter, size: int | None) -> tuple[dict[str, Any], int | None] | str:
    """Return a codec and the length of its output, or why there is no codec.

    Parameters
    ----------
    one : Filter
    size : int or None
        Length of the filter's input; None if it depends on the values.
    """
    values = one.values
    match one.code:
        case h5z.FILTER_DEFLATE:
            level = min(values[0], 9) if values else 6
            return {"name": "numcodecs.zlib", "configuration": {"level": level}}, None
        case h5z.FILTER_SHUFFLE:
            if not values:
                return "filter 'shuffle' does not say of which size its elements are"
            # HDF5 leaves a remainder unshuffled; the codec allows none
            if size is None or size % values[0]:
                return "filter 'shuffle' works on a length for which there is no codec"
            config = {"elementsize": values[0]}
            return {"name": "numcodecs.shuffle", "configuration": config}, size
        case h5z.FILTER_FLETCHER32:
            return (
                {"name": "numcodecs.fletcher32", "configuration": {}},
                None if size is None else size + 4,
            )
    match one.code:
        case code if code == _BZIP2:
            level = min(max(values[0], 1), 9) if values else 9
            return {"name": "numcodecs.bz2", "configuration": {"level": level}}, None
        case code if code == _ZSTD:
            config = {"level": min(values[0], 22) if values else 3, "checksum": False}
            return {"name": "zstd", "configuration": config}, None
        case code if code == _BLOSC:
            return _blosc(values)
    return f"filter {one.name!r} has no codec"


def _blosc(values: tuple[int, ...]) -> tuple[dict[str, Any], int | None] | str:
    """Return the codec of blosc; the header of each chunk says how to decode it."""
    size = values[2] if len(values) > 2 else 1
    level = values[4] if len(values) > 4 else 5
    shuffle = values[5] if len(values) > 5 else 1
    compressor = values[6] if len(values) > 6 else 0
    if compressor >= len(_BLOSC_COMPRESSORS) or shuffle >= len(_BLOSC_SHUFFLES):
        return "filter 'blosc' has parameters that are not known"
    name = _BLOSC_COMPRESSORS[compressor]
    if name not in numcodecs.blosc.list_compressors():
        return f"filter 'blosc' uses {name!r}, which has no codec"
    config = {
        "typesize": max(size, 1),
        "cname": name,
        "clevel": min(level, 9),
        "shuffle": _BLOSC_SHUFFLES[shuffle],
        "blocksize": 0,
    }
    return {"name": "blosc", "configuration": config}, None
