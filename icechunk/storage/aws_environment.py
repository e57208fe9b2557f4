"""What environment variables and the machine say about S3, beyond what obstore reads itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from icechunk.base.public_url import public_url
from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.storage.aws_profile import (
    describe_profile,
    fetches,
    profile_endpoint,
    profile_options,
)
from icechunk.storage.machine_service import LINK_LOCAL, unanswered

#: Where the service is, in order of precedence.
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
#: Any of these says that credentials are fetched, or are not needed.
_FETCHED: Final = (
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)
#: If one half of a pair is missing, the client itself says which.
_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
#: Any of these says that the instance has a metadata service.
_METADATA: Final = ("AWS_METADATA_ENDPOINT", "AWS_EC2_METADATA_SERVICE_ENDPOINT")
#: What says where credentials are fetched, and where machines and containers fetch them.
_SERVICES: Final = (*_METADATA, "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_ENDPOINT_URL_STS")
_OF_CONTAINERS: Final = "http://169.254.170.2"
_MACHINE_SERVICES: Final = (LINK_LOCAL, _OF_CONTAINERS)
#: Files that say so on EC2 machines, and the text that they begin with there.
_MACHINE: Final = (
    (Path("/sys/devices/virtual/dmi/id/sys_vendor"), "Amazon EC2"),
    (Path("/sys/devices/virtual/dmi/id/bios_vendor"), "Amazon EC2"),
    (Path("/sys/hypervisor/uuid"), "ec2"),
)


def endpoint() -> tuple[str, str] | None:
    """Return the URL of the service, and its source: a variable, or the profile."""
    for name in _ENDPOINTS:
        if os.environ.get(name):
            return name, os.environ[name]
    return profile_endpoint()


def metadata_endpoint() -> str | None:
    """Return the URL of the machine's metadata service, from the variable of the AWS tools."""
    return os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or None


def asked_by_the_client() -> list[str]:
    """Return the URLs of the services that obstore asks for credentials.

    It asks if neither a variable nor the profile has keys.
    """
    if any(os.environ.get(name) for name in _KEYS) or profile_options():
        return []
    found = [*_MACHINE_SERVICES, *(os.environ.get(name) or "" for name in _SERVICES)]
    if os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        found += ["https://amazonaws.com", "https://amazonaws.com.cn"]
    return [url for url in found if url]


def allows_http() -> bool:
    """Whether ``AWS_ALLOW_HTTP`` allows a service without TLS."""
    return _is_true("AWS_ALLOW_HTTP")


def check_tls(name: str, url: str) -> None:
    """Refuse a service without TLS unless somebody has allowed it.

    Raises
    ------
    InvalidInputError
    """
    if url.startswith("http://"):
        raise InvalidInputError(
            f"{name} {public_url(url)!r} has no TLS: set AWS_ALLOW_HTTP=true, or pass "
            "allow_http=True, if that is what you want",
            ErrorKind.STORAGE_CONFIG,
        )


def missing_credentials() -> str | None:
    """Say where no credentials were found, or return None if there are some, or may be."""
    if any(os.environ.get(name) for name in _KEYS) or profile_options() or fetches():
        return None
    if any(os.environ.get(name) for name in _FETCHED):
        return None
    if (container := _container()) is not None:
        silent = unanswered(container)
        return None if silent is None else f"the service of the container at {silent}"
    if _is_true("AWS_EC2_METADATA_DISABLED"):
        metadata = "AWS_EC2_METADATA_DISABLED is set"
    elif (url := _metadata()) is None:
        metadata = "this is not an EC2 machine"
    elif (silent := unanswered(url)) is not None:
        metadata = f"the metadata service of the machine at {silent}"
    else:
        return None
    return (
        f"{_KEYS[0]} is not set, {describe_profile()}, no web identity or "
        f"container is named (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_CONTAINER_CREDENTIALS_*), and "
        f"{metadata}"
    )


def _metadata() -> str | None:
    """Return the URL of the metadata service that the client asks, if the machine has one."""
    named = metadata_endpoint() or os.environ.get("AWS_METADATA_ENDPOINT")
    return named or (LINK_LOCAL if _is_in_ec2() else None)


def _container() -> str | None:
    """Return the URL of the service of credentials that a container has."""
    if os.environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        return _OF_CONTAINERS
    return os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI") or None


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _is_in_ec2() -> bool:
    return any(_text(path).startswith(begin) for path, begin in _MACHINE)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
