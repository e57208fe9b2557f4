"""Files that decode well here, and in which official clients do not find everything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from icechunk import MemoryStorage, Repository
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.encoding.envelope import FileType, unwrap, wrap
from icechunk.format.invariants import broken_invariants
from icechunk.format.manifest import encode_manifest
from icechunk.format.nodes import Node
from icechunk.format.snapshot import Snapshot, encode_snapshot
from icechunk.format.transaction_log import TransactionLog, encode_transaction_log

GROUP = b'{"zarr_format":3,"node_type":"group"}'


def repo_info() -> bytes:
    storage = MemoryStorage()
    repo = Repository.create(storage)
    for name in ("aaaaaaaa", "bbbbbbbb"):
        repo.create_branch(name, repo.lookup_branch("main"))
    return bytes(storage.get("repo").data)


def snapshot() -> bytes:
    nodes = [
        Node(bytes([i]) * 8, path, GROUP, None)
        for i, path in enumerate(("/", "/aaaaaaaa", "/bbbbbbbb"))
    ]
    made = Snapshot.build(b"x" * 12, nodes, flushed_at=1, message="", manifest_files={})
    return bytes(encode_snapshot(made))


def log() -> bytes:
    return bytes(
        encode_transaction_log(TransactionLog(b"x" * 12, new_arrays=(b"aaaaaaaa", b"bbbbbbbb")))
    )


def manifest() -> bytes:
    refs = ChunkRefs.inline(np.array([[1], [2]]), [b"v", b"w"])
    return bytes(encode_manifest(b"x" * 12, {b"aaaaaaaa": refs, b"bbbbbbbb": refs}))


KINDS = [
    (FileType.REPO, repo_info, "branches"),
    (FileType.SNAPSHOT, snapshot, "nodes"),
    (FileType.TRANSACTION_LOG, log, "new arrays"),
    (FileType.MANIFEST, manifest, "arrays"),
]


@pytest.mark.parametrize(("file_type", "make", "what"), KINDS)
def test_order(file_type: FileType, make: Callable[[], bytes], what: str) -> None:
    data = make()
    assert list(broken_invariants(file_type, data, "name")) == []
    payload = bytes(unwrap(data, file_type, "name")[0])
    for other, problem in ((b"cccccccc", "not in order"), (b"bbbbbbbb", "occurs twice")):
        changed = wrap(payload.replace(b"aaaaaaaa", other), file_type)
        told = list(broken_invariants(file_type, changed, "name"))
        assert any(each.startswith(what) and problem in each for each in told), told


def test_references() -> None:
    whole = encode_manifest(
        b"x" * 12,
        {b"aaaaaaaa": ChunkRefs.virtual(np.array([[1], [2]]), ["s3://b/k", "s3://b/l"], 0, 77)},
    )
    payload = bytes(unwrap(whole, FileType.MANIFEST, "m")[0])
    assert payload.count((77).to_bytes(8, "little")) == 2

    def told(old: bytes, new: bytes) -> str:
        data = wrap(payload.replace(old, new), FileType.MANIFEST)
        return "; ".join(broken_invariants(FileType.MANIFEST, data, "m"))

    assert told(b"", b"") == ""
    assert "2 references of no bytes" in told((77).to_bytes(8, "little"), bytes(8))
    assert "1 locations that are not URLs, such as b'nowhere!'" in told(b"s3://b/k", b"nowhere!")
