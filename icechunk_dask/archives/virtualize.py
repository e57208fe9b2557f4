"""Archives of NetCDF and GRIB files as virtual datasets, scanned in parallel."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from icechunk import InvalidInputError, Storage, VirtualChunkContainer
from icechunk.kerchunk.guard import VERIFY
from icechunk_dask.archives.adding import Adding, none_read
from icechunk_dask.archives.committing import commit
from icechunk_dask.archives.fitting import ON_MISMATCH, Fitting
from icechunk_dask.archives.grids import CHUNK_GRIDS
from icechunk_dask.archives.group import ArchiveGroup
from icechunk_dask.archives.parsed import Parser
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
#: Reasons that an error lists.
_SHOWN: Final = 10


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
    """Make one dataset of many NetCDF or GRIB files, without copying their data.

    Chunks become virtual references to the files. Coordinates, their bounds, texts and
    small variables are read and written as native chunks. All of it is one commit, unless
    `commit_every` says otherwise.

    The dataset equals what the files' own libraries read, or nothing is committed: what
    cannot be represented is refused by the name of the file and the variable.

    Called again, files that are in the group already are left out, and new ones go where
    their coordinate says, between others too: next month's files are the same call with a
    longer list, and so is another try with files that were late or could not be read.

    Parameters
    ----------
    urls : str, path or sequence of them
        NetCDF 3 and 4, HDF5 or GRIB files, whatever their names end with. A pattern such as
        ``"s3://bucket/2024/*.nc"`` stands for all files that match; a list may have some.
    target : Repository, Storage, URL or path
        A repository is created where there is none.
    concat_dims : sequence of str
        Dimensions along which files are combined. Along each of them files are sorted by
        their coordinate, or by URL if it is missing or the same in each of them; more
        than one dimension, or one of `expand_dims`, needs coordinates that differ. Variables
        without any of them must be equal in all files; large ones are compared with what is in
        a repository already only if it may read its virtual chunks. A dimension of a group has
        a length of its own.
    expand_dims : sequence of str
        Scalar variables that become dimensions of the data, to combine files along them
        too: for files of one moment each, and for GRIB messages. Of a name that files do not
        have at all, each is a step, in the order of URLs.
    order : {"auto", "coordinate", "url"}
        What the files of a new archive are sorted by.
    group : str
        Where the dataset goes. Default: the root of the repository.
    branch : str
    message : str, optional
        Of the commit. Default: one that counts the files.
    metadata : mapping, optional
        Of the commit.
    storage_options : mapping, optional
        The options of `icechunk.storage_from_url`, for a target that is a URL, and to read
        remote files. The names that fsspec has for S3 (``key``, ``secret``, ``anon``,
        ``client_kwargs``) are understood, too.
    remote_options : mapping, optional
        The same to read remote files only, where they take others than the target. Those of
        web servers have ``headers``, ``bearer_token`` and what `icechunk.http_storage` has in
        ``opts``. fsspec's options for caching are left out, and others of it are refused.
    variables : sequence of str, optional
        Names, or paths within the file, of the variables to take. What they need as
        coordinates is taken, too. Default: all.
    drop_variables : sequence of str
        Names, or paths within the file, of variables to leave out.
    drop_attributes : sequence of str
        Names of attributes to leave out wherever they are; ``"t:valid_range"`` is that of a
        variable, ``"inner:history"`` that of a group, ``":history"`` that of the file.
        Attributes that are NaN or infinite, references, or of opaque types cannot be stored.
    rename : mapping of str to str, optional
        New names of variables and dimensions. All other arguments take the new names, but
        for `variables` and `drop_variables`.
    coordinates : sequence of str, or "auto"
        Variables to write by value. Default: what the conventions of CF call coordinates,
        their bounds, and those of up to 512 bytes without the combined dimensions. Large
        coordinates are referred to where that is possible.
    loadable : sequence of str
        Variables to write by value in addition.
    filter_by_keys : mapping, optional
        Of GRIB files, keys of ecCodes and the values that messages have to have, or lists of
        them, as cfgrib takes them: ``{"typeOfLevel": "isobaricInhPa"}``. Messages that cannot
        be combined, such as those of another kind of level, go to a group of their own, by a
        call for each `group`. Default: all messages are taken.
    parser : callable, optional
        A parser of VirtualiZarr for all files, for other formats or by another reader. It
        takes a URL and an ``ObjectStoreRegistry``, and returns a ``ManifestStore``. It has
        to pickle where workers are processes. Default: by the kind of each file.
    on_mismatch : {"error", "skip", "materialize", "layout"}
        What to do with files that differ from the first in data type, chunks, codecs, or
        the meaning of their numbers (scale, offset, fill value, units), or whose chunks do
        not begin where chunks of the archive do: write nothing and list them, leave them
        out, or write their values as native chunks. Chunks without compression are cut
        where that makes them fit, and the level of a compressor does not matter. What has
        no place in the archive, such as other shapes or variables, cannot be materialized,
        and is an error then. ``"layout"``: values are written where chunks or codecs differ,
        all else is an error.
    on_changed : {"error", "replace", "keep"}
        What to do with files of the archive that are of another version now, or are gone:
        write nothing and list them, scan them again and put them in the place of the old
        ones, or leave the archive as it is, in which reading them fails.
    chunk_grid : {"auto", "regular"}, optional
        Whether chunks may have several lengths along the dimensions of files, such as those of
        months. Zarr calls such a grid rectilinear, and has it from 3.2 as an experiment: the
        engine ``icechunk`` opens it, other readers have to allow it, and the report says how.
        ``"auto"`` has them where chunks have no place otherwise, ``"regular"`` refuses that.
        Default: ``"auto"`` for a new archive, and for one that has them already.
    allow_gaps : bool
        Whether to add files that come after one that cannot be read, in the order of URLs.
        Default: they are withheld, until that one is repaired or left out of the list.
    max_bytes_by_value : int
        How many bytes of one variable may be written by value in one call because they
        cannot be referred to, such as those of a filter without a codec. More are an error
        that names the reason. What `coordinates` or `loadable` ask for does not count.
    verify : {"sample", "all", "none"}
        Of how many chunks to compare what they decode to with what the file's own library
        reads: one or two of each variable of some files, all, or none. The sizes of chunks
        without compression are checked in all files, but for ``"none"``.
    isolate : bool
        Whether to scan files in processes apart: a file that ends them, or keeps them computing
        without an end, is a failure that names it. The first call waits a second or two for the
        first of them. Files that only this process can read, such as those of ``memory://``, and
        those for a `parser` are always scanned in it.
    containers : sequence of VirtualChunkContainer, optional
        For a repository that is created. Default: derived from the URLs.
    authorize_virtual_chunk_access : mapping, optional
        To open or create the repository. Default: what is needed, if it is created.
    commit_every : int, optional
        Files that one commit adds, in the order of their URLs. A call that is stopped loses
        no more than these, and goes on when it is made again. The first of them say what the
        archive is like: what files are sorted by, and their chunks. Default: one commit for
        all.
    executor : {"threads", "processes", "sync"}, Executor or Client, optional
        What scans files: threads, processes, a pool of `concurrent.futures`, a
        `distributed.Client`. ``"sync"`` scans one file after the other without Dask.
        Default: Dask's default, which is the cluster if there is a client.
    scheduler : optional
        The same by the name that Dask has for it.
    progress : bool, callable or None
        A bar, none, or a function that is given a `Status` now and then. Default: a bar in
        a terminal or a notebook.

    Returns
    -------
    VirtualizeReport
        What became of each file and variable, and how to open the result. A file that
        cannot be read is no error, unless none can; `VirtualizeReport.raise_for_failures`
        makes it one.

    Raises
    ------
    InvalidInputError
        If files contradict each other, overlap, or lie in no container of the repository,
        if a file of the archive has changed, or if no file could be read. Nothing is
        committed then, but for what `commit_every` has committed before: a note of the
        exception tells of it.
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
    spelled = {location_of(name): name for name in reversed(sources.expand(urls))}
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
            f"{len(changed)} files of the archive have changed since they were added, or are "
            f"gone:\n{listed}\nPass on_changed='replace' to take the new versions, or 'keep' to "
            "leave the archive as it is; reading them fails then. remove_files takes files out."
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
    """Take files out of an archive that `virtualize` has made.

    The steps of the files go; what comes after them moves up. No file needs to be readable,
    or to exist. All of it is one commit, and older versions keep the files.

    Parameters
    ----------
    urls : str, path or sequence of them
        Files of the archive, as `virtualize` takes them. A pattern is compared with the
        files of the archive, not with those that exist.
    target : Repository, Storage, URL or path
    group, branch : str
    message : str, optional
        Of the commit. Default: one that counts the files.
    metadata : mapping, optional
        Of the commit.
    storage_options : mapping, optional
        The options of `icechunk.storage_from_url`, for a target that is a URL.
    authorize_virtual_chunk_access : mapping, optional
        To open the repository.

    Returns
    -------
    VirtualizeReport

    Raises
    ------
    InvalidInputError
        If a file is not in the archive, or what comes after it would have to move by other
        than whole chunks. Nothing is committed then.
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
    files = "1 file" if len(gone) == 1 else f"{len(gone)} files"
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
    """Return names that may be given as a single string."""
    return (given,) if isinstance(given, str) else tuple(given)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InvalidInputError(f"{name} must be one of {tuple(allowed)}, not {value!r}")


def _changed(sources: Sources, files: Files, known: Mapping[str, int]) -> list[str]:
    """Return those files of an archive, by URL, that are of another version now."""
    versions = sources.versions(list(known))
    return [
        name
        for name, row in known.items()
        if sources.has_changed(name, files.version(row), versions[name])
        # nobody reads again what is stored by value
        and not (files.by_value[row] and versions[name] == GONE)
    ]
