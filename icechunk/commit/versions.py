"""Names of versions: branches, tags, snapshot ids and times, looked up in a repo info."""

from __future__ import annotations

from datetime import datetime

from icechunk.commit.snapshots import from_microseconds, to_microseconds
from icechunk.errors import (
    ErrorKind,
    InvalidInputError,
    RefNotFoundError,
    SnapshotNotFoundError,
)
from icechunk.format.ids import decode_id, encode_id
from icechunk.format.repo_info import RepoInfo, SnapshotEntry


def branch_tip(info: RepoInfo, branch: str) -> bytes:
    """Return the newest snapshot of a branch.

    Raises
    ------
    RefNotFoundError
    """
    tip = info.branches.get(branch)
    if tip is None:
        hint = "; there is a tag of this name" if branch in info.tags else ""
        raise RefNotFoundError(f"there is no branch {branch!r}{hint}")
    return tip


def tag_target(info: RepoInfo, tag: str) -> bytes:
    """Return the snapshot that a tag names.

    Raises
    ------
    RefNotFoundError
    """
    target = info.tags.get(tag)
    if target is None:
        hint = "; there is a branch of this name" if tag in info.branches else ""
        raise RefNotFoundError(f"there is no tag {tag!r}{hint}")
    return target


def require_snapshot(info: RepoInfo, snapshot_id: bytes) -> SnapshotEntry:
    """Return what the history says of a snapshot.

    Raises
    ------
    SnapshotNotFoundError
    """
    try:
        return info.snapshots[snapshot_id]
    except KeyError:
        raise SnapshotNotFoundError(
            f"there is no snapshot {encode_id(snapshot_id)} in this repository"
        ) from None


def invalid_version(reason: str) -> InvalidInputError:
    """Return the error for a version that is named wrongly."""
    return InvalidInputError(reason, ErrorKind.INVALID_REF_TYPE)


def resolve(info: RepoInfo, branch: str | None, tag: str | None, snapshot_id: str | None) -> bytes:
    """Return the snapshot that exactly one of branch, tag and id names.

    Raises
    ------
    InvalidInputError, RefNotFoundError, SnapshotNotFoundError
    """
    given = sum(name is not None for name in (branch, tag, snapshot_id))
    if given != 1:
        raise invalid_version(
            f"exactly one of branch, tag and snapshot_id names a version; {given} were given"
        )
    if branch is not None:
        return branch_tip(info, branch)
    if tag is not None:
        return tag_target(info, tag)
    return require_snapshot(info, decode_id(snapshot_id or "")).id


def as_of(info: RepoInfo, branch: str, when: datetime) -> bytes:
    """Return the newest snapshot of a branch that is not younger than a time.

    A time without zone is taken as local time.

    Raises
    ------
    SnapshotNotFoundError
        If all are younger.
    InvalidInputError
        If it is no time.
    """
    if not isinstance(when, datetime):
        raise invalid_version(f"as_of must be a datetime, not {when!r}")
    limit = to_microseconds(when)
    oldest = None
    for entry in info.ancestry(info.branches[branch]):
        if entry.flushed_at <= limit:
            return entry.id
        oldest = entry
    born = from_microseconds(oldest.flushed_at).isoformat() if oldest is not None else "nothing"
    raise SnapshotNotFoundError(
        f"the branch {branch!r} has no snapshot as old as {when.isoformat()}; "
        f"its first is from {born}",
        ErrorKind.NO_SNAPSHOT_AT_TIME,
    )
