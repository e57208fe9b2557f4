"""What environment variables and the machine say of S3, besides what obstore reads itself."""

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

#: Where the service is, in the order in which they count.
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
#: Credentials that are fetched, or not needed: any of these says so.
_FETCHED: Final = (
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
#: With half a pair the client says itself what is missing.
_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
#: Somebody says that there are metadata of an instance.
_METADATA: Final = ("AWS_METADATA_ENDPOINT", "AWS_EC2_METADATA_SERVICE_ENDPOINT")
#: Files that say so on machines of EC2, and how their text begins there.
_MACHINE: Final = (
    (Path("/sys/devices/virtual/dmi/id/sys_vendor"), "Amazon EC2"),
    (Path("/sys/devices/virtual/dmi/id/bios_vendor"), "Amazon EC2"),
    (Path("/sys/hypervisor/uuid"), "ec2"),
)


def endpoint() -> tuple[str, str] | None:
    """Return where the service is, after what says so: a variable, or the profile."""
    for name in _ENDPOINTS:
        if os.environ.get(name):
            return name, os.environ[name]
    return profile_endpoint()


def metadata_endpoint() -> str | None:
    """Return where the metadata of the machine are, in the variable of the AWS tools."""
    return os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or None


def allows_http() -> bool:
    """Whether ``AWS_ALLOW_HTTP`` allows a service without TLS."""
    return _is_true("AWS_ALLOW_HTTP")


def check_tls(name: str, url: str) -> None:
    """Refuse a service without TLS that nobody has allowed.

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
    """Say where no credentials were found; None if there are some, or may be."""
    if any(os.environ.get(name) for name in _KEYS) or profile_options() or fetches():
        return None
    if any(os.environ.get(name) for name in _FETCHED):
        return None
    disabled = _is_true("AWS_EC2_METADATA_DISABLED")
    if not disabled and (any(map(os.environ.get, _METADATA)) or _is_in_ec2()):
        return None
    metadata = "AWS_EC2_METADATA_DISABLED is set" if disabled else "this is not an EC2 machine"
    return (
        f"{_KEYS[0]} is not set, {describe_profile()}, no web identity or "
        f"container is named (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_CONTAINER_CREDENTIALS_*), and "
        f"{metadata}"
    )


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _is_in_ec2() -> bool:
    return any(_text(path).startswith(begin) for path, begin in _MACHINE)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
