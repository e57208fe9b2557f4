"""One table of both clients, and of zarr's own stores as the floor.

``python table.py [--json FILE] [--markdown] [--scale 0.3] [--rounds 2] [--places folder,s3,slow]
[NAME ...]``

Each round runs every workload once under each client, in turn, in a process of its own. Nothing
is asserted about speed: machines differ, and this is for people to read. The official client
takes part where ``ICECHUNK_OFFICIAL_PYTHON`` names its Python. Requests are counted in a run of
their own, of this project, as counting takes time. A workload that fails is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import page

HERE = Path(__file__).parent
WORKLOADS = HERE / "workloads.py"
#: Added to each request on the slow way to the server, in seconds.
DELAY = 0.03


class Workload(NamedTuple):
    """What is measured where, and by whom."""

    name: str
    places: tuple[str, ...] = ("folder",)
    #: Whether zarr's own stores can do it.
    has_floor: bool = False
    rounds: int | None = None
    #: Of the scale, elsewhere than in a folder.
    less: float = 1.0
    #: Unless another one is asked for.
    scale: float = 0.3


EVERYWHERE = ("folder", "s3", "slow")
DEFAULT = (
    Workload("importing"),
    Workload("virtual_references"),
    Workload("distinct_references"),
    Workload("long_locations", rounds=1),
    Workload("many_arrays"),
    Workload("append"),
    Workload("point_query"),
    Workload("forks"),
    Workload("ten_million", rounds=1, scale=1),
    Workload("long_history", rounds=2),
    Workload("all_day", ("folder", "s3"), less=0.3),
    Workload("small_chunks", EVERYWHERE, has_floor=True, less=0.1),
    Workload("packed_chunks", EVERYWHERE, has_floor=True, less=0.1),
    Workload("many_manifests", rounds=2),
    Workload("large_chunks", has_floor=True),
    Workload("chunks_of_800_kb", ("s3", "slow"), has_floor=True),
    Workload("chunks_of_12_mb", ("s3", "slow"), has_floor=True),
    Workload("chunks_of_50_mb", ("s3",), has_floor=True),
)
#: Only where they are named: they take minutes, and ten gigabytes.
ON_REQUEST = (Workload("thirty_million", rounds=1, scale=1),)


def measured(who: str, name: str, scale: float, place: str, **more: str) -> dict[str, Any]:
    """Run a workload in a process of its own, and return what it printed."""
    python = os.environ["ICECHUNK_OFFICIAL_PYTHON"] if who == "official" else sys.executable
    # a path that leads to this project would hide the official client
    hidden = ("PYTHONPATH",) if who == "official" else ()
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"ICECHUNK_BENCH_PLACE": place, **more}
    if who == "zarr":
        environment["ICECHUNK_BENCH_CLIENT"] = "zarr"
    try:
        done = subprocess.run(
            [python, "-W", "ignore", str(WORKLOADS), name, str(scale)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=900,
        )
    except subprocess.TimeoutExpired:
        return {"failed": "took more than 15 minutes"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def rows(workload: Workload, where: str, place: str, scale: float, rounds: int) -> list[Any]:
    """Return a row for each step of a workload.

    Returns
    -------
    list of dict
        With ``workload``, ``place``, ``step``, ``unit``, and by client (``ours``, ``official``,
        ``zarr``) the ``median``, and the ``spread`` from least to most; of times also ``cpu``.
        ``ratio`` is that of the official median to ours, ``floor`` that of zarr's: above 1 is
        faster, or less.
    """
    clients = ["ours"]
    clients += ["official"] if os.environ.get("ICECHUNK_OFFICIAL_PYTHON") else []
    clients += ["zarr"] if workload.has_floor else []
    runs: dict[str, list[dict[str, Any]]] = {who: [] for who in clients}
    for _ in range(rounds):
        for who in clients:
            runs[who].append(measured(who, workload.name, scale, place))
    if where == "folder" and workload.name != "importing":
        counted = measured("ours", workload.name, scale, place, ICECHUNK_BENCH_COUNT="1")
        if "numbers" in counted:
            for run in runs["ours"]:
                run.setdefault("numbers", {})["requests"] = counted["numbers"]["requests"]
    named = {"workload": workload.name, "place": where, "scale": scale}
    failures = {who: run["failed"] for who in clients for run in runs[who] if "failed" in run}
    found: list[dict[str, Any]] = []
    if failures:
        found.append({**named, "step": "failed", "unit": "", "failures": failures})
    good = {who: [run for run in many if "seconds" in run] for who, many in runs.items()}
    first = next((many[0] for many in good.values() if many), None)
    if first is None:
        return found
    for step in first["seconds"]:
        found.append({**named, "step": step, "unit": "s", **_compared(good, step, "seconds")})
    numbers = dict.fromkeys(key for many in good.values() for run in many for key in run["numbers"])
    for step in numbers:
        found.append({**named, "step": step, "unit": "", **_compared(good, step, "numbers")})
    for many in good.values():
        for run in many:
            run["numbers"]["peak MiB"] = run["peak MiB"]
    found.append(
        {**named, "step": "peak MiB", "unit": "", **_compared(good, "peak MiB", "numbers")}
    )
    return found


def _compared(runs: dict[str, list[dict[str, Any]]], step: str, kind: str) -> dict[str, Any]:
    compared: dict[str, Any] = {}
    for who, many in runs.items():
        values = [run[kind][step] for run in many if step in run[kind]]
        if not values:
            continue
        told = {"median": statistics.median(values), "spread": max(values) - min(values)}
        if kind == "seconds":
            told["cpu"] = statistics.median(run["cpu"][step] for run in many)
        compared[who] = told
    for name, other in (("ratio", "official"), ("floor", "zarr")):
        if other in compared and compared.get("ours", {}).get("median"):
            compared[name] = compared[other]["median"] / compared["ours"]["median"]
    return compared


def line(row: dict[str, Any]) -> str:
    """Return a row as text; times are in seconds."""
    name = f"{row['workload']} ({row['place']})"
    if "failures" in row:
        return f"{name:32} FAILED {row['failures']}"
    cells = [f"{name:32} {row['step']:36}"]
    for who in ("ours", "official", "zarr"):
        value = row.get(who)
        cells.append(f"{value['median']:11.3f} ±{value['spread'] / 2:8.3f}" if value else " " * 21)
    cells += [f"{row[key]:7.2f}" if key in row else " " * 7 for key in ("ratio", "floor")]
    return " ".join(cells).rstrip()


def places(wanted: list[str], stack: ExitStack) -> Iterator[tuple[str, str]]:
    """Yield names of places, and what the workloads get to know of them."""
    if "folder" in wanted:
        yield "folder", "null"
    if not {"s3", "slow"} & set(wanted):
        return
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.benchmarks.delay import delayed
    from tests.servers import s3_server

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    server = stack.enter_context(s3_server(folder))
    told = {
        key: getattr(server, key)
        for key in ("bucket", "region", "endpoint_url", "access_key_id", "secret_access_key")
    }
    if "s3" in wanted:
        yield "s3", json.dumps(told)
    if "slow" in wanted:
        parts = urlsplit(server.endpoint_url)
        port = stack.enter_context(delayed(parts.hostname or "", parts.port or 80, DELAY))
        yield "slow", json.dumps({**told, "endpoint_url": f"http://127.0.0.1:{port}"})


def main() -> None:
    """Print the table, and store the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", type=Path, help="where to store the rows")
    parser.add_argument("--markdown", action="store_true", help="write the page of the docs anew")
    parser.add_argument("--scale", type=float, help="of all workloads (default: 0.3 of most)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--places", default="folder,s3,slow")
    options = parser.parse_args()
    known = {workload.name: workload for workload in (*DEFAULT, *ON_REQUEST)}
    if unknown := set(options.names) - known.keys():
        parser.error(f"unknown workloads {sorted(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in options.names] or list(DEFAULT)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    usual = options.scale or Workload("").scale
    every: dict[str, Any] = {"machine": machine, "scale": usual, "rows": []}
    every["load"] = [round(os.getloadavg()[0], 1)]
    heads = f"{'ours':>21} {'official':>21} {'zarr':>21} {'ratio':>7} {'floor':>7}"
    print(f"{'workload':32} {'step':36} {heads}", flush=True)
    begin = time.monotonic()
    with ExitStack() as stack:
        for where, place in places(options.places.split(","), stack):
            for workload in chosen:
                if where not in workload.places:
                    continue
                scale = options.scale or workload.scale
                scale *= 1 if where == "folder" else workload.less
                rounds = min(workload.rounds or options.rounds, options.rounds)
                found = rows(workload, where, place, scale, rounds)
                every["rows"] += found
                print("\n".join(map(line, found)), flush=True)
                if options.json:
                    options.json.write_text(json.dumps(every, indent=1))
    every["minutes"] = round((time.monotonic() - begin) / 60, 1)
    every["load"].append(round(os.getloadavg()[0], 1))
    print(f"took {every['minutes']} minutes")
    if options.json:
        options.json.write_text(json.dumps(every, indent=1))
    if options.markdown:
        page.write(every)


if __name__ == "__main__":
    main()
