"""A write in parts that any processes do at any time."""

import zarr

import icechunk

repo = icechunk.Repository.create(icechunk.local_filesystem_storage("years"))
with repo.transaction("main", message="Empty") as store:
    zarr.create_array(store, name="temperature", shape=(4, 6), chunks=(1, 6), dtype="f4")

# --8<-- [start:create]
repo.jobs.create("backfill", keys=[2001, 2002, 2003, 2004], message="Four years")
# --8<-- [end:create]


# --8<-- [start:run]
import zarr


def write_year(store, year):
    zarr.open_array(store, path="temperature", mode="r+")[year - 2001] = float(year)


for index in range(4):  # each of these in a process of its own, on any machine
    repo.jobs.open("backfill").run(write_year, index)
# --8<-- [end:run]

# --8<-- [start:finish]
job = repo.jobs.open("backfill")
print(job.status())  # done, running, failed and missing parts
job.finish()
# --8<-- [end:finish]
array = zarr.open_array(repo.readonly_session("main").store, path="temperature", mode="r")
assert array[:, 0].tolist() == [2001, 2002, 2003, 2004]
assert job.status().state == "finished"
