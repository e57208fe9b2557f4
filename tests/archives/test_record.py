"""The table of the files of an archive: small, whole, and read in every version that there was."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as npst

from icechunk.errors import FormatError
from icechunk.repository.stored_json import first_unpacked, packed
from icechunk_dask.archives.columns import decode, encode, heap_of, rows_in
from icechunk_dask.archives.extents import Extent, Extents
from icechunk_dask.archives.record import Blocks, Files, Record
from icechunk_dask.archives.sources import Version

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

AXIS = ("", "time")


def told(i: int | None) -> tuple[int, int]:
    """When a local file was touched, and what tells its bytes from others."""
    if i is None:
        return 0, 0
    return 10**18 + i, int.from_bytes(hashlib.sha256(b"%d" % i).digest()[:4], "little")


def record(count: int, *, etags: bool = False, touched: bool = False) -> Record:
    """A table of daily files."""
    day = 86_400_000_000
    versions = [
        Version(
            1000 + i % 7, 10**18 + i, f"{i:032x}" if etags else "", *told(i if touched else None)
        )
        for i in range(count)
    ]
    files = Files.of(
        [f"s3://bucket/daily/{i:08}.nc" for i in range(count)], versions, [False] * count
    )
    extents = [Extent("times", i * day, i * day + day - 1, False, i * 77) for i in range(count)]
    found = Record(files, np.arange(count), np.zeros(count, np.int64))
    found.places[AXIS] = np.arange(count)
    lengths = np.ones(count, np.int64)
    found.blocks[AXIS] = Blocks("coordinate", lengths, Extents.of(extents), np.arange(count))
    found.templates = {"t": {"meaning": {}, "by_value": "", "digest": ""}}
    return found


def as_first_version(found: Record) -> bytes:
    """The table as the first version of it was written."""
    files, blocks = found.files, found.blocks[AXIS]
    extents = [blocks.extents[i] for i in range(len(blocks))]
    known = [extent for extent in extents if extent is not None]
    document = {
        "version": 1,
        "locations": list(files.locations),
        "sizes": files.sizes.tolist(),
        "modified": files.modified.tolist(),
        "etags": list(files.etags),
        "by_value": files.by_value.astype(int).tolist(),
        "part_file": found.part_file.tolist(),
        "part_number": found.part_number.tolist(),
        "axes": [
            {
                "group": "",
                "dimension": "time",
                "places": found.places[AXIS].tolist(),
                "order": blocks.order,
                "lengths": blocks.lengths.tolist(),
                "names": list(files.locations.take(blocks.files)),
                "extents": {
                    "kinds": ["times"],
                    "kind": [0] * len(extents),
                    "low": [extent.low for extent in known],
                    "high": [extent.high for extent in known],
                    "falling": [0] * len(extents),
                    "digest": [f"{extent.digest:08x}01234567" for extent in known],
                },
            }
        ],
        "templates": found.templates,
    }
    return packed(document)


@pytest.mark.parametrize("first_version", [False, True])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_a_table_comes_back(count: int, first_version: bool) -> None:
    before = record(count, etags=True)
    data = as_first_version(before) if first_version else before.encode()
    after = Record.decode(data, "table")
    assert after.encode() == before.encode()
    assert list(after.files.locations) == list(before.files.locations)
    assert [after.files.version(i) for i in range(count)] == [
        before.files.version(i) for i in range(count)
    ]
    extents = [blocks.extents for blocks in (before.blocks[AXIS], after.blocks[AXIS])]
    assert [extents[0][i] for i in range(count)] == [extents[1][i] for i in range(count)]


def test_a_table_takes_few_bytes_a_file() -> None:
    # with two digests, of its bytes and of a coordinate, of which four each cannot be foreseen
    assert len(record(30_000, touched=True).encode()) < 19 * 30_000


def test_damage_of_a_table_is_named() -> None:
    data = record(20).encode()
    for cut in range(0, len(data), 7):
        with pytest.raises(FormatError, match="the table of the archive is damaged"):
            Record.decode(data[:cut], "table")
    wrong = record(20)
    wrong.part_file[3] = 20
    with pytest.raises(FormatError, match="out of its range"):
        Record.decode(wrong.encode(), "table")


def test_readers_of_the_first_version_see_that_this_is_another() -> None:
    # the columns are in a frame that Zstandard skips
    assert json.loads(zstd.decompress(record(3).encode()))["version"] == 2
    assert first_unpacked(record(3).encode())[0]["version"] == 2
    with pytest.raises(FormatError, match="a newer version"):
        Record.decode(encode({"version": 3}, {}), "table")


columns = st.one_of(
    npst.arrays(np.int64, st.integers(0, 5)),
    npst.arrays(np.float64, st.integers(0, 5), elements=st.floats(allow_nan=False)),
    npst.arrays(np.bool_, st.integers(0, 5)),
    npst.arrays(np.uint32, st.integers(0, 5)),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(heap_of),
)


@given(st.dictionaries(st.text("abc", max_size=3), columns))
def test_columns_come_back(given: Any) -> None:
    document, found = decode(encode({"a": 1}, given))
    assert document == {"a": 1} and found.keys() == given.keys()
    for name, column in given.items():
        assert list(found[name]) == list(column)


@given(st.lists(st.text("ab/"), unique=True), st.lists(st.text("ab/")))
def test_rows_of_texts(known: list[str], wanted: list[str]) -> None:
    expected = [known.index(text) if text in known else -1 for text in wanted]
    assert rows_in(heap_of(known), wanted).tolist() == expected


ends = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text("ab", max_size=2)
)


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.builds(
                Extent, st.sampled_from("ab"), ends, ends, st.booleans(), st.integers(0, 2**32 - 1)
            ),
        )
    ),
    st.data(),
)
def test_extents_as_columns(extents: list[Extent | None], data: Any) -> None:
    cut = data.draw(st.integers(0, len(extents)))
    found = Extents.of(extents[:cut]).followed_by(Extents.of(extents[cut:]))
    assert [found[i] for i in range(len(found))] == extents
