"""References in a Parquet store, read as columns."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.errors import InvalidInputError
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.kerchunk.locations import Normalizer
from icechunk.kerchunk.reading import ReferenceFiles
from icechunk.kerchunk.tables import (
    IN_PLACE,
    WHOLE_FILE,
    ChunkKeys,
    ChunkTable,
    consolidated,
    document_of,
    payload_of,
    refuse,
)

__all__ = ["ParquetReferences"]

#: How many records of a Parquet store are fetched at the same time.
_CONCURRENCY: Final = 4
#: Up to this many records are requested one by one; beyond, a listing says which exist.
_FEW: Final = 10_000
_RECORD: Final = re.compile(r"refs\.(0|[1-9][0-9]{0,17})\.parq")
#: A record says how many rows it has, and missing chunks take no space.
_FREE_ROWS: Final = 1 << 21
_ROWS_PER_BYTE: Final = 64


class ParquetReferences:
    """References in a Parquet store, read record by record.

    A record is a file ``<array>/refs.<number>.parq`` with `record_size` rows, one for each
    chunk in C order, in the columns `path`, `offset`, `size` and `raw`.

    Parameters
    ----------
    files : ReferenceFiles
    root : str
        The folder, there.
    metadata : bytes
        Its ``.zmetadata``.
    normalize : Normalizer

    Raises
    ------
    InvalidInputError
        If ``.zmetadata`` is malformed.
    """

    def __init__(
        self, files: ReferenceFiles, root: str, metadata: bytes, normalize: Normalizer
    ) -> None:
        self._files = files
        self._root = root
        self._normalize = normalize
        self.documents: dict[str, Any] = consolidated(".zmetadata", metadata)
        size = document_of(".zmetadata", metadata).get("record_size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            refuse(".zmetadata", f"record_size is {size!r}, expected a number of references")
        self._record_size = size

    def count(self, keys: ChunkKeys) -> int:
        """Return how many chunks the grid of an array has."""
        return math.prod(keys.grid)

    def table(self, keys: ChunkKeys, progress: Callable[[int], None]) -> ChunkTable:
        """Return where the chunks of an array are."""
        total = math.prod(keys.grid)
        numbers = self._numbers(keys, -(-total // self._record_size))
        parts: list[_Record] = []
        payloads: list[bytes] = []
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            done = pool.map(lambda number: self._record(keys, number, total), numbers)
            for record, data in done:
                progress(record.size)
                if len(record.rows):
                    parts.append(record)
                    payloads += data
        return _joined(parts, payloads, keys.grid)

    def _numbers(self, keys: ChunkKeys, count: int) -> Sequence[int]:
        """Return the numbers of the records to request: a store may declare any number."""
        if count <= _FEW:
            return range(count)
        names = self._files.names(f"{self._root}/{keys.path}".rstrip("/") + "/")
        if names is None:
            refuse(
                keys.path,
                f"has {count} records; of a web server, which has no listings, {_FEW} are read",
            )
        found = []
        for name in names:
            number = _RECORD.fullmatch(name)
            if number is not None and int(number[1]) < count:
                found.append(int(number[1]))
        return sorted(found)

    def _record(self, keys: ChunkKeys, number: int, total: int) -> tuple[_Record, list[bytes]]:
        """Return the chunks of one record, and the bytes of those held in the references."""
        name = keys.key(f"refs.{number}.parq")
        first = number * self._record_size
        expected = min(self._record_size, total - first)
        try:
            data = self._files.read(f"{self._root}/{name}")
        except FileNotFoundError:
            # nothing was written there: all its chunks are missing
            return _Record.empty(expected), []
        columns = _read_parquet(name, data, expected)
        raw = columns.get("raw")
        inline = _given(raw) if raw is not None else np.zeros(expected, np.bool_)
        codes, urls = _categories(columns.get("path"), expected)
        offset = _numbers(name, columns, "offset", expected)
        length = _numbers(name, columns, "size", expected)
        named = (codes >= 0) & ~inline
        # both zero: the whole file
        whole = named & (length == 0) & (offset == 0)
        length = np.where(whole, WHOLE_FILE, length)
        present = inline | (named & (length != 0))
        payloads: list[bytes] = []
        if raw is not None and inline.any():
            held = [payload_of(name, value) for value in raw[inline].tolist()]
            sizes = np.fromiter(map(len, held), np.int64, len(held))
            payloads = [value for value in held if value]
            offset[inline], length[inline] = 0, sizes
            present[inline] = sizes > 0
        try:
            heap, index = StringHeap.from_strings([self._normalize(url) for url in urls])
        except InvalidInputError as exc:
            refuse(name, str(exc))
        location = np.full(expected, IN_PLACE, np.int32)
        location[named] = index[codes[named]]
        rows = np.flatnonzero(present)
        record = _Record(expected, rows + first, location[rows], heap, offset[rows], length[rows])
        return record, payloads


@dataclass
class _Record:
    """The chunks of one record that are not missing; `rows` are their numbers in C order."""

    size: int
    rows: npt.NDArray[np.int64]
    location: npt.NDArray[np.int32]
    heap: StringHeap
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]

    @staticmethod
    def empty(size: int = 0) -> _Record:
        numbers = np.empty(0, np.int64)
        heap, index = StringHeap.from_strings([])
        return _Record(size, numbers, index, heap, numbers, numbers)


def _read_parquet(name: str, data: bytes, expected: int) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of a record, cut to the rows that stand for chunks."""
    try:
        from fastparquet import ParquetFile
    except ImportError:
        raise ImportError(
            "reading references from Parquet needs fastparquet: pip install 'icechunk[virtual]'"
        ) from None
    try:
        file = ParquetFile(io.BytesIO(data))
        rows = file.count()
        # a frame is made for as many as are declared
        if rows <= max(_FREE_ROWS, _ROWS_PER_BYTE * len(data)):
            frame = file.to_pandas()
    except Exception as exc:  # whatever damage makes of it
        refuse(name, f"is not a readable Parquet file: {exc}")
    if rows > max(_FREE_ROWS, _ROWS_PER_BYTE * len(data)):
        refuse(name, f"declares {rows} rows in {len(data)} bytes")
    if len(frame) < expected:
        refuse(name, f"has {len(frame)} rows instead of {expected}")
    if "path" not in frame and "raw" not in frame:
        refuse(name, f"has the columns {sorted(frame)}, neither 'path' nor 'raw'")
    return {column: frame[column].array[:expected] for column in frame}


def _given(values: Any) -> npt.NDArray[np.bool_]:
    return ~np.asarray(values.isna(), np.bool_)


def _categories(values: Any, expected: int) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return distinct texts and the index of each row's, -1 for none."""
    if values is None:
        return np.full(expected, -1, np.int64), []
    if hasattr(values, "codes"):
        codes, texts = np.asarray(values.codes, np.int64), list(values.categories)
    else:
        codes, found = values.factorize()
        codes, texts = np.asarray(codes, np.int64), list(found)
    if not all(texts):
        # an empty text is not a URL either
        kept = np.asarray(list(map(bool, texts)))
        codes = np.where(kept[codes], (np.cumsum(kept) - 1)[codes], -1)
        texts = list(filter(None, texts))
    return codes, texts


def _numbers(
    name: str, columns: Mapping[str, Any], column: str, expected: int
) -> npt.NDArray[np.int64]:
    if column not in columns:
        return np.zeros(expected, np.int64)
    values = np.asarray(columns[column])
    if values.dtype.kind not in "iuf" or (values < 0).any() or np.isnan(values).any():
        refuse(name, f"the column {column!r} must be sizes in bytes, not {values.dtype}")
    return values.astype(np.int64)


def _joined(parts: list[_Record], payloads: list[bytes], grid: tuple[int, ...]) -> ChunkTable:
    """Join records, a column at a time: there may be millions of rows."""
    if not parts:
        parts = [_Record.empty()]
    heap, maps = StringHeap.merge([part.heap for part in parts])
    for part, moved in zip(parts, maps, strict=True):
        named = part.location != IN_PLACE
        part.location[named] = moved[part.location[named]]
    location = np.concatenate([part.location for part in parts])
    named = location != IN_PLACE
    used = np.zeros(len(heap), np.bool_)
    used[location[named]] = True
    if not used.all():
        # only files of chunks without bytes, which no container need allow
        location[named] = (np.cumsum(used) - 1)[location[named]]
        heap = heap.take(np.flatnonzero(used))
    offset = np.concatenate([part.offset for part in parts])
    length = np.concatenate([part.length for part in parts])
    rows = np.concatenate([part.rows for part in parts])
    parts.clear()
    coords = np.empty((len(rows), len(grid)), np.uint32)
    for axis in range(len(grid) - 1, -1, -1):
        coords[:, axis] = rows % grid[axis]
        rows //= grid[axis]
    return ChunkTable(coords, location, heap, offset, length, payloads)
