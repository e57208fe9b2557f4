"""The record of a named job: which units of work are done, whoever did them.

A batch leaves its change set in the job before it is committed. So a coordinator that dies
loses the tasks that were running, and nothing that was done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from icechunk import (
    AlreadyExistsError,
    ConflictError,
    InvalidInputError,
    Job,
    NotFoundError,
)

if TYPE_CHECKING:
    from icechunk_dask.batches import Committing

__all__ = ["Record"]


class Record:
    """What a job knows about the units of some work.

    Parameters
    ----------
    how : Committing
    name : str
        The name of the job, which is created if it does not exist.
    keys : list of JSON values
        Of the units.
    """

    def __init__(self, how: Committing, name: str, keys: list[Any]) -> None:
        self._how = how
        self._keys = keys
        self._job = _opened(how, name)
        self._texts = self._job.texts_of(keys)
        #: The snapshot that all parts begin with, if they wait for one commit at the end.
        self.base: str | None = None

    def begin(self) -> list[str]:
        """Commit what an interrupted run has left, and return the commits."""
        self._job.check_history()
        if self._how.publish == "end":
            self.base = self._job.waiting_base()
            if self.base is None:
                self.base = self._how.repository.lookup_branch(self._how.branch)
            return []
        try:
            return self._commit()
        except ConflictError:
            # what it did contradicts what others did since: it is done again
            if not self._job.give_up_commit():
                raise
            return []

    def pending(self) -> npt.NDArray[np.int64]:
        """Return the units that are still to be done: int64[n], rising."""
        done = self._job.done()
        left = [number for number, text in enumerate(self._texts) if text not in done]
        return np.array(left, np.int64)

    def add(self, units: npt.NDArray[np.int64], change_set: bytes, base: str) -> list[str]:
        """Add what a batch did, and return the resulting commits."""
        keys = [self._keys[unit] for unit in units.tolist()]
        if not self._job.add_part(keys, change_set, base):
            raise self._slower()
        if self._how.publish == "end":
            return []
        try:
            commits = self._commit()
        except ConflictError:
            # others have moved the branch: the batch is done again next time
            if self._job.give_up_commit():
                self._job.drop_part(keys)
            raise
        if not self._job.committed() >= set(self._job.texts_of(keys)):
            raise self._slower()
        return commits

    def _slower(self) -> ConflictError:
        return ConflictError(
            message=f"another process runs the job {self._job.name!r}, too, and was faster "
            "with a batch; let one of them go on, or use repo.jobs with Job.run"
        )

    def publish(self) -> list[str]:
        """Commit all that is waiting, and return the commits."""
        try:
            return self._commit()
        except ConflictError as error:
            raise self._not_published(error) from error

    def _commit(self) -> list[str]:
        how = self._how
        return self._job.publish(
            rebase_with=how.rebase_with, message=how.message, metadata=how.metadata
        )

    def _not_published(self, error: ConflictError) -> ConflictError:
        name = self._job.name
        ways = [
            "to keep what others did where both changed the same, or what the job did, run the "
            "job again with rebase_with=icechunk.BasicConflictSolver(on_chunk_conflict=...)",
            f"to do the work again, repo.jobs.delete({name!r}), and run it",
        ]
        if self._how.rebase_with is None:
            ways.insert(0, "to keep both, run it with rebase_with=icechunk.ConflictDetector()")
        return ConflictError(
            message=f"all is written, but the branch {self._how.branch!r} cannot have it: "
            f"{error.message}. The work stays in the job {name!r}. {'; '.join(ways)}",
            kind=error.kind,
        )


def _opened(how: Committing, name: str) -> Job:
    jobs = how.repository.jobs
    try:
        job = jobs.open(name)
    except NotFoundError:
        try:
            job = jobs.create(name, branch=how.branch, message=how.message)
        except AlreadyExistsError:
            job = jobs.open(name)
    if job.branch != how.branch:
        raise InvalidInputError(
            f"the job {name!r} commits to the branch {job.branch!r}, not to {how.branch!r}; choose "
            "another name"
        )
    return job
