"""A large dataset that is written in batches, or by many processes, and can be resumed."""

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

import icechunk

ds = xr.Dataset(
    {"t": (("time", "y", "x"), da.ones((48, 10, 10), chunks=(12, 10, 10), dtype="f4"))},
    {"time": pd.date_range("2024-01-01", periods=48, freq="h"), "y": np.arange(10)},
)

# --8<-- [start:job]
from icechunk_xarray import to_icechunk

to_icechunk(ds, "hours", job="2024", commit_every="1GB")
# --8<-- [end:job]
tip = icechunk.Repository.open("hours").lookup_branch("main")
assert to_icechunk(ds, "hours", job="2024", commit_every="1GB") == tip

# --8<-- [start:template]
import icechunk
from icechunk_xarray import initialize, plan_regions

initialize(ds, "many", chunks={"time": 6})  # arrays and coordinates, and no data
repo = icechunk.Repository.open("many")
regions = plan_regions(repo, "500MB")  # the same in every process
repo.jobs.create("fill", keys=range(len(regions)), message="Values of 2024")
# --8<-- [end:template]
regions = plan_regions(repo, 8_000)
repo.jobs.delete("fill")
repo.jobs.create("fill", keys=range(len(regions)), message="Values of 2024")
assert len(regions) == 3


# --8<-- [start:regions]
def fill(store, number):
    region = regions[number]
    to_icechunk(ds.isel(region), store, region=region)


for number in range(len(regions)):  # each of these in a process of its own, on any machine
    repo.jobs.open("fill").run(fill, number)
repo.jobs.open("fill").finish()
# --8<-- [end:regions]
for name in ("hours", "many"):
    found = xr.open_dataset(name, engine="icechunk").load()
    xr.testing.assert_identical(found, ds.load())
