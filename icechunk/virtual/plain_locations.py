"""Which of a million locations need no individual look.

Most locations are plain: their bytes alone show that they are stored unchanged, carry no
credentials, and do not lead to a parent folder. Those are found here, block by block and
without a Python object for each. `icechunk.virtual.locations` looks at the others one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from string import ascii_letters, digits
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from icechunk.format.encoding import spans
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.virtual.locations import invalid_location, stored_location

__all__ = ["below", "location_heap", "plain", "stored_heap"]

Bools: TypeAlias = npt.NDArray[np.bool_]
Indices: TypeAlias = npt.NDArray[np.int32]

#: Characters that end no path, encode nothing, and separate nothing elsewhere. No URL parser
#: changes these.
_SAFE: Final = (ascii_letters + digits + "/._~!$&'()*+,;=:|[]-").encode()
_IS_UNSAFE: Final = np.isin(np.arange(256), np.frombuffer(_SAFE, np.uint8), invert=True)
_HEAD: Final = re.compile(rb"file:///|(?!file:)[a-z][a-z0-9+.-]*://")
#: So many kinds of URL are told apart; locations of further kinds are checked one by one.
_MAX_HEADS: Final = 8
_BLOCK: Final = 1 << 18
#: What `plain` found, for as long as the heap is there.
_plain: Final[WeakKeyDictionary[StringHeap, Bools]] = WeakKeyDictionary()


def location_heap(locations: Any) -> tuple[StringHeap, Indices]:
    """Collect the locations that a user gave, equal ones once.

    Parameters
    ----------
    locations : sequence or array of n str
        A list, an array of NumPy of strings, UTF-8 bytes or objects, or an array of Arrow,
        whose nulls count as empty.

    Raises
    ------
    InvalidInputError
        If one is not a string.
    """
    if hasattr(locations, "to_pylist"):
        locations = [location or "" for location in locations.to_pylist()]
    if isinstance(locations, np.ndarray) and locations.dtype.kind in "SU":
        return StringHeap.from_array(locations.ravel())
    if isinstance(locations, np.ndarray):
        locations = locations.ravel().tolist()
    elif not isinstance(locations, Sequence) or isinstance(locations, str):
        locations = list(locations)
    try:
        return StringHeap.from_strings(locations)
    except TypeError:
        for location in locations:
            if not isinstance(location, str):
                raise invalid_location(
                    location, "is not an absolute URL; the URL of a file begins with 'file:///'"
                ) from None
        raise


def stored_heap(heap: StringHeap) -> tuple[StringHeap, Indices]:
    """Return the form in which locations are stored, as `stored_location` does for one.

    Returns
    -------
    heap : StringHeap
        Distinct ones.
    index : int32[n]
        The position of each location in it.

    Raises
    ------
    InvalidInputError
        As `stored_location`.
    """
    changed: dict[int, str] = {}
    for row in np.flatnonzero(~plain(heap)).tolist():
        location = heap[row]
        stored = stored_location(location)
        if stored != location:
            changed[row] = stored
    index = np.arange(len(heap), dtype=np.int32)
    if not changed:
        return heap, index
    rows = np.fromiter(changed, np.int64, len(changed))
    kept = np.delete(index, rows)
    others, of_others = StringHeap.from_strings(list(changed.values()))
    joined, (of_kept, joined_others) = StringHeap.merge([heap.take(kept), others])
    index[kept] = of_kept
    index[rows] = joined_others[of_others]
    return joined, index


def plain(heap: StringHeap) -> Bools:
    """Find the locations that are stored unchanged and lead down only.

    Returns
    -------
    bool[n]
        True: `stored_location` returns the location itself, nothing follows its path, and no
        segment of it is ``.`` or ``..`` in any reading. False: not known.
    """
    # whoever stores locations asks, and whoever validates them does again
    known = _plain.get(heap)
    if known is None:
        known = _plain[heap] = _look(heap)
    return known


def _look(heap: StringHeap) -> Bools:
    result = _with_known_head(heap)
    for first, last in _blocks(heap.offsets):
        begin, end = int(heap.offsets[first]), int(heap.offsets[last])
        block = heap.data[begin:end]
        dots = np.flatnonzero(block[1:] == ord("."))
        dots = dots[block[dots] == ord("/")]  # begin a segment that may be "." or ".."
        if not len(dots) and not block.tobytes().translate(None, _SAFE):
            continue
        places = begin + np.concatenate([dots, np.flatnonzero(_IS_UNSAFE[block])])
        result[heap.offsets.searchsorted(places, side="right") - 1] = False
    return result


def below(heap: StringHeap, prefix: bytes, rows: npt.NDArray[np.int64]) -> Bools:
    """Say which locations begin with a prefix and do not end with a slash.

    Parameters
    ----------
    heap : StringHeap
    prefix : bytes
        Not empty.
    rows : int64[m]
        Positions in the heap of the locations to check.

    Returns
    -------
    bool[m]
    """
    starts, ends = heap.offsets[:-1][rows], heap.offsets[1:][rows]
    result = ends - starts > len(prefix)
    if not result.all():
        long = np.flatnonzero(result)
        result[long] = below(heap, prefix, rows[long])
        return result
    result &= spans.begin_with(heap.data, starts, prefix)
    result &= heap.data[ends - 1] != ord("/")
    return result


def _with_known_head(heap: StringHeap) -> Bools:
    result = np.zeros(len(heap), np.bool_)
    rest = np.arange(len(heap))
    for _ in range(_MAX_HEADS):
        if not len(rest):
            break
        first = int(rest[0])
        begin, end = int(heap.offsets[first]), int(heap.offsets[first + 1])
        head = _HEAD.match(heap.data[begin:end].tobytes())
        if head is None:
            rest = rest[1:]
            continue
        # a location that is only a prefix, or ends with a slash, is checked
        found = below(heap, head[0], rest)
        result[rest[found]] = True
        rest = rest[1:][~found[1:]]
    return result


def _blocks(offsets: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows [from, to) that have about `_BLOCK` bytes each."""
    first, count = 0, len(offsets) - 1
    while first < count:
        last = int(offsets.searchsorted(offsets[first] + _BLOCK, side="right")) - 1
        last = min(max(last, first + 1), count)
        yield first, last
        first = last
