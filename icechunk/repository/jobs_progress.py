"""A progress bar for a job run by other processes: any notebook can attach to it at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from icechunk.base.display import Displayed
from icechunk.errors import IcechunkError, InvalidInputError
from icechunk.repository.jobs_status import JobStatus

__all__ = ["JobProgress"]


class JobProgress(Displayed):
    """Shows the progress of a job in the last line of a cell, and keeps it current.

    It reads only the records of the job, so it does not matter who runs the parts, or whether
    this notebook was connected all the time. Made by `Job.progress`.

    Parameters
    ----------
    status : callable
        Returns a `JobStatus`.
    every : float
        Seconds between updates.
    """

    def __init__(self, status: Callable[[], JobStatus], every: float) -> None:
        if not every > 0:
            raise InvalidInputError(f"every is {every!r}, it is a number of seconds")
        self._status = status
        self._every = every
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        status = self._status()
        of = "" if status.total is None else f" of {status.total}"
        return f"<icechunk.JobProgress> {len(status.done)}{of} parts are done\n{status!r}"

    def _repr_html_(self) -> str:
        return _page(self._status())

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        handle = display(HTML(self._repr_html_()), display_id=True)
        self._thread = threading.Thread(
            target=self._follow,
            args=(lambda page: handle.update(HTML(page)),),
            daemon=True,
            name="icechunk-progress",
        )
        self._thread.start()

    def _follow(self, show: Callable[[str], Any]) -> None:
        while not self._end.wait(self._every):
            try:
                status = self._status()
            except IcechunkError as error:
                show(f"<pre>{error}</pre>")
                return
            show(_page(status))
            if status.state != "open":
                return

    def stop(self) -> None:
        """Stop following the job."""
        self._end.set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the job is finished or cancelled, if the bar follows it."""
        if self._thread is not None:
            self._thread.join(timeout)


def _page(status: JobStatus) -> str:
    done = len(status.done)
    total = status.total
    if total is None and status.state == "open":
        # the total number of parts is unknown
        bar = "<progress></progress>"
    else:
        bar = (
            f"<progress value='{done}' max='{max(done if total is None else total, 1)}'></progress>"
        )
    of = "" if status.total is None else f"/{status.total:,}"
    return (
        f"<div>{bar} {done:,}{of} parts, {status.committed:,} committed</div>{status._repr_html_()}"
    )
