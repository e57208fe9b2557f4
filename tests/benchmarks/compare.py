"""Both clients do the same work in turn, in processes of their own; ratios are printed.

Nothing is asserted about speed: machines differ, and this is for people to read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROUNDS = 3


def compare(script: Path, name: str, unit: str) -> None:
    """Run a script under each client and print the medians of what it measured.

    Parameters
    ----------
    script : Path
        Prints one JSON object of numbers by step.
    name : str
        Its argument.
    unit : str
        Of the numbers.
    """
    official = os.environ.get("ICECHUNK_OFFICIAL_PYTHON")
    pythons = {"ours": sys.executable, **({"official": official} if official else {})}
    runs: dict[str, list[dict[str, float]]] = {who: [] for who in pythons}
    for _ in range(ROUNDS):
        for who, python in pythons.items():
            runs[who].append(_run(python, script, name))
    print(f"\n{script.stem} {name}: medians of {ROUNDS} runs in turn, {unit}")
    for step in runs["ours"][0]:
        medians = {who: _median([run[step] for run in many]) for who, many in runs.items()}
        line = f"  {step:32}" + "".join(f" {who} {value:9.3f}" for who, value in medians.items())
        if official:
            line += f"   ours/official {medians['ours'] / medians['official']:.2f}"
        print(line)


def _run(python: str, script: Path, name: str) -> dict[str, float]:
    # a path that leads to this project would hide the official client
    hidden = () if python == sys.executable else ("PYTHONPATH",)
    done = subprocess.run(
        [python, str(script), name],
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key not in hidden},
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
