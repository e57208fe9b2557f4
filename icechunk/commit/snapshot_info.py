"""What users are told about a snapshot: its entry in the history, its manifests, its time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias

from icechunk.base.html import card, fields, section
from icechunk.base.texts import Labelled
from icechunk.format.ids import encode_id
from icechunk.format.repo_info import SnapshotEntry
from icechunk.format.snapshot import ManifestFile

__all__ = ["CommitMethod", "ManifestFileInfo", "SnapshotInfo", "SnapshotMetadata"]

#: How a session puts its changes on a branch: as a snapshot of their own, or as a part of the
#: newest one.
CommitMethod: TypeAlias = Literal["new_commit", "amend"]

#: In a history each id comes twice: as a parent, and as the next entry.
_id_text = lru_cache(maxsize=1024)(encode_id)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, repr=False)
class SnapshotInfo(Labelled):
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
            _id_text(entry.id),
            _id_text(entry.parent_id) if entry.parent_id is not None else None,
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


@dataclass(frozen=True, slots=True, repr=False)
class ManifestFileInfo(Labelled):
    """A manifest that a snapshot refers to.

    Attributes
    ----------
    id : str
    size_bytes : int
        Of the stored object.
    num_chunk_refs : int
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
