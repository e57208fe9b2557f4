"""The page of speed is made from what was measured, and tells what misses its goal."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks import page


def row(workload: str, place: str, ours: float, **others: float) -> dict[str, Any]:
    """Return a row whose times on the wall are twice those of the processor."""
    times = {"ours": ours, **others}
    told = {who: {"median": t, "spread": 0.0, "cpu": t / 2} for who, t in times.items()}
    names = {"official": "ratio", "zarr": "floor"}
    ratios = {names[who]: time / ours for who, time in others.items()}
    named = {"workload": workload, "place": place, "scale": 0.1, "step": "read", "unit": "s"}
    return {**named, **told, **ratios}


@pytest.mark.parametrize(("ours", "is_missed"), [(1.0, False), (2.0, True)])
def test_what_misses_its_goal_is_told(ours: float, is_missed: bool) -> None:
    rows = [
        row("small_chunks", "folder", ours, official=3.0, zarr=1.0),
        row("chunks_of_12_mb", "s3", ours, official=0.5, zarr=1.0),
        # elsewhere there is no goal
        row("small_chunks", "s3", ours, official=1.0, zarr=1.0),
    ]
    measured = {"machine": "one", "scale": 0.1, "load": [1.5, 2.5], "minutes": 3, "rows": rows}
    text = page.table(measured)
    assert "load 1.5 before and 2.5 after 3 minutes" in text
    first = next(line for line in text.splitlines() if line.startswith("| `small_chunks` | folder"))
    assert first.split(" | ")[-3:] == [f"{3 / ours:.2g}", f"{3 / ours:.2g}", "3 |"]
    missed = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(missed) == (2 if is_missed else 0)
    assert all("no profile was taken yet" not in line for line in missed)


def test_every_reason_is_of_a_row_with_a_goal() -> None:
    floors = {workload for workload, _ in page.FLOORS}
    assert all(key in page.GOALS or key[0] in floors for key in page.REASONS)


def test_what_fails_is_told() -> None:
    named = {"workload": "append", "place": "s3", "scale": 2}
    failed = {**named, "step": "failed", "failures": {"ours": "no"}}
    text = page.table({"machine": "one", "scale": 1, "rows": [failed]})
    assert "`append` (s3), ours: no" in text
    assert "scale 1, of `append` 2" in text
