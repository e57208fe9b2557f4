from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, strategies as st

from icechunk.errors import InvalidInputError
from icechunk.format.encoding.string_heap import StringHeap

texts = st.text(st.sampled_from("a0/é日😀\0"), max_size=5)


@given(st.lists(texts))
def test_from_strings_keeps_distinct_strings_in_first_seen_order(strings: list[str]) -> None:
    heap, index = StringHeap.from_strings(strings)
    assert list(heap) == list(dict.fromkeys(strings))
    assert [heap[i] for i in index.tolist()] == strings
    assert index.dtype == np.int32
    assert len(heap) == len(set(strings))


@given(st.lists(texts), st.binary(max_size=3))
def test_from_spans_equals_from_strings(strings: list[str], prefix: bytes) -> None:
    encoded = [s.encode() for s in strings]
    lengths = np.array([len(e) for e in encoded], np.int64)
    starts = np.cumsum(lengths) - lengths + len(prefix)
    buffer = np.frombuffer(prefix + b"".join(encoded), np.uint8)
    heap, index = StringHeap.from_spans(buffer, starts, lengths)
    wanted, wanted_index = StringHeap.from_strings(strings)
    assert list(heap) == list(wanted)
    assert index.tolist() == wanted_index.tolist()


@given(st.lists(st.lists(texts, max_size=4), min_size=1, max_size=4))
def test_merge_maps_every_string(lists: list[list[str]]) -> None:
    heaps = [StringHeap.from_strings(strings)[0] for strings in lists]
    joined, maps = StringHeap.merge(heaps)
    assert len(set(joined)) == len(joined)
    for heap, mapping in zip(heaps, maps, strict=True):
        assert [joined[i] for i in mapping.tolist()] == list(heap)


@given(st.lists(texts, min_size=1), st.data())
def test_take_picks_in_order(strings: list[str], data: st.DataObject) -> None:
    heap, _ = StringHeap.from_strings(strings)
    rows = data.draw(st.lists(st.integers(0, len(heap) - 1)))
    assert list(heap.take(np.array(rows, np.int64))) == [heap[i] for i in rows]


def test_pickle_and_bounds() -> None:
    heap, _ = StringHeap.from_strings(["s3://a", "é"])
    again = pickle.loads(pickle.dumps(heap))
    assert list(again) == ["s3://a", "é"]
    assert "s3://a" in heap
    for index in (-1, 2):
        with pytest.raises(IndexError):
            heap[index]
    with pytest.raises(ValueError, match="read-only"):
        heap.data[0] = 0


@pytest.mark.parametrize(
    ("data", "offsets"),
    [
        (b"ab", [0, 1]),
        (b"ab", [1, 2]),
        (b"ab", [0, 2, 1, 2]),
        (b"ab", []),
        (b"\xff", [0, 1]),
        ("é".encode(), [0, 1, 2]),
        (b"\xed\xa0\x80", [0, 3]),
    ],
)
def test_damaged_heaps_are_refused(data: bytes, offsets: list[int]) -> None:
    with pytest.raises(InvalidInputError):
        StringHeap(np.frombuffer(data, np.uint8), np.array(offsets, np.int64))


def test_wrong_dtypes_are_refused() -> None:
    with pytest.raises(InvalidInputError):
        StringHeap(np.zeros(2, np.int8), np.array([0, 2], np.int64))
    with pytest.raises(InvalidInputError):
        StringHeap(np.zeros(2, np.uint8), np.array([0, 2], np.int32))


@pytest.mark.parametrize(("start", "length"), [(0, 4), (4, 0), (-1, 1), (1, -1), (2**62, 2**62)])
def test_spans_outside_the_buffer_are_refused(start: int, length: int) -> None:
    with pytest.raises(InvalidInputError, match="outside"):
        StringHeap.from_spans(
            np.frombuffer(b"abc", np.uint8), np.array([start]), np.array([length])
        )


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="UTF-8"):
        StringHeap.from_strings(["ok", "\ud800"])


@given(
    st.lists(st.text("a/é\0\U0001f600", max_size=5), max_size=12), st.sampled_from(["S", "U", ">U"])
)
def test_an_array_of_strings_is_stored_as_a_list_of_them(strings: list[str], kind: str) -> None:
    if kind == "S":
        array = np.array([s.encode() for s in strings], "S")
        given_strings = [s.decode() for s in array.tolist()]
    else:
        array = np.array(strings, "U")
        array = array.astype(array.dtype.newbyteorder(">" if kind == ">U" else "="))
        given_strings = array.tolist()
    heap, index = StringHeap.from_array(array)
    expected, expected_index = StringHeap.from_strings(given_strings)
    assert list(heap) == list(expected)
    assert index.tolist() == expected_index.tolist()


@pytest.mark.parametrize("text", ["a", "é", "\U0001f600"])
@pytest.mark.parametrize("distinct", [20_000, 19_990, 3])
def test_many_strings(text: str, distinct: int) -> None:
    strings = [f"{i % distinct}{text if i % 7 else 'b'}{'/' * (i % 3)}" for i in range(20_000)]
    heap, index = StringHeap.from_strings(strings)
    assert [heap[i] for i in index.tolist()] == strings
    assert list(heap) == list(dict.fromkeys(strings))


def test_a_lone_surrogate_among_many_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="UTF-8"):
        StringHeap.from_strings([*map(str, range(20_000)), "\ud800"])


def test_many_distinct_strings_are_copied_once() -> None:
    strings = [f"{i:0300d}" for i in range(1 << 15)]
    size = 300 << 15
    tracemalloc.start()
    try:
        heap, index = StringHeap.from_strings(strings)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert list(heap) == strings and index.tolist() == list(range(len(strings)))
    # a few numbers for each, and some strings at a time
    assert peak < size * 1.5
