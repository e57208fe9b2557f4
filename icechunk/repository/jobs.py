"""Jobs: writes in many parts, by any processes at any time, with a record of what is done.

A job needs no process that stays alive. Each part writes its chunks and leaves its change set
in the repository's storage. Whoever sees that all parts are there commits them. The record is a
set of keys outside the history, so it survives expiration and amended commits.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from icechunk.base.display import Displayed
from icechunk.base.near import near
from icechunk.errors import AlreadyExistsError, IcechunkError, InvalidInputError, NotFoundError
from icechunk.format.metadata import Metadata
from icechunk.repository.job import Job, check_distinct, listed_keys
from icechunk.repository.jobs_publish import Host
from icechunk.repository.jobs_records import Definition, JobFiles, canonical, now

__all__ = ["Jobs"]


class Jobs(Displayed):
    """The jobs of a repository. Use `Repository.jobs`.

    Examples
    --------
    >>> def write(store, row):
    ...     zarr.open_array(store, path="temperature")[row] = 17.0
    >>> job = repo.jobs.create("backfill", keys=[2, 3], message="Two more rows")
    >>> job = repo.jobs.open("backfill")  # in any other process
    >>> parts = job.run(write, keys=[2, 3])
    >>> job.finish() == repo.lookup_branch("main")
    True
    """

    def __init__(self, repository: Host) -> None:
        self._repository = repository

    def create(
        self,
        name: str,
        *,
        message: str,
        branch: str = "main",
        keys: Iterable[Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
        exist_ok: bool = False,
    ) -> Job:
        """Create a job.

        Parameters
        ----------
        name : str
            Up to 100 printable characters.
        message : str
            Message of the commits.
        branch : str
            The branch to commit to. Parts see the snapshot that is its newest now.
        keys : iterable of JSON values, optional
            One for each part, without repeats. Default: more may come at any time; each part then
            sees the snapshot that is newest when the part begins.
        metadata : mapping, optional
            Metadata of the commits.
        about : mapping, optional
            Anything else to record about the job, such as a description of its input; must be
            expressible in JSON. See `Job.about`.
        exist_ok : bool
            Whether to return the job if one with the same definition exists: for scripts that run
            many times.

        Raises
        ------
        AlreadyExistsError
            If a job of this name exists, or, with `exist_ok`, one with another definition.
        InvalidInputError
            If a key is not a JSON value, or is repeated.
        RefNotFoundError
            If there is no such branch.
        """
        files = JobFiles(self._repository.storage, name)
        if not isinstance(message, str):
            raise InvalidInputError(f"the message of a job must be a string, not {message!r}")
        Metadata(metadata or {})  # refuses what cannot be stored
        tip = self._repository.lookup_branch(branch)
        listed = None
        if keys is not None:
            texts = [canonical(key) for key in listed_keys(keys)]
            check_distinct(texts)
            listed = [json.loads(text) for text in texts]
        definition = Definition(
            id=uuid.uuid4().hex,
            name=name,
            branch=branch,
            message=message,
            metadata=dict(metadata or {}),
            created=now(),
            keys=listed,
            base=tip if listed is not None else None,
            about=None if about is None else json.loads(canonical(dict(about))),
        )
        if files.define(definition):
            return Job(self._repository, files, definition)
        there = self.open(name)
        if exist_ok:
            differs = there.differences(definition)
            if not differs:
                return there
            raise AlreadyExistsError(
                f"there is a job {name!r} already, with another {' and '.join(differs)}; choose "
                f"another name, or forget that job with Repository.jobs.delete({name!r})"
            )
        raise AlreadyExistsError(
            f"there is a job {name!r} already; open it with Repository.jobs.open({name!r}), or "
            f"forget it with Repository.jobs.delete({name!r})"
        )

    def open(self, name: str) -> Job:
        """Return a job.

        Raises
        ------
        NotFoundError
            If no job of this name exists.
        """
        files = JobFiles(self._repository.storage, name)
        definition = files.open()
        if definition is None or definition.name != name:
            raise NotFoundError(f"there is no job {name!r}{near(name, self.list())}")
        return Job(self._repository, files, definition)

    def list(self) -> list[str]:
        """Return the names of all jobs, sorted."""
        return JobFiles.names(self._repository.storage)

    def delete(self, name: str) -> None:
        """Delete a job and its records. Parts that are not committed are lost.

        What the job has committed stays. `Job.cancel` keeps the record.
        """
        if name not in self.list():
            self.open(name)
        JobFiles(self._repository.storage, name).delete_all()

    def __contains__(self, name: object) -> bool:
        return name in self.list()

    def __repr__(self) -> str:
        try:
            names = ", ".join(map(repr, self.list())) or "none"
        except IcechunkError:
            # jobs that cannot be listed can still be displayed
            names = "that cannot be listed"
        return f"<icechunk.Jobs {names}>"
