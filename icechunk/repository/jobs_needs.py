"""What unfinished jobs need, for garbage collection."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from icechunk.changes.codec import decode_change_set
from icechunk.format.ids import decode_id
from icechunk.repository.jobs_records import JobFiles
from icechunk.repository.reachable import native_ids
from icechunk.storage.base import Storage

__all__ = ["Needs", "needed_by_jobs"]


@dataclass
class Needs:
    """What must stay.

    Attributes
    ----------
    snapshots : set of bytes
        Snapshots on which parts were made, or will be.
    chunks : list of uint8[n, 12]
        Ids of chunks that parts have written.
    since : datetime or None
        When the oldest running part began, by the clock of the storage: it may have written
        anything that is newer.
    """

    snapshots: set[bytes] = field(default_factory=set)
    chunks: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    since: datetime | None = None


def needed_by_jobs(storage: Storage) -> Needs:
    """Return what all jobs of a repository need.

    Raises
    ------
    FormatError
        If a record is damaged: then nobody knows what it refers to.
    """
    needs = Needs()
    for name in JobFiles.names(storage):
        files = JobFiles(storage, name)
        definition = files.open()
        if definition is None:
            continue
        closed = files.closing()
        # a part may have arrived while the job was being closed
        if closed == "cancelled" or (closed is not None and not files.part_names()):
            continue
        if definition.base is not None:
            needs.snapshots.add(decode_id(definition.base))
        # before the parts: an attempt that ends meanwhile has left one
        begun = files.attempt_names()
        files.log()
        names = files.part_names()
        for digest in begun.keys() - names - files.committed_digests:
            times = {attempt.number: attempt.began for attempt in begun[digest]}
            for attempt in files.attempts((digest, number) for number in times):
                if attempt.ended is None:
                    needs.snapshots.add(decode_id(attempt.base))
                    time = times[attempt.number]
                    needs.since = time if needs.since is None else min(needs.since, time)
        for part in files.parts(sorted(names)):
            needs.snapshots.add(decode_id(part.base))
            changes = decode_change_set(part.change_set, f"a part of the job {name!r}")
            needs.chunks += [native_ids(edits.refs()) for edits in changes.chunks.values()]
    return needs
