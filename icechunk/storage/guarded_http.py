"""Files of a web server, with a guard on redirects.

The clients of object stores follow redirects wherever they lead, with the headers that the
user gave. Here every redirect is checked before it is followed, and the user's headers go
only to the server that they were meant for.
"""

from __future__ import annotations

import base64
import functools
import http.client
import math
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple, Unpack
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from icechunk._version import user_agent
from icechunk.base import deadline
from icechunk.base.public_url import public_url
from icechunk.base.texts import labelled
from icechunk.config import StorageSettings
from icechunk.errors import (
    ErrorKind,
    InvalidInputError,
    ObjectNotFoundError,
    StorageError,
)
from icechunk.storage.allowance import Allowance
from icechunk.storage.base import (
    ByteRange,
    BytesLike,
    GetResult,
    ObjectMeta,
    PutConditions,
    Storage,
    check_folder,
    check_key,
    check_range,
    check_version,
    refuse_write,
    same_version,
)
from icechunk.storage.bounded_body import TimedResponse, UnfitAnswerError, read_body
from icechunk.storage.headers import check_headers
from icechunk.storage.reach import Reach
from icechunk.storage.web_urls import is_web, web_parts

_MAX_REDIRECTS: Final = 10
_MAX_IDLE: Final = 32
#: Answers after which the same request may succeed.
_PASSING: Final = frozenset((408, 429, 500, 502, 503, 504))
_THROTTLED: Final = frozenset((429, 503))
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_DURATION: Final = re.compile(r"([0-9]+)\s*(ms|s|m)?(?:[a-z]*)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}
_FAILURES: Final = (OSError, http.client.HTTPException)
#: Printable ASCII, which is not encoded in a path or a query.
_PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F)))
_SIZE: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
#: In seconds, for a silent server, and for all tries of a request.
_PATIENCE: Final = 60.0
_OPERATION: Final = 180.0
#: Options whose value is a duration, and those that are true or false.
_DURATIONS: Final = ("timeout", "connect_timeout", "read_timeout")
_FLAGS: Final = ("allow_http", "allow_invalid_certificates")


class _Answer(NamedTuple):
    """What came back. `data` is the requested range, or a part of it."""

    status: int
    headers: http.client.HTTPMessage
    data: bytes


class WebFile(NamedTuple):
    """What a server says about a file.

    Attributes
    ----------
    size : int or None
        In bytes, None if it does not say.
    has_ranges : bool
        Whether it sent the range that was asked for, rather than the file.
    etag, last_modified : optional
        Of the version, if it has such.
    data : bytes
        The beginning of the file.
    """

    size: int | None
    has_ranges: bool
    etag: str | None
    last_modified: datetime | None
    data: bytes


class _Line(NamedTuple):
    """An open connection, to the server itself or to a proxy before it."""

    connection: http.client.HTTPConnection
    whole_url: bool
    is_direct: bool

    def target(self, url: str) -> str:
        """Return what goes into the first line of a request."""
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return f"{parts.scheme}://{parts.netloc}{path}" if self.whole_url else path


class GuardedHttp(Storage):
    """The files below a URL, read with GET requests.

    Parameters
    ----------
    base_url : str
        A user and password in it become a header; a query is added to every request.
    options : mapping of str to str, optional
        ``timeout``, ``connect_timeout`` and ``read_timeout`` (such as ``30s``),
        ``user_agent`` and ``allow_invalid_certificates``; ``allow_http`` is accepted, although
        the scheme of the URL already says it.
    headers : mapping of str to str, optional
        Sent to this server with every request.
    may_follow : callable, optional
        Whether a redirect may lead to a URL. Default: if it is on the same server.
    settings : StorageSettings, optional
        Retries and timeouts. These timeouts win over those of the options.

    Raises
    ------
    InvalidInputError
        If the URL names no server, or an option is unknown.
    """

    supports_writes = False

    def __init__(
        self,
        base_url: str,
        options: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        may_follow: Callable[[str], bool] | None = None,
        settings: StorageSettings | None = None,
    ) -> None:
        self._made_of = base_url, dict(options or {}), dict(headers or {}), may_follow
        parts = web_parts(base_url)
        self._origin = _origin(base_url)
        self._base = f"{self._origin}{quote(parts.path, safe=_PRINTABLE).rstrip('/')}/"
        self._query = f"?{quote(parts.query, safe=_PRINTABLE)}" if parts.query else ""
        self._options = {name.lower(): value for name, value in (options or {}).items()}
        self._check_options()
        self._common = {
            "User-Agent": self._options.get("user_agent", user_agent()),
            "Accept-Encoding": "identity",
        }
        self._headers = dict(headers or {})
        user, at, _ = parts.netloc.rpartition("@")
        if at:
            token = base64.b64encode(unquote(user).encode()).decode()
            self._headers = {"Authorization": f"Basic {token}", **self._headers}
        check_headers({**self._common, **self._headers}, self.url)
        self._may_follow = may_follow or self._is_here
        self._settings = settings or StorageSettings()
        self._effective = self._settings.effective()
        self._idle: dict[str, list[_Line]] = {}
        self._process = os.getpid()
        self._lock = threading.Lock()
        # servers that have given no answer for as long as it is tried
        self._mute: set[str] = set()

    def _check_options(self) -> None:
        known = {*_DURATIONS, *_FLAGS, "user_agent"}
        wrong = {name for name in self._options if name not in known}
        wrong |= {
            name
            for name in _DURATIONS
            if not _DURATION.fullmatch(self._options.get(name, "60s").lower())
        }
        if wrong:
            raise InvalidInputError(
                f"{self._base}: a web server has no option {', '.join(sorted(wrong))} like that: "
                f"it knows {', '.join(_DURATIONS)}, such as '30s', user_agent, "
                f"{' and '.join(_FLAGS)}",
                ErrorKind.STORAGE_CONFIG,
            )

    def _seconds(self, name: str, milliseconds: int | None) -> float:
        """Return a time limit: from the settings, from the options, or the default."""
        if milliseconds is not None:
            return milliseconds / 1000
        duration = _DURATION.fullmatch(
            self._options.get(name, self._options.get("timeout", f"{_PATIENCE:.0f}s")).lower()
        )
        return int(duration[1]) * _UNITS[duration[2]] if duration else _PATIENCE

    def _is_here(self, url: str) -> bool:
        return _origin(url) == self._origin

    @property
    def url(self) -> str:
        """The base URL, without user, password and query."""
        return public_url(self._base).rstrip("/")

    def __repr__(self) -> str:
        return labelled("icechunk.Storage", {"type": "HTTP", "url": self.url})

    def __reduce__(self) -> tuple[Any, ...]:
        return GuardedHttp, (*self._made_of, self._settings)

    def get(
        self,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        if_match: str | None = None,
        if_unmodified_since: datetime | None = None,
    ) -> GetResult:
        """Fetch a file or a range of it; see `Storage.get`.

        Raises
        ------
        StorageError
            Also if the server redirects to a place that may not be read.
        """
        check_key(key)
        if byte_range is not None:
            check_range(byte_range)
        nothing = byte_range is not None and byte_range[1] == (byte_range[0] or 0)
        answer = self._ask(key, "HEAD" if nothing else "GET", None if nothing else byte_range)
        if answer.status == 416:
            # the file ends before the range, but its version must be known all the same
            answer = self._ask(key, "HEAD", None)
        etag, modified = answer.headers.get("ETag"), _date(answer.headers.get("Last-Modified"))
        # headers and bytes belong to one answer, so the version is that of the bytes
        check_version(
            key, etag, modified, if_match=if_match, if_unmodified_since=if_unmodified_since
        )
        return GetResult(answer.data, etag, modified)

    def get_if_changed(self, key: str, etag: str | None) -> GetResult | None:
        """Fetch a file, or return None if the server says that it is still `etag`."""
        more = {} if etag is None else {"If-None-Match": etag}
        answer = self._ask(check_key(key), "GET", None, more)
        found = answer.headers.get("ETag")
        # a web server may not know the condition
        if answer.status == 304 or (
            etag is not None and found is not None and same_version(found, etag)
        ):
            return None
        return GetResult(answer.data, found, _date(answer.headers.get("Last-Modified")))

    def head(self, key: str) -> WebFile:
        """Return what the server says about a file, without its bytes where it can.

        Raises
        ------
        StorageError
            As `get`.
        """
        try:
            return _described(self._ask(check_key(key), "HEAD", None))
        except StorageError:
            # servers may support only GET, or sign only GET
            return self.start(key, 1)

    def start(self, key: str, size: int) -> WebFile:
        """Fetch the beginning of a file, with what the server says about the whole.

        Raises
        ------
        StorageError
            As `get`.
        """
        return _described(self._ask(check_key(key), "GET", (0, size)))

    def headers(self, key: str) -> http.client.HTTPMessage:
        """Return what a server says without the file, whether it gives it or not.

        Raises
        ------
        StorageError
            If there is no answer.
        """
        return self._try(key, "HEAD", self._base + quote(check_key(key)), None, {}).headers

    # -- requests --------------------------------------------------------------------
    def _ask(
        self,
        key: str,
        method: str,
        byte_range: ByteRange | None,
        more: Mapping[str, str] | None = None,
    ) -> _Answer:
        """Return the final answer, after redirects and retries."""
        url = self._base + quote(key) + self._query
        for _ in range(_MAX_REDIRECTS):
            answer = self._try(key, method, url, byte_range, more or {})
            if answer.status in (200, 206, 304, 416):
                return answer
            if answer.status in (404, 410):
                raise ObjectNotFoundError(f"{key}: there is no such object in {self.url}")
            if answer.status not in _REDIRECTS:
                raise self._failure(key, f"status {answer.status}", answer.status)
            url = self._followed(key, url, answer)
        raise StorageError(
            f"{key}: {self.url} redirects more than {_MAX_REDIRECTS} times",
            ErrorKind.BAD_REDIRECT,
        )

    def _failure(self, key: str, reason: str, status: int | None = None) -> StorageError:
        hint = "check the credentials: " if status in (401, 403) else ""
        kind = ErrorKind.THROTTLED if status in _THROTTLED else ErrorKind.OBJECT_STORE
        return StorageError(f"cannot read {key} in {self.url}: {hint}{reason}", kind)

    def _followed(self, key: str, url: str, answer: _Answer) -> str:
        try:
            target = urljoin(url, answer.headers.get("Location", ""))
        except ValueError:
            target = ""
        downgraded = url.startswith("https:") and not target.startswith("https:")
        if downgraded or not is_web(target) or not self._may_follow(target):
            raise StorageError(
                f"{key}: {self.url} redirects to {public_url(target)}, and the caller did not "
                "allow to "
                "read there: authorise a virtual chunk container there, or pass "
                "follow_redirects=True "
                "to http_storage",
                ErrorKind.BAD_REDIRECT,
            )
        return target

    def _try(
        self,
        key: str,
        method: str,
        url: str,
        byte_range: ByteRange | None,
        more: Mapping[str, str],
    ) -> _Answer:
        """Send one request until there is a usable answer.

        A server that has given none for all attempts is asked once from then on, until it answers:
        many files of one that is down would take minutes each.
        """
        headers = {**self._common, **more}
        if _origin(url) == self._origin:
            headers.update(self._headers)
        if byte_range is not None:
            start, end = byte_range
            first, last = ("", end) if start is None else (start, "" if end is None else end - 1)
            headers["Range"] = f"bytes={first}-{last}"
        retries, timeouts = self._effective.retries, self._effective.timeouts
        operation = timeouts.operation_timeout_ms
        limit = deadline.current()
        seconds = min(_OPERATION if operation is None else operation / 1000, limit.left)
        if seconds <= 0:
            raise self._failure(key, str(limit))
        is_strict = operation is not None or limit.left < math.inf
        latest = time.monotonic() + seconds
        failure = self._failure(key, "not tried")
        server, is_mute = _origin(url), True
        for attempt in range(1 if server in self._mute else retries.max_tries):
            if attempt:
                pause = min(retries.initial_backoff_ms * 2**attempt, retries.max_backoff_ms) / 1000
                time.sleep(min(pause * random.uniform(0.5, 1.0), max(limit.left, 0)))
            # what takes long because of its size may go on, unless the caller set the limit
            allowance = Allowance(self._reading, seconds, strict=is_strict)
            try:
                answer = self._exchange(method, url, headers, byte_range, allowance)
            except UnfitAnswerError as exc:
                raise self._failure(key, str(exc)) from None
            except ValueError as exc:
                # a URL or a header is invalid, and the text may show it
                raise self._failure(key, f"no request can be made: {type(exc).__name__}") from None
            except _FAILURES as exc:
                failure = self._failure(key, _reason(exc) if limit.left > 0 else str(limit))
                if isinstance(exc, socket.gaierror) and exc.errno == socket.EAI_NONAME:
                    break  # nobody has this name
            else:
                self._mute.discard(server)
                is_mute = False
                if answer.status not in _PASSING:
                    return answer
                failure = self._failure(key, f"status {answer.status}", answer.status)
            if time.monotonic() > latest:
                break
        if is_mute and limit.left > 0:
            self._mute.add(server)
        raise failure

    def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        byte_range: ByteRange | None,
        allowance: Allowance,
    ) -> _Answer:
        origin = _origin(url)
        while True:
            with self._lock:
                if self._process != os.getpid():
                    # after a fork, the connections belong to the parent process
                    self._idle, self._process = {}, os.getpid()
                waiting = self._idle.get(origin)
                line = waiting.pop() if waiting else None
            reused = line is not None
            if line is None:
                line = self._connect(url)
            connection = line.connection
            connection.response_class = functools.partial(TimedResponse, allowance=allowance)  # type: ignore[assignment]
            try:
                if not reused:
                    connection.connect()
                    self._check_address(url, line)
                if connection.sock is not None:
                    connection.sock.settimeout(self._reading)
                connection.request(method, line.target(url), headers=dict(headers))
                response = connection.getresponse()
                data = read_body(response, byte_range)
            except (*_FAILURES, ValueError, MemoryError, StorageError) as exc:
                connection.close()
                if reused and isinstance(exc, _FAILURES) and not allowance.is_spent:
                    continue  # the server closed it while it was idle
                raise
            with self._lock:
                idle = self._idle.setdefault(origin, [])
                # a body that was not read to its end would be taken for the next answer
                if response.isclosed() and not response.will_close and len(idle) < _MAX_IDLE:
                    idle.append(line)
                else:
                    connection.close()
            return _Answer(response.status, response.headers, data)

    def _check_address(self, url: str, line: _Line) -> None:
        """Refuse a server that has another address than one may think. Nothing was sent yet."""
        if isinstance(self._may_follow, Reach) and line.is_direct:
            address = line.connection.sock.getpeername()[0]
            if not self._may_follow.connected(url, address):
                raise StorageError(
                    f"{self.url} redirects to {public_url(url)}, which is in this machine or a "
                    "private network",
                    ErrorKind.BAD_REDIRECT,
                )

    @property
    def _reading(self) -> float:
        timeouts = self._effective.timeouts
        limits = [timeouts.read_timeout_ms, timeouts.operation_attempt_timeout_ms]
        given = [limit for limit in limits if limit is not None]
        return self._seconds("read_timeout", min(given, default=None))

    def _connect(self, url: str) -> _Line:
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        proxy = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
        through = urlsplit(proxy if "://" in proxy else f"//{proxy}") if proxy else parts
        make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        timeouts = self._effective.timeouts
        connecting = self._seconds("connect_timeout", timeouts.connect_timeout_ms)
        arguments: dict[str, Any] = {"timeout": connecting}
        if secure:
            trusting = self._options.get("allow_invalid_certificates", "").lower() in ("1", "true")
            arguments["context"] = _tls(trusting)
        connection = make(through.hostname or "", through.port, **arguments)
        if proxy and secure:
            connection.set_tunnel(host, parts.port)
        return _Line(connection, bool(proxy) and not secure, not proxy)

    # -- everything but reading ---------------------------------------------------------
    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Refuse: web servers have no listings."""
        check_folder(prefix)
        raise StorageError(f"cannot list {prefix or 'objects'} in {self.url}: HTTP has no way to")

    def put(self, key: str, data: BytesLike, **conditions: Unpack[PutConditions]) -> str | None:
        """Refuse to write."""
        raise refuse_write(self, key)

    def delete(self, keys: Iterable[str]) -> None:
        """Refuse to delete, unless there is nothing to."""
        for key in keys:
            raise refuse_write(self, check_key(key))

    def with_settings(self, settings: StorageSettings) -> GuardedHttp:
        """Return the same place with other retries and timeouts."""
        return GuardedHttp(*self._made_of, settings)

    def with_user_agent(self, user_agent: str) -> GuardedHttp:
        """Return the same place, with requests that say who makes them."""
        base_url, options, headers, may_follow = self._made_of
        named = {"user_agent": user_agent, **options}
        return GuardedHttp(base_url, named, headers, may_follow, self._settings)


def _described(answer: _Answer) -> WebFile:
    ranged = answer.status in (206, 416)
    named = answer.headers.get("Content-Range", "").rpartition("/")[2] if ranged else None
    size = answer.headers.get("Content-Length", "") if named is None else named
    return WebFile(
        int(size) if _SIZE.fullmatch(size) else None,
        ranged,
        answer.headers.get("ETag"),
        _date(answer.headers.get("Last-Modified")),
        b"" if answer.status == 416 else answer.data,
    )


@functools.cache
def _tls(trusting: bool) -> ssl.SSLContext:
    # reading the certificates of the system takes longer than a request
    context = ssl.create_default_context()
    if trusting:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(exc: Exception) -> str:
    """Return why a request failed, without texts that may hold parts of it."""
    if isinstance(exc, OSError):
        return exc.strerror or str(exc) or type(exc).__name__
    return type(exc).__name__


def _origin(url: str) -> str:
    parts = web_parts(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _date(text: str | None) -> datetime | None:
    try:
        return None if text is None else parsedate_to_datetime(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
