"""References and values of files that were scanned together, packed until they are written.

Tables of references are joined to columns, and so are values of one shape. After that, what
files have in common takes next to no space, however much of it each file has.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.kerchunk.tables import IN_PLACE, ChunkTable, StringHeap

__all__ = ["Bundle", "Payload", "bundled", "packed", "unpacked"]

#: How many bytes of references and values are packed together, roughly.
_ROOM: Final = 1 << 23


@dataclass(frozen=True)
class Payload:
    """What is needed of a part only when it is written.

    Attributes
    ----------
    tables : dict of str to ChunkTable
        For variables that are referred to.
    values : dict of str to array
        For the other variables, as they are stored.
    """

    tables: dict[str, ChunkTable]
    values: dict[str, npt.NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Roughly how many bytes of memory it takes."""
        rows = sum(table.coords.nbytes + table.offset.nbytes * 3 for table in self.tables.values())
        inline = sum(sum(map(len, table.payloads)) for table in self.tables.values())
        return rows + inline + sum(values.nbytes for values in self.values.values())


class Bundle:
    """The payloads of parts that were scanned together.

    Parameters
    ----------
    payloads : sequence of Payload
    """

    __slots__ = ("_packed", "_payloads")

    def __init__(self, payloads: Sequence[Payload]) -> None:
        self._payloads: Sequence[Payload] | None = payloads
        self._packed = b""

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_bytes, (self._packed or packed(self._payloads or ()),)

    def payloads(self) -> Sequence[Payload]:
        """Return the payloads; those of the last bundle asked for are kept."""
        return _unpacked(self) if self._payloads is None else self._payloads

    def drop(self) -> None:
        """Release all of it once it is written."""
        self._packed, self._payloads = b"", ()

    def pack(self) -> None:
        """Release what is not packed."""
        if self._payloads is not None:
            self._packed, self._payloads = packed(self._payloads), None


def _from_bytes(data: bytes) -> Bundle:
    found = Bundle(())
    found._packed, found._payloads = data, None
    return found


@lru_cache(maxsize=1)
def _unpacked(bundle: Bundle) -> Sequence[Payload]:
    return unpacked([bundle._packed])


def bundled(payloads: Sequence[Payload]) -> Iterator[tuple[Bundle, int]]:
    """Yield for each payload the bundle that has it, and where.

    A bundle is small enough to be unpacked at once.
    """
    own: list[Payload] = []
    size = 0
    for payload in payloads:
        if size > _ROOM:
            yield from _closed(own)
            own, size = [], 0
        own.append(payload)
        size += payload.nbytes
    yield from _closed(own)


def _closed(payloads: Sequence[Payload]) -> Iterator[tuple[Bundle, int]]:
    bundle = Bundle(payloads)
    bundle.pack()
    yield from ((bundle, row) for row in range(len(payloads)))


# -- as bytes ------------------------------------------------------------------------------
def packed(payloads: Sequence[Payload]) -> bytes:
    """Return payloads as bytes, for workers and the client of one call."""
    tables: dict[str, list[ChunkTable | None]] = {}
    values: dict[str, list[npt.NDArray[Any] | None]] = {}
    for payload in payloads:
        for name in payload.tables:
            tables.setdefault(name, [each.tables.get(name) for each in payloads])
        for name in payload.values:
            values.setdefault(name, [each.values.get(name) for each in payloads])
    found = (
        len(payloads),
        {name: _joined_tables(each) for name, each in tables.items()},
        {name: _joined_values(each) for name, each in values.items()},
    )
    return zlib.compress(pickle.dumps(found, pickle.HIGHEST_PROTOCOL), 1)


def unpacked(blobs: Sequence[bytes]) -> list[Payload]:
    """Return payloads from bytes of workers of this very call."""
    found: list[Payload] = []
    for blob in blobs:
        count, tables, values = pickle.loads(zlib.decompress(blob))
        payloads = [Payload({}, {}) for _ in range(count)]
        for name, joined in tables.items():
            for payload, table in zip(payloads, _single_tables(*joined), strict=True):
                if table is not None:
                    payload.tables[name] = table
        for name, joined in values.items():
            for payload, array in zip(payloads, _single_values(*joined), strict=True):
                if array is not None:
                    payload.values[name] = array
        found.extend(payloads)
    return found


def _joined_tables(tables: Sequence[ChunkTable | None]) -> tuple[list[int], Any]:
    """Return how many rows each table has, -1 where there is none; and all rows."""
    counts = [-1 if table is None else len(table.coords) for table in tables]
    known = [table for table in tables if table is not None]
    if len({table.coords.shape[1:] for table in known}) > 1:
        # files that do not fit together
        return counts, known
    heap, maps = StringHeap.merge([table.locations for table in known])
    location = [
        # rows by place may have no location at all
        np.append(index, np.int32(IN_PLACE))[table.location]
        for table, index in zip(known, maps, strict=True)
    ]
    whole = ChunkTable(
        np.concatenate([table.coords for table in known]),
        np.concatenate(location),
        heap,
        np.concatenate([table.offset for table in known]),
        np.concatenate([table.length for table in known]),
        [payload for table in known for payload in table.payloads],
    )
    return counts, whole


def _single_tables(counts: list[int], joined: Any) -> Iterator[ChunkTable | None]:
    if isinstance(joined, list):
        single = iter(joined)
        yield from (None if count < 0 else next(single) for count in counts)
        return
    whole: ChunkTable = joined
    begin, inline = 0, 0
    for count in counts:
        if count < 0:
            yield None
            continue
        rows = slice(begin, begin + count)
        begin += count
        location = whole.location[rows]
        there = int((location == IN_PLACE).sum())
        yield ChunkTable(
            whole.coords[rows],
            location,
            # one heap for all: joining them again needs no comparison
            whole.locations,
            whole.offset[rows],
            whole.length[rows],
            whole.payloads[inline : inline + there],
        )
        inline += there


def _joined_values(arrays: Sequence[npt.NDArray[Any] | None]) -> tuple[list[int], Any]:
    """Return which arrays exist, as 0 or -1; and all of them, joined to one if possible."""
    known = [array for array in arrays if array is not None]
    counts = [-1 if array is None else 0 for array in arrays]
    alike = {(array.dtype, array.shape) for array in known}
    return counts, np.stack(known) if len(alike) == 1 else known


def _single_values(counts: list[int], joined: Any) -> Iterator[npt.NDArray[Any] | None]:
    single = iter(joined)
    for count in counts:
        # a row of an array without dimensions is a scalar
        yield None if count < 0 else np.asarray(next(single))
