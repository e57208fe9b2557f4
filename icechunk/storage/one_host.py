"""Keeping the clients of obstore at the host that they were made for.

They follow redirects, with every header that they were given, and there is no option that
says they must not. So what is for another host goes to a proxy that does not exist.
"""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import urlsplit

__all__ = ["leads_away", "staying_at"]

#: No service has this address. Errors name it.
_NOWHERE: Final = "0.0.0.0:0"
#: Services that send requests from one of their hosts to another.
_FAMILIES: Final = (".amazonaws.com", ".amazonaws.com.cn", ".hf.co")
#: What says that there is a proxy.
_PROXIES: Final = ("AWS_PROXY_URL", "GOOGLE_PROXY_URL", "AZURE_PROXY_URL")


def staying_at(endpoint: str, *others: str) -> dict[str, str]:
    """Return options of a client that let redirects lead to the host of a service only.

    Behind a proxy there are none: what is asked for there, the proxy decides.

    Parameters
    ----------
    endpoint : str
        The URL of the service.
    *others : str
        URLs of other services that the client asks, for credentials.
    """
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    proxied = parts.scheme in proxies or "all" in proxies
    if (proxied and not proxy_bypass(host)) or any(map(os.environ.get, _PROXIES)):
        return {}
    hosts = [urlsplit(url).hostname or "" for url in (endpoint, *others)]
    family = [name[1:] for name in _FAMILIES if host.endswith(name)]
    return {"proxy_url": f"http://{_NOWHERE}", "proxy_excludes": ",".join([*hosts, *family])}


def leads_away(error: BaseException) -> bool:
    """Whether a request failed because a redirect leads to another host."""
    return _NOWHERE in str(error)
