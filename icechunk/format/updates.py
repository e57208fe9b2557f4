"""The operations log of a repository: what each update of the repo info did.

Icechunk spec, "Repo info file", union ``UpdateType``. One table, `FIELDS`, says which
fields each kind of entry has; reading and writing both follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np

from icechunk.errors import FormatError, InternalError
from icechunk.format.encoding.flatbuf import Batch, Tables
from icechunk.format.ids import OBJECT_ID_SIZE

__all__ = [
    "FIELDS",
    "Status",
    "UpdateEntry",
    "UpdateKind",
    "read_status",
    "read_updates",
    "status_batch",
    "updates_batch",
]


class UpdateKind(IntEnum):
    """Tags of the union."""

    REPO_INITIALIZED = 1
    REPO_MIGRATED = 2
    CONFIG_CHANGED = 3
    METADATA_CHANGED = 4
    TAG_CREATED = 5
    TAG_DELETED = 6
    BRANCH_CREATED = 7
    BRANCH_DELETED = 8
    BRANCH_RESET = 9
    NEW_COMMIT = 10
    COMMIT_AMENDED = 11
    NEW_DETACHED_SNAPSHOT = 12
    GC_RAN = 13
    EXPIRATION_RAN = 14
    FEATURE_FLAG_CHANGED = 15
    REPO_STATUS_CHANGED = 16


@dataclass(frozen=True, slots=True)
class Status:
    """Whether the repository accepts writes.

    Attributes
    ----------
    availability : int
        0 online, 1 read-only, 2 offline (which official readers take for online).
    set_at : int
        Microseconds since the epoch.
    reason : str or None
    """

    availability: int
    set_at: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateEntry:
    """One update of the repository. Fields that its kind does not have are None.

    Attributes
    ----------
    kind : UpdateKind
    updated_at : int
        Microseconds since the epoch; 0 until it is published.
    backup : str or None
        Name, without folder, of the copy of the repo info in which this entry came first;
        None for the newest entry.
    name : str or None
        Of the branch or tag.
    snapshot : bytes or None
        The new snapshot.
    previous : bytes or None
        The snapshot that the ref pointed to before.
    from_version, to_version : int or None
        Of a migration.
    flag_id : int or None
    flag_value, flag_is_set : bool or None
        Of a feature flag; not `flag_is_set`: back to its default.
    status : Status or None
    """

    kind: UpdateKind
    updated_at: int = 0
    backup: str | None = None
    name: str | None = None
    snapshot: bytes | None = None
    previous: bytes | None = None
    from_version: int | None = None
    to_version: int | None = None
    flag_id: int | None = None
    flag_value: bool | None = None
    flag_is_set: bool | None = None
    status: Status | None = None


#: The fields of each kind, in the order of their slots.
FIELDS: Final[dict[UpdateKind, tuple[str, ...]]] = {
    UpdateKind.REPO_INITIALIZED: (),
    UpdateKind.REPO_MIGRATED: ("from_version", "to_version"),
    UpdateKind.CONFIG_CHANGED: (),
    UpdateKind.METADATA_CHANGED: (),
    UpdateKind.TAG_CREATED: ("name",),
    UpdateKind.TAG_DELETED: ("name", "previous"),
    UpdateKind.BRANCH_CREATED: ("name",),
    UpdateKind.BRANCH_DELETED: ("name", "previous"),
    UpdateKind.BRANCH_RESET: ("name", "previous"),
    UpdateKind.NEW_COMMIT: ("name", "snapshot"),
    UpdateKind.COMMIT_AMENDED: ("name", "previous", "snapshot"),
    UpdateKind.NEW_DETACHED_SNAPSHOT: ("snapshot",),
    UpdateKind.GC_RAN: (),
    UpdateKind.EXPIRATION_RAN: (),
    UpdateKind.FEATURE_FLAG_CHANGED: ("flag_id", "flag_value", "flag_is_set"),
    UpdateKind.REPO_STATUS_CHANGED: ("status",),
}
_BY_TAG: Final = {int(kind): kind for kind in UpdateKind}
_NUMBERS: Final = {"from_version": "<u1", "to_version": "<u1", "flag_id": "<u2"}
_IDS: Final = ("snapshot", "previous")
_BOOLS: Final = ("flag_value", "flag_is_set")


# -- reading -------------------------------------------------------------------


def read_status(tables: Tables) -> list[Status]:
    """Return ``RepoStatus`` tables as values."""
    return [
        Status(*row)
        for row in zip(
            tables.scalar(0, "<u1", field="availability").tolist(),
            tables.scalar(1, "<u8", field="set_at").tolist(),
            tables.text(2, "limited_availability_reason"),
            strict=True,
        )
    ]


def read_updates(updates: Tables, name: str) -> tuple[UpdateEntry, ...]:
    """Return ``Update`` tables as values.

    Raises
    ------
    FormatError
        If one is damaged, or of a kind that this library does not know.
    """
    tags, targets = updates.union(0, "update_type")
    times = updates.scalar(2, "<u8", field="updated_at").tolist()
    backups = updates.text(3, "backup_path")
    details: list[dict[str, Any]] = [{}] * len(updates)
    for tag in np.unique(tags).tolist():
        rows = np.flatnonzero(tags == tag)
        if tag not in _BY_TAG:
            raise FormatError(
                f"{name}: latest_updates[{rows[0]}]: unknown kind of update {tag}; "
                "a newer client wrote it, a newer version of this library may read it"
            )
        fields = FIELDS[_BY_TAG[tag]]
        tables = targets.take(rows)
        columns = [_read_field(tables, slot, field) for slot, field in enumerate(fields)]
        for row, values in zip(rows.tolist(), zip(*columns, strict=True), strict=False):
            details[row] = dict(zip(fields, values, strict=True))
    kinds = [_BY_TAG[tag] for tag in tags.tolist()]
    return tuple(
        UpdateEntry(kind=kind, updated_at=time, backup=backup, **detail)
        for kind, time, backup, detail in zip(kinds, times, backups, details, strict=True)
    )


def _read_field(tables: Tables, slot: int, field: str) -> list[Any]:
    if field == "name":
        return list(tables.text(slot, field, required=True))
    if field in _IDS:
        raw = tables.struct(slot, OBJECT_ID_SIZE, field)[0].tobytes()
        return [raw[at : at + OBJECT_ID_SIZE] for at in range(0, len(raw), OBJECT_ID_SIZE)]
    if field == "status":
        return list(read_status(tables.child(slot, field, required=True)[0]))
    if field in _BOOLS:
        return [bool(value) for value in tables.scalar(slot, "<u1", field=field).tolist()]
    numbers: list[Any] = tables.scalar(slot, _NUMBERS[field], field=field).tolist()
    return numbers


# -- writing -------------------------------------------------------------------


def status_batch(statuses: Sequence[Status]) -> Batch:
    """Return ``RepoStatus`` tables."""
    batch = Batch(len(statuses))
    batch.scalar(0, [status.availability for status in statuses], "<u1", default=0)
    batch.scalar(1, np.array([status.set_at for status in statuses], "<u8"), "<u8")
    batch.text(2, [status.reason for status in statuses])
    return batch


def updates_batch(updates: Sequence[UpdateEntry]) -> Batch:
    """Return ``Update`` tables."""
    by_kind: dict[UpdateKind, list[UpdateEntry]] = {}
    for update in updates:
        by_kind.setdefault(update.kind, []).append(update)
    batch = Batch(len(updates))
    details = {int(kind): _details_batch(kind, entries) for kind, entries in by_kind.items()}
    batch.union(0, [update.kind for update in updates], details)
    batch.scalar(2, np.array([update.updated_at for update in updates], "<u8"), "<u8")
    batch.text(3, [update.backup for update in updates])
    return batch


def _details_batch(kind: UpdateKind, updates: Sequence[UpdateEntry]) -> Batch:
    batch = Batch(len(updates))
    for slot, field in enumerate(FIELDS[kind]):
        values = [getattr(update, field) for update in updates]
        if None in values:
            raise InternalError(f"an update of kind {kind.name} has no {field}")
        if field == "name":
            batch.text(slot, values)
        elif field in _IDS:
            ids = np.frombuffer(b"".join(values), np.uint8)
            batch.struct(slot, ids.reshape(len(values), OBJECT_ID_SIZE))
        elif field == "status":
            batch.child(slot, status_batch(values))
        else:
            batch.scalar(slot, values, _NUMBERS.get(field, "<u1"), default=0)
    return batch
