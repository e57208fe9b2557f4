"""Files of web servers, read through the storage that virtual chunks are read through.

What a server may do to a reader is bounded there: bodies without an end, answers that drip,
redirects to other servers. So is what is sent: headers of the user go to no other server.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast
from urllib.parse import urlsplit

from icechunk import InvalidInputError
from icechunk.storage.guarded_http import GuardedHttp, web_parts
from icechunk.storage.option_names import in_our_words
from icechunk.virtual.locations import (
    container_prefix,
    cut_suffix,
    key_below,
    normalize_location,
)
from icechunk_dask.archives.range_files import AHEAD, RangeFile

__all__ = ["WebFiles", "is_web"]

#: Options for the requests, as `icechunk.http_storage` has them.
_REQUESTS: Final = (
    "timeout",
    "connect_timeout",
    "read_timeout",
    "user_agent",
    "allow_http",
    "allow_invalid_certificates",
)
#: Of object stores: one mapping may be for the repository and the files alike.
_OTHERS: Final = frozenset(
    ("key", "secret", "token", "anon", "endpoint_url", "asynchronous", "use_listings_cache")
)
#: How fsspec is to cache, and what it asks first: here there is one way.
_CACHING: Final = frozenset(
    ("cache_type", "cache_options", "size_policy", "simple_links", "same_scheme", "encoded")
)


def is_web(url: str) -> bool:
    """Whether a URL is that of a web server."""
    return url.lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class WebFiles:
    """The files of web servers, as `Source` uses a filesystem.

    Attributes
    ----------
    options : mapping
        ``headers``, ``bearer_token`` and the options of `icechunk.http_storage`;
        ``client_kwargs`` of fsspec, if it has headers or a user and password (``auth``);
        ``block_size``, how much is read at a time, in bytes. Those of object stores are
        left to these.
    prefixes : tuple of str
        Of URLs, below which redirects may lead.
    """

    options: Mapping[str, Any]
    prefixes: tuple[str, ...] = ()

    def open(self, url: str, mode: str = "rb") -> BinaryIO:
        """Open a file with one request, which has its beginning.

        Raises
        ------
        StorageError
            If there is none, or the server does not say how large it is.
        """
        storage, key = self._place(url)
        ahead = int(self.options.get("block_size") or AHEAD)
        found = storage.start(key, ahead)
        data = bytes(found.data)
        if found.size is None or (not found.has_ranges and len(data) < found.size):
            # it is sent whole or not at all
            data = bytes(storage.get(key, if_match=found.etag).data)
        size = found.size if found.has_ranges and found.size is not None else len(data)
        file = RangeFile(storage, key, size, found.etag, ahead=ahead, start=data)
        return cast(BinaryIO, file)

    def info(self, url: str) -> dict[str, Any]:
        """Return what tells versions of a file apart."""
        storage, key = self._place(url)
        found = storage.head(key)
        return {"size": found.size, "ETag": found.etag, "LastModified": found.last_modified}

    def ls(self, url: str, detail: bool = True) -> list[dict[str, Any]]:
        """Return nothing: web servers have no listings that say anything about versions."""
        return []

    def _place(self, url: str) -> tuple[GuardedHttp, str]:
        # as references to the file are going to be read
        parts = urlsplit(url.partition("#")[0])
        query = f"?{parts.query}" if parts.query else ""
        root = f"{parts.scheme}://{parts.netloc}/{query}"
        web_parts(root)
        options, headers = _requests(self.options)
        key = key_below(url, parts.path.lstrip("/"))
        return _server(root, tuple(options.items()), tuple(headers.items()), self.prefixes), key


@functools.lru_cache(16)
def _server(
    root: str,
    options: tuple[tuple[str, str], ...],
    headers: tuple[tuple[str, str], ...],
    prefixes: tuple[str, ...],
) -> GuardedHttp:
    # it keeps connections
    may_follow = functools.partial(_is_below, prefixes)
    return GuardedHttp(root, dict(options), dict(headers), may_follow)


def _is_below(prefixes: tuple[str, ...], url: str) -> bool:
    try:
        path, _ = cut_suffix(normalize_location(url))
        for prefix in filter(is_web, prefixes):
            root = container_prefix(prefix)
            if path.startswith(root):
                return bool(key_below(url, path[len(root) :]))
    except InvalidInputError:
        pass
    return False


def _requests(options: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the options and headers of requests.

    Raises
    ------
    InvalidInputError
        If there is an option that nobody knows.
    """
    given = in_our_words("http", options)
    client = dict(given.pop("client_kwargs", None) or {})
    headers = {**(client.pop("headers", None) or {}), **(given.pop("headers", None) or {})}
    auth = given.pop("auth", None) or client.pop("auth", None)
    if auth is not None:
        # of aiohttp, whose class knows how to write it
        headers.setdefault("Authorization", auth.encode())
    client.pop("region_name", None)
    client.pop("endpoint_url", None)
    client.pop("trust_env", None)
    found = {name: str(given.pop(name)) for name in _REQUESTS if given.get(name) is not None}
    given.pop("block_size", None)
    unknown = sorted({*client, *(name for name in given if name not in _OTHERS | _CACHING)})
    if unknown:
        raise InvalidInputError(
            f"files of a web server have no option {', '.join(unknown)}: they have headers, "
            f"bearer_token, block_size, {', '.join(_REQUESTS)}"
        )
    return found, headers
