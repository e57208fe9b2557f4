"""Files of spec version 1, written again: a strict reader finds what official files hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from icechunk.errors import ErrorKind, InvalidInputError
from icechunk.format import v1
from icechunk.format.encoding.envelope import FileType, unwrap
from icechunk.format.ids import INITIAL_SNAPSHOT_ID
from icechunk.format.manifest import decode_manifest, encode_manifest
from icechunk.format.nodes import ArrayInfo, Node
from icechunk.format.snapshot import Snapshot, decode_snapshot, encode_snapshot
from icechunk.format.transaction_log import decode_transaction_log, encode_transaction_log
from tests.format import test_manifest, test_snapshot, test_transaction_log
from tests.format.strict_walk import Table, walk

#: Written by the official client 1.1.21.
REPOSITORY = Path(__file__).parents[1] / "data" / "v1" / "repository"
SNAPSHOT = Table({**test_snapshot.SNAPSHOT.fields, 1: ("parent_id", "id12")})
LOG = Table({k: v for k, v in test_transaction_log.SCHEMA.fields.items() if k != 8})


def _snapshot(data: bytes) -> bytes:
    return encode_snapshot(decode_snapshot(data, "x"), spec_version=1)


def _manifest(data: bytes) -> bytes:
    manifest = decode_manifest(data, "x")
    return encode_manifest(manifest.id, manifest.arrays, spec_version=1)


def _log(data: bytes) -> bytes:
    return encode_transaction_log(decode_transaction_log(data, "x"), spec_version=1)


@pytest.mark.parametrize(
    ("folder", "file_type", "schema", "again"),
    [
        ("snapshots", FileType.SNAPSHOT, SNAPSHOT, _snapshot),
        ("manifests", FileType.MANIFEST, test_manifest.SCHEMA, _manifest),
        ("transactions", FileType.TRANSACTION_LOG, LOG, _log),
    ],
)
def test_official_files_written_again(
    folder: str, file_type: FileType, schema: Table, again: Callable[[bytes], bytes]
) -> None:
    files = sorted((REPOSITORY / folder).iterdir())
    assert len(files) >= 3
    for path in files:
        theirs, _ = unwrap(path.read_bytes(), file_type, "theirs")
        ours, version = unwrap(again(path.read_bytes()), file_type, "ours")
        assert version == 1
        found, wanted = walk(ours, schema), walk(theirs, schema)
        for array in wanted.get("updated_chunks", ()):
            # where manifests are split, 1.1.21 sorts within each split only
            array["chunks"].sort(key=lambda chunk: chunk["coords"])
        assert found == wanted, path.name


def test_empty_and_scalar_arrays() -> None:
    def array(path: str, shape: tuple[int, ...], chunks: tuple[int, ...]) -> Node:
        grid = f'{{"name":"regular","configuration":{{"chunk_shape":{list(chunks)}}}}}'
        document = f'{{"chunk_grid":{grid}}}'.encode()
        counts = tuple(-(-n // c) if n else 0 for n, c in zip(shape, chunks, strict=True))
        return Node(path.encode().ljust(8), path, document, ArrayInfo(shape, counts, None, ()))

    nodes = [array("/a", (), ()), array("/b", (0, 5), (2, 2)), array("/c", (0,), (0,))]
    snapshot = Snapshot.build(
        bytes(12), nodes, flushed_at=1, message="", parent_id=INITIAL_SNAPSHOT_ID
    )
    again = decode_snapshot(encode_snapshot(snapshot, spec_version=1), "x")
    assert list(again.nodes()) == nodes
    assert again.parent_id == INITIAL_SNAPSHOT_ID


def test_grids_that_are_not_regular() -> None:
    with pytest.raises(InvalidInputError, match=r"'/x'.*spec version 1") as caught:
        v1.chunk_lengths(b'{"chunk_grid":{"name":"rectilinear"}}', "/x")
    assert caught.value.kind is ErrorKind.BAD_METADATA


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, ""),
        ({"a": None, "b": True}, "a: null\nb: true\n"),
        ({"store": "in_memory"}, 'store: "in_memory"\n'),
        ({"store": {"s3": {"region": "null"}}}, 'store: !s3 {"region": "null"}\n'),
        ({"store": {"http": {"s3": "1"}}}, 'store: !http {"s3": "1"}\n'),
        ({"if": {"and": ["true", {"Axis": 0}]}}, 'if: !and ["true", !Axis 0]\n'),
    ],
)
def test_configuration(config: dict[str, Any], text: str) -> None:
    assert v1.dump_config(config).decode() == text
    assert v1.parse_config(text.encode(), "x") == config
