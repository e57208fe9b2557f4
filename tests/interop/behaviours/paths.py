"""Nodes with unusual names."""

from __future__ import annotations

import unicodedata
from typing import Any

import zarr
from zarr.core.sync import sync

import icechunk
from tests.interop.base import create, edit, rearrange
from tests.interop.behaviours.table import (
    BEHAVIOURS,
    attempt,
    behaviour,
    buffer,
    changes,
    get,
    listed,
    root_of,
    succeeds,
    tree,
)

#: Sets of names that are written together; "" stands for what is below the first one.
NAMES: dict[str, list[str]] = {
    "between_a_node_and_what_is_below_it": ["n", "n b", "n!b", "n-b", "n.b", "n+b", "n0", "n/b"],
    "of_unicode": ["é", "日本語", "ß", "\u00a0", "🧊", "a\u0301b"],
    "composed_and_decomposed": [
        unicodedata.normalize("NFC", "é"),
        unicodedata.normalize("NFD", "é"),
    ],
    "with_spaces": [" ", " leading", "trailing ", "in the middle", "\ttab"],
    "with_percent_signs": ["%", "%20", "100%", "%2F", "%C3%A9"],
    "that_look_like_chunks": ["c", "c0", "c/c", "c/0", "0", "0.0", "C"],
    "that_look_like_metadata": ["zarr", "json", "zarr.json.x", "xzarr.json", ".zarray", ".zgroup"],
    "with_marks": ["#", "?", "&", ";", "*", "[x]", "{x}", "~", "'", '"', "|", "$", "<>"],
    "of_one_case_and_the_other": ["Node", "node", "NODE"],
    "of_great_length": ["x" * 200, "é" * 300, "y" * 1000],
    "with_dots": ["...", ".hidden", "a.", "a.b.c"],
}


def _write(repo: Any, names: list[str]) -> Any:
    """Write arrays, or groups where something is below; edit, delete, move."""
    paths = [f"g/{name}" for name in names]
    session = repo.writable_session("main")
    root = root_of(session)
    groups = {path for path in paths if any(other.startswith(f"{path}/") for other in paths)}
    outcomes = {}
    for number, path in enumerate(paths):
        made = [root.create_group, path] if path in groups else [_array, root, path, number]
        outcomes[path] = succeeds(*made)
    session.commit("written")
    session = repo.readonly_session("main")
    store = session.store
    seen = {
        path: [
            get(store, f"{path}/c/0") if path not in groups else None,
            attempt(lambda path=path: sync(store.exists(f"{path}/zarr.json"))),
            listed(store.list_dir(path)),
            listed(store.list_prefix(f"{path}/")),
        ]
        for path in paths
    }
    found = [outcomes, seen, listed(store.list_dir("g")), tree(session)]
    session = repo.rearrange_session("main")
    moved = {path: succeeds(session.move, f"/{path}", f"/{path}-moved") for path in paths}
    session.commit("moved")
    parent, tip = [entry.id for entry in repo.ancestry(branch="main")][1::-1]
    found += [moved, changes(repo.diff(from_snapshot_id=parent, to_snapshot_id=tip))]
    session = repo.writable_session("main")
    sync(session.store.delete_dir(f"{paths[0]}-moved"))
    session.commit("deleted")
    return [*found, sorted(tree(repo.readonly_session("main")))]


def _array(root: Any, path: str, number: int) -> None:
    create(root, path, (4,), (2,))[:] = [number + 1, 0, 0, number + 1]


def _script(name: str) -> Any:
    return lambda repo: _write(repo, NAMES[name])


for _name in NAMES:
    BEHAVIOURS[f"names_{_name}"] = _script(_name)


@behaviour
def groups_that_share_a_prefix_are_deleted(repo: Any) -> Any:
    with edit(repo) as root:
        for path in ("n/x", "n b/x", "n-b/x", "n.b/x", "nn/x"):
            create(root, path, (2,), (2,))[:] = 1
    with edit(repo) as root:
        del root["n"]
    with rearrange(repo) as session:
        session.move("/n-b", "/n")
    return sorted(tree(repo.readonly_session("main")))


#: Keys that are there, and keys that could be.
KEYS = [
    *("zarr.json", "a/zarr.json", "g/deep/x/zarr.json", "nothing/zarr.json", "a/a/zarr.json"),
    *("a/c/0", "a/c/5", "a/c/6", "a/c/4294967295", "m/c/1/1", "scalar/c", "unwritten/c/0"),
]
#: Keys that are none.
NO_KEYS = ["", "/", "a", "a/", "a/c/", "a/c/-1", "a/c/1.0", "a/c/4294967296", "../a/zarr.json"]
PREFIXES = ["", "/", "a", "a/", "g", "g/", "g/deep", "g/deep/", "scalar"]


@behaviour
def keys_are_asked_for(repo: Any) -> Any:
    store = repo.readonly_session("main").store
    return {
        key: [get(store, key) is not None, attempt(lambda key=key: sync(store.exists(key)))]
        for key in KEYS
    }


@behaviour
def prefixes_are_listed(repo: Any) -> Any:
    store = repo.readonly_session("main").store
    return {
        prefix: {
            "dir": attempt(lambda prefix=prefix: listed(store.list_dir(prefix))),
            "prefix": attempt(lambda prefix=prefix: listed(store.list_prefix(prefix))),
            "empty": attempt(lambda prefix=prefix: sync(store.is_empty(prefix))),
            "size": attempt(lambda prefix=prefix: sync(store.getsize_prefix(prefix))),
        }
        for prefix in PREFIXES
    }


@behaviour
def folders_of_keys_are_listed(repo: Any) -> Any:
    store = repo.readonly_session("main").store
    folders = (*PREFIXES, "a/c", "m/c", "m/c/1", "m/c/1/", "split/c")
    return {
        folder: [listed(store.list_dir(folder)), sync(store.is_empty(folder))] for folder in folders
    }


@behaviour
def keys_are_deleted(repo: Any) -> Any:
    found = {}
    for key in KEYS:
        session = repo.writable_session("main")
        outcome = succeeds(lambda key=key, session=session: sync(session.store.delete(key)))
        found[key] = [outcome, changes(session.status())]
    return found


@behaviour
def folders_are_deleted(repo: Any) -> Any:
    found = {}
    for key in (*PREFIXES, "g/d", "a/c", "a/c/", "a/c/1", "m/c", "m/c/1", "m/c/1/"):
        session = repo.writable_session("main")
        outcome = succeeds(lambda key=key, session=session: sync(session.store.delete_dir(key)))
        found[key] = [outcome, changes(session.status()), sync(session.store.is_empty(""))]
    return found


@behaviour
def what_is_no_key_is_set(repo: Any) -> Any:
    found = {}
    for key in (*NO_KEYS, "g/c/0", "a/c/6", "nothing/c/0", "what"):
        session = repo.writable_session("main")
        found[key] = [
            succeeds(lambda key=key, s=session: sync(s.store.set(key, buffer(b"12345678")))),
            succeeds(lambda key=key, s=session: sync(s.store.set_if_not_exists(key, buffer(b"1")))),
            changes(session.status()),
        ]
    return found


@behaviour
def what_is_no_key_is_asked_for(repo: Any) -> Any:
    session = repo.readonly_session("main")
    store = session.store
    found: dict[str, Any] = {}
    for key in ("a", "g/c/0", ".zgroup"):
        found[f"get {key}"] = get(store, key)
        found[f"exists {key}"] = attempt(lambda key=key: sync(store.exists(key)))
    for prefix in ("m/c/1", "nothing", "/scalar"):
        found[f"list_prefix {prefix}"] = attempt(lambda p=prefix: listed(store.list_prefix(p)))
    found["chunk_type a"] = attempt(lambda: str(session.chunk_type("a", [0])))
    return found


@behaviour
def paths_that_sessions_are_asked_for(repo: Any) -> Any:
    session = repo.readonly_session("main")
    return {
        path: [succeeds(session.chunk_type, path, [0]), succeeds(session.get_node_id, path)]
        for path in ("/a", "/a/", "//a", "/", "/g", "/nothing", "/g/../a")
    }


@behaviour
def attributes_of_all_kinds(repo: Any) -> Any:
    values = {"": "", "é": "日本語", "n": None, "l": [1, [2.5, {}]], "big": 2**70, "t": True}
    with edit(repo) as root:
        root["a"].attrs.update(values)
        root.create_group("new", attributes=values)
    store = icechunk.Repository.open(repo.storage).readonly_session("main").store
    group = zarr.open_group(store, mode="r")
    return [dict(group["a"].attrs), dict(group["new"].attrs)]
