"""What objects look like as text, under both clients."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import zarr

import icechunk as ic
from tests.interop.mistakes import MISTAKES
from tests.interop.refusals import REFUSALS

_AXIS = ic.ManifestSplitDimCondition.Axis
_NAME = ic.ManifestSplitDimCondition.DimensionName
_ANY = ic.ManifestSplitDimCondition.Any
_PRELOAD = ic.ManifestPreloadCondition
_SPLIT = ic.ManifestSplitCondition


def _splitting() -> Any:
    return ic.ManifestSplittingConfig.from_dict(
        {
            _SPLIT.AnyArray(): {_NAME("x"): 3, _AXIS(0): 2, _ANY(): 1},
            _SPLIT.name_matches("a'b"): {_ANY(): 1},
        }
    )


def _settings() -> Any:
    return ic.StorageSettings(
        storage_class="X",
        concurrency=ic.StorageConcurrencySettings(3, 4),
        retries=ic.StorageRetriesSettings(1, 2, 3),
        timeouts=ic.StorageTimeoutSettings(read_timeout_ms=4),
        unsafe_use_metadata=False,
        minimum_size_for_multipart_upload=8,
    )


def _options() -> Any:
    return ic.S3Options(
        region="a",
        endpoint_url="http://x",
        allow_http=True,
        anonymous=True,
        force_path_style=True,
        network_stream_timeout_seconds=5,
        requester_pays=True,
        checksum_algorithm=ic.ChecksumAlgorithm.Sha256,
    )


def _whole() -> Any:
    config = ic.RepositoryConfig.default()
    config.inline_chunk_threshold_bytes = 12
    config.caching = ic.CachingConfig(num_chunk_refs=2)
    config.storage = _settings()
    config.manifest = ic.ManifestConfig(
        splitting=_splitting(),
        preload=ic.ManifestPreloadConfig(max_total_refs=3, preload_if=_PRELOAD.true()),
    )
    container = ic.VirtualChunkContainer("s3://b/", ic.s3_store(region="x"))
    config.set_virtual_chunk_container(container)
    return config


def _with_a_folder() -> Any:
    config = ic.RepositoryConfig.default()
    config.set_virtual_chunk_container(
        ic.VirtualChunkContainer("file:///tmp/", ic.local_filesystem_store("/tmp/"), name="loc")
    )
    return config


#: Each makes an object that needs no repository.
PLAIN: dict[str, Callable[[], Any]] = {
    "caching": lambda: ic.CachingConfig(),
    "caching, set": lambda: ic.CachingConfig(num_snapshot_nodes=3, num_bytes_chunks=7),
    "compression": lambda: ic.CompressionConfig(),
    "compression, set": lambda: ic.CompressionConfig(ic.CompressionAlgorithm.Zstd, 3),
    "algorithm": lambda: ic.CompressionAlgorithm.Zstd,
    "checksum": lambda: ic.ChecksumAlgorithm.Sha256,
    "manifest": lambda: ic.ManifestConfig(),
    "manifest, set": lambda: ic.ManifestConfig(
        preload=ic.ManifestPreloadConfig(max_total_refs=3, preload_if=_PRELOAD.true())
    ),
    "manifest, split": lambda: ic.ManifestConfig(splitting=_splitting()),
    "preload": lambda: ic.ManifestPreloadConfig(),
    "true": lambda: _PRELOAD.true(),
    "false": lambda: _PRELOAD.false(),
    "name_matches": lambda: _PRELOAD.name_matches("a.*"),
    "path_matches": lambda: _PRELOAD.path_matches("a.*"),
    "num_refs": lambda: _PRELOAD.num_refs(1, 4),
    "num_refs, open": lambda: _PRELOAD.num_refs(None, 4),
    "and": lambda: _PRELOAD.and_conditions([_PRELOAD.true(), _PRELOAD.false()]),
    "or": lambda: _PRELOAD.or_conditions([_PRELOAD.true(), _PRELOAD.false()]),
    "any array": lambda: _SPLIT.AnyArray(),
    "split, name": lambda: _SPLIT.name_matches("x"),
    "split, path": lambda: _SPLIT.path_matches("x"),
    "split, and": lambda: _SPLIT.and_conditions([_SPLIT.AnyArray(), _SPLIT.name_matches("x")]),
    "split, or": lambda: _SPLIT.or_conditions([_SPLIT.AnyArray(), _SPLIT.name_matches("x")]),
    "axis": lambda: _AXIS(0),
    "dimension": lambda: _NAME("x"),
    "any dimension": lambda: _ANY(),
    "splitting": _splitting,
    "locations": lambda: ic.ManifestVirtualChunkLocationCompressionConfig(),
    "locations, set": lambda: ic.ManifestVirtualChunkLocationCompressionConfig(min_num_chunks=3),
    "config": lambda: ic.RepositoryConfig(),
    "config, default": lambda: ic.RepositoryConfig.default(),
    "config, set": _whole,
    "config, folder": _with_a_folder,
    "settings": lambda: ic.StorageSettings(),
    "settings, set": _settings,
    "retries": lambda: ic.StorageRetriesSettings(),
    "retries, set": lambda: ic.StorageRetriesSettings(1, 2, 3),
    "concurrency": lambda: ic.StorageConcurrencySettings(),
    "concurrency, set": lambda: ic.StorageConcurrencySettings(1, 2),
    "timeouts": lambda: ic.StorageTimeoutSettings(),
    "timeouts, set": lambda: ic.StorageTimeoutSettings(1, 2, 3, 4),
    "settings of memory": lambda: ic.in_memory_storage().default_settings(),
    "settings of a folder": lambda: ic.local_filesystem_storage("/tmp").default_settings(),
    "settings of S3": lambda: ic.s3_storage(
        bucket="b", prefix="p", anonymous=True, region="x"
    ).default_settings(),
    "s3 options": lambda: ic.S3Options(),
    "s3 options, set": _options,
    "s3 store": lambda: ic.s3_store(region="x"),
    "tigris store": lambda: ic.ObjectStoreConfig.Tigris(_options()),
    "compatible store": lambda: ic.ObjectStoreConfig.S3Compatible(_options()),
    "folder store": lambda: ic.local_filesystem_store("/tmp/x"),
    "http store": lambda: ic.http_store(),
    "http store, set": lambda: ic.http_store({"timeout": "3s"}),
    "gcs store": lambda: ic.gcs_store(),
    "memory store": lambda: ic.ObjectStoreConfig.InMemory(),
    "container": lambda: ic.VirtualChunkContainer("s3://b/", ic.s3_store(region="x")),
    "container, named": lambda: ic.VirtualChunkContainer(
        "file:///b/", ic.local_filesystem_store("/b/"), name="n"
    ),
    "attribution": lambda: ic.Attribution(client="ab"),
    "keys": lambda: ic.S3StaticCredentials("AKIAXXXXXXXX", "hidden-secret"),
    "keys, of a session": lambda: ic.S3StaticCredentials(
        "AKIAXXXXXXXX", "hidden-secret", "hidden-token", datetime(2030, 1, 1, tzinfo=UTC)
    ),
    "memory": lambda: ic.in_memory_storage(),
    "folder": lambda: ic.local_filesystem_storage("/tmp/x"),
    "s3": lambda: ic.s3_storage(
        bucket="b",
        prefix="p",
        access_key_id="AKIAXXXXXXXX",
        secret_access_key="hidden-secret",
        region="x",
    ),
    "s3, anonymous": lambda: ic.s3_storage(
        bucket="b", prefix=None, anonymous=True, endpoint_url="http://localhost:1", allow_http=True
    ),
    "r2": lambda: ic.r2_storage(bucket="b", prefix="p", account_id="a", anonymous=True),
    "tigris": lambda: ic.tigris_storage(bucket="b", prefix="p", region="a", anonymous=True),
    "gcs": lambda: ic.gcs_storage(bucket="b", prefix="p", anonymous=True),
    "azure": lambda: ic.azure_storage(account="a", container="b", prefix="p", anonymous=True),
    "http": lambda: ic.http_storage("http://localhost/a"),
}


def _lived() -> dict[str, Any]:
    """Return objects of a repository with a short life, as they were."""
    found: dict[str, Any] = {}

    def keep(name: str, it: Any) -> None:
        found[name] = [str(it), repr(it)]

    repo = ic.Repository.create(ic.in_memory_storage())
    keep("repository", repo)
    session = repo.writable_session("main")
    keep("writable session", session)
    keep("writable store", session.store)
    keep("no changes", session.status())
    group = zarr.create_group(session.store)
    for path in ("a", "b", "k/x"):
        group.create_array(path, shape=(40, 40), chunks=(2, 2), dtype="i4")[:4] = 1
    for path in ("gone", "changed"):
        group.create_group(path)
    keep("status", session.status())
    keep("session with changes", session)
    first = session.commit("first")
    keep("session after a commit", session)
    session = repo.writable_session("main")
    keep("fork", session.fork())
    group = zarr.open_group(session.store)
    for path in ("b", "gone"):
        del group[path]
    for path in ("a", "changed"):
        group[path].attrs["x"] = 1
    group["a"][:] = 3
    group.create_array("n/m", shape=(2,), dtype="i4")[:] = 1
    keep("status of all kinds", session.status())
    session.commit("second")
    session = repo.rearrange_session("main")
    keep("rearrange session", session)
    session.move("/n", "/o")
    keep("status of moves", session.status())
    session.commit("moved")
    keep("diff", repo.diff(from_snapshot_id=first, to_branch="main"))
    reader = repo.readonly_session("main")
    keep("reader", reader)
    keep("store of a reader", reader.store)
    keep("mode", reader.mode)
    keep("chunk type", reader.chunk_type("/a", [0, 0]))
    keep("snapshot", repo.lookup_snapshot(first))
    keep("manifest", repo.list_manifest_files(first)[0])
    keep("stats", ic.Repository.create(ic.in_memory_storage()).chunk_storage_stats())
    repo.create_tag("t", first)
    repo.delete_tag("t")
    repo.create_branch("dev", first)
    repo.reset_branch("dev", repo.lookup_branch("main"))
    keep("summary", repo.garbage_collect(datetime(2000, 1, 1, tzinfo=UTC)))
    for update in repo.ops_log():
        keep(f"update {type(update.kind).__name__}", update)
        keep(f"kind {type(update.kind).__name__}", update.kind)
    for flag in repo.feature_flags():
        keep(f"flag {flag.name}", flag)
    keep("status of the repository", repo.get_status())
    one, other = repo.writable_session("main"), repo.writable_session("main")
    for session in (one, other):
        zarr.open_group(session.store)["a"][:2, :4] = 5
    one.commit("one")
    try:
        other.rebase(ic.ConflictDetector())
    except ic.RebaseFailedError as error:
        keep("conflict", error.conflicts[0])
    return found


def _comparable(text: str) -> str:
    text = re.sub(r"\b[0-9A-HJKMNP-TV-Z]{20}\b", "ID", text)
    text = re.sub(r"size_bytes: \d+", "size_bytes: SIZE", text)
    text = re.sub(r"backup_path: (?!None)\S+", "backup_path: PATH", text)
    return re.sub(r"datetime\.datetime\(20[012][0-9],[0-9,]+, ", "datetime.datetime(..., ", text)


def texts() -> dict[str, list[str]]:
    """Return ``str`` and ``repr`` of all, without ids, sizes and times of this run."""
    found = {}
    for name, make in PLAIN.items():
        it = make()
        found[name] = [str(it), repr(it)]
    return {name: [*map(_comparable, both)] for name, both in {**found, **_lived()}.items()}


def messages(base: str, folder: str) -> dict[str, list[str]]:
    """Return kind and message of the error that each mistake raises."""
    found = {}
    for name, call in MISTAKES.items():
        found[name] = _raised(call)
    for name, refuse in REFUSALS.items():
        place = f"{folder}/{name}"
        shutil.copytree(base, place)
        repo = ic.Repository.open(ic.local_filesystem_storage(place))
        found[name] = _raised(lambda refuse=refuse, repo=repo: refuse(repo))  # type: ignore[misc]
    return found


def _raised(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except Exception as error:
            return [str(getattr(error, "kind", "")), str(error)]
    return ["", ""]
