"""Unusual histories that the official client leaves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.interop.sides import Official, Ours, Side
from tests.interop.summary import Summary

#: Chunk keys of a wrong rank: the official client logs all of them.
KEYS = ["a/c/0", "a/c/0/0", "a/c/3", "a/c", "m/c/1", "m/c/1/1"]


@pytest.fixture(scope="module")
def base(official: Official, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the official client made of `base.write_base`."""
    folder = str(tmp_path_factory.mktemp("history") / "base")
    official.run("create_base", folder)
    return folder


@pytest.mark.parametrize("row,conflict", [(0, True), (5, False)])
def test_coordinates_of_several_ranks(
    row: int, conflict: bool, base: str, ours: Ours, official: Official, tmp_path: Path
) -> None:
    folder = tmp_path / "deleted"
    official.run("delete_keys", base, str(folder), KEYS)

    def gone_on(side: Side) -> tuple[object, object]:
        copy = tmp_path / side.name
        shutil.copytree(folder, copy)
        return side.run("carry_on", str(copy), row), Summary(copy).everything()

    (mine, my_summary), (theirs, their_summary) = gone_on(ours), gone_on(official)
    assert mine == theirs
    assert isinstance(mine, dict)
    assert bool(mine["conflicts"]) is conflict
    assert {len(coordinate) for coordinate in mine["diffs"][0]["/a"]} == {0, 1, 2}
    assert my_summary == their_summary
