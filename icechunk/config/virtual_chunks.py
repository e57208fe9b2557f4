"""Virtual chunks: the containers that they may be in, and where one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final
from urllib.parse import unquote, urlsplit

from icechunk.base.public_url import public_url, url_credentials
from icechunk.base.texts import literal
from icechunk.config.object_stores import (
    SCHEMES,
    AnyObjectStoreConfig,
    serves,
    storable,
    store_kind,
)
from icechunk.config.options import (
    Kind,
    Options,
    Stored,
    invalid_option,
    stored_map,
    text,
    unsigned,
)
from icechunk.errors import ErrorKind, InvalidInputError

__all__ = ["VirtualChunkContainer", "VirtualChunkSpec"]

_TEXT: Final = text()


def _prefix() -> Kind:
    """Take a URL, which is stored and displayed without a user or password."""
    return Kind(_TEXT.check, _TEXT.dump, _TEXT.load, lambda value: literal(public_url(value)))


@dataclass(repr=False)
class VirtualChunkContainer(Options):
    """A place outside of the repository from which chunks may be read.

    Parameters
    ----------
    url_prefix : str
        Chunks whose location begins with it belong to this container, such as
        ``s3://bucket/folder/``.
    store : one of the classes of ObjectStoreConfig
    name : str, optional
        Lets locations be written as ``vcc://name/key``.

    Examples
    --------
    >>> container = icechunk.VirtualChunkContainer(
    ...     "s3://archive/", icechunk.s3_store(region="us-east-1")
    ... )
    """

    _module = "icechunk.virtual"
    _order = ("name", "url_prefix", "store")

    url_prefix: Annotated[str, _prefix()]
    store: Annotated[AnyObjectStoreConfig, store_kind()]
    name: Annotated[str | None, text()] = None

    def validate(self) -> None:
        """Check what must hold before a container is written to a repository.

        Containers that are read from a repository are not checked: older versions of the
        format were laxer.

        Raises
        ------
        InvalidInputError
            If the prefix does not end with ``/``, names no bucket or folder, or has a
            scheme that the store cannot serve, or if an option or header of the store might hold
            a secret: everybody who can read the repository could read it.
        """
        try:
            parts = urlsplit(self.url_prefix)
        except ValueError:
            parts = urlsplit("")
        where = public_url(self.url_prefix)
        secrets = []
        for name in ("opts", "headers"):
            given = getattr(self.store, name, None)
            if isinstance(given, dict):
                secrets += [k for k in given if k not in storable(name, given)]
        problem = None
        if not self.url_prefix.endswith("/"):
            problem = "its url_prefix must end with a '/'"
        elif not serves(self.store, parts.scheme):
            schemes = " and ".join(f"{scheme}://" for scheme in SCHEMES[type(self.store)])
            problem = (
                f"ObjectStoreConfig.{type(self.store).__name__} serves {schemes or 'no'} locations"
            )
        elif parts.scheme == "file" and not unquote(parts.path).strip("/"):
            problem = "its url_prefix must name a folder"
        elif parts.scheme != "file" and not parts.netloc:
            problem = "its url_prefix must name a bucket or host"
        elif url_credentials(self.url_prefix) is not None:
            problem = "its url_prefix may not hold a user or password"
        elif "?" in self.url_prefix or "#" in self.url_prefix:
            problem = "its url_prefix may not have anything behind its path"
        elif secrets:
            problem = (
                f"{secrets[0]!r} would be stored in clear with the repository, and is not known "
                "to hold no secret; pass credentials in authorize_virtual_chunk_access, and other "
                "options in config when you open the repository"
            )
        if problem:
            raise InvalidInputError(
                f"virtual chunk container {where!r}: {problem}", ErrorKind.STORAGE_CONFIG
            )


def _check_containers(value: Any, where: str) -> dict[str, VirtualChunkContainer]:
    if not isinstance(value, Mapping):
        raise invalid_option(where, "a mapping of containers", value)
    for key, container in value.items():
        _TEXT.check(key, f"{where}: a key")
        if not isinstance(container, VirtualChunkContainer):
            where = f"{where}: {public_url(key)!r}"
            raise invalid_option(where, "a VirtualChunkContainer", container)
    return dict(value)


def _load_containers(stored: Stored, where: str) -> dict[str, VirtualChunkContainer]:
    return {
        key: VirtualChunkContainer._load(value, f"{where}.{key}")
        for key, value in stored_map(stored, where).items()
    }


def containers() -> Kind:
    """Take a mapping of virtual chunk containers."""
    return Kind(
        _check_containers,
        lambda value: {key: container._dump() for key, container in value.items()},
        _load_containers,
    )


@dataclass(frozen=True)
class VirtualChunkSpec:
    """A chunk of an array that is a range of bytes in a file.

    Parameters
    ----------
    index : list of int
        Position in the chunk grid.
    location : str
        URL of the file.
    offset, length : int
        In bytes.
    etag_checksum : str, optional
        Reading fails if the file has another ETag.
    last_updated_at_checksum : datetime, optional
        Reading fails if the file was modified later. With a time zone; a fraction of a
        second is cut off, so for a file on a disk pass the second after its own time. At most
        one of the two checksums (Icechunk spec, "Virtual references").

    Examples
    --------
    >>> spec = icechunk.VirtualChunkSpec(
    ...     index=[0, 0], location="s3://archive/day.bin", offset=0, length=24
    ... )
    """

    index: list[int]
    location: str
    offset: int
    length: int
    etag_checksum: str | None = None
    last_updated_at_checksum: datetime | None = None

    def __post_init__(self) -> None:
        problem = None
        modified = self.last_updated_at_checksum
        try:
            index = [_INDEX.check(i, "index") for i in self.index]
            object.__setattr__(self, "index", index)
            _TEXT.check(self.location, "location")
            _BYTES.check(self.offset, "offset")
            _BYTES.check(self.length, "length")
            if self.etag_checksum is not None:
                _TEXT.check(self.etag_checksum, "etag_checksum")
        except (InvalidInputError, TypeError) as exc:
            problem = str(exc)
        if modified is not None and (not isinstance(modified, datetime) or modified.tzinfo is None):
            problem = "last_updated_at_checksum must be a datetime with a time zone"
        elif modified is not None and self.etag_checksum is not None:
            problem = "pass etag_checksum or last_updated_at_checksum, not both"
        if problem:
            raise InvalidInputError(f"VirtualChunkSpec: {problem}", ErrorKind.INVALID_VIRTUAL_REF)

    def __hash__(self) -> int:
        return hash((tuple(self.index), self.location, self.offset, self.length))

    def __repr__(self) -> str:
        # as the decorator would make it, except for what a location may carry
        values = {**vars(self), "location": public_url(self.location)}
        return f"VirtualChunkSpec({', '.join(f'{k}={v!r}' for k, v in values.items())})"


_INDEX: Final = unsigned(32)
_BYTES: Final = unsigned(64)
