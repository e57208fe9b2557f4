"""What the README shows is run as it stands there, from top to bottom."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import xarray as xr

from icechunk import Repository
from icechunk_xarray import to_icechunk
from tests.kerchunk.base import scan

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def month(path: Path, start: int) -> None:
    """Write a file as archives have them."""
    path.parent.mkdir(exist_ok=True)
    values = ("time", np.arange(start, start + 4, dtype="f4"))
    dataset = xr.Dataset({"wind": values}, {"time": np.arange(start, start + 4)})
    dataset.to_netcdf(path, engine="h5netcdf", encoding={"wind": {"chunksizes": (2,)}})


def forecast(folder: Path) -> None:
    """Make what the first screen opens and reads."""
    month(folder / "files" / "1.nc", 0)
    month(folder / "files" / "2.nc", 4)
    for hour in (0, 1):
        data = xr.Dataset({"wind": ("x", np.full(3, float(hour)))})
        to_icechunk(data, folder / "forecast", mode="w")
    repository = Repository.open(folder / "forecast")
    repository.create_tag("v1", repository.resolve("main~1"))


def test_all_of_it_runs(tmp_path: Path) -> None:
    forecast(tmp_path)
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) > 8
    # the archive comes before what reads it, and after the block that makes its folder
    (at,) = (i for i, block in enumerate(blocks) if "archive/month.nc" in block)
    month(tmp_path / "elsewhere" / "month.nc", 0)
    month(tmp_path / "elsewhere" / "next.nc", 4)
    blocks.insert(
        at, "import shutil\nshutil.copytree('elsewhere', 'archive', dirs_exist_ok=True)\n"
    )
    references = scan(tmp_path / "elsewhere" / "next.nc", inline=500)
    text = json.dumps(references).replace(str(tmp_path / "elsewhere"), str(tmp_path / "archive"))
    (tmp_path / "next.json").write_text(text, encoding="utf-8")
    script = tmp_path / "readme.py"
    script.write_text("".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "{'/temperature': [[0, 0]]}" in done.stdout
