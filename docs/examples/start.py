"""Create a repository, write two versions with xarray, and open either."""

# --8<-- [start:write]
import numpy as np
import pandas as pd
import xarray as xr

from icechunk_xarray import to_icechunk

days = pd.date_range("2024-01-01", periods=4)
weather = xr.Dataset(
    {"temperature": (("day", "station"), np.full((4, 3), 15.0))},
    coords={"day": days, "station": [10513, 3955, 1492]},
)
to_icechunk(weather, "weather", message="Four days")  # a folder, or s3://bucket/prefix
# --8<-- [end:write]

# --8<-- [start:change]
to_icechunk(weather + 1, "weather", mode="a", message="One degree warmer")
# --8<-- [end:change]

# --8<-- [start:open]
newest = xr.open_dataset("weather", engine="icechunk")
before = xr.open_dataset("weather", engine="icechunk", ref="main~1")
print(float(newest.temperature[0, 0]), float(before.temperature[0, 0]))  # 16.0 15.0
# --8<-- [end:open]
assert (float(newest.temperature[0, 0]), float(before.temperature[0, 0])) == (16.0, 15.0)

# --8<-- [start:tag]
import icechunk

repo = icechunk.Repository.open(icechunk.local_filesystem_storage("weather"))
repo.create_tag("v1", snapshot_id=repo.resolve("main~1"))
for commit in repo.ancestry(branch="main"):
    print(commit.id, commit.written_at, commit.message)
# --8<-- [end:tag]
tagged = xr.open_dataset("weather", engine="icechunk", tag="v1")
assert tagged.temperature.equals(before.temperature)
