"""The official client reads archives whose chunks have several lengths, and changes them."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from icechunk_dask import virtualize
from tests.archives.day_files import archived, content, together
from tests.archives.test_chunk_grids import HOW, MONTHS, needed, write
from tests.interop.sides import Official, Ours


@needed
def test_chunks_of_several_lengths(ours: Ours, official: Official, tmp_path: Path) -> None:
    files = write(tmp_path, [*MONTHS, 10], [*MONTHS, 6])
    repo = tmp_path / "repo"
    report = virtualize(files[:-1], repo, **HOW)
    prefixes = [f"{tmp_path.as_uri()}/"]
    seen = [side.run("archives.read_archive", str(repo), prefixes) for side in (ours, official)]
    assert seen[0] == seen[1] and seen[0]["t"][0] == [sum(MONTHS), 3]
    official.run("archives.note", str(repo), prefixes, "t")
    # files go on after that
    report = virtualize(files, repo, **HOW)
    seen = [side.run("archives.read_archive", str(repo), prefixes) for side in (ours, official)]
    assert seen[0] == seen[1]
    expected = together([content(path) for path in files])
    ours_now = archived(repo, report)
    assert ours_now["t"].attrs.pop("noted")
    xr.testing.assert_identical(ours_now, expected)
