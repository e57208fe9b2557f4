"""What the stored configuration of a repository may decide about stores of virtual chunks.

Who opens a repository allows a prefix, ``s3://bucket/``, and gives credentials for it. Who
wrote the repository chose the options of the store behind it, and nobody looks at those. So
they may not send the credentials elsewhere, weaken the connection, name files of this
machine or spend the caller's money. What the caller passes as ``config`` is the caller's
own, and may set everything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from icechunk.config.credentials import AnyCredential, Credentials, S3Credentials
from icechunk.config.repository_config import AnyObjectStoreConfig, ObjectStoreConfig, S3Options
from icechunk.errors import ErrorKind, InvalidInputError

#: What goes into a host name: anything else could make it another host.
_LABEL: Final = re.compile(r"[A-Za-z0-9-]*")
#: Options of S3 that stay with the service that the prefix names.
_S3: Final = frozenset(
    {
        "region",
        "anonymous",
        "force_path_style",
        "network_stream_timeout_seconds",
        "checksum_algorithm",
    }
)
#: What an unsigned request takes besides: an address.
_S3_UNSIGNED: Final = _S3 | {"endpoint_url", "allow_http"}
#: Options of the clients for Google and Azure that say how to wait, not whom to ask.
_PATIENCE: Final = frozenset(
    {"connect_timeout", "read_timeout", "timeout", "pool_idle_timeout", "pool_max_idle_per_host"}
)
#: Azure has one service for all; the account is a part of its host name.
_ACCOUNT: Final = frozenset({"account", "account_name", "azure_storage_account_name"})


@dataclass(frozen=True)
class Trust:
    """Whom the caller of `Repository.open` vouches for.

    Attributes
    ----------
    containers : bool
        The containers are the caller's own, not those stored with the repository.
    endpoint : str or None
        The S3 service that the repository itself is in, if the caller named one.
    """

    containers: bool = True
    endpoint: str | None = None


def is_anonymous(store: AnyObjectStoreConfig, credential: AnyCredential | None) -> bool:
    """Whether requests to a store of the S3 family are not signed."""
    if isinstance(credential, Credentials.S3):
        return isinstance(credential.credentials, S3Credentials.Anonymous)
    options = s3_options(store)
    return credential is None and options is not None and options.anonymous


def s3_options(store: AnyObjectStoreConfig) -> S3Options | None:
    """Return the options of a store of the S3 family, None for another."""
    if isinstance(store, ObjectStoreConfig.Tigris):
        return store.opts
    if isinstance(store, ObjectStoreConfig.S3 | ObjectStoreConfig.S3Compatible):
        return store.options
    return None


def check_stored_options(
    store: AnyObjectStoreConfig, root: str, credential: AnyCredential | None, trust: Trust
) -> None:
    """Refuse options that only the caller may set.

    Parameters
    ----------
    store : one of the classes of ObjectStoreConfig
    root : str
        The prefix, for the message.
    credential : one of Credentials, or None
        None for the defaults of the store: the environment, or none if it is anonymous.
    trust : Trust

    Raises
    ------
    InvalidInputError
        If a stored container sets such an option.
    """
    if trust.containers:
        return
    refused = _refused(store, credential, trust)
    if refused:
        raise InvalidInputError(
            f"{root}: the configuration stored in the repository sets {', '.join(refused)} for "
            "this virtual chunk container; only you may, because that could send your "
            "credentials elsewhere. If you trust it, open the repository with it as yours, "
            "config=Repository.fetch_config(storage); public data on S3 is read with "
            "s3_credentials(anonymous=True)",
            ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
        )


def _refused(
    store: AnyObjectStoreConfig, credential: AnyCredential | None, trust: Trust
) -> list[str]:
    options = s3_options(store)
    if options is not None:
        allowed = _S3
        if is_anonymous(store, credential) or same_endpoint(options, trust):
            allowed = _S3_UNSIGNED
        chosen = {name: getattr(options, name) for name in vars(options)}
        unset = vars(S3Options())
        names = [name for name, value in chosen.items() if value != unset[name]]
        refused = [f"{name}={chosen[name]!r}" for name in names if name not in allowed]
        return refused + _not_labels({"region": options.region or ""})
    if isinstance(store, ObjectStoreConfig.Gcs | ObjectStoreConfig.Azure):
        given: dict[str, Any] = {name.lower(): v for name, v in (store.opts or {}).items()}
        accounts = _ACCOUNT if isinstance(store, ObjectStoreConfig.Azure) else frozenset()
        # values may be secrets
        refused = sorted(given.keys() - _PATIENCE - accounts)
        return refused + _not_labels({k: v for k, v in given.items() if k in accounts})
    return []  # folders and web servers get no credentials


def _not_labels(values: dict[str, str]) -> list[str]:
    return [f"{k}={v!r}" for k, v in values.items() if not _LABEL.fullmatch(v)]


def same_endpoint(options: S3Options, trust: Trust) -> bool:
    """Whether a store is at the service that the repository itself is in."""
    endpoint = options.endpoint_url
    return (
        endpoint is not None
        and trust.endpoint is not None
        and endpoint.rstrip("/") == trust.endpoint.rstrip("/")
    )
