"""An array with a chunk for each row, which tasks write one by one."""

from __future__ import annotations

from typing import Any

import zarr

from icechunk import Repository, RepositoryConfig


def repository_with_rows(storage: Any, count: int) -> Repository:
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(storage, config)
    with repository.transaction("main", message="an array") as store:
        zarr.create_array(store, name="a", shape=(count,), chunks=(1,), dtype="i4")
    return repository


def rows(repository: Repository) -> list[int]:
    store = repository.readonly_session("main").store
    found: list[int] = zarr.open_array(store, path="a", mode="r")[:].tolist()
    return found
