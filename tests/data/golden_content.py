"""What the golden repositories hold, and what is expected of their readers.

Runs under an official client, started by one of the ``make_golden_*.py`` beside it, and on
either side of the interop tests. 1.1.21 has all that it needs up to the whole history.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import icechunk
import numpy as np
import zarr

HERE = Path(__file__).parent
#: Bytes that virtual chunks refer to, in a file beside the repositories.
SOURCE = np.arange(256, dtype="u1").tobytes() * 4
MANY = 1200
ODD_BRANCH = "feature #1 é"
MODIFIED = datetime(2024, 2, 29, 12, 30, 15, tzinfo=UTC)


def fresh_folder(name: str) -> Path:
    """Return an empty folder for a golden repository."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def s3_container() -> icechunk.VirtualChunkContainer:
    """Return a container that nobody can reach: its references are only decoded."""
    return icechunk.VirtualChunkContainer(
        url_prefix="s3://golden-bucket/",
        store=icechunk.s3_store(region="eu-central-1"),
    )


def config() -> icechunk.RepositoryConfig:
    """Return a configuration that differs from the default in every kind of value."""
    result = icechunk.RepositoryConfig(
        inline_chunk_threshold_bytes=128,
        get_partial_values_concurrency=7,
        compression=icechunk.CompressionConfig(level=5),
        caching=icechunk.CachingConfig(num_chunk_refs=123_456),
        manifest=icechunk.ManifestConfig(
            preload=icechunk.ManifestPreloadConfig(
                max_total_refs=99,
                preload_if=icechunk.ManifestPreloadCondition.and_conditions(
                    [
                        icechunk.ManifestPreloadCondition.name_matches("^x$"),
                        icechunk.ManifestPreloadCondition.num_refs(1, 50),
                    ]
                ),
            ),
            splitting=icechunk.ManifestSplittingConfig.from_dict(
                {
                    icechunk.ManifestSplitCondition.name_matches("^split"): {
                        icechunk.ManifestSplitDimCondition.Axis(0): 2,
                        icechunk.ManifestSplitDimCondition.Any(): 3,
                    },
                    icechunk.ManifestSplitCondition.path_matches("/sub/named$"): {
                        icechunk.ManifestSplitDimCondition.DimensionName("time"): 4,
                    },
                }
            ),
        ),
    )
    result.set_virtual_chunk_container(s3_container())
    return result


def numbers(shape: tuple[int, ...], dtype: str, start: int = 1) -> np.ndarray:
    """Return small distinct values, none of them zero."""
    count = int(np.prod(shape))
    return (np.arange(count) % 100 + start).astype(dtype).reshape(shape)


def create(group: zarr.Group, name: str, values: np.ndarray, chunks, **options) -> zarr.Array:
    """Create an array without compression, whose chunks have a known size, and fill it."""
    options.setdefault("compressors", None)
    array = group.create_array(
        name, shape=values.shape, chunks=chunks, dtype=values.dtype, **options
    )
    array[...] = values
    return array


def write_first(session) -> None:
    """Groups, arrays of 0 to 4 dimensions, shards, every kind of chunk."""
    root = zarr.create_group(session.store, attributes={"title": "golden", "n": [1, 2.5, None]})
    root.create_group("empty_group")
    # a name that sorts between `g` and what is below it
    root.create_group("g-1", attributes={"é": "ü", "nested": {"a": {"b": [True, False]}}})
    group = root.create_group("g")
    sub = group.create_group("sub", attributes={"level": 2})
    create(root, "scalar", np.array(3.5), (), attributes={"units": "K"})
    create(root, "line", numbers((10,), "i4"), (4,), fill_value=-1)
    create(root, "plane", numbers((20, 30), "f4"), (10, 10), dimension_names=("y", "x"))
    create(group, "cube", numbers((4, 6, 8), "u2"), (2, 3, 4), compressors="auto",
           dimension_names=("t", None, "x"))
    hyper = group.create_array("hyper", shape=(2, 3, 4, 5), chunks=(1, 3, 2, 5), dtype="i1",
                               fill_value=7, compressors=None)
    hyper[0, :, 2:] = numbers((3, 2, 5), "i1", 20)
    create(sub, "sharded", numbers((16, 16), "i2"), (4, 4), shards=(8, 8))
    sub.create_array("named", shape=(20,), chunks=(2,), dtype="f8", dimension_names=("time",),
                     fill_value=float("nan"), compressors=None)[2:17] = numbers((15,), "f8")
    create(root, "split", numbers((8, 8), "u1"), (1, 1))
    create(root, "flags", np.array([True, False, True]), (2,))
    create(root, "waves", np.array([1 + 2j, -3.5j, 0.25]), (2,))
    root.create_array("nothing", shape=(0, 5), chunks=(1, 5), dtype="i4")
    root.create_array("never_written", shape=(3,), chunks=(3,), dtype="u8", fill_value=42)
    create(group, "doomed", numbers((6,), "i4"), (3,))
    write_many_virtual(session.store, root)


def write_many_virtual(store, root: zarr.Group) -> None:
    """Enough references for the locations to be compressed, and a few with checksums."""
    root.create_array("virtual", shape=(MANY,), chunks=(1,), dtype="f4", compressors=None)
    checked = root.create_array(
        "virtual_checked", shape=(2, 2), chunks=(1, 1), dtype="f4", compressors=None
    )
    checked[1, 1] = 5  # a native or inline chunk between virtual ones
    store.set_virtual_refs("/virtual", [spec(i) for i in range(MANY)])
    store.set_virtual_refs(
        "/virtual_checked",
        [
            icechunk.VirtualChunkSpec(
                index=[0, 0], location="s3://golden-bucket/a b%20c.nc", offset=2**40, length=4,
                etag_checksum='"0af7-1"',
            ),
            icechunk.VirtualChunkSpec(
                index=[0, 1], location="s3://golden-bucket/ünïcode.nc", offset=0, length=4,
                last_updated_at_checksum=MODIFIED,
            ),
        ],
    )


def spec(i: int) -> icechunk.VirtualChunkSpec:
    """Return the reference of the chunk number i of ``/virtual``."""
    return icechunk.VirtualChunkSpec(
        index=[i],
        location=f"s3://golden-bucket/model/run-{i // 100:03d}/output_{i:06d}.nc",
        offset=1000 + 4 * i,
        length=4,
        etag_checksum=f"etag{i}" if i % 500 == 0 else None,
    )


def write_second(session) -> None:
    """Overwrites, deletes, new metadata, a shrunk and a grown array."""
    root = zarr.open_group(session.store, mode="r+")
    root.attrs["title"] = "golden, edited"
    root["plane"][0:10, 0:10] = -1.5
    root["plane"][10:20, 20:30] = 0  # the fill value: the chunk is erased
    root["line"].resize((5,))
    root["flags"].resize((7,))
    root["flags"][6] = True
    root["g/cube"].attrs["long_name"] = "a cube"
    root["split"][7, 7] = 200
    del root["g/doomed"]
    del root["empty_group"]
    group = root.create_group("late")
    create(group, "array", numbers((4,), "i8"), (1,))


def write_on_branch(session) -> None:
    """An edit on a branch of its own."""
    root = zarr.open_group(session.store, mode="r+")
    root["scalar"][...] = -7.25
    root["g/hyper"][1, 0, 0] = 99


# -- a whole history, of spec version 2 ---------------------------------------------------
def source_prefix(folder: Path) -> str:
    """Return the prefix of the virtual chunks that can be read."""
    return f"file://{folder}/"


def full_config(folder: Path) -> icechunk.RepositoryConfig:
    """Return a configuration with a container for `folder`.

    References name the container, and not where it is, so that a reader may put it
    elsewhere.
    """
    result = config()
    result.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(
            url_prefix=source_prefix(folder),
            store=icechunk.local_filesystem_store(str(folder)),
            name="source",
        )
    )
    result.num_updates_per_repo_info_file = 20
    return result


def authorization(folder: Path) -> dict:
    """Return the permission to read virtual chunks in a folder."""
    return {source_prefix(folder): icechunk.credentials.LocalFileSystemAccess}


def write_source(folder: Path) -> None:
    """Write the file that virtual chunks refer to."""
    (folder / "source.bin").write_bytes(SOURCE)


def write_readable_virtual(session) -> None:
    """Virtual chunks of a file that is there."""
    root = zarr.open_group(session.store, mode="r+")
    root.create_array("read_me", shape=(4, 10), chunks=(1, 10), dtype="u1", compressors=None)
    for row in range(3):
        session.store.set_virtual_ref(
            f"read_me/c/{row}/0", "vcc://source/source.bin", offset=100 * row + 1, length=10
        )


def write_history(repo) -> dict[str, str]:
    """Write commits of all kinds, branches, tags, settings; return snapshots by name."""
    session = repo.writable_session("main")
    zarr.create_group(session.store, attributes={"will": "go"})
    start = session.commit("a start")
    session = repo.writable_session("main")
    session.store.sync_clear()
    write_first(session)
    write_readable_virtual(session)
    first = session.commit("first", metadata={"author": "golden", "n": 1, "nested": {"x": [1.5]}})
    session = repo.writable_session("main")
    write_second(session)
    second = session.commit("second ⛄", metadata={"none": None, "big": 2**40, "negative": -3})

    repo.create_branch("feature/é #1", first)
    session = repo.writable_session("feature/é #1")
    write_on_branch(session)
    branch_tip = session.commit("on a branch")
    repo.create_branch("gone", first)
    repo.delete_branch("gone")
    repo.create_branch("reset", second)
    repo.reset_branch("reset", first)
    repo.create_tag("v1.0", first)
    repo.create_tag("oops", branch_tip)
    repo.delete_tag("oops")

    session = repo.rearrange_session("main")
    session.move("/line", "/renamed_line")
    session.move("/g/sub", "/moved_sub")
    moved = session.commit("moved")
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="r+")["renamed_line"][0] = 1000
    amended = session.commit("a commit to be amended")
    session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    create(root, "added_by_amend", numbers((3,), "u1"), (3,))
    session.amend("amended", metadata={"amended": True})

    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="r+")["scalar"][...] = 0.125
    flushed = session.flush("flushed", metadata={"detached": True})

    repo.set_metadata({"owner": "golden", "levels": [1, {"deep": "é"}]})
    repo.set_feature_flag("delete_tag", False)
    repo.set_feature_flag("create_tag", True)
    repo.set_feature_flag("move_node", False)
    repo.set_feature_flag("move_node", None)
    repo.set_status(
        icechunk.RepoStatus(
            icechunk.RepoAvailability.read_only, limited_availability_reason="for a while"
        )
    )
    repo.set_status(icechunk.RepoStatus(icechunk.RepoAvailability.online))
    repo.save_config()

    # two writers, of which the second rebases
    one, other = repo.writable_session("main"), repo.writable_session("main")
    zarr.open_group(one.store, mode="r+")["split"][0, 0] = 150
    zarr.open_group(other.store, mode="r+")["split"][0, 1] = 151
    one.commit("first of two")
    other.commit("rebased", rebase_with=icechunk.BasicConflictSolver())
    return {
        "start": start,
        "first": first,
        "second": second,
        "branch_tip": branch_tip,
        "moved": moved,
        "amended": amended,
        "flushed": flushed,
    }


def continue_history(repo) -> None:
    """Write more commits of all kinds on top, as another client does."""
    session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="r+")
    root["split"][3:6, 4:] = 250
    root["plane"].resize((10, 40))
    root["plane"][:, 30:] = 3
    root["moved_sub/sharded"][3:9, 5] = 77
    root["moved_sub/named"][0] = 0.5
    root["g/cube"][1, 2, 3] = 12345
    root.attrs["continued"] = True
    del root["late"]
    create(root, "late", np.array([0.5, -2], "f2"), (1,))
    create(root, "g/again/below", numbers((2, 3), "f4"), (1, 3))
    session.store.set_virtual_refs("/virtual", [spec(2 * i) for i in range(100)])
    session.store.set_virtual_ref(
        "read_me/c/3/0", f"{virtual_prefix(repo)}source.bin", offset=7, length=10
    )
    session.commit("continued", metadata={"by": ["another"]})
    session = repo.rearrange_session("main")
    session.move("/moved_sub", "/g/sub")
    session.amend("continued and moved")
    session = repo.writable_session("feature/é #1")
    zarr.open_group(session.store, mode="r+")["line"][...] = 4
    tip = session.commit("on the branch of another")
    repo.create_branch("new", tip)
    repo.create_tag("v2.0", tip)
    repo.reset_branch("reset", tip)
    repo.update_metadata({"owner": "another"})
    repo.set_feature_flag("delete_tag", None)
    repo.delete_tag("v1.0")


def virtual_prefix(repo) -> str:
    """Return the prefix of the container that can be read."""
    (prefix,) = (p for p in repo.config.virtual_chunk_containers if p.startswith("file:"))
    return prefix


# -- what readers should find ------------------------------------------------------------
def snapshot_contents(session) -> dict:
    """Return every node that a session sees, with the values of what can be read."""
    root = zarr.open_group(session.store, mode="r")
    nodes = {"/": {"attributes": dict(root.attrs)}}
    for path, node in root.members(max_depth=None):
        found = {"attributes": dict(node.attrs)}
        if isinstance(node, zarr.Array):
            found["shape"] = list(node.shape)
            found["dtype"] = str(node.dtype)
            found["chunks"] = list(node.chunks)
            found["shards"] = list(node.shards) if node.shards else None
            found["dimension_names"] = node.metadata.to_dict().get("dimension_names")
            found["chunk_types"] = chunk_types(session, "/" + path, node)
            if not path.startswith("virtual"):
                found["values"] = " ".join(node[...].astype(str).ravel())
        nodes["/" + path] = found
    return nodes


def chunk_types(session, path: str, array: zarr.Array) -> str:
    """Return one letter per chunk, in C order: where it is; of a long array, the first ones."""
    size = array.shards or array.chunks
    grid = [-(-n // c) for n, c in zip(array.shape, size, strict=True)]
    kinds = [session.chunk_type(path, list(index)) for index in list(np.ndindex(*grid))[:64]]
    return "".join(str(kind).rpartition(".")[2].lower()[0] for kind in kinds)


def history(repo, **version) -> list[dict]:
    """Return the ancestry of a version, newest first."""
    return [
        {
            "id": entry.id,
            "parent_id": entry.parent_id,
            "message": entry.message,
            "metadata": entry.metadata,
            "written_at": entry.written_at.isoformat(),
        }
        for entry in repo.ancestry(**version)
    ]


def plain_diff(diff) -> dict:
    """Return a diff as what JSON can express."""
    return {
        "new_groups": sorted(diff.new_groups),
        "new_arrays": sorted(diff.new_arrays),
        "deleted_groups": sorted(diff.deleted_groups),
        "deleted_arrays": sorted(diff.deleted_arrays),
        "updated_groups": sorted(diff.updated_groups),
        "updated_arrays": sorted(diff.updated_arrays),
        "updated_chunks": {
            path: " ".join("/".join(map(str, chunk)) for chunk in sorted(map(tuple, chunks)))
            for path, chunks in diff.updated_chunks.items()
        },
        "moved_nodes": sorted(map(list, getattr(diff, "moved_nodes", []))),
    }


def expectations(repo) -> dict:
    """Return everything that a reader should find in a repository."""
    refs = {"branches": {}, "tags": {}}
    # 1.1.21 lists the names of branches as local storage encodes them
    for name in sorted(map(unquote, repo.list_branches())):
        refs["branches"][name] = repo.lookup_branch(name)
    for name in sorted(repo.list_tags()):
        refs["tags"][name] = repo.lookup_tag(name)
    histories, snapshots, diffs = {}, {}, []
    for name in refs["branches"]:
        histories[name] = history(repo, branch=name)
    for name, tip in refs["tags"].items():
        histories[f"tag {name}"] = history(repo, snapshot_id=tip)
    for entries in histories.values():
        for entry in entries:
            session = repo.readonly_session(snapshot_id=entry["id"])
            if entry["id"] not in snapshots:
                snapshots[entry["id"]] = (
                    snapshot_contents(session) if entry["parent_id"] else {}
                )
        newest = entries[0]["id"]
        for entry in entries[1:]:
            diff = repo.diff(from_snapshot_id=entry["id"], to_snapshot_id=newest)
            diffs.append({"from": entry["id"], "to": newest, "diff": plain_diff(diff)})
    return {**refs, "histories": histories, "snapshots": snapshots, "diffs": diffs}


def save_expectations(folder: Path, found: dict) -> None:
    """Write what a reader should find, beside the repository."""
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")
