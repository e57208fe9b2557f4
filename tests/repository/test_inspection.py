"""What `inspect_*` refuses, and its asynchronous forms; the rest is compared in tests/interop."""

from __future__ import annotations

from pathlib import Path

import pytest

from icechunk import ErrorKind, FormatError, InvalidInputError, Repository, StorageError
from icechunk.storage import MemoryStorage, local_filesystem_storage
from tests.data import golden_content as content

DATA = Path(content.__file__).parent


async def test_async_forms() -> None:
    repository = Repository.create(MemoryStorage())
    tip = repository.lookup_branch("main")
    assert await repository.inspect_repo_info_async() == repository.inspect_repo_info()
    assert await repository.inspect_snapshot_async(tip) == repository.inspect_snapshot(tip)
    log = await repository.inspect_transaction_log_async(tip)
    assert log == repository.inspect_transaction_log(tip)


def test_objects_that_do_not_exist() -> None:
    repository = Repository.create(MemoryStorage())
    for look in (
        repository.inspect_snapshot,
        repository.inspect_manifest,
        repository.inspect_transaction_log,
    ):
        with pytest.raises(StorageError, match="AAAAAAAAAAAAAAAAAAA0"):
            look("AAAAAAAAAAAAAAAAAAA0")
        with pytest.raises(InvalidInputError, match="is not an id"):
            look("nonsense")


def test_spec_version_1_has_no_repo_info() -> None:
    repository = Repository.open(local_filesystem_storage(str(DATA / "v1" / "repository")))
    with pytest.raises(FormatError, match="has no repo info") as error:
        repository.inspect_repo_info()
    assert error.value.kind == ErrorKind.UNSUPPORTED_OPERATION_FOR_VERSION
