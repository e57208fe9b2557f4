"""What must stay in a storage, found the plain way: one decoded file after the other.

It shares the decoders with the library, and nothing else: manifests are those that nodes
name, not those that a snapshot lists as files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import cache

from icechunk.errors import ObjectNotFoundError
from icechunk.format import layout, v1
from icechunk.format.ids import decode_id
from icechunk.format.manifest import decode_manifest
from icechunk.format.repo_info import RepoInfo, decode_repo_info
from icechunk.format.snapshot import decode_snapshot
from icechunk.storage.base import ObjectMeta, Storage

#: What is garbage collected.
FOLDERS = (layout.SNAPSHOTS, layout.TRANSACTIONS, layout.MANIFESTS, layout.CHUNKS)


def objects(storage: Storage) -> dict[str, ObjectMeta]:
    """Return everything that is stored."""
    return {meta.key: meta for meta in storage.list()}


def collectable(storage: Storage) -> dict[str, ObjectMeta]:
    """Return what garbage collection looks at."""
    return {meta.key: meta for folder in FOLDERS for meta in storage.list(folder)}


# decoded once for all copies of a storage: tests look at the same objects again and again
@cache
def _decoded_info(data: bytes) -> RepoInfo:
    return decode_repo_info(data, layout.REPO_KEY)


@cache
def _decoded_snapshot(data: bytes, key: str) -> tuple[bytes | None, frozenset[bytes]]:
    """Return the parent of a snapshot, and the manifests that its nodes name."""
    found = decode_snapshot(data, key)
    arrays = [node.array for node in found.nodes() if node.array is not None]
    return found.parent_id, frozenset(ref.id for each in arrays for ref in each.manifests)


@cache
def _decoded_manifest(data: bytes, key: str) -> frozenset[str]:
    """Return the keys of the chunks of a manifest."""
    arrays = decode_manifest(data, key).arrays.values()
    ids = [refs.row(row).chunk_id for refs in arrays for row in range(len(refs))]
    return frozenset(layout.chunk_key(id) for id in ids if id is not None)


def repo_info(storage: Storage) -> RepoInfo | None:
    """Return the stored repo info; None in spec version 1."""
    try:
        return _decoded_info(bytes(storage.get(layout.REPO_KEY).data))
    except ObjectNotFoundError:
        return None


def snapshot(storage: Storage, id: bytes) -> tuple[bytes | None, frozenset[bytes]]:
    """Return the parent of a stored snapshot, and its manifests."""
    key = layout.snapshot_key(id)
    return _decoded_snapshot(bytes(storage.get(key).data), key)


def ref_targets(storage: Storage) -> list[bytes]:
    """Return what all branches and tags point to."""
    info = repo_info(storage)
    if info is not None:
        return [*info.branches.values(), *info.tags.values()]
    keys = {meta.key for meta in storage.list(layout.REFS)}
    live = [k for k in keys if k.endswith("/ref.json") and k + ".deleted" not in keys]
    return [v1.parse_ref(storage.get(key).data, key) for key in live]


def history(storage: Storage, tip: bytes) -> Iterator[bytes]:
    """Yield a snapshot and its ancestors."""
    info = repo_info(storage)
    at: bytes | None = tip
    while at is not None:
        yield at
        at = info.snapshots[at].parent_id if info else snapshot(storage, at)[0]


def below(storage: Storage, snapshots: Iterable[bytes], *, lost: bool = False) -> set[str]:
    """Return the keys of snapshots, and of all that they refer to.

    With `lost`, their manifests may be gone: nobody published them.
    """
    keys: set[str] = set()
    manifests: set[bytes] = set()
    for id in snapshots:
        keys |= {layout.snapshot_key(id), layout.transaction_key(id)}
        manifests |= snapshot(storage, id)[1]
    stored = collectable(storage) if lost else {}
    for id in manifests:
        key = layout.manifest_key(id)
        if not lost or key in stored:
            keys |= {key} | _decoded_manifest(bytes(storage.get(key).data), key)
    return keys


def needed(storage: Storage) -> set[str]:
    """Return the keys of what branches and tags lead to, transaction logs included."""
    reached = {id for tip in ref_targets(storage) for id in history(storage, tip)}
    info = repo_info(storage)
    logs = {log for id in reached for log in info.snapshots[id].pruned} if info else set()
    return below(storage, reached) | {layout.transaction_key(id) for id in logs}


def protected(storage: Storage, cutoff: datetime, *, at_once: bool = False) -> set[str]:
    """Return what garbage collection leaves: what is needed, or young, or below the young.

    With `at_once`, collections ran beside writers. What a writer built on a version that
    expired meanwhile, and did not publish, may refer to what is gone.
    """
    stored = collectable(storage)
    young = {key for key, meta in stored.items() if meta.last_modified >= cutoff}
    ids = {decode_id(k.removeprefix(layout.SNAPSHOTS)) for k in young if k.startswith("snap")}
    keys = needed(storage) | young | below(storage, ids, lost=at_once)
    info = repo_info(storage)
    for id in ids & info.snapshots.keys() if info else ():
        # its transaction log is to be replayed with those of ancestors that are dropped
        logs = {log for each in history(storage, id) for log in info.snapshots[each].pruned}
        logs |= set(history(storage, id))
        keys |= {layout.transaction_key(log) for log in logs}
    return keys & stored.keys()
