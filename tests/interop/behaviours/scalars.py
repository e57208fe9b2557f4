"""Arrays without dimensions, and arrays without elements."""

from __future__ import annotations

from typing import Any

import zarr
from zarr.core.sync import sync

import icechunk
from tests.interop.base import create, edit, rearrange, reopened
from tests.interop.behaviours.table import (
    attempt,
    behaviour,
    buffer,
    changes,
    commit,
    conflicts,
    get,
    listed,
    root_of,
    succeeds,
    tree,
)


def _seen(repo: Any, path: str) -> list[Any]:
    session = repo.readonly_session("main")
    store = session.store
    coordinates = sync(_all(session.chunk_coordinates(f"/{path}")))
    return [get(store, f"{path}/c"), listed(store.list_prefix(f"{path}/")), coordinates]


async def _all(items: Any) -> list[Any]:
    return [list(item) async for item in items]


@behaviour
def scalars_of_all_kinds_of_chunks(repo: Any) -> Any:
    repo = icechunk.Repository.open(
        repo.storage, icechunk.RepositoryConfig(inline_chunk_threshold_bytes=4)
    )
    session = repo.writable_session("main")
    root = root_of(session)
    create(root, "inline", (), ())[...] = 1
    create(root, "native", (), (), dtype="f8")[...] = 2.5
    create(root, "fill", (), (), fill_value=7)[...] = 7
    create(root, "never", (), ())
    create(root, "virtual_scalar", (), ())
    session.store.set_virtual_ref("virtual_scalar/c", "s3://bucket/x", offset=3, length=4)
    session.commit("scalars")
    again = repo.readonly_session("main")
    kinds = {
        path: str(again.chunk_type(f"/{path}", []))
        for path in ("inline", "native", "fill", "never", "virtual_scalar")
    }
    paths = ("inline", "native", "fill", "never")
    return [kinds, {path: _seen(repo, path) for path in paths}, tree(again)]


@behaviour
def a_scalar_is_erased_and_written(repo: Any) -> Any:
    found = [_seen(repo, "scalar")]
    session = repo.writable_session("main")
    sync(session.store.delete("scalar/c"))
    found.append([changes(session.status()), get(session.store, "scalar/c")])
    session.commit("erased")
    found.append(_seen(repo, "scalar"))
    commit(repo, {"scalar": 3}, "written")
    found.append(_seen(repo, "scalar"))
    commit(repo, {"scalar": 0}, "fill value")
    return [*found, _seen(repo, "scalar")]


@behaviour
def scalars_in_conflict(repo: Any) -> Any:
    # in memory: of what others have written the official client notes an empty list
    repo = icechunk.Repository.create(icechunk.in_memory_storage())
    session = repo.writable_session("main")
    create(root_of(session), "scalar", (), ())[...] = 5
    session.commit("scalar")
    found = []
    for number, solver in enumerate(
        (
            icechunk.ConflictDetector(),
            icechunk.BasicConflictSolver(),
            icechunk.BasicConflictSolver(on_chunk_conflict=icechunk.VersionSelection.UseTheirs),
        )
    ):
        session = repo.writable_session("main")
        root_of(session)["scalar"][...] = 100 + number
        commit(repo, {"scalar": 200 + number}, f"theirs {number}")
        found.append(conflicts(session.commit, f"ours {number}", rebase_with=solver))
        found.append(tree(repo.readonly_session("main"))["scalar"])
    return found


@behaviour
def a_scalar_is_shifted_and_reindexed(repo: Any) -> Any:
    session = repo.writable_session("main")
    found = [attempt(session.shift_array, "/scalar", [])]
    found += [attempt(session.reindex_array, "/scalar", lambda at: at)]
    found += [get(session.store, "scalar/c"), changes(session.status())]
    return found


@behaviour
def a_scalar_moves_and_becomes_an_array(repo: Any) -> Any:
    with rearrange(repo) as session:
        session.move("/scalar", "/g/scalar")
    with edit(repo) as root:
        create(root, "g/scalar", (3,), (2,), overwrite=True)[:] = 4
        create(root, "scalar", (), ())[...] = 1
    first = list(repo.ancestry(branch="main"))[2].id
    diff = repo.diff(from_snapshot_id=first, to_branch="main")
    return [changes(diff), tree(repo.readonly_session("main"))]


@behaviour
def scalars_under_splitting_rules(repo: Any) -> Any:
    repo = reopened(repo, axis=0, size=1)
    commit(repo, {"scalar": 9}, "written")
    repo.rewrite_manifests("rewritten", branch="main")
    return _seen(repo, "scalar")


@behaviour
def keys_of_a_scalar(repo: Any) -> Any:
    session = repo.writable_session("main")
    store = session.store
    found: dict[str, Any] = {"chunk": get(store, "scalar/c")}
    found["of a vector"] = [get(store, "scalar/c/0"), sync(store.exists("scalar/c/0"))]
    for key in ("scalar/c/", "scalar/0", "scalar"):
        found[key] = [
            succeeds(lambda key=key: sync(store.set(key, buffer(b"1234")))),
            succeeds(store.set_virtual_ref, key, "s3://bucket/x", offset=0, length=4),
        ]
    return found


@behaviour
def an_array_without_elements(repo: Any) -> Any:
    with edit(repo) as root:
        array = create(root, "empty", (0, 3), (1, 3))
        array.resize((2, 3))
        array[1] = 5
    with edit(repo) as root:
        root["empty"].resize((0, 3))
    session = repo.readonly_session("main")
    found = [get(session.store, "empty/c/1/0"), listed(session.store.list_prefix("empty"))]
    with edit(repo) as root:
        root["empty"].resize((2, 3))
    store = repo.readonly_session("main").store
    return [*found, zarr.open_array(store, path="empty", mode="r")[...].tolist()]  # type: ignore[union-attr]
