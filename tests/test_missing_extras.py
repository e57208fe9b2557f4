"""Without an extra, what needs it says which one to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Imports as if a package were not installed.
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
try:
    {statement}
except (ImportError, SystemExit) as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("package", "statement", "message"),
    [
        (
            "xarray",
            "from icechunk_xarray import to_icechunk",
            "icechunk_xarray needs xarray: pip install 'icechunk[xarray]'",
        ),
        (
            "xarray",
            "from icechunk.xarray import to_icechunk",
            "icechunk.xarray.to_icechunk needs xarray: pip install 'icechunk[xarray]'",
        ),
        (
            "dask",
            "from icechunk_dask import store_dask",
            "icechunk_dask needs dask: pip install 'icechunk[dask]'",
        ),
        (
            "dask",
            "from icechunk.dask import store_dask",
            "icechunk.dask.store_dask needs dask: pip install 'icechunk[dask]'",
        ),
        (
            "cloudpickle",
            "import icechunk_dask",
            "icechunk_dask needs cloudpickle: pip install 'icechunk[dask]'",
        ),
        (
            "click",
            "import icechunk.__main__",
            "Error: the command line needs click: pip install 'icechunk[cli]'",
        ),
    ],
)
def test_what_to_install(package: str, statement: str, message: str) -> None:
    script = WITHOUT.format(package=package, statement=statement)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip().partition(".array")[0] == message, done.stderr
