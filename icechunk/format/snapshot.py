"""Snapshots: every node of one version of the hierarchy.

Icechunk spec, "Snapshot file". Nodes are sorted by the UTF-8 bytes of their whole path,
which for Python strings is the order of ``<``. The published text of the spec says
otherwise, but no client has ever followed it. So the descendants of ``/a`` lie between
``/a/`` and ``/a0`` ("0" comes after "/"), but ``/a-b`` lies between ``/a`` and ``/a/x``.

A decoded snapshot keeps the columns of the file, and makes a `Node` on request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from icechunk.errors import InternalError, InvalidInputError
from icechunk.format import v1
from icechunk.format.encoding.envelope import BytesLike, FileType, unwrap, wrap
from icechunk.format.encoding.flatbuf import Batch, encode, read_root
from icechunk.format.ids import NODE_ID_SIZE, OBJECT_ID_SIZE
from icechunk.format.metadata import Metadata, metadata_batch, read_metadata
from icechunk.format.nodes import ArrayInfo, ManifestFile, ManifestRef, Node
from icechunk.format.snapshot_read import ARRAY, GROUP, StoredNodes

__all__ = [
    "ArrayInfo",
    "ManifestFile",
    "ManifestRef",
    "Node",
    "Snapshot",
    "decode_snapshot",
    "encode_snapshot",
]

_U32_MAX: Final = 2**32 - 1


class _Source(Protocol):
    """Where a snapshot gets its nodes from: sorted distinct paths, and the rest by row."""

    @property
    def paths(self) -> Sequence[str]: ...
    @property
    def ids(self) -> Sequence[bytes]: ...
    @property
    def manifest_files(self) -> dict[bytes, ManifestFile]: ...
    def node(self, row: int) -> Node: ...


class Snapshot:
    """One version of the hierarchy, immutable.

    Made by `decode_snapshot` and `Snapshot.build`.

    Attributes
    ----------
    id : bytes
    parent_id : bytes or None
        Files of spec 1 only; otherwise the repo info knows.
    flushed_at : int
        Microseconds since the epoch.
    message : str
    metadata : Metadata
        A read-only mapping.
    """

    def __init__(
        self,
        source: _Source,
        *,
        id: bytes,
        parent_id: bytes | None,
        flushed_at: int,
        message: str,
        metadata: Metadata,
    ) -> None:
        self._source = source
        self.id = id
        self.parent_id = parent_id
        self.flushed_at = flushed_at
        self.message = message
        self.metadata = metadata

    @classmethod
    def build(
        cls,
        id: bytes,
        nodes: Iterable[Node],
        *,
        flushed_at: int,
        message: str,
        metadata: Mapping[str, object] | None = None,
        manifest_files: Mapping[bytes, ManifestFile] | None = None,
        parent_id: bytes | None = None,
    ) -> Snapshot:
        """Return a new snapshot.

        Parameters
        ----------
        id : bytes
        nodes : iterable of Node
            In any order.
        flushed_at : int
            Microseconds since the epoch.
        message : str
        metadata : mapping, optional
        manifest_files : mapping, optional
            Id to file. May hold more than the nodes refer to: those are left out.
        parent_id : bytes, optional
            For files of spec 1 only.

        Raises
        ------
        InternalError
            If two nodes have one path, or a node's manifest is not in `manifest_files`.
        InvalidInputError
            If a metadata value cannot be stored.
        """
        return cls(
            _Built(nodes, manifest_files or {}),
            id=id,
            parent_id=parent_id,
            flushed_at=flushed_at,
            message=message,
            metadata=Metadata(metadata or {}),
        )

    @property
    def manifest_files(self) -> dict[bytes, ManifestFile]:
        """The manifests that the nodes refer to, by id."""
        return self._source.manifest_files

    def __len__(self) -> int:
        return len(self._source.paths)

    def paths(self) -> Sequence[str]:
        """Return the path of every node, in the order of their UTF-8 bytes."""
        return self._source.paths

    def get(self, path: str) -> Node | None:
        """Return the node with this path; the first of several, as damaged files may have."""
        paths = self._source.paths
        row = bisect_left(paths, path)
        return self._source.node(row) if row < len(paths) and paths[row] == path else None

    def get_by_id(self, id: bytes) -> Node | None:
        """Return the node with this id."""
        row = self._rows_by_id.get(id)
        return None if row is None else self._source.node(row)

    def nodes(self) -> Iterator[Node]:
        """Yield every node, in the order of `paths`."""
        return map(self._source.node, range(len(self)))

    def within(self, path: str) -> Iterator[Node]:
        """Yield the node with this path, if it exists, and all that lie below it."""
        if path == "/":
            yield from self.nodes()
            return
        node = self.get(path)
        if node is not None:
            yield node
        yield from map(self._source.node, range(*self._below(path + "/")))

    def paths_below(self, path: str) -> Sequence[str]:
        """Return the paths of all nodes below this one, sorted; no `Node` is made."""
        prefix = path if path == "/" else path + "/"
        start, end = self._below(prefix)
        found = self._source.paths[start:end]
        return found[1:] if found[:1] == ["/"] else found

    def children(self, path: str) -> Iterator[Node]:
        """Yield the nodes directly below this path."""
        prefix = path if path == "/" else path + "/"
        paths = self._source.paths
        row, end = self._below(prefix)
        while row < end:
            name, slash, _ = paths[row][len(prefix) :].partition("/")
            if slash:  # a descendant of a child, and so are the rows behind it
                row = self._below(prefix + name + "/")[1]
                continue
            if name:  # not the root itself
                yield self._source.node(row)
            row += 1

    def _below(self, prefix: str) -> tuple[int, int]:
        paths = self._source.paths
        start = bisect_left(paths, prefix)
        return start, bisect_left(paths, prefix[:-1] + "0", start)

    @cached_property
    def _rows_by_id(self) -> dict[bytes, int]:
        return {id: row for row, id in enumerate(self._source.ids)}


class _Built:
    """Nodes that are Python objects."""

    def __init__(self, nodes: Iterable[Node], known: Mapping[bytes, ManifestFile]) -> None:
        self._nodes = sorted(nodes, key=lambda node: node.path)
        self.paths = [node.path for node in self._nodes]
        self.manifest_files: dict[bytes, ManifestFile] = {}
        for before, path in pairwise(self.paths):
            if before == path:
                raise InternalError(f"two nodes have the path {path}")
        used = {ref.id for node in self._nodes if node.array for ref in node.array.manifests}
        if missing := used - known.keys():
            raise InternalError(f"{len(missing)} manifests of nodes are not listed as files")
        self.manifest_files = {id: known[id] for id in sorted(used)}

    @property
    def ids(self) -> Sequence[bytes]:
        return [node.id for node in self._nodes]

    def node(self, row: int) -> Node:
        return self._nodes[row]


def decode_snapshot(data: BytesLike, name: str) -> Snapshot:
    """Decode a stored snapshot of spec 1 or 2.

    Parameters
    ----------
    data : bytes-like
        The whole object.
    name : str
        Its key, for messages.

    Raises
    ------
    FormatError
        If the object is damaged; for columns that nodes alone need, when the first node
        is asked for.
    """
    payload, spec_version = unwrap(data, FileType.SNAPSHOT, name)
    root = read_root(payload, name)
    parent, has_parent = root.struct(1, OBJECT_ID_SIZE, "parent_id", required=False)
    return Snapshot(
        StoredNodes(root, name),
        id=root.struct(0, OBJECT_ID_SIZE, "id")[0].tobytes(),
        parent_id=parent.tobytes() if spec_version == 1 and has_parent[0] else None,
        flushed_at=int(root.scalar(3, "<u8", field="flushed_at")[0]),
        message=root.text(4, "message", required=True)[0] or "",
        metadata=read_metadata(root, 5, spec_version, name)[0],
    )


# -- writing -------------------------------------------------------------------


def encode_snapshot(snapshot: Snapshot, *, level: int = 3, spec_version: int = 2) -> bytearray:
    """Return the stored object of a snapshot.

    Parameters
    ----------
    snapshot : Snapshot
    level : int
        Of the compression.
    spec_version : int

    Raises
    ------
    InvalidInputError
        If an array has 2**32 chunks or more in one dimension, or in spec 1 a grid that is
        not regular.
    """
    metadata, metadata_at = metadata_batch([snapshot.metadata], spec_version)
    files = sorted(snapshot.manifest_files.values(), key=lambda file: file.id)
    root = Batch(1)
    root.struct(0, _join([snapshot.id], OBJECT_ID_SIZE))
    if spec_version == 1 and snapshot.parent_id is not None:
        root.struct(1, _join([snapshot.parent_id], OBJECT_ID_SIZE))
    nodes = list(snapshot.nodes())
    root.children(2, _nodes_batch(nodes, spec_version), [0, len(nodes)])
    root.scalar(3, snapshot.flushed_at, "<u8")
    root.text(4, [snapshot.message])
    root.children(5, metadata, metadata_at)
    if spec_version == 1:
        root.vector(6, v1.manifest_file_rows(files), [0, len(files)])
    else:
        # spec 1's list: readers insist on its presence
        root.vector(6, np.empty(0, "<u8"), [0, 0])
        root.children(7, _files_batch(files), [0, len(files)])
    return wrap(encode(root), FileType.SNAPSHOT, level=level, spec_version=spec_version)


def _files_batch(files: Sequence[ManifestFile]) -> Batch:
    batch = Batch(len(files))
    batch.struct(0, _join([file.id for file in files], OBJECT_ID_SIZE))
    batch.scalar(1, np.array([file.size_bytes for file in files], "<u8"), "<u8")
    batch.scalar(2, [file.num_chunk_refs for file in files], "<u4")
    return batch


def _nodes_batch(nodes: Sequence[Node], spec_version: int) -> Batch:
    kinds = [GROUP if node.array is None else ARRAY for node in nodes]
    for node in nodes:
        _check(node)
    arrays = _arrays_batch([node for node in nodes if node.array is not None], spec_version)
    batch = Batch(len(nodes))
    batch.struct(0, _join([node.id for node in nodes], NODE_ID_SIZE))
    batch.text(1, [node.path for node in nodes])
    batch.blob(2, [node.user_data for node in nodes])
    batch.union(3, kinds, {ARRAY: arrays, GROUP: Batch(kinds.count(GROUP))})
    return batch


def _check(node: Node) -> None:
    array = node.array
    if array is None:
        return
    ndim = len(array.shape)
    if len(array.num_chunks) != ndim or (
        array.dimension_names is not None and len(array.dimension_names) != ndim
    ):
        raise InternalError(f"{node.path}: shape, chunk counts and names differ in length")
    if max(array.num_chunks, default=0) > _U32_MAX:
        raise InvalidInputError(
            f"{node.path}: a dimension has {max(array.num_chunks)} chunks, the format allows "
            f"{_U32_MAX}; use larger chunks"
        )


def _arrays_batch(nodes: Sequence[Node], spec_version: int) -> Batch:
    arrays = [node.array for node in nodes if node.array is not None]
    names = [name for array in arrays for name in array.dimension_names or ()]
    named = Batch(len(names))
    named.text(0, names)

    refs = [ref for array in arrays for ref in array.manifests]
    manifests = Batch(len(refs))
    manifests.struct(0, _join([ref.id for ref in refs], OBJECT_ID_SIZE))
    extents = np.array([pair for ref in refs for pair in ref.extents], "<u4").reshape(-1, 2)
    manifests.vector(1, extents, _offsets(len(ref.extents) for ref in refs))

    batch = Batch(len(arrays))
    dimensions_at = _offsets(len(array.shape) for array in arrays)
    if spec_version == 1:
        batch.vector(0, v1.shape_rows(nodes), dimensions_at)
    else:
        # spec 1's shape: readers insist on its presence
        batch.vector(0, np.empty(0, "<u8"), np.zeros(len(arrays) + 1, np.int64))
        batch.children(3, _dimensions_batch(arrays), dimensions_at)
    batch.children(
        1,
        named,
        _offsets(len(array.dimension_names or ()) for array in arrays),
        present=[array.dimension_names is not None for array in arrays],
    )
    batch.children(2, manifests, _offsets(len(array.manifests) for array in arrays))
    return batch


def _dimensions_batch(arrays: Sequence[ArrayInfo]) -> Batch:
    sizes = [size for array in arrays for size in array.shape]
    counts = [count for array in arrays for count in array.num_chunks]
    batch = Batch(len(sizes))
    batch.scalar(0, np.array(sizes, "<u8"), "<u8", default=0)
    batch.scalar(1, np.array(counts, "<u4"), "<u4", default=0)
    return batch


def _offsets(counts: Iterable[int]) -> list[int]:
    return [0, *accumulate(counts)]


def _join(ids: Sequence[bytes], size: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), size)
