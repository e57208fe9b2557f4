"""The operations log of a repository: what each update of the repo info did.

Icechunk spec, "Repo info file", union ``UpdateType``. One table, `FIELDS`, says which
fields each kind of entry has; `icechunk.format.update_log` reads and writes by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

from icechunk.format.encoding.flatbuf import Batch, Tables

__all__ = [
    "FIELDS",
    "Status",
    "UpdateEntry",
    "UpdateKind",
    "read_status",
    "status_batch",
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


# -- writing -------------------------------------------------------------------


def status_batch(statuses: Sequence[Status]) -> Batch:
    """Return ``RepoStatus`` tables."""
    batch = Batch(len(statuses))
    batch.scalar(0, [status.availability for status in statuses], "<u1", default=0)
    batch.scalar(1, np.array([status.set_at for status in statuses], "<u8"), "<u8")
    batch.text(2, [status.reason for status in statuses])
    return batch
