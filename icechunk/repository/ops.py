"""The status of a repository, and what expirations and collections say of themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from icechunk.base.display import NumberedEnum
from icechunk.base.texts import Labelled
from icechunk.commit.snapshot_info import from_microseconds
from icechunk.format.updates import Status

__all__ = [
    "ExpirationPreview",
    "GCSummary",
    "RepoAvailability",
    "RepoStatus",
]


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
