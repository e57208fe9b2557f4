"""One side writes a repository, the other reads it and goes on, and the first reads that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from icechunk.format.chunk_refs import RefKind
from icechunk.format.ids import encode_id
from icechunk.format.manifest import decode_manifest
from icechunk.format.transaction_log import decode_transaction_log
from tests.data import golden_content as content
from tests.interop.sides import Official, Ours, Side
from tests.interop.summary import Summary
from tests.servers import S3Server

DATA = Path(content.__file__).parent


def assert_both_read_the_same(ours: Ours, official: Official, *where: Any) -> None:
    """Compare what both sides see in a repository, part by part."""
    mine, theirs = ours.run("read", *where), official.run("read", *where)
    assert mine.keys() == theirs.keys()
    for part in mine:
        assert mine[part] == theirs[part], part


@pytest.fixture(scope="module")
def written_by_ours(ours: Ours, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A repository with everything in it, and the folder of its virtual chunks."""
    folder = tmp_path_factory.mktemp("written")
    ours.run("write", str(folder / "repository"), str(folder))
    return str(folder / "repository"), str(folder)


def test_work_goes_to_and_fro(
    sides: tuple[Side, Side], ours: Ours, official: Official, tmp_path: Path
) -> None:
    first, second = sides
    where = str(tmp_path / "repository"), str(tmp_path)
    first.run("write", *where)
    assert_both_read_the_same(ours, official, *where)
    second.run("go_on", *where)
    assert_both_read_the_same(ours, official, *where)


def test_work_goes_to_and_fro_on_s3(
    sides: tuple[Side, Side],
    ours: Ours,
    official: Official,
    tmp_path: Path,
    s3_server: S3Server,
) -> None:
    first, second = sides
    place = {
        "bucket": s3_server.bucket,
        "prefix": f"interop/{first.name}",
        "region": s3_server.region,
        "endpoint_url": s3_server.endpoint_url,
        "allow_http": True,
        "force_path_style": True,
        "access_key_id": s3_server.access_key_id,
        "secret_access_key": s3_server.secret_access_key,
    }
    first.run("write", place, str(tmp_path))
    second.run("go_on", place, str(tmp_path))
    assert_both_read_the_same(ours, official, place, str(tmp_path))


def test_work_goes_on_in_a_migrated_repository(
    sides: tuple[Side, Side], ours: Ours, official: Official, tmp_path: Path
) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(DATA / "migrated" / "repository", folder)
    for side in sides:
        side.run("add_to_migrated", str(folder), str(tmp_path), side.name)
    assert_both_read_the_same(ours, official, str(folder), str(tmp_path))


def test_expired_commits_outlive_an_amendment(
    sides: tuple[Side, Side], official: Official, tmp_path: Path
) -> None:
    side, _ = sides
    folder = tmp_path / "repository"
    shutil.copytree(DATA / "v2" / "repository", folder)
    side.run("amend_after_expiration", str(folder))
    info = Summary(folder).info
    entry = info.snapshots[info.branches["reset"]]
    before = json.loads((DATA / "v2" / "expected.json").read_text("utf-8"))["snapshot_names"]
    assert [encode_id(id) for id in entry.pruned] == [before["start"]]
    found = official.run("history.inspect", str(folder))["transactions"][encode_id(entry.id)]
    assert found["synthetic_composite"]["merged_pruned_ancestor_tx_logs"] == [before["start"]]


def test_the_other_one_cleans_up(
    sides: tuple[Side, Side], ours: Ours, official: Official, tmp_path: Path
) -> None:
    """Then the first goes on and cleans up, too, and all is still there."""
    first, second = sides
    where = str(tmp_path / "repository"), str(tmp_path)
    first.run("write", *where)
    for cleaner in (second, first):
        before = ours.run("read", *where)
        deleted = cleaner.run("clean_up", *where)
        assert deleted["snapshots"] > 0
        assert deleted["manifests"] > 0
        assert_both_read_the_same(ours, official, *where)
        after = ours.run("read", *where)
        tips = (found["snapshots"][found["branches"]["main"]] for found in (before, after))
        assert next(tips) == next(tips)
        official.run("history.inspect", where[0])
        if cleaner is second:
            first.run("go_on", *where)
            assert_both_read_the_same(ours, official, *where)


def test_the_same_history_leaves_the_same_objects(
    written_by_ours: tuple[str, str], official: Official, tmp_path: Path
) -> None:
    mine = Summary(Path(written_by_ours[0])).everything()
    # the config names the folder, which is part of what is compared
    official.run("write", str(tmp_path / "repository"), written_by_ours[1])
    theirs = Summary(tmp_path / "repository").everything()
    assert mine["logs"] == theirs["logs"]
    assert mine["snapshots"] == theirs["snapshots"]
    assert mine["repo"]["has older updates"]
    assert mine["repo"] == theirs["repo"]


# -- what the official client thinks of our objects ----------------------------------------
@pytest.fixture(scope="module")
def inspected(written_by_ours: tuple[str, str], official: Official) -> dict[str, Any]:
    """What it says about every object."""
    found: dict[str, Any] = official.run("history.inspect", written_by_ours[0])
    return found


def test_every_object_is_inspected(
    inspected: dict[str, Any], written_by_ours: tuple[str, str]
) -> None:
    for kind in ("snapshots", "manifests", "transactions"):
        names = {path.name for path in Path(written_by_ours[0], kind).iterdir()}
        assert inspected[kind].keys() == names
        assert names


def test_headers_are_ours(inspected: dict[str, Any]) -> None:
    found = [inspected["repo"]]
    for kind in ("snapshots", "manifests", "transactions"):
        found += inspected[kind].values()
    for each in found:
        assert each["header"]["written_by"].startswith("ic-py-")
        assert each["header"]["spec_version"] == "2.0"


def test_inspected_manifests(inspected: dict[str, Any], written_by_ours: tuple[str, str]) -> None:
    compressed = 0
    for name, found in inspected["manifests"].items():
        path = Path(written_by_ours[0], "manifests", name)
        kinds = [
            kind
            for refs in decode_manifest(path.read_bytes(), name).arrays.values()
            for kind in refs.kind.tolist()
        ]
        assert found["total_chunk_refs"] == len(kinds)
        assert found["total_inline"] == kinds.count(RefKind.INLINE)
        assert found["total_native"] == kinds.count(RefKind.NATIVE)
        assert found["total_virtual"] == kinds.count(RefKind.VIRTUAL)
        compressed += found["total_virtual"] >= content.MANY
    assert compressed


def test_inspected_transaction_logs(
    inspected: dict[str, Any], written_by_ours: tuple[str, str]
) -> None:
    for name, found in inspected["transactions"].items():
        path = Path(written_by_ours[0], "transactions", name)
        log = decode_transaction_log(path.read_bytes(), name)
        for part in (
            "new_groups",
            "new_arrays",
            "deleted_groups",
            "deleted_arrays",
            "updated_groups",
            "updated_arrays",
            "moved_nodes",
            "updated_chunks",
        ):
            assert len(found[part]) == len(getattr(log, part)), part
