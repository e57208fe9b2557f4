"""Chunks of references: read and checked, then put into a session by one merge."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import fsspec
import numcodecs
import numpy as np
import zarr
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from icechunk.base.public_url import public_text
from icechunk.base.threads import map_in_threads
from icechunk.errors import ErrorKind, IcechunkError, InvalidInputError, SessionStateError
from icechunk.format.chunk_refs import ChunkRefs, RefKind
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.kerchunk.append import Place
from icechunk.kerchunk.import_checks import ImportChecks
from icechunk.kerchunk.import_report import ImportReport
from icechunk.kerchunk.locations import fsspec_url
from icechunk.kerchunk.metadata import ArrayMetadata
from icechunk.kerchunk.tables import IN_PLACE, WHOLE_FILE, ChunkTable, References, refuse
from icechunk.session.keys import chunk_key
from icechunk.session.session import ForkSession, Session
from icechunk.virtual.locations import shown
from icechunk.virtual.outside import OutsideFiles

__all__ = ["Import"]

#: How many chunks of the repository are written at the same time.
_CONCURRENCY: Final = 16


@dataclass
class _Array:
    """What happens to one array."""

    path: str
    metadata: ArrayMetadata
    place: Place
    table: ChunkTable


class Import:
    """Reads references, then applies all of them at once."""

    def __init__(
        self,
        session: Session,
        source: References,
        remote_options: Mapping[str, Any] | None,
        validate_containers: bool,
        last_modified: int,
        checks: ImportChecks,
    ) -> None:
        self._session = session
        self._source = source
        self._remote_options = dict(remote_options or {})
        self._validate = validate_containers
        self._last_modified = last_modified
        self._checks = checks
        self._arrays: list[_Array] = []
        self._threshold = session.effective_config.inline_chunk_threshold_bytes

    def read(
        self,
        wanted: Mapping[str, tuple[ArrayMetadata, Place]],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Read and check the references of some arrays."""
        total = sum(self._source.count(array.keys) for array, _ in wanted.values())
        done = 0

        def looked_at(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        for path, (metadata, place) in wanted.items():
            table = self._source.table(metadata.keys, looked_at)
            item = _Array(path, metadata, place, table)
            if metadata.recode is not None:
                item.table = _recoded(item)
            if place.by_value:
                self._check_in_place(item, place.reason)
            if self._validate:
                self._check_containers(item)
            self._arrays.append(item)
        self._measure_whole_files()
        for item in self._arrays:
            if item.metadata.recode is None:
                self._checks.check(item.metadata, item.table, partial(self._key, item))

    def _key(self, item: _Array, row: int) -> str:
        """Return the key of a reference, for errors."""
        keys = item.metadata.keys
        numbers = keys.separator.join(map(str, item.table.coords[row].tolist()))
        return keys.key(keys.prefix + numbers if numbers else keys.scalar)

    def _check_in_place(self, item: _Array, reason: str) -> None:
        outside = item.table.location != IN_PLACE
        if outside.any():
            refuse(self._key(item, int(outside.argmax())), reason)

    def _check_containers(self, item: _Array) -> None:
        bad = self._session.virtual.invalid_locations(item.table.locations)
        if bad:
            row = int(np.isin(item.table.location, bad).argmax())
            try:
                self._session.virtual.validate(item.table.locations[bad[0]])
            except InvalidInputError as exc:
                raise InvalidInputError(
                    f"reference {self._key(item, row)!r}: {exc}", exc.kind
                ) from None

    def _measure_whole_files(self) -> None:
        """Fill in the lengths of references to whole files; each file is asked once."""
        wanted: dict[str, str] = {}
        for item in self._arrays:
            whole = item.table.length == WHOLE_FILE
            for i in np.unique(item.table.location[whole]).tolist():
                location = item.table.locations[i]
                wanted.setdefault(location, self._key(item, int(whole.argmax())))
        if not wanted:
            return
        sizes = self._sizes(wanted)
        for item in self._arrays:
            rows = np.flatnonzero(item.table.length == WHOLE_FILE)
            names = [item.table.locations[i] for i in item.table.location[rows].tolist()]
            item.table.length[rows] = [sizes[name] for name in names]

    def _sizes(self, wanted: Mapping[str, str]) -> dict[str, int]:
        """Return the sizes of files; files that no container holds are not asked for theirs."""
        outside = self._session.virtual.invalid_locations(list(wanted))
        if outside:
            location = list(wanted)[outside[0]]
            refuse(
                wanted[location],
                f"refers to a whole file, {shown(location)}, which lies in no virtual chunk "
                "container of the configuration, so its size is not asked for",
            )
        # redirects lead nowhere: references of a stranger name these files
        files = OutsideFiles(self._remote_options, ())

        def size(location: str) -> int | None:
            url = fsspec_url(self._session.virtual.expand(location))
            try:
                if url.startswith("file://"):
                    return _local_size(fsspec.core.strip_protocol(url))
                return files.head(url).size
            except (OSError, IcechunkError) as exc:
                problem = public_text(exc)
            refuse(
                wanted[location],
                f"refers to a whole file, {shown(location)}, whose size cannot be asked for: "
                f"{problem}",
                ErrorKind.VIRTUAL_CHUNK_FETCH,
            )

        sizes = map_in_threads(size, list(wanted), _CONCURRENCY)
        found: dict[str, int] = {}
        for location, known in zip(wanted, sizes, strict=True):
            if known is None:
                refuse(
                    wanted[location],
                    f"refers to a whole file, {shown(location)}, whose size is unknown",
                    ErrorKind.VIRTUAL_CHUNK_FETCH,
                )
            found[location] = known
        return found

    # -- applying ------------------------------------------------------------------
    def apply(
        self, groups: Mapping[str, bytes], overwrite: bool, untouched: tuple[str, ...]
    ) -> ImportReport:
        """Make the changes, all or none."""
        fork = self._session.fork()
        counts = dict.fromkeys(RefKind, 0)
        if overwrite:
            for path in [*groups, *(item.path for item in self._arrays)]:
                node = fork.tree.get(path)
                if node is not None and node.is_array:
                    fork.delete_nodes(path)
        for path, document in groups.items():
            fork.set_metadata_document(path, document)
        heaps = []
        done = tuple(item.path for item in self._arrays)
        unmasked = tuple(item.path for item in self._arrays if item.metadata.is_unmasked)
        while self._arrays:
            # each table is dropped once its references are in the fork
            item = self._arrays.pop(0)
            if item.place.document is not None:
                fork.set_metadata_document(item.path, json.dumps(item.place.document).encode())
            if item.place.by_value:
                self._write_values(fork, item)
                continue
            heaps.append(item.table.locations)
            for kind, count in self._set_chunks(fork, item).items():
                counts[kind] += count
        self._session.merge(fork)
        files = StringHeap.merge(heaps)[0] if heaps else ()
        return ImportReport(
            done,
            tuple(groups),
            untouched,
            counts[RefKind.VIRTUAL],
            counts[RefKind.INLINE],
            counts[RefKind.NATIVE],
            len(files),
            unmasked,
        )

    def _set_chunks(self, fork: ForkSession, item: _Array) -> dict[RefKind, int]:
        table, place = item.table, item.place
        coords = table.coords
        if any(place.start):
            coords = coords + np.asarray(place.start, np.uint32)
        if place.clear is not None:
            box = [np.arange(low, high, dtype=np.uint32) for low, high in place.clear]
            grid = np.stack([axis.ravel() for axis in np.meshgrid(*box, indexing="ij")], axis=1)
            fork.set_refs(item.path, ChunkRefs.deleted(grid))
        inline = table.location == IN_PLACE
        large = np.zeros(len(inline), np.bool_)
        large[inline] = [len(data) > self._threshold for data in table.payloads]
        if large.any():
            named = iter(table.payloads)
            kept: list[bytes] = []
            work: list[tuple[tuple[int, ...], bytes]] = []
            for row in np.flatnonzero(inline).tolist():
                data = next(named)
                if large[row]:
                    work.append((tuple(coords[row].tolist()), data))
                else:
                    kept.append(data)
            with ThreadPoolExecutor(_CONCURRENCY) as pool:
                done = [pool.submit(fork.chunks.set, item.path, *pair) for pair in work]
            _raise_first(done)
        else:
            kept = table.payloads
        rest = ~large if large.any() else slice(None)
        refs = _refs(coords, table, inline, rest, kept, self._last_modified)
        if len(refs):
            fork.set_refs(item.path, refs)
        return {
            RefKind.VIRTUAL: int(len(inline) - inline.sum()),
            RefKind.INLINE: len(kept),
            RefKind.NATIVE: int(large.sum()),
        }

    def _write_values(self, fork: ForkSession, item: _Array) -> None:
        array = zarr.open_array(fork.store, path=item.path[1:], mode="r+")
        array[item.place.selection or ...] = _values(item)


def _raise_first(done: Sequence[Future[Any]]) -> None:
    """Raise the error itself, rather than what was cancelled because of it."""
    problems = [problem for each in done if (problem := each.exception()) is not None]
    causes = [problem for problem in problems if not isinstance(problem, SessionStateError)]
    for problem in causes or problems:
        raise problem


def _refs(
    coords: Any,
    table: ChunkTable,
    inline: Any,
    rest: Any,
    payloads: list[bytes],
    last_modified: int,
) -> ChunkRefs:
    """Return references of the rows `rest`, in the form of the format."""
    inline = inline[rest]
    offset = table.offset[rest].astype(np.uint64, copy=False)
    kind: Any = RefKind.VIRTUAL
    data = None
    if payloads:
        kind = np.where(inline, np.uint8(RefKind.INLINE), np.uint8(RefKind.VIRTUAL))
        sizes = np.fromiter(map(len, payloads), np.uint64, len(payloads))
        offset[inline] = np.cumsum(sizes) - sizes
        data = np.frombuffer(b"".join(payloads), np.uint8)
    return ChunkRefs.from_columns(
        coords[rest],
        kind,
        offset.view(np.uint64),
        table.length[rest].view(np.uint64),
        location=table.location[rest],
        locations=table.locations,
        last_modified=last_modified or None,
        inline_data=data,
    )


def _local_size(path: str) -> int | None:
    found = os.stat(path)
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _values(item: _Array) -> Any:
    """Return the values of an array whose bytes are all in the references."""
    make = default_buffer_prototype().buffer.from_bytes
    stored = {"zarr.json": make(json.dumps(item.metadata.document).encode())}
    for coordinate, data in zip(item.table.coords.tolist(), item.table.payloads, strict=True):
        stored[chunk_key("/", tuple(coordinate))] = make(data)
    array = zarr.open_array(MemoryStore(stored), mode="r")
    try:
        return array[...]
    except Exception as exc:  # whatever a codec makes of damaged bytes
        refuse(item.metadata.keys.path, f"its inlined chunks cannot be decoded: {exc}")


def _recoded(item: _Array) -> ChunkTable:
    """Return the chunks of an array of texts, rewritten with ``vlen-utf8``."""
    table, codec = item.table, item.metadata.recode
    key = item.metadata.keys.path
    if len(table.locations):
        refuse(key, f"has chunks in files, in the codec {codec.codec_id!r}, which v3 lacks")
    payloads = []
    for data in table.payloads:
        try:
            texts = np.ravel(codec.decode(data))
        except Exception as exc:  # whatever a codec makes of damaged bytes
            refuse(key, f"its inlined chunks cannot be decoded: {exc}")
        if not all(isinstance(text, str) for text in texts.tolist()):
            refuse(key, "is an array of objects that are not texts")
        payloads.append(bytes(numcodecs.VLenUTF8().encode(texts.astype(object))))
    sizes = np.fromiter(map(len, payloads), np.int64, len(payloads))
    return ChunkTable(table.coords, table.location, table.locations, table.offset, sizes, payloads)
