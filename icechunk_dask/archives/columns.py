"""Columns of a table as bytes: integers by their differences, in as few bytes as they take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.errors import FormatError
from icechunk.kerchunk.tables import StringHeap
from icechunk.repository.stored_json import compressed, decompressed, first_unpacked, packed

__all__ = ["Columns", "decode", "encode", "heap_of", "joined_heaps", "rows_in"]

#: A column: values, or texts.
Columns = dict[str, "npt.NDArray[Any] | StringHeap"]

#: Begins a frame that Zstandard skips (RFC 8878, 3.1.2): readers of JSON alone see only JSON.
_SKIPPABLE: Final = b"\x50\x2a\x4d\x18"
_SIZE: Final = 4
_STEPS: Final = {f"steps of <{name}": f"<{name}" for name in ("i1", "i2", "i4", "i8")}
#: So few texts are looked up one by one.
_FEW: Final = 8
_OTHERS: Final = ("|u1", "<u4", "<f8")


def heap_of(texts: Sequence[str]) -> StringHeap:
    """Return texts as a heap, repeated texts included."""
    heap, index = StringHeap.from_strings(texts)
    return heap if len(heap) == len(texts) else heap.take(index)


def joined_heaps(first: StringHeap, second: StringHeap) -> StringHeap:
    """Return several heaps as one, repeated texts included."""
    data = np.concatenate([first.data, second.data])
    return StringHeap(data, np.append(first.offsets[:-1], second.offsets + len(first.data)))


def rows_in(heap: StringHeap, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the positions of texts in a heap of distinct ones, -1 for those that it lacks.

    Returns
    -------
    int64[len(texts)]
    """
    if len(texts) <= _FEW and all(texts):
        return np.asarray([_row_in(heap, text.encode()) for text in texts], np.int64)
    wanted, index = StringHeap.from_strings(texts)
    _, (own, where) = StringHeap.merge([heap, wanted])
    if len(own) and int(own.max()) + 1 != len(own):
        raise _twice()
    rows = where.astype(np.int64)
    return np.where(rows < len(heap), rows, -1)[index]


def _row_in(heap: StringHeap, text: bytes) -> int:
    """Return the position of one text without looking at each of the others."""
    data = heap.data.tobytes()
    found, at = -1, data.find(text)
    while at >= 0:
        # empty texts begin there too
        row = int(np.searchsorted(heap.offsets, at, side="right")) - 1
        if heap.offsets[row] == at and heap.offsets[row + 1] == at + len(text):
            if found >= 0:
                raise _twice()
            found = row
        at = data.find(text, at + 1)
    return found


def _twice() -> FormatError:
    return FormatError("the table of an archive has the same location twice")


def encode(document: Mapping[str, Any], columns: Columns) -> bytes:
    """Return a document of JSON and columns as bytes.

    Parameters
    ----------
    document : mapping
        It has no key ``"columns"``.
    columns : dict of str to array or StringHeap
        Arrays are int64, or of other types of fixed size. Objects become JSON.
    """
    listed, blobs = [], []
    for name, column in columns.items():
        if isinstance(column, StringHeap):
            for part, values in (("data", column.data), ("lengths", np.diff(column.offsets))):
                form, blob = _as_bytes(values)
                listed.append([f"{name}.{part}", form, len(values), len(blob)])
                blobs.append(blob)
        else:
            form, blob = _as_bytes(column)
            listed.append([name, form, len(column), len(blob)])
            blobs.append(blob)
    stored = compressed(b"".join(blobs))
    return packed({**document, "columns": listed}) + b"".join(
        [_SKIPPABLE, len(stored).to_bytes(_SIZE, "little"), stored]
    )


def decode(data: bytes) -> tuple[dict[str, Any], Columns]:
    """Return a document and its columns; a document of plain JSON has none.

    Raises
    ------
    ValueError, KeyError, TypeError
        If the bytes are damaged.
    """
    document, rest = first_unpacked(data)
    if not isinstance(document, dict):
        raise ValueError("it is no mapping")
    if "columns" not in document:
        if rest:
            raise ValueError("followed by other bytes")
        return document, {}
    start = len(_SKIPPABLE) + _SIZE
    size = int.from_bytes(rest[len(_SKIPPABLE) : start], "little")
    if rest[: len(_SKIPPABLE)] != _SKIPPABLE or len(rest) != start + size:
        raise ValueError("its columns are missing")
    raw, more = decompressed(rest[start:])
    if more:
        raise ValueError("followed by other bytes")
    columns: Columns = {}
    at = 0
    for name, form, count, length in document.pop("columns"):
        if not all(isinstance(n, int) and 0 <= n <= len(raw) for n in (count, length)):
            raise ValueError(f"its column {name!r} has no length")
        blob = raw[at : at + length]
        at += length
        if len(blob) != length:
            raise ValueError(f"its column {name!r} is cut")
        columns[name] = _unpacked(form, count, blob)
    for name in [name.removesuffix(".data") for name in columns if name.endswith(".data")]:
        texts, lengths = columns.pop(f"{name}.data"), columns.pop(f"{name}.lengths")
        assert not isinstance(texts, StringHeap) and not isinstance(lengths, StringHeap)
        if texts.dtype != np.uint8 or lengths.dtype != np.int64:
            raise ValueError(f"its column {name!r} holds no texts")
        columns[name] = StringHeap(texts, np.append(0, np.cumsum(lengths)))
    return document, columns


def _as_bytes(values: npt.NDArray[Any]) -> tuple[str, bytes]:
    if values.dtype == object:
        return "json", json.dumps(values.tolist()).encode()
    if values.dtype == np.int64:
        # differences may overflow, and the sums are right nevertheless
        steps = np.diff(values, prepend=np.int64(0))
        low, high = (int(steps.min()), int(steps.max())) if len(steps) else (0, 0)
        for form, dtype in _STEPS.items():
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return form, steps.astype(dtype).tobytes()
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return little.dtype.str, little.tobytes()


def _unpacked(form: str, count: int, blob: bytes) -> npt.NDArray[Any]:
    values: npt.NDArray[Any]
    if form == "json":
        listed = json.loads(blob)
        if not isinstance(listed, list) or any(
            isinstance(value, bool) or not isinstance(value, int | float | str) for value in listed
        ):
            raise ValueError("a column holds what is no number and no text")
        values = np.empty(len(listed), object)
        values[:] = listed
    elif form in _STEPS:
        values = np.cumsum(np.frombuffer(blob, _STEPS[form]).astype(np.int64))
    elif form == "|b1":
        values = np.frombuffer(blob, np.uint8) != 0
    elif form in _OTHERS:
        values = np.frombuffer(blob, form)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
    else:
        raise ValueError(f"a column has the unknown form {form!r}")
    if len(values) != count:
        raise ValueError("a column has another length than it says")
    return values
