"""Damage that leaves every object readable: what nobody but its neighbours can tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import MemoryStorage, RepoAvailability, Repository, RepositoryConfig, RepoStatus
from icechunk.errors import FormatError
from icechunk.format import layout
from icechunk.format.encoding import flexbuf
from icechunk.format.ids import decode_id
from icechunk.format.metadata import Metadata
from icechunk.format.nodes import ManifestRef
from icechunk.format.repo_info import RepoInfo, decode_repo_info, encode_repo_info
from icechunk.format.snapshot import decode_snapshot, encode_snapshot
from icechunk.format.transaction_log import (
    Move,
    TransactionLog,
    decode_transaction_log,
    encode_transaction_log,
)


def _first(info: RepoInfo, **changes: Any) -> dict[str, Any]:
    """Change one entry: that of the oldest commit, which all states but the first have."""
    id = min(info.snapshots, key=lambda id: info.snapshots[id].flushed_at)
    return {"snapshots": {**dict(info.snapshots), id: replace(info.snapshots[id], **changes)}}


def _older_entry(info: RepoInfo, **changes: Any) -> dict[str, Any]:
    updates = list(info.updates)
    updates[-1] = replace(updates[-1], **changes)
    return {"updates": tuple(updates)}


#: What is wrong in a state that can be read, and that no other check sees.
WRONG: dict[str, Callable[[RepoInfo], dict[str, Any]]] = {
    "message": lambda info: _first(info, message="another"),
    "time": lambda info: _first(info, flushed_at=1),
    "metadata of a snapshot": lambda info: _first(info, metadata=Metadata({"a": 1})),
    "branch": lambda info: {"branches": {**dict(info.branches), "main2": info.branches["main"]}},
    "tag": lambda info: {"tags": {**dict(info.tags), "u": info.branches["main"]}},
    "deleted tag": lambda info: {"deleted_tags": (*info.deleted_tags, "v")},
    "status": lambda info: {"status": replace(info.status, availability=1, reason="so")},
    "metadata": lambda info: {"metadata": Metadata({"b": 2})},
    "config": lambda info: {"config": flexbuf.dumps({"inline_chunk_threshold_bytez": 1})},
    "flags": lambda info: {"disabled_flags": (1,)},
    "time of an old update": lambda info: _older_entry(info, updated_at=7),
}


def history() -> MemoryStorage:
    """Make a repository that has seen every kind of update."""
    storage = MemoryStorage()
    repo = Repository.create(storage, RepositoryConfig(inline_chunk_threshold_bytes=3))
    with repo.transaction("main", message="arrays") as store:
        for name in "ab":
            zarr.create_array(store, name=name, shape=(6,), chunks=(1,), dtype="i4")[1:4] = 1
    tip = repo.lookup_branch("main")
    repo.create_tag("t", tip)
    repo.create_branch("dev", tip)
    with repo.transaction("dev", message="one") as store:
        zarr.open_array(store, path="a")[2] = 5
    session = repo.writable_session("dev")
    zarr.open_array(session.store, path="b")[:] = 5
    session.amend("two")
    repo.delete_branch("dev")
    repo.delete_tag("t")
    repo.set_metadata({"x": 1})
    repo.save_config()
    repo.set_status(RepoStatus(RepoAvailability.read_only, None, "so"))
    repo.set_status(RepoStatus(RepoAvailability.online))
    repo.expire_snapshots(repo.lookup_snapshot(tip).written_at)
    for value in (6, 7, 8):
        with repo.transaction("main", message="last") as store:
            zarr.open_array(store, path="a")[3] = value
    return storage


@pytest.mark.parametrize("at", [0, 2, -2])
def test_a_state_that_differs_from_both_neighbours(at: int) -> None:
    storage = history()
    assert Repository.open(storage).verify(deep=True).damages == ()
    info = decode_repo_info(storage.get("repo").data, "repo")
    names = [layout.backup_key(each.backup) for each in info.updates if each.backup]
    key = ["repo", *names][at]
    data = bytes(storage.get(key).data)
    state = decode_repo_info(data, key)
    for what, wrong in WRONG.items():
        if what.startswith("time of") and len(state.updates) == 1:
            continue
        storage.put(key, encode_repo_info(replace(state, **wrong(state))))
        found = Repository.open(storage).verify(deep=True).damages
        assert found, what
        if at == 0 and what in ("message", "time", "metadata of a snapshot"):
            # the first snapshot itself says so, too
            found = tuple(each for each in found if each.key == "repo")
        assert {each.key for each in found} == {key}, what
    storage.put(key, data)
    assert Repository.open(storage).verify(deep=True).damages == ()


@pytest.mark.parametrize("at", [0, 2])
def test_metadata_that_are_decoded_late(at: int) -> None:
    storage = history()
    info = decode_repo_info(storage.get("repo").data, "repo")
    names = [layout.backup_key(each.backup) for each in info.updates if each.backup]
    key = ["repo", *names][at]
    state = decode_repo_info(storage.get(key).data, key)
    bad = Metadata.stored({"a": b"no flexbuffer at all"}, 2, key)
    storage.put(key, encode_repo_info(replace(state, metadata=bad)))
    found = Repository.open(storage).verify(deep=True).damages
    assert {(each.problem, each.key) for each in found} == {("unreadable", key)}


#: What a log tells that its version cannot have.
NODE = b"12345678"
SURPLUS: dict[str, Callable[[TransactionLog, bytes], dict[str, Any]]] = {
    "that the version does not have": lambda log, id: {"new_groups": (NODE,)},
    "a node .* that the version does not have": lambda log, id: {"updated_arrays": (NODE,)},
    "which the version has": lambda log, id: {"deleted_arrays": (id,)},
    "outside of the array": lambda log, id: {
        "updated_chunks": {id: (np.array([[3], [70]], np.uint32),)}
    },
    "chunks of /a outside": lambda log, id: {
        "updated_chunks": {id: (np.array([[0, 3]], np.uint32),)}
    },
    "of a node": lambda log, id: {"moved_nodes": (Move("/x", "/y", NODE, True),)},
}


@pytest.mark.parametrize("words", SURPLUS)
def test_a_log_that_tells_what_cannot_be(words: str) -> None:
    storage = history()
    repo = Repository.open(storage)
    id = decode_id(repo.lookup_branch("main"))
    node = repo.readonly_session("main").tree.require("/a").id
    key = layout.transaction_key(id)
    log = decode_transaction_log(storage.get(key).data, key)
    wrong = replace(log, **SURPLUS[words](log, node))
    storage.put(key, encode_transaction_log(wrong))
    with pytest.raises(FormatError, match=words) as raised:
        repo.verify().raise_if_damaged()
    assert key in str(raised.value)


def test_extents_larger_than_their_references() -> None:
    storage = history()
    repo = Repository.open(storage)
    key = layout.snapshot_key(decode_id(repo.lookup_branch("main")))
    snapshot = decode_snapshot(storage.get(key).data, key)
    nodes = list(snapshot.nodes())
    for at, node in enumerate(nodes):
        if node.path == "/b" and node.array is not None:
            ((ref),) = node.array.manifests
            larger = (ManifestRef(ref.id, ((0, 4),)),)
            nodes[at] = replace(node, array=replace(node.array, manifests=larger))
    wrong = type(snapshot).build(
        snapshot.id,
        nodes,
        flushed_at=snapshot.flushed_at,
        message=snapshot.message,
        manifest_files=dict(snapshot.manifest_files),
    )
    storage.put(key, encode_snapshot(wrong))
    (one,) = repo.verify().damages
    assert (one.array, one.told) == (
        "/b",
        "its references of /b do not fill the extents that versions say",
    )
