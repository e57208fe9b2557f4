"""Sizes of chunks, shards and manifests, and what they amount to."""

# --8<-- [start:encoding]
import numpy as np
import xarray as xr

from icechunk_xarray import to_icechunk

values = np.zeros((64, 180, 360), np.float32)
data = xr.Dataset({"t": (("time", "lat", "lon"), values)}, {"time": np.arange(64)})
# a chunk is what is read at a time; a shard is what is stored as one object
encoding = {"t": {"chunks": (8, 90, 180), "shards": (32, 180, 360)}}
to_icechunk(data + 1, "sized", encoding=encoding)
# --8<-- [end:encoding]

# --8<-- [start:split]
import icechunk

splitting = icechunk.ManifestSplittingConfig.from_dict(
    {
        icechunk.ManifestSplitCondition.name_matches("t"): {
            icechunk.ManifestSplitDimCondition.DimensionName("time"): 1
        }
    }
)
config = icechunk.RepositoryConfig(manifest=icechunk.ManifestConfig(splitting=splitting))
repo = icechunk.Repository.open("sized", config=config)
repo.rewrite_manifests("One manifest for each 32 steps", branch="main")
# --8<-- [end:split]

# --8<-- [start:stats]
print(repo.chunk_storage_stats())
for manifest in repo.list_manifest_files(repo.resolve("main")):
    print(manifest.id, manifest.num_chunk_refs, manifest.size_bytes)
# --8<-- [end:stats]
assert repo.chunk_storage_stats().native_bytes > 0
assert len(repo.list_manifest_files(repo.resolve("main"))) >= 2
