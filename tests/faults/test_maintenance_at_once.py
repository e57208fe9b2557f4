"""All that maintains a repository, at the same time, beside writers.

Nobody gets more than a conflict, no commit that was told is lost, and what is left is whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from icechunk import (
    ConflictDetector,
    ConflictError,
    IcechunkError,
    MemoryStorage,
    Repository,
    SnapshotNotFoundError,
)
from tests.faults.operations import (
    CONFIG,
    LENGTH,
    START,
    Made,
    check_whole,
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
