"""The chunks of a session: where they are, and how their bytes get there and back.

A chunk is looked up in the uncommitted edits first, newest layer on top, and then in the
manifest whose extents hold its coordinate. The bytes of one chunk move in a synchronous
and an asynchronous way, which do the same with the result of the lookup.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from icechunk.base.methods import in_thread
from icechunk.base.texts import COLLECTED, MENDED, counted
from icechunk.errors import (
    ErrorKind,
    InvalidInputError,
    NodeNotFoundError,
    ObjectNotFoundError,
    SessionStateError,
    StorageError,
)
from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRef, ChunkRefs, RefKind
from icechunk.format.ids import new_object_id
from icechunk.format.snapshot import ArrayInfo, ManifestRef, Node
from icechunk.session.context import SessionContext
from icechunk.session.edits import Edits
from icechunk.session.manifest_index import ManifestIndex
from icechunk.session.packing import MAX_PACKED, Packer
from icechunk.storage.base import MAX_WHOLE, ByteRange, BytesLike, resolve_range
from icechunk.virtual.coalescing import Coalescer, Source

Coordinate = tuple[int, ...]


def in_grid(array: ArrayInfo, coordinate: Coordinate) -> bool:
    """Whether the chunk grid of an array has a coordinate.

    An empty dimension has one valid coordinate (Icechunk spec, "Shapes and chunk grids").
    """
    return len(coordinate) == len(array.num_chunks) and all(
        i < max(n, 1) for i, n in zip(coordinate, array.num_chunks, strict=True)
    )


def check_coordinate(node: Node, array: ArrayInfo, coordinate: Coordinate) -> None:
    """Refuse a coordinate that lies outside an array's chunk grid.

    Raises
    ------
    InvalidInputError
    """
    if not in_grid(array, coordinate):
        raise InvalidInputError(
            f"invalid chunk index: chunk {coordinate} lies outside the chunk grid "
            f"{array.num_chunks} of {node.path!r}",
            ErrorKind.INVALID_CHUNK_INDEX,
        )


class ChunkStore:
    """Reads and writes the chunks that one session sees.

    Parameters
    ----------
    context : SessionContext
    edits : Edits
        They come first when a chunk is looked up, and record where a new one is.
    pack : bool
        Whether small chunks share objects, which `send` puts.
    """

    def __init__(self, context: SessionContext, edits: Edits, *, pack: bool = False) -> None:
        self._assets = context.assets
        self._virtual = context.virtual
        self._inline_threshold = context.effective.inline_chunk_threshold_bytes
        self._limit = context.limit
        self._edits = edits
        self._indexes: dict[bytes, ManifestIndex] = {}
        self._packer = Packer(context.assets.storage) if pack else None
        self._coalescer = Coalescer()

    @property
    def packs(self) -> bool:
        """Whether small chunks share objects."""
        return self._packer is not None

    def send(self) -> None:
        """Store everything that waits to be stored, because somebody else is about to learn of it.

        Raises
        ------
        StorageError
            If that fails. It can be tried again.
        """
        if self._packer is not None:
            self._packer.flush()

    def discard(self) -> None:
        """Drop everything that waits to be stored."""
        if self._packer is not None:
            self._packer.clear()

    # -- one chunk -------------------------------------------------------------
    def find(self, node: Node, coordinate: Coordinate) -> ChunkRef | None:
        """Return where a chunk is, or None if it was never written."""
        edited = self._find_edit(node, coordinate)
        if edited is not None:
            return edited if edited.kind != RefKind.DELETED else None
        ref = self._manifest_of(node, coordinate)
        if ref is None:
            return None
        return self._assets.chunk_ref(ref.id, node.id, coordinate)

    async def find_async(self, node: Node, coordinate: Coordinate) -> ChunkRef | None:
        """Find as `find` does. Only a manifest that takes long to fetch leaves the event loop."""
        edited = self._find_edit(node, coordinate)
        if edited is not None:
            return edited if edited.kind != RefKind.DELETED else None
        ref = self._manifest_of(node, coordinate)
        if ref is None:
            return None
        manifest = self._assets.manifest_at_once(ref.id)
        if manifest is not None:
            is_known, found = manifest.peek(node.id, coordinate)
            if is_known:
                return found
        return await in_thread(self._assets.chunk_ref, ref.id, node.id, coordinate)

    def _manifest_of(self, node: Node, coordinate: Coordinate) -> ManifestRef | None:
        array = node.array
        if array is None or not array.manifests:
            return None
        index = self._indexes.get(node.id)
        # the tree returns the same object until the session moves to another snapshot
        if index is None or index.manifests is not array.manifests:
            index = self._indexes[node.id] = ManifestIndex(array.manifests, len(array.shape))
        return index.find(coordinate)

    def _find_edit(self, node: Node, coordinate: Coordinate) -> ChunkRef | None:
        for layer in reversed(self._edits.layers):
            edits = layer.chunks.get(node.id)
            if edits is not None:
                found = edits.get(coordinate)
                if found is not None:
                    return found
        return None

    def get(
        self, node: Node, coordinate: Coordinate, byte_range: ByteRange | None = None
    ) -> BytesLike | None:
        """Return the bytes of a chunk, or of a range of it, or None if it was never written.

        Raises
        ------
        StorageError
            If the bytes are missing, shorter than the reference says, or were changed.
        """
        ref = self.find(node, coordinate)
        try:
            return None if ref is None else self._fetch(ref, byte_range)
        except (StorageError, InvalidInputError) as error:
            raise _of_chunk(error, node, coordinate, ref) from error

    async def get_async(
        self, node: Node, coordinate: Coordinate, byte_range: ByteRange | None = None
    ) -> BytesLike | None:
        """Return what `get` does, without blocking the event loop."""
        ref = await self.find_async(node, coordinate)
        try:
            return None if ref is None else await self._fetch_async(ref, byte_range)
        except (StorageError, InvalidInputError) as error:
            raise _of_chunk(error, node, coordinate, ref) from error

    def set(self, path: str, coordinate: Coordinate, data: BytesLike) -> None:
        """Write a chunk.

        Raises
        ------
        ReadOnlyError, SessionStateError
            If the session does not take edits.
        NodeNotFoundError, InvalidInputError
            If there is no such array, its grid has no such chunk, or no bytes are given.
        """
        node, array = self._array_for_write(path, coordinate)
        _check_length(path, coordinate, data)
        with self._edits.failed.noted(node, coordinate):
            ref = self._write(data)
        self._set_ref(node, array, coordinate, ref)

    async def set_async(self, path: str, coordinate: Coordinate, data: BytesLike) -> None:
        """Write a chunk, without blocking the event loop."""
        if not self._edits.is_loaded:
            await in_thread(self._edits.load)
        node, array = self._array_for_write(path, coordinate)
        _check_length(path, coordinate, data)
        with self._edits.failed.noted(node, coordinate):
            ref = await self._write_async(data)
        self._set_ref(node, array, coordinate, ref)

    def delete(self, path: str, coordinate: Coordinate) -> None:
        """Delete a chunk. One that lies outside the grid, or belongs to no array, is ignored.

        A chunk that was never written also counts as deleted: another session may write it
        before this one commits, and then the two disagree.
        """
        self._edits.check_editable()
        node = self._edits.tree.get(path)
        if node is None or node.array is None or len(coordinate) != len(node.array.shape):
            return
        if in_grid(node.array, coordinate) or self.find(node, coordinate) is not None:
            self._set_ref(node, node.array, coordinate, ChunkRef.deleted())

    def _array_for_write(self, path: str, coordinate: Coordinate) -> tuple[Node, ArrayInfo]:
        self._edits.check_editable()
        node, array = self._edits.tree.require_array(path)
        check_coordinate(node, array, coordinate)
        return node, array

    def _set_ref(self, node: Node, array: ArrayInfo, coordinate: Coordinate, ref: ChunkRef) -> None:
        with self._edits.lock:
            # the tree may have changed while the chunk was uploaded
            self._edits.check_editable()
            current = self._edits.tree.get(node.path)
            if current is None or current.id != node.id:
                raise NodeNotFoundError(f"the array {node.path!r} was deleted during a write")
            if self._packer is not None and self._packer.has_dropped(ref.chunk_id):
                raise SessionStateError(
                    f"the changes of the session were discarded while chunk {coordinate} of "
                    f"{node.path!r} was written; write it again"
                )
            top = self._edits.layers[-1]
            top.edits(node.id, node.path, len(array.shape)).set(coordinate, ref)
            self._edits.failed.forget(node.id, coordinate)

    # -- all chunks of an array ------------------------------------------------
    def refs(self, path: str) -> ChunkRefs:
        """Return all references of an array.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            If there is no such array.
        """
        node, array = self._edits.tree.require_array(path)
        refs = ChunkRefs.concatenate(len(array.num_chunks), self._base_refs(node))
        for edits in self._edits_of(node):
            refs = refs.overlay(edits)
        return refs.without_deleted()

    def set_refs(self, path: str, refs: ChunkRefs) -> None:
        """Set many references of an array at once.

        Raises
        ------
        ReadOnlyError, SessionStateError
            If the session does not take edits.
        NodeNotFoundError, InvalidInputError
            If there is no such array, or its grid does not hold all of them.
        """
        self._edits.check_editable()
        node, array = self._edits.tree.require_array(path)
        bounds = np.maximum(np.asarray(array.num_chunks, np.int64), 1)
        if refs.ndim != len(bounds):
            raise InvalidInputError(
                f"chunk coordinates of {counted(refs.ndim, 'dimension')} for {path!r}, which has "
                f"{len(bounds)}",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
        outside = (refs.coords >= bounds).any(axis=1)
        if outside.any():
            first = tuple(refs.coords[int(outside.argmax())].tolist())
            check_coordinate(node, array, first)
        with self._edits.lock:
            self._edits.check_editable()
            self._edits.layers[-1].edits(node.id, node.path, refs.ndim).set_many(refs)
            self._edits.failed.forget_many(node.id, refs)

    def written(self, path: str, *, base: bool) -> npt.NDArray[np.bool_]:
        """Say which chunks of the grid of an array have a value; `base` leaves out edits."""
        node, array = self._edits.tree.require_array(path)
        mask = _grid_mask(array.num_chunks, path)
        for refs in self._base_refs(node):
            _mark(mask, refs, True)
        for refs in () if base else self._edits_of(node):
            _mark(mask, refs, refs.kind != RefKind.DELETED)
        return mask

    def changed(self, path: str) -> npt.NDArray[np.bool_]:
        """Say which chunks of the grid of an array were set or deleted by the edits."""
        node, array = self._edits.tree.require_array(path)
        mask = _grid_mask(array.num_chunks, path)
        for refs in self._edits_of(node):
            _mark(mask, refs, True)
        return mask

    def _base_refs(self, node: Node) -> list[ChunkRefs]:
        """Return the references of an array in the snapshot, one part per manifest."""
        ids = [ref.id for ref in node.array.manifests] if node.array is not None else []
        parts = [manifest.arrays.get(node.id) for manifest in self._assets.manifests(ids)]
        return [refs for refs in parts if refs is not None and len(refs)]

    def _edits_of(self, node: Node) -> Iterator[ChunkRefs]:
        for layer in self._edits.layers:
            edits = layer.chunks.get(node.id)
            if edits:
                yield edits.refs()

    # -- bytes -----------------------------------------------------------------
    def _fetch(self, ref: ChunkRef, byte_range: ByteRange | None = None) -> BytesLike:
        start, end = _wanted(ref, byte_range)
        if ref.kind == RefKind.INLINE:
            return _inline(ref)[start:end]
        if start == end:
            return b""
        if ref.kind == RefKind.VIRTUAL:
            return self._virtual.fetch(
                ref.location or "",
                ref.offset,
                ref.length,
                ref.etag,
                ref.last_modified,
                (start, end),
            )
        key, wanted = _native(ref, start, end)
        known = self._known(ref, key, wanted)
        if known is not None:
            return known
        return self._kept(self._assets.storage.get(key, byte_range=wanted).data, key, wanted)

    async def _fetch_async(self, ref: ChunkRef, byte_range: ByteRange | None = None) -> BytesLike:
        start, end = _wanted(ref, byte_range)
        if ref.kind == RefKind.INLINE:
            return _inline(ref)[start:end]
        if start == end:
            return b""
        if ref.kind == RefKind.VIRTUAL:
            async with self._limit.slot():
                return await self._virtual.fetch_async(
                    ref.location or "",
                    ref.offset,
                    ref.length,
                    ref.etag,
                    ref.last_modified,
                    (start, end),
                )
        key, wanted = _native(ref, start, end)
        known = self._known(ref, key, wanted)
        if known is not None:
            return known
        storage = self._assets.storage
        async with self._limit.slot():
            if ref.offset:
                # its neighbours in the object may be requested at this very moment
                result = await self._coalescer.get(Source(storage, key), *wanted)
            else:
                result = await storage.get_async(key, byte_range=wanted)
        return self._kept(result.data, key, wanted)

    def _known(self, ref: ChunkRef, key: str, wanted: tuple[int, int]) -> BytesLike | None:
        if self._packer is not None:
            packed = self._packer.get(ref.chunk_id or b"", *wanted)
            if packed is not None:
                return packed
        return self._assets.chunk_bytes(key, wanted)

    def _kept(self, data: BytesLike, key: str, wanted: tuple[int, int]) -> BytesLike:
        checked = _checked(data, key, wanted)
        self._assets.keep_chunk_bytes(key, wanted, checked)
        return checked

    def _write(self, data: BytesLike) -> ChunkRef:
        """Store the bytes of a chunk and return the reference to them."""
        if len(data) <= self._inline_threshold:
            return ChunkRef.inline(bytes(data))
        if self._packer is not None and len(data) <= MAX_PACKED:
            return self._packer.add(data)
        chunk_id = new_object_id()
        self._assets.storage.put(layout.chunk_key(chunk_id), data)
        return ChunkRef.native(chunk_id, len(data))

    async def _write_async(self, data: BytesLike) -> ChunkRef:
        if len(data) <= self._inline_threshold:
            return ChunkRef.inline(bytes(data))
        if self._packer is not None and len(data) <= MAX_PACKED:
            return await self._packer.add_async(data, self._limit)
        chunk_id = new_object_id()
        async with self._limit.slot():
            await self._assets.storage.put_async(layout.chunk_key(chunk_id), data)
        return ChunkRef.native(chunk_id, len(data))


def _wanted(ref: ChunkRef, byte_range: ByteRange | None) -> tuple[int, int]:
    """Return a range of a chunk that there is.

    Raises
    ------
    StorageError
        If the chunk has no bytes. Nobody writes such, and no codec makes values of them.
    """
    if not ref.length:
        raise StorageError(
            "its reference has a length of 0, and no chunk is empty: write it anew, or delete it",
            ErrorKind.INVALID_OBJECT_SIZE,
        )
    return resolve_range(byte_range, ref.length)


def _inline(ref: ChunkRef) -> bytes:
    return ref.data if ref.data is not None else b""


def _native(ref: ChunkRef, start: int, end: int) -> tuple[str, tuple[int, int]]:
    key = layout.chunk_key(ref.chunk_id or b"")
    return key, (ref.offset + start, ref.offset + end)


def _checked(data: BytesLike, key: str, wanted: tuple[int, int]) -> BytesLike:
    if len(data) != wanted[1] - wanted[0]:
        raise StorageError(
            f"{key}: {len(data)} bytes instead of {wanted[1] - wanted[0]} from position "
            f"{wanted[0]}: the chunk object was cut; {MENDED}",
            ErrorKind.INVALID_OBJECT_SIZE,
        )
    return data


def _of_chunk(
    error: StorageError | InvalidInputError,
    node: Node,
    coordinate: Coordinate,
    ref: ChunkRef | None,
) -> StorageError | InvalidInputError:
    """Return an error of the same class that names the chunk."""
    is_native = ref is not None and ref.kind is RefKind.NATIVE
    why = f": {COLLECTED}" if is_native and isinstance(error, ObjectNotFoundError) else ""
    return type(error)(f"chunk {coordinate} of {node.path!r}: {error.message}{why}", error.kind)


def _grid_mask(num_chunks: tuple[int, ...], path: str) -> npt.NDArray[np.bool_]:
    count = math.prod(num_chunks)
    if count > MAX_WHOLE:
        raise InvalidInputError(
            f"{path}: the array has {count} chunks, and a mask of them would have a byte for each; "
            "chunk_coordinates yields those that have a value"
        )
    return np.zeros(num_chunks, np.bool_)


def _mark(
    mask: npt.NDArray[np.bool_], refs: ChunkRefs, value: npt.NDArray[np.bool_] | bool
) -> None:
    """Set the places of some references, to one value or to one for each."""
    # references may lie outside: their chunks are gone, because the array has shrunk
    inside = (refs.coords < np.asarray(mask.shape, np.int64)).all(axis=1)
    place = np.zeros(len(refs), np.int64)
    for axis, size in enumerate(mask.shape):
        place *= size
        place += refs.coords[:, axis]
    mask.reshape(-1)[place[inside]] = value if isinstance(value, bool) else value[inside]


def _check_length(path: str, coordinate: Coordinate, data: BytesLike) -> None:
    if not len(data):
        raise InvalidInputError(
            f"zero-length chunk: the value of chunk {coordinate} of {path!r} has no bytes, and no "
            "codec makes a chunk of them; delete the chunk instead",
            ErrorKind.ZERO_LENGTH_CHUNK,
        )
