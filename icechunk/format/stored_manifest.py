"""A manifest as it is stored: one chunk is looked up in it without decoding the others.

References are sorted by index, so a search reads a number that is the logarithm of theirs.
Columns of all of them are made on request, or when so many chunks are looked up that it
pays. They also have the last word about chunks that are not found: only they see everything.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from icechunk.errors import FormatError, InvalidInputError
from icechunk.format.chunk_ref import ChunkRef
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.encoding.envelope import BytesLike, FileType, unwrap
from icechunk.format.encoding.flatbuf import Tables, read_root
from icechunk.format.ids import NODE_ID_SIZE, OBJECT_ID_SIZE
from icechunk.format.manifest import Manifest, decode_payload, decode_root, read_columns

__all__ = ["StoredManifest"]

#: Columns of smaller payloads are made at once, in bytes.
_SMALL: Final = 1 << 18
#: A search costs about as much as columns of this many references.
_REFS_PER_SEARCH: Final = 1000

#: NumPy's own; Zarr has no bound.
_MAX_RANK: Final = 64

_U4: Final = struct.Struct("<I")
_I4: Final = struct.Struct("<i")
_U2: Final = struct.Struct("<H")


class StoredManifest:
    """One manifest, decoded as far as necessary. Any number of threads may use it.

    Parameters
    ----------
    data : bytes-like
        The stored object.
    name : str
        Its key, for errors.

    Attributes
    ----------
    id : bytes

    Raises
    ------
    FormatError
        If it is not a manifest, or is damaged in a part that was read.
    """

    def __init__(self, data: BytesLike, name: str) -> None:
        payload, _ = unwrap(data, FileType.MANIFEST, name)
        self._name = name
        self._lock = threading.Lock()
        self._manifest: Manifest | None = None
        self._root: Tables | None = None
        self._searches = self._searches_left = 0
        if len(payload) <= _SMALL:
            self._manifest = decode_payload(payload, name)
            self.id = self._manifest.id
            return
        root = self._root = read_root(payload, name)
        self.id = root.struct(0, OBJECT_ID_SIZE, "id")[0].tobytes()
        self._refs = _vectors_of_refs(root, name)
        self._searches_left = sum(count for _, count in self._refs.values()) // _REFS_PER_SEARCH

    @classmethod
    def of(cls, manifest: Manifest) -> StoredManifest:
        """Return a manifest that is already decoded."""
        self = cls.__new__(cls)
        self._name, self._lock, self._searches = "", threading.Lock(), 0
        self._manifest, self._root = manifest, None
        self._searches_left = 0
        self.id = manifest.id
        return self

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        manifest, root = self._manifest, self._root
        if manifest is not None:
            return manifest.nbytes
        return 0 if root is None else root.buffer.nbytes

    def whole(self) -> Manifest:
        """Return all references as columns.

        Raises
        ------
        FormatError
            If the manifest is damaged anywhere.
        """
        with self._lock:
            if self._manifest is None:
                root = self._root or read_root(b"", self._name)
                self._manifest = decode_root(root, self._name)
                self._root = None
            return self._manifest

    def peek(self, node_id: bytes, coordinate: Sequence[int]) -> tuple[bool, ChunkRef | None]:
        """Look up a chunk, if that is quick.

        Returns
        -------
        is_known : bool
            Whether that is the answer; if not, call `whole` first.
        ref : ChunkRef or None
            None if there is no such chunk.

        Raises
        ------
        FormatError
            If the manifest is damaged in a part that was read.
        """
        manifest, root = self._manifest, self._root
        if manifest is not None:
            refs = manifest.arrays.get(node_id)
            # any coordinate may be requested, and the empty extents of a scalar hold all of them
            if refs is None or refs.ndim != len(coordinate):
                return True, None
            row = refs.find(coordinate)
            return True, refs.row(row) if row >= 0 else None
        if root is None or self._searches >= self._searches_left:
            return False, None
        self._searches += 1
        found = self._search(root, node_id, tuple(coordinate))
        return found is not None, found

    def _search(self, root: Tables, node_id: bytes, wanted: tuple[int, ...]) -> ChunkRef | None:
        payload = root.buffer.data
        start, count = self._refs.get(node_id, (0, 0))
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            table, index = self._index(payload, start + 4 * middle)
            if len(index) != len(wanted):
                return None
            if index == wanted:
                return self._decode(root, table, index)
            if index < wanted:
                low = middle + 1
            else:
                high = middle
        return None

    def _index(self, payload: memoryview, slot: int) -> tuple[int, tuple[int, ...]]:
        """Return the position of a reference, and its coordinate."""
        try:
            table = slot + _U4.unpack_from(payload, slot)[0]
            vtable = table - _I4.unpack_from(payload, table)[0]
            if vtable < 0 or _U2.unpack_from(payload, vtable)[0] < 6:
                raise self._damaged("required field is missing")
            at = table + _U2.unpack_from(payload, vtable + 4)[0]
            if at == table:
                raise self._damaged("required field is missing")
            vector = at + _U4.unpack_from(payload, at)[0]
            ndim = _U4.unpack_from(payload, vector)[0]
            if ndim > _MAX_RANK:
                raise self._damaged("has too many dimensions")
            return table, struct.unpack_from(f"<{ndim}I", payload, vector + 4)
        except struct.error:
            raise self._damaged("points outside of the file") from None

    def _decode(self, root: Tables, table: int, index: tuple[int, ...]) -> ChunkRef:
        """Return one reference, as its column would have it."""
        refs = root.at(np.array([table], np.int64), "refs")
        columns, heaps = read_columns(root, refs, self._name)
        own: dict[str, Any] = {**columns, **heaps}
        coords = np.array([index], np.uint32).reshape(1, len(index))
        try:
            return ChunkRefs.from_columns(coords, **own).row(0)
        except InvalidInputError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, problem: str) -> FormatError:
        return FormatError(f"{self._name}: refs: index: {problem}; the file is damaged")


def _vectors_of_refs(root: Tables, name: str) -> dict[bytes, tuple[int, int]]:
    """Return where the references of each array begin, and their number."""
    tables, _ = root.children(1, "arrays", required=True)
    ids, _ = tables.struct(0, NODE_ID_SIZE, "node_id")
    start, count, _ = tables.spans(1, "refs", required=True)
    if (start + 4 * count > len(root.buffer)).any():
        raise FormatError(f"{name}: refs: points outside of the file; the file is damaged")
    rows = zip(ids, start.tolist(), count.tolist(), strict=True)
    found = {id.tobytes(): (begin, number) for id, begin, number in rows}
    if len(found) != len(ids):
        raise FormatError(f"{name}: an array occurs twice; the file is damaged")
    return found
