"""Many writers and one commit: forks that travel, and change sets as bytes."""

from concurrent.futures import ThreadPoolExecutor

import zarr

import icechunk

repo = icechunk.Repository.create(icechunk.local_filesystem_storage("together"))
with repo.transaction("main", message="Four days") as store:
    zarr.create_array(store, name="temperature", shape=(4, 6), chunks=(1, 6), dtype="f4")

# --8<-- [start:forks]
from concurrent.futures import ThreadPoolExecutor

import zarr


def write_day(fork, day):
    zarr.open_array(fork.store, path="temperature")[day] = 10.0 + day
    return fork


session = repo.writable_session("main")
with ThreadPoolExecutor() as pool:  # a pool of processes, or a cluster, works the same way
    forks = pool.map(write_day, [session.fork() for _ in range(4)], range(4))
    session.merge(*forks)
session.commit("Written by four workers")

written = zarr.open_array(repo.readonly_session("main").store, path="temperature", mode="r")
print(written[:, 0])  # the first value of each day
# --8<-- [end:forks]
assert written[:, 0].tolist() == [10, 11, 12, 13]

# --8<-- [start:bytes]
session = repo.writable_session("main")
parts = []
for day in range(4):  # each turn could be on another machine
    fork = session.fork()
    zarr.open_array(fork.store, path="temperature")[day] = 30.0 + day
    parts.append(fork.change_set_bytes())
session.distributed_commit("Collected from workers", parts)
# --8<-- [end:bytes]
array = zarr.open_array(repo.readonly_session("main").store, path="temperature", mode="r")
assert array[:, 0].tolist() == [30, 31, 32, 33]

# --8<-- [start:appenders]
import icechunk


def add_one(day):
    # whoever is late carries the change over to the newer version, or is refused by name
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="temperature")[day] += 1
    session.commit(f"Day {day}", rebase_with=icechunk.ConflictDetector())


with ThreadPoolExecutor() as pool:
    list(pool.map(add_one, range(4)))
# --8<-- [end:appenders]
array = zarr.open_array(repo.readonly_session("main").store, path="temperature", mode="r")
assert array[:, 0].tolist() == [31, 32, 33, 34]

# --8<-- [start:fair]


def add_one_in_turn(day):
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="temperature")[day] += 1
    session.commit(f"Day {day}", rebase_with=icechunk.ConflictDetector(), fair=True)
    return session.committed  # snapshot_id, attempts, rebases, objects


with ThreadPoolExecutor() as pool:
    taken = list(pool.map(add_one_in_turn, range(4)))
# --8<-- [end:fair]
assert max(each.attempts for each in taken) <= 5
