"""Locations of virtual chunks, compressed with a dictionary of their own.

Icechunk spec, "Location dictionaries": a manifest with many virtual references may hold,
instead of URLs, one zstd frame for each. The frames share a dictionary that was trained on
some of them. Plain locations are always valid, so in case of doubt they stay plain: the
frame around the whole manifest compresses plain ones about as well, and they are read many
times faster.

This uses the library ``zstandard``, because Python's standard library needs a new
decompressor, with a context of its own, for every frame.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zstandard

from icechunk.errors import FormatError, InvalidInputError
from icechunk.format.encoding import spans
from icechunk.format.encoding.string_heap import StringHeap

__all__ = ["CompressedHeap", "CompressedLocations", "LocationCompression", "compress"]

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

# The official reader gives every location a buffer of this size.
_LONGEST_WRITTEN: Final = 1024
_LONGEST_READ: Final = 1 << 16
_MOST_READ: Final = 1 << 30
# What a frame may ask for as history; frames of single locations need next to none.
_MAX_WINDOW: Final = 1 << 23
# Neighbours that are compressed both ways to see which is smaller, and the gain that is needed.
_TRIED: Final = 1024
_GAIN: Final = 0.9
# Bytes of a plain location in the compressed manifest, below which nothing can be gained.
_CHEAP: Final = 4


@dataclass(frozen=True, slots=True)
class LocationCompression:
    """When and how locations are compressed; the numbers are the official client's.

    Parameters
    ----------
    min_num_chunks : int
        Virtual references that a manifest must hold at least.
    max_samples : int
        The maximum number of locations to train the dictionary on.
    max_dictionary_size : int
        Bytes.
    level : int
        Of zstd.
    only_where_smaller : bool
        Leave locations plain unless a sample of them makes a smaller manifest.
    """

    min_num_chunks: int = 1000
    max_samples: int = 100
    max_dictionary_size: int = 2048
    level: int = 3
    only_where_smaller: bool = True


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
        None if plain locations are better: if one is longer than the official reader
        accepts, no dictionary can be trained, or nothing is gained.
        (Equal locations are stored once, so few distinct ones gain nothing.)
    """
    lengths = np.concatenate([np.diff(heap.offsets) for heap in heaps])
    if not len(lengths) or lengths.max() > _LONGEST_WRITTEN:
        return None
    sample = _neighbours(heaps) if options.only_where_smaller else []
    plain = _compressed_size(sample)
    # less than a dictionary of its own takes is no gain, either
    least = max(_CHEAP * len(lengths), options.max_dictionary_size)
    if options.only_where_smaller and plain * len(lengths) <= least * len(sample):
        return None  # without training, which takes longest
    step = -(-len(lengths) // max(options.max_samples, 1))
    samples: list[Any] = [s for h in heaps for s in _strings(h, slice(None, None, step))]
    # training wants much more data than a dictionary holds
    repeat = 1 + options.max_dictionary_size // max(sum(map(len, samples)), 1)
    try:
        dictionary = zstandard.train_dictionary(options.max_dictionary_size, samples * repeat)
        compressor = zstandard.ZstdCompressor(options.level, dict_data=dictionary)
        if options.only_where_smaller:
            framed = _compressed_size(map(compressor.compress, sample))
            framed += len(dictionary.as_bytes()) * len(sample) // len(lengths)
            if framed >= _GAIN * plain:
                return None
        frames = tuple(tuple(map(compressor.compress, _strings(heap))) for heap in heaps)
    except (zstandard.ZstdError, ValueError):
        return None
    size = len(dictionary.as_bytes()) + sum(len(frame) for heap in frames for frame in heap)
    if size >= int(lengths.sum()):
        return None
    return CompressedLocations(dictionary.as_bytes(), frames)


def _strings(heap: StringHeap, which: slice = slice(None)) -> Iterator[bytes]:
    data = heap.data.data
    starts, ends = heap.offsets[:-1][which], heap.offsets[1:][which]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield bytes(data[start:end])


def _neighbours(heaps: Sequence[StringHeap]) -> list[bytes]:
    """Return a sample of the locations, from the middle of the largest heap."""
    heap = max(heaps, key=len)
    start = max((len(heap) - _TRIED) // 2, 0)
    return list(_strings(heap, slice(start, start + _TRIED)))


def _compressed_size(parts: Iterable[bytes]) -> int:
    """Return the size of these locations in the frame around a manifest."""
    return len(zstandard.ZstdCompressor(3).compress(b"".join(parts)))


class CompressedHeap(StringHeap):
    """Locations that stay compressed until they are needed.

    A single location is decompressed alone; a request for the data of all of them
    decompresses all, once. Equal locations may occur twice, if a writer compressed them
    in two ways.

    Parameters
    ----------
    data : uint8[size]
        The frames, one after the other.
    offsets : int64[n + 1]
        Frame ``i`` is ``data[offsets[i]:offsets[i + 1]]``.
    dictionary : bytes or None
    name : str
        File and field, for errors.

    Raises
    ------
    FormatError
        If the dictionary is missing or damaged; when locations are asked for, if a frame is
        damaged or too long, or its text is not UTF-8.
    """

    # `data` and `offsets` of the base are empty until all locations are requested
    __slots__ = ("_ends", "_frames", "_lock", "_name", "_unpacker")

    def __init__(self, data: Bytes, offsets: Ints, dictionary: bytes | None, name: str) -> None:
        if dictionary is None:
            raise FormatError(f"{name}: the dictionary is missing; the file is damaged")
        try:
            trained = zstandard.ZstdCompressionDict(
                dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT
            )
            unpacker = zstandard.ZstdDecompressor(trained, max_window_size=_MAX_WINDOW)
        except (zstandard.ZstdError, ValueError) as e:
            raise _damaged(name, e) from e
        self._set(data, offsets, unpacker, threading.Lock(), name)

    def _set(self, frames: Bytes, ends: Ints, unpacker: Any, lock: Any, name: str) -> None:
        self._frames, self._ends = frames, ends
        # a decompressor serves one thread at a time
        self._unpacker, self._lock, self._name = unpacker, lock, name

    def __getattr__(self, name: str) -> Any:
        if name not in ("data", "offsets"):
            raise AttributeError(name)
        # one by one: all frames at once would double the memory
        texts = [self._bytes(i) for i in range(len(self))]
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
        if offsets[-1] > _MOST_READ:
            raise FormatError(f"{self._name}: the locations are too long")
        try:
            plain = StringHeap(np.frombuffer(b"".join(texts), np.uint8), offsets)
        except InvalidInputError as e:
            raise FormatError(f"{self._name}: {e}; the file is damaged") from e
        self._assign(plain.data, plain.offsets)
        return getattr(self, name)

    def _bytes(self, index: int) -> bytes:
        frame = bytes(self._frames.data[self._ends[index] : self._ends[index + 1]])
        try:
            # the library believes a declared size, whatever the limit
            if zstandard.frame_content_size(frame) > _LONGEST_READ:
                raise FormatError(f"{self._name}: a location is too long")
            with self._lock:
                return bytes(
                    self._unpacker.decompress(
                        frame, max_output_size=_LONGEST_READ, allow_extra_data=False
                    )
                )
        except (zstandard.ZstdError, ValueError) as e:
            raise _damaged(self._name, e) from e

    def take(self, indices: npt.NDArray[np.integer]) -> StringHeap:
        """Return the strings at `indices`, in that order, still compressed."""
        starts = self._ends[:-1][indices]
        taken = CompressedHeap.__new__(CompressedHeap)
        frames, ends = spans.gather(self._frames, starts, self._ends[1:][indices] - starts)
        taken._set(frames, ends, self._unpacker, self._lock, self._name)
        return taken

    @property
    def nbytes(self) -> int:
        """Memory in bytes, as if all locations were decompressed; an estimate."""
        return self._frames.nbytes + self._ends.nbytes + 100 * len(self)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        try:
            return self._bytes(index).decode()
        except UnicodeDecodeError as e:
            raise FormatError(f"{self._name}: a location is not UTF-8: {e.reason}") from e


def _damaged(name: str, error: Exception) -> FormatError:
    return FormatError(f"{name}: cannot be decompressed ({error}); the file is damaged")
