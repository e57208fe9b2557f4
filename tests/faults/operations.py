"""What people do with a repository, each with the way to tell that it was done exactly once.

Tests of faults make them again and again while requests fail, disks are full or processes are
killed, try again as a user would, and then ask `Made.check` and `Repository.verify`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype

from icechunk import (
    ConflictDetector,
    IcechunkError,
    IcechunkStore,
    ManifestConfig,
    ManifestSplitCondition,
    ManifestSplitDimCondition,
    ManifestSplittingConfig,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    Session,
    StorageError,
    VirtualChunkContainer,
    local_filesystem_store,
    time_limit,
    upgrade_icechunk_repository,
)
from icechunk.credentials import LocalFileSystemAccess
from icechunk.storage.base import Storage
from icechunk_dask import virtualize
from tests.faults.troubled import LIMIT

#: Chunks of `a` are inline, those of `b` are not, and each manifest holds two.
CONFIG = RepositoryConfig(
    inline_chunk_threshold_bytes=10,
    manifest=ManifestConfig(
        splitting=ManifestSplittingConfig.from_dict(
            {ManifestSplitCondition.AnyArray(): {ManifestSplitDimCondition.Any(): 2}}
        )
    ),
)
LENGTH = 6
FILL = -1
FIRST = "1CECHNKREP0F1RSTCMT0"
#: What is stored, by position, before anything is done.
START = {0: 2, 1: 1}


# -- a small repository --------------------------------------------------------------------
def write(session: Session, values: dict[int, int]) -> None:
    """Write values, one chunk of each array for each."""
    a, b = (zarr.open_array(session.store, path=name, mode="r+") for name in "ab")
    for at, value in values.items():
        a[at] = value
        b[4 * at : 4 * at + 4] = value


def read(session: Session) -> dict[int, int]:
    """Return what is stored; both arrays agree on it."""
    a, b = (np.asarray(zarr.open_array(session.store, path=name, mode="r")[:]) for name in "ab")
    assert b.reshape(LENGTH, 4).T.tolist() == [a.tolist()] * 4
    return {at: value for at, value in enumerate(a.tolist()) if value != FILL}


def commit(repository: Repository, values: dict[int, int], branch: str = "main") -> str:
    """Commit values."""
    session = repository.writable_session(branch)
    write(session, values)
    return session.commit(str(values))


def newest(storage: Storage, branch: str = "main") -> dict[int, int]:
    """Return the values of a branch, as somebody sees them who has read nothing before."""
    return read(Repository.open(storage).readonly_session(branch))


def messages(storage: Storage, branch: str = "main") -> list[str]:
    """Return the history of a branch, newest first."""
    return [entry.message for entry in Repository.open(storage).ancestry(branch=branch)]


@cache
def _template(spec_version: int) -> dict[str, bytes]:
    storage = MemoryStorage()
    archive = RepositoryConfig()
    url = f"{Path(sources()[0]).parent.as_uri()}/"
    store = local_filesystem_store(url.removeprefix("file://"))
    archive.set_virtual_chunk_container(VirtualChunkContainer(url, store))
    Repository.create(storage, archive, spec_version=spec_version)
    repository = Repository.open(storage, CONFIG)
    session = repository.writable_session("main")
    for name, length, chunk in (("a", LENGTH, 1), ("b", LENGTH * 4, 4)):
        options: dict[str, Any] = {"dtype": "i8", "fill_value": FILL, "compressors": None}
        zarr.create_array(session.store, name=name, shape=(length,), chunks=(chunk,), **options)
    session.commit("arrays")
    commit(repository, {0: 1})
    commit(repository, START)
    tip = repository.lookup_branch("main")
    repository.create_branch("dev", tip)
    repository.create_tag("old", repository.resolve("main~2"))
    # litter: a branch that is no more, and a session that was given up
    repository.create_branch("gone", tip)
    commit(repository, {3: 33}, "gone")
    repository.delete_branch("gone")
    write(repository.writable_session("main"), {4: 44})
    return {meta.key: bytes(storage.get(meta.key).data) for meta in storage.list()}


HISTORY = [str(START), "{0: 1}", "arrays", "Repository initialized"]


def lay_out(storage: Storage, spec_version: int) -> None:
    """Put a small repository with a history, and some garbage, into an empty storage."""
    for key, data in _template(spec_version).items():
        storage.put(key, data)


@cache
def sources() -> list[str]:
    """Return two files of an archive."""
    folder = Path(mkdtemp(prefix="icechunk-sources-"))
    for number in range(2):
        values = ("time", np.arange(4.0) + 4 * number)
        dataset = xr.Dataset({"wind": values}, {"time": np.arange(4) + 4 * number})
        encoding = {"wind": {"chunksizes": (2,)}}
        dataset.to_netcdf(folder / f"{number}.nc", engine="h5netcdf", encoding=encoding)
    return [str(path) for path in sorted(folder.iterdir())]


def reading(storage: Storage) -> Repository:
    """Open a repository for somebody who may read the files of the archive."""
    folder = Path(sources()[0]).parent
    return Repository.open(
        storage, authorize_virtual_chunk_access={f"{folder.as_uri()}/": LocalFileSystemAccess}
    )


# -- what is done --------------------------------------------------------------------------
@dataclass(frozen=True)
class Made:
    """One thing to do.

    Attributes
    ----------
    act : callable
        Does it, or fails. Doing it again finishes it, or says that it is done.
    check : callable
        Asserts that it was done, once, and nothing else.
    said : tuple of type
        What `act` may raise when it was done before.
    """

    act: Callable[[], Any]
    check: Callable[[], None]
    said: tuple[type[Exception], ...] = ()


#: Gets the storage, and the repository as opened through one with faults.
Prepare = Callable[[Storage, Repository], Made]


def _saying(*wanted: str) -> tuple[type[Exception], ...]:
    import icechunk

    return tuple(getattr(icechunk, name) for name in wanted)


def _commit(storage: Storage, repository: Repository) -> Made:
    session = repository.writable_session("main")
    write(session, {1: 7, 2: 8})

    def check() -> None:
        assert messages(storage) == ["mine", *HISTORY]
        assert newest(storage) == {0: 2, 1: 7, 2: 8}
        assert session.snapshot_id == Repository.open(storage).lookup_branch("main")

    return Made(lambda: session.commit("mine"), check)


def _amend(storage: Storage, repository: Repository) -> Made:
    session = repository.writable_session("main")
    write(session, {1: 7, 2: 8})

    def check() -> None:
        assert messages(storage) == ["mine", *HISTORY[1:]]
        assert newest(storage) == {0: 2, 1: 7, 2: 8}

    return Made(lambda: session.amend("mine"), check)


def _rebase(storage: Storage, repository: Repository, *, fair: bool = False) -> Made:
    """Commit to a branch that has moved, in turn if it is `fair`."""
    session = repository.writable_session("main")
    write(session, {1: 7, 2: 8})
    commit(Repository.open(storage, CONFIG), {4: 4})

    def check() -> None:
        assert messages(storage) == ["mine", "{4: 4}", *HISTORY]
        assert newest(storage) == {0: 2, 1: 7, 2: 8, 4: 4}

    return Made(lambda: session.commit("mine", rebase_with=ConflictDetector(), fair=fair), check)


def _write_chunks(storage: Storage, repository: Repository) -> Made:
    """Write chunks through the store, again if that fails, and commit."""
    session = repository.writable_session("main")
    written: list[bool] = []

    def act() -> None:
        if not written:
            write(session, {1: 7, 2: 8, 5: 9})
            written.append(True)
        session.commit("mine")

    def check() -> None:
        assert messages(storage) == ["mine", *HISTORY]
        assert newest(storage) == {0: 2, 1: 7, 2: 8, 5: 9}

    return Made(act, check)


def _tag(storage: Storage, repository: Repository) -> Made:
    tip = repository.lookup_branch("main")

    def check() -> None:
        assert Repository.open(storage).lookup_tag("t") == tip

    return Made(lambda: repository.create_tag("t", tip), check, _saying("AlreadyExistsError"))


def _reset(storage: Storage, repository: Repository) -> Made:
    def check() -> None:
        assert messages(storage) == HISTORY[-1:]
        assert newest(storage, "dev") == START

    return Made(lambda: repository.reset_branch("main", FIRST), check)


def _add(store: IcechunkStore, key: int) -> None:
    write(store.session, {key: read(store.session).get(key, 100) + 1})


def _begin_job(storage: Storage, keys: list[int]) -> None:
    job = Repository.open(storage, CONFIG).jobs.create("j", keys=[2, 3, 4], message="ours")
    if keys:
        job.run(_add, keys=keys)


def _job_part(storage: Storage, repository: Repository) -> Made:
    _begin_job(storage, [2])

    def act() -> None:
        job = repository.jobs.open("j")
        done = job.status().done
        missing = [key for key in (3, 4) if key not in done]
        if missing:
            job.run(_add, keys=missing)

    def check() -> None:
        assert newest(storage) == START
        job = Repository.open(storage, CONFIG).jobs.open("j")
        assert len(job.done()) == 3
        job.finish()
        assert newest(storage) == {**START, 2: 101, 3: 101, 4: 101}

    return Made(act, check)


def _finish(storage: Storage, repository: Repository) -> Made:
    _begin_job(storage, [2, 3, 4])

    def check() -> None:
        assert messages(storage) == ["ours", *HISTORY]
        assert newest(storage) == {**START, 2: 101, 3: 101, 4: 101}
        assert Repository.open(storage).jobs.open("j").status().state == "finished"

    def act() -> None:
        job = repository.jobs.open("j")
        if job.status().state != "finished":
            # parts whose chunks seem to be gone are dropped, and said to be
            job.run(_add, keys=job.status().missing)
            job.finish()

    return Made(act, check)


def _virtualize(storage: Storage, repository: Repository) -> Made:
    def act() -> None:
        virtualize(sources(), repository, group="archive", scheduler="sync")

    def check() -> None:
        history = messages(storage)
        assert history[1:] == HISTORY
        store = reading(storage).readonly_session("main").store
        found = xr.open_zarr(store, group="archive", consolidated=False, chunks=None)
        assert found["wind"].values.tolist() == list(range(8))
        assert newest(storage) == START

    return Made(act, check)


def _expire(storage: Storage, repository: Repository) -> Made:
    cutoff = datetime.now(UTC)

    def check() -> None:
        assert messages(storage) == [HISTORY[0], HISTORY[-1]]
        assert Repository.open(storage).list_tags() == set()
        assert (newest(storage), newest(storage, "dev")) == (START, START)

    return Made(lambda: repository.expire_snapshots(cutoff, delete_expired_tags=True), check)


def _collect(storage: Storage, repository: Repository) -> Made:
    # servers note times in whole seconds
    cutoff = datetime.now(UTC) + timedelta(seconds=10)

    def check() -> None:
        assert messages(storage) == HISTORY
        assert (newest(storage), newest(storage, "dev")) == (START, START)
        # of what was written after the arrays: two commits, and no more
        assert len(list(storage.list("chunks/"))) == 3

    return Made(lambda: repository.garbage_collect(cutoff), check)


def _upgrade(storage: Storage, repository: Repository) -> Made:
    def act() -> None:
        opened = Repository.open(repository.storage, CONFIG)
        if opened.spec_version == 1 or list(storage.list("refs/")):
            upgrade_icechunk_repository(opened, dry_run=False)

    def check() -> None:
        assert Repository.open(storage).spec_version == 2
        assert messages(storage) == HISTORY
        assert [e.message for e in Repository.open(storage).ancestry(tag="old")] == HISTORY[2:]
        assert not list(storage.list("refs/"))
        assert (newest(storage), newest(storage, "dev")) == (START, START)

    return Made(act, check)


def _rewrite(storage: Storage, repository: Repository) -> Made:
    def act() -> None:
        # without a session, nobody remembers what became of an earlier try
        if messages(storage)[0] != "rewritten":
            repository.rewrite_manifests("rewritten", branch="main")

    def check() -> None:
        assert messages(storage) == ["rewritten", *HISTORY]
        assert newest(storage) == START

    return Made(act, check)


def _squash(storage: Storage, repository: Repository) -> Made:
    def act() -> None:
        if messages(storage)[0] != "one":
            repository.squash("main", "main~2", "one")

    def check() -> None:
        assert messages(storage) == ["one", *HISTORY[2:]]
        assert messages(storage, "dev") == HISTORY
        assert (newest(storage), newest(storage, "dev")) == (START, START)

    return Made(act, check)


def _cherry_pick(storage: Storage, repository: Repository) -> Made:
    commit(Repository.open(storage, CONFIG), {3: 5}, "dev")

    def act() -> None:
        if messages(storage)[0] != "picked":
            repository.cherry_pick("main", "dev", message="picked")

    def check() -> None:
        assert messages(storage) == ["picked", *HISTORY]
        assert newest(storage) == {**START, 3: 5}

    return Made(act, check)


def _revert(storage: Storage, repository: Repository) -> Made:
    def act() -> None:
        if messages(storage)[0] != "undone":
            repository.revert("main", "main", message="undone")

    def check() -> None:
        assert messages(storage) == ["undone", *HISTORY]
        assert newest(storage) == {0: 1}

    return Made(act, check)


def _annotate(storage: Storage, repository: Repository) -> Made:
    found: list[Any] = []

    def act() -> None:
        told = Repository.open(repository.storage, CONFIG).annotate("/b")
        found.append([getattr(told.of([at]), "message", None) for at in range(LENGTH)])

    def check() -> None:
        # what is told is right, or there is an error
        assert found == [[HISTORY[0], HISTORY[0], None, None, None, None]]

    return Made(act, check)


def _repack(storage: Storage, repository: Repository) -> Made:
    def act() -> None:
        if messages(storage)[0] != "packed":
            repository.repack("main", message="packed")

    def check() -> None:
        assert messages(storage) == ["packed", *HISTORY]
        assert newest(storage) == START

    return Made(act, check)


def _copy_from(storage: Storage, repository: Repository) -> Made:
    target = MemoryStorage()

    def check() -> None:
        check_whole(target, Made(lambda: None, lambda: None))
        assert messages(target) == HISTORY
        assert newest(target) == START

    return Made(lambda: repository.copy_to(target), check)


def _copy_to(storage: Storage, repository: Repository) -> Made:
    source = MemoryStorage()
    lay_out(source, 2)
    newer = Repository.open(source, CONFIG)
    commit(newer, {4: 4})

    def check() -> None:
        assert messages(storage) == ["{4: 4}", *HISTORY]
        assert newest(storage) == {**START, 4: 4}

    return Made(lambda: newer.copy_to(repository.storage), check)


def _collect_more(storage: Storage, repository: Repository) -> Made:
    """Collect what came since a collection before, by its record."""
    healthy = Repository.open(storage, CONFIG)
    cutoff = datetime.now(UTC) + timedelta(seconds=10)
    healthy.garbage_collect(cutoff)
    healthy.garbage_collect(cutoff, incremental=True)
    healthy.create_branch("gone", healthy.lookup_branch("main"))
    commit(healthy, {3: 33}, "gone")
    healthy.delete_branch("gone")

    def check() -> None:
        assert messages(storage) == HISTORY
        assert (newest(storage), newest(storage, "dev")) == (START, START)
        assert len(list(storage.list("chunks/"))) == 3

    return Made(lambda: repository.garbage_collect(cutoff, incremental=True), check)


def _repair(storage: Storage, repository: Repository) -> Made:
    storage.delete(["repo"])

    def check() -> None:
        assert messages(storage) == HISTORY
        assert (newest(storage), newest(storage, "dev")) == (START, START)
        assert not Repository.repair(storage).is_needed

    return Made(lambda: Repository.repair(repository.storage, dry_run=False), check)


def _drop(*, is_gone: bool) -> Prepare:
    """Commit a version without a chunk that is gone, or that does not decode."""

    def prepare(storage: Storage, repository: Repository) -> Made:
        session = Repository.open(storage, CONFIG).writable_session("main")
        before = {meta.key for meta in storage.list("chunks/")}
        # of another length than four numbers have
        session.store.set_sync("b/c/3", default_buffer_prototype().buffer.from_bytes(b"x" * 40))
        session.commit("bad")
        (key,) = {meta.key for meta in storage.list("chunks/")} - before
        data = bytes(storage.get(key).data)
        if is_gone:
            storage.delete([key])

        def check() -> None:
            assert messages(storage)[1:] == ["bad", *HISTORY]
            assert newest(storage) == START
            # only older versions need it
            storage.put(key, data)

        options: dict[str, Any] = {"branch": "main", "drop_unreadable": True, "deep": not is_gone}

        def act() -> None:
            repaired = Repository.repair(repository.storage, dry_run=False, **options)
            if repaired.unread:
                # what cannot be read stays, and is tried again
                raise StorageError("; ".join(map(str, repaired.unread)))

        return Made(act, check)

    return prepare


def _read(storage: Storage, repository: Repository) -> Made:
    """Read everything, also what others have never read here."""
    read_right = []

    def act() -> None:
        opened = Repository.open(repository.storage, CONFIG)
        # what is read is right, or there is an error; never the fill value
        assert read(opened.readonly_session("main")) == START
        assert [entry.message for entry in opened.ancestry(branch="main")] == HISTORY
        assert read(opened.readonly_session(snapshot_id=opened.resolve("main~1"))) == {0: 1}
        read_right.append(True)

    def check() -> None:
        assert read_right
        assert messages(storage) == HISTORY

    return Made(act, check)


def _create(spec_version: int) -> Prepare:
    def prepare(storage: Storage, repository: Repository) -> Made:
        troubled = repository.storage
        for meta in list(storage.list()):
            storage.delete([meta.key])

        def act() -> None:
            Repository.create(troubled, spec_version=spec_version)

        def check() -> None:
            assert messages(storage) == HISTORY[-1:]
            assert Repository.open(storage).spec_version == spec_version

        return Made(act, check, _saying("AlreadyExistsError"))

    return prepare


BOTH: dict[str, Prepare] = {
    "commit": _commit,
    "rebase": _rebase,
    "write chunks": _write_chunks,
    "tag": _tag,
    "reset": _reset,
    "virtualize": _virtualize,
    "expire": _expire,
    "collect": _collect,
    "rewrite": _rewrite,
    "read": _read,
    "squash": _squash,
    "cherry-pick": _cherry_pick,
    "revert": _revert,
    "annotate": _annotate,
    "repack": _repack,
    "drop": _drop(is_gone=True),
    "drop undecodable": _drop(is_gone=False),
    "queue": partial(_rebase, fair=True),
}
ONLY_2: dict[str, Prepare] = {
    "amend": _amend,
    "job part": _job_part,
    "finish": _finish,
    "copy from": _copy_from,
    "copy to": _copy_to,
    "collect more": _collect_more,
    "repair": _repair,
}
#: All of them, with the spec version of the repository.
OPERATIONS: dict[tuple[str, int], Prepare] = {
    **{(name, 2): prepare for name, prepare in {**BOTH, **ONLY_2}.items()},
    **{(name, 1): prepare for name, prepare in BOTH.items()},
    ("create", 1): _create(1),
    ("create", 2): _create(2),
    ("upgrade", 1): _upgrade,
}


def prepared(name: str, spec_version: int, storage: Storage, troubled: Storage) -> Made:
    """Lay out a repository in an empty storage, and return what is to be done.

    `troubled` leads to the same objects, through faults that begin later.
    """
    lay_out(storage, spec_version)
    opened = Repository.open(troubled, CONFIG)
    return OPERATIONS[name, spec_version](storage, opened)


def finish(made: Made, heal: Callable[[], None]) -> IcechunkError | None:
    """Do it with faults, and again without if that failed; return the error of the first try."""
    try:
        with time_limit(LIMIT):
            made.act()
    except IcechunkError as error:
        assert str(error)
        heal()
        with suppress(*made.said):
            made.act()
        return error
    heal()
    return None


def check_whole(storage: Storage, made: Made) -> None:
    """Assert that it was done once, and that the repository is whole."""
    made.check()
    reading(storage).verify(deep=True).raise_if_damaged()
