"""Work on repositories of spec version 1, for all sides: 1.1.21 knows no other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import zarr

import icechunk
from tests.data import golden_content as content
from tests.interop import random_work
from tests.interop.base import Place, create, storage_at, write_base


def _create(place: Place, config: Any) -> Any:
    options = {"spec_version": 1} if hasattr(icechunk, "SpecVersion") else {}
    return icechunk.Repository.create(storage_at(place), config, **options)


def _open(place: Place, source: str) -> Any:
    return icechunk.Repository.open(
        storage_at(place), authorize_virtual_chunk_access=_authorization(source)
    )


def _authorization(source: str) -> dict[str, Any]:
    # 1.1.21 has no name for what a folder takes: nothing
    return {content.source_prefix(Path(source)): None}


def _config(source: str) -> Any:
    result = content.config()
    result.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(
            url_prefix=content.source_prefix(Path(source)),
            store=icechunk.local_filesystem_store(source),
        )
    )
    return result


# -- a repository with everything in it ------------------------------------------------------
def write(place: Place, source: str) -> None:
    """Create a repository and write commits of all kinds."""
    content.write_source(Path(source))
    _create(place, _config(source))
    repo = _open(place, source)
    repo.set_default_commit_metadata({"by": "default", "n": 1})
    session = repo.writable_session("main")
    content.write_first(session)
    root = zarr.open_group(session.store, mode="r+")
    create(root, "read_me", (4, 10), (1, 10), dtype="u1")
    for row in range(3):
        location = f"{content.source_prefix(Path(source))}source.bin"
        session.store.set_virtual_ref(
            f"read_me/c/{row}/0", location, offset=100 * row + 1, length=10
        )
    first = session.commit("first", metadata={"author": "é", "nested": {"x": [1.5, None, True]}})
    session = repo.writable_session("main")
    content.write_second(session)
    second = session.commit("second ⛄", metadata={"big": 2**40, "negative": -3})
    repo.create_branch("dev", first)
    session = repo.writable_session("dev")
    content.write_on_branch(session)
    tip = session.commit("on a branch")
    repo.create_branch("gone", first)
    repo.delete_branch("gone")
    repo.create_branch("reset", second)
    repo.reset_branch("reset", first)
    repo.create_tag("v1.0", first)
    repo.create_tag("oops", tip)
    repo.delete_tag("oops")
    repo.create_tag("a later one", second)
    _write_side_by_side(repo)
    repo.save_config()


def _write_side_by_side(repo: Any) -> None:
    """Two writers, of which the second rebases; then two forks."""
    one, other = repo.writable_session("main"), repo.writable_session("main")
    zarr.open_group(one.store, mode="r+")["split"][0, 0] = 150
    zarr.open_group(other.store, mode="r+")["split"][0, 1] = 151
    one.commit("first of two")
    other.commit("rebased", rebase_with=icechunk.BasicConflictSolver())
    session = repo.writable_session("main")
    forks = [session.fork() for _ in range(2)]
    for row, fork in enumerate(forks):
        zarr.open_group(fork.store, mode="r+")["plane"][row * 10, 0] = row
    session.merge(*forks)
    session.commit("by two forks")


def go_on(place: Place, source: str, name: str) -> None:
    """Write more commits of all kinds on top of what other sides wrote."""
    repo = _open(place, source)
    session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    root["split"][3:6, 4:] = len(name)
    root["plane"].resize((20, root["plane"].shape[1] + 10))
    root["plane"][:, 30:] = 3
    root["g/sub/sharded"][3:9, 5] = len(name)
    root["g/sub/named"][0] = 0.5
    root["g/cube"][1, 2, 3] = 12345
    root.attrs[name] = True
    del root["late"]
    content.create(root, "late", np.array([0.5, -2], "f2"), (1,))
    content.create(root, f"g/{name}/below", content.numbers((2, 3), "f4"), (1, 3))
    session.store.set_virtual_refs("/virtual", [content.spec(2 * i) for i in range(20)])
    tip = session.commit(f"by {name}", metadata={"by": [name]})
    session = repo.writable_session("dev")
    zarr.open_group(session.store, mode="r+")["line"][...] = len(name)
    session.commit(f"on a branch by {name}", rebase_with=icechunk.ConflictDetector())
    repo.create_branch(f"of {name}", tip)
    repo.create_tag(f"tag of {name}", tip)
    repo.create_tag(f"no tag of {name}", tip)
    repo.delete_tag(f"no tag of {name}")
    repo.reset_branch("reset", tip)
    _write_side_by_side(repo)


def read(place: Place, source: str) -> dict[str, Any]:
    """Return all that there is to see in a repository."""
    repo = _open(place, source)
    found: dict[str, Any] = content.expectations(repo)
    session = repo.readonly_session("main")
    found["virtual_locations"] = _locations(session)
    found["inline_threshold"] = repo.config.inline_chunk_threshold_bytes
    found["containers"] = sorted(repo.config.virtual_chunk_containers)
    reused = []
    for tag in ("oops", "v1.0"):
        try:
            repo.create_tag(tag, session.snapshot_id)
        except icechunk.IcechunkError:
            reused.append(tag)
    found["taken"] = reused
    return found


def _locations(session: Any) -> list[str]:
    # 1.1.21 encodes special characters
    return sorted({unquote(url) for url in session.all_virtual_chunk_locations()})


def upgrade(place: Place) -> None:
    """Upgrade a repository to spec version 2."""
    repo = icechunk.Repository.open(storage_at(place))
    icechunk.upgrade_icechunk_repository(repo, dry_run=True)
    icechunk.upgrade_icechunk_repository(repo, dry_run=False)


# -- whatever comes to mind ----------------------------------------------------------------
def create_base(folder: str) -> None:
    """Create the repository that random work begins with a copy of."""
    splitting = icechunk.ManifestSplittingConfig.from_dict(
        {
            icechunk.ManifestSplitCondition.name_matches("split"): {
                icechunk.ManifestSplitDimCondition.Axis(0): 2
            }
        }
    )
    config = icechunk.RepositoryConfig(
        inline_chunk_threshold_bytes=8, manifest=icechunk.ManifestConfig(splitting=splitting)
    )
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer("s3://bucket/", icechunk.s3_store(region="us-east-1"))
    )
    write_base(_create(folder, config))


class _Work(random_work.Work):
    """With branches and tags."""

    def _tip(self) -> str:
        tip: str = self._repo.lookup_branch("main")
        return tip

    def branch(self, name: str) -> None:
        """Create a branch, or move it."""
        if name in self._repo.list_branches():
            self._repo.reset_branch(name, self._tip())
        else:
            self._repo.create_branch(name, self._tip())

    def delete_branch(self, name: str) -> None:
        """Delete a branch."""
        self._repo.delete_branch(name)

    def tag(self, name: str) -> None:
        """Create a tag."""
        self._repo.create_tag(name, self._tip())

    def delete_tag(self, name: str) -> None:
        """Delete a tag."""
        self._repo.delete_tag(name)


def play(base: str, folder: str, steps: list[random_work.Step]) -> list[str]:
    """Do steps in a copy of the base; return what became of each."""
    shutil.copytree(base, folder)
    work = _Work(icechunk.Repository.open(icechunk.local_filesystem_storage(folder)))
    return [work.do(step) for step in [*steps, ["finish", "commit"]]]


def _found(lookup: Callable[[str], str], name: str) -> str | None:
    try:
        return lookup(name)
    except icechunk.IcechunkError:
        return None


def look(folder: str, names: list[str]) -> dict[str, Any]:
    """Return the nodes of the branch ``main``, with values, kinds of chunks and history.

    Branches and tags are looked up by `names`: the official clients do not list all tags
    that they find, where local storage encodes the names.
    """
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(folder))
    session = repo.readonly_session("main")
    group = zarr.open_group(session.store, mode="r")
    nodes: dict[str, Any] = {"/": {"attributes": dict(group.attrs)}}
    for path, node in group.members(max_depth=None):
        nodes[path] = {"attributes": dict(node.attrs)}
        if isinstance(node, zarr.Array):
            types = content.chunk_types(session, "/" + path, node)
            nodes[path] |= {"shape": list(node.shape), "types": types}
            if "v" not in types:
                nodes[path]["values"] = " ".join(np.asarray(node[...]).astype(str).ravel())
    return {
        "nodes": nodes,
        "branches": {name: _found(repo.lookup_branch, name) for name in names},
        "tags": {name: _found(repo.lookup_tag, name) for name in names},
        "history": content.history(repo, branch="main"),
        "virtual_locations": _locations(session),
    }
