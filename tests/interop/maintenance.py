"""Random histories, and what becomes of them when snapshots expire and garbage is collected."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync

import icechunk
from tests.interop.base import create, storage_at
from tests.interop.behaviours.table import buffer

#: What to do, and with which branch or tag, and number.
Step = list[Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VIRTUAL = "s3://bucket/file-"


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _open(folder: str) -> Any:
    return icechunk.Repository.open(storage_at(folder))


# -- making histories ------------------------------------------------------------------------
def build(folder: str, spec_version: int, steps: list[Step]) -> None:
    """Create a repository and do what is possible of some steps."""
    config = icechunk.RepositoryConfig(inline_chunk_threshold_bytes=8)
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer("s3://bucket/", icechunk.s3_store(region="us-east-1"))
    )
    repo = icechunk.Repository.create(storage_at(folder), config, spec_version=spec_version)
    session = repo.writable_session("main")
    root = zarr.create_group(session.store)
    for name in ("inline", "native", "virtual"):
        create(root, name, (12,), (4,) if name == "native" else (2,))
    root["native"][:] = 1
    builder = _Builder(repo, [repo.lookup_branch("main"), session.commit("first")])
    for name, *arguments in steps:
        # there are no arrays in the very first snapshot
        with suppress(icechunk.IcechunkError, FileNotFoundError):
            getattr(builder, name)(*arguments)


class _Builder:
    """Does steps; snapshots are known by their numbers.

    Parameters
    ----------
    repo : icechunk.Repository
    snapshots : list of str
    """

    def __init__(self, repo: Any, snapshots: list[str]) -> None:
        self._repo = repo
        self._snapshots = snapshots

    def _snapshot(self, number: int) -> str:
        return self._snapshots[number % len(self._snapshots)]

    def _edited(self, branch: str, number: int) -> Any:
        session = self._repo.writable_session(branch)
        root = zarr.open_group(session.store, mode="r+")
        start = number % 3
        root["native" if number % 2 else "inline"][4 * start : 4 * start + 4] = number
        if number % 5 == 0:
            spec = icechunk.VirtualChunkSpec([start], f"{_VIRTUAL}{start}", 2 * (number % 4), 8)
            session.store.set_virtual_refs("/virtual", [spec])
        return session

    def commit(self, branch: str, number: int, how: str) -> None:
        """End a session by `commit`, `amend` or `flush`."""
        message = f"{how} {len(self._snapshots)}"
        self._snapshots.append(getattr(self._edited(branch, number), how)(message))

    def clash(self, branch: str, number: int) -> None:
        """Leave behind what a commit wrote that was too late, and what forks wrote."""
        late = self._edited(branch, number)
        late.fork()
        self.commit(branch, number, "commit")
        late.commit("too late")

    def set_branch(self, branch: str, number: int) -> None:
        """Create a branch, or move it."""
        target = self._snapshot(number)
        if branch in self._repo.list_branches():
            self._repo.reset_branch(branch, target)
        else:
            self._repo.create_branch(branch, target)

    def delete_branch(self, branch: str) -> None:
        """Delete a branch."""
        self._repo.delete_branch(branch)

    def set_tag(self, tag: str, number: int) -> None:
        """Create a tag."""
        self._repo.create_tag(tag, self._snapshot(number))

    def delete_tag(self, tag: str) -> None:
        """Delete a tag."""
        self._repo.delete_tag(tag)

    def expire(self, number: int) -> None:
        """Expire what is older than some snapshot."""
        self._repo.expire_snapshots(self._repo.lookup_snapshot(self._snapshot(number)).written_at)


# -- maintenance -----------------------------------------------------------------------------
def expire(folder: str, older_than: int, branches: bool, tags: bool) -> list[str]:
    """Expire what is older than a time in microseconds; return the ids."""
    released = _open(folder).expire_snapshots(
        _time(older_than), delete_expired_branches=branches, delete_expired_tags=tags
    )
    return sorted(released)


def collect(folder: str, older_than: int, dry_run: bool) -> dict[str, int]:
    """Collect garbage that is older than a time in microseconds; return what is said of it."""
    summary = _open(folder).garbage_collect(_time(older_than), dry_run=dry_run)
    names = ("bytes", "chunks", "manifests", "snapshots", "attributes", "transaction_logs")
    return {name: getattr(summary, f"{name}_deleted") for name in names}


def sizes(folder: str) -> list[int]:
    """Return the bytes that native, virtual and inline chunks take, and the first once more."""
    repo = _open(folder)
    stats = repo.chunk_storage_stats()
    return [
        stats.native_bytes,
        stats.virtual_bytes,
        stats.inlined_bytes,
        repo.total_chunks_storage(),
    ]


# -- what is left ----------------------------------------------------------------------------
def look(folder: str) -> dict[str, Any]:
    """Return history and values of all branches and tags; nothing may be missing."""
    repo = _open(folder)
    versions: list[dict[str, str]] = [
        *({"branch": name} for name in sorted(repo.list_branches())),
        *({"tag": name} for name in sorted(repo.list_tags())),
    ]
    return {str(version): _history(repo, version) for version in versions}


def _history(repo: Any, version: dict[str, str]) -> list[Any]:
    return [
        [entry.id, entry.parent_id, entry.message, _values(repo, entry.id)]
        for entry in repo.ancestry(**version)
    ]


def _values(repo: Any, snapshot: str) -> list[Any]:
    session = repo.readonly_session(snapshot_id=snapshot)
    try:
        root = zarr.open_group(session.store, mode="r")
    except FileNotFoundError:
        return []
    arrays = [np.asarray(root[name][...]).tolist() for name in ("inline", "native")]  # type: ignore[union-attr,index]
    return [*arrays, sorted(session.all_virtual_chunk_locations())]


def go_on(folder: str) -> int:
    """Commit to all branches, rebase over that and over what is gone; return the time."""
    repo = _open(folder)
    for branch in sorted(repo.list_branches()):
        history = [entry.id for entry in repo.ancestry(branch=branch)]
        if len(history) == 1:
            continue  # there is nothing in the first snapshot
        session = repo.writable_session(branch)
        zarr.open_group(session.store, mode="r+")["native"][:4] = 99  # type: ignore[index]
        session.commit("goes on")
        repo.create_branch("late", history[-1])
        late = repo.writable_session("late")
        # not through zarr, which would create the root group, too
        metadata = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
        sync(late.store.set("late/zarr.json", buffer(metadata)))
        repo.reset_branch("late", repo.lookup_branch(branch))
        late.rebase(icechunk.ConflictDetector())
        late.commit("rebased")
        repo.delete_branch("late")
    return written_at(folder)[-1]


def written_at(folder: str) -> list[int]:
    """Return when each snapshot in the folder was written, in microseconds, in order."""
    repo = _open(folder)
    ids = [path.name for path in Path(folder, "snapshots").iterdir()]
    times = []
    for id in ids:
        with suppress(icechunk.IcechunkError):
            times.append(repo.lookup_snapshot(id).written_at)
    return sorted((time - _EPOCH) // timedelta(microseconds=1) for time in times)


def commit_and_collect(folder: str, name: str) -> None:
    """Commit, expire everything that can be, and collect all garbage, whatever its age."""
    repo = _open(folder)
    session = repo.writable_session("main")
    zarr.open_array(session.store, path=name, mode="r+")[0] = 7
    session.commit("go on")
    later = datetime.now(UTC) + timedelta(hours=1)
    repo.expire_snapshots(later)
    repo.garbage_collect(later)
