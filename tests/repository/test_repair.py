"""Repair: every kind of damage to every kind of object, and what comes of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import cpu

from icechunk import (
    ConflictError,
    FormatError,
    InvalidInputError,
    LocalStorage,
    Repository,
    RepositoryConfig,
    RepositoryNotFoundError,
    StorageError,
    local_filesystem_storage,
)
from icechunk.format import layout
from icechunk.format.ids import INITIAL_SNAPSHOT_ID
from tests.faults.troubled import Troubled
from tests.repository.damage import KINDS, damaged


@pytest.fixture(params=[1, 2], scope="module")
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with native and inline chunks, several commits, a branch and a tag."""
    folder = tmp_path_factory.mktemp("repair") / "repo"
    config = RepositoryConfig(inline_chunk_threshold_bytes=16)
    repo = Repository.create(
        local_filesystem_storage(str(folder)), config, spec_version=request.param
    )
    session = repo.writable_session("main")
    root = zarr.create_group(session.store)
    root.create_array("x", shape=(4, 64), chunks=(1, 64), dtype="i4", compressors=None)
    root["x"][:] = np.arange(256).reshape(4, 64)
    root.create_array("small", shape=(4,), chunks=(1,), dtype="i4")[:] = 2
    first = session.commit("first")
    repo.create_tag("v1", first)
    for i in (1, 2):
        session = repo.writable_session("main")
        zarr.open_array(session.store, path="x")[i] = 10 * i
        session.commit(f"x {i}")
    repo.create_branch("side", first)
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="small")[1] = 7
    session.commit("small")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(original, tmp_path / "repo")
    return tmp_path / "repo"


def opened(folder: Path) -> Repository:
    return Repository.open(local_filesystem_storage(str(folder)))


def chunk_values(folder: Path, branch: str) -> dict[tuple[Any, ...], Any]:
    """Return what each chunk holds; it is missing here where it cannot be read."""
    found: dict[tuple[Any, ...], Any] = {}
    root = zarr.open_group(opened(folder).readonly_session(branch).store, mode="r")
    for name, array in root.arrays():
        for row in range(4):
            found[name, row] = array[row].tolist()
    return found


def objects(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for name in ("snapshots", "manifests", "transactions", "chunks")
        for path in (folder / name).iterdir()
    )


# -- everything, one after the other ----------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_after_a_repair_all_that_did_not_depend_on_the_damage_is_unchanged(
    original: Path, tmp_path: Path, kind: str
) -> None:
    before = {branch: chunk_values(original, branch) for branch in ("main", "side")}
    keys = objects(original)
    if kind != "remove":
        # a few of each type: the first and the last
        by_type = [[key for key in keys if key.startswith(name)] for name in "smtc"]
        keys = sorted({key for group in by_type for key in (group[0], group[-1])})
    for key in keys:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        if not damaged(folder / key, kind):
            continue
        found = opened(folder).verify()
        tips = [opened(folder).lookup_branch(branch) for branch in ("main", "side")]
        if key in map("snapshots/{}".format, tips) and not (folder / "repo").exists():
            # in spec version 1 the history below is known to nobody else
            with pytest.raises(FormatError, match="no version of the branch"):
                Repository.repair(folder, branch="main" if key.endswith(tips[0]) else "side")
            continue
        touched = {ref for damage in found.damages for ref in damage.refs}
        for branch in sorted(touched & {"main", "side"}) or ["main"]:
            plan = Repository.repair(folder, branch=branch, drop_unreadable=True)
            done = Repository.repair(folder, branch=branch, drop_unreadable=True, dry_run=False)
            assert (plan.dropped, plan.reset, plan.logs) == (done.dropped, done.reset, done.logs)
            assert plan.dry_run and plan.snapshot_id is None
            assert bool(done.dropped) == (done.snapshot_id is not None)
            # nothing is done without a damage that a verification names
            assert not (done.dropped or done.reset) or branch in touched, key
        after = opened(folder).verify()
        left = [d for d in after.damages if {"main", "side"} & set(d.refs)]
        assert left == [], key
        # a log that was lost is there again
        assert not any(damage.key.startswith("transactions/") for damage in after.damages)
        if not key.startswith("snapshots/"):
            for branch in ("main", "side"):
                now = chunk_values(folder, branch)
                assert now.keys() == before[branch].keys()
                dropped = {d.path[1:] for d in _dropped(folder, branch)}
                for chunk, value in now.items():
                    fine = value == before[branch][chunk]
                    assert fine or chunk[0] in dropped, (key, chunk)


def _dropped(folder: Path, branch: str) -> list[Any]:
    repo = opened(folder)
    (newest, *_) = repo.ancestry(branch=branch)
    notes = newest.metadata.get("__icechunk", {}).get("dropped", [])
    return [type("D", (), {"path": note.split(" ")[0].rstrip(":")}) for note in notes]


# -- the object that names all versions -----------------------------------------------------------
def only_2(folder: Path) -> None:
    if not (folder / "repo").exists():
        pytest.skip("spec version 1 has no such object")


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [remove, cut, empty, flip])
def test_repo_is_restored(folder: Path, damage: Callable[[Path], None]) -> None:
    only_2(folder)
    repo = opened(folder)
    before = {branch: chunk_values(folder, branch) for branch in ("main", "side")}
    history = [each.id for each in repo.ancestry(branch="main")]
    newest = sorted((folder / "overwritten").glob("repo.*"))[0]
    damage(folder / "repo")
    broken = (folder / "repo").read_bytes() if (folder / "repo").exists() else None
    with pytest.raises((FormatError, RepositoryNotFoundError)):
        opened(folder)
    (told,) = repo.verify().damages
    assert (told.key, told.problem) == ("repo", "missing" if broken is None else "unreadable")
    storage = local_filesystem_storage(str(folder))
    plan = Repository.repair(storage)
    assert (plan.restored_from, plan.dry_run) == (f"overwritten/{newest.name}", True)
    assert (folder / "repo").exists() == (broken is not None)
    done = asyncio.run(Repository.repair_async(storage, dry_run=False))
    assert done.damage is not None and done.damage.startswith("repo: ")
    # what was there is kept
    kept = [p.read_bytes() for p in (folder / "overwritten").glob("damaged-*")]
    assert kept == ([] if broken is None else [broken])
    # the copy was made before the last commit, which is not silently lost
    assert [each.id for each in opened(folder).ancestry(branch="main")] == history[1:]
    (lost,) = done.unlisted
    assert (lost.id, lost.message, lost.fits) == (history[0], "small", ("main",))
    assert history[0] in repr(done) and history[0] in json.dumps(done.to_dict())
    assert "restored from" in done._repr_html_()
    with pytest.raises(InvalidInputError, match="was not made on"):
        Repository.repair(storage, adopt={"side": lost.id})
    Repository.repair(storage, adopt={"main": lost.id}, dry_run=False)
    for branch, values in before.items():
        assert chunk_values(folder, branch) == values
    assert [each.id for each in opened(folder).ancestry(branch="main")] == history
    assert opened(folder).verify(deep=True).damages == ()
    with pytest.raises(InvalidInputError, match="reset_branch"):
        Repository.repair(storage, adopt={"main": lost.id})
    assert not Repository.repair(storage, dry_run=False).is_needed


def test_copies_that_cannot_be_used_are_passed_over(folder: Path) -> None:
    only_2(folder)
    copies = sorted((folder / "overwritten").glob("repo.*"))
    tip = opened(folder).resolve("main~1")
    flip(copies[0])
    # the tip of the two that come next
    (folder / "snapshots" / tip).unlink()
    remove(folder / "repo")
    done = Repository.repair(folder, dry_run=False)
    passed = [key for key, _ in done.passed_over]
    assert passed[0] == f"overwritten/{copies[0].name}"
    assert done.restored_from not in passed
    assert next(each.message for each in opened(folder).ancestry(branch="main")) == "x 1"
    assert "cannot be used" in repr(done)


@pytest.mark.parametrize("damage", ["none", "repo"])
@pytest.mark.parametrize("times", [1, 3])
def test_an_answer_that_is_damaged_now_and_then(
    folder: Path, damage: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers answer with something else once in a while. No commit is undone for that."""
    if not (folder / "repo").exists():
        pytest.skip("spec version 1 has no object that names all versions")
    if damage == "repo":
        (folder / "repo").write_bytes(b"damaged")
    copies = sorted(path.name for path in (folder / "overwritten").iterdir())
    odd = {"repo": times, f"overwritten/{copies[0]}": times}
    get = LocalStorage.get

    def answer(self: LocalStorage, key: str, **options: Any) -> Any:
        found = get(self, key, **options)
        if odd.get(key, 0):
            odd[key] -= 1
            return replace(found, data=gzip.compress(bytes(found.data)))
        return found

    monkeypatch.setattr(LocalStorage, "get", answer)
    repair = Repository.repair(local_filesystem_storage(str(folder)), dry_run=False)
    monkeypatch.undo()
    assert repair.is_needed == (damage == "repo")
    if damage == "repo":
        assert repair.restored_from == f"overwritten/{copies[0]}"
        assert repair.passed_over == ()


def test_without_a_copy_it_says_so(folder: Path) -> None:
    only_2(folder)
    flip(folder / "repo")
    for copy in (folder / "overwritten").iterdir():
        flip(copy)
    with pytest.raises(FormatError, match=r"cannot be repaired.*none of \d+ copies"):
        Repository.repair(folder)
    shutil.rmtree(folder / "overwritten")
    with pytest.raises(FormatError, match="none of 0 copies"):
        Repository.repair(folder)


def test_somebody_else_repairs_at_the_same_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_2(folder)
    remove(folder / "repo")
    storage = local_filesystem_storage(str(folder))
    put = type(storage).put

    def late(self: Any, key: str, data: Any, **how: Any) -> Any:
        monkeypatch.undo()
        Repository.repair(folder, dry_run=False)
        return put(self, key, data, **how)

    monkeypatch.setattr(type(storage), "put", late)
    with pytest.raises(ConflictError, match="somebody else"):
        Repository.repair(storage, dry_run=False)
    assert opened(folder).verify().ok


def test_nothing_to_repair(folder: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    done = Repository.repair(folder, branch="main", drop_unreadable=True, dry_run=False)
    assert not done.is_needed
    assert "nothing to repair" in repr(done)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    with pytest.raises(RepositoryNotFoundError):
        Repository.repair(tmp_path / "nothing")
    with pytest.raises(InvalidInputError, match="needs a branch"):
        Repository.repair(folder, drop_unreadable=True)


def test_refs_of_spec_1(folder: Path) -> None:
    if (folder / "repo").exists():
        pytest.skip("refs are objects in spec version 1 only")
    tip = opened(folder).lookup_branch("main")
    before = chunk_values(folder, "main")
    for damage in (remove, empty):
        damage(folder / "refs" / "branch.main" / "ref.json")
        plan = Repository.repair(folder)
        assert plan.damage is not None and "branch.main" in plan.damage
        assert tip in {each.id for each in plan.unlisted}
        Repository.repair(folder, adopt={"main": tip}, dry_run=False)
        assert chunk_values(folder, "main") == before
    with pytest.raises(InvalidInputError, match="is not lost"):
        Repository.repair(folder, adopt={"main": tip}, dry_run=False)


def test_the_first_log_may_be_missing(folder: Path) -> None:
    (folder / layout.transaction_key(INITIAL_SNAPSHOT_ID)).unlink(missing_ok=True)
    assert not Repository.repair(folder, branch="main").is_needed


# -- chunks that do not decode ----------------------------------------------------------------
@pytest.fixture
def undecodable(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    """Arrays of several codecs, in each of which one of three chunks is of no use."""
    config = RepositoryConfig(inline_chunk_threshold_bytes=100)
    storage = local_filesystem_storage(str(tmp_path / "repo"))
    repo = Repository.create(storage, config, spec_version=request.param)
    session = repo.writable_session("main")
    root = zarr.create_group(session.store)
    compressors: dict[str, Any] = {
        "zstd": zarr.codecs.ZstdCodec(),
        "gzip": zarr.codecs.GzipCodec(),
        "blosc": zarr.codecs.BloscCodec(),
        "crc": zarr.codecs.Crc32cCodec(),
        "plain": None,
    }
    values = np.random.default_rng(0).integers(0, 1 << 30, 300)
    for name, compressor in compressors.items():
        options: dict[str, Any] = {"chunks": (100,), "compressors": compressor, "fill_value": -1}
        root.create_array(name, data=values, **options)
        root.create_array(f"{name}, inline", data=values[:3], **options | {"chunks": (1,)})
    root.create_array("shards", data=values, chunks=(50,), shards=(100,), fill_value=-1)
    root.create_array("scalar", data=np.asarray(7), fill_value=-1)
    for name, array in root.arrays():
        key = f"{name}/c/1" if array.ndim else f"{name}/c"
        size = 30 if "inline" in name else 500
        damage = b"\x07" * size
        asyncio.run(session.store.set(key, cpu.Buffer.from_bytes(damage)))
    # this one is as good as before
    root.create_array("good", data=values, chunks=(100,))
    session.commit("damaged")
    return repo


@pytest.mark.parametrize("undecodable", [1, 2], indirect=True)
def test_chunks_that_do_not_decode_are_dropped_when_asked(undecodable: Repository) -> None:
    repo, storage = undecodable, undecodable.storage
    tip = repo.lookup_branch("main")
    damaged = repo.verify(deep=True).damages
    assert len(damaged) == 12
    # what is shallow does not see it, and what does not ask changes nothing
    assert not Repository.repair(storage, branch="main", drop_unreadable=True).is_needed
    plan = Repository.repair(storage, branch="main", deep=True, dry_run=False)
    assert plan.is_needed and repo.lookup_branch("main") == tip
    done = Repository.repair(storage, branch="main", drop_unreadable=True, deep=True, dry_run=False)
    assert plan.dropped == done.dropped
    assert {(each.path, each.region) for each in done.dropped} == {
        (each.array, each.region) for each in damaged
    }
    assert all("cannot be decoded, " in each.why for each in done.dropped)
    assert repo.verify(deep=True).ok
    values = np.random.default_rng(0).integers(0, 1 << 30, 300)
    root = zarr.open_group(repo.readonly_session("main").store, mode="r")
    for name, array in root.arrays():
        expected = values.copy() if array.shape == (300,) else values[:3].copy()
        size = len(expected) // 3
        if name != "good":
            expected[size : 2 * size] = -1
        assert np.asarray(array[...]).tolist() == (expected.tolist() if array.ndim else -1), name
    diff = repo.diff(from_snapshot_id=tip, to_branch="main")
    assert len(diff.updated_chunks) == 12


@pytest.mark.parametrize("undecodable", [2], indirect=True)
def test_a_request_that_fails_is_no_damage(undecodable: Repository) -> None:
    """The branch would be moved back, or manifests and chunks dropped that are as good as ever."""
    storage = undecodable.storage
    options: dict[str, Any] = {"branch": "main", "drop_unreadable": True, "deep": True}
    plan = Repository.repair(storage, **options)
    troubled = Troubled(storage)
    for number in (*range(1, 9), *range(9, 1000, 11)):
        troubled.plan(number, "before")
        try:
            found = Repository.repair(troubled, **options)
        except StorageError as error:
            assert "lost before" in str(error)
            continue
        assert (found.dropped, found.reset, found.unread) == (plan.dropped, (), ()), number
        if not troubled.reached:
            break
    assert number > 10


def test_what_is_no_fault_of_the_bytes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = local_filesystem_storage(str(tmp_path / "repo"))
    repo = Repository.create(storage)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="x", data=np.arange(300), chunks=(100,))
    session.commit("good")
    ways: list[Exception] = [
        StorageError("no answer"),
        ImportError("no such codec here"),
        MemoryError(),
        NotImplementedError("not on this machine"),
    ]
    for error in ways:

        async def fail(*_: Any, error: Exception = error) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(zarr.codecs.ZstdCodec, "_decode_single", fail)
            assert repo.verify(deep=True).damages
            found = Repository.repair(storage, branch="main", drop_unreadable=True, deep=True)
        assert not found.is_needed, error
        assert [(each.path, each.chunks) for each in found.unread] == [("/x", 3)]
        assert "kept, though they could not be read:\n  /x chunks [0:3] (3): " in str(found)
    with pytest.raises(InvalidInputError, match="deep needs a branch"):
        Repository.repair(storage, deep=True)
