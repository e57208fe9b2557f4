"""Objects of the public classes, and what can be done with them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import zarr

import icechunk as ic

T = datetime(2030, 1, 1, tzinfo=UTC)


def splitting() -> Any:
    """Return rules for splitting manifests."""
    sizes = {ic.ManifestSplitDimCondition.Any(): 1}
    return ic.ManifestSplittingConfig.from_dict({ic.ManifestSplitCondition.AnyArray(): sizes})


def conflict() -> Any:
    """Return a conflict."""
    return ic.Conflict(ic.ConflictType.ChunkDoubleUpdate, "/a", [[0]])


def values() -> dict[str, Callable[[], Any]]:
    """Return what makes an object, or returns it, by name."""
    r = ic.Repository.create(ic.in_memory_storage())
    w = r.writable_session("main")
    zarr.create_group(w.store)
    d = w.status()
    return {
        "S3Options": lambda: ic.S3Options(region="x"),
        "s3_store": lambda: ic.s3_store(region="x"),
        "gcs": lambda: ic.gcs_store({"a": "b"}),
        "http": lambda: ic.http_store(),
        "local": lambda: ic.local_filesystem_store("/x"),
        "container": lambda: ic.VirtualChunkContainer("s3://b/", ic.s3_store()),
        "spec": lambda: ic.VirtualChunkSpec([0], "s3://b/x", 0, 2),
        "compression": lambda: ic.CompressionConfig(level=3),
        "alg": lambda: ic.CompressionAlgorithm.Zstd,
        "caching": lambda: ic.CachingConfig(num_chunk_refs=1),
        "preloadcond": lambda: ic.ManifestPreloadCondition.name_matches("a"),
        "preload": lambda: ic.ManifestPreloadConfig(max_total_refs=1),
        "splitcond": lambda: ic.ManifestSplitCondition.name_matches("a"),
        "dim": lambda: ic.ManifestSplitDimCondition.Axis(1),
        "splitting": splitting,
        "manifest": lambda: ic.ManifestConfig(),
        "conc": lambda: ic.StorageConcurrencySettings(max_concurrent_requests_for_object=1),
        "ret": lambda: ic.StorageRetriesSettings(max_tries=2),
        "timeouts": lambda: ic.StorageTimeoutSettings(),
        "settings": lambda: ic.StorageSettings(),
        "config": lambda: ic.RepositoryConfig(inline_chunk_threshold_bytes=1),
        "s3static": lambda: ic.S3StaticCredentials("a", "b", expires_after=T),
        "s3cred": lambda: ic.s3_credentials(access_key_id="a", secret_access_key="b"),
        "anon": lambda: ic.s3_anonymous_credentials(),
        "gcsb": lambda: ic.GcsBearerCredential("a"),
        "azure": lambda: ic.azure_credentials(access_key="a"),
        "containers": lambda: ic.containers_credentials({"s3://b/": ic.s3_anonymous_credentials()}),
        "status": lambda: ic.RepoStatus(ic.RepoAvailability.online, T),
        "attr": lambda: ic.Attribution(client="a"),
        "snap": lambda: next(iter(r.ancestry(branch="main"))),
        "diff": lambda: d,
        "conflict": conflict,
        "flag": lambda: r.feature_flags()[0],
        "update": lambda: next(iter(r.ops_log())),
        "kind": lambda: next(iter(r.ops_log())).kind,
        "repo": lambda: r,
        "ro": lambda: r.readonly_session("main"),
        "store": lambda: r.readonly_session("main").store,
        "fork": lambda: w.fork(),
        "err": lambda: ic.NodeNotFoundError("x", "node-not-found"),
        "cerr": lambda: ic.ConflictError("a", "b"),
        "rerr": lambda: ic.RebaseFailedError("a", [conflict()]),
        "storage": lambda: ic.s3_storage(bucket="b", prefix="p", anonymous=True),
        "chunktype": lambda: ic.ChunkType.native,
        "solver": lambda: ic.BasicConflictSolver(),
        "detector": lambda: ic.ConflictDetector(),
        "spec_version": lambda: ic.spec_version(),
        "manifests": lambda: r.list_manifest_files(w.snapshot_id),
    }


def _can(call: Callable[[], Any]) -> bool:
    try:
        return bool(call())
    except Exception:
        return False


def abilities() -> dict[str, dict[str, bool]]:
    """Return what each object can do: compare equal, be hashed, pickled, copied."""
    found = {}
    for name, make in values().items():
        one, other = make(), make()
        found[name] = {
            "equals": _can(lambda one=one, other=other: one == other),
            "hashes": _can(lambda one=one: isinstance(hash(one), int)),
            "pickles": _can(lambda one=one: type(pickle.loads(pickle.dumps(one)))),
            "pickles as equal": _can(lambda one=one: pickle.loads(pickle.dumps(one)) == one),
            "copies as equal": _can(lambda one=one: copy.deepcopy(one) == one),
        }
    return found
