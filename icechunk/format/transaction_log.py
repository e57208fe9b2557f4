"""Transaction logs: what a commit changed, as stored objects.

Icechunk spec, "Transaction log". Slots of the root: 0 id (of the snapshot), 1 new_groups,
2 new_arrays, 3 deleted_groups, 4 deleted_arrays, 5 updated_arrays, 6 updated_groups,
7 updated_chunks, 8 moved_nodes (absent in spec 1). Node ids are sorted as bytes, moves by
their new path, segment by segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from icechunk.errors import FormatError
from icechunk.format.encoding.envelope import BytesLike, FileType, unwrap, wrap
from icechunk.format.encoding.flatbuf import Batch, Tables, encode, read_root
from icechunk.format.ids import NODE_ID_SIZE, OBJECT_ID_SIZE, encode_id

__all__ = [
    "Move",
    "TransactionLog",
    "by_rank",
    "decode_transaction_log",
    "encode_transaction_log",
]

Coords = NDArray[np.uint32]

# In slot order. Arrays come before groups where nodes were updated, and only there.
_ID_LISTS: Final = (
    "new_groups",
    "new_arrays",
    "deleted_groups",
    "deleted_arrays",
    "updated_arrays",
    "updated_groups",
)
# its offset, its table with the offset of the coordinates, and their number
_SMALLEST_CHUNK: Final = 16


@dataclass(frozen=True, slots=True)
class Move:
    """One node whose path changed; a moved group lists all of its descendants too.

    Parameters
    ----------
    from_path, to_path : str
    node_id : bytes
        8 bytes.
    is_array : bool
    """

    from_path: str
    to_path: str
    node_id: bytes
    is_array: bool


@dataclass(frozen=True, eq=False)
class TransactionLog:
    """What one commit changed.

    Parameters
    ----------
    id : bytes
        That of the snapshot, 12 bytes.
    new_groups, new_arrays, deleted_groups, deleted_arrays, updated_arrays, updated_groups
        Tuples of node ids, sorted.
    updated_chunks : mapping of bytes to tuple of uint32[n, ndim]
        By node id: chunk coordinates, an array for each rank, lowest first; sorted, unique.
        Usually there is one. An array that changed its rank can have more in the log of an
        amended commit, and the official client logs whatever chunk keys were deleted.
    moved_nodes : tuple of Move
        By new path.
    """

    id: bytes
    new_groups: tuple[bytes, ...] = ()
    new_arrays: tuple[bytes, ...] = ()
    deleted_groups: tuple[bytes, ...] = ()
    deleted_arrays: tuple[bytes, ...] = ()
    updated_arrays: tuple[bytes, ...] = ()
    updated_groups: tuple[bytes, ...] = ()
    updated_chunks: Mapping[bytes, tuple[Coords, ...]] = field(default_factory=dict)
    moved_nodes: tuple[Move, ...] = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TransactionLog):
            return NotImplemented
        mine, theirs = self.updated_chunks, other.updated_chunks
        return (
            (self.id, self.moved_nodes) == (other.id, other.moved_nodes)
            and all(getattr(self, name) == getattr(other, name) for name in _ID_LISTS)
            and mine.keys() == theirs.keys()
            and all(_equal(mine[node], theirs[node]) for node in mine)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def nbytes(self) -> int:
        """The memory that it takes, roughly."""
        ids = sum(len(getattr(self, name)) for name in _ID_LISTS) + len(self.updated_chunks)
        chunks = sum(part.nbytes for parts in self.updated_chunks.values() for part in parts)
        return 500 + 100 * ids + chunks + 1000 * len(self.moved_nodes)

    def merge(self, newer: TransactionLog, id: bytes) -> TransactionLog:
        """Return the log of an amended commit: this one, with `newer` on top.

        Nothing cancels out: a node may be new and deleted (Icechunk spec, "Amend").
        Moves of a node become one, and none if it is back where it was.

        Parameters
        ----------
        newer : TransactionLog
        id : bytes
            The snapshot that replaces both.
        """
        lists = {
            name: tuple(sorted({*getattr(self, name), *getattr(newer, name)})) for name in _ID_LISTS
        }
        chunks = dict(self.updated_chunks)
        for node, parts in newer.updated_chunks.items():
            chunks[node] = by_rank([*chunks.get(node, ()), *parts])
        moves = {move.node_id: move for move in self.moved_nodes}
        for move in newer.moved_nodes:
            first = moves.get(move.node_id, move)
            moves[move.node_id] = Move(first.from_path, move.to_path, move.node_id, move.is_array)
        moved = (move for move in moves.values() if move.from_path != move.to_path)
        return TransactionLog(
            id, **lists, updated_chunks=dict(sorted(chunks.items())), moved_nodes=_by_path(moved)
        )


def encode_transaction_log(
    log: TransactionLog, *, level: int = 3, spec_version: int = 2
) -> bytearray:
    """Return a transaction log as a stored object; `level` is that of zstd.

    Raises
    ------
    InvalidInputError
        If it does not fit in one file.
    """
    root = Batch(1)
    root.struct(0, _id_rows([log.id], OBJECT_ID_SIZE))
    for slot, name in enumerate(_ID_LISTS, 1):
        ids = sorted(getattr(log, name))
        root.vector(slot, _id_rows(ids, NODE_ID_SIZE), [0, len(ids)])

    nodes = sorted(log.updated_chunks)
    parts = [log.updated_chunks[node] for node in nodes]
    arrays = Batch(len(nodes))
    arrays.struct(0, _id_rows(nodes, NODE_ID_SIZE))
    batches = [_coords_batch(coords) for coords in parts]
    arrays.children(1, batches, np.cumsum([0, *(batch.n for batch in batches)]).tolist())
    root.children(7, arrays, [0, len(nodes)])

    if spec_version > 1:  # nodes cannot be moved in spec 1
        root.children(8, _moves_batch(_by_path(log.moved_nodes)), [0, len(log.moved_nodes)])
    payload = encode(root, too_large="commit the changes in several steps")
    return wrap(payload, FileType.TRANSACTION_LOG, level=level, spec_version=spec_version)


def _moves_batch(moves: tuple[Move, ...]) -> Batch:
    moved = Batch(len(moves))
    moved.text(0, [move.from_path for move in moves])
    moved.text(1, [move.to_path for move in moves])
    moved.struct(2, _id_rows([move.node_id for move in moves], NODE_ID_SIZE))
    moved.scalar(3, [move.is_array for move in moves], np.uint8, default=None)
    return moved


def decode_transaction_log(data: BytesLike, name: str) -> TransactionLog:
    """Read a transaction log of spec 1 or 2.

    Parameters
    ----------
    data : bytes-like
        The stored object.
    name : str
        Its key, for errors.

    Raises
    ------
    FormatError
        If it is not a transaction log, or a damaged one.
    """
    payload, _ = unwrap(data, FileType.TRANSACTION_LOG, name)
    root = read_root(payload, name)
    snapshot_id, _ = root.struct(0, OBJECT_ID_SIZE, "id")
    lists: dict[str, Any] = {}
    for slot, kind in enumerate(_ID_LISTS, 1):
        rows, _ = root.vector(slot, np.uint8, kind, required=True, columns=NODE_ID_SIZE)
        lists[kind] = tuple(sorted(set(_id_list(rows))))
    return TransactionLog(
        snapshot_id.tobytes(),
        **lists,
        updated_chunks=_read_chunks(root, name),
        moved_nodes=_read_moves(root, name),
    )


def by_rank(parts: Iterable[Coords]) -> tuple[Coords, ...]:
    """Return some chunk coordinates as a transaction log has them.

    Parameters
    ----------
    parts : iterable of uint32[n, ndim]
        In any order, of any ranks, with repetitions.

    Returns
    -------
    tuple of uint32[n, ndim]
        An array for each rank that occurs, lowest first; rows sorted and unique.
    """
    ranks: dict[int, list[Coords]] = {}
    for part in parts:
        if len(part):
            ranks.setdefault(part.shape[1], []).append(part)
    return tuple(_sorted_unique(np.concatenate(ranks[ndim])) for ndim in sorted(ranks))


def _equal(a: Sequence[Coords], b: Sequence[Coords]) -> bool:
    return len(a) == len(b) and all(map(np.array_equal, a, b))


def _read_chunks(root: Tables, name: str) -> dict[bytes, tuple[Coords, ...]]:
    arrays, _ = root.children(7, "updated_chunks", required=True)
    ids, _ = arrays.struct(0, NODE_ID_SIZE, "updated_chunks.node_id")
    chunks, ends = arrays.children(1, "chunks", required=True, smallest=_SMALLEST_CHUNK)
    flat, cuts = chunks.vector(0, "<u4", "coords", required=True)
    ranks = np.diff(cuts)
    result: dict[bytes, tuple[Coords, ...]] = {}
    for node, (start, end) in zip(_id_list(ids), pairwise(ends.tolist()), strict=True):
        if node in result:
            raise FormatError(
                f"{name}: updated_chunks: array {encode_id(node)} occurs twice; the file is damaged"
            )
        own = ranks[start:end]
        numbers = flat[cuts[start] : cuts[end]]
        distinct, counts = np.unique(own, return_counts=True)
        rank_of_number = np.repeat(own, own) if len(distinct) > 1 else distinct
        result[node] = by_rank(
            numbers[np.broadcast_to(rank_of_number == ndim, numbers.shape)].reshape(count, ndim)
            for ndim, count in zip(distinct.tolist(), counts.tolist(), strict=True)
        )
    return result


def _read_moves(root: Tables, name: str) -> tuple[Move, ...]:
    moved, _ = root.children(8, "moved_nodes")
    before = moved.text(0, "moved_nodes.from", required=True)
    after = moved.text(1, "moved_nodes.to", required=True)
    ids, _ = moved.struct(2, NODE_ID_SIZE, "moved_nodes.node_id")
    kinds = moved.scalar(3, np.uint8, field="moved_nodes.node_type")
    if (kinds > 1).any():
        raise FormatError(f"{name}: moved_nodes: a node of an unknown type")
    rows = zip(before, after, _id_list(ids), kinds.tolist(), strict=True)
    return _by_path(Move(a or "", b or "", node, bool(kind)) for a, b, node, kind in rows)


def _coords_batch(parts: Sequence[Coords]) -> Batch:
    if len(parts) == 1:
        batch = Batch(len(parts[0]))
        batch.matrix(0, parts[0])
        return batch
    # all ranks in one order: (1,), (1, 0), (2,)
    rows = sorted(row for part in parts for row in map(tuple, part.tolist()))
    batch = Batch(len(rows))
    flat = np.array([number for row in rows for number in row], np.uint32)
    batch.vector(0, flat, np.cumsum([0, *map(len, rows)]))
    return batch


def _by_path(moves: Iterable[Move]) -> tuple[Move, ...]:
    return tuple(sorted(moves, key=lambda move: move.to_path.split("/")))


def _sorted_unique(coords: Coords) -> Coords:
    """Return the distinct rows in lexicographic order."""
    if coords.shape[1] == 0:
        return coords[:1]
    rising = np.zeros(max(len(coords) - 1, 0), np.bool_)
    tie = ~rising
    for axis in coords.T:
        rising |= tie & (axis[1:] > axis[:-1])
        tie &= axis[1:] == axis[:-1]
    if rising.all():  # as every writer leaves them
        return coords
    order = np.lexsort(coords.T[::-1])
    ordered = coords[order]
    keep = np.ones(len(coords), np.bool_)
    keep[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return ordered[keep]


def _id_rows(ids: list[bytes], size: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), size)


def _id_list(rows: NDArray[Any]) -> list[bytes]:
    return [row.tobytes() for row in rows]
