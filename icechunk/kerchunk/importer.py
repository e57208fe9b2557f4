"""Importing kerchunk references: they become nodes and virtual chunks.

Everything is read and checked before the session changes, and it changes by one merge of a
fork: an import that fails leaves it as it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from icechunk.errors import ErrorKind, InvalidInputError, ReadOnlyError
from icechunk.format.ids import normalize_path
from icechunk.kerchunk.append import appended, in_region
from icechunk.kerchunk.guard import VERIFY
from icechunk.kerchunk.import_checks import ImportChecks
from icechunk.kerchunk.import_chunks import Import
from icechunk.kerchunk.import_nodes import (
    arrays_of,
    check_attributes,
    drop_attributes_of,
    groups_of,
    new_place,
)
from icechunk.kerchunk.import_report import ImportReport
from icechunk.kerchunk.locations import normalizer
from icechunk.kerchunk.references import open_references
from icechunk.session.session import Session
from icechunk.storage.keywords import answers_keywords
from icechunk.store import IcechunkStore
from icechunk.virtual.specs import checksum_parts, whole_seconds

__all__ = ["ImportReport", "import_references"]


@answers_keywords("storage_options")
def import_references(
    references: Mapping[str, Any] | str | os.PathLike[str],
    target: Session | IcechunkStore,
    *,
    group: str = "/",
    overwrite: bool = False,
    append_dim: str | None = None,
    region: Mapping[str, slice] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    remote_protocol: str | None = None,
    remote_options: Mapping[str, Any] | None = None,
    base_url: str | None = None,
    mask_fill_value: bool | None = None,
    drop_attributes: Sequence[str] = (),
    validate_containers: bool = True,
    last_modified: datetime | None = None,
    verify: str = "sample",
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Import kerchunk references into a session, without copying what they refer to.

    Metadata of Zarr v2 becomes v3. Chunks whose bytes are in the references become inline
    or native chunks, as the configuration says; null references and those of length 0
    become missing chunks.

    Parameters
    ----------
    references : mapping, str or path
        A dictionary of version 0 or 1, or the URL or path of a JSON file with one, plain
        or compressed with zstd or gzip, or of a Parquet store. Zarr v3 metadata is taken
        over as it is.
    target : Session or IcechunkStore
        Writable. Nothing is committed.
    group : str
        Where the root of the references goes. Default: the root of the repository.
    overwrite : bool
        Whether to replace arrays that exist. Default: refuse.
    append_dim : str, optional
        Append to existing arrays along the dimension of this name. The arrays must agree,
        and their last chunks must be full, except where the new chunks are all in the
        references themselves: these are then written by value. Arrays without the
        dimension must exist, and stay as they are.
    region : mapping of str to slice, optional
        By names of dimensions, where in existing arrays to put the chunks; from and to
        whole chunks. Chunks that are missing in the references become missing there.
    storage_options : mapping, optional
        For reading the references, as `icechunk.storage_from_url` and fsspec take them.
    remote_protocol : str, optional
        Of URLs in the references that have none, such as ``"s3"``. Default: local paths.
    remote_options : mapping, optional
        The same, for asking for the sizes of files that are referred to as a whole.
    base_url : str, optional
        URL or folder from which relative paths in the references start. Default: the current
        directory.
    mask_fill_value : bool, optional
        Whether fill values also become ``_FillValue`` attributes, so that xarray masks as
        it does with Zarr v2. False keeps only the attributes that the references have.
        Default: all that are not zero. kerchunk makes the fill value of a file's
        ``_FillValue``, and takes that attribute away; where a file has none, it writes zero.
        True is right for files whose missing values are zero.
    drop_attributes : sequence of str
        Names of attributes to leave out wherever they are; ``"t:valid_range"`` is that of an
        array or group of this path, ``":history"`` that of the root. Attributes that are NaN
        or infinite cannot be stored.
    validate_containers : bool
        Whether to refuse locations that no virtual chunk container of the configuration
        holds.
    last_modified : datetime, optional
        With a time zone. Reading fails if a file was modified after this, such as the time
        at which the references were made. Default: files are not checked.
    verify : {"sample", "all", "none"}
        How many chunks to check for whether their codecs decode them, as far as the session may
        read the files: the first and the last of each distinct chain of codecs, all, or
        none. The sizes of chunks without compression, and those of files of this machine,
        are compared with the references, except with ``"none"``.
    progress : callable, optional
        Called with the number of references looked at so far, and the number of all.

    Returns
    -------
    ImportReport

    Raises
    ------
    InvalidInputError
        If something is malformed or has no equivalent; the message names the key. Also if
        arrays do not fit those to append to.
    AlreadyExistsError
        If a node exists that would be replaced.
    ReadOnlyError
        If the session or store is read-only.
    StorageError
        If references cannot be read, or a chunk cannot be written.

    In all these cases the session is as it was.

    Examples
    --------
    >>> references = {".zgroup": '{"zarr_format": 2}', ".zattrs": '{"title": "A month"}'}
    >>> report = import_references(references, session, group="month")
    >>> report.groups
    ('/month',)
    """
    session = _session(target)
    if append_dim is not None and region is not None:
        raise InvalidInputError(
            "append_dim and region exclude each other", ErrorKind.INVALID_VIRTUAL_REF
        )
    if verify not in VERIFY:
        raise InvalidInputError(
            f"verify must be one of {VERIFY}, not {verify!r}", ErrorKind.INVALID_VIRTUAL_REF
        )
    root = normalize_path(group)
    source = open_references(
        references if isinstance(references, Mapping) else os.fspath(references),
        normalizer(remote_protocol, base_url),
        storage_options,
    )
    unmet = drop_attributes_of(source, drop_attributes)
    arrays = arrays_of(source, root, mask_fill_value)
    check_attributes(source, arrays)
    if append_dim is not None:
        places = appended(session, root, arrays, append_dim)
    elif region is not None:
        places = in_region(session, arrays, region)
    else:
        places = {
            path: new_place(session, path, array, overwrite) for path, array in arrays.items()
        }
    checks = ImportChecks(session, verify)
    work = Import(
        session,
        source,
        remote_options,
        validate_containers,
        whole_seconds(checksum_parts(last_modified)[1]),
        checks,
    )
    work.read({path: (arrays[path], place) for path, place in places.items()}, progress)
    groups = {}
    if append_dim is None and region is None:
        groups = groups_of(session, source, root, arrays, overwrite)
    untouched = tuple(path for path in arrays if path not in places)
    undecoded = {
        path: checks.unread[array.keys.path]
        for path, array in arrays.items()
        if array.keys.path in checks.unread
    }
    report = work.apply(groups, overwrite, untouched)
    return replace(report, unmet=unmet, undecoded=undecoded)


def _session(target: Any) -> Session:
    session = target.session if isinstance(target, IcechunkStore) else target
    if not isinstance(session, Session):
        raise InvalidInputError(
            f"references are imported into a Session or IcechunkStore, not a "
            f"{type(target).__name__}",
            ErrorKind.NOT_ALLOWED,
        )
    if target.read_only:
        raise ReadOnlyError(
            "references cannot be imported into a read-only session or store; take one from "
            "Repository.writable_session(branch)"
        )
    return session
