"""References into objects that chunks share, which lie: ranges beside each other, and outside."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from icechunk import LocalStorage, MemoryStorage, Repository, RepositoryConfig, Storage
from icechunk.errors import IcechunkError
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.manifest import decode_manifest, encode_manifest
from tests.endless import MIB

LATER = datetime.now(UTC) + timedelta(days=1)
Column = npt.NDArray[np.uint64]
MOST = (1 << 64) - 1
#: Offsets and lengths, of those that were right.
LIES: dict[str, Callable[[Column, Column], tuple[Any, Any]]] = {
    "behind": lambda offset, length: (offset + 1024, length),
    "around zero": lambda offset, length: (MOST - 7, length),
    "around the sign": lambda offset, length: ((1 << 63) - 8, length),
    "sum is zero": lambda offset, length: (1 << 63, 1 << 63),
    "sum is small": lambda offset, length: (MOST - 7, 16),
    "all": lambda offset, length: (MOST, MOST),
    "longer": lambda offset, length: (offset, 1 << 20),
    "huge": lambda offset, length: (offset, 1 << 62),
    "a little longer": lambda offset, length: (offset, length + 129),
    "nothing": lambda offset, length: (offset, 0),
}
#: Those that nobody can tell from right ones.
TRUE: dict[str, Callable[[Column, Column], tuple[Any, Any]]] = {
    "the same for all": lambda offset, length: (offset[0], length),
    "one over the other": lambda offset, length: (offset[0] + np.arange(4), length),
}


def made(storage: Storage, lie: Callable[[Column, Column], tuple[Any, Any]]) -> Repository:
    """Return a repository with two arrays of four chunks, in one object."""
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(storage, config)
    session = repository.writable_session("main", pack=True)
    group = zarr.create_group(session.store)
    for name in "ab":
        data = np.arange(64, dtype="u1") + ord(name)
        group.create_array(name, data=data, chunks=(16,), compressors=None)
    session.commit("arrays")
    names = [name for name in ChunkRefs.__mro__[1].__slots__ if name != "ndim"]  # type: ignore[attr-defined]
    for meta in list(storage.list("manifests/")):
        manifest = decode_manifest(storage.get(meta.key).data, meta.key)
        arrays = {}
        for id, refs in manifest.arrays.items():
            columns = {name: getattr(refs, name) for name in names}
            shape = np.zeros(len(refs), np.uint64)
            ranges = lie(refs.offset.copy(), refs.length.copy())
            for name, given in zip(("offset", "length"), ranges, strict=True):
                columns[name] = shape + np.asarray(given, np.uint64)
            arrays[id] = ChunkRefs(**columns)
        storage.put(meta.key, bytes(encode_manifest(manifest.id, arrays)))
    return Repository.open(storage, config)


@pytest.mark.parametrize(("lie", "size"), [("huge", 8 << 62), ("all", MOST), ("longer", 8 << 20)])
def test_no_sum_of_lengths_is_cut(lie: str, size: int) -> None:
    assert made(MemoryStorage(), LIES[lie]).chunk_storage_stats().native_bytes == size


def array(repository: Repository) -> Any:
    return zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")


def part(repository: Repository) -> bytes | None:
    store = repository.readonly_session("main").store
    prototype = zarr.core.buffer.default_buffer_prototype()
    wanted = zarr.abc.store.RangeByteRequest(2, 6)
    found = asyncio.run(store.get("a/c/0", prototype, wanted))
    return None if found is None else found.to_bytes()


OPERATIONS: dict[str, Callable[[Repository], Any]] = {
    "read": lambda repository: array(repository)[:],
    "a chunk": lambda repository: array(repository)[3],
    "a part": part,
    "repack": lambda repository: repository.repack("main"),
    "gc": lambda repository: repository.garbage_collect(LATER),
    "gc, incremental": lambda repository: repository.garbage_collect(LATER, incremental=True),
    "copy": lambda repository: repository.copy_to(MemoryStorage()),
    "rewrite": lambda repository: repository.rewrite_manifests("m", branch="main"),
    "stats": lambda repository: repository.chunk_storage_stats(),
}


@pytest.mark.parametrize("kind", ["memory", "folder"])
@pytest.mark.parametrize("lie", [*LIES, *TRUE])
def test_what_they_are_told(lie: str, kind: str, tmp_path: Any) -> None:
    inside = made(LocalStorage(tmp_path), {**LIES, **TRUE}[lie]) if kind == "folder" else None
    for operation, call in OPERATIONS.items():
        if inside is not None and operation not in ("read", "a chunk", "a part"):
            continue
        repository = inside or made(MemoryStorage(), {**LIES, **TRUE}[lie])
        tracemalloc.start()
        try:
            result = call(repository)
        except IcechunkError:
            assert lie in LIES
        else:
            assert lie in TRUE or operation not in ("read", "a chunk"), result
        finally:
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert most < 32 * MIB


@pytest.mark.parametrize("lie", [*LIES, *TRUE])
def test_what_verify_finds(lie: str) -> None:
    storage = MemoryStorage()
    found = json.dumps(made(storage, {**LIES, **TRUE}[lie]).verify().to_dict())
    assert (("of no bytes" if lie == "nothing" else "short") in found) == (lie in LIES)
    # what is there stays, when what is not is dropped
    if lie in LIES:
        Repository.repair(storage, branch="main", drop_unreadable=True, dry_run=False)
        assert array(Repository.open(storage))[:].shape == (64,)
