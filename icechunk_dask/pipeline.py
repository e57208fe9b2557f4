"""Batches that are committed one after another, while the tasks of the next one run.

The next batch begins before the commit of the last one has landed, on a session that has the
same changes. Once the commit has landed, the batch counts as made on that commit.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self

from icechunk import NotFoundError, Session
from icechunk_dask.part import Part

if TYPE_CHECKING:
    from icechunk_dask.batches import Committing, Units
    from icechunk_dask.record import Record

__all__ = ["Pipeline"]

#: Commits the units that a part has done, with a change set made on a snapshot, and returns
#: the new snapshot, if there is one.
Commit = Callable[["Units", Part, bytes, str], str | None]


class Pipeline:
    """Commits in a thread of its own, one batch at a time.

    Parameters
    ----------
    how : Committing
    record : Record or None
    commit : callable
    """

    def __init__(self, how: Committing, record: Record | None, commit: Commit) -> None:
        self._how = how
        self._record = record
        self._commit = commit
        self._pool = ThreadPoolExecutor(1, "icechunk-commit")
        self._future: Future[str | None] | None = None
        # the changes that are being committed, and the snapshot that they were made on
        self._flying: tuple[bytes, str] | None = None

    def session(self) -> Session:
        """Return a session for the tasks of the next batch."""
        repository, branch = self._how.repository, self._how.branch
        if self._record is not None and self._record.base is not None:
            return repository.session_after_commit(branch, self._record.base)
        if self._future is None or self._future.done():
            self.wait()
            self._flying = None
            return repository.writable_session(branch)
        assert self._flying is not None
        changes, base = self._flying
        session = repository.session_after_commit(branch, base)
        session.merge_change_sets([changes])
        return session

    def add(self, units: Units, part: Part, session: Session) -> None:
        """Commit a batch once the one before it is committed.

        Parameters
        ----------
        units : int64[n]
        part : Part
            What they did.
        session : Session
            What `session` gave for them.
        """
        previous = self.wait()
        changes, base = part.changes, session.snapshot_id
        if self._flying is not None and previous is not None and self._has_parent(previous, base):
            changes, base = changes.on(previous), previous
        self._flying = changes.to_bytes(), base
        self._future = self._pool.submit(self._commit, units, part, *self._flying)

    def wait(self) -> str | None:
        """Wait for the commit in progress, and return its snapshot."""
        return self._future.result() if self._future is not None else None

    def _has_parent(self, snapshot: str, base: str) -> bool:
        """Whether a commit was made on a snapshot itself, and not on a later one of others."""
        try:
            return self._how.repository.lookup_snapshot(snapshot).parent_id == base
        except NotFoundError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # the commit in progress lands or fails before anybody says what is committed
        self._pool.shutdown(wait=True)
        if error is None:
            self.wait()
