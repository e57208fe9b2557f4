"""Expire old versions, collect what they alone used, verify what is left, delete for good."""

from pathlib import Path

import numpy as np
import zarr

import icechunk

storage = icechunk.local_filesystem_storage("kept")
repo = icechunk.Repository.create(storage)
for n in range(3):
    with repo.transaction("main", message=f"version {n}") as store:
        array = zarr.create_array(
            store, name="a", shape=(1000,), chunks=(1000,), dtype="f8", overwrite=True
        )
        array[:] = np.random.default_rng(n).random(1000)

# --8<-- [start:expire]
from datetime import UTC, datetime, timedelta

now = datetime.now(UTC)
repo.expire_snapshots(now - timedelta(days=30))  # out of the history
print(repo.garbage_collect(now - timedelta(days=2), dry_run=True))  # what would be deleted
repo.garbage_collect(now - timedelta(days=2))
# --8<-- [end:expire]

# --8<-- [start:repack]
print(repo.repack("main", dry_run=True))  # objects that chunks share, and what they waste
repo.repack("main", max_waste=0.5)
# --8<-- [end:repack]

# --8<-- [start:verify]
found = repo.verify(deep="sample")
print(found)
found.raise_if_damaged()
# --8<-- [end:verify]
assert found.ok


Path("kept/repo").write_bytes(b"")  # damaged
# --8<-- [start:repair]
import icechunk

print(icechunk.Repository.repair(storage))  # what would be done
icechunk.Repository.repair(storage, dry_run=False)
# --8<-- [end:repair]


def chunks() -> int:
    return sum(1 for path in Path("kept/chunks").rglob("*") if path.is_file())


assert chunks() == 3
# --8<-- [start:newest]
from datetime import UTC, datetime

repo.reset_branch("main", repo.resolve("main~1"))  # the newest commit brought the data
repo.garbage_collect(datetime.now(UTC))
# --8<-- [end:newest]
assert chunks() == 2

# --8<-- [start:all]
import zarr

with repo.transaction("main", message="Withdraw the array 'a'") as store:
    del zarr.open_group(store)["a"]

repo.expire_snapshots(
    datetime.now(UTC), delete_expired_branches=True, delete_expired_tags=True
)  # every version but the newest of main
repo.garbage_collect(datetime.now(UTC))
# --8<-- [end:all]
assert chunks() == 0
assert repo.verify(deep=True).ok
