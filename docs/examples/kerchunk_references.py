"""References that kerchunk made, taken over and written out again."""

import json
from pathlib import Path

import numpy as np
import xarray as xr

Path("data").mkdir()
for n in (0, 1):
    hours = np.arange(4 * n, 4 * n + 4)
    # kerchunk takes chunks below 500 bytes over by value
    wind = np.repeat(hours.astype("f4")[:, None], 100, axis=1)
    xr.Dataset({"wind": (("time", "x"), wind)}, {"time": hours}).to_netcdf(
        f"data/{n}.nc", engine="h5netcdf", encoding={"wind": {"chunksizes": (2, 100)}}
    )

# --8<-- [start:make]
import json
from pathlib import Path

from kerchunk.hdf import SingleHdf5ToZarr

for n in (0, 1):
    references = SingleHdf5ToZarr(str(Path(f"data/{n}.nc").resolve())).translate()
    Path(f"{n}.json").write_text(json.dumps(references))
# --8<-- [end:make]

# --8<-- [start:import]
import icechunk
from icechunk.kerchunk import export_references, import_references

prefix = f"file://{Path('data').resolve()}/"
config = icechunk.RepositoryConfig()
config.set_virtual_chunk_container(
    icechunk.VirtualChunkContainer(prefix, icechunk.local_filesystem_store(prefix[7:]))
)
repo = icechunk.Repository.create(
    "references",
    config=config,
    authorize_virtual_chunk_access={prefix: icechunk.credentials.LocalFileSystemAccess},
)
session = repo.writable_session("main")
import_references("0.json", session)
session.commit("The first file")

session = repo.writable_session("main")
report = import_references("1.json", session, append_dim="time")
session.commit("The next one")
print(report)
# --8<-- [end:import]

# --8<-- [start:export]
export_references(repo.readonly_session("main"), "both.parquet", format="parquet")
# --8<-- [end:export]
dataset = xr.open_dataset(repo, engine="icechunk")
assert dataset.wind[:, 99].values.tolist() == list(range(8))
# where the references are read again, they say the same
again = xr.open_dataset("both.parquet", engine="kerchunk")
xr.testing.assert_identical(again.load(), dataset.load())
