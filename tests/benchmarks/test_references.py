"""Millions of references: imported from Parquet, and set from arrays by both clients.

A million by default; ``ICECHUNK_BENCH_REFERENCES=10000000`` for ten. Each step is a process
of its own, so that its memory is its own. Nothing is asserted about speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

COUNT = int(os.environ.get("ICECHUNK_BENCH_REFERENCES", 1_000_000))
SCRIPT = Path(__file__).with_name("references.py")


def run(python: str, *arguments: Any) -> dict[str, float]:
    done = subprocess.run(
        [python, "-W", "ignore", str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ICECHUNK_LOG": "error"}
        if python == sys.executable
        else {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    found: dict[str, float] = json.loads(lines[-1]) if lines else {}
    return found


def test_references(tmp_path: Path) -> None:
    official = os.environ.get("ICECHUNK_OFFICIAL_PYTHON")
    source = tmp_path / "parquet"
    run(sys.executable, "make", COUNT, source)
    runs = [("ours", "parquet", sys.executable), ("ours", "arrays", sys.executable)]
    runs += [("official", "arrays", official)] if official else []
    print(f"\n{COUNT:,} references: seconds, MiB, bytes")
    for who, how, python in runs:
        folder = tmp_path / f"{who}-{how}"
        steps = run(python, how, COUNT, source, folder)
        steps |= run(python, "read", COUNT, folder)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in steps.items())
        print(f"  {who:8} from {how:7}: {shown}")
