"""The nodes of a stored snapshot: columns of the file, and a `Node` on request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from icechunk.errors import FormatError
from icechunk.format import v1
from icechunk.format.encoding.flatbuf import Tables
from icechunk.format.ids import NODE_ID_SIZE, OBJECT_ID_SIZE, wrong_path
from icechunk.format.nodes import ArrayInfo, ManifestFile, ManifestRef, Node

__all__ = ["ARRAY", "GROUP", "StoredNodes"]

#: Tags of the union that tells arrays from groups.
ARRAY: Final = 1
GROUP: Final = 2


class StoredNodes:
    """Nodes that are columns of a file.

    Rows are counted along `paths`, which are sorted and distinct. In files where a rebase
    of the official client left a path twice, the second one is dropped here.

    Attributes
    ----------
    paths : list of str
    """

    def __init__(self, root: Tables, name: str) -> None:
        self._name = name
        self._root = root
        nodes, _ = root.children(2, "nodes", required=True)
        texts = nodes.text(1, "path", required=True)
        paths: list[str] = [text or "" for text in texts]
        wrong = wrong_path(paths)
        if wrong is not None:
            raise FormatError(
                f"{name}: path: {wrong[:200]!r} is no path of a node: those begin with '/', and no "
                "segment is empty, '.' or '..'"
            )
        rows = sorted(range(len(paths)), key=paths.__getitem__)
        rows = [row for i, row in enumerate(rows) if i == 0 or paths[row] != paths[rows[i - 1]]]
        self.paths = [paths[row] for row in rows]
        self._tables = nodes.take(np.array(rows, np.int64))

    @property
    def ids(self) -> Sequence[bytes]:
        """The id of each node."""
        return _split(self._ids, NODE_ID_SIZE)

    @cached_property
    def manifest_files(self) -> dict[bytes, ManifestFile]:
        """The manifest list, by id."""
        if self._root.present(7)[0]:
            files, _ = self._root.children(7, "manifest_files_v2")
            ids = files.struct(0, OBJECT_ID_SIZE, "id")[0]
            sizes = files.scalar(1, "<u8", field="size_bytes")
            counts = files.scalar(2, "<u4", field="num_chunk_refs")
        else:
            ids, sizes, counts = v1.manifest_files(self._root)
        columns = (_split(ids.tobytes(), OBJECT_ID_SIZE), sizes.tolist(), counts.tolist())
        return {row[0]: ManifestFile(*row) for row in zip(*columns, strict=True)}

    def node(self, row: int) -> Node:
        """Return one node."""
        array = self._array_rows[row]
        return Node(
            self._ids[row * NODE_ID_SIZE : (row + 1) * NODE_ID_SIZE],
            self.paths[row],
            self._user_data[row],
            None if array is None else self._arrays.info(array, self.paths[row]),
        )

    @cached_property
    def _ids(self) -> bytes:
        return self._tables.struct(0, NODE_ID_SIZE, "id")[0].tobytes()

    @cached_property
    def _user_data(self) -> list[bytes]:
        return [data or b"" for data in self._tables.blobs(2, "user_data", required=True)]

    @cached_property
    def _kinds_and_data(self) -> tuple[NDArray[np.uint8], Tables]:
        return self._tables.union(3, "node_data")

    @cached_property
    def _array_rows(self) -> list[int | None]:
        """Per node its row in `_arrays`, None for a group."""
        kinds, _ = self._kinds_and_data
        unknown = np.flatnonzero((kinds != ARRAY) & (kinds != GROUP))
        if len(unknown):
            raise FormatError(
                f"{self._name}: {self.paths[unknown[0]]}: unknown node type {kinds[unknown[0]]}"
            )
        rows = np.cumsum(kinds == ARRAY).tolist()
        return [
            row - 1 if kind == ARRAY else None
            for row, kind in zip(rows, kinds.tolist(), strict=True)
        ]

    @cached_property
    def _arrays(self) -> _Arrays:
        kinds, tables = self._kinds_and_data
        return _Arrays(tables.take(np.flatnonzero(kinds == ARRAY)), self._name)


class _Ragged:
    """A column with a run of values per row."""

    def __init__(self, values: NDArray[Any], offsets: NDArray[np.int64]) -> None:
        self._values = values
        self._offsets = offsets.tolist()

    def range(self, row: int) -> range:
        return range(self._offsets[row], self._offsets[row + 1])

    def row(self, row: int) -> list[Any]:
        values: list[Any] = self._values[self._offsets[row] : self._offsets[row + 1]].tolist()
        return values


class _Arrays:
    """The columns of array nodes."""

    def __init__(self, arrays: Tables, name: str) -> None:
        self._name = name
        # the field decides, not the version of the file (Icechunk spec, "ArrayNodeData")
        self._is_v2 = arrays.present(3).tolist()
        sizes, offsets = arrays.children(3, "shape_v2")
        self._shape = _Ragged(sizes.scalar(0, "<u8", field="array_length"), offsets)
        self._num_chunks = _Ragged(sizes.scalar(1, "<u4", field="num_chunks"), offsets)
        if not all(self._is_v2):
            lengths, counts, offsets = v1.array_shapes(arrays, name)
            self._v1_shape = _Ragged(lengths, offsets)
            self._v1_num_chunks = _Ragged(counts, offsets)
        self._has_names = arrays.present(1).tolist()
        names, offsets = arrays.children(1, "dimension_names")
        self._names = names.text(0, "dimension name")
        self._names_at = _Ragged(np.empty(0), offsets)
        manifests, offsets = arrays.children(2, "manifests", required=True)
        self._manifests_at = _Ragged(np.empty(0), offsets)
        self._manifest_ids = manifests.struct(0, OBJECT_ID_SIZE, "object_id")[0].tobytes()
        self._extents = _Ragged(*manifests.vector(1, "<u4", "extents", required=True, columns=2))

    def info(self, row: int, path: str) -> ArrayInfo:
        is_v2 = self._is_v2[row]
        shape = (self._shape if is_v2 else self._v1_shape).row(row)
        num_chunks = (self._num_chunks if is_v2 else self._v1_num_chunks).row(row)
        names = None
        # Names of another number than the dimensions (a writer's mistake that the official
        # reader overlooks) are dropped: readers take the names from zarr.json.
        if self._has_names[row] and len(self._names_at.range(row)) == len(shape):
            names = tuple(self._names[i] for i in self._names_at.range(row))
        manifests = tuple(self._manifest(i) for i in self._manifests_at.range(row))
        for manifest in manifests:
            if len(manifest.extents) not in (0, len(shape)):
                raise FormatError(
                    f"{self._name}: {path}: extents: {len(manifest.extents)} dimensions "
                    f"for an array of {len(shape)}"
                )
        return ArrayInfo(tuple(shape), tuple(num_chunks), names, manifests)

    def _manifest(self, i: int) -> ManifestRef:
        id = self._manifest_ids[i * OBJECT_ID_SIZE : (i + 1) * OBJECT_ID_SIZE]
        return ManifestRef(id, tuple((start, stop) for start, stop in self._extents.row(i)))


def _split(ids: bytes, size: int) -> list[bytes]:
    return [ids[at : at + size] for at in range(0, len(ids), size)]
