"""Files that a parser of VirtualiZarr reads: other formats, through the same checks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr
from zarr.buffer import default_buffer_prototype

from icechunk.errors import IcechunkError, InvalidInputError
from icechunk.kerchunk.tables import ChunkTable, StringHeap
from icechunk_dask.archives.described import Dataset, FileVariable
from icechunk_dask.archives.parser_store import ParserStore, roots
from icechunk_dask.archives.sources import Source, Sources, location_of

__all__ = ["Parser", "check_parser", "open_parsed"]

#: Takes a URL and an ``ObjectStoreRegistry``, returns a ``ManifestStore`` of VirtualiZarr.
Parser: TypeAlias = Callable[[str, Any], Any]

#: Where a file ends at the latest.
_MOST: Final = 2**63 - 1


def check_parser(parser: Parser | None) -> None:
    """Check that a parser can be called with a URL.

    Raises
    ------
    InvalidInputError
    """
    if parser is not None and (isinstance(parser, type) or not callable(parser)):
        shown = f"the class {parser.__name__}" if isinstance(parser, type) else repr(parser)
        raise InvalidInputError(
            f"parser is {shown}; pass a parser of VirtualiZarr, such as HDFParser(), or a "
            "function of a URL and a registry"
        )


@contextmanager
def open_parsed(parser: Parser, source: Source, sources: Sources) -> Iterator[list[Dataset]]:
    """Open a file with a parser of VirtualiZarr.

    Parameters
    ----------
    parser : Parser
    source : Source
    sources : Sources
        Opens other files, if it may.

    Yields
    ------
    list of Dataset
        One dataset. Its variables can be read until the context ends.

    Raises
    ------
    ValueError
        If the parser fails, or its result is not a `ManifestStore`.
    """
    url = Path(source.path).resolve().as_uri() if source.is_local else source.url
    groups: dict[str, Mapping[str, Any]] = {}
    variables: dict[str, FileVariable] = {}
    with ExitStack() as stack:
        registry = _registry(url, sources, source, stack)
        try:
            manifests = parser(url, registry)
        except (IcechunkError, MemoryError):
            raise
        except Exception as exc:
            name = getattr(parser, "__name__", type(parser).__name__)
            raise ValueError(f"the parser {name} failed: {type(exc).__name__}: {exc}") from exc
        root = getattr(manifests, "_group", None)
        if root is None:
            kind = type(manifests).__name__
            raise ValueError(f"the parser returned a {kind}, not a ManifestStore")
        for path, group in _walk(root, ""):
            dataset = xr.open_dataset(
                manifests,
                engine="zarr",
                group=path or None,
                decode_cf=False,
                consolidated=False,
                zarr_format=3,
            )
            stack.callback(dataset.close)
            groups[path] = _plain(dataset.attrs)
            for name, array in group.arrays.items():
                whole = f"{path}/{name}" if path else name
                variables[whole] = _variable(array, dataset.variables[name])
        yield [Dataset(groups, variables)]


def _walk(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, group
    for name, inner in group.groups.items():
        yield from _walk(inner, f"{path}/{name}" if path else name)


def _variable(array: Any, variable: xr.Variable) -> FileVariable:
    document = json.loads(
        array.metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"].to_bytes()
    )
    document["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "/"}}
    return FileVariable(
        tuple(map(str, variable.dims)),
        tuple(variable.shape),
        variable.dtype,
        _plain(variable.attrs),
        document,
        _table(array.manifest, len(variable.shape)),
        "",
        "",
        partial(_read, variable),
    )


def _read(variable: xr.Variable, selection: tuple[slice, ...]) -> npt.NDArray[Any]:
    return np.asarray(variable[selection].values)


def _table(manifest: Any, ndim: int) -> ChunkTable:
    refs = list(manifest.iter_refs())
    heap, location = StringHeap.from_strings([location_of(entry["path"]) for _, entry in refs])
    coords = np.asarray([place[:ndim] for place, _ in refs], np.uint32)
    for place, entry in refs:
        if entry["offset"] + entry["length"] > _MOST:
            raise ValueError(
                f"the parser says that chunk {place[:ndim]} ends behind byte {_MOST}, where no "
                "file has bytes"
            )
    return ChunkTable(
        coords.reshape(len(refs), ndim),
        location,
        heap,
        np.asarray([entry["offset"] for _, entry in refs], np.int64),
        np.asarray([entry["length"] for _, entry in refs], np.int64),
        [],
    )


def _plain(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        found[str(name)] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return found


def _registry(url: str, sources: Sources, source: Source, stack: ExitStack) -> Any:
    """Return what a parser of VirtualiZarr reads through."""
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore

    if source.is_local and os.path.isdir(source.path):
        # such as a Zarr store; it names no other files, and zarr reads it by obstore only
        return ObjectStoreRegistry({url: LocalStore(source.path)})
    return ObjectStoreRegistry(
        {root: ParserStore(sources, source, root, stack) for root in roots(url, sources.prefixes)}
    )
