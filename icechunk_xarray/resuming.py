"""Resumable writes of xarray objects: arrays first, then values in batches.

Both are parts of one job: arrays and coordinates are one part, blocks of values are many. So each
part is done once, also in an append, wherever a process dies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import xarray as xr
import zarr

from icechunk import (
    AlreadyExistsError,
    ConflictDetector,
    IcechunkError,
    IcechunkStore,
    InvalidInputError,
    Job,
    NotFoundError,
    Repository,
    Session,
    SessionStateError,
    TaskError,
)
from icechunk.base.rectilinear import rectilinear_chunks
from icechunk.errors import ErrorKind
from icechunk_xarray.groups import GroupPart, stage_groups, write_now
from icechunk_xarray.lazy import LazyWrite
from icechunk_xarray.regions import edges_of, split
from icechunk_xarray.staging import Options, PendingWrite
from icechunk_xarray.xarray_internals import is_in_memory

__all__ = ["JobWrite"]

#: The part that makes arrays and writes coordinates.
_ARRAYS = "arrays"
_COMMIT_EVERY = "1GB"
#: Bytes of a block made of values that Dask does not have.
_BLOCK = 64_000_000


@dataclass(frozen=True)
class JobWrite:
    """A write of groups that a job records.

    Parameters
    ----------
    parts : list of GroupPart
    repository : Repository
    branch : str
    options : Options
    name : str
        The name of the job.
    """

    parts: list[GroupPart]
    repository: Repository
    branch: str
    options: Options
    name: str

    def write(
        self,
        lazy: LazyWrite,
        message: str,
        metadata: Mapping[str, Any] | None,
        commit_every: int | str | timedelta | None,
    ) -> str:
        """Do what is left, and return the id of the newest commit of the job.

        Raises
        ------
        InvalidInputError
            If the job began with other input. The message names the difference.
        """
        job = self._job(message)
        job.check_history()
        if json.dumps(_ARRAYS) not in job.committed():
            try:
                job.run(self._make_arrays, keys=[_ARRAYS])
            except TaskError as error:
                if isinstance(error.__cause__, InvalidInputError) and not job.committed():
                    # a repeated call would be refused, too, and corrected input is another input
                    self.repository.jobs.delete(self.name)
                if isinstance(error.__cause__, IcechunkError):
                    raise error.__cause__ from None
                raise
            job.publish(message=f"{message} (arrays)", metadata=metadata)
        # nobody commits this session
        writes = self._values(job, self.repository.writable_session(self.branch))
        commits: tuple[str, ...] = ()
        if writes:
            written = lazy.store(
                writes,
                repository=self.repository,
                branch=self.branch,
                message=message,
                metadata=metadata,
                rebase_with=ConflictDetector(),
                commit_every=_COMMIT_EVERY if commit_every is None else commit_every,
                job=self.name,
            )
            commits = written.snapshots
        commits = commits or tuple(job.status().commits)
        # there may be nothing to write
        return commits[-1] if commits else self.repository.lookup_branch(self.branch)

    # -- the job -----------------------------------------------------------------------------
    def _job(self, message: str) -> Job:
        about = json.loads(json.dumps(_described(self.parts, self.options)))
        jobs = self.repository.jobs
        try:
            job = jobs.open(self.name)
        except NotFoundError:
            try:
                starts = self._starts()
                return jobs.create(
                    self.name,
                    branch=self.branch,
                    message=message,
                    about={"input": about, "starts": starts, "existing": self._existing()},
                )
            except AlreadyExistsError:
                job = jobs.open(self.name)
        changed = _changes(job.about.get("input") or {}, about)
        if job.branch != self.branch:
            changed.insert(0, "the branch")
        if changed:
            listed = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" * (len(changed) > 5))
            raise InvalidInputError(
                f"the job {self.name!r} began with other input: {listed}. Pass the same again, or "
                "choose another name; what the job has committed stays",
                ErrorKind.NOT_ALLOWED,
            )
        return job

    def _starts(self) -> dict[str, int]:
        """Return where an append begins in each group, by path."""
        dim = self.options.append_dim
        if dim is None:
            return {}
        session = self.repository.readonly_session(self.branch)
        return {
            path: _length(session.store, path, dim)
            for path, dataset, _ in self.parts
            if dim in dataset.dims
        }

    def _existing(self) -> list[str]:
        """Return the arrays that the job does not make. They must hold values exactly."""
        if self.options.mode in ("w", "w-"):
            return []
        tree = self.repository.readonly_session(self.branch).tree
        paths = {f"/{path}/{name}".replace("//", "/") for path, ds, _ in self.parts for name in ds}
        return sorted(path for path in paths if tree.get(path) is not None)

    # -- its parts ---------------------------------------------------------------------------
    def _make_arrays(self, store: IcechunkStore, key: Any) -> None:
        """Make or extend the arrays, and write everything but values of data variables."""
        job = self.repository.jobs.open(self.name)
        for path, start in self._starts_of(job).items():
            if _length(store, path, self.options.append_dim) != start:
                raise SessionStateError(
                    f"others have changed the length of {self.options.append_dim!r} in "
                    f"{'/' + path!r} since the job {self.name!r} began; forget it with "
                    f"Repository.jobs.delete({self.name!r}), and call this again"
                )
        adds = self.options.append_dim is not None or self.options.region is not None
        parts = [
            (path, _unread(dataset, {} if adds else encoding, exists=adds), encoding)
            for path, dataset, encoding in self.parts
        ]
        writes = stage_groups(parts, store.session, self.options)
        waiting = write_now([w for w in writes if not self._is_later(w.target.path)])
        LazyWrite(None, True, False, {}).write(waiting)
        # refuse what cannot be stored before anything is committed
        self._values(job, store.session)

    def _is_later(self, path: str) -> bool:
        """Whether the values of an array are written in batches."""
        group, _, name = path.strip("/").rpartition("/")
        dataset = next(dataset for at, dataset, _ in self.parts if at == group)
        return name in self._later(dataset)

    def _later(self, dataset: xr.Dataset) -> list[Any]:
        dim = self.options.append_dim
        return [
            name
            for name, variable in dataset.data_vars.items()
            if variable.ndim and variable.size and (dim is None or dim in variable.dims)
        ]

    def _starts_of(self, job: Job) -> dict[str, int]:
        starts: dict[str, int] = job.about.get("starts") or {}
        return starts

    def _values(self, job: Job, session: Session) -> list[PendingWrite]:
        """Return the values that are written in batches, into arrays that exist by now."""
        starts, dim = self._starts_of(job), self.options.append_dim
        writes: list[PendingWrite] = []
        for path, dataset, encoding in self.parts:
            names = self._later(dataset)
            if not names:
                continue
            # xarray joins characters along dimensions for which it sees no labels
            rows = {dataset[name].dims[-1] for name in names if dataset[name].dtype == "S1"}
            coords = [name for name in dataset.coords if dim is not None or name not in rows]
            values = dataset[names].drop_vars(coords, errors="ignore")
            existing = job.about.get("existing") or []
            fresh = {name for name in names if f"/{path}/{name}".replace("//", "/") not in existing}
            options = replace(
                self.options,
                mode="r+",
                append_dim=None,
                fresh=frozenset(map(str, fresh)),
                asked=frozenset(n for n, wanted in encoding.items() if "dtype" in wanted),
            )
            if dim is not None:
                start = starts[path]
                region = {str(dim): slice(start, start + dataset.sizes[dim])}
                # nobody else writes the rest of the chunk in which it begins
                options = replace(options, region=region, safe_chunks=False)
            elif self.options.region is not None:
                # as without a job: blocks that are made here share no chunk
                lazy = any(dataset[name].chunks is not None for name in names)
                safe = options.safe_chunks and lazy and self.options.mode == "r+"
                options = replace(options, region=self.options.region, safe_chunks=safe)
                values = dataset.drop_vars(set(dataset.data_vars) - set(names))
            values = values.map(_lazily, args=(session.store, path, options.region))
            staged = stage_groups([(path, values, {})], session, options)
            writes += [w for w in staged if w.target.basename in names]
        return [write if write.is_lazy else _as_dask(write) for write in writes]


def _unread(
    dataset: xr.Dataset, encoding: Mapping[str, Mapping[str, Any]], *, exists: bool
) -> xr.Dataset:
    """Return a dataset whose arrays can be made without reading its data variables."""

    def chunked(array: xr.DataArray) -> xr.DataArray:
        if array.chunks is not None or is_in_memory(array.variable) or not array.ndim:
            return array
        wanted = encoding.get(str(array.name), array.encoding).get("chunks")
        # one block fits any chunks; if none are given, Dask chooses
        return array.chunk({} if exists or wanted else "auto")

    # Dataset.map leaves out coordinates that no data variable has
    return dataset.assign({name: chunked(array) for name, array in dataset.data_vars.items()})


def _lazily(array: xr.DataArray, store: IcechunkStore, path: str, region: Any) -> xr.DataArray:
    """Return a data variable in Dask blocks that fit the stored chunks."""
    if array.chunks is not None:
        return array
    name = f"{path}/{array.name}".strip("/")
    with rectilinear_chunks():
        stored = zarr.open_array(store, path=name, mode="r")
    starts = {}
    if isinstance(region, Mapping):
        starts = {dim: cut.start or 0 for dim, cut in region.items() if isinstance(cut, slice)}
    edges = []
    for dim, size, ends in zip(array.dims, array.shape, edges_of(stored), strict=True):
        inner = ends - starts.get(dim, 0)
        edges.append(np.unique([0, *inner[(inner > 0) & (inner < size)], size]))
    return array.chunk(_fitting(array.dims, edges, array.dtype.itemsize))


def _fitting(dims: Any, edges: list[Any], itemsize: int) -> dict[Any, tuple[int, ...]]:
    """Return chunks of about one size that end at edges."""
    sizes = {dim: slice(0, int(ends[-1])) for dim, ends in zip(dims, edges, strict=True)}
    for box in split(edges, max(itemsize, 1), _BLOCK):
        # the first box is the largest that fits, unless edges are odd
        sizes = dict(zip(dims, box, strict=True))
        break
    found = {}
    for dim, ends in zip(dims, edges, strict=True):
        cuts = [cut[0] for cut in split([ends], 1, sizes[dim].stop - sizes[dim].start)]
        found[dim] = tuple(cut.stop - cut.start for cut in cuts)
    return found


def _as_dask(write: PendingWrite) -> PendingWrite:
    """Return a write of values that xarray loaded to encode them, as a Dask write."""
    import dask.array as da

    edges = []
    for cut, ends in zip(write.region, edges_of(write.target), strict=True):
        inner = ends - cut.start
        size = cut.stop - cut.start
        edges.append(np.unique([0, *inner[(inner > 0) & (inner < size)], size]))
    chunks = _fitting(range(write.source.ndim), edges, write.source.dtype.itemsize)
    source = da.from_array(np.asarray(write.source), tuple(chunks.values()))
    return replace(write, source=source)


def _length(store: IcechunkStore, path: str, dim: Any) -> int:
    """Return the length of a dimension in a group; 0 if it does not exist."""
    try:
        with rectilinear_chunks():
            arrays = list(zarr.open_group(store, path=path, mode="r").arrays())
    except FileNotFoundError:
        return 0
    for _, array in arrays:
        names = getattr(array.metadata, "dimension_names", None) or ()
        if dim in names:
            return int(array.shape[names.index(dim)])
    return 0


# -- what the input is like ------------------------------------------------------------------
def _described(parts: list[GroupPart], options: Options) -> dict[str, Any]:
    """Return what a later call must pass again, as values that JSON can express."""
    described: dict[str, Any] = {
        "mode": options.mode,
        "append_dim": None if options.append_dim is None else str(options.append_dim),
        "region": repr(options.region),
        "groups": sorted("/" + path for path, _, _ in parts),
    }
    for path, dataset, encoding in parts:
        described[f"encoding of {'/' + path!r}"] = _digest(repr(_sorted(encoding)).encode())
        described[f"attributes of {'/' + path!r}"] = _digest(repr(_sorted(dataset.attrs)).encode())
        for name, variable in dataset.variables.items():
            where = repr(f"/{path}/{name}".replace("//", "/"))
            described[f"dimensions of {where}"] = list(map(str, variable.dims))
            described[f"shape of {where}"] = list(variable.shape)
            described[f"dtype of {where}"] = str(variable.dtype)
            attributes = repr(_sorted(variable.attrs)).encode()
            described[f"attributes of {where}"] = _digest(attributes)
            if variable.chunks is not None:
                described[f"Dask chunks of {where}"] = _digest(repr(variable.chunks).encode())
            elif is_in_memory(variable) or name in dataset.coords:
                described[f"values of {where}"] = _digest_of(variable.values)
    return described


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return sorted((str(key), _sorted(each)) for key, each in value.items())
    return value.tolist() if isinstance(value, np.ndarray) else value


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _digest_of(values: Any) -> str:
    array = np.asarray(values)
    if array.dtype.hasobject or array.dtype.kind == "T":
        return _digest(repr(array.tolist()).encode())
    return _digest(np.ascontiguousarray(array).tobytes())


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of what differs."""
    names = [name for name in (*now, *before) if before.get(name) != now.get(name)]
    return [f"the {name}" for name in dict.fromkeys(names)]
