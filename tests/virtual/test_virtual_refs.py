"""Virtual chunks, as users of a store set and read them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings, strategies as st
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

from icechunk import (
    ChunkType,
    ErrorKind,
    IcechunkStore,
    InvalidInputError,
    MemoryStorage,
    NodeNotFoundError,
    ReadOnlyError,
    Repository,
    RepositoryConfig,
    Session,
    StorageError,
    VirtualChunkContainer,
    VirtualChunkSpec,
    local_filesystem_store,
)
from icechunk.credentials import LocalFileSystemAccess

PROTOTYPE = default_buffer_prototype()
# two days ago, in whole seconds
MODIFIED = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the values 0 to 99, as int32, in a file."""
    folder = tmp_path / "files"
    folder.mkdir()
    write_file(folder / "values.bin", range(100))
    return folder


def write_file(path: Path, numbers: Any) -> None:
    path.write_bytes(np.asarray(list(numbers), "<i4").tobytes())
    os.utime(path, (MODIFIED.timestamp(), MODIFIED.timestamp()))


def url(path: Path) -> str:
    return path.as_uri()


def container(folder: Path, name: str | None = None) -> VirtualChunkContainer:
    return VirtualChunkContainer(url(folder) + "/", local_filesystem_store(str(folder)), name)


def create(*containers: VirtualChunkContainer, allow: bool = True) -> Repository:
    config = RepositoryConfig()
    for one in containers:
        config.set_virtual_chunk_container(one)
    access = {one.url_prefix: LocalFileSystemAccess for one in containers} if allow else None
    repository = Repository.create(MemoryStorage(), config, access)
    with repository.transaction("main", message="array") as store:
        group = zarr.create_group(store)
        group.create_array(
            "a", shape=(4, 10), chunks=(1, 10), dtype="<i4", compressors=None, fill_value=-1
        )
    return repository


@pytest.fixture
def repository(files: Path) -> Repository:
    return create(container(files, "files"))


@pytest.fixture
def session(repository: Repository) -> Session:
    return repository.writable_session("main")


@pytest.fixture
def store(session: Session) -> IcechunkStore:
    return session.store


@pytest.fixture
def source(files: Path) -> str:
    return url(files / "values.bin")


def rows(store: IcechunkStore) -> list[int]:
    """The first value of each row."""
    found: list[int] = zarr.open_array(store, path="a", mode="r")[:, 0].tolist()
    return found


# -- setting and reading ---------------------------------------------------------------
def test_one(repository: Repository, session: Session, source: str) -> None:
    store = session.store
    store.set_virtual_ref("a/c/1/0", source, offset=40, length=40)
    assert rows(store) == [-1, 10, -1, -1]
    assert zarr.open_array(store, path="a", mode="r")[1].tolist() == list(range(10, 20))
    assert session.chunk_type("a", [1, 0]) is ChunkType.virtual
    session.commit("one")
    reader = repository.readonly_session("main")
    assert reader.chunk_type("a", [1, 0]) is ChunkType.virtual
    assert rows(reader.store) == [-1, 10, -1, -1]
    assert rows(pickle.loads(pickle.dumps(reader)).store) == [-1, 10, -1, -1]
    assert reader.all_virtual_chunk_locations() == [source]
    # and again from the storage
    prefixes = repository.authorized_virtual_container_prefixes
    again = Repository.open(
        repository.storage, None, dict.fromkeys(prefixes, LocalFileSystemAccess)
    )
    assert rows(again.readonly_session("main").store) == [-1, 10, -1, -1]


async def test_one_asynchronously(store: IcechunkStore, source: str) -> None:
    await store.set_virtual_ref_async("a/c/0/0", source, offset=0, length=40)
    await store.async_set_virtual_ref("a/c/2/0", source, offset=80, length=40)
    for key, first in (("a/c/0/0", 0), ("a/c/2/0", 20)):
        for found in (await store.get(key, PROTOTYPE), store.get_sync(key)):
            assert found is not None
            assert np.frombuffer(found.to_bytes(), "<i4")[0] == first


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (RangeByteRequest(4, 12), slice(4, 12)),
        (RangeByteRequest(36, 400), slice(36, 40)),
        (OffsetByteRequest(36), slice(36, 40)),
        (SuffixByteRequest(8), slice(32, 40)),
        (SuffixByteRequest(400), slice(0, 40)),
        (RangeByteRequest(7, 7), slice(7, 7)),
    ],
)
async def test_ranges_stay_within_the_chunk(
    store: IcechunkStore, source: str, request_: Any, part: slice
) -> None:
    store.set_virtual_ref("a/c/1/0", source, offset=40, length=40)
    whole = np.arange(10, 20, dtype="<i4").tobytes()
    one = await store.get("a/c/1/0", PROTOTYPE, byte_range=request_)
    other = store.get_sync("a/c/1/0", byte_range=request_)
    assert one is not None
    assert other is not None
    assert one.to_bytes() == other.to_bytes() == whole[part]
    assert await store.getsize("a/c/1/0") == 40


def test_many(store: IcechunkStore, session: Session, source: str) -> None:
    refused = store.set_virtual_refs(
        "/a",
        [
            VirtualChunkSpec([0, 0], source, 0, 40),
            VirtualChunkSpec([3, 0], source, 40, 40),
            # for one chunk the last counts
            VirtualChunkSpec([3, 0], source, 120, 40),
        ],
    )
    assert refused is None
    assert rows(store) == [0, -1, -1, 30]
    assert store.set_virtual_refs("a", []) is None
    assert session.status().updated_chunks == {"/a": [[0, 0], [3, 0]]}


@pytest.mark.parametrize("index", [(), (0,), (0, 0)])
def test_the_chunk_of_a_scalar(store: IcechunkStore, source: str, index: tuple[int, ...]) -> None:
    """Clients that know of no scalars give its chunk a place in a grid."""
    array = zarr.create_array(store, name="scalar", shape=(), dtype="<i4", compressors=None)
    store.set_virtual_refs("scalar", [VirtualChunkSpec(list(index), source, 4, 4)])
    assert array[()] == 1
    offsets, lengths = np.array([8], np.uint64), np.array([4], np.uint64)
    grid = tuple(1 for _ in index)
    store.set_virtual_refs_arr("scalar", grid, [source], offsets, lengths, arr_offset=index)
    assert array[()] == 2
    for wrong in [(1,), (0, 1)]:
        with pytest.raises(InvalidInputError, match="the array 0"):
            store.set_virtual_refs("scalar", [VirtualChunkSpec(list(wrong), source, 0, 4)])
        with pytest.raises(InvalidInputError, match="differ in rank"):
            store.set_virtual_refs_arr("scalar", (1,), [source], offsets, lengths, arr_offset=wrong)


async def test_many_asynchronously(store: IcechunkStore, source: str) -> None:
    specs = [VirtualChunkSpec([0, 0], source, 0, 40)]
    assert await store.set_virtual_refs_async("a", specs) is None
    offsets, lengths = np.array([40], np.uint64), np.array([40], np.uint64)
    assert (
        await store.set_virtual_refs_arr_async(
            "a", (1, 1), [source], offsets, lengths, arr_offset=(2, 0)
        )
        is None
    )
    assert await store.exists("a/c/0/0")
    assert await store.exists("a/c/2/0")
    assert not await store.exists("a/c/1/0")


def test_arrays(store: IcechunkStore, session: Session, source: str) -> None:
    """The grid in C order; where a location is empty there is no chunk."""
    refused = store.set_virtual_refs_arr(
        "a",
        (4, 1),
        [source, "", source, source],
        np.array([0, 0, 80, 120], np.uint64),
        np.array([40, 0, 40, 40], np.uint64),
    )
    assert refused is None
    assert rows(store) == [0, -1, 20, 30]
    assert session.status().updated_chunks == {"/a": [[0, 0], [2, 0], [3, 0]]}
    # lists and other integers will do
    store.set_virtual_refs_arr("a", [1, 1], np.array([source]), [4], [40], arr_offset=[1, 0])
    assert rows(store) == [0, 1, 20, 30]


def test_arrays_with_an_offset(store: IcechunkStore, source: str) -> None:
    offsets = np.array([40, 80], np.uint64)
    lengths = np.full(2, 40, np.uint64)
    store.set_virtual_refs_arr("a", (2, 1), [source] * 2, offsets, lengths, arr_offset=(2, 0))
    assert rows(store) == [-1, -1, 10, 20]


@settings(max_examples=30)
@given(st.data())
def test_arrays_are_as_good_as_specs(data: st.DataObject) -> None:
    """Any block of any grid: the same references, however they are given."""
    grid = data.draw(st.lists(st.integers(1, 3), max_size=3))
    start = [data.draw(st.integers(0, n - 1)) for n in grid]
    block = [data.draw(st.integers(0, n - s)) for n, s in zip(grid, start, strict=True)]
    count = int(np.prod(block, dtype=int))
    locations = data.draw(
        st.lists(st.sampled_from(["", "s3://b/1", "S3://b/2"]), min_size=count, max_size=count)
    )
    lengths = data.draw(st.lists(st.integers(1, 2**64 - 1), min_size=count, max_size=count))
    offsets = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=count, max_size=count))
    etag = data.draw(st.sampled_from([None, "etag"]))
    sessions = []
    for _ in range(2):
        session = Repository.create(MemoryStorage()).writable_session("main")
        zarr.create_array(session.store, name="a", shape=grid, chunks=(1,) * len(grid), dtype="u1")
        sessions.append(session)
    one, other = sessions
    one.store.set_virtual_refs_arr(
        "a",
        tuple(block),
        locations,
        np.array(offsets, np.uint64),
        np.array(lengths, np.uint64),
        arr_offset=tuple(start),
        checksum=etag,
        validate_containers=False,
    )
    other.store.set_virtual_refs(
        "a",
        [
            VirtualChunkSpec([s + i for s, i in zip(start, index, strict=True)], *rest, etag)
            for index, *rest in zip(np.ndindex(*block), locations, offsets, lengths, strict=True)
            if rest[0]
        ],
        validate_containers=False,
    )
    assert one.chunk_refs("/a") == other.chunk_refs("/a")
    assert set(one.all_virtual_chunk_locations()) <= {"s3://b/1", "s3://b/2"}


def test_names_of_containers(store: IcechunkStore, session: Session, source: str) -> None:
    """`vcc://name/key` is expanded when it is read, and stored as it is."""
    store.set_virtual_ref("a/c/0/0", "vcc://files/values.bin", offset=0, length=40)
    assert rows(store)[0] == 0
    assert session.all_virtual_chunk_locations() == [source]
    ref = session.chunks.find(session.tree.require("/a"), (0, 0))
    assert ref is not None
    assert ref.location == "vcc://files/values.bin"


@pytest.mark.parametrize(
    ("given_", "stored"),
    [
        ("S3://Bucket/A//b/../c?x#y", "s3://Bucket/A//b/../c?x#y"),
        ("FILE:///tmp/a/../b c", "file:///tmp/b%20c"),
    ],
)
def test_locations_are_stored_in_normal_form(session: Session, given_: str, stored: str) -> None:
    """As official clients store them: the scheme, and all of a file's path."""
    store = session.store
    arrays = ([given_], np.zeros(1, np.uint64), np.ones(1, np.uint64))
    for set_one in (
        lambda: store.set_virtual_ref(
            "a/c/0/0", given_, offset=0, length=1, validate_container=False
        ),
        lambda: store.set_virtual_refs(
            "a", [VirtualChunkSpec([0, 0], given_, 0, 1)], validate_containers=False
        ),
        lambda: store.set_virtual_refs_arr("a", (1, 1), *arrays, validate_containers=False),
    ):
        set_one()
        assert session.all_virtual_chunk_locations() == [stored]
        session.discard_changes()


def test_a_write_replaces_a_virtual_chunk(session: Session, source: str) -> None:
    store = session.store
    store.set_virtual_ref("a/c/0/0", source, offset=0, length=40)
    array = zarr.open_array(store, path="a", mode="r+")
    array[0, 0] = 77
    assert array[0].tolist() == [77, *range(1, 10)]
    assert session.chunk_type("a", [0, 0]) is ChunkType.inline
    store.set_virtual_ref("a/c/0/0", source, offset=40, length=40)
    assert array[0, 0] == 10
    store.delete_sync("a/c/0/0")
    assert array[0, 0] == -1
    assert session.all_virtual_chunk_locations() == []


def test_locations_of_all_arrays(session: Session, files: Path) -> None:
    """Each once, and only those that a chunk still refers to."""
    store = session.store
    zarr.create_array(store, name="b", shape=(2,), chunks=(1,), dtype="u1")
    folder = url(files)
    for key, name in (("a/c/0/0", "1"), ("a/c/1/0", "2"), ("b/c/0", "2"), ("b/c/1", "3")):
        store.set_virtual_ref(key, f"{folder}/{name}", offset=0, length=1)
    session.store.delete_sync("a/c/0/0")
    found = [f"{folder}/2", f"{folder}/2", f"{folder}/3"]
    assert sorted(session.all_virtual_chunk_locations()) == found
    session.commit("three")
    assert sorted(session.all_virtual_chunk_locations()) == found


def test_in_change_sets_and_forks(repository: Repository, source: str) -> None:
    session = repository.writable_session("main")
    fork = pickle.loads(pickle.dumps(session.fork()))
    fork.store.set_virtual_ref("a/c/0/0", source, offset=40, length=40)
    assert rows(fork.store)[0] == 10
    session.merge(fork)
    session.commit("merged")
    assert rows(repository.readonly_session("main").store)[0] == 10


# -- containers -----------------------------------------------------------------------
def test_locations_in_no_container(session: Session, source: str) -> None:
    """One is an error; of many, those are left out and named."""
    store = session.store
    with pytest.raises(InvalidInputError, match="s3://elsewhere/f") as error:
        store.set_virtual_ref("a/c/0/0", "s3://elsewhere/f", offset=0, length=40)
    assert error.value.kind == ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK
    assert not session.has_uncommitted_changes
    refused = store.set_virtual_refs(
        "a",
        [
            VirtualChunkSpec([0, 0], "s3://elsewhere/f", 0, 40),
            VirtualChunkSpec([1, 0], source, 40, 40),
            VirtualChunkSpec([2, 0], "vcc://elsewhere/f", 0, 40),
        ],
    )
    assert refused == [(0, 0), (2, 0)]
    assert rows(store) == [-1, 10, -1, -1]
    refused = store.set_virtual_refs_arr(
        "a",
        (2, 1),
        ["s3://elsewhere/f", source],
        np.array([0, 80], np.uint64),
        np.full(2, 40, np.uint64),
        arr_offset=(2, 0),
    )
    assert refused == [(2, 0)]
    assert rows(store) == [-1, 10, -1, 20]


async def test_locations_that_nobody_checked(store: IcechunkStore) -> None:
    """They are stored on request, and then cannot be read."""
    store.set_virtual_ref(
        "a/c/0/0", "s3://elsewhere/f", offset=0, length=40, validate_container=False
    )
    assert await store.exists("a/c/0/0")
    for read in (lambda: rows(store), lambda: store.get_sync("a/c/0/0")):
        with pytest.raises(InvalidInputError, match="no virtual chunk container") as error:
            read()
        assert error.value.kind == ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK


def test_containers_that_were_not_authorised(files: Path, source: str) -> None:
    """The error names the container, and the argument that allows it."""
    repository = create(container(files), allow=False)
    store = repository.writable_session("main").store
    store.set_virtual_ref("a/c/0/0", source, offset=0, length=40)
    with pytest.raises(InvalidInputError, match="authorize_virtual_chunk_access") as error:
        rows(store)
    assert error.value.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
    assert url(files) in str(error.value)


def test_nothing_outside_of_the_folder_is_read(tmp_path: Path, files: Path) -> None:
    write_file(tmp_path / "secret.bin", range(10))
    (files / "link.bin").symlink_to(tmp_path / "secret.bin")
    store = create(container(files)).writable_session("main").store
    inside, secret = url(files), url(tmp_path / "secret.bin")
    for location in (
        secret,
        f"{inside}/../secret.bin",
        f"{inside}/%2e%2e/secret.bin",
        f"{inside}/..%2fsecret.bin",
        f"{inside}/link.bin",
    ):
        store.set_virtual_ref("a/c/0/0", location, offset=0, length=40, validate_container=False)
        with pytest.raises((InvalidInputError, StorageError)):
            rows(store)


# -- checksums --------------------------------------------------------------------------
def set_by_ref(store: IcechunkStore, location: str, checksum: Any) -> None:
    store.set_virtual_ref("a/c/0/0", location, offset=0, length=40, checksum=checksum)


def set_by_spec(store: IcechunkStore, location: str, checksum: Any) -> None:
    parts = (checksum, None) if isinstance(checksum, str) else (None, checksum)
    store.set_virtual_refs("a", [VirtualChunkSpec([0, 0], location, 0, 40, *parts)])


def set_by_arrays(store: IcechunkStore, location: str, checksum: Any) -> None:
    offsets, lengths = np.zeros(1, np.uint64), np.full(1, 40, np.uint64)
    store.set_virtual_refs_arr("a", (1, 1), [location], offsets, lengths, checksum=checksum)


SETTERS = [set_by_ref, set_by_spec, set_by_arrays]


@pytest.mark.parametrize("set_one", SETTERS)
def test_a_fraction_of_a_second_is_cut_off(
    store: IcechunkStore,
    files: Path,
    source: str,
    set_one: Callable[[IcechunkStore, str, Any], None],
) -> None:
    """A file that is replaced within the second is told, as by the official client."""

    def modify(seconds: float) -> None:
        time = (MODIFIED + timedelta(seconds=seconds)).timestamp()
        os.utime(files / "values.bin", (time, time))

    # what programs pass that want no refusal: a second more than the time of the file
    set_one(store, source, MODIFIED + timedelta(seconds=1.25))
    for seconds in (-1, 0, 0.25, 1):
        modify(seconds)
        assert rows(store)[0] == 0
    for seconds in (1.125, 1.5, 2):
        modify(seconds)
        with pytest.raises(StorageError, match=r"changed since .* not modified after"):
            rows(store)


@pytest.mark.parametrize("set_one", SETTERS)
def test_a_file_that_was_modified(
    repository: Repository,
    files: Path,
    source: str,
    set_one: Callable[[IcechunkStore, str, Any], None],
) -> None:
    session = repository.writable_session("main")
    set_one(session.store, source, MODIFIED)
    assert rows(session.store)[0] == 0
    session.commit("checked")
    later = (MODIFIED + timedelta(seconds=1)).timestamp()
    os.utime(files / "values.bin", (later, later))
    store = repository.readonly_session("main").store
    for read in (lambda: rows(store), lambda: store.get_sync("a/c/0/0")):
        with pytest.raises(StorageError, match="changed since") as error:
            read()
        assert error.value.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED
        assert source in str(error.value)


@pytest.mark.parametrize("set_one", SETTERS)
def test_a_file_with_another_etag(
    store: IcechunkStore, source: str, set_one: Callable[[IcechunkStore, str, Any], None]
) -> None:
    set_one(store, source, "never the etag of this file")
    with pytest.raises(StorageError, match="changed since") as error:
        rows(store)
    assert error.value.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED
    assert source in str(error.value)


def test_without_a_checksum_changes_show(store: IcechunkStore, files: Path, source: str) -> None:
    store.set_virtual_ref("a/c/0/0", source, offset=0, length=40)
    write_file(files / "values.bin", range(500, 600))
    assert rows(store)[0] == 500


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_file_that_is_gone_or_too_short(
    store: IcechunkStore, files: Path, source: str, damage: str
) -> None:
    """An error that names the file, never fill values."""
    store.set_virtual_ref("a/c/3/0", source, offset=120, length=40)
    if damage == "missing":
        (files / "values.bin").unlink()
    else:
        write_file(files / "values.bin", range(35))
    for read in (lambda: rows(store), lambda: store.get_sync("a/c/3/0")):
        with pytest.raises(StorageError) as error:
            read()
        assert error.value.kind == ErrorKind.VIRTUAL_CHUNK_FETCH
        assert source in str(error.value)


# -- what cannot be right ------------------------------------------------------------------
BUCKET = "s3://b/f"


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda s: s.set_virtual_ref("a/c/0/0", BUCKET, offset=0, length=0), 0, "length 0"),
        (
            lambda s: s.set_virtual_ref(
                "a/c/9/0", BUCKET, offset=0, length=1, validate_container=False
            ),
            0,
            "outside",
        ),
        (lambda s: s.set_virtual_ref("a/c/0", BUCKET, offset=0, length=1), 0, "1 dimension"),
        (lambda s: s.set_virtual_ref("a/zarr.json", BUCKET, offset=0, length=1), 0, "not the key"),
        (
            lambda s: s.set_virtual_ref("nonsense", BUCKET, offset=0, length=1),
            0,
            "invalid zarr key format",
        ),
        (lambda s: s.set_virtual_ref("c/0", BUCKET, offset=0, length=1), 0, "is a group"),
        (lambda s: s.set_virtual_ref("b/c/0", BUCKET, offset=0, length=1), 1, "'/b'"),
        (lambda s: s.set_virtual_ref("a/c/0/0", BUCKET, offset=-1, length=1), 0, "offset"),
        (lambda s: s.set_virtual_ref("a/c/0/0", BUCKET, offset=0, length=-1), 0, "length"),
        (lambda s: s.set_virtual_ref("a/c/0/0", BUCKET, offset=0, length=2**64), 0, "length"),
        (lambda s: s.set_virtual_ref("a/c/0/0", "no URL", offset=0, length=1), 0, "an absolute"),
        (lambda s: s.set_virtual_ref("a/c/0/0", "", offset=0, length=1), 0, "not an absolute"),
        (
            lambda s: s.set_virtual_ref("a/c/0/0", BUCKET, offset=0, length=1, checksum=5),
            0,
            "checksum",
        ),
        (
            lambda s: s.set_virtual_ref(
                "a/c/0/0", BUCKET, offset=0, length=1, checksum=datetime(2020, 1, 1)
            ),
            0,
            "time zone",
        ),
        (
            lambda s: s.set_virtual_ref(
                "a/c/0/0",
                BUCKET,
                offset=0,
                length=1,
                checksum=datetime(1960, 1, 1, tzinfo=UTC),
                validate_container=False,
            ),
            0,
            "after 1970",
        ),
        (
            lambda s: arrays(s, (1, 1), [BUCKET], [0], [1], None, datetime(2020, 1, 1)),
            0,
            "time zone",
        ),
        (lambda s: arrays(s, (1, 1), [BUCKET], [0], [0]), 0, "length 0"),
        (lambda s: arrays(s, (2, 1), [BUCKET], [0], [1]), 0, "2 chunks; got 1 location,"),
        (lambda s: arrays(s, (1, 1), [BUCKET], [0, 0], [1]), 0, "2 offsets"),
        (lambda s: arrays(s, (1,), [BUCKET], [0], [1]), 0, "1 dimension"),
        (lambda s: arrays(s, (1, 1), [BUCKET], [-1], [1]), 0, "offsets: -1 is negative"),
        (lambda s: arrays(s, (1, 1), [BUCKET], [0.5], [1]), 0, "offsets: expected"),
        (lambda s: arrays(s, (1, 1), [BUCKET], [0], [[1]]), 0, "lengths: expected"),
        (lambda s: arrays(s, (1, 1), ["no URL"], [0], [1]), 0, "not an absolute"),
        (lambda s: arrays(s, (1, 1), [BUCKET], [0], [1], arr_offset=(1,)), 0, "rank"),
        (lambda s: arrays(s, (1, 1), [BUCKET], [0], [1], arr_offset=(4, 0)), 0, "outside"),
        (lambda s: arrays(s, (1, 1), [BUCKET], [0], [1], arr_offset=(-1, 0)), 0, "grid"),
        (
            lambda s: arrays(s, (2, 1), [BUCKET] * 2, [0] * 2, [1] * 2, (2**32 - 1, 0)),
            0,
            "grid",
        ),
        (lambda s: arrays(s, (-1, -1), [BUCKET], [0], [1]), 0, "0 chunks"),
        (lambda s: s.set_virtual_refs("", [VirtualChunkSpec([0], BUCKET, 0, 1)]), 0, "is a group"),
        (lambda s: s.set_virtual_refs("b", [VirtualChunkSpec([0], BUCKET, 0, 1)]), 1, "'/b'"),
        (
            lambda s: s.set_virtual_refs("a", [VirtualChunkSpec([0], BUCKET, 0, 1)]),
            0,
            "1 dimension, the array 2",
        ),
    ],
)
def test_bad_input(
    session: Session, call: Callable[[IcechunkStore], None], error: int, said: str
) -> None:
    """Each is refused, says what is wrong, and leaves the session as it was."""
    kind: type[Exception] = NodeNotFoundError if error else InvalidInputError
    with pytest.raises(kind, match=said):
        call(session.store)
    assert not session.has_uncommitted_changes


def arrays(
    store: IcechunkStore,
    grid: Any,
    locations: Any,
    offsets: Any,
    lengths: Any,
    arr_offset: Any = None,
    checksum: Any = None,
) -> None:
    store.set_virtual_refs_arr(
        "a",
        grid,
        locations,
        np.array(offsets),
        np.array(lengths),
        arr_offset=arr_offset,
        checksum=checksum,
        validate_containers=False,
    )


def test_stores_that_do_not_write(repository: Repository, session: Session) -> None:
    for store in (repository.readonly_session("main").store, session.store.with_read_only(True)):
        for call in (
            lambda s=store: s.set_virtual_ref("a/c/0/0", BUCKET, offset=0, length=1),
            lambda s=store: s.set_virtual_refs("a", []),
            lambda s=store: arrays(s, (1, 1), [BUCKET], [0], [1]),
        ):
            with pytest.raises(ReadOnlyError):
                call()
