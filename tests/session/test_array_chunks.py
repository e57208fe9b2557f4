"""The chunks of an array as a whole; tests/interop compares with the official client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, strategies as st

from icechunk import (
    ChunkType,
    CountingStorage,
    ErrorKind,
    InvalidInputError,
    MemoryStorage,
    NodeNotFoundError,
    Repository,
    RepositoryConfig,
    Session,
)
from icechunk.format.ids import encode_id, encode_ids

# every chunk an object of its own
NATIVE = RepositoryConfig(inline_chunk_threshold_bytes=0)


@pytest.fixture
def storage() -> CountingStorage:
    return CountingStorage(MemoryStorage())


@pytest.fixture
def repository(storage: CountingStorage) -> Repository:
    repository = Repository.create(storage, NATIVE)
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", data=np.arange(1, 13), chunks=(2,))
    zarr.create_array(session.store, name="m", data=np.ones((4, 4)), chunks=(2, 2))
    session.commit("arrays")
    return repository


@pytest.fixture
def session(repository: Repository) -> Session:
    return repository.writable_session("main")


def values(session: Session) -> list[int]:
    found: Any = zarr.open_array(session.store, path="a", mode="r")[:]
    return list(found.tolist())


@given(st.integers(1, 20).flatmap(lambda n: st.lists(st.binary(min_size=n, max_size=n))))
def test_many_ids_at_once(ids: list[bytes]) -> None:
    size = len(ids[0]) if ids else 12
    rows = np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), size)
    assert encode_ids(rows) == [encode_id(id) for id in ids]


def test_no_data_is_read_or_written(session: Session, storage: CountingStorage) -> None:
    chunks = {found.key for found in storage.list("chunks/")}
    storage.reset()
    session.shift_array("a", [1])
    session.reindex_array("/m", lambda at: at[::-1])
    assert storage.requests <= 2  # the manifests
    session.commit("moved")
    assert {found.key for found in storage.list("chunks/")} == chunks


def test_what_is_wrong_changes_nothing(session: Session) -> None:
    before = values(session)
    for forward in (
        lambda at: [at[0] + 1],
        lambda at: [at[0] - 1],
        lambda at: [0, 0],
        lambda at: [],
        lambda at: at[0],
        lambda at: ["x"],
        lambda at: 1 / 0,
    ):
        function: Any = forward
        with pytest.raises((InvalidInputError, TypeError, ZeroDivisionError)):
            session.reindex_array("/a", function)
    for offset in ([], [1, 1]):
        with pytest.raises(InvalidInputError, match="chunk_offset") as error:
            session.shift_array("/a", offset)
        assert error.value.kind == ErrorKind.INVALID_CHUNK_INDEX
    assert values(session) == before
    assert not session.has_uncommitted_changes


def test_chunks_that_were_erased_are_not_visited(session: Session) -> None:
    zarr.open_array(session.store, path="a", mode="r+")[:4] = 0
    visited: list[list[int]] = []
    session.reindex_array("/a", visited.append)  # returns None
    assert visited == [[2], [3], [4], [5]]
    session.shift_array("/a", [-2])
    assert values(session) == [5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0]


def test_grids_that_are_not_regular(session: Session) -> None:
    document = (
        b'{"zarr_format":3,"node_type":"array","shape":[6],"chunk_grid":{"name":"rectilinear",'
        b'"configuration":{"kind":"inline","chunk_shapes":[[2,3,1]]}}}'
    )
    session.set_metadata_document("/r", document)
    for move in (
        lambda: session.shift_array("/r", [1]),
        lambda: session.reindex_array("/r", lambda at: at),
    ):
        with pytest.raises(InvalidInputError, match="'/r' cannot move") as error:
            move()
        assert error.value.kind == ErrorKind.INVALID_ARRAY_METADATA


async def test_batches(session: Session) -> None:
    zarr.open_array(session.store, path="a", mode="r+")[2:4] = 0
    wanted = [(0,), (2,), (3,), (4,), (5,)]
    for size in (1, 2, 5, 100):
        assert [at async for at in session.chunk_coordinates("a", size)] == wanted
        batches = [batch async for batch in session.store.array_chunk_iterator("a", size)]
        assert [len(batch[1]) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        coords = np.concatenate([batch[0] for batch in batches])
        assert [tuple(at) for at in coords.tolist()] == wanted
        kinds = np.concatenate([batch[1] for batch in batches])
        assert set(kinds.tolist()) == {ChunkType.native.value}
    for size in (0, -1):
        with pytest.raises(InvalidInputError, match="batch_size"):
            async for _ in session.chunk_coordinates("a", size):
                pass
    with pytest.raises(NodeNotFoundError):
        async for _ in session.store.array_chunk_iterator("none"):
            pass
