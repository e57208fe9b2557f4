"""Chunk references as columns, in any order: checking, selecting, joining, comparing.

Rows are canonical: fields that the kind of a row does not use are zero, or -1 for an index,
and columns that no row uses are None. Equal values thus mean equal columns, except for
the order of strings and payloads in their heaps. A column of equal numbers, as most are
where chunks are native, is held as one number, of which the column is a view.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.chunk_ref import ChunkRef, RefKind
from icechunk.format.encoding import spans
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.format.ids import OBJECT_ID_SIZE

__all__ = ["ChunkColumns", "checked", "coordinates", "different", "join", "range_ends", "select"]

Bools = npt.NDArray[np.bool_]
Coords = npt.NDArray[np.uint32]
Index = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]
Places = npt.NDArray[np.integer]

_HEAPS: Final = ("locations", "etags", "inline_data")
#: No object is larger.
_LAST: Final = np.uint64((1 << 63) - 1)


def range_ends(
    offset: npt.NDArray[np.unsignedinteger], length: npt.NDArray[np.unsignedinteger]
) -> npt.NDArray[np.int64]:
    """Return where byte ranges end; in an object that nobody has, if a sum is too large."""
    start = np.minimum(offset, _LAST)
    ends: npt.NDArray[np.uint64] = start + np.minimum(length, _LAST - start)
    return ends.astype(np.int64)


class ChunkColumns:
    """Rows of chunk references. The constructor trusts its arguments.

    Attributes
    ----------
    ndim : int
        Number of dimensions; an array without dimensions has at most one chunk.
    coords : uint32[n, ndim]
        Position of each chunk in the chunk grid.
    kind : uint8[n]
        Values of `RefKind`.
    offset, length : uint64[n]
        Byte range in the chunk object or foreign file; of inline references the range
        in `inline_data`; 0 where deleted.
    chunk_id : uint8[n, 12] or None
        Zeros where not native. None if no reference is native.
    location : int32[n] or None
        Index into `locations`, -1 where not virtual. None if no reference is virtual.
    etag : int32[n] or None
        Index into `etags`, -1 where there is none. None if there is none at all.
    last_modified : uint32[n] or None
        Seconds since the epoch, 0 where there is none. None if there is none at all.
    locations, etags : StringHeap or None
        Distinct strings; None together with their index.
    inline_data : uint8[size] or None
        Payloads of inline references. None if no reference is inline.
    """

    __slots__ = (
        "chunk_id",
        "coords",
        "etag",
        "etags",
        "inline_data",
        "kind",
        "last_modified",
        "length",
        "location",
        "locations",
        "ndim",
        "offset",
    )

    def __init__(
        self,
        coords: Coords,
        kind: npt.NDArray[np.uint8],
        offset: npt.NDArray[np.uint64],
        length: npt.NDArray[np.uint64],
        chunk_id: npt.NDArray[np.uint8] | None = None,
        location: Index | None = None,
        locations: StringHeap | None = None,
        etag: Index | None = None,
        etags: StringHeap | None = None,
        last_modified: npt.NDArray[np.uint32] | None = None,
        inline_data: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        virtual = location is not None and bool((kind == RefKind.VIRTUAL).any())
        with_etag = virtual and etag is not None and bool((etag >= 0).any())
        with_time = virtual and last_modified is not None and bool(last_modified.any())
        native = chunk_id is not None and bool((kind == RefKind.NATIVE).any())
        inline = inline_data is not None and bool((kind == RefKind.INLINE).any())
        self.ndim: int = coords.shape[1]
        self.coords = _frozen(coords)
        self.kind = _numbers(kind)
        self.offset = _numbers(offset)
        self.length = _numbers(length)
        self.chunk_id = _frozen(chunk_id) if native else None
        self.location = _frozen(location) if virtual else None
        self.locations = locations if virtual else None
        self.etag = _frozen(etag) if with_etag else None
        self.etags = etags if with_etag else None
        self.last_modified = _frozen(last_modified) if with_time else None
        self.inline_data = _frozen(inline_data) if inline else None

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """Where the byte range of each ends, see `range_ends`."""
        return range_ends(self.offset, self.length)

    def __len__(self) -> int:
        return len(self.kind)

    def columns(self) -> dict[str, Any]:
        """Return the arguments with which the constructor would make an equal object."""
        return {name: getattr(self, name) for name in ChunkColumns.__slots__ if name != "ndim"}

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        size: int = self.coords.nbytes
        for column in (self.kind, self.offset, self.length):
            size += column.itemsize if _is_one_number(column) else column.nbytes
        for other in (
            self.chunk_id,
            self.location,
            self.locations,
            self.etag,
            self.etags,
            self.last_modified,
            self.inline_data,
        ):
            size += 0 if other is None else other.nbytes
        return size

    @property
    def kinds(self) -> set[RefKind]:
        """The kinds that there are among the references."""
        if len(self) == 1 or _is_one_number(self.kind):
            return {RefKind(int(self.kind[0]))}
        return {kind for kind in RefKind if (self.kind == kind).any()}

    @property
    def count_virtual(self) -> int:
        """Number of virtual references."""
        if self.location is None:
            return 0
        return int(np.count_nonzero(self.kind == RefKind.VIRTUAL))

    def row(self, index: int) -> ChunkRef:
        """Return one reference as an object."""
        kind = RefKind(int(self.kind[index]))
        offset, length = int(self.offset[index]), int(self.length[index])
        if self.chunk_id is not None and kind == RefKind.NATIVE:
            return ChunkRef(kind, self.chunk_id[index].tobytes(), offset, length)
        if self.inline_data is not None and kind == RefKind.INLINE:
            return ChunkRef.inline(self.inline_data[offset : offset + length].tobytes())
        if self.location is not None and self.locations is not None and kind == RefKind.VIRTUAL:
            etag = None
            if self.etag is not None and self.etags is not None and self.etag[index] >= 0:
                etag = self.etags[int(self.etag[index])]
            modified = 0 if self.last_modified is None else int(self.last_modified[index])
            location = self.locations[int(self.location[index])]
            return ChunkRef(kind, None, offset, length, location, etag, modified)
        return ChunkRef.deleted()

    def to_columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return the existing columns, heaps as `<name>_data` and `<name>_offsets`.

        A column of equal numbers has no dimension.
        """
        columns = {
            "coords": self.coords,
            "kind": _packed(self.kind),
            "offset": _packed(self.offset),
            "length": _packed(self.length),
            "chunk_id": self.chunk_id,
            "location": self.location,
            "locations_data": None if self.locations is None else self.locations.data,
            "locations_offsets": None if self.locations is None else self.locations.offsets,
            "etag": self.etag,
            "etags_data": None if self.etags is None else self.etags.data,
            "etags_offsets": None if self.etags is None else self.etags.offsets,
            "last_modified": self.last_modified,
            "inline_data": self.inline_data,
        }
        return {name: column for name, column in columns.items() if column is not None}


def checked(
    coords: npt.ArrayLike,
    kind: npt.ArrayLike,
    offset: npt.ArrayLike,
    length: npt.ArrayLike,
    chunk_id: npt.ArrayLike | None = None,
    location: npt.ArrayLike | None = None,
    locations: StringHeap | None = None,
    etag: npt.ArrayLike | None = None,
    etags: StringHeap | None = None,
    last_modified: npt.ArrayLike | None = None,
    inline_data: npt.NDArray[np.uint8] | None = None,
) -> dict[str, Any]:
    """Return the arguments of a constructor, made from untrusted columns.

    A single number stands for a whole column.

    Raises
    ------
    InvalidInputError
        If columns do not fit together, a row lacks what its kind needs, or an index or
        range leaves its heap.
    """
    table = coordinates(coords)
    count = len(table)
    kinds = _column(kind, np.uint8, "kind", (count,))
    if count and kinds.max() > RefKind.INLINE:
        raise InvalidInputError(f"{int(kinds.max())} is not a kind of chunk reference")
    is_kind = [kinds == k for k in RefKind]
    stored = ~is_kind[RefKind.DELETED]
    offsets = _cleared(_column(offset, np.uint64, "offset", (count,)), stored, 0)
    lengths = _cleared(_column(length, np.uint64, "length", (count,)), stored, 0)
    given = {"coords": table, "kind": kinds, "offset": offsets, "length": lengths}
    rows = is_kind[RefKind.NATIVE]
    if rows.any():
        if chunk_id is None:
            raise InvalidInputError("native chunk references need chunk_id")
        ids = _column(chunk_id, np.uint8, "chunk_id", (count, OBJECT_ID_SIZE))
        given["chunk_id"] = _cleared(ids, rows, 0)
    rows = is_kind[RefKind.VIRTUAL]
    if rows.any():
        if location is None or locations is None:
            raise InvalidInputError("virtual chunk references need location and locations")
        given["location"] = _index(location, rows, 0, len(locations), "location")
        given["locations"] = locations
        if etag is not None:
            given["etag"] = _index(etag, rows, -1, 0 if etags is None else len(etags), "etag")
            given["etags"] = etags
        if last_modified is not None:
            seconds = _column(last_modified, np.uint32, "last_modified", (count,))
            given["last_modified"] = _cleared(seconds, rows, 0)
    rows = is_kind[RefKind.INLINE]
    if rows.any():
        if inline_data is None or inline_data.dtype != np.uint8 or inline_data.ndim != 1:
            raise InvalidInputError("inline chunk references need inline_data as uint8[size]")
        size = np.uint64(len(inline_data))
        begins, sizes = offsets[rows], lengths[rows]
        if ((begins > size) | (sizes > size - np.minimum(begins, size))).any():
            raise InvalidInputError("an inline chunk lies outside inline_data")
        given["inline_data"] = inline_data
    return given


def coordinates(coords: npt.ArrayLike) -> Coords:
    """Return coordinates as uint32[n, ndim].

    Raises
    ------
    InvalidInputError
        If they have another shape, or are not integers that fit.
    """
    table = _integers(coords, np.uint32, "coordinates")
    if table.ndim != 2:
        raise InvalidInputError(
            f"coordinates must have the shape (n, ndim), not {table.shape}",
            ErrorKind.INVALID_CHUNK_INDEX,
        )
    return table


def _integers(values: npt.ArrayLike, dtype: Any, name: str) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.dtype == dtype:
        return array
    if array.size == 0:
        return np.zeros(array.shape, dtype)
    limits = np.iinfo(dtype)
    if array.dtype.kind not in "iu" or array.min() < limits.min or array.max() > limits.max:
        raise InvalidInputError(
            f"{name} of chunk references must be integers from {limits.min} to {limits.max}"
        )
    return array.astype(dtype)


def _column(values: npt.ArrayLike, dtype: Any, name: str, shape: tuple[int, ...]) -> Any:
    array = _integers(values, dtype, name)
    if array.ndim == 0:
        return np.broadcast_to(array.astype(dtype), shape)
    if array.shape != shape:
        raise InvalidInputError(f"{name} must have the shape {shape}, not {array.shape}")
    return array


def _cleared(column: npt.NDArray[Any], rows: Bools, fill: int) -> npt.NDArray[Any]:
    """Set a value in all rows but some."""
    if rows.all():
        return column
    column = column.copy()
    column[~rows] = fill
    return column


def _index(values: npt.ArrayLike, rows: Bools, lowest: int, size: int, name: str) -> Index:
    index = _column(values, np.int32, name, (len(rows),))
    used = index[rows]
    if used.min() < lowest or used.max() >= size:
        raise InvalidInputError(f"{name} must be an index of one of {size} strings")
    return _cleared(index, rows, -1)


def select(columns: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    """Return the arguments of a constructor for some rows, in the order of `rows`."""
    is_run = len(rows) > 0 and bool((rows == np.arange(rows[0], rows[0] + len(rows))).all())
    run = slice(int(rows[0]), int(rows[-1]) + 1) if is_run else slice(0)

    def picked(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # a copy of a run costs a tenth; a view would keep all of a much larger column
        return column[run].copy() if is_run else column[rows]

    return compact(
        {
            name: value if value is None or name in _HEAPS else picked(value)
            for name, value in columns.items()
        }
    )


def join(
    parts: Sequence[ChunkColumns], places: Sequence[Places | slice], count: int
) -> dict[str, Any]:
    """Return the arguments of a constructor for rows of several parts.

    Parameters
    ----------
    places : sequence of int[len(parts[k])] or slice
        The target of each row of each part. If two go to one place, the later part wins.
    count : int
        Number of places; every one is taken.
    """

    def scatter(
        name: str, columns: Iterable[npt.NDArray[Any] | None] | None = None, fill: int = 0
    ) -> Any:
        given = [getattr(part, name) for part in parts]
        model = next((column for column in given if column is not None), None)
        if model is None:
            return None
        result = np.full((count, *model.shape[1:]), fill, model.dtype)
        for place, column in zip(places, given if columns is None else columns, strict=True):
            result[place] = fill if column is None else column
        return result

    locations, location = _join_strings([p.locations for p in parts], [p.location for p in parts])
    etags, etag = _join_strings([p.etags for p in parts], [p.etag for p in parts])
    inline_data, offsets = _join_payloads(parts)
    columns = {
        "coords": scatter("coords"),
        "kind": scatter("kind"),
        "offset": scatter("offset", offsets),
        "length": scatter("length"),
        "chunk_id": scatter("chunk_id"),
        "location": scatter("location", location, -1),
        "locations": locations,
        "etag": scatter("etag", etag, -1),
        "etags": etags,
        "last_modified": scatter("last_modified"),
        "inline_data": inline_data,
    }
    # without the losing rows, every string and payload is still used
    return columns if count == sum(map(len, parts)) else compact(columns)


def compact(columns: dict[str, Any]) -> dict[str, Any]:
    """Drop strings and payloads that no row uses from the arguments of a constructor."""
    for name, heap in (("location", "locations"), ("etag", "etags")):
        if columns.get(name) is not None:
            columns[name], columns[heap] = _used_strings(columns[name], columns[heap])
    data = columns.get("inline_data")
    if data is not None:
        rows = np.flatnonzero(columns["kind"] == RefKind.INLINE)
        sizes = columns["length"][rows].astype(np.int64)
        if int(sizes.sum()) != len(data):
            offset = columns["offset"].copy()
            starts = offset[rows].astype(np.int64)
            columns["inline_data"], begins = spans.gather(data, starts, sizes)
            offset[rows] = begins[:-1]
            columns["offset"] = offset
    return columns


def different(left: ChunkColumns, right: ChunkColumns) -> Bools:
    """Compare the values, not the coordinates, of rows pairwise."""
    result: Bools = (left.kind != right.kind) | (left.length != right.length)
    inline = left.kind == RefKind.INLINE
    result |= (left.offset != right.offset) & ~inline
    if left.chunk_id is not None and right.chunk_id is not None:
        result |= (left.chunk_id != right.chunk_id).any(axis=1)
    for ours, theirs in (
        _join_strings([left.locations, right.locations], [left.location, right.location])[1],
        _join_strings([left.etags, right.etags], [left.etag, right.etag])[1],
    ):
        result |= (-1 if ours is None else ours) != (-1 if theirs is None else theirs)
    time = 0 if left.last_modified is None else left.last_modified
    result |= time != (0 if right.last_modified is None else right.last_modified)
    if left.inline_data is not None and right.inline_data is not None:
        rows = np.flatnonzero(inline & ~result)
        result[rows] = ~spans.equal(
            left.inline_data,
            left.offset[rows].astype(np.int64),
            right.inline_data,
            right.offset[rows].astype(np.int64),
            left.length[rows].astype(np.int64),
        )
    return result


def _join_strings(
    heaps: Sequence[StringHeap | None], columns: Sequence[Index | None]
) -> tuple[StringHeap | None, Iterator[Index | None]]:
    """Join heaps and translate, one at a time, the columns that point into them."""
    present = [heap for heap in heaps if heap is not None]
    if not present:
        return None, iter(columns)
    joined, maps = StringHeap.merge(present)
    remaining = iter(maps)
    # the last entry of a map is what the index -1 finds
    return joined, (
        None if column is None else np.append(next(remaining), np.int32(-1))[column]
        for column in columns
    )


def _join_payloads(
    parts: Sequence[ChunkColumns],
) -> tuple[npt.NDArray[np.uint8] | None, Iterator[npt.NDArray[np.uint64]]]:
    """Join payloads and translate, one at a time, the offsets of all rows."""
    payloads = [part.inline_data for part in parts if part.inline_data is not None]
    if not payloads:
        return None, (part.offset for part in parts)
    sizes = [0 if part.inline_data is None else len(part.inline_data) for part in parts]
    bases = accumulate(sizes, initial=0)
    return np.concatenate(payloads), (
        part.offset + (part.kind == RefKind.INLINE) * np.uint64(base)
        for part, base in zip(parts, bases, strict=False)
    )


def _used_strings(index: Index, heap: StringHeap) -> tuple[Index, StringHeap]:
    # the last entry is what the index -1 finds
    is_used = np.zeros(len(heap) + 1, np.bool_)
    is_used[index] = True
    is_used[-1] = False
    used = np.flatnonzero(is_used)
    if len(used) == len(heap):
        return index, heap
    numbers = np.full(len(heap) + 1, -1, np.int32)
    numbers[used] = np.arange(len(used), dtype=np.int32)
    return numbers[index], heap.take(used)


def _numbers(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Freeze a column; hold one of equal numbers as one."""
    if len(column) < 2 or (column != column[0]).any():
        frozen: npt.NDArray[Any] = _frozen(column)
        return frozen
    # as `np.broadcast_to` does, which takes ten times as long
    one = column[:1].copy()
    view: npt.NDArray[Any] = np.ndarray(column.shape, one.dtype, one.data, strides=(0,))
    view.setflags(write=False)
    return view


def _packed(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the number for a column that `_numbers` holds as one."""
    return column[:1].reshape(()) if _is_one_number(column) else column


def _is_one_number(column: npt.NDArray[Any]) -> bool:
    """Whether `_numbers` holds a column as one number."""
    return len(column) > 1 and column.strides == (0,)


def _frozen(array: Any) -> Any:
    view = np.ascontiguousarray(array).view()
    view.setflags(write=False)
    return view
