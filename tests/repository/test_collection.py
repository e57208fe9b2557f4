"""What a collection reads, tells, and survives: clocks that differ, a disk without room."""

from __future__ import annotations

import errno
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from icechunk import FormatError, MemoryStorage, Repository, StorageError
from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.encoding.envelope import Scratch
from icechunk.format.ids import new_object_id
from icechunk.format.manifest import decode_chunk_ids, decode_manifest, encode_manifest
from icechunk.repository.reachable import native_ids
from icechunk.storage import WrapperStorage
from icechunk.storage.base import GetResult, Storage
from tests import histories
from tests.reachability import collectable, needed

HOUR = timedelta(hours=1)


def now() -> datetime:
    return datetime.now(UTC)


def littered(storage: Storage, spec_version: int = 2) -> tuple[Repository, str]:
    """Return a repository with a dropped version, and the key of a chunk nobody needs."""
    repo = histories.create(storage, spec_version)
    base = repo.lookup_branch("main")
    histories.commit(repo, {0: b"a native chunk"})
    repo.reset_branch("main", base)
    histories.commit(repo, {1: b"another chunk"})
    key = layout.chunk_key(new_object_id())
    storage.put(key, b"of nobody")
    return repo, key


# -- what is read ------------------------------------------------------------------------------
@settings(max_examples=20)
@given(native=st.sets(st.integers(0, 30)), inline=st.sets(st.integers(0, 30)))
def test_ids_of_chunks_are_those_of_the_whole_manifest(native: set[int], inline: set[int]) -> None:
    ids = np.frombuffer(b"".join(new_object_id() for _ in native), np.uint8).reshape(-1, 12)
    coords = np.array(sorted(native), np.uint32).reshape(-1, 1)
    refs = ChunkRefs.native(coords, ids, 5)
    small = ChunkRefs.inline(np.array(sorted(inline), np.uint32)[:, None], [b"x"] * len(inline))
    virtual = ChunkRefs.virtual(np.array([[40]]), ["s3://b/k"], 0, 1)
    arrays = {b"12345678": refs.overlay(small).overlay(virtual), b"87654321": refs.overlay(virtual)}
    data = encode_manifest(b"x" * 12, arrays)
    scratch = Scratch(1)
    found, some = decode_chunk_ids(data, "m", scratch)
    whole = [native_ids(refs) for refs in decode_manifest(data, "m").arrays.values()]
    assert found == b"x" * 12
    assert np.array_equal(some, np.concatenate(whole))
    with pytest.raises(FormatError):
        decode_chunk_ids(data[:-2], "m", scratch)


# -- what is told ------------------------------------------------------------------------------
def test_what_stays_and_why() -> None:
    storage = MemoryStorage()
    repo, _ = littered(storage)
    storage.put("chunks/not-an-id", b"")
    seen: list[tuple[str, int, int]] = []
    summary = repo.garbage_collect(
        now() - HOUR, dry_run=True, progress=lambda *told: seen.append(told)
    )
    assert summary.chunks_deleted == 0
    assert summary.kept["chunks"] == {"needed": 2, "young": 1, "foreign": 1}
    assert {what for what, _, _ in seen} == {
        "manifests",
        "chunks",
        "snapshots",
        "transaction_logs",
    }
    summary = repo.garbage_collect(now() + HOUR, dry_run=True)
    assert summary.kept["chunks"] == {"needed": 1, "young": 0, "foreign": 1}
    assert summary.chunks_deleted == 2
    assert "kept" not in repr(summary)


def test_what_an_expiration_would_free() -> None:
    storage = MemoryStorage()
    repo = histories.create(storage)
    for i in range(3):
        repo.create_tag(f"t{i}", histories.commit(repo, {0: b"version %d" % i}))
    cutoff = repo.lookup_snapshot(repo.lookup_branch("main")).written_at
    before = collectable(storage)
    kept = repo.preview_expiration(cutoff)
    assert (kept.tags, kept.chunks_freed, kept.manifests_freed) == ((), 0, 0)
    told = repo.preview_expiration(cutoff, delete_expired_tags=True)
    assert collectable(storage) == before
    assert told.tags == ("t0", "t1")
    assert told.snapshots == repo.expire_snapshots(cutoff, delete_expired_tags=True)
    summary = repo.garbage_collect(now() + HOUR)
    assert (told.bytes_freed, told.chunks_freed, told.manifests_freed) == (
        summary.bytes_deleted,
        summary.chunks_deleted,
        summary.manifests_deleted,
    )
    assert told.chunks_freed == 2


# -- clocks that differ --------------------------------------------------------------------------
class Clock(WrapperStorage):
    """A storage whose clock is behind, or ahead."""

    def __init__(self, inner: Storage, offset: timedelta) -> None:
        super().__init__(inner)
        self.offset = offset

    def get(self, key: str, **how: Any) -> GetResult:
        found = super().get(key, **how)
        assert found.last_modified is not None
        return replace(found, last_modified=found.last_modified + self.offset)

    def list(self, prefix: str = "") -> Any:
        for meta in super().list(prefix):
            yield replace(meta, last_modified=meta.last_modified + self.offset)


@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("hours", [-5, 0, 5])
def test_age_is_that_of_the_storage(spec_version: int, hours: int) -> None:
    """What was written just now stays, whatever our clock says of the time given."""
    storage = MemoryStorage()
    _, litter = littered(storage, spec_version)
    repo = Repository.open(Clock(storage, hours * HOUR))
    summary = repo.garbage_collect(now() - HOUR)
    assert litter in collectable(storage)
    assert summary.chunks_deleted == 0
    if hours < 0:
        (why,) = summary.reasons
        assert "ahead of the storage" in why
        assert summary.since is not None and summary.since < now() - 5 * HOUR
    else:
        assert summary.reasons == []
    assert not [m.key for m in storage.list("overwritten/") if "clock" in m.key]


# -- a disk without room ---------------------------------------------------------------------------
class Full(WrapperStorage):
    """A disk that takes writes once something was deleted."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.is_full = True

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        if operation == "delete" and any(key.startswith("chunks/") for key in keys):
            self.is_full = False
        if operation in ("put", "copy") and self.is_full:
            full = OSError(errno.ENOSPC, "No space left on device")
            raise StorageError(f"cannot write {keys[0]}") from full

    def with_settings(self, settings: Any) -> Storage:
        return self


def test_a_full_disk(no_pauses: None) -> None:
    storage = MemoryStorage()
    littered(storage)
    expected = needed(storage)
    chunks = len([*storage.list("chunks/")])
    repo = Repository.open(Full(storage))
    summary = repo.garbage_collect(now() + HOUR)
    # those of both rounds count: the chunk of the version that is listed still goes in the second
    assert summary.chunks_deleted == chunks - len([*storage.list("chunks/")])
    assert set(collectable(storage)) == expected
    assert repo.verify().damages == ()
