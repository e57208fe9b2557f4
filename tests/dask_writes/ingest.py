"""A job on a cluster of processes that may be killed: what its coordinator and workers run.

The coordinator imports it, so that workers do too, instead of getting its functions by value.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from distributed import Client

from icechunk import IcechunkStore, Repository, S3StaticCredentials
from icechunk.storage import s3_storage
from icechunk_dask import distributed_write, store_dask

ROWS = 24
BATCH = 6
#: Rows at which a worker waits for the test: one in each of the first three batches.
STOPS = (3, 8, 14)


@dataclass(frozen=True)
class Gate:
    """Where the rows `STOPS` wait until the test lets them pass, or kills somebody."""

    port: int

    def wait(self, row: int) -> None:
        """Say who is here, and wait for an answer."""
        if row in STOPS:
            with socket.create_connection(("127.0.0.1", self.port), timeout=120) as connection:
                connection.sendall(f"{row} {os.getpid()}\n".encode())
                connection.recv(1)


@dataclass(frozen=True)
class Keys:
    """Credentials that expire at once, in a file; another one notes who asked for them."""

    file: str

    def __call__(self) -> S3StaticCredentials:
        with open(f"{self.file}.asked", "a") as asked:
            asked.write(f"{os.getpid()}\n")
        key, secret = json.loads(Path(self.file).read_text())
        return S3StaticCredentials(key, secret, None, datetime.now(UTC) + timedelta(seconds=1))


@dataclass(frozen=True)
class WriteRow:
    """Write a row, then wait at the gate."""

    gate: Gate

    def __call__(self, store: IcechunkStore, row: int) -> None:
        zarr.open_array(store, path="a", mode="r+")[row] = row + 1
        self.gate.wait(row)


def read_row(block: Any, gate: Gate) -> Any:
    """Wait at the gate, then give the value of a row."""
    gate.wait(int(block[0]) - 1)
    return block


def write_items(repository: Repository, gate: Gate, **how: Any) -> None:
    """Write all rows as items."""
    distributed_write(WriteRow(gate), range(ROWS), repository, **how)


def write_blocks(repository: Repository, gate: Gate, **how: Any) -> None:
    """Write all rows as blocks of a Dask array."""
    rows = da.arange(1, ROWS + 1, chunks=1, dtype="i4")
    source = rows.map_blocks(read_row, gate, dtype="i4", meta=np.empty(0, "i4"))
    store_dask(sources=[source], targets=["a"], repository=repository, **how)


def main(keys: type[Keys]) -> None:
    """Coordinate a job."""
    settings = json.loads(sys.argv[1])
    write: Callable[..., None] = globals()[settings["write"]]
    storage = s3_storage(**settings["storage"], get_credentials=keys(settings["keys"]))
    with Client(settings["scheduler"]):
        write(
            Repository.open(storage),
            Gate(settings["port"]),
            message="rows",
            job="rows",
            commit_every=BATCH,
            publish=settings["publish"],
        )
