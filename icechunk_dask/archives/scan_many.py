"""Scan many files in parallel, wherever Dask runs tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import dask.base
from dask.callbacks import Callback
from dask.delayed import delayed
from dask.system import CPU_COUNT

from icechunk import InvalidInputError
from icechunk_dask.archives.apart import stop_apart
from icechunk_dask.archives.parts import Scan, SchemaTable
from icechunk_dask.archives.scan import Scanner
from icechunk_dask.graph import Runner
from icechunk_dask.progress import Progress

__all__ = ["scan_many"]

#: How many files Dask gets at a time.
_TASKS: Final = 4096
#: Maximum number of files per task; their references are sent together.
_MOST: Final = 64


def scan_many(
    scanner: Scanner, urls: Sequence[str], options: dict[str, Any], progress: Progress
) -> list[Scan]:
    """Scan many files at a time, and return a result for each.

    Parameters
    ----------
    scanner : Scanner
    urls : sequence of str
    options : dict
        For Dask; with ``"sync"`` as scheduler, Dask is not used.
    progress : Progress
        Counts files as tasks.

    Raises
    ------
    InvalidInputError
        If copies of a variable would take more bytes than allowed.
    """
    gathered = _Gathered(scanner.max_bytes, progress)
    try:
        _scan_all(gathered, scanner, urls, options, progress)
    except BaseException:
        # threads that Dask has started keep running
        stop_apart(scanner.call)
        raise
    return gathered.scans


def _scan_all(
    gathered: _Gathered,
    scanner: Scanner,
    urls: Sequence[str],
    options: dict[str, Any],
    progress: Progress,
) -> None:
    if options.get("scheduler") == "sync":
        for some in _batches(urls, _MOST):
            gathered.take(some, scanner.some(some, gathered.count))
        return
    client = Runner(progress, options).client
    if client is not None:
        for some, scans in _on_cluster(client, scanner, urls):
            gathered.take(some, scans)
        return
    scan: Any = delayed(scanner.some, pure=False, traverse=False)
    batches = _batches(urls, _size(len(urls), 4 * CPU_COUNT))
    # a few thousand files at a time: waiting ones take memory too
    each = max(1, _TASKS // len(batches[0])) if batches else 1
    for first in range(0, len(batches), each):
        with Callback(posttask=gathered.ended):
            chosen = batches[first : first + each]
            done = dask.base.compute(*map(scan, chosen), **options)
        for some, scans in zip(chosen, done, strict=True):
            gathered.take(some, scans)


def _size(files: int, tasks: int) -> int:
    """Return how many files a task scans, so that all workers get tasks."""
    return max(1, min(_MOST, files // tasks))


def _batches(urls: Sequence[str], size: int) -> list[Sequence[str]]:
    return [urls[first : first + size] for first in range(0, len(urls), size)]


class _Gathered:
    """Collects results as they arrive, and lets them share what they have in common."""

    def __init__(self, max_bytes: int, progress: Progress) -> None:
        self._max_bytes = max_bytes
        self._progress = progress
        self._schemas = SchemaTable()
        self._copied: Counter[str] = Counter()
        self._counted = 0
        self.scans: list[Scan] = []

    def count(self, files: int = 1) -> None:
        """Count files that are scanned before their results are taken."""
        self._counted += files
        self._progress.add({"tasks": files})

    def ended(self, _: Any, result: Any, *__: Any) -> None:
        """Count files whose results Dask still holds."""
        if isinstance(result, list):
            self.count(len(result))

    def take(self, urls: Sequence[str], scans: Sequence[Scan]) -> None:
        """Take the results of some URLs."""
        before = min(self._counted, len(scans))
        self._counted -= before
        self._progress.add({"tasks": len(scans) - before})
        for scan in scans:
            for name, size, reason in scan.copied:
                self._copied[name] += size
                if self._copied[name] > self._max_bytes:
                    raise InvalidInputError(
                        f"the variable {name!r} has to be copied: {reason}; with {scan.url} that "
                        f"is more than max_bytes_by_value, {self._max_bytes} bytes. Pass a larger "
                        f"one, or leave it out with drop_variables=[{name!r}]"
                    )
        self.scans.extend(self._schemas.share(scans, urls))


def _on_cluster(
    client: Any, scanner: Scanner, urls: Sequence[str], *, single: bool = False
) -> Iterator[tuple[Sequence[str], list[Scan]]]:
    from distributed.client import as_completed

    completed: Any = as_completed
    if single:
        batches = _batches(urls, 1)
    else:
        batches = _batches(urls, _size(len(urls), 4 * sum(client.nthreads().values())))
    each = max(1, _TASKS // len(batches[0])) if batches else 1
    futures: dict[Any, Sequence[str]] = {}
    try:
        for first in range(0, len(batches), each):
            some = batches[first : first + each]
            futures = dict(zip(client.map(scanner.some, some, pure=False), some, strict=True))
            for future in completed(list(futures)):
                problem = future.exception()
                if problem is None:
                    yield futures[future], future.result()
                elif len(futures[future]) > 1:
                    # for example, one of the files killed worker after worker
                    yield from _on_cluster(client, scanner, futures[future], single=True)
                else:
                    why = f"{type(problem).__name__}: {problem}"
                    yield futures[future], [Scan(futures[future][0], failure=why)]
                future.release()
    finally:
        client.cancel(list(futures))
