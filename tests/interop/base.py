"""What small pieces of work begin with, and a table to put them in.

Nothing here knows which side it runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr

import icechunk

#: A folder, or the options of an S3 storage.
Place = Any

OPERATIONS: dict[str, Callable[[Any], None]] = {}


def storage_at(place: Place) -> Any:
    """Return the storage at a place."""
    if isinstance(place, str):
        return icechunk.local_filesystem_storage(place)
    return icechunk.s3_storage(**place)


def operation(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Add a function to the table, under its name."""
    OPERATIONS[function.__name__] = function
    return function


@contextmanager
def edit(repo: Any, *, amend: bool = False) -> Iterator[zarr.Group]:
    """Give the root group of a session that is committed at the end."""
    session = repo.writable_session("main")
    yield zarr.open_group(session.store, mode="a")
    (session.amend if amend else session.commit)("edited")


@contextmanager
def rearrange(repo: Any, *, amend: bool = False) -> Iterator[Any]:
    """Give a session that moves nodes and is committed at the end."""
    session = repo.rearrange_session("main")
    yield session
    (session.amend if amend else session.commit)("rearranged")


def create(
    group: zarr.Group, name: str, shape: tuple[int, ...], chunks: Any, **options: Any
) -> Any:
    """Create an array without compression."""
    options = {"dtype": "i4", "compressors": None, **options}
    return group.create_array(name, shape=shape, chunks=chunks, **options)


def config() -> Any:
    """Return a configuration with inline and native chunks, and split manifests."""
    result = icechunk.RepositoryConfig(
        inline_chunk_threshold_bytes=8,
        manifest=icechunk.ManifestConfig(
            splitting=icechunk.ManifestSplittingConfig.from_dict(
                {
                    icechunk.ManifestSplitCondition.name_matches("split"): {
                        icechunk.ManifestSplitDimCondition.Axis(0): 2
                    }
                }
            )
        ),
    )
    result.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer("s3://bucket/", icechunk.s3_store(region="us-east-1"))
    )
    return result


def reopened(repo: Any, *, axis: int, size: int) -> Any:
    """Return the same repository, for which all manifests are split along one axis."""
    rules = {
        icechunk.ManifestSplitCondition.AnyArray(): {
            icechunk.ManifestSplitDimCondition.Axis(axis): size
        }
    }
    splitting = icechunk.ManifestSplittingConfig.from_dict(rules)
    manifest = icechunk.ManifestConfig(splitting=splitting)
    config = icechunk.RepositoryConfig(inline_chunk_threshold_bytes=8, manifest=manifest)
    return icechunk.Repository.open(repo.storage, config)


def write_base(repo: Any) -> None:
    """Write what all operations begin with."""
    session = repo.writable_session("main")
    root = zarr.create_group(session.store, attributes={"of": "root"})
    deep = root.create_group("g/deep", attributes={"level": 2})
    create(root, "a", (12,), (2,))[:] = np.arange(1, 13)  # inline chunks
    create(root, "m", (8, 8), (2, 2), dimension_names=("y", "x"))[:] = 1  # native chunks
    create(root, "scalar", (), ())[...] = 5
    create(root, "split", (10, 2), (1, 2))[:] = 3
    create(root, "sparse", (9,), (3,), fill_value=-1)[0] = 2
    create(root, "unwritten", (4,), (2,))
    create(root, "sharded", (8, 8), (2, 2), shards=(4, 4))[:4] = 9
    create(deep, "x", (4,), (2,))[:] = 7
    create(root, "virtual", (4,), (1,))
    set_virtual(session, range(3))
    session.commit("base", metadata={"base": True})


def set_virtual(session: Any, rows: Any, offset: int = 0, **checksum: Any) -> None:
    """Make chunks of ``/virtual`` refer to a file that nobody reads."""
    specs = [
        icechunk.VirtualChunkSpec([i], f"s3://bucket/file-{i}", offset + 4 * i, 4, **checksum)
        for i in rows
    ]
    session.store.set_virtual_refs("/virtual", specs)
