"""The writing half of `flatbuf`: see there for how to use it.

Parents lie before their children, rows with the same present fields share a vtable
and a stride, and everything is aligned as the Icechunk spec asks ("Alignment").
Strings and shared byte vectors come last, equal ones once.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from icechunk.errors import ErrorKind, InvalidInputError

__all__ = ["Batch", "encode"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]

#: Offsets between a table and its vtable are signed 32 bit numbers.
MAX_PAYLOAD: Final = 2**31 - 1
FILE_IDENTIFIER: Final = b"Ichk"

_U4: Final = np.dtype("<u4")
_I4: Final = np.dtype("<i4")
_NONE: Final = np.empty(0, np.int64)
_NONE_BEFORE: Final = np.zeros(1, np.int64)
#: Up to this many pieces are copied one by one, whatever their lengths.
_FEW: Final = 4
# longer ones are copied one by one: the loop costs nothing compared to the bytes
_LONG: Final = 1 << 16


@dataclass
class _Column:
    """One slot of a batch; `present` None: every row has it."""

    slot: int
    present: Bools | None


@dataclass
class _Inline(_Column):
    values: NDArray[Any]  # any fixed-size dtype, structs as V<size>
    align: int


@dataclass
class _Vector(_Column):
    data: Bytes
    start: Ints
    count: Ints
    size: int
    align: int

    def elements(self, rows: Any, width: int) -> NDArray[Any]:
        """Return the vectors of rows where each has `width` bytes, as V<width>."""
        found: NDArray[Any] = _windows(self.data, width)[self.start[rows]]
        return found


@dataclass
class _Matrix(_Column):
    data: Bytes
    count: int
    size: int
    align: int

    def elements(self, rows: Any, width: int) -> NDArray[Any]:
        """Do as `_Vector.elements` does."""
        found: NDArray[Any] = self.data.view(f"V{width}")[rows]
        return found


@dataclass
class _Pooled(_Column):
    values: Sequence[bytes]
    which: Ints
    nul: bool


@dataclass
class _Heap(_Column):
    data: Bytes
    offsets: Ints
    which: Ints
    nul: bool


@dataclass
class _Nested(_Column):
    batches: list[tuple[Any, Batch]]  # (rows of the parent, their children in order)


@dataclass
class _Children(_Column):
    batches: list[Batch]
    offsets: Ints


@dataclass
class _Texts(_Column):
    values: list[bytes]
    offsets: Ints


class Batch:
    """`n` tables of one type, described by columns.

    Each method adds one field, in any order of slots. A row that is not `present`
    (bool[n], default all) leaves the field out.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._columns: list[_Column] = []

    def scalar(
        self,
        slot: int,
        values: ArrayLike,
        dtype: DTypeLike,
        *,
        default: int | None = None,
        present: ArrayLike | None = None,
    ) -> None:
        """Add a number per table; rows equal to `default` (None: no row) leave it out."""
        column = np.asarray(values, dtype)
        if column.shape != (self.n,):
            column = np.full(self.n, column)
        has = present
        if default is not None:
            differs = column != default
            has = differs if present is None else np.asarray(present, np.bool_) & differs
        self._columns.append(_Inline(slot, _mask(has), column, column.dtype.itemsize))

    def struct(self, slot: int, rows: Bytes, *, present: ArrayLike | None = None) -> None:
        """Add an inline struct of bytes (an id): uint8[n, size]."""
        size = rows.shape[1]
        column = np.ascontiguousarray(rows, np.uint8).view(f"V{size}").reshape(self.n)
        self._columns.append(_Inline(slot, _mask(present), column, 1))

    def vector(
        self,
        slot: int,
        flat: NDArray[Any],
        offsets: ArrayLike,
        *,
        present: ArrayLike | None = None,
    ) -> None:
        """Add a vector of numbers: row i has the elements ``flat[offsets[i]:offsets[i + 1]]``.

        A two-dimensional `flat` is a vector of structs, aligned as its dtype.
        """
        size = flat.dtype.itemsize * math.prod(flat.shape[1:])
        ends = np.asarray(offsets, np.int64)
        little = flat.dtype.newbyteorder("<")
        data = np.ascontiguousarray(flat, little).reshape(-1).view(np.uint8)
        align = flat.dtype.itemsize
        column = _Vector(slot, _mask(present), data, ends[:-1] * size, _steps(ends), size, align)
        self._columns.append(column)

    def matrix(self, slot: int, rows: NDArray[Any]) -> None:
        """Add a vector of numbers: row i has the elements ``rows[i]``, all of one length."""
        data = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
        size = rows.dtype.itemsize
        self._columns.append(_Matrix(slot, None, data, rows.shape[1], size, size))

    def spans(
        self,
        slot: int,
        data: Bytes,
        start: ArrayLike,
        length: ArrayLike,
        *,
        present: ArrayLike | None = None,
    ) -> None:
        """Add a byte vector: row i has ``data[start[i]:start[i] + length[i]]``."""
        starts, lengths = np.asarray(start, np.int64), np.asarray(length, np.int64)
        self._columns.append(_Vector(slot, _mask(present), data, starts, lengths, 1, 1))

    def blob(self, slot: int, values: Sequence[bytes | None]) -> None:
        """Add a byte vector per table, None = absent. Equal ones are stored once."""
        self._pool(slot, values, nul=False)

    def text(self, slot: int, values: Sequence[str | None]) -> None:
        """Add a string per table, None = absent. Equal ones are stored once."""
        self._pool(slot, [None if v is None else _utf8(v) for v in values], nul=True)

    def heap(
        self, slot: int, data: Bytes, offsets: ArrayLike, which: ArrayLike, *, text: bool
    ) -> None:
        """Add a string (`text`) or byte vector per table out of a heap.

        Row i has value k = ``which[i]`` of the heap, ``data[offsets[k]:offsets[k + 1]]``,
        or nothing if that is -1. Each value of the heap is stored once.
        """
        index = np.asarray(which, np.int64)
        ends = np.asarray(offsets, np.int64)
        self._columns.append(_Heap(slot, _mask(index >= 0), data, ends, index, text))

    def texts(self, slot: int, values: Sequence[Sequence[str]]) -> None:
        """Add a vector of strings per table."""
        offsets = np.cumsum([0, *map(len, values)])
        flat = [_utf8(text) for row in values for text in row]
        self._columns.append(_Texts(slot, None, flat, offsets))

    def child(self, slot: int, batch: Batch, *, present: ArrayLike | None = None) -> None:
        """Add a child table: the rows that are present own those of `batch`, in order."""
        has = _mask(present)
        rows = slice(None) if has is None else np.flatnonzero(has)
        self._columns.append(_Nested(slot, has, [(rows, batch)]))

    def children(
        self,
        slot: int,
        batch: Batch | Sequence[Batch],
        offsets: ArrayLike,
        *,
        present: ArrayLike | None = None,
    ) -> None:
        """Add a vector of tables: row i owns ``offsets[i]:offsets[i + 1]`` of `batch`.

        Several batches count as one that holds their tables one after the other.
        """
        batches = [batch] if isinstance(batch, Batch) else list(batch)
        ends = np.asarray(offsets, np.int64)
        self._columns.append(_Children(slot, _mask(present), batches, ends))

    def union(self, slot: int, tags: ArrayLike, batches: Mapping[int, Batch]) -> None:
        """Add a union: tags, uint8[n], in `slot` and tables in `slot` + 1.

        The rows with tag t own those of ``batches[t]``, in order; tag 0 means nothing.
        """
        kinds = np.asarray(tags, np.uint8)
        self.scalar(slot, kinds, np.uint8, default=0)
        nested = [(np.flatnonzero(kinds == tag), batch) for tag, batch in batches.items()]
        self._columns.append(_Nested(slot + 1, kinds != 0, nested))

    def _pool(self, slot: int, values: Sequence[bytes | None], *, nul: bool) -> None:
        stored = [v for v in values if v is not None]
        if len(stored) == len(values):
            self._columns.append(_Pooled(slot, None, stored, np.arange(len(values)), nul))
            return
        has = np.fromiter((v is not None for v in values), np.bool_, len(values))
        self._columns.append(_Pooled(slot, has, stored, np.cumsum(has) - 1, nul))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise InvalidInputError(f"{text!r} cannot be stored: half of a character ({e})") from e


def _mask(present: ArrayLike | None) -> Bools | None:
    """Return None for "all", which saves grouping the rows."""
    if present is None:
        return None
    mask = np.asarray(present, np.bool_)
    return None if mask.all() else mask


class _Layout:
    """Gives every object a place, parents first, and then fills the places."""

    def __init__(self) -> None:
        self.end = 4 + len(FILE_IDENTIFIER)  # after the offset of the root table
        self.vtables: dict[bytes, int] = {}
        self.positions: dict[int, Ints] = {}  # of the tables of each batch, by id()
        self.pool: dict[tuple[bytes, bool], int] = {}
        self.pool_at: Ints = np.empty(0, np.int64)
        self.pooled: dict[int, Ints] = {}  # of each column, by id(): indices in the pool
        self.fills: list[Callable[[Bytes], None]] = []

    def place_all(self, root: Batch) -> None:
        queue = [root]
        for batch in queue:
            queue += self.place(batch)
        self.place_pool()

    def fill(self, root: Batch) -> memoryview:
        out: Bytes = np.zeros(_up(self.end, 8), np.uint8)
        out[:4].view(_U4)[:] = self.positions[id(root)][0]
        out[4:8] = np.frombuffer(FILE_IDENTIFIER, np.uint8)
        for raw, at in self.vtables.items():
            out[at : at + len(raw)] = np.frombuffer(raw, np.uint8)
        # each holds columns of places: dropped when done, because there may be millions
        self.fills.reverse()
        while self.fills:
            self.fills.pop()(out)
        return out.data

    def place(self, batch: Batch) -> list[Batch]:
        """Place the tables of a batch and its vectors; return the batches below it."""
        position = self.positions[id(batch)] = np.zeros(batch.n, np.int64)
        if not batch.n:
            return []
        # by slot: what lies outside of the tables
        target: defaultdict[int, Ints] = defaultdict(lambda: np.zeros(batch.n, np.int64))
        loose: dict[int, list[Ints]] = {c.slot: [] for c in batch._columns}
        for rows, columns in _patterns(batch):
            self.place_records(rows, columns, position, target, loose)
        below: list[Batch] = []
        for column in batch._columns:
            slot = column.slot
            if isinstance(column, _Vector):
                if loose[slot]:
                    self.place_vectors(column, np.concatenate(loose[slot]), target[slot])
            elif isinstance(column, _Pooled):
                self.pooled[id(column)] = self.intern(column.values, nul=column.nul)
            elif isinstance(column, _Children):
                self.place_slots(column, target[slot])
                below += column.batches
            elif isinstance(column, _Texts):
                self.place_slots(column, target[slot])
            elif isinstance(column, _Heap):
                self.place_heap(column, target[slot])
            elif isinstance(column, _Nested):
                below += [child for _, child in column.batches]
        return below

    def place_records(
        self,
        rows: Any,
        columns: list[_Column],
        position: Ints,
        target: defaultdict[int, Ints],
        loose: dict[int, list[Ints]],
    ) -> None:
        """Place tables with the same fields: one vtable, one stride, equal vectors inside."""
        n = len(position[rows])
        fields: list[tuple[_Column, int]] = []
        size = widest = 4  # after the soffset
        for column in sorted(columns, key=_field_align, reverse=True):
            fields.append((column, size))
            size += column.values.dtype.itemsize if isinstance(column, _Inline) else 4
            widest = max(widest, _field_align(column))
        inside: dict[int, tuple[_Vector | _Matrix, int, int]] = {}  # with offset and count
        stride = size
        for column in columns:
            if isinstance(column, _Vector):
                counts = column.count[rows]
                count = int(counts[0])
                if (counts != count).any():
                    loose[column.slot].append(np.arange(len(position))[rows])
                    continue
            elif isinstance(column, _Matrix):
                count = column.count
            else:
                continue
            stride = _up(stride, max(4, column.align))
            widest = max(widest, column.align)
            inside[column.slot] = column, stride, count
            stride += 4 + count * column.size
        # With the table at 8n + 4, what follows its soffset can be a u64; so can what
        # follows the length word of a vector at a multiple of 8 inside.
        wide = widest == 8
        stride = _up(stride, 8 if wide else 4)
        vtable = self.vtable(fields, size)
        start = _up(self.end + 4, 8) - 4 if wide else _up(self.end, 4)
        self.end = start + n * stride
        position[rows] = start + np.arange(n, dtype=np.int64) * stride

        def fill(out: Bytes) -> None:
            def column_at(offset: int, dtype: DTypeLike) -> NDArray[Any]:
                return np.ndarray((n,), dtype, out.data, start + offset, (stride,))

            at = position[rows]
            np.subtract(at, vtable, out=column_at(0, _I4), casting="unsafe")
            for column, offset in fields:
                if isinstance(column, _Inline):
                    little = column.values.dtype.newbyteorder("<")
                    column_at(offset, little)[:] = column.values[rows]
                elif column.slot in inside:
                    column_at(offset, _U4)[:] = inside[column.slot][1] - offset
                else:
                    goal = self.resolve(column, target[column.slot], rows)
                    column_at(offset, _U4)[:] = goal - at - offset
            for vector, offset, count in inside.values():
                column_at(offset, _U4)[:] = count
                if width := count * vector.size:
                    column_at(offset + 4, f"V{width}")[:] = vector.elements(rows, width)

        self.fills.append(fill)

    def place_vectors(self, column: _Vector, rows: Ints, target: Ints) -> None:
        """Place vectors of different lengths, one after the other."""
        lengths = column.count[rows] * column.size
        target[rows] = self.heads(lengths, column.align)

        def fill(out: Bytes) -> None:
            at = target[rows]
            out.view(_U4)[at >> 2] = column.count[rows]
            _copy_ragged(out, at + 4, column.data, column.start[rows], lengths)

        self.fills.append(fill)

    def place_heap(self, column: _Heap, target: Ints) -> None:
        """Place the values of a heap; rows refer to them."""
        lengths = _steps(column.offsets)
        head = self.heads(lengths + column.nul, 1)
        used = column.which >= 0
        target[used] = head[column.which[used]]

        def fill(out: Bytes) -> None:
            out.view(_U4)[head >> 2] = lengths
            _copy_ragged(out, head + 4, column.data, column.offsets[:-1], lengths)

        self.fills.append(fill)

    def place_slots(self, column: _Children | _Texts, target: Ints) -> None:
        """Place vectors of offsets to tables or strings."""
        rows: Any = slice(None) if column.present is None else np.flatnonzero(column.present)
        count = _steps(column.offsets)[rows]
        start = _up(self.end, 4)
        head = self.heads(count * 4, 4)
        target[rows] = head
        end = self.end
        if isinstance(column, _Texts):
            pooled = self.intern(column.values, nul=True)

        def fill(out: Bytes) -> None:
            words = out.view(_U4)
            if isinstance(column, _Texts):
                goals = [self.pool_at[pooled]]
            else:
                goals = [self.positions[id(batch)] for batch in column.batches]
            # from here to the end there are only these slots, and a length word before each row
            places = np.arange(start, end, 4)
            if len(count) == 1:
                goal = np.concatenate([_NONE_BEFORE, *goals])
            else:
                goal = np.zeros(len(places), np.int64)
                is_slot = np.ones(len(places), np.bool_)
                is_slot[(head - start) >> 2] = False
                goal[is_slot] = np.concatenate([_NONE, *goals])
            words[start >> 2 : end >> 2] = goal - places
            words[head >> 2] = count

        self.fills.append(fill)

    def place_pool(self) -> None:
        """Place the strings and byte vectors that rows share."""
        if not self.pool:
            return
        values = [value for value, _ in self.pool]
        nul = np.fromiter((n for _, n in self.pool), np.int64, len(values))
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        self.pool_at = self.heads(lengths + nul, 1)

        def fill(out: Bytes) -> None:
            out.view(_U4)[self.pool_at >> 2] = lengths
            data = np.frombuffer(b"".join(values), np.uint8)
            _copy_ragged(out, self.pool_at + 4, data, np.cumsum(lengths) - lengths, lengths)

        self.fills.append(fill)

    def heads(self, lengths: Ints, align: int) -> Ints:
        """Reserve a length word and a number of bytes for each; return where the words are."""
        if not len(lengths):
            return _NONE
        unit = max(4, align)
        start = _up(self.end + 4, unit) - 4
        if len(lengths) == 1:
            self.end = start + _up(4 + int(lengths[0]), unit)
            return np.array([start], np.int64)
        step = (4 + lengths + unit - 1) // unit * unit
        after = step.cumsum()
        self.end = start + int(after[-1])
        heads: Ints = start + after - step
        return heads

    def vtable(self, fields: list[tuple[_Column, int]], size: int) -> int:
        """Return the position of a vtable with these fields, placing it if it is new."""
        slots = [0] * max((c.slot + 1 for c, _ in fields), default=0)
        for column, offset in fields:
            slots[column.slot] = offset
        raw = struct.pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), size, *slots)
        if raw not in self.vtables:
            self.vtables[raw] = self.end  # even, as the length of everything is
            self.end += len(raw)
        return self.vtables[raw]

    def intern(self, values: Sequence[bytes], *, nul: bool) -> Ints:
        """Return the index of each value in the pool."""
        pool = self.pool
        index = (pool.setdefault((value, nul), len(pool)) for value in values)
        return np.fromiter(index, np.int64, len(values))

    def resolve(self, column: _Column, target: Ints, rows: Any) -> Ints:
        """Return what an offset field points to in these rows."""
        if isinstance(column, _Nested):
            for owners, batch in column.batches:
                target[owners] = self.positions[id(batch)]
        elif isinstance(column, _Pooled):
            target = self.pool_at[self.pooled[id(column)]][column.which]
        goal: Ints = target[rows]
        return goal


def _steps(ends: Ints) -> Ints:
    """Return the differences; `np.diff` takes several times as long for few."""
    steps: Ints = ends[1:] - ends[:-1]
    return steps


def _field_align(column: _Column) -> int:
    return column.align if isinstance(column, _Inline) else 4


def _up(position: int, unit: int) -> int:
    return -(-position // unit) * unit


def _patterns(batch: Batch) -> list[tuple[Any, list[_Column]]]:
    """Return groups of rows that have the same fields, with these fields."""
    if not batch.n:
        return []
    if batch.n == 1 or all(column.present is None for column in batch._columns):
        # nearly always, and files hold many batches of one table
        has = [c for c in batch._columns if c.present is None or c.present[0]]
        return [(slice(None), has)]
    key = np.zeros(batch.n, np.uint32)
    for bit, column in enumerate(batch._columns):
        if column.present is not None:
            key |= column.present.astype(np.uint32) << bit
    groups: list[tuple[Any, list[_Column]]] = []
    kinds = np.unique(key).tolist()
    for kind in kinds:
        rows = slice(None) if len(kinds) == 1 else np.flatnonzero(key == kind)
        has = [
            column
            for bit, column in enumerate(batch._columns)
            if column.present is None or kind >> bit & 1
        ]
        groups.append((rows, has))
    return groups


def _copy_ragged(out: Bytes, to: Ints, data: Bytes, start: Ints, length: Ints) -> None:
    """Copy ``data[start[i]:start[i] + length[i]]`` to ``out[to[i]:]`` for every i."""
    if len(length) <= _FEW:
        for a, b, n in zip(to.tolist(), start.tolist(), length.tolist(), strict=True):
            out[a : a + n] = data[b : b + n]
        return
    order = np.argsort(length, kind="stable")
    ordered = length[order]
    cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    for lo, hi in pairwise([0, *cuts.tolist(), len(order)]):
        n, rows = int(ordered[lo]), order[lo:hi]
        if n > _LONG or hi - lo == 1:
            for a, b in zip(to[rows].tolist(), start[rows].tolist(), strict=True):
                out[a : a + n] = data[b : b + n]
        elif n:
            _windows(out, n)[to[rows]] = _windows(data, n)[start[rows]]


def _windows(data: Bytes, size: int) -> NDArray[Any]:
    """View bytes as items of `size` bytes, one at every position."""
    return np.ndarray((len(data) - size + 1,), f"V{size}", data.data, strides=(1,))


def encode(root: Batch, *, too_large: str = "") -> memoryview:
    """Return the FlatBuffers payload of a tree of batches.

    Parameters
    ----------
    root : Batch
        One table.
    too_large : str, optional
        Advice for the error message if the payload is too large.

    Raises
    ------
    InvalidInputError
        If the payload would exceed 2**31 - 1 bytes. Nothing of that size is allocated.
    """
    layout = _Layout()
    layout.place_all(root)
    size = _up(layout.end, 8)
    if size > MAX_PAYLOAD:
        raise InvalidInputError(
            f"cannot encode a file of {size} bytes: its offsets end at {MAX_PAYLOAD}"
            + (f"; {too_large}" if too_large else ""),
            ErrorKind.SERIALIZATION,
        )
    return layout.fill(root)
