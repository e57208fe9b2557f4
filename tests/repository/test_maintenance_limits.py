"""What maintenance costs and takes: requests, memory, arguments; and the sizes it counts."""

from __future__ import annotations

import pickle
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from icechunk import (
    CountingStorage,
    GCSummary,
    InvalidInputError,
    MemoryStorage,
    ReadOnlyError,
    RepoAvailability,
    Repository,
    RepositoryConfig,
    RepoStatus,
    VirtualChunkContainer,
    VirtualChunkSpec,
    local_filesystem_store,
)
from icechunk.format import layout
from icechunk.format.chunk_refs import ChunkRefs
from icechunk.format.ids import decode_id, decode_ids, encode_id, new_object_id
from icechunk.format.manifest import decode_manifest
from icechunk.repository.maintenance import _Sizes, _total
from icechunk.repository.reachable import DistinctRows, Limits, id_prefixes, read_manifests
from icechunk.repository.stats import ChunkStorageStats
from icechunk.storage import WrapperStorage
from icechunk.storage.base import Storage
from tests.histories import CONFIG, commit, create, write
from tests.reachability import collectable, history, objects, ref_targets, snapshot
from tests.servers import S3Server

SECOND = timedelta(seconds=1)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def storage() -> Storage:
    return MemoryStorage()


# -- requests ---------------------------------------------------------------------------------
class Log(WrapperStorage):
    """Every call, with its keys."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.calls: list[tuple[str, tuple[str, ...]]] = []

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        self.calls.append((operation, keys))


@pytest.mark.parametrize("commits", [3, 12])
def test_requests_of_an_expiration(storage: Storage, commits: int) -> None:
    repository = create(storage)
    for number in range(commits):
        repository.create_tag(f"t{number}", commit(repository, {0: bytes([number])}))
    counting = CountingStorage(storage)
    repository = Repository.open(counting)
    counting.reset()
    assert len(repository.expire_snapshots(now(), delete_expired_tags=True)) == commits
    assert {op: count.requests for op, count in counting.counts.items() if count.requests} == {
        "get_if_changed": 2,
        "copy": 1,
        "put": 1,
    }


def test_requests_of_a_garbage_collection(storage: Storage) -> None:
    """Each snapshot and manifest is read once, whoever shares it."""
    repository = create(storage)
    for number in range(10):
        commit(repository, {number % 2: b"shared by all that come after"})
        repository.create_branch(f"b{number}", repository.lookup_branch("main"))
    log = Log(storage)
    Repository.open(log).garbage_collect(now())
    read = [key for operation, (key, *_) in log.calls if operation == "get"]
    # once for what its log says of copies, and once to learn what time it is there
    read.remove("repo")
    read = [key for key in read if not key.startswith("overwritten/clock-")]
    assert (
        len(read)
        == len(set(read))
        == sum(key.startswith(("snapshots/", "manifests/")) for key in collectable(storage))
    )


def test_objects_are_deleted_a_thousand_at_a_time(storage: Storage) -> None:
    create(storage)
    for _ in range(2500):
        storage.put(layout.chunk_key(new_object_id()), b"")
    log = Log(storage)
    assert Repository.open(log).garbage_collect(now() + SECOND).chunks_deleted == 2500
    deletes = [
        len(keys)
        for operation, keys in log.calls
        if operation == "delete" and keys[0].startswith("chunks/")
    ]
    assert sorted(deletes) == [500, 1000, 1000]


def test_statistics_write_nothing(storage: Storage) -> None:
    repository = create(storage)
    commit(repository, {0: b"native"})
    before = objects(storage)
    assert repository.chunk_storage_stats().native_bytes == 6
    with pytest.deprecated_call(match="use chunk_storage_stats"):
        assert repository.total_chunks_storage() == 6
    assert objects(storage) == before


def test_memory_of_chunk_ids(storage: Storage) -> None:
    """Those that many manifests repeat are held once, at 8 bytes each."""
    count = 300_000
    ids = np.frombuffer(np.random.default_rng(0).bytes(12 * count), np.uint8).reshape(-1, 12)
    refs = ChunkRefs.native(np.arange(count, dtype=np.uint32)[:, None], ids, 1)
    assets = Repository.create(storage).context.assets.uncached()
    files = {
        file.id: file for file in (assets.write_manifest({b"8 bytes.": refs}) for _ in "12345")
    }
    tracemalloc.start()
    rows = DistinctRows(1)
    for prefixes in read_manifests(
        files, Limits(manifests=1), lambda id: id_prefixes(assets.chunk_ids(id))
    ):
        rows.add(prefixes)
    del prefixes
    assert len(rows.columns()[0]) == count
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 9 * count


def test_memory_of_merging() -> None:
    count = 1_200_000
    parts = np.array_split(np.random.default_rng(0).integers(0, 2**62, count, np.uint64), 3)
    rows = DistinctRows(1)
    tracemalloc.start()
    for part in parts:
        rows.add(part)
    merged = rows.columns()[0]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (merged == np.unique(np.concatenate(parts))).all()
    assert peak < 3 * 8 * count


# -- sizes ------------------------------------------------------------------------------------
chunks = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.tuples(st.sampled_from("xyz"), st.integers(0, 2), st.integers(1, 2)),
)
commits = st.lists(st.dictionaries(st.integers(0, 5), chunks, min_size=1), max_size=5)


@settings(max_examples=25)
@given(work=commits, detached=st.dictionaries(st.integers(0, 5), chunks, min_size=1))
def test_sizes(work: list[dict[int, Any]], detached: dict[int, Any]) -> None:
    """As counted one by one, in what branches and tags lead to."""
    storage = MemoryStorage()
    create(storage)
    config = RepositoryConfig.from_dict(CONFIG.to_dict())
    config.set_virtual_chunk_container(
        VirtualChunkContainer("file:///data/", local_filesystem_store("/data"))
    )
    repository = Repository.open(storage, config)

    def edit(values: dict[int, Any]) -> Any:
        session = repository.writable_session("main")
        write(session, {at: value for at, value in values.items() if isinstance(value, bytes)})
        specs = [
            VirtualChunkSpec([at], f"file:///data/{value[0]}", value[1], value[2])
            for at, value in values.items()
            if not isinstance(value, bytes)
        ]
        session.store.set_virtual_refs("/a", specs)
        return session

    for values in work:
        edit(values).commit("more")
    edit(detached).flush("does not count")
    native: dict[bytes, int] = {}
    virtual: set[tuple[str, int, int]] = set()
    inline = 0
    reached = {id for tip in ref_targets(storage) for id in history(storage, tip)}
    for id in {manifest for each in reached for manifest in snapshot(storage, each)[1]}:
        key = layout.manifest_key(id)
        for refs in decode_manifest(storage.get(key).data, key).arrays.values():
            for ref in map(refs.row, range(len(refs))):
                if ref.chunk_id is not None:
                    native[ref.chunk_id] = ref.length
                elif ref.location is not None:
                    virtual.add((ref.location, ref.offset, ref.length))
                else:
                    inline += ref.length
    stats = repository.chunk_storage_stats(max_concurrent_manifest_fetches=2)
    assert stats == ChunkStorageStats(
        sum(native.values()), sum(length for _, _, length in virtual), inline
    )
    assert stats.total_bytes() == stats.non_virtual_bytes() + stats.virtual_bytes


def test_sizes_of_arrays_in_one_manifest(storage: Storage) -> None:
    assets = create(storage).context.assets
    at, ids = np.arange(2, dtype=np.uint32)[:, None], [b"a" * 12, b"a" * 11 + b"b"]
    arrays = [
        ChunkRefs.inline(at, [b"1", b"22"]),
        ChunkRefs.inline(at, [b"333", b"4444"]),
        # ids that begin alike are two ids
        ChunkRefs.native(at, ids, [10, 20]),
        ChunkRefs.native(at, ids, [10, 20]),
        ChunkRefs.virtual(at, ["file:///x", "file:///y"], 0, [100, 200]),
        ChunkRefs.virtual(at, ["file:///y", "file:///z"], 0, [200, 400]),
    ]
    file = assets.write_manifest({bytes([row]) * 8: refs for row, refs in enumerate(arrays)})
    manifest = assets.uncached().manifest(file.id)
    assert _total([_Sizes.of(manifest)]) == ChunkStorageStats(30, 700, 10)


# -- arguments --------------------------------------------------------------------------------
class NoOffset(tzinfo):
    """A time zone that says nothing."""

    def utcoffset(self, dt: datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    "time", [None, "long ago", 0, datetime.max, datetime.max.replace(tzinfo=NoOffset())]
)
def test_times_that_are_none(storage: Storage, time: Any) -> None:
    repository = create(storage)
    before = objects(storage)
    words = r"older_than is .*(expected a datetime|without zone is in UTC)"
    for act in (repository.expire_snapshots, repository.garbage_collect):
        with pytest.raises(InvalidInputError, match=words):
            act(time)
    assert objects(storage) == before


@pytest.mark.parametrize("spec_version", [2, 1])
def test_the_first_and_the_last_time(storage: Storage, spec_version: int) -> None:
    repository = create(storage, spec_version)
    commit(repository, {0: b"1"})
    first, last = datetime.min, datetime.max
    for zone in (UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))):
        assert repository.expire_snapshots(first.replace(tzinfo=zone)) == set()
        assert repository.garbage_collect(first.replace(tzinfo=zone)) == GCSummary()
    before = Repository.open(storage).lookup_branch("main")
    for zone in (UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))):
        repository.expire_snapshots(last.replace(tzinfo=zone))
        repository.garbage_collect(last.replace(tzinfo=zone))
    assert Repository.open(storage).lookup_branch("main") == before
    assert len([*repository.ancestry(branch="main")]) == 2


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None])
@pytest.mark.parametrize(
    "name",
    [
        "max_snapshots_in_memory",
        "max_compressed_manifest_mem_bytes",
        "max_decoded_manifest_mem_bytes",
        "max_concurrent_manifest_fetches",
        "max_concurrent_deletes",
        "max_consecutive_delete_failures",
        "max_concurrent_listings",
    ],
)
def test_limits_that_are_none(storage: Storage, name: str, value: Any) -> None:
    repository = Repository.create(storage)
    if (name, value) == ("max_concurrent_listings", None):
        return
    with pytest.raises(InvalidInputError, match=f"{name} is .*expected an int of at least 1"):
        repository.garbage_collect(now(), **{name: value})
    if "manifest" in name or "snapshots" in name:
        with pytest.raises(InvalidInputError, match=name):
            repository.chunk_storage_stats(**{name: value})
        with pytest.raises(InvalidInputError, match=name):
            repository.total_chunks_storage(**{name: value})


def test_limits_of_one(storage: Storage) -> None:
    """Nothing is lost where everything is done one by one."""
    repository = create(storage)
    session = repository.writable_session("main")
    write(session, {0: b"garbage"})
    session.flush("garbage")
    commit(repository, {0: b"native"})
    one = dict.fromkeys(
        [
            "max_snapshots_in_memory",
            "max_compressed_manifest_mem_bytes",
            "max_decoded_manifest_mem_bytes",
            "max_concurrent_manifest_fetches",
        ],
        1,
    )
    assert repository.chunk_storage_stats(**one).native_bytes == 6
    summary = repository.garbage_collect(
        now(), max_concurrent_deletes=1, max_concurrent_listings=1, **one
    )
    assert (summary.chunks_deleted, summary.snapshots_deleted) == (1, 1)


# -- where nothing may be written ----------------------------------------------------------------
class ReadOnly(WrapperStorage):
    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.supports_writes = False


@pytest.mark.parametrize("spec_version", [2, 1])
def test_a_storage_that_cannot_be_written(storage: Storage, spec_version: int) -> None:
    repository = create(storage, spec_version)
    storage.put(layout.chunk_key(new_object_id()), b"garbage")
    before = objects(storage)
    opened = Repository.open(ReadOnly(storage))
    for act in (opened.expire_snapshots, opened.garbage_collect):
        with pytest.raises(ReadOnlyError, match="cannot be written"):
            act(now())
    assert opened.garbage_collect(now() + SECOND, dry_run=True).chunks_deleted == 1
    assert opened.chunk_storage_stats() == ChunkStorageStats()
    assert objects(storage) == before
    del repository


def test_a_repository_that_was_set_read_only(storage: Storage) -> None:
    repository = create(storage)
    repository.set_status(RepoStatus(RepoAvailability.read_only, None, "audit"))
    before = objects(storage)
    for dry_run in (False, True):
        with pytest.raises(ReadOnlyError, match="audit"):
            repository.garbage_collect(now(), dry_run=dry_run)
    with pytest.raises(ReadOnlyError, match="audit"):
        repository.expire_snapshots(now())
    assert repository.chunk_storage_stats() == ChunkStorageStats()
    assert objects(storage) == before


# -- what is returned ----------------------------------------------------------------------------
def test_results() -> None:
    summary = GCSummary(bytes_deleted=5, delete_errors=["no"])
    assert "bytes_deleted: 5\n" in repr(summary)
    stats = ChunkStorageStats(1, 2, 4)
    assert repr(stats) == (
        "<icechunk.stats.ChunkStorageStats>\nnative_bytes: 1\nvirtual_bytes: 2\ninlined_bytes: 4\n"
    )
    assert stats + ChunkStorageStats(10, 20, 40) == ChunkStorageStats(11, 22, 44)
    assert (stats.non_virtual_bytes(), stats.total_bytes()) == (5, 7)
    for value in (summary, stats):
        assert pickle.loads(pickle.dumps(value)) == value
    assert stats != ChunkStorageStats() and summary != GCSummary()
    with pytest.raises(TypeError):
        stats + 1  # type: ignore[operator]


async def test_async_twins(storage: Storage) -> None:
    repository = create(storage)
    old = commit(repository, {0: b"garbage"})
    commit(repository, {0: b"native"})
    assert old in await repository.expire_snapshots_async(now())
    assert (await repository.garbage_collect_async(now(), dry_run=True)).chunks_deleted == 1
    assert (await repository.garbage_collect_async(now())).chunks_deleted == 1
    assert (await repository.chunk_storage_stats_async()).native_bytes == 6
    with pytest.deprecated_call(match="use chunk_storage_stats"):
        assert await repository.total_chunks_storage_async() == 6


@pytest.mark.parametrize("spec_version", [2, 1])
def test_on_s3(s3_server: S3Server, spec_version: int) -> None:
    """Times are whole seconds there."""
    storage = s3_server.storage()
    repository = create(storage, spec_version)
    old = commit(repository, {0: b"garbage"})
    commit(repository, {0: b"native", 1: b"x"})
    assert old in repository.expire_snapshots(now())
    newest = max(meta.last_modified for meta in collectable(storage).values())
    oldest = min(meta.last_modified for meta in collectable(storage).values())
    assert repository.garbage_collect(oldest) == GCSummary()
    expected = repository.garbage_collect(newest + SECOND, dry_run=True)
    summary = repository.garbage_collect(newest + SECOND)
    assert summary == expected
    assert (summary.chunks_deleted, summary.snapshots_deleted) == (1, 2)
    opened = Repository.open(storage)
    assert len([*opened.ancestry(branch="main")]) == 2
    value = opened.readonly_session("main").store.get_sync("a/c/0")
    assert value is not None and value.to_bytes() == b"native"


# -- names that are ids ---------------------------------------------------------------------------
good_ids = st.binary(min_size=12, max_size=12).map(encode_id)
ids = st.one_of(
    good_ids,
    st.builds(
        lambda id, at, bad: id[:at] + bad + id[at + 1 :],
        good_ids,
        st.integers(0, 19),
        st.sampled_from("ILOUaé/#"),
    ),
    st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=19, max_size=21),
    st.text("0Zaz_ILOU#é/", max_size=21),
    st.text(min_size=20, max_size=20),
)


@settings(max_examples=50)
@given(st.lists(ids))
def test_many_ids(texts: list[str]) -> None:
    """As one by one, but for lower case, which nobody writes."""
    expected = []
    for text in texts:
        try:
            expected.append(decode_id(text) if text == text.upper() else None)
        except InvalidInputError:
            expected.append(None)
    valid, rows = decode_ids(texts)
    assert valid.tolist() == [id is not None for id in expected]
    assert [row.tobytes() for row in rows] == [id for id in expected if id is not None]
