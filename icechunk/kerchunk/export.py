"""Writing a snapshot as kerchunk references, which fsspec's reference filesystem opens.

Version 1 of the JSON form can hold metadata of Zarr v2 or v3. The Parquet form finds its
rows from ``.zarray`` documents, so it is for v2 alone.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import fsspec
import numpy as np
import numpy.typing as npt

from icechunk.changes.zarr_metadata import check_stored
from icechunk.errors import (
    AlreadyExistsError,
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    StorageError,
)
from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRefs, RefKind
from icechunk.format.ids import normalize_path, parent_paths
from icechunk.format.snapshot import ArrayInfo, Node
from icechunk.kerchunk.locations import fsspec_url
from icechunk.kerchunk.metadata_v2 import array_to_v2
from icechunk.session.session import Session
from icechunk.storage.keywords import answers_keywords
from icechunk.store import IcechunkStore

__all__ = ["export_references"]

#: References in one file of a Parquet store; kerchunk's own default.
_RECORD_SIZE: Final = 100_000


@answers_keywords("storage_options", 1)
def export_references(
    source: Session | IcechunkStore,
    target: str | os.PathLike[str] | None = None,
    *,
    format: Literal["json", "parquet"] = "json",
    group: str = "/",
    zarr_format: Literal[2, 3] = 2,
    overwrite: bool = False,
    record_size: int = _RECORD_SIZE,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Write what a session sees as kerchunk references.

    Virtual chunks keep their URLs; chunks of the repository are referred to in its own
    storage, and inline ones held in the references. So are all chunks of a repository in
    memory. ETags and times of modification have no place in kerchunk references.

    Parameters
    ----------
    source : Session or IcechunkStore
        Such as ``repo.readonly_session(tag="v1")``; any snapshot.
    target : str or path, optional
        URL or path of the JSON file, or of the folder of a Parquet store. Default: return
        the references as a dictionary.
    format : {"json", "parquet"}
        Parquet is for millions of references.
    group : str
        The group whose content to write. Default: the root, so everything.
    zarr_format : {2, 3}
        Of the metadata. kerchunk's own tools read 2. Arrays that it cannot express need 3,
        which only JSON can hold.
    overwrite : bool
        Whether to replace what is at `target`. Default: refuse.
    record_size : int
        How many references a file of a Parquet store holds.
    storage_options : mapping, optional
        For fsspec, to write to `target`.

    Returns
    -------
    dict or None
        References of version 1, if there is no `target`.

    Raises
    ------
    InvalidInputError
        If an array cannot be expressed; the message names it. Nothing is written then.
    NodeNotFoundError
        If there is no such group.
    AlreadyExistsError
        If there is something at `target`.
    StorageError
        If `target` cannot be written.

    Examples
    --------
    >>> session = icechunk.Repository.open_or_create("weather").readonly_session("main")
    >>> export_references(session, "weather.json", format="json")
    """
    session = source.session if isinstance(source, IcechunkStore) else source
    if not isinstance(session, Session):
        raise InvalidInputError(
            f"references are exported from a Session or IcechunkStore, not a "
            f"{type(source).__name__}",
            ErrorKind.NOT_ALLOWED,
        )
    if format not in ("json", "parquet") or zarr_format not in (2, 3):
        raise InvalidInputError(
            f"cannot export references as {format!r} with metadata of Zarr {zarr_format!r}: "
            "format is 'json' or 'parquet', zarr_format is 2 or 3",
            ErrorKind.NOT_ALLOWED,
        )
    if format == "parquet" and (zarr_format != 2 or target is None or record_size < 1):
        raise InvalidInputError(
            "references in Parquet need a target, zarr_format=2 and a record_size of at least 1",
            ErrorKind.NOT_ALLOWED,
        )
    export = _Export(session, normalize_path(group), zarr_format)
    if target is None:
        return export.references()
    url = os.fspath(target)
    try:
        fs, path = fsspec.core.url_to_fs(url, **(storage_options or {}))
        if fs.exists(path) and not overwrite:
            raise AlreadyExistsError(
                f"cannot write references to {url}: it exists; pass overwrite=True to replace it"
            )
        if format == "json":
            data = json.dumps(export.references()).encode()
            fs.makedirs(path.rpartition("/")[0] or fs.root_marker, exist_ok=True)
            fs.pipe_file(path, data)
        else:
            export.write_parquet(fs, path.rstrip("/"), record_size)
    except (OSError, ImportError, ValueError) as exc:
        if isinstance(exc, IcechunkError):
            raise
        raise StorageError(f"references cannot be written to {url}: {exc}") from exc
    return None


class _Export:
    """Metadata of a group with all below it, and the references of its arrays."""

    def __init__(self, session: Session, root: str, zarr_format: int) -> None:
        self._session = session
        self._v2 = zarr_format == 2
        storage = session.storage_url
        # no other process can read a repository in memory
        self._storage = None if storage.startswith("memory:") else fsspec_url(storage)
        self.metadata: dict[str, dict[str, Any]] = {}
        self._arrays: list[tuple[str, Node, ArrayInfo]] = []
        nodes = session.tree.within(root)
        if not nodes and root != "/":
            session.tree.require(root)
        groups: dict[str, dict[str, Any]] = {}
        for node in nodes:
            name = node.path[len(root) :].strip("/")
            check_stored(node.user_data, node.path)
            document = json.loads(node.user_data)
            if node.array is None:
                groups[name] = document.get("attributes") or {}
                continue
            self._arrays.append((name, node, node.array))
            self._add_array(name, node.array, document, session.chunk_refs(node.path))
        for name in [*groups, *(name for name, _, _ in self._arrays)]:
            # groups need no document of their own to have members
            for parent in parent_paths("/" + name):
                groups.setdefault(parent[1:], {})
        for name, attributes in groups.items():
            if name or not any(name == "" for name, _, _ in self._arrays):
                self._add_group(name, attributes)

    def _add_group(self, name: str, attributes: dict[str, Any]) -> None:
        if self._v2:
            self.metadata[_join(name, ".zgroup")] = {"zarr_format": 2}
            self.metadata[_join(name, ".zattrs")] = attributes
        else:
            document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            self.metadata[_join(name, "zarr.json")] = document

    def _add_array(
        self, name: str, array: ArrayInfo, document: dict[str, Any], refs: ChunkRefs
    ) -> None:
        if not self._v2:
            self.metadata[_join(name, "zarr.json")] = document
            return
        complete = len(refs) == math.prod(array.num_chunks)
        zarray, zattrs = array_to_v2(name, document, complete=complete)
        self.metadata[_join(name, ".zarray")] = zarray
        self.metadata[_join(name, ".zattrs")] = zattrs

    # -- chunks --------------------------------------------------------------------
    def _urls(self, refs: ChunkRefs) -> list[str]:
        """Return the URL of each distinct location."""
        expand = self._session.virtual.expand
        return [fsspec_url(expand(location)) for location in refs.locations or ()]

    def _native_urls(self, refs: ChunkRefs) -> list[str]:
        """Return for each row the URL of its chunk object; empty where it is not native."""
        if refs.chunk_id is None:
            return [""] * len(refs)
        native = (refs.kind == RefKind.NATIVE).tolist()
        return [
            f"{self._storage}/{layout.chunk_key(chunk_id.tobytes())}" if is_native else ""
            for chunk_id, is_native in zip(refs.chunk_id, native, strict=True)
        ]

    def _held(self, node: Node, refs: ChunkRefs) -> dict[int, bytes]:
        """Return the bytes of the rows to be held in the references."""
        kinds = [RefKind.INLINE] if self._storage is not None else [RefKind.INLINE, RefKind.NATIVE]
        found = {}
        for row in np.flatnonzero(np.isin(refs.kind, kinds)).tolist():
            data = self._session.chunks.get(node, tuple(refs.coords[row].tolist()))
            found[row] = bytes(data or b"")
        return found

    def references(self) -> dict[str, Any]:
        """Return references of version 1."""
        refs: dict[str, Any] = {key: json.dumps(value) for key, value in self.metadata.items()}
        for name, node, _ in self._arrays:
            refs.update(self._entries(name, node))
        return {"version": 1, "refs": refs}

    def _entries(self, name: str, node: Node) -> Iterator[tuple[str, Any]]:
        refs = self._session.chunk_refs(node.path)
        held, urls, natives = self._held(node, refs), self._urls(refs), self._native_urls(refs)
        prefix, separator, scalar = ("", ".", "0") if self._v2 else ("c/", "/", "c")
        location = refs.location.tolist() if refs.location is not None else [-1] * len(refs)
        ranges = zip(refs.offset.tolist(), refs.length.tolist(), strict=True)
        for row, (coordinate, (offset, length)) in enumerate(
            zip(refs.coords.tolist(), ranges, strict=True)
        ):
            chunk = prefix + separator.join(map(str, coordinate)) if coordinate else scalar
            if row in held:
                value: Any = "base64:" + base64.b64encode(held[row]).decode()
            else:
                url = urls[location[row]] if location[row] >= 0 else natives[row]
                value = [url, offset, length]
            yield _join(name, chunk), value

    def write_parquet(self, fs: Any, root: str, record_size: int) -> None:
        """Write a Parquet store; ``.zmetadata`` comes last, and completes it."""
        if fs.exists(root):
            fs.rm(root, recursive=True)
        for name, node, array in self._arrays:
            fs.makedirs(_join(root, name), exist_ok=True)
            for number, data in self._records(node, array, record_size):
                fs.pipe_file(f"{_join(root, name)}/refs.{number}.parq", data)
        fs.makedirs(root, exist_ok=True)
        document = {"metadata": self.metadata, "record_size": record_size}
        fs.pipe_file(f"{root}/.zmetadata", json.dumps(document).encode())

    def _records(
        self, node: Node, array: ArrayInfo, record_size: int
    ) -> Iterator[tuple[int, bytes]]:
        """Yield the number and the content of each record.

        Records without chunks are included: fsspec lists arrays by reading all records.
        """
        refs = self._session.chunk_refs(node.path)
        position = np.zeros(len(refs), np.int64)
        for axis, count in enumerate(array.num_chunks):
            position = position * count + refs.coords[:, axis]
        total = math.prod(array.num_chunks)
        held = self._held(node, refs)
        urls = np.asarray([*self._urls(refs), None], np.object_)
        for number in range(-(-total // record_size)):
            first = number * record_size
            low, high = np.searchsorted(position, [first, first + record_size]).tolist()
            rows = slice(low, high)
            part = refs.take(np.arange(low, high))
            at = position[rows] - first
            size = min(record_size, total - first)
            path: npt.NDArray[np.object_] = np.full(size, None, np.object_)
            raw: npt.NDArray[np.object_] = np.full(size, None, np.object_)
            offset, length = np.zeros(size, np.int64), np.zeros(size, np.int64)
            if refs.location is not None:
                path[at] = urls[refs.location[rows]]
            if part.chunk_id is not None:
                native = part.kind == RefKind.NATIVE
                names = np.asarray(self._native_urls(part), np.object_)
                path[at[native]] = names[native]
            offset[at] = refs.offset[rows].astype(np.int64)
            length[at] = refs.length[rows].astype(np.int64)
            for row in range(low, high) if held else ():
                if row in held:
                    place = at[row - low]
                    path[place], raw[place] = None, held[row]
                    offset[place] = length[place] = 0
            yield number, _parquet(path, offset, length, raw)


def _join(name: str, key: str) -> str:
    return f"{name}/{key}" if name and key else name or key


class _Kept(io.BytesIO):
    """A file whose content survives its closing."""

    def close(self) -> None:
        """Do nothing."""


def _parquet(path: Any, offset: Any, length: Any, raw: Any) -> bytes:
    """Return a record as kerchunk writes it."""
    try:
        import fastparquet
        import pandas as pd
    except ImportError:
        raise ImportError(
            "writing references to Parquet needs fastparquet: pip install 'icechunk[virtual]'"
        ) from None
    columns = {"path": path, "offset": offset, "size": length, "raw": raw}
    frame = pd.DataFrame(columns, copy=False)
    frame["path"] = frame["path"].astype(object)
    if not frame["path"].isna().any():
        # readers make None of missing objects, but not of missing categories
        frame["path"] = frame["path"].astype("category")
    kept = _Kept()
    fastparquet.write(
        "record",
        frame,
        compression="ZSTD",
        write_index=False,
        stats=False,
        object_encoding={"raw": "bytes", "path": "utf8"},
        has_nulls=["path", "raw"],
        open_with=lambda *_: kept,
    )
    return kept.getvalue()
