from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, strategies as st

from icechunk.errors import ErrorKind, FormatError
from icechunk.format.encoding.flatbuf import Batch, encode, read_root
from icechunk.format.ids import INITIAL_SNAPSHOT_ID
from icechunk.format.v1 import (
    MAX_TEXT,
    array_shapes,
    manifest_files,
    metadata_loads,
    parse_config,
    parse_ref,
)
from tests.format import golden, json_values
from tests.format.hostile import damaged, value_or_format_error


@given(json_values.values)
def test_metadata(value: Any) -> None:
    assert metadata_loads(msgpack.packb(value), "x") == value


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xc1", b"\xc3\xc3", b"\xa2a", b"\xa1\xff", b"\x81\x01\x02", b"\x81\xc0\x01"),
        *(
            b"\x81\xc4\x01a\x01",
            b"\x81\x90\x01",
            b"\xd4\x05\x00",
            b"\x91" * 100_000,
            b"\xdd\xff\xff\xff\xff",
        ),
    ],
)
def test_bad_metadata(data: bytes) -> None:
    with pytest.raises(FormatError, match="the/name: not a MessagePack value"):
        metadata_loads(data, "the/name")


@given(st.binary(max_size=40))
def test_made_up_metadata(data: bytes) -> None:
    value_or_format_error(lambda: metadata_loads(data, "x"))


def test_ref() -> None:
    assert parse_ref(b'{"snapshot":"1CECHNKREP0F1RSTCMT0"}', "x") == INITIAL_SNAPSHOT_ID


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"1", b"[]", b"{}", b'{"snapshot":1}', b'{"snapshot":"1CECHNKREP0F1RSTCMT"}'),
        *(b'{"snapshot":"1CECHNKREP0F1RSTCMT1"}', b"[" * 100_000, b"\xff", b'"snapshot"'),
    ],
)
def test_bad_ref(data: bytes) -> None:
    with pytest.raises(FormatError, match="the/ref: not a ref"):
        parse_ref(data, "the/ref")


def test_official_config() -> None:
    config = parse_config(golden.CONFIG_YAML.encode(), "x")
    container = config.pop("virtual_chunk_containers")["s3://b/"]
    assert config.pop("inline_chunk_threshold_bytes") == 10
    assert set(config.values()) == {None}
    assert container.pop("store") == {
        "s3": {
            "region": "us-east-1",
            "endpoint_url": None,
            "anonymous": False,
            "allow_http": False,
            "force_path_style": False,
            "network_stream_timeout_seconds": 60,
            "requester_pays": False,
        }
    }
    assert container == {"name": None, "url_prefix": "s3://b/"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("!s3 {region: x}", {"s3": {"region": "x"}}),
        ("!local_file_system /tmp/x", {"local_file_system": "/tmp/x"}),
        ("!Axis 0", {"Axis": 0}),
        ("!DimensionName '0'", {"DimensionName": "0"}),
        ("!or [any_array, !path_matches {regex: 1.5.}]",
         {"or": ["any_array", {"path_matches": {"regex": "1.5."}}]}),
        ("Any", "Any"),
        ("!Any", "Any"),
        ("~", None),
        ("", None),
        ("null", None),
        ("true", True),
        ("-3", -3),
        ("0.5", 0.5),
        # only YAML 1.1 takes these for something else
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("0o7", "0o7"),
        ("NaN", "NaN"),
        ("'12'", "12"),
        ("us-east-1", "us-east-1"),
    ],
)  # fmt: skip
def test_config_values(text: str, value: object) -> None:
    assert parse_config(f"key: {text}\n".encode(), "x") == {"key": value}


def test_empty_config() -> None:
    assert parse_config(b"", "x") == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &x 1\nb: *x", "aliases"),
        ("a: &x [*x]", "aliases"),
        ("[1]", "not a mapping"),
        ("text", "not a mapping"),
        ("[1,", "expected"),
        ("? [a]\n: 1", "keys must be strings"),
        ("a: 1\n---\nb: 2", "single document"),
        ("[" * 5_000, "recursion"),
        ("a: " + "!x " * 3 + "1", "expected"),
        ("# " + "x" * MAX_TEXT, "larger than"),
        ("a: \x00", "unacceptable character"),
    ],
)
def test_bad_config(text: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem) as caught:
        parse_config(text.encode(), "config.yaml")
    assert str(caught.value).startswith("config.yaml: not a config: ")
    assert caught.value.kind == ErrorKind.CONFIG_DESERIALIZATION


def test_config_that_is_not_text() -> None:
    with pytest.raises(FormatError, match="not a config"):
        parse_config(b"a: \xff", "x")


def test_aliases_do_not_explode() -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    tracemalloc.start()
    with pytest.raises(FormatError, match="aliases"):
        parse_config("\n".join(lines).encode(), "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


@given(st.data())
def test_damaged_config(data: st.DataObject) -> None:
    wrong = data.draw(damaged(golden.CONFIG_YAML.encode()))
    value_or_format_error(lambda: parse_config(wrong, "x"))


def array_data(shape: list[tuple[int, int]]) -> bytes:
    root = Batch(1)
    root.vector(0, np.array(shape, "<u8").reshape(-1, 2), [0, len(shape)])
    return bytes(encode(root))


dimension = st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1))


@given(st.lists(dimension, max_size=4))
def test_chunk_counts(shape: list[tuple[int, int]]) -> None:
    lengths, counts, offsets = array_shapes(read_root(array_data(shape), "x"), "x")
    assert lengths.tolist() == [length for length, _ in shape]
    assert counts.tolist() == [-(-length // chunk) for length, chunk in shape]
    assert offsets.tolist() == [0, len(shape)]


@pytest.mark.filterwarnings("error")
def test_chunks_of_length_zero() -> None:
    _, counts, _ = array_shapes(read_root(array_data([(0, 0)]), "x"), "x")
    assert counts.tolist() == [0]
    with pytest.raises(FormatError, match="chunks of length 0"):
        array_shapes(read_root(array_data([(3, 3), (1, 0)]), "x"), "x")


def test_manifest_list() -> None:
    rows = [(bytes(range(12)), 2**40, 7), (bytes(range(12, 24)), 153, 2**32 - 1)]
    raw = b"".join(
        id + bytes(4) + size.to_bytes(8, "little") + count.to_bytes(4, "little") + bytes(4)
        for id, size, count in rows
    )
    root = Batch(1)
    root.vector(6, np.frombuffer(raw, "<u8").reshape(-1, 4), [0, 2])
    ids, sizes, counts = manifest_files(read_root(encode(root), "x"))
    assert [id.tobytes() for id in ids] == [row[0] for row in rows]
    assert sizes.tolist() == [row[1] for row in rows]
    assert counts.tolist() == [row[2] for row in rows]
