"""A proxy before an S3 server that misbehaves on purpose.

It signs requests anew, so that it may change them on their way, and speaks HTTP/1.1 with
connections that stay. What it does to each request is up to a `Trouble`.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import http.client
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from icechunk.storage import ObjectStorage
from tests.http_servers import running_server
from tests.servers import S3Server


@dataclass
class Ask:
    """A request on its way."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        """The object, with its bucket; of a listing only the bucket."""
        return urlsplit(self.target).path[1:]

    @property
    def is_conditional(self) -> bool:
        """Whether it is a put under a condition."""
        return self.method == "PUT" and bool({"if-match", "if-none-match"} & self.headers.keys())


@dataclass
class Reply:
    """An answer on its way back.

    Attributes
    ----------
    cut : int or None
        Close the connection after so many bytes of the body.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    cut: int | None = None


Forward = Callable[[Ask], Reply]
#: Gets a request, and what passes it on; None: the connection is closed without an answer.
Trouble = Callable[[Ask, Forward], Reply | None]


def error(status: int, code: str) -> Reply:
    """Return what S3 answers."""
    text = f"<Error><Code>{code}</Code><Message>said the proxy</Message></Error>"
    return Reply(status, {"Content-Type": "application/xml"}, text.encode())


@dataclass
class Plan:
    """Which requests have trouble.

    Attributes
    ----------
    trouble : Trouble or None
    concerns : callable
        Whether a request may have it.
    share : float
        Of those, how many do.
    limit : int
        How many at most, all in all.
    met : int
        How many had it.
    """

    trouble: Trouble | None = None
    concerns: Callable[[Ask], bool] = lambda ask: True
    share: float = 1.0
    limit: int = 1 << 30
    met: int = 0
    seen: list[str] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(0))


class Proxy:
    """The proxy.

    Parameters
    ----------
    server : S3Server
        Where requests go.

    Attributes
    ----------
    plan : Plan
        May be replaced at any time.
    """

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self.plan = Plan()
        self.url = ""

    def storage(self, prefix: str, **arguments: Any) -> ObjectStorage:
        """Return a storage that goes through the proxy."""
        return self._server.storage(prefix, endpoint_url=self.url, **arguments)

    def heal(self) -> None:
        """Behave from now on."""
        self.plan = Plan()

    def handle(self, ask: Ask, forward: Forward) -> Reply | None:
        """Answer a request."""
        plan = self.plan
        with self._lock:
            troubled = (
                plan.trouble is not None
                and plan.met < plan.limit
                and plan.concerns(ask)
                and plan.rng.random() < plan.share
            )
            plan.met += troubled
            if troubled:
                plan.seen.append(f"{ask.method} {ask.target}")
        if troubled and plan.trouble is not None:
            return plan.trouble(ask, forward)
        return forward(ask)

    def signed(self, ask: Ask) -> dict[str, str]:
        """Return the headers of a request, with a signature for them."""
        server = self._server
        kept = ("range", "if-", "content-type", "x-amz-copy", "x-amz-meta", "x-amz-storage")
        headers = {k: v for k, v in ask.headers.items() if k.startswith(kept)}
        parts = urlsplit(ask.target)
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{now[:8]}/{server.region}/s3/aws4_request"
        headers |= {
            "host": urlsplit(server.endpoint_url).netloc,
            "x-amz-date": now,
            "x-amz-content-sha256": hashlib.sha256(ask.body).hexdigest(),
        }
        names = ";".join(sorted(headers))
        query = "&".join(
            f"{quote(k, safe='')}={quote(v, safe='')}"
            for k, v in sorted(parse_qsl(parts.query, keep_blank_values=True))
        )
        canonical = "\n".join(
            (
                ask.method,
                parts.path,
                query,
                *(f"{name}:{headers[name].strip()}" for name in sorted(headers)),
                "",
                names,
                headers["x-amz-content-sha256"],
            )
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = f"AWS4{server.secret_access_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}"
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={server.access_key_id}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}"
        )
        return headers


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy
    backend: str

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        reply = self.proxy.handle(Ask(self.command, self.path, headers, body), self._forward)
        if reply is None:
            # a reset, and no polite end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        self.send_response(reply.status)
        length = reply.headers.get("Content-Length", str(len(reply.body)))
        for name, value in {**reply.headers, "Content-Length": length}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and reply.status not in (204, 304):
            self.wfile.write(reply.body[: reply.cut])
        if reply.cut is not None:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _handle  # noqa: N815 (of the base class)

    def _forward(self, ask: Ask) -> Reply:
        line = http.client.HTTPConnection(urlsplit(self.backend).netloc, timeout=30)
        try:
            line.request(ask.method, ask.target, ask.body or None, self.proxy.signed(ask))
            answer = line.getresponse()
            data = answer.read()
            dropped = ("connection", "transfer-encoding", "date", "server")
            if ask.method != "HEAD":
                dropped += ("content-length",)
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in dropped}
            return Reply(answer.status, headers, data)
        finally:
            line.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        # connections are cut on purpose
        pass


@contextmanager
def misbehaving(server: S3Server) -> Iterator[Proxy]:
    """Run a proxy before a server."""
    proxy = Proxy(server)
    handler = type("Handler", (_Handler,), {"proxy": proxy, "backend": server.endpoint_url})
    with running_server(handler, _Server) as proxy.url:
        yield proxy


# -- trouble -------------------------------------------------------------------------------
def lost(ask: Ask, forward: Forward) -> None:
    """Do it, and send no answer."""
    forward(ask)


def unsent(ask: Ask, forward: Forward) -> None:
    """Neither do it nor answer."""


def answering(status: int, code: str, *, done: bool = False) -> Trouble:
    """Return a trouble that answers with an error, before or after it is done."""

    def trouble(ask: Ask, forward: Forward) -> Reply:
        if done:
            forward(ask)
        return error(status, code)

    return trouble


def unconditional(ask: Ask, forward: Forward) -> Reply:
    """Ignore conditions."""
    headers = {k: v for k, v in ask.headers.items() if k not in ("if-match", "if-none-match")}
    return forward(Ask(ask.method, ask.target, headers, ask.body))


def cut(ask: Ask, forward: Forward) -> Reply:
    """Stop in the middle of a body."""
    reply = forward(ask)
    return Reply(reply.status, reply.headers, reply.body, cut=len(reply.body) // 2)


def whole(ask: Ask, forward: Forward) -> Reply:
    """Answer a range with everything."""
    headers = {k: v for k, v in ask.headers.items() if k != "range"}
    return forward(Ask(ask.method, ask.target, headers, ask.body))


def compressed(ask: Ask, forward: Forward) -> Reply:
    """Compress what comes, though nobody asked for that."""
    reply = forward(ask)
    body = gzip.compress(reply.body)
    return Reply(reply.status, {**reply.headers, "Content-Encoding": "gzip"}, body)


def shorter(ask: Ask, forward: Forward) -> Reply:
    """Send less than was asked for, and say so."""
    reply = forward(ask)
    return Reply(reply.status, reply.headers, reply.body[: len(reply.body) // 2])


def another(ask: Ask, forward: Forward) -> Reply:
    """Answer with another range of the object, and say so."""
    if "range" not in ask.headers:
        return forward(ask)
    first, _, last = ask.headers["range"].removeprefix("bytes=").partition("-")
    moved = f"bytes={int(first or 0) + 1}-{int(last) + 1 if last else ''}"
    return forward(Ask(ask.method, ask.target, {**ask.headers, "range": moved}, ask.body))


def is_read(ask: Ask) -> bool:
    """Whether an object is read, not a listing."""
    return ask.method == "GET" and "list-type" not in ask.target


@dataclass(frozen=True)
class Case:
    """A trouble, and which requests it concerns."""

    trouble: Trouble
    concerns: Callable[[Ask], bool] = lambda ask: True


CASES: dict[str, Case] = {
    "the reply to a conditional put is lost": Case(lost, lambda ask: ask.is_conditional),
    "any reply is lost": Case(lost),
    "the connection is reset": Case(unsent),
    "a conditional put is answered 409": Case(
        answering(409, "OperationAborted"), lambda ask: ask.is_conditional
    ),
    "a conditional put is answered 412, and holds": Case(
        answering(412, "PreconditionFailed"), lambda ask: ask.is_conditional
    ),
    "a conditional put is answered 412, and was done": Case(
        answering(412, "PreconditionFailed", done=True), lambda ask: ask.is_conditional
    ),
    "a conditional put is answered 501": Case(
        answering(501, "NotImplemented"), lambda ask: ask.is_conditional
    ),
    "503, slow down": Case(answering(503, "SlowDown")),
    "500, and it was done": Case(answering(500, "InternalError", done=True)),
    "403 for an object that exists": Case(answering(403, "AccessDenied"), is_read),
    "404 for an object that exists": Case(answering(404, "NoSuchKey"), is_read),
    "a body stops in the middle": Case(cut, is_read),
    "a range is answered with everything": Case(whole, is_read),
    "a body is compressed": Case(compressed, is_read),
    "a body is shorter": Case(shorter, is_read),
    "another range is sent": Case(another, is_read),
}
