"""Options of services, under the names of `icechunk` and of fsspec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from icechunk.errors import ErrorKind, InvalidInputError

__all__ = ["for_storage", "in_our_words"]

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
#: Of its filesystem for Google: whom to bill for buckets, of which none is made here.
_GOOGLE_ONLY: Final = ("project", "access")
_VOCABULARIES: Final[Mapping[str, Mapping[str, str]]] = {
    **dict.fromkeys(("s3", "r2", "tigris"), _S3),
    **dict.fromkeys(("az", "azure", "abfs", "abfss"), _AZURE),
}


def for_storage(url: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options for `icechunk.storage_from_url`, given under its names or fsspec's.

    A service without TLS is allowed: whoever writes its URL has chosen it.
    """
    scheme = url.partition("://")[0].lower()
    given = {name: value for name, value in (options or {}).items() if value is not None}
    return _allowing_http(in_our_words(scheme, given))


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
    found = {name: value for name, value in options.items() if name not in _GOOGLE_ONLY}
    token = found.get("token")
    if token == "anon":
        del found["token"]
        found["anonymous"] = True
    elif token in ("google_default", "cloud"):
        # both are looked for without being asked
        del found["token"]
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
