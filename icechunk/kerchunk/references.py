"""Reading kerchunk references in all their forms.

The rules are those of the kerchunk documentation ("References specification", versions 0
and 1, and "Parquet storage") and, where it is silent, what fsspec's reference filesystem
does. A set of references is Zarr metadata, and for each array a table of where its chunks
are. A dictionary is read once; a Parquet store record by record.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from icechunk.errors import ErrorKind, InvalidInputError, StorageError
from icechunk.format.string_heap import StringHeap
from icechunk.kerchunk.locations import Normalizer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

try:
    import fsspec
except ImportError as error:
    raise ImportError(
        "icechunk.kerchunk reads references through fsspec: pip install 'icechunk[virtual]'"
    ) from error

__all__ = ["ChunkKeys", "ChunkTable", "DictReferences", "ParquetReferences", "open_references"]

#: Length of a reference to a whole file, until somebody has asked for its size.
WHOLE_FILE: Final = -1
#: Location of a row whose bytes are in the references.
IN_PLACE: Final = -1

_METADATA: Final = (".zarray", ".zgroup", ".zattrs", "zarr.json")
_EXPRESSION: Final = re.compile(r"\{\{\s*(.*?)\s*\}\}")
#: Records of a Parquet store that are fetched at the same time.
_CONCURRENCY: Final = 4


def refuse(key: str, reason: str, kind: ErrorKind = ErrorKind.INVALID_VIRTUAL_REF) -> NoReturn:
    """Refuse references because of one key.

    Raises
    ------
    InvalidInputError
    """
    raise InvalidInputError(f"reference {key!r}: {reason}", kind)


@dataclass(frozen=True)
class ChunkKeys:
    """How the keys of an array's chunks look.

    Parameters
    ----------
    path : str
        Of the array within the references, without slashes at its ends.
    grid : tuple of int
        Chunks along each dimension.
    separator : {".", "/"}
    prefix : str
        What stands before the first number: ``"c/"`` with the default encoding of Zarr v3.
    scalar : str
        The key of the only chunk of an array without dimensions.
    """

    path: str
    grid: tuple[int, ...]
    separator: str = "."
    prefix: str = ""
    scalar: str = "0"

    def key(self, name: str) -> str:
        """Return the key of a chunk from its name within the array."""
        return f"{self.path}/{name}" if self.path else name


@dataclass(frozen=True)
class ChunkTable:
    """Where the chunks of one array are; missing ones have no row.

    Attributes
    ----------
    coords : uint32[n, ndim]
    location : int32[n]
        Index into `locations`; `IN_PLACE` where the bytes are in `payloads`.
    locations : StringHeap
        Distinct, as Icechunk stores them.
    offset, length : int64[n]
        In bytes; of a reference to a whole file 0 and `WHOLE_FILE`.
    payloads : list of bytes
        Of the rows that are in place, in their order.
    """

    coords: npt.NDArray[np.uint32]
    location: npt.NDArray[np.int32]
    locations: StringHeap
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    payloads: list[bytes]


class References(Protocol):
    """A set of references."""

    documents: dict[str, Any]
    """Zarr metadata by key, such as ``"group/array/.zarray"``."""

    def count(self, keys: ChunkKeys) -> int:
        """Return how many references of an array there are to look at."""

    def table(self, keys: ChunkKeys, progress: Callable[[int], None]) -> ChunkTable:
        """Return where the chunks of an array are.

        Parameters
        ----------
        keys : ChunkKeys
        progress : callable
            Called with the number of references that were looked at since the last call.

        Raises
        ------
        InvalidInputError
            If a reference is malformed or of a chunk that the array does not have.
        """


def open_references(
    references: Mapping[str, Any] | str,
    normalize: Normalizer,
    storage_options: Mapping[str, Any] | None = None,
) -> References:
    """Return references in any form.

    Parameters
    ----------
    references : mapping, str or path
        A dictionary, or the URL or path of a JSON file, which may be compressed with zstd
        or gzip, or of a Parquet store.
    normalize : Normalizer
        For the URLs of references.
    storage_options : mapping, optional
        For fsspec, to read the references.

    Raises
    ------
    InvalidInputError
        If they are malformed; the message names the key.
    StorageError
        If they cannot be read.
    """
    if isinstance(references, Mapping):
        return DictReferences(references, normalize)
    url = str(references)
    try:
        fs, path = fsspec.core.url_to_fs(url, **(storage_options or {}))
        metadata = path.rstrip("/") + "/.zmetadata"
        if fs.exists(metadata):
            return ParquetReferences(fs, path.rstrip("/"), fs.cat_file(metadata), normalize)
        data = fs.cat_file(path)
    except (OSError, ImportError, ValueError) as exc:
        if isinstance(exc, InvalidInputError):
            raise
        raise StorageError(f"the references at {url} cannot be read: {exc}") from exc
    return DictReferences(_parse(data, url), normalize)


def _parse(data: bytes, url: str) -> Mapping[str, Any]:
    try:
        if data.startswith(b"\x28\xb5\x2f\xfd"):
            data = zstd.decompress(data)
        elif data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        document = json.loads(data)
    except (ValueError, EOFError, OSError, RecursionError, zstd.ZstdError) as exc:
        raise InvalidInputError(
            f"{url} holds no kerchunk references, neither JSON nor a Parquet store: {exc}",
            ErrorKind.INVALID_VIRTUAL_REF,
        ) from None
    if not isinstance(document, dict):
        raise InvalidInputError(
            f"{url} holds no kerchunk references: expected a JSON object, not "
            f"{type(document).__name__}",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    return document


def _document(key: str, value: Any) -> dict[str, Any]:
    """Return a metadata document, given as JSON or as what it means."""
    document = value
    if not isinstance(value, Mapping):
        data = _payload(key, value)
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as exc:
            refuse(key, f"is not JSON: {exc}", ErrorKind.BAD_METADATA)
    if not isinstance(document, Mapping):
        refuse(key, "is not a JSON object", ErrorKind.BAD_METADATA)
    return dict(document)


def _payload(key: str, value: Any) -> bytes:
    """Return the bytes that a reference holds itself."""
    if isinstance(value, str):
        data = value.encode()
    elif isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
    elif hasattr(value, "to_bytes") and not isinstance(value, int):
        data = value.to_bytes()  # a buffer of zarr
    else:
        refuse(key, f"{value!r} is neither data nor [url, offset, length]")
    if data.startswith(b"base64:"):
        try:
            return base64.b64decode(data[7:], validate=True)
        except binascii.Error as exc:
            refuse(key, f"its base64 data is damaged: {exc}")
    return data


# -- dictionaries ----------------------------------------------------------------------
class DictReferences:
    """References in a dictionary: versions 0 and 1, with templates and generated ones.

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
            templates = _Templates(references.get("templates") or {})
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
            if name in _METADATA:
                if value is not None:
                    self.documents[key] = _document(key, value)
            elif name == ".zmetadata":
                for part, document in _consolidated(key, value).items():
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
                data = _payload(keys.key(names[i]), value)
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


def is_array(key: str, document: Mapping[str, Any]) -> bool:
    """Whether a metadata document describes an array, of Zarr v2 or v3."""
    name = key.rpartition("/")[2]
    return name == ".zarray" or (name == "zarr.json" and document.get("node_type") == "array")


def _whole_numbers(key: str, *values: Any) -> Iterator[int]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer):
            refuse(key, f"{value!r} is not a number of bytes")
        if value != int(value):
            refuse(key, f"{value!r} is not a whole number of bytes")
        yield int(value)


def _consolidated(key: str, value: Any) -> dict[str, Any]:
    document = _document(key, value)
    parts = document.get("metadata")
    if not isinstance(parts, Mapping):
        refuse(key, "has no dictionary 'metadata'", ErrorKind.BAD_METADATA)
    start = key.rpartition("/")[0]
    found = {}
    for name, part in parts.items():
        whole = f"{start}/{name}" if start else name
        if whole.rpartition("/")[2] in _METADATA:
            found[whole] = _document(whole, part)
    return found


def _coordinates(names: Sequence[str], keys: ChunkKeys) -> npt.NDArray[np.uint32]:
    """Return the coordinates that chunk names mean: uint32[n, ndim]."""
    ndim = len(keys.grid)
    if not names:
        return np.empty((0, ndim), np.uint32)
    if not ndim:
        for name in names:
            if name != keys.scalar:
                refuse(keys.key(name), f"the only chunk of a scalar array is {keys.scalar!r}")
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
            f"{wrong!r} is no chunk of an array of {ndim} dimensions; expected one like "
            f"{example!r}",
        )
    table = flat.astype(np.int64).reshape(len(names), ndim)
    outside = (table >= np.asarray(keys.grid, np.int64)).any(axis=1)
    if outside.any():
        wrong = names[int(outside.argmax())]
        refuse(keys.key(wrong), f"the array has only {keys.grid} chunks")
    return table.astype(np.uint32)


def _plain_numbers(texts: npt.NDArray[np.str_]) -> bool:
    """Whether all texts are numbers of up to ten digits, without zeros at their begin."""
    width = texts.dtype.itemsize // 4
    codes = texts.view(np.uint32).reshape(-1, width)
    digits = ((codes >= ord("0")) & (codes <= ord("9"))) | (codes == 0)
    padded = (codes[:, 0] == ord("0")) & (codes[:, 1:2] != 0).any(axis=1)
    return 0 < width <= 10 and bool(digits.all() and codes[:, 0].all() and not padded.any())


# -- templates -------------------------------------------------------------------------
class _Templates:
    """Templates of version 1. Plain ones are replaced here, others by jinja2."""

    def __init__(self, templates: Any) -> None:
        if not isinstance(templates, Mapping) or not all(
            isinstance(name, str) and isinstance(text, str) for name, text in templates.items()
        ):
            refuse("templates", "is not a dictionary of texts")
        self._plain: dict[str, str] = {
            name: text for name, text in templates.items() if "{{" not in text
        }
        self._calls = {name: text for name, text in templates.items() if "{{" in text}
        self._names: dict[str, Any] | None = None

    def expand(self, key: str, url: str) -> str:
        """Return a URL with its expressions replaced."""
        plain = self._plain

        def replaced(match: re.Match[str]) -> str:
            return plain[match[1]]

        try:
            return _EXPRESSION.sub(replaced, url)
        except KeyError:
            rendered: str = self._compile(key, url)({})
            return rendered

    def _compile(self, key: str, text: str) -> Callable[[Mapping[str, Any]], str]:
        try:
            from jinja2 import StrictUndefined, TemplateError
            from jinja2.sandbox import SandboxedEnvironment
        except ImportError:
            refuse(key, f"the template {text!r} needs jinja2: pip install 'icechunk[virtual]'")
        environment = SandboxedEnvironment(undefined=StrictUndefined)
        if self._names is None:
            self._names = dict(self._plain)
            for name, call in self._calls.items():
                try:
                    self._names[name] = environment.from_string(call).render
                except TemplateError as exc:
                    refuse("templates", f"{name!r}: {exc}")
        names = self._names
        try:
            template = environment.from_string(text)
        except TemplateError as exc:
            refuse(key, f"the template {text!r} cannot be read: {exc}")

        def render(values: Mapping[str, Any]) -> str:
            try:
                return str(template.render(**names, **values))
            except Exception as exc:  # whatever an expression may do
                refuse(key, f"the template {text!r} fails: {exc}")

        return render

    def generate(self, entries: Any) -> dict[str, list[Any]]:
        """Return the references that generator entries stand for."""
        if not isinstance(entries, list):
            refuse("gen", "is not a list")
        found: dict[str, list[Any]] = {}
        for number, entry in enumerate(entries):
            self._generate(f"gen[{number}]", entry, found)
        return found

    def _generate(self, name: str, entry: Any, found: dict[str, list[Any]]) -> None:
        fields = ("key", "url", "offset", "length")
        if not isinstance(entry, Mapping) or not {"key", "url", "dimensions"} <= entry.keys():
            refuse(name, "needs 'key', 'url' and 'dimensions'")
        if ("offset" in entry) != ("length" in entry):
            refuse(name, "has one of 'offset' and 'length'; it needs both, or neither")
        dimensions = entry["dimensions"]
        if not isinstance(dimensions, Mapping):
            refuse(name, "'dimensions' is not a dictionary")
        values = [_values(name, dim, given) for dim, given in dimensions.items()]
        make = {f: self._compile(name, str(entry[f])) for f in fields if f in entry}
        for product in itertools.product(*values):
            chosen = dict(zip(dimensions, product, strict=True))
            key = make["key"](chosen)
            found[key] = [make["url"](chosen)]
            if "offset" in make:
                try:
                    found[key] += [int(make["offset"](chosen)), int(make["length"](chosen))]
                except ValueError as exc:
                    refuse(f"{name} {key}", str(exc))


def _values(name: str, dimension: str, given: Any) -> Sequence[Any]:
    if isinstance(given, list):
        return given
    if isinstance(given, Mapping) and "stop" in given:
        try:
            return range(given.get("start", 0), given["stop"], given.get("step", 1))
        except (TypeError, ValueError) as exc:
            refuse(name, f"dimension {dimension!r}: {exc}")
    refuse(name, f"dimension {dimension!r} is neither a list nor a range with 'stop'")


# -- Parquet ---------------------------------------------------------------------------
class ParquetReferences:
    """References in a Parquet store, read record by record.

    A record is a file ``<array>/refs.<number>.parq`` with `record_size` rows, one for each
    chunk in C order, in the columns `path`, `offset`, `size` and `raw`.

    Parameters
    ----------
    fs : fsspec filesystem
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

    def __init__(self, fs: Any, root: str, metadata: bytes, normalize: Normalizer) -> None:
        self._fs = fs
        self._root = root
        self._normalize = normalize
        self.documents: dict[str, Any] = _consolidated(".zmetadata", metadata)
        size = _document(".zmetadata", metadata).get("record_size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            refuse(".zmetadata", f"record_size is {size!r}, expected a number of references")
        self._record_size = size

    def count(self, keys: ChunkKeys) -> int:
        """Return how many chunks the grid of an array has."""
        return math.prod(keys.grid)

    def table(self, keys: ChunkKeys, progress: Callable[[int], None]) -> ChunkTable:
        """Return where the chunks of an array are."""
        total = math.prod(keys.grid)
        count = -(-total // self._record_size)
        parts: list[_Record] = []
        payloads: list[bytes] = []
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            done = pool.map(lambda number: self._record(keys, number, total), range(count))
            for record, data in done:
                progress(record.size)
                if len(record.rows):
                    parts.append(record)
                    payloads += data
        return _joined(parts, payloads, keys.grid)

    def _record(self, keys: ChunkKeys, number: int, total: int) -> tuple[_Record, list[bytes]]:
        """Return the chunks of one record, and the bytes of those that are in place."""
        name = keys.key(f"refs.{number}.parq")
        first = number * self._record_size
        expected = min(self._record_size, total - first)
        try:
            data = self._fs.cat_file(f"{self._root}/{name}")
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
            held = [_payload(name, value) for value in raw[inline].tolist()]
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
    """The chunks of one record that are not missing, `rows` being their numbers in C order."""

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
        frame = ParquetFile(io.BytesIO(data)).to_pandas()
    except Exception as exc:  # whatever damage makes of it
        refuse(name, f"is no Parquet file that can be read: {exc}")
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
        # an empty text is no URL either
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
    offset = np.concatenate([part.offset for part in parts])
    length = np.concatenate([part.length for part in parts])
    rows = np.concatenate([part.rows for part in parts])
    parts.clear()
    coords = np.empty((len(rows), len(grid)), np.uint32)
    for axis in range(len(grid) - 1, -1, -1):
        coords[:, axis] = rows % grid[axis]
        rows //= grid[axis]
    return ChunkTable(coords, location, heap, offset, length, payloads)
