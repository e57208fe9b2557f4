"""Archives of NetCDF and GRIB files as virtual datasets, scanned in parallel."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

from icechunk import (
    InvalidInputError,
    Repository,
    RepositoryConfig,
    Storage,
    VirtualChunkContainer,
)
from icechunk.virtual.container_storage import credential_call
from icechunk_dask.archives.containers import authorization, derive_containers
from icechunk_dask.archives.fitting import Fitting
from icechunk_dask.archives.group import BY_VALUE, ArchiveGroup
from icechunk_dask.archives.report import VirtualizeReport
from icechunk_dask.archives.scan import Scanner, location_of
from icechunk_dask.archives.scan_many import scan_many
from icechunk_dask.progress import ProgressOption, progress_of

__all__ = ["VirtualizeReport", "virtualize"]

_ON_MISMATCH: Final = ("error", "skip", "materialize")

Target: TypeAlias = Repository | Storage | str | os.PathLike[str]


def virtualize(
    urls: Sequence[str | os.PathLike[str]],
    target: Target,
    *,
    concat_dims: Sequence[str] = ("time",),
    expand_dims: Sequence[str] = (),
    group: str = "/",
    branch: str = "main",
    message: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    remote_options: Mapping[str, Any] | None = None,
    coordinates: Sequence[str] | str = "auto",
    on_mismatch: str = "error",
    containers: Sequence[VirtualChunkContainer] | None = None,
    authorize_virtual_chunk_access: Mapping[str, Any] | None = None,
    scheduler: Any = None,
    progress: ProgressOption = None,
) -> VirtualizeReport:
    """Make one dataset of many NetCDF or GRIB files, without copying their data.

    Chunks become virtual references to the files. Coordinates, their bounds, texts and
    small variables are read and written as native chunks. All of it is one commit.

    Called again, files that are in the group already are left out, and new ones are
    appended: next month's files are the same call with a longer list, and so is another
    try with files that could not be read.

    Parameters
    ----------
    urls : sequence of str or path
        NetCDF 3 and 4, HDF5 or GRIB files, whatever their names end with.
    target : Repository, Storage, URL or path
        A repository is created where there is none.
    concat_dims : sequence of str
        Dimensions along which files are combined. Along each of them files are sorted by
        their coordinate, or by URL if it is missing or the same in each of them; more
        than one dimension needs coordinates. Variables without any of them must be equal
        in all files; large ones are compared with what is in a repository already only if
        it may read its virtual chunks.
    expand_dims : sequence of str
        Scalar variables that become dimensions of the data, to combine files along them
        too: for files of one moment each, and for GRIB messages.
    group : str
        Where the dataset goes. Default: the root of the repository.
    branch : str
    message : str, optional
        Of the commit. Default: one that counts the files.
    metadata : mapping, optional
        Of the commit.
    remote_options : mapping, optional
        For fsspec, to read remote files.
    coordinates : sequence of str, or "auto"
        Variables to write by value. Default: what the conventions of CF call coordinates,
        their bounds, and those of up to 512 bytes without the combined dimensions.
    on_mismatch : {"error", "skip", "materialize"}
        What to do with files that differ from the first in data type, chunks, codecs, or
        the meaning of their numbers (scale, offset, fill value, units), or whose chunks do
        not begin where chunks of the archive do: write nothing and list them, leave them
        out, or write their values as native chunks. What has no place in the archive,
        such as other shapes or variables, cannot be materialized, and is an error then.
    containers : sequence of VirtualChunkContainer, optional
        For a repository that is created. Default: derived from the URLs.
    authorize_virtual_chunk_access : mapping, optional
        To open or create the repository. Default: what is needed, if it is created.
    scheduler : optional
        Of Dask: ``"threads"``, ``"processes"``, a `distributed.Client`. ``"sync"`` scans
        one file after the other without Dask. Default: Dask's default, which is the
        cluster if there is a client.
    progress : bool, callable or None
        A bar, none, or a function that is given a `Status` now and then. Default: a bar in
        a terminal or a notebook.

    Returns
    -------
    VirtualizeReport
        What became of each file, and how to open the result.

    Raises
    ------
    InvalidInputError
        If files contradict each other, or lie in no container of the repository. Nothing
        is committed then. A file that cannot be read is no error: the report lists it.
    ConflictError
        If others moved the branch meanwhile. Nothing is committed then.
    """
    names = _names(urls)
    new = _dims(expand_dims)
    dims = tuple(dict.fromkeys((*new, *_dims(concat_dims))))
    if not dims:
        raise InvalidInputError("concat_dims names no dimension")
    if on_mismatch not in _ON_MISMATCH:
        raise InvalidInputError(f"on_mismatch is one of {_ON_MISMATCH}, not {on_mismatch!r}")
    if isinstance(coordinates, str) and coordinates != "auto":
        raise InvalidInputError(f"coordinates is 'auto' or a list of names, not {coordinates!r}")
    repository = _existing(target, authorize_virtual_chunk_access)
    session = None if repository is None else repository.writable_session(branch)
    root = "/" + group.strip("/")
    archive = ArchiveGroup.of(repository, session, branch, root, dims)
    todo = [name for name in names if location_of(name) not in archive.locations]
    if session is not None:
        for name in todo:
            session.virtual.validate(location_of(name))
    scanner = Scanner(
        dims,
        new,
        None if isinstance(coordinates, str) else tuple(coordinates),
        dict(remote_options or {}),
        len(todo) > 1 or bool(archive.templates),
    )
    with progress_of(progress) as shown:
        shown.set(phase="scanning", total=len(todo))
        scans = {scan.url: scan for scan in scan_many(scanner, todo, scheduler, shown)}
        shown.set(phase="done", tasks=len(todo))
    read = [scans[name] for name in sorted(todo) if not scans[name].failure]
    work = Fitting(archive, dims, on_mismatch, scanner, {scan.url: scan for scan in read})
    work.fit([part for scan in read for part in scan.parts])
    report: dict[str, Any] = {
        "group": root,
        "already": tuple(name for name in names if name not in scans),
        "failed": {name: scans[name].failure for name in todo if scans[name].failure},
        "skipped": work.skipped(),
    }
    if not work.placed:
        return VirtualizeReport(**report)
    if session is None or repository is None:
        locations = [location_of(name) for name in names]
        chosen = derive_containers(locations, scanner.remote_options)
        chosen = chosen if containers is None else list(containers)
        access = authorize_virtual_chunk_access
        if access is None:
            access = authorization(chosen, scanner.remote_options)
        config = RepositoryConfig()
        for container in chosen:
            config.set_virtual_chunk_container(container)
        repository = Repository.create(cast(Any, target), config, access)
        session = repository.writable_session(branch)
    counts = work.write(session, root)
    added = work.files()
    by_value = [location_of(url) for url in added if url not in work.referred]
    told = {**(metadata or {}), **({BY_VALUE: by_value} if by_value else {})}
    snapshot = session.commit(message or _message(added, root), told or None)
    return VirtualizeReport(
        snapshot_id=snapshot,
        added=added,
        materialized=work.cured(),
        arrays=tuple(sorted(work.templates)),
        sizes=work.sizes(),
        chunks=counts,
        order=work.order,
        **_reading(repository, [location_of(url) for url in work.referred]),
        **report,
    )


# -- arguments -------------------------------------------------------------------------
def _names(urls: Any) -> list[str]:
    if isinstance(urls, str | os.PathLike):
        raise InvalidInputError(f"urls is a list; pass [{os.fspath(urls)!r}]")
    names = [os.fspath(url) for url in urls]
    if not names:
        raise InvalidInputError("there are no urls")
    return list(dict.fromkeys(names))


def _dims(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _existing(target: Any, access: Mapping[str, Any] | None) -> Repository | None:
    if isinstance(target, Repository):
        if access is not None:
            raise InvalidInputError(
                "authorize_virtual_chunk_access is for repositories that are opened here; pass it "
                "to Repository.open"
            )
        return target
    if not Repository.exists(target):
        return None
    return Repository.open(target, None, cast(Any, access))


def _message(added: Sequence[str], root: str) -> str:
    files = "1 file" if len(added) == 1 else f"{len(added)} files"
    return f"{files} as virtual chunks in {root}"


def _reading(repository: Repository, locations: Sequence[str]) -> dict[str, Any]:
    """Return what it takes to read some files, as a report has it."""
    access: dict[str, str] = {}
    trusted = False
    for container in (repository.config.virtual_chunk_containers or {}).values():
        if any(location.startswith(container.url_prefix) for location in locations):
            access[container.url_prefix] = credential_call(container.store)
            options = getattr(container.store, "options", None)
            trusted |= getattr(options, "endpoint_url", None) is not None
    return {"access": access, "trusted": trusted}
