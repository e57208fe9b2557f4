"""A folder of NetCDF files into one repository, resumable."""

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

Path("files").mkdir()
for month in range(1, 5):
    days = pd.date_range(f"2023-{month:02}-01", periods=28)
    values = np.full((28, 4, 5), float(month), np.float32)
    xr.Dataset({"t": (("time", "y", "x"), values)}, {"time": days}).to_netcdf(
        f"files/{month:02}.nc", engine="h5netcdf"
    )

# --8<-- [start:copy]
from icechunk_dask import ingest

report = ingest("files/*.nc", "copies", chunks={"time": 28})
report.raise_for_failures()
# --8<-- [end:copy]
assert xr.open_dataset("copies", engine="icechunk").sizes["time"] == 112

# --8<-- [start:append]
import xarray as xr

from icechunk_xarray import to_icechunk

to_icechunk(xr.open_dataset("files/01.nc", engine="h5netcdf"), "weather")
to_icechunk(xr.open_dataset("files/02.nc", engine="h5netcdf"), "weather", append_dim="time")
# --8<-- [end:append]
assert xr.open_dataset("weather", engine="icechunk").sizes["time"] == 56

# --8<-- [start:template]
from pathlib import Path

import numpy as np

import icechunk
from icechunk_xarray import initialize

files = sorted(Path("files").glob("*.nc"))
times = np.concatenate([xr.open_dataset(file, engine="h5netcdf").time.values for file in files])

# metadata and coordinates of all, and none of the data; a chunk for each file
first = xr.open_dataset(files[0], engine="h5netcdf", chunks={})
template = first.isel(time=[0]).reindex(time=times)
repo = icechunk.Repository.create(icechunk.local_filesystem_storage("months"))
initialize(template, repo, chunks={"time": 28}, message="Template")
# --8<-- [end:template]

# --8<-- [start:ingest]
from icechunk_dask import distributed_write


def ingest(store, file):
    month = xr.open_dataset(file, engine="h5netcdf").load()
    to_icechunk(month[["t", "time"]], store.session, region={"time": "auto"})


written = distributed_write(
    ingest, files, repo, key=str, message="Months", job="months", commit_every=2, executor="threads"
)
# --8<-- [end:ingest]

result = xr.open_dataset("months", engine="icechunk")
expected = xr.open_mfdataset(files, engine="h5netcdf")
xr.testing.assert_equal(result.load(), expected.load())
again = distributed_write(
    ingest, files, repo, key=str, message="Months", job="months", commit_every=2, executor="threads"
)
assert again.tasks == 0, again
