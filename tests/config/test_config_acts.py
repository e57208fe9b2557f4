"""Every option of the configuration does something that can be seen, or is listed as one that
does nothing."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import zarr

from icechunk import (
    CachingConfig,
    CompressionAlgorithm,
    CompressionConfig,
    ManifestConfig,
    ManifestPreloadConfig,
    ManifestSplitCondition,
    ManifestSplitDimCondition,
    ManifestSplittingConfig,
    ManifestVirtualChunkLocationCompressionConfig,
    Repository,
    RepositoryConfig,
    RepoUpdateRetryConfig,
    StorageConcurrencySettings,
    StorageRetriesSettings,
    StorageSettings,
    StorageTimeoutSettings,
    VirtualChunkContainer,
    s3_store,
)
from icechunk.commit.retrying import Backoff
from icechunk.config.options import Options
from icechunk.errors import ConflictError, StorageError
from icechunk.storage import CountingStorage, MemoryStorage, Storage
from icechunk.storage.client_options import client_options, retry_options
from icechunk.storage.wrappers import WrapperStorage
from tests.servers import ObjectServer, S3Server
from tests.web_server import serving

#: Options whose effect is shown here, by the tests that show it.
SHOWN: set[str] = set()
#: Options that have tests of their own: containers and preloading.
ELSEWHERE = {
    "virtual_chunk_containers",
    "manifest.preload.max_total_refs",
    "manifest.preload.preload_if",
    "manifest.preload.max_arrays_to_scan",
}
#: Options that are kept for other clients.
ACCEPTED = {
    "caching.num_bytes_attributes",
    "caching.num_transaction_changes",
    "manifest.max_concurrent_manifest_fetches_during_commit",
    "max_concurrent_decodes",
    "storage.unsafe_use_metadata",
}

Test = Callable[..., Any]


def shows(*options: str) -> Callable[[Test], Test]:
    """Note which options a test is about."""
    SHOWN.update(options)
    return lambda test: test


def leaves(cls: type[Options], prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(cls).items():
        if name.startswith("_"):
            continue
        nested = [part for part in getattr(hint, "__args__", ()) if _is_options(part)]
        if nested:
            yield from leaves(nested[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def _is_options(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Options)


# -- helpers -------------------------------------------------------------------------------
def written(config: RepositoryConfig, storage: Storage | None = None, chunks: int = 20) -> Storage:
    """Return the storage of a repository with an array of chunks of 100 bytes."""
    storage = storage or MemoryStorage()
    repository = Repository.create(storage, config, check_clean_root=False)
    with repository.transaction("main", message="data") as store:
        data = np.arange(chunks * 100, dtype="u1")
        zarr.create_array(store, name="a", data=data, chunks=100, compressors=None)
    return storage


def size(storage: Storage, folder: str) -> int:
    return sum(meta.size for meta in storage.list(folder))


def count(storage: Storage, folder: str) -> int:
    return len(list(storage.list(folder)))


class InFlight(WrapperStorage):
    """Notes how many asynchronous gets ran at the same time, at most."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.now = self.most = 0

    async def before_async(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(20):  # others may start meanwhile
            await asyncio.sleep(0)

    def after(self, operation: str, keys: tuple[str, ...], read: int) -> None:
        if keys[0].startswith("chunks/"):
            self.now -= 1


#: Chunks are objects, and nothing is fetched in the background.
OUTSIDE = RepositoryConfig(
    inline_chunk_threshold_bytes=0,
    manifest=ManifestConfig(preload=ManifestPreloadConfig(max_total_refs=0)),
)


# -- chunks ---------------------------------------------------------------------------------
@shows("inline_chunk_threshold_bytes")
@pytest.mark.parametrize(("threshold", "objects"), [(99, 20), (100, 0), (None, 0)])
def test_inline_threshold(threshold: int | None, objects: int) -> None:
    storage = written(RepositoryConfig(inline_chunk_threshold_bytes=threshold))
    assert count(storage, "chunks/") == objects


@shows("get_partial_values_concurrency", "max_concurrent_requests")
@pytest.mark.parametrize(
    ("partial", "requests", "most"), [(3, None, 3), (0, None, 1), (None, None, 10), (20, 4, 4)]
)
async def test_concurrency(partial: int | None, requests: int | None, most: int) -> None:
    storage = InFlight(await asyncio.to_thread(written, OUTSIDE))
    config = RepositoryConfig(
        get_partial_values_concurrency=partial, max_concurrent_requests=requests
    )
    repository = await Repository.open_async(storage, config)
    store = (await repository.readonly_session_async("main")).store
    prototype = zarr.core.buffer.default_buffer_prototype()
    await store.get("a/c/0")
    storage.now = storage.most = 0
    got = await store.get_partial_values(prototype, [(f"a/c/{i}", None) for i in range(20)])
    assert len([value for value in got if value is not None]) == 20
    assert storage.most == most


@shows("caching.num_snapshot_nodes", "caching.num_chunk_refs", "caching.num_bytes_chunks")
def test_caching() -> None:
    storage = CountingStorage(written(OUTSIDE))

    def requests(**options: int) -> int:
        """Return how many requests reading two chunks again takes in another session."""
        repository = Repository.open(storage, RepositoryConfig(caching=CachingConfig(**options)))
        for _ in range(2):
            storage.reset()
            store = repository.readonly_session("main").store
            zarr.open_array(store, path="a", mode="r")[:200]
        return storage.requests

    usual = 3  # whether the repo info changed, and the two chunks
    assert requests() == usual
    assert requests(num_snapshot_nodes=0) == usual + 1
    assert requests(num_chunk_refs=0) == usual + 2
    assert requests(num_bytes_chunks=200) == usual - 2
    assert requests(num_bytes_chunks=99) == usual


# -- metadata -------------------------------------------------------------------------------
def references(config: RepositoryConfig) -> int:
    """Return the size of the manifest of some virtual references."""
    config = config.merge(RepositoryConfig())
    config.set_virtual_chunk_container(VirtualChunkContainer("s3://bucket/", s3_store()))
    storage = MemoryStorage()
    repository = Repository.create(storage, config)
    rng = np.random.default_rng(0)
    with repository.transaction("main", message="references") as store:
        zarr.create_array(store, name="a", shape=2000, chunks=1, dtype="u1")
        for i in range(2000):
            name = f"model-{rng.integers(20)}/run-{rng.integers(10**6)}.nc"
            store.set_virtual_ref(f"a/c/{i}", f"s3://bucket/{name}", offset=i, length=1)
    return size(storage, "manifests/")


def locations(**options: int) -> RepositoryConfig:
    compression = ManifestVirtualChunkLocationCompressionConfig(**options)
    return RepositoryConfig(
        manifest=ManifestConfig(virtual_chunk_location_compression=compression),
    )


@shows("compression.level", "compression.algorithm")
def test_compression_level() -> None:
    sizes = [
        references(
            RepositoryConfig(
                compression=CompressionConfig(algorithm=CompressionAlgorithm.Zstd, level=level)
            ).merge(locations(min_num_chunks=3000))
        )
        for level in (1, 19)
    ]
    assert sizes[1] < sizes[0]


LOCATIONS = "manifest.virtual_chunk_location_compression"


@shows(
    f"{LOCATIONS}.min_num_chunks",
    f"{LOCATIONS}.dictionary_max_training_samples",
    f"{LOCATIONS}.dictionary_max_size_bytes",
    f"{LOCATIONS}.compression_level",
)
@pytest.mark.parametrize(
    "options",
    [
        {"min_num_chunks": 2001},
        {"dictionary_max_training_samples": 10},
        {"dictionary_max_size_bytes": 300},
        {"compression_level": 19},
    ],
)
def test_location_compression(options: dict[str, int]) -> None:
    assert references(locations(**options)) != references(locations())


@shows("manifest.splitting.split_sizes")
@pytest.mark.parametrize(("split", "manifests"), [(5, 4), (20, 1), (7, 3)])
def test_splitting(split: int, manifests: int) -> None:
    splitting = ManifestSplittingConfig.from_dict(
        {ManifestSplitCondition.AnyArray(): {ManifestSplitDimCondition.Any(): split}}
    )
    config = RepositoryConfig(manifest=ManifestConfig(splitting=splitting))
    assert count(written(config), "manifests/") == manifests


# -- updates of the repository ------------------------------------------------------------
class Faster(WrapperStorage):
    """A storage where somebody else updates the repository before each of the next puts of it."""

    left = 0

    def before(self, operation: str, keys: tuple[str, ...], written: int) -> None:
        if operation == "put" and keys == ("repo",) and self.left:
            self.left -= 1
            repository = Repository.open(self.inner)
            repository.update_metadata({"left": self.left})


@shows("repo_update_retries.default.max_tries")
@pytest.mark.parametrize(("tries", "lost", "passes"), [(2, 2, False), (3, 2, True)])
def test_tries_of_updates(tries: int, lost: int, passes: bool) -> None:
    storage = Faster(written(OUTSIDE))
    quick = StorageRetriesSettings(max_tries=tries, initial_backoff_ms=0)
    config = RepositoryConfig(repo_update_retries=RepoUpdateRetryConfig(default=quick))
    repository = Repository.open(storage, config)
    storage.left = lost
    snapshot = repository.lookup_branch("main")
    if passes:
        repository.create_tag("v1", snapshot)
    else:
        with pytest.raises(ConflictError, match=f"after {tries} attempts"):
            repository.create_tag("v1", snapshot)
    assert repository.list_tags() == ({"v1"} if passes else set())


@shows(
    "repo_update_retries.default.initial_backoff_ms", "repo_update_retries.default.max_backoff_ms"
)
def test_pauses_between_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    monkeypatch.setattr("icechunk.commit.retrying.sleep", pauses.append)
    settings = StorageRetriesSettings(initial_backoff_ms=10, max_backoff_ms=100)
    config = RepositoryConfig(repo_update_retries=RepoUpdateRetryConfig(default=settings))
    backoff = Backoff(config.effective().repo_update_retries)
    for _ in range(6):
        backoff.pause(0)
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.1, 0.1]


def test_pauses_grow_with_the_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """To as long as all take for one attempt each, and never beyond the longest pause."""
    times = iter([0, 1, 1, 3, 3, 4, 4])
    pauses: list[float] = []
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    monkeypatch.setattr("icechunk.commit.retrying.sleep", pauses.append)
    monkeypatch.setattr("icechunk.commit.retrying.clock", lambda: next(times))
    settings = StorageRetriesSettings(initial_backoff_ms=7_000, max_backoff_ms=10_000)
    config = RepositoryConfig(repo_update_retries=RepoUpdateRetryConfig(default=settings))
    backoff = Backoff(config.effective().repo_update_retries)
    for crowd in (1, 3, 20):
        backoff.pause(crowd)
    assert pauses == [1, 6, 10]


@shows("num_updates_per_repo_info_file")
def test_length_of_the_operations_log() -> None:
    storage = written(RepositoryConfig(num_updates_per_repo_info_file=2))
    repository = Repository.open(storage)
    for i in range(4):
        repository.create_tag(f"v{i}", repository.lookup_branch("main"))
    assert len(repository._info.updates) == 2


# -- storage --------------------------------------------------------------------------------
def stored(**options: Any) -> RepositoryConfig:
    return replace(OUTSIDE, storage=StorageSettings(**options))


def read(repository: Repository) -> None:
    store = repository.readonly_session("main").store
    zarr.open_array(store, path="a", mode="r")[:100]


@shows("storage.retries.max_tries")
def test_tries_of_requests(object_server: ObjectServer) -> None:
    quick = {"initial_backoff_ms": 1, "max_backoff_ms": 1}
    # given when it is created, it is stored, and acts on who opens it
    once = StorageRetriesSettings(max_tries=1, **quick)
    storage = written(stored(retries=once), object_server.gcs(), chunks=1)
    repository = Repository.open(storage)
    object_server.failures.append(503)
    with pytest.raises(StorageError, match="503"):
        read(repository)
    # given when it is opened, it acts on sessions, and on copies in other places
    more = StorageRetriesSettings(max_tries=3, **quick)
    repository = Repository.open(storage, stored(retries=more))
    object_server.failures += [503, 503]
    read(repository)
    assert repository.storage.with_settings(StorageSettings()) is not repository.storage
    object_server.failures += [503, 503, 503]
    with pytest.raises(StorageError, match="503"):
        read(repository)


@shows(
    "storage.retries.initial_backoff_ms",
    "storage.retries.max_backoff_ms",
    "storage.timeouts.connect_timeout_ms",
    "storage.timeouts.read_timeout_ms",
    "storage.timeouts.operation_timeout_ms",
    "storage.timeouts.operation_attempt_timeout_ms",
)
def test_times_reach_the_client() -> None:
    # what the client does with them is shown on a silent server, in storage/test_http.py
    settings = StorageSettings(
        retries=StorageRetriesSettings(initial_backoff_ms=1, max_backoff_ms=2),
        timeouts=StorageTimeoutSettings(
            connect_timeout_ms=3,
            read_timeout_ms=4,
            operation_timeout_ms=5,
            operation_attempt_timeout_ms=6,
        ),
    ).effective()

    def milliseconds(value: int) -> timedelta:
        return timedelta(milliseconds=value)

    retry = retry_options(settings)
    assert retry["backoff"] == {"init_backoff": milliseconds(1), "max_backoff": milliseconds(2)}
    assert retry["retry_timeout"] == milliseconds(5)
    client = client_options(settings, {}, {}, "tests")
    assert client["connect_timeout"] == milliseconds(3)
    assert client["read_timeout"] == milliseconds(4)
    assert client["timeout"] == milliseconds(6)


@shows(
    "storage.concurrency.max_concurrent_requests_for_object",
    "storage.concurrency.ideal_concurrent_request_size",
)
@pytest.mark.parametrize(("ideal", "most", "parts"), [(None, None, 1), (30, 18, 4), (10, 3, 3)])
def test_large_objects_are_read_in_parts(
    object_server: ObjectServer, ideal: int | None, most: int | None, parts: int
) -> None:
    storage = written(OUTSIDE, object_server.gcs(), chunks=1)
    concurrency = StorageConcurrencySettings(
        ideal_concurrent_request_size=ideal, max_concurrent_requests_for_object=most
    )
    repository = Repository.open(storage, stored(concurrency=concurrency))
    object_server.requests.clear()
    read(repository)
    assert sum("/chunks/" in request.path for request in object_server.requests) == parts


@shows("storage.unsafe_use_conditional_create", "storage.unsafe_use_conditional_update")
def test_conditions(object_server: ObjectServer) -> None:
    header = "x-goog-if-generation-match"

    def conditions(**options: Any) -> set[str]:
        """Return which conditions puts of the repo info had; generation 0 is no object."""
        object_server.requests.clear()
        object_server.objects.clear()
        written(stored(**options), object_server.gcs(), chunks=1)
        return {
            "create" if request.headers[header] == "0" else "update"
            for request in object_server.requests
            if request.method == "PUT" and request.path.endswith("/repo")
            if header in request.headers
        }

    assert conditions() == {"create", "update"}
    assert conditions(unsafe_use_conditional_create=False) == {"update"}
    assert conditions(unsafe_use_conditional_update=False) == {"create"}


@shows("storage.storage_class", "storage.metadata_storage_class", "storage.chunks_storage_class")
@pytest.mark.parametrize(
    ("options", "chunks", "metadata"),
    [
        ({"storage_class": "A"}, "A", "A"),
        ({"storage_class": "A", "chunks_storage_class": "B"}, "B", "A"),
        ({"metadata_storage_class": "C"}, None, "C"),
        ({}, None, None),
    ],
)
def test_storage_classes(
    object_server: ObjectServer, options: Any, chunks: str | None, metadata: str | None
) -> None:
    written(stored(**options), object_server.gcs(), chunks=1)
    seen = {
        ("chunks" if "/chunks/" in request.path else "metadata"): request.headers.get(
            "x-goog-storage-class"
        )
        for request in object_server.requests
        if request.method == "PUT"
    }
    assert seen == {"chunks": chunks, "metadata": metadata}


@shows("storage.minimum_size_for_multipart_upload")
@pytest.mark.parametrize(("minimum", "in_parts"), [(100, True), (101, False)])
def test_large_objects_are_written_in_parts(
    s3_server: S3Server, minimum: int, in_parts: bool
) -> None:
    config = stored(minimum_size_for_multipart_upload=minimum)
    storage = written(config, s3_server.storage(), chunks=1)
    [chunk] = storage.list("chunks/")
    # S3 ends the etag of an object in parts with their number
    assert bool(re.search(r'-[0-9]+"?$', chunk.etag or "")) == in_parts


def test_settings_act_on_virtual_chunks(tmp_path: Path) -> None:
    with serving() as server:
        server.files["/bucket/f"] = bytes(100)
        store = s3_store(endpoint_url=server.url.rstrip("/"), allow_http=True, anonymous=True)
        config = RepositoryConfig(
            storage=StorageSettings(retries=StorageRetriesSettings(max_tries=1))
        )
        config.set_virtual_chunk_container(VirtualChunkContainer("s3://bucket/", store))
        repository = Repository.create(MemoryStorage(), config, {"s3://bucket/": None})
        session = repository.writable_session("main")
        array = zarr.create_array(session.store, name="a", shape=100, dtype="u1", compressors=None)
        session.store.set_virtual_ref("a/c/0", "s3://bucket/f", offset=0, length=100)
        server.failures.append(503)
        with pytest.raises(StorageError, match="503"):
            array[:]
        assert len(server.requests) == 1
        array[:]


# -- all of them ----------------------------------------------------------------------------
def test_every_option_is_shown_or_listed() -> None:
    options = set(leaves(RepositoryConfig))
    assert len(options) > 30
    assert options == SHOWN | ACCEPTED | ELSEWHERE
    assert not SHOWN & ACCEPTED
    assert not (SHOWN | ACCEPTED) & ELSEWHERE


def test_options_without_effect_are_documented_and_kept() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme.partition("### Options without an effect")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `([a-z_.]+)`", section, re.MULTILINE))
    assert listed == ACCEPTED
    config = RepositoryConfig(
        caching=CachingConfig(num_bytes_attributes=1, num_transaction_changes=2),
        manifest=ManifestConfig(max_concurrent_manifest_fetches_during_commit=3),
        max_concurrent_decodes=4,
        storage=StorageSettings(unsafe_use_metadata=False),
    )
    assert Repository.fetch_config(written(config)) == config


# -- to store it -----------------------------------------------------------------------------
@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("begins", [None, 7])
def test_a_configuration_does_not_replace_one_that_it_does_not_know(
    spec_version: int, begins: int | None
) -> None:
    storage = MemoryStorage()
    first = RepositoryConfig(inline_chunk_threshold_bytes=begins)
    made = Repository.create(storage, first, spec_version=spec_version)
    ours = Repository.open(storage, RepositoryConfig(inline_chunk_threshold_bytes=11))
    theirs = Repository.open(storage, RepositoryConfig(inline_chunk_threshold_bytes=22))
    copies = [pickle.loads(pickle.dumps(ours)), ours.reopen()] if spec_version == 2 else []

    def stored() -> int | None:
        found = Repository.fetch_config(storage)
        return found.inline_chunk_threshold_bytes if found is not None else None

    theirs.save_config()
    for late in (made, ours, *copies):
        if late is made and begins is None:
            continue  # it has nothing to store
        with pytest.raises(ConflictError, match="config was updated by other session"):
            late.save_config()
    assert stored() == 22
    # again, and after a change of one's own
    theirs.save_config()
    theirs.config.inline_chunk_threshold_bytes = 23
    theirs.save_config()
    assert stored() == 23
    # the same as somebody else has stored is no conflict
    same = Repository.open(storage, RepositoryConfig(inline_chunk_threshold_bytes=24))
    theirs.config.inline_chunk_threshold_bytes = 24
    theirs.save_config()
    same.save_config()
    # as the message says
    again = Repository.open(storage, RepositoryConfig(inline_chunk_threshold_bytes=11))
    again.save_config()
    assert stored() == 11
