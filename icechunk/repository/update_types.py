"""The operations log as users see it: what each update of a repository did.

Few programs ask for it, so it is imported when it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from icechunk.base.texts import Labelled, literal
from icechunk.commit.snapshot_info import from_microseconds
from icechunk.format.ids import encode_id
from icechunk.format.updates import FIELDS, UpdateEntry, UpdateKind
from icechunk.repository.ops import RepoStatus

__all__ = ["Update", "UpdateType"]

#: These name a branch; the others name a branch or tag.
_OF_A_COMMIT: Final = {UpdateKind.NEW_COMMIT, UpdateKind.COMMIT_AMENDED}


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
