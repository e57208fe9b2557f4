"""Many byte ranges of one buffer at a time: copy, compare, find equal ones.

A span is a start and a length in a ``uint8`` buffer. Strings and inline payloads
are spans, so a million of them are two integer arrays without Python objects.
All functions work on groups of equal length. There are few of these: T bytes
in all have at most ``sqrt(2 T)`` different lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["begin_with", "equal", "gather", "unique"]

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

# longer spans are handled one by one: the loop costs nothing beside the bytes,
# and NumPy's item size is limited
_LONG: Final = 1 << 16
# bytes handled at once where a temporary copy is needed
_BLOCK: Final = 1 << 22
# and where it is read several times
_CACHED: Final = 1 << 18
# long spans that differ nearly always do at their ends, as names of files
_TAIL: Final = 32
_MULTIPLIER: Final = 0x9E3779B97F4A7C15


def gather(buffer: Bytes, starts: Ints, lengths: Ints) -> tuple[Bytes, Ints]:
    """Copy spans into a new buffer, one after the other.

    Parameters
    ----------
    buffer : uint8[size]
    starts, lengths : int64[n]
        All spans must lie in `buffer`: the caller has checked it.

    Returns
    -------
    data : uint8[sum(lengths)]
    offsets : int64[n + 1]
        Span ``i`` is ``data[offsets[i]:offsets[i + 1]]``.
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    total = int(offsets[-1])
    if len(starts) and np.array_equal(starts - starts[0], offsets[:-1]):
        return buffer[int(starts[0]) : int(starts[0]) + total].copy(), offsets
    data = np.empty(total, np.uint8)
    for length, rows in _by_length(lengths):
        if length > _LONG:
            for source, target in zip(starts[rows].tolist(), offsets[rows].tolist(), strict=True):
                data[target : target + length] = buffer[source : source + length]
        elif length:
            for block in _blocks(rows, length):
                items = _windows(buffer, length)[starts[block]]
                _windows(data, length)[offsets[block]] = items
    return data, offsets


def equal(
    left: Bytes, left_starts: Ints, right: Bytes, right_starts: Ints, lengths: Ints
) -> npt.NDArray[np.bool_]:
    """Compare spans of two buffers pairwise.

    Parameters
    ----------
    left, right : uint8[...]
    left_starts, right_starts, lengths : int64[n]

    Returns
    -------
    bool[n]
    """
    result = np.ones(len(lengths), np.bool_)
    for length, rows in _by_length(lengths):
        if length > _LONG:
            for row in rows.tolist():
                a, b = int(left_starts[row]), int(right_starts[row])
                result[row] = np.array_equal(left[a : a + length], right[b : b + length])
        elif length:
            for block in _blocks(rows, length):
                ours = _windows(left, length)[left_starts[block]]
                result[block] = ours == _windows(right, length)[right_starts[block]]
    return result


def begin_with(buffer: Bytes, starts: Ints, prefix: bytes) -> npt.NDArray[np.bool_]:
    """Say which positions of a buffer begin with certain bytes.

    Parameters
    ----------
    buffer : uint8[size]
    starts : int64[n]
        Each with ``len(prefix)`` bytes behind it: the caller has checked it.
    prefix : bytes

    Returns
    -------
    bool[n]
    """
    result = np.ones(len(starts), np.bool_)
    at = 0
    while at < len(prefix) and len(starts):
        # words rather than bytes: a gather costs the same for each
        size = next(size for size in (8, 4, 2, 1) if size <= len(prefix) - at)
        words: npt.NDArray[Any] = np.ndarray(
            (len(buffer) - at - size + 1,), f"<u{size}", buffer, at, strides=(1,)
        )
        result &= words[starts] == int.from_bytes(prefix[at : at + size], "little")
        at += size
    return result


def unique(buffer: Bytes, starts: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """Find the distinct contents among spans.

    Returns
    -------
    first : int64[k]
        The first span of each content, ascending.
    inverse : int64[n]
        For each span the position of its content in `first`.
    """
    groups = list(_by_length(lengths))
    if len(groups) == 1:
        leader = _leaders_of_length(buffer, starts, groups[0][0])
        if leader is None:
            return groups[0][1], groups[0][1]
    else:
        # the first row that has the content of each row
        leader = np.empty(len(lengths), np.int64)
        for length, rows in groups:
            of_length = _leaders_of_length(buffer, starts[rows], length)
            leader[rows] = rows if of_length is None else rows[of_length]
    leads = np.zeros(len(lengths), np.bool_)
    leads[leader] = True
    return np.flatnonzero(leads), (np.cumsum(leads, dtype=np.int64) - 1)[leader]


def _leaders_of_length(buffer: Bytes, starts: Ints, length: int) -> Ints | None:
    """Return, for each span, where the first equal one is; None if they all differ."""
    if length == 0:
        return np.zeros(len(starts), np.int64)
    if length > _LONG:
        seen: dict[bytes, int] = {}
        leaders = [
            seen.setdefault(buffer[start : start + length].tobytes(), row)
            for row, start in enumerate(starts.tolist())
        ]
        return np.array(leaders, np.int64)
    if length > 2 * _TAIL and _differ(_hashes(buffer, starts + (length - _TAIL), _TAIL)):
        return None
    hashes = _hashes(buffer, starts, length)
    if _differ(hashes):
        return None
    leader = _leaders(hashes)
    repeated = np.flatnonzero(leader != np.arange(len(starts)))
    lengths = np.full(len(repeated), length, np.int64)
    if not equal(buffer, starts[repeated], buffer, starts[leader[repeated]], lengths).all():
        # two contents with one hash: unlikely by chance, possible by malice
        leader = _leaders(_matrix(buffer, starts, length).view(f"S{length}").ravel())
    return leader


def _hashes(buffer: Bytes, starts: Ints, length: int) -> npt.NDArray[np.uint64]:
    hashes = np.empty(len(starts), np.uint64)
    for block in _blocks(np.arange(len(starts)), length, _CACHED):
        hashes[block] = _hash(_matrix(buffer, starts[block], length))
    return hashes


def _differ(hashes: npt.NDArray[np.uint64]) -> bool:
    ordered = np.sort(hashes)  # far faster than finding out where each value was
    return bool((ordered[1:] != ordered[:-1]).all())


def _leaders(values: npt.NDArray[Any]) -> Ints:
    """Return, for each value, where the first equal one is."""
    order = np.argsort(values, kind="stable")
    values = values[order]
    new = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    del values
    begins = np.flatnonzero(new)
    leader = np.empty(len(order), np.int64)
    leader[order] = np.repeat(order[begins], np.diff(begins, append=len(order)))
    return leader


def _hash(rows: Bytes) -> npt.NDArray[np.uint64]:
    count, length = rows.shape
    padded = np.zeros((count, -(-length // 8) * 8), np.uint8)
    padded[:, :length] = rows
    words = padded.view("<u8")
    weights = np.full(words.shape[1], _MULTIPLIER, np.uint64).cumprod(dtype=np.uint64)
    # shifts carry high bits down: a product alone only moves differences up
    words ^= words >> np.uint64(32)
    words *= weights
    words ^= words >> np.uint64(29)
    hashes: npt.NDArray[np.uint64] = words.sum(axis=1, dtype=np.uint64)
    return hashes


def _by_length(lengths: Ints) -> Iterator[tuple[int, Ints]]:
    """Yield each distinct length with the ascending rows that have it."""
    if len(lengths) and lengths[0] == lengths.min() == lengths.max():
        yield int(lengths[0]), np.arange(len(lengths))
        return
    order = np.argsort(lengths, kind="stable")
    distinct, begins = np.unique(lengths[order], return_index=True)
    bounds = pairwise([*begins.tolist(), len(lengths)])
    for length, (begin, end) in zip(distinct.tolist(), bounds, strict=True):
        yield length, order[begin:end]


def _blocks(rows: Ints, length: int, size: int = _BLOCK) -> Iterator[Ints]:
    step = max(size // length, 1)
    for begin in range(0, len(rows), step):
        yield rows[begin : begin + step]


def _windows(buffer: Bytes, length: int) -> npt.NDArray[Any]:
    """View `buffer` as the items of `length` bytes that begin at every position."""
    return np.ndarray((max(len(buffer) - length + 1, 0),), f"V{length}", buffer, strides=(1,))


def _matrix(buffer: Bytes, starts: Ints, length: int) -> Bytes:
    return _windows(buffer, length)[starts].view(np.uint8).reshape(len(starts), length)
