"""Changes between two versions, committed once more."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import given

from icechunk import (
    ConflictDetector,
    ConflictError,
    MemoryStorage,
    RebaseFailedError,
    RefNotFoundError,
    Repository,
    RepositoryConfig,
    SessionStateError,
    SnapshotNotFoundError,
)
from icechunk.session import Session

NAMES = ("a", "b", "g", "g/c")
numbers = st.integers(0, 5)
edits = st.one_of(
    st.tuples(st.just("array"), st.sampled_from(NAMES), numbers),
    st.tuples(st.just("group"), st.sampled_from(NAMES), numbers),
    st.tuples(st.just("delete"), st.sampled_from(NAMES), numbers),
    st.tuples(st.just("attribute"), st.sampled_from(NAMES), numbers),
    st.tuples(st.just("write"), st.sampled_from(NAMES), numbers),
    st.tuples(st.just("erase"), st.sampled_from(NAMES), numbers),
    st.tuples(st.just("resize"), st.sampled_from(NAMES), numbers),
)


def edit(session: Session, what: str, path: str, number: int) -> None:
    """Do something if it can be done."""
    root = zarr.open_group(session.store, mode="a")
    node: Any = root.get(path)
    if what == "array" and node is None and not isinstance(root.get("g"), zarr.Array):
        # native chunks, or inline ones
        dtype = "i8" if path == "a" else "i2"
        root.create_array(path, shape=(6, 2), chunks=(1, 2), dtype=dtype, compressors=None)
    elif what == "group" and node is None and not isinstance(root.get("g"), zarr.Array):
        root.create_group(path)
    elif what == "delete" and node is not None:
        del root[path]
    elif what == "attribute" and node is not None:
        node.attrs["number"] = number
    elif what == "write" and isinstance(node, zarr.Array) and number < node.shape[0]:
        node[number] = number + 1
    elif what == "erase" and isinstance(node, zarr.Array) and number < node.shape[0]:
        node[number] = 0
    elif what == "resize" and isinstance(node, zarr.Array):
        node.resize((number, 2))


def contents(session: Session) -> dict[str, Any]:
    root = zarr.open_group(session.store, mode="r")
    found: dict[str, Any] = {"": dict(root.attrs)}
    for path, node in root.members(max_depth=None):
        values = node[...].tolist() if isinstance(node, zarr.Array) else None
        found[path] = (dict(node.attrs), values)
    return found


def repository(*steps: tuple[str, str, int]) -> Repository:
    repo = Repository.create(MemoryStorage(), RepositoryConfig(inline_chunk_threshold_bytes=8))
    commit(repo, "main", *steps)
    return repo


def commit(repo: Repository, branch: str, *steps: tuple[str, str, int]) -> str:
    session = repo.writable_session(branch)
    for step in steps:
        edit(session, *step)
    return session.commit("edits", allow_empty=True)


@given(st.lists(edits, max_size=12), st.lists(st.lists(edits, max_size=6), min_size=1, max_size=4))
def test_it_leads_where_the_commits_led(
    before: list[tuple[str, str, int]], after: list[list[tuple[str, str, int]]]
) -> None:
    repo = repository(("array", "a", 0), ("group", "g", 0), *before)
    base = repo.lookup_branch("main")
    repo.create_branch("work", base)
    for steps in after:
        commit(repo, "work", *steps)
    tip = repo.lookup_branch("work")
    session = repo.replay_session("main", from_snapshot_id=base, to_snapshot_id=tip)
    assert contents(session) == contents(repo.readonly_session("work"))
    session.commit("all of it", allow_empty=True)
    result = repo.readonly_session("main")
    assert contents(result) == contents(repo.readonly_session("work"))
    ids = [
        {node.path: node.id for node in version.tree.nodes()}
        for version in (result, repo.readonly_session("work"))
    ]
    assert ids[0] == ids[1]
    # nothing is stored twice, and nothing is told that did not happen
    assert not (
        again := repo.replay_session("main", from_snapshot_id=tip, to_snapshot_id=tip)
    ).has_uncommitted_changes
    assert again.branch == "main"


def test_it_is_carried_over_what_others_did() -> None:
    repo = repository(("array", "a", 0), ("write", "a", 1), ("write", "a", 2))
    base = repo.lookup_branch("main")
    repo.create_branch("work", base)
    commit(repo, "work", ("write", "a", 3), ("erase", "a", 1))
    tip = commit(repo, "work", ("array", "b", 0), ("write", "b", 0))
    commit(repo, "main", ("write", "a", 5), ("group", "g", 0))
    how = {"from_snapshot_id": base, "to_snapshot_id": tip}
    with pytest.raises(ConflictError):
        repo.replay_session("main", **how).commit("on its own")
    repo.replay_session("main", **how).commit("beside", rebase_with=ConflictDetector())
    found = contents(repo.readonly_session("main"))
    assert [row[0] for row in found["a"][1]] == [0, 0, 3, 4, 0, 6]
    assert found["b"][1][0] == [1, 1] and "g" in found
    log = repo.diff(from_snapshot_id=repo.lookup_branch("work"), to_branch="work")
    assert not log.updated_chunks
    # a second time it contradicts itself
    with pytest.raises(RebaseFailedError):
        repo.replay_session("main", **how).commit("again", rebase_with=ConflictDetector())


def test_only_what_changed_is_told() -> None:
    repo = repository(("array", "a", 0), *(("write", "a", i) for i in range(6)))
    base = repo.lookup_branch("main")
    repo.create_branch("work", base)
    tip = commit(repo, "work", ("write", "a", 0), ("erase", "a", 4))
    status = repo.replay_session("main", from_snapshot_id=base, to_snapshot_id=tip).status()
    # written anew it is another object, with the same value
    assert {k: np.sort(v, 0).tolist() for k, v in status.updated_chunks.items()} == {
        "/a": [[0, 0], [4, 0]]
    }
    assert not (status.new_arrays or status.updated_arrays or status.deleted_arrays)


def test_what_cannot_be_done() -> None:
    repo = repository(("array", "a", 0))
    base = repo.lookup_branch("main")
    session = repo.rearrange_session("main")
    session.move("/a", "/z")
    moved = session.commit("moved")
    with pytest.raises(SessionStateError, match="'/a' was moved to '/z'"):
        repo.replay_session("main", from_snapshot_id=base, to_snapshot_id=moved)
    with pytest.raises(RefNotFoundError, match="nowhere"):
        repo.replay_session("nowhere", from_snapshot_id=base, to_snapshot_id=base)
    with pytest.raises(SnapshotNotFoundError):
        repo.replay_session("main", from_snapshot_id=base, to_snapshot_id="0" * 20)
