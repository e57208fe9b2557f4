"""Archives of NetCDF and GRIB files as virtual datasets, scanned in parallel."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from icechunk import InvalidInputError, Storage, VirtualChunkContainer
from icechunk.base.texts import counted
from icechunk.kerchunk.guard import VERIFY
from icechunk.storage.keywords import answers_keywords
from icechunk_dask.archives.adding import Adding, none_read
from icechunk_dask.archives.committing import commit
from icechunk_dask.archives.fitting import ON_MISMATCH, Fitting
from icechunk_dask.archives.grids import CHUNK_GRIDS
from icechunk_dask.archives.group import ArchiveGroup
from icechunk_dask.archives.parsed import Parser, check_parser
from icechunk_dask.archives.placement import ORDERS
from icechunk_dask.archives.record import Files
from icechunk_dask.archives.report import VirtualizeReport
from icechunk_dask.archives.scan import Scanner
from icechunk_dask.archives.selection import Selection, keys_of
from icechunk_dask.archives.sources import GONE, Sources, location_of
from icechunk_dask.archives.target import Opened, Target
from icechunk_dask.archives.writing import Writing
from icechunk_dask.executors import ExecutorOption, with_executor
from icechunk_dask.progress import ProgressOption, progress_of

__all__ = ["VirtualizeReport", "remove_files", "virtualize"]

_ON_CHANGED: Final = ("error", "replace", "keep")
_MAX_BYTES: Final = 100_000_000
#: Maximum number of files that an error lists.
_SHOWN: Final = 10


@answers_keywords("storage_options", 1)
def virtualize(
    urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    target: Target,
    *,
    concat_dims: Sequence[str] = ("time",),
    expand_dims: Sequence[str] = (),
    order: str = "auto",
    group: str = "/",
    branch: str = "main",
    message: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    remote_options: Mapping[str, Any] | None = None,
    variables: Sequence[str] | None = None,
    drop_variables: Sequence[str] = (),
    drop_attributes: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    coordinates: Sequence[str] | str = "auto",
    loadable: Sequence[str] = (),
    filter_by_keys: Mapping[str, Any] | None = None,
    parser: Parser | None = None,
    on_mismatch: str = "error",
    on_changed: str = "error",
    chunk_grid: str | None = None,
    allow_gaps: bool = False,
    max_bytes_by_value: int = _MAX_BYTES,
    verify: str = "sample",
    isolate: bool = True,
    containers: Sequence[VirtualChunkContainer] | None = None,
    authorize_virtual_chunk_access: Mapping[str, Any] | None = None,
    commit_every: int | None = None,
    executor: ExecutorOption = None,
    scheduler: Any = None,
    progress: ProgressOption = None,
) -> VirtualizeReport:
    """Combine many NetCDF or GRIB files into one dataset, without copying their data.

    Chunks become virtual references to the files. Coordinates, their bounds, strings and
    small variables are read and written as native chunks. Everything is one commit, unless
    `commit_every` says otherwise.

    The dataset equals what the files' own libraries read, or nothing is committed. What
    cannot be represented is refused, with the names of the file and the variable.

    A repeated call skips files that are already in the group, and puts new ones where their
    coordinate says, also between others. The same call with a longer list adds next month's
    files, and retries files that were late or could not be read.

    Parameters
    ----------
    urls : str, path or sequence of them
        NetCDF 3 and 4, HDF5 or GRIB files, with any extension. A pattern such as
        ``"s3://bucket/2024/*.nc"`` stands for all matching files; a list may contain patterns.
        ``*``, ``?``, ``[ab]`` and ``**`` (any folders) are known; hidden files on this machine
        match only a dot of the pattern. Web servers list no files.
    target : Repository, Storage, URL or path
        A repository is created if there is none.
    concat_dims : sequence of str
        Dimensions along which to combine files. Along each of them, files are sorted by their
        coordinate, or by URL if it is missing or the same in all files. More than one
        dimension, or one of `expand_dims`, needs coordinates that differ. Variables without any
        of these dimensions must be equal in all files. A dimension may have a different length
        in each group.
    expand_dims : sequence of str
        Scalar variables to turn into dimensions of the data, along which files are combined,
        too: for files of one time each, and for GRIB messages. For a name that no file has,
        each file is one step, in the order of URLs.
    order : {"auto", "coordinate", "url"}
        How to sort the files of a new archive.
    group : str
        Where the dataset goes. Default: the root of the repository.
    branch : str
    message : str, optional
        Of the commit. Default: one that counts the files.
    metadata : mapping, optional
        Of the commit.
    storage_options : mapping, optional
        Options of `icechunk.storage_from_url`, for a target that is a URL, and for reading
        remote files. The fsspec names for S3 (``key``, ``secret``, ``anon``,
        ``client_kwargs``) are understood, too.
    remote_options : mapping, optional
        The same for remote files only, if they need other options than the target. Web servers
        take ``headers``, ``bearer_token`` and what `icechunk.http_storage` takes in ``opts``.
        fsspec's caching options are ignored; its other options are refused.
    variables : sequence of str, optional
        Names, or paths within the file, of the variables to take. The coordinates that they
        need are taken, too. Default: all.
    drop_variables : sequence of str
        Names, or paths within the file, of variables to leave out.
    drop_attributes : sequence of str
        Names of attributes to leave out everywhere, or only in one variable
        (``"t:valid_range"``), one group (``"inner:history"``) or the file (``":history"``).
        Attributes that are NaN or infinite, references, or of opaque types cannot be stored.
    rename : mapping of str to str, optional
        New names of variables and dimensions. All other arguments except `variables` and
        `drop_variables` take the new names.
    coordinates : sequence of str, or "auto"
        Variables to write by value. Default: CF coordinates, their bounds, and variables of
        up to 512 bytes without the combined dimensions. Large coordinates become references
        where that is possible.
    loadable : sequence of str
        Additional variables to write by value.
    filter_by_keys : mapping, optional
        For GRIB files, ecCodes keys and the values that messages must have, or lists of
        values, as cfgrib takes them: ``{"typeOfLevel": "isobaricInhPa"}``. Messages that cannot
        be combined, such as those of different kinds of level, need separate calls, each with
        a `group` of its own. Default: all messages.
    parser : callable, optional
        A VirtualiZarr parser for all files, for other formats or with another reader. It
        takes a URL and an ``ObjectStoreRegistry``, and returns a ``ManifestStore``. It must be
        picklable if workers are processes. Default: chosen by the kind of each file.
    on_mismatch : {"error", "skip", "materialize", "layout"}
        What to do with files that differ from the first in data type, chunks, codecs, or
        the meaning of their numbers (scale, offset, fill value, units), or whose chunks do
        not begin where chunks of the archive do. ``"error"`` writes nothing and lists them,
        ``"skip"`` leaves them out, and ``"materialize"`` writes their values as native chunks.
        ``"layout"`` writes values where chunks or codecs differ; all else is an error.
        Uncompressed chunks are cut where that makes them fit, and the level of a compressor
        does not matter. What has no place in the archive, such as other shapes or variables,
        cannot be materialized, and is an error then.
    on_changed : {"error", "replace", "keep"}
        What to do with files of the archive that have changed or are gone. ``"error"`` writes
        nothing and lists them, ``"replace"`` scans them again and replaces the old ones, and
        ``"keep"`` leaves the archive as it is; reading these files fails then.
    chunk_grid : {"auto", "regular"}, optional
        Whether chunks may have several lengths along the combined dimensions, such as those of
        months. Zarr calls such a grid rectilinear, and supports it experimentally from 3.2: the
        engine ``icechunk`` opens it, other readers must enable it, and the report says how.
        ``"auto"`` uses it where chunks do not fit otherwise, ``"regular"`` refuses such chunks.
        Default: ``"auto"`` for a new archive, and for one that already has such a grid.
    allow_gaps : bool
        Whether to add files that follow an unreadable one, in the order of URLs. Default: they
        are withheld until that file is repaired or left out of the list.
    max_bytes_by_value : int
        Maximum bytes of one variable that one call may write by value because they cannot be
        referenced, such as those of a filter without a codec. More are an error that names the
        reason. What `coordinates` or `loadable` ask for does not count.
    verify : {"sample", "all", "none"}
        How many chunks to decode and compare with what the file's own library reads: one or
        two of each variable of some files, all, or none. The sizes of uncompressed chunks are
        checked in all files, except with ``"none"``.
    isolate : bool
        Whether to scan files in separate processes: a file that crashes a process, or keeps it
        busy forever, is reported as a failure. The first call waits a second or two for the
        first process. Files that only this process can read, such as those of ``memory://``,
        and those for a `parser` are always scanned in this process.
    containers : sequence of VirtualChunkContainer, optional
        For a new repository. Default: derived from the URLs.
    authorize_virtual_chunk_access : mapping, optional
        For opening or creating the repository. Default: what a new repository needs.
    commit_every : int, optional
        How many files one commit adds, in the order of their URLs. A call that is stopped
        loses no more than these, and continues when it is repeated. The files of the first
        commit decide how the archive is sorted and chunked. Default: one commit for all.
    executor : {"threads", "processes", "sync"}, Executor or Client, optional
        What scans files: threads, processes, a pool of `concurrent.futures`, a
        `distributed.Client`. ``"sync"`` scans one file after another without Dask.
        Default: Dask's default, which is the cluster if there is a client.
    scheduler : optional
        The same, by its Dask name.
    progress : bool, callable or None
        A bar, none, or a function that receives a `Status` now and then. Default: a bar in a
        terminal or a notebook.

    Returns
    -------
    VirtualizeReport
        What became of each file and variable, and how to open the result. A file that
        cannot be read is not an error unless none can; `VirtualizeReport.raise_for_failures`
        makes it one.

    Raises
    ------
    InvalidInputError
        If files contradict each other, overlap, or lie in no container of the repository,
        if a file of the archive has changed, or if no file could be read. Nothing is
        committed then, except for earlier commits of `commit_every`, which a note on the
        exception reports.
    ConflictError
        If others have changed the archive meanwhile. Nothing is committed then; what they
        committed elsewhere does not matter.

    Examples
    --------
    >>> report = virtualize("files/*.nc", "archive", concat_dims=["time"])
    >>> report.raise_for_failures()
    >>> lines = report.opening  # that open the result
    """
    new = names_of(expand_dims)
    dims = tuple(dict.fromkeys((*new, *names_of(concat_dims))))
    if not dims:
        raise InvalidInputError("concat_dims names no dimension")
    _one_of("on_mismatch", on_mismatch, ON_MISMATCH)
    _one_of("on_changed", on_changed, _ON_CHANGED)
    _one_of("verify", verify, VERIFY)
    _one_of("order", order, ORDERS)
    check_parser(parser)
    if chunk_grid is not None:
        _one_of("chunk_grid", chunk_grid, CHUNK_GRIDS)
    if isinstance(coordinates, str) and coordinates != "auto":
        raise InvalidInputError(
            f"coordinates must be 'auto' or a list of names, not {coordinates!r}"
        )
    if commit_every is not None and commit_every < 1:
        raise InvalidInputError(f"commit_every is a number of files, not {commit_every}")
    options = with_executor(executor, {} if scheduler is None else {"scheduler": scheduler})
    opened = Opened.of(target, storage_options, remote_options, authorize_virtual_chunk_access)
    sources = Sources(opened.remote_options)
    # one file may be spelled in several ways
    expanded = sources.expand(urls, folders=parser is not None)
    spelled = {location_of(name): name for name in reversed(expanded)}
    locations = {name: location for location, name in reversed(spelled.items())}
    names = list(locations)
    session = opened.session(branch)
    prefixes = opened.prefixes(session, list(locations.values()), containers)
    sources = replace(sources, prefixes=prefixes)
    root = root_of(group)
    archive = ArchiveGroup.of(opened.repository, session, branch, root, dims)
    rows = archive.record.files.rows(list(locations.values())).tolist()
    known = {name: row for name, row in zip(names, rows, strict=True) if row >= 0}
    changed = _changed(sources, archive.record.files, known)
    if changed and on_changed == "error":
        listed = "\n".join(f"  {url}" for url in changed[:_SHOWN])
        raise InvalidInputError(
            f"{counted(len(changed), 'file')} of the archive changed since the scan, or "
            f"vanished:\n{listed}\nPass on_changed='replace' to take the new versions, or 'keep' "
            "to leave the archive as it is; reading them fails then. remove_files takes files out."
        )
    again = set(changed if on_changed == "replace" else ())
    # a commit of some of them leaves no gap before the others
    todo = sorted(name for name in names if name not in known or name in again)
    for name in todo:
        if session is not None:
            session.virtual.validate(locations[name])
    if todo and session is not None:
        archive.read_digests(session, dims)
    scanner = Scanner(
        dims,
        new,
        None if isinstance(coordinates, str) else tuple(coordinates),
        names_of(loadable),
        Selection(
            None if variables is None else names_of(variables),
            names_of(drop_variables),
            dict(rename or {}),
            names_of(drop_attributes),
        ),
        sources,
        len(todo) > 1 or bool(archive.templates),
        verify,
        max_bytes_by_value,
        uuid.uuid4().hex,
        parser,
        keys_of(filter_by_keys) or None,
        isolate,
    )
    adding = Adding(
        opened,
        branch,
        root,
        locations,
        scanner,
        options,
        on_mismatch,
        order,
        chunk_grid,
        allow_gaps,
        containers,
        message,
        metadata,
    )
    with progress_of(progress) as shown:
        report = adding.add(session, archive, todo, again, commit_every, shown)
    if todo and len(report.failed) == len(names):
        raise none_read(report.failed)
    replaced, scanned = set(report.replaced), set(todo)
    return replace(
        report,
        already=tuple(name for name in names if name not in scanned),
        changed=tuple(url for url in changed if url not in replaced),
    )


def root_of(group: str) -> str:
    """Return the path of a group."""
    names = group.strip("/").split("/")
    if names != [""] and not {"", ".", ".."}.isdisjoint(names):
        raise InvalidInputError(
            f"{group!r} is not the path of a group; give one such as 'ocean/surface'"
        )
    return "/" + "/".join(names)


@answers_keywords("storage_options", 1)
def remove_files(
    urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    target: Target,
    *,
    group: str = "/",
    branch: str = "main",
    message: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    authorize_virtual_chunk_access: Mapping[str, Any] | None = None,
) -> VirtualizeReport:
    """Remove files from an archive that `virtualize` has made.

    The steps of the files are removed, and what follows them moves up. The files need not be
    readable, or exist. Everything is one commit, and older versions keep the files.

    Parameters
    ----------
    urls : str, path or sequence of them
        Files of the archive, as `virtualize` takes them. A pattern is matched against the
        files of the archive, not against those that exist.
    target : Repository, Storage, URL or path
    group, branch : str
    message : str, optional
        Of the commit. Default: one that counts the files.
    metadata : mapping, optional
        Of the commit.
    storage_options : mapping, optional
        Options of `icechunk.storage_from_url`, for a target that is a URL.
    authorize_virtual_chunk_access : mapping, optional
        For opening the repository.

    Returns
    -------
    VirtualizeReport

    Raises
    ------
    InvalidInputError
        If a file is not in the archive, or what follows it would have to move by other than
        whole chunks. Nothing is committed then.
    ConflictError
        If others have changed the archive meanwhile. Nothing is committed then; what they
        committed elsewhere does not matter.

    Examples
    --------
    >>> report = virtualize("files/*.nc", "archive", concat_dims=["time"])
    >>> remove_files(["files/2.nc"], "archive").removed
    ('files/2.nc',)
    """
    opened = Opened.of(target, storage_options, None, authorize_virtual_chunk_access)
    session = opened.session(branch)
    root = root_of(group)
    dims = tuple(ArchiveGroup.dimensions(session, root))
    archive = ArchiveGroup.of(opened.repository, session, branch, root, dims)
    if session is None or not archive.templates:
        place = opened.place.url if isinstance(opened.place, Storage) else opened.place.storage.url
        raise InvalidInputError(f"there is no archive in {root} of {place}")
    if not archive.is_recorded:
        raise InvalidInputError(
            f"there is no table of the files of the archive in {root}; virtualize the files that "
            "are to stay into another group"
        )
    gone = archive.matching(urls)
    fitted = Fitting(archive, dims, "error", "auto").fit([], gone.values())
    begun = session.snapshot_id
    writing = Writing(
        session,
        archive,
        fitted,
        {},
        lambda part, _: np.empty(0),
        lambda: opened.made.readonly_session(snapshot_id=begun),
    )
    found = writing.write()
    files = counted(len(gone), "file")
    snapshot = commit(
        opened.made, session, message or f"{files} taken out of {root}", metadata, root, found
    )
    return VirtualizeReport(
        group=root,
        branch=branch,
        snapshot_id=snapshot,
        removed=tuple(gone),
        variables=found,
        sizes=writing.sizes(),
        order=writing.order(),
        holes=writing.record.holes(),
        **opened.reading(writing.locations()),
    )


# -- arguments -------------------------------------------------------------------------
def names_of(given: Any) -> tuple[str, ...]:
    """Return names, of which a single one may be given as a string."""
    return (given,) if isinstance(given, str) else tuple(given)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InvalidInputError(f"{name} must be one of {tuple(allowed)}, not {value!r}")


def _changed(sources: Sources, files: Files, known: Mapping[str, int]) -> list[str]:
    """Return the URLs of the files of an archive that have changed."""
    versions = sources.versions(list(known))
    return [
        name
        for name, row in known.items()
        if sources.has_changed(name, files.version(row), versions[name])
        # what is stored by value is not read from the file again
        and not (files.by_value[row] and versions[name] == GONE)
    ]
