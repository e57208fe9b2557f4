"""Every public call, made to fail, with a secret in whatever of it may hold one.

The calls, their parameters and the commands are found by looking at the packages. A name that
is new fails the tests until somebody says here whether it may hold a secret.
"""

from __future__ import annotations

import asyncio
import enum
import importlib
import inspect
import itertools
import json
import logging
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
import zarr
from click.testing import CliRunner

import icechunk as ic
from icechunk import Repository, RepositoryConfig, StorageRetriesSettings, StorageSettings
from icechunk.cli.app import main
from icechunk.config.virtual_chunks import VirtualChunkContainer
from icechunk.storage import places
from icechunk.virtual import outside
from tests.servers import object_server

SECRET = "SEKRET0000"
#: What the server puts into its answers.
ECHO = "LEAK"
PLACE = "127.0.0.1:9"
SIGNED = f"http://me:{SECRET}@{PLACE}/d?sig={SECRET}"
QUICK = StorageSettings(
    retries=StorageRetriesSettings(max_tries=1, initial_backoff_ms=1, max_backoff_ms=1)
)
MODULES = (
    "icechunk",
    "icechunk.storage",
    "icechunk.config",
    "icechunk.credentials",
    "icechunk.kerchunk",
    "icechunk_xarray",
    "icechunk_dask",
)


class Token:
    """A function that fetches credentials, and fails with what it knows."""

    def __call__(self) -> Any:
        raise RuntimeError(f"https://me:{SECRET}@host/token?sig={SECRET} failed")


HEADERS = [{"Authorization": f"Bearer {SECRET}"}, {"X-Auth": f"{SECRET}\n"}, {SECRET + "\n": "x"}]
OPTIONS = [
    {"key": "AKIA", "secret": SECRET, "token": SECRET, "endpoint_url": f"http://{PLACE}"},
    {"access_key_id": SECRET, "secret_access_key": SECRET, "bearer_token": f"{SECRET}\n"},
    {"headers": {"X-Auth": SECRET}, "bearer_token": SECRET},
    {"endpoint_url": f"http://me:{SECRET}@{PLACE}"},
    {"sas_token": f"sig={SECRET}", "account_key": SECRET, "nobody_knows": SECRET},
    {"client_kwargs": {"headers": {"X-Auth": SECRET}, "nobody_knows": SECRET}},
    {"proxy_url": f"http://me:{SECRET}@{PLACE}"},
]
URLS = [SIGNED, f"s3://AKIA:{SECRET}@bucket/p", f"https://{PLACE}/d?X-Amz-Signature={SECRET}"]
NAMES = [f"AKIA:{SECRET}@bucket", f"bucket?sig={SECRET}"]
TOKENS = [SECRET, f"{SECRET}\n", f"{SECRET}☃"]
#: What may hold a secret, and how.
PLANTED: dict[str, list[Any]] = {
    **dict.fromkeys(("headers", "read_headers", "write_headers"), HEADERS),
    **dict.fromkeys(("storage_options", "remote_options", "options", "opts", "config"), OPTIONS),
    **dict.fromkeys(("store_kwargs", "chunkmanager_store_kwargs"), OPTIONS),
    **dict.fromkeys(("url", "base_url", "url_prefix", "location", "endpoint_url"), URLS),
    **dict.fromkeys(("storage", "repo", "root", "references"), URLS),
    "urls": [[url] for url in URLS],
    "locations": [[url] for url in URLS],
    **dict.fromkeys(("bucket", "container", "namespace"), NAMES),
    **dict.fromkeys(("account", "account_id"), NAMES),
    **dict.fromkeys(("access_key", "access_key_id", "secret_access_key", "session_token"), TOKENS),
    **dict.fromkeys(("bearer", "bearer_token", "sas_token", "token"), TOKENS),
    "service_account_key": TOKENS,
    "application_credentials": [f"{SECRET}\n", f"{{{SECRET}}}"],
    "service_account_file": [f"{SECRET}\n"],
    "get_credentials": [Token()],
    "authorize_virtual_chunk_access": [{url: None} for url in URLS],
    "m": [{url: None} for url in URLS],
    "arguments": OPTIONS,
    "open_options": [
        {"storage_options": {"key": SECRET}},
        {"backend_kwargs": {"storage_options": {"headers": {"X-Auth": SECRET}}}},
        {"filename": SIGNED},
        {"password": object(), "token": SECRET},
    ],
    "user_agent": [f"{SECRET}\n"],
    "stores": [{"https": ic.http_store(headers={"X-Auth": SECRET})}],
    "store": [ic.http_store(headers={"X-Auth": SECRET})],
    "cont": [VirtualChunkContainer(URLS[2], ic.http_store(headers={"X-Auth": SECRET}))],
    "virtual_chunk_containers": [{URLS[2]: VirtualChunkContainer(URLS[2], ic.http_store())}],
    "containers": [[VirtualChunkContainer(URLS[2], ic.http_store(headers={"X-Auth": SECRET}))]],
    "credentials": [ic.S3StaticCredentials(SECRET, SECRET), SECRET],
    "current": [ic.S3StaticCredentials(SECRET, SECRET)],
    "pickled_function": [SECRET.encode()],
}
#: Plain names, numbers, values; and objects that were made by one of the calls here.
_PLAIN = """
undecoded unmet about access added adopt
after_rebase algorithm align_chunks allow_empty allow_gaps allow_http
already amends anonymous append_dim args arr_offset array array_path arrays as_of attempt
attempts attributes_deleted attribution availability axis backup_path backward base batch_size
before before_rebase began below branch branch_name byte_range bytes_deleted bytes_read
bytes_written caching change_set change_sets changed check_clean_root checksum
checksum_algorithm chunk_coordinates chunk_grid chunk_grid_shape chunk_offset chunks
chunks_deleted chunks_storage_class client commit commit_every commit_method commits committed
compression compression_level compute concat_dims concurrency conditions conflict conflict_type
conflicted_chunks connect_timeout_ms context coordinates counts create_version d dask_options
data deep default default_enabled definition delete_errors delete_expired_branches
delete_expired_tags delete_object_older_than delete_unused_v1_files deleted_arrays
deleted_groups dictionary_max_size_bytes dictionary_max_training_samples
dimension_names done drop_attributes
drop_unreadable drop_variables dry_run empty enabled encoding engine entry error etag
etag_checksum every executor exist_ok expand_dims expires_after fail_on_delete_of_updated_array
fail_on_delete_of_updated_group failed fair file files filter_by_keys follow_redirects
force_path_style format forward from_ from_branch from_env from_path from_refs from_snapshot_id
from_tag from_version func get_partial_values_concurrency group groups history holes host id
ideal_concurrent_request_size if_absent if_match if_unmodified_since incremental indent index
info inherited initial_backoff_ms inline inline_chunk_threshold_bytes inner isolate items job
kept key key_ranges key_start_values keys kind kwargs lanes last_modified
last_updated_at_checksum layers lease legacy_rooted_keys length lengths level library limit
limited_availability_reason limits lineage loadable log_filter_directive manifest manifest_id
manifests_deleted mask_fill_value materialized max_arrays_to_scan max_backoff_ms
max_bytes_by_value max_compressed_manifest_mem_bytes max_concurrent_decodes
max_concurrent_deletes max_concurrent_listings max_concurrent_manifest_fetches
max_concurrent_manifest_fetches_during_commit max_concurrent_requests
max_concurrent_requests_for_object max_consecutive_delete_failures
max_decoded_manifest_mem_bytes max_snapshots_in_memory max_total_refs max_tries max_waste merged
message metadata metadata_storage_class min_num_chunks minimum_size_for_multipart_upload missing
mode moved_nodes name named native nbytes needs network_stream_timeout_seconds new_arrays
new_groups new_snap_id new_value nth num_bytes_attributes num_bytes_chunks num_chunk_refs
num_refs num_snapshot_nodes num_transaction_changes num_updates_per_repo_info_file number obj
objects objects_failed_to_delete offset offsets older_than on_built on_changed on_chunk_conflict
on_conflict on_mismatch operation operation_attempt_timeout_ms operation_timeout_ms
order other other_change_set_bytes others overwrite pack packed_bytes packs parent_id parser
parts path peak_memory phase pid place plain prefetch_concurrency prefix preload preload_if
previous_snap_id principal progress prototype publish raised ran read read_latency_ms read_only
read_timeout_ms reasons rebase_tries rebase_with rebases recipe record_size ref refs regex
region regions remote_protocol removed rename replaced repo_update_retries repository
requester_pays requests result results resume retries return_results rows running s3_compatible
safe_append safe_chunks safe_encoding scatter_initial_credentials scheduler seconds seen session
set_at setting settings since size size_bytes sizes skipped skipped_phases slowest snapshot_id
snapshots snapshots_deleted solver source sources spec_version split_every split_sizes splitting
state status storage_class storage_settings stragglers tag tag_name target targets tasks
throttled_batches timeout timeouts times tip to_branch to_path to_refs to_snapshot_id to_tag
to_version total transaction_logs_deleted trusted unmasked unsafe_overwrite_refs
unsafe_use_conditional_create unsafe_use_conditional_update unsafe_use_metadata untouched
updated_arrays updated_at updated_chunks updated_groups use_weak_consistency user_data
validate_container validate_containers value variables verify virtual
virtual_chunk_location_compression virtual_ref_config wasted_bytes what when withheld workload
write_inherited_coords write_latency_ms written written_at zarr_format
"""
#: Names that newer releases of Zarr have for stores.
_OF_ZARR = "byte_ranges iterable max_coalesced_bytes max_concurrency max_gap_bytes"
PLAIN = frozenset(f"{_PLAIN} {_OF_ZARR}".split())
#: Classes whose objects hold no secret of a caller, or nothing but what is planted above.
_VALUES = """
AncestryGraph Attribution AzureCredentials AzureRefreshableCredential AzureStaticCredentials
BasicConflictSolver CachingConfig Committed CompressionConfig Conflict ConflictDetector
ConflictSolver Credentials Diff Fault FeatureFlag GCSummary GcsBearerCredential GcsCredentials
GcsStaticCredentials GetResult IcechunkAccessor ImportReport JobStatus LocalStorage
ManifestConfig ManifestFileInfo ManifestPreloadCondition ManifestPreloadConfig
ManifestSplitCondition ManifestSplitDimCondition ManifestSplittingConfig
ManifestVirtualChunkLocationCompressionConfig MemoryStorage ObjectMeta ObjectStoreConfig
OperationCount PartResult RepackSummary RepoStatus RepoUpdateRetryConfig S3Credentials S3Options
S3StaticCredentials SnapshotInfo Status StorageConcurrencySettings StorageConfig
StorageRetriesSettings StorageSettings StorageTimeoutSettings StoreConfig TaskRun Update
UpdateType VersionURL VirtualChunkContainer VirtualChunkSpec VirtualRefConfig VirtualizeReport
Written
"""
VALUES = frozenset(_VALUES.split())


class World:
    """A repository behind a token, on a server that refuses everything after a while."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        headers = {"X-Auth": SECRET}
        config: Any = {"endpoint": url, "allow_http": "true"}
        self.storage = ic.azure_storage(
            account="account",
            container="bucket",
            prefix="p",
            sas_token=f"sig={SECRET}",
            config=config,
        ).with_settings(QUICK)
        self.config = RepositoryConfig(inline_chunk_threshold_bytes=0, storage=QUICK)
        self.config.set_virtual_chunk_container(
            VirtualChunkContainer(
                f"{url}/d/", ic.http_store({"user_agent": "x"}, {"X-Auth": SECRET})
            )
        )
        created = Repository.create(
            self.storage, RepositoryConfig(storage=QUICK), check_clean_root=False
        )
        with created.transaction("main", message="array") as store:
            zarr.create_array(store, name="a", shape=4, chunks=2, dtype="u1")[:] = 1
        created.create_tag("v1", snapshot_id=created.lookup_branch("main"))
        access: Any = {f"{url}/d/": ic.credentials.HttpAccess}
        self.repository = Repository.open(self.storage, self.config, access)
        self.tip = self.repository.lookup_branch("main")
        self.jobs = self.repository.jobs
        self.job = self.jobs.create("job", branch="main", message="m", about={})
        self.s3 = ic.s3_storage(
            bucket="bucket",
            prefix="p",
            region="us-east-1",
            endpoint_url=f"http://{PLACE}",
            allow_http=True,
            access_key_id=SECRET,
            secret_access_key=SECRET,
            session_token=SECRET,
            headers=headers,
        ).with_settings(QUICK)
        self.given: dict[str, Any] = {
            "branch": "main",
            "branch_name": "new",
            "tag_name": "new",
            "name": "job",
            "snapshot_id": self.tip,
            "from_snapshot_id": self.tip,
            "from_": "main~1",
            "ref": "main",
            "commit": "main",
            "message": "m",
            "path": "/a",
            "array_path": "/a",
            "from_path": "/a",
            "to_path": "/b",
            "chunk_coordinates": [0],
            "key": "a/c/0",
            "keys": ["a/c/0"],
            "source": "a",
            "target": str(folder / "target"),
            "data": b"data",
            "value": zarr.core.buffer.cpu.Buffer.from_bytes(b"ab"),
            "prototype": zarr.buffer.default_buffer_prototype(),
            "older_than": datetime.now(UTC),
            "delete_object_older_than": datetime.now(UTC),
            "before": datetime.now(UTC),
            "manifest_id": "00000000000G40R40M30",
            "concat_dims": ["t"],
            "offset": 0,
            "length": 4,
            "solver": ic.ConflictDetector(),
            "setting": True,
            "func": print,
            "index": [0],
            "inner": self.storage,
            "repository": self.repository,
            "settings": QUICK,
            "storage_settings": QUICK,
            "prefix": "p",
        }

    def made(self, name: str) -> Any:
        """Return a fresh object of a class, or None."""
        match name:
            case "Repository":
                return self.repository.reopen()
            case "Session":
                session = self.repository.writable_session("main")
                session.store.set_virtual_ref("a/c/1", self.location, offset=0, length=2)
                return session
            case "ForkSession":
                return self.repository.writable_session("main").fork()
            case "IcechunkStore":
                return self.repository.writable_session("main").store
            case "Jobs":
                return self.jobs
            case "Job":
                return self.job
            case "RepositoryConfig":
                return self.config
            case "Storage" | "ObjectStorage":
                return self.storage
            case "CountingStorage" | "WrapperStorage" | "FaultyStorage" | "LatencyStorage":
                return getattr(ic.storage, name)(self.s3)
        return None

    @property
    def location(self) -> str:
        return next(iter(self.config.virtual_chunk_containers or {})) + "x"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with object_server() as server:
        made = World(server.url, tmp_path_factory.mktemp("every"))
        # sessions have to begin before everything is refused
        begun = {
            name: [made.made(name) for _ in range(2)]
            for name in ("Session", "ForkSession", "IcechunkStore")
        }
        real = made.made

        def of(name: str) -> Any:
            if name in begun:
                return (
                    pickle.loads(pickle.dumps(begun[name][0]))
                    if name == "ForkSession"
                    else (begun[name][0])
                )
            return real(name)

        made.made = of  # type: ignore[method-assign]
        server.failures[:] = [403] * 1_000_000
        yield made


@pytest.fixture(autouse=True)
def searched(
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[None]:
    """Search what is printed, logged and warned."""
    monkeypatch.setattr(outside, "_SINGLE", QUICK)
    # also where a call has no settings
    monkeypatch.setattr(places, "retry_options", lambda *args, **kwargs: {"max_retries": 0})
    monkeypatch.setattr("icechunk.storage.guarded_http.time.sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield
    out = capfd.readouterr()
    clean(out.out + out.err + caplog.text + "".join(str(w.message) for w in warned))
    for path in tmp_path.rglob("*"):
        assert SECRET not in path.name
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def clean(text: str) -> None:
    for secret in (SECRET, ECHO):
        at = text.find(secret)
        assert at < 0, text[max(at - 300, 0) : at + 100]


# -- what there is -------------------------------------------------------------------------
def public() -> dict[str, Any]:
    """Return functions, and methods of classes, by name."""
    found: dict[int, tuple[str, Any]] = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None) or [n for n in dir(module) if n[0] != "_"]
        for name in sorted(names):
            value = getattr(module, name)
            if callable(value) and not inspect.ismodule(value):
                found.setdefault(id(value), (name, value))
    return dict(found.values())


PUBLIC = public()
CLASSES = {
    name: value
    for name, value in PUBLIC.items()
    if inspect.isclass(value) and not issubclass(value, enum.Enum | BaseException)
}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if not inspect.isclass(value)}
METHODS = {
    f"{name}.{method}": (name, method)
    for name, value in CLASSES.items()
    for method in dir(value)
    if not method.startswith("_")
}


def parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def test_nothing_new() -> None:
    """Say in one of the tables what a new parameter or class holds."""
    seen: set[str] = set()
    for value in (*CLASSES.values(), *FUNCTIONS.values()):
        seen.update(parameters(value))
    for class_name, method in METHODS.values():
        value = getattr(CLASSES[class_name], method)
        if callable(value) and not inspect.isclass(value):
            seen.update(parameters(value))
    unknown = seen - PLANTED.keys() - PLAIN - {"self", "cls"}
    assert not unknown, f"may these parameters hold a secret? {sorted(unknown)}"
    kept = World.__dict__["made"].__code__.co_consts
    made = {each for const in kept for each in (const if isinstance(const, tuple) else (const,))}
    assert not CLASSES.keys() - VALUES - made, "may objects of these classes hold a secret?"


# -- calls -----------------------------------------------------------------------------------
def attempt(call: Callable[[], Any]) -> None:
    try:
        result = call()
        if inspect.iscoroutine(result):
            result = asyncio.run(asyncio.wait_for(result, 20))
        elif inspect.isasyncgen(result):
            result = asyncio.run(asyncio.wait_for(anext(result), 20))
        elif isinstance(result, Iterator):
            result = list(itertools.islice(result, 5))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        clean("".join(traceback.format_exception(error)))
        clean(repr(error) + str(error) + str(error.args))
        with_pickle(error)
        return
    if isinstance(result, str | bytes | dict):
        return  # what was asked for, and not how something is shown
    with suppress(AttributeError, ValueError, TypeError):
        # values that make no sense cannot always be shown
        clean(f"{result!r} {result} {[result]}")
        html = getattr(result, "_repr_html_", None)
        if callable(html) and not inspect.isclass(result):
            clean(str(html()))


def with_pickle(error: BaseException) -> None:
    try:
        data = pickle.dumps(error)
    except Exception:
        return
    clean(data.decode("latin-1"))


#: Parameters of results that nobody makes by hand: what is planted there came through no call.
MADE = {(CLASSES["VirtualizeReport"], "options"), (CLASSES["VirtualRefConfig"], "config")}


def calls(function: Any, world: World) -> Iterator[dict[str, Any]]:
    """Yield arguments: one call with plain ones, and one for each way to plant a secret."""
    plain: dict[str, Any] = {}
    planted: dict[str, list[Any]] = {}
    for name, parameter in parameters(function).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            if name in PLANTED:
                planted[""] = OPTIONS
            continue
        if name in PLANTED and (function, name) not in MADE:
            planted[name] = PLANTED[name]
        if parameter.default is parameter.empty:
            plain[name] = world.given.get(name, planted.get(name, ["x"])[0])
    yield plain
    for name, values in planted.items():
        for value in values:
            yield {**plain, **(value if name == "" else {name: value})}
    both = [name for name in planted if name]
    if len(both) > 1:
        yield {**plain, **{name: planted[name][-1] for name in both}}


@pytest.mark.parametrize("name", sorted({**FUNCTIONS, **CLASSES}))
def test_functions_and_classes(name: str, world: World) -> None:
    value = PUBLIC[name]
    for arguments in calls(value, world):
        attempt(lambda a=arguments: value(**a))


#: Such calls end what others here need, or wait for somebody.
_OWN = frozenset(("progress",))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods(name: str, world: World) -> None:
    class_name, method = METHODS[name]
    owner = CLASSES[class_name]
    static = inspect.getattr_static(owner, method)
    if isinstance(static, classmethod | staticmethod) or inspect.isclass(getattr(owner, method)):
        value = getattr(owner, method)
        for arguments in calls(value, world):
            attempt(lambda a=arguments: value(**a))
        return
    target = world.made(class_name)
    if target is None:
        return
    if isinstance(static, property) or not callable(getattr(owner, method)):
        attempt(lambda: getattr(target, method))
        return
    if method in _OWN:
        return
    value = getattr(target, method)
    for arguments in calls(value, world):
        attempt(lambda a=arguments: value(**a))
    html = getattr(target, "_repr_html_", lambda: "")
    clean(f"{target!r} {target} {html()}")


# -- commands ----------------------------------------------------------------------------------
def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[Any]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, (*words, name))
    else:
        yield words, command


COMMANDS = {" ".join(words): command for words, command in commands(main)}
#: Arguments and options of commands that may hold a secret.
PLACES = frozenset(("repo", "target", "urls", "references"))
ASSIGNMENTS = frozenset(("options", "to_options", "remote_options"))
PREFIXES = frozenset(("authorize_virtual_chunk_access", "containers", "prefixes"))
_WORDS = """
adopt append_dim at base branch chunk_grid chunks commit commit_every concat_dims
drop_attributes engine expand_dims from_ group message name object_id path ref region
drop_variables filter_by_keys loadable max_bytes_by_value on_changed order rename variables verify
"""
#: Those that cannot.
WORDS: dict[str, str] = {
    "older_than": "2020-01-01",
    "number": "1",
    "kind": "repo",
    "to": "main",
    "spec_version": "2",
    "on_mismatch": "error",
    "form": "json",
    "deep": "all",
    "index": "0",
    **dict.fromkeys(_WORDS.split(), "main"),
}


def test_nothing_new_among_commands() -> None:
    assert len(COMMANDS) > 30
    named = {
        parameter.name
        for command in COMMANDS.values()
        for parameter in command.params
        if not getattr(parameter, "is_flag", False)
    }
    assert not named - PLACES - ASSIGNMENTS - PREFIXES - WORDS.keys(), "may these hold a secret?"


def words_of(command: click.Command, place: str, assignment: str | None) -> list[str]:
    words: list[str] = []
    after: list[str] = []
    for parameter in command.params:
        name = parameter.name or ""
        if name in ASSIGNMENTS and assignment is not None:
            words += [parameter.opts[0], assignment]
        elif name in PREFIXES:
            words += [parameter.opts[0], place]
        elif isinstance(parameter, click.Argument) and (parameter.required or name in PLACES):
            after.append(place if name in PLACES else WORDS[name])
        elif parameter.required:
            words += [parameter.opts[0], WORDS[name]]
        elif name == "yes":
            words.append(parameter.opts[0])
    return [*words, *after]


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str, tmp_path: Path) -> None:
    command = COMMANDS[name]
    plain = f"http://{PLACE}/r"
    assignments = (
        f"headers.X-Auth={SECRET}",
        f"bearer_token={SECRET}",
        f"secret_access_key={SECRET}",
        f"nobody_knows={SECRET}",
        f"={SECRET}",
        json.dumps({"headers": {"X-Auth": SECRET}}),
    )
    tries = [(place, None) for place in (*URLS, f"htps://me:{SECRET}@{PLACE}/r")]
    tries += [(place, word) for word in assignments for place in (plain, "s3://bucket/p")]
    for place, assignment in tries:
        words = [*name.split(), *words_of(command, place, assignment)]
        environment = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET}
        environment["AWS_ENDPOINT_URL"], environment["AWS_ALLOW_HTTP"] = f"http://{PLACE}", "true"
        environment["AWS_REGION"] = "us-east-1"
        result = CliRunner().invoke(main, words, env=environment)
        clean(result.output + result.stderr)
        if result.exception is not None:
            clean("".join(traceback.format_exception(result.exception)))
