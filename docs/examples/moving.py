"""From a plain Zarr store, and from the official client."""

import zarr

group = zarr.create_group("plain.zarr")
group.create_array("a", shape=(4,), dtype="f4", dimension_names=["x"])[:] = [1, 2, 3, 4]

# --8<-- [start:zarr]
import xarray as xr

from icechunk_xarray import to_icechunk

to_icechunk(xr.open_zarr("plain.zarr", consolidated=False), "moved", message="From plain Zarr")
# --8<-- [end:zarr]
assert xr.open_dataset("moved", engine="icechunk").a.values.tolist() == [1, 2, 3, 4]

import icechunk

icechunk.Repository.create(icechunk.local_filesystem_storage("old"), spec_version=1)

# --8<-- [start:upgrade]
import icechunk

old = icechunk.Repository.open(icechunk.local_filesystem_storage("old"))
new = icechunk.upgrade_icechunk_repository(old, dry_run=False)  # go on with this one
# --8<-- [end:upgrade]
assert new.spec_version == 2
assert icechunk.Repository.fetch_spec_version(icechunk.local_filesystem_storage("old")) == 2
