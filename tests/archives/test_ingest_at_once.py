"""Two calls of `ingest` into one group: one runs, and the other is told of it."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dask
import pytest
import xarray as xr

from icechunk import MemoryStorage, Repository, SessionStateError
from icechunk.storage.base import Storage
from icechunk_dask import ingest, one_call
from tests.archives.test_ingest import check, write_month
from tests.killing import Dying, Killed
from tests.storages import Meanwhile

HOW: Any = {"verify": "none", "progress": False, "commit_every": 1}


@pytest.fixture(autouse=True)
def _sync() -> Any:
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_month(tmp_path, month) for month in (1, 2, 3)]


class Fixed(Meanwhile):
    """One that stays the same object, whatever a call sets."""

    def with_settings(self, settings: Any) -> Storage:
        return self


@pytest.mark.parametrize("other", ["same", "more", "another group"])
def test_a_call_within_a_call(
    monkeypatch: pytest.MonkeyPatch, files: list[Path], other: str
) -> None:
    """Wherever the first one is; the second stands for one on another machine."""
    nth, refused = 1, 0
    while True:
        storage = MemoryStorage()
        Repository.create(storage)
        errors: list[SessionStateError] = []

        def second(storage: Storage = storage, errors: list[SessionStateError] = errors) -> None:
            group = "g" if other == "another group" else "f"
            with monkeypatch.context() as patch:
                patch.setattr(one_call, "_machine", lambda: "elsewhere")
                try:
                    ingest(files if other == "more" else files[:2], storage, group=group, **HOW)
                except SessionStateError as refusal:
                    errors.append(refusal)

        first = Fixed(storage, nth, second, operations=("put", "delete"))
        try:
            ingest(files[:2], first, group="f", **HOW)
        except SessionStateError:
            # the second was there first
            assert not errors
        for error in errors:
            assert re.search(
                r"copying files into /f of 'main', since \S+Z at .*, pid \d+\. Wait .* cancel .* "
                r"300 seconds .* Repository.jobs.delete\('ingest-\w+-running-1'\)",
                str(error),
            )
        refused += len(errors)
        ingest(files, storage, group="f", **HOW)
        repository = Repository.open(storage)
        check(repository, files, "f")
        if other == "another group" and first.left <= 0:
            assert xr.open_dataset(repository, engine="icechunk", group="g").sizes["time"] == 20
            assert not errors
        assert (repository.jobs.list(), repository.list_branches()) == ([], {"main"})
        if first.left > 0:
            break
        nth += 53 if nth > 3 else 1
    assert refused > 2 or other == "another group"


def _here(monkeypatch: Any) -> None:
    """Its process is gone, on this machine."""


def _process_gone(patch: Any) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    patch.setattr("os.getpid", lambda: gone.pid)


def _elsewhere(patch: Any) -> None:
    patch.setattr(one_call, "_machine", lambda: "elsewhere")


@pytest.mark.parametrize(
    ("where", "nth", "wait"),
    [
        *((_elsewhere, nth, wait) for nth, wait in [(1, False), (2, True), (9, False), (40, True)]),
        # nobody has to wait
        *((_here, nth, False) for nth in (1, 9)),
        *((_process_gone, nth, False) for nth in (2, 40)),
    ],
)
def test_a_call_that_is_dead(
    monkeypatch: pytest.MonkeyPatch, files: list[Path], where: Any, nth: int, wait: bool
) -> None:
    storage = MemoryStorage()
    Repository.create(storage)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        where(patch)
        ingest(files[:2], Dying(storage, nth), **HOW)
    if where is _elsewhere and nth > 1:
        with pytest.raises(SessionStateError, match="another call does this") as caught:
            ingest(files, storage, **HOW)
        if wait:

            class Later(datetime):
                @classmethod
                def now(cls, tz: Any = None) -> Any:
                    return datetime.now(UTC) + timedelta(seconds=301)

            monkeypatch.setattr("icechunk.repository.job.datetime", Later)
            monkeypatch.setattr(one_call, "datetime", Later)
        else:
            (name,) = re.findall(r"jobs.delete\('(.*)'\)", str(caught.value))
            Repository.open(storage).jobs.delete(name)
    ingest(files, storage, **HOW)
    repository = Repository.open(storage)
    check(repository, files)
    assert (repository.jobs.list(), repository.list_branches()) == ([], {"main"})
