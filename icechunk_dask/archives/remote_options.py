"""Options of servers, in the words of `icechunk` and of fsspec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from icechunk import InvalidInputError

__all__ = ["for_fsspec", "for_storage"]

#: Names of fsspec's S3 filesystem by those of `icechunk.storage_from_url`.
_S3: Final = {
    "access_key_id": "key",
    "secret_access_key": "secret",
    "session_token": "token",
    "anonymous": "anon",
    "endpoint_url": "endpoint_url",
    "region": "client_kwargs.region_name",
}
#: Options of S3 that say how the server is to be talked to, and need not be told to fsspec.
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
    """Return options for fsspec, given in its words or in ours.

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
            raise InvalidInputError(f"{name!r} and {target!r} are the same option: pass one")
        else:
            found[target] = value
    return {**found, **({"client_kwargs": client} if client else {})}


def for_storage(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options for `icechunk.storage_from_url`, given in its words or in fsspec's."""
    ours = {theirs: name for name, theirs in _S3.items()}
    found: dict[str, Any] = {}
    for name, value in (options or {}).items():
        if name == "client_kwargs":
            for key, inner in value.items():
                found[ours.get(f"client_kwargs.{key}", key)] = inner
        else:
            found[ours.get(name, name)] = value
    if str(found.get("endpoint_url") or "").startswith("http://"):
        # whoever writes it so has chosen
        found.setdefault("allow_http", True)
    return found
