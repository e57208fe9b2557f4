"""Scanning many files at the same time, wherever Dask runs tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import dask.base
from dask.callbacks import Callback
from dask.delayed import delayed

from icechunk import InvalidInputError
from icechunk_dask.archives.parts import Scan, SchemaTable
from icechunk_dask.archives.scan import Scanner
from icechunk_dask.graph import Runner
from icechunk_dask.progress import Progress

__all__ = ["scan_many"]

#: Files that are given to Dask at the same time.
_TASKS: Final = 2048


def scan_many(
    scanner: Scanner, urls: Sequence[str], scheduler: Any, progress: Progress
) -> list[Scan]:
    """Scan files, many at a time; each of them ends in a result.

    Parameters
    ----------
    scanner : Scanner
    urls : sequence of str
    scheduler : optional
        Of Dask; ``"sync"`` does without Dask.
    progress : Progress
        Counts files as tasks.

    Raises
    ------
    InvalidInputError
        If more bytes of a variable would be copied than was allowed.
    """
    gathered = _Gathered(scanner.max_bytes, progress)
    if scheduler == "sync":
        return [gathered.take(scanner(url)) for url in urls]
    options = {} if scheduler is None else {"scheduler": scheduler}
    client = Runner(progress, options).client
    if client is not None:
        return [gathered.take(scan) for scan in _on_cluster(client, scanner, urls)]
    scan: Any = delayed(scanner, pure=False, traverse=False)
    found: list[Scan] = []
    # a few thousand tasks at a time: those that wait take memory, too
    for first in range(0, len(urls), _TASKS):
        with Callback(posttask=gathered.ended):
            done = dask.base.compute(*map(scan, urls[first : first + _TASKS]), **options)
        found.extend(map(gathered.take, done))
    return found


class _Gathered:
    """Takes results as they come, so that they share what they have in common."""

    def __init__(self, max_bytes: int, progress: Progress) -> None:
        self._max_bytes = max_bytes
        self._progress = progress
        self._schemas = SchemaTable()
        self._copied: Counter[str] = Counter()
        self._counts = 0

    def ended(self, _: Any, result: Any, *__: Any) -> None:
        """Count a file whose result is still in Dask's hands."""
        if isinstance(result, Scan):
            self._counts += 1
            self._progress.add({"tasks": 1})

    def take(self, scan: Scan) -> Scan:
        """Take a result."""
        if self._counts:
            self._counts -= 1
        else:
            self._progress.add({"tasks": 1})
        for name, size, reason in scan.copied:
            self._copied[name] += size
            if self._copied[name] > self._max_bytes:
                raise InvalidInputError(
                    f"the variable {name!r} has to be copied: {reason}; with {scan.url} that is "
                    f"more than max_bytes_by_value, {self._max_bytes} bytes. Pass a larger one, "
                    f"or leave it out with drop_variables=[{name!r}]"
                )
        return self._schemas.share(scan)


def _on_cluster(client: Any, scanner: Scanner, urls: Sequence[str]) -> Iterator[Scan]:
    from distributed.client import as_completed

    completed: Any = as_completed
    futures: dict[Any, str] = {}
    try:
        for first in range(0, len(urls), _TASKS):
            some = urls[first : first + _TASKS]
            futures = dict(zip(client.map(scanner, some, pure=False), some, strict=True))
            for future in completed(list(futures)):
                problem = future.exception()
                # such as a worker that died of the file, again and again
                yield (
                    future.result()
                    if problem is None
                    else Scan(futures[future], failure=f"{type(problem).__name__}: {problem}")
                )
                future.release()
    finally:
        client.cancel(list(futures))
