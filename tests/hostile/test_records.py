"""What lies beside the format in a stranger's repository: records of jobs, tables of archives.

Each is damaged in every field, with values of every other type, and each may grow: what comes is
an error of this library, and no more memory than the size of the object allows.
"""

from __future__ import annotations

import json
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import zarr

from icechunk import FormatError, MemoryStorage, Repository
from icechunk.errors import IcechunkError
from icechunk.repository.archive_tables import named_table
from icechunk.repository.stored_json import (
    compressed,
    decompressed,
    first_unpacked,
    packed,
    unpacked,
)
from icechunk_dask import one_call
from icechunk_dask.archives.record import Record
from tests.endless import MIB

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: In place of what was there.
OTHERS: tuple[Any, ...] = (None, True, -1, 1 << 70, 0.5, "x", [], [[]], {}, {"a": 1}, ["x", 1])


def neighbours(value: Any) -> Iterator[Any]:
    """Yield a JSON value with another in each of its places, and without each of its fields."""
    yield from (other for other in OTHERS if other != value)
    if isinstance(value, dict):
        for name, each in value.items():
            yield {n: v for n, v in value.items() if n != name}
            yield from ({**value, name: other} for other in neighbours(each))
    elif isinstance(value, list):
        yield from (value[:i] + value[i + 1 :] for i in range(len(value)))
        for i, each in enumerate(value):
            yield from ([*value[:i], other, *value[i + 1 :]] for other in neighbours(each))


def bomb(pattern: bytes, size: int = 512 * MIB) -> bytes:
    compressor = zstd.ZstdCompressor()
    block = pattern * (MIB // len(pattern))
    return b"".join([compressor.compress(block) for _ in range(size // MIB)] + [compressor.flush()])


# -- jobs ------------------------------------------------------------------------------------
def with_a_job() -> Repository:
    repository = Repository.create(MemoryStorage())
    with repository.transaction("main", message="array") as store:
        zarr.create_array(store, name="a", shape=4, chunks=2, dtype="u1")
    job = repository.jobs.create("j", keys=[0, 1], message="m")
    job.run(lambda store, key: zarr.open_array(store, path="a")[:].sum(), keys=[0])
    with suppress(Exception):
        job.run(lambda store, key: 1 / 0, keys=[1])
    job.publish()
    return repository


CALLS: dict[str, Callable[[Repository], Any]] = {
    "status": lambda repository: repr(repository.jobs.open("j").status()),
    "publish": lambda repository: repository.jobs.open("j").publish(),
    "cancel": lambda repository: repository.jobs.open("j").cancel(),
}


@pytest.fixture(scope="module")
def jobs() -> dict[str, bytes]:
    storage = with_a_job().storage
    return {meta.key: bytes(storage.get(meta.key).data) for meta in storage.list()}


def root_of(objects: dict[str, bytes]) -> str:
    """Return where the records of the job are, besides its definition."""
    return next(key for key in objects if "/log/" in key).partition("log/")[0]


def changed(objects: dict[str, bytes], key: str, data: bytes) -> Repository:
    storage = MemoryStorage()
    for name, stored in {**objects, key: data}.items():
        storage.put(name, stored)
    return Repository.open(storage)


def test_records_of_jobs(jobs: dict[str, bytes]) -> None:
    keys = [key for key in jobs if key.startswith("jobs/")]
    assert all(any(f"/{word}" in key for key in keys) for word in ("job", "attempts/", "log/"))
    for key in keys:
        if "/parts/" in key:
            (size,) = struct.unpack_from("<I", jobs[key])
            header = unpacked(jobs[key][4 : 4 + size])
            made = [packed(each) for each in neighbours(header)]
            damaged = [struct.pack("<I", len(m)) + m + jobs[key][4 + size :] for m in made]
        else:
            damaged = [packed(each) for each in neighbours(unpacked(jobs[key]))]
        for number, data in enumerate([*damaged, b"", b"\xff" * 9, jobs[key][:-3]]):
            calls = list(CALLS)
            with suppress(IcechunkError):
                CALLS[calls[number % len(calls)]](changed(jobs, key, data))


@pytest.mark.parametrize("name", ["log/x", "log/000000x1", "log/99999999", "parts/x", "attempts/x"])
def test_names_of_records(jobs: dict[str, bytes], name: str) -> None:
    for call in CALLS.values():
        with suppress(IcechunkError):
            call(changed(jobs, root_of(jobs) + name, packed({})))


@pytest.mark.parametrize("pattern", [b"[],", b"0,", b"[", b' {"a":1},', b'"a",'])
def test_records_that_grow(jobs: dict[str, bytes], pattern: bytes) -> None:
    data = bomb(pattern)
    assert len(data) < MIB // 4
    for key in ("jobs/j/job", root_of(jobs) + "log/00000001"):
        tracemalloc.start()
        try:
            with pytest.raises(FormatError, match="decompressed"):
                changed(jobs, key, data).jobs.open("j").status()
            assert tracemalloc.get_traced_memory()[1] < 100 * MIB
        finally:
            tracemalloc.stop()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="decompressed"):
            Record.decode(data, "archives/x")
        assert tracemalloc.get_traced_memory()[1] < 100 * MIB
    finally:
        tracemalloc.stop()


# -- archives --------------------------------------------------------------------------------
TABLE: dict[str, Any] = {
    "version": 1,
    "locations": ["file:///a", "file:///b"],
    "sizes": [1, 2],
    "modified": [3, 4],
    "etags": ["", "x"],
    "by_value": [0, 1],
    "part_file": [0, 1],
    "part_number": [0, 0],
    "axes": [
        {
            "group": "",
            "dimension": "t",
            "places": [0, 1],
            "order": "url",
            "lengths": [1, 2],
            "names": ["file:///a", "file:///b"],
            "extents": {
                "kinds": ["i"],
                "kind": [0, -1],
                "low": [1, None],
                "high": [2, None],
                "falling": [0, 0],
                "digest": ["a", ""],
            },
        }
    ],
    "templates": {"v": {"meaning": {}, "digest": "00ff", "by_value": ""}},
}


def look_at(data: bytes) -> None:
    with suppress(FormatError):
        record = Record.decode(data, "x")
        # what was accepted fits together
        for axis, places in record.places.items():
            assert len(places) == len(record.part_file)
            assert len(record.blocks[axis].starts()) == len(record.blocks[axis]) + 1
        names = list(record.files.locations)
        record.without(names[:1])
        record.are_apart(names[:1])
        record.parts_of(names)
        record.encode()


def test_tables_of_archives_in_their_first_version() -> None:
    assert list(Record.decode(packed(TABLE), "x").files.locations) == TABLE["locations"]
    for each in neighbours(TABLE):
        look_at(packed(each))


def test_tables_of_archives() -> None:
    data = Record.decode(packed(TABLE), "x").encode()
    document, columns = first_unpacked(data)
    for each in neighbours(document):
        look_at(packed(each) + columns)
    raw, _ = decompressed(columns[8:])
    for at in range(len(raw)):
        for byte in (0, 1, 0x7F, 0x80, 0xFF):
            stored = compressed(raw[:at] + bytes([byte]) + raw[at + 1 :])
            look_at(packed(document) + columns[:4] + struct.pack("<I", len(stored)) + stored)


def test_columns_that_grow() -> None:
    data = bomb(b"\x01")
    document = {"version": 2, "columns": [["sizes", "steps of <i1", 512 * MIB, 512 * MIB]]}
    table = packed(document) + b"\x50\x2a\x4d\x18" + struct.pack("<I", len(data)) + data
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="decompressed"):
            Record.decode(table, "archives/x")
        assert tracemalloc.get_traced_memory()[1] < 100 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "name", ["../repo", "..", "a" * 25, "A" * 24, "/etc/passwd", "a/../../x", "", "a" * 23 + "\n"]
)
def test_names_of_tables(name: str) -> None:
    document = {"icechunk_archive": {"must_understand": False, "table": name, "array": "v"}}
    assert named_table(json.dumps(document).encode()) is None


def test_calls_that_nobody_made() -> None:
    """A repository may say that another call runs, of any process."""
    said = {**one_call._me(), "since": "2020-01-01T00:00:00+00:00", "pid": 1, "machine": "x"}
    for about in neighbours(said):
        repository = Repository.create(MemoryStorage())
        try:
            repository.jobs.create("call-1", branch="main", message="m", about=about)
        except (IcechunkError, TypeError, ValueError):
            continue
        assert one_call.alone(repository, "main", "call-", "it", lambda: 7) == 7
        assert repository.jobs.list() == []
