"""The operations log as users see it: what each update of a repository did."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from icechunk.base.display import NumberedEnum
from icechunk.base.texts import Labelled, literal
from icechunk.commit.snapshot_info import from_microseconds
from icechunk.format.ids import encode_id
from icechunk.format.updates import FIELDS, Status, UpdateEntry, UpdateKind

__all__ = [
    "ExpirationPreview",
    "GCSummary",
    "RepoAvailability",
    "RepoStatus",
    "Update",
    "UpdateType",
]

#: These name a branch; the others name a branch or tag.
_OF_A_COMMIT: Final = {UpdateKind.NEW_COMMIT, UpdateKind.COMMIT_AMENDED}


class RepoAvailability(NumberedEnum):
    """Whether a repository takes writes."""

    online = 0
    read_only = 1


@dataclass(repr=False)
class RepoStatus(Labelled):
    """Whether a repository takes writes, and why not.

    Attributes
    ----------
    availability : RepoAvailability
    set_at : datetime, optional
        When this was set. Leave it out to use the current time.
    limited_availability_reason : str, optional

    Examples
    --------
    >>> repo.get_status().availability.name
    'online'
    """

    _label = "icechunk.repository.RepoStatus"

    availability: RepoAvailability
    set_at: datetime | None = None
    limited_availability_reason: str | None = None

    def _shown(self, name: str) -> str:
        if name == "availability":
            return {"online": "Online", "read_only": "ReadOnly"}[self.availability.name]
        return super()._shown(name)

    @classmethod
    def from_status(cls, status: Status) -> RepoStatus:
        """Return the public form of the status in a repo info."""
        read_only = status.availability == RepoAvailability.read_only.value
        return cls(
            RepoAvailability.read_only if read_only else RepoAvailability.online,
            from_microseconds(status.set_at),
            status.reason,
        )


@dataclass(frozen=True, repr=False)
class GCSummary(Labelled):
    """What a garbage collection deleted, or would delete.

    Attributes
    ----------
    bytes_deleted : int
        Size of all deleted objects.
    chunks_deleted, manifests_deleted, snapshots_deleted, transaction_logs_deleted : int
        Numbers of objects.
    attributes_deleted : int
        Always 0: the format reserves such objects, but nobody writes them.
    objects_failed_to_delete : int
    delete_errors : list of str
        The reasons of the first few.
    skipped_phases : list of str
        Kinds of objects that were left alone because deleting an earlier kind failed: what
        those refer to must be deleted after them.
    throttled_batches : int
        Always 0: the storage retries throttled requests and does not report them.
    kept : dict of str to dict of str to int
        Why objects stay, by kind: how many are ``"needed"`` by a version or a job, are
        ``"young"`` although nothing refers to them, or are ``"foreign"``: their names are not of
        this format.
    since : datetime or None
        Objects written at that time or later, by the clock of the storage, stay. It is before
        the given time if a job or a clock requires that.
    reasons : list of str
        Why it is before the given time.

    Examples
    --------
    >>> from datetime import UTC, datetime
    >>> repo.garbage_collect(datetime.now(UTC), dry_run=True).chunks_deleted
    0
    """

    _label = "icechunk.ops.GCSummary"

    bytes_deleted: int = 0
    chunks_deleted: int = 0
    manifests_deleted: int = 0
    snapshots_deleted: int = 0
    attributes_deleted: int = 0
    transaction_logs_deleted: int = 0
    objects_failed_to_delete: int = 0
    throttled_batches: int = 0
    delete_errors: list[str] = field(default_factory=list)
    skipped_phases: list[str] = field(default_factory=list)
    # the official class has none of these, and programs compare its repr
    kept: dict[str, dict[str, int]] = field(default_factory=dict, repr=False, compare=False)
    since: datetime | None = field(default=None, repr=False, compare=False)
    reasons: list[str] = field(default_factory=list, repr=False, compare=False)


@dataclass(frozen=True, repr=False)
class ExpirationPreview(Labelled):
    """What an expiration would do, and what a collection after it would free.

    Attributes
    ----------
    snapshots : frozenset of str
        Ids of the snapshots that would no longer be in any history.
    branches, tags : tuple of str
        Those that would be deleted.
    bytes_freed : int
        What a collection would then delete beyond what it would delete now.
    chunks_freed, manifests_freed : int
        Numbers of objects.
    """

    _label = "icechunk.ops.ExpirationPreview"

    snapshots: frozenset[str]
    branches: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    bytes_freed: int = 0
    chunks_freed: int = 0
    manifests_freed: int = 0


class _Kind:
    """Displays an update as the call that makes it."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={literal(value)}" for name, value in vars(self).items())
        return f"icechunk.ops.{type(self).__qualname__}({shown})"


class UpdateType:
    """What an update did: one class for each kind, with its details.

    Examples
    --------
    >>> isinstance(next(repo.ops_log()).kind, icechunk.UpdateType.NewCommit)
    True
    """

    @dataclass(frozen=True, repr=False)
    class RepoInitialized(_Kind):
        """The repository was created."""

    @dataclass(frozen=True, repr=False)
    class RepoMigrated(_Kind):
        """The repository was migrated to another spec version."""

        from_version: int
        to_version: int

    @dataclass(frozen=True, repr=False)
    class ConfigChanged(_Kind):
        """The configuration was saved."""

    @dataclass(frozen=True, repr=False)
    class MetadataChanged(_Kind):
        """The metadata of the repository was changed."""

    @dataclass(frozen=True, repr=False)
    class TagCreated(_Kind):
        """A tag was created."""

        name: str

    @dataclass(frozen=True, repr=False)
    class TagDeleted(_Kind):
        """A tag was deleted."""

        name: str
        previous_snap_id: str

    @dataclass(frozen=True, repr=False)
    class BranchCreated(_Kind):
        """A branch was created."""

        name: str

    @dataclass(frozen=True, repr=False)
    class BranchDeleted(_Kind):
        """A branch was deleted."""

        name: str
        previous_snap_id: str

    @dataclass(frozen=True, repr=False)
    class BranchReset(_Kind):
        """A branch was moved to another snapshot."""

        name: str
        previous_snap_id: str

    @dataclass(frozen=True, repr=False)
    class NewCommit(_Kind):
        """A snapshot was committed to a branch."""

        branch: str
        new_snap_id: str

    @dataclass(frozen=True, repr=False)
    class CommitAmended(_Kind):
        """The newest snapshot of a branch was replaced."""

        branch: str
        previous_snap_id: str
        new_snap_id: str

    @dataclass(frozen=True, repr=False)
    class NewDetachedSnapshot(_Kind):
        """A snapshot was made that is on no branch."""

        new_snap_id: str

    @dataclass(frozen=True, repr=False)
    class GCRan(_Kind):
        """Garbage was collected."""

    @dataclass(frozen=True, repr=False)
    class ExpirationRan(_Kind):
        """Old snapshots were expired."""

    @dataclass(frozen=True, repr=False)
    class FeatureFlagChanged(_Kind):
        """A feature was switched; `new_value` is None if it was reset to its default."""

        id: int
        new_value: bool | None

    @dataclass(frozen=True, repr=False)
    class RepoStatusChanged(_Kind):
        """The status of the repository was set."""

        status: RepoStatus


@dataclass(frozen=True, repr=False)
class Update(Labelled):
    """One entry of the operations log.

    Attributes
    ----------
    kind : one of the classes in UpdateType
    updated_at : datetime
        In UTC.
    backup_path : str or None
        Name of the copy of the repo info from right after this update; None for the newest.

    Examples
    --------
    >>> update = next(repo.ops_log())
    >>> update.updated_at.tzinfo is not None
    True
    """

    _label = "icechunk.ops.Update"

    kind: object
    updated_at: datetime
    backup_path: str | None

    @classmethod
    def from_entry(cls, entry: UpdateEntry) -> Update:
        """Return the public form of an entry of the repo info."""
        kind = getattr(UpdateType, update_name(entry.kind))(**update_fields(entry))
        return cls(kind, from_microseconds(entry.updated_at), entry.backup)


def update_name(kind: UpdateKind) -> str:
    """Return the name of the class in `UpdateType`."""
    if kind is UpdateKind.GC_RAN:
        return "GCRan"
    return "".join(word.capitalize() for word in kind.name.split("_"))


def update_fields(entry: UpdateEntry) -> dict[str, Any]:
    """Return the content of an entry, under the names of the official client."""
    found: dict[str, Any] = {}
    for item in FIELDS[entry.kind]:
        value = getattr(entry, item)
        if item == "name":
            found["branch" if entry.kind in _OF_A_COMMIT else "name"] = value
        elif item == "snapshot":
            found["new_snap_id"] = encode_id(value)
        elif item == "previous":
            found["previous_snap_id"] = encode_id(value)
        elif item == "status":
            found["status"] = RepoStatus.from_status(value)
        elif item == "flag_id":
            found["id"] = value
        elif item == "flag_value":
            found["new_value"] = value if entry.flag_is_set else None
        elif item != "flag_is_set":
            found[item] = value
    return found
