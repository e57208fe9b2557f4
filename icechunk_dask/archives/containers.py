"""How to reach the files of an archive, with the options that they are read with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from icechunk import (
    VirtualChunkContainer,
    azure_credentials,
    azure_store,
    gcs_credentials,
    http_store,
    s3_credentials,
    s3_store,
    suggest_containers,
)
from icechunk.credentials import HttpAccess, LocalFileSystemAccess
from icechunk.storage.option_names import for_storage
from icechunk.virtual.outside import is_web, requests

__all__ = ["authorization", "derive_containers"]

#: By scheme: what makes credentials from options, and from which options.
_CREDENTIALS: Final[Mapping[str, tuple[Callable[..., Any], tuple[str, ...]]]] = {
    "s3": (s3_credentials, ("access_key_id", "secret_access_key", "session_token")),
    "gs": (
        gcs_credentials,
        ("service_account_file", "service_account_key", "application_credentials", "bearer_token"),
    ),
    "az": (azure_credentials, ("access_key", "sas_token", "bearer_token")),
}
_EACH: Final = ("anonymous", "from_env", "get_credentials", "scatter_initial_credentials")


def derive_containers(
    locations: Sequence[str], remote_options: Mapping[str, Any], *, secrets: bool = False
) -> list[VirtualChunkContainer]:
    """Return containers for files on the servers that the options name.

    Parameters
    ----------
    locations : sequence of str
    remote_options : mapping
        As `OutsideFiles` has them.
    secrets : bool
        Whether the containers have all headers, which are for a configuration that is not
        stored.

    Raises
    ------
    InvalidInputError
        As `icechunk.suggest_containers`.
    """
    schemes = {location.partition("://")[0] for location in locations}
    stores: dict[str, Any] = {}
    if "s3" in schemes:
        options = for_storage("s3://", remote_options)
        endpoint = options.get("endpoint_url") or None
        stores["s3"] = s3_store(
            region=options.get("region"),
            endpoint_url=endpoint,
            allow_http=bool(options.get("allow_http")),
            anonymous=bool(options.get("anonymous")),
            s3_compatible=endpoint is not None,
            force_path_style=endpoint is not None,
        )
    if "az" in schemes:
        account = for_storage("az://", remote_options).get("account")
        if account is not None:
            stores["az"] = azure_store(account=account)
    found = suggest_containers(locations, stores=stores)
    if not secrets or schemes.isdisjoint(("http", "https")):
        return found
    web = http_store(*requests(remote_options))
    return [replace(each, store=web) if is_web(each.url_prefix) else each for each in found]


def authorization(
    containers: Sequence[VirtualChunkContainer], remote_options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what allows reading some containers, with the credentials of the options."""
    found: dict[str, Any] = {}
    for container in containers:
        scheme = container.url_prefix.partition("://")[0]
        if scheme == "file":
            found[container.url_prefix] = LocalFileSystemAccess
        elif scheme in ("http", "https"):
            found[container.url_prefix] = HttpAccess
        elif scheme in _CREDENTIALS:
            options = for_storage(f"{scheme}://", remote_options)
            made = options.get("credentials")
            make, names = _CREDENTIALS[scheme]
            given = {name: options[name] for name in (*names, *_EACH) if options.get(name)}
            found[container.url_prefix] = made or make(**(given or {"from_env": True}))
    return found
