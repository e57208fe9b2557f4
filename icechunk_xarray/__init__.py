"""xarray and Icechunk: write with `to_icechunk`, or in many processes after `initialize`.

Importing this package adds the accessor ``.icechunk`` to Datasets, DataArrays and DataTrees.
"""

import warnings

try:
    from icechunk_xarray.accessor import IcechunkAccessor
    from icechunk_xarray.regions import plan_regions
    from icechunk_xarray.templates import initialize
    from icechunk_xarray.writer import to_icechunk
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"icechunk_xarray needs {error.name}: pip install 'icechunk[xarray]'", name=error.name
    ) from error

# zarr warns about zlib and shuffle for each array, and nearly all NetCDF files have them; filters
# of the user take precedence
warnings.filterwarnings(
    "ignore", message="Numcodecs codecs are not in the Zarr version 3 specification", append=True
)

__all__ = ["IcechunkAccessor", "initialize", "plan_regions", "to_icechunk"]
