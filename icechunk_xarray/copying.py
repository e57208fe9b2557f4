"""Copy files by value into a repository: scan them as an archive, then copy with a job.

The files first become an archive of references on a temporary branch. The scan makes sure that
the files fit together, and that what is read equals what the files' own libraries read. Then the
values are written to the caller's branch, in batches.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

import xarray as xr
import zarr

from icechunk import (
    ConflictDetector,
    InvalidInputError,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    Session,
)
from icechunk.base.texts import counted
from icechunk.storage.keywords import answers_keywords
from icechunk_dask.archives.adding import none_read
from icechunk_dask.archives.containers import authorization, derive_containers
from icechunk_dask.archives.record import Record
from icechunk_dask.archives.report import VariableReport, VirtualizeReport
from icechunk_dask.archives.sources import GONE, Sources, Version, is_local, location_of
from icechunk_dask.archives.target import Opened, Target
from icechunk_dask.archives.virtualize import names_of, root_of, virtualize
from icechunk_dask.executors import ExecutorOption
from icechunk_dask.one_call import alone
from icechunk_dask.progress import ProgressOption
from icechunk_xarray.copied import (
    encodings_of,
    keep_group_attributes,
    note_files,
    read_group,
    read_tree,
    repeated_coordinates,
    without_references,
)
from icechunk_xarray.copy_begun import ON_MISMATCH, begun_copies
from icechunk_xarray.copy_checks import Block, check_appended, check_trees
from icechunk_xarray.inserting import order_of, put_in_order
from icechunk_xarray.opened_files import OpenedFiles, Opening, refuse_with_engine, reopened
from icechunk_xarray.writer import to_icechunk

__all__ = ["ingest"]

_ON_CHANGED: Final = "error", "keep"
#: All values are copied, even those that references could express.
_ANY_SIZE: Final = 1 << 62
_SHOWN: Final = 10


@answers_keywords("storage_options", 1)
def ingest(
    urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    target: Target,
    *,
    concat_dims: Sequence[str] = ("time",),
    expand_dims: Sequence[str] = (),
    chunks: Mapping[str, int] | None = None,
    encoding: Mapping[str, Mapping[str, Any]] | None = None,
    group: str = "/",
    branch: str = "main",
    message: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    remote_options: Mapping[str, Any] | None = None,
    variables: Sequence[str] | None = None,
    drop_variables: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    parser: Any = None,
    on_mismatch: str = "error",
    on_changed: str = "error",
    allow_gaps: bool = False,
    verify: str = "sample",
    drop_attributes: Sequence[str] = (),
    filter_by_keys: Mapping[str, Any] | None = None,
    engine: str | None = None,
    open_options: Mapping[str, Any] | None = None,
    isolate: bool = True,
    commit_every: int | str | timedelta = "1GB",
    executor: ExecutorOption = None,
    progress: ProgressOption = None,
) -> VirtualizeReport:
    """Copy many NetCDF, HDF5 or GRIB files into one dataset of a repository.

    Like `virtualize`, but values are written as chunks of the repository, which then needs the
    files no more. A repeated call skips files that are there already, and appends new ones
    along the first of `concat_dims`. With `engine`, files of any kind that xarray opens.

    Files that belong before or between existing ones are inserted by the labels of that
    dimension. Chunks that only change places are not read; otherwise everything that follows is
    written anew. An insertion is one commit. Files with groups are only appended.

    Otherwise arrays and coordinates are committed first, then values in batches. If a call is
    cut short, the next one first finishes what it began. It must name the same files, too.

    Parameters
    ----------
    urls : str, path or sequence of them
        Files, or a pattern such as ``"s3://bucket/2024/*.nc"``.
    target : Repository, Storage, URL or path
        A repository is created if there is none.
    concat_dims, expand_dims, variables, drop_variables, rename, parser, verify, isolate, allow_gaps
        As for `virtualize`.
    drop_attributes, filter_by_keys
        As for `virtualize`. If other messages of the same files were copied before, those that
        `filter_by_keys` chooses must go to a group of their own.
    engine : str, optional
        Let xarray open the files with this engine, such as ``"zarr"``, ``"rasterio"`` or
        ``"cfgrib"``, and combine them along the first of `concat_dims`. Files are compared with
        the first one and with what is stored; what their own library reads is neither checked
        nor bounded. Default: the scanners of `virtualize`, with limits.
    open_options : mapping, optional
        With `engine`: more arguments of `xarray.open_dataset`, such as ``{"backend_kwargs": ...}``.
    chunks : mapping of str to int, optional
        Chunk sizes of new arrays, by dimension; -1 is the whole dimension in the first call.
        Default: those of the files.
    encoding : mapping, optional
        Encodings of new arrays, by name, as for `icechunk_xarray.to_icechunk`. Default: numbers are
        stored as in the files, with Zarr's compression.
    group, branch, message, metadata
        Where the data goes, and what the commits say.
    storage_options, remote_options
        As for `virtualize`.
    on_mismatch : {"error", "skip", "materialize"}
        What to do with files that differ from the first; see `virtualize`. Chunks and compression
        may differ. ``"materialize"`` also accepts other data types and packings if their values
        can be stored like those of the first; with `engine`, numbers that files pack in
        different ways are stored as they are read.
    on_changed : {"error", "keep"}
        What to do with files that have changed since they were copied: refuse them, or keep
        what was copied.
    commit_every : int, str or timedelta
        The size of a batch; see `distributed_write`.
    executor : {"threads", "processes", "sync"}, Executor or Client, optional
        Copies the values. Default: what Dask uses.
    progress : bool, callable or None
        A bar, none, or a function that receives a `Status` from time to time.

    Returns
    -------
    VirtualizeReport
        What became of each file and variable.

    Raises
    ------
    InvalidInputError
        If files contradict each other or what is stored, or have changed. The message names the
        cause. Values that something else has written are never taken for those of a file; such
        a file is named, too.
    ConflictError
        If others have changed the same arrays in the meantime.
    SessionStateError
        If another call is copying files into the same group. The message says where, since when,
        and how to proceed. A call whose process is gone does not count.

    Examples
    --------
    >>> report = ingest("files/*.nc", "copies", chunks={"time": 24})
    >>> report.raise_for_failures()
    """
    if on_changed not in _ON_CHANGED:
        raise InvalidInputError(
            f"on_changed is {on_changed!r}, it must be {' or '.join(map(repr, _ON_CHANGED))}"
        )
    opened = Opened.of(target, storage_options, remote_options, None)
    sources = Sources(opened.remote_options)
    expanded = sources.expand(urls, folders=parser is not None or engine is not None)
    spelled = {location_of(name): name for name in reversed(expanded)}
    locations = {name: location for location, name in reversed(spelled.items())}
    derived = derive_containers(list(locations.values()), opened.remote_options)
    sources = replace(sources, prefixes=tuple(each.url_prefix for each in derived))
    scanning = {
        "concat_dims": concat_dims,
        "expand_dims": expand_dims,
        "variables": variables,
        "drop_variables": drop_variables,
        "rename": rename,
        "parser": parser,
        # values are copied, so chunks need not fit
        "on_mismatch": "layout" if on_mismatch == "error" else on_mismatch,
        "allow_gaps": allow_gaps,
        "verify": verify,
        "drop_attributes": drop_attributes,
        "filter_by_keys": filter_by_keys,
        "max_bytes_by_value": _ANY_SIZE,
        "chunk_grid": "regular",
        "isolate": isolate,
        "remote_options": opened.remote_options,
    }
    writing = {
        "message": message,
        "metadata": metadata,
        "commit_every": commit_every,
        "chunkmanager_store_kwargs": {} if executor is None else {"executor": executor},
        "progress": progress,
    }
    if on_mismatch not in ON_MISMATCH:
        raise InvalidInputError(
            f"on_mismatch is {on_mismatch!r}, it must be {' or '.join(map(repr, ON_MISMATCH))}"
        )
    root = root_of(group)
    dims = [*names_of(concat_dims), *names_of(expand_dims)]
    if not dims:
        raise InvalidInputError("concat_dims names no dimension")
    opening = Opening.of(
        engine, open_options, dims[0], expand_dims, variables, drop_variables, rename
    )
    if opening is not None:
        refuse_with_engine(
            parser=parser, filter_by_keys=filter_by_keys, drop_attributes=drop_attributes or None
        )
    if opened.repository is None:
        assert not isinstance(opened.place, Repository)
        gone = [name for name in locations if is_local(name)]
        gone = [name for name, version in sources.versions(gone).items() if version == GONE]
        if len(gone) == len(locations):
            raise none_read(dict.fromkeys(gone, "there is no such file"))
        opened.repository = Repository.create(opened.place)
    copying = _Copying(
        opened.made, branch, root, str(dims[0]), scanning, writing, chunks, encoding or {}, opening
    )

    def call() -> VirtualizeReport:
        report, already, changed = copying.all_of(locations, sources, on_changed)
        return replace(
            report,
            group=root,
            branch=branch,
            already=already,
            changed=changed,
            target=opened.made.storage.url,
            options=opened.options,
        )

    return alone(
        opened.made, branch, copying.running, f"copying files into {root} of {branch!r}", call
    )


@dataclass
class _Copying:
    """Copies files into one group of a repository."""

    repository: Repository
    branch: str
    root: str
    dim: str
    scanning: Mapping[str, Any]
    writing: Mapping[str, Any]
    chunks: Mapping[str, int] | None
    encoding: Mapping[str, Mapping[str, Any]]
    opening: Opening | None = None

    @property
    def _prefix(self) -> str:
        return f"ingest-{_digest([self.branch, self.root])}-"

    @property
    def running(self) -> str:
        """Prefix of the names of running calls."""
        return f"{self._prefix}running-"

    def all_of(
        self, locations: Mapping[str, str], sources: Sources, on_changed: str
    ) -> tuple[VirtualizeReport, tuple[str, ...], tuple[str, ...]]:
        """Copy what is missing; return what was there, and which of it has changed."""
        self.finish_begun(locations)
        known = self.known()
        already = tuple(name for name in locations if locations[name] in known)
        versions = sources.versions(list(already))
        changed = [n for n, v in versions.items() if sources.has_changed(n, known[locations[n]], v)]
        if changed and on_changed == "error":
            listed = "\n".join(f"  {url}" for url in changed[:_SHOWN])
            raise InvalidInputError(
                f"{counted(len(changed), 'file')} changed since the copy:\n{listed}\n"
                "Pass on_changed='keep' to leave what was copied, or copy them into another group"
            )
        todo = [name for name in locations if locations[name] not in known]
        if already and self.scanning["filter_by_keys"]:
            self._check_chosen(already[0])
        report = VirtualizeReport(self.root)
        if todo and self.opening is not None:
            report = self.begin_opened(todo, locations, sources)
        elif todo:
            report = self.begin(todo)
        return report, already, tuple(changed)

    def _check_chosen(self, name: str) -> None:
        """Refuse messages that differ from those already copied from the same files."""
        given = read_group(self._aside([name]), "aside")
        stored = read_group(self.repository.readonly_session(self.branch), self.root)
        for key, variable in given.variables.items():
            fixed = self.dim not in variable.dims
            if key not in stored or (fixed and not stored[key].variable.equals(variable)):  # type: ignore[no-untyped-call]
                raise InvalidInputError(
                    f"filter_by_keys chooses messages with {key!r} that {self.root!r} has not, and "
                    f"{name} was copied there already: pass another group= for these messages"
                )

    def known(self) -> dict[str, Version]:
        """Return the files that are there, and their versions."""
        record = Record.find(self.repository.readonly_session(self.branch), self.root)
        if record is None:
            return {}
        files = record.files
        return {location: files.version(row) for row, location in enumerate(files.locations)}

    def finish_begun(self, locations: Mapping[str, str]) -> None:
        """Finish what an earlier call began, and delete what it left behind."""
        opening = None if self.opening is None else self.opening.to_dict()
        begun = begun_copies(self.repository, self._prefix, locations, opening, self._aside)
        for staging, about in begun:
            self._copy(staging, about)
        for staging in self.repository.list_branches():
            if staging.startswith(self._prefix):
                self.repository.delete_branch(staging)

    def _aside(self, files: Sequence[str]) -> Session:
        """Scan some files now, and return a session of references to them."""
        aside = self._reading(files, Repository.create(MemoryStorage()))
        how = {**self.scanning, "verify": "none"}
        virtualize(files, aside, group="aside", progress=False, **how)
        return aside.readonly_session("main")

    def begin(self, todo: Sequence[str]) -> VirtualizeReport:
        """Scan new files and copy them."""
        name = self._prefix + _digest(sorted(todo))
        repository = self.repository
        tip = repository.lookup_branch(self.branch)
        repository.create_branch(name, tip)
        try:
            report = virtualize(todo, self._reading(todo), group=name, branch=name, **self.scanning)
            if report.snapshot_id is None:
                return report
            staged = repository.readonly_session(name)
            source = Record.find(staged, f"/{name}")
            assert source is not None
            session = repository.readonly_session(self.branch)
            has_groups = any(not n.is_array for n in staged.tree.within(f"/{name}")[1:])
            appends = self._appends(session, has_groups=has_groups)
            inserts = False
            reading = self._reading(todo).readonly_session(name)
            # do not begin what cannot be opened
            given = read_tree(reading, name, None)
            if appends and has_groups:
                stored = read_tree(session, self.root, None)
                check_trees(stored, given, self.dim, self.root, partial(_blocks_of, source))
            elif appends:
                inserts = self._inserts(session, given.to_dataset(), _blocks_of(source, self.dim))
            about = {
                "files": todo,
                "appends": appends,
                "inserts": inserts,
                "locations": list(source.files.locations),
                "versions": [
                    astuple(source.files.version(row)) for row in range(len(source.files))
                ],
            }
            repository.jobs.create(
                f"{name}-files", branch=self.branch, message="files", about=about
            )
            group: Any = zarr.open_group(staged.store, path=name, mode="r")
            copied = {
                key: VariableReport("asked for", bytes_by_value=int(group[key].nbytes))
                for key in report.variables
            }
            snapshot = self._copy(name, about)
            # the copy refers to no file
            whole = read_group(repository.readonly_session(self.branch), self.root)
            return replace(
                report,
                snapshot_id=snapshot,
                variables=copied,
                sizes={str(dim): size for dim, size in whole.sizes.items()},
                chunks={},
                access={},
                trusted=False,
            )
        finally:
            if f"{name}-files" not in repository.jobs and name in repository.list_branches():
                repository.delete_branch(name)

    def _appends(self, session: Session, *, has_groups: bool) -> bool:
        """Whether the group has arrays to append files to; groups below may be its own."""
        if session.tree.get(self.root) is None:
            return False
        tree = session.tree
        nodes = tree.within(self.root) if has_groups else tree.children(self.root)
        return any(node.is_array for node in nodes)

    def _inserts(self, session: Session, given: xr.Dataset, blocks: Sequence[Block]) -> bool:
        """Check that files fit the group; return whether they belong between its steps."""
        return check_appended(read_group(session, self.root), given, self.dim, self.root, blocks)

    def begin_opened(
        self, todo: Sequence[str], locations: Mapping[str, str], sources: Sources
    ) -> VirtualizeReport:
        """Let xarray open new files, and copy them."""
        assert self.opening is not None
        versions = sources.with_digests(sources.versions(list(todo)))
        on_mismatch = str(self.scanning["on_mismatch"]).replace("layout", "error")
        found = OpenedFiles.of(todo, self.opening, on_mismatch, sources)
        if found.dataset is None:
            raise none_read(found.failed)
        if found.failed and not self.scanning["allow_gaps"]:
            gap = min(found.failed)
            raise InvalidInputError(
                f"{counted(len(found.failed), 'file')} could not be opened, {gap} the first: "
                f"{found.failed[gap]}\nLeave them out, repair them, or pass allow_gaps=True to "
                "copy the others"
            )
        kept = [block.url for block in found.blocks]
        session = self.repository.readonly_session(self.branch)
        appends = self._appends(session, has_groups=False)
        if not appends:
            found.check_renamed()
        inserts = appends and self._inserts(session, found.dataset, found.blocks)
        about = {
            "files": kept,
            "appends": appends,
            "inserts": inserts,
            "locations": [locations[url] for url in kept],
            "versions": [astuple(versions[url]) for url in kept],
            "opening": self.opening.to_dict(),
            "on_mismatch": on_mismatch,
        }
        name = self._prefix + _digest(sorted(kept))
        self.repository.jobs.create(
            f"{name}-files", branch=self.branch, message="files", about=about
        )
        snapshot = self._copy(name, about, xr.DataTree(found.dataset))
        after = sources.versions(kept)
        changed = [url for url in kept if sources.has_changed(url, versions[url], after[url])]
        if changed:
            raise InvalidInputError(
                f"{counted(len(changed), 'file')} changed during the copy, {changed[0]} the first: "
                f"what is in {self.root!r} may be of either version; go back to the commit before "
                "with Repository.reset_branch, and call this again"
            )
        whole = read_group(self.repository.readonly_session(self.branch), self.root)
        return VirtualizeReport(
            self.root,
            snapshot_id=snapshot,
            added=tuple(kept),
            failed=found.failed,
            skipped=found.skipped,
            unmet=tuple(sentence for _, sentence in found.unmet),
            variables={
                str(key): VariableReport("asked for", bytes_by_value=int(each.nbytes))
                for key, each in found.dataset.variables.items()
            },
            sizes={str(dim): size for dim, size in whole.sizes.items()},
        )

    # -- one set of files ----------------------------------------------------------------
    def _copy(self, name: str, about: Mapping[str, Any], opened: xr.DataTree | None = None) -> str:
        """Copy what is opened, or else the archive on a branch, and record the files."""
        repository = self.repository
        obj = opened
        if obj is None:
            obj = self._begun(name, about, chunks={} if about.get("inserts") else None)
        encoding = None
        staged = repository.readonly_session(name) if obj.children else None
        repeated = repeated_coordinates(staged, f"/{name}") if staged else ()
        try:
            if about.get("inserts"):
                written = self._insert(name, about, obj.to_dataset().drop_attrs(deep=False))
                self._forget(name)
                return written
            if not about["appends"]:
                obj = obj.map_over_datasets(without_references)
                encoding = encodings_of(obj, self.encoding, self.chunks)
            else:
                keep_group_attributes(obj)
            written = to_icechunk(
                obj if len(obj.children) else obj.to_dataset(),
                repository,
                group=self.root.strip("/") or None,
                branch=self.branch,
                job=name,
                append_dim=self.dim if about["appends"] else None,
                # a group without arrays may exist
                mode="a",
                align_chunks="opening" in about,
                write_inherited_coords=repeated,
                encoding=encoding,
                **{**self.writing, "message": self.writing["message"] or self._message(about)},
            )
        except InvalidInputError:
            if name not in repository.jobs or not repository.jobs.open(name).committed():
                # nothing was begun, and a repeated call would fail in the same way
                self._forget(name)
            raise
        snapshot = self._note(about, name) or written
        self._forget(name)
        return str(snapshot)

    def _begun(self, name: str, about: Mapping[str, Any], chunks: Any) -> xr.DataTree:
        """Return the contents of a set of files."""
        if "opening" in about:
            return reopened(about, Sources(self.scanning["remote_options"]))
        return read_tree(self._reading(about["files"]).readonly_session(name), name, chunks)

    def _forget(self, name: str) -> None:
        """Delete what a set of files needed while it was copied."""
        jobs = self.repository.jobs
        for each in (name, f"{name}-files"):
            if each in jobs:
                jobs.delete(each)
        if name in self.repository.list_branches():
            self.repository.delete_branch(name)

    def _message(self, about: Mapping[str, Any]) -> str:
        count = len(about["locations"])
        return f"Copy {count} {'file' if count == 1 else 'files'} into {self.root}"

    def _note(self, about: Mapping[str, Any], name: str) -> str | None:
        """Record the files of the group in a commit of their own."""
        session = self.repository.writable_session(self.branch)
        if not note_files(session, self.root, self.dim, about, self._record_of(name)):
            return None
        return self._commit(session, about)

    def _record_of(self, name: str) -> Record | None:
        """Return the record of an archive on a branch, None if it does not exist."""
        if name not in self.repository.list_branches():
            return None
        return Record.find(self.repository.readonly_session(name), self.root)

    def _commit(self, session: Session, about: Mapping[str, Any]) -> str:
        return session.commit(
            self.writing["message"] or self._message(about),
            self.writing["metadata"],
            rebase_with=ConflictDetector(),
        )

    def _insert(self, name: str, about: Mapping[str, Any], given: xr.Dataset) -> str:
        """Copy files that belong between others, in one commit: every version is in order."""
        session = self.repository.writable_session(self.branch)
        there = Record.find(session, self.root)
        if there is not None and set(there.files.locations) >= set(about["locations"]):
            # an earlier call was killed after its commit
            return session.snapshot_id
        order = order_of(read_group(session, self.root), given, self.dim)
        executor = self.writing["chunkmanager_store_kwargs"]
        to_icechunk(
            given,
            session,
            group=self.root.strip("/") or None,
            append_dim=self.dim,
            align_chunks=True,
            # steps are sorted next, and were compared with what is stored
            safe_append=False,
            chunkmanager_store_kwargs=executor,
            progress=self.writing["progress"],
        )
        if order is not None:
            put_in_order(session, self.root, self.dim, order, executor)
        note_files(session, self.root, self.dim, about, there or self._record_of(name))
        return self._commit(session, about)

    def _reading(self, urls: Sequence[str], where: Repository | None = None) -> Repository:
        """Return the repository, reopened to read the files; none of this is stored."""
        options = self.scanning["remote_options"]
        containers = derive_containers([location_of(url) for url in urls], options, secrets=True)
        config = RepositoryConfig(virtual_chunk_containers={c.url_prefix: c for c in containers})
        return (where or self.repository).reopen(config, authorization(containers, options))


def _blocks_of(source: Record, dim: str, group: str = "") -> list[Block]:
    """Return which steps belong to which file, as far as the archive knows."""
    blocks = source.blocks.get((group, dim))
    if blocks is None:
        return []
    starts = blocks.starts().tolist()
    return [
        Block(source.files.locations[int(file)], starts[number], starts[number + 1])
        for number, file in enumerate(blocks.files)
    ]


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
