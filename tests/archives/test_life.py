"""The life of an archive: files appear, fail, are repaired, replaced, come late, and go."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import xarray as xr
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from icechunk import InvalidInputError, LocalStorage, Repository, Storage
from icechunk_dask import VirtualizeReport, remove_files, virtualize
from icechunk_dask.archives import adding
from icechunk_dask.archives.record import Record
from icechunk_dask.archives.sources import Sources, location_of
from tests.archives.day_files import archived, content, together, write_days

SLOTS = st.integers(0, 6)


class ArchiveLife(RuleBasedStateMachine):
    """The dataset is always what `xarray.concat` makes of the files that are in.

    Others say where the repository is, and what scans files.
    """

    how: Mapping[str, Any] = MappingProxyType({"scheduler": "sync"})

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name).resolve()
        self.repo = self.storage()
        (self.folder / "data").mkdir()
        # what the files that are in were when they were added
        self.inside: dict[int, tuple[xr.Dataset, xr.Dataset]] = {}
        self.versions: dict[int, int] = {}
        self.broken: set[int] = set()
        self.stale: set[int] = set()
        self.report: VirtualizeReport | None = None
        self.clock = 1_000_000_000

    def storage(self) -> Storage:
        """Return a new place for a repository."""
        return LocalStorage(self.folder / "repo")

    def teardown(self) -> None:
        self._folder.cleanup()

    def path(self, slot: int) -> Path:
        return self.folder / "data" / f"{slot}.nc"

    def _write(self, slot: int) -> None:
        path = self.path(slot)
        version = self.versions[slot] = self.versions.get(slot, -1) + 1
        # slots have other lengths than their neighbours
        days = 4 if slot % 2 else 8
        write_days(path, 8 * slot, days, shift=1000 * version, group="own", own=2, copied=True)
        self._touch(path)
        self.broken.discard(slot)
        if slot in self.inside:
            self.stale.add(slot)

    def _touch(self, path: Path) -> None:
        # two writes may have the same time otherwise
        self.clock += 10
        os.utime(path, (self.clock, self.clock))

    @rule(slot=SLOTS)
    def appears(self, slot: int) -> None:
        if not self.path(slot).exists() or slot in self.broken:
            self._write(slot)

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def is_replaced(self, data: Any) -> None:
        self._write(data.draw(st.sampled_from(sorted(self.versions))))

    @rule(slot=SLOTS)
    def is_damaged(self, slot: int) -> None:
        if slot not in self.inside:
            self.path(slot).write_bytes(b"\x89HDF\r\n\x1a\n damaged")
            self._touch(self.path(slot))
            self.versions.setdefault(slot, -1)
            self.broken.add(slot)

    @precondition(lambda self: set(self.versions) - self.broken)
    @rule(allow_gaps=st.booleans(), commit_every=st.sampled_from([None, 1, 2]))
    def is_virtualized(self, allow_gaps: bool, commit_every: int | None) -> None:
        slots = sorted(self.versions)
        files = [self.path(slot) for slot in slots]
        if self.stale:
            with pytest.raises(InvalidInputError, match="changed since"):
                virtualize(files, self.repo, **self.how)
        options: dict[str, Any] = {"allow_gaps": allow_gaps, "on_changed": "replace"}
        options["commit_every"] = commit_every
        fresh = [slot for slot in slots if slot not in self.inside]
        gaps = [slot for slot in fresh if slot in self.broken]
        expected = {
            slot
            for slot in fresh
            if slot not in self.broken and (allow_gaps or not gaps or slot < min(gaps))
        }
        if not expected and not Repository.exists(self.repo) and gaps == slots:
            return
        report = virtualize(files, self.repo, **self.how, **options)
        failed, withheld = set(report.failed), set(report.withheld)
        broken = {str(self.path(slot)) for slot in gaps}
        waiting = {str(self.path(slot)) for slot in set(fresh) - expected - self.broken}
        if commit_every is None or allow_gaps:
            assert (failed, withheld) == (broken, waiting)
        else:
            # what lies behind the commit with a gap is not looked at
            assert failed <= broken and failed | withheld == broken | waiting
            assert not failed & withheld and bool(failed) == bool(broken)
        assert set(report.added) == {str(self.path(slot)) for slot in expected}
        assert set(report.replaced) == {str(self.path(slot)) for slot in self.stale}
        for slot in expected | self.stale:
            path = self.path(slot)
            self.inside[slot] = content(path), content(path, "own")
        self.stale.clear()
        if report.access:
            # one of a call that found nothing to commit says nothing of how to read it
            self.report = report
        self._check()

    @precondition(lambda self: set(self.versions) - self.broken)
    @rule(at=st.integers(0, 2), commit_every=st.sampled_from([None, 1, 2]))
    def is_killed(self, at: int, commit_every: int | None) -> None:
        """What is committed stays, and nothing else."""
        files = [self.path(slot) for slot in sorted(self.versions)]
        commit, left = adding.commit, [at]

        def killed(*args: Any, **options: Any) -> Any:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return commit(*args, **options)

        options: dict[str, Any] = {"on_changed": "replace", "commit_every": commit_every}
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(adding, "commit", killed)
            with suppress(KeyboardInterrupt, InvalidInputError):
                virtualize(files, self.repo, allow_gaps=True, **self.how, **options)
        if not Repository.exists(self.repo):
            return
        session = Repository.open(self.repo).readonly_session("main")
        record = Record.find(session, "/")
        if record is None:
            return
        for slot in sorted(self.versions):
            path = self.path(slot)
            (row,) = record.files.rows([location_of(str(path))]).tolist()
            if row >= 0 and record.files.version(row) == Sources({}).open(str(path)).version():
                self.inside[slot] = content(path), content(path, "own")
                self.stale.discard(slot)
        if self.report is not None:
            self._check()

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def is_taken_out(self, data: Any) -> None:
        slot = data.draw(st.sampled_from(sorted(self.inside)))
        report = remove_files([self.path(slot)], self.repo)
        assert report.removed == (str(self.path(slot)),)
        del self.inside[slot]
        self.stale.discard(slot)
        # it would come back with the next call
        self.path(slot).unlink()
        del self.versions[slot]
        self._check()

    @precondition(lambda self: self.inside)
    @rule()
    def old_snapshots_go(self) -> None:
        repository = Repository.open(self.repo)
        now = datetime.now(UTC) + timedelta(days=1)
        repository.expire_snapshots(now)
        repository.garbage_collect(now)
        self._check()

    def _check(self) -> None:
        if self.report is None or self.stale or not self.inside:
            return
        for group, index in ((None, 0), ("own", 1)):
            expected = together([parts[index] for _, parts in sorted(self.inside.items())])
            # a replaced file does not change what the archive is like
            xr.testing.assert_equal(archived(self.repo, self.report, group), expected)


TestArchiveLife = ArchiveLife.TestCase
TestArchiveLife.settings = settings(
    max_examples=15,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
