"""The repo info: the one object that changes, with all history, refs and settings.

Icechunk spec, "Repo info file". Snapshots refer to their parents, and refs to their
snapshots, by index in the file; here both hold ids. ``parent_offset`` is such an index
despite its name: -1 is "no parent", and because 0 is the default of the field, a missing
one means the first snapshot.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from icechunk.base.texts import COLLECTED
from icechunk.errors import ErrorKind, FormatError, InternalError, SnapshotNotFoundError
from icechunk.format.encoding.envelope import BytesLike, FileType, unwrap, wrap
from icechunk.format.encoding.flatbuf import Batch, Tables, encode, read_root
from icechunk.format.ids import OBJECT_ID_SIZE, encode_id
from icechunk.format.metadata import Metadata, metadata_batch, read_metadata
from icechunk.format.snapshot_table import SnapshotEntry, SnapshotTable
from icechunk.format.update_log import UpdateLog
from icechunk.format.updates import Status, UpdateEntry, UpdateKind, read_status, status_batch

__all__ = [
    "RepoInfo",
    "SnapshotEntry",
    "Status",
    "UpdateEntry",
    "UpdateKind",
    "decode_repo_info",
    "encode_repo_info",
    "with_item",
]

_SPEC_VERSION: Final = 2

_K = TypeVar("_K")
_V = TypeVar("_V")


def with_item(mapping: Mapping[_K, _V], key: _K, value: _V) -> Mapping[_K, _V]:
    """Return a mapping with one more item, without copying all of it where that is slow."""
    if isinstance(mapping, SnapshotTable) and isinstance(value, SnapshotEntry):
        return cast("Mapping[_K, _V]", mapping.with_entry(value))
    if isinstance(mapping, dict):
        return {**mapping, key: value}
    return ChainMap({key: value}, cast("MutableMapping[_K, _V]", mapping))


@dataclass(frozen=True, slots=True)
class RepoInfo:
    """The state of a repository.

    Attributes
    ----------
    snapshots : mapping
        By id, referred to or not.
    branches, tags : mapping
        Name to snapshot id.
    deleted_tags : collection of str
        Names that may not be used again.
    status : Status
    metadata : Metadata
    updates : sequence of UpdateEntry
        Newest first; never empty.
    repo_before_updates : str or None
        Name, without folder, of the copy of the repo info where the log of updates goes on.
    config : bytes or None
        As FlexBuffers; None for the defaults.
    enabled_flags, disabled_flags : tuple of int, or None
        Feature flags by number, unknown ones too; None if never set.
    spec_version : int
    """

    snapshots: Mapping[bytes, SnapshotEntry]
    branches: Mapping[str, bytes]
    tags: Mapping[str, bytes]
    deleted_tags: Collection[str]
    status: Status
    updates: Sequence[UpdateEntry]
    metadata: Metadata = field(default_factory=lambda: Metadata({}))
    repo_before_updates: str | None = None
    config: bytes | None = None
    enabled_flags: tuple[int, ...] | None = None
    disabled_flags: tuple[int, ...] | None = None
    spec_version: int = _SPEC_VERSION

    def ancestry(self, id: bytes) -> Iterator[SnapshotEntry]:
        """Yield a snapshot, its parent, and so on to the first one.

        Raises
        ------
        SnapshotNotFoundError
            If there is no such snapshot.
        FormatError
            If the history goes in a circle, or an ancestor is missing.
        """
        entry = self.snapshots.get(id)
        if entry is None:
            why = "" if self.spec_version > 1 else f": {COLLECTED}"
            raise SnapshotNotFoundError(f"the repository has no snapshot {encode_id(id)}{why}")
        seen: set[bytes] = set()
        while True:
            seen.add(entry.id)
            yield entry
            if entry.parent_id is None:
                return
            if entry.parent_id in seen:
                raise FormatError(
                    f"the history of snapshot {encode_id(id)} goes in a circle: "
                    f"{encode_id(entry.parent_id)} is its own ancestor"
                )
            parent = self.snapshots.get(entry.parent_id)
            if parent is None:
                cut = (
                    f"the history of snapshot {encode_id(id)} is cut: its ancestor "
                    f"{encode_id(entry.parent_id)} is missing"
                )
                if self.spec_version > 1:
                    raise FormatError(cut)
                # each is an object of its own, which others may delete in the meantime
                raise FormatError(f"{cut}: {COLLECTED}", ErrorKind.SNAPSHOT_NOT_FOUND)
            entry = parent

    def ancestry_rows(self, id: bytes) -> Iterator[int]:
        """Yield the same as `ancestry`, as places in the table that `snapshots` must be."""
        table = SnapshotTable.of(self.snapshots)
        row, parents = table.row(id), table.parents()
        if row is None:
            raise SnapshotNotFoundError(f"the repository has no snapshot {encode_id(id)}")
        for _ in range(len(parents)):
            yield row
            row = parents[row]
            if row < 0:
                return
        raise FormatError(f"the history of snapshot {encode_id(id)} goes in a circle")

    def with_update(
        self, update: UpdateEntry, *, backup: str, limit: int = 1000, **changes: Any
    ) -> RepoInfo:
        """Return a changed state whose log has one more entry.

        The rules are those of the Icechunk spec, "Updating the repo info file".

        Parameters
        ----------
        update : UpdateEntry
            Without `backup`. Its time is moved behind that of the newest entry if necessary,
            because times must increase.
        backup : str
            Name of the copy of this state, which the caller makes; without folder.
        limit : int
            Entries that stay in the file, if an older one can serve as the link to the rest.
        **changes
            Fields of the new state.
        """
        updates, before = UpdateLog.of(self.updates).with_entry(
            update, backup, self.repo_before_updates, limit
        )
        # as columns from now on, so that the next update copies them
        changes["snapshots"] = SnapshotTable.of(changes.get("snapshots", self.snapshots))
        return replace(self, updates=updates, repo_before_updates=before, **changes)


# -- reading -------------------------------------------------------------------


def decode_repo_info(data: BytesLike, name: str) -> RepoInfo:
    """Decode a stored repo info.

    Parameters
    ----------
    data : bytes-like
        The whole object.
    name : str
        Its key, for messages.

    Raises
    ------
    FormatError
        If the object is damaged, of another version, or has entries of an unknown kind.
    """
    payload, file_version = unwrap(data, FileType.REPO, name)
    root = read_root(payload, name)
    spec_version = int(root.scalar(0, "<u1", field="spec_version")[0])
    if spec_version != _SPEC_VERSION:
        raise FormatError(
            f"{name}: format version {spec_version} is unknown to this library (it reads 2)",
            ErrorKind.UNSUPPORTED_SPEC_VERSION,
        )
    tables, _ = root.children(4, "snapshots", required=True)
    ids = tables.struct(0, OBJECT_ID_SIZE, "snapshot id")[0]
    status, _ = root.child(5, "status", required=True)
    updates, _ = root.children(7, "latest_updates")
    return RepoInfo(
        snapshots=SnapshotTable.read(tables, file_version, name),
        branches=_read_refs(root, 2, "branches", ids, name),
        tags=_read_refs(root, 1, "tags", ids, name),
        deleted_tags=tuple(root.texts(3, "deleted_tags", required=True)[0]),
        status=read_status(status)[0],
        metadata=read_metadata(root, 6, file_version, name)[0],
        updates=UpdateLog.read(updates, name),
        repo_before_updates=root.text(8, "repo_before_updates")[0],
        config=root.blobs(9, "config")[0],
        enabled_flags=_read_flags(root, 10, "enabled_feature_flags"),
        disabled_flags=_read_flags(root, 11, "disabled_feature_flags"),
    )


def _read_refs(
    root: Tables, slot: int, field: str, ids: NDArray[np.uint8], name: str
) -> dict[str, bytes]:
    refs, _ = root.children(slot, field, required=True)
    indices = refs.scalar(1, "<u4", field="snapshot_index").tolist()
    if indices and max(indices) >= len(ids):
        raise FormatError(f"{name}: {field}: {max(indices)} is not one of {len(ids)} snapshots")
    names = refs.text(0, f"{field} name", required=True)
    return {ref or "": ids[index].tobytes() for ref, index in zip(names, indices, strict=True)}


def _read_flags(root: Tables, slot: int, field: str) -> tuple[int, ...] | None:
    if not root.present(slot)[0]:
        return None
    return tuple(root.vector(slot, "<u2", field)[0].tolist())


# -- writing -------------------------------------------------------------------


def encode_repo_info(info: RepoInfo, *, level: int = 3) -> bytearray:
    """Return the stored object of a repo info.

    Parameters
    ----------
    info : RepoInfo
    level : int
        Of the compression.

    Raises
    ------
    InternalError
        If a ref or parent is not among the snapshots, or the log of updates is not one
        that official clients accept: it has a newest entry, without a backup.
    """
    if not info.updates or info.updates[0].backup is not None:
        raise InternalError("the log of updates must begin with an entry without a backup")
    snapshots = SnapshotTable.of(info.snapshots)
    metadata, metadata_at = metadata_batch([info.metadata])
    root = Batch(1)
    root.scalar(0, _SPEC_VERSION, "<u1")
    root.children(1, _refs_batch(info.tags, snapshots), [0, len(info.tags)])
    root.children(2, _refs_batch(info.branches, snapshots), [0, len(info.branches)])
    root.texts(3, [sorted(info.deleted_tags)])
    root.children(4, snapshots.batch(), [0, len(snapshots)])
    root.child(5, status_batch([info.status]))
    root.children(6, metadata, metadata_at)
    root.children(7, UpdateLog.of(info.updates).batch(), [0, len(info.updates)])
    root.text(8, [info.repo_before_updates])
    root.blob(9, [info.config])
    for slot, flags in ((10, info.enabled_flags), (11, info.disabled_flags)):
        if flags is not None:
            root.vector(slot, np.array(sorted(flags), "<u2"), [0, len(flags)])
    return wrap(encode(root), FileType.REPO, level=level)


def _refs_batch(refs: Mapping[str, bytes], snapshots: SnapshotTable) -> Batch:
    names = sorted(refs)
    rows = [snapshots.row(refs[name]) for name in names]
    if None in rows:
        unknown = refs[names[rows.index(None)]]
        raise InternalError(f"branches or tags refer to the unknown snapshot {encode_id(unknown)}")
    batch = Batch(len(names))
    batch.text(0, names)
    batch.scalar(1, np.array(rows, "<u4"), "<u4", default=0)
    return batch
