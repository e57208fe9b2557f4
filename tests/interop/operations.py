"""Small pieces of work, each done by both sides on the same base and then compared.

A table of functions on a repository. Nothing here knows which side it runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import icechunk
import numpy as np
import zarr

OPERATIONS: dict[str, Callable[[Any], None]] = {}


def operation(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Add a function to the table, under its name."""
    OPERATIONS[function.__name__] = function
    return function


@contextmanager
def edit(repo: Any, *, amend: bool = False) -> Iterator[zarr.Group]:
    """Give the root group of a session that is committed at the end."""
    session = repo.writable_session("main")
    yield zarr.open_group(session.store, mode="a")
    (session.amend if amend else session.commit)("edited")


@contextmanager
def rearrange(repo: Any, *, amend: bool = False) -> Iterator[Any]:
    """Give a session that moves nodes and is committed at the end."""
    session = repo.rearrange_session("main")
    yield session
    (session.amend if amend else session.commit)("rearranged")


def create(group: zarr.Group, name: str, shape: tuple[int, ...], chunks: Any, **options: Any) -> Any:
    """Create an array without compression."""
    options = {"dtype": "i4", "compressors": None, **options}
    return group.create_array(name, shape=shape, chunks=chunks, **options)


def config() -> Any:
    """Return a configuration with inline and native chunks, and split manifests."""
    result = icechunk.RepositoryConfig(
        inline_chunk_threshold_bytes=8,
        manifest=icechunk.ManifestConfig(
            splitting=icechunk.ManifestSplittingConfig.from_dict(
                {
                    icechunk.ManifestSplitCondition.name_matches("split"): {
                        icechunk.ManifestSplitDimCondition.Axis(0): 2
                    }
                }
            )
        ),
    )
    result.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer("s3://bucket/", icechunk.s3_store(region="us-east-1"))
    )
    return result


def write_base(repo: Any) -> None:
    """Write what all operations begin with."""
    session = repo.writable_session("main")
    root = zarr.create_group(session.store, attributes={"of": "root"})
    deep = root.create_group("g/deep", attributes={"level": 2})
    create(root, "a", (12,), (2,))[:] = np.arange(1, 13)  # inline chunks
    create(root, "m", (8, 8), (2, 2), dimension_names=("y", "x"))[:] = 1  # native chunks
    create(root, "scalar", (), ())[...] = 5
    create(root, "split", (10, 2), (1, 2))[:] = 3
    create(root, "sparse", (9,), (3,), fill_value=-1)[0] = 2
    create(root, "unwritten", (4,), (2,))
    create(root, "sharded", (8, 8), (2, 2), shards=(4, 4))[:4] = 9
    create(deep, "x", (4,), (2,))[:] = 7
    create(root, "virtual", (4,), (1,))
    set_virtual(session, range(3))
    session.commit("base", metadata={"base": True})


def set_virtual(session: Any, rows: Any, offset: int = 0, **checksum: Any) -> None:
    """Make chunks of ``/virtual`` refer to a file that nobody reads."""
    specs = [
        icechunk.VirtualChunkSpec([i], f"s3://bucket/file-{i}", offset + 4 * i, 4, **checksum)
        for i in rows
    ]
    session.store.set_virtual_refs("/virtual", specs)


# -- nodes -------------------------------------------------------------------------------
@operation
def new_array(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "new", (4,), (2,))


@operation
def new_array_with_chunks(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "new", (4, 4), (2, 2))[1:3] = 4


@operation
def new_array_below_new_groups(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "one/two/new", (2,), (2,))[:] = 1


@operation
def new_array_of_five_dimensions(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "new", (2, 3, 1, 2, 2), (1, 3, 1, 1, 2))[1, :, :, 0] = 6


@operation
def new_scalar(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "new", (), ())[...] = 8


@operation
def new_array_without_elements(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "new", (0, 3), (1, 3))


@operation
def new_group(repo: Any) -> None:
    with edit(repo) as root:
        root.create_group("new", attributes={"a": [1, {"b": None}]})


@operation
def new_node_is_edited(repo: Any) -> None:
    with edit(repo) as root:
        root.create_group("new").attrs["x"] = 1
        array = create(root, "fresh", (4,), (2,))
        array.attrs["y"] = 2
        array.resize((6,))
        array[5] = 1


@operation
def attributes_of_an_array(repo: Any) -> None:
    with edit(repo) as root:
        root["a"].attrs["units"] = "m"


@operation
def attributes_of_a_group(repo: Any) -> None:
    with edit(repo) as root:
        root["g"].attrs["a"] = "b"


@operation
def attributes_of_the_root(repo: Any) -> None:
    with edit(repo) as root:
        root.attrs["of"] = "all"


@operation
def the_same_metadata_again(repo: Any) -> None:
    with edit(repo) as root:
        root["a"].attrs["units"] = "m"
    with edit(repo) as root:
        root["a"].attrs["units"] = "m"
        root["m"][0, 0] = 2


@operation
def delete_array(repo: Any) -> None:
    with edit(repo) as root:
        del root["m"]


@operation
def delete_group_with_descendants(repo: Any) -> None:
    with edit(repo) as root:
        del root["g"]


@operation
def delete_everything(repo: Any) -> None:
    session = repo.writable_session("main")
    session.store.sync_clear()
    session.commit("cleared")


@operation
def edit_then_delete(repo: Any) -> None:
    with edit(repo) as root:
        root["m"].attrs["x"] = 1
        root["m"][0, 0] = 17
        root["g/deep"].attrs["x"] = 1
        root["g/deep/x"][0] = 1
        del root["m"]
        del root["g"]


@operation
def create_then_delete(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "h/new", (4,), (2,))[:] = 1
        del root["h"]


@operation
def delete_then_recreate(repo: Any) -> None:
    with edit(repo) as root:
        del root["m"]
        create(root, "m", (4,), (2,))[0] = 5
        del root["g"]
        root.create_group("g")


@operation
def overwrite_a_node(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "a", (3,), (3,), overwrite=True)[:] = 1


@operation
def overwrite_an_array_by_a_group(repo: Any) -> None:
    with edit(repo) as root:
        root.create_group("a", overwrite=True)


@operation
def create_delete_create(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "new", (4,), (2,))[:] = 1
        del root["new"]
        create(root, "new", (2,), (2,))[:] = 2


@operation
def edits_that_cancel(repo: Any) -> None:
    with edit(repo) as root:
        root["a"].attrs["x"] = 1
        del root["a"].attrs["x"]


# -- chunks ------------------------------------------------------------------------------
@operation
def write_chunk(repo: Any) -> None:
    with edit(repo) as root:
        root["sparse"][4] = 1


@operation
def overwrite_chunks(repo: Any) -> None:
    with edit(repo) as root:
        root["a"][3] = 100
        root["m"][1:5, 6] = 100
        root["scalar"][...] = 6


@operation
def overwrite_a_chunk_twice(repo: Any) -> None:
    with edit(repo) as root:
        root["m"][0, 0] = 100
        root["m"][0, 0] = 101


@operation
def write_the_same_value(repo: Any) -> None:
    with edit(repo) as root:
        root["a"][0] = 1


@operation
def write_the_fill_value(repo: Any) -> None:
    with edit(repo) as root:
        root["a"][2:4] = 0


@operation
def write_the_fill_value_where_nothing_is(repo: Any) -> None:
    with edit(repo) as root:
        root["sparse"][6:9] = -1
        root["sparse"][0] = 4


@operation
def write_then_erase(repo: Any) -> None:
    with edit(repo) as root:
        root["sparse"][3:6] = 3
        root["sparse"][3:6] = -1


@operation
def erase_all_chunks(repo: Any) -> None:
    with edit(repo) as root:
        root["m"][...] = 0
        root["scalar"][...] = 0


@operation
def erase_then_write(repo: Any) -> None:
    with edit(repo) as root:
        root["a"][0:2] = 0
        root["a"][0:2] = 9


@operation
def delete_chunk_keys(repo: Any) -> None:
    session = repo.writable_session("main")
    for key in ("a/c/0", "m/c/1/1", "scalar/c", "unwritten/c/0", "a/c/5"):
        zarr.core.sync.sync(session.store.delete(key))
    session.commit("deleted")


@operation
def delete_a_folder_of_chunks(repo: Any) -> None:
    session = repo.writable_session("main")
    zarr.core.sync.sync(session.store.delete_dir("m/c/1"))
    session.commit("deleted")


@operation
def write_to_a_shard(repo: Any) -> None:
    with edit(repo) as root:
        root["sharded"][5, 5] = 1
        root["sharded"][0, 0] = 0


@operation
def write_virtual(repo: Any) -> None:
    session = repo.writable_session("main")
    set_virtual(session, [1, 3], offset=1000)
    session.commit("virtual")


@operation
def write_virtual_with_etag(repo: Any) -> None:
    session = repo.writable_session("main")
    set_virtual(session, [0, 1], etag_checksum='"abc"')
    session.commit("virtual")


@operation
def write_over_virtual(repo: Any) -> None:
    with edit(repo) as root:
        root["virtual"][1:] = 4
    session = repo.writable_session("main")
    set_virtual(session, [2])
    session.commit("virtual again")


# -- shapes and manifests ----------------------------------------------------------------
@operation
def shrink(repo: Any) -> None:
    with edit(repo) as root:
        root["a"].resize((5,))
        root["m"].resize((8, 3))


@operation
def shrink_to_nothing(repo: Any) -> None:
    with edit(repo) as root:
        root["a"].resize((0,))


@operation
def grow(repo: Any) -> None:
    with edit(repo) as root:
        root["a"].resize((20,))


@operation
def grow_and_write(repo: Any) -> None:
    with edit(repo) as root:
        root["a"].resize((20,))
        root["a"][15:] = 3


@operation
def shrink_and_grow(repo: Any) -> None:
    with edit(repo) as root:
        root["m"].resize((4, 4))
        root["m"].resize((8, 8))


@operation
def append(repo: Any) -> None:
    with edit(repo) as root:
        root["m"].append(np.full((3, 8), 2, "i4"), axis=0)


@operation
def write_to_one_of_many_manifests(repo: Any) -> None:
    with edit(repo) as root:
        root["split"][5] = 8


@operation
def erase_one_of_many_manifests(repo: Any) -> None:
    with edit(repo) as root:
        root["split"][4:6] = 0


@operation
def attributes_of_an_array_with_many_manifests(repo: Any) -> None:
    with edit(repo) as root:
        root["split"].attrs["x"] = 1


@operation
def shrink_many_manifests(repo: Any) -> None:
    with edit(repo) as root:
        root["split"].resize((5, 2))


@operation
def grow_many_manifests(repo: Any) -> None:
    with edit(repo) as root:
        root["split"].resize((15, 2))
        root["split"][12:] = 1


@operation
def another_array_keeps_its_manifests(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "new_split", (5, 2), (1, 2))[:] = 1


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
    ours.commit("ours", metadata={"x": 1}, rebase_with=icechunk.ConflictDetector())


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
