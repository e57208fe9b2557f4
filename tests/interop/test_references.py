"""Repositories of imported references: the official client reads and extends them."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import zarr

from icechunk import (
    ManifestConfig,
    ManifestVirtualChunkLocationCompressionConfig,
    Repository,
)
from icechunk.format.encoding.envelope import FileType, unwrap
from icechunk.format.encoding.flatbuf import read_root
from icechunk.kerchunk import import_references
from tests.interop.sides import Official, Ours, Side
from tests.kerchunk.base import ARCHIVE, NETCDF, array_refs, local, repository, scan


def test_official_reads_the_archive(ours: Ours, official: Official, tmp_path: Path) -> None:
    repo = repository(ARCHIVE, storage=local(tmp_path / "repo"))
    session = repo.writable_session("main")
    for name in NETCDF:
        import_references(scan(ARCHIVE / name), session, group=Path(name).stem)
    session.commit("the archive")
    arguments = (str(tmp_path / "repo"), f"{ARCHIVE.as_uri()}/")
    expected = ours.run("references.read", *arguments)
    assert len(expected) > 100
    assert official.run("references.read", *arguments) == expected


def test_many_files(ours: Ours, official: Official, tmp_path: Path) -> None:
    """Enough references that their locations are compressed."""
    count = 1500
    files = tmp_path / "files"
    files.mkdir()
    chunks = {}
    for i in range(count):
        (files / f"{i:04d} %.bin").write_bytes(np.array([i, -i], ">i4").tobytes())
        chunks[f"{i}.0"] = [f"{files}/{i:04d} %.bin"]
    held = base64.b64encode(np.array([7, 8], ">i4").tobytes()).decode()
    chunks[f"{count}.0"] = f"base64:{held}"
    refs = array_refs(
        chunks, (count + 2, 2), (1, 2), dtype=">i4", attributes={"n": [1.5, None], "_FillValue": 3}
    )
    place = tmp_path / "repo"
    # without a configuration they would stay plain: that is as small
    wanted = ManifestConfig(
        virtual_chunk_location_compression=ManifestVirtualChunkLocationCompressionConfig()
    )
    repo = repository(files, storage=local(place), manifest=wanted)
    session = repo.writable_session("main")
    import_references(refs, session)
    session.commit("many files")
    arguments = (str(place), f"{files.as_uri()}/")
    expected = ours.run("references.read", *arguments)
    assert official.run("references.read", *arguments) == expected
    (manifest,) = (place / "manifests").iterdir()
    payload, _ = unwrap(manifest.read_bytes(), FileType.MANIFEST, manifest.name)
    assert read_root(payload, manifest.name).blobs(2, "location_dictionary")[0]
    # and goes on
    official.run("references.extend", *arguments)
    again = Repository.open(local(place), None, {f"{files.as_uri()}/": None})
    array = zarr.open_array(again.readonly_session("main").store, path="a", mode="r")
    assert array[0].tolist() == [1, -1]
    assert array[count].tolist() == [7, 8]
    assert array[count + 1].tolist() == [-1, -1]


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.75])
def test_fractions_of_seconds(
    sides: tuple[Side, Side], ours: Ours, official: Official, tmp_path: Path, fraction: float
) -> None:
    """Both cut them off where a time is given, and not where a file has one."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.bin").write_bytes(bytes(range(8)))
    where = (str(tmp_path / "repo"), f"{(tmp_path / 'files').as_uri()}/")
    start = 1_700_000_000
    writer, _ = sides
    writer.run("references.refer", *where, start + fraction)
    times = [start + after for after in (-1, 0, 0.125, 0.25, 0.5, 0.75, 1, 2)]
    expected = [time <= start for time in times]
    assert ours.run("references.is_read", *where, times) == expected
    assert official.run("references.is_read", *where, times) == expected
