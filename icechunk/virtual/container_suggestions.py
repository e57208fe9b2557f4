"""The virtual chunk containers that references need, derived from where they point."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

from icechunk.config import (
    AnyObjectStoreConfig,
    ObjectStoreConfig,
    S3Options,
    VirtualChunkContainer,
    gcs_store,
    http_store,
    local_filesystem_store,
    s3_store,
)
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.virtual.locations import (
    BY_NAME,
    cut_suffix,
    invalid_location,
    normalize_location,
    shown,
)


class HasVirtualChunks(Protocol):
    """What is needed of a session."""

    def all_virtual_chunk_locations(self) -> list[str]:
        """Return the URLs of the files that virtual chunks are in."""


References: TypeAlias = HasVirtualChunks | Mapping[str, Any] | Iterable[str]

#: Source code for the store of a scheme; ``{folder}`` is a folder of this machine.
_SOURCES: Final = {
    "s3": "icechunk.s3_store()",
    "tigris": "icechunk.ObjectStoreConfig.Tigris(icechunk.S3Options())",
    "gs": "icechunk.gcs_store()",
    "gcs": "icechunk.gcs_store()",
    "http": "icechunk.http_store()",
    "https": "icechunk.http_store()",
    "file": "icechunk.local_filesystem_store({folder!r})",
}
_AZURE: Final = "icechunk.azure_store(account='ACCOUNT')"


def container_call(location: str) -> str:
    """Return source code for a container of one location."""
    prefix = shown(location).rpartition("/")[0] + "/"
    parts = urlsplit(prefix)
    from urllib.request import url2pathname

    source = _SOURCES.get(parts.scheme, _AZURE).format(folder=url2pathname(parts.path))
    return f"icechunk.VirtualChunkContainer({prefix!r}, {source})"


def suggest_containers(
    references: References,
    *,
    stores: Mapping[str, AnyObjectStoreConfig] | None = None,
    named: bool = False,
) -> list[VirtualChunkContainer]:
    """Return containers that cover all the files that references point to.

    One for each bucket, host or top folder of this machine. Its prefix is the longest folder
    that the files there have in common. Look at them before you store and authorise them:
    everything below a prefix can be read afterwards.

    Parameters
    ----------
    references : session, mapping, or iterable of str
        A session, for its virtual chunks; a kerchunk reference set, as a dict; or
        URLs. A local path may stand for its ``file://`` URL. Locations that
        name their container, ``vcc://``, need no other and are left out.
    stores : mapping of str to one of the classes of ObjectStoreConfig, optional
        How to reach the files, by scheme: ``{"s3": s3_store(anonymous=True)}``. Needed
        for Azure, where locations do not name the account. The default is the store of
        the scheme without options.
    named : bool, default False
        Give each container a name, after its bucket, host or folder, so that locations
        may be written as ``vcc://<name>/<key>``.

    Returns
    -------
    list of VirtualChunkContainer
        Sorted by prefix; empty without references.

    Raises
    ------
    InvalidInputError
        If a location is no absolute URL, lies in no folder, or is of a scheme that no
        store has.

    Examples
    --------
    >>> (container,) = icechunk.suggest_containers(["s3://archive/a.nc", "s3://archive/b.nc"])
    >>> container.url_prefix
    's3://archive/'
    """
    bounds: dict[tuple[str, str], tuple[str, str]] = {}
    for location in dict.fromkeys(_locations(references)):
        path = _absolute(location)
        if path.startswith(BY_NAME):
            continue
        group = _group(path)
        first, last = bounds.get(group, (path, path))
        bounds[group] = min(first, path), max(last, path)
    found = []
    taken: set[str] = set()
    for (scheme, _), (first, last) in sorted(bounds.items(), key=lambda item: item[1]):
        # whatever the first and the last have in common, all between them have
        common = os.path.commonprefix([first, last])  # noqa: RUF071 (cut at a slash next)
        prefix = common.rpartition("/")[0] + "/"
        container = VirtualChunkContainer(
            prefix, _store(scheme, prefix, stores or {}), _name(prefix, taken) if named else None
        )
        container.validate()
        found.append(container)
    return found


def _locations(references: References) -> Iterator[str]:
    if isinstance(references, str | bytes):
        raise InvalidInputError(
            "suggest_containers: expected URLs, not one of them: pass it in a list",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    if isinstance(references, Mapping):
        refs = references.get("refs", references)
        return (value[0] for value in refs.values() if isinstance(value, list | tuple) and value)
    if isinstance(references, Iterable):
        return iter(references)
    return iter(references.all_virtual_chunk_locations())


def _absolute(location: str) -> str:
    if isinstance(location, str) and "{{" in location:
        raise invalid_location(location, "is a template; expand it first")
    if isinstance(location, str) and os.path.isabs(location):
        location = Path(location).as_uri()
    return cut_suffix(normalize_location(location))[0]


def _group(path: str) -> tuple[str, str]:
    """Return what the files of one container have in common at least."""
    scheme, _, rest = path.partition("://")
    # the root of a file system is not a container, but a bucket may be one
    top, slash, _ = rest.removeprefix("/").partition("/")
    if not slash or not top:
        raise invalid_location(path, "lies in no folder, so no container can hold it")
    return scheme, top


def _store(
    scheme: str, prefix: str, stores: Mapping[str, AnyObjectStoreConfig]
) -> AnyObjectStoreConfig:
    if scheme in stores:
        return stores[scheme]
    if scheme == "s3":
        return s3_store()
    if scheme == "tigris":
        return ObjectStoreConfig.Tigris(S3Options())
    if scheme in ("gs", "gcs"):
        return gcs_store()
    if scheme in ("http", "https"):
        return http_store()
    if scheme == "file":
        from urllib.request import url2pathname

        return local_filesystem_store(url2pathname(urlsplit(prefix).path))
    raise InvalidInputError(
        f"suggest_containers: say how to reach {prefix}, with stores={{{scheme!r}: ...}}; for "
        f"Azure with {_AZURE}",
        ErrorKind.STORAGE_CONFIG,
    )


def _name(prefix: str, taken: set[str]) -> str:
    parts = urlsplit(prefix)
    wanted = parts.netloc or unquote(parts.path).rstrip("/").rpartition("/")[2]
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}-{count}"
    taken.add(name)
    return name
