"""What workloads are made with: places for repositories, and clocks. Runs under any client."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Of the sizes of the workloads; 1 is what the goals are for.
SCALE = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
#: "icechunk", or "zarr" for its own stores, which are what is possible.
CLIENT = os.environ.get("ICECHUNK_BENCH_CLIENT", "icechunk")
#: None for a folder, else the server and bucket.
PLACE = json.loads(os.environ.get("ICECHUNK_BENCH_PLACE", "null"))
COUNTING: list[Any] = []


class Steps:
    """Seconds on the wall and of the processor, and other numbers, by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.numbers: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add what the block takes to a step."""
        start, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def fresh(self, folder: Path, function: str) -> None:
        """Run a function of the workloads in a process of its own, which knows nothing yet."""
        script = sys.modules["__main__"].__file__ or ""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", script, function, str(SCALE), str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{function}:\n{done.stderr[-2000:]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        self.seconds.update(found["seconds"])
        self.cpu.update(found["cpu"])
        requests = found["numbers"].pop("requests", 0) + self.numbers.get("requests", 0)
        self.numbers.update(found["numbers"])
        if requests:
            self.numbers["requests"] = requests
        for step in found["seconds"]:
            self.numbers[f"{step}: peak MiB"] = found["peak MiB"]

    def result(self) -> dict[str, Any]:
        """Return all as JSON has it."""
        found = {"seconds": self.seconds, "cpu": self.cpu, "numbers": self.numbers}
        return {**found, "peak MiB": peak()}


def scaled(count: int) -> int:
    return max(int(count * SCALE), 1)


def peak() -> float:
    """Return the most memory that this process had, in MiB."""
    try:
        # what `getrusage` says begins with what the process that started this one had
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident() -> float:
    """Return the memory of this process, in MiB; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * resource.getpagesize() / 2**20


def storage_in(folder: Path) -> Any:
    """Return the storage of a workload's repository, which counts if that is asked for."""
    import icechunk

    if PLACE is None:
        storage: Any = icechunk.local_filesystem_storage(str(folder / "repository"))
    else:
        storage = icechunk.s3_storage(
            bucket=PLACE["bucket"],
            prefix=folder.name,
            region=PLACE["region"],
            endpoint_url=PLACE["endpoint_url"],
            access_key_id=PLACE["access_key_id"],
            secret_access_key=PLACE["secret_access_key"],
            allow_http=True,
            force_path_style=True,
        )
    if os.environ.get("ICECHUNK_BENCH_COUNT"):
        storage = icechunk.CountingStorage(storage)
        COUNTING.append(storage)
    return storage


def plain_store(folder: Path) -> Any:
    """Return zarr's own store in the same place."""
    import zarr

    if PLACE is None:
        return zarr.storage.LocalStore(str(folder / "repository"))
    from obstore.store import S3Store

    store = S3Store(
        PLACE["bucket"],
        prefix=folder.name,
        region=PLACE["region"],
        endpoint=PLACE["endpoint_url"],
        access_key_id=PLACE["access_key_id"],
        secret_access_key=PLACE["secret_access_key"],
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )
    return zarr.storage.ObjectStore(store)
