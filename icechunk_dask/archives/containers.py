"""How to reach the files of an archive, from the options that fsspec reads them with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from icechunk import (
    VirtualChunkContainer,
    gcs_credentials,
    s3_credentials,
    s3_store,
    suggest_containers,
)
from icechunk.credentials import HttpAccess, LocalFileSystemAccess

__all__ = ["authorization", "derive_containers"]


def derive_containers(
    locations: Sequence[str], remote_options: Mapping[str, Any]
) -> list[VirtualChunkContainer]:
    """Return containers for files, on the server that s3fs was pointed to.

    Raises
    ------
    InvalidInputError
        As `icechunk.suggest_containers`.
    """
    more = remote_options.get("client_kwargs") or {}
    endpoint = remote_options.get("endpoint_url") or more.get("endpoint_url") or ""
    s3 = s3_store(
        region=more.get("region_name"),
        endpoint_url=endpoint or None,
        allow_http=endpoint.startswith("http://"),
        anonymous=bool(remote_options.get("anon")),
        s3_compatible=bool(endpoint),
        force_path_style=bool(endpoint),
    )
    return suggest_containers(locations, stores={"s3": s3})


def authorization(
    containers: Sequence[VirtualChunkContainer], remote_options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what allows to read some containers, with the keys that fsspec was given."""
    key, secret = remote_options.get("key"), remote_options.get("secret")
    anonymous = bool(remote_options.get("anon"))
    known: dict[str, Any] = {
        "file": LocalFileSystemAccess,
        "http": HttpAccess,
        "https": HttpAccess,
        "gs": gcs_credentials(from_env=True),
        "s3": s3_credentials(
            access_key_id=key,
            secret_access_key=secret,
            session_token=remote_options.get("token"),
        )
        if key and secret
        else s3_credentials(anonymous=anonymous or None, from_env=not anonymous or None),
    }
    schemes = {each.url_prefix: each.url_prefix.partition("://")[0] for each in containers}
    return {prefix: known[scheme] for prefix, scheme in schemes.items() if scheme in known}
