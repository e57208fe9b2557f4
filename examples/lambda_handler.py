"""AWS Lambda: one call for each message, and whoever is the last commits.

The function is `lambda_handler.handler`; a message is ``{"key": "2001-01-01"}``, for one from a
queue, or an index. Lambda tries again what failed, and may call twice for one message: both do no
harm. The same runs here as ``python lambda_handler.py '{"key": "2001-01-01"}'``.
"""

import json
import os
import sys
from typing import Any

import numpy as np
import zarr

from icechunk import IcechunkStore, Repository

DAYS = ["2001-01-01", "2001-01-02", "2001-01-03", "2001-01-04"]


def write_day(store: IcechunkStore, day: str) -> None:
    """Write one row; here one would open the file of that day."""
    row = DAYS.index(day)
    array = zarr.open_array(store, path="temperature", mode="r+")
    array[row] = np.full(array.shape[1], float(row + 1))


def create() -> dict[str, Any]:
    """Make the array and the job, and return the messages to send."""
    repository = Repository.open_or_create(os.environ["REPOSITORY"])
    session = repository.writable_session("main")
    if "temperature" not in zarr.open_group(session.store):
        zarr.create_array(
            session.store, name="temperature", shape=(len(DAYS), 10), chunks=(1, 10), dtype="f4"
        )
        session.commit("An empty array")
    repository.jobs.create("january", keys=DAYS, message="Temperatures of January", exist_ok=True)
    return {"messages": [{"key": key} for key in DAYS]}


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Do one part; commit if it was the last."""
    if event.get("create"):
        return create()
    job = Repository.open(os.environ["REPOSITORY"]).jobs.open("january")
    (part,) = job.run(write_day, keys=[event["key"]])
    status = job.status()
    snapshot = job.finish() if status.is_complete else None
    return {"key": part.key, "ran": part.ran, "done": len(status.done), "snapshot": snapshot}


if __name__ == "__main__":
    print(json.dumps(handler(json.loads(sys.argv[1]), None)))
