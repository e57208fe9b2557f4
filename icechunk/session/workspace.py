"""The state that a session edits: nodes and chunks on top of a snapshot."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from icechunk.base.display import Displayed, NumberedEnum
from icechunk.changes.change_set import ChangeSet
from icechunk.changes.tree import Tree
from icechunk.changes.zarr_metadata import parse_node_metadata
from icechunk.commit.assets import Assets
from icechunk.commit.publish import RepoState
from icechunk.config.repository_config import EffectiveConfig, RepositoryConfig
from icechunk.errors import (
    ErrorKind,
    InvalidInputError,
    NodeNotFoundError,
    ReadOnlyError,
    SessionStateError,
    StorageError,
)
from icechunk.format import v1
from icechunk.format.chunk_refs import ChunkRef, ChunkRefs, RefKind
from icechunk.format.ids import normalize_path
from icechunk.format.snapshot import ArrayInfo, Node, Snapshot
from icechunk.session.chunks import ChunkStore, Coordinate, RequestLimit, check_coordinate
from icechunk.storage.base import ByteRange, BytesLike
from icechunk.virtual.resolver import VirtualResolver


class SessionMode(NumberedEnum):
    """What a session may do."""

    readonly = 0
    writable = 1
    rearrange = 2


class ChunkType(NumberedEnum):
    """Where the bytes of a chunk are."""

    uninitialized = 0
    native = 1
    virtual = 2
    inline = 3


@dataclass(frozen=True)
class SessionContext:
    """What all sessions of one open repository share.

    Attributes
    ----------
    assets : Assets
    state : RepoState
    virtual : VirtualResolver
    config : RepositoryConfig
    effective : EffectiveConfig
        The same with defaults filled in.
    recipe : object
        Pickles; `recipe.context()` makes the same context in another process.
    limit : RequestLimit
    """

    assets: Assets
    state: RepoState
    virtual: VirtualResolver
    config: RepositoryConfig
    effective: EffectiveConfig
    recipe: Any
    limit: RequestLimit
    default_commit_metadata: Mapping[str, Any]


class Workspace(Displayed):
    """Nodes and chunks as a session sees and edits them. Base of `icechunk.Session`.

    Parameters
    ----------
    context : SessionContext
    snapshot_id : bytes
    mode : SessionMode
    layers : sequence of ChangeSet
        Edits, oldest first; none for a fresh start.
    """

    def __init__(
        self,
        context: SessionContext,
        snapshot_id: bytes,
        mode: SessionMode,
        layers: Sequence[ChangeSet] = (),
    ) -> None:
        self._context = context
        self._mode = mode
        self._lock = threading.RLock()
        self._chunks = ChunkStore(
            context.assets,
            context.virtual,
            context.effective.inline_chunk_threshold_bytes,
            context.limit,
        )
        self._reset(context.assets.snapshot(snapshot_id), layers)

    def _reset(self, snapshot: Snapshot, layers: Sequence[ChangeSet] = ()) -> None:
        self._layers = list(layers) or [ChangeSet(snapshot.id)]
        # how many of the layers the forks of a lineage began with
        self._forks: dict[bytes, int] = {}
        # how many layers take no more edits, and these as one
        self._frozen = 0, ChangeSet(snapshot.id)
        self._tree = Tree(snapshot, self._layers)
        self._snapshot_id = snapshot.id

    # -- nodes -----------------------------------------------------------------------
    @property
    def tree(self) -> Tree:
        """The node hierarchy, with the edits of this session."""
        return self._tree

    def _check_editable(self) -> None:
        if self._mode is SessionMode.readonly:
            raise ReadOnlyError(
                "this session is read-only; get one that writes from "
                "Repository.writable_session(branch)",
                ErrorKind.READ_ONLY_SESSION,
            )
        if self._mode is SessionMode.rearrange:
            raise SessionStateError(
                "this session only rearranges nodes; commit it and write in a session from "
                "Repository.writable_session(branch)",
                ErrorKind.REARRANGE_SESSION_ONLY,
            )

    def set_metadata_document(self, path: str, user_data: bytes) -> None:
        """Create a node, or replace its ``zarr.json``.

        Raises
        ------
        ReadOnlyError, SessionStateError
            If the session does not take edits.
        InvalidInputError
            If it is no Zarr v3 document, or one that the format cannot hold.
        """
        with self._lock:
            self._check_editable()
            # looked at closer where it can matter only: the version may take a request
            if (
                b"rectilinear" in user_data
                and not parse_node_metadata(user_data, path).is_regular
                and self._context.state.spec_version == 1
            ):
                raise v1.irregular_grid(path)
            self._tree.put(path, user_data)

    def delete_nodes(self, path: str) -> None:
        """Delete a node and all below it; a missing one is ignored."""
        with self._lock:
            self._check_editable()
            self._tree.delete(path)

    # -- chunks ------------------------------------------------------------------------
    def get_chunk(
        self, node: Node, coordinate: Coordinate, byte_range: ByteRange | None = None
    ) -> BytesLike | None:
        """Return the bytes of a chunk, None if it was never written."""
        ref = self._chunks.locate(self._layers, node, coordinate)
        try:
            return None if ref is None else self._chunks.fetch(ref, byte_range)
        except (StorageError, InvalidInputError) as error:
            raise _of_chunk(error, node, coordinate) from error

    async def get_chunk_async(
        self, node: Node, coordinate: Coordinate, byte_range: ByteRange | None = None
    ) -> BytesLike | None:
        """Return the bytes of a chunk, without blocking the event loop."""
        ref = await self._chunks.locate_async(self._layers, node, coordinate)
        try:
            return None if ref is None else await self._chunks.fetch_async(ref, byte_range)
        except (StorageError, InvalidInputError) as error:
            raise _of_chunk(error, node, coordinate) from error

    def chunk_ref(self, node: Node, coordinate: Coordinate) -> ChunkRef | None:
        """Return where a chunk is, None if it was never written."""
        return self._chunks.locate(self._layers, node, coordinate)

    async def chunk_ref_async(self, node: Node, coordinate: Coordinate) -> ChunkRef | None:
        """Return where a chunk is, without blocking the event loop."""
        return await self._chunks.locate_async(self._layers, node, coordinate)

    def set_chunk(self, path: str, coordinate: Coordinate, data: BytesLike) -> None:
        """Write a chunk.

        Raises
        ------
        ReadOnlyError, SessionStateError
            If the session does not take edits.
        NodeNotFoundError, InvalidInputError
            If there is no such array, or its grid has no such chunk.
        """
        node, array = self._array_for_write(path, coordinate)
        self._set_ref(node, array, coordinate, self._chunks.write(data))

    async def set_chunk_async(self, path: str, coordinate: Coordinate, data: BytesLike) -> None:
        """Write a chunk, without blocking the event loop."""
        node, array = self._array_for_write(path, coordinate)
        self._set_ref(node, array, coordinate, await self._chunks.write_async(data))

    def delete_chunk(self, path: str, coordinate: Coordinate) -> None:
        """Delete a chunk. One that lies outside the grid, or is of no array, is ignored.

        A chunk that was never written counts as deleted, too: somebody else may write it
        before this session commits, and then the two disagree.
        """
        self._check_editable()
        node = self._tree.get(path)
        if node is None or node.array is None or len(coordinate) != len(node.array.shape):
            return
        in_grid = all(i < max(n, 1) for i, n in zip(coordinate, node.array.num_chunks, strict=True))
        if in_grid or self.chunk_ref(node, coordinate) is not None:
            self._set_ref(node, node.array, coordinate, ChunkRef.deleted())

    def set_refs(self, path: str, refs: ChunkRefs) -> None:
        """Set many chunk references of one array at once.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            If there is no such array, or its grid does not hold all of them.
        """
        self._check_editable()
        node, array = self._tree.require_array(path)
        bounds = np.maximum(np.asarray(array.num_chunks, np.int64), 1)
        if refs.ndim != len(bounds):
            raise InvalidInputError(
                f"chunk coordinates of {refs.ndim} dimensions for {path!r}, which has "
                f"{len(bounds)}",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
        outside = (refs.coords >= bounds).any(axis=1)
        if outside.any():
            first = tuple(refs.coords[int(outside.argmax())].tolist())
            check_coordinate(node, array, first)
        with self._lock:
            self._check_editable()
            self._layers[-1].edits(node.id, node.path, refs.ndim).set_many(refs)

    def chunk_refs(self, path: str) -> ChunkRefs:
        """Return all references of an array, with the edits of this session."""
        node, array = self._tree.require_array(path)
        refs = ChunkRefs.concatenate(len(array.num_chunks), self._chunks.base_refs(node))
        for layer in self._layers:
            edits = layer.chunks.get(node.id)
            if edits:
                refs = refs.overlay(edits.refs())
        return refs.without_deleted()

    def written_chunks(self, path: str, *, base: bool = False) -> npt.NDArray[np.bool_]:
        """Say which chunks of an array have a value, here or in the base snapshot.

        Only manifests are read. Where the array is sharded, its shards are meant. A chunk
        that holds nothing but the fill value is usually not stored, and not told from one
        that was never written.

        Parameters
        ----------
        path : str
            Of the array.
        base : bool
            Whether to leave out the edits of this session.

        Returns
        -------
        bool[...]
            In the shape of the chunk grid.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            If there is no such array.
        """
        node, array = self._tree.require_array(normalize_path(path))
        mask = np.zeros(array.num_chunks, np.bool_)
        for refs in self._chunks.base_refs(node):
            _mark(mask, refs, True)
        for layer in () if base else self._layers:
            edits = layer.chunks.get(node.id)
            if edits:
                refs = edits.refs()
                _mark(mask, refs, refs.kind != RefKind.DELETED)
        return mask

    def changed_chunks(self, path: str) -> npt.NDArray[np.bool_]:
        """Say which chunks of an array this session has written or deleted.

        Of a fork they include those that its parent had changed before. Parameters, result
        and errors are those of `written_chunks`.
        """
        node, array = self._tree.require_array(normalize_path(path))
        mask = np.zeros(array.num_chunks, np.bool_)
        for layer in self._layers:
            edits = layer.chunks.get(node.id)
            if edits:
                _mark(mask, edits.refs(), True)
        return mask

    def _array_for_write(self, path: str, coordinate: Coordinate) -> tuple[Node, ArrayInfo]:
        self._check_editable()
        node, array = self._tree.require_array(path)
        check_coordinate(node, array, coordinate)
        return node, array

    def _set_ref(self, node: Node, array: ArrayInfo, coordinate: Coordinate, ref: ChunkRef) -> None:
        with self._lock:
            # much may have happened while the chunk was uploaded
            self._check_editable()
            current = self._tree.get(node.path)
            if current is None or current.id != node.id:
                raise NodeNotFoundError(f"the array {node.path!r} was deleted during a write")
            self._layers[-1].edits(node.id, node.path, len(array.shape)).set(coordinate, ref)


def _of_chunk(
    error: StorageError | InvalidInputError, node: Node, coordinate: Coordinate
) -> StorageError | InvalidInputError:
    """Return an error of the same class that names the chunk that it is about."""
    return type(error)(f"chunk {coordinate} of {node.path!r}: {error.message}", error.kind)


def _mark(
    mask: npt.NDArray[np.bool_], refs: ChunkRefs, value: npt.NDArray[np.bool_] | bool
) -> None:
    """Set the places of some references, to one value or one for each."""
    # references may lie outside: their chunks are gone, because the array has shrunk
    inside = (refs.coords < np.asarray(mask.shape, np.int64)).all(axis=1)
    place = np.zeros(len(refs), np.int64)
    for axis, size in enumerate(mask.shape):
        place *= size
        place += refs.coords[:, axis]
    mask.reshape(-1)[place[inside]] = value if isinstance(value, bool) else value[inside]
