"""Both clients do the same work in turn, in processes of their own; ratios are printed.

Nothing is asserted about speed: machines differ, and this is for people to read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKLOADS = Path(__file__).with_name("workloads.py")
ROUNDS = 3


def _run(python: str, name: str) -> dict[str, float]:
    done = subprocess.run(
        [python, str(WORKLOADS), name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@pytest.mark.parametrize("name", ["virtual_references", "small_chunks", "large_chunks", "commits"])
def test_compare(name: str) -> None:
    official = os.environ.get("ICECHUNK_OFFICIAL_PYTHON")
    pythons = {"ours": sys.executable, **({"official": official} if official else {})}
    runs: dict[str, list[dict[str, float]]] = {who: [] for who in pythons}
    for _ in range(ROUNDS):
        for who, python in pythons.items():
            runs[who].append(_run(python, name))
    print(f"\n{name}: medians of {ROUNDS} runs in turn, seconds or MiB")
    for step in runs["ours"][0]:
        medians = {who: _median([run[step] for run in many]) for who, many in runs.items()}
        line = f"  {step:22}" + "".join(f" {who} {value:9.3f}" for who, value in medians.items())
        if official:
            line += f"   ours/official {medians['ours'] / medians['official']:.2f}"
        print(line)
