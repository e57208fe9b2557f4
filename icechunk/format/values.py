"""Byte strings of rows, equal ones once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icechunk.errors import FormatError, InvalidInputError
from icechunk.format.encoding import spans
from icechunk.format.encoding.flatbuf import Tables, distinct
from icechunk.format.encoding.string_heap import StringHeap

__all__ = ["Values", "spliced", "utf8"]


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """A byte string, or none, per row. Immutable.

    Attributes
    ----------
    data : uint8[size]
    ends : int64[k + 1]
        Value ``k`` is ``data[ends[k]:ends[k + 1]]``.
    which : int64[n]
        The value of each row, -1 for none.
    """

    data: NDArray[np.uint8]
    ends: NDArray[np.int64]
    which: NDArray[np.int64]

    @classmethod
    def of(cls, values: Iterable[bytes | None]) -> Values:
        """Store the values of rows."""
        rows = list(values)
        numbers: dict[bytes | None, int] = {}
        for value in rows:
            if value is not None:
                numbers.setdefault(value, len(numbers))
        stored = [value for value in numbers if value is not None]
        ends = np.cumsum([0, *map(len, stored)], dtype=np.int64)
        numbers[None] = -1
        which = np.fromiter(map(numbers.__getitem__, rows), np.int64, len(rows))
        return cls(np.frombuffer(b"".join(stored), np.uint8), ends, which)

    @classmethod
    def read(
        cls, tables: Tables, slot: int, field: str, *, required: bool, text: bool = False
    ) -> Values:
        """Return a field of tables.

        Raises
        ------
        FormatError
            If it is required and missing, or should be `text` and is not, or the file is damaged.
        """
        start, length, has = tables.spans(slot, field, required=required)
        present = has.all()
        rows = slice(None) if present else np.flatnonzero(has)
        first, index = distinct(start[rows])
        starts, lengths = start[rows][first], length[rows][first]
        if int(lengths.sum()) > len(tables.buffer):
            raise FormatError(f"{field}: values lie inside of one another; the file is damaged")
        which = index
        if not present:
            which = np.full(len(start), -1, np.int64)
            which[rows] = index
        values = cls(*spans.gather(tables.buffer, starts, lengths), which)
        if text:
            try:
                StringHeap(values.data, values.ends)
            except InvalidInputError as error:
                raise FormatError(f"{field}: {error}; the file is damaged") from error
        return values

    def insert(self, row: int, values: Iterable[bytes | None]) -> Values:
        """Return the same with more rows, the first of them at `row`."""
        data, ends = [self.data], [self.ends]
        size, count = len(self.data), len(self.ends) - 1
        which = []
        for value in values:
            number = -1 if value is None else self._number(value)
            if value is not None and number < 0:
                number, count, size = count, count + 1, size + len(value)
                data.append(np.frombuffer(value, np.uint8))
                ends.append(np.array([size], np.int64))
            which.append(number)
        added = np.array(which, np.int64)
        return Values(np.concatenate(data), np.concatenate(ends), spliced(self.which, row, added))

    def _number(self, value: bytes) -> int:
        """Return which one a value is, -1 if it is not stored."""
        lengths = np.diff(self.ends)
        numbers = np.flatnonzero(lengths == len(value))
        if not value or not len(numbers):
            return int(numbers[0]) if len(numbers) else -1
        equal = numbers[spans.begin_with(self.data, self.ends[numbers], value)]
        return int(equal[0]) if len(equal) else -1

    def take(self, rows: Any) -> Values:
        """Return the values of some rows (indices or a slice), without those that no row has."""
        which = self.which[rows]
        used = np.zeros(len(self.ends), np.bool_)  # the last one is that of no value
        used[which] = True
        numbers = np.flatnonzero(used[:-1])
        if len(numbers) == len(self.ends) - 1:
            return Values(self.data, self.ends, which)
        starts = self.ends[numbers]
        data, ends = spans.gather(self.data, starts, self.ends[numbers + 1] - starts)
        renumbered = np.full(len(self.ends), -1, np.int64)
        renumbered[numbers] = np.arange(len(numbers))
        return Values(data, ends, renumbered[which])

    def get(self, row: int) -> bytes | None:
        """Return the value of a row."""
        k = int(self.which[row])
        return self.data[int(self.ends[k]) : int(self.ends[k + 1])].tobytes() if k >= 0 else None

    def all(self) -> list[bytes | None]:
        """Return the values of all rows."""
        raw = self.data.tobytes()
        values: list[bytes | None] = [raw[a:b] for a, b in pairwise(self.ends.tolist())]
        values.append(None)
        return [values[k] for k in self.which.tolist()]

    def texts(self) -> list[str | None]:
        """Return the values of all rows as texts."""
        raw = self.data.tobytes()
        values: list[str | None] = [raw[a:b].decode() for a, b in pairwise(self.ends.tolist())]
        values.append(None)
        return [values[k] for k in self.which.tolist()]

    def __len__(self) -> int:
        return len(self.which)


def spliced(column: NDArray[Any], row: int, added: NDArray[Any]) -> NDArray[Any]:
    """Return a column with more rows, the first of them at `row`."""
    return np.concatenate([column[:row], added, column[row:]])


def utf8(text: str) -> bytes:
    """Return a text as it is stored.

    Raises
    ------
    InvalidInputError
        If it has half of a character.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise InvalidInputError(f"{text!r} cannot be stored: half of a character ({e})") from e
