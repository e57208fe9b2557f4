"""Archives of many files: what the client keeps of each, what an append takes, several commits."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from icechunk import InvalidInputError, LocalStorage, Repository
from icechunk_dask import Status, remove_files, virtualize
from icechunk_dask.archives.scan import Scanner
from tests.archives.day_files import archived, content, together, write_days
from tests.archives.many_files import names, scan_one_for_all, times


# -- memory ----------------------------------------------------------------------------
def test_the_client_keeps_little_of_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan_one_for_all(tmp_path, monkeypatch)
    peaks = []
    for count in (10, 200, 700):
        files = names(tmp_path, range(count))
        gc.collect()
        tracemalloc.start()
        virtualize(files, tmp_path / f"repo{count}", scheduler="sync")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # of two variables; and nothing is left over of the first calls
    assert (peaks[2] - peaks[1]) / 500 < 2000


# -- one file more -----------------------------------------------------------------------
def test_what_an_append_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan_one_for_all(tmp_path, monkeypatch)
    # what is fetched in the background may come in time or not
    monkeypatch.setattr("icechunk.repository.preload._preload", lambda *_: None)
    requests: Counter[str] = Counter()
    sizes: Counter[str] = Counter()

    def counted(name: str) -> None:
        real = getattr(LocalStorage, name)

        def call(self: Any, *args: Any, **options: Any) -> Any:
            requests[name] += 1
            if name == "put":
                sizes["put"] += len(args[1])
            found = real(self, *args, **options)
            sizes["get"] += len(found.data) if name == "get" else 0
            return found

        monkeypatch.setattr(LocalStorage, name, call)

    for name in ("get", "put", "list", "delete"):
        counted(name)
    seen = {}
    for count in (20, 200, 1000):
        repo = tmp_path / f"repo{count}"
        virtualize(names(tmp_path, range(count)), repo, scheduler="sync")
        requests.clear()
        sizes.clear()
        report = virtualize(names(tmp_path, [count]), repo, scheduler="sync")
        assert len(report.added) == 1
        seen[count] = dict(requests), dict(sizes)
    # as many requests, however large the archive is; small coordinates lie in manifests
    assert seen[200][0] == seen[1000][0]
    assert seen[20][0]["get"] + seen[20][0]["put"] <= 14
    for kind in ("get", "put"):
        # of each file: its line in the table, and two references in manifests
        each = (seen[1000][1][kind] - seen[200][1][kind]) / 800
        assert each < 30, f"{kind}: {each} bytes for each file that is there"


def test_an_archive_of_many_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan_one_for_all(tmp_path, monkeypatch)
    rng = np.random.default_rng(0)
    order = rng.permutation(300).tolist()
    repo = tmp_path / "repo"
    for first in range(0, 300, 100):
        report = virtualize(names(tmp_path, order[first : first + 100]), repo, scheduler="sync")
    ours = xr.open_dataset(Repository.open(str(repo)), engine="icechunk", chunks={})
    assert (ours["time"].values == times(300)).all()
    session = Repository.open(str(repo)).readonly_session("main")
    refs = session.chunk_refs("/t")
    assert refs.locations is not None and refs.location is not None
    at = dict(zip(refs.coords[:, 0].tolist(), refs.location.tolist(), strict=True))
    assert [refs.locations[at[i]] for i in range(300)] == [
        f"file://{name}" for name in names(tmp_path, range(300))
    ]
    report = remove_files(names(tmp_path, range(0, 300, 2)), repo)
    assert report.sizes["time"] == 600
    assert len(virtualize(names(tmp_path, range(300)), repo, scheduler="sync").added) == 150


# -- several commits ---------------------------------------------------------------------
def test_commits_in_between(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i, copied=True) for i in range(5)]
    seen: list[Status] = []
    report = virtualize(
        files, tmp_path / "repo", scheduler="sync", commit_every=2, progress=seen.append
    )
    whole = virtualize(files, tmp_path / "whole", scheduler="sync")
    assert report.added == whole.added and report.variables == whole.variables
    assert report.chunks == whole.chunks and report.sizes == whole.sizes
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)
    history = [*Repository.open(str(tmp_path / "repo")).ancestry(branch="main")]
    assert [each.message for each in history[:3]] == [
        "1 file as virtual chunks in /",
        "2 files as virtual chunks in /",
        "2 files as virtual chunks in /",
    ]
    assert seen[-1].commits == 3 and seen[-1].tasks == seen[-1].total == 5
    with pytest.raises(InvalidInputError, match="commit_every is a number of files, not 0"):
        virtualize(files, tmp_path / "repo", commit_every=0)


@pytest.mark.parametrize("commit_every", [None, 2])
def test_a_call_that_is_stopped(
    commit_every: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(5)]
    real = Scanner.__call__

    def stopped(self: Scanner, url: str) -> Any:
        if url.endswith("3.nc"):
            raise KeyboardInterrupt
        return real(self, url)

    with monkeypatch.context() as patched:
        patched.setattr(Scanner, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt) as caught:
            virtualize(files, tmp_path / "repo", scheduler="sync", commit_every=commit_every)
    (note,) = caught.value.__notes__
    if commit_every is None:
        assert note.startswith("Nothing is committed.")
        assert not (tmp_path / "repo").exists()
        return
    snapshot = Repository.open(str(tmp_path / "repo")).lookup_branch("main")
    assert note.startswith("2 of 5 files are committed to / of 'main'") and snapshot in note
    report = virtualize(files, tmp_path / "repo", scheduler="sync", commit_every=commit_every)
    assert len(report.added) == 3 and len(report.already) == 2
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


@pytest.mark.parametrize(
    ("commit_every", "bad", "allow_gaps"),
    [
        (every, bad, (i + j) % 2 == 1)
        for i, every in enumerate([1, 2, 3, 10])
        for j, bad in enumerate([0, 1, 2, 4])
    ],
)
def test_gaps_in_several_commits(
    commit_every: int, bad: int, allow_gaps: bool, tmp_path: Path
) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(5)]
    good = files[bad].read_bytes()
    files[bad].write_bytes(good[:1000])
    options: dict[str, Any] = {"scheduler": "sync", "commit_every": commit_every}
    report = virtualize(files, tmp_path / "repo", allow_gaps=allow_gaps, **options)
    names = list(map(str, files))
    inside = [name for i, name in enumerate(names) if i < bad or (allow_gaps and i > bad)]
    assert list(report.failed) == [names[bad]] and list(report.added) == inside
    assert list(report.withheld) == ([] if allow_gaps else names[bad + 1 :])
    files[bad].write_bytes(good)
    report = virtualize(files, tmp_path / "repo", **options)
    expected = together([content(path) for path in files])
    xr.testing.assert_identical(archived(tmp_path / "repo", report), expected)


# -- where files are scanned ---------------------------------------------------------------
def test_executors(tmp_path: Path) -> None:
    files = [write_days(tmp_path / f"{i}.nc", 4 * i) for i in range(3)]
    expected = together([content(path) for path in files])
    with ThreadPoolExecutor(2) as pool:
        for number, executor in enumerate(["sync", "threads", pool]):
            repo = tmp_path / f"repo{number}"
            report = virtualize(files, repo, executor=executor)
            xr.testing.assert_identical(archived(repo, report), expected)
    with pytest.raises(InvalidInputError, match="say the same"):
        virtualize(files, tmp_path / "repo", executor="sync", scheduler="sync")
