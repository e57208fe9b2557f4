"""What tasks of this project wrote, the official client reads."""

from __future__ import annotations

from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr

from icechunk import IcechunkStore, Repository, RepositoryConfig
from icechunk_dask import distributed_write, store_dask
from tests.interop.sides import Official


def test_batches_of_tasks(official: Official, tmp_path: Path) -> None:
    config = RepositoryConfig(inline_chunk_threshold_bytes=40)
    repository = Repository.create(str(tmp_path), config)
    values = np.arange(20 * 6, dtype="i8").reshape(20, 6)
    with repository.transaction("main", message="array") as store:
        zarr.create_array(store, name="a", shape=values.shape, chunks=(2, 3), dtype="i8")

    def double(store: IcechunkStore, row: int) -> None:
        array = zarr.open_array(store, path="a", mode="r+")
        array[row : row + 2] = array[row : row + 2] * 2  # type: ignore[operator]

    with dask.config.set(scheduler="threads"):
        store_dask(
            sources=[da.from_array(values, chunks=(4, 3))],
            targets=["a"],
            repository=repository,
            message="values",
            commit_every=4,
        )
        distributed_write(
            double,
            range(10, 20, 2),
            repository,
            message="twice",
            commit_every=2,
            publish="end",
            job="double",
        )
    values[10:] *= 2
    assert official.run("read_array", str(tmp_path), "a") == values.tolist()
