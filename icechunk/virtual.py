"""Where virtual chunks may be read from, who allowed it, and how they are read.

A location is an absolute URL, or ``vcc://<container name>/<key>``. It is read only if
it lies in a container of the configuration that the caller authorised, and never
outside of that container: not through ``..``, plain or percent-encoded, not through a
symbolic link, and not through a redirect (Icechunk spec, "Virtual references").
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NoReturn
from urllib.parse import quote, unquote

from icechunk.config import VirtualChunkContainer, VirtualChunkSpec
from icechunk.container_storage import credential_call, open_container
from icechunk.credentials import AnyCredential, containers_credentials
from icechunk.errors import (
    ErrorKind,
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
)
from icechunk.storage.base import ByteRange, BytesLike, GetResult, Storage, resolve_range

__all__ = ["VirtualChunkContainer", "VirtualChunkSpec", "VirtualResolver", "normalize_location"]

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
#: What URL parsers drop from around and within a URL.
_AROUND: Final = "".join(map(chr, range(0x21)))
_WITHIN: Final = dict.fromkeys(map(ord, "\t\n\r"))
#: Printable ASCII that stays as it is in the path of a ``file`` URL.
_PATH_SAFE: Final = "".join(c for c in map(chr, range(0x21, 0x7F)) if c not in '"#<>?^`{}')
_PLAIN_FILE: Final = re.compile(r"file:///[A-Za-z0-9/._~!$&'()*+,;=:@|\[\]-]*")
_SUFFIX: Final = re.compile(r"[?#]")
#: Begins a location that names its container.
_BY_NAME: Final = "vcc://"
_DOT: Final = re.compile(r"(?:\.|%2e)", re.IGNORECASE)


def _invalid(location: object, problem: str) -> InvalidInputError:
    return InvalidInputError(
        f"the virtual chunk location {location!r} {problem}", ErrorKind.INVALID_VIRTUAL_REF
    )


def normalize_location(location: str) -> str:
    """Return the form in which a location is compared and stored.

    The scheme is lower-cased. The rest stays as it is, except for ``file`` URLs, which
    are normalised as URL parsers do: no host, no ``.`` and ``..``, percent-encoding.

    Raises
    ------
    InvalidInputError
        If it is no absolute URL, or a ``file`` URL on another host.
    """
    found = _SCHEME.match(location) if isinstance(location, str) else None
    if found is None:
        raise _invalid(location, "is no absolute URL; that of a file begins with 'file:///'")
    if _PLAIN_FILE.fullmatch(location) and "/." not in location:
        return location  # most are like this, and there may be millions
    scheme = found[1].lower()
    rest = location[found.end() :]
    if scheme == "file":
        return "file://" + _normalize_file(location, rest.rstrip(_AROUND).translate(_WITHIN))
    if not rest.startswith("//"):
        raise _invalid(location, f"is no absolute URL; it must begin with '{scheme}://'")
    return f"{scheme}:{rest}"


def _normalize_file(location: str, rest: str) -> str:
    path, suffix = _cut(rest)
    path = path.replace("\\", "/")
    if path.startswith("//"):
        host, _, path = path[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise _invalid(location, f"is on another host, {host!r}")
    else:
        path = path.removeprefix("/")
    segments: list[str] = []
    *folders, last = path.split("/")
    for segment in folders:
        dots = _DOT.sub(".", segment)
        if dots == "..":
            del segments[-1:]
        elif dots != ".":
            segments.append(segment)
    dots = _DOT.sub(".", last)
    if dots == "..":
        del segments[-1:]
    # what ends with dots is a folder, and keeps the slash of one
    segments.append("" if dots in (".", "..") else last)
    return "/" + quote("/".join(segments), safe=_PATH_SAFE) + suffix


def _cut(text: str) -> tuple[str, str]:
    """Split at the first ``?`` or ``#``, which begin what is not part of a path."""
    end = _SUFFIX.search(text)
    return (text, "") if end is None else (text[: end.start()], text[end.start() :])


def _prefix(url_prefix: str) -> str:
    """Return the normal form of a container's prefix, which ends with a slash."""
    prefix = normalize_location(url_prefix)
    return prefix if prefix.endswith("/") else prefix + "/"


@dataclass(frozen=True)
class _Place:
    """A container, with what the caller allowed.

    Attributes
    ----------
    prefix : str
        In normal form, with a slash at its end.
    container : VirtualChunkContainer
    authorized : bool
    credential : AnyCredential or None
        None for the defaults of the kind of store.
    """

    prefix: str
    container: VirtualChunkContainer
    authorized: bool
    credential: AnyCredential | None


class VirtualResolver:
    """Turns locations into storages and keys, and fetches virtual chunks.

    Safe to use from several threads. Pickles with the credentials that it was given,
    without open storages.

    Parameters
    ----------
    containers : mapping of str to VirtualChunkContainer
        Those of the configuration. Their keys play no role.
    authorized : mapping of str to credential or None, optional
        By url prefix, what the caller of ``open`` or ``create`` passed as
        ``authorize_virtual_chunk_access``. None stands for the defaults of the store.
    """

    def __init__(
        self,
        containers: Mapping[str, VirtualChunkContainer],
        authorized: Mapping[str, AnyCredential | None] | None = None,
    ) -> None:
        self._containers = dict(containers)
        self._authorized = containers_credentials(authorized or {})
        allowed = {_prefix(prefix): c for prefix, c in self._authorized.items()}
        self._places: list[_Place] = []
        self._by_name: dict[str, str] = {}
        for container in self._containers.values():
            try:
                prefix = _prefix(container.url_prefix)
            except InvalidInputError:
                # old repositories may hold such a one; no location is ever in it
                continue
            self._places.append(_Place(prefix, container, prefix in allowed, allowed.get(prefix)))
            if container.name is not None:
                self._by_name[container.name] = prefix
        # the longest prefix that fits decides
        self._places.sort(key=lambda place: len(place.prefix), reverse=True)
        self._storages: dict[str, Storage] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return VirtualResolver, (self._containers, self._authorized)

    def __repr__(self) -> str:
        places = {
            place.prefix: "authorized" if place.authorized else "not authorized"
            for place in self._places
        }
        return f"VirtualResolver({places})"

    # -- locations -------------------------------------------------------------------
    def validate(self, location: str) -> None:
        """Check that a location is in a container, authorised or not.

        Raises
        ------
        InvalidInputError
            If it is no absolute URL, names no file, leads out of its container, or is
            in none.
        """
        self._locate(location)

    def invalid_locations(self, locations: Iterable[str]) -> list[int]:
        """Return the positions of those locations that `validate` refuses."""
        bad = []
        for i, location in enumerate(locations):
            try:
                self._locate(location)
            except InvalidInputError:
                bad.append(i)
        return bad

    def expand(self, location: str) -> str:
        """Return a location with the name of a container replaced by its prefix.

        Raises
        ------
        InvalidInputError
            If there is no container of that name.
        """
        if not location.startswith(_BY_NAME):
            return location
        name, _, relative = location.removeprefix(_BY_NAME).partition("/")
        prefix = self._by_name.get(name)
        if prefix is None:
            raise InvalidInputError(
                f"{_shown(location)}: the repository has no virtual chunk container with the "
                f"name {name!r}",
                ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK,
            )
        return prefix + relative

    def resolve(self, location: str) -> tuple[Storage, str]:
        """Return the storage that holds a location, and its key there.

        Raises
        ------
        InvalidInputError
            As `validate`, and if the container is not authorised, cannot be opened, or
            got credentials of another kind of store.
        """
        place, root, key = self._locate(location)
        if not place.authorized:
            raise InvalidInputError(
                f"the virtual chunk container {place.prefix} holds {_shown(location)}, and reading "
                "from it was not allowed; to allow it, open the repository with "
                f"authorize_virtual_chunk_access={{{place.container.url_prefix!r}: "
                f"{credential_call(place.container.store)}}} (names of icechunk.credentials)",
                ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
            )
        with self._lock:
            storage = self._storages.get(root)
            if storage is None:
                storage = open_container(
                    place.container.store, root, place.credential, self._allows
                )
                self._storages[root] = storage
        return storage, key

    def _allows(self, url: str) -> bool:
        """Whether a redirect may lead to a URL: only into an authorised container."""
        try:
            return self._locate(url)[0].authorized
        except InvalidInputError:
            return False

    def _locate(self, location: str) -> tuple[_Place, str, str]:
        """Return the container of a location, the URL to open for it, and the key below."""
        path, _ = _cut(normalize_location(location))
        if path.startswith(_BY_NAME):
            path = normalize_location(self.expand(path))
        for place in self._places:
            if path.startswith(place.prefix):
                root = place.prefix
                if root.endswith("://"):
                    # a container of all buckets: each of them is a storage
                    root = path[: path.find("/", len(root)) + 1] or path
                return place, root, _key(location, path[len(root) :])
        raise InvalidInputError(
            f"{_shown(location)} is in no virtual chunk container of the repository; add one "
            "with RepositoryConfig.set_virtual_chunk_container",
            ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK,
        )

    # -- bytes -----------------------------------------------------------------------
    def fetch(
        self,
        location: str,
        offset: int,
        length: int,
        etag: str | None = None,
        last_modified: int | None = None,
        byte_range: ByteRange | None = None,
    ) -> BytesLike:
        """Return the bytes of a virtual chunk, or of a range of it.

        Parameters
        ----------
        location : str
        offset, length : int
            Where the chunk is in the file, in bytes.
        etag : str, optional
            The version that the file must have.
        last_modified : int, optional
            Seconds since the epoch; the file must not have been modified later. 0 for
            unknown.
        byte_range : ByteRange, optional
            Of the chunk.

        Raises
        ------
        StorageError
            If the file cannot be read, is too short, or has changed.
        InvalidInputError
            As `resolve`.
        """
        request = _Request.of(location, offset, length, etag, last_modified, byte_range)
        if request.start == request.end:
            return b""
        storage, key = self.resolve(location)
        try:
            result = storage.get(key, **request.arguments)
        except (StorageError, InvalidInputError) as exc:
            request.fail(exc)
        return request.checked(result)

    async def fetch_async(
        self,
        location: str,
        offset: int,
        length: int,
        etag: str | None = None,
        last_modified: int | None = None,
        byte_range: ByteRange | None = None,
    ) -> BytesLike:
        """Fetch as `fetch` does, without blocking the event loop."""
        request = _Request.of(location, offset, length, etag, last_modified, byte_range)
        if request.start == request.end:
            return b""
        storage, key = self.resolve(location)
        try:
            result = await storage.get_async(key, **request.arguments)
        except (StorageError, InvalidInputError) as exc:
            request.fail(exc)
        return request.checked(result)


@dataclass(frozen=True)
class _Request:
    """The bytes wanted of a file, and what must hold of it."""

    location: str
    start: int
    end: int
    arguments: dict[str, Any]

    @staticmethod
    def of(
        location: str,
        offset: int,
        length: int,
        etag: str | None,
        last_modified: int | None,
        byte_range: ByteRange | None,
    ) -> _Request:
        start, end = (offset + position for position in resolve_range(byte_range, length))
        modified = datetime.fromtimestamp(last_modified, UTC) if last_modified else None
        arguments = {
            "byte_range": (start, end),
            "if_match": etag or None,
            "if_unmodified_since": modified,
        }
        return _Request(location, start, end, arguments)

    def _named(self, problem: object) -> str:
        where = f"bytes {self.start} to {self.end} of {_shown(self.location)}"
        return f"cannot read a virtual chunk, {where}: {problem}"

    def checked(self, result: GetResult) -> BytesLike:
        wanted = self.end - self.start
        if len(result.data) != wanted:
            raise StorageError(
                self._named(f"the file has only {len(result.data)} of these {wanted} bytes"),
                ErrorKind.VIRTUAL_CHUNK_FETCH,
            )
        return result.data

    def fail(self, exc: StorageError | InvalidInputError) -> NoReturn:
        if isinstance(exc, InvalidInputError):
            raise InvalidInputError(self._named(exc), exc.kind) from exc
        if isinstance(exc, PreconditionFailedError):
            raise StorageError(
                self._named(f"the file has changed since the reference to it was written: {exc}"),
                ErrorKind.VIRTUAL_CHUNK_MODIFIED,
            ) from exc
        if isinstance(exc, ObjectNotFoundError):
            raise StorageError(
                self._named("there is no such file"), ErrorKind.VIRTUAL_CHUNK_FETCH
            ) from exc
        raise StorageError(self._named(exc), ErrorKind.VIRTUAL_CHUNK_FETCH) from exc


def _shown(location: str) -> str:
    """Return a location without what follows its path: signed URLs carry secrets there."""
    return _cut(location)[0]


def _key(location: str, encoded: str) -> str:
    """Return the key for the rest of a path, after checking that it goes down only."""
    key = unquote(encoded, errors="surrogateescape") if "%" in encoded else encoded
    if not key or key.endswith("/"):
        raise _invalid(_shown(location), "names no file")
    # a backslash separates segments for some servers, and on some systems
    unix = key.replace("\\", "/")
    if (unix[0] == "." or "/." in unix) and not {".", ".."}.isdisjoint(unix.split("/")):
        raise _invalid(_shown(location), "has '.' or '..' among its segments")
    return key
