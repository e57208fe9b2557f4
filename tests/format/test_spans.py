from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, strategies as st

from icechunk.format.encoding import spans


@pytest.fixture(params=["whole", "tiny limits", "one hash for all"], autouse=True, scope="module")
def limits(request: pytest.FixtureRequest) -> Iterator[None]:
    patches = {
        "whole": [],
        "tiny limits": [
            mock.patch.object(spans, "_LONG", 3),
            mock.patch.object(spans, "_BLOCK", 4),
        ],
        "one hash for all": [
            mock.patch.object(spans, "_hash", lambda rows: np.zeros(len(rows), np.uint64))
        ],
    }[request.param]
    for patch in patches:
        patch.start()
    yield
    for patch in patches:
        patch.stop()


@st.composite
def ranges(draw: st.DrawFn) -> tuple[bytes, list[int], list[int]]:
    # few different bytes, NUL among them, so that equal spans are common
    buffer = bytes(draw(st.lists(st.sampled_from([0, 1, 255]), max_size=40)))
    points = st.integers(0, len(buffer))
    pairs = draw(st.lists(st.tuples(points, points), max_size=30))
    starts = [min(pair) for pair in pairs]
    return buffer, starts, [max(pair) - min(pair) for pair in pairs]


def as_arrays(
    sample: tuple[bytes, list[int], list[int]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[bytes]]:
    buffer, starts, lengths = sample
    contents = [buffer[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    return (
        np.frombuffer(buffer, np.uint8),
        np.array(starts, np.int64),
        np.array(lengths, np.int64),
        contents,
    )


@given(ranges())
def test_gather_copies_spans_in_order(sample: tuple[bytes, list[int], list[int]]) -> None:
    buffer, starts, lengths, contents = as_arrays(sample)
    data, offsets = spans.gather(buffer, starts, lengths)
    assert data.tobytes() == b"".join(contents)
    assert np.diff(offsets).tolist() == lengths.tolist()
    assert not np.shares_memory(data, buffer)


@given(ranges())
def test_unique_groups_equal_contents_by_first_occurrence(
    sample: tuple[bytes, list[int], list[int]],
) -> None:
    buffer, starts, lengths, contents = as_arrays(sample)
    first, inverse = spans.unique(buffer, starts, lengths)
    distinct = list(dict.fromkeys(contents))
    assert [contents[i] for i in first.tolist()] == distinct
    assert first.tolist() == [contents.index(c) for c in distinct]
    assert [distinct[i] for i in inverse.tolist()] == contents


@given(ranges(), st.data())
def test_equal_compares_pairwise(
    sample: tuple[bytes, list[int], list[int]], data: st.DataObject
) -> None:
    buffer, starts, lengths, contents = as_arrays(sample)
    other = bytes(data.draw(st.permutations(sample[0])))
    result = spans.equal(buffer, starts, np.frombuffer(other, np.uint8), starts, lengths)
    wanted = [other[s : s + len(c)] == c for s, c in zip(sample[1], contents, strict=True)]
    assert result.tolist() == wanted


def test_hash_sees_every_byte() -> None:
    rows = np.zeros((1 + 8 * 19, 19), np.uint8)
    for bit in range(8 * 19):
        rows[1 + bit, bit // 8] = 1 << bit % 8
    assert len(np.unique(spans._hash(rows))) == 1 + 8 * 19 or spans._hash(rows).max() == 0


def test_hash_tells_numbered_names_apart() -> None:
    names = [f"s3://bucket/{i:08d}/{j:03d}" for i in range(1000) for j in range(100)]
    rows = np.frombuffer("".join(names).encode(), np.uint8).reshape(len(names), -1)
    assert len(np.unique(spans._hash(rows))) == len(names) or spans._hash(rows).max() == 0


@pytest.mark.parametrize("length", [spans._TAIL, 2 * spans._TAIL, 2 * spans._TAIL + 1, 200])
@pytest.mark.parametrize("differ", ["at their ends", "elsewhere", "nowhere", "some"])
def test_long_spans_are_equal_if_all_of_them_is(length: int, differ: str) -> None:
    rows = np.full((100, length), ord("x"), np.uint8)
    at = {"at their ends": [-1], "elsewhere": [0], "some": [0, -1]}.get(differ, [])
    for place in at:
        rows[:, place] = np.arange(100) % (50 if differ == "some" else 100)
    texts = [row.tobytes() for row in rows]
    first, inverse = spans.unique(
        rows.ravel(), np.arange(100, dtype=np.int64) * length, np.full(100, length, np.int64)
    )
    found = {text: texts.index(text) for text in texts}
    assert first.tolist() == sorted(found.values())
    assert [texts[first[k]] for k in inverse] == texts
