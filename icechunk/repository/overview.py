"""A repository as notebooks display it: its branches, tags and newest commits."""

from __future__ import annotations

from itertools import islice

from icechunk.base.html import Html, card, fields, note, section, table
from icechunk.base.texts import counted
from icechunk.commit.assets import Assets
from icechunk.commit.publish import RepoState
from icechunk.commit.snapshot_info import SnapshotInfo, from_microseconds
from icechunk.errors import IcechunkError
from icechunk.format.ids import encode_id
from icechunk.format.repo_info import RepoInfo

__all__ = ["overview"]

#: The number of newest commits shown.
_COMMITS = 10


def overview(url: str, state: RepoState, assets: Assets) -> Html:
    """Return a card. It requests only the repo info and the newest snapshot of main."""
    try:
        info = state.load()
        told = {"spec": info.spec_version, "commits": _count(info), "main": _size(info, assets)}
        parts = [
            fields(told),
            section(f"Branches: {len(info.branches):,}", _refs(info, "branch"), is_open=True),
            section(f"Tags: {len(info.tags):,}", _refs(info, "tag")),
            section("Newest commits of main", _commits(info)),
        ]
    except IcechunkError as error:
        parts = [note(error)]
    return card("Repository", url, *parts)


def _count(info: RepoInfo) -> str | None:
    # spec 1 finds commits one by one
    return f"{len(info.snapshots):,}" if info.spec_version > 1 else None


def _size(info: RepoInfo, assets: Assets) -> str | None:
    tip = info.branches.get("main")
    if tip is None:
        return None
    try:
        snapshot = assets.snapshot(tip)
    except IcechunkError as error:
        return str(error)
    files = snapshot.manifest_files.values()
    chunks = sum(file.num_chunk_refs for file in files)
    nodes = sum(1 for _ in snapshot.nodes())
    return (
        f"{counted(nodes, 'group or array', 'groups and arrays')}, {counted(chunks, 'chunk')} in "
        f"{counted(len(files), 'manifest')}"
    )


def _refs(info: RepoInfo, kind: str) -> Html:
    refs = sorted((info.branches if kind == "branch" else info.tags).items())
    if info.spec_version == 1:
        return table((kind, "snapshot"), [(name, encode_id(id)) for name, id in refs])
    rows = []
    for name, id in refs:
        entry = info.snapshots[id]
        rows.append((name, encode_id(id), from_microseconds(entry.flushed_at), entry.message))
    return table((kind, "snapshot", "written (UTC)", "message"), rows)


def _commits(info: RepoInfo) -> Html:
    if info.spec_version == 1:
        return Html("")
    newest = islice(info.ancestry(info.branches["main"]), _COMMITS)
    found = [SnapshotInfo.from_entry(entry) for entry in newest]
    return table(
        ("snapshot", "written (UTC)", "message"),
        [(each.id, each.written_at, each.message) for each in found],
    )
