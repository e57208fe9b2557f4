"""FlatBuffers tables as columns: bytes in, columns out; columns in, bytes out.

One object stands for a whole batch of tables of one type, and every access works on
all of them at once. Reading begins with `read_root`, writing ends with `encode`.
Slot numbers are those of the schema, from zero (Icechunk spec, "Tables").

Reading::

    root = read_root(payload, "manifests/ABC")          # Tables, len 1
    ids, _ = root.struct(0, 12, "id")                   # uint8[1, 12]
    arrays, at = root.children(1, "arrays", required=True)
    refs, at = arrays.children(1, "refs", required=True)     # children of children: array
                                                        # i has the refs at[i]:at[i + 1]
    lengths = refs.scalar(3, "<u8", field="length")     # default 0 where absent
    index, ends = refs.vector(0, "<u4", "index")        # flat, offsets: ragged rows
    boxes, ends = table.vector(1, "<u4", "extents", columns=2)     # structs: (total, 2)
    urls = refs.text(5, "location")                     # list of str or None
    names = root.texts(3, "deleted_tags")               # list of list of str
    data, has_data = nodes.child(9, "data")             # only of the rows that have one
    kinds, targets = nodes.union(3, "node_data")        # a row each; pick before use:
    groups = targets.take(np.flatnonzero(kinds == 2))

Writing, parents hold the batches of their children::

    leaves = Batch(3)                                   # three tables
    leaves.scalar(1, [7, 0, 9], "<u8", default=0)       # the row with a 0 leaves it out
    leaves.text(5, ["s3://a", None, "s3://a"])          # equal strings are stored once
    leaves.matrix(0, coords)                            # uint32[3, ndim]: a vector a row
    leaves.vector(3, flat, [0, 2, 2, 6])                # row i: flat[offsets[i]:offsets[i + 1]]
    leaves.vector(2, boxes, [0, 2, 2, 3])               # uint32[3, 2]: vectors of structs
    inner = Batch(2)
    inner.struct(0, ids)                                # uint8[2, 8]
    inner.children(1, leaves, [0, 2, 3])                # row 0: two leaves, row 1: one
    root = Batch(1)
    root.children(1, inner, [0, 2])                     # or several batches for one slot
    root.texts(3, [["v1", "v2"]])                       # one list of strings a row
    root.union(4, [2], {2: Batch(1)})                   # tag in slot 4, table in slot 5
    payload = encode(root)

The reader trusts nothing: every position, count and vtable is checked against the
payload before it is followed, and one call never gathers more than a small multiple
of the payload, however often tables share a vector. Decode a column for the whole
batch and keep it: that bound is per call. It accepts misaligned fields.

The writer lays parents out before children, gives rows with the same present fields
one vtable and one stride, and aligns as the spec asks ("Alignment").
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from icechunk.errors import FormatError
from icechunk.format.encoding import spans
from icechunk.format.encoding.flatbuf_write import Batch, encode

__all__ = ["Batch", "Tables", "encode", "read_root"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]

# What one call may gather: files share strings and vectors, but not without limit.
_SHARING_FACTOR: Final = 4
_SHARING_FLOOR: Final = 1 << 20
_NARROW: Final = 1 << 16
_UNSIGNED: Final = 1 << 64
#: Of so many positions it pays to see whether all are aligned.
_FEW: Final = 64
#: By the size of a number, the logarithm of it.
_SHIFTS: Final = {2: 1, 4: 2, 8: 3}
#: Numbers are told apart by a table of all places between them, where it has no more places than
#: this, and for each number no more than that. Sorting is faster for many numbers.
_TABLE: Final = 1 << 17
_DENSE: Final = 64
_MANY: Final = 1 << 14


class _Payload:
    """The bytes of one file, with views that read any position."""

    def __init__(self, payload: bytes | memoryview | bytearray, name: str) -> None:
        self.name = name
        self.bytes: Bytes = np.frombuffer(payload, np.uint8)
        self.size = len(self.bytes)
        self.limit = _SHARING_FACTOR * self.size + _SHARING_FLOOR

    def gather(self, at: Ints, dtype: np.dtype[Any], field: str) -> NDArray[Any]:
        """Return the value of `dtype` at each position."""
        size = dtype.itemsize
        self.check(at, size, field)
        if len(at) > _FEW and size in _SHIFTS and not int(np.bitwise_or.reduce(at)) & (size - 1):
            # aligned, as writers leave numbers: several times as fast
            aligned: NDArray[Any] = self.bytes[: self.size - self.size % size].view(dtype)
            numbers: NDArray[Any] = aligned[at >> _SHIFTS[size]]
            return numbers
        # one element per byte: overlapping, so that a position is an index
        shape = max(0, self.size - size + 1)
        view: NDArray[Any] = np.ndarray((shape,), dtype, self.bytes.data, strides=(1,))
        values: NDArray[Any] = view[at]
        return values

    def check(self, at: Ints, size: int | Ints, field: str) -> None:
        """Refuse positions that are not followed by `size` bytes."""
        if not isinstance(size, int):
            self.check(at, 0, field)
            at, size = at + size, 0
        if len(at) and _largest(at) > self.size - size:
            raise self.error(field, "points outside of the file")

    def follow(self, at: Ints, field: str) -> Ints:
        """Return what the relative offsets stored at these positions point to."""
        target: Ints = at + self.gather(at, _U4, field)
        self.check(target, 4, field)
        return target

    def heads(self, at: Ints, size: int, field: str) -> tuple[Ints, Ints]:
        """Return first element and count of the vectors whose offsets are stored here."""
        start = self.follow(at, field)
        count = self.gather(start, _U4, field).astype(np.int64)
        start += 4
        self.check(start, count * size, field)
        return start, count

    def spend(self, size: int, field: str) -> None:
        """Refuse to gather more than sharing can explain."""
        if size > self.limit:
            raise self.error(field, "shares the same bytes too many times")

    def elements(self, start: Ints, count: Ints, size: int) -> Ints:
        """Return the position of every element of these vectors, in order."""
        total = int(count.sum())
        if len(start) == 1:
            return np.arange(total, dtype=np.int64) * size + int(start[0])
        before = np.cumsum(count) - count
        flat: Ints = np.repeat(start - before * size, count)
        flat += np.arange(total, dtype=np.int64) * size
        return flat

    def distinct_bytes(self, start: Ints, count: Ints, field: str) -> tuple[list[bytes], Ints]:
        """Return the distinct byte strings at these spans, and which one each span is."""
        # a string's length is stored before it, so equal starts are equal spans
        first, which = distinct(start)
        lengths = count[first]
        self.spend(int(lengths.sum()), field)
        data = self.bytes.data
        starts = start[first].tolist()
        pairs = zip(starts, lengths.tolist(), strict=True)
        return [bytes(data[s : s + n]) for s, n in pairs], which

    def error(self, field: str, problem: str) -> FormatError:
        return FormatError(f"{self.name}: {field}: {problem}; the file is damaged")


def _largest(values: Ints) -> int:
    """Return the largest value; a negative one, as no file is that large, counts as larger."""
    if len(values) == 1:  # NumPy takes longer for one number than for a thousand
        return int(values[0]) % _UNSIGNED
    return int(values.view(np.uint64).max())


def distinct(values: Ints) -> tuple[Ints, Ints]:
    """Return the row of one example of each distinct value, and the index of each row's."""
    if len(values) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    steps = np.diff(values)
    if (steps > 0).all() or (steps < 0).all():  # usual: nothing is shared
        rows = np.arange(len(values), dtype=np.int64)
        return rows, rows
    begins = np.append(0, np.flatnonzero(steps) + 1)
    if 2 * len(begins) <= len(values):  # neighbours are equal
        rows, which = distinct(values[begins])
        return begins[rows], np.repeat(which, np.diff(begins, append=len(values)))
    low = int(values.min())
    size = int(values.max()) - low + 1
    if len(values) <= _MANY and size <= min(_DENSE * len(values), _TABLE):
        rows = np.arange(len(values), dtype=np.int64)
        places = np.empty(size, np.int64)
        places[values - low] = rows
        last = places[values - low]
        is_last = last == rows
        return np.flatnonzero(is_last), (np.cumsum(is_last) - 1)[last]
    ordered = np.sort(values)
    unique = ordered[np.r_[True, ordered[1:] != ordered[:-1]]]
    which = np.searchsorted(unique, values)
    rows = np.empty(len(unique), np.int64)
    rows[which] = np.arange(len(values), dtype=np.int64)
    return rows, which


def _told_apart(values: Ints) -> tuple[Ints, Ints]:
    """Return the distinct values, and which one each is: nearly always one or two."""
    differs = values != values[:1]
    rest = values[differs]
    if not len(rest):
        return values[:1], np.zeros(len(values), np.int64)
    if (rest == rest[0]).all():
        return np.array([values[0], rest[0]]), differs.astype(np.int64)
    first, which = distinct(values)
    return values[first], which


_U1: Final = np.dtype("<u1")
_U2: Final = np.dtype("<u2")
_U4: Final = np.dtype("<u4")
_I4: Final = np.dtype("<i4")
_NONE: Final = np.empty(0, np.int64)


class Tables:
    """`n` tables of one type, read as columns.

    Every method takes `field`, the name that an error shows. A `FormatError` says
    that the file is cut or damaged, or that a required field is missing.
    """

    def __init__(self, payload: _Payload, positions: Ints, field: str) -> None:
        self._payload = payload
        self._positions = positions
        self._field = field
        self._vtables: tuple[Ints, Ints, Ints] | None = None
        self._shared: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def buffer(self) -> Bytes:
        """The payload, which `spans` point into: uint8, read-only."""
        return self._payload.bytes

    def take(self, rows: Any) -> Tables:
        """Return the tables at these rows (indices, a slice or a mask)."""
        return Tables(self._payload, self._positions[rows], self._field)

    def at(self, positions: Ints, field: str) -> Tables:
        """Return tables of another type at these positions of the payload."""
        self._payload.check(positions, 4, field)
        return Tables(self._payload, positions, field)

    def present(self, slot: int) -> Bools:
        """Return which tables have the field: bool[n]."""
        offsets = self._offsets(slot)
        if isinstance(offsets, int):
            return np.full(len(self), offsets != 0)
        has: Bools = offsets != 0
        return has

    def scalar(
        self, slot: int, dtype: DTypeLike, default: Any = 0, *, field: str = ""
    ) -> NDArray[Any]:
        """Return a number per table: dtype[n], `default` where the field is absent."""
        kind = np.dtype(dtype)
        at, rows = self._locate(slot)
        values = self._payload.gather(at, kind, self._name(slot, field))
        return values if rows is None else self._spread(rows, values, default)

    def struct(
        self, slot: int, size: int, field: str = "", *, required: bool = True
    ) -> tuple[Bytes, Bools]:
        """Return the inline bytes of a struct: (uint8[n, size], bool[n] present).

        Rows of absent fields are zeros.
        """
        at, rows = self._locate(slot, field, required)
        raw = self._payload.gather(at, np.dtype(f"V{size}"), self._name(slot, field))
        values: Bytes = raw.view(np.uint8).reshape(len(raw), size)
        if rows is None:
            return values, np.ones(len(self), np.bool_)
        return self._spread(rows, values, 0), self._mask(rows)

    def child(self, slot: int, field: str = "", *, required: bool = False) -> tuple[Tables, Bools]:
        """Return the child tables of the rows that have one, and bool[n] which do."""
        at, rows = self._locate(slot, field, required)
        name = self._name(slot, field)
        return Tables(self._payload, self._payload.follow(at, name), name), self._mask(rows)

    def union(self, slot: int, field: str = "") -> tuple[Bytes, Tables]:
        """Return the tags in `slot`, uint8[n], and the tables in `slot` + 1, one for each row.

        If a tag is 0, the row of the tables means nothing: `take` the rows of one
        tag before reading them.
        """
        tags: Bytes = self.scalar(slot, np.uint8, field=field)
        at, rows = self._locate(slot + 1)
        name = self._name(slot, field)
        if not np.array_equal(tags != 0, self._mask(rows)):
            raise self._payload.error(name, "has a type without a value, or the other way round")
        targets = self._payload.follow(at, name)
        if rows is not None:
            targets = self._spread(rows, targets, 0)
        return tags, Tables(self._payload, targets, name)

    def children(
        self, slot: int, field: str = "", *, required: bool = False, smallest: int = 8
    ) -> tuple[Tables, Ints]:
        """Return vectors of tables: all of them, and int64[n + 1] offsets of each row's.

        An absent vector is empty. `smallest` is what a child takes in the file at
        least, with its offset, in bytes: it limits how many there can be.
        """
        start, count, _ = self._vectors(slot, 4, field, required)
        name = self._name(slot, field)
        # honest files share strings and vectors, but hardly ever tables
        self._payload.spend(int(count.sum()) * smallest * _SHARING_FACTOR, name)
        slots = self._payload.elements(start, count, 4)
        return Tables(self._payload, self._payload.follow(slots, name), name), _ends(count)

    def vector(
        self,
        slot: int,
        dtype: DTypeLike,
        field: str = "",
        *,
        required: bool = False,
        columns: int = 0,
    ) -> tuple[NDArray[Any], Ints]:
        """Return vectors of numbers: the flat values, and int64[n + 1] offsets of each row's.

        With `columns` the elements are structs of that many `dtype` numbers, and the values
        have the shape (total, columns). An absent vector is empty.
        """
        kind = np.dtype(dtype)
        size = kind.itemsize * (columns or 1)
        start, count, _ = self._vectors(slot, size, field, required)
        flat = self._gather_rows(start, count, size, self._name(slot, field)).view(kind)
        return (flat.reshape(-1, columns) if columns else flat), _ends(count)

    def spans(
        self, slot: int, field: str = "", *, required: bool = False
    ) -> tuple[Ints, Ints, Bools]:
        """Return byte vectors or strings as places in `buffer`: start, length, present.

        int64[n], int64[n] and bool[n]; 0, 0 where absent. Nothing is copied.
        """
        start, count, rows = self._vectors(slot, 1, field, required)
        return start, count, self._mask(rows)

    def distinct_blobs(
        self, slot: int, field: str = "", *, required: bool = False
    ) -> tuple[list[bytes], Ints]:
        """Return the distinct byte vectors or strings, and int64[n] which one each table has.

        A string that tables share is returned once; -1 stands for an absent field.
        """
        start, count, rows = self._vectors(slot, 1, field, required)
        if rows is None:
            return self._payload.distinct_bytes(start, count, self._name(slot, field))
        values, which = self._payload.distinct_bytes(
            start[rows], count[rows], self._name(slot, field)
        )
        return values, self._spread(rows, which, -1)

    def distinct_texts(
        self, slot: int, field: str = "", *, required: bool = False
    ) -> tuple[list[str], Ints]:
        """Return the same as `distinct_blobs`, as text."""
        values, which = self.distinct_blobs(slot, field, required=required)
        return self._decode(values, self._name(slot, field)), which

    def blobs(self, slot: int, field: str = "", *, required: bool = False) -> list[bytes | None]:
        """Return byte vectors, None where absent."""
        values, which = self.distinct_blobs(slot, field, required=required)
        return [values[i] if i >= 0 else None for i in which.tolist()]

    def text(self, slot: int, field: str = "", *, required: bool = False) -> list[str | None]:
        """Return strings, None where absent."""
        values, which = self.distinct_texts(slot, field, required=required)
        return [values[i] if i >= 0 else None for i in which.tolist()]

    def texts(self, slot: int, field: str = "", *, required: bool = False) -> list[list[str]]:
        """Return vectors of strings: a list per table, empty where absent."""
        name = self._name(slot, field)
        start, count, _ = self._vectors(slot, 4, field, required)
        self._payload.spend(int(count.sum()) * 8, name)
        slots = self._payload.elements(start, count, 4)
        blobs, which = self._payload.distinct_bytes(*self._payload.heads(slots, 1, name), name)
        values = self._decode(blobs, name)
        flat = [values[i] for i in which.tolist()]
        return [flat[a:b] for a, b in pairwise(_ends(count).tolist())]

    def _name(self, slot: int, field: str) -> str:
        return field or f"{self._field}, slot {slot}"

    def _offsets(self, slot: int) -> Ints | int:
        """Return where the field is in each table, 0 = absent; one number if all are alike."""
        if self._vtables is None:
            self._vtables = self._read_vtables()
        if self._shared is not None:
            return self._shared[slot] if slot < len(self._shared) else 0
        vtable, size, which = self._vtables
        has = size >= 6 + 2 * slot
        at = np.where(has, vtable + (4 + 2 * slot), vtable)
        offsets = self._payload.gather(at, _U2, self._field).astype(np.int64)
        offsets[~has] = 0
        return offsets[which]

    def _read_vtables(self) -> tuple[Ints, Ints, Ints]:
        """Return place and size of the distinct vtables, and which one each table has."""
        payload, field = self._payload, f"{self._field} (vtable)"
        places = self._positions - payload.gather(self._positions, _I4, field)
        vtable, which = _told_apart(places)
        size = payload.gather(vtable, _U2, field).astype(np.int64)
        payload.check(vtable, size, field)
        if (size < 4).any() or (size & 1).any():
            raise payload.error(field, "has an impossible length")
        if len(vtable) == 1:
            start, end = int(vtable[0]) + 4, int(vtable[0] + size[0])
            self._shared = tuple(payload.bytes[start:end].view(_U2).tolist())
        return vtable, size, which

    def _locate(self, slot: int, field: str = "", required: bool = False) -> tuple[Ints, Any]:
        """Return the positions of a field, and the rows that have it (None: all of them)."""
        if not len(self):
            return self._positions, None
        offsets = self._offsets(slot)
        if offsets if isinstance(offsets, int) else offsets.all():
            return self._positions + offsets, None
        if required:
            raise self._payload.error(self._name(slot, field), "required field is missing")
        if isinstance(offsets, int):
            return _NONE, _NONE
        rows = np.flatnonzero(offsets)
        return self._positions[rows] + offsets[rows], rows

    def _vectors(self, slot: int, size: int, field: str, required: bool) -> tuple[Ints, Ints, Any]:
        """Return start and count of each row's vector, and the rows that have one."""
        at, rows = self._locate(slot, field, required)
        start, count = self._payload.heads(at, size, self._name(slot, field))
        if rows is None:
            return start, count, None
        return self._spread(rows, start, 0), self._spread(rows, count, 0), rows

    def _gather_rows(self, start: Ints, count: Ints, size: int, field: str) -> Bytes:
        """Return the bytes of these vectors, one after the other."""
        payload = self._payload
        if len(start) == 1:
            return payload.bytes[start[0] : start[0] + int(count[0]) * size]
        lengths = count * size
        payload.spend(int(lengths.sum()), field)
        width = int(lengths[0]) if len(lengths) else 0
        if 0 < width < _NARROW and (lengths == width).all():
            return payload.gather(start, np.dtype(f"V{width}"), field).view(np.uint8)
        return spans.gather(payload.bytes, start, lengths)[0]

    def _spread(self, rows: Ints, values: NDArray[Any], default: Any) -> NDArray[Any]:
        """Return a column for all tables from the values of some."""
        out = np.full((len(self), *values.shape[1:]), default, values.dtype)
        out[rows] = values
        return out

    def _mask(self, rows: Any) -> Bools:
        if rows is None:
            return np.ones(len(self), np.bool_)
        mask = np.zeros(len(self), np.bool_)
        mask[rows] = True
        return mask

    def _decode(self, blobs: list[bytes], field: str) -> list[str]:
        try:
            return [b.decode() for b in blobs]
        except UnicodeDecodeError as e:
            raise self._payload.error(field, "is not UTF-8 text") from e


def _ends(count: Ints) -> Ints:
    ends = np.zeros(len(count) + 1, np.int64)
    np.cumsum(count, out=ends[1:])
    return ends


def read_root(payload: bytes | memoryview | bytearray, name: str) -> Tables:
    """Return the root table of a decompressed payload, as a batch of one.

    Parameters
    ----------
    payload : bytes-like
    name : str
        How errors name the file, for example its key.

    Raises
    ------
    FormatError
        If the payload is too short for its content. The file identifier is not
        checked: no reader does (Icechunk spec, "What layouts are legal").
    """
    data = _Payload(payload, name)
    return Tables(data, data.follow(np.zeros(1, np.int64), "root table"), "root table")
