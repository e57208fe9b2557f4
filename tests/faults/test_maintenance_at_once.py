"""All that maintains a repository, at the same time, beside writers.

Nobody gets more than a conflict, no commit that was told is lost, and what is left is whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from icechunk import (
    ConflictDetector,
    ConflictError,
    IcechunkError,
    MemoryStorage,
    Repository,
    SnapshotNotFoundError,
    StorageError,
)
from icechunk.storage import WrapperStorage
from tests.faults.operations import (
    CONFIG,
    LENGTH,
    START,
    Made,
    check_whole,
    commit,
    lay_out,
    newest,
    write,
)

ROUNDS = 4
WRITERS = 3


@pytest.mark.parametrize("spec_version", [1, 2])
def test_all_at_once(spec_version: int) -> None:
    storage, target = MemoryStorage(), MemoryStorage()
    lay_out(storage, spec_version)
    began = datetime.now(UTC)
    told = dict.fromkeys(range(LENGTH - WRITERS, LENGTH), 0)
    failures: list[Exception] = []

    def opened() -> Repository:
        return Repository.open(storage, CONFIG)

    def written(at: int) -> None:
        session = opened().writable_session("main")
        write(session, {at: told[at] + 1})
        session.commit(f"{at}", rebase_with=ConflictDetector())
        told[at] += 1

    work: list[Callable[[], Any]] = [
        *(lambda at=at: written(at) for at in told),
        *[lambda: opened().garbage_collect(began)] * 2,
        lambda: opened().expire_snapshots(began),
        lambda: opened().squash("main", "main~2", "one"),
        lambda: opened().repack("main"),
        lambda: opened().rewrite_manifests("new manifests", branch="main"),
        lambda: opened().verify(deep=True).raise_if_damaged(),
    ]
    if spec_version == 2:
        work += [
            lambda: opened().garbage_collect(began, incremental=True),
            lambda: opened().copy_to(target),
        ]

    def repeat(act: Callable[[], Any]) -> None:
        for _ in range(ROUNDS):
            try:
                act()
            except ConflictError:
                continue
            except IcechunkError as error:
                # a squash makes the history shorter than the next one expects
                if not (isinstance(error, SnapshotNotFoundError) and "'main~2'" in str(error)):
                    failures.append(error)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=repeat, args=[act]) for act in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure
    assert newest(storage) == START | {at: times for at, times in told.items() if times}
    check_whole(storage, Made(lambda: None, lambda: None))
    if any(meta.key == "repo" for meta in target.list()):
        check_whole(target, Made(lambda: None, lambda: None))


def test_a_squash_that_loses_to_an_expiration(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    lay_out(storage, 2)
    repository, other = Repository.open(storage, CONFIG), Repository.open(storage, CONFIG)
    other.delete_tag("old")
    state = repository.context.state
    update = state.update

    def late(*args: Any, **kwargs: Any) -> Any:
        other.expire_snapshots(datetime.now(UTC))
        return update(*args, **kwargs)

    monkeypatch.setattr(state, "update", late)
    with pytest.raises(ConflictError, match="the history of 'main' changed while it was squashed"):
        repository.squash("main", "main~2", "one")


@pytest.mark.parametrize("dry_run", [True, False])
def test_another_collection_deletes_what_one_is_about_to_read(dry_run: bool) -> None:
    storage = MemoryStorage()
    lay_out(storage, 2)
    healthy = Repository.open(storage, CONFIG)
    healthy.create_branch("more", healthy.lookup_branch("main"))
    commit(healthy, {5: 5}, "more")
    later = datetime.now(UTC) + timedelta(seconds=10)
    needed = {meta.key for meta in storage.list("manifests/")}

    class Meanwhile(WrapperStorage):
        def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
            if operation == "get" and keys[0] in needed:
                needed.clear()
                healthy.delete_branch("more")
                healthy.garbage_collect(later)

    found = Repository.open(Meanwhile(storage), CONFIG).garbage_collect(later, dry_run=dry_run)
    assert not needed and found.chunks_deleted == 0
    check_whole(storage, Made(lambda: None, lambda: None))
    # what the current state needs is another matter
    storage.delete([meta.key for meta in storage.list("manifests/")])
    with pytest.raises(StorageError, match="is missing"):
        healthy.garbage_collect(later, dry_run=dry_run)
