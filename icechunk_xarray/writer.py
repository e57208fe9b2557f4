"""`to_icechunk`: write xarray objects into a session, or into a repository with a commit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from icechunk import (
    IcechunkStore,
    InvalidInputError,
    ReadOnlyError,
    RepositoryConfig,
    Session,
    SessionMode,
    SessionStateError,
)
from icechunk.errors import ErrorKind
from icechunk.storage import VersionURL, version_url
from icechunk.storage.keywords import answers_keywords
from icechunk_xarray.groups import Writable, describe, groups_of, stage_groups, write_now
from icechunk_xarray.lazy import LazyWrite
from icechunk_xarray.names import group_path
from icechunk_xarray.resuming import JobWrite
from icechunk_xarray.staging import Mode, Options, Region, choose_mode
from icechunk_xarray.targets import DEFAULT_BRANCH, Authorization, Target, open_repository

if TYPE_CHECKING:
    from icechunk_dask import Status

__all__ = ["to_icechunk"]


@answers_keywords("storage_options", 1)
def to_icechunk(
    obj: Writable,
    target: Target | None = None,
    *,
    session: Session | None = None,
    group: str | None = None,
    mode: Mode | None = None,
    safe_chunks: bool = True,
    align_chunks: bool = False,
    append_dim: Hashable | None = None,
    region: Region = None,
    encoding: Mapping[Any, Any] | None = None,
    chunkmanager_store_kwargs: Mapping[str, Any] | None = None,
    split_every: int | None = None,
    compute: bool = True,
    progress: bool | Callable[[Status], object] | None = None,
    safe_append: bool = True,
    safe_encoding: bool = True,
    write_inherited_coords: bool | Collection[str] = False,
    branch: str | None = None,
    message: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Authorization | None = None,
    job: str | None = None,
    commit_every: int | str | timedelta | None = None,
) -> Any:
    """Write a Dataset, DataArray or DataTree.

    It writes into a session, for the caller to commit, so that several calls make one
    transaction; or into a repository, named by a URL, path, storage or object, and commits.

    Everything is checked before values are written. A write that fails or is interrupted
    leaves the session, or the branch, as it was.

    Parameters
    ----------
    obj : xarray.Dataset, xarray.DataArray or xarray.DataTree
        NumPy and Dask variables may be mixed. Dask variables are written together, with
        `icechunk_dask.store_dask`: by threads, processes or a cluster, as Dask is
        configured.
    target : Session, IcechunkStore, Repository, Storage, StorageConfig, str or path
        Where to write. A missing repository is created, unless `append_dim`, `region` or
        ``mode="r+"`` implies that it must exist. A URL may name branch and group:
        ``s3://bucket/repo|icechunk:@branch.main/group``.
    session : Session
        Another name for a target that is a session.
    group : str, optional
        Path of the group. Default: the root.
    mode : {"w", "w-", "a", "a-", "r+"}, optional
        - "w": write the group anew; its old content is gone from this version;
        - "w-": create the group, and refuse one that exists;
        - "a": add variables, and overwrite those that exist: values, and attributes where the
          new ones have any; how numbers are stored stays,
          and coordinates with equal values are not written again;
        - "a-": as "a", but with `append_dim` leave existing variables without it alone;
        - "r+": overwrite values only.

        Default: "a" with `append_dim`, "r+" with `region`, else "w-".
    safe_chunks : bool
        Whether to refuse, in mode "r+", regions of Dask variables that cover only a part of
        a stored chunk (or shard). False: the caller knows that no other call writes the rest
        at the same time. Two Dask blocks that would write the same stored chunk are always
        refused, because the tasks of one call do run in parallel.
    align_chunks : bool
        Whether to rechunk Dask variables to fit the stored chunks. A new array whose blocks are
        of several sizes gets chunks of the largest. It also allows regions
        that cover only a part of a stored chunk, as ``safe_chunks=False`` does.
    append_dim : str, optional
        The dimension along which to extend the existing arrays.
    region : mapping of str to slice or "auto", or "auto", optional
        The part of existing arrays to overwrite. ``"auto"``: where the coordinate values are
        found. All data variables must have a dimension of the region. Coordinates must equal
        the stored ones, which stay; they are written only where nothing is stored yet.
    encoding : mapping, optional
        Encodings of new variables by name; for a DataTree by path of the node, then by
        name.
    chunkmanager_store_kwargs : mapping, optional
        How Dask runs: ``executor``, ``retries``, ``priority``, ``resources``, ``workers``
        and anything else that `icechunk_dask.store_dask` passes on.
    split_every : int, optional
        How many change sets of tasks are merged at a time. Default: 16.
    compute : bool
        False, with a session: write metadata and NumPy variables, and return a
        `dask.delayed.Delayed` that writes the Dask variables into the session. Call its
        ``compute()`` once, before the commit. Tasks may run anywhere; their changes are
        merged here. As part of another computation, it must run in threads of this process,
        because only this process has the session.
    progress : bool, callable or None
        For Dask variables: a bar, none, or a function that receives an
        `icechunk_dask.Status` from time to time. Default: a bar in a terminal or a notebook.
    safe_append : bool
        Whether to refuse an append that repeats coordinate values, breaks the order of a sorted
        coordinate, lacks variables, lacks groups of a tree that would become shorter than others,
        or has other coordinates than the stored ones. The check reads the stored ones. Coordinates
        that Dask would have to compute are not compared.
    safe_encoding : bool
        Whether to refuse values that would not be read back: times that the stored units
        cannot express, overflow of packed integers, missing values without a fill value,
        truncated strings. Existing arrays must hold values exactly, or to the precision
        of their packing. Values of Dask variables are checked while they are written.
    write_inherited_coords : bool or collection of str
        Whether nodes of a DataTree repeat the coordinates of their parents, or the paths of
        coordinates that are repeated, such as ``{"/inner/time"}``.
    branch : str, optional
        The branch to commit to. Default: ``main``.
    message : str, optional
        For the commit. Default: a description of what was written.
    metadata : mapping, optional
        For the commit; anything that JSON can express.
    storage_options : mapping, optional
        For a URL: the options of `icechunk.storage_from_url`.
    config : RepositoryConfig, optional
        Overrides the stored configuration; stored if the repository is created.
    authorize_virtual_chunk_access : mapping of str to credentials, optional
        Prefixes of the virtual chunk containers that may be read, with credentials.
    job : str, optional
        With a repository: a name in `Repository.jobs`, which records what is done. Arrays and
        coordinates are committed first, then values in batches, which others see as they arrive.
        However the call ends, the same call continues it, without repeating what is committed.
        It is refused if the object has changed. Values in files, or that Dask computes, are not
        compared.
    commit_every : int, str or timedelta, optional
        With `job`: the size of a batch, as for `icechunk_dask.distributed_write`: a number of
        blocks, ``"1GB"`` of values in memory, or ``"60s"``. Default: ``"1GB"``.

    Returns
    -------
    str or None or dask.delayed.Delayed
        The id of the snapshot, if the target is a repository; the newest snapshot, if there was
        nothing to write, such as no new steps. None for a session, or, with
        ``compute=False``, what remains to be computed.

    Raises
    ------
    InvalidInputError
        If arguments contradict each other, or the object does not fit what is stored. The
        message names the variable, the dimension, and what to do. Also if a repository in
        memory would be written from other processes.
    TaskError
        If a Dask variable could not be computed or written. It names the variable and the
        region, and its cause is the original error.
    AlreadyExistsError
        If mode is "w-", and the group exists.
    NodeNotFoundError, RepositoryNotFoundError, RefNotFoundError
        If there is nothing to append to.
    ConflictError
        If somebody else has committed to the branch in the meantime, or wrote the same chunks in
        the session.
    ReadOnlyError, SessionStateError
        If the session does not allow writes.

    ImportError
        If there are Dask variables, and the package that writes them is not installed.

    Notes
    -----
    In a session, the write happens in a fork that is merged at the end. Until then the
    session shows nothing of it. Chunks of a failed write are in the storage, but
    nothing refers to them. A repository that was created for a failed write stays,
    empty.

    Examples
    --------
    >>> data = xr.Dataset({"a": ("time", [1.0, 2.0])}, {"time": [0, 1]})
    >>> snapshot = to_icechunk(data, "series", message="Two values")
    >>> later = data.assign_coords(time=[2, 3])
    >>> snapshot = to_icechunk(later, "series", append_dim="time")
    """
    url = version_url(target)
    if url is not None:
        target, branch, group = _named(url, branch, group)
    opening = {
        "storage_options": storage_options,
        "config": config,
        "authorize_virtual_chunk_access": authorize_virtual_chunk_access,
    }
    given = {"branch": branch, "message": message, "metadata": metadata, "job": job, **opening}
    destination = _destination(target, session, given)
    options = Options(
        choose_mode(mode, append_dim, region),
        append_dim,
        region,
        safe_chunks,
        align_chunks,
        safe_append,
        safe_encoding,
    )
    path = group_path(group)
    parts = groups_of(obj, path, encoding or {}, inherit=write_inherited_coords)
    lazy = LazyWrite(split_every, align_chunks, progress, dict(chunkmanager_store_kwargs or {}))
    lazy.check(compute=compute)
    if commit_every is not None and job is None:
        raise InvalidInputError(
            "commit_every makes several commits, so that a job can go on after the last one: name "
            "it with job=",
            ErrorKind.NOT_ALLOWED,
        )
    if isinstance(destination, Session):
        work = destination.fork(pack=True)
        waiting = write_now(stage_groups(parts, work, options))
        if compute:
            lazy.write(waiting)
            destination.merge(work)
            return None
        if options.mode == "w":
            lazy.check_own_reads(waiting, destination, path)
        destination.merge(work)
        return lazy.delay(waiting, destination)
    if not compute:
        raise InvalidInputError(
            "compute=False goes with a session, which is committed once all is computed: pass "
            "Repository.writable_session(branch)",
            ErrorKind.NOT_ALLOWED,
        )
    creates = options.mode != "r+" and append_dim is None and region is None
    repository = open_repository(
        destination,
        **opening,  # type: ignore[arg-type]
        create=creates and branch in (None, DEFAULT_BRANCH),
    )
    if job is not None:
        resumable = JobWrite(parts, repository, branch or DEFAULT_BRANCH, options, job)
        return resumable.write(lazy, message or describe(parts, options), metadata, commit_every)
    committing = repository.writable_session(branch or DEFAULT_BRANCH, pack=True)
    waiting = write_now(stage_groups(parts, committing, options))
    lazy.write(waiting)
    if not committing.has_uncommitted_changes:
        # such as no new steps, or values that are stored already
        return committing.snapshot_id
    return committing.commit(message or describe(parts, options), metadata)


# -- arguments ----------------------------------------------------------------------------
def _named(
    url: VersionURL, branch: str | None, group: str | None
) -> tuple[str, str | None, str | None]:
    """Return the repository, branch and group that a URL names."""
    if url.ref is not None:
        name = url.branch
        if name is None:
            raise InvalidInputError(
                f"{url.ref} does not change: write to a branch, as |icechunk:@branch.NAME",
                ErrorKind.NOT_ALLOWED,
            )
        if branch not in (None, name):
            raise InvalidInputError(
                f"the URL names the branch {name!r}, and branch is {branch!r}: pass one of them",
                ErrorKind.INVALID_REF_TYPE,
            )
        branch = name
    return url.storage, branch, "/".join(filter(None, (url.path, (group or "").strip("/")))) or None


def _destination(
    target: Target | None, session: Session | None, arguments: Mapping[str, object]
) -> Target:
    if (target is None) == (session is None):
        raise InvalidInputError(
            "to_icechunk needs one target: a session, or a repository, its URL or path",
            ErrorKind.NOT_ALLOWED,
        )
    return destination_of(session if target is None else target, **arguments)


def destination_of(destination: Any, **arguments: object) -> Target:
    """Return where to write: a writable session, or what names a repository.

    `arguments` are those that a session does not take.
    """
    if isinstance(destination, IcechunkStore):
        if destination.read_only:
            raise ReadOnlyError(
                "get one that writes from Repository.writable_session(branch).store",
                ErrorKind.READ_ONLY_STORE,
            )
        destination = destination.session
    if isinstance(destination, Session):
        _refuse_with_session(arguments)
        _check_writable(destination)
    found: Target = destination
    return found


def _refuse_with_session(arguments: Mapping[str, object]) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise InvalidInputError(
            f"{', '.join(given)} cannot be given with a session: it is on a branch already, and "
            "session.commit(message, metadata) commits it",
            ErrorKind.NOT_ALLOWED,
        )


def _check_writable(session: Session) -> None:
    if session.read_only:
        raise ReadOnlyError(
            "get one that writes from Repository.writable_session(branch)",
            ErrorKind.READ_ONLY_SESSION,
        )
    if session.mode is not SessionMode.writable:
        raise SessionStateError(
            "write in one from Repository.writable_session(branch)",
            ErrorKind.REARRANGE_SESSION_ONLY,
        )
