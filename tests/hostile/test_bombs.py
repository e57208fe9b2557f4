"""What is small and becomes large, or never ends: refused, after a bounded number of bytes."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from icechunk import (
    InvalidInputError,
    MemoryStorage,
    Repository,
    StorageRetriesSettings,
    StorageSettings,
    StorageTimeoutSettings,
    http_storage,
    redirect_storage,
)
from icechunk.changes.codec import MAGIC, VERSION, decode_change_set
from icechunk.errors import FormatError, IcechunkError, StorageError
from icechunk.format import layout
from icechunk.format.repo_info import RepoInfo, decode_repo_info, encode_repo_info
from icechunk.kerchunk import import_references, parquet, reading
from icechunk.storage import CountingStorage, base
from icechunk.storage.allowance import Allowance
from tests.endless import BLOCK, CHUNK, MIB, OK, Endless, endless
from tests.hostile.test_redirects import serving

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


# -- web servers ---------------------------------------------------------------------------
def quick(server: Endless, **timeouts: int) -> Any:
    settings = StorageSettings(
        retries=StorageRetriesSettings(max_tries=2, initial_backoff_ms=1, max_backoff_ms=1),
        timeouts=StorageTimeoutSettings(**timeouts),
    )
    return http_storage(server.url).with_settings(settings)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (OK + b"\r\n", BLOCK),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK),
        (OK + b"Content-Length: 1152921504606846976\r\n\r\n", BLOCK),
    ],
    ids=["to the end", "chunked", "announced"],
)
def test_bodies_without_an_end(first: bytes, then: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_WHOLE", 2 * MIB)
    calls: list[Callable[[Any], Any]] = [
        lambda s: s.get("repo"),
        lambda s: s.get_if_changed("repo", '"x"'),
        lambda s: s.get("repo", byte_range=(0, None)),
        Repository.open,
    ]
    for call in calls:
        with endless(first, then) as server:
            with pytest.raises(StorageError, match=r"more than 2097152"):
                call(quick(server))
            # what the sockets hold besides
            assert server.sent < 32 * MIB
            assert server.requests == 1
    with endless(first, then) as server:
        assert quick(server).get("repo", byte_range=(0, 10)).data == b"x" * 10
        assert server.sent < 32 * MIB


@pytest.mark.parametrize("status", [b"200 OK", b"403 Forbidden", b"500 Internal Server Error"])
def test_a_bucket_that_a_redirect_names(status: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_WHOLE", 2 * MIB)
    with serving() as web, endless(b"HTTP/1.1 " + status + b"\r\n\r\n", BLOCK) as server:
        web.status = 307
        web.location = f"s3://bucket/folder?endpoint_url={server.url.removesuffix('/d')}"
        storage = redirect_storage(f"http://127.0.0.1:{web.port}/x")
        settings = StorageSettings(retries=StorageRetriesSettings(max_tries=1))
        calls: list[Callable[[Any], Any]] = [
            lambda s: s.get("repo"),
            lambda s: s.get("repo", byte_range=(MIB, None)),
            lambda s: list(s.list()),
            Repository.open,
        ]
        for call in calls:
            with allocating(16 * MIB), pytest.raises(StorageError):
                call(storage.with_settings(settings))
        assert 3 <= server.requests <= 4
        assert server.sent < 4 * 32 * MIB


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (OK + b"Content-Length: 1000000\r\n\r\n", b"x"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n"),
        (OK + b"X-Slow: ", b"x"),
        (b"HTTP", b"x"),
        (OK, b"A: b\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "chunks", "trailers", "header", "status", "headers", "continue"],
)
def test_drips_come_to_an_end(first: bytes, then: bytes) -> None:
    # each part comes long before the line counts as silent
    with endless(first, then, 0.01) as server:
        storage = quick(server, operation_timeout_ms=300, read_timeout_ms=60_000)
        with pytest.raises(StorageError, match="cannot read repo"):
            storage.get("repo")
        with pytest.raises(StorageError, match="cannot read repo"):
            Repository.open(storage)


def test_a_redirect_that_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icechunk.storage.urls._REDIRECT_TIMEOUT", 0.3)
    with (
        endless(b"HTTP/1.1 302 Found\r\nX-Slow: ", b"x", 0.01) as server,
        pytest.raises(StorageError, match="does not lead to a storage"),
    ):
        redirect_storage(server.url)


def test_a_slow_line_may_go_on_if_it_carries_something(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    slow, fast, strict = (Allowance(60, 180, strict=strict) for strict in (False, False, True))
    for now in range(0, 3600, 10):
        fast.count(10 * 2000)
        slow.count(10 * 500)
        if now < 180:
            assert 0 < slow.wait() <= 60
            strict.wait()
        else:
            assert fast.wait() == 60
            for spent in (slow, strict):
                with pytest.raises(TimeoutError, match="180 seconds"):
                    spent.wait()


# -- what grows ------------------------------------------------------------------------------
@contextmanager
def allocating(limit: int) -> Iterator[None]:
    """Check how much memory is taken at a time, in bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def zeros(size: int) -> bytes:
    compressor = zstd.ZstdCompressor()
    block = bytes(MIB)
    return b"".join([compressor.compress(block) for _ in range(size // MIB)] + [compressor.flush()])


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """Two gigabytes in less than a hundred kilobytes."""
    data = zeros(2048 * MIB)
    assert len(data) < MIB // 8
    return data


def test_a_change_set_that_grows(bomb: bytes) -> None:
    repository = Repository.create(MemoryStorage())
    data = MAGIC + bytes([VERSION]) + bomb
    with allocating(300 * MIB), pytest.raises(FormatError, match="decompressed"):
        decode_change_set(data)
    session = repository.writable_session("main")
    with allocating(300 * MIB), pytest.raises(FormatError, match="decompressed"):
        session.distributed_commit("bomb", [data])


@pytest.mark.parametrize("form", ["zstd", "frames", "gzip"])
def test_references_that_grow(tmp_path: Path, bomb: bytes, form: str) -> None:
    path = tmp_path / f"refs.json.{form}"
    if form == "gzip":
        path.write_bytes(gzip.compress(bytes(MIB)) * 600)
    else:
        path.write_bytes(bomb if form == "zstd" else zeros(MIB) * 4000)
    session = Repository.create(MemoryStorage()).writable_session("main")
    with allocating(400 * MIB), pytest.raises(InvalidInputError, match=r"more than \d+ bytes"):
        import_references(path, session)
    assert not session.has_uncommitted_changes


def test_references_that_are_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Repository.create(MemoryStorage()).writable_session("main")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="not a file"):
        import_references(tmp_path / "pipe", session)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 42)
    with allocating(10 * MIB), pytest.raises(StorageError, match="more than"):
        import_references(tmp_path / "sparse", session)
    monkeypatch.setattr(reading, "MAX_FILE", MIB)
    with endless(OK + b"\r\n", BLOCK) as server:
        with pytest.raises(StorageError, match="more than"):
            import_references(server.url + "/refs.json", session)
        assert server.sent < 64 * MIB
    for text in ("[" * 200_000, '{"refs":' * 50_000, '{"a": ' + "9" * 100_000 + "}"):
        (tmp_path / "deep").write_text(text)
        with pytest.raises(InvalidInputError, match="no kerchunk references"):
            import_references(tmp_path / "deep", session)


# -- what is declared ------------------------------------------------------------------------
def parquet_store(folder: Path, shape: list[int], record_size: int = 10) -> Path:
    array = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": [1] * len(shape),
        "dtype": "<i4",
        "compressor": None,
        "filters": None,
        "fill_value": 0,
        "order": "C",
    }
    metadata = {".zgroup": {"zarr_format": 2}, "a/.zarray": array}
    document = {"metadata": metadata, "record_size": record_size}
    (folder / "a").mkdir(parents=True)
    (folder / ".zmetadata").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("shape", [[2**50], [2**31, 2**31], [2**31] * 30])
def test_references_to_more_chunks_than_there_are(
    tmp_path: Path, shape: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec.implementations.local

    store = parquet_store(tmp_path / "store", shape)
    asked: list[str] = []
    real = fsspec.implementations.local.LocalFileSystem.info
    monkeypatch.setattr(
        fsspec.implementations.local.LocalFileSystem,
        "info",
        lambda self, path, **more: asked.append(path) or real(self, path, **more),
    )
    session = Repository.create(MemoryStorage()).writable_session("main")
    # the grid may be more than the format can hold
    with allocating(50 * MIB), suppress(IcechunkError):
        import_references(store, session)
    assert len(asked) < 100


def test_records_say_how_many_rows_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    store = parquet_store(tmp_path / "store", [4], 4)
    frame = pd.DataFrame({"path": ["s3://b/k"] * 4, "offset": 0, "size": 4, "raw": None})
    frame.to_parquet(store / "a" / "refs.0.parq", engine="fastparquet")
    session = Repository.create(MemoryStorage()).writable_session("main")
    monkeypatch.setattr(parquet, "_FREE_ROWS", 3)
    monkeypatch.setattr(parquet, "_ROWS_PER_BYTE", 0)
    with pytest.raises(InvalidInputError, match="declares 4 rows"):
        import_references(store, session, validate_containers=False)


@pytest.mark.parametrize(
    "dtype", ["|V2000000000", "|S2000000000", "<U500000000", [["x", "|V2000000000"]]]
)
@pytest.mark.parametrize("fill", [None, 0, "AA=="])
def test_items_of_any_size(dtype: Any, fill: Any) -> None:
    array = {
        "zarr_format": 2,
        "shape": [4],
        "chunks": [2],
        "dtype": dtype,
        "compressor": None,
        "filters": None,
        "fill_value": fill,
        "order": "C",
    }
    refs = {".zgroup": '{"zarr_format": 2}', "a/.zarray": json.dumps(array)}
    session = Repository.create(MemoryStorage()).writable_session("main")
    with allocating(50 * MIB), pytest.raises(InvalidInputError, match="items of 2000000000 bytes"):
        import_references(refs, session)


# -- repositories ------------------------------------------------------------------------------
def changed(repository: Repository, change: Callable[[RepoInfo], RepoInfo]) -> MemoryStorage:
    """Return a storage with a repository that nobody would write."""
    storage = MemoryStorage()
    for meta in repository.storage.list():
        storage.put(meta.key, repository.storage.get(meta.key).data)
    info = decode_repo_info(storage.get(layout.REPO_KEY).data, "repo")
    storage.put(layout.REPO_KEY, bytes(encode_repo_info(change(info))))
    return storage


@pytest.fixture
def history() -> Repository:
    repository = Repository.create(MemoryStorage())
    for i in range(4):
        with repository.transaction("main", message=str(i)) as store:
            import zarr

            zarr.create_group(store, path=f"g{i}")
    return repository


def circle(info: RepoInfo) -> RepoInfo:
    """Make the tip the parent of the first snapshot, too."""
    tip = info.branches["main"]
    entries = dict(info.snapshots)
    for id, entry in entries.items():
        if entry.parent_id is None:
            entries[id] = replace(entry, parent_id=tip)
    return replace(info, snapshots=entries)


def test_snapshots_that_are_their_own_ancestors(history: Repository) -> None:
    from datetime import UTC, datetime, timedelta

    counted = CountingStorage(changed(history, circle))
    later = datetime.now(UTC) + timedelta(days=1)
    calls: list[Callable[[], Any]] = [
        lambda: list(Repository.open(counted).ancestry(branch="main")),
        lambda: Repository.open(counted).readonly_session("main"),
        lambda: Repository.open(counted).garbage_collect(later),
        lambda: Repository.open(counted).expire_snapshots(later),
        lambda: Repository.open(counted).diff(
            from_snapshot_id="1CECHNKREP0F1RSTCMT0", to_branch="main"
        ),
        lambda: Repository.open(counted).verify() if hasattr(Repository, "verify") else None,
    ]
    for call in calls:
        with suppress(IcechunkError):
            call()
    assert counted.requests < 200


def test_branches_by_the_hundred_thousand(history: Repository) -> None:
    def many(info: RepoInfo) -> RepoInfo:
        tip = info.branches["main"]
        return replace(info, branches={"main": tip, **{f"b{i}": tip for i in range(100_000)}})

    counted = CountingStorage(changed(history, many))
    with allocating(150 * MIB):
        repository = Repository.open(counted)
        repository.readonly_session("main")
        assert len(repository.list_branches()) == 100_001
    assert counted.requests < 10
