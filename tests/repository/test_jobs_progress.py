"""A bar that any notebook can attach to."""

from __future__ import annotations

import threading
from typing import Any

import IPython.display
import pytest

from icechunk import InvalidInputError, MemoryStorage, Repository


class Handle:
    """What a notebook shows in one place."""

    def __init__(self, first: Any, wanted: str) -> None:
        self.pages = [first.data]
        self.seen = threading.Event()
        self._wanted = wanted

    def update(self, page: Any) -> None:
        self.pages.append(page.data)
        if self._wanted in page.data:
            self.seen.set()


def test_two_notebooks_follow_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository.create(MemoryStorage())
    job = repository.jobs.create("rows", keys=range(3), message="rows")
    handles: list[Handle] = []

    def display(page: Any, *, display_id: bool) -> Handle:
        assert display_id
        handles.append(Handle(page, "2/3 parts, 1 committed"))
        return handles[-1]

    monkeypatch.setattr(IPython.display, "display", display)
    first = job.progress(every=0.01)
    first._ipython_display_()
    job.run(lambda store, key: None, 0)
    job.publish()
    job.run(lambda store, key: None, 1)
    assert handles[0].seen.wait(60)
    first.stop()
    first.wait(60)
    # the notebook is connected anew
    second = Repository.open(repository.storage).jobs.open("rows").progress(every=0.01)
    second._ipython_display_()
    assert "<progress value='2' max='3'>" in handles[1].pages[0]
    job.run(lambda store, key: None, 2)
    job.finish()
    second.wait(60)
    assert "3/3 parts, 3 committed" in handles[1].pages[-1]
    assert "finished" in handles[1].pages[-1]
    assert repr(second).startswith("<icechunk.JobProgress> 3 of 3 parts are done")
    with pytest.raises(InvalidInputError, match="every is 0"):
        job.progress(every=0)


def test_a_job_without_keys_shows_no_full_bar() -> None:
    """How many parts there will be is known when it is closed."""
    job = Repository.create(MemoryStorage()).jobs.create("rows", message="rows")
    pages = [job.progress()._repr_html_()]
    job.run(lambda store, key: None, keys=["a", "b"])
    pages.append(job.progress()._repr_html_())
    assert ["<progress></progress>" in page for page in pages] == [True, True]
    assert "2 parts, 0 committed" in pages[1]
    job.finish()
    assert "<progress value='2' max='2'></progress> 2 parts" in job.progress()._repr_html_()


def test_a_job_of_no_parts() -> None:
    job = Repository.create(MemoryStorage()).jobs.create("none", keys=[], message="none")
    assert "<progress value='0' max='1'>" in job.progress()._repr_html_()


def test_a_job_that_is_deleted_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository.create(MemoryStorage())
    job = repository.jobs.create("rows", message="rows")
    shown = job.progress()
    assert "<progress></progress>" in shown._repr_html_()
    shown.wait()
