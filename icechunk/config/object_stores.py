"""Descriptions of the object stores that virtual chunks live in.

These are plain values that are stored with the configuration of a repository. They
hold no credentials: those are given when a repository is opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Final, TypeAlias, cast

from icechunk.base.display import Displayed, NumberedEnum
from icechunk.base.public_url import public_url, url_credentials
from icechunk.base.texts import labelled, literal
from icechunk.config.options import (
    Family,
    Kind,
    Options,
    Stored,
    flag,
    invalid_option,
    member,
    stored_map,
    text,
    unsigned,
)
from icechunk.errors import ErrorKind, InvalidInputError

__all__ = [
    "AnyObjectStoreConfig",
    "ChecksumAlgorithm",
    "ObjectStoreConfig",
    "S3Options",
    "azure_store",
    "gcs_store",
    "http_store",
    "local_filesystem_store",
    "s3_store",
]


class ChecksumAlgorithm(NumberedEnum):
    """Checksums that an S3 client can send along with the objects it writes."""

    Crc32 = 0
    Crc32c = 1
    Crc64Nvme = 2
    Sha1 = 3
    Sha256 = 4


_CHECKSUM_NAMES: Final[dict[Enum, str]] = {
    ChecksumAlgorithm.Crc32: "crc32",
    ChecksumAlgorithm.Crc32c: "crc32c",
    ChecksumAlgorithm.Crc64Nvme: "crc64_nvme",
    ChecksumAlgorithm.Sha1: "sha1",
    ChecksumAlgorithm.Sha256: "sha256",
}


def _endpoint() -> Kind:
    """Take the URL of a service, which is stored and shown."""

    def check(value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise invalid_option(where, "a string", value)
        if url_credentials(value) is not None or "?" in value or "#" in value:
            raise InvalidInputError(
                f"{where} must be a URL without user, password and query, because it is stored "
                "and shown; pass credentials as such",
                ErrorKind.STORAGE_CONFIG,
            )
        return value

    # other clients may have stored more, which is of no use here and is not kept
    return Kind(check, str, lambda stored, where: public_url(_TEXT.load(stored, where)))


def _checksum() -> Kind:
    kind = member(_CHECKSUM_NAMES)
    return dataclasses.replace(kind, show=lambda value: f"icechunk.ChecksumAlgorithm.{value.name}")


@dataclass(repr=False)
class S3Options(Options):
    """Where and how to reach S3, or a store that speaks its protocol.

    Parameters
    ----------
    region : str, optional
    endpoint_url : str, optional
        Without user, password and query. Default: that of AWS for the region.
    allow_http : bool, default False
        Allow an endpoint without TLS.
    anonymous : bool, default False
        Do not sign requests when no credentials are given.
    force_path_style : bool, default False
        Put the bucket in the path instead of the host name.
    network_stream_timeout_seconds : int, optional
        Give up on a response that has sent nothing for this long. Default 60.
    requester_pays : bool, default False
    checksum_algorithm : ChecksumAlgorithm, optional
    """

    _module = "icechunk.storage"

    region: Annotated[str | None, text()] = None
    endpoint_url: Annotated[str | None, _endpoint()] = None
    allow_http: Annotated[bool, flag()] = False
    anonymous: Annotated[bool, flag()] = False
    force_path_style: Annotated[bool, flag()] = False
    network_stream_timeout_seconds: Annotated[int | None, unsigned(32)] = None
    requester_pays: Annotated[bool, flag()] = False
    checksum_algorithm: Annotated[ChecksumAlgorithm | None, _checksum()] = None


#: Options that may be stored and shown, without the prefix of the service.
_STORABLE_OPTIONS: Final = frozenset(
    {
        # of all clients
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "default_content_type",
        "http1_only",
        "http2_keep_alive_interval",
        "http2_keep_alive_timeout",
        "http2_keep_alive_while_idle",
        "http2_max_frame_size",
        "http2_only",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_excludes",
        "proxy_url",
        "randomize_addresses",
        "read_timeout",
        "timeout",
        "user_agent",
        # of services: names and places, no keys
        "account",
        "account_name",
        "application_credentials",
        "authority_host",
        "authority_id",
        "base_url",
        "bucket",
        "bucket_name",
        "client_id",
        "container",
        "container_name",
        "disable_tagging",
        "endpoint",
        "federated_token_file",
        "identity_endpoint",
        "msi_endpoint",
        "msi_resource_id",
        "object_id",
        "service_account",
        "service_account_path",
        "skip_signature",
        "tenant_id",
        "use_azure_cli",
        "use_emulator",
        "use_fabric_endpoint",
    }
)
_SERVICES: Final = ("azure_storage_", "azure_", "google_", "gcs_")
#: Headers that may be stored and shown: none of them identifies anybody, or makes a server do
#: anything other than what its URL says.
_STORABLE_HEADERS: Final = frozenset(
    {"accept", "accept-language", "cache-control", "from", "pragma", "user-agent"}
)


def is_storable_header(name: str) -> bool:
    """Whether a header may be stored with a repository and sent on its behalf."""
    return name.lower() in _STORABLE_HEADERS


def _is_storable_option(name: str, value: str) -> bool:
    plain = name.lower().replace("-", "_")
    for service in _SERVICES:
        plain = plain.removeprefix(service)
    return plain in _STORABLE_OPTIONS and url_credentials(value) is None


def _string_map(value: Mapping[str, str] | None, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise invalid_option(where, "a mapping of strings", value)
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str):
            # the value may be a secret: only its type is shown
            raise InvalidInputError(
                f"{where}: {key!r} must be a string, not {type(item).__name__}",
                ErrorKind.STORAGE_CONFIG,
            )
    return dict(value)


def storable(field: str, given: Mapping[str, str]) -> set[str]:
    """Return the names of the options, or headers, that may be stored and shown."""
    if field == "headers":
        return set(filter(is_storable_header, given))
    return {name for name, value in given.items() if _is_storable_option(name, value)}


class _Store(Displayed):
    """What the store descriptions share: checks, and a ``repr`` without secrets."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(cast(Any, self)):
            value = getattr(self, f.name)
            where = f"{type(self).__qualname__}: {f.name}"
            if f.name in ("opts", "headers") and not isinstance(value, S3Options):
                object.__setattr__(self, f.name, _string_map(value, where))
            elif f.name == "path":
                _TEXT.check(value, where)

    def __repr__(self) -> str:
        shown = (
            repr(value) if isinstance(value, S3Options) else literal(value)
            for value in self._values().values()
        )
        return f"{self._name()}({', '.join(shown)})"

    def __str__(self) -> str:
        values = self._values()
        lines: dict[str, str] = {}
        for name, value in values.items():
            if isinstance(value, S3Options):
                return str(value).replace(f"<{S3Options._name()}>", f"<{self._name()}>")
            lines[name] = literal(value)
        return labelled(self._name(), lines)

    def _name(self) -> str:
        return f"icechunk.config.{type(self).__qualname__}"

    def _values(self) -> dict[str, Any]:
        """Return the fields without secrets, and None for those without options."""
        values = {}
        for f in dataclasses.fields(cast(Any, self)):
            value = getattr(self, f.name)
            if isinstance(value, dict):
                kept = storable(f.name, value)
                value = {
                    k if _is_option(k) else "***": v if k in kept else "***"
                    for k, v in value.items()
                } or None
            # the official client has no other name for the options of these
            kinds = (ObjectStoreConfig.Gcs, ObjectStoreConfig.Azure)
            is_config = f.name == "opts" and isinstance(self, kinds)
            values["config" if is_config else f.name] = value
        return values


def _is_option(name: object) -> bool:
    # what is written where a name belongs may be a value
    return isinstance(name, str) and name.isprintable() and name.isascii()


_TEXT: Final = text()


@dataclass(frozen=True, repr=False)
class _S3Family(_Store):
    options: S3Options

    def __post_init__(self) -> None:
        if not isinstance(self.options, S3Options):
            raise invalid_option(f"{type(self).__qualname__}: options", "S3Options", self.options)


class ObjectStoreConfig(metaclass=Family):
    """The kinds of object stores, one class each."""

    @dataclass(frozen=True, repr=False)
    class InMemory(_Store):
        """The memory of this process."""

    @dataclass(frozen=True, repr=False)
    class LocalFileSystem(_Store):
        """A folder."""

        path: str

    @dataclass(frozen=True, repr=False)
    class S3Compatible(_S3Family):
        """A store that speaks the protocol of S3."""

    @dataclass(frozen=True, repr=False)
    class S3(_S3Family):
        """Amazon S3."""

    @dataclass(frozen=True, repr=False)
    class Gcs(_Store):
        """Google Cloud Storage, with options for its client."""

        opts: Mapping[str, str] | None = None

    @dataclass(frozen=True, repr=False)
    class Azure(_Store):
        """Azure Blob Storage, with options for its client; ``account`` names the account."""

        opts: Mapping[str, str] | None = None

    @dataclass(frozen=True, repr=False)
    class Tigris(_Store):
        """Tigris."""

        opts: S3Options

        def __post_init__(self) -> None:
            if not isinstance(self.opts, S3Options):
                raise invalid_option(f"{type(self).__qualname__}: opts", "S3Options", self.opts)

    @dataclass(frozen=True, repr=False)
    class Http(_Store):
        """A web server, with options for the client and headers for every request."""

        opts: Mapping[str, str] | None = None
        headers: Mapping[str, str] | None = None


AnyObjectStoreConfig: TypeAlias = (
    ObjectStoreConfig.InMemory
    | ObjectStoreConfig.LocalFileSystem
    | ObjectStoreConfig.S3
    | ObjectStoreConfig.S3Compatible
    | ObjectStoreConfig.Gcs
    | ObjectStoreConfig.Azure
    | ObjectStoreConfig.Tigris
    | ObjectStoreConfig.Http
)

#: The schemes of the locations that each kind of store can serve.
SCHEMES: Final[dict[type, tuple[str, ...]]] = {
    ObjectStoreConfig.InMemory: (),
    ObjectStoreConfig.LocalFileSystem: ("file",),
    ObjectStoreConfig.S3: ("s3",),
    ObjectStoreConfig.S3Compatible: ("s3",),
    ObjectStoreConfig.Gcs: ("gs", "gcs"),
    ObjectStoreConfig.Azure: ("az", "azure", "abfs"),
    ObjectStoreConfig.Tigris: ("tigris", "s3"),
    ObjectStoreConfig.Http: ("http", "https"),
}


def serves(store: AnyObjectStoreConfig, scheme: str) -> bool:
    """Whether a kind of store has locations with a scheme, in lower case."""
    return scheme in SCHEMES[type(store)]


def _dump_store(store: AnyObjectStoreConfig) -> Stored:
    if isinstance(store, ObjectStoreConfig.InMemory):
        return "in_memory"
    if isinstance(store, ObjectStoreConfig.LocalFileSystem):
        return {"local_file_system": store.path}
    if isinstance(store, ObjectStoreConfig.S3):
        return {"s3": store.options._dump()}
    if isinstance(store, ObjectStoreConfig.S3Compatible):
        return {"s3_compatible": store.options._dump()}
    if isinstance(store, ObjectStoreConfig.Tigris):
        return {"tigris": store.opts._dump()}
    stored: dict[str, Stored] = dict(store.opts or {})
    if isinstance(store, ObjectStoreConfig.Gcs):
        return {"gcs": stored}
    if isinstance(store, ObjectStoreConfig.Azure):
        return {"azure": stored}
    if store.headers:
        stored["headers"] = dict(store.headers)
    return {"http": stored}


def _load_store(stored: Stored, where: str) -> AnyObjectStoreConfig:
    if stored == "in_memory":
        return ObjectStoreConfig.InMemory()
    if isinstance(stored, dict) and len(stored) == 1:
        variant, value = next(iter(stored.items()))
        path = f"{where}.{variant}"
        if variant == "local_file_system":
            return ObjectStoreConfig.LocalFileSystem(_TEXT.load(value, path))
        if variant == "s3":
            return ObjectStoreConfig.S3(S3Options._load(value, path))
        if variant == "s3_compatible":
            return ObjectStoreConfig.S3Compatible(S3Options._load(value, path))
        if variant == "tigris":
            return ObjectStoreConfig.Tigris(S3Options._load(value, path))
        if variant in ("gcs", "azure", "http"):
            options = {} if value is None else dict(stored_map(value, path))
            if variant == "http":
                headers = options.pop("headers", None)
                return ObjectStoreConfig.Http(
                    _string_map(options, path), _string_map(headers, f"{path}.headers")
                )
            family = ObjectStoreConfig.Gcs if variant == "gcs" else ObjectStoreConfig.Azure
            return family(_string_map(options, path))
    raise invalid_option(where, "a known kind of object store", stored)


def _check_store(value: Any, where: str) -> AnyObjectStoreConfig:
    if isinstance(value, ObjectStoreConfig):
        return cast(AnyObjectStoreConfig, value)
    raise invalid_option(where, "one of the classes of ObjectStoreConfig", value)


def store_kind() -> Kind:
    """Take a description of a store."""
    return Kind(_check_store, _dump_store, _load_store)


# -- constructors ----------------------------------------------------------------------
def s3_store(
    region: str | None = None,
    endpoint_url: str | None = None,
    allow_http: bool = False,
    anonymous: bool = False,
    s3_compatible: bool = False,
    force_path_style: bool = False,
    network_stream_timeout_seconds: int = 60,
    requester_pays: bool = False,
    checksum_algorithm: ChecksumAlgorithm | None = None,
) -> ObjectStoreConfig.S3Compatible | ObjectStoreConfig.S3:
    """Describe S3; with `s3_compatible`, a store that speaks its protocol.

    The other parameters are those of `S3Options`.

    Examples
    --------
    >>> store = icechunk.s3_store(region="us-east-1", anonymous=True)
    """
    options = S3Options(
        region=region,
        endpoint_url=endpoint_url,
        allow_http=allow_http,
        anonymous=anonymous,
        force_path_style=force_path_style,
        network_stream_timeout_seconds=network_stream_timeout_seconds,
        requester_pays=requester_pays,
        checksum_algorithm=checksum_algorithm,
    )
    if s3_compatible:
        return ObjectStoreConfig.S3Compatible(options)
    return ObjectStoreConfig.S3(options)


def gcs_store(opts: dict[str, str] | None = None) -> ObjectStoreConfig.Gcs:
    """Describe Google Cloud Storage, with options for its client.

    Examples
    --------
    >>> store = icechunk.gcs_store()
    """
    return ObjectStoreConfig.Gcs(opts)


def azure_store(*, account: str, config: dict[str, str] | None = None) -> ObjectStoreConfig.Azure:
    """Describe Azure Blob Storage.

    Parameters
    ----------
    account : str
        The storage account.
    config : dict, optional
        Options for the client.

    Examples
    --------
    >>> store = icechunk.azure_store(account="mine")
    """
    return ObjectStoreConfig.Azure({**(config or {}), "account": account})


def http_store(
    opts: dict[str, str] | None = None, headers: dict[str, str] | None = None
) -> ObjectStoreConfig.Http:
    """Describe a web server, with options for the client and headers for its requests.

    Examples
    --------
    >>> store = icechunk.http_store()
    """
    return ObjectStoreConfig.Http(opts, headers)


def local_filesystem_store(path: str) -> ObjectStoreConfig.LocalFileSystem:
    """Describe a folder.

    Examples
    --------
    >>> store = icechunk.local_filesystem_store("/archive")
    """
    return ObjectStoreConfig.LocalFileSystem(path)
