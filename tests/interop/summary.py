"""What a repository says, object by object, without what is different every time.

Ids are replaced by paths and messages, times by their order, so that two repositories in
which the same was done have equal summaries.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRef, ChunkRefs, RefKind
from icechunk.format.encoding import flexbuf
from icechunk.format.manifest import decode_manifest
from icechunk.format.repo_info import RepoInfo, decode_repo_info
from icechunk.format.snapshot import Node, Snapshot, decode_snapshot
from icechunk.format.transaction_log import TransactionLog, decode_transaction_log


class Summary:
    """Reads the objects in the folder of a repository.

    Parameters
    ----------
    folder : Path
    """

    # no manifest changes, and many repositories are copies of one
    _manifests: ClassVar[dict[bytes, dict[bytes, dict[str, Any]]]] = {}

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.info: RepoInfo = decode_repo_info(self._object(layout.REPO_KEY), "repo")
        self._snapshots = {id: self._snapshot(id) for id in self.info.snapshots}

    def _object(self, key: str) -> bytes:
        return (self._folder / key).read_bytes()

    def _snapshot(self, id: bytes) -> Snapshot:
        key = layout.snapshot_key(id)
        return decode_snapshot(self._object(key), key)

    def _by_age(self) -> list[Snapshot]:
        return sorted(self._snapshots.values(), key=lambda snapshot: snapshot.flushed_at)

    def _name(self, id: bytes | None) -> str | None:
        """Return the message of a snapshot, which is different for each of them."""
        if id is None:
            return None
        # expired snapshots have a file until garbage is collected
        if id in self._snapshots or (self._folder / layout.snapshot_key(id)).exists():
            return (self._snapshots.get(id) or self._snapshot(id)).message
        return "gone"

    def everything(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "repo": self.repo(),
            "snapshots": {s.message: self.snapshot(s) for s in self._by_age()},
            "logs": {s.message: self.log(s) for s in self._by_age()},
        }

    # -- the repo info -------------------------------------------------------------------
    def repo(self) -> dict[str, Any]:
        """Return what the repo info says."""
        info = self.info
        return {
            "branches": {name: self._name(id) for name, id in info.branches.items()},
            "tags": {name: self._name(id) for name, id in info.tags.items()},
            "deleted_tags": info.deleted_tags,
            "history": {
                snapshot.message: {
                    "parent": self._name(info.snapshots[snapshot.id].parent_id),
                    "pruned": [self._name(id) for id in info.snapshots[snapshot.id].pruned],
                    "message": info.snapshots[snapshot.id].message,
                    "metadata": dict(info.snapshots[snapshot.id].metadata),
                    "same time": info.snapshots[snapshot.id].flushed_at == snapshot.flushed_at,
                }
                for snapshot in self._by_age()
            },
            "status": (info.status.availability, info.status.reason),
            "metadata": dict(info.metadata),
            "updates": [
                {
                    "kind": update.kind.name,
                    "name": update.name,
                    "snapshot": self._name(update.snapshot),
                    "previous": self._name(update.previous),
                    "flag": (update.flag_id, update.flag_value, update.flag_is_set),
                    "status": (
                        (update.status.availability, update.status.reason)
                        if update.status
                        else None
                    ),
                    "has backup": update.backup is not None,
                }
                for update in info.updates
            ],
            "has older updates": info.repo_before_updates is not None,
            "flags": (info.enabled_flags, info.disabled_flags),
            "config": self._config(),
        }

    def _config(self) -> Any:
        if self.info.config is None:
            return None
        config = flexbuf.loads(self.info.config, "config")
        # the official client stores how it uses local storage
        return {key: value for key, value in config.items() if key != "storage"}

    # -- snapshots -----------------------------------------------------------------------
    def snapshot(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return what a snapshot says, and the manifests that it refers to."""
        files = snapshot.manifest_files.values()
        return {
            "metadata": dict(snapshot.metadata),
            "parent": snapshot.parent_id,
            "manifest files": sorted(file.num_chunk_refs for file in files),
            "nodes": {node.path: self.node(node) for node in snapshot.nodes()},
        }

    def node(self, node: Node) -> dict[str, Any]:
        """Return what a snapshot says about a node, and its references."""
        found: dict[str, Any] = {"zarr.json": json.loads(node.user_data)}
        if node.array is not None:
            found |= {
                "shape": node.array.shape,
                "num_chunks": node.array.num_chunks,
                "dimension_names": node.array.dimension_names,
                "manifests": {
                    str(ref.extents): self.manifest(ref.id)[node.id] for ref in node.array.manifests
                },
            }
        return found

    def manifest(self, id: bytes) -> dict[bytes, dict[str, Any]]:
        """Return the references in a manifest, by node."""
        if id not in self._manifests:
            key = layout.manifest_key(id)
            arrays = decode_manifest(self._object(key), key).arrays
            self._manifests[id] = {node: self.refs(refs) for node, refs in arrays.items()}
        return self._manifests[id]

    def refs(self, refs: ChunkRefs) -> dict[str, Any]:
        """Return references by coordinate."""
        rows = zip(refs.coords.tolist(), map(refs.row, range(len(refs))), strict=True)
        return {str(coord): self.ref(row) for coord, row in rows}

    def ref(self, ref: ChunkRef) -> tuple[Any, ...]:
        """Return what is in a chunk, or where."""
        if ref.kind == RefKind.INLINE:
            return "inline", ref.data
        if ref.kind == RefKind.NATIVE:
            assert ref.chunk_id is not None
            data = self._object(layout.chunk_key(ref.chunk_id))
            return "native", ref.offset, ref.length, data
        return "virtual", ref.location, ref.offset, ref.length, ref.etag, ref.last_modified

    # -- transaction logs ----------------------------------------------------------------
    def log(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return what a transaction log says."""
        key = layout.transaction_key(snapshot.id)
        log: TransactionLog = decode_transaction_log(self._object(key), key)
        paths = self._paths(snapshot)

        def names(ids: Iterable[bytes]) -> list[str]:
            return sorted(paths.get(id, "unknown") for id in ids)

        return {
            "new_groups": names(log.new_groups),
            "new_arrays": names(log.new_arrays),
            "deleted_groups": names(log.deleted_groups),
            "deleted_arrays": names(log.deleted_arrays),
            "updated_groups": names(log.updated_groups),
            "updated_arrays": names(log.updated_arrays),
            "updated_chunks": {
                paths.get(id, "unknown"): sorted(row for part in parts for row in part.tolist())
                for id, parts in log.updated_chunks.items()
            },
            "moved_nodes": [
                (move.from_path, move.to_path, paths.get(move.node_id, "unknown"), move.is_array)
                for move in log.moved_nodes
            ],
        }

    def _paths(self, snapshot: Snapshot) -> dict[bytes, str]:
        """Return the paths of nodes: in a snapshot, or else in the newest that has them."""
        found: dict[bytes, str] = {}
        for other in self._by_age():
            found |= {node.id: f"{node.path} in {other.message!r}" for node in other.nodes()}
        return found | {node.id: node.path for node in snapshot.nodes()}
