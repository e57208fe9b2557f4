"""Moves, and unusual commits, done by both sides on the same base and then compared."""

from __future__ import annotations

from typing import Any

import zarr

import icechunk
from tests.interop.base import create, edit, operation, rearrange, reopened
from tests.interop.operations import write_with_holes


# -- moves -------------------------------------------------------------------------------
@operation
def move_array(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/a", "/g/b")


@operation
def move_group(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/g", "/h")


@operation
def move_in_hops(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/a", "/b")
        session.move("/b", "/g/c")
        session.move("/g", "/z")


@operation
def move_and_back(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/g", "/h")
        session.move("/h", "/g")


@operation
def swap(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/a", "/tmp")
        session.move("/m", "/a")
        session.move("/tmp", "/m")


@operation
def move_then_edit(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/split", "/g/renamed")
    with edit(repo) as root:
        root["g/renamed"][0] = 1
        root["g/renamed"].attrs["x"] = 1


@operation
def move_then_recreate_the_source(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/a", "/b")
    with edit(repo) as root:
        create(root, "a", (2,), (2,))[:] = 1
        del root["b"]


# -- commits that amend --------------------------------------------------------------------
@operation
def amend_by_chunks(repo: Any) -> None:
    with edit(repo) as root:
        root["a"][0] = 50
        root["m"][0, 0] = 1
    with edit(repo, amend=True) as root:
        root["a"][0:4] = 51
        root["m"].attrs["x"] = 1


@operation
def amend_a_creation_by_a_deletion(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "new", (4,), (2,))[:] = 1
        del root["g"]
    with edit(repo, amend=True) as root:
        del root["new"]
        root.create_group("g")


@operation
def amend_a_creation_by_an_edit(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "new", (4,), (2,))[:] = 1
    with edit(repo, amend=True) as root:
        root["new"].attrs["x"] = 1


@operation
def amend_an_edit_by_a_move(repo: Any) -> None:
    with edit(repo) as root:
        root["a"][0] = 50
        create(root, "new", (4,), (2,))[:] = 1
    with rearrange(repo, amend=True) as session:
        session.move("/a", "/b")
        session.move("/new", "/g/new")


@operation
def amend_a_move_by_moves(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/a", "/b")
        session.move("/m", "/n")
    with rearrange(repo, amend=True) as session:
        session.move("/b", "/c")
        session.move("/n", "/m")
        session.move("/g", "/h")


# -- other commits -------------------------------------------------------------------------
@operation
def empty_commit(repo: Any) -> None:
    repo.writable_session("main").commit("nothing", allow_empty=True)


@operation
def commit_with_metadata(repo: Any) -> None:
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="a").attrs["x"] = 1
    nested = {"b": [1, -1, 2**40, 2**63, 0.5, True, None, "é"], "a": {"": {}, "l": []}}
    session.commit("with metadata", metadata={"nested": nested, "": "", "é": [[], [1.5, 2]]})


@operation
def flush(repo: Any) -> None:
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="a")["a"][0] = 4
    session.flush("flushed", metadata={"x": 1})


@operation
def flush_without_changes(repo: Any) -> None:
    repo.writable_session("main").flush("nothing new")


@operation
def rewrite_manifests(repo: Any) -> None:
    repo.rewrite_manifests("rewritten", branch="main", metadata={"k": 1})


@operation
def rewrite_manifests_otherwise(repo: Any) -> None:
    repo = reopened(repo, axis=0, size=3)
    repo.rewrite_manifests("rewritten", branch="main", metadata={"__icechunk": {"x": 2}})


@operation
def rewrite_manifests_of_holes(repo: Any) -> None:
    write_with_holes(repo)
    repo = reopened(repo, axis=1, size=4)
    repo.rewrite_manifests("rewritten", branch="main")
    with edit(repo) as root:
        root["holes"].resize((5, 5))
    repo.rewrite_manifests("rewritten again", branch="main")


@operation
def rewrite_manifests_by_amending(repo: Any) -> None:
    repo.set_default_commit_metadata({"k": 0, "l": 1})
    with edit(repo) as root:
        root["a"][0] = 50
    plain = icechunk.Repository.open(
        repo.storage,
        icechunk.RepositoryConfig(
            manifest=icechunk.ManifestConfig(
                splitting=icechunk.ManifestSplittingConfig.from_dict({})
            )
        ),
    )
    plain.rewrite_manifests("rewritten", branch="main", commit_method="amend")


@operation
def forks(repo: Any) -> None:
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="a")["a"][0] = 4
    one, other = session.fork(), session.fork()
    zarr.open_group(one.store, mode="a")["m"][0:2] = 4
    zarr.open_group(other.store, mode="a")["m"][2:4] = 5
    session.merge(one, other)
    session.commit("merged")


@operation
def rebased(repo: Any) -> None:
    ours, theirs = repo.writable_session("main"), repo.writable_session("main")
    zarr.open_group(theirs.store, mode="a")["m"][0, 0] = 4
    zarr.open_group(ours.store, mode="a")["m"][0, 2] = 5
    theirs.commit("theirs")
    given = {"x": 1, "__icechunk": {"y": 2}}
    ours.commit("ours", metadata=given, rebase_with=icechunk.ConflictDetector())


@operation
def refs_and_settings(repo: Any) -> None:
    snapshot = repo.lookup_branch("main")
    repo.create_branch("b/é", snapshot)
    repo.create_tag("t", snapshot)
    repo.create_tag("u", snapshot)
    repo.delete_tag("t")
    repo.create_branch("c", snapshot)
    repo.reset_branch("c", next(iter(list(repo.ancestry(branch="main"))[1:])).id)
    repo.delete_branch("b/é")
    repo.set_metadata({"a": [1, 2], "b": {"c": None}})
    repo.update_metadata({"a": "x", "z": 1.5})
    repo.set_feature_flag("create_tag", True)
    repo.set_feature_flag("delete_tag", False)
    repo.set_feature_flag("delete_tag", None)
    limited = icechunk.RepoAvailability.read_only
    repo.set_status(icechunk.RepoStatus(limited, limited_availability_reason="because"))
    repo.set_status(icechunk.RepoStatus(icechunk.RepoAvailability.online))
    repo.save_config()
