"""One table of both clients: ``python table.py [--json] [--scale 0.1] [--rounds 3] [NAME ...]``.

Each round runs every workload once under each client, in turn, in a process of its own. Nothing
is asserted about speed: machines differ, and this is for people to read. The official client
takes part where ``ICECHUNK_OFFICIAL_PYTHON`` names its Python. Requests are counted in a run of
their own, of this project, as counting takes time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKLOADS = Path(__file__).with_name("workloads.py")
NAMES = (
    "virtual_references",
    "distinct_references",
    "many_arrays",
    "long_history",
    "small_chunks",
    "many_manifests",
    "large_chunks",
    "commits",
)
#: What a workload says of all its steps together.
WHOLE = ("peak MiB", "objects", "requests")


def measured(python: str, name: str, scale: float, **environment: str) -> dict[str, float]:
    """Run a workload in a process of its own, and return what it printed."""
    # a path that leads to this project would hide the official client
    hidden = () if python == sys.executable else ("PYTHONPATH",)
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        [python, "-W", "ignore", str(WORKLOADS), name, str(scale)],
        capture_output=True,
        text=True,
        check=False,
        env=kept | environment,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed under {python}:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def rows(name: str, scale: float, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each step of a workload.

    Returns
    -------
    list of dict
        With ``workload``, ``step``, and by client (``ours``, ``official``) the ``median``, and
        the ``spread`` from least to most; ``ratio``, of the official median to ours: above 1 is
        faster, or less.
    """
    official = os.environ.get("ICECHUNK_OFFICIAL_PYTHON")
    pythons = {"ours": sys.executable, **({"official": official} if official else {})}
    runs: dict[str, list[dict[str, float]]] = {who: [] for who in pythons}
    for _ in range(rounds):
        for who, python in pythons.items():
            runs[who].append(measured(python, name, scale))
    requests = measured(sys.executable, name, scale, ICECHUNK_BENCH_COUNT="1")["requests"]
    steps = sorted(runs["ours"][0], key=WHOLE.__contains__)
    found = [{"workload": name, "step": step, **_compared(runs, step)} for step in steps]
    whole = {"workload": name, "step": "requests"}
    return [*found, {**whole, "ours": {"median": requests, "spread": 0.0}}]


def _compared(runs: dict[str, list[dict[str, float]]], step: str) -> dict[str, Any]:
    compared: dict[str, Any] = {}
    for who, many in runs.items():
        values = [run[step] for run in many]
        spread = max(values) - min(values)
        compared[who] = {"median": statistics.median(values), "spread": spread}
    if "official" in compared and compared["ours"]["median"]:
        compared["ratio"] = compared["official"]["median"] / compared["ours"]["median"]
    return compared


def line(row: dict[str, Any]) -> str:
    """Return a row as text; times are in seconds."""
    cells = [f"{row['workload']:20} {row['step']:26}"]
    for who in ("ours", "official"):
        value = row.get(who)
        cells.append(f"{value['median']:10.3f} ±{value['spread'] / 2:8.3f}" if value else " " * 20)
    return " ".join([*cells, f"{row['ratio']:7.2f}" if "ratio" in row else ""]).rstrip()


def main() -> None:
    """Print the table, or the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown workloads {sorted(unknown)}; there are {', '.join(NAMES)}")
    every: list[dict[str, Any]] = []
    if not options.json:
        print(f"{'workload':20} {'step':26} {'ours':>20} {'official':>20} {'ratio':>7}")
    for name in options.names:
        found = rows(name, options.scale, options.rounds)
        every += found
        if not options.json:
            print("\n".join(map(line, found)), flush=True)
    if options.json:
        print(json.dumps(every, indent=1))


if __name__ == "__main__":
    main()
