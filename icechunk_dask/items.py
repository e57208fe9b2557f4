"""The general fan-out: call a function that writes for each of many items."""

from __future__ import annotations

import functools
import json
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from dask.delayed import delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from icechunk import (
    ConflictError,
    ConflictSolver,
    ErrorKind,
    IcechunkStore,
    InvalidInputError,
    Repository,
    Session,
    Storage,
)
from icechunk_dask.batches import Committing, Units, Written, refuse_commit_options
from icechunk_dask.executors import ExecutorOption, with_executor
from icechunk_dask.graph import Named, Runner, Write, check_options, reduced
from icechunk_dask.part import Boxes, Part, finished, overlap
from icechunk_dask.progress import ProgressOption, progress_of
from icechunk_dask.recipe import Recipe

__all__ = ["distributed_write"]

Item = TypeVar("Item")

#: Long enough for a path or a URL.
_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


def distributed_write(
    func: Callable[[IcechunkStore, Item], Any],
    items: Iterable[Item],
    session: Session | Repository | Storage | str | os.PathLike[str],
    *,
    split_every: int | None = None,
    progress: ProgressOption = None,
    return_results: bool = False,
    branch: str = "main",
    message: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    rebase_with: ConflictSolver | None = None,
    commit_every: int | str | timedelta | None = None,
    publish: str = "batch",
    job: str | None = None,
    key: Callable[[Item], str] | None = None,
    executor: ExecutorOption = None,
    stragglers: float | None = None,
    timeout: float | None = None,
    **dask_options: Any,
) -> Written:
    """Call a function for each of many items, on workers, and keep what it writes.

    Parameters
    ----------
    func : callable
        Called as ``func(store, item)``, with its own store, which sees the state of the session.
        What it writes there is merged. Items must not write the same chunk. The function travels
        to workers as Dask functions do: by name if they can import it; by value, with
        cloudpickle, if it was defined in a script or notebook. Nothing else that travels is code.
    items : iterable
        Anything that can be pickled: paths, times, parameters.
    session : Session, Repository, Storage, URL or path
        A writable session or a fork takes the changes, for the caller to commit. Anything else
        names a repository, where they are committed.
    split_every : int, optional
        How many change sets to merge at a time. Default: 16.
    progress : bool, callable or None
        A bar, none, or a function called with a `Status` now and then. Default: a bar in
        a terminal or a notebook; elsewhere a line in the log each minute, at level INFO of
        ``icechunk_dask``.
    return_results : bool
        Whether to return what `func` returned.
    branch, message, metadata, rebase_with
        For the commits; see `Session.commit`. A message is required.
    commit_every : int, str or timedelta, optional
        Commit in batches of a number of tasks, of a size such as ``"1GB"``, or of a time such
        as ``"60s"``. A batch is committed when all its tasks are done, so sizes and times
        are met only roughly, as estimated from earlier batches. Meanwhile the tasks of the next
        batch run, and see what this one did. A failure, or the end of this process, costs one
        batch. Default: one commit.
    publish : {"batch", "end"}
        When to commit batches: each when it is done, or all at the end as one commit. Until
        then they wait in the job, which therefore needs a name, and all items see the branch as it
        was when the first of them began. If others move the branch meanwhile, the commit is made
        on top of theirs with `rebase_with`. Without it, or where both changed the same thing, the
        commit is refused, and the work stays in the job.
    job : str, optional
        A name in `Repository.jobs`, which records finished items by their keys. Another call with
        the same name skips those, whatever became of the history. A missing job is created.
    key : callable, optional
        Makes the string by which later calls know an item. Default: the item as JSON.
    executor : {"threads", "processes", "sync"}, Executor or Client, optional
        What runs the tasks. Any `concurrent.futures.Executor` that can pickle will do, such as a
        pool of processes or of MPI ranks. Default: what Dask uses, which is a cluster if there
        is a `distributed.Client`.
    stragglers : float, optional
        With a pool as `executor`: a task that takes this many times as long as most is run a second
        time while a worker is idle, and the first answer counts. What tasks do besides writing to
        the store must tolerate that.
    timeout : float, optional
        Seconds after which a task fails, to be retried if ``retries`` says so. It then runs in a
        thread of its own, which nothing can stop; what it still writes is in no version.
    **dask_options
        Options of `dask.compute` and `Client.compute`: ``scheduler``, ``retries``,
        ``priority``, ``resources``, ``workers`` and the like.

    Returns
    -------
    Written

    Raises
    ------
    TaskError
        If the function failed. The error names the item, and its cause is the original error. The
        session, or the branch since the last batch, is unchanged.
    ConflictError
        If two items wrote the same chunk, which the error names, or others moved the branch.
    InvalidInputError
        If arguments do not go together, or other processes would write to a repository in
        memory.

    Examples
    --------
    >>> def warmer(store, day):
    ...     zarr.open_array(store, path="temperature")[day] = 17.0
    >>> written = distributed_write(
    ...     warmer, range(4), repo, message="Warmer", executor="threads", progress=False
    ... )
    >>> written.tasks
    4
    """
    check_options(distributed_write, dask_options)
    if not callable(func):
        raise InvalidInputError(f"func is {func!r}, it must be a function of store and item")
    work = Items(func, list(items), key, return_results)
    committing = None
    if isinstance(session, Session):
        refuse_commit_options(message, metadata, rebase_with, commit_every, publish, job)
    else:
        committing = Committing.of(
            session, branch, message, metadata, rebase_with, commit_every, publish, job
        )
    with progress_of(progress) as shown:
        runner = Runner(shown, with_executor(executor, dask_options, stragglers), timeout)
        if committing is not None:
            return committing.do(work, runner, split_every)
        return _into_session(session, work, runner, split_every)


def _into_session(
    session: Any, work: Items[Any], runner: Runner, split_every: int | None
) -> Written:
    runner.check_reach(session.storage)
    runner.progress.set(total=len(work))
    if not len(work):
        return Written.of([], results=work.results([]))
    units = np.arange(len(work))
    graph = work.graph(session, units, split_every, runner.new_topic())
    (part,) = runner.run(graph, of=work.title)
    session.merge_change_sets([part.changes.to_bytes()])
    runner.progress.set(phase="done")
    return Written.of([part], results=work.results([part]))


class Items(Generic[Item]):
    """Calls of a function, one for each item.

    Parameters
    ----------
    func : callable
    items : list
    key : callable, optional
        Turns an item into a string.
    return_results : bool
    """

    #: How much an item writes is unknown in advance.
    nbytes: None = None
    #: What messages call the items.
    title: str = "the items"

    def __init__(
        self,
        func: Callable[[IcechunkStore, Item], Any],
        items: list[Item],
        key: Callable[[Item], str] | None,
        return_results: bool,
    ) -> None:
        self._func = func
        self._items = items
        self._key = key
        self._return_results = return_results
        # what earlier batches wrote: chunks by array, and who wrote where
        self._chunks: dict[str, npt.NDArray[np.bool_]] = {}
        self._boxes: Boxes = {}

    def __len__(self) -> int:
        return len(self._items)

    def missing(self, session: Session) -> Units:
        """Return all: what an item writes is unknown."""
        return np.arange(len(self))

    def keys(self) -> list[Any]:
        """Return the keys by which a job knows the items.

        Raises
        ------
        InvalidInputError
            If an item has no key.
        """
        if self._key is None:
            return [_json(item) for item in self._items]
        found = [self._key(item) for item in self._items]
        for text in found:
            if not isinstance(text, str):
                raise InvalidInputError(f"key returned {text!r}, it must return strings")
        return found

    def check(self, session: Session, part: Part) -> bool:
        """Say whether there is anything to commit.

        Raises
        ------
        ConflictError
            If a batch wrote a chunk that an earlier one wrote.
        """
        for change in session.array_changes():
            mask = session.changed_chunks(change.path)
            known = self._chunks.get(change.path)
            if known is not None:
                # an item may have made the array longer
                common = tuple(map(slice, map(min, zip(mask.shape, known.shape, strict=True))))
                twice = np.argwhere(mask[common] & known[common])
                if len(twice):
                    raise self._conflict(change.path, tuple(twice[0].tolist()), part)
                mask[common] |= known[common]
            self._chunks[change.path] = mask
        for path, boxes in part.boxes.items():
            self._boxes.setdefault(path, []).extend(boxes)
        return session.has_uncommitted_changes

    def _conflict(self, path: str, chunk: tuple[int, ...], part: Part) -> ConflictError:
        place = tuple((i, i + 1) for i in chunk)
        names = [
            next(name for name, box in boxes.get(path, []) if overlap(box, place))
            for boxes in (self._boxes, part.boxes)
        ]
        return ConflictError(
            message=f"two items wrote the same chunk, {chunk} of {path!r}: {names[0]}, which is "
            f"committed, and {names[1]}; let each item write chunks of its own",
            kind=ErrorKind.MERGE_FAILED,
        )

    def results(self, parts: Sequence[Part]) -> list[Any] | None:
        """Return what the function returned for each item, if requested."""
        if not self._return_results:
            return None
        found = dict(result for part in parts for result in part.results)
        return [found.get(number) for number in range(len(self))]

    def graph(
        self, session: Session, units: Units, split_every: int | None, topic: str | None
    ) -> Write:
        """Return the delayed part that calls the function for some items."""
        recipe = Recipe(session, function=self._func)
        shared = delayed(recipe, name=f"icechunk-recipe-{recipe.token}", traverse=False)
        name = f"icechunk-item-{recipe.token}"
        tasks = {}
        for number in units.tolist():
            item = self._items[number]
            # an item that looks like part of a graph is not one
            call = functools.partial(_call, item, number, self._return_results)
            named = Named(call, name_of(number, item), topic)
            tasks[name, number] = (named, shared.key)
        layers = {name: MaterializedLayer(tasks), **shared.dask.layers}
        graph = HighLevelGraph(layers, {name: {shared.key}, **shared.dask.dependencies})
        write = reduced(list(tasks), graph, {}, split_every, topic)
        write.recipe = recipe
        return write


def name_of(number: int, item: Any) -> str:
    """Return what messages call an item: its value, and its number if that differs."""
    shown = _SHORT.repr(item)
    return f"item {shown}" if shown == str(number) else f"item {shown} (number {number})"


def _call(item: Any, number: int, return_results: bool, recipe: Recipe) -> Part:
    fork = recipe.fork()
    result = recipe.function(fork.store, item)
    return finished(fork, name_of(number, item), ((number, result),) if return_results else ())


def _json(item: Any) -> Any:
    try:
        return json.loads(json.dumps(item, sort_keys=True, default=_plain))
    except TypeError:
        raise InvalidInputError(
            f"a job with a name must know its items again, and a {type(item).__name__} has no "
            "JSON; pass key=, a function that makes a string of an item"
        ) from None


def _plain(item: Any) -> Any:
    if isinstance(item, os.PathLike):
        return os.fspath(item)
    if isinstance(item, np.number | np.bool_):
        return item.item()
    if isinstance(item, np.generic):
        return str(item)
    if isinstance(item, date):
        return item.isoformat()
    raise TypeError
