"""Whoever meets damage that `Repository.repair` mends is told so, and it does mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk import (
    ConflictDetector,
    FormatError,
    IcechunkError,
    MemoryStorage,
    Repository,
    RepositoryNotFoundError,
)
from icechunk.format import layout
from icechunk.format.encoding import flexbuf
from icechunk.format.repo_info import RepoInfo, decode_repo_info, encode_repo_info
from tests.faults.operations import CONFIG, FILL, LENGTH, START, commit, lay_out, write

REPO = layout.REPO_KEY


def _all_of_it(storage: MemoryStorage) -> dict[int, int]:
    """Read and write as people do, in every way that meets a damaged object."""
    repository = Repository.open(storage, CONFIG)
    repository.get_metadata() if repository.spec_version > 1 else None
    list(repository.ancestry(branch="main"))
    store = repository.readonly_session("main").store
    numbers, fours = (np.asarray(zarr.open_array(store, path=n, mode="r")[:]) for n in "ab")
    assert len(fours) == 4 * LENGTH
    found = {at: value for at, value in enumerate(numbers.tolist()) if value != FILL}
    repository.diff(from_snapshot_id=repository.resolve("main~1"), to_branch="main")
    session = repository.writable_session("main")
    write(session, {4: 4})
    commit(Repository.open(storage, CONFIG), {5: 5})
    session.commit("mine", rebase_with=ConflictDetector())
    return found


# -- damage --------------------------------------------------------------------------------------
def _gone(storage: MemoryStorage, key: str) -> None:
    storage.delete([key])


def _cut(storage: MemoryStorage, key: str) -> None:
    storage.put(key, bytes(storage.get(key).data)[:-3])


def _flipped(storage: MemoryStorage, key: str) -> None:
    data = bytearray(storage.get(key).data)
    data[-5] ^= 0x55
    storage.put(key, bytes(data))


def _empty(storage: MemoryStorage, key: str) -> None:
    storage.put(key, b"")


def _changed(change: Callable[[RepoInfo], RepoInfo]) -> Callable[[MemoryStorage, str], None]:
    def changed(storage: MemoryStorage, key: str) -> None:
        storage.put(key, encode_repo_info(change(decode_repo_info(storage.get(key).data, key))))

    return changed


NO_TEXT = flexbuf.dumps({"x": "text"}).replace(b"text", b"\xff" * 4)
OF_REPO: dict[str, Callable[[MemoryStorage, str], None]] = {
    "gone": _gone,
    "cut": _cut,
    "flipped": _flipped,
    "empty": _empty,
    "config": _changed(lambda info: replace(info, config=NO_TEXT)),
    "config is no table": _changed(lambda info: replace(info, config=flexbuf.dumps([1]))),
}


@pytest.mark.parametrize("damage", OF_REPO)
def test_of_the_object_that_names_all_versions(damage: str) -> None:
    storage = MemoryStorage()
    lay_out(storage, 2)
    # a copy of the newest state is left behind by this
    repository = Repository.open(storage)
    repository.create_branch("more", repository.lookup_branch("main"))
    OF_REPO[damage](storage, REPO)
    with pytest.raises((FormatError, RepositoryNotFoundError), match=r"Repository\.repair"):
        _all_of_it(storage)
    assert Repository.repair(storage).is_needed
    Repository.repair(storage, dry_run=False)
    assert _all_of_it(storage) == START


def _needed(storage: MemoryStorage) -> Iterator[str]:
    """Yield an object of each type that the newest version needs."""
    repository = Repository.open(storage, CONFIG)
    tip = repository.lookup_branch("main")
    yield f"snapshots/{tip}"
    yield f"transactions/{tip}"
    for file in repository.list_manifest_files(tip):
        yield f"manifests/{file.id}"
    with_chunk = {meta.key for meta in storage.list("chunks/")}
    session = repository.readonly_session("main")
    yield from sorted(with_chunk & {f"chunks/{id}" for id in _chunk_ids(session)})


def _chunk_ids(session: Any) -> Iterator[str]:
    from icechunk.format.ids import encode_id

    refs = session.chunk_refs("/b")
    yield from (encode_id(id.tobytes()) for id in refs.chunk_id)


@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("damage", [_gone, _cut, _flipped, _empty])
def test_of_what_a_version_needs(
    damage: Callable[[MemoryStorage, str], None], spec_version: int
) -> None:
    template = MemoryStorage()
    lay_out(template, spec_version)
    for key in _needed(template):
        type = key.partition("/")[0]
        if type == "chunks" and damage is _flipped:
            continue  # chunks have no checksum
        storage = MemoryStorage()
        lay_out(storage, spec_version)
        damage(storage, key)
        with pytest.raises(IcechunkError) as told:
            _all_of_it(storage)
        assert "Repository.repair" in str(told.value), (key, str(told.value))
        if type == "snapshots" and spec_version == 1:
            continue  # what was before it is known to nobody else
        options: dict[str, Any] = {"branch": "main", "drop_unreadable": type != "transactions"}
        assert Repository.repair(storage, **options).is_needed, key
        Repository.repair(storage, **options, dry_run=False)
        _all_of_it(storage)


def test_of_refs_of_spec_1() -> None:
    for damage in (_gone, _cut, _empty):
        storage = MemoryStorage()
        lay_out(storage, 1)
        tip = Repository.open(storage).lookup_branch("main")
        key = "refs/branch.main/ref.json"
        damage(storage, key)
        with pytest.raises((FormatError, RepositoryNotFoundError), match=r"Repository\.repair"):
            _all_of_it(storage)
        Repository.repair(storage, adopt={"main": tip}, dry_run=False)
        assert _all_of_it(storage) == START
