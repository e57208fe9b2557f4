"""What the stored configuration of a repository may decide about stores of virtual chunks.

Whoever opens a repository allows a prefix, ``s3://bucket/``, and gives credentials for it.
Whoever wrote the repository chose the options of the store behind it, and nobody looks at
those. So stored options may not send the credentials elsewhere, nor unsigned requests, which
could reach a server in the caller's own network. They may not weaken the connection, name
files of this machine, or spend the caller's money or time. What the caller passes as
``config`` is the caller's own, and may set everything.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Final

from icechunk.base.public_url import public_url
from icechunk.config import AnyObjectStoreConfig, ObjectStoreConfig, S3Options, StorageSettings
from icechunk.config.object_stores import is_storable_header
from icechunk.errors import ErrorKind, InvalidInputError

#: Characters of a part of a host name: others could turn it into another host.
_LABEL: Final = re.compile(r"[A-Za-z0-9-]*")
#: Options of S3 that do not lead away from the service that the prefix names.
_S3: Final = frozenset(
    {
        "region",
        "anonymous",
        "force_path_style",
        "network_stream_timeout_seconds",
        "checksum_algorithm",
    }
)
#: What is also allowed for a store at the service of the repository itself.
_S3_SAME: Final = _S3 | {"endpoint_url", "allow_http"}
#: Client options that say how long to wait.
_DURATIONS: Final = frozenset({"connect_timeout", "read_timeout", "timeout", "pool_idle_timeout"})
#: Client options that say how to wait, not which host to ask.
_PATIENCE: Final = _DURATIONS | {"pool_max_idle_per_host"}
#: A repository does not make its readers wait longer than this for a silent server.
_MAX_SECONDS: Final = 60
_HTTP: Final = _DURATIONS | {"user_agent", "allow_http"}
_SECONDS: Final = re.compile(r"\s*([0-9]+)\s*([a-z]*).*")
#: Other units mean hours or more, which is too long in any number.
_UNITS: Final[dict[str, float]] = {
    **dict.fromkeys(("", "s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("ms", "msec", "millis", "millisecond", "milliseconds"), 0.001),
}
#: Azure has one service for all. The account is a part of its host name.
_ACCOUNT: Final = frozenset({"account", "account_name", "azure_storage_account_name"})


@dataclass(frozen=True)
class Trust:
    """What the caller of `Repository.open` vouches for.

    Attributes
    ----------
    containers : bool
        The containers are the caller's own, not those stored with the repository.
    endpoint : str or None
        The S3 service that the repository itself is in, if the caller named one.
    settings : StorageSettings or None
        Those that the caller passed. Containers of the repository get no more retries and
        no more time than these allow, or than the defaults.
    """

    containers: bool = True
    endpoint: str | None = None
    settings: StorageSettings | None = None

    def limited(self, settings: StorageSettings | None) -> StorageSettings | None:
        """Return the settings for requests to containers."""
        if self.containers or settings is None:
            return settings
        return settings.limited(self.settings)


def s3_options(store: AnyObjectStoreConfig) -> S3Options | None:
    """Return the options of a store of the S3 family, None for another."""
    if isinstance(store, ObjectStoreConfig.Tigris):
        return store.opts
    if isinstance(store, ObjectStoreConfig.S3 | ObjectStoreConfig.S3Compatible):
        return store.options
    return None


def check_stored_options(store: AnyObjectStoreConfig, root: str, trust: Trust) -> None:
    """Refuse options that only the caller may set.

    Parameters
    ----------
    store : one of the classes of ObjectStoreConfig
    root : str
        The prefix, for the message.
    trust : Trust

    Raises
    ------
    InvalidInputError
        If a stored container sets such an option.
    """
    if trust.containers:
        return
    refused = _refused(store, trust)
    if refused:
        raise InvalidInputError(
            f"{public_url(root)}: the configuration stored in the repository sets "
            f"{', '.join(refused)} for this virtual chunk container; only you may, because "
            "that could send your credentials, or requests from within your network, to someone "
            "you "
            "did not choose. If you trust it, open the repository with it as yours, "
            "config=Repository.fetch_config(storage)",
            ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
        )


def _refused(store: AnyObjectStoreConfig, trust: Trust) -> list[str]:
    options = s3_options(store)
    if options is not None:
        allowed = _S3_SAME if same_endpoint(options, trust) else _S3
        chosen = {name: getattr(options, name) for name in vars(options)}
        unset = vars(S3Options())
        names = [name for name, value in chosen.items() if value != unset[name]]
        refused = [
            f"{name}={public_url(str(chosen[name]))}" for name in names if name not in allowed
        ]
        return refused + _not_labels({"region": options.region or ""})
    if isinstance(store, ObjectStoreConfig.Gcs | ObjectStoreConfig.Azure):
        given: dict[str, Any] = {name.lower(): v for name, v in (store.opts or {}).items()}
        accounts = _ACCOUNT if isinstance(store, ObjectStoreConfig.Azure) else frozenset()
        # values may be secrets
        refused = sorted(given.keys() - _PATIENCE - accounts)
        return refused + _not_labels({k: v for k, v in given.items() if k in accounts})
    if isinstance(store, ObjectStoreConfig.Http):
        named = {name.lower() for name in store.opts or {}}
        headers = [name for name in store.headers or {} if not is_storable_header(name)]
        return sorted(named - _HTTP) + [f"the header {name!r}" for name in headers]
    return []  # options of folders have no effect


def patient(store: AnyObjectStoreConfig, trust: Trust) -> AnyObjectStoreConfig:
    """Return a store that waits no longer than the caller would."""
    if trust.containers:
        return store
    options = s3_options(store)
    if options is not None:
        seconds = options.network_stream_timeout_seconds
        if seconds is not None and not 0 < seconds <= _MAX_SECONDS:
            options = dataclasses.replace(options, network_stream_timeout_seconds=_MAX_SECONDS)
            store = type(store)(options)  # type: ignore[call-arg, arg-type]
        return store
    opts = getattr(store, "opts", None)
    if opts and isinstance(store, ObjectStoreConfig.Gcs | ObjectStoreConfig.Azure):
        return dataclasses.replace(store, opts=_shorter(opts))
    if opts and isinstance(store, ObjectStoreConfig.Http):
        return dataclasses.replace(store, opts=_shorter(opts))
    return store


def _shorter(opts: Any) -> dict[str, str]:
    return {
        name: f"{_MAX_SECONDS}s" if name.lower() in _DURATIONS and _is_long(value) else value
        for name, value in opts.items()
    }


def _is_long(duration: str) -> bool:
    found = _SECONDS.fullmatch(duration.lower())
    # the client refuses what is not a duration
    return found is not None and int(found[1]) * _UNITS.get(found[2], 3600) > _MAX_SECONDS


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
