"""Writes with Dask by both clients, in turn and on clusters of the same shape.

Nothing is asserted about speed. Sizes are a twentieth of the full ones, which take about
an hour on two cores; ``ICECHUNK_BENCHMARK_SCALE=1`` asks for those.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

WORKLOADS = Path(__file__).with_name("dask_workloads.py")
SCALE = os.environ.get("ICECHUNK_BENCHMARK_SCALE", "0.05")


def run(python: str, name: str, folder: Path) -> dict[str, float]:
    # it is for this project's modules, which the other client must not see
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or python == sys.executable}
    done = subprocess.run(
        [python, str(WORKLOADS), name, SCALE],
        # the workers import what is in the folder where they are started
        cwd=folder,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def show(title: str, runs: Mapping[str, Mapping[str, float]]) -> None:
    print(f"\n{title}, scale {SCALE}")
    for step in {step: None for values in runs.values() for step in values}:
        cells = (
            f"{values[step]:15.3f}" if step in values else f"{'':15}" for values in runs.values()
        )
        print(f"  {step:28}" + "".join(cells))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("ingest_store_dask", ["ingest_to_zarr"]),
        ("ingest_to_icechunk", []),
        ("tiny_tasks", ["tiny_tasks_to_zarr"]),
    ],
)
def test_compare(name: str, more: list[str], tmp_path: Path) -> None:
    runs = {"ours": run(sys.executable, name, tmp_path)}
    official = os.environ.get("ICECHUNK_OFFICIAL_PYTHON")
    if official:
        runs["official"] = run(official, name, tmp_path)
    for other in more:
        runs["xarray.to_zarr"] = run(sys.executable, other, tmp_path)
    show(f"{name}, columns {', '.join(runs)}; seconds if no unit is given", runs)


@pytest.mark.parametrize("name", ["progress", "references"])
def test_ours(name: str, tmp_path: Path) -> None:
    results: Any = run(sys.executable, name, tmp_path)
    show(name, {"ours": results})
