"""Files of a web server, with a guard on redirects.

The clients of object stores follow redirects wherever they lead. Virtual chunks may only
be read from where the user allowed it, so here every redirect is judged before it is
followed, and headers of the user go to the server that they were meant for only.
"""

from __future__ import annotations

import functools
import http.client
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from icechunk._version import user_agent
from icechunk.config import StorageSettings
from icechunk.errors import (
    ErrorKind,
    InvalidInputError,
    ObjectNotFoundError,
    StorageError,
)
from icechunk.storage.base import (
    ByteRange,
    BytesLike,
    GetResult,
    ObjectMeta,
    Storage,
    check_key,
    check_range,
    check_version,
    refuse_write,
)
from icechunk.storage.failures import public_url

_MAX_REDIRECTS: Final = 10
_MAX_IDLE: Final = 32
_TRIES: Final = 5
_PIECE: Final = 1 << 20
#: More of an answer that is not a file is not read.
_MAX_ERROR: Final = 1 << 16
_FIRST_PAUSE: Final = 0.1
#: Answers after which the same request may succeed.
_PASSING: Final = frozenset((408, 429, 500, 502, 503, 504))
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_DURATION: Final = re.compile(r"([0-9]+)\s*(ms|s|m)?(?:[a-z]*)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}
_FAILURES: Final = (OSError, http.client.HTTPException)


class _Answer(NamedTuple):
    """What came back; `data` is the range that was asked for, or less of it."""

    status: int
    headers: http.client.HTTPMessage
    data: bytes


class _Line(NamedTuple):
    """An open connection, to the server itself or to a proxy before it."""

    connection: http.client.HTTPConnection
    whole_url: bool

    def target(self, url: str) -> str:
        """Return what to write into the first line of a request."""
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return f"{parts.scheme}://{parts.netloc}{path}" if self.whole_url else path


class GuardedHttp(Storage):
    """The files below a URL, read with GET requests.

    Parameters
    ----------
    base_url : str
        With a slash at its end.
    options : mapping of str to str
        ``timeout`` (such as ``30s``) and ``user_agent``; ``allow_http`` is accepted, the
        scheme of the URL says it already.
    headers : mapping of str to str
        Sent to this server with every request.
    may_follow : callable
        Whether a redirect may lead to a URL.

    Raises
    ------
    InvalidInputError
        If the URL names no server, or an option is unknown.
    """

    supports_writes = False

    def __init__(
        self,
        base_url: str,
        options: Mapping[str, str],
        headers: Mapping[str, str],
        may_follow: Callable[[str], bool],
    ) -> None:
        self._base = base_url
        self._origin = _origin(base_url)
        unknown = options.keys() - {"timeout", "user_agent", "allow_http"}
        duration = _DURATION.fullmatch(options.get("timeout", "60s"))
        if unknown or duration is None:
            raise InvalidInputError(
                f"{base_url}: the options {dict(options)} of a web server may have timeout, such "
                "as '30s', user_agent and allow_http",
                ErrorKind.STORAGE_CONFIG,
            )
        self._timeout = int(duration[1]) * _UNITS[duration[2]]
        agent = options.get("user_agent", user_agent())
        self._common = {"User-Agent": agent, "Accept-Encoding": "identity"}
        self._headers = dict(headers)
        self._may_follow = may_follow
        self._idle: dict[str, list[_Line]] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The base URL."""
        return self._base

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
        url = self._base + quote(check_key(key))
        if byte_range is not None:
            check_range(byte_range)
        for _ in range(_MAX_REDIRECTS):
            answer = self._ask(url, byte_range)
            if answer.status not in _REDIRECTS:
                return self._result(key, answer, if_match, if_unmodified_since)
            url = self._followed(key, url, answer)
        raise StorageError(
            f"{key}: {self._base} redirects more than {_MAX_REDIRECTS} times",
            ErrorKind.BAD_REDIRECT,
        )

    def _followed(self, key: str, url: str, answer: _Answer) -> str:
        target = urljoin(url, answer.headers.get("Location", ""))
        downgraded = url.startswith("https:") and not target.startswith("https:")
        if downgraded or not self._may_follow(target):
            raise StorageError(
                f"{key}: {self._base} redirects to {public_url(target)}, which is in no "
                "authorised virtual chunk container; add one for it and authorise it if it is "
                "to be read",
                ErrorKind.BAD_REDIRECT,
            )
        return target

    def _result(
        self,
        key: str,
        answer: _Answer,
        if_match: str | None,
        if_unmodified_since: datetime | None,
    ) -> GetResult:
        if answer.status in (404, 410):
            raise ObjectNotFoundError(f"{key}: there is no such file at {self._base}")
        if answer.status == 416:
            # the file ends before the range
            return GetResult(b"", None)
        if answer.status not in (200, 206):
            raise StorageError(f"cannot read {key} from {self._base}: status {answer.status}")
        etag = answer.headers.get("ETag")
        modified = _date(answer.headers.get("Last-Modified"))
        # headers and bytes are of one answer: what they say of the version is true of both
        check_version(
            key, etag, modified, if_match=if_match, if_unmodified_since=if_unmodified_since
        )
        return GetResult(answer.data, etag, modified)

    # -- requests --------------------------------------------------------------------
    def _ask(self, url: str, byte_range: ByteRange | None) -> _Answer:
        headers = dict(self._common)
        if _origin(url) == self._origin:
            headers.update(self._headers)
        if byte_range is not None:
            start, end = byte_range
            first, last = ("", end) if start is None else (start, "" if end is None else end - 1)
            headers["Range"] = f"bytes={first}-{last}"
        failure = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.0))
            try:
                answer = self._exchange(url, headers, byte_range)
            except _FAILURES as exc:
                failure = str(exc) or type(exc).__name__
            else:
                if answer.status not in _PASSING:
                    return answer
                failure = f"status {answer.status}"
        raise StorageError(f"cannot read {public_url(url)}: {failure}")

    def _exchange(
        self, url: str, headers: Mapping[str, str], byte_range: ByteRange | None
    ) -> _Answer:
        origin = _origin(url)
        while True:
            with self._lock:
                waiting = self._idle.get(origin)
                line = waiting.pop() if waiting else None
            reused = line is not None
            if line is None:
                line = self._connect(url)
            connection = line.connection
            try:
                connection.request("GET", line.target(url), headers=dict(headers))
                response = connection.getresponse()
                data = _body(response, byte_range)
            except _FAILURES:
                connection.close()
                if reused:
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

    def _connect(self, url: str) -> _Line:
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        proxy = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
        through = urlsplit(proxy if "://" in proxy else f"//{proxy}") if proxy else parts
        make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        arguments: dict[str, Any] = {"timeout": self._timeout}
        if secure:
            arguments["context"] = _tls()
        connection = make(through.hostname or "", through.port, **arguments)
        if proxy and secure:
            connection.set_tunnel(host, parts.port)
        return _Line(connection, bool(proxy) and not secure)

    # -- what is not for reading -------------------------------------------------------
    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Refuse: web servers have no listings."""
        raise StorageError(f"the files at {self._base} cannot be listed")

    def put(
        self,
        key: str,
        data: BytesLike,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str | None:
        """Refuse to write."""
        raise refuse_write(self, key)

    def delete(self, keys: Iterable[str]) -> None:
        """Refuse to delete."""
        raise refuse_write(self, "files")

    def with_settings(self, settings: StorageSettings) -> GuardedHttp:
        """Return itself."""
        return self


@functools.cache
def _tls() -> ssl.SSLContext:
    # reading the certificates of the system takes longer than a request
    return ssl.create_default_context()


def _body(response: http.client.HTTPResponse, byte_range: ByteRange | None) -> bytes:
    """Read what is wanted of an answer, and no more of a file sent whole than needed."""
    if response.status not in (200, 206):
        return response.read(_MAX_ERROR)
    start, end = byte_range or (0, None)
    if start is None:
        data = response.read()
        return data[max(len(data) - (end or 0), 0) :]
    if response.status == 206:
        got = re.match(r"bytes ([0-9]+)-", response.headers.get("Content-Range", ""))
        if got is None or int(got[1]) != start:
            raise http.client.HTTPException("the server sent another range than asked for")
    else:
        skip = start
        while skip and (skipped := len(response.read(min(skip, _PIECE)))):
            skip -= skipped
    return response.read() if end is None else response.read(end - start)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInputError(f"{url!r} is no URL of a web server", ErrorKind.CANNOT_PARSE_URL)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _date(text: str | None) -> datetime | None:
    try:
        return None if text is None else parsedate_to_datetime(text).astimezone(UTC)
    except ValueError:
        return None
