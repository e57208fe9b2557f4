"""xarray and Icechunk: write with `to_icechunk`.

Importing this package adds the accessor ``.icechunk`` to Datasets, DataArrays and DataTrees.
"""

from icechunk_xarray.accessor import IcechunkAccessor
from icechunk_xarray.writer import to_icechunk

__all__ = ["IcechunkAccessor", "to_icechunk"]
