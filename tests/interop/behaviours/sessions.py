"""What sessions and stores say of themselves, forks, transactions, and settings."""

from __future__ import annotations

from typing import Any

import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync

import icechunk
from tests.interop.base import create
from tests.interop.behaviours.table import (
    attempt,
    behaviour,
    buffer,
    changes,
    commit,
    get,
    messages,
    root_of,
    succeeds,
    tree,
)


def _state(session: Any) -> list[Any]:
    return [
        session.branch,
        str(session.mode),
        session.read_only,
        session.has_uncommitted_changes,
        session.store.read_only,
        attempt(lambda: changes(session.status())),
    ]


@behaviour
def states_of_sessions(repo: Any) -> Any:
    found = [_state(repo.readonly_session("main")), _state(repo.rearrange_session("main"))]
    session = repo.writable_session("main")
    found.append(_state(session))
    root = root_of(session)
    root["a"][0] = 9
    del root["m"]
    create(root, "new/x", (2,), (2,))[:] = 1
    root["g"].attrs["x"] = 1
    found.append(_state(session))
    session.discard_changes()
    found.append(_state(session))
    root_of(session)["a"][0] = 9
    session.commit("committed")
    found += [_state(session), session.snapshot_id == repo.lookup_branch("main")]
    return [*found, succeeds(session.commit, "again"), tree(session)["a"]]


@behaviour
def changes_that_are_none(repo: Any) -> Any:
    """Which edits count as changes, though nothing is different after them."""
    found = {}
    for name, edit in {
        "the same value": lambda root: root["a"].__setitem__(0, 1),
        "the same attribute": lambda root: root.attrs.update(of="root"),
        "created and deleted": _create_and_delete,
        "resized and back": _resize_and_back,
        "erased what is not": lambda root: root["unwritten"].__setitem__(0, 0),
    }.items():
        session = repo.writable_session("main")
        edit(root_of(session))
        found[name] = [*_state(session), succeeds(session.commit, name)]
    return found


def _create_and_delete(root: Any) -> None:
    root.create_group("new")
    del root["new"]


def _resize_and_back(root: Any) -> None:
    root["a"].resize((14,))
    root["a"].resize((12,))


@behaviour
def a_transaction_commits(repo: Any) -> Any:
    with repo.transaction("main", message="in a transaction", metadata={"x": 1}) as store:
        zarr.open_group(store, mode="a")["a"][0] = 9
    return [messages(repo, branch="main"), tree(repo.readonly_session("main"))["a"]]


@behaviour
def a_transaction_fails(repo: Any) -> Any:
    try:
        with repo.transaction("main", message="in a transaction") as store:
            zarr.open_group(store, mode="a")["a"][0] = 9
            raise KeyError("inside")
    except KeyError:
        pass
    return [messages(repo, branch="main"), tree(repo.readonly_session("main"))["a"]]


@behaviour
def a_transaction_without_changes(repo: Any) -> Any:
    def run() -> None:
        with repo.transaction("main", message="nothing"):
            pass

    return [succeeds(run), messages(repo, branch="main")]


@behaviour
def a_transaction_is_rebased(repo: Any) -> Any:
    def run(value: int, **options: Any) -> None:
        with repo.transaction("main", message=f"ours {value}", **options) as store:
            zarr.open_group(store, mode="a")["a"][0] = value
            commit(repo, {"scalar": value}, f"theirs {value}")

    found = [succeeds(run, 1), succeeds(run, 2, rebase_with=icechunk.ConflictDetector())]
    return [*found, messages(repo, branch="main")]


@behaviour
def forks_are_merged_in_either_order(repo: Any) -> Any:
    found = []
    for number, order in enumerate(((0, 1), (1, 0))):
        session = repo.writable_session("main")
        forks = [session.fork() for _ in range(2)]
        for value, fork in enumerate(forks):
            root = root_of(fork)
            root["a"][2 * value] = 10 + value
            root["m"][value * 2, 0] = value + 5
        session.merge(*(forks[i] for i in order))
        found.append([changes(session.status()), tree(session)["a"], tree(session)["m"]])
        session.commit(f"order {number}")
    return found


@behaviour
def a_fork_of_a_fork(repo: Any) -> Any:
    session = repo.writable_session("main")
    root_of(session)["scalar"][...] = 1
    fork = session.fork()
    root_of(fork)["a"][0] = 9
    inner = fork.fork()
    root_of(inner)["a"][2] = 9
    found = [changes(fork.status()), tree(inner)["scalar"], succeeds(fork.merge, inner)]
    found += [succeeds(session.merge, fork), changes(session.status())]
    return [*found, succeeds(session.commit, "merged"), tree(repo.readonly_session("main"))["a"]]


@behaviour
def a_fork_is_merged_into_a_session_that_went_on(repo: Any) -> Any:
    session = repo.writable_session("main")
    fork = session.fork()
    root_of(session)["a"][0] = 1
    root_of(fork)["a"][2] = 2
    found = [succeeds(session.merge, fork), succeeds(session.merge, fork)]
    return [*found, tree(session)["a"], changes(session.status())]


@behaviour
def byte_ranges(repo: Any) -> Any:
    store = repo.readonly_session("main").store
    ranges = [
        RangeByteRequest(0, 4),
        RangeByteRequest(3, 8),
        OffsetByteRequest(0),
        OffsetByteRequest(5),
        SuffixByteRequest(3),
        SuffixByteRequest(8),
    ]
    keys = ("a/c/0", "m/c/0/0", "m/c/9/9")
    return {key: [get(store, key, each) for each in ranges] for key in keys}


@behaviour
def byte_ranges_beyond_a_chunk(repo: Any) -> Any:
    store = repo.readonly_session("main").store
    return {
        "end": get(store, "a/c/0", RangeByteRequest(3, 100)),
        "start": get(store, "a/c/0", OffsetByteRequest(100)),
        "suffix": get(store, "a/c/0", SuffixByteRequest(100)),
    }


@behaviour
def forks_that_wrote_the_same_chunk(repo: Any) -> Any:
    session = repo.writable_session("main")
    forks = [session.fork() for _ in range(2)]
    for value, fork in enumerate(forks):
        root_of(fork)["a"][0] = 10 + value
    return {"merge": succeeds(session.merge, *forks), "mode": str(forks[0].mode)}


@behaviour
def values_are_set_and_deleted(repo: Any) -> Any:
    session = repo.writable_session("main")
    store = session.store
    found: list[Any] = []
    for key, value in (
        ("a/c/0", b"12345678"),
        ("a/c/1", b"longer than the array allows"),
        ("m/c/0/0", b"short"),
    ):
        sync(store.set(key, buffer(value)))
        found.append([get(store, key), sync(store.exists(key)), sync(store.getsize(key))])
    sync(store.set_if_not_exists("a/c/0", buffer(b"00000000")))
    sync(store.set_if_not_exists("unwritten/c/0", buffer(b"00000000")))
    sync(store.delete("a/c/3"))
    sync(store.set_if_not_exists("a/c/3", buffer(b"33333333")))
    found += [get(store, key) for key in ("a/c/0", "unwritten/c/0", "a/c/3", "a/c/0/0", "a/c")]
    session.commit("set")
    store = repo.readonly_session("main").store
    return [*found, [get(store, key) for key in ("a/c/0", "a/c/1", "a/c/3")]]


@behaviour
def a_chunk_without_bytes(repo: Any) -> Any:
    store = repo.writable_session("main").store
    return {"set": succeeds(lambda: sync(store.set("a/c/4", buffer(b""))))}


@behaviour
def a_store_is_cleared(repo: Any) -> Any:
    session = repo.writable_session("main")
    found = [sync(session.store.is_empty(""))]
    sync(session.store.clear())
    found += [sync(session.store.is_empty("")), changes(session.status())]
    create(zarr.create_group(session.store), "a", (2,), (2,))[:] = 1
    session.commit("cleared")
    return [*found, tree(repo.readonly_session("main"))]


@behaviour
def what_stores_can_do(repo: Any) -> Any:
    reader, writer = repo.readonly_session("main").store, repo.writable_session("main").store
    return {
        "of a reader": [reader.supports_writes, reader.supports_deletes],
        "of a writer": [writer.supports_writes, writer.supports_deletes],
        "of both": [
            [
                store.read_only,
                store.supports_listing,
                store.supports_partial_writes,
                store.supports_consolidated_metadata,
                succeeds(lambda store=store: sync(store.set("a/c/0", buffer(b"12345678")))),
            ]
            for store in (reader, writer)
        ],
    }


@behaviour
def a_store_that_was_made_read_only(repo: Any) -> Any:
    session = repo.writable_session("main")
    store = session.store.with_read_only(True)
    return {
        "read_only": store.read_only,
        "set": succeeds(lambda: sync(store.set("a/c/0", buffer(b"12345678")))),
        "session": session.read_only,
    }


#: Options of the configuration, as they are set one by one.
OPTIONS: dict[str, Any] = {
    "inline_chunk_threshold_bytes": lambda: 1,
    "get_partial_values_concurrency": lambda: 3,
    "max_concurrent_requests": lambda: 7,
    "max_concurrent_decodes": lambda: 2,
    "num_updates_per_repo_info_file": lambda: 5,
    "compression": lambda: icechunk.CompressionConfig(level=5),
    "caching": lambda: icechunk.CachingConfig(num_chunk_refs=10, num_bytes_chunks=5),
    "manifest": lambda: icechunk.ManifestConfig(
        preload=icechunk.ManifestPreloadConfig(max_total_refs=5, max_arrays_to_scan=3)
    ),
}


@behaviour
def every_option_is_stored(repo: Any) -> Any:
    found = {}
    for name, value in OPTIONS.items():
        config = icechunk.RepositoryConfig.default()
        setattr(config, name, value())
        opened = icechunk.Repository.open(repo.storage, config)
        outcome = succeeds(opened.save_config)
        stored = icechunk.Repository.fetch_config(repo.storage)
        again = icechunk.Repository.open(repo.storage).config
        same = [getattr(each, name) == value() for each in (opened.config, stored, again)]
        found[name] = [outcome, *same]
    return found


@behaviour
def storage_settings_are_stored(repo: Any) -> Any:
    """The official client adds what else it knows of the storage."""
    given = icechunk.StorageSettings(
        concurrency=icechunk.StorageConcurrencySettings(
            max_concurrent_requests_for_object=3, ideal_concurrent_request_size=1_000_000
        ),
        retries=icechunk.StorageRetriesSettings(
            max_tries=3, initial_backoff_ms=5, max_backoff_ms=50
        ),
        minimum_size_for_multipart_upload=10_000_000,
    )
    config = icechunk.RepositoryConfig(storage=given)
    icechunk.Repository.open(repo.storage, config).save_config()
    stored = icechunk.Repository.open(repo.storage).config.storage
    assert stored is not None
    return [
        stored.concurrency == given.concurrency,
        stored.retries == given.retries,
        stored.minimum_size_for_multipart_upload,
    ]


@behaviour
def a_configuration_goes_over_the_stored_one(repo: Any) -> Any:
    stored = icechunk.RepositoryConfig(inline_chunk_threshold_bytes=20, max_concurrent_requests=9)
    icechunk.Repository.open(repo.storage, stored).save_config()
    given = icechunk.RepositoryConfig(inline_chunk_threshold_bytes=3)
    found = []
    for config in (None, given, icechunk.RepositoryConfig.default()):
        opened = icechunk.Repository.open(repo.storage, config).config
        found.append([opened.inline_chunk_threshold_bytes, opened.max_concurrent_requests])
    again = repo.reopen(config=given).config
    return [*found, again.inline_chunk_threshold_bytes, again.max_concurrent_requests]


@behaviour
def a_repository_is_opened_again(repo: Any) -> Any:
    commit(repo, {"scalar": 1}, "before")
    again = repo.reopen()
    commit(again, {"scalar": 2}, "by the other one")
    found = [messages(repo, branch="main"), tree(repo.readonly_session("main"))["scalar"]]
    return [*found, icechunk.Repository.exists(repo.storage), repo.spec_version == 2]
