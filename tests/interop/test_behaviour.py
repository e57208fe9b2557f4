"""The same script, run by both sides, returns the same and leaves the same behind.

The scripts are in `tests.interop.behaviours`, a module for each subject:

=============  ===================================================================
``conflicts``  every kind of conflict, rebases, amending after them
``expiry``     expiration and garbage collection, between all else
``moves``      nodes that take each other's place
``paths``      unusual names, keys and prefixes
``scalars``    arrays without dimensions or elements
``sessions``   states, transactions, forks, values and settings
``splitting``  every condition by which manifests are split or fetched ahead
``versions``   branches, tags, histories, metadata, diffs
=============  ===================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.interop.behaviours.run import names
from tests.interop.sides import Bases
from tests.interop.summary import Summary

NO_KEY = {"error": "InvalidInputError", "kind": "invalid-key"}
NO_ARRAY = {"error": "InvalidInputError", "kind": "not-an-array"}
BAD_PREFIX = {"error": "InvalidInputError", "kind": "bad-key-prefix"}
BAD_RANGE = {"error": "InvalidInputError", "kind": "invalid-byte-range"}
BAD_METADATA = {"error": "InvalidInputError", "kind": "bad-metadata"}

GONE = {"error": "StorageError", "kind": "object-not-found"}
#: Of the class that says more.
GONE_HERE = {"error": "ObjectNotFoundError", "kind": "object-not-found"}

#: What is different on purpose, for the reasons in COMPATIBILITY.md: by script and part of
#: its result what is returned here, and by the official client.
DIFFERENT: dict[str, dict[str, tuple[Any, Any]]] = {
    "a_move_is_rebased": {
        "parent of the target deleted, /g/h": ([["NewNodeInInvalidGroup", "/g", []]], "done"),
        "source deleted, /g/h": ([["ZarrMetadataUpdateOfDeletedArray", "/a", []]], "done"),
        "source deleted, /h": ([["ZarrMetadataUpdateOfDeletedArray", "/a", []]], "done"),
        "target taken, /h": ([["NewNodeConflictsWithExistingNode", "/h", []]], "done"),
    },
    "rebase_after_the_branch_was_reset": {
        "rebase": ([["ChunksUpdatedInDeletedArray", "/a", []]], "done"),
    },
    "rebase_after_the_branch_was_deleted": {
        "rebase": ({"error": "RefNotFoundError", "kind": "ref-not-found"}, "done"),
    },
    "rebase_over_an_amended_commit": {
        "rebase": ("done", {"error": "InternalError", "kind": "conflicting-path-not-found"}),
    },
    "where_a_move_is_in_the_way": {"path": (["/a"], [""])},
    "moves_back_and_forth_over_commits": {"first": (["/g", "/h"], ["/a", "/g"])},
    "what_is_no_key_is_asked_for": {
        "get a": (None, NO_KEY),
        "exists a": (False, NO_KEY),
        "get g/c/0": (None, NO_ARRAY),
        "exists g/c/0": (False, NO_ARRAY),
        "exists .zgroup": (False, {"error": "NodeNotFoundError", "kind": "key-not-found"}),
        "list_prefix m/c/1": ([f"m/c/1/{i}" for i in range(4)], BAD_PREFIX),
        "list_prefix nothing": ([], BAD_PREFIX),
        "list_prefix /scalar": (["scalar/c", "scalar/zarr.json"], []),
        "chunk_type a": (
            "ChunkType.inline",
            {"error": "InvalidInputError", "kind": "invalid-path"},
        ),
    },
    "byte_ranges_beyond_a_chunk": {
        "end": ("0002000000", BAD_RANGE),
        "start": ("", BAD_RANGE),
        "suffix": ("0100000002000000", BAD_RANGE),
    },
    "forks_that_wrote_the_same_chunk": {
        "merge": ({"error": "ConflictError", "kind": "merge-failed"}, "done"),
        "mode": ("SessionMode.writable", "SessionMode.readonly"),
    },
    "what_stores_can_do": {
        "of a reader": ([False, False], [True, True]),
    },
    "a_store_that_was_made_read_only": {
        "set": ({"error": "ReadOnlyError", "kind": "read-only-store"}, "done"),
    },
    "expired_snapshots_are_asked_for": {
        "inspect, after": (GONE_HERE, GONE),
        "manifests, after": (
            {"error": "SnapshotNotFoundError", "kind": "snapshot-not-found"},
            GONE,
        ),
    },
    "a_session_goes_on_after_its_chunks_were_collected": {"read": (GONE_HERE, GONE)},
    "metadata_that_is_no_json": {
        "inf": (BAD_METADATA, "done"),
        "18446744073709551616": (BAD_METADATA, "done"),
        "b'bytes'": (BAD_METADATA, "done"),
        "{1: 2}": (BAD_METADATA, {"error": "TypeError"}),
    },
}


@pytest.mark.parametrize("name", names())
def test_both_behave_alike(name: str, bases: Bases, tmp_path: Path) -> None:
    found = []
    for side, base in bases:
        folder = tmp_path / side.name
        returned = side.run("behaviours.run.run", base, str(folder), name)
        found.append((returned, Summary(folder).everything()))
    (my_result, mine), (their_result, theirs) = found
    for part, (here, there) in DIFFERENT.get(name, {}).items():
        assert (my_result.pop(part), their_result.pop(part)) == (here, there), part
    assert my_result == their_result
    assert mine == theirs


def test_there_are_scripts_of_all_subjects() -> None:
    assert len(names()) >= 130


CHUNK = ["write", "a", 0, [50]]
ATTRIBUTE = ["attribute", "g", 1]
ELSEWHERE = ["write", "m", 0, [[9] * 8]]
#: What the official client looks up in the snapshot that is gone.
FAILS = {"error": "InternalError", "kind": "conflicting-path-not-found"}


CHUNK_CONFLICT = [["ChunkDoubleUpdate", "/a", [[0]]]]
ATTRIBUTE_CONFLICT = [["ZarrMetadataDoubleUpdate", "/g", []]]


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize(
    ("edit", "others", "solver", "here", "there"),
    [
        (CHUNK, None, "detector", None, None),
        (ATTRIBUTE, None, "detector", None, None),
        (CHUNK, ELSEWHERE, "detector", "done", FAILS),
        (ATTRIBUTE, ELSEWHERE, "detector", "done", "done"),
        (CHUNK, CHUNK, "detector", CHUNK_CONFLICT, FAILS),
        (CHUNK, CHUNK, "fail", CHUNK_CONFLICT, FAILS),
        (CHUNK, CHUNK, "ours", "done", FAILS),
        (CHUNK, CHUNK, "theirs", "done", FAILS),
        (ATTRIBUTE, ATTRIBUTE, "detector", ATTRIBUTE_CONFLICT, FAILS),
        (ATTRIBUTE, ATTRIBUTE, "ours", ATTRIBUTE_CONFLICT, FAILS),
    ],
)
def test_a_base_expires_under_a_session(
    edit: Any,
    others: Any,
    solver: str,
    here: Any,
    there: Any,
    tagged: bool,
    bases: Bases,
    tmp_path: Path,
) -> None:
    """The snapshot that a session began at is gone, or its parents are, when it commits.

    With a tag it stays, but the history of the branch does not lead to it any more.
    """
    found = []
    for side, base in bases:
        folder = str(tmp_path / side.name)
        side.run("behaviours.expiry.prepare", base, folder)
        if tagged:
            side.run("turns.create_tag", folder, "main", "base")
        side.run("turns.begin", folder, "main", [edit])
        for number in range(2 if others else 0):
            side.run("turns.commit", folder, "main", [others], f"theirs {number}", "commit")
        side.run("turns.expire", folder)
        side.run("turns.collect", folder)
        found.append(side.run("behaviours.expiry.outcome", folder, solver))
    mine, theirs = found
    if others:
        assert (mine["rebase"], theirs["rebase"]) == (here, there)
    if here == there:
        assert mine == theirs
    else:
        assert mine["before"] == theirs["before"]
