"""Servers that do not check the conditions of puts are refused before a commit is lost."""

from __future__ import annotations

import pytest

from icechunk import (
    MemoryStorage,
    Repository,
    RepositoryConfig,
    StorageError,
    StorageSettings,
)
from icechunk.storage import CountingStorage, Storage
from icechunk.storage.base import BytesLike
from icechunk.storage.wrappers import WrapperStorage
from tests import histories
from tests.servers import ObjectServer

CARELESS = RepositoryConfig(storage=StorageSettings(unsafe_use_conditional_update=False))


class Careless(WrapperStorage):
    """A storage that ignores the version of what it replaces, and that nobody vouches for."""

    def __init__(self, inner: Storage, error: StorageError | None = None) -> None:
        super().__init__(inner)
        self.checks_conditions = False
        self.error = error

    def put(
        self,
        key: str,
        data: BytesLike,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str | None:
        if self.error is not None and if_match is not None:
            raise self.error
        return super().put(key, data, if_absent=if_absent)


@pytest.mark.parametrize("spec_version", [1, 2])
def test_a_server_that_ignores_conditions(object_server: ObjectServer, spec_version: int) -> None:
    object_server.unconditional = True
    with pytest.raises(StorageError, match=r"gs://bucket/p ignores the condition .*If-Match"):
        Repository.create(object_server.gcs(), spec_version=spec_version, check_clean_root=False)
    paths = set(object_server.objects)
    assert not {path for path in paths if path.endswith(("/repo", "ref.json"))}
    # who knows what he does
    Repository.create(
        object_server.gcs(), CARELESS, spec_version=spec_version, check_clean_root=False
    )


def test_a_server_that_checks_them(object_server: ObjectServer) -> None:
    Repository.create(object_server.gcs(), check_clean_root=False)
    assert Repository.exists(object_server.gcs())


def test_the_first_write_looks_too() -> None:
    """The repository may have been brought to such a server; its log loses nothing."""
    storage = MemoryStorage()
    histories.create(storage)
    before = {meta.key for meta in storage.list("overwritten/")}
    repository = Repository.open(Careless(storage))
    tip = repository.lookup_branch("main")
    for _ in range(2):
        with pytest.raises(StorageError, match="ignores the condition"):
            repository.create_tag("t", tip)
    assert {meta.key for meta in storage.list("overwritten/")} == before
    assert Repository.open(storage).list_tags() == set()
    assert len(list(Repository.open(storage).ops_log())) == 2


def test_the_first_write_looks_once() -> None:
    storage = MemoryStorage()
    histories.create(storage)
    counting = CountingStorage(storage)
    counting.checks_conditions = False
    repository = Repository.open(counting)
    tip = repository.lookup_branch("main")
    puts = []
    for name in "abc":
        before = counting.counts["put"].requests
        repository.create_tag(name, tip)
        puts.append(counting.counts["put"].requests - before)
    assert puts == [2, 1, 1]


def test_a_server_that_knows_no_conditions() -> None:
    error = StorageError("501 Not Implemented")
    error.transient = False
    with pytest.raises(StorageError, match=r"refuses a put under a condition .*501.*one process"):
        Repository.create(Careless(MemoryStorage(), error))


def test_a_failure_is_not_taken_for_an_answer() -> None:
    with pytest.raises(StorageError, match=r"^connection reset$"):
        Repository.create(Careless(MemoryStorage(), StorageError("connection reset")))
