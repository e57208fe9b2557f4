"""Blocks of Dask arrays, as tasks that write them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import zarr
from dask.array.utils import meta_from_array
from dask.delayed import delayed
from dask.highlevelgraph import HighLevelGraph

from icechunk import InvalidInputError, Session, TaskError
from icechunk.base.texts import counted
from icechunk.errors import ErrorKind
from icechunk.session.distributed import extract_session
from icechunk_dask.alignment import Target, block_is_covered, check_disjoint
from icechunk_dask.casting import BlockRefusedError, fitted, wrong_shape
from icechunk_dask.dask_internals import ArraySliceDep
from icechunk_dask.graph import Write, reduced
from icechunk_dask.part import Part, failing_as, finished
from icechunk_dask.recipe import Recipe

__all__ = ["Blocks", "Job", "Region", "change_set_of", "in_shape", "make_jobs"]

Region = tuple[slice, ...]

#: Blocks share a task while their total size is below this, in bytes: writing that much
#: takes longer than a scheduler needs for a task.
_TASK_SIZE: Final = 1 << 22
_MOST_BLOCKS: Final = 16
#: So few tasks are not reduced further.
_MANY_TASKS: Final = 256


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
            f"{counted(len(sources), 'source')}, {counted(len(targets), 'target')} and "
            f"{counted(len(regions), 'region')}: "
            "pass the same number of each"
        )
    if not sources:
        raise InvalidInputError("there is nothing to store: sources is empty")
    jobs = []
    for source, array, region in zip(sources, targets, regions, strict=True):
        if not isinstance(array, zarr.Array):
            raise InvalidInputError(
                f"the target {array!r} is not a zarr.Array; open it from the store of a session, "
                "or "
                "pass repository= to name arrays of a branch by their paths"
            )
        if not isinstance(source, da.Array):
            raise InvalidInputError(
                f"a source is of type {type(source).__name__}; make a Dask array of it, as with "
                "dask.array.from_array"
            )
        target = Target.of(array, region)
        if align_chunks:
            target.check_shape(source)
            fitting = target.fitting_chunks(source.chunks)
            if fitting != source.chunks:
                source = in_shape(source, f"the source of array {target.path!r}").rechunk(fitting)
        target.check(source)
        jobs.append(Job(source, array, extract_session(array), target))
    check_disjoint([job.target for job in jobs])
    return jobs


def in_shape(source: da.Array, name: str) -> da.Array:
    """Return an array whose blocks are checked before they are joined, or cut into others."""
    axes = tuple(range(source.ndim))
    check = partial(_block_in_shape, name=name)
    where = ArraySliceDep(source.chunks)
    checked: da.Array = da.blockwise(
        check,
        axes,
        source,
        axes,
        where,
        axes,
        align_arrays=False,
        concatenate=True,
        dtype=source.dtype,
        meta=meta_from_array(source),
    )
    return checked


def _block_in_shape(block: Any, where: Region, *, name: str) -> Any:
    shape = tuple(part.stop - part.start for part in where)
    if np.shape(block) != shape:
        shown = ", ".join(f"{part.start}:{part.stop}" for part in where)
        raise InvalidInputError(
            f"block [{shown}] of {name}: {wrong_shape(block, shape)}",
            ErrorKind.INVALID_ARRAY_METADATA,
        )
    return block


class Blocks:
    """All blocks of some jobs: units of work, numbered job by job.

    Parameters
    ----------
    jobs : sequence of Job
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        counts = [int(np.prod(job.source.numblocks)) for job in jobs]
        self._bounds = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @property
    def title(self) -> str:
        """What messages call all of them."""
        paths = sorted({job.target.path for job in self.jobs})
        more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
        return f"the blocks for {', '.join(map(repr, paths[:5]))}{more}"

    @property
    def nbytes(self) -> npt.NDArray[np.int64]:
        """Size of each block in memory: int64[len(self)]."""
        sizes = []
        for job in self.jobs:
            size = np.array(job.source.dtype.itemsize, np.int64)
            for chunks in job.source.chunks:
                size = np.multiply.outer(size, np.array(chunks, np.int64))
            sizes.append(size.ravel())
        return np.concatenate(sizes)

    def missing(self, session: Session) -> npt.NDArray[np.int64]:
        """Return the blocks of which a chunk is not stored yet: int64[n]."""
        found = []
        for job, start in zip(self.jobs, self._bounds, strict=False):
            mask = session.written_chunks(job.array.path)
            covered = block_is_covered(mask, job.target.chunk_ranges(job.source.chunks))
            found.append(start + np.flatnonzero(~covered))
        return np.concatenate(found)

    def keys(self) -> list[str]:
        """Return what a job knows each block by: where it goes."""
        found = []
        for job in self.jobs:
            place = Place(job.array.path, job.target.offset)
            slices = ArraySliceDep(job.source.chunks)
            blocks = itertools.product(*map(range, job.source.numblocks))
            found += [place.name(slices[block]) for block in blocks]
        return found

    def check(self, session: Session, part: Part) -> bool:
        """Say whether there is anything to commit: more than fill values where nothing was."""
        if part.chunks:
            return True
        return any(
            (session.changed_chunks(path) & session.written_chunks(path, base=True)).any()
            for path in {job.target.path for job in self.jobs}
        )

    def results(self, parts: Sequence[Part]) -> None:
        """Return nothing: blocks have no results."""

    def graph(
        self,
        session: Session,
        units: npt.NDArray[np.int64],
        split_every: int | None,
        topic: str | None,
        finish: Callable[[Part], Any] | None = None,
    ) -> Write:
        """Return the delayed part that writes some of the blocks.

        Parameters
        ----------
        session : Session
            The session whose forks the tasks get.
        units : int64[n]
            Numbers of blocks, in ascending order.
        """
        recipe = Recipe(session, [job.array for job in self.jobs])
        shared = delayed(recipe, name=f"icechunk-recipe-{recipe.token}", traverse=False)
        keys: list[Any] = []
        graphs: list[HighLevelGraph] = []
        names = {}
        for number, job in enumerate(self.jobs):
            first, last = np.searchsorted(units, self._bounds[number : number + 2])
            if first == last:
                continue
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
                declared=source.dtype,
                name=f"icechunk-write-{number}-{recipe.token}",
                align_arrays=False,
                # as `map_blocks` does: only layers of one kind are fused
                concatenate=True,
                dtype=object,
                meta=np.empty((0,) * source.ndim, object),
            )
            flat = units[first:last] - self._bounds[number]
            # an array without dimensions has one block, with an empty index
            blocks = [()] if not axes else np.transpose(np.unravel_index(flat, source.numblocks))
            keys += [(written.name, *map(int, block)) for block in blocks]
            graphs.append(written.dask)
            names[written.name] = partial(_name_of_block, place, slices)
        graph = HighLevelGraph.merge(*graphs)
        # small blocks share tasks, as long as every worker still has many
        room = int(_TASK_SIZE // max(self.nbytes[units].mean(), 1))
        together = max(min(room, len(units) // _MANY_TASKS, _MOST_BLOCKS), 1)
        return reduced(keys, graph, names, split_every, topic, finish, together)


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


def write_block(
    block: Any, recipe: Recipe, where: Region, *, place: Place, declared: np.dtype[Any]
) -> Part:
    """Write one block, in a session of its own.

    Parameters
    ----------
    block : array-like
    where : tuple of slice
        Which part of the source it is.
    declared : numpy.dtype
        Of the source.

    Raises
    ------
    TaskError
        If it cannot be written. Its cause is an `InvalidInputError` if the block is not what
        Dask declared, or not what the array holds.
    """
    name = place.name(where)
    shape = tuple(part.stop - part.start for part in where)
    with failing_as(name):
        fork = recipe.fork()
        array = recipe.array(fork, place.path)
        try:
            values = fitted(block, shape, declared, array.dtype)
        except BlockRefusedError as error:
            # name the region here too: the cause may be shown without the task
            reason = InvalidInputError(f"{name}: {error}", ErrorKind.INVALID_ARRAY_METADATA)
            raise TaskError(f"writing {name} failed: {error}") from reason
        array[place.region(where)] = values
        return finished(fork)


def change_set_of(part: Part) -> bytes:
    """Return what `Session.merge_change_sets` takes."""
    return part.changes.to_bytes()
