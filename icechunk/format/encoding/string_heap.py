"""Many strings as two arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.errors import InvalidInputError
from icechunk.format.encoding import spans

__all__ = ["StringHeap"]

Indices = npt.NDArray[np.int32]

_FIRST_BEYOND_ASCII: Final = 128
#: From this number of strings on, it pays to look at a sample of this size.
_MANY: Final = 1 << 14
_SAMPLE: Final = 256
#: So many strings are joined at a time.
_STEP: Final = 1 << 12


class StringHeap(Sequence[str]):
    """An immutable sequence of strings, stored as UTF-8 without an object each.

    Parameters
    ----------
    data : uint8[size]
        The strings, one after the other.
    offsets : int64[n + 1]
        String ``i`` is ``data[offsets[i]:offsets[i + 1]]``.

    Raises
    ------
    InvalidInputError
        If the offsets do not divide `data`, or a string is not UTF-8.
    """

    __slots__ = ("__weakref__", "data", "offsets")

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    def __init__(self, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        if data.dtype != np.uint8 or data.ndim != 1:
            raise InvalidInputError("the data of a string heap must be uint8 of one dimension")
        if offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) == 0:
            raise InvalidInputError("the offsets of a string heap must be int64[n + 1]")
        if offsets[0] != 0 or offsets[-1] != len(data) or (offsets[1:] < offsets[:-1]).any():
            raise InvalidInputError("the offsets of a string heap must rise from 0 to its size")
        _check_utf8(data, offsets)
        self._assign(data, offsets)

    def _assign(self, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        self.data = np.ascontiguousarray(data).view()
        self.offsets = np.ascontiguousarray(offsets).view()
        self.data.setflags(write=False)
        self.offsets.setflags(write=False)

    @classmethod
    def _trusted(cls, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> StringHeap:
        heap = cls.__new__(cls)
        heap._assign(data, offsets)
        return heap

    @classmethod
    def from_strings(cls, strings: Sequence[str]) -> tuple[StringHeap, Indices]:
        """Store strings, equal ones once, in the order of their first occurrence.

        Returns
        -------
        heap : StringHeap
            The distinct strings.
        index : int32[len(strings)]
            ``heap[index[i]] == strings[i]``.

        Raises
        ------
        InvalidInputError
            If a string has no UTF-8 form (a lone surrogate).
        """
        if len(strings) >= _MANY and _seem_distinct(strings):
            lengths = np.fromiter(map(len, strings), np.int64, len(strings))
            offsets = np.zeros(len(strings) + 1, np.int64)
            np.cumsum(lengths, out=offsets[1:])
            data = _ascii(strings, int(offsets[-1]))
            if data is not None:
                first, inverse = spans.unique(data, offsets[:-1], lengths)
                if len(first) < len(strings):
                    data, offsets = spans.gather(data, offsets[first], lengths[first])
                # ASCII is UTF-8: that need not be checked
                return cls._trusted(data, offsets), inverse.astype(np.int32)
        distinct = dict.fromkeys(strings)
        index = np.arange(len(strings), dtype=np.int32)
        if len(distinct) < len(strings):
            numbers = dict(zip(distinct, range(len(distinct)), strict=True))
            index = np.fromiter(map(numbers.__getitem__, strings), np.int32, len(strings))
        try:
            raw = "".join(distinct).encode()
            sizes = np.fromiter(map(len, distinct), np.int64, len(distinct))
            if sizes.sum() != len(raw):
                sizes = np.fromiter((len(s.encode()) for s in distinct), np.int64, len(distinct))
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"a string cannot be stored as UTF-8: {error}") from error
        offsets = np.zeros(len(distinct) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        return cls._trusted(np.frombuffer(raw, np.uint8), offsets), index

    @classmethod
    def from_array(cls, strings: npt.NDArray[Any]) -> tuple[StringHeap, Indices]:
        """Store the strings of an array as `from_strings` does, without an object each.

        Parameters
        ----------
        strings : array of n strings
            Of a fixed width: ``S``, in UTF-8, or ``U``. Characters beyond ASCII in the latter cost
            an object for each string.

        Returns
        -------
        heap : StringHeap
        index : int32[n]

        Raises
        ------
        InvalidInputError
            If a string has no UTF-8 form.
        """
        count = len(strings)
        is_unicode = strings.dtype.kind == "U"
        width = strings.dtype.itemsize // (4 if is_unicode else 1)
        if not count or not width:
            return cls.from_strings([""] * count)
        lengths = np.strings.str_len(strings).astype(np.int64, copy=False)
        table = np.ascontiguousarray(strings).view(np.uint8)
        if is_unicode:
            codes = table.view(strings.dtype.byteorder.replace("|", "=") + "u4")
            if int(codes.max()) >= _FIRST_BEYOND_ASCII:
                return cls.from_strings(strings.tolist())
            table = codes.astype(np.uint8)
        return cls.from_spans(table, np.arange(count, dtype=np.int64) * width, lengths)

    @classmethod
    def from_spans(
        cls,
        buffer: npt.NDArray[np.uint8],
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
    ) -> tuple[StringHeap, Indices]:
        """Store the strings at byte ranges of a buffer, equal ones once.

        Takes time and memory in proportion to ``lengths.sum()``, which the caller bounds
        where ranges can overlap.

        Parameters
        ----------
        buffer : uint8[size]
        starts, lengths : int64[n]

        Returns
        -------
        heap : StringHeap
            The distinct strings in the order of their first occurrence.
        index : int32[n]

        Raises
        ------
        InvalidInputError
            If a range leaves the buffer, or a string is not UTF-8.
        """
        if ((starts < 0) | (lengths < 0) | (lengths > len(buffer) - starts)).any():
            raise InvalidInputError("a string lies outside the buffer")
        first, inverse = spans.unique(buffer, starts, lengths)
        heap = cls(*spans.gather(buffer, starts[first], lengths[first]))
        return heap, inverse.astype(np.int32)

    @classmethod
    def merge(cls, heaps: Sequence[StringHeap]) -> tuple[StringHeap, list[Indices]]:
        """Join heaps, equal strings once.

        Returns
        -------
        heap : StringHeap
        maps : list of int32[len(heaps[k])]
            Where each string of heap ``k`` is in the result.
        """
        if heaps and all(heap is heaps[0] for heap in heaps):
            return heaps[0], [np.arange(len(heaps[0]), dtype=np.int32)] * len(heaps)
        data = np.concatenate([heap.data for heap in heaps])
        lengths = np.concatenate([np.diff(heap.offsets) for heap in heaps])
        starts = np.cumsum(lengths) - lengths
        first, inverse = spans.unique(data, starts, lengths)
        index = inverse.astype(np.int32)
        del inverse
        joined = cls._trusted(*spans.gather(data, starts[first], lengths[first]))
        bounds = np.cumsum([0, *map(len, heaps)]).tolist()
        return joined, [index[begin:end] for begin, end in pairwise(bounds)]

    def take(self, indices: npt.NDArray[np.integer]) -> StringHeap:
        """Return the strings at `indices`, in that order."""
        starts = self.offsets[:-1][indices]
        lengths = self.offsets[1:][indices] - starts
        return self._trusted(*spans.gather(self.data, starts, lengths))

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.data.nbytes + self.offsets.nbytes

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.data[begin:end].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        bounds = pairwise(self.offsets.tolist())
        whole = self.data.tobytes()
        if whole.isascii():
            # a character is a byte, and a slice costs less than decoding each
            text = whole.decode()
            return (text[begin:end] for begin, end in bounds)
        return (whole[begin:end].decode() for begin, end in bounds)

    def __repr__(self) -> str:
        return f"StringHeap({len(self)} strings, {self.nbytes} bytes)"

    def __reduce__(self) -> tuple[object, ...]:
        return StringHeap, (self.data, self.offsets)


def _seem_distinct(strings: Sequence[str]) -> bool:
    """Whether finding equal strings by their bytes is faster than in a dict."""
    sample = strings[:: len(strings) // _SAMPLE]
    return len(set(sample)) > 0.75 * len(sample)


def _ascii(strings: Sequence[str], size: int) -> npt.NDArray[np.uint8] | None:
    """Return strings that have this many characters one after the other, if all are ASCII."""
    data = np.empty(size, np.uint8)
    end = 0
    # in steps: memory for all of them is new to the process, and the system clears it first
    for row in range(0, len(strings), _STEP):
        joined = "".join(strings[row : row + _STEP])
        if not joined.isascii():
            return None
        begin, end = end, end + len(joined)
        data[begin:end] = np.frombuffer(joined.encode(), np.uint8)
    return data


def _check_utf8(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
    try:
        str(np.ascontiguousarray(data).data, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"a string is not UTF-8: {error.reason}") from error
    # valid as a whole; each string is, if none begins inside a character
    begins = offsets[offsets < len(data)]
    if ((data[begins] & 0xC0) == 0x80).any():
        raise InvalidInputError("a string is not UTF-8: it is cut inside a character")
