"""The official client reads, and goes on from, commits that were made of other commits."""

from __future__ import annotations

from pathlib import Path

from icechunk import Repository, local_filesystem_storage
from tests.interop.sides import Official, Ours


def test_commits_of_commits(ours: Ours, official: Official, tmp_path: Path) -> None:
    folder = str(tmp_path / "repo")
    official.run("rework.create", folder)
    official.run("rework.write", folder, "main", 0, 1, "made")
    official.run("rework.branch", folder, "work")
    for i in range(3):
        official.run("rework.write", folder, "work", i, 10 + i, f"work {i}")
    repo = Repository.open(local_filesystem_storage(folder))
    repo.squash("work", "main", "squashed")
    official.run("rework.write", folder, "main", 6, 7, "meanwhile")
    repo.cherry_pick("main", "work")
    official.run("rework.write", folder, "main", 4, 5, "later")
    repo.revert("main", "main~2")
    for branch, values in (
        ("work", [10, 11, 12, 12, 0, 0, 0, 0]),
        ("main", [10, 11, 12, 12, 5, 5, 0, 0]),
    ):
        found = official.run("rework.state", folder, branch)
        assert found == ours.run("rework.state", folder, branch)
        assert found["values"] == values
    told = [entry[1] for entry in found["history"]]
    assert told[:4] == ['Revert "meanwhile"', "later", "squashed", "meanwhile"]
    assert found["history"][2][2] == ["__icechunk", "from"]
    official.run("rework.write", folder, "main", 0, 99, "on top")
    assert official.run("rework.state", folder, "main")["values"][:2] == [99, 99]
    assert repo.verify().ok


def test_a_copy(ours: Ours, official: Official, tmp_path: Path) -> None:
    folder, other = str(tmp_path / "repo"), str(tmp_path / "copy")
    official.run("rework.create", folder)
    for i in range(3):
        official.run("rework.write", folder, "main", i, 10 + i, f"commit {i}")
    repo = Repository.open(local_filesystem_storage(folder))
    repo.copy_to(other)
    before = official.run("rework.state", folder, "main")
    assert official.run("rework.state", other, "main") == before
    official.run("rework.write", other, "main", 4, 9, "in the copy")
    found = official.run("rework.state", other, "main")
    assert found["values"] == [10, 11, 12, 12, 9, 9, 0, 0]
    repo.copy_to(other, branch="again", history=False)
    assert official.run("rework.state", other, "again")["values"] == before["values"]
    assert Repository.open(local_filesystem_storage(other)).verify().ok
