"""The chunk references of one array: a sorted set of rows.

Icechunk spec, "Manifest": a reference says where the bytes of one chunk are. They may
be in an object of the repository (native), in a foreign file (virtual), or in the
reference itself (inline).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.errors import ErrorKind, FormatError, InvalidInputError
from icechunk.format import chunk_columns
from icechunk.format.chunk_columns import Bools, ChunkColumns, Coords, Places, Rows, coordinates
from icechunk.format.chunk_ref import ChunkRef, RefKind
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.format.ids import OBJECT_ID_SIZE

__all__ = ["ChunkRef", "ChunkRefs", "RefKind", "optional_strings"]

Extents = tuple[tuple[int, int], ...]

_REQUIRED: Final = {"coords", "kind", "offset", "length"}
_STORED: Final = _REQUIRED | {
    "chunk_id",
    "location",
    "locations_data",
    "locations_offsets",
    "etag",
    "etags_data",
    "etags_offsets",
    "last_modified",
    "inline_data",
}


class ChunkRefs(ChunkColumns):
    """References of one array, sorted by coordinates, at most one for each chunk. Immutable.

    The columns are described at `ChunkColumns`. Made by `empty`, `native`, `virtual`,
    `inline`, `deleted`, `from_rows`, `from_columns` and `concatenate`.
    """

    __slots__ = ("_extents", "_keys")

    def __init__(self, **columns: Any) -> None:
        super().__init__(**columns)
        self._keys: npt.NDArray[Any] | None = None
        self._extents: Extents | None = None

    # ---- constructors

    @classmethod
    def empty(cls, ndim: int) -> ChunkRefs:
        """Return no references of an array of `ndim` dimensions."""
        return cls.deleted(np.empty((0, ndim), np.uint32))

    @classmethod
    def from_columns(
        cls,
        coords: npt.ArrayLike,
        kind: npt.ArrayLike,
        offset: npt.ArrayLike,
        length: npt.ArrayLike,
        *,
        chunk_id: npt.ArrayLike | None = None,
        location: npt.ArrayLike | None = None,
        locations: StringHeap | None = None,
        etag: npt.ArrayLike | None = None,
        etags: StringHeap | None = None,
        last_modified: npt.ArrayLike | None = None,
        inline_data: npt.NDArray[np.uint8] | None = None,
        last_wins: bool = False,
    ) -> ChunkRefs:
        """Check columns and sort them.

        Columns with the dtypes below that are already sorted, as in a manifest, are taken
        without a copy: do not change them afterwards. One number stands for a column of
        equal numbers.

        Parameters
        ----------
        coords : uint32[n, ndim]
        kind : uint8[n]
        offset, length : uint64[n]
            Of inline references the range in `inline_data`.
        chunk_id : uint8[n, 12], optional
            Rows that are not native do not matter.
        location : int32[n], optional
            Index into `locations`. Rows that are not virtual do not matter.
        locations : StringHeap, optional
        etag : int32[n], optional
            Index into `etags`, -1 for none. Rows that are not virtual do not matter.
        etags : StringHeap, optional
        last_modified : uint32[n], optional
            Seconds since the epoch, 0 for none.
        inline_data : uint8[size], optional
        last_wins : bool
            If several rows are for one chunk, keep the last. Default: refuse them.

        Raises
        ------
        InvalidInputError
            If columns do not fit together, a row lacks what its kind needs, an index or
            range leaves its heap, or a chunk occurs twice.
        """
        columns = chunk_columns.checked(
            coords,
            kind,
            offset,
            length,
            chunk_id,
            location,
            locations,
            etag,
            etags,
            last_modified,
            inline_data,
        )
        table = columns["coords"]
        extents = _extents(table)
        keys = _keys(table, extents)
        if _rising(keys):
            refs = cls(**columns)
            refs._extents = extents
            return refs
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        last = np.ones(len(keys), np.bool_)
        np.not_equal(keys[1:], keys[:-1], out=last[:-1])
        if not last_wins and not last.all():
            raise InvalidInputError(
                f"chunk {table[order[last.argmin()]].tolist()} occurs more than once",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
        return cls(**chunk_columns.select(columns, order[last]))

    @classmethod
    def native(
        cls,
        coords: npt.ArrayLike,
        ids: npt.NDArray[np.uint8] | Sequence[bytes],
        lengths: npt.ArrayLike,
        offsets: npt.ArrayLike = 0,
    ) -> ChunkRefs:
        """Refer to chunk objects of the repository.

        Parameters
        ----------
        coords : uint32[n, ndim]
        ids : uint8[n, 12] or sequence of n bytes objects
        lengths, offsets : uint64[n] or one number for all
        """
        if not isinstance(ids, np.ndarray):
            if any(len(i) != OBJECT_ID_SIZE for i in ids):
                raise InvalidInputError(f"a chunk id has {OBJECT_ID_SIZE} bytes")
            ids = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, OBJECT_ID_SIZE)
        return cls.from_columns(coords, RefKind.NATIVE, offsets, lengths, chunk_id=ids)

    @classmethod
    def virtual(
        cls,
        coords: npt.ArrayLike,
        locations: Sequence[str],
        offsets: npt.ArrayLike,
        lengths: npt.ArrayLike,
        etags: Sequence[str | None] | None = None,
        last_modified: npt.ArrayLike | None = None,
    ) -> ChunkRefs:
        """Refer to foreign files.

        Parameters
        ----------
        coords : uint32[n, ndim]
        locations : sequence of n URLs
            Equal ones are stored once.
        offsets, lengths : uint64[n] or one number for all
        etags : sequence of n strings or None, optional
        last_modified : uint32[n] or one number for all, optional
            Seconds since the epoch, 0 for none.
        """
        heap, location = StringHeap.from_strings(locations)
        etag_heap, etag = (None, None) if etags is None else optional_strings(etags)
        return cls.from_columns(
            coords,
            RefKind.VIRTUAL,
            offsets,
            lengths,
            location=location,
            locations=heap,
            etag=etag,
            etags=etag_heap,
            last_modified=last_modified,
        )

    @classmethod
    def inline(cls, coords: npt.ArrayLike, payloads: Sequence[bytes]) -> ChunkRefs:
        """Hold chunks themselves.

        Parameters
        ----------
        coords : uint32[n, ndim]
        payloads : sequence of n bytes objects
        """
        data, offsets, lengths = _payloads(payloads)
        return cls.from_columns(coords, RefKind.INLINE, offsets, lengths, inline_data=data)

    @classmethod
    def deleted(cls, coords: npt.ArrayLike) -> ChunkRefs:
        """Say that chunks are deleted.

        Parameters
        ----------
        coords : uint32[n, ndim]
        """
        return cls.from_columns(coords, RefKind.DELETED, 0, 0)

    @classmethod
    def from_rows(
        cls, coords: Sequence[Sequence[int]], refs: Sequence[ChunkRef], ndim: int
    ) -> ChunkRefs:
        """Store references given as objects.

        Parameters
        ----------
        coords : sequence of n coordinates
        refs : sequence of n references
        ndim : int
            Needed if there is no row to derive it from.
        """
        no_id = bytes(OBJECT_ID_SIZE)
        ids = b"".join([no_id if ref.chunk_id is None else ref.chunk_id for ref in refs])
        locations, location = optional_strings([ref.location for ref in refs])
        etags, etag = optional_strings([ref.etag for ref in refs])
        data, begins, _ = _payloads([ref.data or b"" for ref in refs])
        kind = np.array([ref.kind for ref in refs], np.uint8)
        offset = np.array([ref.offset for ref in refs], np.uint64)
        return cls.from_columns(
            np.array(coords, np.int64).reshape(len(refs), ndim),
            kind,
            np.where(kind == RefKind.INLINE, begins, offset),
            np.array([ref.length for ref in refs], np.uint64),
            chunk_id=np.frombuffer(ids, np.uint8).reshape(-1, OBJECT_ID_SIZE),
            location=location,
            locations=locations,
            etag=etag,
            etags=etags,
            last_modified=np.array([ref.last_modified for ref in refs], np.uint32),
            inline_data=data,
        )

    # ---- reading

    def find(self, coord: Sequence[int]) -> int:
        """Return the row of one chunk, -1 if it has none.

        Raises
        ------
        InvalidInputError
            If `coord` does not have `ndim` numbers.
        """
        _check_rank(self.ndim, len(coord))
        number = 0
        for c, (low, high) in zip(coord, self.extents(), strict=True):
            if not low <= c < high:
                return -1
            number = number * (high - low) + int(c) - low
        keys = self._search_keys()
        key: Any = np.uint64(number) if keys.dtype == np.uint64 else _wide_key(coord)
        row = int(keys.searchsorted(key))
        return row if row < len(keys) and keys[row] == key else -1

    def find_many(self, coords: npt.ArrayLike) -> Rows:
        """Return the rows of many chunks.

        Parameters
        ----------
        coords : uint32[m, ndim]

        Returns
        -------
        int64[m]
            -1 where a chunk has no row.
        """
        table = coordinates(coords)
        _check_rank(self.ndim, table.shape[1])
        result = np.full(len(table), -1, np.int64)
        if not len(self):
            return result
        inside = np.ones(len(table), np.bool_)
        for axis, (low, high) in enumerate(self.extents()):
            inside &= (table[:, axis] >= low) & (table[:, axis] < high)
        asked = np.flatnonzero(inside)
        wanted = _keys(table[asked], self.extents())
        keys = self._search_keys()
        found = keys.searchsorted(wanted)
        hit = keys[np.minimum(found, len(keys) - 1)] == wanted
        result[asked[hit]] = found[hit]
        return result

    def extents(self) -> Extents:
        """Return the bounding box: [from, to) per dimension, or () if there is none."""
        if self._extents is None:
            self._extents = _extents(self.coords)
        return self._extents

    @property
    def nbytes(self) -> int:
        """Memory in bytes, with the search key that the first search makes."""
        key_size = 8 if _fits(self.extents()) else 4 * self.ndim
        return super().nbytes + key_size * len(self)

    # ---- sets

    def take(self, rows_or_mask: npt.NDArray[np.integer] | Bools) -> ChunkRefs:
        """Return some of the references; heaps are cut to what they use.

        Parameters
        ----------
        rows_or_mask : int[m] or bool[n]
            Rows, in any order and also repeated, or a mask.
        """
        if rows_or_mask.dtype == np.bool_:
            if len(rows_or_mask) != len(self):
                raise InvalidInputError(
                    f"a mask of {len(rows_or_mask)} values for {len(self)} references"
                )
            rows = np.flatnonzero(rows_or_mask)
        else:
            rows = rows_or_mask.astype(np.int64)
            if not _rising(rows):
                rows = np.unique(rows)
            if len(rows) and not 0 <= rows[0] <= rows[-1] < len(self):
                raise InvalidInputError(f"a row is not one of the {len(self)} references")
        if len(rows) == len(self):
            return self
        return ChunkRefs(**chunk_columns.select(self.columns(), rows))

    def within(self, grid: Sequence[int]) -> ChunkRefs:
        """Return the references of chunks that a grid has, usually all of them."""
        _check_rank(self.ndim, len(grid))
        if all(high <= count for (_, high), count in zip(self.extents(), grid, strict=True)):
            return self
        return self.take((self.coords < np.asarray(grid, np.int64)).all(axis=1))

    def at(self, coords: npt.ArrayLike) -> ChunkRefs:
        """Return the same references at other coordinates.

        Parameters
        ----------
        coords : uint32[n, ndim]
            One for each row. If several rows get the same place, the last is kept.
        """
        columns = {**self.columns(), "coords": coords}
        return ChunkRefs.from_columns(**columns, last_wins=True)

    def without_deleted(self) -> ChunkRefs:
        """Return all references that are not deletions."""
        return self.take(self.kind != RefKind.DELETED)

    def overlay(self, other: ChunkRefs) -> ChunkRefs:
        """Return both, where `other` wins; its deletions stay rows."""
        return self.concatenate(self.ndim, [self, other])

    @classmethod
    def concatenate(cls, ndim: int, parts: Iterable[ChunkRefs]) -> ChunkRefs:
        """Join any number of parts. If several rows are for one chunk, the last part wins.

        It temporarily needs about 40 bytes a row, besides the parts and the result.

        Parameters
        ----------
        ndim : int
            That of all parts; needed where there is none.
        parts : iterable of ChunkRefs

        Raises
        ------
        InvalidInputError
            If a part has another `ndim`.
        """
        return _concatenate(ndim, list(parts))[0]

    @classmethod
    def merge_all(cls, parts: Sequence[ChunkRefs]) -> tuple[ChunkRefs, Coords]:
        """Join parts as `concatenate` does, and say where they contradict each other.

        Parameters
        ----------
        parts : sequence of ChunkRefs
            At least one.

        Returns
        -------
        merged : ChunkRefs
        clashes : uint32[k, ndim], sorted
            Chunks to which parts give different values.
        """
        ndim = parts[0].ndim
        merged, places = _concatenate(ndim, parts)
        if len(merged) == sum(map(len, parts)):
            return merged, np.empty((0, ndim), np.uint32)
        count = np.zeros(len(merged), np.int64)
        for place in places:
            count[place] += 1
        clash = np.zeros(len(merged), np.bool_)
        for part, place in zip(parts, places, strict=True):
            # if all values of a chunk equal the last one, they are equal
            rows = np.flatnonzero(count[place] > 1)
            if len(rows):
                winners = merged.take(place[rows])
                clash[place[rows]] |= chunk_columns.different(part.take(rows), winners)
        return merged, merged.coords[clash]

    def conflicts(self, other: ChunkRefs) -> Coords:
        """Return the chunks to which both give values that differ.

        Returns
        -------
        uint32[k, ndim], sorted
        """
        ours = self.find_many(other.coords)
        theirs = np.flatnonzero(ours >= 0)
        mine = self.take(ours[theirs])
        differ = chunk_columns.different(mine, other.take(theirs))
        return np.asarray(mine.coords[differ], np.uint32)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChunkRefs):
            return NotImplemented
        if not np.array_equal(self.coords, other.coords):
            return False
        return not chunk_columns.different(self, other).any()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        counts = np.bincount(self.kind, minlength=len(RefKind)).tolist()
        named = "".join(f", {counts[k]} {k.name.lower()}" for k in RefKind if counts[k])
        return f"ChunkRefs(ndim={self.ndim}{named})"

    # ---- serialisation, by `to_columns` and back

    @classmethod
    def from_stored_columns(
        cls, ndim: int, columns: Mapping[str, npt.NDArray[Any]], name: str
    ) -> ChunkRefs:
        """Rebuild from what `to_columns` returned, after checking it.

        Parameters
        ----------
        ndim : int
            The expected number of dimensions.
        columns : mapping of str to ndarray
        name : str
            Where the columns come from, for the error.

        Raises
        ------
        FormatError
            If a column is missing, unknown, or does not fit.
        """
        arguments: dict[str, Any] = dict(columns)
        try:
            if not _REQUIRED <= set(columns) <= _STORED:
                raise InvalidInputError(f"unexpected columns {sorted(columns)}")
            for heap in ("locations", "etags"):
                data = arguments.pop(f"{heap}_data", None)
                offsets = arguments.pop(f"{heap}_offsets", None)
                if data is not None and offsets is not None:
                    arguments[heap] = StringHeap(data, offsets)
            refs = cls.from_columns(**arguments)
            _check_rank(ndim, refs.ndim)
        except InvalidInputError as error:
            raise FormatError(f"{name}: chunk references: {error}") from error
        return refs

    def __reduce__(self) -> tuple[object, ...]:
        return ChunkRefs.from_stored_columns, (self.ndim, self.to_columns(), "pickle")

    def _search_keys(self) -> npt.NDArray[Any]:
        if self._keys is None:
            self._keys = _keys(self.coords, self.extents())
        return self._keys


def _concatenate(ndim: int, parts: Sequence[ChunkRefs]) -> tuple[ChunkRefs, list[Places]]:
    """Join parts, and also return where each row of each part is in the result."""
    for part in parts:
        _check_rank(ndim, part.ndim)
    filled = [part for part in parts if len(part)]
    if len(filled) < 2:
        places: list[Places] = [np.arange(len(part)) for part in parts]
        return filled[0] if filled else ChunkRefs.empty(ndim), places
    boxes = [part.extents() for part in filled]
    box = tuple(
        (min(low for low, _ in axis), max(high for _, high in axis))
        for axis in zip(*boxes, strict=True)
    )
    keys = np.concatenate([_keys(part.coords, box) for part in parts])
    bounds = np.cumsum([0, *map(len, parts)]).tolist()
    if _rising(keys):  # the pieces of an array that is cut along its first dimension
        runs = [slice(begin, end) for begin, end in pairwise(bounds)]
        joined = ChunkRefs(**chunk_columns.join(parts, runs, len(keys)))
        return joined, [np.arange(run.start, run.stop) for run in runs]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    new = np.ones(len(keys), np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    del keys
    rank = np.cumsum(new, dtype=np.int64)
    rank -= 1
    count = int(rank[-1]) + 1
    # the smallest dtype: these stay while the columns are filled
    position = np.empty(len(order), np.min_scalar_type(count))
    position[order] = rank
    del order, rank, new
    places = [position[begin:end] for begin, end in pairwise(bounds)]
    return ChunkRefs(**chunk_columns.join(parts, places, count)), places


def _extents(coords: Coords) -> Extents:
    if not len(coords):
        return ((0, 0),) * int(coords.shape[1])
    # one column at a time: NumPy is slow at reducing many short rows
    return tuple((int(column.min()), int(column.max()) + 1) for column in coords.T)


def _fits(extents: Extents) -> bool:
    size = 1
    for low, high in extents:
        size *= max(high - low, 1)
    return size <= 2**64


def _keys(coords: Coords, extents: Extents) -> npt.NDArray[Any]:
    """Map coordinates inside a box to values that sort like them.

    Numbers where the box has at most 2**64 places, else the coordinates as
    big-endian bytes.
    """
    if not _fits(extents):
        return coords.astype(">u4").view(f"S{4 * coords.shape[1]}").ravel()
    keys = np.zeros(len(coords), np.uint64)
    for axis, (low, high) in enumerate(extents):
        if axis:
            keys *= np.uint64(max(high - low, 1))
        keys += coords[:, axis] - np.uint32(low)
    return keys


def _wide_key(coord: Sequence[int]) -> bytes:
    # NumPy cuts NUL bytes from the end of the keys that it returns
    return b"".join(int(c).to_bytes(4, "big") for c in coord).rstrip(b"\0")


def _rising(keys: npt.NDArray[Any]) -> bool:
    return bool((keys[1:] > keys[:-1]).all())


def _check_rank(ndim: int, other: int) -> None:
    if ndim != other:
        raise InvalidInputError(
            f"coordinates of {other} dimensions for an array of {ndim}",
            ErrorKind.INVALID_CHUNK_INDEX,
        )


def optional_strings(
    strings: Sequence[str | None],
) -> tuple[StringHeap, npt.NDArray[np.int32]]:
    """Store strings; the index of None is -1."""
    heap, numbers = StringHeap.from_strings([s for s in strings if s is not None])
    index = np.full(len(strings), -1, np.int32)
    index[[s is not None for s in strings]] = numbers
    return heap, index


def _payloads(
    payloads: Sequence[bytes],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    lengths = np.fromiter(map(len, payloads), np.uint64, len(payloads))
    return np.frombuffer(b"".join(payloads), np.uint8), np.cumsum(lengths) - lengths, lengths
