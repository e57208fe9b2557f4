"""A job that waits until its progress has been seen: what a coordinator and its workers run."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import dataclass
from typing import Any

import zarr
from distributed import Client

from icechunk import IcechunkStore, Repository
from icechunk_dask import Status, distributed_write

ROWS = 6
#: One in each of two batches of three.
STOPS = (2, 5)


@dataclass(frozen=True)
class FillRow:
    """Write a row; two of them wait for whoever has seen that the others are done."""

    port: int

    def __call__(self, store: IcechunkStore, row: int) -> None:
        if row in STOPS:
            with socket.create_connection(("127.0.0.1", self.port), timeout=120) as gate:
                gate.recv(1)
        zarr.open_array(store, path="a", mode="r+")[row] = row + 1


class Watching:
    """Notes every status, and lets the row that waits go on when all others are counted."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._waiting = set(STOPS)
        self.seen: list[Status] = []

    def __call__(self, status: Status) -> None:
        self.seen.append(status)
        if status.phase == "writing" and status.tasks in self._waiting:
            self._waiting.remove(status.tasks)
            connection, _ = self._listener.accept()
            connection.close()


def main() -> None:
    """Run a job; say what a callback saw, or draw a bar."""
    scheduler, url, how = sys.argv[1:]
    with socket.create_server(("127.0.0.1", 0)) as listener, Client(scheduler):
        listener.settimeout(120)
        progress: Any = True
        fill: Any = FillRow(listener.getsockname()[1])
        if how == "callback":
            progress = Watching(listener)
        else:
            fill = fill_row
        distributed_write(
            fill,
            range(ROWS),
            Repository.open(url),
            message="rows",
            commit_every=ROWS // 2,
            progress=progress,
        )
        if how == "callback":
            seen = [(s.phase, s.tasks, s.total, s.chunks, s.commits) for s in progress.seen]
            print(json.dumps(seen))


def fill_row(store: IcechunkStore, row: int) -> None:
    """Write a row."""
    zarr.open_array(store, path="a", mode="r+")[row] = row + 1
