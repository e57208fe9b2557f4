"""The locations of virtual chunks, as text: which are equal, and which lie inside which prefix.

A location is an absolute URL, or ``vcc://<container name>/<key>`` (Icechunk spec, "Virtual
references").
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote

from icechunk.base.public_url import public_url, url_credentials
from icechunk.errors import ErrorKind, InvalidInputError

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
#: Characters that URL parsers drop around and within a URL.
_AROUND: Final = "".join(map(chr, range(0x21)))
_WITHIN: Final = dict.fromkeys(map(ord, "\t\n\r"))
#: Printable ASCII that is not encoded in the path of a ``file`` URL.
_PATH_SAFE: Final = "".join(c for c in map(chr, range(0x21, 0x7F)) if c not in '"#<>?^`{}')
_PLAIN_FILE: Final = re.compile(r"file:///[A-Za-z0-9/._~!$&'()*+,;=:@|\[\]-]*")
_SUFFIX: Final = re.compile(r"[?#]")
#: The beginning of a location that names its container.
BY_NAME: Final = "vcc://"
#: A segment that some reader takes for ``.`` or ``..``. Some fold wide full stops.
_DOTS: Final = re.compile(
    r"(?:^|[/\\])[\x00-\x20\x7f]*(?:[.\uff0e][\x00-\x20\x7f]*){1,2}(?:[;/\\]|$)"
)
#: Invalid UTF-8 forms of a full stop and a slash, known from attacks.
_OVERLONG: Final = ("\udcc0\udcae", "."), ("\udcc0\udcaf", "/"), ("\udcc1\udc9c", "\\")
_MAX_DECODINGS: Final = 8
_DOT: Final = re.compile(r"(?:\.|%2e)", re.IGNORECASE)


def invalid_location(location: object, problem: str) -> InvalidInputError:
    """Return the error for an invalid location. `problem` begins with a verb."""
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
            location, "is not an absolute URL; the URL of a file begins with 'file:///'"
        )
    if _PLAIN_FILE.fullmatch(location) and "/." not in location:
        return location  # most are like this, and there may be millions of them
    scheme = found[1].lower()
    rest = location[found.end() :]
    if scheme == "file":
        return "file://" + _normalize_file(location, rest.rstrip(_AROUND).translate(_WITHIN))
    if not rest.startswith("//"):
        raise invalid_location(
            location, f"is not an absolute URL; it must begin with '{scheme}://'"
        )
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
    # a path that ends with dots is a folder, and keeps a folder's slash
    segments.append("" if dots in (".", "..") else last)
    return "/" + quote("/".join(segments), safe=_PATH_SAFE) + suffix


def cut_suffix(text: str) -> tuple[str, str]:
    """Split at the first ``?`` or ``#``: what follows is not part of a path."""
    end = _SUFFIX.search(text)
    return (text, "") if end is None else (text[: end.start()], text[end.start() :])


def stored_location(location: str) -> str:
    """Return the form in which a new location is stored.

    Everybody who can read the repository sees what is stored, for ever, so a location carries
    no credentials. Locations that other clients stored with credentials are read as they are.

    Raises
    ------
    InvalidInputError
        As `normalize_location`, and if the location has a user, a password, a signature or
        a key. The message does not repeat it.
    """
    normal = normalize_location(location)
    if "@" in normal or "?" in normal or "#" in normal:
        found = url_credentials(normal)
        if found is not None:
            raise invalid_location(
                location,
                f"carries {found}, which everybody who can read the repository would see: leave "
                "it out, and pass credentials in authorize_virtual_chunk_access",
            )
    return normal


def container_prefix(url_prefix: str) -> str:
    """Return the normal form of a container's prefix, which ends with a slash.

    Raises
    ------
    InvalidInputError
        If it is no absolute URL, has ``.`` or ``..`` among its segments in any encoding, or
        anything that follows its path.
    """
    prefix = normalize_location(url_prefix)
    path, suffix = cut_suffix(prefix)
    if suffix:
        raise invalid_location(url_prefix, "has more than a path, and cannot be a prefix")
    check_segments(url_prefix, path.partition("://")[2])
    return prefix if prefix.endswith("/") else prefix + "/"


def shown(location: str) -> str:
    """Return a location without user and password, and without what follows its path."""
    return public_url(location)


def check_segments(location: str, encoded: str) -> None:
    """Refuse a path that any server could take for a way up, however it reads it.

    The path is decoded as long as there is something to decode, because some servers do it
    twice. A backslash counts as a separator. Parameters behind ``;`` are removed, and so are
    control characters and blanks, which some servers drop.

    Raises
    ------
    InvalidInputError
        If a segment is ``.`` or ``..``.
    """
    path = encoded
    for _ in range(_MAX_DECODINGS):
        if _DOTS.search(path):
            raise invalid_location(location, "has '.' or '..' among its segments")
        if "%" not in path:
            return
        decoded = unquote(path, errors="surrogateescape")
        for form, meaning in _OVERLONG:
            decoded = decoded.replace(form, meaning)
        if decoded == path:
            return
        path = decoded
    raise invalid_location(location, "is percent-encoded again and again")


def key_below(location: str, encoded: str) -> str:
    """Return the key for the rest of a path, after checking that it only leads down."""
    check_segments(location, encoded)
    key = unquote(encoded, errors="surrogateescape") if "%" in encoded else encoded
    if not key or key.endswith("/"):
        raise invalid_location(location, "names no file")
    return key
