"""Files at URLs that the caller names, read through the storage that chunks are read through.

What a server may do to a reader is bounded there: bodies without an end, answers that drip,
redirects to other servers, listings without an end. So is what is sent: headers and keys of
the caller go to no other server.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

from icechunk.base.public_url import public_url
from icechunk.config import StorageConcurrencySettings, StorageSettings
from icechunk.errors import ErrorKind, InvalidInputError, StorageError
from icechunk.storage.base import ObjectMeta, Storage
from icechunk.storage.guarded_http import GuardedHttp
from icechunk.storage.object_store import ObjectStorage
from icechunk.storage.option_names import for_storage, in_our_words
from icechunk.storage.reach import Reach
from icechunk.storage.urls import storage_from_url
from icechunk.storage.web_urls import web_parts
from icechunk.virtual.locations import (
    container_prefix,
    cut_suffix,
    key_below,
    normalize_location,
)

__all__ = ["Found", "OutsideFiles", "is_outside", "is_web", "requests"]

#: Services that are read, by the schemes of their URLs; s3a is a word of Hadoop.
_BUCKETS: Final = {
    **{scheme: scheme for scheme in ("s3", "gs", "gcs", "az", "azure", "abfs", "abfss", "tigris")},
    "s3a": "s3",
}
#: Options for requests to web servers, as `icechunk.http_storage` has them.
_REQUESTS: Final = (
    "timeout",
    "connect_timeout",
    "read_timeout",
    "user_agent",
    "allow_http",
    "allow_invalid_certificates",
)
#: Of object stores: one mapping may be for the repository and the files alike.
_OF_BUCKETS: Final = frozenset(
    (
        "key",
        "secret",
        "token",
        "anon",
        "access_key_id",
        "secret_access_key",
        "session_token",
        "anonymous",
        "from_env",
        "region",
        "endpoint_url",
        "force_path_style",
        "s3_compatible",
    )
)
#: How fsspec is to cache and to wait, and what it asks first: here there is one way.
_CACHING: Final = frozenset(
    (
        "asynchronous",
        "block_size",
        "cache_options",
        "cache_regions",
        "cache_type",
        "default_block_size",
        "default_cache_type",
        "default_fill_cache",
        "encoded",
        "listings_expiry_time",
        "loop",
        "max_paths",
        "same_scheme",
        "simple_links",
        "size_policy",
        "skip_instance_cache",
        "use_listings_cache",
    )
)
#: A read is of a range that is wanted as it is.
_SINGLE: Final = StorageSettings(
    concurrency=StorageConcurrencySettings(max_concurrent_requests_for_object=1)
)


def is_web(url: str) -> bool:
    """Whether a URL is that of a web server."""
    return url.lower().startswith(("http://", "https://"))


def is_outside(url: str) -> bool:
    """Whether a URL is that of a web server or in an object store."""
    return is_web(url) or _scheme(url) in _BUCKETS


def _scheme(url: str) -> str:
    scheme, found, _ = url.partition("://")
    return scheme.lower() if found else ""


@dataclass(frozen=True)
class Found:
    """What a service says of a file.

    Attributes
    ----------
    size : int or None
        In bytes, None if it does not say.
    etag : str or None
    last_modified : datetime or None
    data : bytes
        The beginning of the file, if it came along.
    """

    size: int | None
    etag: str | None
    last_modified: datetime | None
    data: bytes = b""


class OutsideFiles:
    """Files of web servers and object stores, each found by its URL.

    Parameters
    ----------
    options : mapping
        Of the services, in the words of `icechunk.storage_from_url` or of fsspec. For web
        servers ``headers``, ``bearer_token`` and the options of `icechunk.http_storage`;
        ``client_kwargs`` of fsspec, if it has headers or a user and password (``auth``).
        What says how to cache is left out.
    prefixes : sequence of str, optional
        Of URLs, below which redirects of web servers may lead. Default: to every server, but
        not from the world into a private network.
    """

    def __init__(self, options: Mapping[str, Any], prefixes: tuple[str, ...] | None = None) -> None:
        self.options = options
        self._prefixes = prefixes

    def __repr__(self) -> str:
        # the options may hold secrets
        return "OutsideFiles()"

    @property
    def block_size(self) -> int | None:
        """How much is to be read at a time, in bytes, if the options say that."""
        size = self.options.get("block_size") or self.options.get("default_block_size")
        return None if size is None else int(size)

    def check(self, url: str) -> None:
        """Check that files of this kind are read.

        Raises
        ------
        InvalidInputError
            If they are not.
        """
        if not is_outside(url):
            raise InvalidInputError(
                f"{public_url(url)}: files are read of this machine, of web servers, and of the "
                f"object stores {', '.join(f'{name}://' for name in _BUCKETS)}",
                ErrorKind.CANNOT_PARSE_URL,
            )

    def place(self, url: str) -> tuple[Storage, str]:
        """Return the storage that a file is in, and its key there.

        Raises
        ------
        InvalidInputError
            If files of this kind are not read, the URL is none of a file, or an option is
            not known.
        """
        if is_web(url):
            parts = urlsplit(url.partition("#")[0])
            query = f"?{parts.query}" if parts.query else ""
            root = f"{parts.scheme}://{parts.netloc}/{query}"
            web_parts(root)
            options, headers = requests(self.options)
            key = key_below(url, parts.path.lstrip("/"))
            server = _server(root, (*options.items(),), (*headers.items(),), self._prefixes)
            return server, key
        self.check(url)
        scheme = _scheme(url)
        bucket, _, key = url.partition("://")[2].partition("/")
        root = f"{_BUCKETS[scheme]}://{bucket}"
        items = tuple(sorted(_of_bucket(_BUCKETS[scheme], self.options).items()))
        try:
            hash(items)
        except TypeError:
            return _made(root, items), key
        return _bucket(root, items), key

    def head(self, url: str) -> Found:
        """Return what a service says of a file.

        Raises
        ------
        StorageError
            If there is none, or no answer.
        """
        storage, key = self.place(url)
        if isinstance(storage, GuardedHttp):
            web = storage.head(key)
            return Found(web.size, web.etag, web.last_modified)
        assert isinstance(storage, ObjectStorage)
        return _found(storage.head(key))

    def start(self, url: str, size: int) -> Found:
        """Return what a service says of a file, and its beginning where that costs nothing.

        Web servers give it along with what they say, and some have only the whole file.

        Raises
        ------
        StorageError
            As `head`.
        """
        storage, key = self.place(url)
        if not isinstance(storage, GuardedHttp):
            return self.head(url)
        web = storage.start(key, size)
        data = bytes(web.data)
        if web.size is None or (not web.has_ranges and len(data) < web.size):
            # it is sent whole or not at all
            data = bytes(storage.get(key, if_match=web.etag).data)
        whole = web.size if web.has_ranges and web.size is not None else len(data)
        return Found(whole, web.etag, web.last_modified, data)

    def read(self, url: str, limit: int) -> bytes:
        """Return a whole file.

        Raises
        ------
        StorageError
            As `head`; also if it is larger than `limit`, in bytes.
        """
        storage, key = self.place(url)
        # one byte more shows that there is more
        data = storage.get(key, byte_range=(0, limit + 1)).data
        if len(data) > limit:
            raise too_large(url, limit)
        return bytes(data)

    def listed(self, folder: str, limit: int) -> list[tuple[str, Found]] | None:
        """Return the URLs of all files below a folder; None where services have no listings.

        Raises
        ------
        StorageError
            As `head`; also if there are more than `limit`.
        """
        if is_web(folder):
            return None
        storage, key = self.place(folder)
        assert isinstance(storage, ObjectStorage)
        root = folder.removesuffix(key)
        prefix = f"{key.rstrip('/')}/" if key else ""
        return [(root + meta.key, _found(meta)) for meta in storage.list_up_to(limit, prefix)]


def too_large(url: str, limit: int) -> StorageError:
    """Return the error for a file that is not read."""
    return StorageError(f"{public_url(url)} has more than {limit} bytes", ErrorKind.IO)


def _found(meta: ObjectMeta) -> Found:
    # a generation that Google adds is no part of an etag
    etag = None if meta.etag is None else meta.etag.partition("#")[0]
    return Found(meta.size, etag, meta.last_modified)


@functools.lru_cache(16)
def _server(
    root: str,
    options: tuple[tuple[str, str], ...],
    headers: tuple[tuple[str, str], ...],
    prefixes: tuple[str, ...] | None,
) -> GuardedHttp:
    # it keeps connections
    may_follow: Callable[[str], bool] = Reach(root)
    if prefixes is not None:
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


def _made(root: str, options: tuple[tuple[str, Any], ...]) -> Storage:
    return storage_from_url(root, **dict(options)).with_settings(_SINGLE)


_bucket = functools.lru_cache(16)(_made)


def _of_bucket(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a bucket, without those that say how to cache."""
    given = for_storage(f"{scheme}://", options)
    return {name: value for name, value in given.items() if name not in _CACHING}


def requests(options: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the options and headers of requests to a web server.

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
    unknown = sorted({*client, *(name for name in given if name not in _OF_BUCKETS | _CACHING)})
    if unknown:
        raise InvalidInputError(
            f"files of a web server have no option {', '.join(unknown)}: they have headers, "
            f"bearer_token, block_size, {', '.join(_REQUESTS)}"
        )
    return found, headers
