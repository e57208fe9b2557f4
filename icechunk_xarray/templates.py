"""Arrays and coordinates without data, for others to fill."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from icechunk import InvalidInputError, RepositoryConfig, Session
from icechunk.errors import ErrorKind
from icechunk.storage.keywords import answers_keywords
from icechunk_xarray.groups import GroupPart, Writable, describe, groups_of, stage_groups, write_now
from icechunk_xarray.lazy import LazyWrite
from icechunk_xarray.names import group_path
from icechunk_xarray.staging import Mode, Options, choose_mode
from icechunk_xarray.targets import DEFAULT_BRANCH, Authorization, Target, open_repository
from icechunk_xarray.writer import destination_of

__all__ = ["initialize", "with_chunks"]


@answers_keywords("storage_options", 1)
def initialize(
    obj: Writable,
    target: Target,
    *,
    group: str | None = None,
    mode: Mode | None = None,
    encoding: Mapping[Any, Any] | None = None,
    chunks: Mapping[Any, int] | None = None,
    write_inherited_coords: bool | Collection[str] = False,
    branch: str | None = None,
    message: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Authorization | None = None,
) -> str | None:
    """Make the arrays of a Dataset, DataArray or DataTree, and write coordinates, but no data.

    Values of data variables are not computed. They are missing until
    ``to_icechunk(..., region=...)`` writes them; `plan_regions` cuts the arrays into regions
    that processes may write at the same time.

    Parameters
    ----------
    obj : xarray.Dataset, xarray.DataArray or xarray.DataTree
        Only the shape, dtype, attributes and encoding of its data variables matter:
        ``xr.zeros_like`` of Dask arrays will do.
    target : Session, IcechunkStore, Repository, Storage, StorageConfig, str or path
        As for `to_icechunk`.
    group : str, optional
        Path of the group. Default: the root.
    mode : {"w", "w-", "a"}, optional
        As for `to_icechunk`. Default: "w-", which refuses a group that exists.
    encoding : mapping, optional
        As for `to_icechunk`.
    chunks : mapping of str to int, optional
        Chunk sizes of data variables, by dimension; -1 is the whole dimension. `encoding`
        takes precedence. Dimensions that are not named use ``encoding["chunks"]`` of the
        variable, or its Dask chunks, or else the whole dimension.
    write_inherited_coords, branch, message, metadata, storage_options, config
        As for `to_icechunk`.
    authorize_virtual_chunk_access : mapping of str to credentials, optional
        As for `to_icechunk`.

    Returns
    -------
    str or None
        The id of the snapshot; None for a session.

    Raises
    ------
    InvalidInputError
        If `chunks` names an unknown dimension, and as `to_icechunk` does.
    AlreadyExistsError
        If the group exists.

    Examples
    --------
    >>> snapshot = initialize(ds, "year", chunks={"time": 24}, message="Arrays of 2024")
    """
    mode = choose_mode(mode, None, None)
    if mode not in ("w", "w-", "a"):
        raise InvalidInputError(
            f"mode is {mode!r}, and initialize makes arrays: 'w', 'w-' or 'a'",
            ErrorKind.NOT_ALLOWED,
        )
    # none of the blocks is written, whatever they are
    options = Options(mode, None, None, False, True, True, True)
    path = group_path(group)
    parts = groups_of(obj, path, encoding or {}, inherit=write_inherited_coords)
    if chunks is not None:
        parts = with_chunks(parts, chunks)
    destination = destination_of(
        target,
        branch=branch,
        message=message,
        metadata=metadata,
        storage_options=storage_options,
        config=config,
        authorize_virtual_chunk_access=authorize_virtual_chunk_access,
    )
    if isinstance(destination, Session):
        work = destination.fork()
        _make(parts, work, options)
        destination.merge(work)
        return None
    repository = open_repository(
        destination,
        storage_options=storage_options,
        config=config,
        authorize_virtual_chunk_access=authorize_virtual_chunk_access,
        create=branch in (None, DEFAULT_BRANCH),
    )
    session: Session = repository.writable_session(branch or DEFAULT_BRANCH)
    _make(parts, session, options)
    said = message or describe(parts, options).replace("Write", "Arrays for", 1)
    return session.commit(said, metadata)


def _make(parts: list[GroupPart], session: Session, options: Options) -> None:
    data = {f"{path}/{name}".strip("/") for path, dataset, _ in parts for name in dataset.data_vars}
    writes = stage_groups(parts, session, options)
    waiting = write_now([write for write in writes if write.target.path.strip("/") not in data])
    LazyWrite(None, True, False, {}).write(waiting)


def with_chunks(parts: list[GroupPart], chunks: Mapping[Any, int]) -> list[GroupPart]:
    """Return the groups with chunk sizes in the encodings of their data variables."""
    known = {dim for _, dataset, _ in parts for dim in dataset.dims}
    for dim, size in chunks.items():
        if dim not in known:
            raise InvalidInputError(
                f"chunks names the dimension {dim!r}; there are {', '.join(map(repr, known))}",
                ErrorKind.INVALID_ARRAY_METADATA,
            )
        if isinstance(size, bool) or not isinstance(size, int) or not (size > 0 or size == -1):
            raise InvalidInputError(
                f"chunks has {size!r} for {dim!r}; it must be a length, or -1 for all of it",
                ErrorKind.INVALID_ARRAY_METADATA,
            )
    result: list[GroupPart] = []
    for path, dataset, encoding in parts:
        wanted: dict[str, Mapping[str, Any]] = dict(encoding)
        for name, array in dataset.data_vars.items():
            variable, given = (
                array.variable,
                dict(encoding.get(str(name), _encoding_of(array))),
            )
            if not variable.ndim or "chunks" in encoding.get(str(name), {}):
                continue
            before = variable.encoding.get("chunks")
            if variable.chunks is not None:
                before = tuple(max(sizes) for sizes in variable.chunks)
            # of single characters, those of the texts that they are
            before = tuple(before or ())[: variable.ndim]
            before = before if len(before) == variable.ndim else variable.shape
            given["chunks"] = tuple(
                max(n if (size := chunks.get(dim, old)) == -1 else min(size, n), 1)
                for dim, n, old in zip(variable.dims, variable.shape, before, strict=True)
            )
            wanted[str(name)] = given
        result.append((path, dataset, wanted))
    return result


def _encoding_of(array: Any) -> dict[str, Any]:
    """Return the encoding of a variable, without how it was stored elsewhere."""
    return {k: v for k, v in array.encoding.items() if k in _KEPT}


#: The encodings that xarray takes for Zarr, except those that set chunk edges.
_KEPT = (
    "dtype",
    "scale_factor",
    "add_offset",
    "_FillValue",
    "missing_value",
    "units",
    "calendar",
    "compressors",
    "filters",
    "serializer",
    "fill_value",
)
