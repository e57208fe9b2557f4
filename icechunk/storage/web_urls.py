"""URLs of web servers, and their parts."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

from icechunk.base.public_url import public_url, url_credentials
from icechunk.errors import ErrorKind, InvalidInputError

__all__ = ["is_web", "web_parts"]

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def web_parts(url: str) -> SplitResult:
    """Return the parts of the URL of a web server.

    Raises
    ------
    InvalidInputError
        If it is none. The message shows no secret.
    """
    problem = "is not the URL of a web server"
    try:
        parts = urlsplit(url)
        # reading the port checks that it is one
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            problem = ""
    except ValueError:
        parts = urlsplit("")
    if "@" not in parts.netloc and url_credentials(url) == "a user or password":
        problem = (
            "is not the URL of a web server: in a user or password, percent-encode / ? # and @"
        )
    elif _CONTROL.search(url):
        problem = "has a line break or another control character"
    if problem:
        raise InvalidInputError(f"{public_url(url)!r} {problem}", ErrorKind.CANNOT_PARSE_URL)
    return parts


def is_web(url: str) -> bool:
    """Whether a URL is that of a web server."""
    try:
        web_parts(url)
    except InvalidInputError:
        return False
    return True
