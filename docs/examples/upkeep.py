"""Expire old versions, collect what they alone used, verify what is left."""

import zarr

import icechunk

storage = icechunk.local_filesystem_storage("kept")
repo = icechunk.Repository.create(storage)
for n in range(3):
    with repo.transaction("main", message=f"version {n}") as store:
        array = zarr.create_array(
            store, name="a", shape=(1000,), chunks=(1000,), dtype="f8", overwrite=True
        )
        array[:] = n + 0.5

# --8<-- [start:expire]
from datetime import UTC, datetime, timedelta

now = datetime.now(UTC)
repo.expire_snapshots(now - timedelta(days=30))  # out of the history
print(repo.garbage_collect(now - timedelta(days=2), dry_run=True))  # what would be deleted
repo.garbage_collect(now - timedelta(days=2))
# --8<-- [end:expire]

# --8<-- [start:verify]
found = repo.verify(deep="sample")
print(found)
found.raise_if_damaged()
# --8<-- [end:verify]
assert found.ok

# --8<-- [start:delete]
repo.reset_branch("main", repo.resolve("main~1"))  # away from the version that must go
repo.expire_snapshots(datetime.now(UTC))  # and out of the history
repo.garbage_collect(datetime.now(UTC))  # and out of the storage
# --8<-- [end:delete]
assert repo.verify(deep=True).ok
