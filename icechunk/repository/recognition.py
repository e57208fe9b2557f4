"""What is there, where there is no repository: the words of the error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import Final

from icechunk._version import user_agent
from icechunk.base.texts import RESTORED
from icechunk.config import Attribution
from icechunk.errors import IcechunkError, RepositoryNotFoundError
from icechunk.format import layout
from icechunk.format.ids import INITIAL_SNAPSHOT_ID
from icechunk.storage import AnyStorage, LocalStorage, Storage, as_storage

__all__ = ["saying_what_is_there"]

#: Documents at the root of a plain Zarr store, of either format.
_ZARR_DOCUMENTS: Final = ("zarr.json", ".zgroup", ".zarray")
_MADE: Final = "file: icechunk_dask.virtualize and icechunk_dask.ingest make a repository of it"
#: How files begin, and what to do with them.
_FILES: Final = (
    (b"\x89HDF", f"a NetCDF or HDF5 {_MADE}"),
    (b"CDF", f"a NetCDF {_MADE}"),
    (b"GRIB", f"a GRIB {_MADE}"),
    (b"PK\3\4", "a zip archive: unpack it, and open the folder"),
)
#: What is in the folder of a repository.
_OWN: Final = frozenset(
    ("chunks", "manifests", "overwritten", "refs", "repo", "snapshots", "transactions")
)
#: Entries of a folder that are looked at, and folders above it.
_LOOKED_AT: Final = 1000
_ABOVE: Final = 4


@contextmanager
def saying_what_is_there(
    place: AnyStorage, attribution: Attribution | None = None
) -> Iterator[None]:
    """Let the error about a repository that is not there say what is."""
    try:
        yield
    except RepositoryNotFoundError as error:
        storage = as_storage(place)
        if attribution is not None:
            storage = storage.with_user_agent(attribution.user_agent(user_agent()))
        found = _left_of_one(storage) or _plain_zarr(storage)
        if found is None and isinstance(storage, LocalStorage):
            found = _of_a_path(storage.path)
        if found is None and storage.url.startswith("memory://anonymous-"):
            found = (
                "is empty, and each in_memory_storage() is a memory of its own: open the one that "
                "the repository was created in"
            )
        if found is None:
            raise
        raise RepositoryNotFoundError(f"{storage.url} {found}") from error


def _left_of_one(storage: Storage) -> str | None:
    with suppress(IcechunkError, OSError):
        # the first snapshot alone is left of a `create` that was killed
        first = layout.snapshot_key(INITIAL_SNAPSHOT_ID)
        metas = chain(storage.list(layout.OVERWRITTEN), storage.list(layout.SNAPSHOTS))
        if any(meta.key != first for meta in metas):
            return f"has objects of a repository, but none that names its versions; {RESTORED}"
    return None


def _plain_zarr(storage: Storage) -> str | None:
    for name in _ZARR_DOCUMENTS:
        try:
            storage.get(name)
        except (IcechunkError, OSError):
            continue
        return (
            "is a plain Zarr store, not an Icechunk repository: open it with engine='zarr', or "
            "with zarr.open"
        )
    return None


def _of_a_path(path: str) -> str | None:
    """Say what a path on disk is, or which repositories are near it."""
    try:
        if os.path.isfile(path):
            with open(path, "rb") as file:
                start = file.read(4)
            kinds = (kind for begin, kind in _FILES if start.startswith(begin))
            return f"is {next(kinds, 'a file, and a repository is a folder')}"
        above, inner = os.path.split(path)
        for _ in range(_ABOVE):
            if _is_repository(above):
                group = "" if inner.split("/")[0] in _OWN else f", and name the group {inner!r}"
                return f"is no repository, but {above} is one: open that{group}"
            above, name = os.path.split(above)
            inner = f"{name}/{inner}"
        with os.scandir(path) as entries:
            looked = islice(entries, _LOOKED_AT)
            within = sorted(entry.path for entry in looked if _is_repository(entry.path))
    except OSError:
        return None
    if not within:
        return None
    return f"is no repository, but there are some in it: {', '.join(within[:3])}"


def _is_repository(folder: str) -> bool:
    keys = (layout.REPO_KEY, "refs/branch.main/ref.json")
    return any(os.path.isfile(os.path.join(folder, key)) for key in keys)
