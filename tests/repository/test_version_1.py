"""Repositories of spec version 1: written, and upgraded to version 2."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import icechunk
from icechunk import (
    AlreadyExistsError,
    BasicConflictSolver,
    ConflictDetector,
    ConflictError,
    CountingStorage,
    ErrorKind,
    FaultyStorage,
    FormatError,
    IcechunkError,
    InvalidInputError,
    LocalStorage,
    MemoryStorage,
    ObjectNotFoundError,
    PreconditionFailedError,
    RefNotFoundError,
    RepoAvailability,
    Repository,
    RepositoryConfig,
    RepositoryNotFoundError,
    RepoStatus,
    SessionStateError,
    SnapshotNotFoundError,
    StorageError,
    upgrade_icechunk_repository,
)
from icechunk.errors import InvalidatedRepositoryError
from icechunk.format import layout, v1
from icechunk.storage import WrapperStorage
from icechunk.storage.base import ObjectMeta, Storage
from tests.storages import KINDS, new_storage

FIRST = "1CECHNKREP0F1RSTCMT0"
NOWHERE = "1CECHNKREP0F1RSTCMTG"
NATIVE = RepositoryConfig(inline_chunk_threshold_bytes=0)
MAIN = "refs/branch.main/ref.json"
LOST = [StorageError("connection reset"), PreconditionFailedError("retried, and changed")]


@pytest.fixture
def storage() -> Storage:
    return MemoryStorage()


@pytest.fixture
def repository(storage: Storage) -> Repository:
    return with_array(Repository.create(storage, NATIVE, spec_version=1))


def with_array(repository: Repository) -> Repository:
    session = repository.writable_session("main")
    array = zarr.create_group(session.store).create_array(
        "a", shape=(10,), chunks=(1,), dtype="i4", compressors=None
    )
    array[:2] = [1, 2]
    session.commit("array")
    return repository


def commit(repository: Repository, index: int, value: int, branch: str = "main") -> str:
    session = repository.writable_session(branch)
    write(session, index, value)
    return session.commit(f"{index} is {value}")


def write(session: icechunk.Session, index: int, value: int) -> None:
    zarr.open_array(session.store, path="a", mode="r+")[index] = value


def newest(repository: Repository, branch: str = "main") -> list[int]:
    store = repository.readonly_session(branch).store
    found: list[int] = zarr.open_array(store, path="a", mode="r")[:].tolist()
    return found


def messages(repository: Repository, branch: str = "main") -> list[str]:
    return [entry.message for entry in repository.ancestry(branch=branch)]


def refused(call: Callable[[], Any], error: type[IcechunkError], kind: ErrorKind) -> str:
    with pytest.raises(IcechunkError) as caught:
        call()
    assert type(caught.value) is error
    assert caught.value.kind is kind
    return str(caught.value)


def keys(storage: Storage, prefix: str = "") -> set[str]:
    return {meta.key for meta in storage.list(prefix)}


# -- what is stored ------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_life(kind: str, request: pytest.FixtureRequest) -> None:
    """On every storage: commits, branches, tags, configuration, and the upgrade."""
    storage = new_storage(kind, request)
    repository = with_array(Repository.create(storage, NATIVE, spec_version=1))
    assert Repository.fetch_spec_version(storage) == repository.spec_version == 1
    assert Repository.fetch_config(storage) == NATIVE
    first = repository.lookup_branch("main")
    names = ["dev", "ünï cødé", "100%", "a%20b", "x~y#1", "..", "{^`}"]
    for name in names:
        repository.create_branch(name, first)
        repository.create_tag(name, first)
        commit(repository, 3, 7, name)
    repository.delete_tag("dev")
    repository.delete_branch("..")
    repository.reset_branch("100%", FIRST)
    repository.save_config()
    names.remove("..")

    def check(repository: Repository) -> None:
        assert repository.list_branches() == {"main", *names}
        assert repository.list_tags() == {"..", *names} - {"dev"}
        assert repository.lookup_branch("100%") == FIRST
        for name in repository.list_tags():
            assert repository.lookup_tag(name) == first
        assert newest(repository, "ünï cødé") == [1, 2, 0, 7, *[0] * 6]
        assert messages(repository, "a%20b") == ["3 is 7", "array", "Repository initialized"]
        with pytest.raises(RefNotFoundError):
            repository.lookup_tag("dev")
        with pytest.raises(AlreadyExistsError):
            repository.create_tag("dev", first)

    check(Repository.open(storage))
    repository = upgrade_icechunk_repository(repository, dry_run=False)
    check(repository)
    assert not keys(storage, "refs/")
    assert Repository.fetch_config(storage) == NATIVE
    commit(repository, 4, 8)
    assert newest(repository)[:5] == [1, 2, 0, 0, 8]


def test_refs_are_small_json(repository: Repository, storage: Storage) -> None:
    tip = repository.lookup_branch("main")
    assert bytes(storage.get(MAIN).data) == f'{{"snapshot":"{tip}"}}'.encode()
    repository.create_tag("v", tip)
    repository.delete_tag("v")
    assert keys(storage, "refs/tag.v/") == {
        "refs/tag.v/ref.json",
        "refs/tag.v/ref.json.deleted",
    }
    assert not bytes(storage.get("refs/tag.v/ref.json.deleted").data)


def test_every_object_is_of_version_1(repository: Repository, storage: Storage) -> None:
    folders = ("snapshots/", "manifests/", "transactions/")
    versions = {
        meta.key: storage.get(meta.key).data[36] for f in folders for meta in storage.list(f)
    }
    assert len(versions) == 2 + 1 + 1  # the first snapshot has no log
    assert set(versions.values()) == {1}
    assert "repo" not in keys(storage)


def test_names_that_a_folder_of_s3_has(tmp_path: Path) -> None:
    """Downloaded from S3, names are not encoded; new ones are."""
    storage = LocalStorage(tmp_path)
    repository = with_array(Repository.create(storage, spec_version=1))
    tip = repository.lookup_branch("main")
    storage.put("refs/branch.été/ref.json", v1.dump_ref(icechunk.format.ids.decode_id(tip)))
    assert repository.list_branches() == {"main", "été"}
    commit(repository, 5, 5, "été")
    assert newest(repository, "été")[5] == 5
    assert {path.name for path in (tmp_path / "refs").iterdir()} == {"branch.main", "branch.été"}
    repository.delete_branch("été")
    assert repository.list_branches() == {"main"}


def test_the_old_configuration_is_kept(repository: Repository, storage: Storage) -> None:
    before = bytes(storage.get(layout.CONFIG_KEY).data)
    repository.reopen(RepositoryConfig(inline_chunk_threshold_bytes=9)).save_config()
    (backup,) = keys(storage, "overwritten/")
    assert backup.startswith("overwritten/config.yaml.")
    assert bytes(storage.get(backup).data) == before
    stored = Repository.fetch_config(storage)
    assert stored is not None
    assert stored.inline_chunk_threshold_bytes == 9


def test_flushed_snapshots_are_files_only(repository: Repository, storage: Storage) -> None:
    refs = {key: bytes(storage.get(key).data) for key in keys(storage, "refs/")}
    session = repository.writable_session("main")
    write(session, 0, 9)
    flushed = session.flush("flushed", metadata={"x": 1})
    assert {key: bytes(storage.get(key).data) for key in keys(storage, "refs/")} == refs
    assert repository.lookup_snapshot(flushed).metadata == {"x": 1}
    repository.create_branch("from", flushed)
    assert newest(repository, "from")[0] == 9


def test_forks_and_default_metadata(repository: Repository) -> None:
    repository.set_default_commit_metadata({"by": "default"})
    session = repository.writable_session("main")
    forks = [pickle.loads(pickle.dumps(session.fork())) for _ in range(3)]
    for index, fork in enumerate(forks):
        write(fork, index, 50 + index)
    session.merge(*forks[:2])
    tip = session.distributed_commit("all", [forks[2].change_set_bytes()], {"n": 3})
    assert newest(repository)[:3] == [50, 51, 52]
    assert repository.lookup_snapshot(tip).metadata == {"by": "default", "n": 3}


# -- what version 1 does not have ----------------------------------------------------------
REFUSALS: dict[str, Callable[[Repository], Any]] = {
    "amend": lambda r: r.writable_session("main").amend("x", allow_empty=True),
    "rearrange_session": lambda r: r.rearrange_session("main"),
    "ops_log": lambda r: list(r.ops_log()),
    "metadata": lambda r: r.metadata,
    "set_metadata": lambda r: r.set_metadata({}),
    "update_metadata": lambda r: r.update_metadata({}),
    "status": lambda r: r.status,
    "set_status": lambda r: r.set_status(RepoStatus(RepoAvailability.online)),
    "feature_flags": lambda r: r.feature_flags(),
    "set_feature_flag": lambda r: r.set_feature_flag("move_node", False),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refused(what: str, repository: Repository, storage: Storage) -> None:
    before = keys(storage)
    text = refused(
        lambda: REFUSALS[what](repository), FormatError, ErrorKind.UNSUPPORTED_SPEC_VERSION
    )
    assert "spec version 1" in text
    assert "upgrade_icechunk_repository" in text
    assert keys(storage) == before


def test_irregular_grids_are_refused_before_they_are_written(repository: Repository) -> None:
    grid = {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": [[4, 6]]}}
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [10],
        "data_type": "int32",
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
    session = repository.writable_session("main")
    buffer = default_buffer_prototype().buffer
    data = buffer.from_bytes(json.dumps(document).encode())
    text = refused(
        lambda: sync(session.store.set("r/zarr.json", data)),
        InvalidInputError,
        ErrorKind.BAD_METADATA,
    )
    assert "'/r'" in text
    assert not session.has_uncommitted_changes
    # an attribute may say so
    zarr.open_group(session.store, mode="r+").attrs["grid"] = "rectilinear"
    session.commit("said")


@pytest.mark.parametrize("name", ["", "a/b"])
def test_names_that_are_none(name: str, repository: Repository, storage: Storage) -> None:
    tip, before = repository.lookup_branch("main"), keys(storage)
    for create in (repository.create_branch, repository.create_tag):
        refused(lambda c=create: c(name, tip), InvalidInputError, ErrorKind.INVALID_REF_NAME)  # type: ignore[misc]
    for look in (repository.lookup_branch, repository.lookup_tag, repository.delete_branch):
        with pytest.raises(RefNotFoundError):
            look(name)
    assert keys(storage) == before


def test_refs_point_to_snapshots_that_exist(repository: Repository) -> None:
    for call in (repository.create_branch, repository.create_tag):
        with pytest.raises(SnapshotNotFoundError):
            call("x", NOWHERE)
    with pytest.raises(SnapshotNotFoundError):
        repository.reset_branch("main", NOWHERE)
    with pytest.raises(AlreadyExistsError):
        repository.create_branch("main", FIRST)
    with pytest.raises(ConflictError):
        repository.reset_branch("main", FIRST, from_snapshot_id=FIRST)


# -- others at the same time -----------------------------------------------------------------
def test_a_branch_that_moved(repository: Repository) -> None:
    ours, gone = repository.writable_session("main"), repository.writable_session("main")
    theirs = commit(repository, 0, 7)
    write(ours, 1, 8)
    with pytest.raises(ConflictError) as caught:
        ours.commit("ours")
    assert theirs in str(caught.value)
    ours.commit("ours", rebase_with=ConflictDetector())
    assert newest(repository)[:2] == [7, 8]
    entry = next(iter(repository.ancestry(branch="main")))
    assert (entry.parent_id, entry.metadata) == (theirs, {"__icechunk": {"rebase_attempts": 1}})
    write(gone, 0, 6)
    gone.commit("gone", rebase_with=BasicConflictSolver())
    assert newest(repository)[:2] == [6, 8]


def test_a_branch_that_is_deleted_takes_no_commit(repository: Repository) -> None:
    repository.create_branch("x", repository.lookup_branch("main"))
    session = repository.writable_session("x")
    write(session, 0, 7)
    repository.delete_branch("x")
    with pytest.raises(RefNotFoundError, match="deleted since"):
        session.commit("too late")
    assert repository.list_branches() == {"main"}


def _add(place: LocalStorage, worker: int) -> None:
    repository = Repository.open(place)
    for _ in range(3):
        session = repository.writable_session("main")
        write(session, worker, int(newest(repository)[worker]) + 1)
        session.commit(f"by {worker}", rebase_with=ConflictDetector())


def test_processes_commit_at_the_same_time(tmp_path: Path) -> None:
    """In a folder, where official clients lose commits."""
    place = LocalStorage(tmp_path / "r")
    repository = with_array(Repository.create(place, spec_version=1))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add, args=(place, index)) for index in range(2, 4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert newest(repository)[2:4] == [3, 3]
    assert len(messages(repository)) == 2 + 6


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_one_of_many_wins(kind: str, request: pytest.FixtureRequest) -> None:
    repository = with_array(Repository.create(new_storage(kind, request), spec_version=1))
    tips = [repository.lookup_branch("main"), FIRST]
    repository.create_tag("old", FIRST)

    def outcomes(call: Callable[[int], None]) -> list[bool]:
        def attempt(i: int) -> bool:
            try:
                call(i)
            except (AlreadyExistsError, RefNotFoundError):
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(attempt, range(8)))

    assert sum(outcomes(lambda i: repository.create_tag("t", tips[i % 2]))) == 1
    assert sum(outcomes(lambda i: repository.create_branch("b", tips[i % 2]))) == 1
    assert sum(outcomes(lambda i: repository.delete_tag("old"))) == 1
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: commit_rebased(repository, i), range(8)))
    assert newest(repository) == [100 + i for i in range(8)] + [0, 0]


def commit_rebased(repository: Repository, index: int) -> None:
    session = repository.writable_session("main")
    write(session, index, 100 + index)
    session.commit("rebased", rebase_with=ConflictDetector())


class _FasterStorage(WrapperStorage):
    """A storage where somebody does something right before a put of a ref."""

    def __init__(self, inner: Storage, act: Callable[[], Any]) -> None:
        super().__init__(inner)
        self._acts = [act]

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        if operation == "put" and keys[0].startswith("refs/") and self._acts:
            self._acts.pop()()


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda r: r.create_tag("t", FIRST), AlreadyExistsError),
        (lambda r: r.create_branch("b", FIRST), AlreadyExistsError),
        (lambda r: r.delete_tag("old"), RefNotFoundError),
    ],
)
def test_somebody_did_the_same_a_moment_before(
    repository: Repository,
    storage: Storage,
    act: Callable[[Repository], None],
    error: type[IcechunkError],
) -> None:
    """Only one of them hears that it was done."""
    repository.create_tag("old", FIRST)
    slower = Repository.open(_FasterStorage(storage, lambda: act(repository)))
    with pytest.raises(error):
        act(slower)


def test_one_of_many_creates() -> None:
    storage = MemoryStorage()

    def create(i: int) -> bool:
        config = RepositoryConfig(inline_chunk_threshold_bytes=i)
        try:
            Repository.create(storage, config, spec_version=1, check_clean_root=False)
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    stored = Repository.fetch_config(storage)
    assert stored is not None
    assert stored.inline_chunk_threshold_bytes == won.index(True)
    with pytest.raises(AlreadyExistsError):
        Repository.create(storage)


# -- storage that fails ------------------------------------------------------------------------
CHANGES: dict[str, tuple[str, Callable[[Repository], Any], Callable[[Repository], Any]]] = {
    "commit": ("put", lambda r: commit(r, 0, 7), lambda r: newest(r)[0] == 7),
    "create_branch": (
        "put",
        lambda r: r.create_branch("x", FIRST),
        lambda r: r.lookup_branch("x") == FIRST,
    ),
    "reset_branch": (
        "put",
        lambda r: r.reset_branch("main", FIRST),
        lambda r: r.lookup_branch("main") == FIRST,
    ),
    "delete_branch": (
        "delete",
        lambda r: r.delete_branch("dev"),
        lambda r: r.list_branches() == {"main"},
    ),
    "create_tag": (
        "put",
        lambda r: r.create_tag("x", FIRST),
        lambda r: r.lookup_tag("x") == FIRST,
    ),
    "delete_tag": ("put", lambda r: r.delete_tag("old"), lambda r: r.list_tags() == set()),
}


@pytest.fixture
def busy(repository: Repository) -> Repository:
    """A repository with refs to delete."""
    repository.create_branch("dev", repository.lookup_branch("main"))
    repository.create_tag("old", FIRST)
    return repository


@pytest.mark.parametrize("change", CHANGES)
def test_the_answer_is_lost(change: str, busy: Repository, storage: Storage) -> None:
    operation, act, done = CHANGES[change]
    faulty = FaultyStorage(storage)
    fault = faulty.fail(operation, key="refs/", when="after")
    act(Repository.open(faulty))
    assert fault.raised == 1
    assert done(busy)


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("change", CHANGES)
def test_requests_fail(change: str, busy: Repository, storage: Storage) -> None:
    operation, act, done = CHANGES[change]
    before = {key: bytes(storage.get(key).data) for key in keys(storage, "refs/")}
    faulty = FaultyStorage(storage)
    faulty.fail(operation, key="refs/", times=8)
    with pytest.raises(StorageError, match="injected"):
        act(Repository.open(faulty))
    assert {key: bytes(storage.get(key).data) for key in keys(storage, "refs/")} == before
    act(Repository.open(faulty))
    assert done(busy)


class _MeanwhileStorage(WrapperStorage):
    """A storage where somebody does something right after a put of a ref."""

    def __init__(self, inner: Storage, act: Callable[[], Any]) -> None:
        super().__init__(inner)
        self._acts: list[Callable[[], Any]] = [act]

    def after(self, operation: str, keys: tuple[str, ...], read: int) -> None:
        if operation == "put" and keys[0].startswith("refs/") and self._acts:
            self._acts.pop()()
            raise PreconditionFailedError("retried, and changed")


def test_the_answer_is_lost_and_others_go_on(repository: Repository, storage: Storage) -> None:
    """The commit is found below theirs, and is not made twice."""
    ours = _MeanwhileStorage(storage, lambda: commit(repository, 1, 8))
    commit(Repository.open(ours), 0, 7)
    assert messages(repository)[:3] == ["1 is 8", "0 is 7", "array"]
    assert newest(repository)[:2] == [7, 8]


@pytest.mark.parametrize("error", LOST, ids=["lost", "retried"])
def test_the_answer_to_a_commit_is_lost(
    repository: Repository, storage: Storage, error: Exception
) -> None:
    faulty = FaultyStorage(storage)
    fault = faulty.fail("put", key=MAIN, when="after", error=error)
    tip = commit(Repository.open(faulty), 0, 7)
    assert fault.raised == 1
    assert repository.lookup_branch("main") == tip
    assert messages(repository) == ["0 is 7", "array", "Repository initialized"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_step_of_a_commit(
    repository: Repository, storage: Storage, when: Any
) -> None:
    """The repository is in the state before or after it, and takes the next commit."""

    def attempt(nth: int | None, value: int) -> int:
        faulty = FaultyStorage(storage)
        session = Repository.open(faulty).writable_session("main")
        write(session, 0, value)
        fault = faulty.fail(nth=nth or 1000, when=when, error=KeyboardInterrupt())  # type: ignore[arg-type]
        with contextlib.suppress(KeyboardInterrupt):
            session.commit(f"attempt {value}")
        return fault.seen

    steps = attempt(None, 100)
    assert steps >= 6
    for nth in range(1, steps + 1):
        before = newest(repository)[0]
        attempt(nth, nth)
        assert newest(repository)[0] in (before, nth)
        assert (messages(repository)[0] == f"attempt {nth}") == (newest(repository)[0] == nth)
    attempt(None, 200)
    assert newest(repository)[0] == 200


@pytest.mark.usefixtures("no_pauses")
def test_a_configuration_that_cannot_be_stored(repository: Repository, storage: Storage) -> None:
    changed = Repository.open(storage, RepositoryConfig(inline_chunk_threshold_bytes=3))
    faulty = FaultyStorage(storage)
    theirs = Repository.open(faulty, RepositoryConfig(inline_chunk_threshold_bytes=4))
    faulty.fail("put", key=layout.CONFIG_KEY, times=8)
    with pytest.raises(StorageError, match="injected"):
        theirs.save_config()
    assert Repository.fetch_config(storage) == NATIVE
    faulty.fail("put", key=layout.CONFIG_KEY, when="after")
    theirs.save_config()
    assert Repository.fetch_config(storage) == theirs.config
    with pytest.raises(ConflictError, match="config was updated"):
        changed.save_config()
    changed = Repository.open(storage, RepositoryConfig(inline_chunk_threshold_bytes=3))
    changed.save_config()
    assert Repository.fetch_config(storage) == changed.config


# -- requests and permissions --------------------------------------------------------------------
class _NoListing(WrapperStorage):
    """A storage that only gives objects."""

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        raise AssertionError("listed")

    def put(self, key: str, *_: Any, **__: Any) -> None:
        raise AssertionError(f"wrote {key}")

    def delete(self, keys: Iterable[str]) -> None:
        raise AssertionError("deleted")


def test_reading_takes_no_permission_but_to_get(busy: Repository, storage: Storage) -> None:
    reader = Repository.open(_NoListing(storage))
    assert newest(reader)[:2] == [1, 2]
    assert newest(reader, "dev")[:2] == [1, 2]
    assert reader.lookup_tag("old") == FIRST
    assert messages(reader) == ["array", "Repository initialized"]
    assert reader.diff(from_tag="old", to_branch="main").new_arrays == {"/a"}
    with pytest.raises(RefNotFoundError):
        reader.lookup_branch("nothing")


def test_requests_of_a_commit(busy: Repository, storage: Storage) -> None:
    """They do not grow with the number of refs, nor with the history."""

    def requests() -> dict[str, int]:
        counting = CountingStorage(storage)
        session = Repository.open(counting).writable_session("main")
        write(session, 0, 7)
        counting.reset()
        session.commit("counted")
        return {name: count.requests for name, count in counting.counts.items() if count.requests}

    few = requests()
    # manifest, log, snapshot, ref; the manifest of the base, main and the configuration
    assert few == {"put": 4, "get": 3, "get_if_changed": 1}
    for n in range(5):
        commit(busy, n, n + 10)
        busy.create_branch(f"b{n}", FIRST)
        busy.create_tag(f"t{n}", FIRST)
    assert requests() == few


def test_requests_of_a_rebase(repository: Repository, storage: Storage) -> None:
    for n in range(10):
        commit(repository, 0, 10 + n)
    counting = CountingStorage(storage)
    session = Repository.open(counting).writable_session("main")
    write(session, 5, 1)
    commit(repository, 1, 1)
    counting.reset()
    session.commit("rebased", rebase_with=ConflictDetector())
    snapshots = 1  # the one in between
    assert counting.counts["list"].requests == 0
    assert counting.counts["get"].requests <= 12 + snapshots


# -- upgrading -----------------------------------------------------------------------------------
def contents(storage: Storage) -> dict[str, bytes]:
    return {key: bytes(storage.get(key).data) for key in keys(storage)}


def refs(repository: Repository) -> list[dict[str, str]]:
    """What must survive at every step."""
    return [
        {name: repository.lookup_branch(name) for name in repository.list_branches()},
        {name: repository.lookup_tag(name) for name in repository.list_tags()},
    ]


def state(repository: Repository) -> dict[str, Any]:
    """What must survive."""
    branches, tags = refs(repository)
    return {
        "branches": branches,
        "tags": tags,
        "history": {
            name: [(e.id, e.parent_id, e.message, e.written_at, e.metadata) for e in entries]
            for name in branches
            for entries in [list(repository.ancestry(branch=name))]
        },
        "values": {name: newest(repository, name) for name in branches if branches[name] != FIRST},
        "config": Repository.fetch_config(repository.storage),
    }


@pytest.fixture
def old(busy: Repository) -> Repository:
    """A repository with something of everything."""
    commit(busy, 3, 3)
    commit(busy, 4, 4, "dev")
    busy.create_branch("first", FIRST)
    busy.create_tag("t", busy.lookup_branch("dev"))
    busy.delete_tag("old")
    return busy


def test_upgrade(old: Repository, storage: Storage) -> None:
    before, objects = state(old), contents(storage)
    new = upgrade_icechunk_repository(old, dry_run=False)
    assert new.spec_version == 2
    for use_it in (lambda: old.spec_version, lambda: old.writable_session("main")):
        with pytest.raises(
            InvalidatedRepositoryError, match="with the repository that the upgrade"
        ) as info:
            use_it()
        assert isinstance(info.value, RuntimeError)
    assert state(new) == before
    now = contents(storage)
    assert now.keys() - objects.keys() == {"repo"}
    gone = objects.keys() - now.keys()
    assert gone == {k for k in objects if k.startswith("refs/") or k == layout.CONFIG_KEY}
    assert all(now[key] == objects[key] for key in objects.keys() & now.keys())
    log = [(type(update.kind).__name__, update.updated_at) for update in new.ops_log()]
    kinds = [kind for kind, _ in log]
    assert (kinds[0], kinds[-1]) == ("RepoMigrated", "RepoInitialized")
    assert sorted(kinds[1:-1]) == sorted(
        ["NewCommit"] * 3 + ["BranchCreated"] * 2 + ["TagCreated"] * 2 + ["TagDeleted"]
    )
    assert all(later > earlier for (_, later), (_, earlier) in pairwise(log))
    with pytest.raises(AlreadyExistsError):
        new.create_tag("old", FIRST)
    # everything of version 2 works
    session = new.rearrange_session("main")
    session.move("/a", "/b")
    session.commit("moved")
    session = new.rearrange_session("main")
    session.move("/b", "/c")
    session.amend("moved again")
    assert new.diff(from_branch="dev", to_branch="dev").is_empty()


def test_a_dry_run_changes_nothing(old: Repository, storage: Storage) -> None:
    objects = contents(storage)
    same = upgrade_icechunk_repository(old, dry_run=True, prefetch_concurrency=1)
    assert same.spec_version == 1
    assert contents(storage) == objects
    snapshot = next(iter(old.ancestry(tag="t"))).id
    storage.delete([f"snapshots/{snapshot}"])
    with pytest.raises(IcechunkError, match=snapshot):
        upgrade_icechunk_repository(old, dry_run=True)


def test_files_may_stay(old: Repository, storage: Storage) -> None:
    before, objects = state(old), contents(storage)
    new = upgrade_icechunk_repository(
        Repository.open(old.storage), dry_run=False, delete_unused_v1_files=False
    )
    assert state(new) == before
    assert contents(storage).items() >= objects.items()

    def again(**options: bool) -> None:
        upgrade_icechunk_repository(Repository.open(storage), dry_run=False, **options)

    def nothing_to_do(**options: bool) -> None:
        refused(lambda: again(**options), SessionStateError, ErrorKind.INVALID_REPOSITORY_MIGRATION)

    nothing_to_do(delete_unused_v1_files=False)
    again()  # deletes them
    assert not keys(storage, "refs/")
    assert state(new) == before
    nothing_to_do()


def test_a_session_outlives_the_upgrade(old: Repository) -> None:
    session = old.writable_session("main")
    write(session, 8, 88)
    new = upgrade_icechunk_repository(Repository.open(old.storage), dry_run=False)
    session.commit("after")
    assert newest(new)[8] == 88
    assert messages(new)[0] == "after"


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_upgrade_that_is_killed_anywhere(
    old: Repository, storage: MemoryStorage, when: Any
) -> None:
    """The repository is whole, of either version, and the upgrade can be run again."""
    before, refs_before, objects = state(old), refs(old), contents(storage)
    steps = 0
    for nth in range(1, 1000):
        for key in keys(storage):
            storage.delete([key])
        for key, data in objects.items():
            storage.put(key, data)
        faulty = FaultyStorage(storage)
        opened = Repository.open(faulty)
        fault = faulty.fail(nth=nth, when=when, error=KeyboardInterrupt())  # type: ignore[arg-type]
        with contextlib.suppress(KeyboardInterrupt):
            upgrade_icechunk_repository(opened, dry_run=False, prefetch_concurrency=1)
        now = Repository.open(storage)
        assert refs(now) == refs_before
        if keys(storage, "refs/") or now.spec_version == 1:
            upgrade_icechunk_repository(now, dry_run=False)
        assert refs(Repository.open(storage)) == refs_before
        assert not keys(storage, "refs/")
        if not fault.raised:
            break
        steps += 1
    assert steps > 15
    assert state(Repository.open(storage)) == before


@pytest.mark.usefixtures("no_pauses")
def test_an_upgrade_that_cannot_be_stored(old: Repository, storage: Storage) -> None:
    objects = contents(storage)
    faulty = FaultyStorage(storage)
    faulty.fail("put", key="repo", times=8)
    with pytest.raises(StorageError, match="injected"):
        upgrade_icechunk_repository(Repository.open(faulty), dry_run=False)
    assert contents(storage) == objects


def test_the_answer_to_the_upgrade_is_lost(old: Repository, storage: Storage) -> None:
    before = state(old)
    for error in LOST:
        faulty = FaultyStorage(MemoryStorage())
        for key, data in contents(storage).items():
            faulty.put(key, data)
        fault = faulty.fail("put", key="repo", when="after", error=error)
        new = upgrade_icechunk_repository(Repository.open(faulty), dry_run=False)
        assert fault.raised == 1
        assert state(new) == before


class _BusyStorage(WrapperStorage):
    """A storage in which somebody commits while snapshots are read."""

    def __init__(self, inner: Storage, act: Callable[[], Any]) -> None:
        super().__init__(inner)
        self._acts = [act]

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        if operation == "list" and keys == ("snapshots/",) and self._acts:
            self._acts.pop()()


def test_a_commit_during_the_upgrade_is_in_it(old: Repository, storage: Storage) -> None:
    place = _BusyStorage(storage, lambda: commit(old, 7, 77))
    new = upgrade_icechunk_repository(Repository.open(place), dry_run=False)
    assert newest(new)[7] == 77


def test_upgrades_that_make_no_sense(old: Repository) -> None:
    with pytest.raises(InvalidInputError, match="prefetch_concurrency"):
        upgrade_icechunk_repository(old, dry_run=True, prefetch_concurrency=0)
    new = Repository.create(MemoryStorage())
    refused(
        lambda: upgrade_icechunk_repository(new, dry_run=True),
        SessionStateError,
        ErrorKind.INVALID_REPOSITORY_MIGRATION,
    )
    with pytest.raises((RepositoryNotFoundError, ObjectNotFoundError)):
        Repository.open(MemoryStorage())


def test_supported_versions() -> None:
    assert icechunk.supported_spec_versions() == [2, 1]
    assert icechunk.spec_version() == 2


class _Deletions(WrapperStorage):
    """A storage that notes what is deleted."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.deleted: list[str] = []

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        if operation == "delete":
            self.deleted += keys


def test_the_branch_that_makes_it_version_1_goes_first(old: Repository, storage: Storage) -> None:
    """Clients 1.x must not go on with a part of the refs."""
    place = _Deletions(storage)
    upgrade_icechunk_repository(Repository.open(place), dry_run=False)
    assert place.deleted[0] == MAIN
    assert len(place.deleted) == len(set(place.deleted)) > 5


def test_open_or_create() -> None:
    storage = MemoryStorage()
    assert Repository.open_or_create(storage, create_version=1).spec_version == 1
    assert Repository.open_or_create(storage, create_version=2).spec_version == 1
    for version in (1, 2):
        with pytest.raises(AlreadyExistsError):
            Repository.create(storage, spec_version=version, check_clean_root=False)


class IgnoringCase(WrapperStorage):
    """A folder as on macOS and Windows: names that differ in case only are one."""

    @property
    def url(self) -> str:
        return "file:///folder"

    def _known(self, key: str) -> str:
        keys = {meta.key.casefold(): meta.key for meta in self.inner.list()}
        return keys.get(key.casefold(), key)

    def get(self, key: str, *args: Any, **options: Any) -> Any:
        return super().get(self._known(key), *args, **options)

    def put(self, key: str, *args: Any, **options: Any) -> Any:
        return super().put(self._known(key), *args, **options)

    def delete(self, keys: Sequence[str]) -> None:
        super().delete([self._known(key) for key in keys])


@pytest.mark.parametrize("spec_version", [1, 2])
def test_a_folder_that_ignores_case(spec_version: int) -> None:
    storage = IgnoringCase(MemoryStorage())
    repo = Repository.create(storage, spec_version=spec_version)
    tip = repo.lookup_branch("main")
    repo.create_branch("dev", tip)
    repo.create_tag("v", tip)
    repo.create_tag("w", tip)
    repo.delete_tag("w")
    calls: list[Callable[[Repository], Any]] = [
        lambda repo: repo.create_branch("Dev", tip),
        lambda repo: repo.create_tag("V", tip),
        lambda repo: repo.delete_branch("DEV"),
        lambda repo: repo.delete_tag("V"),
        lambda repo: repo.reset_branch("DEV", tip),
        lambda repo: repo.writable_session("Main"),
        lambda repo: repo.lookup_tag("V"),
        lambda repo: repo.create_tag("W", tip),
    ]
    for number, call in enumerate(calls):
        opened = Repository.open(storage)
        if spec_version == 1:
            with pytest.raises(InvalidInputError, match="ignores case, and spec version 1 has"):
                call(opened)
        elif number in (0, 1, 7):
            call(opened)
    opened = Repository.open(storage)
    more = {"Dev"} if spec_version == 2 else set()
    assert opened.list_branches() == {"main", "dev"} | more
    assert opened.lookup_branch("dev") == opened.lookup_tag("v") == tip
    if spec_version == 2:
        # jobs have a folder each
        opened.jobs.create("A", keys=[1], message="m")
        for act in (
            lambda: opened.jobs.create("a", keys=[1], message="m"),
            lambda: opened.jobs.open("a"),
            lambda: opened.jobs.delete("a"),
        ):
            with pytest.raises(InvalidInputError, match=r"told from .A.: .* ignores case"):
                act()
        assert opened.jobs.list() == ["A"]
