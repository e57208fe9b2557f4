"""A web server for tests: files from a dict, with ranges, conditions, redirects and faults.

It speaks enough of S3 for unsigned reads with the bucket in the path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.http_servers import Quiet, running_server

LAST_MODIFIED = "Wed, 21 Oct 2015 07:28:00 GMT"
#: The same, in seconds since the epoch.
LAST_MODIFIED_SECONDS = 1445412480


@dataclass
class WebServer:
    """What the server serves, and what it was asked.

    Attributes
    ----------
    files : dict
        Bytes by path.
    redirects : dict
        URL by path.
    failures : list of int
        Status codes to answer the next requests with.
    ranges : bool
        Whether it knows them.
    requests : list of (str, dict)
        Path and headers, in lower case, of every request.
    connections : set
        Addresses of the clients' sockets.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    failures: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: str = '"v1"'
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    url: str = ""


@contextmanager
def serving() -> Iterator[WebServer]:
    """Run a server on a free port of this machine."""
    state = WebServer()

    class Handler(Quiet, BaseHTTPRequestHandler):
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            state.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            state.connections.add(self.client_address)
            path = self.path.partition("?")[0]
            if state.failures:
                self._answer(state.failures.pop(0), {}, b"try again")
            elif path in state.redirects:
                self._answer(302, {"Location": state.redirects[path]}, b"elsewhere")
            elif path not in state.files:
                self._answer(404, {}, b"nothing")
            else:
                self._send(state.files[path])

        def _send(self, data: bytes) -> None:
            headers = {"ETag": state.etag, "Last-Modified": LAST_MODIFIED}
            expected = self.headers.get("If-Match")
            wanted = self.headers.get("Range")
            if expected is not None and expected.strip('"') != state.etag.strip('"'):
                self._answer(412, {}, b"")
            elif wanted is None or not state.ranges:
                self._answer(200, headers, data)
            else:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start = int(first) if first else max(len(data) - int(last), 0)
                end = min(int(last) + 1, len(data)) if first and last else len(data)
                if start >= len(data):
                    self._answer(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
                else:
                    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
                    self._answer(206, headers, data[start:end])

        do_HEAD = do_GET  # noqa: N815 (the name that the base class looks for)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    with running_server(Handler) as url:
        state.url = f"{url}/"
        yield state
