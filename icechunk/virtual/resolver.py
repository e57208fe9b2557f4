"""Where virtual chunks may be read from, who allowed it, and how they are read.

A location is an absolute URL, or ``vcc://<container name>/<key>``. It is read only if
it lies in a container of the configuration that the caller authorised, and never
outside of that container: not through ``..``, plain or percent-encoded, not through a
symbolic link, and not through a redirect (Icechunk spec, "Virtual references").
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from icechunk.config import StorageSettings, VirtualChunkContainer, VirtualChunkSpec
from icechunk.config.credential_types import AnyCredential
from icechunk.config.credentials import containers_credentials
from icechunk.errors import (
    ErrorKind,
    InvalidInputError,
    ObjectNotFoundError,
    PreconditionFailedError,
    StorageError,
)
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.storage.base import ByteRange, BytesLike, GetResult, Storage, resolve_range
from icechunk.virtual.coalescing import Coalescer, Source
from icechunk.virtual.container_storage import open_container
from icechunk.virtual.container_suggestions import container_call
from icechunk.virtual.container_trust import Trust
from icechunk.virtual.deprecations import explicit
from icechunk.virtual.locations import (
    BY_NAME,
    container_prefix,
    cut_suffix,
    key_below,
    normalize_location,
    shown,
)
from icechunk.virtual.plain_locations import below, plain

__all__ = ["VirtualChunkContainer", "VirtualChunkSpec", "VirtualResolver", "normalize_location"]


@dataclass(frozen=True)
class _Place:
    """A container, with what the caller allowed.

    Attributes
    ----------
    prefix : str
        In normal form, with a slash at its end.
    container : VirtualChunkContainer
    allowed : str
        The prefix that the caller authorised and that covers this one; empty for none.
    credential : AnyCredential or None
        None for the defaults of the kind of store.
    """

    prefix: str
    container: VirtualChunkContainer
    allowed: str
    credential: AnyCredential | None


class VirtualResolver:
    """Turns locations into storages and keys, and fetches virtual chunks.

    Safe to use from several threads. Pickles with the credentials that it was given,
    without open storages.

    Parameters
    ----------
    containers : mapping of str to VirtualChunkContainer
        Those of the configuration. Their keys have no meaning here.
    authorized : mapping of str to credential or None, optional
        By url prefix, what the caller of ``open`` or ``create`` passed as
        ``authorize_virtual_chunk_access``. None stands for the defaults of the store. A
        prefix covers the containers inside of it; the longest one decides.
    trust : Trust, optional
        Whom the caller vouches for. Default: the containers are the caller's own.
    settings : StorageSettings, optional
        Retries, timeouts and concurrency of requests.
    """

    def __init__(
        self,
        containers: Mapping[str, VirtualChunkContainer],
        authorized: Mapping[str, AnyCredential | None] | None = None,
        trust: Trust | None = None,
        settings: StorageSettings | None = None,
    ) -> None:
        self._containers = dict(containers)
        self._authorized = containers_credentials(authorized or {})
        self._trust = trust or Trust()
        self._settings = settings
        allowed = {container_prefix(prefix): c for prefix, c in self._authorized.items()}
        self._places: list[_Place] = []
        self._by_name: dict[str, str] = {}
        for container in self._containers.values():
            try:
                prefix = container_prefix(container.url_prefix)
            except InvalidInputError:
                # other clients may store such a container; no location ever lies in it
                continue
            covering = max((p for p in allowed if prefix.startswith(p)), key=len, default="")
            self._places.append(_Place(prefix, container, covering, allowed.get(covering)))
            if container.name is not None:
                self._by_name[container.name] = prefix
        # the longest prefix that fits decides
        self._places.sort(key=lambda place: len(place.prefix), reverse=True)
        self._storages: dict[tuple[str, str], Storage] = {}
        self._lock = threading.Lock()
        self._coalescer = Coalescer()

    def __reduce__(self) -> tuple[Any, ...]:
        return VirtualResolver, (
            self._containers,
            self._authorized,
            self._trust,
            self._settings,
        )

    def __repr__(self) -> str:
        places = {
            shown(place.prefix): "authorized" if place.allowed else "not authorized"
            for place in self._places
        }
        return f"VirtualResolver({places})"

    # -- locations -------------------------------------------------------------------
    def validate(self, location: str) -> None:
        """Check that a location lies in a container, authorised or not.

        Raises
        ------
        InvalidInputError
            If it is no absolute URL, names no file, leads out of its container, or is
            in none.
        """
        self._locate(location)

    def invalid_locations(self, locations: Iterable[str]) -> list[int]:
        """Return the positions of the locations that `validate` refuses.

        Of a `StringHeap` most locations cost no Python call.
        """
        numbered: Iterable[tuple[int, str]]
        if isinstance(locations, StringHeap):
            rows = np.flatnonzero(~self._certainly_valid(locations))
            numbered = ((row, locations[row]) for row in rows.tolist())
        else:
            numbered = enumerate(locations)
        bad = []
        for i, location in numbered:
            try:
                self._locate(location)
            except InvalidInputError:
                bad.append(i)
        return bad

    def _certainly_valid(self, locations: StringHeap) -> npt.NDArray[np.bool_]:
        valid = np.zeros(len(locations), np.bool_)
        rows = np.flatnonzero(plain(locations))
        prefixes = [place.prefix for place in self._places]
        prefixes += [f"{BY_NAME}{name}/" for name in self._by_name]
        for prefix in prefixes:
            if not len(rows):
                break
            if prefix.endswith("://"):
                continue  # a container of all buckets: the key begins elsewhere
            found = below(locations, prefix.encode(errors="surrogateescape"), rows)
            valid[rows[found]] = True
            rows = rows[~found]
        return valid

    def expand(self, location: str) -> str:
        """Return a location with the name of a container replaced by its prefix.

        Raises
        ------
        InvalidInputError
            If there is no container of that name.
        """
        if not location.startswith(BY_NAME):
            return location
        name, _, relative = location.removeprefix(BY_NAME).partition("/")
        prefix = self._by_name.get(name)
        if prefix is None:
            raise InvalidInputError(
                f"{shown(location)}: the repository has no virtual chunk container with the "
                f"name {name.rpartition('@')[2]!r}",
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
        if not place.allowed:
            prefix = shown(place.container.url_prefix)
            raise InvalidInputError(
                f"the virtual chunk container {shown(place.prefix)} holds {shown(location)}, and "
                "reading from it was not allowed; to allow it, open the repository with "
                f"authorize_virtual_chunk_access={{{prefix!r}: {explicit(prefix)}}}",
                ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
            )
        with self._lock:
            storage = self._storages.get((place.prefix, root))
            if storage is None:
                storage = open_container(
                    place.container.store, root, place.credential, self._allows, self._trust
                )
                chosen = self._trust.limited(self._settings)
                if chosen is not None:
                    storage = storage.with_settings(chosen)
                self._storages[place.prefix, root] = storage
        return storage, key

    def _allows(self, url: str) -> bool:
        """Whether a redirect may lead to a URL: only into an authorised container."""
        try:
            return bool(self._locate(url)[0].allowed)
        except InvalidInputError:
            return False

    def _locate(self, location: str) -> tuple[_Place, str, str]:
        """Return the container of a location, the URL to open for it, and the key below."""
        path, _ = cut_suffix(normalize_location(location))
        if path.startswith(BY_NAME):
            path = normalize_location(self.expand(path))
        for place in self._places:
            if path.startswith(place.prefix):
                # links in a folder may lead out of the prefix that was authorised, but no further
                is_folder = path.startswith("file:")
                root = place.allowed if is_folder and place.allowed else place.prefix
                if root.endswith("://"):
                    # a container of all buckets: each bucket is a storage
                    root = path[: path.find("/", len(root)) + 1] or path
                return place, root, key_below(location, path[len(root) :])
        raise InvalidInputError(
            f"{shown(location)} is in no virtual chunk container of the repository; add one to "
            "its configuration: config.set_virtual_chunk_container("
            f"{container_call(path)}); icechunk.suggest_containers finds those of many locations",
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
            result = storage.get(
                key,
                byte_range=(request.start, request.end),
                if_match=request.etag,
                if_unmodified_since=request.modified,
            )
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
        """Fetch as `fetch` does, without blocking the event loop.

        Neighbouring ranges of one file that are asked for at the same time are fetched
        together.
        """
        request = _Request.of(location, offset, length, etag, last_modified, byte_range)
        if request.start == request.end:
            return b""
        storage, key = self.resolve(location)
        try:
            result = await self._coalescer.get(
                Source(storage, key, request.etag, request.modified), request.start, request.end
            )
        except (StorageError, InvalidInputError) as exc:
            request.fail(exc)
        return request.checked(result)


@dataclass(frozen=True)
class _Request:
    """The bytes wanted from a file, and the conditions."""

    location: str
    start: int
    end: int
    etag: str | None
    modified: datetime | None

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
        return _Request(location, start, end, etag or None, modified)

    def _named(self, problem: object) -> str:
        where = f"bytes {self.start} to {self.end} of {shown(self.location)}"
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
            since = ""
            if self.modified is not None:
                latest = f"{self.modified:%Y-%m-%d %H:%M:%S} UTC"
                since = f", which is for one not modified after {latest}"
            raise StorageError(
                self._named(
                    f"the file has changed since the reference to it was written{since}: {exc}"
                ),
                ErrorKind.VIRTUAL_CHUNK_MODIFIED,
            ) from exc
        if isinstance(exc, ObjectNotFoundError):
            raise StorageError(
                self._named("there is no such file"), ErrorKind.VIRTUAL_CHUNK_FETCH
            ) from exc
        raise StorageError(self._named(exc), ErrorKind.VIRTUAL_CHUNK_FETCH) from exc
