"""Expiration: old snapshots leave the history of branches and tags.

Icechunk spec, "Expiration". In spec version 2 only the repo info changes. In version 1,
where snapshots define the history by naming their parents, the oldest remaining snapshot of a
ref is rewritten in place.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from icechunk.commit import publish_v1
from icechunk.commit.assets import Assets
from icechunk.commit.publish import RepoState
from icechunk.errors import PreconditionFailedError
from icechunk.format import layout
from icechunk.format.repo_info import RepoInfo, SnapshotEntry
from icechunk.format.snapshot import decode_snapshot, encode_snapshot
from icechunk.format.updates import UpdateEntry, UpdateKind

__all__ = ["expire", "expire_v1", "without_snapshots"]

_MAIN = "main"


def without_snapshots(
    info: RepoInfo, dropped: Collection[bytes], heirs: Collection[bytes]
) -> RepoInfo:
    """Return a state that does not list some snapshots.

    Snapshots whose parent is dropped become children of their nearest ancestor among `heirs`.
    They record what was between: a rebase still needs its transaction logs.
    """
    kept: dict[bytes, SnapshotEntry] = {}
    for id, entry in info.snapshots.items():
        if id not in dropped:
            kept[id] = _adopted(info, entry, heirs) if entry.parent_id in dropped else entry
    return replace(info, snapshots=kept)


def _adopted(info: RepoInfo, entry: SnapshotEntry, heirs: Collection[bytes]) -> SnapshotEntry:
    _, *ancestors = info.ancestry(entry.id)
    # the first snapshot of a history always stays as a parent
    *between, root = ancestors
    parent = root
    for place, ancestor in enumerate(between):
        if ancestor.id in heirs:
            parent, between = ancestor, between[:place]
            break
    logs = [log for ancestor in reversed(between) for log in (*ancestor.pruned, ancestor.id)]
    return replace(entry, parent_id=parent.id, pruned=(*logs, *entry.pruned))


def expire(
    info: RepoInfo, older_than: int, *, branches: bool, tags: bool
) -> tuple[RepoInfo, set[bytes]]:
    """Return the state after an expiration, and the snapshots that it no longer lists.

    Parameters
    ----------
    info : RepoInfo
        Of spec version 2.
    older_than : int
        Microseconds since the epoch.
    branches, tags : bool
        Whether to delete those that point to an expired snapshot; never ``main``.
    """
    expired = {
        id
        for id, entry in info.snapshots.items()
        if entry.flushed_at < older_than and entry.parent_id is not None
    }
    needed = {info.branches[_MAIN]} if _MAIN in info.branches else set()
    needed.update(() if branches else info.branches.values())
    needed.update(() if tags else info.tags.values())
    released = expired - needed
    # remaining ones continue from the root, even if an ancestor is kept for another ref
    changed = without_snapshots(info, released, ())
    lost = {name for name, target in info.tags.items() if tags and target in expired}
    return replace(
        changed,
        branches={
            name: target
            for name, target in info.branches.items()
            if name == _MAIN or not branches or target not in expired
        },
        tags={name: target for name, target in info.tags.items() if name not in lost},
        deleted_tags=tuple(sorted({*info.deleted_tags, *lost})),
    ), released


# -- spec version 1 --------------------------------------------------------------------------
def expire_v1(
    state: RepoState, assets: Assets, older_than: int, *, branches: bool, tags: bool
) -> set[bytes]:
    """Expire in a repository of spec version 1, ref by ref; return what is older.

    If interrupted, it leaves some refs unchanged, and can be run again.

    Parameters
    ----------
    state : RepoState
    assets : Assets
    older_than, branches, tags
        As for `expire`.
    """
    refs = publish_v1.read_all_refs(assets.storage)
    # cached snapshots may be outdated: others expire, too
    info = publish_v1.load_whole(assets.uncached(), refs)
    released: set[bytes] = set()
    edited: set[bytes] = set()
    lost: list[tuple[UpdateKind, str, bytes]] = []
    for kind, targets, doomed in (
        (UpdateKind.TAG_DELETED, refs.tags, tags),
        (UpdateKind.BRANCH_DELETED, refs.branches, branches),
    ):
        for name, target in sorted(targets.items()):
            history = list(info.ancestry(target))
            tip, root = history[0], history[-1]
            young = [entry for entry in history if entry.flushed_at >= older_than]
            oldest = young[-1] if young else tip
            if root.id not in (oldest.id, oldest.parent_id):
                if oldest.id not in edited:
                    _reparent(assets, oldest.id, root.id)
                edited.add(oldest.id)
                released.update(e.id for e in history[:-1] if e.flushed_at < older_than)
            if doomed and tip.flushed_at < older_than and name != _MAIN:
                lost.append((kind, name, target))
    for kind, name, target in lost:
        _delete_ref(state, kind, name, target)
    return released


def _reparent(assets: Assets, id: bytes, parent: bytes) -> None:
    key = layout.snapshot_key(id)
    stored = assets.storage.get(key)
    snapshot = decode_snapshot(stored.data, key)
    snapshot.parent_id = parent
    data = encode_snapshot(snapshot, level=assets.compression_level, spec_version=1)
    # the only object besides refs that is overwritten: on a condition, which also makes a
    # storage finish the write before it replaces the old object
    try:
        assets.storage.put(key, data, if_match=stored.etag)
    except PreconditionFailedError:
        # somebody else expires, too, or the response to a first attempt was lost
        if decode_snapshot(assets.storage.get(key).data, key).parent_id != parent:
            raise
    assets.forget_snapshot(id)


def _delete_ref(state: RepoState, kind: UpdateKind, name: str, target: bytes) -> None:
    """Delete a ref, unless it has moved."""

    def compute(info: RepoInfo) -> tuple[RepoInfo, UpdateEntry]:
        refs = info.tags if kind is UpdateKind.TAG_DELETED else info.branches
        if refs.get(name) != target:
            raise _MovedError
        return info, UpdateEntry(kind=kind, name=name, previous=target)

    with suppress(_MovedError):
        state.update(compute)


class _MovedError(Exception):
    """A ref is not where it was."""
