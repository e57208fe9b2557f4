"""Dask arrays into Zarr arrays of a session or a repository."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import zarr

from icechunk import ConflictSolver, InvalidInputError, Repository, Session, Storage
from icechunk.base.rectilinear import rectilinear_chunks
from icechunk.session.distributed import extract_session, merge_sessions
from icechunk_dask.batches import Committing, refuse_commit_options
from icechunk_dask.blocks import Blocks, Job, Region, change_set_of, make_jobs
from icechunk_dask.executors import ExecutorOption, with_executor
from icechunk_dask.graph import Runner, Trying, check_options
from icechunk_dask.progress import Progress, ProgressOption, progress_of

__all__ = ["store_dask", "written_chunks"]


def store_dask(
    *,
    sources: Sequence[da.Array],
    targets: Sequence[zarr.Array[Any] | str],
    regions: Sequence[Region | None] | None = None,
    split_every: int | None = None,
    align_chunks: bool = False,
    progress: ProgressOption = None,
    compute: bool = True,
    repository: Repository | Storage | str | os.PathLike[str] | None = None,
    branch: str = "main",
    message: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    rebase_with: ConflictSolver | None = None,
    commit_every: int | str | timedelta | None = None,
    publish: str = "batch",
    job: str | None = None,
    resume: bool = False,
    executor: ExecutorOption = None,
    stragglers: float | None = None,
    timeout: float | None = None,
    **store_kwargs: Any,
) -> Any:
    """Store Dask arrays in Zarr arrays.

    Each task writes one block in a session of its own and returns what it did. Workers merge
    these results, and the last merge is into the session of the targets. Others see nothing
    before that session is committed, and nothing is merged if a task fails.

    With `repository` the result is committed too, at once or in batches.

    Parameters
    ----------
    sources : sequence of dask.array.Array
    targets : sequence of zarr.Array
        As many as sources, opened from `Session.store` of a writable session or a fork. With
        `repository` also paths of arrays on the branch.
    regions : sequence of (tuple of slice or None), optional
        Where in its target each source goes. Default: everywhere.
    split_every : int, optional
        How many change sets are merged at a time. Default: 16.
    align_chunks : bool
        Whether to rechunk sources whose blocks share chunks of their target (or shards,
        if it has any). Default: refuse them.
    progress : bool, callable or None
        A bar, none, or a function that gets a `Status` now and then. Default: a bar in
        a terminal or a notebook.
    compute : bool
        Whether to run the tasks now. Otherwise the result is a `dask.delayed.Delayed`
        value: the change set, as bytes for `Session.merge_change_sets`.
    repository : Repository, Storage, URL or path, optional
        Commit here.
    branch, message, metadata, rebase_with, commit_every, publish, job
        As for `distributed_write`. The size of a batch in bytes is the size of its blocks in
        memory. All of these need `repository`.
    resume : bool
        Whether to leave out blocks whose chunks are all on the branch, whoever wrote them.
        Chunks that hold only fill values are usually not stored, and so they are written again,
        except those of an earlier run of a `job`.
    executor : {"threads", "processes", "sync"}, Executor or Client, optional
        What runs the tasks: also any `concurrent.futures.Executor`, such as a pool of processes
        or of MPI ranks, that can pickle. Default: what Dask uses, which is a cluster if there
        is a `distributed.Client`.
    stragglers : float, optional
        With a pool as `executor`: a task that takes this many times as long as most is run a
        second time while a worker is idle, and the first answer counts. Whatever tasks do besides
        writing to the store must tolerate that.
    timeout : float, optional
        Seconds after which a task fails, to be tried again with ``retries``. It runs in a thread
        of its own then, which nothing can end; what it still writes is in no version.
    **store_kwargs
        What `dask.compute` and `Client.compute` take: ``scheduler``, ``retries``,
        ``priority``, ``resources``, ``workers`` and the like.

    Returns
    -------
    ForkSession, Session or Written
        The session of the targets, with the changes. If the targets belong to several
        forks: the first fork, with the changes of all. A fork must still be merged into
        the session that it was made from. With `repository`: what was done.

    Raises
    ------
    InvalidInputError
        If blocks and chunks do not fit, two targets share a chunk, or a repository in
        memory would be written from other processes. No task has run then.
    TaskError
        If a task failed; it names the region, and its cause is the original error.
    ConflictError
        If others moved the branch meanwhile. Earlier batches stay.

    Examples
    --------
    >>> target = zarr.open_array(session.store, path="temperature")
    >>> values = da.full((4, 6), 17.0, chunks=(1, 6), dtype="f4")
    >>> session = store_dask(sources=[values], targets=[target], progress=False)
    >>> snapshot = session.commit("Warmer")
    """
    check_options(store_dask, store_kwargs)
    committing = None
    arrays = _listed(targets)
    how = (message, metadata, rebase_with, commit_every, publish, job)
    if repository is None:
        refuse_commit_options(*how, resume=resume)
    else:
        committing = Committing.of(repository, branch, *how, resume=resume)
        if not compute:
            raise InvalidInputError(
                "compute=False cannot be combined with repository=: its commits wait"
            )
        arrays = [_array(committing, target) for target in arrays]
    jobs = make_jobs(sources, arrays, regions, align_chunks=align_chunks)
    if not compute:
        Runner(Progress(), with_executor(executor, store_kwargs, stragglers), timeout)
        (session,) = _sessions(jobs, several=False)
        blocks = Blocks(jobs)
        write = blocks.graph(session, np.arange(len(blocks)), split_every, None, change_set_of)
        write.trying = Trying(0, timeout)
        return write
    with progress_of(progress) as shown:
        runner = Runner(shown, with_executor(executor, store_kwargs, stragglers), timeout)
        if committing is not None:
            return committing.do(Blocks(jobs), runner, split_every)
        return _into_sessions(jobs, runner, split_every)


def _into_sessions(jobs: Sequence[Job], runner: Runner, split_every: int | None) -> Session:
    sessions = _sessions(jobs, several=True)
    runner.check_reach(sessions[0].storage)
    topic = runner.new_topic()
    works = [Blocks([job for job in jobs if job.session is session]) for session in sessions]
    runner.progress.set(total=sum(map(len, works)))
    parts = runner.run(
        *(
            work.graph(session, np.arange(len(work)), split_every, topic)
            for work, session in zip(works, sessions, strict=True)
        ),
        of=Blocks(jobs).title,
    )
    for session, part in zip(sessions, parts, strict=True):
        session.merge_change_sets([part.changes.to_bytes()])
    runner.progress.set(phase="done")
    return sessions[0] if len(sessions) == 1 else merge_sessions(sessions)


def _sessions(jobs: Sequence[Job], *, several: bool) -> list[Session]:
    """Return the sessions that the targets belong to: one, or several forks."""
    sessions = list({id(job.session): job.session for job in jobs}.values())
    if len(sessions) > 1 and not (several and all(s.is_fork for s in sessions)):
        raise InvalidInputError(
            "the targets are arrays of different sessions; open all of them from the same one"
        )
    return sessions


def _listed(targets: Any) -> list[Any]:
    return [targets] if isinstance(targets, zarr.Array | str) else list(targets)


def _array(committing: Committing, target: zarr.Array[Any] | str) -> zarr.Array[Any]:
    """Return the array of the branch that a target names, with the target's configuration."""
    reader = committing.repository.readonly_session(committing.branch)
    if isinstance(target, str):
        with rectilinear_chunks():
            return zarr.open_array(reader.store, path=target.strip("/"), mode="r")
    reader.tree.require_array("/" + target.path.strip("/"))
    return target


def written_chunks(array: zarr.Array[Any]) -> npt.NDArray[np.bool_]:
    """Say which chunks of an array are stored, without reading them.

    Parameters
    ----------
    array : zarr.Array
        In an Icechunk store.

    Returns
    -------
    bool[...]
        In the shape of the grid of chunks, or of shards if the array has any. A chunk
        that holds only the fill value is usually not stored, and then false.

    Raises
    ------
    InvalidInputError
        If the array is in another kind of store.

    Examples
    --------
    >>> array = zarr.open_array(session.store, path="temperature")
    >>> int(written_chunks(array).sum())
    4
    """
    return extract_session(array).written_chunks(array.path)
