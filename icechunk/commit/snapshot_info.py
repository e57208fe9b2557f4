"""What users are told about a snapshot: its entry in the history, its manifests, its time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

from icechunk.base.html import card, fields, section
from icechunk.base.texts import Labelled
from icechunk.format.ids import encode_id
from icechunk.format.repo_info import SnapshotEntry
from icechunk.format.snapshot import ManifestFile
from icechunk.format.snapshot_table import SnapshotTable

__all__ = [
    "CommitMethod",
    "ManifestFileInfo",
    "SnapshotInfo",
    "SnapshotMetadata",
    "snapshot_of_row",
]

#: How a session puts its changes on a branch: as a snapshot of their own, or as a part of the
#: newest one.
CommitMethod: TypeAlias = Literal["new_commit", "amend"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class _OfTable:
    """Gets its fields from a table of snapshots when they are needed.

    A history has thousands of them, and most programs look at a few, or only at messages.
    """

    __slots__ = ("_row", "_table")
    _row: int
    _table: SnapshotTable

    def __getattr__(self, name: str) -> Any:
        # of an empty slot
        if name == "metadata":
            found: dict[str, Any] = {"metadata": dict(self._table.metadata(self._row))}
        elif name in _FIELDS:
            id, parent, time, message = self._table.told(self._row)
            told = id, parent, from_microseconds(time), message
            found = dict(zip(_FIELDS, told, strict=True))
        else:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        for field_name, value in found.items():
            object.__setattr__(self, field_name, value)
        return found[name]


_FIELDS: Final = ("id", "parent_id", "written_at", "message")


@dataclass(frozen=True, slots=True, repr=False)
class SnapshotInfo(_OfTable, Labelled):
    """One entry of a repository's history.

    Attributes
    ----------
    id : str
    parent_id : str or None
        None for the first snapshot.
    written_at : datetime
        In UTC.
    message : str
    metadata : dict
        As given to the commit.

    Examples
    --------
    >>> newest = next(repo.ancestry(branch="main"))
    >>> newest.message
    'Second'
    """

    _label = "icechunk.snapshots.SnapshotInfo"

    id: str
    parent_id: str | None
    written_at: datetime
    message: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_entry(cls, entry: SnapshotEntry) -> SnapshotInfo:
        """Return the public form of an entry of the repo info."""
        return cls(
            encode_id(entry.id),
            encode_id(entry.parent_id) if entry.parent_id is not None else None,
            from_microseconds(entry.flushed_at),
            entry.message,
            dict(entry.metadata),
        )

    def _repr_html_(self) -> str:
        told = fields(
            {"written (UTC)": self.written_at, "message": self.message, "parent": self.parent_id}
        )
        return card("SnapshotInfo", self.id, told, section("Metadata", fields(self.metadata)))


#: The name of this class in the early Icechunk API.
SnapshotMetadata = SnapshotInfo


def snapshot_of_row(table: SnapshotTable, row: int) -> SnapshotInfo:
    """Return the public form of the snapshot at a position of a table."""
    info = SnapshotInfo.__new__(SnapshotInfo)
    # the class is frozen
    object.__setattr__(info, "_table", table)
    object.__setattr__(info, "_row", row)
    return info


@dataclass(frozen=True, slots=True, repr=False)
class ManifestFileInfo(Labelled):
    """A manifest that a snapshot refers to.

    Attributes
    ----------
    id : str
    size_bytes : int
        Of the stored object.
    num_chunk_refs : int

    Examples
    --------
    >>> (file,) = repo.list_manifest_files(first)
    >>> file.num_chunk_refs
    4
    """

    _label = "icechunk.snapshots.ManifestFileInfo"

    id: str
    size_bytes: int
    num_chunk_refs: int

    @classmethod
    def from_file(cls, file: ManifestFile) -> ManifestFileInfo:
        """Return the public form of an entry of a snapshot's manifest list."""
        return cls(encode_id(file.id), file.size_bytes, file.num_chunk_refs)


def from_microseconds(microseconds: int) -> datetime:
    """Return a stored timestamp as a datetime in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


def to_microseconds(when: datetime) -> int:
    """Return a time as it is stored; one without zone is in UTC."""
    if when.utcoffset() is None:
        when = when.replace(tzinfo=UTC)
    return (when - _EPOCH) // timedelta(microseconds=1)
