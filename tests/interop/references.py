"""Repositories of imported references, read and extended by both sides."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from typing import Any

import numpy as np
import zarr

import icechunk


def values(session: Any) -> dict[str, Any]:
    """Return attributes, dimensions and a digest of the values of every array."""
    found: dict[str, Any] = {}
    for path, node in zarr.open_group(session.store, mode="r").members(max_depth=None):
        if not isinstance(node, zarr.Array):
            found[path] = {"attributes": sorted(map(str, node.attrs.items()))}
            continue
        data = np.asarray(node[...])
        raw = "\0".join(map(str, data.ravel())) if data.dtype.kind in "OT" else data.tobytes()
        found[path] = {
            "attributes": sorted(map(str, node.attrs.items())),
            "dimensions": list(node.metadata.dimension_names or ()),
            "dtype": str(data.dtype),
            "shape": list(data.shape),
            "fill": str(node.fill_value),
            "values": hashlib.sha256(raw.encode() if isinstance(raw, str) else raw).hexdigest(),
        }
    return found


def _open(folder: str, prefix: str) -> Any:
    return icechunk.Repository.open(
        icechunk.local_filesystem_storage(folder), authorize_virtual_chunk_access={prefix: None}
    )


def read(folder: str, prefix: str) -> dict[str, Any]:
    """Return what is in a repository with virtual chunks below a prefix."""
    return values(_open(folder, prefix).readonly_session("main"))


def extend(folder: str, prefix: str) -> None:
    """Make the first chunk of such a repository refer to the second file."""
    session = _open(folder, prefix).writable_session("main")
    location = f"{prefix}0001%20%25.bin"
    session.store.set_virtual_ref("a/c/0/0", location, offset=0, length=8)
    session.commit("extended")


def refer(folder: str, prefix: str, time: float) -> None:
    """Make a repository with a chunk in a file that was last modified at a time."""
    config = icechunk.RepositoryConfig.default()
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(prefix, icechunk.local_filesystem_store(prefix[7:]))
    )
    repo = icechunk.Repository.create(
        icechunk.local_filesystem_storage(folder),
        config=config,
        authorize_virtual_chunk_access={prefix: None},
    )
    session = repo.writable_session("main")
    zarr.create_array(
        session.store, name="a", shape=(8,), chunks=(8,), dtype="u1", compressors=None
    )
    session.store.set_virtual_ref(
        "a/c/0",
        f"{prefix}a.bin",
        offset=0,
        length=8,
        checksum=datetime.fromtimestamp(time, UTC),
    )
    session.commit("one chunk elsewhere")


def is_read(folder: str, prefix: str, times: list[float]) -> list[bool]:
    """Say whether the chunk is read when its file was modified at each of some times."""
    found = []
    for time in times:
        os.utime(f"{prefix[7:]}a.bin", (time, time))
        try:
            values(_open(folder, prefix).readonly_session("main"))
            found.append(True)
        except icechunk.IcechunkError:
            found.append(False)
    return found
