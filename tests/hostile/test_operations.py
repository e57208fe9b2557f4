"""Everything that a repository can be told to do, on repositories that nobody would write.

Each is right for the decoders, and contradicts itself: histories, moves and logs in circles,
names of other objects, sizes that nothing has. Every operation ends with a result or with an
error of this library, after a bounded number of requests and in bounded memory.
"""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner

from icechunk import (
    BasicConflictSolver,
    LocalStorage,
    MemoryStorage,
    Repository,
    upgrade_icechunk_repository,
)
from icechunk.base.rectilinear import are_known
from icechunk.cli import options
from icechunk.cli.app import main
from icechunk.errors import FormatError, IcechunkError, StorageError
from icechunk.format import layout
from icechunk.format.ids import encode_id
from icechunk.format.nodes import Node
from icechunk.format.repo_info import RepoInfo, decode_repo_info, encode_repo_info
from icechunk.format.snapshot import Snapshot, decode_snapshot, encode_snapshot
from icechunk.format.transaction_log import (
    Move,
    decode_transaction_log,
    encode_transaction_log,
)
from icechunk.kerchunk import export_references
from icechunk.storage import CountingStorage
from icechunk_dask import virtualize
from icechunk_xarray import to_icechunk
from tests.endless import MIB

LATER = datetime.now(UTC) + timedelta(days=1)


def made(spec_version: int = 2) -> MemoryStorage:
    """Return a repository with some commits, a branch and a tag."""
    storage = MemoryStorage()
    repository = Repository.create(storage, spec_version=spec_version)
    for i in range(3):
        session = repository.writable_session("main")
        zarr.create_group(session.store, path=f"g{i}")
        array = zarr.create_array(session.store, name=f"g{i}/a", shape=4, chunks=2, dtype="u1")
        array[:] = i
        session.commit(str(i))
    repository.create_tag("t", repository.lookup_branch("main"))
    repository.create_branch("other", next(iter(repository.ancestry(tag="t"))).id)
    return storage


# -- what is wrong with them -----------------------------------------------------------------
def infos(storage: MemoryStorage, change: Callable[[RepoInfo], RepoInfo]) -> None:
    info = decode_repo_info(storage.get(layout.REPO_KEY).data, "repo")
    storage.put(layout.REPO_KEY, bytes(encode_repo_info(change(info))))


def tip(storage: MemoryStorage) -> bytes:
    return decode_repo_info(storage.get(layout.REPO_KEY).data, "repo").branches["main"]


def nodes(storage: MemoryStorage, change: Callable[[list[Node]], Iterable[Node]]) -> None:
    """Change the nodes of the newest snapshot."""
    key = layout.snapshot_key(tip(storage))
    old = decode_snapshot(storage.get(key).data, key)
    new = Snapshot.build(
        old.id,
        change(list(old.nodes())),
        flushed_at=old.flushed_at,
        message=old.message,
        manifest_files=old.manifest_files,
    )
    storage.put(key, bytes(encode_snapshot(new)))


def logs(storage: MemoryStorage, **fields: Any) -> None:
    """Change the transaction log of the newest snapshot."""
    key = layout.transaction_key(tip(storage))
    log = decode_transaction_log(storage.get(key).data, key)
    storage.put(key, bytes(encode_transaction_log(replace(log, **fields))))


def circle(storage: MemoryStorage) -> None:
    def change(info: RepoInfo) -> RepoInfo:
        entries = {
            id: replace(entry, parent_id=entry.parent_id or info.branches["main"])
            for id, entry in info.snapshots.items()
        }
        return replace(info, snapshots=entries)

    infos(storage, change)


def own_parent(storage: MemoryStorage) -> None:
    def change(info: RepoInfo) -> RepoInfo:
        entries = {id: replace(entry, parent_id=id) for id, entry in info.snapshots.items()}
        return replace(info, snapshots=entries)

    infos(storage, change)


def many_branches(storage: MemoryStorage) -> None:
    def change(info: RepoInfo) -> RepoInfo:
        more = {f"b{i}": info.branches["main"] for i in range(1000)}
        return replace(info, branches={**info.branches, **more}, tags={**info.tags, **more})

    infos(storage, change)


def many_snapshots(storage: MemoryStorage) -> None:
    """Name snapshots that are not there, one after the other."""

    def change(info: RepoInfo) -> RepoInfo:
        entries = dict(info.snapshots)
        first = next(id for id, entry in entries.items() if entry.parent_id is None)
        parent = first
        for i in range(700):
            id = b"\xff" + i.to_bytes(11, "big")
            entries[id] = replace(entries[first], id=id, parent_id=parent)
            parent = id
        return replace(info, snapshots=entries, branches={**info.branches, "long": parent})

    infos(storage, change)


def log_of_itself(storage: MemoryStorage) -> None:
    key = layout.backup_key("again")
    storage.put(key, storage.get(layout.REPO_KEY).data)
    infos(storage, lambda info: replace(info, repo_before_updates="again"))
    storage.put(key, storage.get(layout.REPO_KEY).data)


def log_elsewhere(storage: MemoryStorage) -> None:
    infos(storage, lambda info: replace(info, repo_before_updates="../../../etc/passwd"))


def deep_metadata(storage: MemoryStorage) -> None:
    value: Any = {}
    for _ in range(100):
        value = {"a": [value]}

    def change(info: RepoInfo) -> RepoInfo:
        return replace(info, metadata=type(info.metadata)({"deep": value["a"][0]["a"]}))

    with suppress(IcechunkError):
        infos(storage, change)


def paths(*names: str) -> Callable[[MemoryStorage], None]:
    """Give the nodes other paths."""

    def change(storage: MemoryStorage) -> None:
        def renamed(old: list[Node]) -> list[Node]:
            others = [n for n in old if n.path != "/"]
            return [
                *(n for n in old if n.path == "/"),
                *(replace(n, path=name) for n, name in zip(others, names, strict=False)),
            ]

        with suppress(IcechunkError):
            nodes(storage, renamed)

    return change


def arrays(
    shape: int, chunk: int, chunks: int, grid: Any = None, runs: Any = None
) -> Callable[[MemoryStorage], None]:
    """Give the arrays another size, in what the format says and in ``zarr.json``."""

    def change(storage: MemoryStorage) -> None:
        def sized(node: Node) -> Node:
            if node.array is None:
                return node
            document = json.loads(node.user_data)
            document["shape"] = [shape]
            if runs is not None:
                options = {"kind": "inline", "chunk_shapes": [runs]}
                document["chunk_grid"] = {"name": "rectilinear", "configuration": options}
            else:
                document["chunk_grid"]["configuration"]["chunk_shape"] = (
                    [chunk] if grid is None else grid
                )
            array = replace(node.array, shape=(shape,), num_chunks=(chunks,))
            return replace(node, user_data=json.dumps(document).encode(), array=array)

        with suppress(IcechunkError):
            nodes(storage, lambda old: map(sized, old))

    return change


def same_ids(storage: MemoryStorage) -> None:
    nodes(storage, lambda old: [replace(node, id=old[0].id) for node in old])


def documents(data: bytes) -> Callable[[MemoryStorage], None]:
    return lambda storage: nodes(
        storage, lambda old: [replace(node, user_data=data) for node in old]
    )


def moves(count: int, way: Callable[[int], tuple[str, str]]) -> Callable[[MemoryStorage], None]:
    def change(storage: MemoryStorage) -> None:
        ids = [
            node.id
            for node in decode_snapshot(
                storage.get(layout.snapshot_key(tip(storage))).data, "x"
            ).nodes()
        ]
        moved = [
            Move(*way(i), ids[i % len(ids)] if i < len(ids) else i.to_bytes(8, "big"), False)
            for i in range(count)
        ]
        logs(storage, moved_nodes=tuple(moved))

    return change


def ranks(storage: MemoryStorage) -> None:
    key = layout.snapshot_key(tip(storage))
    ids = [node.id for node in decode_snapshot(storage.get(key).data, key).nodes()]
    coords = tuple(np.full((3, n), 2**32 - 1, np.uint32) for n in (0, 1, 2, 30))
    logs(storage, updated_chunks=dict.fromkeys(sorted(ids), coords))


def lists_of_all(storage: MemoryStorage) -> None:
    key = layout.snapshot_key(tip(storage))
    ids = tuple(sorted(node.id for node in decode_snapshot(storage.get(key).data, key).nodes()))
    names = ("new_groups", "new_arrays", "deleted_groups", "deleted_arrays", "updated_arrays")
    logs(storage, **dict.fromkeys(names, ids))


def without(folder: str) -> Callable[[MemoryStorage], None]:
    return lambda storage: storage.delete([meta.key for meta in storage.list(folder)])


def swapped(folder: str) -> Callable[[MemoryStorage], None]:
    """Give objects the bytes of others."""

    def change(storage: MemoryStorage) -> None:
        keys = [meta.key for meta in storage.list(folder)]
        data = [bytes(storage.get(key).data) for key in keys]
        for key, other in zip(keys, data[1:] + data[:1], strict=True):
            storage.put(key, other)

    return change


HOSTILE: dict[str, Callable[[MemoryStorage], None]] = {
    "a circle": circle,
    "its own parent": own_parent,
    "many branches": many_branches,
    "many snapshots": many_snapshots,
    "a log of itself": log_of_itself,
    "a log elsewhere": log_elsewhere,
    "deep metadata": deep_metadata,
    "paths up": paths("/../a", "/..", "/./b", "/a/../../c"),
    "paths that are no files": paths("//", "/a//b", "/a/", "/\0", "/c/0"),
    "nodes below arrays": paths("/a", "/a/b", "/a/b/c", "/a/b/c/d"),
    "long paths": paths("/" + "a/" * 5000 + "a", "/" + "b" * 100_000),
    "one id": same_ids,
    "no JSON": documents(b"{"),
    "deep JSON": documents(b'{"a":' * 50_000),
    "a number": documents(b"1"),
    "large arrays": arrays(2**62, 1, 2**32 - 1),
    "chunks of nothing": arrays(4, 0, 2),
    "chunks below nothing": arrays(4, -2, 2),
    "larger than it says": arrays(2**40, 2, 2),
    "another rank": arrays(4, 2, 2, [2, 2, 2]),
    "no chunk shape": arrays(4, 2, 2, "x"),
    "many runs": arrays(10**8, 1, 10**8, runs=[[1, 10**8]]),
    "runs to and fro": arrays(4, 1, 4, runs=[[1, 10**8], [1, -(10**8)], 4]),
    "runs of nothing": arrays(4, 2, 2, runs=[[0, 1000], [4, 1]]),
    "runs in runs": arrays(4, 2, 2, runs=[[[2, 2], 2]]),
    "runs of half": arrays(4, 2, 2, runs=[[0.5, 8], True]),
    "moves to and fro": moves(4, lambda i: (f"/m{i}", f"/m{(i + 1) % 4}")),
    "moves into itself": moves(4, lambda i: (f"/g{i}", f"/g{i}/g{i}")),
    "moves up": moves(4, lambda i: (f"/g{i}", "/../..")),
    "many moves": moves(1000, lambda i: (f"/m{i}", f"/m{i + 1}")),
    "many ranks": ranks,
    "new and deleted": lists_of_all,
    "no snapshots": without(layout.SNAPSHOTS),
    "no manifests": without(layout.MANIFESTS),
    "no logs": without(layout.TRANSACTIONS),
    "other snapshots": swapped(layout.SNAPSHOTS),
    "other manifests": swapped(layout.MANIFESTS),
    "other logs": swapped(layout.TRANSACTIONS),
    "logs for snapshots": lambda storage: (
        [
            storage.put(layout.SNAPSHOTS + meta.key.rpartition("/")[2], storage.get(meta.key).data)
            for meta in list(storage.list(layout.TRANSACTIONS))
        ]
        and None
    ),
}


# -- what they are told ------------------------------------------------------------------------
def first_and_tip(repository: Repository) -> dict[str, str]:
    return {"from_snapshot_id": "1CECHNKREP0F1RSTCMT0", "to_branch": "main"}


def rebased(repository: Repository) -> Any:
    session = repository.writable_session("other")
    repository.reset_branch("other", "1CECHNKREP0F1RSTCMT0")
    zarr.create_group(session.store, path="mine")
    return session.commit("m", rebase_with=BasicConflictSolver())


def committed(repository: Repository, **how: Any) -> Any:
    session = repository.writable_session("main")
    zarr.create_group(session.store, path="mine")
    return session.commit("m") if not how else session.amend("m")


def moved(repository: Repository) -> Any:
    session = repository.rearrange_session("main")
    session.move("/g0", "/g9")
    return session.commit("m")


def listed(repository: Repository) -> Any:
    store = repository.readonly_session("main").store

    async def all_of() -> list[list[str]]:
        return [[each async for each in store.list_dir(path)] for path in ("", "g0", "a", "..")]

    return asyncio.run(all_of())


def opened(repository: Repository) -> Any:
    with xr.open_dataset(repository.storage, engine="icechunk", group="g0") as dataset:
        return dataset["a"].values


def inspected(repository: Repository) -> Any:
    id = repository.lookup_branch("main")
    return [
        repository.inspect_repo_info(),
        repository.inspect_snapshot(id),
        repository.inspect_transaction_log(id),
    ]


def appended(repository: Repository) -> Any:
    values = xr.Dataset({"a": ("x", np.arange(4, dtype="u1"))})
    return to_icechunk(values, repository, group="g0", mode="a")


def replayed(repository: Repository) -> Any:
    ids = [info.id for info in repository.ancestry(branch="main")]
    return repository.replay_session("main", from_snapshot_id=ids[-2], to_snapshot_id=ids[0])


def archived(repository: Repository) -> Any:
    # there is no such file: what is stored is looked at before
    return virtualize(["/no/such/file.nc"], repository, concat_dims=["time"], group="g0")


OPERATIONS: dict[str, Callable[[Repository], Any]] = {
    "ancestry": lambda repository: list(repository.ancestry(branch="main")),
    "graph": lambda repository: str(repository.ancestry_graph()),
    "html": lambda repository: repository._repr_html_(),
    "log": lambda repository: list(repository.ops_log()),
    "session": lambda repository: repository.readonly_session("main")._repr_html_(),
    "list": listed,
    "read": lambda repository: zarr.open_group(repository.readonly_session("main").store, mode="r")[
        "g0/a"
    ][:2],
    "engine": opened,
    "mask": lambda repository: repository.readonly_session("main").written_chunks("/g0/a"),
    "diff": lambda repository: repr(repository.diff(**first_and_tip(repository))),
    "inspect": inspected,
    "stats": lambda repository: repository.chunk_storage_stats(),
    "verify": lambda repository: repr(repository.verify()),
    "gc, dry": lambda repository: repository.garbage_collect(LATER, dry_run=True),
    "commit": committed,
    "amend": lambda repository: committed(repository, amend=True),
    "move": moved,
    "rebase": rebased,
    "rewrite": lambda repository: repository.rewrite_manifests("m", branch="main"),
    "squash": lambda repository: repository.squash("main", "main~2", "m"),
    "revert": lambda repository: repository.revert("main", "main"),
    "expire": lambda repository: repository.expire_snapshots(LATER),
    "gc": lambda repository: repository.garbage_collect(LATER),
    "gc, incremental": lambda repository: repository.garbage_collect(LATER, incremental=True),
    "preview": lambda repository: repr(repository.preview_expiration(LATER)),
    "verify, deep": lambda repository: repr(repository.verify(deep=True)),
    "repair": lambda repository: repr(Repository.repair(repository.storage, dry_run=True)),
    "repair, dropping": lambda repository: Repository.repair(
        repository.storage, branch="main", drop_unreadable=True, dry_run=False
    ),
    "cherry-pick": lambda repository: repository.cherry_pick("other", "main"),
    "annotate": lambda repository: repr(repository.annotate("/g0/a")),
    "copy": lambda repository: repository.copy_to(MemoryStorage()),
    "copy, one": lambda repository: repository.copy_to(MemoryStorage(), history=False),
    "repack": lambda repository: repository.repack("main"),
    "replay": lambda repository: replayed(repository),
    "jobs": lambda repository: repr(repository.jobs),
    "append": appended,
    "archive": archived,
    "export": lambda repository: export_references(repository.readonly_session("main")),
}


@pytest.fixture(scope="module")
def objects() -> dict[str, bytes]:
    storage = made()
    return {meta.key: bytes(storage.get(meta.key).data) for meta in storage.list()}


@pytest.mark.parametrize("name", HOSTILE)
def test_operations(name: str, objects: dict[str, bytes]) -> None:
    storage = MemoryStorage()
    for key, data in objects.items():
        storage.put(key, data)
    HOSTILE[name](storage)
    kept = {meta.key: bytes(storage.get(meta.key).data) for meta in storage.list()}
    problems = []
    # slow, so only where there is much, or it says that there is
    measured = any(word in name for word in ("many", "deep", "large", "long"))
    if measured:
        tracemalloc.start()
    try:
        for operation, call in OPERATIONS.items():
            place = MemoryStorage()
            for key, data in kept.items():
                place.put(key, data)
            counted = CountingStorage(place)
            if measured:
                tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                call(Repository.open(counted))
            except (IcechunkError, *FOREIGN.get(operation, ())):
                pass
            except Exception as error:
                problems.append((operation, repr(error)[:200]))
            taken = tracemalloc.get_traced_memory()[1] - before
            # a few for each object that there is, or should be
            most = 2300 if name == "many snapshots" else 200
            if taken > 100 * MIB or counted.requests > most:
                problems.append((operation, taken, counted.counts))
    finally:
        tracemalloc.stop()
    assert problems == []


#: Of Zarr for a node that is not there, of xarray for arrays without names of dimensions.
FOREIGN: dict[str, tuple[type[Exception], ...]] = {
    "read": (KeyError,),
    "append": (KeyError, ValueError),
}

#: Documents that Zarr ends with errors of its own for, and what ours says.
DOCUMENTS = {
    "no JSON": "not JSON",
    "deep JSON": "not JSON",
    "a number": "not a JSON object",
    "chunks of nothing": "has a zero",
    "chunks below nothing": "expected a list of sizes",
    "another rank": "differ in rank",
    "no chunk shape": "expected a list of sizes",
    "many runs": "100000000 chunks along axis 0",
    "runs to and fro": "100000002 chunks along axis 0",
    "runs of nothing": "expected a positive integer",
    "runs in runs": "expected a positive integer",
    "runs of half": "expected a positive integer",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name: str, objects: dict[str, bytes]) -> None:
    storage = MemoryStorage()
    for key, data in objects.items():
        storage.put(key, data)
    HOSTILE[name](storage)
    repository = Repository.open(storage)
    # an older Zarr has no such grids at all, and the engine says so first
    known = "run" not in name or are_known()
    for operation in ("read", "engine") if known else ("read",):
        with pytest.raises(FormatError, match=rf"node '/.*{DOCUMENTS[name]}.*; write it anew"):
            OPERATIONS[operation](repository)
    clean = MemoryStorage()
    for key, data in objects.items():
        clean.put(key, data)
    buffer = Repository.open(clean).readonly_session("main").store.get_sync("g0/a/zarr.json")
    assert buffer is not None
    good = buffer.to_bytes()
    session = repository.writable_session("main")
    # what the message says works
    for path in ("", "g0/", "g0/a/"):
        document = good if path.endswith("a/") else b'{"zarr_format":3,"node_type":"group"}'
        session.set_metadata_document("/" + path.rstrip("/"), document)
    session.commit("anew")
    assert zarr.open_group(repository.readonly_session("main").store, mode="r")["g0/a"].shape == (
        4,
    )


LINES = (
    *(["info"], ["log", "--graph"], ["show"], ["ls"], ["tree"], ["cat", "g0/a"], ["ops"]),
    *(["cat", "g0/a", "-c", "0"], ["chunks", "g0/a"], ["inspect", "repo"], ["verify"]),
    *(["diff", "--from", "1CECHNKREP0F1RSTCMT0"], ["rewrite"]),
    *(["expire", "--older-than", "2050-01-01", "-y"], ["gc", "--older-than", "2050-01-01", "-y"]),
    *(["expire", "--older-than", "2050-01-01", "--dry-run"], ["verify", "--deep", "all"]),
    *(["gc", "--older-than", "2050-01-01", "--incremental", "-y"], ["annotate", "g0/a"]),
    *(["repair", "--dry-run"], ["repair", "--branch", "main", "--drop-unreadable", "-y"]),
    *(["squash", "main~2", "-m", "m"], ["cherry-pick", "other"], ["revert", "main"]),
    *(["upgrade", "-y"], ["config"], ["stats"], ["jobs"], ["doctor"], ["branch"], ["tag"]),
    *(
        ["branch", "new", "--at", "main~1"],
        ["reset", "main", "main~1", "-y"],
        ["export", "{}/e.json"],
    ),
    *(["copy", "{}/copy"], ["ingest", "/no/such.nc"], ["virtualize", "/no/such.nc"]),
    *(["import-kerchunk", "/no/such.json"], ["create"]),
)


def test_all_commands_have_a_line() -> None:
    assert {command for command, *_ in LINES} == set(main.list_commands(click.Context(main)))


@pytest.mark.parametrize("name", HOSTILE)
def test_commands(
    name: str, objects: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each says what is wrong; none ends with a traceback."""
    storage = MemoryStorage()
    for key, data in objects.items():
        storage.put(key, data)
    HOSTILE[name](storage)
    kept = {meta.key: bytes(storage.get(meta.key).data) for meta in storage.list()}
    place = MemoryStorage()
    real = options._storage

    def found(repo: str, given: Any) -> Any:
        return place if repo == "R" else real(repo, given)

    monkeypatch.setattr(options, "_storage", found)
    for number, (command, *more) in enumerate(LINES):
        place = MemoryStorage()
        for key, data in kept.items():
            place.put(key, data)
        words = [word.format(tmp_path / str(number)) for word in more]
        repo = "R"
        if command in ("ingest", "virtualize"):  # they open what they are told themselves
            repo = str(tmp_path / command)
            for key, data in kept.items():
                LocalStorage(repo).put(key, data)
        result = CliRunner().invoke(main, [command, repo, *words])
        fine = result.exception is None or isinstance(result.exception, SystemExit)
        assert fine, (command, result.exception)
        assert result.exit_code in (0, 1, 2), command


#: Paths of nodes, and whether they are some.
PATHS = {
    **dict.fromkeys(("/../../out/x", "/a/../../../out/y", "/..", "/a/.", "//abs", "/a/"), False),
    **dict.fromkeys(("/a\\..\\..\\z", "/C:\\x", "/%2e%2e/x", "/...", "/a\nb", "/~", "/a\0b"), True),
    **dict.fromkeys(("/" + "n" * 300, "/.zmetadata", "/.zgroup", "/a/refs.0.parq", "/a::b"), True),
}


@pytest.mark.parametrize("form", ["json", "parquet"])
@pytest.mark.parametrize("path", PATHS)
def test_no_export_leads_out(path: str, form: Any, tmp_path: Path) -> None:
    """Paths of nodes become names of files."""
    storage = made()

    def renamed(old: list[Node]) -> list[Node]:
        array = next(node for node in old if node.array is not None)
        return [*(node for node in old if node.path == "/"), replace(array, path=path)]

    nodes(storage, renamed)
    target = tmp_path / "in" / "e"
    target.parent.mkdir()
    if PATHS[path]:
        with suppress(StorageError):
            export_references(main_of(storage), target, format=form)
    else:
        with pytest.raises(FormatError, match="is no path of a node"):
            export_references(main_of(storage), target, format=form)
        with pytest.raises(FormatError, match="is no path of a node"):
            listed(Repository.open(storage))
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert all(each == target or target in each.parents for each in files)


def main_of(storage: MemoryStorage) -> Any:
    return Repository.open(storage).readonly_session("main")


@pytest.mark.parametrize("folder", ["snapshots/", "manifests/", "transactions/", "refs/"])
def test_upgrades(folder: str) -> None:
    for change in (without(folder), swapped(folder)):
        storage = made(1)
        change(storage)
        counted = CountingStorage(storage)
        with suppress(IcechunkError):
            upgrade_icechunk_repository(Repository.open(counted), dry_run=False)
        assert counted.requests < 200
        with suppress(IcechunkError):
            repository = Repository.open(storage)
            assert encode_id(b"\0" * 12) not in repository.list_branches()


def test_ids_of_refs_in_circles() -> None:
    """Of spec 1, where snapshots name their parents themselves."""
    storage = made(1)
    keys = [meta.key for meta in storage.list(layout.SNAPSHOTS)]
    snapshots = [decode_snapshot(storage.get(key).data, key) for key in keys]
    for key, old, other in zip(keys, snapshots, snapshots[1:] + snapshots[:1], strict=True):
        new = Snapshot.build(
            old.id,
            list(old.nodes()),
            flushed_at=old.flushed_at,
            message=old.message,
            manifest_files=old.manifest_files,
            parent_id=other.id,
        )
        storage.put(key, bytes(encode_snapshot(new, spec_version=1)))
    calls = {
        name: OPERATIONS[name] for name in ("ancestry", "graph", "expire", "gc, dry", "verify")
    }
    calls["upgrade"] = lambda repository: upgrade_icechunk_repository(repository, dry_run=True)
    for call in calls.values():
        counted = CountingStorage(storage)
        with suppress(IcechunkError):
            call(Repository.open(counted))
        assert counted.requests < 100
