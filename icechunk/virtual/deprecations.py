"""Warnings about calls that the official client is going to refuse."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

from icechunk.base.calling import depth_of_caller
from icechunk.base.public_url import public_url
from icechunk.errors import InvalidInputError

_S3: Final = "icechunk.s3_from_env_credentials() or icechunk.s3_anonymous_credentials()"
_GCS: Final = "icechunk.credentials.gcs_anonymous_credentials()"
_AZURE: Final = "icechunk.azure_from_env_credentials()"
_HTTP: Final = "icechunk.credentials.HttpAccess"
#: What to pass in place of None, by the scheme of the container.
_EXPLICIT: Final = {
    "s3": _S3,
    "tigris": _S3,
    "gs": _GCS,
    "gcs": _GCS,
    "az": _AZURE,
    "azure": _AZURE,
    "abfs": _AZURE,
    "http": _HTTP,
    "https": _HTTP,
    "file": "icechunk.credentials.LocalFileSystemAccess",
}


def warn_of_none(authorization: Mapping[str, object] | None) -> None:
    """Warn, at the line of the caller of this library, of containers authorized with None.

    Parameters
    ----------
    authorization : mapping, optional
        Credentials by the prefix of the container.

    Raises
    ------
    InvalidInputError
        If it is something else.
    """
    for prefix, credentials in authorized(authorization).items():
        if credentials is None:
            better = explicit(str(prefix))
            warnings.warn(
                f"authorize_virtual_chunk_access: None for {public_url(str(prefix))!r} will not "
                "be accepted in future, as it does not say which credentials are used; pass "
                f"{better}",
                DeprecationWarning,
                stacklevel=depth_of_caller(),
            )


def explicit(prefix: str) -> str:
    """Return source code for what to authorize a container with."""
    return _EXPLICIT.get(prefix.partition("://")[0], "a credential")


def authorized(authorization: object) -> dict[str, Any]:
    """Return what may be read, by prefix.

    Raises
    ------
    InvalidInputError
        If it is not a mapping.
    """
    if authorization is None:
        return {}
    if not isinstance(authorization, Mapping):
        raise InvalidInputError(
            "authorize_virtual_chunk_access must map prefixes to credentials, such as "
            "{'s3://bucket/': icechunk.s3_from_env_credentials()}, not be of type "
            f"{type(authorization).__name__}"
        )
    return dict(authorization)
