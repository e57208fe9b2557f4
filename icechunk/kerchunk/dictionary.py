"""References in a dictionary: versions 0 and 1 of the kerchunk specification."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from icechunk.base.texts import counted
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.kerchunk.locations import Normalizer
from icechunk.kerchunk.tables import (
    IN_PLACE,
    METADATA_NAMES,
    WHOLE_FILE,
    ChunkKeys,
    ChunkTable,
    consolidated,
    document_of,
    is_array,
    payload_of,
    refuse,
)
from icechunk.kerchunk.templates import Templates

__all__ = ["DictReferences"]


class DictReferences:
    """References in a dictionary: versions 0 and 1, with templates and generated references.

    Parameters
    ----------
    references : mapping
    normalize : Normalizer

    Raises
    ------
    InvalidInputError
        If they are malformed, or a key belongs to no array.
    """

    def __init__(self, references: Mapping[str, Any], normalize: Normalizer) -> None:
        self._normalize = normalize
        version = references.get("version")
        self._expand: Callable[[str, str], str] | None = None
        if version is None and not isinstance(references.get("refs"), Mapping):
            refs: Mapping[str, Any] = references
        elif version in (None, 1):
            refs = references.get("refs", {})
            if not isinstance(refs, Mapping):
                refuse("refs", "is not a dictionary")
            templates = Templates(references.get("templates") or {})
            self._expand = templates.expand
            generated = references.get("gen") or []
            if generated:
                refs = {**refs, **templates.generate(generated)}
        else:
            raise InvalidInputError(
                f"kerchunk references of version {version!r} are unknown; expected 0 or 1",
                ErrorKind.INVALID_VIRTUAL_REF,
            )
        self.documents: dict[str, Any] = {}
        chunks: list[str] = []
        for key, value in refs.items():
            if not isinstance(key, str):
                refuse(str(key), "keys must be texts")
            name = key.rpartition("/")[2]
            if name in METADATA_NAMES:
                if value is not None:
                    self.documents[key] = document_of(key, value)
            elif name == ".zmetadata":
                for part, document in consolidated(key, value).items():
                    self.documents.setdefault(part, document)
            else:
                chunks.append(key)
        self._chunks = self._by_array(chunks, refs)

    def _by_array(
        self, keys: list[str], refs: Mapping[str, Any]
    ) -> dict[str, tuple[list[str], list[Any]]]:
        """Sort references to the arrays that they belong to: names there, and values."""
        found: dict[str, tuple[list[str], list[Any]]] = {
            key.rpartition("/")[0]: ([], [])
            for key, document in self.documents.items()
            if is_array(key, document)
        }
        for key in keys:
            path = key
            while True:
                path, _, _ = path.rpartition("/")
                if path in found:
                    break
                if not path:
                    refuse(key, "belongs to no array: there is no .zarray above it")
            names, values = found[path]
            names.append(key[len(path) + 1 :] if path else key)
            values.append(refs[key])
        return found

    def count(self, keys: ChunkKeys) -> int:
        """Return how many references of an array there are."""
        return len(self._chunks[keys.path][0])

    def table(self, keys: ChunkKeys, progress: Callable[[int], None]) -> ChunkTable:
        """Return where the chunks of an array are."""
        names, values = self._chunks[keys.path]
        expand, normalize = self._expand, self._normalize
        rows: list[int] = []
        urls: list[str] = []
        ranges: list[tuple[int, int]] = []
        places: list[int] = []
        payloads: list[bytes] = []
        for i, value in enumerate(values):
            if isinstance(value, list | tuple):
                size = len(value)
                if size not in (1, 3):
                    refuse(keys.key(names[i]), f"{value!r} is not [url] or [url, offset, length]")
                url = value[0]
                if not url:
                    if url is None or url == "":
                        continue
                    refuse(keys.key(names[i]), f"{url!r} is not a URL")
                if not isinstance(url, str):
                    refuse(keys.key(names[i]), f"{url!r} is not a URL")
                if size == 1:
                    ranges.append((0, WHOLE_FILE))
                else:
                    _, offset, length = value
                    if type(offset) is not int or type(length) is not int:
                        offset, length = _whole_numbers(keys.key(names[i]), offset, length)
                    if not 0 <= offset < 2**63 or not 0 <= length < 2**63:
                        refuse(
                            keys.key(names[i]),
                            f"offset {offset} and length {length} must be from 0 to 2**63 - 1",
                        )
                    if not length:
                        continue
                    ranges.append((offset, length))
                if expand is not None and "{{" in url:
                    url = expand(keys.key(names[i]), url)
                try:
                    urls.append(normalize(url))
                except InvalidInputError as exc:
                    refuse(keys.key(names[i]), str(exc))
                rows.append(i)
            elif value is not None:
                data = payload_of(keys.key(names[i]), value)
                if data:
                    places.append(i)
                    payloads.append(data)
        coords = _coordinates([names[i] for i in (*rows, *places)], keys)
        heap, location = StringHeap.from_strings(urls)
        inline = len(places)
        span = np.asarray([*ranges, *((0, len(data)) for data in payloads)], np.int64)
        progress(len(values))
        return ChunkTable(
            coords,
            np.concatenate([location, np.full(inline, IN_PLACE, np.int32)]),
            heap,
            span[:, 0] if len(span) else np.empty(0, np.int64),
            span[:, 1] if len(span) else np.empty(0, np.int64),
            payloads,
        )


def _whole_numbers(key: str, *values: Any) -> Iterator[int]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer):
            refuse(key, f"{value!r} is not a number of bytes")
        if value != int(value):
            refuse(key, f"{value!r} is not a whole number of bytes")
        yield int(value)


def _coordinates(names: Sequence[str], keys: ChunkKeys) -> npt.NDArray[np.uint32]:
    """Return the coordinates that chunk names mean: uint32[n, ndim]."""
    ndim = len(keys.grid)
    if not names:
        return np.empty((0, ndim), np.uint32)
    if not ndim:
        for count, name in enumerate(names):
            # kerchunk calls it "" where it makes references of GRIB that hold no values
            if name != keys.scalar and (name or keys.prefix):
                refuse(keys.key(name), f"the only chunk of a scalar array is {keys.scalar!r}")
            if count:
                refuse(keys.key(name), "a scalar array has one chunk, and this is a second one")
        return np.zeros((len(names), 0), np.uint32)
    start = len(keys.prefix)
    numbers = [name[start:] for name in names] if start else names
    flat = np.asarray(keys.separator.join(numbers).split(keys.separator), np.str_)
    if not (
        flat.size == ndim * len(names)
        and all(name.count(keys.separator) == ndim - 1 for name in numbers)
        and all(name.startswith(keys.prefix) for name in names)
        and _plain_numbers(flat)
    ):
        number = "(?:0|[1-9][0-9]{0,9})"
        pattern = re.compile(
            re.escape(keys.prefix) + re.escape(keys.separator).join([number] * ndim)
        )
        wrong = next(name for name in names if not pattern.fullmatch(name))
        example = keys.prefix + keys.separator.join("0" * ndim)
        refuse(
            keys.key(wrong),
            f"{wrong!r} is not a chunk of an array of {counted(ndim, 'dimension')}; expected a "
            f"key like "
            f"{example!r}",
        )
    table = flat.astype(np.int64).reshape(len(names), ndim)
    outside = (table >= np.asarray(keys.grid, np.int64)).any(axis=1)
    if outside.any():
        wrong = names[int(outside.argmax())]
        refuse(keys.key(wrong), f"the array has only {keys.grid} chunks")
    return table.astype(np.uint32)


def _plain_numbers(texts: npt.NDArray[np.str_]) -> bool:
    """Whether all texts are numbers of up to ten digits, without leading zeros."""
    width = texts.dtype.itemsize // 4
    codes = texts.view(np.uint32).reshape(-1, width)
    digits = ((codes >= ord("0")) & (codes <= ord("9"))) | (codes == 0)
    padded = (codes[:, 0] == ord("0")) & (codes[:, 1:2] != 0).any(axis=1)
    return 0 < width <= 10 and bool(digits.all() and codes[:, 0].all() and not padded.any())
