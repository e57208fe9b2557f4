"""Verification names each damage that is put into a copy of a repository, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import icechunk
from icechunk import (
    CountingStorage,
    FormatError,
    MemoryStorage,
    Repository,
    RepositoryConfig,
    VirtualChunkContainer,
    local_filesystem_storage,
    local_filesystem_store,
)
from icechunk.commit.publish import RepoState
from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import INITIAL_SNAPSHOT_ID, decode_id
from icechunk.format.manifest import decode_manifest, encode_manifest
from icechunk.format.nodes import ManifestFile, ManifestRef
from icechunk.format.snapshot import Snapshot, encode_snapshot
from icechunk.format.transaction_log import decode_transaction_log, encode_transaction_log
from icechunk.repository.verification import Damage, Verification
from icechunk.storage import WrapperStorage
from tests import histories
from tests.data import golden_content as content
from tests.storages import Meanwhile

DATA = Path(content.__file__).parent


def opened(folder: Path, source: Path | None = None) -> Repository:
    access = (
        None
        if source is None
        else {f"file://{source}/": icechunk.credentials.LocalFileSystemAccess}
    )
    return Repository.open(local_filesystem_storage(str(folder)), None, access)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a file that virtual chunks are in."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "data.bin").write_bytes(np.arange(8, dtype="<i4").tobytes())
    # long ago, so that a change of today is one
    os.utime(folder / "data.bin", (1_000_000_000, 1_000_000_000))
    return folder


@pytest.fixture(params=[1, 2])
def folder(tmp_path: Path, source: Path, request: pytest.FixtureRequest) -> Path:
    """A repository with native, inline and virtual chunks, a branch and a tag."""
    folder = tmp_path / "repo"
    config = RepositoryConfig.default()
    config.inline_chunk_threshold_bytes = 16
    config.set_virtual_chunk_container(
        VirtualChunkContainer(f"file://{source}/", local_filesystem_store(str(source)))
    )
    storage = local_filesystem_storage(str(folder))
    repo = Repository.create(storage, config, spec_version=request.param)
    session = repo.writable_session("main")
    array = zarr.create_array(
        session.store, name="g/native", shape=(4, 64), chunks=(1, 64), dtype="i4", compressors=None
    )
    array[:3] = 1
    small = zarr.create_array(session.store, name="g/inline", shape=(4,), chunks=(1,), dtype="i4")
    small[:] = 2
    zarr.create_array(
        session.store, name="virtual", shape=(8,), chunks=(4,), dtype="<i4", compressors=None
    )
    for i in range(2):
        session.store.set_virtual_ref(
            f"virtual/c/{i}",
            f"file://{source}/data.bin",
            offset=16 * i,
            length=16,
            checksum=icechunk_time(),
        )
    first = session.commit("first")
    repo.create_tag("v1", first)
    repo.create_branch("old", first)
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="g/native")[3] = 4
    session.commit("second")
    return folder


def icechunk_time() -> Any:
    from datetime import UTC, datetime

    return datetime(2020, 1, 1, tzinfo=UTC)


def told(found: Verification) -> set[tuple[str, str]]:
    return {(damage.problem, damage.key) for damage in found.damages}


# -- what is whole -------------------------------------------------------------------------------
def test_no_damage(folder: Path, source: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    found = opened(folder, source).verify(
        sources=True, deep=True, progress=lambda *args: seen.append(args)
    )
    assert found
    assert found.ok
    assert found.damages == ()
    assert all(each.objects == 0 for each in found.orphans.values())
    assert found.checked["values"] > 8
    assert found.checked["sources"] == 1
    assert {what for what, _, _ in seen} == {"snapshots", "manifests", "sources"}
    assert all(done <= total for _, done, total in seen)
    found.raise_if_damaged()
    assert "no damage" in repr(found)
    assert "no damage" in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict()))["ok"] is True


@pytest.mark.parametrize("made_by", ["v1", "v2", "migrated"])
def test_repositories_of_the_official_client(made_by: str) -> None:
    found = opened(DATA / made_by / "repository").verify(deep="sample", sources=True)
    assert found.damages == ()
    # the files that its virtual chunks are in are in containers that we did not allow
    assert found.checked["sources that may not be read"] == found.checked["sources"]


def test_requests_do_not_grow_with_chunks(tmp_path: Path) -> None:
    counts = []
    for size in (10, 100):
        storage = CountingStorage(local_filesystem_storage(str(tmp_path / str(size))))
        repo = Repository.create(storage)
        session = repo.writable_session("main")
        array = zarr.create_array(
            session.store,
            name="a",
            shape=(size, 256),
            chunks=(1, 256),
            dtype="f8",
            compressors=None,
        )
        array[:] = 1.5
        session.commit("many")
        storage.reset()
        assert repo.verify().checked["chunks"] == size
        counts.append(storage.requests)
    assert counts[0] == counts[1]


def test_what_nobody_refers_to_is_counted(folder: Path) -> None:
    (folder / "chunks" / ("1" * 19 + "0")).write_bytes(b"12345")
    found = opened(folder).verify()
    assert found.ok
    assert (found.orphans["chunks/"].objects, found.orphans["chunks/"].nbytes) == (1, 5)
    assert "no version refers to: 1 in chunks/ (5 bytes)" in repr(found)


# -- objects that are missing, cut, swapped or flipped ---------------------------------------------
def objects(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for name in ("snapshots", "manifests", "transactions", "chunks")
        for path in (folder / name).iterdir()
        if "#" not in path.name
    )


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


def swap(path: Path) -> None:
    """Put another object of the same kind in its place."""
    other = next(p for p in sorted(path.parent.iterdir()) if p != path and "#" not in p.name)
    shutil.copyfile(other, path)


@pytest.mark.parametrize("damage", [remove, cut, flip, swap])
def test_each_damaged_object_is_named(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for key in objects(folder):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        damage(copy / key)
        found = opened(copy).verify()
        shutil.rmtree(copy)
        if key.startswith("chunks/") and damage in (flip, swap):
            # chunks have no checksum of their own: of uncompressed ones nobody can tell
            assert found.damages == ()
            continue
        if damage is remove and key == layout.transaction_key(INITIAL_SNAPSHOT_ID):
            # it says nothing, and upgraded repositories have none
            assert found.damages == ()
            continue
        problem = "unreadable"
        if damage is remove:
            problem = "missing"
        elif key.startswith("chunks/"):
            problem = "short"
        assert told(found) == {(problem, key)}, key
        (one,) = found.damages
        assert one.snapshots
        assert not found.ok
        assert key in repr(found)
        with pytest.raises(FormatError, match=key):
            found.raise_if_damaged()


def test_what_a_damage_touches(folder: Path) -> None:
    repo = opened(folder)
    tip, first = (each.id for each in list(repo.ancestry(branch="main"))[:2])
    refs = repo.readonly_session("main").chunk_refs("/g/native")
    assert refs.chunk_id is not None
    by_row = {refs.coords[i, 0].item(): refs.chunk_id[i].tobytes() for i in range(len(refs))}
    (folder / layout.chunk_key(by_row[1])).unlink()
    (folder / layout.chunk_key(by_row[3])).unlink()
    found = {damage.region: damage for damage in repo.verify().damages}
    # what the tag and the old branch have, too, and what is in the newest version only
    shared, newest = found[((1, 2), (0, 1))], found[((3, 4), (0, 1))]
    assert (shared.array, shared.chunks) == ("/g/native", 1)
    assert set(shared.refs) == {"main", "old", "v1"}
    assert set(shared.snapshots) == {tip, first}
    assert newest.refs == ("main",)
    assert newest.snapshots == (tip,)
    assert "/g/native chunks [3:4, 0:1] (1 chunk); in main" in str(newest)
    html = repo.verify()._repr_html_()
    assert "/g/native" in html
    assert "<table>" in html


def test_a_manifest_of_one_array_names_it(folder: Path) -> None:
    repo = opened(folder)
    node = repo.readonly_session(tag="v1").tree.require("/g/inline")
    assert node.array is not None
    (folder / layout.manifest_key(node.array.manifests[0].id)).unlink()
    (one,) = repo.verify().damages
    assert (one.array, one.chunks, one.region) == ("/g/inline", 4, ((0, 4),))


# -- files elsewhere ----------------------------------------------------------------------------
def rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def shorten(path: Path) -> None:
    stat = path.stat()
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "problem"), [(remove, "missing"), (rewrite, "changed"), (shorten, "short")]
)
def test_sources(folder: Path, source: Path, change: Callable[[Path], None], problem: str) -> None:
    change(source / "data.bin")
    repo = opened(folder, source)
    assert repo.verify().ok
    (one,) = repo.verify(sources=True).damages
    assert (one.problem, one.key, one.array) == (problem, f"file://{source}/data.bin", "/virtual")
    assert set(one.refs) == {"main", "old", "v1"}
    deep = repo.verify(deep=True).damages
    assert {(d.problem, d.array) for d in deep} == {("unreadable", "/virtual")}
    assert repo.verify(sources=True, deep=True).checked["sources"] == 1
    assert opened(folder).verify(sources=True, deep=True).ok


def test_deep_finds_what_cannot_be_decoded(tmp_path: Path) -> None:
    repo = Repository.create(local_filesystem_storage(str(tmp_path / "repo")))
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(40, 512), chunks=(1, 512), dtype="f8")
    array[:] = np.random.default_rng(0).random((40, 512))
    session.commit("noise")
    for damaged in sorted((tmp_path / "repo" / "chunks").iterdir())[:5]:
        flip(damaged)
        data = bytearray(damaged.read_bytes())
        data[:8] = bytes(8)
        damaged.write_bytes(data)
    assert repo.verify().ok
    (one,) = repo.verify(deep=True).damages
    assert (one.problem, one.array, one.chunks) == ("unreadable", "/a", 5)
    assert repo.verify(deep="sample").checked["values"] == 8


@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("folder", ["snapshots/", "transactions/", "manifests/", "chunks/"])
def test_what_is_collected_in_the_meantime_is_no_damage(folder: str, spec_version: int) -> None:
    inner = MemoryStorage()
    repo = histories.create(inner, spec_version)
    for i in range(4):
        histories.commit(repo, {0: b"%8d" % i, i: b"%8d" % i})
    repo.create_branch("side", repo.lookup_branch("main"))
    later = datetime.now(UTC) + timedelta(days=1)

    def others() -> None:
        histories.commit(repo, {0: b"newest  "})
        repo.delete_branch("side")
        repo.expire_snapshots(later)
        repo.garbage_collect(later)

    slow = Meanwhile(inner, 1, others, folder=folder, operations=("get",), is_on=False)
    # an instance that has read nothing
    reader = Repository.open(slow)
    slow.is_on = True
    found = reader.verify(deep=True)
    assert slow.left <= 0 and found.damages == ()
    # what the newest versions lack is damage
    lost = next(each.key for each in inner.list(folder) if "1CECHNKREP" not in each.key)
    inner.delete([lost])
    assert lost in {damage.key for damage in repo.verify(deep=True).damages}


def test_deep_reads_each_object_once() -> None:
    """However many versions share it; and each of them is told of a bad one."""
    inner = MemoryStorage()
    repo = Repository.create(inner, RepositoryConfig(inline_chunk_threshold_bytes=0))
    for number in range(12):
        with repo.transaction("main", message="write") as store:
            for name in "ab" if not number else "a":
                if not number:
                    zarr.create_array(store, name=name, shape=(9,), chunks=(1,), dtype="i4")[:] = 1
                else:
                    zarr.open_array(store, path=name)[number % 9] = number + 5
        repo.create_tag(f"t{number}", repo.lookup_branch("main"))
    read: Counter[str] = Counter()

    class Counted(WrapperStorage):
        def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
            read.update(keys if operation == "get" else ())

    assert Repository.open(Counted(inner)).verify(deep=True).ok
    chunks = {meta.key: read[meta.key] for meta in inner.list("chunks/")}
    assert len(chunks) == 18 + 11 and set(chunks.values()) == {1}
    assert max(read[meta.key] for meta in inner.list("manifests/")) <= 2
    # the last chunk of `b`, which all versions have
    manifest = repo.readonly_session("main").chunk_refs("/b")
    assert manifest.chunk_id is not None
    key = layout.chunk_key(manifest.chunk_id[8].tobytes())
    inner.delete([key])
    inner.put(key, b"no zstd, but as long" * 3)
    (one,) = Repository.open(inner).verify(deep=True).damages
    assert (one.array, one.chunks, one.region) == ("/b", 1, ((8, 9),))
    assert len(one.snapshots) == 12 and len(one.refs) == 13


# -- what contradicts ---------------------------------------------------------------------------
def rewritten(repo: Repository, change: Callable[[Snapshot], Snapshot]) -> None:
    """Store another snapshot in place of the newest one."""
    id = decode_id(repo.lookup_branch("main"))
    session = repo.readonly_session("main")
    data = encode_snapshot(change(session.tree.snapshot), spec_version=int(repo.spec_version))
    repo.storage.put(layout.snapshot_key(id), data)


def with_nodes(
    snapshot: Snapshot, edit: Callable[[Any], Any], files: dict[bytes, ManifestFile] | None = None
) -> Snapshot:
    nodes = [new for node in snapshot.nodes() for new in edit(node)]
    return Snapshot.build(
        snapshot.id,
        nodes,
        flushed_at=snapshot.flushed_at,
        message=snapshot.message,
        manifest_files={**snapshot.manifest_files, **(files or {})},
        parent_id=snapshot.parent_id,
    )


def changed_array(path: str, **changes: Any) -> Callable[[Any], list[Any]]:
    from dataclasses import replace

    def edit(node: Any) -> list[Any]:
        if node.path != path:
            return [node]
        return [replace(node, array=replace(node.array, **changes))]

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (changed_array("/g/inline", shape=(5,)), "has the shape"),
        (changed_array("/g/inline", num_chunks=(9,)), "chunks"),
    ],
)
def test_nodes_that_contradict(folder: Path, edit: Callable[[Any], Any], message: str) -> None:
    repo = opened(folder)
    rewritten(repo, lambda snapshot: with_nodes(snapshot, edit))
    found = opened(folder).verify()
    if message == "chunks" and int(repo.spec_version) == 1:
        # spec 1 does not store the grid
        assert found.ok
        return
    assert {damage.problem for damage in found.damages} == {"inconsistent"}
    # the log may tell of another change than the one that is seen now
    snapshots = [damage for damage in found.damages if damage.key.startswith("snapshots/")]
    assert snapshots
    assert all(message in damage.told for damage in snapshots)
    assert {damage.refs for damage in found.damages} == {("main",)}


def test_a_group_that_is_gone(folder: Path) -> None:
    """The log says so, and nothing else could: nodes without a group above them are no damage."""
    repo = opened(folder)
    rewritten(repo, lambda s: with_nodes(s, lambda node: [] if node.path == "/g" else [node]))
    (one,) = opened(folder).verify().damages
    assert one.key.startswith("transactions/") and "/g" in one.told


def _of_snapshots(folder: Path) -> list[Damage]:
    """Return damages but those of logs, which do not tell of what a test did to a snapshot."""
    found = opened(folder).verify().damages
    return [each for each in found if not each.key.startswith("transactions/")]


def test_manifests_that_hide_chunks(folder: Path) -> None:
    repo = opened(folder)
    node = repo.readonly_session("main").tree.require("/g/inline")
    assert node.array is not None
    (ref,) = node.array.manifests
    smaller = (ManifestRef(ref.id, ((0, 2),)),)
    rewritten(repo, lambda s: with_nodes(s, changed_array("/g/inline", manifests=smaller)))
    found = opened(folder).verify()
    (one,) = found.damages
    assert (one.problem, one.array, one.region) == ("inconsistent", "/g/inline", ((2, 4),))
    # two manifests that cover the same chunks: the second is never looked at
    id = b"another id.."
    data = encode_manifest(
        id,
        {node.id: ChunkRefs.inline([[1], [2]], [b"abcd"] * 2)},
        spec_version=int(repo.spec_version),
    )
    repo.storage.put(layout.manifest_key(id), data)
    both = (ref, ManifestRef(id, ((1, 3),)))
    files = {id: ManifestFile(id, len(data), 2)}
    rewritten(repo, lambda s: with_nodes(s, changed_array("/g/inline", manifests=both), files))
    (one,) = _of_snapshots(folder)
    assert "overlap" in one.told
    # sizes and counts that are not those of the object
    files = {id: ManifestFile(id, len(data) + 7, 3)}
    apart = (ManifestRef(id, ((1, 3),)),)
    rewritten(repo, lambda s: with_nodes(s, changed_array("/g/inline", manifests=apart), files))
    assert sorted(damage.told for damage in _of_snapshots(folder)) == [
        f"it has {len(data)} bytes, and snapshots say {len(data) + 7}",
        "it holds 2 references, and snapshots say 3",
    ]


def test_history_that_contradicts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    repo = opened(folder)
    tip = decode_id(repo.lookup_branch("main"))
    load = RepoState.load

    def wrong(state: RepoState) -> Any:
        info = load(state)
        entries = dict(info.snapshots)
        entries[tip] = replace(entries[tip], flushed_at=1)
        return replace(
            info,
            snapshots=entries,
            branches={**dict(info.branches.items()), "odd": b"nowhere....."},
        )

    monkeypatch.setattr(RepoState, "load", wrong)
    messages = " ".join(damage.told for damage in repo.verify().damages)
    known = "the branch 'odd' is at snapshot" in messages
    assert known if int(repo.spec_version) > 1 else "there is no such object" in messages
    assert "is not younger than its parent" in messages
    assert "written at another time" in messages


@pytest.mark.parametrize("what", ["target", "branch", "tag", "deleted", "parent", "status"])
def test_refs_that_contradict_the_log_of_updates(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What is another value of the right kind: no checksum, and no decoder, tells."""
    from dataclasses import replace

    repo = opened(folder)
    if int(repo.spec_version) == 1:
        pytest.skip("spec version 1 has no such object")
    repo.create_branch("short", repo.lookup_branch("main"))
    repo.delete_branch("short")
    history = [each.id for each in repo.ancestry(branch="main")]
    load = RepoState.load
    assert repo.verify().ok

    def wrong(state: RepoState) -> Any:
        info = load(state)
        branches, tags = dict(info.branches.items()), dict(info.tags.items())
        entries = dict(info.snapshots)
        if what == "target":
            branches["main"] = decode_id(history[1])
        elif what == "branch":
            branches["nain"] = branches.pop("main")
            branches["main"] = decode_id(history[1])
        elif what == "tag":
            tags = {f"{name}!": target for name, target in tags.items()}
        elif what == "deleted":
            branches["short"] = branches["main"]
        elif what == "parent":
            tip = branches["main"]
            entries[tip] = replace(entries[tip], parent_id=None)
        else:
            info = replace(info, status=replace(info.status, availability=5))
        return replace(info, branches=branches, tags=tags, snapshots=entries)

    monkeypatch.setattr(RepoState, "load", wrong)
    found = repo.verify().damages
    assert found and {(each.problem, each.key) for each in found} == {("inconsistent", "repo")}
    words = {
        "target": "'main' is at .*, and by the log of updates at",
        "branch": "'main' is at .*, and by the log of updates at",
        "tag": "the tag '.*' is not listed",
        "deleted": "the branch 'short' is listed, and was deleted",
        "parent": "has a transaction log, and no parent",
        "status": "its status has the number 5",
    }
    assert any(re.search(words[what], each.told) for each in found), found


@pytest.mark.parametrize("at", [3, 1000])
def test_a_reference_outside_the_extents_by_which_it_is_looked_for(folder: Path, at: int) -> None:
    repo = opened(folder)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="three", shape=(3,), chunks=(1,), dtype="i4")[:] = 1
    session.commit("three")
    node = repo.readonly_session("main").tree.require("/three")
    assert node.array is not None
    (ref,) = node.array.manifests
    key = layout.manifest_key(ref.id)
    refs = decode_manifest(repo.storage.get(key).data, key).arrays[node.id]
    moved = refs.at([[0], [1], [at]])
    version = int(repo.spec_version)
    repo.storage.put(key, encode_manifest(ref.id, {node.id: moved}, spec_version=version))
    found = [each for each in opened(folder).verify().damages if "extents" in each.told]
    assert [(each.key, each.array, each.region) for each in found] == [
        (key, "/three", ((at, at + 1),))
    ]


@pytest.mark.parametrize("what", ["array", "chunk"])
def test_a_log_that_does_not_tell_of_chunks(folder: Path, what: str) -> None:
    """Who commits at the same time would overwrite them, and be told of no conflict."""
    from dataclasses import replace

    repo = opened(folder)
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="g/inline")[:2] = 77
    id = decode_id(session.commit("two chunks"))
    key = layout.transaction_key(id)
    log = decode_transaction_log(repo.storage.get(key).data, key)
    ((node, (coords,)),) = log.updated_chunks.items()
    wrong = {node[::-1]: (coords,)} if what == "array" else {node: (coords[:1],)}
    version = int(repo.spec_version)
    data = encode_transaction_log(replace(log, updated_chunks=wrong), spec_version=version)
    repo.storage.put(key, data)
    # that an array is not named at all, is seen without looking at chunks
    assert bool(opened(folder).verify().damages) == (what == "array")
    found = opened(folder).verify(deep=True).damages
    assert len(found) == (2 if what == "array" else 1)  # and of a node that is not there
    one = found[-1]
    told = "2 chunks" if what == "array" else "1 chunk"
    assert (one.problem, one.key) == ("inconsistent", key)
    assert one.told == f"it does not say that {told} of /g/inline changed"


@pytest.mark.parametrize("field", ["size_bytes", "num_chunk_refs"])
def test_what_versions_say_of_a_manifest(folder: Path, field: str) -> None:
    """An older version says it right, and what is the same in both is read once."""
    from dataclasses import replace

    repo = opened(folder)
    session = repo.writable_session("main")
    zarr.open_group(session.store).attrs["later"] = 1
    session.commit("the same manifests")
    (id, file), *_ = repo.readonly_session("main").tree.snapshot.manifest_files.items()
    wrong = replace(file, **{field: getattr(file, field) + 1})
    rewritten(repo, lambda s: with_nodes(s, lambda node: [node], {id: wrong}))
    found = [each for each in opened(folder).verify().damages if "another size" in each.told]
    assert found and all(each.key.startswith("snapshots/") for each in found)


def test_names_of_dimensions_that_contradict(folder: Path) -> None:
    repo = opened(folder)
    rewritten(repo, lambda s: with_nodes(s, changed_array("/g/inline", dimension_names=("other",))))
    (one,) = opened(folder).verify().damages
    assert "has the dimensions ('other',)" in one.told


def test_mistakes(folder: Path) -> None:
    with pytest.raises(icechunk.InvalidInputError, match="deep must be False, True or 'sample'"):
        opened(folder).verify(deep="all")  # type: ignore[arg-type]


def test_long_reports_are_cut() -> None:
    many = tuple(Damage("missing", f"chunks/{i}", "gone") for i in range(80))
    shown = repr(Verification("memory://x", many, {}, {"chunks": 80}))
    assert "80 damages" in shown
    assert "and 30 more" in shown


@pytest.mark.parametrize("what", ["new_arrays", "updated_chunks"])
@pytest.mark.parametrize("has_expired", [False, True])
def test_logs_that_tell_of_something_else(what: str, has_expired: bool) -> None:
    """Also of chunks of a new array, and those of commits that have expired."""
    from dataclasses import replace

    storage = MemoryStorage()
    repo = histories.create(storage)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="n", shape=(4,), chunks=(1,), dtype="i8")[1] = 5
    key = layout.transaction_key(decode_id(session.commit("a new array")))
    histories.commit(repo, {1: b"%8d" % 1})
    if has_expired:
        repo.expire_snapshots(datetime.now(UTC) + timedelta(days=1))
    assert repo.verify(deep=True).damages == ()
    log = decode_transaction_log(storage.get(key).data, key)
    wrong: Any = (b"nonsense",)
    if what == "updated_chunks":
        wrong = {id: tuple(part + 1 for part in parts) for id, parts in log.updated_chunks.items()}
    storage.put(key, encode_transaction_log(replace(log, **{what: wrong})))
    damages = Repository.open(storage).verify(deep=True).damages
    assert {damage.problem for damage in damages} == {"inconsistent"}
    # what is missing may be in any of the logs since the version before
    assert has_expired or {damage.key for damage in damages} == {key}
