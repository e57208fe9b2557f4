"""Snapshots and their history, under the name that the official client has for them."""

from icechunk.commit.diff import Diff
from icechunk.commit.snapshot_info import ManifestFileInfo, SnapshotInfo, SnapshotMetadata
from icechunk.repository.ancestry_graph import (
    AncestryGraph,
)

__all__ = [
    "AncestryGraph",
    "Diff",
    "ManifestFileInfo",
    "SnapshotInfo",
    "SnapshotMetadata",
]
