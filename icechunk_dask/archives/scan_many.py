"""Scanning many files at the same time, wherever Dask runs tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import dask.base
from dask.callbacks import Callback
from dask.delayed import delayed

from icechunk_dask.archives.scan import Scan, Scanner
from icechunk_dask.graph import Runner
from icechunk_dask.progress import Progress

__all__ = ["scan_many"]


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
    """
    if scheduler == "sync":
        found = []
        for url in urls:
            found.append(scanner(url))
            progress.add({"tasks": 1})
        return found
    options = {} if scheduler is None else {"scheduler": scheduler}
    client = Runner(progress, options).client
    if client is not None:
        return list(_on_cluster(client, scanner, urls, progress))

    def ended(_: Any, result: Any, *__: Any) -> None:
        if isinstance(result, Scan):
            progress.add({"tasks": 1})

    scan: Any = delayed(scanner, pure=False, traverse=False)
    with Callback(posttask=ended):
        return list(dask.base.compute(*map(scan, urls), **options))


def _on_cluster(
    client: Any, scanner: Scanner, urls: Sequence[str], progress: Progress
) -> Iterator[Scan]:
    from distributed.client import as_completed

    futures = dict(zip(client.map(scanner, urls, pure=False), urls, strict=True))
    completed: Any = as_completed
    try:
        for future in completed(list(futures)):
            problem = future.exception()
            # such as a worker that died of the file, again and again
            yield (
                future.result()
                if problem is None
                else Scan(futures[future], failure=f"{type(problem).__name__}: {problem}")
            )
            progress.add({"tasks": 1})
    finally:
        client.cancel(list(futures))
