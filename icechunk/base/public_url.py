"""Make URLs fit to be shown: no credentials are left in them. This is the one place for it.

By text alone, and never by a parser that could fail: what is to be shown is often what
somebody mistyped.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Final

from icechunk.base.visible import in_a_line

__all__ = ["is_secret", "public_fields", "public_text", "public_url", "url_credentials"]

_SCHEME: Final = re.compile(r"\A\s*[A-Za-z][A-Za-z0-9+.-]*://")
_SUFFIX: Final = re.compile(r"[?#]")
_END: Final = re.compile(r"[/?#\\]")
#: A host with or without a port, or the name of a bucket.
#: What follows is punctuation of the text that the URL stands in.
#: Nothing is given back: what strangers write may be long.
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.%a-z]*+\]|[^:@\[\]]*+)(?::[0-9]*+)?+[:;,.'\")}>\]]*+")
#: Up to the next blank: a password may hold any other character.
#: More of the scheme needs no look: it is shown as it is.
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}://\S+")
#: Parts of the names of options, headers and parameters whose values are secrets.
_SECRET: Final = re.compile(
    r"key(?!word)|token|secret|passw|pwd|auth(?!or\b|ors\b)|credential|cookie|signature|session"
    r"|jwt|bearer|api_?id|access_?id|policy|subscription|(?:\b|_)(?:sig|sas|pass|pw|access|code|ticket)(?:\b|_)"
)
_UNKNOWN: Final = "***"


def _split(url: str) -> tuple[str, str]:
    """Return what comes before the host, and the rest."""
    scheme = _SCHEME.match(url)
    return ("", url) if scheme is None else (scheme[0], url[scheme.end() :])


def _is_plain(authority: str, after: str) -> bool:
    """Whether a host is certainly not a user name and the beginning of a password."""
    if ":" in authority.partition("]")[2] + authority * ("[" not in authority) and "@" in after:
        return False
    return _HOST.fullmatch(authority) is not None


def public_url(url: str) -> str:
    """Return a URL in one line, without user, password, query and fragment.

    A password may hold characters that end the host elsewhere, so anything that might be a
    part of one is not shown.
    """
    return in_a_line(_place(url))


def _place(url: str) -> str:
    scheme, rest = _split(url)
    if not scheme and url.startswith(("/", ".", "~")):
        return url  # a path
    end = _END.search(rest)
    authority = rest if end is None else rest[: end.start()]
    if not _is_plain(authority, rest[len(authority) :]):
        _, at, rest = rest.rpartition("@")
        if not at:
            return f"{scheme}{_UNKNOWN}"
        before = url[len(scheme) : -len(rest) or None]
        if before.count("@") > 1 and _END.search(before):
            return f"{scheme}{_UNKNOWN}"
    elif not scheme and "@" in rest:
        rest = rest.rpartition("@")[2]
    cut = _SUFFIX.search(rest)
    return scheme + (rest if cut is None else rest[: cut.start()])


def public_text(text: object) -> str:
    """Return a text, such as that of an exception, with each URL in it made public."""
    return _URL.sub(lambda match: public_url(match[0]), str(text))


def public_fields(value: Any) -> str:
    """Return the ``repr`` of a dataclass whose texts are URLs and names of places."""
    shown = []
    for each in dataclasses.fields(value):
        field = getattr(value, each.name)
        if isinstance(field, str):
            field = _UNKNOWN if is_secret(each.name) else public_url(field)
        shown.append(f"{each.name}={field!r}")
    return f"{type(value).__qualname__}({', '.join(shown)})"


def is_secret(name: str) -> bool:
    """Whether an option, header or parameter of this name holds a secret."""
    return _SECRET.search(name.lower().replace("-", "_")) is not None


def url_credentials(url: str) -> str | None:
    """Return the kind of credentials that a URL carries, or None."""
    _, rest = _split(url)
    end = _END.search(rest)
    authority = rest if end is None else rest[: end.start()]
    if "@" in authority or (not _is_plain(authority, rest[len(authority) :]) and "@" in rest):
        return "a user or password"
    cut = _SUFFIX.search(rest)
    if cut is not None:
        for parameter in re.split(r"[?#&;]", rest[cut.start() :]):
            if is_secret(parameter.partition("=")[0]):
                return "a signature or key"
    return None
