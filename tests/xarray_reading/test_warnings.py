"""What zarr warns of again and again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import numpy as np
import xarray as xr
from zarr.codecs import numcodecs
from icechunk_xarray import to_icechunk

compressed = {"v": {"compressors": [numcodecs.Zlib(level=1)]}}
to_icechunk(xr.Dataset({"v": ("x", np.arange(6.0))}), sys.argv[1], encoding=compressed)
for chunks in (None, {}):
    xr.open_dataset(sys.argv[1], engine="icechunk", chunks=chunks).load()
"""

#: What zarr says itself; newer versions know these codecs.
ZARR = """
import sys
import zarr
from zarr.codecs import numcodecs

zarr.create_array(sys.argv[1], shape=(6,), dtype="f8", compressors=[numcodecs.Zlib(level=1)])
"""


def warned(script: str, place: Path, *options: str) -> bool:
    done = subprocess.run(
        [sys.executable, *options, "-c", script, str(place)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return "Numcodecs codecs" in done.stderr


@pytest.mark.parametrize(("options", "shown"), [((), False), (("-W", "always"), True)])
def test_codecs_of_netcdf_files(options: tuple[str, ...], shown: bool, tmp_path: Path) -> None:
    """Nothing is said of them, unless the user asks for all warnings."""
    shown = shown and warned(ZARR, tmp_path / "zarr", "-W", "always")
    assert warned(SCRIPT, tmp_path / "repository", *options) == shown
