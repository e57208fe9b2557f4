"""Locations of virtual chunks, compressed with a dictionary of their own.

Icechunk spec, "Location dictionaries": a manifest with many virtual references may hold,
instead of URLs, one zstd frame for each, which share a dictionary that was trained on
some of them. Plain locations are always valid, so every doubt is settled that way.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from icechunk.errors import FormatError, InvalidInputError
from icechunk.format.encoding.string_heap import Indices, StringHeap

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["CompressedLocations", "LocationCompression", "compress", "decompress"]

# The official reader gives every location a buffer of this size.
_LONGEST_WRITTEN: Final = 1024
_LONGEST_READ: Final = 1 << 16
_MOST_READ: Final = 1 << 30
# What a frame may ask for as history; frames of single locations need next to none.
_OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: 23}


@dataclass(frozen=True, slots=True)
class LocationCompression:
    """When and how locations are compressed; the defaults are the official client's.

    Parameters
    ----------
    min_num_chunks : int
        Virtual references that a manifest must hold at least.
    max_samples : int
        Locations to train the dictionary on, at most.
    max_dictionary_size : int
        Bytes.
    level : int
        Of zstd.
    """

    min_num_chunks: int = 1000
    max_samples: int = 100
    max_dictionary_size: int = 2048
    level: int = 3


@dataclass(frozen=True, slots=True)
class CompressedLocations:
    """A dictionary, and for every heap of locations one frame for each of its strings."""

    dictionary: bytes
    frames: tuple[tuple[bytes, ...], ...]


def compress(
    heaps: Sequence[StringHeap], options: LocationCompression
) -> CompressedLocations | None:
    """Compress the locations of a manifest.

    Returns
    -------
    CompressedLocations or None
        None where plain locations are better: one is longer than the official reader
        accepts, no dictionary can be trained, or nothing is gained.
        (Equal locations are stored once, so few distinct ones gain nothing.)
    """
    locations = [[s.encode() for s in heap] for heap in heaps]
    flat = [location for heap in locations for location in heap]
    if not flat or max(map(len, flat)) > _LONGEST_WRITTEN:
        return None
    step = -(-len(flat) // max(options.max_samples, 1))
    samples = flat[::step]
    # training wants much more data than a dictionary holds
    repeat = 1 + options.max_dictionary_size // max(sum(map(len, samples)), 1)
    try:
        dictionary = zstd.train_dict(samples * repeat, options.max_dictionary_size)
        compressor = zstd.ZstdCompressor(options.level, zstd_dict=dictionary)
        frames = tuple(
            tuple(compressor.compress(s, compressor.FLUSH_FRAME) for s in heap)
            for heap in locations
        )
    except (zstd.ZstdError, ValueError):
        return None
    size = len(dictionary.dict_content) + sum(len(frame) for heap in frames for frame in heap)
    if size >= sum(map(len, flat)):
        return None
    return CompressedLocations(dictionary.dict_content, frames)


def decompress(
    dictionary: bytes | None, frames: Sequence[bytes], name: str
) -> tuple[StringHeap, Indices]:
    """Return the distinct locations, and int32[n] which one each frame holds.

    Parameters
    ----------
    dictionary : bytes or None
    frames : sequence of bytes
    name : str
        File and field, for errors.

    Raises
    ------
    FormatError
        If the dictionary is missing, a frame is damaged or too long, or not UTF-8.
    """
    if dictionary is None:
        raise FormatError(f"{name}: the dictionary is missing; the file is damaged")
    locations: list[bytes] = []
    room = _MOST_READ
    try:
        trained = zstd.ZstdDict(dictionary)
        for frame in frames:
            # one object for each: the module cannot reset a decompressor
            decompressor = zstd.ZstdDecompressor(trained, _OPTIONS)
            location = decompressor.decompress(frame, _LONGEST_READ)
            room -= len(location)
            if not decompressor.eof or decompressor.unused_data or room < 0:
                raise FormatError(f"{name}: a location is cut, or too long to be one")
            locations.append(location)
    except (zstd.ZstdError, ValueError) as e:
        raise FormatError(f"{name}: cannot be decompressed ({e}); the file is damaged") from e
    lengths = np.fromiter(map(len, locations), np.int64, len(locations))
    data = np.frombuffer(b"".join(locations), np.uint8)
    try:
        return StringHeap.from_spans(data, np.cumsum(lengths) - lengths, lengths)
    except InvalidInputError as e:
        raise FormatError(f"{name}: {e}; the file is damaged") from e
