"""Mistakes in calls that need no repository, or a new one: wrong arguments, wrong order.

Beside `refusals`, which starts from a repository with a history.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import zarr

import icechunk as ic
from icechunk.distributed import merge_sessions


def new(**arguments: Any) -> Any:
    """Return a new repository."""
    return ic.Repository.create(ic.in_memory_storage(), **arguments)


def on_main(call: Callable[[Any, str], Any]) -> Callable[[], Any]:
    """Return a call on a new repository and the tip of its branch."""

    def run() -> Any:
        repo = new()
        return call(repo, repo.lookup_branch("main"))

    return run


def in_session(call: Callable[[Any], Any]) -> Callable[[], Any]:
    """Return a call on a writable session."""
    return lambda: call(new().writable_session("main"))


def split(condition: Any, size: int) -> Any:
    """Return a configuration that splits manifests."""
    rules = {ic.ManifestSplitCondition.AnyArray(): {condition: size}}
    splitting = ic.ManifestSplittingConfig.from_dict(rules)
    return ic.RepositoryConfig(manifest=ic.ManifestConfig(splitting=splitting))


def with_container(prefix: str) -> Any:
    """Return a configuration with a container in S3."""
    config = ic.RepositoryConfig.default()
    config.set_virtual_chunk_container(ic.VirtualChunkContainer(prefix, ic.s3_store()))
    return config


def create_twice() -> None:
    """Create a repository where there is one."""
    storage = ic.in_memory_storage()
    for _ in range(2):
        ic.Repository.create(storage)


def rebase_never(session: Any) -> None:
    """Commit with a negative number of tries."""
    zarr.create_group(session.store)
    session.commit("x", rebase_with=ic.ConflictDetector(), rebase_tries=-1)


#: Without a time zone.
NAIVE = datetime(2026, 1, 1)

MISTAKES: dict[str, Callable[[], Any]] = {
    "open_missing": lambda: ic.Repository.open(ic.in_memory_storage()),
    "open_missing_folder": lambda: ic.Repository.open(
        ic.local_filesystem_storage("/nowhere/at/all")
    ),
    "create_twice": create_twice,
    "create_v3": lambda: new(spec_version=3),
    "config_negative": lambda: ic.RepositoryConfig(inline_chunk_threshold_bytes=-1),
    "config_large": lambda: ic.RepositoryConfig(inline_chunk_threshold_bytes=2**40),
    "config_str": lambda: ic.RepositoryConfig(inline_chunk_threshold_bytes="a"),
    "config_unknown": lambda: ic.RepositoryConfig(foo=1),
    "config_nested_type": lambda: ic.RepositoryConfig(manifest=1),
    "compression_type": lambda: ic.CompressionConfig(algorithm="zstd"),
    "compression_level": lambda: ic.CompressionConfig(level=300),
    "caching_neg": lambda: ic.CachingConfig(num_chunk_refs=-2),
    "retries_zero": lambda: ic.StorageRetriesSettings(max_tries=0),
    "concurrency_zero": lambda: ic.StorageConcurrencySettings(max_concurrent_requests_for_object=0),
    "s3_no_bucket": lambda: ic.s3_storage(prefix="x"),
    "s3_half_key": lambda: ic.s3_storage(bucket="b", prefix="p", access_key_id="a"),
    "s3_both": lambda: ic.s3_storage(
        bucket="b", prefix="p", access_key_id="a", secret_access_key="b", anonymous=True
    ),
    "s3_env_and_anon": lambda: ic.s3_storage(bucket="b", prefix="p", from_env=True, anonymous=True),
    "s3_session_only": lambda: ic.s3_credentials(session_token="x"),
    "s3_naive_expiry": lambda: ic.S3StaticCredentials("a", "b", expires_after=datetime(2020, 1, 1)),
    "gcs_two": lambda: ic.gcs_credentials(bearer_token="a", service_account_file="b"),
    "gcs_static_none": lambda: ic.gcs_static_credentials(),
    "azure_two": lambda: ic.azure_credentials(access_key="a", sas_token="b"),
    "azure_static_none": lambda: ic.azure_static_credentials(),
    "azure_from_env_and_anon": lambda: ic.azure_credentials(from_env=True, anonymous=True),
    "r2_nothing": lambda: ic.r2_storage(),
    "r2_no_account": lambda: ic.r2_storage(bucket="b", prefix="p"),
    "tigris_no_region": lambda: ic.tigris_storage(bucket="b", prefix="p"),
    "http_no_url": lambda: ic.http_storage("nonsense"),
    "redirect_no_url": lambda: ic.redirect_storage("nonsense"),
    "container_no_slash": lambda: new(config=with_container("s3://b")),
    "container_wrong_store": lambda: new(config=with_container("gs://b/")),
    "container_str_store": lambda: ic.VirtualChunkContainer("s3://b/", "x"),
    "container_none": lambda: ic.RepositoryConfig.default().set_virtual_chunk_container(1),
    "spec_neg": lambda: ic.VirtualChunkSpec([0], "s3://b/x", -1, 2),
    "spec_type": lambda: ic.VirtualChunkSpec(["a"], "s3://b/x", 0, 2),
    "containers_credentials_bad": lambda: ic.containers_credentials({"s3://b/": 1}),
    "authorize_bad": lambda: new(authorize_virtual_chunk_access={"s3://b/": 1}),
    "preload_regex": lambda: ic.ManifestPreloadCondition.path_matches("("),
    "split_regex": lambda: ic.ManifestSplitCondition.name_matches("("),
    "split_zero": lambda: new(config=split(ic.ManifestSplitDimCondition.Axis(0), 0)),
    "split_along_a_string": lambda: split("x", 1),
    "repo_no_storage": lambda: ic.Repository.open(),
    "repo_int_storage": lambda: ic.Repository.open(3),
    "repo_storage_kw": lambda: ic.Repository.open(storage=ic.in_memory_storage(), cfg=1),
    "readonly_nothing": lambda: new().readonly_session(),
    "readonly_two": lambda: new().readonly_session("main", tag="x"),
    "readonly_as_of_tag": lambda: new().readonly_session(tag="x", as_of=datetime.now(UTC)),
    "readonly_before": lambda: new().readonly_session(
        "main", as_of=datetime(2000, 1, 1, tzinfo=UTC)
    ),
    "commit_no_message": lambda: new().writable_session("main").commit(),
    "commit_bad_metadata": lambda: (
        new().writable_session("main").commit("x", metadata={"a": {1, 2}}, allow_empty=True)
    ),
    "commit_metadata_list": lambda: (
        new().writable_session("main").commit("x", metadata=[1], allow_empty=True)
    ),
    "rebase_with_str": lambda: (
        new().writable_session("main").commit("x", rebase_with="a", allow_empty=True)
    ),
    "merge_nonfork": in_session(lambda session: session.merge(new().writable_session("main"))),
    "merge_sessions_nonfork": in_session(merge_sessions),
    "pickle_writable": in_session(pickle.dumps),
    "tag_bad_id": lambda: new().create_tag("t", "xyz"),
    "lookup_snapshot_bad": lambda: new().lookup_snapshot("xyz"),
    "lookup_snapshot_none": lambda: new().lookup_snapshot("0" * 20),
    "lookup_branch_none": lambda: new().lookup_branch("nope"),
    "reset_missing_branch": on_main(lambda repo, tip: repo.reset_branch("x", tip)),
    "ancestry_nothing": lambda: list(new().ancestry()),
    "diff_nothing": lambda: new().diff(),
    "set_metadata_bad": lambda: new().set_metadata({"a": {1}}),
    "status_bad": lambda: new().set_status("online"),
    "solver_bad": lambda: ic.BasicConflictSolver(on_chunk_conflict="ours"),
    "storage_abstract": lambda: ic.Storage(),
    "attribution_bad": lambda: ic.Attribution(client="a b"),
    "transaction_missing": lambda: new().transaction("nope", message="x").__enter__(),
    "store_read_only": lambda: zarr.create_group(new().readonly_session("main").store),
    "rearrange_missing": lambda: new().rearrange_session("nope"),
    "fork_rearrange": lambda: new().rearrange_session("main").fork(),
    "exists_int": lambda: ic.Repository.exists(3),
    "conflict_type": lambda: ic.ConflictType(99),
    "expire_naive": lambda: new().expire_snapshots(NAIVE),
    "expire_text": lambda: new().expire_snapshots("2026-01-01"),
    "gc_naive": lambda: new().garbage_collect(NAIVE),
    **{
        f"gc_{option}_{value}": lambda options={option: value}: new().garbage_collect(  # type: ignore[misc]
            datetime.now(UTC), **options
        )
        for option in (
            "max_snapshots_in_memory",
            "max_compressed_manifest_mem_bytes",
            "max_decoded_manifest_mem_bytes",
            "max_concurrent_manifest_fetches",
            "max_concurrent_deletes",
            "max_consecutive_delete_failures",
            "max_concurrent_listings",
        )
        for value in (0, -1)
    },
    "stats_no_snapshots": lambda: new().chunk_storage_stats(max_snapshots_in_memory=0),
    "total_no_snapshots": lambda: new().total_chunks_storage(max_snapshots_in_memory=0),
    "rebase_tries_neg": in_session(rebase_never),
}


def outcomes() -> dict[str, list[Any]]:
    """Return class, kind and builtin bases of the error that each mistake raises."""
    found: dict[str, list[Any]] = {}
    for name, call in MISTAKES.items():
        try:
            call()
        except Exception as error:
            bases = [base.__name__ for base in type(error).__mro__]
            found[name] = [type(error).__name__, str(getattr(error, "kind", "")), bases]
        else:
            found[name] = []
    return found
