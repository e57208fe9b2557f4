"""A web server whose answers do not end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MIB = 1 << 20
OK = b"HTTP/1.1 200 OK\r\n"
BLOCK = b"x" * 65536
CHUNK = b"10000\r\n" + BLOCK + b"\r\n"


class Endless:
    """A server that sends something, and then something else for as long as it can, or nothing."""

    def __init__(self, first: bytes, then: bytes | None, pause: float = 0) -> None:
        self._first, self._then, self._pause = first, then, pause
        self.sent = 0
        self.requests = 0
        self.over = threading.Event()
        #: Somebody who asked has ended the connection.
        self.left = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/d"
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self.over.is_set():
                connection, _ = self._socket.accept()
                self.requests += 1
                thread = threading.Thread(target=self._answer, args=(connection,), daemon=True)
                self._open.append(connection)
                self._threads.append(thread)
                thread.start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            connection.recv(65536)
            connection.sendall(self._first)
            while self._then is not None and not self.over.wait(self._pause):
                connection.sendall(self._then)
                self.sent += len(self._then)
        except OSError:
            self.left.set()
        connection.close()

    def close(self) -> None:
        """End all connections and threads."""
        self.over.set()
        for waiting in (self._socket, *self._open):
            with suppress(OSError):
                # closing alone would leave a thread that waits for it
                waiting.shutdown(socket.SHUT_RDWR)
            waiting.close()
        for thread in self._threads:
            thread.join()


@contextmanager
def endless(first: bytes, then: bytes | None, pause: float = 0) -> Iterator[Endless]:
    """Run such a server."""
    server = Endless(first, then, pause)
    try:
        yield server
    finally:
        server.close()
