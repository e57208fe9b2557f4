"""The snapshots that a repo info lists, as columns.

A history has thousands of them, and a commit adds one. The others are copied from file to
file, without an object for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from icechunk.errors import FormatError, InternalError
from icechunk.format.encoding.flatbuf import Batch, Tables
from icechunk.format.ids import OBJECT_ID_SIZE, encode_id, encode_ids
from icechunk.format.metadata import Metadata
from icechunk.format.values import Values, spliced, utf8

__all__ = ["SnapshotEntry", "SnapshotTable"]

_Ints = NDArray[np.int64]
_Bytes = NDArray[np.uint8]

#: Up to this many entries are made one at a time; after that, all are made.
_FEW: Final = 32


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """What the repo info knows about a snapshot.

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
class _Columns:
    """`n` snapshots.

    Attributes
    ----------
    ids : uint8[n, 12]
    parents : int64[n]
        Rows; -1 for none.
    flushed_at : uint64[n]
    messages : Values[n]
        In UTF-8.
    items : int64[n + 1]
        Where the names and values of each one's metadata begin and end.
    names, values : Values[items[-1]]
    pruned_at : int64[n + 1]
    pruned : uint8[pruned_at[-1], 12]
    """

    ids: _Bytes
    parents: _Ints
    flushed_at: NDArray[np.uint64]
    messages: Values
    items: _Ints
    names: Values
    values: Values
    pruned_at: _Ints
    pruned: _Bytes

    def sorted(self) -> _Columns:
        """Return the snapshots in the order of their ids, which they nearly always have."""
        found = _comparable(self.ids)
        if (found[1:] >= found[:-1]).all():
            return self
        order = np.argsort(found, kind="stable")
        rank = np.empty(len(order) + 1, np.int64)
        rank[order] = np.arange(len(order))
        rank[-1] = -1  # of what has no parent
        items, items_at = _reordered(self.items, order)
        pruned, pruned_at = _reordered(self.pruned_at, order)
        return _Columns(
            self.ids[order],
            rank[self.parents[order]],
            self.flushed_at[order],
            self.messages.take(order),
            items_at,
            self.names.take(items),
            self.values.take(items),
            pruned_at,
            self.pruned[pruned],
        )


class SnapshotTable(Mapping[bytes, SnapshotEntry]):
    """Snapshots by id, sorted, made into entries on request. Immutable.

    Parameters
    ----------
    columns : _Columns
        Sorted by id.
    spec_version : int
        Of the file that the metadata come from.
    name : str
        The file, for messages.
    """

    def __init__(self, columns: _Columns, spec_version: int, name: str) -> None:
        self._columns = columns
        self._spec_version = spec_version
        self._name = name
        self._sorted = _comparable(columns.ids)
        self._rows: dict[bytes, int] | None = None
        self._all: dict[bytes, SnapshotEntry] | None = None
        self._told: list[tuple[str, str | None, int, str]] | None = None
        self._asked = self._made = 0

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
        items, items_at = tables.children(4, "metadata")
        pruned, pruned_at = tables.vector(
            5, "<u1", "pruned_ancestor_tx_logs", columns=OBJECT_ID_SIZE
        )
        columns = _Columns(
            ids,
            np.maximum(parents, -1),
            tables.scalar(2, "<u8", field="flushed_at"),
            Values.read(tables, 3, f"{name}: message", required=True, text=True),
            items_at,
            Values.read(items, 0, f"{name}: metadata name", required=True, text=True),
            Values.read(items, 1, f"{name}: metadata value", required=True),
            pruned_at,
            pruned,
        ).sorted()
        found = _comparable(columns.ids)
        if (found[1:] == found[:-1]).any():
            raise FormatError(f"{name}: snapshots: one id is listed twice; the file is damaged")
        return cls(columns, spec_version, name)

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
        entries = sorted(snapshots.values(), key=lambda entry: entry.id)
        rows = {entry.id: row for row, entry in enumerate(entries)}
        return cls(_columns(entries, rows.get), 2, "snapshots")

    def with_entry(self, entry: SnapshotEntry) -> SnapshotTable:
        """Return a table with one more snapshot, whose parent is known.

        Raises
        ------
        InternalError
            If the parent is not among the snapshots.
        """
        if entry.id in self or self._spec_version != 2:
            return SnapshotTable.of({**self, entry.id: entry})
        ours, new = self._columns, _columns([entry], self.row)
        at = int(np.searchsorted(self._sorted, np.array(entry.id, self._sorted.dtype)))
        parents = spliced(ours.parents, at, new.parents)
        parents += parents >= at
        item, pruned = int(ours.items[at]), int(ours.pruned_at[at])
        columns = _Columns(
            spliced(ours.ids, at, new.ids),
            parents,
            spliced(ours.flushed_at, at, new.flushed_at),
            ours.messages.insert(at, new.messages.all()),
            _ends_with(ours.items, at, int(new.items[-1])),
            ours.names.insert(item, new.names.all()),
            ours.values.insert(item, new.values.all()),
            _ends_with(ours.pruned_at, at, int(new.pruned_at[-1])),
            spliced(ours.pruned, pruned, new.pruned),
        )
        return SnapshotTable(columns, 2, self._name)

    def batch(self) -> Batch:
        """Return the tables of a repo info, sorted by id."""
        if self._spec_version != 2:
            return SnapshotTable.of(dict(self)).batch()
        columns = self._columns
        names, values, messages = columns.names, columns.values, columns.messages
        metadata = Batch(len(names))
        metadata.heap(0, names.data, names.ends, names.which, text=True)
        metadata.heap(1, values.data, values.ends, values.which, text=False)
        batch = Batch(len(self))
        batch.struct(0, columns.ids)
        # stored even if it is 0, the default, so that nobody takes it for "no parent"
        batch.scalar(1, columns.parents, "<i4")
        batch.scalar(2, columns.flushed_at, "<u8")
        batch.heap(3, messages.data, messages.ends, messages.which, text=True)
        batch.children(4, metadata, columns.items)
        batch.vector(5, columns.pruned, columns.pruned_at, present=np.diff(columns.pruned_at) > 0)
        return batch

    def equals(self, other: SnapshotTable) -> bool:
        """Whether both list the same snapshots; metadata are the same if they mean the same."""
        mine, theirs = self._columns, other._columns
        fields = ("ids", "parents", "flushed_at", "items", "pruned_at", "pruned")
        if all(np.array_equal(getattr(mine, name), getattr(theirs, name)) for name in fields) and (
            mine.messages.all() == theirs.messages.all()
            and mine.names.all() == theirs.names.all()
            and mine.values.all() == theirs.values.all()
        ):
            return True
        # another client writes the same metadata as other bytes
        return self.keys() == other.keys() and dict(self) == dict(other)

    def row(self, id: object) -> int | None:
        """Return the position of a snapshot among all ids in order, or None."""
        if self._rows is not None:
            return self._rows.get(id)  # type: ignore[call-overload, no-any-return]
        if not isinstance(id, bytes) or len(id) != OBJECT_ID_SIZE:
            return None
        self._asked += 1
        if self._asked > _FEW:
            self._rows = {id: row for row, id in enumerate(split_ids(self._columns.ids))}
            return self._rows.get(id)
        wanted = np.array(id, self._sorted.dtype)
        row = int(np.searchsorted(self._sorted, wanted))
        return row if row < len(self) and self._sorted[row] == wanted else None

    def parents(self) -> list[int]:
        """Return the position of the parent of each, -1 for none."""
        parents: list[int] = self._columns.parents.tolist()
        return parents

    def told(self, row: int) -> tuple[str, str | None, int, str]:
        """Return ids of a snapshot and its parent as text, its time, and its message."""
        if self._told is None:
            self._made += 1
            if self._made <= _FEW:
                entry = self.entry(row)
                parent = None if entry.parent_id is None else encode_id(entry.parent_id)
                return encode_id(entry.id), parent, entry.flushed_at, entry.message
            columns = self._columns
            ids: list[Any] = [*encode_ids(columns.ids), None]  # the last for no parent
            above = [ids[parent] for parent in columns.parents.tolist()]
            times, messages = columns.flushed_at.tolist(), columns.messages.texts()
            self._told = list(zip(ids[:-1], above, times, messages, strict=True))  # type: ignore[arg-type]
        return self._told[row]

    def metadata(self, row: int) -> Metadata:
        """Return the metadata of a snapshot."""
        return self.entry(row).metadata

    def __getitem__(self, id: bytes) -> SnapshotEntry:
        if self._all is not None:
            return self._all[id]
        row = self.row(id)
        if row is None:
            raise KeyError(id)
        self._made += 1
        if self._made > _FEW:
            return self._entries()[id]
        return self.entry(row)

    def entry(self, row: int) -> SnapshotEntry:
        """Return the snapshot at a position."""
        columns = self._columns
        parent = int(columns.parents[row])
        items = range(int(columns.items[row]), int(columns.items[row + 1]))
        raw = {_text(columns.names, i): columns.values.get(i) or b"" for i in items}
        begin, end = columns.pruned_at[row : row + 2].tolist()
        return SnapshotEntry(
            columns.ids[row].tobytes(),
            columns.ids[parent].tobytes() if parent >= 0 else None,
            int(columns.flushed_at[row]),
            _text(columns.messages, row),
            Metadata.stored(raw, self._spec_version, self._name),
            tuple(split_ids(columns.pruned[begin:end])),
        )

    def __contains__(self, id: object) -> bool:
        return self.row(id) is not None

    def __iter__(self) -> Iterator[bytes]:
        return iter(split_ids(self._columns.ids))

    def __len__(self) -> int:
        return len(self._columns.ids)

    def __repr__(self) -> str:
        return f"SnapshotTable({len(self)} snapshots)"

    def _entries(self) -> dict[bytes, SnapshotEntry]:
        columns, ids = self._columns, split_ids(self._columns.ids)
        items: list[Any] = list(zip(columns.names.texts(), columns.values.all(), strict=True))
        pruned = split_ids(columns.pruned)
        rows = zip(
            ids,
            (ids[parent] if parent >= 0 else None for parent in columns.parents.tolist()),
            columns.flushed_at.tolist(),
            columns.messages.texts(),
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
                message or "",
                Metadata.stored(dict(items[a:b]), version, name),
                tuple(pruned[c:d]),
            )
            for id, parent, time, message, (a, b), (c, d) in rows
        }
        return self._all


def _comparable(ids: _Bytes) -> NDArray[np.bytes_]:
    """View uint8[n, 12] as values in the order of ids; zeros at their ends do not matter."""
    return np.ascontiguousarray(ids).view(f"S{OBJECT_ID_SIZE}").reshape(len(ids))


def _text(values: Values, row: int) -> str:
    return (values.get(row) or b"").decode()


def _ends_with(ends: _Ints, row: int, count: int) -> _Ints:
    """Return where the elements of rows end, with a row of that many elements at `row`."""
    return np.concatenate([ends[: row + 1], ends[row:] + count])


def split_ids(ids: _Bytes) -> list[bytes]:
    """Return uint8[n, 12] as objects."""
    raw = ids.tobytes()
    return [raw[at : at + OBJECT_ID_SIZE] for at in range(0, len(raw), OBJECT_ID_SIZE)]


def _columns(entries: Sequence[SnapshotEntry], row: Callable[[bytes], int | None]) -> _Columns:
    items = [entry.metadata.packed() for entry in entries]
    parents = [-1 if entry.parent_id is None else row(entry.parent_id) for entry in entries]
    if None in parents:
        unknown = entries[parents.index(None)].parent_id or b""
        raise InternalError(f"parents refer to the unknown snapshot {encode_id(unknown)}")
    return _Columns(
        _joined([entry.id for entry in entries]),
        np.array(parents, np.int64),
        np.array([entry.flushed_at for entry in entries], np.uint64),
        Values.of(utf8(entry.message) for entry in entries),
        np.cumsum([0, *map(len, items)]),
        Values.of(utf8(name) for row in items for name in row),
        Values.of(value for row in items for value in row.values()),
        np.cumsum([0, *(len(entry.pruned) for entry in entries)]),
        _joined([id for entry in entries for id in entry.pruned]),
    )


def _joined(ids: Sequence[bytes]) -> _Bytes:
    return np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), OBJECT_ID_SIZE)


def _reordered(ends: _Ints, order: _Ints) -> tuple[_Ints, _Ints]:
    """Return the elements of rows in another order, and where those of each begin and end."""
    counts: Any = np.diff(ends)[order]
    new_ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    elements = np.repeat(ends[:-1][order] - new_ends[:-1], counts)
    return elements + np.arange(len(elements)), new_ends
