"""Importing kerchunk references: what they describe becomes nodes and virtual chunks.

Everything is read and checked before the session changes, and it changes by one merge of a
fork: an import that fails leaves it as it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

import fsspec
import numcodecs
import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from icechunk.errors import AlreadyExistsError, ErrorKind, InvalidInputError, ReadOnlyError
from icechunk.format.chunk_refs import ChunkRefs, RefKind
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.format.ids import normalize_path, parent_paths
from icechunk.kerchunk.append import Place, appended, in_region
from icechunk.kerchunk.dimensions import name_dimensions
from icechunk.kerchunk.guard import VERIFY
from icechunk.kerchunk.import_checks import ImportChecks
from icechunk.kerchunk.locations import fsspec_url, normalizer
from icechunk.kerchunk.metadata import (
    ArrayMetadata,
    array_from_v2,
    array_from_v3,
    group_from_v2,
)
from icechunk.kerchunk.references import open_references
from icechunk.kerchunk.tables import (
    IN_PLACE,
    WHOLE_FILE,
    ChunkTable,
    References,
    is_array,
    refuse,
)
from icechunk.session.keys import chunk_key
from icechunk.session.session import ForkSession, Session
from icechunk.store import IcechunkStore
from icechunk.virtual.specs import checksum_parts, whole_seconds

__all__ = ["ImportReport", "import_references"]

#: Chunks of the repository that are written at the same time.
_CONCURRENCY: Final = 16


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes
    ----------
    arrays : tuple of str
        Paths of the arrays that were created or added to.
    groups : tuple of str
        Paths of the groups that were created or whose attributes were set.
    untouched : tuple of str
        Paths of the arrays that an append, or an import into a region, found and left as
        they were, because they have none of the dimensions.
    virtual, inline, native : int
        Chunks that refer to files, lie in manifests, and are objects of the repository.
    files : int
        Distinct files that virtual chunks refer to.
    """

    arrays: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    virtual: int = 0
    inline: int = 0
    native: int = 0
    files: int = 0

    def __repr__(self) -> str:
        lines = [
            "<icechunk.kerchunk.ImportReport>",
            f"arrays: {_listed(self.arrays)}",
            f"groups: {_listed(self.groups)}",
            f"chunks: {self.virtual} virtual in {self.files} files, {self.inline} inline, "
            f"{self.native} native",
        ]
        if self.untouched:
            lines.append(f"left as they were: {_listed(self.untouched)}")
        return "\n".join(lines)


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:10])
    more = f" and {len(paths) - 10} more" if len(paths) > 10 else ""
    return f"{len(paths)}" + (f" ({shown}{more})" if paths else "")


def import_references(
    references: Mapping[str, Any] | str | os.PathLike[str],
    target: Session | IcechunkStore,
    *,
    group: str = "/",
    overwrite: bool = False,
    append_dim: str | None = None,
    region: Mapping[str, slice] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    remote_protocol: str | None = None,
    remote_options: Mapping[str, Any] | None = None,
    base_url: str | None = None,
    mask_fill_value: bool | None = None,
    validate_containers: bool = True,
    last_modified: datetime | None = None,
    verify: str = "sample",
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Import kerchunk references into a session, without copying what they refer to.

    Metadata of Zarr v2 becomes v3. Chunks whose bytes are in the references become inline
    or native chunks, as the configuration says; null references and those of length 0
    become missing chunks.

    Parameters
    ----------
    references : mapping, str or path
        A dictionary of version 0 or 1, or the URL or path of a JSON file with one, plain
        or compressed with zstd or gzip, or of a Parquet store. Zarr v3 metadata is taken
        over as it is.
    target : Session or IcechunkStore
        Writable. Nothing is committed.
    group : str
        Where the root of the references goes. Default: the root of the repository.
    overwrite : bool
        Whether to replace arrays that exist. Default: refuse.
    append_dim : str, optional
        Append to existing arrays along the dimension of this name. The arrays must agree,
        and their last chunks must be full, except where the new chunks are all in the
        references themselves: these are then written by value. Arrays without the
        dimension must exist, and stay as they are.
    region : mapping of str to slice, optional
        By names of dimensions, where in existing arrays to put the chunks; from and to
        whole chunks. Chunks that are missing in the references become missing there.
    storage_options : mapping, optional
        For fsspec, to read the references.
    remote_protocol : str, optional
        Of URLs in the references that have none, such as ``"s3"``. Default: local paths.
    remote_options : mapping, optional
        For fsspec, to ask for the sizes of files that are referred to as a whole.
    base_url : str, optional
        URL or folder that relative paths in the references begin at. Default: the current
        directory.
    mask_fill_value : bool, optional
        Whether fill values also become ``_FillValue`` attributes, so that xarray masks as
        it does with Zarr v2. False keeps only the attributes that the references have.
        Default: all that are not zero. kerchunk makes the fill value of a file's
        ``_FillValue``, and takes that attribute away; where a file has none, it writes zero.
        True is right for files whose missing values are zero.
    validate_containers : bool
        Whether to refuse locations that no virtual chunk container of the configuration
        holds.
    last_modified : datetime, optional
        With a time zone. Reading fails if a file was modified after this, such as the time
        at which the references were made. Default: files are not checked.
    verify : {"sample", "all", "none"}
        Of how many chunks to see whether their codecs decode them, as far as the session may
        read the files: the first and the last of each distinct chain of codecs, all, or
        none. The sizes of chunks without compression, and those of files of this machine,
        are compared with the references, but for ``"none"``.
    progress : callable, optional
        Called with the number of references that were looked at, and of all.

    Returns
    -------
    ImportReport

    Raises
    ------
    InvalidInputError
        If something is malformed, or has no equivalent; the message names the key. Also if
        arrays do not fit those to append to.
    AlreadyExistsError
        If a node exists that would be replaced.
    ReadOnlyError
        If the session or store is read-only.
    StorageError
        If references cannot be read, or a chunk cannot be written.

    In all these cases the session is as it was.
    """
    session = _session(target)
    if append_dim is not None and region is not None:
        raise InvalidInputError(
            "append_dim and region exclude each other", ErrorKind.INVALID_VIRTUAL_REF
        )
    if verify not in VERIFY:
        raise InvalidInputError(
            f"verify is one of {VERIFY}, not {verify!r}", ErrorKind.INVALID_VIRTUAL_REF
        )
    root = normalize_path(group)
    source = open_references(
        references if isinstance(references, Mapping) else os.fspath(references),
        normalizer(remote_protocol, base_url),
        storage_options,
    )
    arrays = _arrays(source, root, mask_fill_value)
    if append_dim is not None:
        places = appended(session, root, arrays, append_dim)
    elif region is not None:
        places = in_region(session, arrays, region)
    else:
        places = {path: _new(session, path, array, overwrite) for path, array in arrays.items()}
    work = _Import(
        session,
        source,
        remote_options,
        validate_containers,
        whole_seconds(checksum_parts(last_modified)[1]),
        ImportChecks(session, verify),
    )
    work.read({path: (arrays[path], place) for path, place in places.items()}, progress)
    groups = {}
    if append_dim is None and region is None:
        groups = _groups(session, source, root, arrays, overwrite)
    return work.apply(groups, overwrite, tuple(path for path in arrays if path not in places))


def _session(target: Any) -> Session:
    session = target.session if isinstance(target, IcechunkStore) else target
    if not isinstance(session, Session):
        raise InvalidInputError(
            f"references are imported into a Session or IcechunkStore, not a "
            f"{type(target).__name__}",
            ErrorKind.NOT_ALLOWED,
        )
    if target.read_only:
        raise ReadOnlyError(
            "references cannot be imported into a read-only session or store; take one from "
            "Repository.writable_session(branch)"
        )
    return session


# -- nodes -----------------------------------------------------------------------------
def _absolute(root: str, path: str) -> str:
    try:
        return normalize_path(f"{root}/{path}")
    except InvalidInputError as exc:
        refuse(path, str(exc), ErrorKind.INVALID_PATH)


def _arrays(
    source: References, root: str, mask_fill_value: bool | None
) -> dict[str, ArrayMetadata]:
    """Return the arrays of the references by their paths in the repository."""
    documents = source.documents
    found: dict[str, ArrayMetadata] = {}
    for key, document in sorted(documents.items()):
        if not is_array(key, document):
            continue
        head, _, name = key.rpartition("/")
        path = _absolute(root, head)
        if path in found:
            refuse(key, "there are two arrays of this path")
        if name == ".zarray":
            attributes = documents.get(f"{head}/.zattrs" if head else ".zattrs", {})
            found[path] = array_from_v2(head, document, attributes, mask_fill_value=mask_fill_value)
        else:
            found[path] = array_from_v3(head, document)
    name_dimensions(found)
    for path, array in found.items():
        inside = next((parent for parent in parent_paths(path) if parent in found), None)
        if inside is not None:
            refuse(array.keys.path, f"the array lies within another one, {inside!r}")
    if not found and not documents:
        raise InvalidInputError(
            "the references have no Zarr metadata", ErrorKind.INVALID_VIRTUAL_REF
        )
    return found


def _groups(
    session: Session,
    source: References,
    root: str,
    arrays: Mapping[str, ArrayMetadata],
    overwrite: bool,
) -> dict[str, bytes]:
    """Return the documents of groups to set: those of the references, and missing parents."""
    attributes: dict[str, dict[str, Any]] = {}
    for key, document in source.documents.items():
        head, _, name = key.rpartition("/")
        path = _absolute(root, head)
        if path in arrays:
            continue
        known = attributes.setdefault(path, {})
        if name == ".zattrs":
            known.update(document)
        elif name == "zarr.json":
            known.update(document.get("attributes") or {})
    for path in [*arrays, *attributes]:
        for parent in parent_paths(path):
            attributes.setdefault(parent, {})
    found = {}
    for path, given in attributes.items():
        node = session.tree.get(path)
        if node is not None and node.is_array:
            # above the group that was asked for an array is in the way, whatever the mode
            if not overwrite or path not in (root, *_below(attributes, root)):
                raise AlreadyExistsError(
                    f"cannot import a group to {path!r}: there is an array already"
                )
            node = None
        old = json.loads(node.user_data) if node is not None else {}
        merged = {**(old.get("attributes") or {}), **given}
        document = {**group_from_v2({}), **old, "attributes": merged}
        data = json.dumps(document).encode()
        if node is None or document != old:
            found[path] = data
    return dict(sorted(found.items()))


def _below(paths: Mapping[str, Any], root: str) -> Iterator[str]:
    return (path for path in paths if root == "/" or path.startswith(root + "/"))


def _new(session: Session, path: str, array: ArrayMetadata, overwrite: bool) -> Place:
    existing = session.tree.get(path)
    if existing is not None and (not overwrite or not existing.is_array):
        kind = "an array" if existing.is_array else "a group"
        raise AlreadyExistsError(
            f"cannot import an array to {path!r}: there is {kind} already; pass overwrite=True "
            "to replace arrays, append_dim to append, or another group"
        )
    return Place(array.document, (0,) * len(array.shape))


# -- chunks ----------------------------------------------------------------------------
@dataclass
class _Array:
    """What happens to one array."""

    path: str
    metadata: ArrayMetadata
    place: Place
    table: ChunkTable


class _Import:
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
        by_protocol: dict[str, list[str]] = {}
        for location in wanted:
            scheme = self._session.virtual.expand(location).partition("://")[0]
            by_protocol.setdefault(scheme, []).append(location)
        found: dict[str, int] = {}
        for scheme, locations in by_protocol.items():
            urls = [fsspec_url(self._session.virtual.expand(each)) for each in locations]
            options = self._remote_options if scheme != "file" else {}
            try:
                fs = fsspec.filesystem(scheme, **options)
                sizes = fs.sizes([fs._strip_protocol(url) for url in urls])
            except (OSError, ImportError, ValueError) as exc:
                refuse(
                    wanted[locations[0]],
                    f"refers to a whole file, and sizes of files at {scheme}:// cannot be asked "
                    f"for: {exc}",
                    ErrorKind.VIRTUAL_CHUNK_FETCH,
                )
            for location, size in zip(locations, sizes, strict=True):
                if size is None:
                    refuse(
                        wanted[location],
                        f"refers to the whole of {location}, whose size nobody tells",
                        ErrorKind.VIRTUAL_CHUNK_FETCH,
                    )
                found[location] = size
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
        while self._arrays:
            # each table is dropped when its references are in the fork
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
                list(pool.map(lambda pair: fork.chunks.set(item.path, *pair), work))
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


def _refs(
    coords: Any,
    table: ChunkTable,
    inline: Any,
    rest: Any,
    payloads: list[bytes],
    last_modified: int,
) -> ChunkRefs:
    """Return references as the format has them, of the rows `rest`."""
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
    """Return the chunks of an array of texts, written anew with ``vlen-utf8``."""
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
