"""The xarray engine ``icechunk``: opens versions of repositories as datasets and trees.

xarray's engine for Zarr does the decoding. This module finds the version and the groups,
and records afterwards where the data came from.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, ClassVar

import zarr
from xarray import Dataset, DataTree
from xarray.backends import BackendEntrypoint, ZarrStore
from xarray.backends.store import StoreBackendEntrypoint

from icechunk import (
    IcechunkError,
    IcechunkStore,
    InvalidInputError,
    LocalStorage,
    NodeNotFoundError,
    Repository,
    RepositoryConfig,
    Session,
    Storage,
    StorageConfig,
    StorageError,
    storage_from_url,
)
from icechunk.base.rectilinear import (
    are_known,
    is_rectilinear,
    rectilinear_chunks,
    what_it_takes,
)
from icechunk.config.times import Time, instant
from icechunk.errors import ErrorKind
from icechunk.storage import version_url
from icechunk.storage.keywords import answers_keywords
from icechunk_xarray.names import group_path
from icechunk_xarray.targets import (
    DEFAULT_BRANCH,
    Authorization,
    Target,
    open_session,
)
from icechunk_xarray.xarray_internals import name_by_version, open_group

__all__ = ["IcechunkBackendEntrypoint"]

#: The most groups that a message lists.
_LISTED_GROUPS = 10


class IcechunkBackendEntrypoint(BackendEntrypoint):
    """Opens versions of Icechunk repositories: ``xr.open_dataset(X, engine="icechunk")``.

    X is a URL, a path, or a `Storage`, `StorageConfig`, `Repository`, `Session` or
    `IcechunkStore`. For a local path, a URL with ``|icechunk:``, or an object of
    `icechunk`, ``engine`` can be left out. The same applies to `xarray.open_datatree`,
    `open_groups` and `open_mfdataset`.

    The encoding of the result says where it came from: ``source`` is the URL of the
    repository, ``icechunk_snapshot_id`` the version (missing if a session has changes that
    are in no version yet), and ``icechunk_ref`` the arguments that named it, such as
    ``{"branch": "main"}``.
    """

    description: ClassVar[str] = "Open versions of Icechunk repositories"
    supports_groups: ClassVar[bool] = True

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether something is a local path that holds a repository, or an icechunk object.

        Nothing is read: file names suffice. URLs with ``|icechunk:`` are accepted, too; others
        are left to ``engine=``.
        """
        if isinstance(
            filename_or_obj, Storage | StorageConfig | Repository | Session | IcechunkStore
        ):
            return True
        try:
            if version_url(filename_or_obj) is not None:
                return True
        except InvalidInputError:
            return True  # opening it reports what is wrong
        path = _local_path(filename_or_obj)
        return path is not None and _holds_repository(path)

    @answers_keywords("storage_options")
    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        mask_and_scale: Any = True,
        decode_times: Any = True,
        concat_characters: Any = True,
        decode_coords: Any = True,
        drop_variables: str | Iterable[str] | None = None,
        use_cftime: Any = None,
        decode_timedelta: Any = None,
        group: str | None = None,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        ref: str | None = None,
        as_of: Time | None = None,
        storage_options: Mapping[str, Any] | None = None,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorization | None = None,
        use_zarr_fill_value_as_mask: bool | None = None,
        consolidated: bool | None = None,
        zarr_format: int | None = None,
    ) -> Dataset:
        """Open one group of one version.

        Parameters
        ----------
        filename_or_obj : Target
        mask_and_scale, decode_times, concat_characters, decode_coords, drop_variables, \
use_cftime, decode_timedelta
            See `xarray.open_dataset`.
        group : str, optional
            Path of the group. Default: the root group.
        branch, tag, snapshot_id, ref : str, optional
            At most one of them. Default: the branch ``main``. For `ref`, which may also be
            ``main~2`` or ``main@2024-05-01``, see `icechunk.Repository.resolve`.
        as_of : datetime, date, numpy.datetime64 or str, optional
            With a branch: its newest snapshot that is not younger. A time without a zone is in
            UTC, and a date such as ``2024-05-01`` is its first instant.
        storage_options : mapping, optional
            For a URL: the options of `icechunk.storage_from_url`.
        config : RepositoryConfig, optional
            Overrides the stored configuration, option by option.
        authorize_virtual_chunk_access : mapping of str to credentials, optional
            Prefixes of the virtual chunk containers that may be read, and how.
        use_zarr_fill_value_as_mask : bool, optional
            Whether the fill value of a Zarr array is also CF's ``_FillValue``. Default:
            false, as in xarray for Zarr format 3.
        consolidated : {None, False}
            For calls that were written for the engine ``zarr``. There is no consolidated
            metadata: a snapshot holds the metadata of all nodes.
        zarr_format : {None, 3}
            For the same calls: no other format can be stored.

        Raises
        ------
        RepositoryNotFoundError, RefNotFoundError, SnapshotNotFoundError
            If there is no such repository or version.
        NodeNotFoundError
            If the version has no such group.
        InvalidInputError
            If arguments contradict each other, or an array cannot be opened or has no dimension
            names. `drop_variables` leaves such arrays out.
        """
        _check_zarr_options(consolidated, zarr_format)
        version = _Version.open(
            filename_or_obj,
            branch=branch,
            tag=tag,
            snapshot_id=snapshot_id,
            ref=ref,
            as_of=as_of,
            storage_options=storage_options,
            config=config,
            authorize_virtual_chunk_access=authorize_virtual_chunk_access,
        )
        return version.dataset(
            version.group_path(group),
            use_zarr_fill_value_as_mask,
            mask_and_scale=mask_and_scale,
            decode_times=decode_times,
            concat_characters=concat_characters,
            decode_coords=decode_coords,
            drop_variables=drop_variables,
            use_cftime=use_cftime,
            decode_timedelta=decode_timedelta,
        )

    @answers_keywords("storage_options", like=open_dataset)
    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        group: str | None = None,
        use_zarr_fill_value_as_mask: bool | None = None,
        consolidated: bool | None = None,
        zarr_format: int | None = None,
        **options: Any,
    ) -> dict[str, Dataset]:
        """Open a group of one version and all groups below it.

        Parameters
        ----------
        filename_or_obj : Target
        group, use_zarr_fill_value_as_mask, consolidated, zarr_format, **options
            See `open_dataset`.

        Returns
        -------
        dict of str to Dataset
            By path; relative to the group that `group` or the URL names, if any.
        """
        _check_zarr_options(consolidated, zarr_format)
        decoding = {k: v for k, v in options.items() if k not in _VERSION_OPTIONS}
        version = _Version.open(
            filename_or_obj, **{k: v for k, v in options.items() if k in _VERSION_OPTIONS}
        )
        top = version.group_path(group)
        return {
            _relative(path, top) if group or version.path else path: version.dataset(
                path, use_zarr_fill_value_as_mask, **decoding
            )
            for path in version.groups(top)
        }

    @answers_keywords("storage_options", like=open_dataset)
    def open_datatree(self, filename_or_obj: Any, **options: Any) -> DataTree:
        """Open a group of one version and all groups below it, as a tree.

        Takes the parameters of `open_dataset`.
        """
        return DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, **options))


_VERSION_OPTIONS = inspect.signature(open_session).parameters.keys() - {"target"}


@dataclass(frozen=True)
class _Version:
    """One version of a repository, and how it was named.

    Attributes
    ----------
    store : IcechunkStore
    ref : dict
        The arguments that name it.
    path : str
        The path of the node that the URL names, without slashes around it.
    """

    store: IcechunkStore
    ref: dict[str, str]
    path: str = ""

    @classmethod
    def open(cls, target: Target, **options: Any) -> _Version:
        session = open_session(target, **options)
        url = version_url(target)
        if isinstance(target, IcechunkStore):
            store, named = target, {"branch": target.branch}
        elif isinstance(target, Session):
            store, named = session.store, {"branch": target.branch}
        else:
            store = session.store
            named = {name: options.get(name) for name in ("branch", "tag", "snapshot_id", "ref")}
            if url is not None and url.ref is not None:
                named["ref"] = url.ref
            if not any(named.values()):
                named = {"branch": DEFAULT_BRANCH}
            if options.get("as_of") is not None:
                named["as_of"] = instant(options["as_of"]).isoformat()
        ref = {name: value for name, value in named.items() if value is not None}
        path = url.path if url is not None else ""
        return cls(store, ref or {"snapshot_id": session.snapshot_id}, path)

    def group_path(self, group: str | None) -> str:
        """Return the path of a group in the repository; below the one of the URL.

        Raises
        ------
        NodeNotFoundError
            If there is none.
        """
        path = "/" + "/".join(filter(None, (self.path, group_path(group))))
        tree = self.store.session.tree
        node = tree.get(path)
        if node is not None and not node.is_array:
            return path
        if node is not None:
            reason = f"{path!r} is an array: open the group {path.rpartition('/')[0] or '/'!r}"
        else:
            found = list(self.groups("/"))
            more = ", ..." if len(found) > _LISTED_GROUPS else ""
            known = ", ".join(map(repr, found[:_LISTED_GROUPS])) + more
            reason = f"there is no group {path!r}; " + (
                f"there are {known}" if found else "this version has no groups at all"
            )
        raise NodeNotFoundError(f"{self._where}: {reason}")

    @property
    def _where(self) -> str:
        session = self.store.session
        return f"{session.storage.url} at snapshot {session.snapshot_id}"

    def groups(self, top: str) -> Iterator[str]:
        """Yield the path of a group and those of all groups below it."""
        return (node.path for node in self.store.session.tree.within(top) if not node.is_array)

    def _arrays(self, path: str) -> dict[str, Any]:
        """Return the nodes of the arrays in a group, by name."""
        nodes = self.store.session.tree.children(path)
        return {node.path.rpartition("/")[2]: node for node in nodes if node.is_array}

    def _unfit(self, path: str) -> dict[str, str]:
        """Return the arrays of a group that no dataset can have, by name, and why."""
        found = {}
        for name, node in self._arrays(path).items():
            if _is_unknown_grid(node.user_data):
                found[name] = what_it_takes()
                continue
            try:
                array = zarr.open_array(self.store, path=node.path.strip("/"), mode="r")
            except StorageError:
                raise
            except Exception as error:  # any document may be wrong in any way
                found[name] = f"{type(error).__name__}: {shorten(str(error), 200)}"
                continue
            if not _has_names(array):
                found[name] = "it has no dimension_names"
        return found

    def _group(self, path: str, left_out: Collection[str], **options: Any) -> ZarrStore:
        """Open a group; without those arrays that would be left out, and cannot be opened."""
        cause: Exception | None = None
        if are_known() or not any(
            _is_unknown_grid(node.user_data) for node in self._arrays(path).values()
        ):
            try:
                group = open_group(self.store, path, None, **options)
                if all(_has_names(array) for _, array in group.arrays()):
                    return group
            except StorageError:
                raise
            except Exception as error:
                cause = error
        unfit = self._unfit(path)
        if not unfit and cause is not None:
            raise cause
        told = [f"{name!r}: {why}" for name, why in unfit.items() if name not in left_out]
        leave_out = f"drop_variables={list(unfit)} leaves them out"
        if told and isinstance(cause, IcechunkError):
            cause.add_note(leave_out)  # it names the array
            raise cause
        if told:
            raise InvalidInputError(
                f"{self._where}: no dataset can be made of the group {path!r}, because of its "
                f"arrays {'; '.join(told)}; {leave_out}",
                ErrorKind.BAD_METADATA,
            ) from cause
        return open_group(self.store, path, self._arrays(path).keys() - unfit.keys(), **options)

    def dataset(
        self,
        path: str,
        use_zarr_fill_value_as_mask: bool | None,
        drop_variables: str | Iterable[str] | None = None,
        **decoding: Any,
    ) -> Dataset:
        """Open one group.

        Raises
        ------
        InvalidInputError
            If an array cannot be opened, or has no dimension names.
        """
        left_out = (
            [drop_variables] if isinstance(drop_variables, str) else [*(drop_variables or ())]
        )
        with rectilinear_chunks():
            group = self._group(
                path,
                left_out,
                zarr_format=3,
                use_zarr_fill_value_as_mask=use_zarr_fill_value_as_mask,
            )
            opened = StoreBackendEntrypoint().open_dataset(
                group, drop_variables=left_out, **decoding
            )
        dataset = name_by_version(opened)
        session = self.store.session
        dataset.encoding["source"] = session.storage.url
        if not session.has_uncommitted_changes:
            dataset.encoding["icechunk_snapshot_id"] = session.snapshot_id
        dataset.encoding["icechunk_ref"] = self.ref
        return dataset


def _is_unknown_grid(document: bytes) -> bool:
    """Whether the installed Zarr cannot open an array, because of its chunk grid."""
    return not are_known() and b"rectilinear" in document and is_rectilinear(json.loads(document))


def _has_names(array: Any) -> bool:
    """Whether an array has a name for each dimension."""
    return bool(len(array.metadata.dimension_names or ()) == array.ndim)


def _relative(path: str, top: str) -> str:
    # "." is what xarray's own engines call the group that was asked for
    return path.removeprefix(top).strip("/") or "."


def _check_zarr_options(consolidated: bool | None, zarr_format: int | None) -> None:
    if consolidated:
        raise InvalidInputError(
            "consolidated=True: repositories have no consolidated metadata, because a snapshot "
            "holds the metadata of all nodes; leave the argument out",
            ErrorKind.STORAGE_CONFIG,
        )
    if zarr_format not in (None, 3):
        raise InvalidInputError(
            f"zarr_format={zarr_format}: repositories hold Zarr format 3 only; leave the argument "
            "out",
            ErrorKind.STORAGE_CONFIG,
        )


def _local_path(target: Any) -> str | None:
    """Return the local path that a path or ``file://`` URL names, None if it is neither."""
    if not isinstance(target, str | os.PathLike):
        return None
    text = os.fspath(target)
    if not isinstance(text, str) or ("://" in text and not text.startswith("file://")):
        return None
    try:
        storage = storage_from_url(os.path.expanduser(text))
    except InvalidInputError:
        return None
    return storage.path if isinstance(storage, LocalStorage) else None


def _holds_repository(path: str) -> bool:
    markers = ("repo", os.path.join("refs", "branch.main", "ref.json"))  # of spec 2, of spec 1
    return os.path.isdir(os.path.join(path, "snapshots")) and any(
        os.path.isfile(os.path.join(path, marker)) for marker in markers
    )
