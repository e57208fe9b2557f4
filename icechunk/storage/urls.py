"""URLs to storages."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urljoin

from icechunk._version import user_agent
from icechunk.base.near import meant
from icechunk.base.public_url import public_url, url_credentials
from icechunk.base.texts import article
from icechunk.config import S3Options
from icechunk.config.credentials import azure_credentials, gcs_credentials, s3_credentials
from icechunk.errors import ErrorKind, InvalidInputError, StorageError
from icechunk.storage import from_config
from icechunk.storage.allowance import Allowance
from icechunk.storage.base import Storage
from icechunk.storage.constructors import http_storage, r2_storage, s3_storage, tigris_storage
from icechunk.storage.local import LocalStorage
from icechunk.storage.memory import MemoryStorage
from icechunk.storage.object_store import ObjectStorage
from icechunk.storage.option_names import in_our_words
from icechunk.storage.place_names import check_endpoint, check_name, clean_prefix
from icechunk.storage.reach import WEB_SCHEME, Reach
from icechunk.storage.version_urls import version_url
from icechunk.storage.web_urls import web_parts

_MAX_REDIRECTS: Final = 10
_INWARDS: Final = "it leads into this machine or a private network"
_REDIRECT_TIMEOUT: Final = 30


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


_HEADERS: Final = frozenset({"headers", "read_headers", "write_headers"})
_S3_OPTIONS: Final = frozenset(f.name for f in dataclasses.fields(S3Options))
_S3_KEYS: Final = _parameters(s3_credentials)
_GCS_KEYS: Final = _parameters(gcs_credentials)
_AZURE_KEYS: Final = _parameters(azure_credentials)

Options = dict[str, Any]


def option_names() -> frozenset[str]:
    """Return the names of options of storages, as errors advise them."""
    services: list[Callable[..., Any]] = [s3_storage, r2_storage, tigris_storage, http_storage]
    names = map(_parameters, services)
    return frozenset({"account"}).union(_S3_OPTIONS, _GCS_KEYS, _AZURE_KEYS, *names)


def known_options(url: str) -> Iterable[str]:
    """Return the options that the storage of a URL or path knows."""
    scheme, found, _ = url.partition("://")
    known = _SCHEMES[scheme.lower()][1] if found and scheme.lower() in _SCHEMES else _NONE
    return {*known, "bearer_token"} if scheme.lower().startswith("http") else known


def _credentials(function: Callable[..., Any], names: frozenset[str], options: Options) -> Any:
    """Return credentials given as an object, or as arguments of the function that makes one."""
    given = {name: options.pop(name) for name in sorted(names & options.keys())}
    made = options.pop("credentials", None)
    if made is None:
        return function(**given)
    if given:
        raise InvalidInputError(
            f"pass credentials or {', '.join(given)}, not both", ErrorKind.INVALID_CREDENTIALS
        )
    return made


def _headers(options: Options) -> Options:
    names = ("headers", "read_headers", "write_headers")
    return {name: options.pop(name) for name in names if name in options}


def _bucket(rest: str) -> tuple[str, str]:
    bucket, _, prefix = rest.partition("/")
    return bucket, prefix


def _s3(rest: str, options: Options) -> Storage:
    bucket, prefix = _bucket(rest)
    anonymous = bool(options.get("anonymous"))
    credentials = _credentials(s3_credentials, _S3_KEYS, options)
    headers = _headers(options)
    config = S3Options(anonymous=anonymous, **options)
    return from_config.s3(config, bucket, prefix, credentials, **headers)


def _gcs(rest: str, options: Options) -> Storage:
    bucket, prefix = _bucket(rest)
    credentials = _credentials(gcs_credentials, _GCS_KEYS, options)
    headers = _headers(options)
    config = options.get("config")
    return from_config.gcs(bucket, prefix, credentials, config=config, **headers)


def _azure(rest: str, options: Options) -> Storage:
    container, prefix = _bucket(rest)
    account = options.pop("account", None)
    container, at, host = container.partition("@")
    if at:
        # abfs://container@account.dfs.core.windows.net/prefix
        account = host.partition(".")[0]
    credentials = _credentials(azure_credentials, _AZURE_KEYS, options)
    return from_config.azure_blob(account, container, prefix, credentials, **options)


def _r2(rest: str, options: Options) -> Storage:
    bucket, prefix = _bucket(rest)
    return r2_storage(bucket=bucket, prefix=prefix, **options)


def _tigris(rest: str, options: Options) -> Storage:
    bucket, prefix = _bucket(rest)
    return tigris_storage(bucket=bucket, prefix=prefix, **options)


def _file(rest: str, options: Options) -> Storage:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not path:
        raise InvalidInputError(
            f"{public_url(f'file://{rest}')}: expected file:///folder, with three slashes",
            ErrorKind.CANNOT_PARSE_URL,
        )
    text = unquote(slash + path)
    if os.name == "nt":
        text = text.lstrip("/")
    return LocalStorage(text)


def _memory(rest: str, options: Options) -> Storage:
    return MemoryStorage(rest)


def _http(scheme: str) -> Callable[[str, Options], Storage]:
    def make(rest: str, options: Options) -> Storage:
        return http_storage(f"{scheme}://{rest}", **options)

    return make


_S3_NAMES: Final = _S3_OPTIONS | _S3_KEYS | _HEADERS | {"credentials"}
_S3_ARGUMENTS: Final = _parameters(s3_storage) - {"bucket", "prefix"}
_GCS_NAMES: Final = _GCS_KEYS | _HEADERS | {"config", "credentials"}
_AZURE_NAMES: Final = _AZURE_KEYS | {"account", "config", "credentials"}
_HTTP_NAMES: Final = _parameters(http_storage) - {"base_url"}
_NONE: Final[frozenset[str]] = frozenset()

#: By scheme: the function that makes the storage, and the options that it knows.
_SCHEMES: Final[Mapping[str, tuple[Callable[[str, Options], Storage], Iterable[str]]]] = {
    "s3": (_s3, _S3_NAMES),
    "r2": (_r2, _S3_ARGUMENTS | {"account_id"}),
    "tigris": (_tigris, _S3_ARGUMENTS | {"use_weak_consistency"}),
    "gs": (_gcs, _GCS_NAMES),
    "gcs": (_gcs, _GCS_NAMES),
    "az": (_azure, _AZURE_NAMES),
    "azure": (_azure, _AZURE_NAMES),
    "abfs": (_azure, _AZURE_NAMES),
    "abfss": (_azure, _AZURE_NAMES),
    "http": (_http("http"), _HTTP_NAMES),
    "https": (_http("https"), _HTTP_NAMES),
    "http+icechunk": (_http("http"), _HTTP_NAMES),
    "https+icechunk": (_http("https"), _HTTP_NAMES),
    "file": (_file, _NONE),
    "memory": (_memory, _NONE),
}
#: Where a redirect may lead: it comes from outside, so never into this machine.
_REDIRECT_SCHEMES: Final = ("s3", "r2", "tigris", "gs", "gcs", "http+icechunk", "https+icechunk")
#: Options that a redirect may give, as the query of its URL.
_REDIRECT_OPTIONS: Final = ("region", "endpoint_url", "account_id")


#: Anything that names a place: a storage, a URL, or a path.
AnyStorage: TypeAlias = Storage | str | os.PathLike[str]


def as_storage(storage: AnyStorage) -> Storage:
    """Return the storage for anything that names one.

    Raises
    ------
    InvalidInputError
        If it is neither a storage nor a URL or path.
    """
    if isinstance(storage, Storage):
        return storage
    if isinstance(storage, str | os.PathLike):
        return storage_from_url(os.fspath(storage))
    convert: Callable[[], Storage] | None = getattr(storage, "storage", None)
    if callable(convert):
        return convert()
    raise InvalidInputError(
        f"{article(storage)} is not a storage: pass a Storage, a URL such as "
        "'s3://bucket/prefix', or a path",
        ErrorKind.STORAGE_CONFIG,
    )


def storage_from_url(url: str | os.PathLike[str], **options: Any) -> Storage:
    """Return the storage for a URL or a path.

    Parameters
    ----------
    url : str or path-like
        ``s3://bucket/prefix``, ``gs://`` or ``gcs://``, ``az://container/prefix`` (also
        ``azure``, ``abfs``), ``r2://``, ``tigris://``, ``https://host/folder`` (read
        only), ``file:///folder``, ``memory://name``, or a path, which may begin with ``~``.
        Buckets, containers and
        prefixes are taken literally, without percent-decoding. ``|icechunk:`` may stand at
        the end, but no version after it (see `icechunk.storage.version_url`).
    **options
        What the scheme needs: the arguments of `s3_storage` and its siblings, such as
        ``region``, ``endpoint_url``, ``allow_http``, ``anonymous`` or ``account``; or
        ``credentials``, an object of `icechunk.credentials`. The names that fsspec has for
        them (``key``, ``secret``, ``token``, ``anon``, ``client_kwargs``, ``account_name``)
        are understood, too. Web servers take ``headers`` and ``bearer_token``.

    Raises
    ------
    InvalidInputError
        If the scheme or an option is unknown, a part of the URL is missing, or it names a
        version.

    Examples
    --------
    >>> storage = icechunk.storage_from_url("s3://data/weather", region="us-east-1", anonymous=True)
    """
    text = os.fspath(url)
    named = version_url(text)
    if named is not None:
        text = named.storage
        if named.ref is not None or named.path:
            what = " and ".join(
                filter(
                    None,
                    (
                        named.ref and f"the version {named.ref}",
                        named.path and f"the node {named.path!r}",
                    ),
                )
            )
            raise InvalidInputError(
                f"this URL names {what} in {public_url(text)}, but a storage is needed here: leave "
                "out what follows |icechunk:, and pass it as ref= or path where one is taken; "
                "xarray.open_dataset(url, engine='icechunk') takes all of it",
                ErrorKind.CANNOT_PARSE_URL,
            )
    scheme, found, rest = text.partition("://")
    if not found:
        scheme = text.partition(":")[0].lower()
        # a folder of that name is the less likely meaning, and can be written ./s3:folder
        if ":" in text and scheme in _SCHEMES:
            raise InvalidInputError(
                f"{text!r} lacks the slashes of a URL: write {scheme}://... for a storage, or "
                f"./{text} for a folder of that name",
                ErrorKind.CANNOT_PARSE_URL,
            )
        _refuse_unknown("a path", options, _NONE)
        # as xarray and shells read it; ./~ is a folder of that name
        return LocalStorage(os.path.expanduser(text))
    return _make(scheme.lower(), rest, options)


def _make(scheme: str, rest: str, options: Options) -> Storage:
    if scheme not in _SCHEMES:
        raise InvalidInputError(
            f"{scheme}:// is not the scheme of a storage: expected a path or one of "
            f"{', '.join(f'{s}://' for s in _SCHEMES)}",
            ErrorKind.CANNOT_PARSE_URL,
        )
    _check_credentials(scheme, rest)
    make, known = _SCHEMES[scheme]
    options = in_our_words(scheme, options)
    _refuse_unknown(f"{scheme}://", options, known)
    return make(rest, options)


def _check_credentials(scheme: str, rest: str) -> None:
    """Refuse keys in a URL, which is displayed. Web servers may have passwords there."""
    if scheme in _LITERAL or (scheme in _AZURE_HOSTS and _AZURE_HOST.match(rest)):
        return
    url = f"{scheme}://{rest}"
    found = url_credentials(url)
    if found is not None:
        raise InvalidInputError(
            f"{public_url(url)!r} was passed with {found}, which has no place in the URL of a "
            "storage: pass credentials as arguments",
            ErrorKind.CANNOT_PARSE_URL,
        )


_LITERAL: Final = ("file", "memory", "http", "https", "http+icechunk", "https+icechunk")
_AZURE_HOSTS: Final = ("abfs", "abfss", "az", "azure")
#: ``container@account.host/...``
_AZURE_HOST: Final = re.compile(r"[a-z0-9$-]+@[A-Za-z0-9.-]+(?:/[^?#]*)?\Z")


def _refuse_unknown(what: str, options: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InvalidInputError(
            f"{what} has no option {', '.join(unknown)}; it knows "
            f"{', '.join(sorted(known)) or 'none'}{meant(unknown[0], known)}",
            ErrorKind.STORAGE_CONFIG,
        )


def redirect_storage(base_url: str) -> Storage:
    """Return the storage that a web server redirects to. It can only be read.

    The redirects are followed now, until one leads to the URL of a storage, such as
    ``s3://bucket/prefix?region=...`` or ``https+icechunk://host/folder``. Requests there are
    not signed: credentials are not for whoever answers at a URL. Redirects do not lead from
    https to http, nor from a public address to this machine or a private network. A bucket
    with an ``endpoint_url`` is read like the files of a web server, without listings.

    Parameters
    ----------
    base_url : str
        An ``http://`` or ``https://`` URL.

    Raises
    ------
    InvalidInputError
        If it is another URL.
    StorageError
        If no storage is reached.

    Examples
    --------
    >>> storage = icechunk.redirect_storage("https://data.example.org/newest")  # doctest: +SKIP
    """
    current = base_url
    reach = Reach(base_url)
    for _ in range(_MAX_REDIRECTS):
        location = _location(current, base_url, reach)
        scheme, _, rest = location.partition("://")
        options = dict(parse_qsl(rest.partition("?")[2])) if scheme in _REDIRECT_SCHEMES else {}
        for target in (location, options.get("endpoint_url", "")):
            _check_hop(base_url, target, reach)
        if scheme in _REDIRECT_SCHEMES:
            try:
                return _redirected(scheme, rest, reach)
            except InvalidInputError as error:
                raise _bad_redirect(base_url, str(error)) from None
        if scheme not in ("http", "https"):
            raise _bad_redirect(base_url, f"it leads to {scheme}://, which is not a storage")
        current = location
    raise _bad_redirect(base_url, f"more than {_MAX_REDIRECTS} redirects")


def _check_hop(start: str, target: str, reach: Reach) -> None:
    if start.startswith("https:") and target.startswith(("http:", "http+icechunk:")):
        raise _bad_redirect(start, "it leads from https to http")
    if WEB_SCHEME.match(target) and not reach(target):
        raise _bad_redirect(start, _INWARDS)


def _redirected(scheme: str, rest: str, reach: Reach) -> Storage:
    if scheme.endswith("+icechunk"):
        return _web(f"{scheme.removesuffix('+icechunk')}://{rest}", reach)
    rest, _, query = rest.partition("?")
    options: Options = {k: v for k, v in parse_qsl(query) if k in _REDIRECT_OPTIONS}
    endpoint = options.get("endpoint_url")
    if endpoint is not None:
        # who redirects chose that server, too; objects that everybody may read are its files,
        # and what it answers is bounded
        bucket, prefix = _bucket(rest)
        check_endpoint("endpoint_url", endpoint)
        check_name("bucket", bucket)
        return _web(f"{endpoint.rstrip('/')}/{quote(f'{bucket}/{clean_prefix(prefix)}')}", reach)
    if scheme == "tigris":
        options["use_weak_consistency"] = True
    storage = _make(scheme, rest, {**options, "anonymous": True})
    return storage.as_read_only() if isinstance(storage, ObjectStorage) else storage


def _web(url: str, reach: Reach) -> Storage:
    from icechunk.storage.guarded_http import GuardedHttp

    return GuardedHttp(url, may_follow=reach.only(url))


def _location(url: str, start: str, reach: Reach) -> str:
    """Return where a URL redirects to, as an absolute URL."""
    import http.client

    from icechunk.storage.bounded_body import TimedResponse

    try:
        parts = web_parts(url)
    except InvalidInputError:
        raise InvalidInputError(
            f"{public_url(url)!r} is not an http:// or https:// URL", ErrorKind.CANNOT_PARSE_URL
        ) from None
    secure = parts.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    allowance = Allowance(_REDIRECT_TIMEOUT, _REDIRECT_TIMEOUT, strict=True)
    failure = None
    try:
        connection = connect(parts.hostname or "", parts.port, timeout=_REDIRECT_TIMEOUT)
        connection.response_class = functools.partial(TimedResponse, allowance=allowance)  # type: ignore[assignment]
        try:
            path = parts.path or "/"
            target = f"{path}?{parts.query}" if parts.query else path
            connection.connect()
            if not reach.connected(url, connection.sock.getpeername()[0]):
                raise _bad_redirect(start, _INWARDS)
            connection.request("GET", target, headers={"user-agent": user_agent()})
            response = connection.getresponse()
        finally:
            connection.close()
    except OSError as error:
        failure = error.strerror or type(error).__name__
    except (http.client.HTTPException, ValueError) as error:
        # its text may show the query
        failure = type(error).__name__
    if failure is not None:
        raise _bad_redirect(url, failure)
    location = response.getheader("location")
    if not 300 <= response.status < 400 or not location:
        raise _bad_redirect(url, f"the server answered {response.status}, not a redirect")
    try:
        return urljoin(url, location)
    except ValueError:
        raise _bad_redirect(url, "it leads to something that is not a URL") from None


def _bad_redirect(url: str, reason: str) -> StorageError:
    return StorageError(
        f"{public_url(url)} does not lead to a storage: {reason}", ErrorKind.BAD_REDIRECT
    )
