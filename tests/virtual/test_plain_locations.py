"""Locations by the million: as one by one, and without a Python call for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import example, given, strategies as st

from icechunk import Repository, RepositoryConfig, VirtualChunkContainer, VirtualChunkSpec
from icechunk.config import local_filesystem_store, s3_store
from icechunk.errors import IcechunkError, InvalidInputError
from icechunk.format.encoding.string_heap import StringHeap
from icechunk.storage.memory import MemoryStorage
from icechunk.virtual import plain_locations
from icechunk.virtual.locations import check_segments, cut_suffix, stored_location
from icechunk.virtual.plain_locations import plain, stored_heap
from icechunk.virtual.resolver import VirtualResolver
from tests.python_calls import python_calls

MANY = 20_000
pieces = st.sampled_from(
    [
        *(
            "a",
            "bucket",
            "in",
            "k.nc",
            "x=1",
            "é",
            " b",
            "user:pass",
            "..",
            ".",
            ".h",
            "%2e",
            "%2E.",
        ),
        *("?", "#", "@", "\\", "/", "//", ";", "\uff0e", "\x00", "\t", "\x7f", "?sig=1", "~", "{}"),
    ]
)
heads = st.sampled_from(
    [
        *("s3://bucket/", "s3://bucket", "S3://bucket/", "s3://", "s3:", "file:///", "file://"),
        *("FILE:///", "file:", "file://host/", "vcc://main/", "vcc://other/", "vcc://", "", "/"),
        *("s3://bucket/in/", "gs://b/", "x+y.z-1://h/", "1x://h/", "https://user@h/"),
    ]
)
locations = st.builds(
    lambda head, rest, between: head + between.join(rest),
    heads,
    st.lists(pieces, max_size=5),
    st.sampled_from(["", "/"]),
)
CONTAINERS = (
    VirtualChunkContainer("s3://bucket/", s3_store(anonymous=True), "main"),
    VirtualChunkContainer("s3://bucket/in/", s3_store(anonymous=True)),
    VirtualChunkContainer("file:///in/", local_filesystem_store("/in/")),
)
ALL_BUCKETS = VirtualChunkContainer("s3://", s3_store(anonymous=True), "all")


def heap_of(strings: list[str]) -> StringHeap:
    return StringHeap.from_strings(strings)[0]


@given(st.lists(locations, max_size=12))
@example(["s3://bucket/a/", ".x", "s3://bucket/.a", "file:///a b", "file:////h/a"])
def test_what_is_plain_is_stored_as_it_is_and_leads_down(strings: list[str]) -> None:
    heap = heap_of(strings)
    for location in np.array([*heap, ""], object)[:-1][plain(heap)]:
        assert stored_location(location) == location
        assert cut_suffix(location) == (location, "")
        check_segments(location, location.partition("://")[2])


def test_what_is_usual_is_plain() -> None:
    usual = [
        "s3://bucket/archive/v=2/tas_Amon_(1).nc",
        "file:///data/2024/file-01.h5",
        "https://host:8080/a/b.tif",
        "gs://b/k",
        "vcc://main/k+1",
    ]
    assert plain(heap_of(usual)).all()


@given(st.lists(locations, max_size=12))
def test_stored_as_one_by_one(strings: list[str]) -> None:
    heap = heap_of(strings)
    try:
        expected = [stored_location(location) for location in heap]
    except InvalidInputError as error:
        with pytest.raises(InvalidInputError) as caught:
            stored_heap(heap)
        assert str(caught.value) == str(error)
        return
    stored, index = stored_heap(heap)
    assert [stored[i] for i in index.tolist()] == expected
    assert len(set(stored)) == len(stored)


@given(st.lists(locations, max_size=12), st.booleans())
def test_refused_as_one_by_one(strings: list[str], all_buckets: bool) -> None:
    containers = (ALL_BUCKETS, *CONTAINERS[2:]) if all_buckets else CONTAINERS
    resolver = VirtualResolver({c.url_prefix: c for c in containers})
    heap = heap_of(strings)
    assert resolver.invalid_locations(heap) == resolver.invalid_locations(list(heap))


def writable(count: int) -> Any:
    config = RepositoryConfig()
    for container in CONTAINERS:
        config.set_virtual_chunk_container(container)
    session = Repository.create(MemoryStorage(), config).writable_session("main")
    zarr.create_array(session.store, name="a", shape=(count,), chunks=(1,), dtype="i1")
    return session


class Arrow:
    """An array of Arrow, as far as it is asked."""

    def __init__(self, values: list[str]) -> None:
        self.values = values

    def to_pylist(self) -> list[str | None]:
        return [value or None for value in self.values]


@pytest.mark.parametrize("beyond_ascii", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        iter,
        Arrow,
        np.array,
        lambda values: np.array(values).astype(">U40"),
        lambda values: np.array(values, object),
        lambda values: np.array(values, np.dtypes.StringDType()),
        lambda values: np.array([value.encode() for value in values]),
    ],
    ids=["list", "tuple", "iterator", "arrow", "U", "swapped", "object", "T", "S"],
)
def test_kinds_of_input(make: Callable[[list[str]], Any], beyond_ascii: bool) -> None:
    given = ["s3://bucket/b", "", "S3://bucket/a%20b", "s3://bucket/b", "s3://bucket/in/c"]
    if beyond_ascii:
        given[4] = "s3://bucket/\u00e9\U0001f600"
    session = writable(5)
    refused = session.store.set_virtual_refs_arr(
        "a", (5,), make(given), np.arange(5, dtype=np.uint64), np.full(5, 3, np.uint64)
    )
    assert refused is None
    assert [session.chunk_type("/a", [i]).name for i in range(5)] == [
        "virtual",
        "uninitialized",
        *["virtual"] * 3,
    ]
    found = session.all_virtual_chunk_locations()
    assert sorted(found) == sorted([given[0], given[0], "s3://bucket/a%20b", given[4]])


@pytest.mark.parametrize("wrong", [None, 5, b"s3://bucket/b"])
def test_what_is_no_text_is_named(wrong: Any) -> None:
    store = writable(2).store
    with pytest.raises(IcechunkError, match="is not an absolute URL") as caught:
        store.set_virtual_refs_arr("a", (2,), ["s3://bucket/a", wrong], [0, 0], [1, 1])
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("form", ["s3://bucket/in/{:09d}.nc", "file:///in/{}", "vcc://main/{:x}"])
def test_distinct_locations_cost_no_calls(form: str) -> None:
    session = writable(MANY)
    strings = [form.format(i) for i in range(MANY)]
    sizes = np.ones(MANY, np.uint64)
    calls = python_calls(
        lambda: session.store.set_virtual_refs_arr("a", (MANY,), strings, sizes, sizes)
    )
    assert calls < MANY / 10
    calls = python_calls(lambda: session.commit("all"))
    assert calls < 4 * MANY  # where compressing the locations pays, a few for each


def test_specs_with_distinct_locations_cost_few_calls() -> None:
    session = writable(MANY)
    specs = [VirtualChunkSpec([i], f"s3://bucket/{i}", 0, 1) for i in range(MANY)]
    assert python_calls(lambda: session.store.set_virtual_refs("a", specs)) < 8 * MANY
    assert session.chunk_type("/a", [MANY - 1]).name == "virtual"


def test_locations_as_strings_one_by_one_and_together() -> None:
    """ASCII or not: iterating gives what indexing gives."""
    for strings in (["s3://a/b", "", "x" * 300], ["s3://a/é", "日本", "plain", ""], []):
        heap, index = StringHeap.from_strings(strings)
        assert [list(heap)[i] for i in index] == strings
        part = heap.take(np.arange(len(heap))[1:])
        assert list(part) == [part[i] for i in range(len(part))]


def test_locations_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = plain_locations._look

    def counted(heap: StringHeap) -> Any:
        looks.append(len(heap))
        return look(heap)

    monkeypatch.setattr(plain_locations, "_look", counted)
    # all of them became text again before they were validated
    monkeypatch.setattr(StringHeap, "__iter__", None)
    session = writable(MANY)
    strings = [f"s3://bucket/in/{i:09d}.nc" for i in range(MANY)]
    sizes = np.ones(MANY, np.uint64)
    assert session.store.set_virtual_refs_arr("a", (MANY,), strings, sizes, sizes) is None
    assert looks == [MANY]
