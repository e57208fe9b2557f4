"""NetCDF files as one virtual dataset, and the next file appended."""

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

Path("archive").mkdir()


def write(month: int) -> None:
    days = pd.date_range(f"2024-{month:02}-01", periods=28)
    values = np.full((28, 4, 5), float(month), np.float32)
    xr.Dataset({"t": (("time", "y", "x"), values)}, {"time": days}).to_netcdf(
        f"archive/{month:02}.nc", engine="h5netcdf", encoding={"t": {"chunksizes": (28, 4, 5)}}
    )


for month in (1, 2, 3):
    write(month)

# --8<-- [start:virtualize]
from icechunk_dask import virtualize

report = virtualize("archive/*.nc", "catalogue", concat_dims=["time"])
print(report)  # what became of each file and variable, and how to open the result
report.raise_for_failures()
# --8<-- [end:virtualize]

# --8<-- [start:open]
from pathlib import Path

import xarray as xr

import icechunk

prefix = f"file://{Path('archive').resolve()}/"
dataset = xr.open_dataset(
    "catalogue",
    engine="icechunk",
    authorize_virtual_chunk_access={prefix: icechunk.credentials.LocalFileSystemAccess},
)
# --8<-- [end:open]
xr.testing.assert_equal(dataset.load(), xr.open_mfdataset("archive/*.nc", engine="h5netcdf").load())

write(4)
# --8<-- [start:append]
virtualize("archive/*.nc", "catalogue", concat_dims=["time"])  # adds what is new
# --8<-- [end:append]
grown = xr.open_dataset(
    "catalogue",
    engine="icechunk",
    authorize_virtual_chunk_access={prefix: icechunk.credentials.LocalFileSystemAccess},
)
assert grown.sizes["time"] == 112

write(2)  # somebody processed this month again
# --8<-- [start:replace]
virtualize("archive/*.nc", "catalogue", concat_dims=["time"], on_changed="replace")
# --8<-- [end:replace]

# --8<-- [start:remove]
from icechunk_dask import remove_files

remove_files("archive/03.nc", "catalogue")  # older versions keep it
# --8<-- [end:remove]
fewer = xr.open_dataset(
    "catalogue",
    engine="icechunk",
    authorize_virtual_chunk_access={prefix: icechunk.credentials.LocalFileSystemAccess},
)
assert fewer.sizes["time"] == 84
assert sorted(set(fewer.t.values.ravel().tolist())) == [1, 2, 4]
