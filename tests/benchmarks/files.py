"""A web server for the files of a folder, in a process of its own, which counts requests.

``python files.py FOLDER`` prints its port. ``GET /?`` answers how many GETs there were before.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """Yield the URL of a folder, and what counts the GETs."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}/"

        def count() -> int:
            with urllib.request.urlopen(url + "?") as answer:
                return int(answer.read())

        yield url, count
    finally:
        process.kill()
        process.wait()


class _Files(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # an answer leaves at once, as with any server that is made for it
    wbufsize = -1
    disable_nagle_algorithm = True
    folder = Path()
    gets = 0
    counting = threading.Lock()

    def do_HEAD(self) -> None:
        self._answer(200, b"", (self.folder / self.path[1:]).stat().st_size)

    def do_GET(self) -> None:
        if self.path == "/?":
            self._answer(200, str(self.gets).encode())
            return
        with self.counting:
            type(self).gets += 1
        data = (self.folder / self.path[1:]).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            self._answer(200, data)
            return
        first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        self._answer(206, data[first : last + 1], span=f"bytes {first}-{last}/{len(data)}")

    def _answer(self, status: int, data: bytes, size: int | None = None, span: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if size is None else size))
        self.send_header("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT")
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    _Files.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    print(server.server_port, flush=True)
    server.serve_forever()
