"""Checks of the names that places in object stores consist of."""

from __future__ import annotations

import re
from typing import Final

from icechunk.base.public_url import public_url, url_credentials
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.storage.base import check_key

__all__ = ["check_endpoint", "check_host_part", "check_name", "clean_prefix", "join_url"]

_NOT_A_NAME: Final = frozenset("/@:?#\\")
_NOT_SHOWN: Final = frozenset("@:?#")
#: Without dots at the begin of a segment, percent-encoding, queries and fragments.
_ENDPOINT: Final = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]+\]|[^\s/?#@:%\\\[\]]+)(?::[0-9]+)?(?:/[\w~-][\w.~-]*)*/?"
)
#: What may stand in a host name, between two dots or around them.
_HOST_PART: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def check_host_part(what: str, name: object) -> None:
    """Check a name that becomes a part of the host name of a service, such as a region.

    Raises
    ------
    InvalidInputError
        If it could turn that host name into another one.
    """
    if not isinstance(name, str) or not _HOST_PART.fullmatch(name):
        hidden = isinstance(name, str) and not _NOT_SHOWN.isdisjoint(name)
        raise InvalidInputError(
            f"{'what was passed' if hidden else repr(name)} is not a valid {what}: it may have "
            "letters, digits, '-', '_' and '.' only, because it is a part of a host name",
            ErrorKind.STORAGE_CONFIG,
        )


def check_name(what: str, name: object) -> None:
    """Check the name of a bucket or container.

    Raises
    ------
    InvalidInputError
        If it is empty, or contains what would make it a different part of a URL, such as a
        key and a secret before an ``@``. These are not shown.
    """
    if not isinstance(name, str) or not name or not _NOT_A_NAME.isdisjoint(name):
        hidden = isinstance(name, str) and not _NOT_SHOWN.isdisjoint(name)
        raise InvalidInputError(
            f"{'what was passed' if hidden else repr(name)} is not a valid {what} name: it must "
            "not be "
            "empty or contain any of / @ : ? #, and credentials are arguments of their own",
            ErrorKind.STORAGE_CONFIG,
        )


def check_endpoint(name: str, endpoint: str) -> None:
    """Check the URL of a service.

    Raises
    ------
    InvalidInputError
        If it does not begin with ``http://`` or ``https://``, or has more than a host, a
        port and a plain path. The message shows no secret.
    """
    problem = None
    if url_credentials(endpoint) is not None:
        problem = "may not hold a user, password or signature: pass credentials as such"
    elif not endpoint.startswith(("http://", "https://")):
        problem = "must begin with https:// or http://"
    elif not _ENDPOINT.fullmatch(endpoint):
        problem = "may have a host, a port and a plain path only"
    if problem is not None:
        raise InvalidInputError(
            f"{name} {public_url(endpoint)!r} {problem}", ErrorKind.STORAGE_CONFIG
        )


def clean_prefix(prefix: str) -> str:
    """Return a prefix without slashes at its ends.

    Raises
    ------
    InvalidInputError
        If the rest is neither empty nor usable as a key.
    """
    stripped = prefix.strip("/")
    return check_key(stripped) if stripped else ""


def join_url(scheme: str, bucket: str, prefix: str) -> str:
    """Return ``scheme://bucket/prefix``, without a final slash."""
    return f"{scheme}://{bucket}/{prefix}".rstrip("/")
