"""Where a chunk read or write goes: locate the reference, then move the bytes.

Locating takes the uncommitted edits first, newest layer on top, and then the manifest
whose extents hold the coordinate. Moving bytes has a synchronous and an asynchronous
end; both do the same with what locating found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from icechunk.changes.change_set import ChangeSet
from icechunk.commit.assets import Assets
from icechunk.errors import ErrorKind, InvalidInputError, StorageError
from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRef, ChunkRefs, RefKind
from icechunk.format.ids import new_object_id
from icechunk.format.manifest import Manifest
from icechunk.format.snapshot import ArrayInfo, ManifestRef, Node
from icechunk.storage.base import ByteRange, BytesLike, resolve_range
from icechunk.virtual.resolver import VirtualResolver

Coordinate = tuple[int, ...]


def check_coordinate(node: Node, array: ArrayInfo, coordinate: Coordinate) -> None:
    """Refuse a coordinate that lies outside an array's chunk grid.

    An empty dimension has one valid coordinate (Icechunk spec, "Shapes and chunk grids").

    Raises
    ------
    InvalidInputError
    """
    if len(coordinate) != len(array.num_chunks) or any(
        i >= max(n, 1) for i, n in zip(coordinate, array.num_chunks, strict=True)
    ):
        raise InvalidInputError(
            f"chunk {coordinate} lies outside the chunk grid {array.num_chunks} of {node.path!r}",
            ErrorKind.INVALID_CHUNK_INDEX,
        )


def covers(manifest: ManifestRef, coordinate: Coordinate) -> bool:
    """Whether a manifest's extents hold a coordinate; empty extents hold everything."""
    return not manifest.extents or (
        len(manifest.extents) == len(coordinate)
        and all(lo <= i < hi for (lo, hi), i in zip(manifest.extents, coordinate, strict=True))
    )


class RequestLimit:
    """Lets no more than so many requests run at the same time in each event loop.

    Parameters
    ----------
    count : int
        At least 1; less counts as 1, which is as little as gets anything done.
    """

    def __init__(self, count: int) -> None:
        self._count = max(count, 1)
        self._semaphores: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            WeakKeyDictionary()
        )

    def slot(self) -> asyncio.Semaphore:
        """Return what to hold during a request, with ``async with``."""
        loop = asyncio.get_running_loop()
        found = self._semaphores.get(loop)
        if found is None:
            found = self._semaphores[loop] = asyncio.Semaphore(self._count)
        return found


class ChunkStore:
    """Reads and writes the chunks of one session.

    Parameters
    ----------
    assets : Assets
    virtual : VirtualResolver
    inline_threshold : int
        Chunks of up to this many bytes are stored in the manifest.
    limit : RequestLimit
        For the asynchronous requests of all sessions of a repository.
    """

    def __init__(
        self,
        assets: Assets,
        virtual: VirtualResolver,
        inline_threshold: int,
        limit: RequestLimit,
    ) -> None:
        self._assets = assets
        self._virtual = virtual
        self._inline_threshold = inline_threshold
        self._limit = limit

    # -- locating --------------------------------------------------------------
    def locate(
        self, layers: Sequence[ChangeSet], node: Node, coordinate: Coordinate
    ) -> ChunkRef | None:
        """Return the reference of a chunk, or None if it was never written."""
        edited = _locate_edit(layers, node, coordinate)
        if edited is not None:
            return edited if edited.kind != RefKind.DELETED else None
        for ref in node.array.manifests if node.array is not None else ():
            if covers(ref, coordinate):
                return _find(self._assets.manifest(ref.id), node, coordinate)
        return None

    async def locate_async(
        self, layers: Sequence[ChangeSet], node: Node, coordinate: Coordinate
    ) -> ChunkRef | None:
        """Locate as `locate` does; only a manifest that is not cached leaves the loop."""
        edited = _locate_edit(layers, node, coordinate)
        if edited is not None:
            return edited if edited.kind != RefKind.DELETED else None
        for ref in node.array.manifests if node.array is not None else ():
            if covers(ref, coordinate):
                manifest = self._assets.cached_manifest(ref.id)
                if manifest is None:
                    manifest = await asyncio.to_thread(self._assets.manifest, ref.id)
                return _find(manifest, node, coordinate)
        return None

    def base_refs(self, node: Node) -> list[ChunkRefs]:
        """Return the references of an array in the snapshot, one part per manifest."""
        parts = []
        for ref in node.array.manifests if node.array is not None else ():
            refs = self._assets.manifest(ref.id).arrays.get(node.id)
            if refs is not None and len(refs):
                parts.append(refs)
        return parts

    # -- reading ---------------------------------------------------------------
    def fetch(self, ref: ChunkRef, byte_range: ByteRange | None = None) -> BytesLike:
        """Return the bytes of a chunk, or of a range of it.

        Raises
        ------
        StorageError
            If the bytes are missing, shorter than the reference says, or were changed.
        """
        start, end = resolve_range(byte_range, ref.length)
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
        known = self._assets.chunk_bytes(key, wanted)
        if known is not None:
            return known
        return self._kept(self._assets.storage.get(key, byte_range=wanted).data, key, wanted)

    async def fetch_async(self, ref: ChunkRef, byte_range: ByteRange | None = None) -> BytesLike:
        """Fetch as `fetch` does, without blocking the event loop."""
        start, end = resolve_range(byte_range, ref.length)
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
        known = self._assets.chunk_bytes(key, wanted)
        if known is not None:
            return known
        async with self._limit.slot():
            result = await self._assets.storage.get_async(key, byte_range=wanted)
        return self._kept(result.data, key, wanted)

    def _kept(self, data: BytesLike, key: str, wanted: tuple[int, int]) -> BytesLike:
        checked = _checked(data, key, wanted)
        self._assets.keep_chunk_bytes(key, wanted, checked)
        return checked

    # -- writing ---------------------------------------------------------------
    def write(self, data: BytesLike) -> ChunkRef:
        """Store the bytes of a chunk and return the reference to them."""
        if len(data) <= self._inline_threshold:
            return ChunkRef.inline(bytes(data))
        chunk_id = new_object_id()
        self._assets.storage.put(layout.chunk_key(chunk_id), data)
        return ChunkRef.native(chunk_id, len(data))

    async def write_async(self, data: BytesLike) -> ChunkRef:
        """Write as `write` does, without blocking the event loop."""
        if len(data) <= self._inline_threshold:
            return ChunkRef.inline(bytes(data))
        chunk_id = new_object_id()
        async with self._limit.slot():
            await self._assets.storage.put_async(layout.chunk_key(chunk_id), data)
        return ChunkRef.native(chunk_id, len(data))


def _locate_edit(
    layers: Sequence[ChangeSet], node: Node, coordinate: Coordinate
) -> ChunkRef | None:
    for layer in reversed(layers):
        edits = layer.chunks.get(node.id)
        if edits is not None:
            found = edits.get(coordinate)
            if found is not None:
                return found
    return None


def _find(manifest: Manifest, node: Node, coordinate: Coordinate) -> ChunkRef | None:
    refs = manifest.arrays.get(node.id)
    # any coordinate may be asked for, and the empty extents of a scalar hold all of them
    if refs is None or refs.ndim != len(coordinate):
        return None
    row = refs.find(coordinate)
    return refs.row(row) if row >= 0 else None


def _inline(ref: ChunkRef) -> bytes:
    return ref.data if ref.data is not None else b""


def _native(ref: ChunkRef, start: int, end: int) -> tuple[str, tuple[int, int]]:
    key = layout.chunk_key(ref.chunk_id or b"")
    return key, (ref.offset + start, ref.offset + end)


def _checked(data: BytesLike, key: str, wanted: tuple[int, int]) -> BytesLike:
    if len(data) != wanted[1] - wanted[0]:
        raise StorageError(
            f"{key}: {len(data)} bytes instead of {wanted[1] - wanted[0]} from position "
            f"{wanted[0]}: the chunk object was cut",
            ErrorKind.INVALID_OBJECT_SIZE,
        )
    return data
