"""URLs as kerchunk and fsspec write them, and as Icechunk does.

fsspec takes the path of a URL as it is; Icechunk decodes percent-encoding and cuts at
``?`` and ``#`` (Icechunk spec, "Virtual references"). HTTP URLs mean the same to both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import quote, unquote

from icechunk.errors import InvalidInputError
from icechunk.storage.base import check_key
from icechunk.virtual.locations import stored_location

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)::?//")
#: fsspec takes such local URLs, too.
_WITHOUT_HOST: Final = re.compile(r"(file|local):(?=/(?!/))")
_WINDOWS: Final = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_LOCAL: Final = ("file", "local")
_WEB: Final = ("http", "https")
#: Names that fsspec and Icechunk have for the same store.
_ALIASES: Final = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
#: In a path, these three would have a meaning for Icechunk.
_ESCAPED: Final = str.maketrans({"%": "%25", "?": "%3F", "#": "%23"})

Normalizer = Callable[[str], str]


def normalizer(remote_protocol: str | None = None, base_url: str | None = None) -> Normalizer:
    """Return a function that turns a URL of a reference into an Icechunk location.

    Parameters
    ----------
    remote_protocol : str, optional
        For URLs without one, such as ``"s3"``. Default: these are local paths.
    base_url : str, optional
        URL or folder from which relative URLs start. Default: the current directory, or
        nothing if there is a `remote_protocol`.
    """
    known: dict[str, str] = {}
    start = base_url.rstrip("/") + "/" if base_url is not None else None

    def normalized(url: str) -> str:
        found = known.get(url)
        if found is None:
            if len(known) > 100_000:
                known.clear()  # files may outnumber what memory holds
            found = known[url] = _location(url, remote_protocol, start)
        return found

    return normalized


def _location(url: str, remote_protocol: str | None, start: str | None) -> str:
    whole = _WITHOUT_HOST.sub(r"\1://", url)
    if not _SCHEME.match(whole):
        if start is not None and not whole.startswith("/"):
            whole = start + whole
        if remote_protocol is not None and not _SCHEME.match(whole):
            whole = f"{remote_protocol}://{whole}"
    match = _SCHEME.match(whole)
    scheme = match[1].lower() if match else "file"
    path = whole[match.end() :] if match else whole
    if scheme in _LOCAL:
        path = os.path.expanduser(path)
    _check_path(url, scheme, path)
    if scheme in _LOCAL:
        return stored_location("file://" + quote(os.path.abspath(path)))
    scheme = _ALIASES.get(scheme, scheme)
    if scheme == "vcc" or scheme in _WEB:
        return stored_location(f"{scheme}://{path}")
    return stored_location(f"{scheme}://{path.translate(_ESCAPED)}")


def _check_path(url: str, scheme: str, path: str) -> None:
    """Refuse what could be stored but never read.

    Raises
    ------
    InvalidInputError
    """
    if scheme in _LOCAL:
        if os.name != "nt" and _WINDOWS.match(path):
            raise InvalidInputError(f"{url!r} is a Windows path, but this system is not Windows")
        path = os.path.abspath(path).replace("\\", "/").lstrip("/")
    elif scheme in _WEB:
        path = unquote(re.split("[?#]", path)[0])
    try:
        check_key(path)
    except InvalidInputError as exc:
        raise InvalidInputError(f"{url!r} cannot be read: {exc}") from None


def fsspec_url(location: str) -> str:
    """Return a location, as Icechunk stores it, in the form that fsspec opens."""
    scheme, _, path = location.partition("://")
    if scheme in _WEB:
        return location
    return f"{scheme}://{unquote(path)}"
