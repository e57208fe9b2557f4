"""Branches, tags, conflicts and their solution."""

import zarr

import icechunk

repo = icechunk.Repository.create(icechunk.in_memory_storage())
with repo.transaction("main", message="Start") as store:
    zarr.create_array(store, name="a", shape=(4,), chunks=(1,), dtype="i4")[:] = 0

# --8<-- [start:branch]
import zarr

repo.create_branch("trial", snapshot_id=repo.resolve("main"))
with repo.transaction("trial", message="Try") as store:
    zarr.open_array(store, path="a")[0] = 7

print(repo.diff(from_branch="main", to_branch="trial"))
repo.reset_branch("main", repo.resolve("trial"))  # or delete the branch, and forget it
# --8<-- [end:branch]
assert zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[0] == 7

# --8<-- [start:conflict]
import icechunk

mine = repo.writable_session("main")
zarr.open_array(mine.store, path="a")[1] = 1

with repo.transaction("main", message="Somebody is faster") as store:
    zarr.open_array(store, path="a")[2] = 2

try:
    mine.commit("Mine")
except icechunk.ConflictError as error:
    print(error)  # nothing is lost: the session still has its changes
    mine.commit("Mine", rebase_with=icechunk.ConflictDetector())
# --8<-- [end:conflict]
values = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:].tolist()
assert values == [7, 1, 2, 0]

# --8<-- [start:rework]
repo.squash("main", "main~2", "Two commits as one")
repo.revert("main", "main")  # taken back, by a new commit
repo.create_branch("again", repo.resolve("main"))
repo.cherry_pick("again", "main~1")  # and made once more, on another branch

for commit in repo.ancestry(branch="again"):
    print(commit.message)
# --8<-- [end:rework]
values = zarr.open_array(repo.readonly_session("again").store, path="a", mode="r")[:].tolist()
assert values == [7, 1, 2, 0]

# --8<-- [start:elsewhere]
print(repo.annotate("a", "again"))  # which commit last changed each chunk

backup = icechunk.local_filesystem_storage("backup")
copied = repo.copy_to(backup, "again")  # a branch with its history
print(copied.snapshots, "versions,", copied.skipped, "objects were there")
# --8<-- [end:elsewhere]
assert icechunk.Repository.open(backup).verify().ok
