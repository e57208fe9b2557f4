"""Writing, committing and reading, beside the official client."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.compare import compare

WORKLOADS = Path(__file__).with_name("workloads.py")


@pytest.mark.parametrize("name", ["virtual_references", "small_chunks", "large_chunks", "commits"])
def test_compare(name: str) -> None:
    compare(WORKLOADS, name, "seconds or MiB")
