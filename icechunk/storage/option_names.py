"""Options of services, under the names of `icechunk` and of fsspec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from icechunk.errors import ErrorKind, InvalidInputError

__all__ = ["for_fsspec", "for_storage", "in_our_words"]

#: Names of fsspec's S3 file system, by those of `icechunk.storage_from_url`.
_S3: Final = {
    "access_key_id": "key",
    "secret_access_key": "secret",
    "session_token": "token",
    "anonymous": "anon",
    "endpoint_url": "endpoint_url",
    "region": "client_kwargs.region_name",
}
#: Names of its file system for Azure.
_AZURE: Final = {
    "account": "account_name",
    "access_key": "account_key",
    "anonymous": "anon",
}
_VOCABULARIES: Final[Mapping[str, Mapping[str, str]]] = {
    **dict.fromkeys(("s3", "r2", "tigris"), _S3),
    **dict.fromkeys(("az", "azure", "abfs", "abfss"), _AZURE),
}
#: Options of S3 about the connection, which fsspec does not need.
_OURS_ONLY: Final = frozenset(
    {
        "allow_http",
        "from_env",
        "force_path_style",
        "s3_compatible",
        "network_stream_timeout_seconds",
    }
)


def for_fsspec(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options for fsspec's S3 file system, given under its names or ours.

    Raises
    ------
    InvalidInputError
        If one option is given in both.
    """
    found: dict[str, Any] = {}
    client: dict[str, Any] = {}
    for name, value in (options or {}).items():
        target = _S3.get(name, name)
        if name in _OURS_ONLY or value is None:
            continue
        if name == "client_kwargs":
            client.update(value)
        elif target.startswith("client_kwargs."):
            client[target.partition(".")[2]] = value
        elif target in found:
            raise _twice(name, target)
        else:
            found[target] = value
    return {**found, **({"client_kwargs": client} if client else {})}


def for_storage(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options for `icechunk.storage_from_url` in S3, given under its names or fsspec's.

    A service without TLS is allowed: whoever writes its URL has chosen it.
    """
    return _allowing_http(in_our_words("s3", options or {}))


def in_our_words(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a storage, given under our names or fsspec's.

    Parameters
    ----------
    scheme : str
        Of the URL of the storage.
    options : mapping
        A name that neither knows is passed on unchanged.

    Raises
    ------
    InvalidInputError
        If one option is given in both, or a bearer token is given beside a header for one.
    """
    if scheme.startswith("http"):
        return _with_bearer_token(options)
    if scheme in ("gs", "gcs"):
        return _google(options)
    if scheme not in _VOCABULARIES:
        return dict(options)
    ours = {theirs: name for name, theirs in _VOCABULARIES[scheme].items()}
    found: dict[str, Any] = {}
    client = options.get("client_kwargs") or {}
    flat = {
        **{f"client_kwargs.{name}": value for name, value in client.items()},
        **{name: value for name, value in options.items() if name != "client_kwargs"},
    }
    for name, value in flat.items():
        target = ours.get(name, name.removeprefix("client_kwargs."))
        if target in found:
            raise _twice(name, target)
        found[target] = value
    # fsspec has no name for it
    return _allowing_http(found) if "endpoint_url" in client else found


def _allowing_http(options: dict[str, Any]) -> dict[str, Any]:
    if str(options.get("endpoint_url") or "").startswith("http://"):
        options.setdefault("allow_http", True)
    return options


def _google(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of gcsfs, whose one option for credentials is ``token``, under our names."""
    found = dict(options)
    if found.get("token") == "anon":
        del found["token"]
        found["anonymous"] = True
    elif isinstance(found.get("token"), str) and "service_account_file" not in found:
        found["service_account_file"] = found.pop("token")
    return found


def _with_bearer_token(options: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(options)
    token = found.pop("bearer_token", None)
    if token is not None:
        headers = dict(found.get("headers") or {})
        if any(name.lower() == "authorization" for name in headers):
            raise _twice("bearer_token", "Authorization of headers")
        found["headers"] = {**headers, "Authorization": f"Bearer {token}"}
    return found


def _twice(name: str, other: str) -> InvalidInputError:
    return InvalidInputError(
        f"{name!r} and {other!r} are the same option: pass one", ErrorKind.STORAGE_CONFIG
    )
