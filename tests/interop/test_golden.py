"""Repositories that official clients wrote, read by this project.

They lie in ``tests/data``, with the scripts that made them. What each holds was written
down by the official client, by the function `expectations` that reads it here again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

import icechunk
from icechunk.format.chunk_refs import RefKind
from icechunk.format.encoding import flexbuf
from icechunk.format.ids import encode_id
from icechunk.format.manifest import decode_manifest, encode_manifest
from icechunk.format.repo_info import RepoInfo, decode_repo_info, encode_repo_info
from icechunk.format.snapshot import decode_snapshot, encode_snapshot
from icechunk.format.transaction_log import decode_transaction_log, encode_transaction_log
from tests.data import golden_content as content

NAMES = ("v1", "migrated", "v2")
DATA = Path(content.__file__).parent


def expected(name: str) -> dict[str, Any]:
    """Return what the official client found."""
    loaded: dict[str, Any] = json.loads((DATA / name / "expected.json").read_text("utf-8"))
    return loaded


def open_golden(name: str) -> icechunk.Repository:
    """Open a golden repository; the virtual chunks of v2 are in the folder beside it."""
    storage = icechunk.local_filesystem_storage(str(DATA / name / "repository"))
    if name != "v2":
        return icechunk.Repository.open(storage)
    config = icechunk.RepositoryConfig()
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(
            content.source_prefix(DATA / name),
            icechunk.local_filesystem_store(str(DATA / name)),
            "source",
        )
    )
    return icechunk.Repository.open(storage, config, content.authorization(DATA / name))


def stored(name: str, folder: str) -> list[Path]:
    """Return the objects in a folder of a golden repository."""
    return sorted((DATA / name / "repository" / folder).glob("*"))


def repo_info(name: str) -> RepoInfo:
    """Return the decoded repo info of a golden repository."""
    return decode_repo_info((DATA / name / "repository" / "repo").read_bytes(), "repo")


def plain(value: Any) -> Any:
    """Return a value as JSON returns it."""
    return json.loads(json.dumps(value))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Of a golden repository."""
    result: str = request.param
    return result


# -- through the library -----------------------------------------------------------------
def test_what_the_official_client_found_is_found(name: str) -> None:
    wanted = expected(name)
    found = plain(content.expectations(open_golden(name)))
    # parts one by one: a difference is hard to find in the whole
    for ref in ("branches", "tags", "histories"):
        assert found[ref] == wanted[ref]
    assert found["snapshots"].keys() == wanted["snapshots"].keys()
    for snapshot, nodes in wanted["snapshots"].items():
        assert found["snapshots"][snapshot].keys() == nodes.keys()
        for path, node in nodes.items():
            assert found["snapshots"][snapshot][path] == node, (snapshot, path)
    assert found["diffs"] == wanted["diffs"]


def test_reading_leaves_no_trace(name: str) -> None:
    folder = DATA / name / "repository"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    repo = open_golden(name)
    content.snapshot_contents(repo.readonly_session("main"))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_spec_version(name: str) -> None:
    assert open_golden(name).spec_version == expected(name)["spec_version"]


@pytest.mark.parametrize("name", ["v1", "migrated"])
def test_config_of_older_repositories(name: str) -> None:
    assert open_golden(name).config == content.config()


def test_config() -> None:
    raw = repo_info("v2").config
    assert raw is not None
    loaded = icechunk.RepositoryConfig.from_dict(flexbuf.loads(raw, "config"))
    # the official client stores how it uses local storage
    assert loaded.storage is not None
    assert loaded.storage.unsafe_use_conditional_update is False
    assert replace(loaded, storage=None) == content.full_config(Path("/tmp/icechunk-golden"))


def test_deleted_tags(name: str) -> None:
    repo = open_golden(name)
    for tag in expected(name)["deleted_tags"]:
        assert tag not in repo.list_tags()
        with pytest.raises(icechunk.RefNotFoundError):
            repo.lookup_tag(tag)


def test_a_deleted_tag_is_not_used_again() -> None:
    assert repo_info("v2").deleted_tags == tuple(expected("v2")["deleted_tags"])
    assert repo_info("migrated").deleted_tags == tuple(expected("migrated")["deleted_tags"])


def test_virtual_references(name: str) -> None:
    session = open_golden(name).readonly_session("main")
    refs = session.chunk_refs("/virtual")
    wanted = [content.spec(i) for i in range(content.MANY)]
    assert refs.coords[:, 0].tolist() == list(range(content.MANY))
    rows = [refs.row(i) for i in range(content.MANY)]
    assert [row.location for row in rows] == [spec.location for spec in wanted]
    assert refs.offset.tolist() == [spec.offset for spec in wanted]
    assert refs.length.tolist() == [spec.length for spec in wanted]
    assert [row.etag for row in rows] == [spec.etag_checksum for spec in wanted]
    assert (refs.kind == RefKind.VIRTUAL).all()


def test_checksums_of_virtual_references(name: str) -> None:
    refs = open_golden(name).readonly_session("main").chunk_refs("/virtual_checked")
    by_etag, by_time, inline = (refs.row(refs.find(c)) for c in [(0, 0), (0, 1), (1, 1)])
    assert (by_etag.location, by_etag.etag, by_etag.offset, by_etag.last_modified) == (
        # 1.1.21 encodes what is no part of a URL
        "s3://golden-bucket/a b%20c.nc" if name == "v2" else "s3://golden-bucket/a%20b%20c.nc",
        '"0af7-1"',
        2**40,
        0,
    )
    modified = int(content.MODIFIED.timestamp())
    assert (by_time.location, by_time.etag, by_time.last_modified) == (
        f"s3://golden-bucket/{'ünïcode' if name == 'v2' else quote('ünïcode')}.nc",
        None,
        modified,
    )
    assert inline.kind == RefKind.INLINE
    assert inline.data == np.float32(5).tobytes()


@pytest.mark.parametrize(
    ("name", "path"), [("v1", "g/sub"), ("migrated", "g/sub"), ("v2", "moved_sub")]
)
def test_manifest_splitting(name: str, path: str) -> None:
    repo = open_golden(name)
    tree = repo.readonly_session("main").tree
    extents = {ref.extents for ref in tree.require_array("/split")[1].manifests}
    columns = [(0, 3), (3, 6), (6, 8)]
    assert extents == {((row, row + 2), column) for row in (0, 2, 4, 6) for column in columns}
    named = {ref.extents for ref in tree.require_array(f"/{path}/named")[1].manifests}
    assert named == {((1, 4),), ((4, 8),), ((8, 9),)}


# -- what only spec 2 has ----------------------------------------------------------------
def test_operations_log() -> None:
    found = [
        {
            "kind": type(update.kind).__name__,
            "updated_at": update.updated_at.isoformat(),
        }
        for update in open_golden("v2").ops_log()
    ]
    assert found == expected("v2")["updates"]


def test_repository_metadata_and_flags() -> None:
    repo = open_golden("v2")
    assert repo.get_metadata() == expected("v2")["metadata"]
    assert [flag.id for flag in repo.disabled_feature_flags()] == expected("v2")["disabled_flags"]
    assert repo.get_status().availability == icechunk.RepoAvailability.online


def test_expired_commits_are_known_by_their_logs() -> None:
    names = expected("v2")["snapshot_names"]
    entries = {encode_id(id): entry for id, entry in repo_info("v2").snapshots.items()}
    assert names["start"] not in entries
    assert [encode_id(id) for id in entries[names["first"]].pruned] == [names["start"]]


def test_detached_snapshots() -> None:
    import zarr

    names = expected("v2")["snapshot_names"]
    repo = open_golden("v2")
    session = repo.readonly_session(snapshot_id=names["flushed"])
    assert (
        zarr.open_group(session.store, mode="r")["scalar"][()] == expected("v2")["flushed_scalar"]
    )
    assert repo.lookup_snapshot(names["amended"]).message == "a commit to be amended"


def test_time_travel() -> None:
    repo = open_golden("v2")
    for entry in expected("v2")["histories"]["main"]:
        when = datetime.fromisoformat(entry["written_at"]).astimezone(UTC)
        assert repo.readonly_session("main", as_of=when).snapshot_id == entry["id"]


# -- object by object ----------------------------------------------------------------------
def test_snapshots_survive_a_round_trip(name: str) -> None:
    objects = stored(name, "snapshots")
    assert objects
    for path in objects:
        snapshot = decode_snapshot(path.read_bytes(), path.name)
        assert encode_id(snapshot.id) == path.name
        again = decode_snapshot(encode_snapshot(snapshot), path.name)
        assert list(again.nodes()) == list(snapshot.nodes())
        assert again.manifest_files == snapshot.manifest_files
        assert dict(again.metadata) == dict(snapshot.metadata)
        assert (again.message, again.flushed_at) == (snapshot.message, snapshot.flushed_at)


def test_manifests_survive_a_round_trip(name: str) -> None:
    objects = stored(name, "manifests")
    assert objects
    for path in objects:
        manifest = decode_manifest(path.read_bytes(), path.name)
        assert encode_id(manifest.id) == path.name
        again = decode_manifest(encode_manifest(manifest.id, manifest.arrays), path.name)
        assert again.arrays == manifest.arrays


def test_manifests_are_as_large_as_snapshots_say(name: str) -> None:
    for path in stored(name, "snapshots"):
        snapshot = decode_snapshot(path.read_bytes(), path.name)
        for file in snapshot.manifest_files.values():
            data = (path.parents[1] / "manifests" / encode_id(file.id)).read_bytes()
            refs = decode_manifest(data, "manifest").arrays.values()
            assert (len(data), sum(map(len, refs))) == (file.size_bytes, file.num_chunk_refs)


def test_transaction_logs_survive_a_round_trip(name: str) -> None:
    objects = stored(name, "transactions")
    assert objects
    for path in objects:
        log = decode_transaction_log(path.read_bytes(), path.name)
        assert encode_id(log.id) == path.name
        assert decode_transaction_log(encode_transaction_log(log), path.name) == log


@pytest.mark.parametrize("name", ["migrated", "v2"])
def test_repo_infos_survive_a_round_trip(name: str) -> None:
    backups = [path for path in stored(name, "overwritten") if path.name.startswith("repo.")]
    assert backups
    for path in [*backups, DATA / name / "repository" / "repo"]:
        info = decode_repo_info(path.read_bytes(), path.name)
        again = decode_repo_info(encode_repo_info(info), path.name)
        assert {id: plain_entry(e) for id, e in again.snapshots.items()} == {
            id: plain_entry(e) for id, e in info.snapshots.items()
        }
        assert dict(again.metadata) == dict(info.metadata)
        no_mappings: dict[str, Any] = {"snapshots": {}, "metadata": None}
        assert replace(again, **no_mappings) == replace(info, **no_mappings)


def plain_entry(entry: Any) -> tuple[Any, ...]:
    """Return an entry of the history with its metadata decoded."""
    return (
        entry.parent_id,
        entry.flushed_at,
        entry.message,
        dict(entry.metadata),
        entry.pruned,
    )
