"""One writer of a crowd, on the API that both clients have: ``python crowd_writer.py OPTIONS``.

The options are one JSON object, see `main`. Prints one JSON object for each commit.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import icechunk


def open_repository(place: dict[str, Any]) -> Any:
    """Open the repository in a folder, or a bucket."""
    if "folder" in place:
        storage = icechunk.local_filesystem_storage(place["folder"])
    else:
        storage = icechunk.s3_storage(**place)
    return icechunk.Repository.open(storage)


def write(store: Any, names: list[str], index: int, value: int) -> None:
    """Write one small chunk of each of some arrays."""
    data = default_buffer_prototype().buffer.from_bytes(value.to_bytes(4, "little"))

    async def put() -> None:
        await asyncio.gather(*(store.set(f"{name}/c/{index}", data) for name in names))

    sync(put())


def main(options: dict[str, Any]) -> None:
    """Commit some times.

    The options are ``place``, ``names`` of arrays, ``first`` index of a chunk, ``commits``,
    and ``more``, which `Session.commit` gets.
    """
    repository = open_repository(options["place"])
    # imports are no part of it
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()
    for number in range(options["commits"]):
        index = options["first"] + number
        session = repository.writable_session("main")
        write(session.store, options["names"], index, index + 1)
        began = time.perf_counter()
        snapshot = session.commit(
            f"chunk {index}",
            rebase_with=icechunk.ConflictDetector(),
            rebase_tries=10_000,
            **options["more"],
        )
        taken = {"seconds": time.perf_counter() - began}
        done = getattr(session, "committed", None)
        if done is not None:
            taken |= {"attempts": done.attempts, "objects": done.objects}
        else:
            (entry, *_) = repository.ancestry(snapshot_id=snapshot)
            rebases = entry.metadata.get("__icechunk", {}).get("rebase_attempts", 0)
            taken["attempts"] = 1 + rebases
        print(json.dumps(taken), flush=True)


def create(options: dict[str, Any]) -> None:
    """Create the repository with arrays of so many chunks."""
    place = options["place"]
    storage = (
        icechunk.local_filesystem_storage(place["folder"])
        if "folder" in place
        else icechunk.s3_storage(**place)
    )
    repository = icechunk.Repository.create(storage)
    session = repository.writable_session("main")
    group = zarr.create_group(session.store)
    for name in options["names"]:
        group.create_array(
            name, shape=(options["chunks"],), chunks=(1,), dtype="<i4", compressors=None
        )
    session.commit("arrays")


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    (create if chosen.get("creates") else main)(chosen)
