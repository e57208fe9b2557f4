"""Rewriting manifests; tests/interop compares the results with the official client's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    ErrorKind,
    InvalidInputError,
    ManifestConfig,
    ManifestSplitCondition,
    ManifestSplitDimCondition,
    ManifestSplittingConfig,
    Repository,
    RepositoryConfig,
)
from icechunk.storage import MemoryStorage


@pytest.fixture
def repository() -> Repository:
    repository = Repository.create(MemoryStorage())
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", data=np.arange(1, 11), chunks=(1,))
    session.commit("ten chunks")
    return repository


def manifests(repository: Repository) -> list[int]:
    tip = repository.lookup_branch("main")
    return sorted(file.num_chunk_refs for file in repository.list_manifest_files(tip))


def splits(size: int) -> RepositoryConfig:
    splitting: dict[Any, Any] = {
        ManifestSplitCondition.AnyArray(): {ManifestSplitDimCondition.Any(): size}
    }
    return RepositoryConfig(
        manifest=ManifestConfig(splitting=ManifestSplittingConfig.from_dict(splitting))
    )


async def test_manifests_are_cut_and_joined(repository: Repository) -> None:
    first = repository.lookup_branch("main")
    cut = repository.reopen(splits(4))
    second = await cut.rewrite_manifests_async("cut", branch="main")
    assert manifests(repository) == [2, 4, 4]
    joined = repository.rewrite_manifests("joined", branch="main", commit_method="amend")
    assert manifests(repository) == [10]
    history = [(entry.id, entry.message) for entry in repository.ancestry(branch="main")]
    assert [message for _, message in history[:2]] == ["joined", "ten chunks"]
    assert (history[0][0], history[1][0]) == (joined, first)
    assert second not in dict(history)
    values = zarr.open_array(repository.readonly_session("main").store, path="a")[:]
    assert np.asarray(values).tolist() == list(range(1, 11))
    assert repository.diff(from_snapshot_id=first, to_branch="main").is_empty()


def test_the_rules_are_noted(repository: Repository) -> None:
    repository.rewrite_manifests("by default", branch="main", metadata={"mine": 1})
    found = repository.lookup_snapshot(repository.lookup_branch("main")).metadata
    # as the official client has it
    everything = [
        {"path_matches": {"regex": ".*"}},
        [{"condition": "Any", "num_chunks": 4294967295}],
    ]
    noted = {"splitting_config": {"split_sizes": [everything]}}
    assert found == {"mine": 1, "__icechunk": noted}


def test_unknown_methods(repository: Repository) -> None:
    method: Any = "squash"
    with pytest.raises(InvalidInputError, match="squash") as error:
        repository.rewrite_manifests("no", branch="main", commit_method=method)
    assert error.value.kind == ErrorKind.INVALID_COMMIT_CONFIGURATION
    assert isinstance(error.value, ValueError)
