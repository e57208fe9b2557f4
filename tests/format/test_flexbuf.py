from __future__ import annotations

import json
import math
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from icechunk.errors import ErrorKind, FormatError, InvalidInputError
from icechunk.format.encoding.flexbuf import MAX_DEPTH, dumps, loads
from tests.format import golden, json_values
from tests.format.hostile import damaged, value_or_format_error

# what the official writer makes of these values
OFFICIAL = [
    (1, "01 08 01"),
    (-300, "d4 fe 05 02"),
    (1099511627776, "00 00 00 00 00 01 00 00 0b 08"),
    (2**64 - 1, "ff ff ff ff ff ff ff ff 0b 08"),
    (-(2**63), "00 00 00 00 00 00 00 80 07 08"),
    (0.1, "9a 99 99 99 99 99 b9 3f 0f 08"),
    (True, "01 68 01"),
    (None, "00 00 01"),
    ("xxx", "03 78 78 78 00 04 14 01"),
    ([1, 2, 3], "01 02 03 03 50 01"),
    ([1, 2, 3, 4, 5], "05 01 02 03 04 05 05 30 01"),
    ([1, -2], "02 01 fe 08 04 04 28 01"),
    ([-1, -2], "ff fe 02 40 01"),
    ([1.5, 2.5], "00 00 c0 3f 00 00 20 40 08 4a 01"),
    ([True, False], "02 01 00 02 90 01"),
    (["p", "q"], "01 70 00 01 71 00 02 06 04 14 14 04 28 01"),
    ([[1, 2], [3, 4]], "01 02 03 04 02 05 04 44 44 04 28 01"),
    ([], "00 00 28 01"),
    ({}, "00 00 01 00 00 24 01"),
    ({"is_root": True}, "69 73 5f 72 6f 6f 74 00 01 09 01 01 01 01 68 02 24 01"),
    (
        {"x": -1.5, "y": None, "z": "hi"},
        "78 00 79 00 7a 00 02 68 69 00 03 0b 0a 09 00 00 05 00 00 00 01 00 00 00 03 00 00 00"
        "00 00 c0 bf 00 00 00 00 1d 00 00 00 0e 02 14 0f 26 01",
    ),
]

# a config in the order in which the official writer stores its keys
CONFIG = {
    "inline_chunk_threshold_bytes": 7,
    "get_partial_values_concurrency": None,
    "compression": None,
    "max_concurrent_requests": None,
    "max_concurrent_decodes": None,
    "caching": None,
    "storage": {
        "concurrency": {
            "max_concurrent_requests_for_object": 5,
            "ideal_concurrent_request_size": 4096,
        },
        "retries": {"max_tries": 1, "initial_backoff_ms": 0, "max_backoff_ms": 0},
        "timeouts": None,
        "unsafe_use_conditional_update": False,
        "unsafe_use_conditional_create": None,
        "unsafe_use_metadata": False,
        "storage_class": None,
        "metadata_storage_class": None,
        "chunks_storage_class": None,
        "minimum_size_for_multipart_upload": None,
    },
    "virtual_chunk_containers": None,
    "manifest": None,
    "previous_file": None,
    "repo_update_retries": None,
    "num_updates_per_repo_info_file": None,
}


def same(a: Any, b: Any) -> bool:
    """Equal, types and signs of zero too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


@pytest.mark.parametrize(("value", "encoded"), OFFICIAL, ids=lambda v: json.dumps(v)[:30])
def test_official_bytes(value: object, encoded: str) -> None:
    assert dumps(value) == bytes.fromhex(encoded)
    assert same(loads(bytes.fromhex(encoded), "x"), value)


def test_official_config() -> None:
    assert loads(golden.CONFIG, "x") == CONFIG
    assert dumps(CONFIG) == golden.CONFIG


@given(json_values.values)
@example([0.0, -0.0, 1e300])
@example([2**32 - 1, 2**32])
@example({"": {"": ""}})
@example("x" * 255)
@example(["y" * 65536, [[-1] * 300]])
@example({f"key{i}": i for i in range(300)})
def test_round_trip(value: object) -> None:
    assert same(loads(dumps(value), "x"), value)


@pytest.mark.parametrize("size", [*range(225, 265), *range(65505, 65540)])
def test_offsets_that_just_fit_or_not(size: int) -> None:
    for value in (["x" * size, 1], {"a": "x" * size, "b": [], "c": 1}, ["x" * size] * 3):
        assert loads(dumps(value), "x") == value


def test_keys_are_stored_once() -> None:
    value = [{"key": {"key": 1}}, {"other": 1, "key": 2}]
    assert dumps(value).count(b"key\0") == 1
    assert loads(dumps(value), "x") == value


def test_numpy_scalars_and_tuples() -> None:
    value = {"a": (np.int64(3), np.float32(0.5), np.bool_(True)), "b": np.str_("s")}
    assert same(loads(dumps(value), "x"), {"a": [3, 0.5, True], "b": "s"})


@pytest.mark.parametrize(
    ("value", "place", "reason"),
    [
        (math.nan, "meta:", "nan cannot be stored"),
        ({"a": [1, math.inf]}, "meta['a'][1]:", "inf cannot be stored"),
        ({"a": np.float64("nan")}, "meta['a']:", "nan cannot be stored"),
        ({"a": {1: 2}}, "meta['a'][1]:", "keys must be strings"),
        ({"a": b"x"}, "meta['a']:", "type bytes cannot be stored"),
        ([object()], "meta[0]:", "type object cannot be stored"),
        ([np.arange(3)], "meta[0]:", "type ndarray cannot be stored"),
        ({"a": {1, 2}}, "meta['a']:", "type set cannot be stored"),
        ({"a": np.datetime64("2020-01-01")}, "meta['a']:", "type date cannot be stored"),
        ({"a": 2**64}, "meta['a']:", "more than 64 bits"),
        ({"a": -(2**63) - 1}, "meta['a']:", "more than 64 bits"),
        ({"a": 10**400}, "meta['a']:", "more than 64 bits"),
        ({"a\0b": 1}, r"meta['a\x00b']:", "contains a NUL"),
        ({"a": "\ud800"}, "meta['a']:", "not valid Unicode"),
        ({"\ud800": 1}, r"meta['\ud800']:", "not valid Unicode"),
    ],
)
def test_refuses_what_json_cannot_say(value: object, place: str, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason) as caught:
        dumps(value, "meta")
    assert str(caught.value).startswith(f"bad metadata: {place}")
    assert caught.value.kind == ErrorKind.BAD_METADATA


def test_depth() -> None:
    value: Any = None  # a list of numbers would have another form
    for _ in range(MAX_DEPTH):
        value = [value]
    data = dumps(value)
    assert loads(data, "x") == value
    with pytest.raises(InvalidInputError, match="inside each other"):
        dumps([value])
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(InvalidInputError, match="inside each other"):
        dumps(circle)
    # the same bytes below one more vector: length, offset, type
    deeper = data[:-3] + bytes((1, data[-3] + 1, data[-2])) + b"\x02\x28\x01"
    with pytest.raises(FormatError, match="inside each other"):
        loads(deeper, "x")


# encodings that are legal and that the official writer does not choose
@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("fe ff 02 19 01", -2),  # indirect int of 2 bytes
        ("05 01 1c 01", 5),  # indirect uint
        ("00 00 c0 3f 04 22 01", 1.5),  # indirect float
        ("78 79 00 03 10 01", "xy"),  # key
        ("02 61 62 02 64 01", b"ab"),  # blob
        ("61 00 62 00 02 05 04 02 38 01", ["a", "b"]),  # vector of keys
        ("05 00 00 00 09 04", 5),  # wider than it need be; the low bits do not count
        ("01 02 03 00 04 4c 01", [1, 2, 3]),  # fixed, int x 3
        ("01 02 03 04 04 5c 01", [1, 2, 3, 4]),  # fixed, uint x 4
        ("01 00 69 02", True),
    ],
)
def test_other_encodings(encoded: str, value: object) -> None:
    assert same(loads(bytes.fromhex(encoded), "x"), value)


@pytest.mark.parametrize(
    ("encoded", "problem"),
    [
        ("", "width of the root"),
        ("01 08", "width of the root"),
        ("01 08 03", "width of the root"),
        ("01 08 08", "reach outside"),
        ("01 0c 01", "a float of 1 bytes"),
        ("05 14 01", "points outside"),
        ("09 61 00 02 14 01", "reach outside"),
        ("01 ff 00 02 14 01", "not UTF-8"),
        ("01 01 fc 01", "unknown type 63"),
        ("01 01 3c 01", "unknown type 15"),
        ("61 62 02 10 01", "reaches outside"),
        ("01 03 00 00 00 24 01", "keys of the map at 4 have width 0"),
        ("61 00 01 03 01 01 02 05 05 04 04 04 24 01", "1 keys and 2 values"),
    ],
)
def test_damaged(encoded: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem) as caught:
        loads(bytes.fromhex(encoded), "the/name")
    assert str(caught.value).startswith("the/name: ")


@given(st.binary(max_size=60))
def test_made_up_bytes(data: bytes) -> None:
    value_or_format_error(lambda: loads(data, "x"))


@given(st.data())
def test_damage(data: st.DataObject) -> None:
    whole = data.draw(st.one_of(st.just(golden.CONFIG), json_values.values.map(dumps)))
    wrong = data.draw(damaged(whole))
    value_or_format_error(lambda: loads(wrong, "x"))


def test_shared_parts_do_not_explode() -> None:
    # each level is a vector with the one below it twice: 2**60 elements in all
    data = bytearray(b"\x00")  # the empty vector's length; its target is at 1
    target = 1
    for _ in range(60):
        data += b"\x02"
        here = len(data)
        data += bytes((here - target, here + 1 - target)) + b"\x28\x28"
        target = here
    data += bytes((len(data) - target,)) + b"\x28\x01"
    tracemalloc.start()
    with pytest.raises(FormatError, match="shared too often"):
        loads(bytes(data), "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def overlapping_strings(length: int) -> bytes:
    """A vector of strings that begin one byte after the other."""
    run = bytes([length]) * 20_000
    count = 10_000
    base = len(run) + 4
    offsets = b"".join(struct.pack("<I", base + 4 * i - (i + 1)) for i in range(count))
    end = struct.pack("<I", len(offsets) + count) + b"\x2a\x04"
    return run + struct.pack("<I", count) + offsets + b"\x14" * count + end


def test_overlapping_strings_do_not_explode() -> None:
    assert loads(overlapping_strings(1), "x") == ["\x01"] * 10_000
    with pytest.raises(FormatError, match="shared too often"):
        loads(overlapping_strings(127), "x")
