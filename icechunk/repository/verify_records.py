"""Verification of what is stored beside the versions: records of jobs, tables of archives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from icechunk.changes.codec import decode_change_set
from icechunk.errors import IcechunkError
from icechunk.repository import archive_tables
from icechunk.repository.jobs_records import JOBS, JobFiles, canonical, digest_of
from icechunk.repository.reachable import native_ids
from icechunk.repository.stored_json import first_unpacked
from icechunk.storage.base import Storage

__all__ = ["GONE", "Found", "job_damages", "table_damages", "unreadable"]

GONE: Final = "there is no such object"


class Found(NamedTuple):
    """A damage: its kind, the object, and what is wrong."""

    problem: str
    key: str
    told: str


def unreadable(key: str, error: IcechunkError) -> Found:
    """Return the damage of an object that cannot be decoded."""
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
            yield Found("missing", f"{JOBS}{folder}/job", f"{GONE}, beside other records of a job")
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
            yield from _part_damages(files, part, use)


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
            yield Found("missing", key, f"{GONE}; files cannot be added to the archive")
            continue
        try:
            document, _ = first_unpacked(bytes(storage.get(key).data))
            if not isinstance(document, dict) or "version" not in document:
                raise ValueError("no table of an archive")
        except IcechunkError as error:
            yield unreadable(key, error)
        except ValueError as error:
            yield Found("unreadable", key, str(error))
