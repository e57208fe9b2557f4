"""The locations of virtual chunks, as text: what is equal, what lies inside of what.

A location is an absolute URL, or ``vcc://<container name>/<key>`` (Icechunk spec, "Virtual
references").
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote

from icechunk.errors import ErrorKind, InvalidInputError

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
#: What URL parsers drop from around and within a URL.
_AROUND: Final = "".join(map(chr, range(0x21)))
_WITHIN: Final = dict.fromkeys(map(ord, "\t\n\r"))
#: Printable ASCII that stays as it is in the path of a ``file`` URL.
_PATH_SAFE: Final = "".join(c for c in map(chr, range(0x21, 0x7F)) if c not in '"#<>?^`{}')
_PLAIN_FILE: Final = re.compile(r"file:///[A-Za-z0-9/._~!$&'()*+,;=:@|\[\]-]*")
_SUFFIX: Final = re.compile(r"[?#]")
#: Begins a location that names its container.
BY_NAME: Final = "vcc://"
_DOT: Final = re.compile(r"(?:\.|%2e)", re.IGNORECASE)


def invalid_location(location: object, problem: str) -> InvalidInputError:
    """Return the error for a location that cannot be one; `problem` begins with a verb."""
    visible = shown(location) if isinstance(location, str) else location
    return InvalidInputError(
        f"the virtual chunk location {visible!r} {problem}", ErrorKind.INVALID_VIRTUAL_REF
    )


def normalize_location(location: str) -> str:
    """Return the form in which a location is compared and stored.

    The scheme is lower-cased. The rest stays as it is, except for ``file`` URLs, which
    are normalised as URL parsers do: no host, no ``.`` and ``..``, percent-encoding.

    Raises
    ------
    InvalidInputError
        If it is no absolute URL, or a ``file`` URL on another host.
    """
    found = _SCHEME.match(location) if isinstance(location, str) else None
    if found is None:
        raise invalid_location(
            location, "is no absolute URL; that of a file begins with 'file:///'"
        )
    if _PLAIN_FILE.fullmatch(location) and "/." not in location:
        return location  # most are like this, and there may be millions
    scheme = found[1].lower()
    rest = location[found.end() :]
    if scheme == "file":
        return "file://" + _normalize_file(location, rest.rstrip(_AROUND).translate(_WITHIN))
    if not rest.startswith("//"):
        raise invalid_location(location, f"is no absolute URL; it must begin with '{scheme}://'")
    return f"{scheme}:{rest}"


def _normalize_file(location: str, rest: str) -> str:
    path, suffix = cut_suffix(rest)
    path = path.replace("\\", "/")
    if path.startswith("//"):
        host, _, path = path[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise invalid_location(location, f"is on another host, {host!r}")
    else:
        path = path.removeprefix("/")
    segments: list[str] = []
    *folders, last = path.split("/")
    for segment in folders:
        dots = _DOT.sub(".", segment)
        if dots == "..":
            del segments[-1:]
        elif dots != ".":
            segments.append(segment)
    dots = _DOT.sub(".", last)
    if dots == "..":
        del segments[-1:]
    # what ends with dots is a folder, and keeps the slash of one
    segments.append("" if dots in (".", "..") else last)
    return "/" + quote("/".join(segments), safe=_PATH_SAFE) + suffix


def cut_suffix(text: str) -> tuple[str, str]:
    """Split at the first ``?`` or ``#``, which begin what is not part of a path."""
    end = _SUFFIX.search(text)
    return (text, "") if end is None else (text[: end.start()], text[end.start() :])


def container_prefix(url_prefix: str) -> str:
    """Return the normal form of a container's prefix, which ends with a slash."""
    prefix = normalize_location(url_prefix)
    return prefix if prefix.endswith("/") else prefix + "/"


def shown(location: str) -> str:
    """Return a location without what follows its path: signed URLs carry secrets there."""
    return cut_suffix(location)[0]


def key_below(location: str, encoded: str) -> str:
    """Return the key for the rest of a path, after checking that it goes down only."""
    key = unquote(encoded, errors="surrogateescape") if "%" in encoded else encoded
    if not key or key.endswith("/"):
        raise invalid_location(location, "names no file")
    # a backslash separates segments for some servers, and on some systems
    unix = key.replace("\\", "/")
    if (unix[0] == "." or "/." in unix) and not {".", ".."}.isdisjoint(unix.split("/")):
        raise invalid_location(location, "has '.' or '..' among its segments")
    return key
