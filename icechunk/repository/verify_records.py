"""Verification of what is stored beside the versions.

These are the log of updates with its copies, the records of jobs, and the tables of archives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from icechunk.changes.codec import decode_change_set
from icechunk.errors import IcechunkError, ObjectNotFoundError
from icechunk.format import layout
from icechunk.format.encoding.envelope import FileType
from icechunk.format.ids import INITIAL_SNAPSHOT_ID, encode_id
from icechunk.format.invariants import broken_invariants
from icechunk.format.repo_info import RepoInfo, decode_repo_info
from icechunk.format.updates import UpdateKind
from icechunk.repository import archive_tables
from icechunk.repository.jobs_records import JOBS, JobFiles, canonical, digest_of
from icechunk.repository.reachable import native_ids
from icechunk.repository.stored_json import first_unpacked
from icechunk.storage.base import Storage

__all__ = ["Found", "job_damages", "repo_damages", "table_damages"]

#: The number of copies to decode: the newest, from which a repair would restore.
_DECODED: Final = 10


#: Updates that determine whether a branch or tag exists.
_REFS: Final = {
    UpdateKind.TAG_CREATED: "tag",
    UpdateKind.TAG_DELETED: "tag",
    UpdateKind.BRANCH_CREATED: "branch",
    UpdateKind.BRANCH_DELETED: "branch",
    UpdateKind.BRANCH_RESET: "branch",
    UpdateKind.NEW_COMMIT: "branch",
    UpdateKind.COMMIT_AMENDED: "branch",
}
_DELETED: Final = (UpdateKind.TAG_DELETED, UpdateKind.BRANCH_DELETED)


class Found(NamedTuple):
    """A damage: its kind, the object, and what is wrong."""

    problem: str
    key: str
    told: str


_GONE: Final = "there is no such object"


# -- the repo info and its copies ------------------------------------------------------------
def repo_damages(storage: Storage, info: RepoInfo, *, all_copies: bool) -> Iterator[Found]:
    """Yield what is wrong with the repo info, and with the copies that its log names.

    Parameters
    ----------
    storage : Storage
    info : RepoInfo
        The current one, of spec version 2.
    all_copies : bool
        Whether to decode all copies, not only the newest ones and those where the log of
        updates continues.
    """
    key = layout.REPO_KEY
    if INITIAL_SNAPSHOT_ID not in info.snapshots:
        told = f"it does not list the first snapshot, {encode_id(INITIAL_SNAPSHOT_ID)}"
        yield Found("inconsistent", key, told)
    try:
        for told in broken_invariants(FileType.REPO, storage.get(key).data, key):
            yield Found("inconsistent", key, told)
        dict(info.metadata)
    except IcechunkError as error:
        yield _unreadable(key, error)
    for told in _unlike_its_log(info):
        yield Found("inconsistent", key, told)
    there = {meta.key for meta in storage.list(layout.OVERWRITTEN)}
    decoded = 0
    seen: set[str] = set()
    updates, before = list(info.updates), info.repo_before_updates
    while True:
        for update in updates:
            if update.backup is None:
                continue
            copy = layout.backup_key(update.backup)
            if copy not in there:
                yield Found("missing", copy, f"{_GONE}; the log of updates names it")
            elif all_copies or decoded < _DECODED:
                decoded += 1
                yield from _copy_damages(storage, copy, update.updated_at)
        if before is None or before in seen:
            return
        seen.add(before)
        copy = layout.backup_key(before)
        try:
            older = decode_repo_info(storage.get(copy).data, copy)
        except ObjectNotFoundError:
            yield Found("missing", copy, f"{_GONE}; the log of updates goes on there")
            return
        except IcechunkError as error:
            yield _unreadable(copy, error)
            return
        updates, before = list(older.updates), older.repo_before_updates


def _unlike_its_log(info: RepoInfo) -> Iterator[str]:
    """Yield the branches and tags that differ from what their newest update says."""
    if info.status.availability not in (0, 1, 2):
        yield f"its status has the number {info.status.availability}, which means nothing"
    seen: set[tuple[str, str]] = set()
    expired = False
    for update in info.updates:  # newest first
        kind, name, of = update.kind, update.name or "", _REFS.get(update.kind)
        if kind is UpdateKind.EXPIRATION_RAN:
            expired = True  # it may delete branches and tags, but names none
        if of is None or (of, name) in seen:
            continue
        seen.add((of, name))
        target = (info.branches if of == "branch" else info.tags).get(name)
        if kind in _DELETED:
            if target is not None:
                yield f"the {of} {name!r} is listed, and was deleted by the log of updates"
        elif target is None:
            if not expired:
                yield f"the {of} {name!r} is not listed, and is there by the log of updates"
        elif of == "branch" and update.snapshot not in (None, target):
            at, by_log = encode_id(target), encode_id(update.snapshot or b"")
            yield f"the branch {name!r} is at {at}, and by the log of updates at {by_log}"


def _copy_damages(storage: Storage, key: str, updated_at: int) -> Iterator[Found]:
    """Yield what is wrong with the copy of the state whose newest update has the given time."""
    try:
        info = decode_repo_info(storage.get(key).data, key)
    except ObjectNotFoundError:
        return  # collected meanwhile
    except IcechunkError as error:
        yield _unreadable(key, error)
        return
    if not info.updates or info.updates[0].updated_at != updated_at:
        yield Found("inconsistent", key, "it is the copy of another state than the log says")


def _unreadable(key: str, error: IcechunkError) -> Found:
    return Found("unreadable", key, error.message.removeprefix(f"{key}: "))


# -- jobs --------------------------------------------------------------------------------------
def job_damages(
    storage: Storage, use: Callable[[str, str, npt.NDArray[np.uint8]], None]
) -> Iterator[Found]:
    """Yield what is wrong with the records of jobs.

    Parameters
    ----------
    storage : Storage
    use : callable
        Called with the key of a part, the path of an array, and the ids of chunks that the
        part has written.
    """
    folders: dict[str, bool] = {}
    for meta in storage.list(JOBS):
        folder, _, rest = meta.key.removeprefix(JOBS).partition("/")
        folders[folder] = folders.get(folder, False) or rest == "job"
    for folder, is_defined in folders.items():
        if not is_defined:
            yield Found("missing", f"{JOBS}{folder}/job", f"{_GONE}, beside other records of a job")
    for name in JobFiles.names(storage):
        files = JobFiles(storage, name)
        try:
            if files.open() is None:
                continue
            parts, attempts = files.part_names(), files.attempt_names()
        except IcechunkError as error:
            yield _of_message(error, f"{JOBS}{name}/job")
            continue
        try:
            files.log()
        except IcechunkError as error:
            yield _of_message(error, f"{JOBS}{name}")
        for digest, numbers in attempts.items():
            for number, *_ in numbers:
                yield from _attempt_damages(files, name, digest, number)
        for part in sorted(parts):
            yield from _part_damages(files, name, part, use)


def _of_message(error: IcechunkError, otherwise: str) -> Found:
    """Return the damage that a message describes, if it begins with a key."""
    key, colon, told = error.message.partition(": ")
    if colon and key.startswith(JOBS):
        return Found("unreadable", key, told)
    return Found("unreadable", otherwise, error.message)


def _attempt_damages(files: JobFiles, name: str, digest: str, number: int) -> Iterator[Found]:
    try:
        for attempt in files.attempts([(digest, number)]):
            if (digest_of(canonical(attempt.key)), attempt.number) != (digest, number):
                key = files.key_of(f"attempts/{digest}/{number:06d}")
                yield Found("inconsistent", key, "it is the record of another attempt")
    except IcechunkError as error:
        yield _of_message(error, f"{JOBS}{name}")


def _part_damages(
    files: JobFiles,
    name: str,
    part: str,
    use: Callable[[str, str, npt.NDArray[np.uint8]], None],
) -> Iterator[Found]:
    key = files.key_of(f"parts/{part}")
    try:
        for found in files.parts([part]):
            if files.part_name(found.keys) != part:
                yield Found("inconsistent", key, "it is the record of another part")
            changes = decode_change_set(found.change_set, key)
            for id, edits in changes.chunks.items():
                use(key, changes.node_paths.get(id, ""), native_ids(edits.refs()))
    except IcechunkError as error:
        yield _of_message(error, key)


# -- archives ------------------------------------------------------------------------------------
def table_damages(storage: Storage, needed: set[str]) -> Iterator[Found]:
    """Yield what is wrong with tables of archives.

    Parameters
    ----------
    storage : Storage
    needed : set of str
        Keys of the tables that versions name.
    """
    if not needed:
        return
    there = {meta.key for meta in storage.list(archive_tables.FOLDER)}
    for key in sorted(needed):
        if key not in there:
            yield Found("missing", key, f"{_GONE}; files cannot be added to the archive")
            continue
        try:
            document, _ = first_unpacked(bytes(storage.get(key).data))
            if not isinstance(document, dict) or "version" not in document:
                raise ValueError("no table of an archive")
        except IcechunkError as error:
            yield _unreadable(key, error)
        except ValueError as error:
            yield Found("unreadable", key, str(error))
