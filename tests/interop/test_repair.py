"""The official client goes on from a repository that was repaired, its own or ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from icechunk import Repository, local_filesystem_storage
from tests.interop.sides import Side


def test_repaired(sides: tuple[Side, Side], tmp_path: Path) -> None:
    maker, reader = sides
    folder = tmp_path / "repo"
    maker.run("rework.create", str(folder))
    for i in range(3):
        maker.run("rework.write", str(folder), "main", 2 * i, 10 + i, f"commit {i}")
    before = maker.run("rework.state", str(folder), "main")
    (folder / "repo").write_bytes((folder / "repo").read_bytes()[:-5])
    with pytest.raises(Exception, match=r"."):
        reader.run("rework.state", str(folder), "main")
    done = Repository.repair(folder, dry_run=False)
    (lost,) = done.unlisted
    assert lost.fits == ("main",)
    assert reader.run("rework.state", str(folder), "main")["history"] == before["history"][1:]
    Repository.repair(folder, adopt={"main": lost.id}, dry_run=False)
    assert reader.run("rework.state", str(folder), "main") == before
    # a manifest of the newest version, which has inline chunks
    repo = Repository.open(local_filesystem_storage(str(folder)))
    node = repo.readonly_session("main").tree.require("/a")
    assert node.array is not None
    (folder / "manifests" / repo.list_manifest_files(lost.id)[0].id).unlink()
    done = Repository.repair(folder, branch="main", drop_unreadable=True, dry_run=False)
    assert [(each.path, each.chunks, each.region) for each in done.dropped] == [
        ("/a", 6, ((0, 6),))
    ]
    found = reader.run("rework.state", str(folder), "main")
    assert found["values"] == [0] * 8
    assert found["history"][0][0] == done.snapshot_id
    reader.run("rework.write", str(folder), "main", 0, 5, "on top")
    assert reader.run("rework.state", str(folder), "main")["values"][:3] == [5, 5, 0]
