"""The official client reads objects that several chunks share, and keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

import icechunk
from tests.interop.sides import Official, Ours


def test_packed_chunks(ours: Ours, official: Official, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(folder)))
    session = repository.writable_session("main", pack=True)
    values = np.random.default_rng(0).random(64 * 256)
    zarr.create_array(session.store, name="a", data=values, chunks=(256,), compressors=None)
    session.commit("packed")
    assert len(list((folder / "chunks").iterdir())) == 1
    for side in (official, ours):
        assert side.run("packed.read_packed", str(folder)) == values.tolist()
    official.run("packed.write_more", str(folder))
    values[:256] = -1
    # ranges of the old version and the new chunk, each once; official counts one per object
    assert official.run("packed.collect", str(folder)) == 2 * 256 * 8
    assert ours.run("packed.collect", str(folder)) == values.nbytes + 256 * 8
    for side in (official, ours):
        assert side.run("packed.read_packed", str(folder)) == values.tolist()
    assert repository.verify().ok
