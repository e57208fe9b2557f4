"""Edits of nodes and chunks, each done by both sides on the same base and then compared."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import zarr

from tests.interop.base import create, edit, operation, reopened, set_virtual


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
def write_the_fill_value_to_a_new_array(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "new", (8,), (2,))[:] = [0, 0, 1, 1, 0, 0, 0, 2]


@operation
def erase_what_was_just_written(repo: Any) -> None:
    with edit(repo) as root:
        array = create(root, "new", (4,), (2,))
        array[:] = 1
        array[:2] = 0
        root["unwritten"][:] = 1
        root["unwritten"][:2] = 0


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
def delete_chunk_keys_outside_of_the_grid(repo: Any) -> None:
    session = repo.writable_session("main")
    for key in ("a/c/6", "a/c/0", "a/c/99"):
        zarr.core.sync.sync(session.store.delete(key))
    session.commit("deleted")


@operation
def delete_keys_of_nothing(repo: Any) -> None:
    session = repo.writable_session("main")
    for key in ("nothing/c/0", "g/c/0", "a/c/1", "g/nothing/zarr.json"):
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
def shrink_where_nothing_is(repo: Any) -> None:
    with edit(repo) as root:
        root["sparse"].resize((4,))
        root["unwritten"].resize((1,))


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


def write_with_holes(repo: Any) -> None:
    """Write an array whose manifests, of two rows each, do not all reach to the right."""
    with edit(reopened(repo, axis=0, size=2)) as root:
        array = create(root, "holes", (6, 8), (1, 1))
        array[:2], array[2:4, :3], array[4:] = 1, 2, 3


@operation
def attributes_after_a_change_of_split_sizes(repo: Any) -> None:
    write_with_holes(repo)
    with edit(reopened(repo, axis=1, size=4)) as root:
        root["holes"].attrs["x"] = 1


@operation
def write_after_a_change_of_split_sizes(repo: Any) -> None:
    write_with_holes(repo)
    with edit(reopened(repo, axis=1, size=4)) as root:
        root["holes"][5, 7] = 1


@operation
def shrink_after_a_change_of_split_sizes(repo: Any) -> None:
    write_with_holes(repo)
    with edit(reopened(repo, axis=1, size=100)) as root:
        root["holes"].resize((6, 4))


@operation
def shrink_but_delete_nothing(repo: Any) -> None:
    write_with_holes(repo)
    session = reopened(repo, axis=1, size=100).writable_session("main")
    prototype = zarr.core.buffer.default_buffer_prototype()
    stored = zarr.core.sync.sync(session.store.get("holes/zarr.json", prototype))
    document = json.loads(stored.to_bytes()) | {"shape": [5, 4]}
    changed = prototype.buffer.from_bytes(json.dumps(document).encode())
    zarr.core.sync.sync(session.store.set("holes/zarr.json", changed))
    session.commit("shrunk")


@operation
def another_array_keeps_its_manifests(repo: Any) -> None:
    with edit(repo) as root:
        create(root, "new_split", (5, 2), (1, 2))[:] = 1
