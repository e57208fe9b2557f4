"""What becomes of a change when a request fails, is lost, or nobody knows.

Each change is made again and again, and at each of its requests something goes wrong once. It is
tried until it succeeds, as a user would, and then must have been made exactly once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from icechunk import (
    AlreadyExistsError,
    ConflictDetector,
    MemoryStorage,
    OutcomeUnknownError,
    PreconditionFailedError,
    RefNotFoundError,
    Repository,
    RepositoryConfig,
    SessionStateError,
    StorageError,
)
from icechunk.storage import WrapperStorage
from icechunk.storage.base import Storage
from tests import histories
from tests.histories import Values

FIRST = "1CECHNKREP0F1RSTCMT0"
#: How a request goes wrong; the last two also refuse all later looks, for a while.
Fault = Literal["before", "after", "after, refused", "before, unseen", "after, unseen"]
FAULTS: tuple[Fault, ...] = (
    "before",
    "after",
    "after, refused",
    "before, unseen",
    "after, unseen",
)

pytestmark = pytest.mark.usefixtures("no_pauses")


class Troubled(WrapperStorage):
    """A storage where one request goes wrong.

    Parameters
    ----------
    inner : Storage
    """

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.seen = 0
        self.nth = 0
        self.fault: Fault = "before"
        self.unseen = 0
        #: Whether there was such a request.
        self.reached = False

    def plan(self, nth: int, fault: Fault) -> None:
        """Let a request go wrong, counted from now."""
        self.seen, self.nth, self.fault, self.unseen = 0, nth, fault, 0
        self.reached = False

    def heal(self) -> None:
        """Let everything go well from now on."""
        self.nth = self.unseen = 0

    def _step(self, when: str) -> None:
        if self.seen != self.nth or not self.fault.startswith(when):
            return
        if self.fault.endswith("unseen"):
            self.unseen = 6
        if self.fault.endswith("refused"):
            # the client has sent it again, and the condition did not hold any more
            raise PreconditionFailedError("sent twice")
        raise StorageError(f"lost {when}")

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        """Count, and fail if it is time."""
        if operation in ("get", "get_if_changed", "list") and self.unseen:
            self.unseen -= 1
            raise StorageError("403: refused")
        self.seen += 1
        self.reached = self.reached or self.seen == self.nth
        self._step("before")

    def after(self, operation: str, keys: tuple[str, ...], read: int) -> None:
        """Fail if it is time."""
        self._step("after")


@dataclass
class Scene:
    """A repository that somebody changes through a storage with troubles.

    Attributes
    ----------
    spec_version : int
    storage : Storage
        Without them.
    troubled : Troubled
    repository : Repository
        Opened through it.
    """

    spec_version: int
    storage: Storage
    troubled: Troubled
    repository: Repository

    @classmethod
    def set(cls, spec_version: int) -> Scene:
        storage = MemoryStorage()
        repository = histories.create(storage, spec_version)
        histories.commit(repository, {0: b"0", 1: b"1111"})
        tip = repository.lookup_branch("main")
        repository.create_branch("dev", tip)
        repository.create_tag("old", FIRST)
        troubled = Troubled(storage)
        return cls(spec_version, storage, troubled, Repository.open(troubled, histories.CONFIG))

    def messages(self, branch: str = "main") -> list[str]:
        return [entry.message for entry in Repository.open(self.storage).ancestry(branch=branch)]

    def values(self, branch: str = "main") -> Values:
        return histories.newest(self.storage, branch)


# -- changes -------------------------------------------------------------------------------
#: Prepares a change, and returns what makes it and what must be true then.
Change = Callable[[Scene], tuple[Callable[[], Any], Callable[[], bool]]]
START = ["{0: b'0', 1: b'1111'}", "array", "Repository initialized"]


def _commit(scene: Scene) -> tuple[Callable[[], Any], Callable[[], bool]]:
    session = scene.repository.writable_session("main")
    histories.write(session, {1: b"2222", 2: b"2"})
    return (
        lambda: session.commit("mine"),
        lambda: (
            scene.messages() == ["mine", *START]
            and scene.values() == {0: b"0", 1: b"2222", 2: b"2"}
            and session.snapshot_id == Repository.open(scene.storage).lookup_branch("main")
        ),
    )


def _rebase(scene: Scene) -> tuple[Callable[[], Any], Callable[[], bool]]:
    session = scene.repository.writable_session("main")
    histories.write(session, {1: b"2222", 2: b"2"})
    histories.commit(Repository.open(scene.storage), {4: b"4"})
    return (
        lambda: session.commit("mine", rebase_with=ConflictDetector()),
        lambda: (
            scene.messages() == ["mine", "{4: b'4'}", *START]
            and scene.values() == {0: b"0", 1: b"2222", 2: b"2", 4: b"4"}
        ),
    )


def _amend(scene: Scene) -> tuple[Callable[[], Any], Callable[[], bool]]:
    session = scene.repository.writable_session("main")
    histories.write(session, {1: b"2222"})
    return lambda: session.amend(
        "mine"
    ), lambda: scene.messages() == ["mine", *START[1:]] and scene.values() == {0: b"0", 1: b"2222"}


def _flush(scene: Scene) -> tuple[Callable[[], Any], Callable[[], bool]]:
    session = scene.repository.writable_session("main")
    histories.write(session, {1: b"2222"})

    def done() -> bool:
        plain = Repository.open(scene.storage)
        flushed = plain.readonly_session(snapshot_id=session.snapshot_id)
        return scene.messages() == START and histories.read(flushed) == {0: b"0", 1: b"2222"}

    return lambda: session.flush("mine"), done


def _create_tag(scene: Scene) -> tuple[Callable[[], Any], Callable[[], bool]]:
    tip = scene.repository.lookup_branch("main")
    return lambda: scene.repository.create_tag(
        "t", tip
    ), lambda: Repository.open(scene.storage).lookup_tag("t") == tip


def _delete_tag(scene: Scene) -> tuple[Callable[[], Any], Callable[[], bool]]:
    return lambda: scene.repository.delete_tag(
        "old"
    ), lambda: Repository.open(scene.storage).list_tags() == set()


def _create_branch(scene: Scene) -> tuple[Callable[[], Any], Callable[[], bool]]:
    tip = scene.repository.lookup_branch("main")
    return lambda: scene.repository.create_branch(
        "b", tip
    ), lambda: Repository.open(scene.storage).lookup_branch("b") == tip


def _delete_branch(scene: Scene) -> tuple[Callable[[], Any], Callable[[], bool]]:
    return lambda: scene.repository.delete_branch(
        "dev"
    ), lambda: Repository.open(scene.storage).list_branches() == {"main"}


def _reset(scene: Scene) -> tuple[Callable[[], Any], Callable[[], bool]]:
    return lambda: scene.repository.reset_branch(
        "main", FIRST
    ), lambda: scene.messages() == START[-1:]


def _save_config(scene: Scene) -> tuple[Callable[[], Any], Callable[[], bool]]:
    config = RepositoryConfig(inline_chunk_threshold_bytes=77)
    changed = scene.repository.reopen(config)
    return (
        changed.save_config,
        lambda: Repository.open(scene.storage).config.inline_chunk_threshold_bytes == 77,
    )


def _set_metadata(scene: Scene) -> tuple[Callable[[], Any], Callable[[], bool]]:
    return lambda: scene.repository.set_metadata(
        {"a": 1}
    ), lambda: Repository.open(scene.storage).metadata == {"a": 1}


BOTH: dict[str, Change] = {
    "commit": _commit,
    "rebase": _rebase,
    "flush": _flush,
    "create_tag": _create_tag,
    "delete_tag": _delete_tag,
    "create_branch": _create_branch,
    "delete_branch": _delete_branch,
    "reset": _reset,
    "save_config": _save_config,
}
VERSION_2: dict[str, Change] = {"amend": _amend, "set_metadata": _set_metadata}
CASES = [(2, name) for name in (*BOTH, *VERSION_2)] + [(1, name) for name in BOTH]


def _until_done(scene: Scene, change: Callable[[], Any], *, commits: bool) -> None:
    """Make a change, and again when the storage is well if it failed."""
    try:
        change()
    except (StorageError, AlreadyExistsError, RefNotFoundError) as error:
        unknown = isinstance(error, OutcomeUnknownError)
        assert unknown == ("may have been" in str(error))
        scene.troubled.heal()
        if not isinstance(error, StorageError):
            # refs of version 1 do not say who made them
            assert (scene.spec_version, scene.troubled.fault) == (1, "after, refused")
            return
        try:
            change()
        except (AlreadyExistsError, RefNotFoundError):
            # who looks finds that it was done
            assert unknown
            assert not commits


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("spec_version", "name"), CASES)
def test_something_goes_wrong_at_each_request(spec_version: int, name: str, fault: Fault) -> None:
    change = {**BOTH, **VERSION_2}[name]
    nth = 0
    while True:
        nth += 1
        scene = Scene.set(spec_version)
        act, done = change(scene)
        scene.troubled.plan(nth, fault)
        _until_done(scene, act, commits=name in ("commit", "rebase", "amend", "flush"))
        scene.troubled.heal()
        assert done(), f"request {nth} {fault}"
        if not scene.troubled.reached:
            break
    assert nth > 2


CONFIGS = [None, RepositoryConfig(inline_chunk_threshold_bytes=77)]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "with config"])
def test_something_goes_wrong_while_a_repository_is_created(
    spec_version: int, fault: Fault, config: RepositoryConfig | None
) -> None:
    """It is there afterwards, or a second call creates it, and nobody is told a falsehood."""
    nth = 0
    while True:
        nth += 1
        storage = MemoryStorage()
        troubled = Troubled(storage)
        troubled.plan(nth, fault)
        told: Exception | None = None
        try:
            Repository.create(troubled, config, spec_version=spec_version)
        except StorageError as error:
            told = error
        except AlreadyExistsError as error:
            # in version 1 all creators of a repository store the same
            assert (spec_version, fault) == (1, "after, refused")
            told = error
        there = Repository.exists(storage)
        if told is None:
            assert there
        elif fault == "before" or not there:
            assert not isinstance(told, OutcomeUnknownError) or fault.endswith("unseen")
        if not there:
            Repository.create(storage, config, spec_version=spec_version)
        repository = Repository.open(storage)
        assert repository.spec_version == spec_version
        assert [entry.message for entry in repository.ancestry(branch="main")] == START[-1:]
        if told is None and config is not None:
            assert repository.config.inline_chunk_threshold_bytes == 77
        if not troubled.reached:
            break
    assert nth > 3


def _later(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + seconds * 1_000_000_000)


def test_a_writer_whose_clock_was_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others go on, as the storage says when it wrote; and copies are in the right order."""
    storage = MemoryStorage()
    histories.create(storage, 2)
    with monkeypatch.context() as patch:
        _later(patch, 86_400)
        histories.commit(Repository.open(storage), {0: b"ahead   "})
    histories.commit(Repository.open(storage), {1: b"after   "})
    histories.commit(Repository.open(storage), {2: b"last    "})
    repo = Repository.open(storage)
    repo.verify(deep=True).raise_if_damaged()
    history = [entry.id for entry in repo.ancestry(branch="main")]
    times = [entry.updated_at for entry in repo.ops_log()]
    assert times == sorted(times, reverse=True)
    storage.delete(["repo"])
    (lost,) = Repository.repair(storage, dry_run=False).unlisted
    assert lost.id == history[0]
    assert [entry.id for entry in Repository.open(storage).ancestry(branch="main")] == history[1:]


def test_a_clock_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    histories.create(storage, 2)
    _later(monkeypatch, -86_400)
    with pytest.raises(SessionStateError, match="check the clock of this machine"):
        histories.commit(Repository.open(storage), {0: b"behind  "})
