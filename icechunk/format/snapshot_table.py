"""The snapshots that a repo info lists, as columns.

A history has thousands of them, and a commit adds one: the others go from file to file as
they are, without an object each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from icechunk.errors import FormatError, InternalError, InvalidInputError
from icechunk.format.encoding import spans
from icechunk.format.encoding.flatbuf import Batch, Tables, distinct
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.format.ids import OBJECT_ID_SIZE, encode_id
from icechunk.format.metadata import Metadata

__all__ = ["SnapshotEntry", "SnapshotTable"]

_Ints = NDArray[np.int64]
_Bytes = NDArray[np.uint8]

#: So many entries are made one at a time; who asks for more is given all.
_FEW: Final = 32


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """What the repo info knows of a snapshot.

    Attributes
    ----------
    id : bytes
    parent_id : bytes or None
        None for the first snapshot of a history.
    flushed_at : int
        Microseconds since the epoch.
    message : str
    metadata : Metadata
        A read-only mapping.
    pruned : tuple of bytes
        Snapshots between this one and its parent that expired; their transaction logs
        still count when a session is rebased over this snapshot. Oldest first.
    """

    id: bytes
    parent_id: bytes | None
    flushed_at: int
    message: str
    metadata: Metadata
    pruned: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class _Values:
    """Byte strings of rows, equal ones once: ``data[ends[k]:ends[k + 1]]`` with k = which[i]."""

    data: _Bytes
    ends: _Ints
    which: _Ints

    @classmethod
    def of(cls, values: Iterable[bytes]) -> _Values:
        rows = list(values)
        numbers = {value: i for i, value in enumerate(dict.fromkeys(rows))}
        ends = np.cumsum([0, *map(len, numbers)])
        which = np.fromiter(map(numbers.__getitem__, rows), np.int64, len(rows))
        return cls(np.frombuffer(b"".join(numbers), np.uint8), ends, which)

    @classmethod
    def read(cls, tables: Tables, slot: int, field: str) -> _Values:
        start, length, has = tables.spans(slot, field, required=True)
        if not has.all():
            raise FormatError(f"{field}: required field is missing; the file is damaged")
        first, which = distinct(start)
        if int(length[first].sum()) > len(tables.buffer):
            raise FormatError(f"{field}: values lie inside of one another; the file is damaged")
        return cls(*spans.gather(tables.buffer, start[first], length[first]), which)

    def check_text(self, field: str) -> None:
        try:
            StringHeap(self.data, self.ends)
        except InvalidInputError as error:
            raise FormatError(f"{field}: {error}; the file is damaged") from error

    def add(self, other: _Values) -> _Values:
        data = np.concatenate([self.data, other.data])
        lengths = np.concatenate([np.diff(self.ends), np.diff(other.ends)])
        which = np.concatenate([self.which, other.which + (len(self.ends) - 1)])
        first, index = spans.unique(data, np.cumsum(lengths) - lengths, lengths)
        starts = np.cumsum(lengths) - lengths
        return _Values(*spans.gather(data, starts[first], lengths[first]), index[which])

    def get(self, row: int) -> bytes:
        k = int(self.which[row])
        return self.data[int(self.ends[k]) : int(self.ends[k + 1])].tobytes()

    def all(self) -> list[bytes]:
        raw = self.data.tobytes()
        values = [raw[a:b] for a, b in pairwise(self.ends.tolist())]
        return [values[k] for k in self.which.tolist()]


@dataclass(frozen=True, slots=True)
class _Columns:
    """`n` snapshots in any order.

    Attributes
    ----------
    ids : uint8[n, 12]
    parents : int64[n]
        Rows; -1 for none.
    flushed_at : uint64[n]
    messages : n values
        In UTF-8.
    items : int64[n + 1]
        Where the names and values of each one's metadata begin and end.
    names, values : items[-1] values
    pruned_at : int64[n + 1]
    pruned : uint8[pruned_at[-1], 12]
    """

    ids: _Bytes
    parents: _Ints
    flushed_at: NDArray[np.uint64]
    messages: _Values
    items: _Ints
    names: _Values
    values: _Values
    pruned_at: _Ints
    pruned: _Bytes


class SnapshotTable(Mapping[bytes, SnapshotEntry]):
    """Snapshots by id, made into entries when they are asked for. Immutable.

    Parameters
    ----------
    columns : _Columns
    spec_version : int
        Of the file that the metadata come from.
    name : str
        The file, for messages.
    """

    def __init__(self, columns: _Columns, spec_version: int, name: str) -> None:
        self._columns = columns
        self._spec_version = spec_version
        self._name = name
        self._rows = {id: row for row, id in enumerate(split_ids(columns.ids))}
        self._all: dict[bytes, SnapshotEntry] | None = None
        self._made = 0

    @classmethod
    def read(cls, tables: Tables, spec_version: int, name: str) -> SnapshotTable:
        """Return ``SnapshotInfo`` tables of a repo info.

        Raises
        ------
        FormatError
            If they are damaged.
        """
        ids = tables.struct(0, OBJECT_ID_SIZE, "snapshot id")[0]
        parents = tables.scalar(1, "<i4", field="parent_offset").astype(np.int64)
        if len(parents) and parents.max() >= len(ids):
            raise FormatError(
                f"{name}: parent_offset: {parents.max()} is not one of {len(ids)} snapshots"
            )
        messages = _Values.read(tables, 3, f"{name}: message")
        messages.check_text(f"{name}: message")
        items, items_at = tables.children(4, "metadata")
        names = _Values.read(items, 0, f"{name}: metadata name")
        names.check_text(f"{name}: metadata name")
        values = _Values.read(items, 1, f"{name}: metadata value")
        pruned, pruned_at = tables.vector(
            5, "<u1", "pruned_ancestor_tx_logs", columns=OBJECT_ID_SIZE
        )
        flushed_at = tables.scalar(2, "<u8", field="flushed_at")
        columns = _Columns(
            ids, parents, flushed_at, messages, items_at, names, values, pruned_at, pruned
        )
        table = cls(columns, spec_version, name)
        if len(table) != len(ids):
            raise FormatError(f"{name}: snapshots: one id is listed twice; the file is damaged")
        return table

    @classmethod
    def of(cls, snapshots: Mapping[bytes, SnapshotEntry]) -> SnapshotTable:
        """Return the same snapshots as a table.

        Raises
        ------
        InternalError
            If a parent is not among them.
        """
        if isinstance(snapshots, cls):
            return snapshots
        entries = list(snapshots.values())
        rows = {entry.id: row for row, entry in enumerate(entries)}
        return cls(_columns(entries, rows), 2, "snapshots")

    def with_entry(self, entry: SnapshotEntry) -> SnapshotTable:
        """Return a table with one more snapshot, whose parent is known.

        Raises
        ------
        InternalError
            If the parent is not among the snapshots.
        """
        if entry.id in self._rows or self._spec_version != 2:
            return SnapshotTable.of({**self, entry.id: entry})
        ours = self._columns
        new = _columns([entry], self._rows)
        columns = _Columns(
            np.concatenate([ours.ids, new.ids]),
            np.concatenate([ours.parents, new.parents]),
            np.concatenate([ours.flushed_at, new.flushed_at]),
            ours.messages.add(new.messages),
            np.concatenate([ours.items, ours.items[-1] + new.items[1:]]),
            ours.names.add(new.names),
            ours.values.add(new.values),
            np.concatenate([ours.pruned_at, ours.pruned_at[-1] + new.pruned_at[1:]]),
            np.concatenate([ours.pruned, new.pruned]),
        )
        return SnapshotTable(columns, 2, self._name)

    def batch(self) -> tuple[Batch, dict[bytes, int]]:
        """Return the tables of a repo info, sorted by id, and the row of each id."""
        if self._spec_version != 2:
            return SnapshotTable.of(dict(self)).batch()
        columns = self._columns
        ids = sorted(self._rows)
        order = np.fromiter(map(self._rows.__getitem__, ids), np.int64, len(ids))
        rank = np.empty(len(order) + 1, np.int64)
        rank[order] = np.arange(len(order))
        rank[-1] = -1  # of what has no parent
        items, items_at = _reordered(columns.items, order)
        names, values = columns.names, columns.values
        metadata = Batch(len(items))
        metadata.heap(0, names.data, names.ends, names.which[items], text=True)
        metadata.heap(1, values.data, values.ends, values.which[items], text=False)
        pruned, pruned_at = _reordered(columns.pruned_at, order)
        batch = Batch(len(order))
        batch.struct(0, columns.ids[order])
        # stored even where it is 0, the default, so that nobody takes it for "no parent"
        batch.scalar(1, rank[np.maximum(columns.parents[order], -1)], "<i4")
        batch.scalar(2, columns.flushed_at[order], "<u8")
        messages = columns.messages
        batch.heap(3, messages.data, messages.ends, messages.which[order], text=True)
        batch.children(4, metadata, items_at)
        batch.vector(5, columns.pruned[pruned], pruned_at, present=np.diff(pruned_at) > 0)
        return batch, dict(zip(ids, range(len(ids)), strict=True))

    def __getitem__(self, id: bytes) -> SnapshotEntry:
        if self._all is not None:
            return self._all[id]
        row = self._rows[id]
        self._made += 1
        if self._made > _FEW:
            return self._entries()[id]
        columns = self._columns
        parent = int(columns.parents[row])
        items = range(int(columns.items[row]), int(columns.items[row + 1]))
        raw = {columns.names.get(i).decode(): columns.values.get(i) for i in items}
        begin, end = columns.pruned_at[row : row + 2].tolist()
        return SnapshotEntry(
            id,
            columns.ids[parent].tobytes() if parent >= 0 else None,
            int(columns.flushed_at[row]),
            columns.messages.get(row).decode(),
            Metadata.stored(raw, self._spec_version, self._name),
            tuple(split_ids(columns.pruned[begin:end])),
        )

    def __contains__(self, id: object) -> bool:
        return id in self._rows

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"SnapshotTable({len(self)} snapshots)"

    def _entries(self) -> dict[bytes, SnapshotEntry]:
        columns, ids = self._columns, list(self._rows)
        names = [name.decode() for name in columns.names.all()]
        items = list(zip(names, columns.values.all(), strict=True))
        pruned = split_ids(columns.pruned)
        rows = zip(
            ids,
            (ids[parent] if parent >= 0 else None for parent in columns.parents.tolist()),
            columns.flushed_at.tolist(),
            map(bytes.decode, columns.messages.all()),
            pairwise(columns.items.tolist()),
            pairwise(columns.pruned_at.tolist()),
            strict=True,
        )
        version, name = self._spec_version, self._name
        self._all = {
            id: SnapshotEntry(
                id,
                parent,
                time,
                message,
                Metadata.stored(dict(items[a:b]), version, name),
                tuple(pruned[c:d]),
            )
            for id, parent, time, message, (a, b), (c, d) in rows
        }
        return self._all


def split_ids(ids: _Bytes) -> list[bytes]:
    """Return uint8[n, 12] as objects."""
    raw = ids.tobytes()
    return [raw[at : at + OBJECT_ID_SIZE] for at in range(0, len(raw), OBJECT_ID_SIZE)]


def _columns(entries: Sequence[SnapshotEntry], rows: Mapping[bytes, int]) -> _Columns:
    items = [entry.metadata.packed() for entry in entries]
    try:
        parents = [-1 if entry.parent_id is None else rows[entry.parent_id] for entry in entries]
    except KeyError as error:
        raise InternalError(
            f"parents refer to the unknown snapshot {encode_id(error.args[0])}"
        ) from None
    return _Columns(
        _joined([entry.id for entry in entries]),
        np.array(parents, np.int64),
        np.array([entry.flushed_at for entry in entries], np.uint64),
        _Values.of(_utf8(entry.message) for entry in entries),
        np.cumsum([0, *map(len, items)]),
        _Values.of(_utf8(name) for row in items for name in row),
        _Values.of(value for row in items for value in row.values()),
        np.cumsum([0, *(len(entry.pruned) for entry in entries)]),
        _joined([id for entry in entries for id in entry.pruned]),
    )


def _joined(ids: Sequence[bytes]) -> _Bytes:
    return np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), OBJECT_ID_SIZE)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise InvalidInputError(f"{text!r} cannot be stored: half of a character ({e})") from e


def _reordered(ends: _Ints, order: _Ints) -> tuple[_Ints, _Ints]:
    """Return the elements of rows in another order, and where those of each begin and end."""
    counts: Any = np.diff(ends)[order]
    new_ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    elements = np.repeat(ends[:-1][order] - new_ends[:-1], counts)
    return elements + np.arange(len(elements)), new_ends
