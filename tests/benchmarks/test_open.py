"""Opening with xarray, beside the official client's store under the engine ``zarr``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.compare import compare


@pytest.mark.parametrize("where", ["local", "latency"])
def test_compare(where: str) -> None:
    compare(Path(__file__).with_name("opening.py"), where, "seconds")
