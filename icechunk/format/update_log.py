"""The operations log as columns.

It has a thousand entries in each repo info, and every update adds one: the others go from
file to file as they are, without an object each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from icechunk.errors import FormatError, InternalError
from icechunk.format.encoding.flatbuf import Batch, Tables
from icechunk.format.ids import OBJECT_ID_SIZE
from icechunk.format.updates import (
    FIELDS,
    Status,
    UpdateEntry,
    UpdateKind,
    read_status,
    status_batch,
)
from icechunk.format.values import Values, utf8

__all__ = ["LAST_TIME", "UpdateLog"]

#: Names of branches and tags; ids, uint8[n, 12]; numbers; statuses.
_Column: TypeAlias = Values | NDArray[Any] | tuple[Status, ...]

#: Times are 64 bits, in microseconds.
LAST_TIME: Final = 2**64 - 1
_BY_TAG: Final = {int(kind): kind for kind in UpdateKind}
_IDS: Final = ("snapshot", "previous")
_BOOLS: Final = ("flag_value", "flag_is_set")
_NUMBERS: Final = {
    "from_version": "<u1",
    "to_version": "<u1",
    "flag_id": "<u2",
    **dict.fromkeys(_BOOLS, "<u1"),
}


class UpdateLog(Sequence[UpdateEntry]):
    """Updates of a repository, newest first. Immutable; compares as a tuple of entries does.

    Parameters
    ----------
    tags : uint8[n]
        The kind of each.
    times : uint64[n]
    backups : Values[n]
    details : mapping
        By tag, a column for each field of the entries of that kind, in the order of the log.
    """

    def __init__(
        self,
        tags: NDArray[np.uint8],
        times: NDArray[np.uint64],
        backups: Values,
        details: Mapping[int, tuple[_Column, ...]],
    ) -> None:
        self._tags = tags
        self._times = times
        self._backups = backups
        self._details = details

    @classmethod
    def of(cls, entries: Iterable[UpdateEntry]) -> UpdateLog:
        """Return entries as a log.

        Raises
        ------
        InternalError
            If one has not all the fields of its kind.
        """
        if isinstance(entries, cls):
            return entries
        rows = tuple(entries)
        by_kind: dict[UpdateKind, list[UpdateEntry]] = {}
        for entry in rows:
            by_kind.setdefault(entry.kind, []).append(entry)
        return cls(
            np.array([entry.kind for entry in rows], np.uint8),
            np.array([entry.updated_at for entry in rows], np.uint64),
            Values.of(None if e.backup is None else utf8(e.backup) for e in rows),
            {int(kind): _details(kind, entries) for kind, entries in by_kind.items()},
        )

    @classmethod
    def read(cls, updates: Tables, name: str) -> UpdateLog:
        """Return ``Update`` tables.

        Raises
        ------
        FormatError
            If one is damaged, or of a kind that this library does not know.
        """
        tags, targets = updates.union(0, "update_type")
        times = updates.scalar(2, "<u8", field="updated_at")
        backups = Values.read(updates, 3, f"{name}: backup_path", required=False, text=True)
        details: dict[int, tuple[_Column, ...]] = {}
        for tag in np.flatnonzero(np.bincount(tags)).tolist():
            rows = np.flatnonzero(tags == tag)
            if tag not in _BY_TAG:
                raise FormatError(
                    f"{name}: latest_updates[{rows[0]}]: unknown kind of update {tag}; "
                    "a newer client wrote it, a newer version of this library may read it"
                )
            tables, fields = targets.take(rows), FIELDS[_BY_TAG[tag]]
            details[tag] = tuple(_read(tables, slot, field) for slot, field in enumerate(fields))
        return cls(tags, times, backups, details)

    def batch(self) -> Batch:
        """Return the ``Update`` tables."""
        batch = Batch(len(self))
        batch.union(0, self._tags, {tag: _batch(tag, *of) for tag, of in self._by_tag()})
        batch.scalar(2, self._times, "<u8")
        backups = self._backups
        batch.heap(3, backups.data, backups.ends, backups.which, text=True)
        return batch

    def _by_tag(self) -> Iterator[tuple[int, tuple[int, tuple[_Column, ...]]]]:
        counts = np.bincount(self._tags)
        for tag in np.flatnonzero(counts).tolist():
            yield tag, (int(counts[tag]), self._details[tag])

    def with_entry(
        self, entry: UpdateEntry, backup: str, before: str | None, limit: int
    ) -> tuple[UpdateLog, str | None]:
        """Return a log with one more entry, and the name of the file where it goes on.

        Parameters
        ----------
        entry : UpdateEntry
            Without `backup`. Its time is moved behind that of the newest one if need be,
            because times must increase.
        backup : str
            Name of the file in which what was newest is that.
        before : str or None
            Where the log went on.
        limit : int
            Entries to keep, if an older one can serve as the link to the rest.

        Raises
        ------
        FormatError
            If no time is left behind that of the newest one.
        """
        if not len(self):
            return UpdateLog.of([replace(entry, backup=None)]), before
        time = max(entry.updated_at, int(self._times[0]) + 1)
        if time > LAST_TIME:
            raise FormatError(
                "repo: the newest update has the last time that can be stored, so that none can "
                "follow; Repository.repair restores an older copy"
            )
        new = UpdateLog.of([replace(entry, updated_at=time, backup=None)])
        tag = int(entry.kind)
        details = dict(self._details)
        details[tag] = tuple(
            _joined(one, rest)
            for one, rest in zip(new._details[tag], details.get(tag, new._empty(tag)), strict=True)
        )
        older = self._backups.take(slice(1, None))
        log = UpdateLog(
            np.concatenate([new._tags, self._tags]),
            np.concatenate([new._times, self._times]),
            older.insert(0, [None, utf8(backup)]),
            details,
        )
        # only an entry with a backup can be the link: a migration makes some without
        linked = np.flatnonzero(log._backups.which[limit:] >= 0)
        if len(linked):
            row = limit + int(linked[0])
            before = (log._backups.get(row) or b"").decode()
            log = log._cut(row)
        return log, before

    def continues(self, older: UpdateLog) -> bool:
        """Whether this is an older log with one more entry, but for what was cut off its end."""
        count = min(len(self) - 1, len(older))
        if count < 0:
            return False
        ours, theirs = self._since(1)._cut(count), older._cut(count)
        same = np.array_equal(ours._tags, theirs._tags)
        same &= np.array_equal(ours._times, theirs._times)
        # what was newest has got the name of its copy
        same &= ours._backups.all()[1:] == theirs._backups.all()[1:]
        return bool(same) and ours._all_details() == theirs._all_details()

    def _all_details(self) -> list[list[Any]]:
        return [
            list(_listed(column, field))
            for tag, (_, columns) in self._by_tag()
            for field, column in zip(FIELDS[_BY_TAG[tag]], columns, strict=True)
        ]

    def _since(self, count: int) -> UpdateLog:
        """Return the log without its newest entries."""
        skipped = np.bincount(self._tags[:count], minlength=len(_BY_TAG) + 1).tolist()
        return UpdateLog(
            self._tags[count:],
            self._times[count:],
            self._backups.take(slice(count, None)),
            {
                tag: tuple(_tail(column, skipped[tag]) for column in columns)
                for tag, columns in self._details.items()
            },
        )

    def _empty(self, tag: int) -> tuple[_Column, ...]:
        return tuple(_head(column, 0) for column in self._details[tag])

    def _cut(self, count: int) -> UpdateLog:
        """Return the newest entries."""
        tags = self._tags[:count]
        kept = np.bincount(tags, minlength=len(_BY_TAG) + 1).tolist()
        return UpdateLog(
            tags,
            self._times[:count],
            self._backups.take(slice(count)),
            {
                tag: tuple(_head(column, kept[tag]) for column in columns)
                for tag, columns in self._details.items()
            },
        )

    def _entry(self, row: int) -> UpdateEntry:
        tag = int(self._tags[row])
        at = int(np.count_nonzero(self._tags[:row] == tag))
        fields = FIELDS[_BY_TAG[tag]]
        backup = self._backups.get(row)
        return UpdateEntry(
            kind=_BY_TAG[tag],
            updated_at=int(self._times[row]),
            backup=None if backup is None else backup.decode(),
            **{
                field: _listed(_head(_tail(column, at), 1), field)[0]
                for field, column in zip(fields, self._details[tag], strict=True)
            },
        )

    @cached_property
    def _entries(self) -> tuple[UpdateEntry, ...]:
        details: dict[int, Iterator[dict[str, Any]]] = {}
        for tag, (count, columns) in self._by_tag():
            fields = FIELDS[_BY_TAG[tag]]
            listed = [_listed(column, field) for field, column in zip(fields, columns, strict=True)]
            rows = zip(*listed, strict=True) if listed else [()] * count
            details[tag] = iter([dict(zip(fields, row, strict=True)) for row in rows])
        return tuple(
            UpdateEntry(kind=_BY_TAG[tag], updated_at=time, backup=backup, **next(details[tag]))
            for tag, time, backup in zip(
                self._tags.tolist(), self._times.tolist(), self._backups.texts(), strict=True
            )
        )

    @overload
    def __getitem__(self, index: int) -> UpdateEntry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[UpdateEntry, ...]: ...
    def __getitem__(self, index: int | slice) -> UpdateEntry | tuple[UpdateEntry, ...]:
        if isinstance(index, slice):
            return self._entries[index]
        return self._entry(range(len(self))[index])

    def __iter__(self) -> Iterator[UpdateEntry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._tags)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UpdateLog | tuple):
            return NotImplemented
        return self._entries == tuple(other)

    def __hash__(self) -> int:
        return hash(self._entries)

    def __repr__(self) -> str:
        return f"UpdateLog({list(self._entries)!r})"


def _read(tables: Tables, slot: int, field: str) -> _Column:
    if field == "name":
        return Values.read(tables, slot, field, required=True, text=True)
    if field in _IDS:
        return tables.struct(slot, OBJECT_ID_SIZE, field)[0]
    if field == "status":
        return tuple(read_status(tables.child(slot, field, required=True)[0]))
    return tables.scalar(slot, _NUMBERS[field], field=field)


def _details(kind: UpdateKind, entries: Sequence[UpdateEntry]) -> tuple[_Column, ...]:
    columns: list[_Column] = []
    for field in FIELDS[kind]:
        values: list[Any] = [getattr(entry, field) for entry in entries]
        if None in values:
            raise InternalError(f"an update of kind {kind.name} has no {field}")
        if field == "name":
            columns.append(Values.of(map(utf8, values)))
        elif field in _IDS:
            ids = np.frombuffer(b"".join(values), np.uint8)
            columns.append(ids.reshape(len(values), OBJECT_ID_SIZE))
        elif field == "status":
            columns.append(tuple(values))
        else:
            columns.append(np.array(values, _NUMBERS[field]))
    return tuple(columns)


def _batch(tag: int, count: int, columns: tuple[_Column, ...]) -> Batch:
    batch = Batch(count)
    for slot, (field, column) in enumerate(zip(FIELDS[_BY_TAG[tag]], columns, strict=True)):
        if isinstance(column, Values):
            batch.heap(slot, column.data, column.ends, column.which, text=True)
        elif isinstance(column, tuple):
            batch.child(slot, status_batch(column))
        elif field in _IDS:
            batch.struct(slot, column)
        else:
            batch.scalar(slot, column, _NUMBERS[field], default=0)
    return batch


def _listed(column: _Column, field: str) -> Sequence[Any]:
    if isinstance(column, Values):
        return column.texts()
    if isinstance(column, tuple):
        return column
    if field in _IDS:
        raw = column.tobytes()
        return [raw[at : at + OBJECT_ID_SIZE] for at in range(0, len(raw), OBJECT_ID_SIZE)]
    values: list[Any] = column.tolist()
    return [bool(value) for value in values] if field in _BOOLS else values


def _joined(one: _Column, rest: _Column) -> _Column:
    """Return a column with the one entry of another before it."""
    if isinstance(one, Values) and isinstance(rest, Values):
        return rest.insert(0, one.all())
    if isinstance(one, tuple) and isinstance(rest, tuple):
        return one + rest
    return np.concatenate([one, rest])


def _head(column: _Column, count: int) -> _Column:
    return column.take(slice(count)) if isinstance(column, Values) else column[:count]


def _tail(column: _Column, begin: int) -> _Column:
    return column.take(slice(begin, None)) if isinstance(column, Values) else column[begin:]
