"""A crowd of processes that commit to one branch: with ``fair=True``, without, and official.

``python tests/benchmarks/crowd.py --processes 20 --commits 20 --arrays 150 --latency 20``

Every commit changes one chunk of each array. Beside it one process does the same alone, for
what a commit writes if nobody disturbs it. Objects are counted by a listing at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import zarr

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from icechunk import LocalStorage, Repository, s3_storage  # noqa: E402
from tests.benchmarks.delay import delayed  # noqa: E402
from tests.servers import s3_server  # noqa: E402

WRITER = str(Path(__file__).with_name("crowd_writer.py"))


@contextmanager
def places(kind: str, latency: float) -> Iterator[Any]:
    """Yield a function that makes a new place, with the arguments of `s3_storage` or a folder."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        if kind == "folder":
            yield lambda: {"folder": f"{folder}/{uuid.uuid4().hex}"}
            return
        with s3_server(Path(folder)) as server:
            address = urlsplit(server.endpoint_url)
            with delayed(address.hostname or "", address.port or 0, latency) as port:
                yield lambda: {
                    "bucket": server.bucket,
                    "prefix": uuid.uuid4().hex,
                    "region": server.region,
                    "endpoint_url": f"http://127.0.0.1:{port}",
                    "allow_http": True,
                    "force_path_style": True,
                    "access_key_id": server.access_key_id,
                    "secret_access_key": server.secret_access_key,
                }


def environment(python: str) -> dict[str, str]:
    """Return the environment of a client: the official one must not find this one."""
    others = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {**others, "PYTHONPATH": str(ROOT)} if python == sys.executable else others


def crowd(
    python: str, place: Any, options: argparse.Namespace, processes: int, **more: Any
) -> tuple[list[dict[str, Any]], float, int, int]:
    """Return what each commit took, the seconds of all, failed processes, and objects before."""
    names = [f"a{i}" for i in range(options.arrays)]
    chunks = processes * options.commits
    made = {"creates": True, "place": place, "names": names, "chunks": chunks}
    subprocess.run([python, WRITER, json.dumps(made)], check=True, env=environment(python))
    before = sum(stored(place).values())
    writers = []
    for number in range(processes):
        chosen = {
            "place": place,
            "names": names[number::processes] if options.own else names,
            "first": number * options.commits,
            "commits": options.commits,
            "more": more,
        }
        writers.append(
            subprocess.Popen(
                [python, "-W", "ignore", WRITER, json.dumps(chosen)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment(python),
            )
        )
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    began = time.perf_counter()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    if options.kill:
        time.sleep(options.kill)
        writers[0].send_signal(signal.SIGKILL)
    taken: list[dict[str, Any]] = []
    failed = 0
    for writer in writers:
        rest = max(options.limit - (time.perf_counter() - began), 1.0)
        try:
            output, _ = writer.communicate(timeout=rest)
        except subprocess.TimeoutExpired:
            writer.kill()
            output, _ = writer.communicate()
        failed += writer.returncode != 0
        taken += [json.loads(line) for line in output.splitlines() if line.endswith("}")]
    return taken, time.perf_counter() - began, failed, before


def stored(place: Any) -> Counter[str]:
    """Return how many objects there are, by folder."""
    storage = LocalStorage(place["folder"]) if "folder" in place else s3_storage(**place)
    return Counter(meta.key.partition("/")[0] for meta in storage.list())


def check(place: Any, options: argparse.Namespace, processes: int) -> int:
    """Return how many commits' chunks are there, of the first array that each one wrote."""
    storage = LocalStorage(place["folder"]) if "folder" in place else s3_storage(**place)
    store = Repository.open(storage).readonly_session("main").store
    there = 0
    for number in range(processes):
        array: Any = zarr.open_array(store, path=f"a{number if options.own else 0}", mode="r")
        first = number * options.commits
        values = array[first : first + options.commits].tolist()
        there += sum(value == first + i + 1 for i, value in enumerate(values))
    return there


def report(name: str, place: Any, options: argparse.Namespace, processes: int, found: Any) -> None:
    """Print a line."""
    taken, seconds, failed, before = found
    if not taken:
        print(f"{name}: no commit in {seconds:.0f} s")
        return
    folders = stored(place)
    objects = (sum(folders.values()) - before) / len(taken)
    attempts = [each["attempts"] for each in taken]
    times = sorted(each["seconds"] for each in taken)
    noted = [each["objects"] for each in taken if "objects" in each]
    there = check(place, options, processes)
    print(
        f"{name}: {len(taken)} commits in {seconds:.1f} s ({there} there, {failed} "
        f"processes failed); objects a commit: {objects:.1f} stored"
        + (f", {statistics.mean(noted):.1f} written" if noted else "")
        + f"; attempts mean {statistics.mean(attempts):.2f}, most {max(attempts)}; latency median "
        f"{statistics.median(times):.2f} s, longest {times[-1]:.2f} s; {dict(folders)}",
        flush=True,
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--commits", type=int, default=5)
    parser.add_argument("--arrays", type=int, default=20)
    parser.add_argument("--latency", type=float, default=20.0, help="milliseconds a request")
    parser.add_argument("--place", choices=["s3", "folder"], default="s3")
    parser.add_argument("--own", action="store_true", help="arrays of its own for each process")
    parser.add_argument("--kill", type=float, default=0.0, help="kill one after so many seconds")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for each client")
    parser.add_argument("--who", default="fair,plain,official")
    options = parser.parse_args()
    official = os.environ.get("ICECHUNK_OFFICIAL_PYTHON", "")
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "fair": (sys.executable, {"fair": True}),
        "plain": (sys.executable, {}),
        "official": (official, {}),
    }
    with places(options.place, options.latency / 1000) as new:
        place = new()
        report("alone", place, options, 1, crowd(sys.executable, place, options, 1))
        for who in options.who.split(","):
            python, more = ways[who]
            if python:
                place = new()
                found = crowd(python, place, options, options.processes, **more)
                report(who, place, options, options.processes, found)


if __name__ == "__main__":
    main()
