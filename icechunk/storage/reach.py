"""Which servers the redirects of a server may lead to."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from typing import Final
from urllib.parse import urlsplit

__all__ = ["WEB_SCHEME", "Reach", "is_inside"]

#: How URLs of web servers begin, and those of repositories on them.
WEB_SCHEME: Final = re.compile(r"https?(?:\+icechunk)?://")
#: What resolvers take for an address, such as 127.1, 0x7f000001 and 2130706433.
_NUMBERS: Final = re.compile(r"[0-9.]+|0x[0-9a-f.x]+")
#: Dots of other scripts, which resolvers read as dots.
_DOTS: Final = str.maketrans("\u3002\uff0e\uff61", "...")
_INSIDE: Final = (".localhost", ".local", ".internal")
#: Addresses of IPv6 that end with one of IPv4, and stand for it.
_TRANSLATED: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
#: Services of clouds answer here, and not every release of Python knows that it is private.
_SPECIAL: Final = ipaddress.ip_network("192.0.0.0/24")


class Reach:
    """Anywhere, but not from the world into this machine or a private network.

    The names of servers are looked at before they are asked, and their addresses once they
    are connected: a name says nothing about the address that it stands for at this moment.

    Parameters
    ----------
    start : str
        The URL that the caller chose. If it is in a private network, everything is in reach.
    host : str, optional
        The only host that is in reach. Default: every one.

    Examples
    --------
    >>> reach = Reach("https://data.example.org/")
    >>> reach("https://mirror.example.org/x"), reach("http://169.254.169.254/latest/")
    (True, False)
    """

    def __init__(self, start: str, host: str | None = None) -> None:
        self._start = _host(start)
        self._host = host
        self._starts_inside = is_inside(start)

    def only(self, url: str) -> Reach:
        """Return the same, for one host."""
        reach = Reach(f"https://{self._start}", _host(url))
        reach._starts_inside = self._starts_inside
        return reach

    def __call__(self, url: str) -> bool:
        """Whether a redirect may lead to a URL."""
        if not WEB_SCHEME.match(url) or (self._host is not None and _host(url) != self._host):
            return False
        return self._starts_inside or not is_inside(url)

    def connected(self, url: str, address: str) -> bool:
        """Whether a request may be sent to the server of a URL, which has this address."""
        inside = _is_private(address)
        if _host(url) == self._start:
            self._starts_inside |= inside
        return self._starts_inside or not inside


def is_inside(url: str) -> bool:
    """Whether the host of a URL is an address of this machine or of a private network."""
    if not WEB_SCHEME.match(url):
        return False
    try:
        host = _host(url)
    except ValueError:
        return True
    if "." not in host and ":" not in host:
        # a number, or a name that is known here only
        return True
    if host.endswith(_INSIDE) or _NUMBERS.fullmatch(host):
        return _is_private(host)
    return ":" in host and _is_private(host)


def _host(url: str) -> str:
    host = unicodedata.normalize("NFKC", urlsplit(url).hostname or "")
    return host.translate(_DOTS).lower().rstrip(".")


def _is_private(address: str) -> bool:
    """Whether an address is one of this machine or of a private network, or none at all."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and any(found in network for network in _TRANSLATED):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is None:
            return not found.is_global
        found = inner
    return not found.is_global or found in _SPECIAL
