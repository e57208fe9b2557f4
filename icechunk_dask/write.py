"""Dask arrays into Zarr arrays of a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.delayed import delayed
from dask.highlevelgraph import HighLevelGraph
from dask.layers import ArraySliceDep

from icechunk import InvalidInputError, Session
from icechunk.distributed import extract_session, merge_sessions
from icechunk_dask.alignment import Target, check_disjoint
from icechunk_dask.graph import Write, check_options, check_reach, reduced, run
from icechunk_dask.part import Part, failing_as, finished
from icechunk_dask.recipe import Recipe

__all__ = ["store_dask"]

Region = tuple[slice, ...]


def store_dask(
    *,
    sources: Sequence[da.Array],
    targets: Sequence[zarr.Array[Any]],
    regions: Sequence[Region | None] | None = None,
    split_every: int | None = None,
    align_chunks: bool = False,
    compute: bool = True,
    **dask_options: Any,
) -> Any:
    """Store Dask arrays in Zarr arrays of a session.

    Each task writes one block in a session of its own and returns what it did; this is
    merged on the workers, and then into the session of the targets. Nothing is seen by
    others before that session is committed, and nothing is merged if a task fails.

    Parameters
    ----------
    sources : sequence of dask.array.Array
    targets : sequence of zarr.Array
        As many, opened from `Session.store` of a writable session or of a fork.
    regions : sequence of (tuple of slice or None), optional
        Where in its target each source goes. Default: everywhere.
    split_every : int, optional
        How many change sets are merged at a time. Default: 16.
    align_chunks : bool
        Whether to rechunk sources whose blocks share chunks of their target (shards,
        where it has any). Default: refuse them.
    compute : bool
        Whether to run the tasks now. Otherwise the result is a `dask.delayed.Delayed`
        value: the change set, as bytes for `Session.merge_change_sets`.
    **dask_options
        What `dask.compute` and `Client.compute` take: ``scheduler``, ``retries``,
        ``priority``, ``resources``, ``workers`` and the like.

    Returns
    -------
    ForkSession or Session
        The session of the targets, with the changes; if the targets are of several
        forks, the first of them with the changes of all. A fork is yet to be merged into
        the session that it was made from.

    Raises
    ------
    InvalidInputError
        If blocks and chunks do not fit, two targets share a chunk, or a repository in
        memory would be written from other processes. Then no task has run.
    TaskError
        If a task failed; it names the region, and its cause is the original error.
    """
    check_options(dask_options)
    jobs = make_jobs(sources, targets, regions, align_chunks=align_chunks)
    sessions = list({id(job.session): job.session for job in jobs}.values())
    if len(sessions) > 1 and not (compute and all(s.is_fork for s in sessions)):
        raise InvalidInputError(
            "the targets are arrays of different sessions; open all of them from the same one"
        )
    if not compute:
        return write(sessions[0], jobs, split_every, change_set_of)
    check_reach(sessions, dask_options)
    writes = [write(s, [job for job in jobs if job.session is s], split_every) for s in sessions]
    for session, part in zip(sessions, run(writes, dask_options), strict=True):
        session.merge_change_sets([part.change_set])
    return sessions[0] if len(sessions) == 1 else merge_sessions(sessions)


@dataclass(frozen=True)
class Job:
    """One Dask array, and where it goes."""

    source: da.Array
    array: zarr.Array[Any]
    session: Session
    target: Target


def make_jobs(
    sources: Sequence[da.Array],
    targets: Sequence[zarr.Array[Any]],
    regions: Sequence[Region | None] | None,
    *,
    align_chunks: bool,
) -> list[Job]:
    """Check that sources, targets and regions fit, and put them together."""
    # da.store takes single arrays, too
    sources = [sources] if isinstance(sources, da.Array) else list(sources)
    targets = [targets] if isinstance(targets, zarr.Array) else list(targets)
    if regions is None:
        regions = [None] * len(sources)
    elif isinstance(regions, tuple | slice):
        regions = [regions] * len(sources)
    if not len(sources) == len(targets) == len(regions):
        raise InvalidInputError(
            f"{len(sources)} sources, {len(targets)} targets and {len(regions)} regions: there "
            "must be as many of each"
        )
    if not sources:
        raise InvalidInputError("there is nothing to store: sources is empty")
    jobs = []
    for source, array, region in zip(sources, targets, regions, strict=True):
        if not isinstance(source, da.Array):
            raise InvalidInputError(
                f"a source is a {type(source).__name__}; make a Dask array of it, as with "
                "dask.array.from_array"
            )
        target = Target.of(array, region)
        if align_chunks:
            target.check_shape(source)
            source = source.rechunk(target.fitting_chunks(source.chunks))
        target.check(source)
        jobs.append(Job(source, array, extract_session(array), target))
    check_disjoint([job.target for job in jobs])
    return jobs


def write(
    session: Session,
    jobs: Sequence[Job],
    split_every: int | None,
    finish: Callable[[Part], Any] | None = None,
) -> Write:
    """Return the delayed part that writes some arrays of one session."""
    recipe = Recipe(session, [job.array for job in jobs])
    shared = delayed(recipe, name=f"icechunk-recipe-{recipe.token}", traverse=False)
    keys: list[Any] = []
    graphs: list[HighLevelGraph] = []
    names = {}
    for number, job in enumerate(jobs):
        source, axes = job.source, tuple(range(job.source.ndim))
        place = Place(job.array.path, job.target.offset)
        slices = ArraySliceDep(source.chunks)
        written = da.blockwise(
            write_block,
            axes,
            source,
            axes,
            shared,
            None,
            slices,
            axes,
            place=place,
            name=f"icechunk-write-{number}-{recipe.token}",
            align_arrays=False,
            # as `map_blocks` does, because only layers of one kind are fused
            concatenate=True,
            dtype=object,
            meta=np.empty((0,) * source.ndim, object),
        )
        keys += [(written.name, *block) for block in np.ndindex(*source.numblocks)]
        graphs.append(written.dask)
        names[written.name] = partial(_name_of_block, place, slices)
    return reduced(keys, HighLevelGraph.merge(*graphs), names, split_every, finish)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in an array a source begins."""

    path: str
    offset: tuple[int, ...]

    def region(self, where: Region) -> Region:
        """Return the slices of the array for slices of the source."""
        return tuple(
            slice(part.start + start, part.stop + start)
            for part, start in zip(where, self.offset, strict=True)
        )

    def name(self, where: Region) -> str:
        """Return what to call the block in messages."""
        shown = ", ".join(f"{part.start}:{part.stop}" for part in self.region(where))
        return f"region [{shown}] of array '/{self.path}'"


def _name_of_block(place: Place, slices: ArraySliceDep, block: tuple[int, ...]) -> str:
    return place.name(slices[block])


def write_block(block: Any, recipe: Recipe, where: Region, *, place: Place) -> Part:
    """Write one block, in a session of its own."""
    with failing_as(place.name(where)):
        fork = recipe.fork()
        recipe.array(fork, place.path)[place.region(where)] = block
        return finished(fork)


def change_set_of(part: Part) -> bytes:
    """Return what `Session.merge_change_sets` takes."""
    return part.change_set
