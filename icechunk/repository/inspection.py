"""The content of stored objects of a repository, as plain values for people and tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from icechunk.commit.assets import Assets
from icechunk.commit.publish import RepoState
from icechunk.commit.snapshot_info import from_microseconds
from icechunk.commit.version_names import id_of_snapshot
from icechunk.errors import ErrorKind, FormatError, StorageError
from icechunk.format import layout
from icechunk.format.chunk_refs import RefKind
from icechunk.format.encoding.envelope import FileType, Header, read_header
from icechunk.format.ids import decode_id, encode_id
from icechunk.format.manifest import decode_manifest, read_location_compression
from icechunk.format.repo_info import SnapshotEntry, decode_repo_info
from icechunk.format.snapshot import ArrayInfo, ManifestFile, Node, decode_snapshot
from icechunk.format.transaction_log import decode_transaction_log
from icechunk.format.updates import Status, UpdateEntry, UpdateKind

_FILE_TYPES: Final = {
    FileType.SNAPSHOT: "snapshot",
    FileType.MANIFEST: "manifest",
    FileType.TRANSACTION_LOG: "transaction-log",
    FileType.REPO: "repo-info",
}
_AVAILABILITY: Final = ("Online", "ReadOnly", "Online")
_ID_LISTS: Final = (
    "new_groups",
    "new_arrays",
    "deleted_groups",
    "deleted_arrays",
    "updated_groups",
    "updated_arrays",
)


@dataclass(frozen=True)
class Inspection:
    """The stored objects of one repository, shown.

    The dictionaries hold what JSON can express. Each has a ``header`` with ``written_by``,
    ``app_name``, ``app_version`` (if there is one), ``spec_version``, ``file_type`` and
    ``compression`` of that object. They are for debugging: their keys may change.

    Parameters
    ----------
    assets : Assets
    state : RepoState
    """

    _assets: Assets
    _state: RepoState

    def inspect_repo_info(self) -> dict[str, Any]:
        """Return the content of the repo info: refs, history, recent updates.

        Returns
        -------
        dict
            ``header``, ``spec_version``, ``branches``, ``tags``, ``deleted_tags``,
            ``snapshots``, ``metadata``, ``latest_updates``, and ``repo_before_updates`` if
            the operations log continues elsewhere.

        Raises
        ------
        FormatError
            If the repository is of spec version 1, which has no repo info.

        Examples
        --------
        >>> told = repo.inspect_repo_info()
        """
        info = self._state.load()
        if info.spec_version < 2:
            raise FormatError(
                "a repository of spec version 1 has no repo info; migrate it to version 2 first",
                ErrorKind.UNSUPPORTED_OPERATION_FOR_VERSION,
            )
        data = self._assets.storage.get(layout.REPO_KEY).data
        info = decode_repo_info(data, layout.REPO_KEY)
        found = {
            "header": _header(read_header(data, layout.REPO_KEY)),
            "spec_version": f"{info.spec_version}.0",
            "branches": {name: encode_id(tip) for name, tip in sorted(info.branches.items())},
            "tags": {name: encode_id(target) for name, target in sorted(info.tags.items())},
            "deleted_tags": sorted(info.deleted_tags),
            "snapshots": [_entry(entry) for _, entry in sorted(info.snapshots.items())],
            "metadata": dict(info.metadata),
            "latest_updates": [_update(update) for update in info.updates],
        }
        if info.repo_before_updates is not None:
            found["repo_before_updates"] = info.repo_before_updates
        return found

    def inspect_snapshot(self, snapshot_id: str) -> dict[str, Any]:
        """Return the content of a snapshot: its nodes, and where their manifests are.

        Parameters
        ----------
        snapshot_id : str

        Returns
        -------
        dict
            ``id``, ``header``, ``flushed_at``, ``commit_message``, ``metadata``,
            ``manifests``, ``nodes``.

        Raises
        ------
        StorageError
            If there is no such object.

        Examples
        --------
        >>> told = repo.inspect_snapshot(first)
        """
        key = layout.snapshot_key(id_of_snapshot(snapshot_id, self._state.load))
        data = self._assets.storage.get(key).data
        snapshot = decode_snapshot(data, key)
        return {
            "id": encode_id(snapshot.id),
            "header": _header(read_header(data, key)),
            "flushed_at": _time(snapshot.flushed_at),
            "commit_message": snapshot.message,
            "metadata": dict(snapshot.metadata),
            "manifests": [_manifest_file(f) for _, f in sorted(snapshot.manifest_files.items())],
            "nodes": [_node(node) for node in snapshot.nodes()],
        }

    def inspect_manifest(self, manifest_id: str) -> dict[str, Any]:
        """Return how many references of each kind a manifest holds.

        Parameters
        ----------
        manifest_id : str
            As in the ``manifest_refs`` of the nodes of `inspect_snapshot`.

        Returns
        -------
        dict
            ``id``, ``header``, ``size_bytes`` (decompressed), ``num_arrays``,
            ``total_chunk_refs``, ``total_inline``, ``total_native``, ``total_virtual``,
            ``arrays``, ``compression`` (of the locations of virtual chunks).

        Raises
        ------
        StorageError
            If there is no such object.

        Examples
        --------
        >>> (file,) = repo.list_manifest_files(first)
        >>> told = repo.inspect_manifest(file.id)
        """
        key = layout.manifest_key(decode_id(manifest_id, kind=ErrorKind.INVALID_KEY))
        data = self._assets.storage.get(key).data
        manifest = decode_manifest(data, key)
        header = read_header(data, key)
        arrays = []
        for node_id, refs in sorted(manifest.arrays.items()):
            counts = np.bincount(refs.kind, minlength=int(max(RefKind)) + 1).tolist()
            arrays.append(
                {
                    "node_id": encode_id(node_id),
                    "num_chunk_refs": len(refs),
                    "num_inline": counts[RefKind.INLINE],
                    "num_native": counts[RefKind.NATIVE],
                    "num_virtual": counts[RefKind.VIRTUAL],
                }
            )
        locations = read_location_compression(data, key)
        compression: dict[str, Any] = {
            "uses_location_compression": locations.is_used,
            "num_compressed_refs": locations.num_refs,
        }
        if locations.dictionary_size:
            compression["dictionary_size_bytes"] = locations.dictionary_size
        totals = {
            f"total_{kind}": sum(array[f"num_{kind}"] for array in arrays)
            for kind in ("chunk_refs", "inline", "native", "virtual")
        }
        return {
            "id": encode_id(manifest.id),
            "header": _header(header),
            "size_bytes": locations.payload_size,
            "num_arrays": len(arrays),
            **totals,
            "arrays": arrays,
            "compression": compression,
        }

    def inspect_transaction_log(self, snapshot_id: str) -> dict[str, Any]:
        """Return the content of a transaction log: nodes by id, and chunk coordinates.

        If expiration collapsed the ancestry of a snapshot, the logs of the expired
        commits count as parts of its own.

        Parameters
        ----------
        snapshot_id : str

        Returns
        -------
        dict
            ``header``, ``new_groups``, ``new_arrays``, ``deleted_groups``, ``deleted_arrays``,
            ``updated_groups``, ``updated_arrays``, ``updated_chunks``, ``moved_nodes``. With
            logs of expired commits also ``synthetic_composite``: a ``note``, the ids
            ``merged_pruned_ancestor_tx_logs``, oldest first, and ``missing_tx_logs``.

        Raises
        ------
        StorageError
            If there is no such object.

        Examples
        --------
        >>> told = repo.inspect_transaction_log(first)
        """
        wanted = id_of_snapshot(snapshot_id, self._state.load)
        key = layout.transaction_key(wanted)
        data = self._assets.storage.get(key).data
        log = decode_transaction_log(data, key)
        entry = self._state.load().snapshots.get(wanted)
        pruned = entry.pruned if entry is not None else ()
        merged, missing = [], []
        for older in reversed(pruned):
            try:
                log = self._assets.transaction_log(older).merge(log, wanted)
                merged.append(encode_id(older))
            except StorageError as error:
                if error.kind is not ErrorKind.OBJECT_NOT_FOUND:
                    raise
                missing.append(encode_id(older))
        found: dict[str, Any] = {"header": _header(read_header(data, key))}
        for name in _ID_LISTS:
            found[name] = [encode_id(id) for id in getattr(log, name)]
        found["updated_chunks"] = [
            {
                "node_id": encode_id(node_id),
                "chunks": sorted(row for part in parts for row in part.tolist()),
            }
            for node_id, parts in log.updated_chunks.items()
        ]
        found["moved_nodes"] = [
            {"from": move.from_path, "to": move.to_path} for move in log.moved_nodes
        ]
        if pruned:
            found["synthetic_composite"] = {
                "note": "No stored object says this: commits between this snapshot and its "
                "parent have expired, and their logs are merged with its own, which alone the "
                "header is of.",
                "merged_pruned_ancestor_tx_logs": merged[::-1],
                "missing_tx_logs": missing[::-1],
            }
        return found


def _header(header: Header) -> dict[str, Any]:
    app, dash, version = header.writer.partition("-")
    return {
        "written_by": header.writer,
        "app_name": app,
        **({"app_version": version} if dash else {}),
        "spec_version": f"{header.spec_version}.0",
        "file_type": _FILE_TYPES[header.file_type],
        "compression": "zstd",
    }


def _time(microseconds: int) -> str:
    """Return a time with as many fractional digits as it needs: none, three or six."""
    rest = microseconds % 1_000_000
    timespec = "microseconds" if rest % 1000 else "milliseconds" if rest else "seconds"
    return from_microseconds(microseconds).isoformat(timespec=timespec).replace("+00:00", "Z")


def _entry(entry: SnapshotEntry) -> dict[str, Any]:
    parent = {"parent_id": encode_id(entry.parent_id)} if entry.parent_id is not None else {}
    return {
        "id": encode_id(entry.id),
        **parent,
        "flushed_at": _time(entry.flushed_at),
        "message": entry.message,
        "metadata": dict(entry.metadata),
    }


def _update(update: UpdateEntry) -> dict[str, Any]:
    from icechunk.repository.update_types import update_fields, update_name

    name = update_name(update.kind)
    # its name is that of the table, the others have a suffix
    suffix = "" if update.kind is UpdateKind.FEATURE_FLAG_CHANGED else "Update"
    said: dict[str, Any] = {"type": f"{name}{suffix}", **update_fields(update)}
    for field in ("from_version", "to_version"):
        if field in said:
            said[field] = f"{said[field]}.0"
    if update.status is not None:
        said["status"] = _status(update.status)
    backup = {"backup_path": update.backup} if update.backup is not None else {}
    return {"update_type": said, "updated_at": _time(update.updated_at), **backup}


def _status(status: Status) -> dict[str, Any]:
    return {
        "availability": _AVAILABILITY[status.availability],
        "limited_availability_reason": status.reason,
        "set_at": _time(status.set_at),
    }


def _manifest_file(file: ManifestFile) -> dict[str, Any]:
    return {
        "id": encode_id(file.id),
        "size_bytes": file.size_bytes,
        "num_chunk_refs": file.num_chunk_refs,
    }


def _node(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": encode_id(node.id),
        "path": node.path,
        "node_type": "array" if node.is_array else "group",
    }
    if node.array is not None:
        found["shape"] = list(_dimensions(node.array))
        found["manifest_refs"] = [
            {"id": encode_id(ref.id), "extents": [list(pair) for pair in ref.extents]}
            for ref in node.array.manifests
        ]
    return found


def _dimensions(array: ArrayInfo) -> Iterable[dict[str, Any]]:
    names = array.dimension_names or (None,) * len(array.shape)
    for name, length, chunks in zip(names, array.shape, array.num_chunks, strict=True):
        named = {"name": name} if name else {}
        yield {**named, "array_length": length, "num_chunks": chunks}
