"""What both sides must refuse, with the same class and kind of error.

A table of functions on a repository as `base.write_base` leaves it. What only one side
refuses is not in it: the official client stores chunks and chunk grids whose rank is not
that of the array.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import zarr
from zarr.core.sync import sync

import icechunk
from tests.interop.base import create, edit, rearrange, set_virtual

REFUSALS: dict[str, Callable[[Any], None]] = {}


def refusal(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Add a function to the table, under its name."""
    REFUSALS[function.__name__] = function
    return function


def buffer(data: bytes) -> Any:
    """Return bytes as a store takes them."""
    return zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(data)


@refusal
def commit_without_changes(repo: Any) -> None:
    repo.writable_session("main").commit("nothing")


@refusal
def commit_of_nodes_that_were_created_and_deleted(repo: Any) -> None:
    session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="a")
    create(root, "h/new", (4,), (2,))
    del root["h"]
    session.commit("nothing")


@refusal
def commit_twice(repo: Any) -> None:
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="a").attrs["x"] = 1
    session.commit("once")
    session.commit("twice")


@refusal
def commit_on_a_branch_that_moved(repo: Any) -> None:
    one, other = repo.writable_session("main"), repo.writable_session("main")
    for session in (one, other):
        zarr.open_group(session.store, mode="a")["a"][0] = 17
    one.commit("one")
    other.commit("other")


@refusal
def rebase_with_conflict(repo: Any) -> None:
    one, other = repo.writable_session("main"), repo.writable_session("main")
    for session in (one, other):
        zarr.open_group(session.store, mode="a")["a"][0] = 17
    one.commit("one")
    other.commit("other", rebase_with=icechunk.ConflictDetector())


@refusal
def write_through_a_readonly_session(repo: Any) -> None:
    session = repo.readonly_session("main")
    sync(session.store.set("a/c/0", buffer(b"12345678")))


@refusal
def commit_of_a_readonly_session(repo: Any) -> None:
    repo.readonly_session("main").commit("no")


@refusal
def write_in_a_rearrange_session(repo: Any) -> None:
    session = repo.rearrange_session("main")
    sync(session.store.set("a/c/0", buffer(b"12345678")))


@refusal
def move_in_a_writable_session(repo: Any) -> None:
    repo.writable_session("main").move("/a", "/b")


@refusal
def chunk_outside_of_the_grid(repo: Any) -> None:
    sync(repo.writable_session("main").store.set("a/c/6", buffer(b"12345678")))


@refusal
def chunk_of_a_group(repo: Any) -> None:
    sync(repo.writable_session("main").store.set("g/c/0", buffer(b"12345678")))


@refusal
def chunk_of_no_array(repo: Any) -> None:
    sync(repo.writable_session("main").store.set("nothing/c/0", buffer(b"12345678")))


@refusal
def key_of_nothing(repo: Any) -> None:
    sync(repo.writable_session("main").store.set("a/what", buffer(b"12345678")))


def set_metadata(repo: Any, document: bytes | dict[str, Any]) -> None:
    """Set the metadata of a node, as a string or as what goes over that of an array."""
    if isinstance(document, dict):
        document = json.dumps(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": [4],
                "data_type": "int32",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": 0,
                "codecs": [{"name": "bytes"}],
                "attributes": {},
                **document,
            }
        ).encode()
    sync(repo.writable_session("main").store.set("n/zarr.json", buffer(document)))


@refusal
def metadata_that_is_no_json(repo: Any) -> None:
    set_metadata(repo, b"{")


@refusal
def metadata_that_is_a_list(repo: Any) -> None:
    set_metadata(repo, b"[]")


@refusal
def metadata_of_no_node(repo: Any) -> None:
    set_metadata(repo, {"node_type": "tree"})


@refusal
def metadata_without_a_shape(repo: Any) -> None:
    set_metadata(repo, {"shape": None})


@refusal
def metadata_with_a_negative_shape(repo: Any) -> None:
    set_metadata(repo, {"shape": [-1]})


@refusal
def metadata_with_an_unknown_grid(repo: Any) -> None:
    set_metadata(repo, {"chunk_grid": {"name": "hexagonal"}})


@refusal
def metadata_of_format_2(repo: Any) -> None:
    sync(repo.writable_session("main").store.set("n/.zarray", buffer(b"{}")))


@refusal
def virtual_chunk_outside_of_all_containers(repo: Any) -> None:
    store = repo.writable_session("main").store
    store.set_virtual_ref("virtual/c/0", "s3://elsewhere/x", offset=0, length=4)


@refusal
def virtual_chunk_without_bytes(repo: Any) -> None:
    store = repo.writable_session("main").store
    store.set_virtual_ref("virtual/c/0", "s3://bucket/x", offset=0, length=0)


@refusal
def virtual_chunk_that_is_no_url(repo: Any) -> None:
    store = repo.writable_session("main").store
    store.set_virtual_ref("virtual/c/0", "x", offset=0, length=1)


@refusal
def virtual_chunks_of_a_missing_array(repo: Any) -> None:
    session = repo.writable_session("main")
    session.store.set_virtual_refs(
        "/nothing", [icechunk.VirtualChunkSpec([0], "s3://bucket/x", 0, 4)]
    )


@refusal
def virtual_chunk_outside_of_the_grid(repo: Any) -> None:
    set_virtual(repo.writable_session("main"), [4])


@refusal
def move_of_nothing(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/nothing", "/b")


@refusal
def move_onto_a_node(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/a", "/m")


@refusal
def move_into_itself(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/g", "/g/deep/g")


@refusal
def move_below_nothing(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/a", "/nothing/a")


@refusal
def move_below_an_array(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/a", "/m/a")


@refusal
def edit_that_amends_a_move(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/a", "/b")
    with edit(repo, amend=True) as root:
        root["b"][0] = 17


@refusal
def amend_of_the_first_snapshot(repo: Any) -> None:
    *_, first = repo.ancestry(branch="main")
    repo.create_branch("b", first.id)
    session = repo.writable_session("b")
    zarr.create_group(session.store)
    session.amend("no")


@refusal
def move_where_moves_are_switched_off(repo: Any) -> None:
    repo.set_feature_flag("move_node", False)
    with rearrange(repo) as session:
        session.move("/a", "/b")


@refusal
def tag_where_tags_are_switched_off(repo: Any) -> None:
    repo.set_feature_flag("create_tag", False)
    repo.create_tag("t", repo.lookup_branch("main"))


@refusal
def unknown_feature(repo: Any) -> None:
    repo.set_feature_flag("no_such_feature", True)


@refusal
def commit_to_a_readonly_repository(repo: Any) -> None:
    session = repo.writable_session("main")
    create(zarr.open_group(session.store, mode="a"), "new", (2,), (2,))
    repo.set_status(icechunk.RepoStatus(icechunk.RepoAvailability.read_only))
    session.commit("no")


@refusal
def branch_that_exists(repo: Any) -> None:
    repo.create_branch("main", repo.lookup_branch("main"))


@refusal
def branch_at_no_snapshot(repo: Any) -> None:
    repo.create_branch("b", "0" * 20)


@refusal
def delete_main(repo: Any) -> None:
    repo.delete_branch("main")


@refusal
def missing_branch(repo: Any) -> None:
    repo.writable_session("nothing")


@refusal
def missing_tag(repo: Any) -> None:
    repo.lookup_tag("nothing")


@refusal
def reset_to_nothing(repo: Any) -> None:
    repo.reset_branch("main", "0" * 20)


@refusal
def reset_from_elsewhere(repo: Any) -> None:
    _, parent, *_ = (entry.id for entry in repo.ancestry(branch="main"))
    repo.reset_branch("main", parent, from_snapshot_id=parent)


@refusal
def tag_that_exists(repo: Any) -> None:
    for _ in range(2):
        repo.create_tag("t", repo.lookup_branch("main"))


@refusal
def tag_that_was_deleted(repo: Any) -> None:
    repo.create_tag("t", repo.lookup_branch("main"))
    repo.delete_tag("t")
    repo.create_tag("t", repo.lookup_branch("main"))


@refusal
def delete_of_no_tag(repo: Any) -> None:
    repo.delete_tag("nothing")


@refusal
def snapshot_of_a_wrong_id(repo: Any) -> None:
    repo.readonly_session(snapshot_id="what is this")


@refusal
def snapshot_that_is_missing(repo: Any) -> None:
    repo.readonly_session(snapshot_id="Z" * 19 + "G")


@refusal
def diff_backwards(repo: Any) -> None:
    tip, parent, *_ = (entry.id for entry in repo.ancestry(branch="main"))
    repo.diff(from_snapshot_id=tip, to_snapshot_id=parent)


@refusal
def merge_of_a_fork_that_was_committed(repo: Any) -> None:
    fork = repo.writable_session("main").fork()
    zarr.open_group(fork.store, mode="a").attrs["x"] = 1
    fork.commit("no")


@refusal
def fork_of_a_readonly_session(repo: Any) -> None:
    repo.readonly_session("main").fork()


@refusal
def rewrite_manifests_of_no_branch(repo: Any) -> None:
    repo.rewrite_manifests("rewritten", branch="none")


@refusal
def rewrite_manifests_by_amending_the_first_snapshot(repo: Any) -> None:
    repo.create_branch("first", "1CECHNKREP0F1RSTCMT0")
    repo.rewrite_manifests("rewritten", branch="first", commit_method="amend")


@refusal
def rewrite_manifests_by_amending_a_move(repo: Any) -> None:
    with rearrange(repo) as session:
        session.move("/a", "/b")
    repo.rewrite_manifests("rewritten", branch="main", commit_method="amend")


@refusal
def shift_in_a_readonly_session(repo: Any) -> None:
    repo.readonly_session("main").shift_array("/a", [1])


@refusal
def shift_in_a_rearrange_session(repo: Any) -> None:
    repo.rearrange_session("main").shift_array("/a", [1])


@refusal
def shift_of_a_group(repo: Any) -> None:
    repo.writable_session("main").shift_array("/g", [1])


@refusal
def shift_of_nothing(repo: Any) -> None:
    repo.writable_session("main").shift_array("/nothing", [1])


@refusal
def reindex_out_of_the_grid(repo: Any) -> None:
    repo.writable_session("main").reindex_array("/a", lambda at: [at[0] + 1])


@refusal
def write_to_a_repository_that_is_read_only(repo: Any) -> None:
    repo.set_status(icechunk.RepoStatus(icechunk.RepoAvailability.read_only))
    repo.writable_session("main")


@refusal
def rearrange_a_repository_that_is_read_only(repo: Any) -> None:
    repo.set_status(icechunk.RepoStatus(icechunk.RepoAvailability.read_only))
    repo.rearrange_session("main")
