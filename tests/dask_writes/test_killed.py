"""Scheduler, workers and coordinator as processes of their own, S3, and `kill -9`.

Every chunk is a new object, and nothing is deleted: objects count the put requests.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zarr

from icechunk import Repository, RepositoryConfig
from tests.dask_writes.cluster_processes import TIMEOUT, Cluster, eventually, kill, start
from tests.dask_writes.ingest import BATCH, ROWS, STOPS
from tests.servers import S3Server

#: The coordinator. Its credentials are of a class that workers cannot import.
SCRIPT = """
from tests.dask_writes.cluster_processes import TIMEOUT, Cluster, eventually, kill, start
from tests.dask_writes.ingest import Keys, main
class MyKeys(Keys): pass
main(MyKeys)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path_factory.mktemp("cluster") / "scheduler.json", stack)


@pytest.fixture
def arrivals() -> Iterator[socket.socket]:
    """Where workers say that they are at the gate."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        yield listener


def next_at_gate(arrivals: socket.socket) -> tuple[int, int, socket.socket]:
    """Wait for a worker, and return its row, its process and what lets it go on."""
    connection, _ = arrivals.accept()
    row, pid = connection.makefile().readline().split()
    return int(row), int(pid), connection


def values(repository: Repository, **version: str) -> list[int]:
    store = repository.readonly_session(**version).store
    found: list[int] = zarr.open_array(store, path="a", mode="r")[:].tolist()
    return found


def first(count: int) -> list[int]:
    return [*range(1, count + 1), *[0] * (ROWS - count)]


@pytest.mark.parametrize(("write", "publish"), [("write_items", "batch"), ("write_blocks", "end")])
def test_everybody_is_killed(
    cluster: Cluster,
    s3_server: S3Server,
    arrivals: socket.socket,
    tmp_path: Path,
    write: str,
    publish: str,
) -> None:
    storage = s3_server.storage(f"killed-{publish}")
    repository = Repository.create(storage, RepositoryConfig(inline_chunk_threshold_bytes=0))
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(ROWS,), chunks=(1,), dtype="i4")
    keys = tmp_path / "keys"
    keys.write_text(json.dumps([s3_server.access_key_id, s3_server.secret_access_key]))
    settings: dict[str, Any] = {
        "scheduler": cluster.address,
        "storage": {
            "bucket": s3_server.bucket,
            "prefix": f"killed-{publish}",
            "region": s3_server.region,
            "endpoint_url": s3_server.endpoint_url,
            "allow_http": True,
            "force_path_style": True,
        },
        "keys": str(keys),
        "port": arrivals.getsockname()[1],
        "write": write,
        "publish": publish,
    }
    run = ("-c", SCRIPT, json.dumps(settings))
    in_batches = publish == "batch"

    def puts() -> int:
        return sum(1 for _ in storage.list("chunks/"))

    cluster.have(3)
    killed = []
    with ExitStack() as stack:
        coordinator = start(*run)
        stack.callback(kill, coordinator)
        for number, stop in enumerate(STOPS[:2]):
            row, pid, _ = next_at_gate(arrivals)
            assert row == stop
            # the batch before may still be on its way to the branch
            expected = first(number * BATCH * in_batches)
            eventually(lambda expected=expected: values(repository, branch="main") == expected)
            cluster.kill(pid)
            killed.append(pid)
            # somebody else does it again
            row, pid, go_on = next_at_gate(arrivals)
            assert row == stop
            assert pid not in killed
            go_on.close()
        row, pid, go_on = next_at_gate(arrivals)
        assert row == STOPS[2]
        # what is on its way would be lost with the coordinator, and done again
        done = 2 * BATCH
        eventually(lambda: values(repository, branch="main") == first(done * in_batches))
        kill(coordinator)
        # what has not begun never runs, and nobody waits for what has
        eventually(cluster.is_forgotten)
        go_on.close()
        eventually(cluster.is_idle)

    assert values(repository, branch="main") == first(done * in_batches)
    assert len(repository.jobs.open("rows").status().done) == done
    before = puts()
    # some more than once, and some of the batch that was lost
    assert before >= done
    asked_before = Counter(Path(f"{keys}.asked").read_text().split())

    again = start(*run)
    try:
        row, pid, go_on = next_at_gate(arrivals)
        assert row == STOPS[2]
        go_on.close()
        assert again.wait(TIMEOUT) == 0
    finally:
        kill(again)
    assert puts() - before == ROWS - done
    assert values(repository, branch="main") == first(ROWS)
    assert repository.list_branches() == {"main"}
    # oldest first, after the empty repository
    ids = [snapshot.id for snapshot in repository.ancestry(branch="main")][-2::-1]
    assert [values(repository, snapshot_id=i) for i in ids] == [
        first(count) for count in range(0, ROWS + 1, BATCH if in_batches else ROWS)
    ]
    # credentials that expire at once are refreshed where they are used: for every chunk
    asked = Counter(Path(f"{keys}.asked").read_text().split()) - asked_before
    assert asked[str(pid)] >= ROWS - done
