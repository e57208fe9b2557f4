"""The chunks of an array as a whole: where they are, and how to move them.

Everything here works on columns of references. Only callers that ask for objects get one
for each chunk.
"""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from icechunk.base.display import NumberedEnum
from icechunk.base.methods import in_thread
from icechunk.base.texts import counted
from icechunk.changes.zarr_metadata import parse_node_metadata
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.chunk_refs import ChunkRefs, RefKind
from icechunk.format.ids import encode_ids, normalize_path
from icechunk.format.snapshot import ArrayInfo, Node
from icechunk.session.chunks import ChunkStore, Coordinate, check_coordinate, in_grid
from icechunk.session.edits import Edits
from icechunk.session.grid_masks import GridMask
from icechunk.virtual.resolver import VirtualResolver

#: Maps the position of a chunk to another one, or to None.
Reindexing: TypeAlias = Callable[[list[int]], Iterable[int] | None]
#: Coordinates, kinds, places, offsets, lengths, and inline data by row.
ChunkBatch: TypeAlias = tuple[
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint8],
    list[str],
    npt.NDArray[np.uint64],
    npt.NDArray[np.uint64],
    dict[int, bytes],
]


class ChunkType(NumberedEnum):
    """Where the bytes of a chunk are."""

    uninitialized = 0
    native = 1
    virtual = 2
    inline = 3


class ArrayChunks:
    """The chunks of a session, one array at a time.

    Parameters
    ----------
    edits : Edits
    chunks : ChunkStore
    virtual : VirtualResolver
    """

    def __init__(self, edits: Edits, chunks: ChunkStore, virtual: VirtualResolver) -> None:
        self._edits = edits
        self._chunks = chunks
        self._virtual = virtual

    # -- looking up --------------------------------------------------------------------
    def chunk_refs(self, path: str) -> ChunkRefs:
        """Return all references of an array, with the edits of this session.

        Examples
        --------
        >>> len(session.chunk_refs("/temperature"))
        4
        """
        return self._chunks.refs(path)

    def set_refs(self, path: str, refs: ChunkRefs) -> None:
        """Set many chunk references of one array at once.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            If there is no such array, or its grid does not hold all of them.
        """
        self._chunks.set_refs(path, refs)

    def written_chunks(self, path: str, *, base: bool = False) -> npt.NDArray[np.bool_]:
        """Say which chunks of an array have a value, here or in the base snapshot.

        Only manifests are read. If the array is sharded, this is about its shards. A chunk that
        holds only the fill value is usually not stored, and cannot be told from one that was
        never written.

        Parameters
        ----------
        path : str
            Of the array.
        base : bool
            Whether to leave out the edits of this session.

        Returns
        -------
        bool[...]
            In the shape of the chunk grid. Notebooks show a map of it.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            If there is no such array.

        Examples
        --------
        >>> session.written_chunks("/temperature").sum(axis=0)
        array([4])
        """
        node, _ = self._edits.tree.require_array(normalize_path(path))
        return GridMask(self._chunks.written(node.path, base=base), "written", node)

    def changed_chunks(self, path: str) -> npt.NDArray[np.bool_]:
        """Say which chunks of an array this session has written or deleted.

        For a fork they include those that its parent had changed before. Parameters, result
        and errors are those of `written_chunks`.

        Examples
        --------
        >>> zarr.open_array(session.store, path="temperature")[1] = 17.0
        >>> session.changed_chunks("/temperature")[:, 0].tolist()
        [False, True, False, False]
        """
        node, _ = self._edits.tree.require_array(normalize_path(path))
        return GridMask(self._chunks.changed(node.path), "changed", node)

    def chunk_type(self, array_path: str, chunk_coordinates: Sequence[int]) -> ChunkType:
        """Say where the bytes of a chunk are.

        Parameters
        ----------
        array_path : str
        chunk_coordinates : sequence of int
            Coordinates outside of the chunk grid count as never written.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            If there is no such array, or a coordinate is negative.

        Examples
        --------
        >>> session.chunk_type("/temperature", (0, 0)).name
        'inline'
        """
        node, array = self._edits.tree.require_array(normalize_path(array_path))
        coordinate = tuple(map(operator.index, chunk_coordinates))
        if min(coordinate, default=0) < 0:
            raise InvalidInputError(
                f"chunk {coordinate} of {node.path!r}: coordinates cannot be negative",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
        ref = self._chunks.find(node, coordinate) if in_grid(array, coordinate) else None
        return ChunkType(int(ref.kind)) if ref is not None else ChunkType.uninitialized

    def all_virtual_chunk_locations(self) -> list[str]:
        """Return the URL of the file of each virtual chunk, for all arrays.

        Raises
        ------
        InvalidInputError
            If a location names a container that the configuration does not have.

        Examples
        --------
        >>> session.all_virtual_chunk_locations()
        []
        """
        return [
            location
            for node in self._edits.tree.nodes()
            if node.array is not None
            for location in self._virtual_locations(self._chunks.refs(node.path))
        ]

    async def chunk_coordinates(
        self, array_path: str, batch_size: int = 1000
    ) -> AsyncIterator[tuple[int, ...]]:
        """Yield the coordinates of all written chunks, in order.

        Parameters
        ----------
        array_path : str
        batch_size : int
            How many to yield at a time.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            If there is no such array.
        """
        refs = await in_thread(self._written, array_path)
        for rows in _batches(len(refs), batch_size):
            for row in refs.coords[rows].tolist():
                yield tuple(row)

    async def chunk_batches(
        self, array_path: str, batch_size: int = 100_000
    ) -> AsyncIterator[ChunkBatch]:
        """Yield the references to all written chunks, as columns, in order.

        Parameters
        ----------
        array_path : str
        batch_size : int
            At most this many rows per batch.

        Yields
        ------
        coords : uint32[n, ndim]
        kinds : uint8[n]
            Values of `ChunkType`.
        places : list of str
            URL of a virtual chunk, id of a native one, empty for an inline one.
        offsets, lengths : uint64[n]
            In bytes, in the file or object; the offset of an inline chunk is 0.
        inlined : dict of int to bytes
            The bytes of inline chunks, by row.

        Raises
        ------
        NodeNotFoundError, InvalidInputError
            If there is no such array, or a location names an unknown container.
        """
        refs = await in_thread(self._written, array_path)
        for rows in _batches(len(refs), batch_size):
            part = refs.take(np.arange(len(refs))[rows])
            yield await in_thread(self._batch, part)

    def _batch(self, refs: ChunkRefs) -> ChunkBatch:
        places = [""] * len(refs)
        if refs.chunk_id is not None:
            native = refs.kind == RefKind.NATIVE
            _put(places, native, encode_ids(refs.chunk_id[native]))
        if refs.location is not None:
            _put(places, refs.kind == RefKind.VIRTUAL, self._virtual_locations(refs))
        inline = refs.kind == RefKind.INLINE
        data = memoryview(refs.inline_data) if refs.inline_data is not None else memoryview(b"")
        starts, lengths = refs.offset[inline].tolist(), refs.length[inline].tolist()
        inlined = {
            row: bytes(data[start : start + length])
            for row, start, length in zip(
                np.flatnonzero(inline).tolist(), starts, lengths, strict=True
            )
        }
        offsets = np.where(inline, np.uint64(0), refs.offset)
        return refs.coords.copy(), refs.kind.copy(), places, offsets, refs.length.copy(), inlined

    def _virtual_locations(self, refs: ChunkRefs) -> list[str]:
        """Return the location of each virtual chunk, expanded."""
        if refs.location is None or refs.locations is None:
            return []
        which = refs.location[refs.kind == RefKind.VIRTUAL]
        used = np.flatnonzero(np.bincount(which, minlength=len(refs.locations)))
        # as objects they are picked without a step of Python for each
        expanded = np.empty(len(refs.locations), object)
        chosen = refs.locations.take(used)
        expanded[used] = np.fromiter(map(self._virtual.expand, chosen), object, len(used))
        locations: list[str] = expanded[which].tolist()
        return locations

    def _written(self, array_path: str) -> ChunkRefs:
        """Return the references within the grid of an array."""
        path = normalize_path(array_path)
        _, array = self._edits.tree.require_array(path)
        refs = self._chunks.refs(path)
        return refs.within(tuple(max(count, 1) for count in array.num_chunks))

    # -- moving ------------------------------------------------------------------------
    def shift_array(self, array_path: str, chunk_offset: Iterable[int]) -> None:
        """Move all chunks of an array by a number of chunks along each dimension.

        Chunks that leave the grid are dropped, and places left behind read as the fill value. To
        keep all chunks, resize the array first. No data are copied.

        Parameters
        ----------
        array_path : str
        chunk_offset : iterable of int
            In chunks, for each dimension; may be negative.

        Raises
        ------
        ReadOnlyError, SessionStateError
            If the session does not take edits.
        NodeNotFoundError, InvalidInputError
            If there is no such array, its chunk grid is not regular, or the offset has not
            one number per dimension.

        Examples
        --------
        >>> offset = session.shift_array("/temperature", (-1, 0))
        """
        node, array = self._movable(array_path)
        offset = tuple(map(operator.index, chunk_offset))
        if len(offset) != len(array.shape):
            raise InvalidInputError(
                f"chunk_offset {offset} for {node.path!r}, which has "
                f"{counted(len(array.shape), 'dimension')}; pass one number for each",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
        refs = self._written(node.path)
        # beyond the grid is beyond the grid, and no number overflows
        limit = 1 << 33
        steps = np.array([min(max(step, -limit), limit) for step in offset], np.int64)
        targets = refs.coords.astype(np.int64) + steps
        grid = np.maximum(np.asarray(array.num_chunks, np.int64), 1)
        inside = ((targets >= 0) & (targets < grid)).all(axis=1)
        moved = refs.take(inside).at(targets[inside])
        self._chunks.set_refs(node.path, ChunkRefs.deleted(refs.coords).overlay(moved))

    def reindex_array(
        self, array_path: str, forward: Reindexing, backward: Reindexing | None = None
    ) -> None:
        """Move each chunk of an array to where a function says.

        Only written chunks are visited, in order. If two move to the same place, the later one
        wins. A chunk that moves also stays where it was, unless another one takes its place or
        `backward` says that it must go.

        Parameters
        ----------
        array_path : str
        forward : callable
            Gets the position of a chunk as a list. Returns the new one, or None to leave it there.
        backward : callable, optional
            The inverse: gets the position of a chunk, returns where its new chunk comes from. If
            that is None, or there is no such chunk, the chunk reads as the fill value afterwards.

        Raises
        ------
        ReadOnlyError, SessionStateError
            If the session does not take edits.
        NodeNotFoundError, InvalidInputError
            If there is no such array, its chunk grid is not regular, or `forward` returns
            something that is not a position in it. Then, and if a function raises, nothing has
            changed.

        Examples
        --------
        >>> session.reindex_array("/temperature", lambda index: [3 - index[0], index[1]])
        """
        node, array = self._movable(array_path)
        refs = self._written(node.path)
        positions = refs.coords.tolist()
        cleared = [
            row
            for row, position in enumerate(positions)
            if backward is not None and not _has(refs, backward(list(position)))
        ]
        rows, targets = [], []
        for row, position in enumerate(positions):
            target = forward(list(position))
            if target is not None:
                rows.append(row)
                targets.append(_position(node, array, target))
        coords = np.array(targets, np.int64).reshape(len(targets), len(array.shape))
        moved = refs.take(np.array(rows, np.int64)).at(coords)
        gone = refs.coords[np.array(cleared, np.int64)]
        self._chunks.set_refs(node.path, ChunkRefs.deleted(gone).overlay(moved))

    def _movable(self, array_path: str) -> tuple[Node, ArrayInfo]:
        self._edits.check_editable()
        node, array = self._edits.tree.require_array(normalize_path(array_path))
        if not parse_node_metadata(node.user_data, node.path).is_regular:
            raise InvalidInputError(
                f"the chunks of {node.path!r} cannot move: its chunk grid is not regular, and "
                "they would not fit at other places",
                ErrorKind.INVALID_ARRAY_METADATA,
            )
        return node, array


def _has(refs: ChunkRefs, position: Iterable[int] | None) -> bool:
    coordinate = () if position is None else tuple(map(operator.index, position))
    return (
        position is not None
        and len(coordinate) == refs.ndim
        and min(coordinate, default=0) >= 0
        and refs.find(coordinate) >= 0
    )


def _position(node: Node, array: ArrayInfo, target: Iterable[int]) -> Coordinate:
    coordinate = tuple(map(operator.index, target))
    if min(coordinate, default=0) < 0:
        raise InvalidInputError(
            f"invalid chunk index: chunk {coordinate} lies outside the chunk grid "
            f"{array.num_chunks} of {node.path!r}",
            ErrorKind.INVALID_CHUNK_INDEX,
        )
    check_coordinate(node, array, coordinate)
    return coordinate


def _batches(count: int, size: int) -> Iterator[slice]:
    if operator.index(size) < 1:
        raise InvalidInputError(f"batch_size is {size}, it must be at least 1")
    return (slice(start, start + size) for start in range(0, count, size))


def _put(values: list[str], where: npt.NDArray[np.bool_], chosen: list[str]) -> None:
    if len(chosen) == len(values):
        values[:] = chosen
        return
    for row, value in zip(np.flatnonzero(where).tolist(), chosen, strict=True):
        values[row] = value
