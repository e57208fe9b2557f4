"""What to say in a bug report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from icechunk._version import __version__


def print_debug_info() -> None:
    """Print the versions of Python, of this library and of those that it works with.

    Examples
    --------
    >>> icechunk.print_debug_info()  # doctest: +SKIP
    """
    print(f"platform:  {platform.platform()}")
    print(f"python:  {platform.python_version()}")
    print(f"icechunk:  {__version__}")
    for package in ("zarr", "numpy", "obstore", "numcodecs", "xarray", "dask", "virtualizarr"):
        try:
            print(f"{package}:  {version(package)}")
        except PackageNotFoundError:
            continue
