"""Repositories of spec version 1: three clients take turns, and compare what they upgrade."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from icechunk.format.encoding import flexbuf
from icechunk.format.repo_info import RepoInfo, decode_repo_info
from tests.interop.sides import Official, Ours, Side
from tests.interop.test_operations import PATHS, SMALL
from tests.servers import S3Server

Sides = list[Side]


@pytest.fixture(scope="module")
def all_sides(ours: Ours, official: Official, official_1: Official) -> Sides:
    return [ours, official_1, official]


def assert_all_read_the_same(sides: Sides, *where: Any) -> None:
    mine, *others = (side.run("version_1.read", *where) for side in sides)
    for theirs in others:
        assert mine.keys() == theirs.keys()
        for part in mine:
            assert mine[part] == theirs[part], part
    assert mine["taken"] == ["oops", "v1.0"]


@pytest.mark.parametrize("first", [0, 1], ids=["ours first", "1.1.21 first"])
def test_three_take_turns(first: int, all_sides: Sides, tmp_path: Path) -> None:
    where = str(tmp_path / "repository"), str(tmp_path)
    writer, *others = all_sides[first:] + all_sides[:first]
    writer.run("version_1.write", *where)
    for side in others:
        side.run("version_1.go_on", *where, side.name)
    writer.run("version_1.go_on", *where, writer.name)
    assert_all_read_the_same(all_sides, *where)


def test_three_take_turns_on_s3(all_sides: Sides, tmp_path: Path, s3_server: S3Server) -> None:
    place = {
        "bucket": s3_server.bucket,
        "prefix": "interop/version-1",
        "region": s3_server.region,
        "endpoint_url": s3_server.endpoint_url,
        "allow_http": True,
        "force_path_style": True,
        "access_key_id": s3_server.access_key_id,
        "secret_access_key": s3_server.secret_access_key,
    }
    where = place, str(tmp_path)
    all_sides[0].run("version_1.write", *where)
    for side in all_sides:
        # names with special characters are raw on S3
        side.run("version_1.go_on", *where, f"{side.name} #1 é")
    assert_all_read_the_same(all_sides, *where)
    ours, _, official = all_sides
    ours.run("version_1.upgrade", place)
    mine, theirs = (side.run("version_1.read", *where) for side in (ours, official))
    assert mine["branches"] == theirs["branches"]
    assert "of official #1 é" in mine["branches"]
    assert mine["snapshots"] == theirs["snapshots"]


# -- upgrading ---------------------------------------------------------------------------
def stored_info(folder: Path) -> RepoInfo:
    """Return the repo info, without what is different every time."""
    info = decode_repo_info((folder / "repo").read_bytes(), "repo")
    migrated, *rest = info.updates
    config = flexbuf.loads(info.config, "config") if info.config is not None else None
    if config is not None:
        config["storage"] = None  # how the official client uses folders
        config = flexbuf.dumps(config)
    return replace(info, updates=(replace(migrated, updated_at=0), *rest), config=config)


@pytest.mark.parametrize("by", [0, 1, 2], ids=["by ours", "by 1.1.21", "by 2.3.0"])
def test_both_upgrade_alike(by: int, all_sides: Sides, tmp_path: Path) -> None:
    ours, _, official = all_sides
    writer = all_sides[by]
    source = str(tmp_path)
    folders = {side.name: tmp_path / side.name for side in (ours, official)}
    writer.run("version_1.write", str(tmp_path / "old"), source)
    writer.run("version_1.go_on", str(tmp_path / "old"), source, writer.name)
    before = ours.run("version_1.read", str(tmp_path / "old"), source)
    for side in (ours, official):
        shutil.copytree(tmp_path / "old", folders[side.name])
        side.run("version_1.upgrade", str(folders[side.name]))
    mine, theirs = (stored_info(folders[side.name]) for side in (ours, official))
    assert mine.updates == theirs.updates
    assert mine == theirs
    names = {
        side: {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        for side, folder in folders.items()
    }
    locks = {name for side in names.values() for name in side if name.endswith("#0")}
    # they keep no copies of the configuration
    assert names["ours"] - locks == names["official"] - locks
    for side in (ours, official):
        after = side.run("version_1.read", str(folders["ours"]), source)
        for part in ("branches", "tags", "histories", "snapshots", "containers", "taken"):
            assert after[part] == before[part], part
    for side in (official, ours):
        side.run("add_to_migrated", str(folders["ours"]), source, f"later-{side.name}")
    found = [side.run("read", str(folders["ours"]), source) for side in (ours, official)]
    assert found[0] == found[1]


# -- whatever comes to mind ----------------------------------------------------------------
NAMES = ["x", "main", "é#1 ~", "{[^`]}|"]
STEPS = st.one_of(
    st.tuples(st.just("array"), PATHS, SMALL, st.booleans()),
    st.tuples(st.just("group"), PATHS, st.booleans()),
    st.tuples(st.just("write"), PATHS, SMALL, SMALL, st.integers(0, 2)),
    st.tuples(st.just("resize"), PATHS, SMALL),
    st.tuples(st.just("attribute"), PATHS, st.integers(0, 1)),
    st.tuples(st.just("delete"), PATHS),
    st.tuples(st.just("delete_chunk"), PATHS, SMALL),
    st.tuples(st.just("virtual"), PATHS, SMALL),
    st.tuples(st.just("finish"), st.sampled_from(["commit", "flush", "discard_changes"])),
    st.tuples(
        st.sampled_from(["branch", "delete_branch", "tag", "delete_tag"]), st.sampled_from(NAMES)
    ),
)


@pytest.fixture(scope="module")
def base(ours: Ours, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("version-1") / "base")
    ours.run("version_1.create_base", folder)
    return folder


@settings(max_examples=10)
@given(steps=st.lists(STEPS, max_size=20))
def test_all_see_what_we_did(steps: list[tuple[object, ...]], base: str, all_sides: Sides) -> None:
    ours = all_sides[0]
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder, "repository"))
        ours.run("version_1.play", base, place, steps)
        mine, *others = (side.run("version_1.look", place, NAMES) for side in all_sides)
    for theirs in others:
        assert mine == theirs
